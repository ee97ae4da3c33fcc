/* Matrix products by XNNPACK: int8 per output channel (q8c) and int4 per group (qb4w), activations quantised per
 * row.
 *
 * y[t][r] = sx[t] * sum over i of w[r][i] * (qx[t][i] - zx[t]), where the row x[t] ~ sx[t] * (qx[t] - zx[t]) with qx
 * in -128..127 and zx, sx chosen from the row's least and greatest value and 0 (XNNPACK's qd8). x must be finite.
 *
 * - A row's result does not depend on the other rows, on how many there are, nor on the threads: bit for bit. On
 *   arm64 with dotprod and without i8mm this asks for an XNNPACK without its assembly (XNNPACK_ENABLE_ASSEMBLY=OFF):
 *   the assembly kernel for 4 rows multiplies the scales in another order than the kernel for 1 row.
 * - Over processors q8c is the same bit for bit, since the sum is exact: y = ((float)sum * sx) * scale. qb4w is not:
 *   kernels add the groups in different ways.
 * - Results below FLT_MIN are flushed to 0: XNNPACK switches denormals off while it runs.
 *
 * What is shared: weights are packed once, immutable, and may be used by any number of operators at a time.
 * Operators and inputs belong to one session: one thread at a time. XNNPACK allocates its operator descriptors (2 KB
 * each) itself; everything else comes from the caller.
 *
 * Built with DRLLM_WITH_XNNPACK=0, every function is there, and those that need XNNPACK return
 * DRLLM_XNN_UNAVAILABLE. */
#ifndef DRLLM_QUANT_MATMUL_XNNPACK_H
#define DRLLM_QUANT_MATMUL_XNNPACK_H

#include "quant/formats.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct drllm_threads;
struct xnn_operator;

enum drllm_xnn_status {
    DRLLM_XNN_OK = 0,
    DRLLM_XNN_UNAVAILABLE, /* built without XNNPACK */
    DRLLM_XNN_OTHER_MASK,  /* XNNPACK runs in this process already, with other CPU features */
    DRLLM_XNN_UNSUPPORTED, /* XNNPACK has no kernels for this processor, or could not start */
    DRLLM_XNN_ARGUMENT,    /* a shape, a scale or a size that is not allowed */
    DRLLM_XNN_MEMORY,      /* the callback's or XNNPACK's own */
    DRLLM_XNN_FAILED       /* XNNPACK refused for another reason */
};

/* Bytes that XNNPACK may read behind the last row of x: they must be mapped, their values do not matter. */
enum { DRLLM_XNN_EXTRA_BYTES = 16 };

/* Whether this build has XNNPACK. */
bool drllm_xnn_available(void);

/* Start XNNPACK with the CPU features of `mask` (drllm_cpu_detect() & what the user allows). To be called before any
 * other function below that needs XNNPACK; thread-safe. XNNPACK detects the processor once for the whole process and
 * has no way to be told otherwise: this is the one process-global state of the library, and a later start with
 * another mask is DRLLM_XNN_OTHER_MASK. */
enum drllm_xnn_status drllm_xnn_start(uint64_t mask);

/* ---- Weights ---- */

/* Row lengths that can be run. q8c: 1..65536, since the sums are int32. qb4w: the same, and an even number of groups
 * of 32. */
bool drllm_xnn_q8c_fits(size_t cols);
bool drllm_xnn_qb4w_fits(size_t cols);

/* Memory for the packed weights, which only XNNPACK knows the size of: `size` bytes aligned to `alignment` (64), or
 * NULL. Two calls a matrix. The memory is the caller's to free, when no operator uses the weights any more; after a
 * failure as well. */
typedef void *(*drllm_xnn_allocate_fn)(void *user, size_t size, size_t alignment);

struct drllm_xnn_weights;

/* Pack a matrix; the arguments are not needed afterwards. Thread-safe, so that threads can pack several matrices at
 * once. q: int8 [rows][cols] in -127..127. scales: [rows], finite, 0 or more. */
enum drllm_xnn_status drllm_xnn_pack_q8c(const int8_t *q, const float *scales, size_t rows, size_t cols,
                                         drllm_xnn_allocate_fn allocate, void *user,
                                         struct drllm_xnn_weights **weights);
