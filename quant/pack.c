/* Weights from the rows of a file into the panels that our kernels read; matmul.h describes the layout. Loading a model
 * is mostly this, so bytes move by whole words. */
#include "quant/matmul.h"

#include <string.h>

enum {
    R = DRLLM_PANEL_ROWS,
    STEP_BYTES = R * 4,
    Q4_GROUP_BYTES = R * DRLLM_GROUP / 2,
    Q8_GROUP_BYTES = R * DRLLM_GROUP
};

/* Bytes of a panel of 8 rows; 0 on overflow or for a format or a number of columns that is never packed. */
static size_t panel_bytes_of(enum drllm_format format, size_t cols) {
    size_t unit = DRLLM_GROUP; /* columns that unit_bytes of a panel hold */
    size_t unit_bytes = 0;
    size_t extra = 0;
    switch (format) {
    case DRLLM_FORMAT_F32:
        unit = 1;
        unit_bytes = R * sizeof(float);
        break;
    case DRLLM_FORMAT_F16:
    case DRLLM_FORMAT_BF16:
        unit = 1;
        unit_bytes = R * sizeof(uint16_t);
        break;
    case DRLLM_FORMAT_Q4_0:
        unit_bytes = 2 * R + Q4_GROUP_BYTES;
        break;
    case DRLLM_FORMAT_Q4_1:
        unit_bytes = 4 * R + Q4_GROUP_BYTES;
        break;
    case DRLLM_FORMAT_Q8_0:
        unit_bytes = 2 * R + Q8_GROUP_BYTES;
        break;
    case DRLLM_FORMAT_Q8C:
        unit_bytes = Q8_GROUP_BYTES;
        extra = R * sizeof(float);
        break;
    case DRLLM_FORMAT_Q5_0:
    case DRLLM_FORMAT_Q5_1:
    case DRLLM_FORMAT_Q4_K:
    case DRLLM_FORMAT_Q5_K:
    case DRLLM_FORMAT_Q6_K:
    case DRLLM_FORMAT_I8:
    case DRLLM_FORMAT_QB4W:
        break;
    }
    const bool padded = format == DRLLM_FORMAT_Q8C;
    if (cols == 0 || unit_bytes == 0 || (cols % unit != 0 && !padded)) {
        return 0;
    }
    const size_t n_units = cols / unit + (cols % unit != 0);
    return n_units <= (SIZE_MAX - extra) / unit_bytes ? n_units * unit_bytes + extra : 0;
}

size_t drllm_packed_bytes(enum drllm_format format, size_t rows, size_t cols) {
    const size_t panel_bytes = panel_bytes_of(format, cols);
    const size_t n_panels = rows / R + (rows % R != 0);
    return panel_bytes != 0 && n_panels <= SIZE_MAX / panel_bytes ? n_panels * panel_bytes : 0;
}

/* One row's group of a q4 block: byte i of qs holds columns i and i + 16. Four columns move at once. */
static inline void pack_nibbles(const uint8_t *restrict qs, uint8_t *restrict dst) {
    for (size_t half = 0; half < 2; half++) { /* columns half*8 .. half*8+7, and those + 16 */
        const uint32_t mask = 0x0f0f0f0fu;
        uint32_t left;
        uint32_t right;
        memcpy(&left, qs + half * 8, sizeof left);
        memcpy(&right, qs + half * 8 + 4, sizeof right);
        const uint32_t low = (left & mask) | (right & mask) << 4;
        const uint32_t high = (left >> 4 & mask) | (right & ~mask);
        memcpy(dst + half * STEP_BYTES, &low, sizeof low);
        memcpy(dst + (half + 2) * STEP_BYTES, &high, sizeof high);
    }
}

static inline void pack_bytes(const uint8_t *restrict q, uint8_t *restrict dst) {
    for (size_t step = 0; step < DRLLM_GROUP / 4; step++) {
        memcpy(dst + step * STEP_BYTES, q + step * 4, 4);
    }
}

/* The panels of group formats, whose blocks have n_fields 16-bit numbers in front of the weights. */
static inline void pack_groups(const uint8_t *restrict src, size_t n_groups, size_t n_fields, size_t block_bytes,
                               size_t group_bytes, void (*pack_group)(const uint8_t *restrict, uint8_t *restrict),
                               size_t n_rows, uint8_t *restrict dst) {
    const size_t row_bytes = n_groups * block_bytes;
    for (size_t g = 0; g < n_groups; g++, src += block_bytes, dst += n_fields * 2 * R + group_bytes) {
        for (size_t row = 0; row < n_rows; row++) {
            const uint8_t *block = src + row * row_bytes;
            for (size_t field = 0; field < n_fields; field++) {
                memcpy(dst + field * 2 * R + row * 2, block + field * 2, 2);
            }
            pack_group(block + n_fields * 2, dst + n_fields * 2 * R + row * 4);
        }
    }
}

