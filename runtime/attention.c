/* Causal attention with grouped queries. One task is one key/value head by a tile of tokens: the heads that share
 * the keys and the tokens of the tile are rows that go through the kernels together.
 *
 * The keys go by in tiles, too, with each row's largest score, sum of weights and weighted values so far (Milakov and
 * Gimelshein, arXiv 1805.02867), so that memory does not grow with the context and a tile stays in a core's first
 * cache. A tile begins at a multiple of its size, and keys behind a row's own position get the score minus infinity,
 * hence weight 0 and nothing changed: a row's result is the same in any company.
 *
 * Over a Q8_0 cache queries and weights are quantised, too, a row's and a tile's with one scale, and multiplied by the
 * kernels of quant/matmul.h. */
#include "runtime/session.h"

#include <math.h>
#include <string.h>

enum {
    TILE_KEYS = DRLLM_KV_TILE,
    TILE_TOKENS = 16,
    TILE_ROWS = 64,  /* fewer tokens when many heads share the keys */
    DIRECT_ROWS = 6, /* more rows read an expanded tile faster */
    INLINE_WORK = 32 * 1024
};

struct attention_run {
    struct drllm_session *session;
    size_t slot;
    size_t n;
    size_t first;
    size_t tile_tokens;
    size_t n_tiles;
    float scale;
};

static size_t tile_tokens(const struct drllm_config *config) {
    const size_t tokens = TILE_ROWS / (config->n_heads / config->n_kv_heads);
    return tokens < 1 ? 1 : tokens > TILE_TOKENS ? TILE_TOKENS : tokens;
}

static size_t tile_rows(const struct drllm_config *config) {
    return tile_tokens(config) * (config->n_heads / config->n_kv_heads);
}

/* The rows of a tile in a worker's memory. */
struct attention_rows {
    size_t n;
    size_t group;    /* rows of one token */
    size_t position; /* of the first token */
    float *queries;  /* [n][head_dim], times the scale */
    float *outputs;  /* the same */
    float *scores;   /* [n][TILE_KEYS] */
    float *max;      /* [n] */
    float *sum;      /* [n] */
    float *factor;   /* [n]: what the outputs so far are worth now that a tile's scores are known */
    float *expanded; /* [TILE_KEYS][head_dim]: a tile of keys or values, when there are many rows */
    /* Of a Q8_0 cache; its `expanded` is [n][head_dim], a tile's weighted values. */
    struct drllm_activations quantised_queries;
    int8_t *weights; /* [n][TILE_KEYS] */
    float *weight_scale;
    int32_t *weight_sum;
    struct drllm_q8_row *weight_rows; /* [n]: the same for the kernels */
};

static size_t row_floats(const struct drllm_config *config) {
    const size_t expanded_rows = tile_rows(config) > TILE_KEYS ? tile_rows(config) : (size_t)TILE_KEYS;
    return tile_rows(config) * (2 * config->head_dim + TILE_KEYS + 3) + expanded_rows * config->head_dim;
}

size_t drllm_attention_bytes(const struct drllm_config *config) {
    const size_t n = tile_rows(config);
    return drllm_round_up(row_floats(config) * sizeof(float)) +
           drllm_round_up(drllm_activations_bytes(n, config->head_dim, DRLLM_QUANT_ROW)) +
           drllm_round_up(n * (sizeof(struct drllm_q8_row) + sizeof(float) + sizeof(int32_t) + TILE_KEYS));
}

