/* The vector functions for every ARMv8-A processor: the values of vec_ref.c, 8 lanes as two registers. */
#if defined(__aarch64__)
#include "platform/cpu.h"
#include "quant/lanes_neon.h"
#include "quant/vec_kernels.h"

#include <arm_neon.h>
#include <math.h>

enum { LANES = 8 };

/* drllm_expf */
INLINE float32x4_t exp4(float32x4_t x) {
    const float32x4_t low = vdupq_n_f32(-87.3f);
    const float32x4_t shift = vdupq_n_f32(0x1.8p23f);
    const float32x4_t safe = vmaxq_f32(vminq_f32(x, vdupq_n_f32(88.3f)), low);
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
    p = vaddq_f32(p, vdupq_n_f32(1.0f));
    const uint32x4_t exponent = vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127));
    const float32x4_t value = vmulq_f32(p, vreinterpretq_f32_u32(vshlq_n_u32(exponent, 23)));
    /* Below the range and for NaN: 0. */
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), vcgtq_f32(x, low)));
}

static void rms_norm(float *y, const float *x, const float *weight, size_t n, float eps) {
    float32x4_t low = vdupq_n_f32(0.0f);
    float32x4_t high = low;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const float32x4_t a = vld1q_f32(x + i);
        const float32x4_t b = vld1q_f32(x + i + 4);
        low = vaddq_f32(low, vmulq_f32(a, a));
        high = vaddq_f32(high, vmulq_f32(b, b));
    }
    if (i < n) {
        float lane[LANES];
        vst1q_f32(lane, low);
        vst1q_f32(lane + 4, high);
        for (; i < n; i++) {
            lane[i % LANES] += x[i] * x[i];
        }
        low = vld1q_f32(lane);
        high = vld1q_f32(lane + 4);
    }
    const float scale = 1.0f / sqrtf(fold(low, high) / (float)n + eps);
    for (i = 0; i + LANES <= n; i += LANES) {
        const float32x4_t a = vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i));
        const float32x4_t b = vmulq_f32(vmulq_n_f32(vld1q_f32(x + i + 4), scale), vld1q_f32(weight + i + 4));
        vst1q_f32(y + i, a);
        vst1q_f32(y + i + 4, b);
    }
    for (; i < n; i++) {
        y[i] = x[i] * scale * weight[i];
    }
}

static void add(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const float32x4_t a = vaddq_f32(vld1q_f32(y + i), vld1q_f32(x + i));
        const float32x4_t b = vaddq_f32(vld1q_f32(y + i + 4), vld1q_f32(x + i + 4));
        vst1q_f32(y + i, a);
        vst1q_f32(y + i + 4, b);
    }
    for (; i < n; i++) {
        y[i] += x[i];
    }
}

INLINE float32x4_t silu_mul4(float32x4_t x, float32x4_t up) {
    const float32x4_t divisor = vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(x)));
    return vmulq_f32(vdivq_f32(x, divisor), up);
}

static void silu_mul(float *y, const float *up, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const float32x4_t a = silu_mul4(vld1q_f32(y + i), vld1q_f32(up + i));
        const float32x4_t b = silu_mul4(vld1q_f32(y + i + 4), vld1q_f32(up + i + 4));
        vst1q_f32(y + i, a);
        vst1q_f32(y + i + 4, b);
    }
    for (; i < n; i++) {
        y[i] = y[i] / (1.0f + drllm_expf(-y[i])) * up[i];
    }
}

static void rope(float *x, const float *cos_sin, size_t n_pairs) {
    size_t i = 0;
    for (; i + 4 <= n_pairs; i += 4) {
        const float32x4x2_t in = vld2q_f32(x + 2 * i);
        const float32x4x2_t turn = vld2q_f32(cos_sin + 2 * i);
        float32x4x2_t out;
        out.val[0] = vsubq_f32(vmulq_f32(in.val[0], turn.val[0]), vmulq_f32(in.val[1], turn.val[1]));
        out.val[1] = vaddq_f32(vmulq_f32(in.val[1], turn.val[0]), vmulq_f32(in.val[0], turn.val[1]));
        vst2q_f32(x + 2 * i, out);
    }
    for (; i < n_pairs; i++) {
        const float a = x[2 * i];
        const float b = x[2 * i + 1];
        const float c = cos_sin[2 * i];
        const float s = cos_sin[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = b * c + a * s;
    }
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    }
    for (; i < n; i++) {
        vst1_lane_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x[i]))), 0);
    }
}

