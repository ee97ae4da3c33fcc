#include "runtime/pool.h"

#include "runtime/memory.h"
#include "runtime/session.h"

#include <string.h>

int drllm_pool_reserve(struct drllm_pool *pool, const struct drllm_allocator *allocator, size_t n_layers,
                       size_t d_model, size_t n_tokens) {
    const size_t needed = n_tokens / DRLLM_POOL_CELL + 1;
    if (pool->capacity >= needed) {
        return DRLLM_OK;
    }
    struct drllm_pool grown = {.capacity = needed + needed / 2, .n_tokens = pool->n_tokens};
    const size_t cell_bytes = d_model * sizeof *grown.sums;
    if (!drllm_multiply(n_layers, cell_bytes, &grown.layer_bytes)) {
        return DRLLM_ERR_MEMORY;
    }
    grown.sums = drllm_allocate(allocator, grown.capacity, grown.layer_bytes);
    if (grown.sums == NULL) {
        return DRLLM_ERR_MEMORY;
    }
    for (size_t layer = 0; layer < n_layers && pool->sums != NULL; layer++) {
        memcpy(grown.sums + layer * grown.capacity * d_model, pool->sums + layer * pool->capacity * d_model,
               pool->capacity * cell_bytes);
    }
    drllm_release(allocator, pool->sums, pool->capacity, pool->layer_bytes);
    *pool = grown;
    return DRLLM_OK;
}

void drllm_pool_free(struct drllm_pool *pool, const struct drllm_allocator *allocator) {
    drllm_release(allocator, pool->sums, pool->capacity, pool->layer_bytes);
    *pool = (struct drllm_pool){0};
}

void drllm_pool_rewind(struct drllm_pool *pool, size_t n_tokens) {
    if (n_tokens < pool->n_tokens) {
        pool->n_tokens = drllm_pool_round_down(n_tokens); /* a sum cannot be taken back in part */
    }
}

/* ---- In a pass ---- */

static float *kept_cell(const struct drllm_session *session, size_t layer, size_t position) {
    const struct drllm_pool *pool = &session->pool;
    return pool->sums + (layer * pool->capacity + position / DRLLM_POOL_CELL) * session->model->config.d_model;
}

void drllm_pool_add(struct drllm_session *session, size_t layer, const struct drllm_pass *pass) {
    const struct drllm_vec_ops *vec = session->model->vec;
    const size_t d_model = session->model->config.d_model;
    const struct drllm_segment *segment = &pass->segments[pass->n_segments - 1];
    for (size_t i = 0; i < segment->n; i++) {
        const float *row = session->residual + (segment->row + i) * d_model;
        const size_t position = segment->first + i;
        float *cell = kept_cell(session, layer, position);
        if (position % DRLLM_POOL_CELL == 0) {
            memcpy(cell, row, d_model * sizeof *cell);
        } else {
            vec->add(cell, row, d_model);
        }
    }
}

/* The hidden state of one token, which a segment of the pass must hold. */
static const float *row_at(const struct drllm_session *session, const struct drllm_pass *pass, size_t position) {
    const struct drllm_segment *segment = pass->segments;
    while (position < segment->first || position - segment->first >= segment->n) {
        segment++;
    }
    return session->residual + (segment->row + position - segment->first) * session->model->config.d_model;
}

/* The sum over a whole cell, kept or taken from the pass. */
static const float *cell_at(struct drllm_session *session, size_t layer, const struct drllm_pass *pass,
                            size_t position) {
    const size_t d_model = session->model->config.d_model;
    if (pass->pool) {
        return kept_cell(session, layer, position);
    }
    float *sum = session->router.cell;
    memcpy(sum, row_at(session, pass, position), d_model * sizeof *sum);
    for (size_t i = 1; i < DRLLM_POOL_CELL; i++) {
        session->model->vec->add(sum, row_at(session, pass, position + i), d_model);
    }
    return sum;
}

void drllm_pool_read(struct drllm_session *session, size_t layer, const struct drllm_pass *pass) {
    const struct drllm_vec_ops *vec = session->model->vec;
    const size_t d_model = session->model->config.d_model;
    const size_t n_windows = drllm_router_windows(session->router.routers, pass->n_tokens);
    const size_t width = pass->n_tokens / n_windows;
    for (size_t window = 0; window < n_windows; window++) {
        float *sum = session->router.pooled + window * d_model;
        const size_t end = (window + 1) * width;
        for (size_t position = window * width; position < end;) {
            const bool is_start = position == window * width;
            const bool whole = position % DRLLM_POOL_CELL == 0 && end - position >= DRLLM_POOL_CELL;
            const float *part = whole ? cell_at(session, layer, pass, position) : row_at(session, pass, position);
            if (is_start) {
                memcpy(sum, part, d_model * sizeof *sum);
            } else {
                vec->add(sum, part, d_model);
            }
            position += whole ? (size_t)DRLLM_POOL_CELL : 1;
        }
    }
}
