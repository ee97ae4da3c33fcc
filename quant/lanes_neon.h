/* Steps on 8 lanes in two registers, in the order of vec.h. */
#ifndef DRLLM_QUANT_LANES_NEON_H
#define DRLLM_QUANT_LANES_NEON_H

#include "quant/inline.h"

#include <arm_neon.h>
#include <stddef.h>

INLINE float fold(float32x4_t low, float32x4_t high) {
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* max, unlike FMAX, where x is NaN */
INLINE float32x4_t max_known(float32x4_t x, float32x4_t max) {
    return vbslq_f32(vcgtq_f32(x, max), x, max);
}

/* a * b + c, rounded twice. */
INLINE float32x4_t mul_add(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vaddq_f32(vmulq_f32(a, b), c);
}

/* a times one value of 4; the lane is a constant once the loop around it is unrolled. */
INLINE float32x4_t times_lane(float32x4_t a, float32x4_t values, size_t lane) {
    switch (lane) {
    case 0:
        return vmulq_laneq_f32(a, values, 0);
    case 1:
        return vmulq_laneq_f32(a, values, 1);
    case 2:
        return vmulq_laneq_f32(a, values, 2);
    default:
        return vmulq_laneq_f32(a, values, 3);
    }
}

#endif
