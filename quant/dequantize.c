/* Reference conversions to floats: the operations of dequantize_row_* in ggml-quants.c, in the same order, so that the
 * floats agree bit for bit. */
#include "quant/formats.h"
#include "quant/half.h"

/* Rows lie in mapped files, where 16-bit fields need not be aligned: blocks are copied out, which costs nothing. */

static void dequantize_f16(const uint8_t *restrict src, float *restrict dst, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, src + 2 * i, sizeof half);
        dst[i] = drllm_f16_to_f32(half);
    }
}

static void dequantize_bf16(const uint8_t *restrict src, float *restrict dst, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, src + 2 * i, sizeof half);
        dst[i] = drllm_bf16_to_f32(half);
    }
}

static void dequantize_q4_0(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++, dst += DRLLM_GROUP) {
        struct drllm_block_q4_0 block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        for (size_t j = 0; j < 16; j++) {
            dst[j] = (float)((block.qs[j] & 15) - 8) * d;
            dst[j + 16] = (float)((block.qs[j] >> 4) - 8) * d;
        }
    }
}

static void dequantize_q4_1(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++, dst += DRLLM_GROUP) {
        struct drllm_block_q4_1 block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        const float m = drllm_f16_to_f32(block.m);
        for (size_t j = 0; j < 16; j++) {
            dst[j] = (float)(block.qs[j] & 15) * d + m;
            dst[j + 16] = (float)(block.qs[j] >> 4) * d + m;
        }
    }
}

/* The 32 weights of a 5-bit block, 0..31. */
static inline void unpack_5_bits(const uint8_t qh[4], const uint8_t qs[16], int32_t q[DRLLM_GROUP]) {
    const uint32_t high = (uint32_t)qh[0] | (uint32_t)qh[1] << 8 | (uint32_t)qh[2] << 16 | (uint32_t)qh[3] << 24;
    for (size_t j = 0; j < 16; j++) {
        q[j] = (int32_t)((qs[j] & 15u) | (high >> j & 1u) << 4);
        q[j + 16] = (int32_t)((uint32_t)(qs[j] >> 4) | (high >> (j + 16) & 1u) << 4);
    }
}

static void dequantize_q5_0(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++, dst += DRLLM_GROUP) {
        struct drllm_block_q5_0 block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        int32_t q[DRLLM_GROUP];
        unpack_5_bits(block.qh, block.qs, q);
        for (size_t j = 0; j < DRLLM_GROUP; j++) {
            dst[j] = (float)(q[j] - 16) * d;
        }
    }
}

static void dequantize_q5_1(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++, dst += DRLLM_GROUP) {
        struct drllm_block_q5_1 block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        const float m = drllm_f16_to_f32(block.m);
        int32_t q[DRLLM_GROUP];
        unpack_5_bits(block.qh, block.qs, q);
        for (size_t j = 0; j < DRLLM_GROUP; j++) {
            dst[j] = (float)q[j] * d + m;
        }
    }
}

static void dequantize_q8_0(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++, dst += DRLLM_GROUP) {
        struct drllm_block_q8_0 block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        for (size_t j = 0; j < DRLLM_GROUP; j++) {
            dst[j] = (float)block.qs[j] * d;
        }
    }
}

/* Q4_K and Q5_K: 8 groups of 32, each with a 6-bit scale and minimum. Bytes 0..3 hold the scales of groups 0..3 and
 * bytes 4..7 their minima, in the low 6 bits; bytes 8..11 the low 4 bits of those of groups 4..7 (scale low, minimum
 * high), whose upper 2 bits are on top of bytes 0..7. */
static inline void group_scale(const uint8_t scales[12], size_t group, float d, float dmin, float *scale,
                               float *minimum) {
    int s;
    int m;
    if (group < 4) {
        s = scales[group] & 63;
        m = scales[group + 4] & 63;
    } else {
        s = (scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4;
        m = scales[group + 4] >> 4 | (scales[group] >> 6) << 4;
    }
    *scale = d * (float)s;
    *minimum = dmin * (float)m;
}

/* 32 bytes of qs hold two groups: the low nibbles one, the high nibbles the next. */
static void dequantize_q4_k(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++) {
        struct drllm_block_q4_k block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        const float dmin = drllm_f16_to_f32(block.dmin);
        for (size_t group = 0; group < 8; group += 2, dst += 2 * DRLLM_GROUP) {
            const uint8_t *qs = block.qs + group * 16;
            float scale[2];
            float minimum[2];
            group_scale(block.scales, group, d, dmin, &scale[0], &minimum[0]);
            group_scale(block.scales, group + 1, d, dmin, &scale[1], &minimum[1]);
            for (size_t j = 0; j < DRLLM_GROUP; j++) {
                dst[j] = scale[0] * (float)(qs[j] & 15) - minimum[0];
                dst[j + DRLLM_GROUP] = scale[1] * (float)(qs[j] >> 4) - minimum[1];
            }
        }
    }
}

