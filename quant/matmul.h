/* Matrix products y = x * W^T of packed weights W (rows x cols, a row is an output channel) with n_tokens rows x of
 * activations. One interface for every format and backend.
 *
 * Rules that every kernel keeps, so that a result never depends on the batch, the tile, the thread count or the
 * machine:
 * - The value of y[t][r] is defined by one sequence of float operations over the groups of row r in rising order, as
 *   matmul_ref.c writes it. Kernels vectorise over rows and tokens, never over the sum. No fused multiply-add.
 * - The integer sums inside a group are exact.
 *
 * Packed layout, the same for every backend of ours ("r8k4"): rows are cut into panels of 8, the last padded with
 * zero rows; a panel holds its groups of 32 columns in order; a group is
 *   q4_0: uint16 d[8];              uint8 q[128]
 *   q4_1: uint16 d[8]; uint16 m[8]; uint8 q[128]
 *   q8_0: uint16 d[8];              int8  q[256]
 *   q8c : int8 q[256] per group, and after the last group of the panel float scale[8]
 * where q is in steps of four columns by eight rows. int8: byte step*32 + row*4 + j is column step*4 + j. int4: byte
 * pair*32 + row*4 + j holds column pair*8 + j in the low nibble and column pair*8 + 4 + j in the high one.
 *   f32, f16, bf16: for each column the 8 rows' values.
 * q8c columns are padded with zeros to a whole group. */
#ifndef DRLLM_QUANT_MATMUL_H
#define DRLLM_QUANT_MATMUL_H

#include "quant/formats.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct drllm_threads;
struct drllm_xnn_input;
struct drllm_xnn_op;
struct drllm_xnn_weights;

/* Activations of one token row as the integer kernels read them. The arrays belong to drllm_activations. */
struct drllm_q8_row {
    const int8_t *q;    /* [cols], padded to a whole group */
    const float *scale; /* [n_groups]: x ~ scale * q */
    const int32_t *sum; /* [n_groups]: the sum of q over the group; it must be exact */
    const float *ssum;  /* [n_groups]: scale * (float)sum */
};

/* n_panels panels starting at `panels`, each of `panel_bytes`, times n_tokens rows: y[t * ldy + 8*p + r].
 * n_groups: groups a row (for q8c the activations have one scale and one sum for the whole row; ssum is not read). */
typedef void (*drllm_matmul_q8_fn)(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups,
                                   const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy);
/* The same for float formats; x[t * ldx + column]. */
typedef void (*drllm_matmul_float_fn)(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols,
                                      const float *x, size_t ldx, size_t n_tokens, float *y, size_t ldy);

/* One row of the kernel table, see kernels.inc. Exactly one of the two functions is set, none for XNNPACK. */
struct drllm_kernel {
    enum drllm_format format;
    const char *name;      /* "q4_1_avx2" */
    const char *backend;   /* "ref", "avx2", "neondot", ...: see kernels.inc; "xnnpack" */
    uint64_t cpu_features; /* DRLLM_CPU_* bits that must be there */
    drllm_matmul_q8_fn q8;
    drllm_matmul_float_fn floating;
};

/* All rows that this build has for the architecture, best first within a format. */
const struct drllm_kernel *drllm_kernels(size_t *n_kernels);
/* The best of our kernels for the format on a processor with these features; NULL for a format that no kernel runs. */
const struct drllm_kernel *drllm_kernel_choose(enum drllm_format format, uint64_t cpu_features);

/* A weight matrix ready to multiply. `data` is not owned here. */
struct drllm_matrix {
    enum drllm_format format;
    size_t rows;
    size_t cols;
    const struct drllm_kernel *kernel; /* ours, or NULL when xnn is set */
    const void *data;                  /* packed, 64-byte aligned */
    size_t panel_bytes;
    const struct drllm_xnn_weights *xnn; /* packed by XNNPACK */
};

/* Bytes that a matrix takes when packed; 0 on overflow or when the format needs whole groups and cols is none. */
size_t drllm_packed_bytes(enum drllm_format format, size_t rows, size_t cols);

/* Interleave panels [first_panel, first_panel + n_panels) from `src`, rows in the GGUF layout of the same format
 * (for q8c: int8 [rows][cols] with `scales` [rows], else scales is NULL). `dst` is the start of the whole packed
 * matrix. Panels are independent, so that threads can share the work. */
void drllm_pack_panels(enum drllm_format format, const void *src, const float *scales, size_t rows, size_t cols,
                       void *dst, size_t first_panel, size_t n_panels);

/* Activations of up to n_tokens rows of `cols` floats, quantised on demand in the ways that matrices need. */
enum drllm_quantisation {
    DRLLM_QUANT_NONE = 0,  /* floats are read as they are: float formats, XNNPACK */
    DRLLM_QUANT_GROUP = 1, /* one scale per 32: q4_0, q4_1, q8_0 */
    DRLLM_QUANT_ROW = 2    /* one scale per row: q8c on our kernels */
};
enum drllm_quantisation drllm_matrix_quantisation(const struct drllm_matrix *matrix);

/* The bytes that drllm_activations_init lays out for quantisations (a bit set of the above). */
size_t drllm_activations_bytes(size_t n_tokens, size_t cols, unsigned quantisations);

struct drllm_activations {
    const float *x; /* [n_tokens][ldx] */
    size_t ldx;
    size_t n_tokens;
    size_t cols;
    struct drllm_q8_row *group; /* [n_tokens], NULL when not asked for */
    struct drllm_q8_row *row;
    struct drllm_xnn_input *xnn; /* the session's, for matrices that XNNPACK runs; drllm_matmul fills it */
};
void drllm_activations_init(struct drllm_activations *activations, void *memory, size_t n_tokens, size_t cols,
                            unsigned quantisations);

struct drllm_vec_ops;
/* Quantise token rows [first, first + n) of activations->x, in place of whatever was there. */
void drllm_activations_quantize(struct drllm_activations *activations, const struct drllm_vec_ops *vec, size_t first,
                                size_t n);

/* One product of a group that shares its activations: y [n_tokens][ldy], which must have room for the matrix's rows. */
struct drllm_product {
    const struct drllm_matrix *matrix;
    float *y;
    size_t ldy;
    struct drllm_xnn_op *op; /* the session's operator, for matrices with xnn set */
};
enum { DRLLM_MAX_PRODUCTS = 4 };

/* Run all products in one parallel region (those of XNNPACK one after another behind it). `tail` is scratch memory
 * for the padded rows of last panels: n_products * n_tokens * 8 floats. For XNNPACK, x is followed by
 * DRLLM_XNN_EXTRA_BYTES. False only if XNNPACK fails. */
bool drllm_matmul(const struct drllm_product *products, size_t n_products, const struct drllm_activations *activations,
                  struct drllm_threads *threads, float *tail);

#endif
