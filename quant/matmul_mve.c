/* Products for Helium (Cortex-M55): VMLADAV sums 16 products of bytes. Words of one row lie 32 bytes apart in a panel, so
 * that one gathering load fetches 16 bytes of a row. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
#include "quant/lanes_mve.h"
#include "quant/matmul_kernels.h"

#include <string.h>

enum {
    R = DRLLM_PANEL_ROWS,
    STEP_BYTES = 4 * R,
    Q4_GROUP_BYTES = R * DRLLM_GROUP / 2,
    Q8_GROUP_BYTES = R * DRLLM_GROUP,
    TILE_TOKENS = 2
};

INLINE uint8x16_t load_row(const uint8_t *q, size_t row) {
    static const uint32_t steps[4] = {0, STEP_BYTES, 2 * STEP_BYTES, 3 * STEP_BYTES};
    const uint32_t *words = (const uint32_t *)(const void *)(q + row * 4);
    return vreinterpretq_u8_u32(vldrwq_gather_offset_u32(words, vld1q_u32(steps)));
}

/* One group's integer sums: n_tokens by 8 rows. Of int4, a word's low nibbles are columns 8i .. 8i+3, its high ones
 * 8i+4 .. 8i+7: the even and the odd words of the activations. */
INLINE void dots_int4(const uint8_t *q, const int8_t *const x[TILE_TOKENS], size_t n_tokens,
                      int32_t dot[TILE_TOKENS][R]) {
    int8x16_t even[TILE_TOKENS], odd[TILE_TOKENS];
    for (size_t t = 0; t < n_tokens; t++) {
        const uint32x4x2_t words = vld2q_u32((const uint32_t *)(const void *)x[t]);
        even[t] = vreinterpretq_s8_u32(words.val[0]);
        odd[t] = vreinterpretq_s8_u32(words.val[1]);
    }
    for (size_t row = 0; row < R; row++) {
        const uint8x16_t both = load_row(q, row);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        for (size_t t = 0; t < n_tokens; t++) {
            dot[t][row] = vmladavaq_s8(vmladavq_s8(low, even[t]), high, odd[t]);
        }
    }
}

INLINE void dots_int8(const uint8_t *q, const int8_t *const x[TILE_TOKENS], size_t n_tokens,
                      int32_t dot[TILE_TOKENS][R]) {
    int8x16_t first[TILE_TOKENS], second[TILE_TOKENS];
    for (size_t t = 0; t < n_tokens; t++) {
        first[t] = vld1q_s8(x[t]);
        second[t] = vld1q_s8(x[t] + 16);
    }
    for (size_t row = 0; row < R; row++) {
        const int8x16_t left = vreinterpretq_s8_u8(load_row(q, row));
        const int8x16_t right = vreinterpretq_s8_u8(load_row(q + 4 * STEP_BYTES, row));
        for (size_t t = 0; t < n_tokens; t++) {
            dot[t][row] = vmladavaq_s8(vmladavq_s8(left, first[t]), right, second[t]);
        }
    }
}

/* One panel by n_tokens rows. `format` is a constant. */
INLINE void tile_grouped(enum drllm_format format, const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x,
                         size_t n_tokens, float *y, size_t ldy) {
    const size_t n_fields = format == DRLLM_FORMAT_Q4_1 ? 2 : 1;
    const size_t group_bytes = n_fields * 2 * R + (format == DRLLM_FORMAT_Q8_0 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES);
    float32x4_t acc[TILE_TOKENS][2];
    for (size_t t = 0; t < n_tokens; t++) {
        acc[t][0] = acc[t][1] = vdupq_n_f32(0.0f);
    }
    for (size_t g = 0; g < n_groups; g++, w += group_bytes) {
        const int8_t *in[TILE_TOKENS];
        int32_t dot[TILE_TOKENS][R];
        for (size_t t = 0; t < n_tokens; t++) {
            in[t] = x[t].q + g * DRLLM_GROUP;
        }
        if (format == DRLLM_FORMAT_Q8_0) {
            dots_int8(w + n_fields * 2 * R, in, n_tokens, dot);
        } else {
            dots_int4(w + n_fields * 2 * R, in, n_tokens, dot);
        }
        const uint16_t *fields = (const uint16_t *)(const void *)w;
        for (size_t half = 0; half < 2; half++) {
            const float32x4_t d = load_f16x4(fields + 4 * half);
            for (size_t t = 0; t < n_tokens; t++) {
                int32x4_t sums = vld1q_s32(dot[t] + 4 * half);
                if (format == DRLLM_FORMAT_Q4_0) {
                    sums = vsubq_n_s32(sums, 8 * x[t].sum[g]);
                }
                acc[t][half] = mul_add(vcvtq_f32_s32(sums), vmulq_n_f32(d, x[t].scale[g]), acc[t][half]);
                if (format == DRLLM_FORMAT_Q4_1) {
                    const float32x4_t m = load_f16x4(fields + R + 4 * half);
                    acc[t][half] = vaddq_f32(acc[t][half], vmulq_n_f32(m, x[t].ssum[g]));
                }
            }
        }
    }
    for (size_t t = 0; t < n_tokens; t++) {
        vst1q_f32(y + t * ldy, acc[t][0]);
        vst1q_f32(y + t * ldy + 4, acc[t][1]);
    }
}

