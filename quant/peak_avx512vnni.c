/* vpdpbusd on the registers of AVX-512. */
#include "quant/peak_loop.h"

#include <immintrin.h>

#define LANE(sum) _mm_cvtsi128_si32(_mm512_castsi512_si128(sum))

PEAK_LOOP(int8_avx512vnni, 16, __m512i, _mm512_setzero_si512(), __m512i, _mm512_set1_epi8(5), _mm512_set1_epi8(3),
          _mm512_dpbusd_epi32, _mm512_xor_si512, LANE)
