/* Causal attention with grouped queries. One task is one key/value head by a tile of tokens: the heads that share
 * the keys and the tokens of the tile are rows that go through the kernels together.
 *
 * A row sees all keys of its tile's last token; those after its own position get the score minus infinity, hence
 * weight 0, so that a row's result is the same in any tile. */
#include "runtime/session.h"

#include <math.h>
#include <string.h>

enum { SCORE_BYTES = 192 * 1024, MAX_TILE_TOKENS = 16, INLINE_WORK = 32 * 1024 };

struct attention_run {
    struct drllm_session *session;
    size_t slot;
    size_t n;
    size_t first;
    size_t tile_tokens;
    size_t n_tiles;
    float scale;
};

/* Rows of scores stay inside a core's cache. */
static size_t tile_tokens(const struct drllm_config *config, size_t n_keys) {
    const size_t group = config->n_heads / config->n_kv_heads;
    const size_t tokens = SCORE_BYTES / sizeof(float) / (drllm_kv_round_up(n_keys) * group);
    return tokens < 1 ? 1 : tokens > MAX_TILE_TOKENS ? MAX_TILE_TOKENS : tokens;
}

size_t drllm_attention_floats(const struct drllm_config *config, size_t max_keys) {
    const size_t group = config->n_heads / config->n_kv_heads;
    const size_t most_scores = SCORE_BYTES / sizeof(float) + drllm_kv_round_up(max_keys) * group;
    return MAX_TILE_TOKENS * group * (2 * config->head_dim + 1) + most_scores;
}

/* The rows of a tile: all arrays are row by row, of head_dim or padded_keys floats. */
struct attention_rows {
    const float *queries;
    float *scores;
    float *outputs;
    const float *inverse; /* [n_rows] */
    size_t n_rows;
    size_t n_keys;
    size_t padded_keys;
};

static void scores_of_rows(const struct drllm_session *session, size_t slot, size_t kv_head,
                           const struct attention_rows *rows) {
    const struct drllm_kvcache *kv = &session->kv;
    const size_t offset = kv_head * kv->head_dim * DRLLM_KV_BLOCK;
    const size_t stride = drllm_kvcache_key_stride(kv);
    const size_t n_blocks = rows->padded_keys / DRLLM_KV_BLOCK;
    if (kv->element_bytes == sizeof(float)) {
        drllm_attention_scores_f32(rows->queries, kv->head_dim, rows->n_rows,
                                   (const float *)kv->slots[slot].keys + offset, stride, n_blocks, kv->head_dim,
                                   rows->scores, rows->padded_keys);
    } else {
        session->model->vec->attention_scores(rows->queries, kv->head_dim, rows->n_rows,
                                              (const uint16_t *)kv->slots[slot].keys + offset, stride, n_blocks,
                                              kv->head_dim, rows->scores, rows->padded_keys);
    }
}

static void values_of_rows(const struct drllm_session *session, size_t slot, size_t kv_head,
                           const struct attention_rows *rows) {
    const struct drllm_kvcache *kv = &session->kv;
    const size_t offset = kv_head * kv->head_dim;
    const size_t stride = drllm_kvcache_value_stride(kv);
    if (kv->element_bytes == sizeof(float)) {
        drllm_attention_values_f32(rows->scores, rows->padded_keys, rows->n_rows,
                                   (const float *)kv->slots[slot].values + offset, stride, rows->n_keys, kv->head_dim,
                                   rows->inverse, rows->outputs, kv->head_dim);
    } else {
        session->model->vec->attention_values(rows->scores, rows->padded_keys, rows->n_rows,
                                              (const uint16_t *)kv->slots[slot].values + offset, stride, rows->n_keys,
                                              kv->head_dim, rows->inverse, rows->outputs, kv->head_dim);
    }
}

static void run_tile(void *context, size_t worker, size_t index) {
    const struct attention_run *run = context;
    struct drllm_session *session = run->session;
    const struct drllm_config *config = &session->model->config;
    const struct drllm_vec_ops *vec = session->model->vec;
    const size_t head_dim = config->head_dim;
    const size_t group = config->n_heads / config->n_kv_heads;
    const size_t kv_head = index % config->n_kv_heads;
    /* The last tiles have the most keys: begin with them, so that no long task comes last. */
    const size_t tile = run->n_tiles - 1 - index / config->n_kv_heads;
    const size_t first_token = tile * run->tile_tokens;
    const size_t left = run->n - first_token;
    const size_t n_tokens = left < run->tile_tokens ? left : run->tile_tokens;
    const size_t n_rows = n_tokens * group;
    const size_t n_keys = run->first + first_token + n_tokens;
    const size_t padded_keys = drllm_kv_round_up(n_keys);

    float *queries = session->attention.memory + worker * session->attention.floats_per_worker;
    float *outputs = queries + MAX_TILE_TOKENS * group * head_dim;
    float *inverse = outputs + MAX_TILE_TOKENS * group * head_dim;
    float *scores = inverse + MAX_TILE_TOKENS * group;
    const size_t width = config->n_heads * head_dim;
    const size_t row_bytes = group * head_dim * sizeof(float);
    for (size_t t = 0; t < n_tokens; t++) {
        memcpy(queries + t * group * head_dim,
               session->scratch.q + (first_token + t) * width + kv_head * group * head_dim, row_bytes);
    }

    const struct attention_rows rows = {.queries = queries,
                                        .scores = scores,
                                        .outputs = outputs,
                                        .inverse = inverse,
                                        .n_rows = n_rows,
                                        .n_keys = n_keys,
                                        .padded_keys = padded_keys};
    scores_of_rows(session, run->slot, kv_head, &rows);
    for (size_t row = 0; row < n_rows; row++) {
        float *row_scores = scores + row * padded_keys;
        for (size_t key = run->first + first_token + row / group + 1; key < padded_keys; key++) {
            row_scores[key] = -INFINITY;
        }
        inverse[row] = 1.0f / vec->softmax_exp(row_scores, padded_keys, run->scale);
    }
    values_of_rows(session, run->slot, kv_head, &rows);
    for (size_t t = 0; t < n_tokens; t++) {
        memcpy(session->scratch.attended + (first_token + t) * width + kv_head * group * head_dim,
               outputs + t * group * head_dim, row_bytes);
    }
}

void drllm_attention_run(struct drllm_session *session, size_t slot, size_t n, size_t first) {
    const struct drllm_config *config = &session->model->config;
    struct attention_run run = {.session = session, .slot = slot, .n = n, .first = first};
    run.tile_tokens = tile_tokens(config, first + n);
    run.n_tiles = (n + run.tile_tokens - 1) / run.tile_tokens;
    run.scale = 1.0f / sqrtf((float)config->head_dim);
    /* A token with few keys is done sooner than a thread is woken. */
    const bool small = n * (first + n) * config->head_dim < INLINE_WORK;
    drllm_threads_run(small ? NULL : session->threads, run_tile, &run, run.n_tiles * config->n_kv_heads);
}
