/* One transformer block, as it reads in the paper (Llama, arXiv 2302.13971):
 *
 *   x += W_o attention(rope(W_q h), rope(W_k h), W_v h)      h = rms_norm(x)
 *   x += W_down (silu(W_gate h) * W_up h)                    h = rms_norm(x)
 *
 * Tokens go through in chunks, so that scratch memory does not grow with the prompt; a chunk's keys and values are
 * in the cache before its queries look at them. The element-wise steps between two products are one parallel region
 * over tiles of tokens, and run inline when there are few tokens. */
#include "runtime/error.h"
#include "runtime/session.h"
#include "runtime/xnn_session.h"

#include <string.h>

enum { TILE_TOKENS = 8 };

struct chunk {
    struct drllm_session *session;
    const struct drllm_model *model;
    const struct drllm_block_weights *weights;
    size_t layer;
    size_t slot;
    float *residual;      /* [n][d_model] */
    const float *cos_sin; /* [n][n_rot] */
    size_t n;
    size_t position; /* of the first row */
    struct drllm_activations activations;
};

typedef void (*row_step)(struct chunk *chunk, size_t worker, size_t row);

struct row_run {
    struct chunk *chunk;
    row_step step;
};

static void run_rows(void *context, size_t worker, size_t index) {
    const struct row_run *run = context;
    const size_t end = (index + 1) * TILE_TOKENS < run->chunk->n ? (index + 1) * TILE_TOKENS : run->chunk->n;
    for (size_t row = index * TILE_TOKENS; row < end; row++) {
        run->step(run->chunk, worker, row);
    }
}

static void for_each_row(struct chunk *chunk, row_step step) {
    struct row_run run = {chunk, step};
    const size_t n_tasks = (chunk->n + TILE_TOKENS - 1) / TILE_TOKENS;
    drllm_threads_run(n_tasks > 1 ? chunk->session->threads : NULL, run_rows, &run, n_tasks);
}

/* ---- Products ---- */

struct output {
    enum drllm_block_matrix which;
    float *y;
};

/* The activations must be ready in chunk->activations. */
static bool multiply(struct chunk *chunk, const struct output *outputs, size_t n_outputs) {
    struct drllm_product products[DRLLM_MAX_PRODUCTS];
    for (size_t i = 0; i < n_outputs; i++) {
        const struct drllm_matrix *matrix = &chunk->weights->matrix[outputs[i].which];
        products[i] =
            (struct drllm_product){.matrix = matrix,
                                   .y = outputs[i].y,
                                   .ldy = matrix->rows,
                                   .op = drllm_xnn_session_op(chunk->session->xnn, chunk->layer, outputs[i].which)};
    }
    return drllm_matmul(products, n_outputs, &chunk->activations, chunk->session->threads,
                        chunk->session->scratch.tail);
}

/* The quantisations that the products of `outputs` read. */
static unsigned quantisations(const struct chunk *chunk, const enum drllm_block_matrix *which, size_t n) {
    unsigned set = 0;
    for (size_t i = 0; i < n; i++) {
        set |= drllm_matrix_quantisation(&chunk->weights->matrix[which[i]]);
    }
    return set;
}

/* Rows x [n][cols] that the next products will read; `memory` is for their quantised form. */
static void begin_activations(struct chunk *chunk, const float *x, size_t cols, void *memory, unsigned quantisation) {
    drllm_activations_init(&chunk->activations, memory, chunk->n, cols, quantisation);
    chunk->activations.x = x;
    chunk->activations.ldx = cols;
    chunk->activations.xnn = drllm_xnn_session_input(chunk->session->xnn);
}

static void quantize_row(struct chunk *chunk, size_t row) {
    drllm_activations_quantize(&chunk->activations, chunk->model->vec, row, 1);
}

static void add_bias(const struct chunk *chunk, enum drllm_block_matrix which, float *row) {
    if (chunk->weights->bias[which] != NULL) {
        chunk->model->vec->add(row, chunk->weights->bias[which], chunk->weights->matrix[which].rows);
    }
}

/* ---- The steps between products, one row each ---- */

static void norm_for_attention(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    const struct drllm_config *config = &chunk->model->config;
    chunk->model->vec->rms_norm(chunk->session->scratch.normed + row * config->d_model,
                                chunk->residual + row * config->d_model, chunk->weights->attention_norm,
                                config->d_model, config->rms_eps);
    quantize_row(chunk, row);
}

static void rotate_heads(const struct chunk *chunk, float *heads, size_t n_heads, const float *cos_sin) {
    const struct drllm_config *config = &chunk->model->config;
    for (size_t h = 0; h < n_heads; h++) {
        chunk->model->vec->rope(heads + h * config->head_dim, cos_sin, config->n_rot / 2);
    }
}

static void rotate_and_store(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    const struct drllm_config *config = &chunk->model->config;
    const struct drllm_scratch *scratch = &chunk->session->scratch;
    const size_t q_width = config->n_heads * config->head_dim;
    const size_t kv_width = config->n_kv_heads * config->head_dim;
    const float *cos_sin = chunk->cos_sin + row * config->n_rot;
    float *q = scratch->q + row * q_width;
    float *k = scratch->k + row * kv_width;
    float *v = scratch->v + row * kv_width;
    add_bias(chunk, DRLLM_MATRIX_Q, q);
    add_bias(chunk, DRLLM_MATRIX_K, k);
    add_bias(chunk, DRLLM_MATRIX_V, v);
    rotate_heads(chunk, q, config->n_heads, cos_sin);
    rotate_heads(chunk, k, config->n_kv_heads, cos_sin);
    drllm_kvcache_store(&chunk->session->kv, chunk->model->vec, chunk->slot, chunk->position + row, k, v);
}

