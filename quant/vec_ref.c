/* The portable vector functions. They define the values; see vec.h for the rules. */
#include "quant/half.h"
#include "quant/vec_kernels.h"

#include <math.h>

enum { LANES = 8 };

static float fold(const float lane[LANES]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* exp(x) = 2^k * exp(r), |r| <= ln(2)/2, k by rounding through the float's own mantissa. The polynomial is the one of
 * Cephes expf, the constants of ln 2 are split so that k * hi is exact. */
float drllm_expf(float x) {
    const float high = 88.3f; /* k stays below 128 */
    const float low = -87.3f; /* k stays above -127 */
    const float held = x < high ? x : high;
    const float safe = held > low ? held : low;
    const float shift = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    const float shifted = safe * 0x1.715476p0f + shift;
    const float k = shifted - shift;
    float r = safe - k * 0x1.62ep-1f;
    r = r - k * 0x1.0bfbe8p-15f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    const uint32_t exponent = drllm_f32_to_bits(shifted) + 127u; /* the low 9 bits hold k + 127 */
    const float power = drllm_bits_to_f32(exponent << 23);
    return x > low ? p * power : 0.0f;
}

static void rms_norm(float *y, const float *x, const float *weight, size_t n, float eps) {
    float lane[LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        lane[i % LANES] += x[i] * x[i];
    }
    const float scale = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        y[i] = x[i] * scale * weight[i];
    }
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] += x[i];
    }
}

static void silu_mul(float *y, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] = y[i] / (1.0f + drllm_expf(-y[i])) * up[i];
    }
}

static void rope(float *x, const float *cos_sin, size_t n_pairs) {
    for (size_t i = 0; i < n_pairs; i++) {
        const float a = x[2 * i];
        const float b = x[2 * i + 1];
        const float c = cos_sin[2 * i];
        const float s = cos_sin[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = b * c + a * s;
    }
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        y[i] = drllm_f32_to_f16(x[i]);
    }
}

static void quantize_q8(const float *x, size_t n, size_t group, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    for (size_t g = 0; g < n / group; g++) {
        const float *in = x + g * group;
        float max = 0.0f;
        for (size_t i = 0; i < group; i++) {
            const float magnitude = fabsf(in[i]);
            max = magnitude > max ? magnitude : max;
        }
        /* Dividing by a tiny maximum would overflow; such a group is zero to within every format here. */
        const float inverse = max > 1e-30f ? 127.0f / max : 0.0f;
        int32_t total = 0;
        for (size_t i = 0; i < group; i++) {
            /* The addition rounds to nearest even; the low byte of the bits is then the two's complement integer. */
            const uint32_t bits = drllm_f32_to_bits(in[i] * inverse + 0x1.8p23f);
            const int32_t value = (int32_t)((bits & 0xffu) ^ 0x80u) - 0x80;
            q[g * group + i] = (int8_t)value;
            total += value;
        }
        scale[g] = max > 1e-30f ? max / 127.0f : 0.0f;
        sum[g] = total;
        ssum[g] = scale[g] * (float)total;
    }
}

static double sum_exp(const float *x, size_t n, float *max) {
    float most = x[0];
    for (size_t i = 1; i < n; i++) {
        most = x[i] > most ? x[i] : most;
    }
    double sum = 0.0;
    for (size_t first = 0; first < n; first += DRLLM_SUM_RUN) {
        const size_t end = n - first < DRLLM_SUM_RUN ? n : first + DRLLM_SUM_RUN;
        float lane[LANES] = {0};
        for (size_t i = first; i < end; i++) {
            lane[i % LANES] += drllm_expf(x[i] - most);
        }
        sum += (double)fold(lane);
    }
    *max = most;
    return sum;
}

const struct drllm_vec_ops drllm_vec_ref = {
    .backend = "ref",
    .cpu_features = 0,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .to_f16 = to_f16,
    .quantize_q8 = quantize_q8,
    .sum_exp = sum_exp,
    .attention = &drllm_attention_ref,
};
