/* Router files: one small network ahead of each block of one model, in a GGUF file of their own, so that the base model
 * stays untouched. Reading and checking; runtime/router.h makes them run, tools/router_writer.h writes them.
 *
 *   general.architecture              string   "drllm-routers"
 *   general.type                      string   "drllm-routers"
 *   general.name                      string   optional
 *   drllm.router.version              uint32   1 (missing: 1)
 *   drllm.router.blocks               uint32   n_layers of the model
 *   drllm.router.windows              uint32   W: most windows that a prompt is cut into, 1 to 64
 *   drllm.router.hidden               uint32   H: width of the hidden layer, 1 to 4096
 *   drllm.router.model.fingerprint    string   optional, 16 hexadecimal digits of drllm_model_fingerprint
 *   drllm.router.model.name           string   optional
 *   drllm.router.model.quantization   string   optional: of the weights that the labels were made with, "q4_1"
 *   drllm.router.calibration.bias     float32s optional: added to the skip logit, rising strictly
 *   drllm.router.calibration.saved    float32s as many: mean layers saved with it, never falling, in
 *                                              [-blocks, blocks]
 *   drllm.router.training             string   optional: what it was trained on and what was measured, a JSON object
 *
 *   blk.N.router.fc1.weight       [H][d_model]  F32, or I8 with one scale a row in fc1.weight_scale [H] (F32)
 *   blk.N.router.fc1.input_scale  [d_model]     F32, optional, above 0, with I8 only: what the input is multiplied by
 *   blk.N.router.fc1.bias         [H]           F32
 *   blk.N.router.fc2.weight       [3][H]        as fc1.weight; rows are skip, execute, repeat
 *   blk.N.router.fc2.bias         [3]           F32
 *
 * logits = mean over windows of fc2 * gelu(fc1 * pooled + bias1) + bias2, with the tanh form of GELU.
 *
 * Some channels of hidden states are a thousand times as large as others, and int8 inputs with one scale a row would lose
 * the others. So an int8 fc1 holds w / c for each column, where c = max |w| of the column is its input_scale: trained
 * weights are small where the input is large. */
#ifndef DRLLM_RUNTIME_ROUTER_FILE_H
#define DRLLM_RUNTIME_ROUTER_FILE_H

#include "runtime/gguf.h"

enum { DRLLM_ROUTER_CLASSES = 3, DRLLM_ROUTER_MAX_WINDOWS = 64, DRLLM_ROUTER_MAX_HIDDEN = 4096 };

enum drllm_router_matrix { DRLLM_ROUTER_FC1, DRLLM_ROUTER_FC2, DRLLM_ROUTER_MATRICES };

/* One matrix in the file, checked: finite, of the right shape. */
struct drllm_router_tensor {
    const struct drllm_gguf_tensor *weight; /* F32 or I8; dims[0] columns, dims[1] rows */
    const float *scales;                    /* [rows], NULL for F32 */
    const float *input_scale;               /* [columns], NULL: all 1 */
    const float *bias;                      /* [rows] */
};

struct drllm_router_file {
    struct drllm_gguf gguf;
    struct drllm_string name, model_name, model_quantization, training; /* size 0 where the file has none */
    bool has_fingerprint;
    uint64_t fingerprint;
    size_t n_layers, d_model, n_windows, n_hidden;
    bool int8; /* the weights of all matrices are I8; otherwise F32 */
    size_t n_calibration;
    const struct drllm_gguf_entry *bias, *saved; /* NULL without a table */
    struct drllm_router_tensor *tensors;         /* [n_layers][DRLLM_ROUTER_MATRICES] */
};

/* data (a multiple of 4) must stay until the file is closed. Errors: FORMAT, UNSUPPORTED (a version, a type), MEMORY. */
int drllm_router_file_open(struct drllm_router_file *file, const void *data, size_t size,
                           const struct drllm_allocator *allocator, struct drllm_error *error);
void drllm_router_file_close(struct drllm_router_file *file);

const struct drllm_router_tensor *drllm_router_file_tensor(const struct drllm_router_file *file, size_t layer,
                                                           enum drllm_router_matrix which);
/* One row as floats[dims[0]]. */
void drllm_router_file_row(const struct drllm_router_tensor *tensor, size_t row, float *values);
/* input_scale for an int8 form of a matrix [n_rows][n_cols]: the largest |w| of each column, 1 for a column of zeros. */
void drllm_router_input_scale(const float *weights, size_t n_rows, size_t n_cols, float *input_scale);
/* Row i of the calibration table. */
void drllm_router_file_calibration(const struct drllm_router_file *file, size_t i, float *bias, float *saved);

#endif
