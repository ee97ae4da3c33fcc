/* What the NEON kernels of every extension share: the sizes of tiles and of packed groups. For their files only. */
#ifndef DRLLM_QUANT_MATMUL_NEON_H
#define DRLLM_QUANT_MATMUL_NEON_H

#include "quant/inline.h"
#include "quant/matmul_kernels.h"

#include <arm_neon.h>
#if defined(__arm__)
#include "quant/neon_32.h"
#endif

enum { R = DRLLM_PANEL_ROWS, STEP_BYTES = 4 * R, HALF_BYTES = STEP_BYTES / 2, TILE_PANELS = 2, TILE_TOKENS = 4 };

INLINE bool is_int4(enum drllm_format format) {
    return format == DRLLM_FORMAT_Q4_0 || format == DRLLM_FORMAT_Q4_1;
}

/* Bytes of scales and minima before a group's weights. */
INLINE size_t header_bytes(enum drllm_format format) {
    return format == DRLLM_FORMAT_Q8C ? 0 : format == DRLLM_FORMAT_Q4_1 ? 4 * R : 2 * R;
}

INLINE size_t group_bytes(enum drllm_format format) {
    return header_bytes(format) + (is_int4(format) ? R * DRLLM_GROUP / 2 : R * DRLLM_GROUP);
}

/* Packed fields need not be aligned for their type. */
INLINE void load_f16x8(const uint8_t *p, float32x4_t out[2]) {
    const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(p));
    out[0] = vcvt_f32_f16(vget_low_f16(halves));
    out[1] = vcvt_high_f32_f16(halves);
}

INLINE float32x4_t load_f16x4(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

/* Tiles of 8 tokens read activations that were put in their order before. The groups of a part and the panels of a block
 * stay in the second-level cache while the tiles of all tokens run. */
enum { PART_GROUPS = 24, BLOCK_PANELS = 16 };

/* Nothing that reads memory moves across: gcc would load ahead what the registers cannot hold. */
#define HOLD_LOADS() __asm__ volatile("" ::: "memory")

/* The kernels of the dot product instruction for fewer than 8 tokens, q8c's apart. */
DRLLM_DECLARE_Q8(q4_0, few_neondot)
DRLLM_DECLARE_Q8(q4_1, few_neondot)
DRLLM_DECLARE_Q8(q8_0, few_neondot)

#endif
