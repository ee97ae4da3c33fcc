#include "quant/unpack.h"

#include "quant/matmul.h"

#include <string.h>

enum { R = DRLLM_PANEL_ROWS, STEP_BYTES = R * 4 };

/* pack_nibbles of pack.c the other way round. src: the row's first four bytes in the group. */
static void take_nibbles(const uint8_t *src, uint8_t qs[DRLLM_GROUP / 2]) {
    for (size_t i = 0; i < DRLLM_GROUP / 2; i++) {
        const size_t half = i / 8, j = i % 8; /* columns i and i + 16 */
        const uint8_t low = src[half * STEP_BYTES + j % 4], high = src[(half + 2) * STEP_BYTES + j % 4];
        qs[i] = (uint8_t)(j < 4 ? (low & 0x0F) | (high & 0x0F) << 4 : low >> 4 | (high & 0xF0));
    }
}

static void take_bytes(const uint8_t *src, uint8_t q[DRLLM_GROUP]) {
    for (size_t step = 0; step < DRLLM_GROUP / 4; step++) {
        memcpy(q + step * 4, src + step * STEP_BYTES, 4);
    }
}

/* Group after group as a block of the file's format. n_fields: its 16-bit numbers. */
static void dequantize_blocks(enum drllm_format format, const uint8_t *panel, size_t row, size_t cols, size_t n_fields,
                              float *out) {
    uint8_t block[2 * sizeof(uint16_t) + DRLLM_GROUP];
    const size_t group_bytes = n_fields * 2 * R + (format == DRLLM_FORMAT_Q8_0 ? R * DRLLM_GROUP : R * DRLLM_GROUP / 2);
    for (size_t at = 0; at < cols; at += DRLLM_GROUP, panel += group_bytes) {
        for (size_t field = 0; field < n_fields; field++) {
            memcpy(block + field * 2, panel + field * 2 * R + row * 2, 2);
        }
        const uint8_t *q = panel + n_fields * 2 * R + row * 4;
        if (format == DRLLM_FORMAT_Q8_0) {
            take_bytes(q, block + n_fields * 2);
        } else {
            take_nibbles(q, block + n_fields * 2);
        }
        drllm_dequantize_row(format, block, out + at, DRLLM_GROUP);
    }
}

static void dequantize_q8c(const uint8_t *panel, size_t panel_bytes, size_t row, size_t cols, float *out) {
    float scale;
    memcpy(&scale, panel + panel_bytes - (R - row) * sizeof scale, sizeof scale);
    for (size_t c = 0; c < cols; c++) {
        out[c] = scale * (float)(int8_t)panel[c / 4 * STEP_BYTES + row * 4 + c % 4];
    }
}

static void dequantize_floats(enum drllm_format format, const uint8_t *panel, size_t row, size_t cols, size_t width,
                              float *out) {
    for (size_t c = 0; c < cols; c++) {
        drllm_dequantize_row(format, panel + (c * R + row) * width, out + c, 1);
    }
}

void drllm_dequantize_packed_row(const struct drllm_matrix *matrix, size_t row, float *out) {
    const uint8_t *panel = (const uint8_t *)matrix->data + row / R * matrix->panel_bytes;
    const size_t cols = matrix->cols;
    switch (matrix->format) {
    case DRLLM_FORMAT_F32:
        dequantize_floats(matrix->format, panel, row % R, cols, sizeof(float), out);
        break;
    case DRLLM_FORMAT_F16:
    case DRLLM_FORMAT_BF16:
        dequantize_floats(matrix->format, panel, row % R, cols, sizeof(uint16_t), out);
        break;
    case DRLLM_FORMAT_Q4_0:
    case DRLLM_FORMAT_Q8_0:
        dequantize_blocks(matrix->format, panel, row % R, cols, 1, out);
        break;
    case DRLLM_FORMAT_Q4_1:
        dequantize_blocks(matrix->format, panel, row % R, cols, 2, out);
        break;
    case DRLLM_FORMAT_Q8C:
        dequantize_q8c(panel, matrix->panel_bytes, row % R, cols, out);
        break;
    case DRLLM_FORMAT_Q5_0:
    case DRLLM_FORMAT_Q5_1:
    case DRLLM_FORMAT_Q4_K:
    case DRLLM_FORMAT_Q5_K:
    case DRLLM_FORMAT_Q6_K:
    case DRLLM_FORMAT_I8:
    case DRLLM_FORMAT_QB4W: /* never packed */
        break;
    }
}
