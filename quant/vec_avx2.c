/* The vector functions for AVX2 and F16C. See vec_ref.c for the values, which these match bit for bit. */
#if defined(__x86_64__)

#include "platform/cpu.h"
#include "quant/lanes_avx2.h"
#include "quant/vec_kernels.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { LANES = 8 };

/* All ones in the first n lanes (n <= 8): what maskload and maskstore take. */
INLINE __m256i lane_mask(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* drllm_expf in every lane. min and max keep their second operand when the first is NaN, as the reference's ?: does. */
INLINE __m256 exp8(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.3f);
    const __m256 shift = _mm256_set1_ps(0x1.8p23f);
    const __m256 safe = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.3f)), low);
    const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(safe, _mm256_set1_ps(0x1.715476p0f)), shift);
    const __m256 k = _mm256_sub_ps(shifted, shift);
    __m256 r = _mm256_sub_ps(safe, _mm256_mul_ps(k, _mm256_set1_ps(0x1.62ep-1f)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(k, _mm256_set1_ps(0x1.0bfbe8p-15f)));
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    return _mm256_and_ps(_mm256_mul_ps(p, power), _mm256_cmp_ps(x, low, _CMP_GT_OQ));
}

static void rms_norm(float *y, const float *x, const float *weight, size_t n, float eps) {
    const size_t whole = n - n % LANES;
    const __m256i tail = lane_mask(n % LANES);
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i < whole; i += LANES) {
        const __m256 value = _mm256_loadu_ps(x + i);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(value, value));
    }
    if (whole < n) { /* the lanes past the end add +0, which changes no sum of squares */
        const __m256 value = _mm256_maskload_ps(x + whole, tail);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(value, value));
    }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(fold(sum) / (float)n + eps));
    for (size_t i = 0; i < whole; i += LANES) {
        const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(value, _mm256_loadu_ps(weight + i)));
    }
    if (whole < n) {
        const __m256 value = _mm256_mul_ps(_mm256_maskload_ps(x + whole, tail), scale);
        _mm256_maskstore_ps(y + whole, tail, _mm256_mul_ps(value, _mm256_maskload_ps(weight + whole, tail)));
    }
}

static void add(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    }
    for (; i < n; i++) {
        y[i] += x[i];
    }
}

INLINE __m256 silu8(__m256 y) {
    const __m256 e = exp8(_mm256_xor_ps(y, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(y, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

static void silu_mul(float *y, const float *up, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        _mm256_storeu_ps(y + i, _mm256_mul_ps(silu8(_mm256_loadu_ps(y + i)), _mm256_loadu_ps(up + i)));
    }
    if (i < n) {
        const __m256i tail = lane_mask(n - i);
        const __m256 value = silu8(_mm256_maskload_ps(y + i, tail));
        _mm256_maskstore_ps(y + i, tail, _mm256_mul_ps(value, _mm256_maskload_ps(up + i, tail)));
    }
}

/* (a, b) and (c, s) of four pairs: a*c - b*s, b*c + a*s. */
INLINE __m256 rotate(__m256 x, __m256 cos_sin) {
    const __m256 swapped = _mm256_permute_ps(x, 0xb1);
    return _mm256_addsub_ps(_mm256_mul_ps(x, _mm256_moveldup_ps(cos_sin)),
                            _mm256_mul_ps(swapped, _mm256_movehdup_ps(cos_sin)));
}

static void rope(float *x, const float *cos_sin, size_t n_pairs) {
    const size_t n = 2 * n_pairs;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        _mm256_storeu_ps(x + i, rotate(_mm256_loadu_ps(x + i), _mm256_loadu_ps(cos_sin + i)));
    }
    if (i < n) {
        const __m256i tail = lane_mask(n - i);
        const __m256 rotated = rotate(_mm256_maskload_ps(x + i, tail), _mm256_maskload_ps(cos_sin + i, tail));
        _mm256_maskstore_ps(x + i, tail, rotated);
    }
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(y + i), half);
    }
    if (i < n) {
        const __m128i half = _mm256_cvtps_ph(_mm256_maskload_ps(x + i, lane_mask(n - i)), _MM_FROUND_TO_NEAREST_INT);
        memcpy(y + i, &half, (n - i) * sizeof y[0]);
    }
}