/* Four quantised values in the low bytes: the addition rounds to nearest even. */
INLINE uint16x8_t quantize4(const float *x, float inverse) {
    const float32x4_t shifted = vaddq_f32(vmulq_n_f32(vld1q_f32(x), inverse), vdupq_n_f32(0x1.8p23f));
    return vreinterpretq_u16_f32(shifted);
}

/* 16 values from x on, times `inverse`. */
INLINE int8x16_t quantize16(const float *x, float inverse) {
    const uint16x8_t low = vuzp1q_u16(quantize4(x, inverse), quantize4(x + 4, inverse));
    const uint16x8_t high = vuzp1q_u16(quantize4(x + 8, inverse), quantize4(x + 12, inverse));
    return vreinterpretq_s8_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)));
}

/* The one group at x; a size that is a constant lets it stay in registers between the two looks at it. */
INLINE void quantize_group(const float *x, size_t size, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    float32x4_t maxima[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
    for (size_t i = 0; i < size; i += 8) {
        maxima[0] = vmaxnmq_f32(vabsq_f32(vld1q_f32(x + i)), maxima[0]);
        maxima[1] = vmaxnmq_f32(vabsq_f32(vld1q_f32(x + i + 4)), maxima[1]);
    }
    const float max = vmaxvq_f32(vmaxq_f32(maxima[0], maxima[1]));
    float inverse = 0.0f;
    float d = 0.0f;
    if (max > 1e-30f) {
        inverse = 127.0f / max;
        d = max / 127.0f;
    }
    int32x4_t totals = vdupq_n_s32(0);
    for (size_t i = 0; i < size; i += 32) {
        const int8x16_t low = quantize16(x + i, inverse);
        const int8x16_t high = quantize16(x + i + 16, inverse);
        vst1q_s8(q + i, low);
        vst1q_s8(q + i + 16, high);
        totals = vpadalq_s16(totals, vpadalq_s8(vpaddlq_s8(low), high));
    }
    *scale = d;
    *sum = vaddvq_s32(totals);
    *ssum = d * (float)*sum;
}

INLINE void quantize_groups(const float *x, size_t n, size_t size, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    for (size_t g = 0; g < n / size; g++) {
        quantize_group(x + g * size, size, q + g * size, &scale[g], &sum[g], &ssum[g]);
    }
}

static void quantize_q8(const float *x, size_t n, size_t group, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    if (group == DRLLM_GROUP) {
        quantize_groups(x, n, DRLLM_GROUP, q, scale, sum, ssum);
    } else {
        quantize_groups(x, n, group, q, scale, sum, ssum);
    }
}

static double sum_exp(const float *x, size_t n, float *max) {
    const size_t whole = n - n % LANES;
    float32x4_t lanes = vdupq_n_f32(x[0]);
    for (size_t i = 0; i < whole; i += 4) {
        lanes = max_known(vld1q_f32(x + i), lanes);
    }
    float most = vmaxvq_f32(lanes);
    for (size_t i = whole; i < n; i++) {
        most = x[i] > most ? x[i] : most;
    }
    const float32x4_t shift = vdupq_n_f32(most);
    double total = 0.0;
    for (size_t first = 0; first < n; first += DRLLM_SUM_RUN) {
        const size_t end = n - first < DRLLM_SUM_RUN ? n : first + DRLLM_SUM_RUN;
        float32x4_t low = vdupq_n_f32(0.0f);
        float32x4_t high = low;
        size_t i = first;
        for (; i + LANES <= end; i += LANES) {
            low = vaddq_f32(low, exp4(vsubq_f32(vld1q_f32(x + i), shift)));
            high = vaddq_f32(high, exp4(vsubq_f32(vld1q_f32(x + i + 4), shift)));
        }
        float lane[LANES];
        vst1q_f32(lane, low);
        vst1q_f32(lane + 4, high);
        for (; i < end; i++) {
            lane[i % LANES] += drllm_expf(x[i] - most);
        }
        total += (double)fold(vld1q_f32(lane), vld1q_f32(lane + 4));
    }
    *max = most;
    return total;
}

const struct drllm_vec_ops drllm_vec_neon = {
    .backend = "neon",
    .cpu_features = DRLLM_CPU_NEON,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .to_f16 = to_f16,
    .quantize_q8 = quantize_q8,
    .sum_exp = sum_exp,
    .attention = &drllm_attention_neon,
};

#else
typedef int drllm_vec_neon_is_empty;
#endif