static struct attention_rows begin_rows(const struct attention_run *run, size_t worker, size_t n) {
    const struct drllm_config *config = &run->session->model->config;
    const size_t most = tile_rows(config);
    unsigned char *memory = run->session->scratch.attention + worker * drllm_attention_bytes(config);
    struct attention_rows rows = {.n = n, .group = config->n_heads / config->n_kv_heads};
    rows.queries = (float *)(void *)memory;
    rows.outputs = rows.queries + most * config->head_dim;
    rows.scores = rows.outputs + most * config->head_dim;
    rows.max = rows.scores + most * TILE_KEYS;
    rows.sum = rows.max + most;
    rows.factor = rows.sum + most;
    rows.expanded = rows.factor + most;
    if (run->session->kv_multiply == NULL) {
        return rows;
    }
    memory += drllm_round_up(row_floats(config) * sizeof(float));
    drllm_activations_init(&rows.quantised_queries, memory, most, config->head_dim, DRLLM_QUANT_ROW);
    rows.quantised_queries.x = rows.queries;
    rows.quantised_queries.ldx = config->head_dim;
    memory += drllm_round_up(drllm_activations_bytes(most, config->head_dim, DRLLM_QUANT_ROW));
    rows.weight_rows = (struct drllm_q8_row *)(void *)memory;
    rows.weight_scale = (float *)(void *)(rows.weight_rows + most);
    rows.weight_sum = (int32_t *)(void *)(rows.weight_scale + most);
    rows.weights = (int8_t *)(rows.weight_sum + most);
    for (size_t row = 0; row < n; row++) {
        rows.weight_rows[row] =
            (struct drllm_q8_row){rows.weights + row * TILE_KEYS, rows.weight_scale + row, rows.weight_sum + row, NULL};
    }
    return rows;
}

/* Keys behind a row's own position, of `padded` from number `first` on, count for nothing. */
static void mask(const struct attention_rows *rows, size_t first, size_t padded) {
    for (size_t row = 0; first + padded > rows->position && row < rows->n; row++) {
        float *scores = rows->scores + row * TILE_KEYS;
        const size_t end = rows->position + row / rows->group + 1;
        for (size_t key = end > first ? end - first : 0; key < padded; key++) {
            scores[key] = -INFINITY;
        }
    }
}

/* Add what the keys from number `first` on, n <= TILE_KEYS of them, give, of a Q8_0 cache. */
static void add_quantised_keys(const struct attention_run *run, size_t kv_head, const struct attention_rows *rows,
                               size_t first, size_t n) {
    const struct drllm_kvcache *kv = &run->session->kv;
    const struct drllm_attention_ops *ops = run->session->model->vec->attention;
    const size_t head_dim = kv->head_dim;
    const size_t padded = drllm_kv_round_up(n, DRLLM_KV_BLOCK);
    const unsigned char *values = drllm_kvcache_values(kv, run->slot, kv_head, first);
    const size_t panel_bytes = drllm_kv_panel_bytes(TILE_KEYS);
    const size_t n_panels = head_dim / DRLLM_KV_BLOCK;

    run->session->kv_multiply(drllm_kvcache_keys(kv, run->slot, kv_head, first),
                              drllm_kv_key_bytes(kv->format, head_dim), padded / DRLLM_KV_BLOCK, head_dim / DRLLM_GROUP,
                              rows->quantised_queries.row, rows->n, rows->scores, TILE_KEYS);
    mask(rows, first, padded);
    ops->softmax(rows->scores, TILE_KEYS, rows->n, padded, rows->max, rows->sum, rows->factor);
    ops->quantize(rows->scores, TILE_KEYS, rows->n, padded,
                  (const float *)(const void *)(values + n_panels * panel_bytes), rows->weights, rows->weight_scale,
                  rows->weight_sum);
    run->session->kv_multiply(values, panel_bytes, n_panels, TILE_KEYS / DRLLM_GROUP, rows->weight_rows, rows->n,
                              rows->expanded, head_dim);
    ops->accumulate(rows->expanded, rows->n, head_dim, rows->factor, rows->outputs, head_dim);
}

