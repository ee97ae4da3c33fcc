/* Weights to run products on: of one format and row length, so many different copies that no cache holds them, or one
 * that a cache does hold. Values are random; speed does not depend on them. */
#ifndef DRLLM_TOOLS_KERNEL_WEIGHTS_H
#define DRLLM_TOOLS_KERNEL_WEIGHTS_H

#include "platform/threads.h"
#include "quant/matmul.h"
#include "quant/matmul_xnnpack.h"
#include "quant/vec.h"

enum {
    KERNEL_WEIGHTS_BYTES = 1 << 28, /* of all copies, as in measure_bandwidth; of one matrix at most half of it */
    KERNEL_ROWS = 32                /* rows come in multiples of this */
};

/* Ours: a long run of packed panels, any part of which is a matrix. */
struct kernel_panels {
    enum drllm_format format;
    size_t cols;
    size_t panel_bytes;
    unsigned char *data;
};
/* For any format that our kernels run. False without memory. */
bool kernel_panels_make(struct kernel_panels *panels, enum drllm_format format, size_t cols);
void kernel_panels_release(struct kernel_panels *panels);
size_t kernel_panels_most_rows(const struct kernel_panels *panels);
size_t kernel_panels_copies(const struct kernel_panels *panels, size_t rows);
/* Copy number i of a matrix of so many rows. */
struct drllm_matrix kernel_panels_matrix(const struct kernel_panels *panels, const struct drllm_kernel *kernel,
                                         size_t rows, size_t i);

/* XNNPACK's: matrices that it has packed, each with an operator. */
struct kernel_xnn {
    size_t rows, cols;
    size_t n_copies;
    size_t bytes; /* of one */
    struct kernel_xnn_copy *copies;
};
struct kernel_xnn_copy {
    void *memory[2];
    size_t n_memory;
    struct drllm_xnn_weights *weights;
    struct drllm_xnn_op op;
    enum drllm_xnn_status status;
};
/* Rows of a format (q8c, qb4w) that may be asked for at most. */
size_t kernel_xnn_most_rows(enum drllm_format format, size_t cols);
enum drllm_xnn_status kernel_xnn_make(struct kernel_xnn *xnn, enum drllm_format format, size_t rows, size_t cols,
                                      bool one_copy, struct drllm_threads *threads);
void kernel_xnn_release(struct kernel_xnn *xnn); /* also after a failed make */

/* Activations of up to n_tokens rows, quantised in every way, and room for the results. */
struct kernel_input {
    size_t cols, n_tokens;
    float *x;
    void *memory, *xnn_memory;
    float *tail;
    struct drllm_activations activations;
    struct drllm_xnn_input xnn;
    bool has_xnn;
};
/* False without memory or if XNNPACK, where it is asked for, fails. */
bool kernel_input_make(struct kernel_input *input, size_t n_tokens, size_t cols, const struct drllm_vec_ops *vec,
                       bool with_xnn, struct drllm_threads *threads);
void kernel_input_release(struct kernel_input *input); /* also after a failed make */

#endif
