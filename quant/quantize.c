/* Reference quantisers: the operations of quantize_row_*_ref in ggml-quants.c, in the same order, so that the blocks
 * agree bit for bit. Where ggml's result is undefined (the inverse of a subnormal scale overflows), weights become 0.
 * Weights that are finite but need an infinite 16-bit float, of their own or as a scale, are refused. */
#include "quant/formats.h"
#include "quant/half.h"

/* The largest |x| as the bits of a float. Floats without sign sort like integers, NaN above infinity, and unlike a
 * float maximum an integer one may be vectorised. */
static uint32_t largest_magnitude(const float *src, size_t n) {
    int32_t largest = 0; /* signed: SSE2 cannot compare unsigned */
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = (int32_t)(drllm_f32_to_bits(src[i]) & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return (uint32_t)largest;
}

enum {
    INFINITE_F32 = 0x7f800000,
    INFINITE_F16 = 0x7c00,
    TOO_LARGE_FOR_F16 = 0x477ff000, /* the smallest float that rounds to infinity: 65520 */
    TOO_LARGE_FOR_BF16 = 0x7f7f8000
};

/* Finite weights may need a scale that an f16 cannot hold. */
static bool f16_is_finite(uint16_t half) {
    return (half & INFINITE_F16) != INFINITE_F16;
}

/* roundf for |x| < 2^22, to int: the largest float below 1/2 makes an exact half round up and nothing less. */
static inline int32_t round_half_away(float x) {
    const float half = drllm_bits_to_f32(0x3effffffu | (drllm_f32_to_bits(x) & 0x80000000u));
    return (int32_t)(x + half);
}

/* 1/d, and 0 where that is not finite. */
static inline float inverse(float d) {
    const float inverted = d != 0.0f ? 1.0f / d : 0.0f;
    return (drllm_f32_to_bits(inverted) & INFINITE_F32) != INFINITE_F32 ? inverted : 0.0f;
}

static void quantize_f16(const float *restrict src, uint8_t *restrict dst, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = drllm_f32_to_f16(src[i]);
        memcpy(dst + 2 * i, &half, sizeof half);
    }
}

static void quantize_bf16(const float *restrict src, uint8_t *restrict dst, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = drllm_f32_to_bf16(src[i]);
        memcpy(dst + 2 * i, &half, sizeof half);
    }
}

/* A weight that is >= 0 already, plus 1/2, cut down to 0..15. */
static inline uint8_t nibble(float x) {
    const int32_t q = (int32_t)x;
    return (uint8_t)(q < 15 ? q : 15);
}

static bool quantize_q4_0(const float *restrict src, uint8_t *restrict dst, size_t n_blocks) {
    bool finite = true;
    for (size_t i = 0; i < n_blocks; i++, src += DRLLM_GROUP) {
        float largest = 0.0f; /* with its sign: it becomes -8, which has no positive counterpart */
        float magnitude = 0.0f;
        for (size_t j = 0; j < DRLLM_GROUP; j++) {
            const float a = src[j] < 0.0f ? -src[j] : src[j];
            if (magnitude < a) {
                magnitude = a;
                largest = src[j];
            }
        }
        const float d = largest / -8.0f;
        const float id = inverse(d);
        struct drllm_block_q4_0 block = {.d = drllm_f32_to_f16(d)};
        finite = finite && f16_is_finite(block.d);
        for (size_t j = 0; j < 16; j++) {
            const uint8_t low = nibble(src[j] * id + 8.5f);
            const uint8_t high = nibble(src[j + 16] * id + 8.5f);
            block.qs[j] = (uint8_t)(low | high << 4);
        }
        memcpy(dst + i * sizeof block, &block, sizeof block);
    }
    return finite;
}

