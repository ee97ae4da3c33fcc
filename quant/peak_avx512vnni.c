/* vpdpbusd on the registers of AVX-512. */
#include "quant/peak.h"

#include <immintrin.h>

enum { CHAINS = 16 };

/* Keeps a sum in its register: gcc copies them about otherwise. */
#define HOLD(v) __asm__ volatile("" : "+v"(v))

int32_t drllm_peak_int8_avx512vnni(size_t n_rounds) {
    const __m512i w = _mm512_set1_epi8(3);
    const __m512i x = _mm512_set1_epi8(5);
    __m512i sums[CHAINS];
#pragma GCC unroll 16
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = _mm512_set1_epi32((int32_t)i);
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 16
        for (size_t i = 0; i < CHAINS; i++) {
            sums[i] = _mm512_dpbusd_epi32(sums[i], x, w);
            HOLD(sums[i]);
        }
    }
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (size_t i = 0; i < CHAINS; i++) {
        total = _mm512_xor_si512(total, sums[i]);
    }
    return _mm_cvtsi128_si32(_mm512_castsi512_si128(total));
}
