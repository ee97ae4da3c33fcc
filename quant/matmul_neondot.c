/* Integer products with the dot product instruction, optional from ARMv8.2 on: a 16-byte register of packed weights is
 * 4 rows by 4 columns, and one instruction multiplies it by 4 activations. */
#if defined(__aarch64__)
#include "quant/matmul_neon.h"

/* Columns 16*block to 16*block + 15 of the group for rows 4*half to 4*half + 3, four columns a register. */
INLINE void load_weights(enum drllm_format format, const uint8_t *q, size_t block, size_t half, int8x16_t w[4]) {
    if (is_int4(format)) {
        for (size_t pair = 0; pair < 2; pair++) {
            const uint8x16_t both = vld1q_u8(q + (2 * block + pair) * STEP_BYTES + half * HALF_BYTES);
            w[2 * pair] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            w[2 * pair + 1] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        }
    } else {
        for (size_t step = 0; step < 4; step++) {
            w[step] = vreinterpretq_s8_u8(vld1q_u8(q + (4 * block + step) * STEP_BYTES + half * HALF_BYTES));
        }
    }
}

/* Add one group's integer sums to dot: n_tokens by 8 rows. */
INLINE void add_dots(enum drllm_format format, const uint8_t *q, const struct drllm_q8_row *x, size_t column,
                     size_t n_tokens, int32x4_t dot[TILE_TOKENS][2]) {
    for (size_t block = 0; block < 2; block++) {
        for (size_t half = 0; half < 2; half++) {
            int8x16_t w[4];
            load_weights(format, q, block, half, w);
            for (size_t t = 0; t < n_tokens; t++) {
                const int8x16_t values = vld1q_s8(x[t].q + column + block * 16);
                dot[t][half] = vdotq_laneq_s32(dot[t][half], w[0], values, 0);
                dot[t][half] = vdotq_laneq_s32(dot[t][half], w[1], values, 1);
                dot[t][half] = vdotq_laneq_s32(dot[t][half], w[2], values, 2);
                dot[t][half] = vdotq_laneq_s32(dot[t][half], w[3], values, 3);
            }
        }
    }
}

#include "quant/matmul_neon_tiles.inc"

void drllm_matmul_q4_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_0, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q4_1_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_1, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8_0, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8c_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                              const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8C, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

#else
typedef int drllm_matmul_neondot_is_empty;
#endif
