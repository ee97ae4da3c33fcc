/* Sessions: opening, the context's life, prefill and decode. */
#include "runtime/session.h"

#include "platform/clock.h"
#include "platform/cpu.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/program.h"
#include "runtime/xnn_session.h"

#include <string.h>

enum { DEFAULT_CONTEXT = 2048, DEFAULT_CHUNK = 128, MAX_THREADS = 1024, MAX_CHUNK = 4096 };

struct drllm_session_params drllm_session_default_params(void) {
    return (struct drllm_session_params){.n_context = DEFAULT_CONTEXT};
}

/* ---- Scratch ---- */

/* Lays out parts of one block of memory: called once with base NULL to add up sizes, once to hand out pointers. */
struct layout {
    unsigned char *base;
    size_t used;
    bool overflow;
};

static void *part(struct layout *layout, size_t count, size_t size) {
    size_t bytes;
    size_t end;
    if (!drllm_multiply(count, size, &bytes) || !drllm_add_sizes(layout->used, bytes, &end) ||
        drllm_round_up(end) == SIZE_MAX) {
        layout->overflow = true;
        return NULL;
    }
    void *pointer = layout->base == NULL ? NULL : layout->base + layout->used;
    layout->used = drllm_round_up(end);
    return pointer;
}

static void lay_out_scratch(struct drllm_scratch *scratch, const struct drllm_config *config, size_t n_chunk,
                            unsigned n_threads, struct layout *layout) {
    const size_t q_width = config->n_heads * config->head_dim;
    const size_t kv_width = config->n_kv_heads * config->head_dim;
    const unsigned all = DRLLM_QUANT_GROUP | DRLLM_QUANT_ROW;
    scratch->n_chunk = n_chunk;
    scratch->normed = part(layout, n_chunk, config->d_model * sizeof(float));
    scratch->q = part(layout, n_chunk, q_width * sizeof(float));
    scratch->k = part(layout, n_chunk, kv_width * sizeof(float));
    scratch->v = part(layout, n_chunk, kv_width * sizeof(float));
    scratch->attended = part(layout, n_chunk, q_width * sizeof(float));
    scratch->projected = part(layout, n_chunk, config->d_model * sizeof(float));
    scratch->gate = part(layout, n_chunk, config->d_ff * sizeof(float));
    scratch->up = part(layout, n_chunk, config->d_ff * sizeof(float));
    scratch->tail = part(layout, n_chunk, DRLLM_MAX_PRODUCTS * DRLLM_PANEL_ROWS * sizeof(float));
    scratch->attention = part(layout, n_threads, drllm_attention_bytes(config));
    scratch->quantised_d_model = part(layout, drllm_activations_bytes(n_chunk, config->d_model, all), 1);
    scratch->quantised_heads = part(layout, drllm_activations_bytes(n_chunk, q_width, all), 1);
    scratch->quantised_d_ff = part(layout, drllm_activations_bytes(n_chunk, config->d_ff, all), 1);
}

size_t drllm_session_scratch_bytes(const struct drllm_config *config, size_t n_chunk, unsigned n_threads) {
    struct drllm_scratch scratch;
    struct layout layout = {0};
    lay_out_scratch(&scratch, config, n_chunk, n_threads, &layout);
    return layout.overflow ? SIZE_MAX : layout.used;
}

static bool allocate_scratch(struct drllm_session *session, size_t n_chunk) {
    struct drllm_scratch *scratch = &session->scratch;
    struct layout layout = {0};
    lay_out_scratch(scratch, &session->model->config, n_chunk, session->n_threads, &layout);
    if (layout.overflow) {
        return false;
    }
    const size_t bytes = layout.used;
    unsigned char *memory = drllm_allocate(&session->allocator, bytes, 1);
    if (memory == NULL) {
        return false;
    }
    layout = (struct layout){.base = memory};
    lay_out_scratch(scratch, &session->model->config, n_chunk, session->n_threads, &layout);
    scratch->memory = memory;
    scratch->bytes = bytes;
    return true;
}

/* ---- Opening and closing ---- */