/* As Q4_K; bit `group` of qh[j] is the fifth bit of the group's weight j. */
static void dequantize_q5_k(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++) {
        struct drllm_block_q5_k block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        const float dmin = drllm_f16_to_f32(block.dmin);
        for (size_t group = 0; group < 8; group++, dst += DRLLM_GROUP) {
            const uint8_t *qs = block.qs + group / 2 * 32;
            const int shift = (int)(group & 1) * 4;
            float scale;
            float minimum;
            group_scale(block.scales, group, d, dmin, &scale, &minimum);
            for (size_t j = 0; j < DRLLM_GROUP; j++) {
                const int q = (qs[j] >> shift & 15) | (block.qh[j] >> group & 1) << 4;
                dst[j] = scale * (float)q - minimum;
            }
        }
    }
}

/* Each half of 128 weights has 64 bytes of ql and 32 of qh. Its quarter k (32 weights) has the low bits in the nibble
 * k/2 of the 32 bytes of ql from k%2 * 32, and the high ones in the bit pair k of qh. */
static void dequantize_q6_k(const uint8_t *restrict src, float *restrict dst, size_t n_blocks) {
    for (size_t i = 0; i < n_blocks; i++) {
        struct drllm_block_q6_k block;
        memcpy(&block, src + i * sizeof block, sizeof block);
        const float d = drllm_f16_to_f32(block.d);
        for (size_t group = 0; group < 16; group++, dst += 16) {
            const size_t half = group / 8;
            const size_t k = group / 2 % 4;
            const size_t first = group % 2 * 16;
            const uint8_t *ql = block.ql + half * 64 + k % 2 * 32 + first;
            const uint8_t *qh = block.qh + half * 32 + first;
            const int low_shift = (int)(k / 2) * 4;
            const int high_shift = (int)k * 2;
            const float scale = d * (float)block.scales[group];
            for (size_t j = 0; j < 16; j++) {
                const int q = ((ql[j] >> low_shift & 15) | (qh[j] >> high_shift & 3) << 4) - 32;
                dst[j] = scale * (float)q;
            }
        }
    }
}

void drllm_dequantize_row(enum drllm_format format, const void *src, float *dst, size_t n) {
    switch (format) {
    case DRLLM_FORMAT_F32:
        memcpy(dst, src, n * sizeof *dst);
        break;
    case DRLLM_FORMAT_F16:
        dequantize_f16(src, dst, n);
        break;
    case DRLLM_FORMAT_BF16:
        dequantize_bf16(src, dst, n);
        break;
    case DRLLM_FORMAT_Q4_0:
        dequantize_q4_0(src, dst, n / DRLLM_GROUP);
        break;
    case DRLLM_FORMAT_Q4_1:
        dequantize_q4_1(src, dst, n / DRLLM_GROUP);
        break;
    case DRLLM_FORMAT_Q5_0:
        dequantize_q5_0(src, dst, n / DRLLM_GROUP);
        break;
    case DRLLM_FORMAT_Q5_1:
        dequantize_q5_1(src, dst, n / DRLLM_GROUP);
        break;
    case DRLLM_FORMAT_Q8_0:
        dequantize_q8_0(src, dst, n / DRLLM_GROUP);
        break;
    case DRLLM_FORMAT_Q4_K:
        dequantize_q4_k(src, dst, n / DRLLM_SUPERBLOCK);
        break;
    case DRLLM_FORMAT_Q5_K:
        dequantize_q5_k(src, dst, n / DRLLM_SUPERBLOCK);
        break;
    case DRLLM_FORMAT_Q6_K:
        dequantize_q6_k(src, dst, n / DRLLM_SUPERBLOCK);
        break;
    case DRLLM_FORMAT_I8:
    case DRLLM_FORMAT_Q8C:
    case DRLLM_FORMAT_QB4W:
        break; /* their scales lie elsewhere */
    }
}

/* Whether the 16 bits at src, src + stride, ... have an exponent that is not all ones. */
static bool halves_are_finite(const unsigned char *src, size_t n, size_t stride, unsigned exponent) {
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        const unsigned bits = src[i * stride] | (unsigned)src[i * stride + 1] << 8;
        finite = finite && (bits & exponent) != exponent;
    }
    return finite;
}

bool drllm_row_is_finite(enum drllm_format format, const void *src, size_t n) {
    enum { F16_EXPONENT = 0x7c00, TOP_OF_F32_EXPONENT = 0x7f80 };
    const unsigned char *bytes = src;
    switch (format) {
    case DRLLM_FORMAT_F32:
        return halves_are_finite(bytes + 2, n, 4, TOP_OF_F32_EXPONENT);
    case DRLLM_FORMAT_BF16:
        return halves_are_finite(bytes, n, 2, TOP_OF_F32_EXPONENT);
    case DRLLM_FORMAT_F16:
        return halves_are_finite(bytes, n, 2, F16_EXPONENT);
    case DRLLM_FORMAT_Q4_0:
        return halves_are_finite(bytes, n / DRLLM_GROUP, sizeof(struct drllm_block_q4_0), F16_EXPONENT);
    case DRLLM_FORMAT_Q4_1:
        return halves_are_finite(bytes, n / DRLLM_GROUP, sizeof(struct drllm_block_q4_1), F16_EXPONENT) &&
               halves_are_finite(bytes + 2, n / DRLLM_GROUP, sizeof(struct drllm_block_q4_1), F16_EXPONENT);
    case DRLLM_FORMAT_Q8_0:
        return halves_are_finite(bytes, n / DRLLM_GROUP, sizeof(struct drllm_block_q8_0), F16_EXPONENT);
    default:
        return true;
    }
}
