/* The multiplications of the AVX2 kernels without their loads. */
#include "quant/peak.h"

#include <immintrin.h>

enum { CHAINS = 8 };

/* As if the register had changed: what is computed from it is computed anew. */
#define RENEW(v) __asm__ volatile("" : "+x"(v))
/* Keeps a sum in its register: gcc copies them about otherwise. */
#define HOLD(v) RENEW(v)

int32_t drllm_peak_int8_avx2(size_t n_rounds) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i w = _mm256_set1_epi8(3);
    __m256i x = _mm256_set1_epi8(5);
    __m256i sums[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = _mm256_setzero_si256();
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < CHAINS; i++) {
            RENEW(x);
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
            HOLD(sums[i]);
        }
    }
    __m256i total = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        total = _mm256_xor_si256(total, sums[i]);
    }
    return _mm256_extract_epi32(total, 0);
}

int32_t drllm_peak_float_avx2(size_t n_rounds) {
    const __m256 w = _mm256_set1_ps(0.5f);
    __m256 x = _mm256_set1_ps(0x1p-20f);
    __m256 sums[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = _mm256_setzero_ps();
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < CHAINS; i++) {
            RENEW(x);
            sums[i] = _mm256_add_ps(sums[i], _mm256_mul_ps(x, w));
            HOLD(sums[i]);
        }
    }
    __m256 total = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        total = _mm256_add_ps(total, sums[i]);
    }
    return _mm256_extract_epi32(_mm256_castps_si256(total), 0);
}
