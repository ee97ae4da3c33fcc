/* sdot, 16 products an instruction. */
#include "quant/peak.h"

#include <arm_neon.h>

enum { CHAINS = 16 };

/* Keeps a sum in its register: gcc copies them about otherwise. */
#define HOLD(v) __asm__ volatile("" : "+w"(v))

int32_t drllm_peak_int8_neondot(size_t n_rounds) {
    const int8x16_t w = vdupq_n_s8(3);
    const int8x16_t x = vdupq_n_s8(5);
    int32x4_t sums[CHAINS];
#pragma GCC unroll 16
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = vdupq_n_s32((int32_t)i);
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 16
        for (size_t i = 0; i < CHAINS; i++) {
            sums[i] = vdotq_s32(sums[i], x, w);
            HOLD(sums[i]);
        }
    }
    int32x4_t total = vdupq_n_s32(0);
#pragma GCC unroll 16
    for (size_t i = 0; i < CHAINS; i++) {
        total = veorq_s32(total, sums[i]);
    }
    return vgetq_lane_s32(total, 0);
}
