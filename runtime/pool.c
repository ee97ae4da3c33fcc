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

/* What windows are summed up from. */
struct view {
    const struct drllm_vec_ops *vec;
    size_t d_model;
    const struct drllm_segment *segments; /* of the pass; they hold all tokens whose cells are not kept */
    size_t n_segments;
    const float *rows; /* of the segments */
    const float *kept; /* [cells][d_model] ahead of the block, or NULL */
    float *cell;       /* [d_model]: room for a cell that is not kept */
};

/* The hidden state of one token. */
static const float *row_at(const struct view *view, size_t position) {
    const struct drllm_segment *segment = view->segments;
    const struct drllm_segment *last = view->segments + view->n_segments - 1;
    while (segment != last && (position < segment->first || position - segment->first >= segment->n)) {
        segment++;
    }
    return view->rows + (segment->row + position - segment->first) * view->d_model;
}

/* The sum over a whole cell. */
static const float *cell_at(const struct view *view, size_t position) {
    if (view->kept != NULL) {
        return view->kept + position / DRLLM_POOL_CELL * view->d_model;
    }
    memcpy(view->cell, row_at(view, position), view->d_model * sizeof *view->cell);
    for (size_t i = 1; i < DRLLM_POOL_CELL; i++) {
        view->vec->add(view->cell, row_at(view, position + i), view->d_model);
    }
    return view->cell;
}

static void sum_windows(const struct view *view, size_t n_windows, size_t width, float *sums) {
    for (size_t window = 0; window < n_windows; window++) {
        float *sum = sums + window * view->d_model;
        const size_t end = (window + 1) * width;
        for (size_t position = window * width; position < end;) {
            const bool is_start = position == window * width;
            const bool whole = position % DRLLM_POOL_CELL == 0 && end - position >= DRLLM_POOL_CELL;
            const float *part = whole ? cell_at(view, position) : row_at(view, position);
            if (is_start) {
                memcpy(sum, part, view->d_model * sizeof *sum);
            } else {
                view->vec->add(sum, part, view->d_model);
            }
            position += whole ? (size_t)DRLLM_POOL_CELL : 1;
        }
    }
}

void drllm_pool_read(struct drllm_session *session, size_t layer, const struct drllm_pass *pass) {
    const struct view view = {.vec = session->model->vec,
                              .d_model = session->model->config.d_model,
                              .segments = pass->segments,
                              .n_segments = pass->n_segments,
                              .rows = session->residual,
                              .kept = pass->pool ? kept_cell(session, layer, 0) : NULL,
                              .cell = session->router.cell};
    const size_t n_windows = drllm_router_windows(session->router.routers, pass->n_tokens);
    sum_windows(&view, n_windows, pass->n_tokens / n_windows, session->router.pooled);
}

size_t drllm_router_window_sums(const struct drllm_model *model, const float *hidden, size_t n_tokens, size_t n_windows,
                                float *sums, float *scratch) {
    const struct drllm_segment all = {.n = n_tokens};
    const struct view view = {.vec = model->vec,
                              .d_model = model->config.d_model,
                              .segments = &all,
                              .n_segments = 1,
                              .rows = hidden,
                              .cell = scratch};
    n_windows = n_windows < n_tokens ? n_windows : n_tokens;
    sum_windows(&view, n_windows, n_tokens / n_windows, sums);
    return n_windows;
}
