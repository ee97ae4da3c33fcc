/* vpdpbusd on the registers of AVX2. */
#include "quant/peak_loop.h"

#include <immintrin.h>

#define LANE(sum) _mm256_extract_epi32(sum, 0)

PEAK_LOOP(int8_avxvnni, 8, __m256i, _mm256_setzero_si256(), __m256i, _mm256_set1_epi8(5), _mm256_set1_epi8(3),
          _mm256_dpbusd_avx_epi32, _mm256_xor_si256, LANE)