static void pack_q4_0(const uint8_t *src, size_t cols, size_t n_rows, uint8_t *dst) {
    pack_groups(src, cols / DRLLM_GROUP, 1, sizeof(struct drllm_block_q4_0), Q4_GROUP_BYTES, pack_nibbles, n_rows, dst);
}

static void pack_q4_1(const uint8_t *src, size_t cols, size_t n_rows, uint8_t *dst) {
    pack_groups(src, cols / DRLLM_GROUP, 2, sizeof(struct drllm_block_q4_1), Q4_GROUP_BYTES, pack_nibbles, n_rows, dst);
}

static void pack_q8_0(const uint8_t *src, size_t cols, size_t n_rows, uint8_t *dst) {
    pack_groups(src, cols / DRLLM_GROUP, 1, sizeof(struct drllm_block_q8_0), Q8_GROUP_BYTES, pack_bytes, n_rows, dst);
}

static void pack_q8c(const uint8_t *restrict src, const float *scales, size_t cols, size_t n_rows,
                     uint8_t *restrict dst) {
    const size_t n_groups = cols / DRLLM_GROUP;
    const size_t rest = cols % DRLLM_GROUP;
    for (size_t g = 0; g < n_groups; g++, dst += Q8_GROUP_BYTES) {
        for (size_t row = 0; row < n_rows; row++) {
            pack_bytes(src + row * cols + g * DRLLM_GROUP, dst + row * 4);
        }
    }
    if (rest != 0) {
        for (size_t row = 0; row < n_rows; row++) {
            uint8_t padded[DRLLM_GROUP] = {0};
            memcpy(padded, src + row * cols + n_groups * DRLLM_GROUP, rest);
            pack_bytes(padded, dst + row * 4);
        }
        dst += Q8_GROUP_BYTES;
    }
    memcpy(dst, scales, n_rows * sizeof *scales);
}

static inline void pack_floats(const uint8_t *restrict src, size_t width, size_t cols, size_t n_rows,
                               uint8_t *restrict dst) {
    for (size_t c = 0; c < cols; c++) {
        for (size_t row = 0; row < n_rows; row++) {
            memcpy(dst + (c * R + row) * width, src + (row * cols + c) * width, width);
        }
    }
}

void drllm_pack_panels(enum drllm_format format, const void *src, const float *scales, size_t rows, size_t cols,
                       void *dst, size_t first_panel, size_t n_panels) {
    const size_t panel_bytes = panel_bytes_of(format, cols);
    const size_t row_bytes = format == DRLLM_FORMAT_Q8C ? cols : drllm_format_row_bytes(format, cols);
    for (size_t p = first_panel; panel_bytes != 0 && p < first_panel + n_panels; p++) {
        const uint8_t *from = (const uint8_t *)src + p * R * row_bytes;
        uint8_t *to = (uint8_t *)dst + p * panel_bytes;
        const size_t n_rows = rows - p * R < R ? rows - p * R : R;
        if (n_rows < R) {
            memset(to, 0, panel_bytes);
        }
        switch (format) {
        case DRLLM_FORMAT_F32:
            pack_floats(from, sizeof(float), cols, n_rows, to);
            break;
        case DRLLM_FORMAT_F16:
        case DRLLM_FORMAT_BF16:
            pack_floats(from, sizeof(uint16_t), cols, n_rows, to);
            break;
        case DRLLM_FORMAT_Q4_0:
            pack_q4_0(from, cols, n_rows, to);
            break;
        case DRLLM_FORMAT_Q4_1:
            pack_q4_1(from, cols, n_rows, to);
            break;
        case DRLLM_FORMAT_Q8_0:
            pack_q8_0(from, cols, n_rows, to);
            break;
        case DRLLM_FORMAT_Q8C:
            pack_q8c(from, scales + p * R, cols, n_rows, to);
            break;
        case DRLLM_FORMAT_Q5_0:
        case DRLLM_FORMAT_Q5_1:
        case DRLLM_FORMAT_Q4_K:
        case DRLLM_FORMAT_Q5_K:
        case DRLLM_FORMAT_Q6_K:
        case DRLLM_FORMAT_I8:
        case DRLLM_FORMAT_QB4W:
            break;
        }
    }
}
