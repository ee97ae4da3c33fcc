/* The portable kernels. They define the value of every product; see matmul.h for the rules and the packed layout. */
#include "quant/half.h"
#include "quant/matmul_kernels.h"

enum {
    R = DRLLM_PANEL_ROWS,
    Q4_STEP_BYTES = 32,
    Q4_GROUP_BYTES = R * DRLLM_GROUP / 2,
    Q8_GROUP_BYTES = R * DRLLM_GROUP
};

/* Packed fields need not be aligned for their type. */
static uint16_t load_u16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* sum over the group of q_weight * q_activation for each of the panel's 8 rows, the weights as they are stored
 * (0..15). */
static void group_dot_q4(const uint8_t *q, const int8_t *x, int32_t dot[R]) {
    for (size_t row = 0; row < R; row++) {
        int32_t total = 0;
        for (size_t pair = 0; pair < 4; pair++) {
            for (size_t j = 0; j < 4; j++) {
                const uint8_t both = q[pair * Q4_STEP_BYTES + row * 4 + j];
                total += (both & 15) * x[pair * 8 + j] + (both >> 4) * x[pair * 8 + 4 + j];
            }
        }
        dot[row] = total;
    }
}

static void group_dot_q8(const int8_t *q, const int8_t *x, int32_t dot[R]) {
    for (size_t row = 0; row < R; row++) {
        int32_t total = 0;
        for (size_t step = 0; step < DRLLM_GROUP / 4; step++) {
            for (size_t j = 0; j < 4; j++) {
                total += q[step * 4 * R + row * 4 + j] * x[step * 4 + j];
            }
        }
        dot[row] = total;
    }
}

void drllm_matmul_q4_0_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += 2 * R + Q4_GROUP_BYTES) {
                int32_t dot[R];
                group_dot_q4(w + 2 * R, x[t].q + g * DRLLM_GROUP, dot);
                for (size_t row = 0; row < R; row++) {
                    const float scale = drllm_f16_to_f32(load_u16(w + 2 * row)) * x[t].scale[g];
                    acc[row] += (float)(dot[row] - 8 * x[t].sum[g]) * scale;
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

void drllm_matmul_q4_1_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += 4 * R + Q4_GROUP_BYTES) {
                int32_t dot[R];
                group_dot_q4(w + 4 * R, x[t].q + g * DRLLM_GROUP, dot);
                for (size_t row = 0; row < R; row++) {
                    const float scale = drllm_f16_to_f32(load_u16(w + 2 * row)) * x[t].scale[g];
                    acc[row] += (float)dot[row] * scale;
                    acc[row] += drllm_f16_to_f32(load_u16(w + 2 * R + 2 * row)) * x[t].ssum[g];
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

void drllm_matmul_q8_0_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += 2 * R + Q8_GROUP_BYTES) {
                int32_t dot[R];
                group_dot_q8((const int8_t *)w + 2 * R, x[t].q + g * DRLLM_GROUP, dot);
                for (size_t row = 0; row < R; row++) {
                    const float scale = drllm_f16_to_f32(load_u16(w + 2 * row)) * x[t].scale[g];
                    acc[row] += (float)dot[row] * scale;
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

/* |q| <= 127 on both sides, so int32 holds the sum of up to 133,000 columns; the loader refuses more. */
void drllm_matmul_q8c_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                          const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            int32_t acc[R] = {0};
            for (size_t g = 0; g < n_groups; g++, w += Q8_GROUP_BYTES) {
                int32_t dot[R];
                group_dot_q8((const int8_t *)w, x[t].q + g * DRLLM_GROUP, dot);
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

void drllm_matmul_f32_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                          size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t c = 0; c < cols; c++, w += sizeof acc) {
                float weights[R];
                memcpy(weights, w, sizeof weights);
                for (size_t row = 0; row < R; row++) {
                    acc[row] += weights[row] * x[t * ldx + c];
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

static inline void matmul_half(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                               size_t ldx, size_t n_tokens, float *y, size_t ldy, float (*widen)(uint16_t)) {
    for (size_t p = 0; p < n_panels; p++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;
            float acc[R] = {0};
            for (size_t c = 0; c < cols; c++, w += 2 * R) {
                for (size_t row = 0; row < R; row++) {
                    acc[row] += widen(load_u16(w + 2 * row)) * x[t * ldx + c];
                }
            }
            memcpy(y + t * ldy + p * R, acc, sizeof acc);
        }
    }
}

void drllm_matmul_f16_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                          size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    matmul_half(panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy, drllm_f16_to_f32);
}

void drllm_matmul_bf16_ref(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, const float *x,
                           size_t ldx, size_t n_tokens, float *y, size_t ldy) {
    matmul_half(panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy, drllm_bf16_to_f32);
}
