#include "runtime/xnn_session.h"

#include "runtime/error.h"
#include "runtime/memory.h"

struct drllm_xnn_session {
    struct drllm_allocator allocator;
    struct drllm_xnn_op *ops; /* [n_ops]: seven a block, then the head's */
    size_t n_ops;
    struct drllm_xnn_input input;
    void *input_memory;
    size_t input_bytes;
};

static const struct drllm_matrix *matrix_at(const struct drllm_model *model, size_t index) {
    const size_t layer = index / DRLLM_BLOCK_MATRICES;
    return layer == model->config.n_layers ? &model->head : &model->blocks[layer].matrix[index % DRLLM_BLOCK_MATRICES];
}

static size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

static bool uses_xnnpack(const struct drllm_model *model, size_t n_ops, size_t *scratch_bytes) {
    bool used = false;
    *scratch_bytes = 0;
    for (size_t i = 0; i < n_ops; i++) {
        const struct drllm_matrix *matrix = matrix_at(model, i);
        if (matrix->xnn != NULL) {
            used = true;
            *scratch_bytes = max_size(*scratch_bytes, drllm_xnn_op_scratch_bytes(matrix->xnn));
        }
    }
    return used;
}

static int build(struct drllm_xnn_session *session, const struct drllm_model *model, size_t n_chunk, void *scratch,
                 struct drllm_error *error) {
    const struct drllm_config *config = &model->config;
    const size_t cols = max_size(max_size(config->d_model, config->n_heads * config->head_dim), config->d_ff);
    session->input_bytes = drllm_xnn_input_bytes(n_chunk, cols);
    session->input_memory = drllm_allocate(&session->allocator, session->input_bytes, 1);
    session->ops = drllm_allocate_zeroed(&session->allocator, session->n_ops, sizeof *session->ops);
    if (session->input_memory == NULL || session->ops == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for XNNPACK's operators");
    }
    enum drllm_xnn_status status = drllm_xnn_input_create(&session->input, session->input_memory, n_chunk, cols);
    for (size_t i = 0; i < session->n_ops && status == DRLLM_XNN_OK; i++) {
        const struct drllm_matrix *matrix = matrix_at(model, i);
        if (matrix->xnn != NULL) {
            status = drllm_xnn_op_create(&session->ops[i], matrix->xnn, matrix->rows, scratch);
        }
    }
    if (status == DRLLM_XNN_MEMORY) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for XNNPACK's operators");
    }
    if (status != DRLLM_XNN_OK) {
        return drllm_fail(error, DRLLM_ERR_SYSTEM, "XNNPACK could not create its operators (status %d)", (int)status);
    }
    return DRLLM_OK;
}

int drllm_xnn_session_open(const struct drllm_model *model, size_t n_chunk, struct drllm_xnn_session **session,
                           struct drllm_error *error) {
    const size_t n_ops = model->config.n_layers * DRLLM_BLOCK_MATRICES + 1;
    size_t scratch_bytes;
    if (!uses_xnnpack(model, n_ops, &scratch_bytes)) {
        return DRLLM_OK;
    }
    struct drllm_xnn_session *opened = drllm_allocate_zeroed(&model->allocator, 1, sizeof *opened);
    /* One byte more, since some operators need none and none means no memory. */
    void *scratch = drllm_allocate(&model->allocator, scratch_bytes + 1, 1);
    int status = DRLLM_ERR_MEMORY;
    if (opened != NULL && scratch != NULL) {
        opened->allocator = model->allocator;
        opened->n_ops = n_ops;
        status = build(opened, model, n_chunk, scratch, error);
    } else {
        (void)drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for XNNPACK's operators");
    }
    drllm_release(&model->allocator, scratch, scratch_bytes + 1, 1);
    if (status != DRLLM_OK) {
        if (opened != NULL) {
            opened->allocator = model->allocator;
        }
        drllm_xnn_session_close(opened);
        return status;
    }
    *session = opened;
    return DRLLM_OK;
}

void drllm_xnn_session_close(struct drllm_xnn_session *session) {
    if (session == NULL) {
        return;
    }
    const struct drllm_allocator allocator = session->allocator;
    for (size_t i = 0; session->ops != NULL && i < session->n_ops; i++) {
        drllm_xnn_op_destroy(&session->ops[i]);
    }
    drllm_xnn_input_destroy(&session->input);
    drllm_release(&allocator, session->ops, session->n_ops, sizeof *session->ops);
    drllm_release(&allocator, session->input_memory, session->input_bytes, 1);
    drllm_release(&allocator, session, 1, sizeof *session);
}

struct drllm_xnn_op *drllm_xnn_session_op(struct drllm_xnn_session *session, size_t layer, size_t which) {
    if (session == NULL) {
        return NULL;
    }
    struct drllm_xnn_op *op = &session->ops[layer * DRLLM_BLOCK_MATRICES + which];
    return op->weights == NULL ? NULL : op;
}

struct drllm_xnn_input *drllm_xnn_session_input(struct drllm_xnn_session *session) {
    return session == NULL ? NULL : &session->input;
}
