/* Products for every ARMv8-A processor, and for ARMv7-A with NEON and VFPv4. Integer sums run in int16 as long as they cannot overflow, then in int32. */
#if defined(__aarch64__) || (defined(__arm__) && defined(__ARM_NEON))
#include "quant/matmul_neon.h"

/* Products of 4 rows by 4 columns, two rows a register. */
INLINE void start_products(int16x8_t sum[2], int8x16_t w, int8x16_t x) {
    sum[0] = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    sum[1] = vmull_high_s8(w, x);
}

INLINE void add_products(int16x8_t sum[2], int8x16_t w, int8x16_t x) {
    sum[0] = vmlal_s8(sum[0], vget_low_s8(w), vget_low_s8(x));
    sum[1] = vmlal_high_s8(sum[1], w, x);
}

/* Eight activations: four repeated for four rows, then the next four. */
INLINE void load_activations(const int8_t *x, int8x16_t out[2]) {
    const int32x2_t eight = vreinterpret_s32_s8(vld1_s8(x));
    out[0] = vreinterpretq_s8_s32(vdupq_lane_s32(eight, 0));
    out[1] = vreinterpretq_s8_s32(vdupq_lane_s32(eight, 1));
}

/* One group's integer sums: n_tokens by 8 rows. A lane adds 8 products, its neighbour 8 more: 16 * 15 * 128 < 2^15. */
INLINE void dots_int4(const uint8_t *q, const int8_t *const x[TILE_TOKENS], size_t n_tokens,
                      int32x4_t dot[TILE_TOKENS][2]) {
    int16x8_t sum[TILE_TOKENS][2][2];
    UNROLL
    for (size_t pair = 0; pair < 4; pair++) {
        int8x16_t first[2];
        int8x16_t second[2];
        for (size_t half = 0; half < 2; half++) {
            const uint8x16_t both = vld1q_u8(q + pair * STEP_BYTES + half * HALF_BYTES);
            first[half] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            second[half] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        }
        UNROLL
        for (size_t t = 0; t < n_tokens; t++) {
            int8x16_t values[2];
            load_activations(x[t] + pair * 8, values);
            UNROLL
            for (size_t half = 0; half < 2; half++) {
                if (pair == 0) {
                    start_products(sum[t][half], first[half], values[0]);
                } else {
                    add_products(sum[t][half], first[half], values[0]);
                }
                add_products(sum[t][half], second[half], values[1]);
            }
        }
    }
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t half = 0; half < 2; half++) {
            dot[t][half] = vpaddlq_s16(vpaddq_s16(sum[t][half][0], sum[t][half][1]));
        }
    }
}

/* The same for int8 weights. A lane adds 2 products: activations are at least -127, so that 2 * 128 * 127 < 2^15 holds
 * for every weight. */
INLINE void dots_int8(const uint8_t *q, const int8_t *const x[TILE_TOKENS], size_t n_tokens,
                      int32x4_t dot[TILE_TOKENS][2]) {
    int32x4_t sum[TILE_TOKENS][2][2];
    UNROLL
    for (size_t pair = 0; pair < 4; pair++) {
        int8x16_t first[2];
        int8x16_t second[2];
        for (size_t half = 0; half < 2; half++) {
            const uint8_t *in = q + 2 * pair * STEP_BYTES + half * HALF_BYTES;
            first[half] = vreinterpretq_s8_u8(vld1q_u8(in));
            second[half] = vreinterpretq_s8_u8(vld1q_u8(in + STEP_BYTES));
        }
        UNROLL
        for (size_t t = 0; t < n_tokens; t++) {
            int8x16_t values[2];
            load_activations(x[t] + pair * 8, values);
            UNROLL
            for (size_t half = 0; half < 2; half++) {
                int16x8_t products[2];
                start_products(products, first[half], values[0]);
                add_products(products, second[half], values[1]);
                for (size_t i = 0; i < 2; i++) {
                    int32x4_t *to = &sum[t][half][i];
                    *to = pair == 0 ? vpaddlq_s16(products[i]) : vpadalq_s16(*to, products[i]);
                }
            }
        }
    }
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t half = 0; half < 2; half++) {
            dot[t][half] = vpaddq_s32(sum[t][half][0], sum[t][half][1]);
        }
    }
}

