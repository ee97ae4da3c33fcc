/* Sums and maxima over the 8 lanes of a register, in the order of vec.h, and vectors of int8. */
#ifndef DRLLM_QUANT_LANES_AVX2_H
#define DRLLM_QUANT_LANES_AVX2_H

#include "quant/inline.h"

#include <immintrin.h>

INLINE float fold(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The largest lane; none is NaN. */
INLINE float fold_max(__m256 lanes) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* ---- int8 ---- */

/* Adding 1.5 * 2^23 rounds to nearest even; the low byte of the bits is then the two's complement integer. */
INLINE __m256i rounded_byte(__m256 x, __m256 inverse) {
    const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(x, inverse), _mm256_set1_ps(0x1.8p23f));
    return _mm256_and_si256(_mm256_castps_si256(shifted), _mm256_set1_epi32(0xff));
}

/* Four vectors times `inverse`, rounded to int8. */
INLINE __m256i quantize32(const __m256 x[4], __m256 inverse) {
    const __m256i low = _mm256_packus_epi32(rounded_byte(x[0], inverse), rounded_byte(x[1], inverse));
    const __m256i high = _mm256_packus_epi32(rounded_byte(x[2], inverse), rounded_byte(x[3], inverse));
    /* The packs work within halves of a vector. */
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Sums of four neighbouring bytes. */
INLINE __m256i sum_bytes(__m256i bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
}

INLINE int32_t sum_lanes(__m256i lanes) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

#endif
