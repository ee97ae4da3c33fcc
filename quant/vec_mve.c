/* The vector functions for Helium: those where vectors bring much; the values are those of vec_ref.c. lanes_mve.h says what
 * vectors of floats may be used for. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
#include "platform/cpu.h"
#include "quant/lanes_mve.h"
#include "quant/vec_kernels.h"

/* drllm_expf. Nothing in it is subnormal that would not vanish in what it is added to, and the result never is. */
INLINE float32x4_t exp4(float32x4_t x) {
    const float32x4_t low = vdupq_n_f32(-87.3f), shift = vdupq_n_f32(0x1.8p23f);
    const float32x4_t safe = vmaxnmq_f32(vminnmq_f32(x, vdupq_n_f32(88.3f)), low);
    const float32x4_t shifted = mul_add(safe, vdupq_n_f32(0x1.715476p0f), shift);
    const float32x4_t k = vsubq_f32(shifted, shift);
    float32x4_t r = vsubq_f32(safe, vmulq_n_f32(k, 0x1.62ep-1f));
    r = vsubq_f32(r, vmulq_n_f32(k, 0x1.0bfbe8p-15f));
    float32x4_t p = vdupq_n_f32(1.9875691500e-4f);
    p = mul_add(p, r, vdupq_n_f32(1.3981999507e-3f));
    p = mul_add(p, r, vdupq_n_f32(8.3334519073e-3f));
    p = mul_add(p, r, vdupq_n_f32(4.1665795894e-2f));
    p = mul_add(p, r, vdupq_n_f32(1.6666665459e-1f));
    p = mul_add(p, r, vdupq_n_f32(5.0000001201e-1f));
    p = mul_add(p, vmulq_f32(r, r), r);
    p = vaddq_n_f32(p, 1.0f);
    const uint32x4_t exponent = vaddq_n_u32(vreinterpretq_u32_f32(shifted), 127);
    const float32x4_t value = vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(exponent, 23)));
    return vpselq_f32(value, vdupq_n_f32(0.0f), vcmpgtq_f32(x, low));
}

/* There is no vector division, and the quotient may be anything. */
static void silu_mul(float *y, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float divisor[4];
        vst1q_f32(divisor, vaddq_n_f32(exp4(vnegq_f32(vld1q_f32(y + i))), 1.0f));
        for (size_t k = 0; k < 4; k++) {
            y[i + k] = y[i + k] / divisor[k] * up[i + k];
        }
    }
    drllm_vec_ref.silu_mul(y + i, up + i, n - i);
}

/* The largest |x|, by its bits; NaN is none. */
INLINE float largest(const float *x, size_t n) {
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < n; i += 4) {
        const uint32x4_t bits = vbicq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x80000000u));
        most = vmaxq_u32(most, vpselq_u32(vdupq_n_u32(0), bits, vcmphiq_n_u32(bits, 0x7f800000u)));
    }
    return drllm_bits_to_f32(vmaxvq_u32(0, most));
}

/* What is subnormal here becomes 0 in either case. */
static void quantize_q8(const float *x, size_t n, size_t group, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    for (size_t g = 0; g < n / group; g++, x += group, q += group) {
        const float max = largest(x, group);
        const float inverse = max > 1e-30f ? 127.0f / max : 0.0f;
        int32_t total = 0;
        for (size_t i = 0; i < group; i += 16) {
            for (size_t k = 0; k < 16; k += 4) {
                const float32x4_t shifted = vaddq_n_f32(vmulq_n_f32(vld1q_f32(x + i + k), inverse), 0x1.8p23f);
                vstrbq_s32(q + i + k, vreinterpretq_s32_f32(shifted)); /* the low bytes */
            }
            total = vaddvaq_s8(total, vld1q_s8(q + i));
        }
        scale[g] = max > 1e-30f ? max / 127.0f : 0.0f;
        sum[g] = total;
        ssum[g] = scale[g] * (float)total;
    }
}

static void rms_norm(float *y, const float *x, const float *weight, size_t n, float eps) {
    drllm_vec_ref.rms_norm(y, x, weight, n, eps);
}

static void add(float *y, const float *x, size_t n) {
    drllm_vec_ref.add(y, x, n);
}

static void rope(float *x, const float *cos_sin, size_t n_pairs) {
    drllm_vec_ref.rope(x, cos_sin, n_pairs);
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    drllm_vec_ref.to_f16(y, x, n);
}

static double sum_exp(const float *x, size_t n, float *max) {
    return drllm_vec_ref.sum_exp(x, n, max);
}

const struct drllm_vec_ops drllm_vec_mve = {
    .backend = "mve",
    .cpu_features = DRLLM_CPU_MVE,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .to_f16 = to_f16,
    .quantize_q8 = quantize_q8,
    .sum_exp = sum_exp,
    .attention = &drllm_attention_mve,
};

#else
typedef int drllm_vec_mve_is_empty;
#endif
