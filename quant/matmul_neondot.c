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

/* q4_0, q4_1, q8_0 */
INLINE void tile_grouped(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels,
                         size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    float32x4_t acc[TILE_PANELS][TILE_TOKENS][2];
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            acc[p][t][0] = acc[p][t][1] = vdupq_n_f32(0.0f);
        }
    }
    for (size_t g = 0; g < n_groups; g++) {
        for (size_t p = 0; p < n_panels; p++) {
            const uint8_t *w = panels + p * panel_bytes + g * group_bytes(format);
            int32x4_t dot[TILE_TOKENS][2];
            for (size_t t = 0; t < n_tokens; t++) {
                /* Stored nibbles are 8 more than q4_0's weights: start from what that adds to the sum. */
                dot[t][0] = dot[t][1] = vdupq_n_s32(format == DRLLM_FORMAT_Q4_0 ? -8 * x[t].sum[g] : 0);
            }
            add_dots(format, w + header_bytes(format), x, g * DRLLM_GROUP, n_tokens, dot);
            float32x4_t d[2];
            load_f16x8(w, d);
            for (size_t t = 0; t < n_tokens; t++) {
                for (size_t half = 0; half < 2; half++) {
                    const float32x4_t scale = vmulq_n_f32(d[half], x[t].scale[g]);
                    acc[p][t][half] = vaddq_f32(acc[p][t][half], vmulq_f32(vcvtq_f32_s32(dot[t][half]), scale));
                }
            }
            if (format == DRLLM_FORMAT_Q4_1) {
                float32x4_t m[2];
                load_f16x8(w + 2 * R, m);
                for (size_t t = 0; t < n_tokens; t++) {
                    for (size_t half = 0; half < 2; half++) {
                        acc[p][t][half] = vaddq_f32(acc[p][t][half], vmulq_n_f32(m[half], x[t].ssum[g]));
                    }
                }
            }
        }
    }
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            vst1q_f32(y + t * ldy + p * R, acc[p][t][0]);
            vst1q_f32(y + t * ldy + p * R + 4, acc[p][t][1]);
        }
    }
}

/* q8c: one integer sum over the whole row */
INLINE void tile_row(const uint8_t *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                     const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const size_t bytes = group_bytes(DRLLM_FORMAT_Q8C);
    int32x4_t acc[TILE_PANELS][TILE_TOKENS][2];
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            acc[p][t][0] = acc[p][t][1] = vdupq_n_s32(0);
        }
    }
    for (size_t g = 0; g < n_groups; g++) {
        for (size_t p = 0; p < n_panels; p++) {
            add_dots(DRLLM_FORMAT_Q8C, panels + p * panel_bytes + g * bytes, x, g * DRLLM_GROUP, n_tokens, acc[p]);
        }
    }
    for (size_t p = 0; p < n_panels; p++) {
        const uint8_t *scales = panels + p * panel_bytes + n_groups * bytes;
        for (size_t half = 0; half < 2; half++) {
            const float32x4_t d = vreinterpretq_f32_u8(vld1q_u8(scales + half * 16));
            for (size_t t = 0; t < n_tokens; t++) {
                const float32x4_t scale = vmulq_n_f32(d, x[t].scale[0]);
                vst1q_f32(y + t * ldy + p * R + half * 4, vmulq_f32(vcvtq_f32_s32(acc[p][t][half]), scale));
            }
        }
    }
}

INLINE void tile(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                 const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    if (format == DRLLM_FORMAT_Q8C) {
        tile_row(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    } else {
        tile_grouped(format, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    }
}

INLINE void matmul(enum drllm_format format, const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                   const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const uint8_t *w = panels;
    if (n_tokens == 1) { /* two panels keep enough sums in flight */
        for (; n_panels >= 2; n_panels -= 2, w += 2 * panel_bytes, y += 2 * R) {
            tile(format, w, panel_bytes, 2, n_groups, x, 1, y, ldy);
        }
    }
    for (size_t p = 0; p < n_panels; p++, w += panel_bytes, y += R) {
        size_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS) {
            tile(format, w, panel_bytes, 1, n_groups, x + t, TILE_TOKENS, y + t * ldy, ldy);
        }
        if (n_tokens - t >= 2) {
            tile(format, w, panel_bytes, 1, n_groups, x + t, 2, y + t * ldy, ldy);
            t += 2;
        }
        if (n_tokens - t == 1) {
            tile(format, w, panel_bytes, 1, n_groups, x + t, 1, y + t * ldy, ldy);
        }
    }
}

void drllm_matmul_q4_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul(DRLLM_FORMAT_Q4_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q4_1_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul(DRLLM_FORMAT_Q4_1, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8_0_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul(DRLLM_FORMAT_Q8_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8c_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                              const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul(DRLLM_FORMAT_Q8C, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

#else
typedef int drllm_matmul_neondot_is_empty;
#endif