/* The reference network keeps its keys and values as they are. */
static enum drllm_format kv_format(const struct drllm_model *model, const struct drllm_session_params *params) {
    return model->compute == DRLLM_COMPUTE_F32 ? DRLLM_FORMAT_F32
           : params->kv_type == DRLLM_KV_Q8_0  ? DRLLM_FORMAT_Q8_0
                                               : DRLLM_FORMAT_F16;
}

static int check_params(const struct drllm_model *model, struct drllm_session_params *params,
                        struct drllm_error *error) {
    if (model->vocab_only) {
        return drllm_fail(error, DRLLM_ERR_STATE,
                          "the model was opened for its vocabulary only; open it whole for a session");
    }
    if (params->n_context == 0) {
        params->n_context = model->config.n_context_trained;
    }
    if (params->n_context > (size_t)1 << 28) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "a context of %zu tokens is too large", params->n_context);
    }
    if (params->n_threads > MAX_THREADS) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "%u threads; 1 to %d make sense", params->n_threads, MAX_THREADS);
    }
    if (params->n_threads == 0) {
        params->n_threads = drllm_cpu_default_threads();
        params->n_threads = params->n_threads < MAX_THREADS ? params->n_threads : MAX_THREADS;
    }
    if (params->n_chunk == 0) {
        params->n_chunk = DEFAULT_CHUNK;
    }
    if (params->n_chunk > MAX_CHUNK) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "chunks of %zu tokens; 1 to %d make sense", params->n_chunk,
                          MAX_CHUNK);
    }
    params->n_chunk = params->n_chunk < params->n_context ? params->n_chunk : params->n_context;
    if (params->kv_type != DRLLM_KV_F16 && params->kv_type != DRLLM_KV_Q8_0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "%d is no type of keys and values", (int)params->kv_type);
    }
    const size_t n_layers = model->config.n_layers;
    if (params->n_slots != 0 && params->n_slots < n_layers) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "%zu slots for keys and values; the %zu blocks need one each",
                          params->n_slots, n_layers);
    }
    params->n_slots = params->n_slots == 0 || params->n_slots > n_layers * DRLLM_MAX_COUNT ? n_layers * DRLLM_MAX_COUNT
                                                                                           : params->n_slots;
    if (kv_format(model, params) == DRLLM_FORMAT_Q8_0 &&
        (model->config.head_dim % DRLLM_GROUP != 0 || model->config.head_dim > DRLLM_KV_Q8_0_MOST_DIM)) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "keys and values in q8_0 need heads of a multiple of %d dimensions, at most %d; this model's "
                          "have %zu",
                          DRLLM_GROUP, DRLLM_KV_Q8_0_MOST_DIM, model->config.head_dim);
    }
    return DRLLM_OK;
}

static int session_build(struct drllm_session *session, const struct drllm_session_params *params,
                         struct drllm_error *error) {
    const struct drllm_config *config = &session->model->config;
    session->n_context = params->n_context;
    session->n_threads = params->n_threads;
    if (params->n_threads > 1) { /* NULL runs inline, and owns nothing outside the allocator */
        session->threads = drllm_threads_create(params->n_threads);
    }
    if (params->n_threads > 1 && session->threads == NULL) {
        return drllm_fail(error, DRLLM_ERR_SYSTEM, "%u threads could not be started; ask for fewer", params->n_threads);
    }
    session->tokens = drllm_allocate(&session->allocator, params->n_context, sizeof *session->tokens);
    int status = drllm_kvcache_init(&session->kv, &session->allocator, params->n_slots, config->n_kv_heads,
                                    config->head_dim, kv_format(session->model, params), params->n_context);
    if (session->kv.format == DRLLM_FORMAT_Q8_0) {
        session->kv_multiply = drllm_kernel_choose(DRLLM_FORMAT_Q8C, session->model->cpu_features)->q8;
    }
    session->decisions = drllm_allocate_zeroed(&session->allocator, config->n_layers, sizeof *session->decisions);
    session->next = drllm_allocate_zeroed(&session->allocator, config->n_layers, sizeof *session->next);
    session->program = drllm_allocate_zeroed(&session->allocator, config->n_layers, sizeof *session->program);
    if (status != DRLLM_OK || session->tokens == NULL || session->decisions == NULL || session->next == NULL ||
        session->program == NULL || !allocate_scratch(session, params->n_chunk)) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for a session of %zu tokens", params->n_context);
    }
    return drllm_xnn_session_open(session->model, params->n_chunk, &session->xnn, error);
}

