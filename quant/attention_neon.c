/* The kernels of attention for every ARMv8-A processor: the values of attention_ref.c, 8 lanes as two registers. */
#if defined(__aarch64__)

#include "quant/attention.h"
#include "quant/lanes_neon.h"
#include "quant/vec_kernels.h"

#include <arm_neon.h>
#include <string.h>

enum {
    LANES = DRLLM_KV_BLOCK,
    MAX_BLOCKS = 4,
    STEP = 4 /* dimensions whose queries are one load; head_dim is a multiple of 8 */
};

/* Eight or more sums side by side in 32 registers. */
#define MAX_ROWS 4
#define TILE_WIDTH(n_rows) ((n_rows) >= 3 ? 2 : 4)

/* drllm_exp2f in every lane */
INLINE float32x4_t exp2_4(float32x4_t x) {
    const float32x4_t shift = vdupq_n_f32(0x1.8p23f);
    const float32x4_t held = max_known(x, vdupq_n_f32(-127.0f));
    const float32x4_t shifted = vaddq_f32(held, shift);
    const float32x4_t r = vsubq_f32(held, vsubq_f32(shifted, shift));
    float32x4_t p = vdupq_n_f32(1.535336188319500e-4f);
    p = mul_add(p, r, vdupq_n_f32(1.339887440266574e-3f));
    p = mul_add(p, r, vdupq_n_f32(9.618437357674640e-3f));
    p = mul_add(p, r, vdupq_n_f32(5.550332471162809e-2f));
    p = mul_add(p, r, vdupq_n_f32(2.402264791363012e-1f));
    p = mul_add(p, r, vdupq_n_f32(6.931472028550421e-1f));
    p = mul_add(p, r, vdupq_n_f32(1.0f));
    const uint32x4_t exponent = vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127));
    return vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(exponent, 23)));
}

/* ---- Elements of blocks ---- */

INLINE void load_f16(const unsigned char *p, float32x4_t out[2]) {
    const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(p));
    out[0] = vcvt_f32_f16(vget_low_f16(halves));
    out[1] = vcvt_high_f32_f16(halves);
}

/* Elements i to i+7 of a block. */
INLINE void load_elements(enum drllm_format format, const unsigned char *block, size_t i, float32x4_t out[2]) {
    if (format == DRLLM_FORMAT_F32) {
        out[0] = vreinterpretq_f32_u8(vld1q_u8(block + i * sizeof(float)));
        out[1] = vreinterpretq_f32_u8(vld1q_u8(block + (i + 4) * sizeof(float)));
    } else {
        load_f16(block + i * sizeof(uint16_t), out);
    }
}

/* ---- Scores ---- */

/* n_rows x n_blocks blocks of scores. */
INLINE void tile_scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const unsigned char *k,
                        size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    float32x4_t acc[MAX_ROWS][MAX_BLOCKS][2];
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            acc[r][b][0] = acc[r][b][1] = vdupq_n_f32(0.0f);
        }
    }
    for (size_t d = 0; d < head_dim; d += STEP) {
        float32x4_t queries[MAX_ROWS];
        for (size_t r = 0; r < n_rows; r++) {
            queries[r] = vld1q_f32(q + r * ldq + d);
        }
        UNROLL
        for (size_t i = 0; i < STEP; i++) {
            for (size_t b = 0; b < n_blocks; b++) {
                float32x4_t keys[2];
                load_elements(format, k + b * block_bytes, (d + i) * LANES, keys);
                for (size_t r = 0; r < n_rows; r++) {
                    acc[r][b][0] = vaddq_f32(acc[r][b][0], times_lane(keys[0], queries[r], i));
                    acc[r][b][1] = vaddq_f32(acc[r][b][1], times_lane(keys[1], queries[r], i));
                }
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            vst1q_f32(s + r * lds + b * LANES, acc[r][b][0]);
            vst1q_f32(s + r * lds + b * LANES + 4, acc[r][b][1]);
        }
    }
}

/* ---- Weights ---- */

