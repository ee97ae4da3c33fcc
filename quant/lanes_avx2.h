/* Sums and maxima over the 8 lanes of a register, in the order of vec.h. */
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

#endif
