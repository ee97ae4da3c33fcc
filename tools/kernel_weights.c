#include "tools/kernel_weights.h"

#include "platform/memory.h"
#include "tools/common.h"
#include "tools/random.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, PANELS = KERNEL_ROWS / DRLLM_PANEL_ROWS };

/* ---- Ours ---- */

/* Rows in the GGUF layout; for q8c int8 and the scales. */
static void make_rows(enum drllm_format format, size_t cols, unsigned char *rows, float *scales) {
    float *values = allocate(cols, sizeof *values);
    const size_t row_bytes = format == DRLLM_FORMAT_Q8C ? cols : drllm_format_row_bytes(format, cols);
    uint64_t random = cols;
    for (size_t i = 0; i < KERNEL_ROWS; i++) {
        for (size_t k = 0; k < cols; k++) {
            values[k] = (float)(random_uniform(&random) - 0.5);
        }
        if (format == DRLLM_FORMAT_Q8C) {
            (void)drllm_quantize_row_q8c(values, (int8_t *)rows + i * row_bytes, &scales[i], cols);
        } else {
            (void)drllm_quantize_row(format, values, rows + i * row_bytes, cols);
        }
    }
    free(values);
}

bool kernel_panels_make(struct kernel_panels *panels, enum drllm_format format, size_t cols) {
    *panels = (struct kernel_panels){format, cols, drllm_packed_bytes(format, DRLLM_PANEL_ROWS, cols), NULL};
    const size_t some = PANELS * panels->panel_bytes;
    if (panels->panel_bytes == 0 || some > KERNEL_WEIGHTS_BYTES) {
        return false;
    }
    panels->data = drllm_memory_allocate(KERNEL_WEIGHTS_BYTES, ALIGNMENT);
    if (panels->data == NULL) {
        return false;
    }
    unsigned char *rows = allocate(KERNEL_ROWS * cols, sizeof(float));
    float scales[KERNEL_ROWS];
    make_rows(format, cols, rows, scales);
    drllm_pack_panels(format, rows, format == DRLLM_FORMAT_Q8C ? scales : NULL, KERNEL_ROWS, cols, panels->data, 0,
                      PANELS);
    free(rows);
    for (size_t at = some; at < KERNEL_WEIGHTS_BYTES; at += some) {
        const size_t left = KERNEL_WEIGHTS_BYTES - at;
        memcpy(panels->data + at, panels->data, left < some ? left : some);
    }
    return true;
}

void kernel_panels_release(struct kernel_panels *panels) {
    drllm_memory_release(panels->data);
    panels->data = NULL;
}

size_t kernel_panels_most_rows(const struct kernel_panels *panels) {
    return KERNEL_WEIGHTS_BYTES / 2 / (PANELS * panels->panel_bytes) * KERNEL_ROWS;
}

size_t kernel_panels_copies(const struct kernel_panels *panels, size_t rows) {
    return KERNEL_WEIGHTS_BYTES / (rows / DRLLM_PANEL_ROWS * panels->panel_bytes);
}

struct drllm_matrix kernel_panels_matrix(const struct kernel_panels *panels, const struct drllm_kernel *kernel,
                                         size_t rows, size_t i) {
    return (struct drllm_matrix){.format = panels->format,
                                 .rows = rows,
                                 .cols = panels->cols,
                                 .kernel = kernel,
                                 .data = panels->data + i * (rows / DRLLM_PANEL_ROWS * panels->panel_bytes),
                                 .panel_bytes = panels->panel_bytes};
}

/* ---- XNNPACK's ---- */

static size_t xnn_row_bytes(enum drllm_format format, size_t cols) {
    return format == DRLLM_FORMAT_QB4W ? cols / 2 : cols;
}

size_t kernel_xnn_most_rows(enum drllm_format format, size_t cols) {
    return KERNEL_WEIGHTS_BYTES / 2 / xnn_row_bytes(format, cols) / KERNEL_ROWS * KERNEL_ROWS;
}

static void *keep(void *user, size_t size, size_t alignment) {
    struct kernel_xnn_copy *copy = user;
    if (copy->n_memory == sizeof copy->memory / sizeof copy->memory[0]) {
        return NULL;
    }
    void *memory = drllm_memory_allocate(size, alignment);
    copy->memory[copy->n_memory] = memory;
    copy->n_memory += memory != NULL;
    return memory;
}

struct packing {
    struct kernel_xnn *xnn;
    enum drllm_format format;
    const uint8_t *values;
    const float *scales;          /* of q8c */
    const uint16_t *group_scales; /* of qb4w */
};

static void pack_copy(void *context, size_t worker, size_t index) {
    (void)worker;
    const struct packing *packing = context;
    const struct kernel_xnn *xnn = packing->xnn;
    struct kernel_xnn_copy *copy = &xnn->copies[index];
    copy->status = packing->format == DRLLM_FORMAT_QB4W
                       ? drllm_xnn_pack_qb4w(packing->values, packing->group_scales, xnn->rows, xnn->cols, keep, copy,
                                             &copy->weights)
                       : drllm_xnn_pack_q8c((const int8_t *)packing->values, packing->scales, xnn->rows, xnn->cols,
                                            keep, copy, &copy->weights);
}

