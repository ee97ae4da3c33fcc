/* A session's share of XNNPACK: an operator for each matrix that XNNPACK runs, and the input that they read. Its
 * operators hold pointers to input and output, so that they cannot be shared; the packed weights are the model's. */
#ifndef DRLLM_RUNTIME_XNN_SESSION_H
#define DRLLM_RUNTIME_XNN_SESSION_H

#include "quant/matmul_xnnpack.h"
#include "runtime/model.h"

struct drllm_xnn_session;

/* *session stays NULL, with DRLLM_OK, when no matrix of the model runs on XNNPACK. n_chunk: most rows of a product.
 * Errors: MEMORY, SYSTEM. */
int drllm_xnn_session_open(const struct drllm_model *model, size_t n_chunk, struct drllm_xnn_session **session,
                           struct drllm_error *error);
void drllm_xnn_session_close(struct drllm_xnn_session *session); /* NULL is allowed */

/* Operator of matrix `which` of block `layer`, or of the head with layer == n_layers and which == 0; NULL for one
 * that our own kernels run. session may be NULL. */
struct drllm_xnn_op *drllm_xnn_session_op(struct drllm_xnn_session *session, size_t layer, size_t which);
struct drllm_xnn_input *drllm_xnn_session_input(struct drllm_xnn_session *session);

#endif
