/* One decision, as in Dr.LLM (arXiv 2510.12773), section 3: the hidden states of the prompt ahead of a block are averaged
 * over windows (pool.c sums them up), each window goes through a bottleneck network, and the mean of the windows' logits says whether the
 * block is skipped, executed or repeated. */
#include "runtime/router.h"

#include "runtime/error.h"

#include <math.h>
#include <string.h>

/* ---- The session's share ---- */

static size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

static int open_xnnpack(struct drllm_router_run *run, size_t n_rows, size_t n_cols, struct drllm_error *error) {
    const struct drllm_routers *routers = run->routers;
    const struct drllm_allocator *allocator = &routers->model->allocator;
    const size_t n_ops = routers->model->config.n_layers * DRLLM_ROUTER_MATRICES;
    void *memory = drllm_keep(allocator, &run->kept, drllm_xnn_input_bytes(n_rows, n_cols), 1);
    run->ops = drllm_keep(allocator, &run->kept, n_ops, sizeof *run->ops);
    if (memory == NULL || run->ops == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
    }
    memset(run->ops, 0, n_ops * sizeof *run->ops);
    run->has_xnnpack = true;
    enum drllm_xnn_status status = drllm_xnn_input_create(&run->input, memory, n_rows, n_cols);
    for (size_t i = 0; i < n_ops && status == DRLLM_XNN_OK; i++) {
        const struct drllm_matrix *matrix =
            &routers->blocks[i / DRLLM_ROUTER_MATRICES].matrix[i % DRLLM_ROUTER_MATRICES];
        status = drllm_xnn_op_create(&run->ops[i], matrix->xnn, matrix->rows, NULL);
    }
    if (status == DRLLM_XNN_MEMORY) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
    }
    return status == DRLLM_XNN_OK
               ? DRLLM_OK
               : drllm_fail(error, DRLLM_ERR_SYSTEM, "XNNPACK could not create the routers' operators (status %d)",
                            (int)status);
}

static int open_run(struct drllm_router_run *run, struct drllm_error *error) {
    const struct drllm_routers *routers = run->routers;
    const struct drllm_allocator *allocator = &routers->model->allocator;
    const size_t d_model = routers->model->config.d_model;
    const size_t n_rows = routers->n_windows;
    const size_t n_cols = max_size(d_model, routers->n_hidden);
    run->pooled = drllm_keep(allocator, &run->kept, n_rows * sizeof(float), d_model + DRLLM_XNN_EXTRA_BYTES);
    run->cell = drllm_keep(allocator, &run->kept, d_model, sizeof(float));
    run->hidden = drllm_keep(allocator, &run->kept, n_rows * sizeof(float), routers->n_hidden + DRLLM_XNN_EXTRA_BYTES);
    run->factor = drllm_keep(allocator, &run->kept, routers->n_hidden, sizeof(float));
    run->logits = drllm_keep(allocator, &run->kept, n_rows, DRLLM_ROUTER_CLASSES * sizeof(float));
    run->tail = drllm_keep(allocator, &run->kept, n_rows, DRLLM_PANEL_ROWS * sizeof(float));
    run->quantised = drllm_keep(allocator, &run->kept, drllm_activations_bytes(n_rows, n_cols, DRLLM_QUANT_ROW), 1);
    if (run->pooled == NULL || run->cell == NULL || run->hidden == NULL || run->factor == NULL || run->logits == NULL ||
        run->tail == NULL || run->quantised == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
    }
    if (routers->blocks[0].rows[DRLLM_ROUTER_FC1] != NULL) {
        const size_t fc1 = drllm_packed_bytes(DRLLM_FORMAT_Q8C, routers->n_hidden, d_model);
        const size_t fc2 = drllm_packed_bytes(DRLLM_FORMAT_Q8C, DRLLM_ROUTER_CLASSES, routers->n_hidden);
        run->panels = drllm_keep(allocator, &run->kept, max_size(fc1, fc2), 1);
        if (run->panels == NULL) {
            return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
        }
    }
    return routers->blocks[0].matrix[0].xnn != NULL ? open_xnnpack(run, n_rows, n_cols, error) : DRLLM_OK;
}

int drllm_router_run_open(struct drllm_router_run *run, const struct drllm_routers *routers,
                          const struct drllm_budget *budget, struct drllm_error *error) {
    *run = (struct drllm_router_run){.routers = routers, .budget = *budget};
    atomic_fetch_add(&((struct drllm_routers *)routers)->n_users, 1);
    const int status = open_run(run, error);
    if (status != DRLLM_OK) {
        drllm_router_run_close(run);
    }
    return status;
}

void drllm_router_run_close(struct drllm_router_run *run) {
    if (run->routers == NULL) {
        return;
    }
    const struct drllm_model *model = run->routers->model;
    for (size_t i = 0; run->has_xnnpack && i < model->config.n_layers * DRLLM_ROUTER_MATRICES; i++) {
        drllm_xnn_op_destroy(&run->ops[i]);
    }
    if (run->has_xnnpack) {
        drllm_xnn_input_destroy(&run->input);
    }
    drllm_release_kept(&model->allocator, &run->kept);
    atomic_fetch_sub(&((struct drllm_routers *)run->routers)->n_users, 1);
    *run = (struct drllm_router_run){0};
}

/* ---- The network ---- */

