/* Integer products with the dot product instruction, optional from ARMv8.2 on: a 16-byte register of packed weights is
 * 4 rows by 4 columns, and one instruction multiplies it by 4 activations. Tiles of 8 tokens, and all of q8c; fewer
 * tokens of the other formats are in matmul_few_neondot.c. */
#if defined(__aarch64__)
#include "quant/matmul_neondot.h"
#include "quant/lanes_neon.h"

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
                for (size_t step = 0; step < 4; step++) {
                    dot[t][half] = dot_lane(dot[t][half], w[step], values, step);
                }
            }
        }
    }
}

#include "quant/matmul_neon_tiles.inc"

/* ---- Many tokens: tiles of 8 by a panel ---- */

enum { MANY = 8 };

/* A group of a tile's activations, what one token has beside what the next one has. */
struct group {
    int8x16_t q[2][MANY];
    float32x4_t scale[2], ssum[2];
    int32x4_t start[MANY]; /* of the sums of 4 rows: stored nibbles are 8 more than q4_0's weights */
};

INLINE void prepare(enum drllm_format format, const struct drllm_q8_row *x, size_t first, size_t n_groups,
                    struct group *groups) {
    for (size_t g = 0; g < n_groups; g++) {
        float scale[MANY];
        float ssum[MANY] = {0};
        for (size_t t = 0; t < MANY; t++) {
            for (size_t block = 0; block < 2; block++) {
                groups[g].q[block][t] = vld1q_s8(x[t].q + (first + g) * DRLLM_GROUP + block * 16);
            }
            scale[t] = x[t].scale[first + g];
            if (format == DRLLM_FORMAT_Q4_0) {
                groups[g].start[t] = vdupq_n_s32(-8 * x[t].sum[first + g]);
            } else if (format == DRLLM_FORMAT_Q4_1) {
                ssum[t] = x[t].ssum[first + g];
            }
        }
        for (size_t i = 0; i < 2; i++) {
            groups[g].scale[i] = vld1q_f32(scale + 4 * i);
            groups[g].ssum[i] = vld1q_f32(ssum + 4 * i);
        }
    }
}

/* Some groups, behind what y holds of those before. A half's sums and all results just fit the registers. */
INLINE void tile_many(enum drllm_format format, const uint8_t *w, const struct group *groups, size_t n_groups,
                      bool is_first, float *y, size_t ldy) {
    float32x4_t acc[MANY][2];
    UNROLL
    for (size_t t = 0; t < MANY; t++) {
        acc[t][0] = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(y + t * ldy);
        acc[t][1] = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(y + t * ldy + 4);
    }
    for (const struct group *group = groups; group < groups + n_groups; group++, w += group_bytes(format)) {
        UNROLL
        for (size_t half = 0; half < 2; half++) {
            int32x4_t dot[MANY];
            UNROLL
            for (size_t t = 0; t < MANY; t += 2) {
                dot[t] = format == DRLLM_FORMAT_Q4_0 ? group->start[t] : vdupq_n_s32(0);
                dot[t + 1] = format == DRLLM_FORMAT_Q4_0 ? group->start[t + 1] : vdupq_n_s32(0);
                OPAQUE("w", dot[t]);
                OPAQUE("w", dot[t + 1]);
            }
            UNROLL
            for (size_t block = 0; block < 2; block++) {
                int8x16_t weights[4];
                load_weights(format, w + header_bytes(format), block, half, weights);
                UNROLL
                for (size_t t = 0; t < MANY; t += 2) {
                    int8x16_t values[2] = {group->q[block][t], group->q[block][t + 1]};
                    OPAQUE("w", values[0]);
                    OPAQUE("w", values[1]);
                    UNROLL
                    for (size_t step = 0; step < 4; step++) { /* in turn: a sum takes its time to be ready */
                        dot[t] = dot_lane(dot[t], weights[step], values[0], step);
                        dot[t + 1] = dot_lane(dot[t + 1], weights[step], values[1], step);
                    }
                }
                HOLD_LOADS();
            }
            const float32x4_t d = load_f16x4(w + half * R);
            UNROLL
            for (size_t t = 0; t < MANY; t++) {
                const float32x4_t scale = times_lane(d, group->scale[t / 4], t % 4);
                acc[t][half] = vaddq_f32(acc[t][half], vmulq_f32(vcvtq_f32_s32(dot[t]), scale));
            }
            if (format == DRLLM_FORMAT_Q4_1) {
                const float32x4_t m = load_f16x4(w + (2 + half) * R);
                UNROLL
                for (size_t t = 0; t < MANY; t++) {
                    acc[t][half] = vaddq_f32(acc[t][half], times_lane(m, group->ssum[t / 4], t % 4));
                }
            }
        }
    }
    UNROLL
    for (size_t t = 0; t < MANY; t++) {
        vst1q_f32(y + t * ldy, acc[t][0]);
        vst1q_f32(y + t * ldy + 4, acc[t][1]);
    }
}

/* A block of panels for n_tokens, a multiple of 8. */
INLINE void block_many(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels,
                       size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    struct group groups[PART_GROUPS];
    for (size_t g = 0; g < n_groups; g += PART_GROUPS) {
        const size_t n = n_groups - g < PART_GROUPS ? n_groups - g : PART_GROUPS;
        for (size_t t = 0; t < n_tokens; t += MANY) {
            prepare(format, x + t, g, n, groups);
            for (size_t p = 0; p < n_panels; p++) {
                tile_many(format, panels + p * panel_bytes + g * group_bytes(format), groups, n, g == 0,
                          y + t * ldy + p * R, ldy);
            }
        }
    }
}

INLINE void matmul_grouped(enum drllm_format format, drllm_matmul_q8_fn few, const void *panels, size_t panel_bytes,
                           size_t n_panels, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                           size_t ldy) {
    const uint8_t *w = panels;
    const size_t n_many = n_tokens / MANY * MANY;
    if (n_many == 0) {
        few(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
        return;
    }
    for (size_t p = 0; p < n_panels; p += BLOCK_PANELS) {
        const size_t n = n_panels - p < BLOCK_PANELS ? n_panels - p : BLOCK_PANELS;
        const uint8_t *block = w + p * panel_bytes;
        block_many(format, block, panel_bytes, n, n_groups, x, n_many, y + p * R, ldy);
        if (n_many != n_tokens) {
            few(block, panel_bytes, n, n_groups, x + n_many, n_tokens - n_many, y + n_many * ldy + p * R, ldy);
        }
    }
}

void drllm_matmul_q4_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q4_0, drllm_matmul_q4_0_few_neondot, panels, panel_bytes, n_panels, n_groups, x,
                   n_tokens, y, ldy);
}

void drllm_matmul_q4_1_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q4_1, drllm_matmul_q4_1_few_neondot, panels, panel_bytes, n_panels, n_groups, x,
                   n_tokens, y, ldy);
}

void drllm_matmul_q8_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q8_0, drllm_matmul_q8_0_few_neondot, panels, panel_bytes, n_panels, n_groups, x,
                   n_tokens, y, ldy);
}

void drllm_matmul_q8c_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                              const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8C, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

#else
typedef int drllm_matmul_neondot_is_empty;
#endif
