/* What the kernels of the dot product instruction share. For their files only. */
#ifndef DRLLM_QUANT_MATMUL_NEONDOT_H
#define DRLLM_QUANT_MATMUL_NEONDOT_H

#include "quant/matmul_neon.h"

/* A value that gcc cannot see through. A pointer takes part in no other address then, so that the load itself moves it,
 * for the one of four registers knows no offset; of two neighbours in memory both are loaded here, by one instruction.
 * Clang does best without. */
#if defined(__clang__)
#define OPAQUE(constraint, value) ((void)(value))
#else
#define OPAQUE(constraint, value) __asm__("" : "+" constraint(value))
#endif

/* 4 rows by 4 columns of weights times 4 activations. The lanes are constants once the loops around them are unrolled. */
INLINE int32x4_t dot_lane(int32x4_t sum, int8x16_t weights, int8x16_t values, size_t lane) {
    switch (lane) {
    case 0:
        return vdotq_laneq_s32(sum, weights, values, 0);
    case 1:
        return vdotq_laneq_s32(sum, weights, values, 1);
    case 2:
        return vdotq_laneq_s32(sum, weights, values, 2);
    default:
        return vdotq_laneq_s32(sum, weights, values, 3);
    }
}

#endif