static void scale_columns(float *restrict rows, size_t n_rows, size_t n_cols, const float *restrict scale) {
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < n_cols; j++) {
            rows[i * n_cols + j] *= scale[j];
        }
    }
}

/* y [n_rows][rows of the matrix] = x * W^T */
static bool multiply(struct drllm_router_run *run, size_t layer, enum drllm_router_matrix which, const float *x,
                     size_t n_rows, float *y) {
    const struct drllm_router *router = &run->routers->blocks[layer];
    const struct drllm_matrix *matrix = &router->matrix[which];
    struct drllm_matrix interleaved;
    if (router->rows[which] != NULL) {
        interleaved = *matrix;
        interleaved.data = run->panels;
        drllm_pack_panels(matrix->format, router->rows[which], router->scales[which], matrix->rows, matrix->cols,
                          run->panels, 0, (matrix->rows + DRLLM_PANEL_ROWS - 1) / DRLLM_PANEL_ROWS);
        matrix = &interleaved;
    }
    struct drllm_activations activations;
    drllm_activations_init(&activations, run->quantised, n_rows, matrix->cols, drllm_matrix_quantisation(matrix));
    activations.x = x;
    activations.ldx = matrix->cols;
    activations.xnn = run->has_xnnpack ? &run->input : NULL;
    drllm_activations_quantize(&activations, run->routers->model->vec, 0, n_rows);
    const struct drllm_product product = {.matrix = matrix,
                                          .y = y,
                                          .ldy = matrix->rows,
                                          .op = run->has_xnnpack ? &run->ops[layer * DRLLM_ROUTER_MATRICES + which]
                                                                 : NULL};
    return drllm_matmul(&product, 1, &activations, NULL, run->tail);
}

/* x = gelu(scale * x + bias), in the tanh form: x * sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3). Written as
 * silu(2 u) * (x / 2 u), so that the network's own vectorised SiLU does the work. */
static void bias_and_gelu(const struct drllm_vec_ops *vec, float *x, float scale, const float *bias, float *factor,
                          size_t n) {
    const float twice_root = 1.5957691216f; /* 2 sqrt(2/pi) */
    const float limit = 1e6f;               /* far past where GELU is linear, or 0, in floats */
    for (size_t i = 0; i < n; i++) {
        float value = x[i] * scale + bias[i];
        value = value > limit ? limit : value > -limit ? value : -limit; /* the latter also for NaN */
        const float slope = twice_root * (1.0f + 0.044715f * (value * value));
        x[i] = slope * value;
        factor[i] = 1.0f / slope;
    }
    vec->silu_mul(x, factor, n);
}

static int xnnpack_failed(size_t layer, struct drllm_error *error) {
    return drllm_fail(error, DRLLM_ERR_SYSTEM, "XNNPACK could not run the router of block %zu", layer);
}

static int run_network(struct drllm_router_run *run, size_t layer, size_t n_tokens, float mean[DRLLM_ROUTER_CLASSES],
                       struct drllm_error *error) {
    const struct drllm_routers *routers = run->routers;
    const struct drllm_router *router = &routers->blocks[layer];
    const struct drllm_vec_ops *vec = routers->model->vec;
    const size_t n_hidden = routers->n_hidden;
    const size_t n_windows = drllm_router_windows(routers, n_tokens);
    const size_t width = n_tokens / n_windows;
    const float scale = 1.0f / (float)width; /* of window sums to means, where it is fewer numbers */
    if (router->input_scale != NULL) {
        scale_columns(run->pooled, n_windows, router->matrix[DRLLM_ROUTER_FC1].cols, router->input_scale);
    }
    if (!multiply(run, layer, DRLLM_ROUTER_FC1, run->pooled, n_windows, run->hidden)) {
        return xnnpack_failed(layer, error);
    }
    for (size_t i = 0; i < n_windows; i++) {
        bias_and_gelu(vec, run->hidden + i * n_hidden, scale, router->bias[DRLLM_ROUTER_FC1], run->factor, n_hidden);
    }
    if (!multiply(run, layer, DRLLM_ROUTER_FC2, run->hidden, n_windows, run->logits)) {
        return xnnpack_failed(layer, error);
    }
    for (size_t i = 0; i < DRLLM_ROUTER_CLASSES; i++) {
        mean[i] = 0.0f;
        for (size_t window = 0; window < n_windows; window++) {
            mean[i] += run->logits[window * DRLLM_ROUTER_CLASSES + i];
        }
        mean[i] = mean[i] / (float)n_windows + router->bias[DRLLM_ROUTER_FC2][i];
    }
    if (isfinite(mean[0]) && isfinite(mean[1]) && isfinite(mean[2])) {
        return DRLLM_OK;
    }
    return drllm_fail(error, DRLLM_ERR_FORMAT,
                      "the router of block %zu yields values that are no numbers; the router file or the model file is "
                      "damaged",
                      layer);
}

int drllm_router_decide(struct drllm_router_run *run, size_t layer, size_t n_tokens, struct drllm_decision *decision,
                        struct drllm_error *error) {
    float logits[DRLLM_ROUTER_CLASSES] = {0.0f};
    const int status = run_network(run, layer, n_tokens, logits, error);
    if (status == DRLLM_OK) {
        const bool is_end = layer == 0 || layer + 1 == run->routers->model->config.n_layers;
        drllm_budget_decide(&run->budget, is_end, logits, decision);
    }
    return status;
}