static enum drllm_xnn_status make_operators(struct kernel_xnn *xnn) {
    enum drllm_xnn_status status = DRLLM_XNN_OK;
    void *scratch = NULL;
    for (size_t i = 0; i < xnn->n_copies && status == DRLLM_XNN_OK; i++) {
        struct kernel_xnn_copy *copy = &xnn->copies[i];
        status = copy->status;
        if (status == DRLLM_XNN_OK) {
            const size_t size = drllm_xnn_op_scratch_bytes(copy->weights);
            scratch = scratch == NULL && size != 0 ? allocate_bytes(size) : scratch;
            status = drllm_xnn_op_create(&copy->op, copy->weights, xnn->rows, scratch);
        }
    }
    free(scratch);
    return status;
}

enum drllm_xnn_status kernel_xnn_make(struct kernel_xnn *xnn, enum drllm_format format, size_t rows, size_t cols,
                                      bool one_copy, struct drllm_threads *threads) {
    const size_t row_bytes = xnn_row_bytes(format, cols);
    const size_t n_groups = rows * (cols / DRLLM_GROUP);
    *xnn = (struct kernel_xnn){.rows = rows, .cols = cols};
    xnn->n_copies = one_copy ? 1 : KERNEL_WEIGHTS_BYTES / (rows * row_bytes);
    xnn->copies = allocate(xnn->n_copies, sizeof *xnn->copies);
    memset(xnn->copies, 0, xnn->n_copies * sizeof *xnn->copies);
    uint8_t *values = allocate(rows, row_bytes);
    float *scales = allocate(rows, sizeof *scales);
    uint16_t *group_scales = allocate(n_groups, sizeof *group_scales);
    uint64_t random = rows;
    for (size_t i = 0; i < rows * row_bytes; i++) {
        values[i] = (uint8_t)(random_next(&random) >> 32);
        values[i] = values[i] == 0x80 ? 0 : values[i]; /* -128 is no value of q8c */
    }
    for (size_t i = 0; i < rows; i++) {
        scales[i] = 0x1p-7f;
    }
    for (size_t i = 0; i < n_groups; i++) {
        group_scales[i] = 0x3c00; /* 2^-7 in bf16 */
    }
    struct packing packing = {xnn, format, values, scales, group_scales};
    drllm_threads_run(threads, pack_copy, &packing, xnn->n_copies);
    free(values);
    free(scales);
    free(group_scales);
    const enum drllm_xnn_status status = make_operators(xnn);
    xnn->bytes = status == DRLLM_XNN_OK ? drllm_xnn_weights_bytes(xnn->copies[0].weights) : 0;
    return status;
}

void kernel_xnn_release(struct kernel_xnn *xnn) {
    for (size_t i = 0; i < xnn->n_copies; i++) {
        drllm_xnn_op_destroy(&xnn->copies[i].op);
        for (size_t k = 0; k < xnn->copies[i].n_memory; k++) {
            drllm_memory_release(xnn->copies[i].memory[k]);
        }
    }
    free(xnn->copies);
    *xnn = (struct kernel_xnn){0};
}

/* ---- Activations ---- */

bool kernel_input_make(struct kernel_input *input, size_t n_tokens, size_t cols, const struct drllm_vec_ops *vec,
                       bool with_xnn, struct drllm_threads *threads) {
    const unsigned quantisations = DRLLM_QUANT_GROUP | DRLLM_QUANT_ROW;
    const size_t bytes = drllm_activations_bytes(n_tokens, cols, quantisations);
    *input = (struct kernel_input){.cols = cols, .n_tokens = n_tokens};
    if (n_tokens > SIZE_MAX / 64 / cols || bytes == SIZE_MAX) {
        return false;
    }
    input->x = drllm_memory_allocate(n_tokens * cols * sizeof(float) + DRLLM_XNN_EXTRA_BYTES, ALIGNMENT);
    input->memory = drllm_memory_allocate(bytes, ALIGNMENT);
    input->tail = drllm_memory_allocate(n_tokens * DRLLM_PANEL_ROWS * sizeof(float), ALIGNMENT);
    if (input->x == NULL || input->memory == NULL || input->tail == NULL) {
        return false;
    }
    uint64_t random = n_tokens;
    for (size_t i = 0; i < n_tokens * cols; i++) {
        input->x[i] = (float)(random_uniform(&random) - 0.5);
    }
    drllm_activations_init(&input->activations, input->memory, n_tokens, cols, quantisations);
    input->activations.x = input->x;
    input->activations.ldx = cols;
    drllm_activations_quantize(&input->activations, vec, 0, n_tokens);
    if (!with_xnn) {
        return true;
    }
    input->xnn_memory = drllm_memory_allocate(drllm_xnn_input_bytes(n_tokens, cols), ALIGNMENT);
    input->has_xnn = true;
    return input->xnn_memory != NULL &&
           drllm_xnn_input_create(&input->xnn, input->xnn_memory, n_tokens, cols) == DRLLM_XNN_OK &&
           drllm_xnn_input_fill(&input->xnn, input->x, cols, n_tokens, cols, threads) == DRLLM_XNN_OK;
}

void kernel_input_release(struct kernel_input *input) {
    if (input->has_xnn) {
        drllm_xnn_input_destroy(&input->xnn);
    }
    drllm_memory_release(input->xnn_memory);
    drllm_memory_release(input->x);
    drllm_memory_release(input->memory);
    drllm_memory_release(input->tail);
    *input = (struct kernel_input){0};
}