int drllm_session_open(const struct drllm_model *model, const struct drllm_session_params *params,
                       struct drllm_session **session, struct drllm_error *error) {
    if (model == NULL || session == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model and session must not be NULL");
    }
    struct drllm_session_params checked = params == NULL ? drllm_session_default_params() : *params;
    int status = check_params(model, &checked, error);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_session *opened = drllm_allocate_zeroed(&model->allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for a session");
    }
    /* Only the count of sessions in the model ever changes. */
    opened->model = (struct drllm_model *)model;
    opened->allocator = model->allocator;
    atomic_fetch_add(&opened->model->n_users, 1);
    status = session_build(opened, &checked, error);
    if (status != DRLLM_OK) {
        drllm_session_close(opened);
        return status;
    }
    *session = opened;
    return DRLLM_OK;
}

void drllm_session_close(struct drllm_session *session) {
    if (session == NULL) {
        return;
    }
    struct drllm_model *model = session->model;
    const struct drllm_config *config = &model->config;
    const struct drllm_allocator allocator = session->allocator;
    drllm_xnn_session_close(session->xnn);
    drllm_router_run_close(&session->router);
    drllm_pool_free(&session->pool, &allocator);
    drllm_threads_destroy(session->threads);
    drllm_kvcache_free(&session->kv);
    drllm_release(&allocator, session->scratch.memory, session->scratch.bytes, 1);
    drllm_release(&allocator, session->residual, session->pass_rows, config->d_model * sizeof(float));
    drllm_release(&allocator, session->cos_sin, session->pass_rows, config->n_rot * sizeof(float));
    drllm_release(&allocator, session->logits, session->logits_rows, config->n_vocab * sizeof(float));
    drllm_release(&allocator, session->candidates, config->n_vocab, sizeof *session->candidates);
    drllm_release(&allocator, session->tokens, session->n_context, sizeof *session->tokens);
    drllm_release(&allocator, session->decisions, config->n_layers, sizeof *session->decisions);
    drllm_release(&allocator, session->next, config->n_layers, sizeof *session->next);
    drllm_release(&allocator, session->program, config->n_layers, sizeof *session->program);
    drllm_release(&allocator, session, 1, sizeof *session);
    atomic_fetch_sub(&model->n_users, 1);
}

/* ---- The context ---- */

const char *drllm_session_last_error(const struct drllm_session *session) {
    return session->error.detail;
}

int drllm_session_check_cancel(struct drllm_session *session) {
    /* The plain load comes first, since it is asked for every chunk of every block. */
    if (!atomic_load_explicit(&session->cancelled, memory_order_relaxed) ||
        !atomic_exchange(&session->cancelled, false)) {
        return DRLLM_OK;
    }
    return drllm_session_fail(session, DRLLM_ERR_CANCELLED, "cancelled");
}

void drllm_session_cancel(struct drllm_session *session) {
    atomic_store(&session->cancelled, true);
}

size_t drllm_session_n_tokens(const struct drllm_session *session) {
    return session->n_tokens;
}

const int32_t *drllm_session_tokens(const struct drllm_session *session) {
    return session->tokens;
}

const float *drllm_session_logits(const struct drllm_session *session) {
    return session->has_logits ? session->logits : NULL;
}

int drllm_session_rewind(struct drllm_session *session, size_t n_tokens) {
    if (session == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (n_tokens > session->n_tokens) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "the context holds %zu tokens, fewer than %zu",
                                  session->n_tokens, n_tokens);
    }
    session->has_logits = session->has_logits && n_tokens == session->n_tokens;
    session->n_tokens = n_tokens;
    session->n_cached = session->n_cached < n_tokens ? session->n_cached : n_tokens;
    drllm_pool_rewind(&session->pool, n_tokens);
    return DRLLM_OK;
}