/* Three passes over the groups, because one group's chain of maximum, division and rounding is longer than what the
 * processor looks ahead. Between them scale holds the maximum, then ssum its inverse. */
static void quantize_q8(const float *x, size_t n, size_t group, int8_t *q, float *scale, int32_t *sum, float *ssum) {
    const size_t n_groups = n / group;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (size_t g = 0; g < n_groups; g++) {
        __m256 lanes = _mm256_setzero_ps();
        for (size_t i = 0; i < group; i += LANES) { /* max_ps(NaN, old) is old, as in the reference */
            lanes = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + g * group + i)), lanes);
        }
        scale[g] = fold_max(lanes);
    }
    for (size_t g = 0; g < n_groups; g += LANES) {
        const __m256i mask = lane_mask(n_groups - g < LANES ? n_groups - g : LANES);
        const __m256 max = _mm256_maskload_ps(scale + g, mask);
        const __m256 usable = _mm256_cmp_ps(max, _mm256_set1_ps(1e-30f), _CMP_GT_OQ);
        const __m256 c127 = _mm256_set1_ps(127.0f);
        _mm256_maskstore_ps(scale + g, mask, _mm256_and_ps(_mm256_div_ps(max, c127), usable));
        _mm256_maskstore_ps(ssum + g, mask, _mm256_and_ps(_mm256_div_ps(c127, max), usable));
    }
    for (size_t g = 0; g < n_groups; g++) {
        const __m256 inverse = _mm256_set1_ps(ssum[g]);
        __m256i totals = _mm256_setzero_si256();
        for (size_t i = g * group; i < (g + 1) * group; i += 32) {
            const __m256 values[4] = {_mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + 8), _mm256_loadu_ps(x + i + 16),
                                      _mm256_loadu_ps(x + i + 24)};
            const __m256i bytes = quantize32(values, inverse);
            _mm256_storeu_si256((__m256i *)(void *)(q + i), bytes);
            totals = _mm256_add_epi32(totals, sum_bytes(bytes));
        }
        sum[g] = sum_lanes(totals);
        ssum[g] = scale[g] * (float)sum[g];
    }
}

static double sum_exp(const float *x, size_t n, float *max) {
    const size_t whole = n - n % LANES;
    __m256 lanes = _mm256_set1_ps(x[0]);
    for (size_t i = 0; i < whole; i += LANES) {
        lanes = _mm256_max_ps(_mm256_loadu_ps(x + i), lanes);
    }
    float most = fold_max(lanes);
    for (size_t i = whole; i < n; i++) {
        most = x[i] > most ? x[i] : most;
    }
    const __m256 shift = _mm256_set1_ps(most);
    double total = 0.0;
    for (size_t first = 0; first < n; first += DRLLM_SUM_RUN) {
        const size_t end = n - first < DRLLM_SUM_RUN ? n : first + DRLLM_SUM_RUN;
        __m256 sum = _mm256_setzero_ps();
        size_t i = first;
        for (; i + LANES <= end; i += LANES) {
            sum = _mm256_add_ps(sum, exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift)));
        }
        if (i < end) {
            const __m256i tail = lane_mask(end - i);
            const __m256 rest = exp8(_mm256_sub_ps(_mm256_maskload_ps(x + i, tail), shift));
            sum = _mm256_add_ps(sum, _mm256_and_ps(rest, _mm256_castsi256_ps(tail)));
        }
        total += (double)fold(sum);
    }
    *max = most;
    return total;
}

const struct drllm_vec_ops drllm_vec_avx2 = {
    .backend = "avx2",
    .cpu_features = DRLLM_CPU_AVX2 | DRLLM_CPU_F16C,
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .rope = rope,
    .to_f16 = to_f16,
    .quantize_q8 = quantize_q8,
    .sum_exp = sum_exp,
    .attention = &drllm_attention_avx2,
};

#else
typedef int drllm_vec_avx2_unused;
#endif
