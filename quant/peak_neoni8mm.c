/* smmla, 32 products an instruction. */
#include "quant/peak_loop.h"

#include <arm_neon.h>

#define LANE(sum) vgetq_lane_s32(sum, 0)

PEAK_LOOP(int8_neoni8mm, 16, int32x4_t, vdupq_n_s32(0), int8x16_t, vdupq_n_s8(5), vdupq_n_s8(3), vmmlaq_s32, veorq_s32,
          LANE)
