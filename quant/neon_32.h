/* The instructions of AArch64's NEON that matmul_neon.c uses and AArch32's has not, out of those that it has. For NEON with
 * VFPv4, which converts halves: Cortex-A7 and what came later. */
#ifndef DRLLM_QUANT_NEON_32_H
#define DRLLM_QUANT_NEON_32_H

#include "quant/inline.h"

#include <arm_neon.h>

INLINE int16x8_t vmull_high_s8(int8x16_t a, int8x16_t b) {
    return vmull_s8(vget_high_s8(a), vget_high_s8(b));
}

INLINE int16x8_t vmlal_high_s8(int16x8_t sum, int8x16_t a, int8x16_t b) {
    return vmlal_s8(sum, vget_high_s8(a), vget_high_s8(b));
}

INLINE int16x8_t vpaddq_s16(int16x8_t a, int16x8_t b) {
    return vcombine_s16(vpadd_s16(vget_low_s16(a), vget_high_s16(a)), vpadd_s16(vget_low_s16(b), vget_high_s16(b)));
}

INLINE int32x4_t vpaddq_s32(int32x4_t a, int32x4_t b) {
    return vcombine_s32(vpadd_s32(vget_low_s32(a), vget_high_s32(a)), vpadd_s32(vget_low_s32(b), vget_high_s32(b)));
}

INLINE float32x4_t vcvt_high_f32_f16(float16x8_t a) {
    return vcvt_f32_f16(vget_high_f16(a));
}

INLINE uint32x4_t vshll_high_n_u16_16(uint16x8_t a) {
    return vshll_n_u16(vget_high_u16(a), 16);
}
#define vshll_high_n_u16(a, n) vshll_high_n_u16_##n(a)

#endif
