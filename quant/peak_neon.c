/* The multiplications of the NEON kernels without their loads. */
#include "quant/peak.h"

#include <arm_neon.h>

enum { CHAINS = 8 };

/* As if the register had changed: what is computed from it is computed anew. */
#define RENEW(v) __asm__ volatile("" : "+w"(v))
/* Keeps a sum in its register: gcc copies them about otherwise. */
#define HOLD(v) RENEW(v)

/* smull, smlal2, sadalp: 16 products a chain. */
int32_t drllm_peak_int8_neon(size_t n_rounds) {
    const int8x16_t w = vdupq_n_s8(3);
    int8x16_t x = vdupq_n_s8(5);
    int32x4_t sums[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = vdupq_n_s32(0);
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < CHAINS; i++) {
            RENEW(x);
            const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
            sums[i] = vpadalq_s16(sums[i], vmlal_s8(low, vget_high_s8(x), vget_high_s8(w)));
            HOLD(sums[i]);
        }
    }
    int32x4_t total = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        total = veorq_s32(total, sums[i]);
    }
    return vgetq_lane_s32(total, 0);
}

int32_t drllm_peak_float_neon(size_t n_rounds) {
    const float32x4_t w = vdupq_n_f32(0.5f);
    float32x4_t x = vdupq_n_f32(0x1p-20f);
    float32x4_t sums[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        sums[i] = vdupq_n_f32(0.0f);
    }
    for (size_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < CHAINS; i++) {
            RENEW(x);
            sums[i] = vaddq_f32(sums[i], vmulq_f32(x, w));
            HOLD(sums[i]);
        }
    }
    float32x4_t total = vdupq_n_f32(0.0f);
#pragma GCC unroll 8
    for (size_t i = 0; i < CHAINS; i++) {
        total = vaddq_f32(total, sums[i]);
    }
    return vgetq_lane_s32(vreinterpretq_s32_f32(total), 0);
}