/* Whether the scales leave no room for subnormal products; weights are F16. */
static bool is_ordinary(const struct drllm_q8_row *x, size_t n_tokens, size_t n_groups) {
    bool ordinary = true;
    for (size_t t = 0; t < n_tokens && ordinary; t++) {
        ordinary = all_reach(x[t].scale, n_groups, LEAST_BITS_76);
    }
    return ordinary;
}

INLINE void matmul_grouped(enum drllm_format format, const void *panels, size_t panel_bytes, size_t n_panels,
                           size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const uint8_t *w = panels;
    for (size_t p = 0; p < n_panels; p++, w += panel_bytes, y += R) {
        size_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS) {
            tile_grouped(format, w, n_groups, x + t, TILE_TOKENS, y + t * ldy, ldy);
        }
        if (t < n_tokens) {
            tile_grouped(format, w, n_groups, x + t, 1, y + t * ldy, ldy);
        }
    }
}

void drllm_matmul_q4_0_mve(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    if (is_ordinary(x, n_tokens, n_groups)) {
        matmul_grouped(DRLLM_FORMAT_Q4_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    } else {
        drllm_matmul_q4_0_ref(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    }
}

void drllm_matmul_q4_1_mve(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    if (is_ordinary(x, n_tokens, n_groups)) {
        matmul_grouped(DRLLM_FORMAT_Q4_1, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    } else {
        drllm_matmul_q4_1_ref(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    }
}

void drllm_matmul_q8_0_mve(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    if (is_ordinary(x, n_tokens, n_groups)) {
        matmul_grouped(DRLLM_FORMAT_Q8_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    } else {
        drllm_matmul_q8_0_ref(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
    }
}

/* Integers up to the last step, which is scalar. */
INLINE void tile_row(const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                     size_t ldy) {
    int32x4_t acc[TILE_TOKENS][2];
    for (size_t t = 0; t < n_tokens; t++) {
        acc[t][0] = acc[t][1] = vdupq_n_s32(0);
    }
    for (size_t g = 0; g < n_groups; g++, w += Q8_GROUP_BYTES) {
        const int8_t *in[TILE_TOKENS];
        int32_t dot[TILE_TOKENS][R];
        for (size_t t = 0; t < n_tokens; t++) {
            in[t] = x[t].q + g * DRLLM_GROUP;
        }
        dots_int8(w, in, n_tokens, dot);
        for (size_t t = 0; t < n_tokens; t++) {
            acc[t][0] = vaddq_s32(acc[t][0], vld1q_s32(dot[t]));
            acc[t][1] = vaddq_s32(acc[t][1], vld1q_s32(dot[t] + 4));
        }
    }
    float scales[R];
    memcpy(scales, w, sizeof scales);
    for (size_t t = 0; t < n_tokens; t++) {
        int32_t sums[R];
        vst1q_s32(sums, acc[t][0]);
        vst1q_s32(sums + 4, acc[t][1]);
        for (size_t row = 0; row < R; row++) {
            y[t * ldy + row] = (float)sums[row] * (scales[row] * x[t].scale[0]);
        }
    }
}

void drllm_matmul_q8c_mve(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                          const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const uint8_t *w = panels;
    for (size_t p = 0; p < n_panels; p++, w += panel_bytes, y += R) {
        size_t t = 0;
        for (; t + TILE_TOKENS <= n_tokens; t += TILE_TOKENS) {
            tile_row(w, n_groups, x + t, TILE_TOKENS, y + t * ldy, ldy);
        }
        if (t < n_tokens) {
            tile_row(w, n_groups, x + t, 1, y + t * ldy, ldy);
        }
    }
}

#else
typedef int drllm_matmul_mve_is_empty;
#endif
