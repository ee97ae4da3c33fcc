/* The multiplications of the AVX2 kernels without their loads. */
#include "quant/peak_loop.h"

#include <immintrin.h>

#define INT8_STEP(sum, x, w) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)))
#define INT8_LANE(sum) _mm256_extract_epi32(sum, 0)
#define FLOAT_STEP(sum, x, w) _mm256_add_ps(sum, _mm256_mul_ps(x, w))
#define FLOAT_LANE(sum) _mm256_extract_epi32(_mm256_castps_si256(sum), 0)

PEAK_LOOP(int8_avx2, 8, __m256i, _mm256_setzero_si256(), __m256i, _mm256_set1_epi8(5), _mm256_set1_epi8(3), INT8_STEP,
          _mm256_xor_si256, INT8_LANE)
PEAK_LOOP(float_avx2, 8, __m256, _mm256_setzero_ps(), __m256, _mm256_set1_ps(0x1p-20f), _mm256_set1_ps(0.5f),
          FLOAT_STEP, _mm256_add_ps, FLOAT_LANE)