static void quantize_only(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    quantize_row(chunk, row);
}

static void add_to_residual(struct chunk *chunk, enum drllm_block_matrix which, size_t row) {
    const size_t d_model = chunk->model->config.d_model;
    float *projected = chunk->session->scratch.projected + row * d_model;
    add_bias(chunk, which, projected);
    chunk->model->vec->add(chunk->residual + row * d_model, projected, d_model);
}

static void add_attention_and_norm(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    const struct drllm_config *config = &chunk->model->config;
    add_to_residual(chunk, DRLLM_MATRIX_OUTPUT, row);
    chunk->model->vec->rms_norm(chunk->session->scratch.normed + row * config->d_model,
                                chunk->residual + row * config->d_model, chunk->weights->ffn_norm, config->d_model,
                                config->rms_eps);
    quantize_row(chunk, row);
}

static void gate_and_quantize(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    const size_t d_ff = chunk->model->config.d_ff;
    float *gate = chunk->session->scratch.gate + row * d_ff;
    float *up = chunk->session->scratch.up + row * d_ff;
    add_bias(chunk, DRLLM_MATRIX_GATE, gate);
    add_bias(chunk, DRLLM_MATRIX_UP, up);
    chunk->model->vec->silu_mul(gate, up, d_ff);
    quantize_row(chunk, row);
}

static void add_ffn(struct chunk *chunk, size_t worker, size_t row) {
    (void)worker;
    add_to_residual(chunk, DRLLM_MATRIX_DOWN, row);
}

static bool run_attention(struct chunk *chunk) {
    const struct drllm_config *config = &chunk->model->config;
    const struct drllm_scratch *scratch = &chunk->session->scratch;
    static const enum drllm_block_matrix qkv[] = {DRLLM_MATRIX_Q, DRLLM_MATRIX_K, DRLLM_MATRIX_V};
    static const enum drllm_block_matrix projection[] = {DRLLM_MATRIX_OUTPUT};

    begin_activations(chunk, scratch->normed, config->d_model, scratch->quantised_d_model,
                      quantisations(chunk, qkv, 3));
    for_each_row(chunk, norm_for_attention);
    const struct output q_k_v[] = {
        {DRLLM_MATRIX_Q, scratch->q}, {DRLLM_MATRIX_K, scratch->k}, {DRLLM_MATRIX_V, scratch->v}};
    if (!multiply(chunk, q_k_v, 3)) {
        return false;
    }
    for_each_row(chunk, rotate_and_store);
    drllm_attention_run(chunk->session, chunk->slot, chunk->n, chunk->position);

    begin_activations(chunk, scratch->attended, config->n_heads * config->head_dim, scratch->quantised_heads,
                      quantisations(chunk, projection, 1));
    for_each_row(chunk, quantize_only);
    const struct output projected[] = {{DRLLM_MATRIX_OUTPUT, scratch->projected}};
    return multiply(chunk, projected, 1);
}

static bool run_ffn(struct chunk *chunk) {
    const struct drllm_config *config = &chunk->model->config;
    const struct drllm_scratch *scratch = &chunk->session->scratch;
    static const enum drllm_block_matrix gate_up[] = {DRLLM_MATRIX_GATE, DRLLM_MATRIX_UP};
    static const enum drllm_block_matrix down[] = {DRLLM_MATRIX_DOWN};

    begin_activations(chunk, scratch->normed, config->d_model, scratch->quantised_d_model,
                      quantisations(chunk, gate_up, 2));
    for_each_row(chunk, add_attention_and_norm);
    const struct output gate_and_up[] = {{DRLLM_MATRIX_GATE, scratch->gate}, {DRLLM_MATRIX_UP, scratch->up}};
    if (!multiply(chunk, gate_and_up, 2)) {
        return false;
    }
    begin_activations(chunk, scratch->gate, config->d_ff, scratch->quantised_d_ff, quantisations(chunk, down, 1));
    for_each_row(chunk, gate_and_quantize);
    const struct output projected[] = {{DRLLM_MATRIX_DOWN, scratch->projected}};
    if (!multiply(chunk, projected, 1)) {
        return false;
    }
    for_each_row(chunk, add_ffn);
    return true;
}

int drllm_block_run(struct drllm_session *session, size_t layer, size_t slot, const struct drllm_segment *segment) {
    const struct drllm_model *model = session->model;
    const struct drllm_config *config = &model->config;
    for (size_t start = 0; start < segment->n; start += session->scratch.n_chunk) {
        const int status = drllm_session_check_cancel(session);
        if (status != DRLLM_OK) {
            return status;
        }
        const size_t left = segment->n - start;
        const size_t row = segment->row + start;
        struct chunk chunk = {.session = session,
                              .model = model,
                              .weights = &model->blocks[layer],
                              .layer = layer,
                              .slot = slot,
                              .residual = session->residual + row * config->d_model,
                              .cos_sin = session->cos_sin + row * config->n_rot,
                              .n = left < session->scratch.n_chunk ? left : session->scratch.n_chunk,
                              .position = segment->first + start};
        if (!run_attention(&chunk) || !run_ffn(&chunk)) {
            return drllm_session_fail(session, DRLLM_ERR_SYSTEM, "XNNPACK could not run block %zu", layer);
        }
    }
    return DRLLM_OK;
}
