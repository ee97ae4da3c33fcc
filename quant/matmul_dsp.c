/* Products for the DSP extension of Armv7E-M and Armv8-M (Cortex-M4, M7, M33): SMLAD adds two products of 16-bit halves.
 * A word holds four columns of a row; its bytes 0 and 2 go into one register, 1 and 3 into another, and the activations
 * are spread alike once for the 8 rows. */
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#include "quant/half.h"
#include "quant/inline.h"
#include "quant/matmul_kernels.h"

#include <arm_acle.h>

enum {
    R = DRLLM_PANEL_ROWS,
    WORDS = DRLLM_GROUP / 4,
    Q4_STEP_BYTES = 32,
    Q4_GROUP_BYTES = R * DRLLM_GROUP / 2,
    Q8_STEP_BYTES = 4 * R,
    Q8_GROUP_BYTES = R * DRLLM_GROUP
};

INLINE uint32_t load_word(const void *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Bytes 0 and 2, with their signs. */
INLINE int16x2_t even_bytes(uint32_t word) {
    return __sxtb16((int8x4_t)word);
}

/* The processor's own conversion, exact as that of half.h. */
INLINE float load_f16(const uint8_t *p) {
    float value;
    uint16_t half;
    memcpy(&half, p, sizeof half);
    __asm__("vmov %0, %1\n\tvcvtb.f32.f16 %0, %0" : "=t"(value) : "r"((uint32_t)half));
    return value;
}

/* A group of activations: of each word bytes 0 and 2, then bytes 1 and 3. */
INLINE void spread(const int8_t *x, int16x2_t out[2 * WORDS]) {
    for (size_t i = 0; i < WORDS; i++) {
        const uint32_t word = load_word(x + 4 * i);
        out[2 * i] = even_bytes(word);
        out[2 * i + 1] = even_bytes(word >> 8 | word << 24);
    }
}

INLINE void dots_int4(const uint8_t *q, const int8_t *x, int32_t dot[R]) {
    int16x2_t in[2 * WORDS];
    spread(x, in);
    const uint32_t mask = 0x000f000fu;
    for (size_t row = 0; row < R; row++) {
        int32_t total = 0;
        for (size_t pair = 0; pair < 4; pair++) {
            const uint32_t both = load_word(q + pair * Q4_STEP_BYTES + row * 4);
            total = __smlad((int16x2_t)(both & mask), in[4 * pair], total);
            total = __smlad((int16x2_t)(both >> 8 & mask), in[4 * pair + 1], total);
            total = __smlad((int16x2_t)(both >> 4 & mask), in[4 * pair + 2], total);
            total = __smlad((int16x2_t)(both >> 12 & mask), in[4 * pair + 3], total);
        }
        dot[row] = total;
    }
}

INLINE void dots_int8(const uint8_t *q, const int8_t *x, int32_t dot[R]) {
    int16x2_t in[2 * WORDS];
    spread(x, in);
    for (size_t row = 0; row < R; row++) {
        int32_t total = 0;
        for (size_t step = 0; step < WORDS; step++) {
            const uint32_t word = load_word(q + step * Q8_STEP_BYTES + row * 4);
            total = __smlad(even_bytes(word), in[2 * step], total);
            total = __smlad(even_bytes(word >> 8 | word << 24), in[2 * step + 1], total);
        }
        dot[row] = total;
    }
}

/* `format` is a constant. */
INLINE void matmul_grouped(enum drllm_format format, const void *panels, size_t panel_bytes, size_t n_panels,
                           size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const size_t field_bytes = (format == DRLLM_FORMAT_Q4_1 ? 4 : 2) * R;
    const size_t group_bytes = field_bytes + (format == DRLLM_FORMAT_Q8_0 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES);
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += group_bytes) {
                int32_t dot[R];
                if (format == DRLLM_FORMAT_Q8_0) {
                    dots_int8(w + field_bytes, x[t].q + g * DRLLM_GROUP, dot);
                } else {
                    dots_int4(w + field_bytes, x[t].q + g * DRLLM_GROUP, dot);
                }
                for (size_t row = 0; row < R; row++) {
                    const float scale = load_f16(w + 2 * row) * x[t].scale[g];
                    const int32_t sum = format == DRLLM_FORMAT_Q4_0 ? dot[row] - 8 * x[t].sum[g] : dot[row];
                    acc[row] += (float)sum * scale;
                    if (format == DRLLM_FORMAT_Q4_1) {
                        acc[row] += load_f16(w + 2 * R + 2 * row) * x[t].ssum[g];
                    }
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

void drllm_matmul_q4_0_dsp(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q4_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q4_1_dsp(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q4_1, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8_0_dsp(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    matmul_grouped(DRLLM_FORMAT_Q8_0, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);
}

void drllm_matmul_q8c_dsp(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                          const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            int32_t acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += Q8_GROUP_BYTES) {
                int32_t dot[R];
                dots_int8(w, x[t].q + g * DRLLM_GROUP, dot);
                for (size_t row = 0; row < R; row++) {
                    acc[row] += dot[row];
                }
            }
            float scales[R];
            memcpy(scales, w, sizeof scales);
            for (size_t row = 0; row < R; row++) {
                y[t * ldy + p * R + row] = (float)acc[row] * (scales[row] * x[t].scale[0]);
            }
        }
    }
}

#else
typedef int drllm_matmul_dsp_is_empty;
#endif