void drllm_session_reset(struct drllm_session *session) {
    session->n_tokens = 0;
    session->n_cached = 0;
    drllm_pool_rewind(&session->pool, 0);
    session->has_logits = false;
    atomic_store(&session->cancelled, false);
    session->timings = (struct drllm_timings){0};
    session->error = (struct drllm_error){0};
}

void drllm_session_get_timings(const struct drllm_session *session, struct drllm_timings *timings) {
    *timings = session->timings;
    timings->kv_bytes = drllm_kvcache_bytes(&session->kv);
}

void drllm_session_set_layer_hook(struct drllm_session *session, drllm_layer_hook hook, void *user) {
    session->layer_hook = hook;
    session->layer_hook_user = user;
}

/* ---- Computing ---- */

int drllm_session_check_tokens(struct drllm_session *session, const int32_t *tokens, size_t n_tokens) {
    if (tokens == NULL || n_tokens == 0) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "there are no tokens to compute");
    }
    if (n_tokens > session->n_context - session->n_tokens) {
        return drllm_session_fail(session, DRLLM_ERR_CONTEXT_FULL,
                                  "%zu tokens do not fit behind the %zu of a context of %zu; use a larger context or a "
                                  "shorter prompt",
                                  n_tokens, session->n_tokens, session->n_context);
    }
    for (size_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || (size_t)tokens[i] >= session->model->config.n_vocab) {
            return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "token %zu is %d; the vocabulary has ids 0 to %zu",
                                      i, (int)tokens[i], session->model->config.n_vocab - 1);
        }
    }
    return DRLLM_OK;
}

/* Append tokens that were checked, as a turn or as what follows one. */
static int compute(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first, bool is_turn,
                   drllm_logits_hook hook, void *user) {
    const uint64_t start = drllm_clock_ns();
    session->has_logits = false;
    session->error = (struct drllm_error){0};
    struct drllm_pass pass = {.hook = hook, .user = user};
    drllm_depth_plan(session, n_tokens, is_turn, &pass);
    pass.first_logits = pass.first_new + first;
    memmove(session->tokens + session->n_tokens, tokens, n_tokens * sizeof *tokens); /* they may be the session's own */
    const int status = drllm_forward(session, &pass);
    if (status != DRLLM_OK) {
        return status;
    }
    drllm_depth_commit(session, &pass);
    session->timings.router_ns += pass.router_ns;
    session->has_logits = true;
    const uint64_t elapsed = drllm_clock_ns() - start;
    if (pass.n_rows == 1) {
        session->timings.n_decode++;
        session->timings.decode_ns += elapsed;
    } else {
        session->timings.n_prefill += pass.n_rows;
        session->timings.prefill_ns += elapsed;
    }
    return DRLLM_OK;
}

static int check_and_compute(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first,
                             bool is_turn, drllm_logits_hook hook, void *user) {
    if (session == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    const int status = first < n_tokens
                           ? drllm_session_check_tokens(session, tokens, n_tokens)
                           : drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "there are no tokens to compute");
    if (status != DRLLM_OK) {
        session->has_logits = false;
        return status;
    }
    return compute(session, tokens, n_tokens, first, is_turn, hook, user);
}

int drllm_session_prefill_logits(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first,
                                 drllm_logits_hook hook, void *user) {
    return check_and_compute(session, tokens, n_tokens, first, true, hook, user);
}

int drllm_session_extend_logits(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first,
                                drllm_logits_hook hook, void *user) {
    if (session != NULL && session->n_tokens == 0) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "there is no prompt whose program could be kept");
    }
    return check_and_compute(session, tokens, n_tokens, first, false, hook, user);
}

int drllm_session_prefill(struct drllm_session *session, const int32_t *tokens, size_t n_tokens) {
    return check_and_compute(session, tokens, n_tokens, n_tokens == 0 ? 0 : n_tokens - 1, true, NULL, NULL);
}

int drllm_session_decode(struct drllm_session *session, int32_t token) {
    return check_and_compute(session, &token, 1, 0, false, NULL, NULL);
}