INLINE void add_dots(enum drllm_format format, const uint8_t *q, const struct drllm_q8_row *x, size_t column,
                     size_t n_tokens, int32x4_t dot[TILE_TOKENS][2]) {
    const int8_t *in[TILE_TOKENS];
    for (size_t t = 0; t < n_tokens; t++) {
        in[t] = x[t].q + column;
    }
    int32x4_t sum[TILE_TOKENS][2];
    if (is_int4(format)) {
        dots_int4(q, in, n_tokens, sum);
    } else {
        dots_int8(q, in, n_tokens, sum);
    }
    for (size_t t = 0; t < n_tokens; t++) {
        dot[t][0] = vaddq_s32(dot[t][0], sum[t][0]);
        dot[t][1] = vaddq_s32(dot[t][1], sum[t][1]);
    }
}

#include "quant/matmul_neon_tiles.inc"

/* Four tokens of int8 would not fit the registers. */
enum { TILE_TOKENS_INT8 = 3 };

/* One column's weights of the 8 rows. */
INLINE void load_column(enum drllm_format format, const uint8_t *p, float32x4_t w[2]) {
    if (format == DRLLM_FORMAT_F16) {
        load_f16x8(p, w);
    } else if (format == DRLLM_FORMAT_BF16) {
        const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(p));
        w[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16));
        w[1] = vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16));
    } else {
        w[0] = vreinterpretq_f32_u8(vld1q_u8(p));
        w[1] = vreinterpretq_f32_u8(vld1q_u8(p + 16));
    }
}

INLINE void tile_float(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels,
                       size_t cols, const float *x, size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    const size_t column_bytes = format == DRLLM_FORMAT_F32 ? 4 * R : 2 * R;
    float32x4_t acc[TILE_PANELS][TILE_TOKENS][2];
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            acc[p][t][0] = acc[p][t][1] = vdupq_n_f32(0.0f);
        }
    }
    for (size_t c = 0; c < cols; c++) {
        for (size_t p = 0; p < n_panels; p++) {
            float32x4_t w[2];
            load_column(format, panels + p * panel_bytes + c * column_bytes, w);
            for (size_t t = 0; t < n_tokens; t++) {
                acc[p][t][0] = vaddq_f32(acc[p][t][0], vmulq_n_f32(w[0], x[t * ldx + c]));
                acc[p][t][1] = vaddq_f32(acc[p][t][1], vmulq_n_f32(w[1], x[t * ldx + c]));
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

INLINE void matmul_float(enum drllm_format format, const void *panels, size_t panel_bytes, size_t n_panels, size_t cols,
                         const float *x, size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    const uint8_t *w = panels;
    if (n_tokens == 1) {
        for (; n_panels >= 2; n_panels -= 2, w += 2 * panel_bytes, y += 2 * R) {
            tile_float(format, w, panel_bytes, 2, cols, x, ldx, 1, y, ldy);
        }
    }
    for (size_t p = 0; p < n_panels; p++, w += panel_bytes, y += R) {
        size_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS) {
            tile_float(format, w, panel_bytes, 1, cols, x + t * ldx, ldx, TILE_TOKENS, y + t * ldy, ldy);
        }
        if (n_tokens - t >= 2) {
            tile_float(format, w, panel_bytes, 1, cols, x + t * ldx, ldx, 2, y + t * ldy, ldy);
            t += 2;
        }
        if (n_tokens - t == 1) {
            tile_float(format, w, panel_bytes, 1, cols, x + t * ldx, ldx, 1, y + t * ldy, ldy);
        }
    }
}

void drllm_matmul_q4_0_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                            const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_0, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q4_1_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                            const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_1, TILE_TOKENS, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8_0_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                            const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8_0, TILE_TOKENS_INT8, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8c_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8C, TILE_TOKENS_INT8, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_f32_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                           size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    matmul_float(DRLLM_FORMAT_F32, panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy);
}

void drllm_matmul_f16_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                           size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    matmul_float(DRLLM_FORMAT_F16, panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy);
}

void drllm_matmul_bf16_neon(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                            size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    matmul_float(DRLLM_FORMAT_BF16, panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy);
}

#else
typedef int drllm_matmul_neon_is_empty;
#endif
