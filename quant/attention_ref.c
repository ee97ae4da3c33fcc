/* The portable kernels of attention. They define the values; see attention.h for the rules. */
#include "quant/attention.h"
#include "quant/half.h"
#include "quant/vec_kernels.h"

#include <math.h>

enum { LANES = DRLLM_KV_BLOCK };

/* 2^x = 2^k * 2^r, |r| <= 1/2, k by rounding through the float's own mantissa; the polynomial is the one of Cephes
 * exp2f. k = -127 makes the power's exponent field, and so the power, zero. */
float drllm_exp2f(float x) {
    const float low = -127.0f;
    const float held = x > low ? x : low;
    const float shift = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    const float shifted = held + shift;
    const float r = held - (shifted - shift);
    float p = 1.535336188319500e-4f;
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    const uint32_t exponent = drllm_f32_to_bits(shifted) + 127u; /* the low 9 bits hold k + 127 */
    return p * drllm_bits_to_f32(exponent << 23);
}

/* Element number i of a block. */
static float element(enum drllm_format format, const unsigned char *block, size_t i) {
    if (format == DRLLM_FORMAT_F32) {
        float value;
        memcpy(&value, block + i * sizeof value, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, block + i * sizeof half, sizeof half);
    return drllm_f16_to_f32(half);
}

static void scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const void *k,
                   size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    for (size_t b = 0; b < n_blocks; b++) {
        const unsigned char *block = (const unsigned char *)k + b * block_bytes;
        for (size_t r = 0; r < n_rows; r++) {
            float acc[LANES] = {0};
            for (size_t d = 0; d < head_dim; d++) {
                for (size_t lane = 0; lane < LANES; lane++) {
                    acc[lane] += q[r * ldq + d] * element(format, block, d * LANES + lane);
                }
            }
            memcpy(s + r * lds + b * LANES, acc, sizeof acc);
        }
    }
}

static void softmax(float *s, size_t lds, size_t n_rows, size_t n, float *max, float *sum, float *factor) {
    for (size_t r = 0; r < n_rows; r++, s += lds) {
        float most = max[r];
        for (size_t i = 0; i < n; i++) {
            most = s[i] > most ? s[i] : most;
        }
        float lane[LANES] = {0};
        for (size_t i = 0; i < n; i++) {
            s[i] = drllm_exp2f(s[i] - most);
            lane[i % LANES] += s[i];
        }
        const float total = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
        factor[r] = drllm_exp2f(max[r] - most);
        sum[r] = sum[r] * factor[r] + total;
        max[r] = most;
    }
}

static void values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const void *v,
                   size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor, float *o, size_t ldo) {
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t d = 0; d < head_dim; d++) {
            o[r * ldo + d] *= factor[r];
        }
    }
    for (size_t j = 0; j < n_keys; j++) {
        const unsigned char *block = (const unsigned char *)v + j / LANES * block_bytes;
        for (size_t d = 0; d < head_dim; d++) {
            const float element_d = element(format, block, j % LANES * head_dim + d);
            for (size_t r = 0; r < n_rows; r++) {
                o[r * ldo + d] += p[r * ldp + j] * element_d;
            }
        }
    }
}

void drllm_attention_quantize(const struct drllm_vec_ops *vec, const float *s, size_t lds, size_t n_rows, size_t n,
                              const float *scales, int8_t *q, float *scale, int32_t *sum) {
    for (size_t r = 0; r < n_rows; r++) {
        float weights[DRLLM_KV_TILE] = {0};
        float ssum;
        for (size_t i = 0; i < n; i++) {
            weights[i] = s[r * lds + i] * scales[i];
        }
        vec->quantize_q8(weights, DRLLM_KV_TILE, DRLLM_KV_TILE, q + r * DRLLM_KV_TILE, scale + r, sum + r, &ssum);
    }
}

static void quantize(const float *s, size_t lds, size_t n_rows, size_t n, const float *scales, int8_t *q, float *scale,
                     int32_t *sum) {
    drllm_attention_quantize(&drllm_vec_ref, s, lds, n_rows, n, scales, q, scale, sum);
}

void drllm_attention_accumulate(const float *added, size_t n_rows, size_t n, const float *factor, float *o,
                                size_t ldo) {
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t d = 0; d < n; d++) {
            o[r * ldo + d] = o[r * ldo + d] * factor[r] + added[r * ldo + d];
        }
    }
}

static void expand(const void *blocks, size_t block_bytes, size_t n_blocks, size_t head_dim, float *out) {
    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t i = 0; i < head_dim * LANES; i++) {
            *out++ = element(DRLLM_FORMAT_F16, (const unsigned char *)blocks + b * block_bytes, i);
        }
    }
}

const struct drllm_attention_ops drllm_attention_ref = {
    .scores = scores,
    .softmax = softmax,
    .values = values,
    .quantize = quantize,
    .accumulate = drllm_attention_accumulate,
    .expand = expand,
};
