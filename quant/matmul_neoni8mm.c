/* Integer products with the matrix instruction, optional from ARMv8.2 on: smmla multiplies 2 tokens by 2 rows over 8
 * columns. It wants 8 columns of a row in a piece, where the packed layout has 4: a zip of two registers makes them, for
 * int4 before the nibbles are parted, and the tokens of a tile share it. Which columns meet in an instruction does not
 * matter to an exact sum, as long as the activations are taken in the same order: those are put into it once for several
 * panels.
 *
 * Sums stay as smmla leaves them, tokens t and t + 1 by rows r and r + 1 a register, until they are written. */
#if defined(__aarch64__)
#include "quant/matmul_neon.h"

enum { MAX_PAIRS = 4, ROW_PAIRS = R / 2 }; /* a tile is 8 tokens by a panel */

INLINE int8x16_t zip_low(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_s8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

INLINE int8x16_t zip_high(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_s8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

/* A group of a tile's activations: 16 columns of two tokens are two registers, steps 0 and 2 of both, then 1 and 3. Each
 * token's value twice, for a register of sums. */
struct group {
    int32x4_t q[2][MAX_PAIRS][2];
    float32x4_t scale[MAX_PAIRS], ssum[MAX_PAIRS];
};

INLINE float32x4_t token_pair(const float *a, const float *b) {
    return vcombine_f32(vld1_dup_f32(a), vld1_dup_f32(b));
}

INLINE void prepare(enum drllm_format format, const struct drllm_q8_row *x, size_t n_pairs, size_t first,
                    size_t n_groups, struct group *groups) {
    for (size_t t = 0; t < n_pairs; t++) {
        const struct drllm_q8_row a = x[2 * t];
        const struct drllm_q8_row b = x[2 * t + 1];
        for (size_t g = 0; g < n_groups; g++) {
            for (size_t block = 0; block < 2; block++) {
                const size_t column = (first + g) * DRLLM_GROUP + block * 16;
                const int32x4_t qa = vreinterpretq_s32_s8(vld1q_s8(a.q + column));
                const int32x4_t qb = vreinterpretq_s32_s8(vld1q_s8(b.q + column));
                groups[g].q[block][t][0] = vuzp1q_s32(qa, qb);
                groups[g].q[block][t][1] = vuzp2q_s32(qa, qb);
            }
            if (format != DRLLM_FORMAT_Q8C) {
                groups[g].scale[t] = token_pair(a.scale + first + g, b.scale + first + g);
            }
            if (format == DRLLM_FORMAT_Q4_1) {
                groups[g].ssum[t] = token_pair(a.ssum + first + g, b.ssum + first + g);
            }
        }
    }
}

/* Columns 16*block to 16*block + 15 of two row pairs, those of steps 0 and 2, then those of steps 1 and 3. q4_0's are 16
 * times the weight, which takes one exclusive or for both nibbles: see dot_value. */
INLINE void load_weights(enum drllm_format format, const uint8_t *q, size_t block, size_t half, int8x16_t w[2][2]) {
    if (is_int4(format)) {
        const uint8_t *from = q + 2 * block * STEP_BYTES + half * HALF_BYTES;
        const uint8x16_t a = vld1q_u8(from);
        const uint8x16_t b = vld1q_u8(from + STEP_BYTES);
        const int8x16_t zipped[2] = {zip_low(a, b), zip_high(a, b)};
        for (size_t i = 0; i < 2; i++) {
            const uint8x16_t both = vreinterpretq_u8_s8(zipped[i]);
            if (format == DRLLM_FORMAT_Q4_0) {
                const uint8x16_t moved = veorq_u8(both, vdupq_n_u8(0x88));
                w[i][0] = vreinterpretq_s8_u8(vshlq_n_u8(moved, 4));
                w[i][1] = vreinterpretq_s8_u8(vandq_u8(moved, vdupq_n_u8(0xf0)));
            } else {
                w[i][0] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                w[i][1] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            }
        }
    } else {
        const uint8_t *from = q + 4 * block * STEP_BYTES + half * HALF_BYTES;
        for (size_t i = 0; i < 2; i++) {
            const uint8x16_t a = vld1q_u8(from + i * STEP_BYTES);
            const uint8x16_t b = vld1q_u8(from + (i + 2) * STEP_BYTES);
            w[0][i] = zip_low(a, b);
            w[1][i] = zip_high(a, b);
        }
    }
}

/* Add one group's integer sums for two row pairs. */
INLINE void add_dots(enum drllm_format format, const uint8_t *q, size_t half, const struct group *group, size_t n_pairs,
                     int32x4_t dot[MAX_PAIRS][2]) {
    for (size_t block = 0; block < 2; block++) {
        int8x16_t w[2][2];
        load_weights(format, q, block, half, w);
        for (size_t t = 0; t < n_pairs; t++) {
            const int8x16_t even = vreinterpretq_s8_s32(group->q[block][t][0]);
            const int8x16_t odd = vreinterpretq_s8_s32(group->q[block][t][1]);
            for (size_t i = 0; i < 2; i++) {
                dot[t][i] = vmmlaq_s32(dot[t][i], even, w[i][0]);
            }
            for (size_t i = 0; i < 2; i++) {
                dot[t][i] = vmmlaq_s32(dot[t][i], odd, w[i][1]);
            }
        }
        if (n_pairs == MAX_PAIRS && format != DRLLM_FORMAT_Q8C) {
            HOLD_LOADS();
        }
    }
}

/* 4 rows' values, a pair of rows twice a register. */
INLINE void row_pairs(float32x4_t rows, float32x4_t out[2]) {
    out[0] = vcombine_f32(vget_low_f32(rows), vget_low_f32(rows));
    out[1] = vcombine_f32(vget_high_f32(rows), vget_high_f32(rows));
}

/* The exact value of a sum; q4_0's is 16 times as large. */
INLINE float32x4_t dot_value(enum drllm_format format, int32x4_t dot) {
    return format == DRLLM_FORMAT_Q4_0 ? vcvtq_n_f32_s32(dot, 4) : vcvtq_f32_s32(dot);
}

INLINE float32x4_t low_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

INLINE float32x4_t high_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

/* Two tokens' results, row after row in memory. */
INLINE void load_results(const float *y, size_t ldy, float32x4_t out[ROW_PAIRS]) {
    for (size_t half = 0; half < 2; half++) {
        const float32x4_t a = vld1q_f32(y + half * 4);
        const float32x4_t b = vld1q_f32(y + ldy + half * 4);
        out[2 * half] = low_halves(a, b);
        out[2 * half + 1] = high_halves(a, b);
    }
}

INLINE void store_results(float *y, size_t ldy, const float32x4_t values[ROW_PAIRS]) {
    for (size_t half = 0; half < 2; half++) {
        vst1q_f32(y + half * 4, low_halves(values[2 * half], values[2 * half + 1]));
        vst1q_f32(y + ldy + half * 4, high_halves(values[2 * half], values[2 * half + 1]));
    }
}

/* q4_0, q4_1, q8_0: some groups, behind what y holds of those before. */
INLINE void tile_grouped(enum drllm_format format, const uint8_t *w, const struct group *groups, size_t n_groups,
                         size_t n_pairs, bool is_first, float *y, size_t ldy) {
    float32x4_t acc[MAX_PAIRS][ROW_PAIRS];
    for (size_t t = 0; t < n_pairs; t++) {
        if (is_first) {
            acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = vdupq_n_f32(0.0f);
        } else {
            load_results(y + 2 * t * ldy, ldy, acc[t]);
        }
    }
    for (const struct group *group = groups; group < groups + n_groups; group++, w += group_bytes(format)) {
        UNROLL
        for (size_t half = 0; half < 2; half++) { /* a half's sums and all results just fit the registers */
            int32x4_t dot[MAX_PAIRS][2];
            for (size_t t = 0; t < n_pairs; t++) {
                dot[t][0] = dot[t][1] = vdupq_n_s32(0);
            }
            add_dots(format, w + header_bytes(format), half, group, n_pairs, dot);
            float32x4_t d[2];
            float32x4_t m[2];
            row_pairs(load_f16x4(w + half * R), d);
            for (size_t t = 0; t < n_pairs; t++) {
                for (size_t i = 0; i < 2; i++) {
                    const float32x4_t scale = vmulq_f32(d[i], group->scale[t]);
                    float32x4_t *sum = &acc[t][2 * half + i];
                    *sum = vaddq_f32(*sum, vmulq_f32(dot_value(format, dot[t][i]), scale));
                }
            }
            if (format == DRLLM_FORMAT_Q4_1) {
                row_pairs(load_f16x4(w + (2 + half) * R), m);
                for (size_t t = 0; t < n_pairs; t++) {
                    for (size_t i = 0; i < 2; i++) {
                        float32x4_t *sum = &acc[t][2 * half + i];
                        *sum = vaddq_f32(*sum, vmulq_f32(m[i], group->ssum[t]));
                    }
                }
            }
        }
    }
    for (size_t t = 0; t < n_pairs; t++) {
        store_results(y + 2 * t * ldy, ldy, acc[t]);
    }
}

/* q8c: one integer sum over the whole row, whose bits y holds until the last group. x: of that one; else NULL. */
INLINE void tile_row(const uint8_t *w, const struct group *groups, size_t n_groups, size_t n_pairs, bool is_first,
                     const struct drllm_q8_row *x, float *y, size_t ldy) {
    int32x4_t dot[2][MAX_PAIRS][2];
    for (size_t t = 0; t < n_pairs; t++) {
        float32x4_t before[ROW_PAIRS];
        if (is_first) {
            before[0] = before[1] = before[2] = before[3] = vdupq_n_f32(0.0f);
        } else {
            load_results(y + 2 * t * ldy, ldy, before);
        }
        for (size_t r = 0; r < ROW_PAIRS; r++) {
            dot[r / 2][t][r % 2] = vreinterpretq_s32_f32(before[r]);
        }
    }
    for (const struct group *group = groups; group < groups + n_groups; group++, w += group_bytes(DRLLM_FORMAT_Q8C)) {
        add_dots(DRLLM_FORMAT_Q8C, w, 0, group, n_pairs, dot[0]);
        add_dots(DRLLM_FORMAT_Q8C, w, 1, group, n_pairs, dot[1]);
    }
    for (size_t t = 0; t < n_pairs; t++) {
        float32x4_t values[ROW_PAIRS];
        for (size_t r = 0; r < ROW_PAIRS; r++) {
            values[r] = vreinterpretq_f32_s32(dot[r / 2][t][r % 2]);
            if (x != NULL) {
                const float32x2_t rows = vreinterpret_f32_u8(vld1_u8(w + r * 8));
                const float32x4_t scale = token_pair(x[2 * t].scale, x[2 * t + 1].scale);
                const float32x4_t both = vmulq_f32(vcombine_f32(rows, rows), scale);
                values[r] = vmulq_f32(vcvtq_f32_s32(dot[r / 2][t][r % 2]), both);
            }
        }
        store_results(y + 2 * t * ldy, ldy, values);
    }
}

/* A part of the groups, first to first + n, of a block of panels for the tokens of one tile. */
INLINE void tiles(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels, size_t first,
                  size_t n, bool is_last, const struct drllm_q8_row *x, size_t n_pairs, float *y, size_t ldy) {
    struct group groups[PART_GROUPS];
    prepare(format, x, n_pairs, first, n, groups);
    for (size_t p = 0; p < n_panels; p++) {
        const uint8_t *w = panels + p * panel_bytes + first * group_bytes(format);
        if (format == DRLLM_FORMAT_Q8C) {
            tile_row(w, groups, n, n_pairs, first == 0, is_last ? x : NULL, y + p * R, ldy);
        } else {
            tile_grouped(format, w, groups, n, n_pairs, first == 0, y + p * R, ldy);
        }
    }
}

/* A block of panels for an even number of tokens. */
INLINE void block_q8(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels,
                     size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t g = 0; g < n_groups; g += PART_GROUPS) {
        const size_t n = n_groups - g < PART_GROUPS ? n_groups - g : PART_GROUPS;
        const bool is_last = g + n == n_groups;
        size_t t = 0;
        for (; t + 2 * MAX_PAIRS <= n_tokens; t += 2 * MAX_PAIRS) {
            tiles(format, panels, panel_bytes, n_panels, g, n, is_last, x + t, MAX_PAIRS, y + t * ldy, ldy);
        }
        if (n_tokens - t >= 4) {
            tiles(format, panels, panel_bytes, n_panels, g, n, is_last, x + t, 2, y + t * ldy, ldy);
            t += 4;
        }
        if (n_tokens - t >= 2) {
            tiles(format, panels, panel_bytes, n_panels, g, n, is_last, x + t, 1, y + t * ldy, ldy);
        }
    }
}

/* A token without a partner takes the dot product instruction, which reads the weights as they lie. */
INLINE void matmul_q8(enum drllm_format format, drllm_matmul_q8_fn single, const void *panels, size_t panel_bytes,
                      size_t n_panels, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                      size_t ldy) {
    const uint8_t *w = panels;
    const size_t n_even = n_tokens / 2 * 2;
    if (n_even == 0) {
        single(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
        return;
    }
    for (size_t p = 0; p < n_panels; p += BLOCK_PANELS) {
        const size_t n = n_panels - p < BLOCK_PANELS ? n_panels - p : BLOCK_PANELS;
        block_q8(format, w + p * panel_bytes, panel_bytes, n, n_groups, x, n_even, y + p * R, ldy);
        if (n_even != n_tokens) {
            single(w + p * panel_bytes, panel_bytes, n, n_groups, x + n_even, 1, y + n_even * ldy + p * R, ldy);
        }
    }
}

void drllm_matmul_q4_0_neoni8mm(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                                const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_0, drllm_matmul_q4_0_neondot, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y,
              ldy);
}

void drllm_matmul_q4_1_neoni8mm(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                                const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q4_1, drllm_matmul_q4_1_neondot, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y,
              ldy);
}

void drllm_matmul_q8_0_neoni8mm(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                                const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8_0, drllm_matmul_q8_0_neondot, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y,
              ldy);
}

void drllm_matmul_q8c_neoni8mm(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                               const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_q8(DRLLM_FORMAT_Q8C, drllm_matmul_q8c_neondot, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

#else
typedef int drllm_matmul_neoni8mm_is_empty;
#endif