/* q: [rows][cols / 2], column 2i in the low nibble of byte i, w = scale * (q - 8). scales: bf16 [rows][cols / 32],
 * normal and above 0. */
enum drllm_xnn_status drllm_xnn_pack_qb4w(const uint8_t *q, const uint16_t *scales, size_t rows, size_t cols,
                                          drllm_xnn_allocate_fn allocate, void *user,
                                          struct drllm_xnn_weights **weights);

/* Bytes of the packed weights, all of which a product reads. */
size_t drllm_xnn_weights_bytes(const struct drllm_xnn_weights *weights);

/* One row to the qb4w input above: q [cols / 2], scales [cols / 32]. Built with or without XNNPACK, thread-safe, and
 * the same on every machine. False for weights that are NaN or infinite, and for cols that are not whole groups.
 *
 * From floats: per group the scale and the values with the least squared error among a fixed set of candidates. */
bool drllm_xnn_qb4w_row(const float *src, uint8_t *q, uint16_t *scales, size_t cols);
/* From Q4_0: a block keeps its values exactly if its scale is above 0, or if it is below and no value is 0 (-8 times
 * such a scale would be +8 here, which does not exist); the scale is rounded to bf16. The other blocks are quantised
 * anew, as by drllm_xnn_qb4w_row. */
bool drllm_xnn_qb4w_row_from_q4_0(const struct drllm_block_q4_0 *blocks, uint8_t *q, uint16_t *scales, size_t cols);

/* ---- Input: quantised activations, shared by the operators that read them ---- */

struct drllm_xnn_input {
    int8_t *q;    /* [n_tokens][stride of cols] */
    void *params; /* zero point and scale of every row, and spare entries behind them */
    struct xnn_operator *convert;
    size_t max_tokens;
    size_t max_cols;
    size_t n_tokens; /* what it holds */
    size_t cols;
};

/* Memory for inputs of up to max_tokens rows of up to max_cols values; 0 on overflow. */
size_t drllm_xnn_input_bytes(size_t max_tokens, size_t max_cols);
/* `memory`: 64-byte aligned, of that size, owned by the caller until after drllm_xnn_input_destroy. */
enum drllm_xnn_status drllm_xnn_input_create(struct drllm_xnn_input *input, void *memory, size_t max_tokens,
                                             size_t max_cols);
/* Also for an input that is all zeros or whose creation failed. */
void drllm_xnn_input_destroy(struct drllm_xnn_input *input);

/* Quantise x [n_tokens][ldx] (cols <= ldx), to be run with any number of operators of that many cols. threads may be
 * NULL. x must be followed by DRLLM_XNN_EXTRA_BYTES. */
enum drllm_xnn_status drllm_xnn_input_fill(struct drllm_xnn_input *input, const float *x, size_t ldx, size_t n_tokens,
                                           size_t cols, struct drllm_threads *threads);

/* ---- Operators ---- */

struct drllm_xnn_op {
    struct xnn_operator *native;
    const struct drllm_xnn_weights *weights;
    size_t ldy;
};

/* Scratch memory that drllm_xnn_op_create needs for these weights while it runs: 0 for q8c, 2 bytes a group for
 * qb4w, whose scales XNNPACK checks before it looks for packed weights. 2-byte aligned; may be shared by all
 * creations of a session. */
size_t drllm_xnn_op_scratch_bytes(const struct drllm_xnn_weights *weights);

/* Cheap: nothing is packed. The weights must outlive it. ldy >= rows: the distance between output rows. */
enum drllm_xnn_status drllm_xnn_op_create(struct drllm_xnn_op *op, const struct drllm_xnn_weights *weights, size_t ldy,
                                          void *scratch);
/* Also for an operator that is all zeros or whose creation failed. */
void drllm_xnn_op_destroy(struct drllm_xnn_op *op);

/* y [n_tokens of the input][ldy], ldy as in the creation (of one row it does not matter). The input's cols must be the
 * weights'. threads may be NULL; nothing is written but [rows] of each output row. */
enum drllm_xnn_status drllm_xnn_op_run(struct drllm_xnn_op *op, const struct drllm_xnn_input *input, float *y,
                                       size_t ldy, struct drllm_threads *threads);

#endif
