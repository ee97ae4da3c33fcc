/* The kernels of attention for Helium. lanes_mve.h says what vectors of floats may be used for. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
#include "quant/attention.h"
#include "quant/lanes_mve.h"
#include "quant/vec_kernels.h"

#include <string.h>

enum { LANES = DRLLM_KV_BLOCK };

/* Eight neighbouring elements of a block; number i on. */
INLINE void load8(enum drllm_format format, const unsigned char *block, size_t i, float32x4_t out[2]) {
    if (format == DRLLM_FORMAT_F16) {
        const uint16_t *halves = (const uint16_t *)(const void *)block + i;
        out[0] = load_f16x4(halves);
        out[1] = load_f16x4(halves + 4);
    } else {
        const float *floats = (const float *)(const void *)block + i;
        out[0] = vld1q_f32(floats);
        out[1] = vld1q_f32(floats + 4);
    }
}

/* Elements of F16 are 0 or at least 2^-24; floats usually come from there. */
static bool blocks_reach(enum drllm_format format, const void *blocks, size_t block_bytes, size_t n_blocks,
                         size_t head_dim) {
    bool reach = true;
    for (size_t b = 0; b < n_blocks && reach && format == DRLLM_FORMAT_F32; b++) {
        const float *block = (const float *)(const void *)((const unsigned char *)blocks + b * block_bytes);
        reach = all_reach(block, head_dim * LANES, LEAST_BITS_24);
    }
    return reach;
}

static bool rows_reach(const float *rows, size_t ld, size_t n_rows, size_t n, uint32_t least_bits) {
    bool reach = true;
    for (size_t r = 0; r < n_rows && reach; r++) {
        reach = all_reach(rows + r * ld, n, least_bits);
    }
    return reach;
}