/* The steps go over all rows one after the other, since a single row's would wait for each other. */
static void softmax(float *s, size_t lds, size_t n_rows, size_t n, float *max, float *sum, float *factor) {
    for (size_t r = 0; r < n_rows; r++) {
        float32x4_t maxima[2] = {vdupq_n_f32(max[r]), vdupq_n_f32(max[r])};
        for (size_t i = 0; i < n; i += LANES) {
            maxima[0] = max_known(vld1q_f32(s + r * lds + i), maxima[0]);
            maxima[1] = max_known(vld1q_f32(s + r * lds + i + 4), maxima[1]);
        }
        const float most = vmaxvq_f32(vmaxq_f32(maxima[0], maxima[1]));
        factor[r] = drllm_exp2f(max[r] - most);
        max[r] = most;
    }
    for (size_t r = 0; r < n_rows; r++) {
        const float32x4_t most = vdupq_n_f32(max[r]);
        float32x4_t low = vdupq_n_f32(0.0f);
        float32x4_t high = low;
        for (size_t i = 0; i < n; i += LANES) {
            float *at = s + r * lds + i;
            const float32x4_t a = exp2_4(vsubq_f32(vld1q_f32(at), most));
            const float32x4_t b = exp2_4(vsubq_f32(vld1q_f32(at + 4), most));
            vst1q_f32(at, a);
            vst1q_f32(at + 4, b);
            low = vaddq_f32(low, a);
            high = vaddq_f32(high, b);
        }
        sum[r] = sum[r] * factor[r] + fold(low, high);
    }
}

/* ---- Weighted values ---- */

/* n_rows x n_blocks times 8 outputs, from dimension d on. */
INLINE void tile_values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const unsigned char *v,
                        size_t block_bytes, size_t n_keys, size_t head_dim, size_t d, size_t n_blocks,
                        const float *factor, float *o, size_t ldo) {
    float32x4_t acc[MAX_ROWS][MAX_BLOCKS][2];
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            acc[r][b][0] = vmulq_n_f32(vld1q_f32(o + r * ldo + d + b * LANES), factor[r]);
            acc[r][b][1] = vmulq_n_f32(vld1q_f32(o + r * ldo + d + b * LANES + 4), factor[r]);
        }
    }
    for (size_t j = 0; j < n_keys; j += LANES, v += block_bytes) {
        const size_t n_lanes = n_keys - j < LANES ? n_keys - j : (size_t)LANES;
        for (size_t lane = 0; lane < n_lanes; lane++) {
            for (size_t b = 0; b < n_blocks; b++) {
                float32x4_t values[2];
                load_elements(format, v, lane * head_dim + d + b * LANES, values);
                for (size_t r = 0; r < n_rows; r++) {
                    const float weight = p[r * ldp + j + lane];
                    acc[r][b][0] = vaddq_f32(acc[r][b][0], vmulq_n_f32(values[0], weight));
                    acc[r][b][1] = vaddq_f32(acc[r][b][1], vmulq_n_f32(values[1], weight));
                }
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            vst1q_f32(o + r * ldo + d + b * LANES, acc[r][b][0]);
            vst1q_f32(o + r * ldo + d + b * LANES + 4, acc[r][b][1]);
        }
    }
}

#include "quant/attention_tiles.inc"

/* ---- Weights of a Q8_0 cache ---- */

static void quantize(const float *s, size_t lds, size_t n_rows, size_t n, const float *scales, int8_t *q, float *scale,
                     int32_t *sum) {
    drllm_attention_quantize(&drllm_vec_neon, s, lds, n_rows, n, scales, q, scale, sum);
}

/* ---- Expansion ---- */

static void expand(const void *blocks, size_t block_bytes, size_t n_blocks, size_t head_dim, float *out) {
    const unsigned char *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += block_bytes, out += head_dim * LANES) {
        for (size_t i = 0; i < head_dim * LANES; i += LANES) {
            float32x4_t value[2];
            load_f16(block + i * sizeof(uint16_t), value);
            vst1q_f32(out + i, value[0]);
            vst1q_f32(out + i + 4, value[1]);
        }
    }
}

const struct drllm_attention_ops drllm_attention_neon = {
    .scores = scores,
    .softmax = softmax,
    .values = values,
    .quantize = quantize,
    .accumulate = drllm_attention_accumulate,
    .expand = expand,
};

#else
typedef int drllm_attention_neon_is_empty;
#endif