static bool quantize_q4_1(const float *restrict src, uint8_t *restrict dst, size_t n_blocks) {
    bool finite = true;
    for (size_t i = 0; i < n_blocks; i++, src += DRLLM_GROUP) {
        float min = src[0];
        float max = src[0];
        for (size_t j = 1; j < DRLLM_GROUP; j++) {
            min = src[j] < min ? src[j] : min;
            max = src[j] > max ? src[j] : max;
        }
        const float d = (max - min) / 15.0f;
        const float id = inverse(d);
        struct drllm_block_q4_1 block = {.d = drllm_f32_to_f16(d), .m = drllm_f32_to_f16(min)};
        if (!f16_is_finite(block.d) || !f16_is_finite(block.m)) {
            finite = false;
            continue; /* max - min may have overflowed, and infinity is no nibble */
        }
        for (size_t j = 0; j < 16; j++) {
            const uint8_t low = nibble((src[j] - min) * id + 0.5f);
            const uint8_t high = nibble((src[j + 16] - min) * id + 0.5f);
            block.qs[j] = (uint8_t)(low | high << 4);
        }
        memcpy(dst + i * sizeof block, &block, sizeof block);
    }
    return finite;
}

static bool quantize_q8_0(const float *restrict src, uint8_t *restrict dst, size_t n_blocks) {
    bool finite = true;
    for (size_t i = 0; i < n_blocks; i++, src += DRLLM_GROUP) {
        const float d = drllm_bits_to_f32(largest_magnitude(src, DRLLM_GROUP)) / 127.0f;
        const float id = inverse(d);
        struct drllm_block_q8_0 block = {.d = drllm_f32_to_f16(d)};
        finite = finite && f16_is_finite(block.d);
        for (size_t j = 0; j < DRLLM_GROUP; j++) {
            block.qs[j] = (int8_t)round_half_away(src[j] * id);
        }
        memcpy(dst + i * sizeof block, &block, sizeof block);
    }
    return finite;
}

bool drllm_quantize_row(enum drllm_format format, const float *src, void *dst, size_t n) {
    const uint32_t largest = largest_magnitude(src, n);
    if (largest >= INFINITE_F32 || (format == DRLLM_FORMAT_F16 && largest >= TOO_LARGE_FOR_F16) ||
        (format == DRLLM_FORMAT_BF16 && largest >= TOO_LARGE_FOR_BF16)) {
        return false;
    }
    switch (format) {
    case DRLLM_FORMAT_F32:
        memcpy(dst, src, n * sizeof *src);
        return true;
    case DRLLM_FORMAT_F16:
        quantize_f16(src, dst, n);
        return true;
    case DRLLM_FORMAT_BF16:
        quantize_bf16(src, dst, n);
        return true;
    case DRLLM_FORMAT_Q4_0:
        return quantize_q4_0(src, dst, n / DRLLM_GROUP);
    case DRLLM_FORMAT_Q4_1:
        return quantize_q4_1(src, dst, n / DRLLM_GROUP);
    case DRLLM_FORMAT_Q8_0:
        return quantize_q8_0(src, dst, n / DRLLM_GROUP);
    case DRLLM_FORMAT_Q5_0:
    case DRLLM_FORMAT_Q5_1:
    case DRLLM_FORMAT_Q4_K:
    case DRLLM_FORMAT_Q5_K:
    case DRLLM_FORMAT_Q6_K:
    case DRLLM_FORMAT_I8:
    case DRLLM_FORMAT_Q8C:
    case DRLLM_FORMAT_QB4W:
        break;
    }
    return false;
}

bool drllm_quantize_row_q8c(const float *restrict src, int8_t *restrict q, float *scale, size_t n) {
    const uint32_t largest = largest_magnitude(src, n);
    if (largest >= INFINITE_F32) {
        return false;
    }
    const float d = drllm_bits_to_f32(largest) / 127.0f;
    /* A subnormal scale is too coarse to keep |q| <= 127, and some processors take it for 0: so do all. */
    *scale = d >= 0x1p-126f ? d : 0.0f;
    if (*scale == 0.0f) {
        memset(q, 0, n);
        return true;
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)round_half_away(src[i] / d);
    }
    return true;
}
