/* vpdpbusd on the registers of AVX2. */
#include "quant/peak.h"

#include <immintrin.h>

enum { CHAINS = 8 };

/* Keeps a sum in its register: gcc copies them about otherwise. */
#define HOLD(v) __asm__ volatile("" : "+x"(v))

int32_t drllm_peak_int8_avxvnni(size_t n_rounds) {
    const __m256i w = _mm256_set1_epi8(3);
    const __m256i x = _mm256_set1_epi8(5);
    __m256i sums[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = _mm256_set1_epi32((int32_t)i);
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < CHAINS; i++) {
            sums[i] = _mm256_dpbusd_avx_epi32(sums[i], x, w);
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