/* Scores of one or two rows in one block. */
INLINE void tile_scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const unsigned char *block,
                        size_t head_dim, float *s, size_t lds) {
    float32x4_t acc[2][2];
    for (size_t r = 0; r < n_rows; r++) {
        acc[r][0] = acc[r][1] = vdupq_n_f32(0.0f);
    }
    for (size_t d = 0; d < head_dim; d++) {
        float32x4_t key[2];
        load8(format, block, d * LANES, key);
        for (size_t r = 0; r < n_rows; r++) {
            acc[r][0] = vaddq_f32(acc[r][0], vmulq_n_f32(key[0], q[r * ldq + d]));
            acc[r][1] = vaddq_f32(acc[r][1], vmulq_n_f32(key[1], q[r * ldq + d]));
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        vst1q_f32(s + r * lds, acc[r][0]);
        vst1q_f32(s + r * lds + 4, acc[r][1]);
    }
}

INLINE void scores_of(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const unsigned char *k,
                      size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    for (size_t b = 0; b < n_blocks; b++, k += block_bytes, s += LANES) {
        size_t r = 0;
        for (; r + 2 <= n_rows; r += 2) {
            tile_scores(format, q + r * ldq, ldq, 2, k, head_dim, s + r * lds, lds);
        }
        if (r < n_rows) {
            tile_scores(format, q + r * ldq, ldq, 1, k, head_dim, s + r * lds, lds);
        }
    }
}

static void scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const void *k,
                   size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    if (!blocks_reach(format, k, block_bytes, n_blocks, head_dim) ||
        !rows_reach(q, ldq, n_rows, head_dim, LEAST_BITS_76)) {
        drllm_attention_ref.scores(format, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
    } else if (format == DRLLM_FORMAT_F16) {
        scores_of(DRLLM_FORMAT_F16, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
    } else {
        scores_of(DRLLM_FORMAT_F32, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
    }
}

/* drllm_exp2f. */
INLINE float32x4_t exp2_4(float32x4_t x) {
    const float32x4_t shift = vdupq_n_f32(0x1.8p23f);
    const float32x4_t held = vpselq_f32(x, vdupq_n_f32(-127.0f), vcmpgtq_n_f32(x, -127.0f));
    const float32x4_t shifted = vaddq_f32(held, shift);
    const float32x4_t r = vsubq_f32(held, vsubq_f32(shifted, shift));
    float32x4_t p = vdupq_n_f32(1.535336188319500e-4f);
    p = mul_add(p, r, vdupq_n_f32(1.339887440266574e-3f));
    p = mul_add(p, r, vdupq_n_f32(9.618437357674640e-3f));
    p = mul_add(p, r, vdupq_n_f32(5.550332471162809e-2f));
    p = mul_add(p, r, vdupq_n_f32(2.402264791363012e-1f));
    p = mul_add(p, r, vdupq_n_f32(6.931472028550421e-1f));
    p = vaddq_n_f32(vmulq_f32(p, r), 1.0f);
    const uint32x4_t exponent = vaddq_n_u32(vreinterpretq_u32_f32(shifted), 127);
    return vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(exponent, 23)));
}

/* Whether a power of two that is subnormal comes up: below -126, as far as it is not 0. */
INLINE bool has_subnormal_power(float32x4_t x) {
    return (vcmpltq_n_f32(x, -126.0f) & vcmpgeq_n_f32(x, -127.0f)) != 0;
}

static void softmax(float *s, size_t lds, size_t n_rows, size_t n, float *max, float *sum, float *factor) {
    for (size_t r = 0; r < n_rows; r++, s += lds) {
        float most = max[r];
        for (size_t i = 0; i < n; i++) {
            most = s[i] > most ? s[i] : most;
        }
        float32x4_t lanes[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
        float lane[LANES];
        bool plain = true;
        for (size_t i = 0; i < n && plain; i += 4) {
            const float32x4_t x = vsubq_n_f32(vld1q_f32(s + i), most);
            plain = !has_subnormal_power(x);
        }
        if (!plain) {
            drllm_attention_ref.softmax(s, lds, 1, n, max + r, sum + r, factor + r);
            continue;
        }
        for (size_t i = 0; i < n; i += LANES) {
            for (size_t half = 0; half < 2; half++) {
                const float32x4_t power = exp2_4(vsubq_n_f32(vld1q_f32(s + i + 4 * half), most));
                vst1q_f32(s + i + 4 * half, power);
                lanes[half] = vaddq_f32(lanes[half], power);
            }
        }
        vst1q_f32(lane, lanes[0]);
        vst1q_f32(lane + 4, lanes[1]);
        const float total = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
        factor[r] = drllm_exp2f(max[r] - most);
        sum[r] = sum[r] * factor[r] + total;
        max[r] = most;
    }
}

/* Eight elements of the outputs of one or two rows. */
INLINE void tile_values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const unsigned char *v,
                        size_t block_bytes, size_t n_keys, size_t head_dim, size_t d, float *o, size_t ldo) {
    float32x4_t acc[2][2];
    for (size_t r = 0; r < n_rows; r++) {
        acc[r][0] = vld1q_f32(o + r * ldo + d);
        acc[r][1] = vld1q_f32(o + r * ldo + d + 4);
    }
    for (size_t j = 0; j < n_keys; j++) {
        float32x4_t value[2];
        load8(format, v + j / LANES * block_bytes, j % LANES * head_dim + d, value);
        for (size_t r = 0; r < n_rows; r++) {
            acc[r][0] = vaddq_f32(acc[r][0], vmulq_n_f32(value[0], p[r * ldp + j]));
            acc[r][1] = vaddq_f32(acc[r][1], vmulq_n_f32(value[1], p[r * ldp + j]));
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        vst1q_f32(o + r * ldo + d, acc[r][0]);
        vst1q_f32(o + r * ldo + d + 4, acc[r][1]);
    }
}

INLINE void values_of(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const unsigned char *v,
                      size_t block_bytes, size_t n_keys, size_t head_dim, float *o, size_t ldo) {
    for (size_t d = 0; d < head_dim; d += LANES) {
        size_t r = 0;
        for (; r + 2 <= n_rows; r += 2) {
            tile_values(format, p + r * ldp, ldp, 2, v, block_bytes, n_keys, head_dim, d, o + r * ldo, ldo);
        }
        if (r < n_rows) {
            tile_values(format, p + r * ldp, ldp, 1, v, block_bytes, n_keys, head_dim, d, o + r * ldo, ldo);
        }
    }
}

static void values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const void *v,
                   size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor, float *o, size_t ldo) {
    for (size_t r = 0; r < n_rows; r++) { /* scalar, since anything may come of it */
        for (size_t d = 0; d < head_dim; d++) {
            o[r * ldo + d] *= factor[r];
        }
    }
    if (!blocks_reach(format, v, block_bytes, (n_keys + LANES - 1) / LANES, head_dim) ||
        !rows_reach(p, ldp, n_rows, n_keys, LEAST_BITS_76) || !rows_reach(o, ldo, n_rows, head_dim, LEAST_BITS_100)) {
        const float one = 1.0f;
        for (size_t r = 0; r < n_rows; r++) {
            drllm_attention_ref.values(format, p + r * ldp, ldp, 1, v, block_bytes, n_keys, head_dim, &one, o + r * ldo,
                                       ldo);
        }
    } else if (format == DRLLM_FORMAT_F16) {
        values_of(DRLLM_FORMAT_F16, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, o, ldo);
    } else {
        values_of(DRLLM_FORMAT_F32, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, o, ldo);
    }
}

static void quantize(const float *s, size_t lds, size_t n_rows, size_t n, const float *scales, int8_t *q, float *scale,
                     int32_t *sum) {
    drllm_attention_quantize(&drllm_vec_mve, s, lds, n_rows, n, scales, q, scale, sum);
}

static void expand(const void *blocks, size_t block_bytes, size_t n_blocks, size_t head_dim, float *out) {
    for (size_t b = 0; b < n_blocks; b++) {
        const unsigned char *block = (const unsigned char *)blocks + b * block_bytes;
        for (size_t i = 0; i < head_dim * LANES; i += LANES, out += LANES) {
            float32x4_t floats[2];
            load8(DRLLM_FORMAT_F16, block, i, floats);
            vst1q_f32(out, floats[0]);
            vst1q_f32(out + 4, floats[1]);
        }
    }
}

const struct drllm_attention_ops drllm_attention_mve = {
    .scores = scores,
    .softmax = softmax,
    .values = values,
    .quantize = quantize,
    .accumulate = drllm_attention_accumulate,
    .expand = expand,
};

#else
typedef int drllm_attention_mve_is_empty;
#endif
