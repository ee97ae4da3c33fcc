/* The multiplications of the NEON kernels without their loads. */
#include "quant/peak_loop.h"

#include <arm_neon.h>

/* smull, smlal2, sadalp: 16 products a chain. */
static inline int32x4_t add_products(int32x4_t sum, int8x16_t x, int8x16_t w) {
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
    return vpadalq_s16(sum, vmlal_s8(low, vget_high_s8(x), vget_high_s8(w)));
}

#define INT8_LANE(sum) vgetq_lane_s32(sum, 0)
#define FLOAT_STEP(sum, x, w) vaddq_f32(sum, vmulq_f32(x, w))
#define FLOAT_LANE(sum) vgetq_lane_s32(vreinterpretq_s32_f32(sum), 0)

PEAK_LOOP(int8_neon, 8, int32x4_t, vdupq_n_s32(0), int8x16_t, vdupq_n_s8(5), vdupq_n_s8(3), add_products, veorq_s32,
          INT8_LANE)
PEAK_LOOP(float_neon, 8, float32x4_t, vdupq_n_f32(0.0f), float32x4_t, vdupq_n_f32(0x1p-20f), vdupq_n_f32(0.5f),
          FLOAT_STEP, vaddq_f32, FLOAT_LANE)