/* The same of floats. */
static void add_keys(const struct attention_run *run, size_t kv_head, const struct attention_rows *rows, size_t first,
                     size_t n) {
    const struct drllm_kvcache *kv = &run->session->kv;
    const struct drllm_attention_ops *ops = run->session->model->vec->attention;
    const size_t head_dim = kv->head_dim;
    const size_t padded = drllm_kv_round_up(n, DRLLM_KV_BLOCK);
    const size_t n_blocks = padded / DRLLM_KV_BLOCK;
    const void *keys = drllm_kvcache_keys(kv, run->slot, kv_head, first);
    const void *values = drllm_kvcache_values(kv, run->slot, kv_head, first);
    const bool expand = rows->n > DIRECT_ROWS && kv->format == DRLLM_FORMAT_F16;
    const enum drllm_format format = expand ? DRLLM_FORMAT_F32 : kv->format;
    size_t stride = drllm_kv_key_bytes(kv->format, head_dim);
    if (expand) {
        ops->expand(keys, stride, n_blocks, head_dim, rows->expanded);
        keys = rows->expanded;
        stride = drllm_kv_key_bytes(DRLLM_FORMAT_F32, head_dim);
    }
    ops->scores(format, rows->queries, head_dim, rows->n, keys, stride, n_blocks, head_dim, rows->scores, TILE_KEYS);
    mask(rows, first, padded);
    ops->softmax(rows->scores, TILE_KEYS, rows->n, padded, rows->max, rows->sum, rows->factor);
    if (expand) {
        ops->expand(values, drllm_kv_value_bytes(kv->format, head_dim), n_blocks, head_dim, rows->expanded);
        values = rows->expanded;
    }
    ops->values(format, rows->scores, TILE_KEYS, rows->n, values, stride, n, head_dim, rows->factor, rows->outputs,
                head_dim);
}

static void run_tile(void *context, size_t worker, size_t index) {
    const struct attention_run *run = context;
    struct drllm_session *session = run->session;
    const struct drllm_config *config = &session->model->config;
    const size_t kv_head = index % config->n_kv_heads;
    /* The last tiles have the most keys: begin with them, so that no long task comes last. */
    const size_t tile = run->n_tiles - 1 - index / config->n_kv_heads;
    const size_t first_token = tile * run->tile_tokens;
    const size_t left = run->n - first_token;
    const size_t n_tokens = left < run->tile_tokens ? left : run->tile_tokens;

    struct attention_rows rows = begin_rows(run, worker, n_tokens * (config->n_heads / config->n_kv_heads));
    rows.position = run->first + first_token;
    const size_t width = config->n_heads * config->head_dim;
    const size_t token_floats = rows.group * config->head_dim;
    const float scale = run->scale;
    for (size_t t = 0; t < n_tokens; t++) {
        const float *q = session->scratch.q + (first_token + t) * width + kv_head * token_floats;
        for (size_t i = 0; i < token_floats; i++) {
            rows.queries[t * token_floats + i] = q[i] * scale;
        }
    }
    memset(rows.outputs, 0, n_tokens * token_floats * sizeof(float));
    for (size_t row = 0; row < rows.n; row++) {
        rows.max[row] = -INFINITY;
        rows.sum[row] = 0.0f;
    }
    if (session->kv_multiply != NULL) {
        drllm_activations_quantize(&rows.quantised_queries, session->model->vec, 0, rows.n);
    }
    const size_t n_keys = rows.position + n_tokens;
    for (size_t first = 0; first < n_keys; first += TILE_KEYS) {
        const size_t n = n_keys - first < TILE_KEYS ? n_keys - first : (size_t)TILE_KEYS;
        if (session->kv_multiply != NULL) {
            add_quantised_keys(run, kv_head, &rows, first, n);
        } else {
            add_keys(run, kv_head, &rows, first, n);
        }
    }
    for (size_t row = 0; row < rows.n; row++) {
        const float inverse = 1.0f / rows.sum[row];
        const float *output = rows.outputs + row * config->head_dim;
        float *attended = session->scratch.attended + (first_token + row / rows.group) * width +
                          kv_head * token_floats + row % rows.group * config->head_dim;
        for (size_t i = 0; i < config->head_dim; i++) {
            attended[i] = output[i] * inverse;
        }
    }
}

void drllm_attention_run(struct drllm_session *session, size_t slot, size_t n, size_t first) {
    const struct drllm_config *config = &session->model->config;
    struct attention_run run = {.session = session, .slot = slot, .n = n, .first = first};
    run.tile_tokens = tile_tokens(config);
    run.n_tiles = (n + run.tile_tokens - 1) / run.tile_tokens;
    run.scale = 0x1.715476p0f / sqrtf((float)config->head_dim); /* log2(e): the weights are powers of 2 */
    /* A token with few keys is done sooner than a thread is woken. */
    const bool small = n * (first + n) * config->head_dim < INLINE_WORK;
    drllm_threads_run(small ? NULL : session->threads, run_tile, &run, run.n_tiles * config->n_kv_heads);
}
