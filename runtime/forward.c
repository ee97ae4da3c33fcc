/* One pass: embed, run every block as often as the program says over all tokens of the pass, then the head for the rows
 * that are asked for.
 *
 * Blocks are the outer loop and chunks of tokens the inner one (block.c), because the router ahead of a block reads the
 * whole prompt there. */
#include "platform/clock.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/rope.h"
#include "runtime/session.h"
#include "runtime/xnn_session.h"

#include <math.h>
#include <string.h>

enum { HEAD_ROWS = 16 }; /* rows of logits in memory at once */

static int out_of_memory(struct drllm_session *session, const char *what) {
    return drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory for %s; a smaller context needs less",
                              what);
}

/* Replace *memory by a larger block without its content; the old one stays when there is none. */
static bool enlarge(struct drllm_session *session, float **memory, size_t old_rows, size_t rows, size_t width) {
    size_t row_bytes;
    if (!drllm_multiply(width, sizeof(float), &row_bytes)) {
        return false;
    }
    float *larger = drllm_allocate(&session->allocator, rows, row_bytes);
    if (larger == NULL) {
        return false;
    }
    drllm_release(&session->allocator, *memory, old_rows, row_bytes);
    *memory = larger;
    return true;
}

static int reserve_rows(struct drllm_session *session, size_t n) {
    const struct drllm_config *config = &session->model->config;
    if (session->pass_rows >= n) {
        return DRLLM_OK;
    }
    const size_t residual_bytes = config->d_model * sizeof(float);
    float *residual = drllm_allocate(&session->allocator, n, residual_bytes);
    float *cos_sin = drllm_allocate(&session->allocator, n, config->n_rot * sizeof(float));
    if (residual == NULL || cos_sin == NULL) {
        drllm_release(&session->allocator, residual, n, residual_bytes);
        drllm_release(&session->allocator, cos_sin, n, config->n_rot * sizeof(float));
        return out_of_memory(session, "the prompt");
    }
    drllm_release(&session->allocator, session->residual, session->pass_rows, residual_bytes);
    drllm_release(&session->allocator, session->cos_sin, session->pass_rows, config->n_rot * sizeof(float));
    session->residual = residual;
    session->cos_sin = cos_sin;
    session->pass_rows = n;
    return DRLLM_OK;
}

void drllm_pass_add(struct drllm_pass *pass, const int32_t *tokens, size_t n, size_t first) {
    pass->segments[pass->n_segments++] =
        (struct drllm_segment){.tokens = tokens, .n = n, .first = first, .row = pass->n_rows};
    pass->n_rows += n;
    pass->n_tokens = first + n > pass->n_tokens ? first + n : pass->n_tokens;
}

int drllm_pass_reserve(struct drllm_session *session, const struct drllm_pass *pass) {
    const struct drllm_config *config = &session->model->config;
    int status = reserve_rows(session, pass->n_rows);
    if (status == DRLLM_OK && pass->pool &&
        drllm_pool_reserve(&session->pool, &session->allocator, config->n_layers, config->d_model, pass->n_tokens) !=
            DRLLM_OK) {
        return out_of_memory(session, "the routers' view of the prompt");
    }
    const size_t n_logits = pass->n_rows - pass->first_logits;
    const size_t rows = n_logits < HEAD_ROWS ? n_logits : (size_t)HEAD_ROWS;
    if (status == DRLLM_OK && session->logits_rows < rows && !session->is_reserved) {
        if (!enlarge(session, &session->logits, session->logits_rows, rows, config->n_vocab)) {
            return out_of_memory(session, "the logits");
        }
        session->logits_rows = rows;
    }
    drllm_kvcache_set_positions(&session->kv, pass->n_tokens);
    return status;
}

int drllm_session_reserve(struct drllm_session *session, bool pool) {
    const struct drllm_pass pass = {.n_rows = session->n_context,
                                    .n_tokens = session->n_context,
                                    .pool = pool,
                                    .first_logits = session->n_context - 1};
    int status = drllm_pass_reserve(session, &pass);
    for (size_t slot = 0; status == DRLLM_OK && slot < session->kv.n_slots; slot++) {
        status = drllm_kvcache_use(&session->kv, slot, 0);
    }
    session->is_reserved = status == DRLLM_OK;
    return status;
}

/* The final norm and the head for rows [first, first + n) of the residual, n <= HEAD_ROWS, into session->logits. */
static int run_head(struct drllm_session *session, size_t first, size_t n) {
    const struct drllm_model *model = session->model;
    const size_t d_model = model->config.d_model;
    struct drllm_activations activations;
    drllm_activations_init(&activations, session->scratch.quantised_d_model, n, d_model,
                           drllm_matrix_quantisation(&model->head));
    activations.x = session->scratch.normed;
    activations.ldx = d_model;
    activations.xnn = drllm_xnn_session_input(session->xnn);
    for (size_t row = 0; row < n; row++) {
        model->vec->rms_norm(session->scratch.normed + row * d_model, session->residual + (first + row) * d_model,
                             model->output_norm, d_model, model->config.rms_eps);
    }
    for (size_t i = 0; i < n * d_model; i++) {
        if (!isfinite(session->scratch.normed[i])) {
            return drllm_session_fail(session, DRLLM_ERR_FORMAT,
                                      "the network yields values that are no numbers; the model file is damaged");
        }
    }
    drllm_activations_quantize(&activations, model->vec, 0, n);
    const struct drllm_product product = {.matrix = &model->head,
                                          .y = session->logits,
                                          .ldy = model->config.n_vocab,
                                          .op = drllm_xnn_session_op(session->xnn, model->config.n_layers, 0)};
    if (!drllm_matmul(&product, 1, &activations, session->threads, session->scratch.tail)) {
        return drllm_session_fail(session, DRLLM_ERR_SYSTEM, "XNNPACK could not run the output head");
    }
    return DRLLM_OK;
}

int drllm_pass_logits(struct drllm_session *session, const struct drllm_pass *pass) {
    const size_t n_vocab = session->model->config.n_vocab;
    const size_t n = pass->n_rows;
    /* The scratch rows of the head are those of a chunk. */
    const size_t most = session->scratch.n_chunk < HEAD_ROWS ? session->scratch.n_chunk : (size_t)HEAD_ROWS;
    const size_t step = most < session->logits_rows ? most : session->logits_rows;
    for (size_t row = pass->first_logits; row < n; row += step) {
        const size_t rows = n - row < step ? n - row : step;
        int status = drllm_session_check_cancel(session);
        if (status == DRLLM_OK) {
            status = run_head(session, row, rows);
        }
        for (size_t i = 0; i < rows && status == DRLLM_OK && pass->hook != NULL; i++) {
            status = pass->hook(pass->user, row + i - pass->first_new, session->logits + i * n_vocab);
        }
        if (status != DRLLM_OK) {
            return status;
        }
        if (row + rows == n && rows > 1) {
            memcpy(session->logits, session->logits + (rows - 1) * n_vocab, n_vocab * sizeof(float));
        }
    }
    /* A cancel that came during the last rows is for this call, not for the next. */
    return drllm_session_check_cancel(session);
}

/* What the router ahead of block `layer` says; n_used slots are taken. */
static int decide(struct drllm_session *session, size_t layer, size_t n_used, struct drllm_pass *pass) {
    const uint64_t start = drllm_clock_ns();
    drllm_pool_read(session, layer, pass);
    const int status =
        drllm_router_decide(&session->router, layer, pass->n_tokens, &session->next[layer], &session->error);
    session->next[layer].count = drllm_depth_fit(session, layer, n_used, session->next[layer].count);
    pass->router_ns += drllm_clock_ns() - start;
    return status;
}

int drllm_pass_run_block(struct drllm_session *session, const struct drllm_pass *pass, size_t layer, size_t slot) {
    int status = DRLLM_OK;
    for (size_t i = 0; i < pass->n_segments && status == DRLLM_OK; i++) {
        status = drllm_block_run(session, layer, slot, &pass->segments[i]);
    }
    return status;
}

size_t drllm_pass_segment(const struct drllm_pass *pass, size_t from, size_t row) {
    while (row >= pass->segments[from].row + pass->segments[from].n) {
        from++;
    }
    return from;
}

/* Run one block as often as the program says, each time with a slot of its own. */
static int run_block(struct drllm_session *session, size_t layer, size_t *slot, const struct drllm_pass *pass) {
    for (size_t i = 0; i < session->next[layer].count; i++) {
        if (drllm_kvcache_use(&session->kv, *slot, session->n_cached) != DRLLM_OK) {
            return out_of_memory(session, "the key/value cache");
        }
        const int status = drllm_pass_run_block(session, pass, layer, *slot);
        if (status != DRLLM_OK) {
            return status;
        }
        (*slot)++;
    }
    return DRLLM_OK;
}

void drllm_pass_embed(struct drllm_session *session, const struct drllm_pass *pass) {
    const struct drllm_model *model = session->model;
    const struct drllm_config *config = &model->config;
    for (size_t i = 0; i < pass->n_segments; i++) {
        const struct drllm_segment *segment = &pass->segments[i];
        for (size_t j = 0; j < segment->n; j++) {
            const size_t position = segment->first + j;
            const size_t row = segment->row + j;
            drllm_model_embed(model, segment->tokens[j], session->residual + row * config->d_model);
            drllm_rope_angles(session->cos_sin + row * config->n_rot, model->rope_frequency, config->n_rot / 2,
                              position);
        }
    }
}

/* All blocks, as far as the program is the one that the pass was planned for. *differs: the router of a block came to
 * another decision than the context's program, and the tokens of the pass are not enough. */
static int run_blocks(struct drllm_session *session, struct drllm_pass *pass, bool *differs) {
    const struct drllm_config *config = &session->model->config;
    const float *last = session->residual + (pass->n_rows - 1) * config->d_model;
    size_t slot = 0;
    for (size_t layer = 0; layer < config->n_layers; layer++) {
        if (pass->pool) {
            drllm_pool_add(session, layer, pass);
        }
        int status = pass->decide ? decide(session, layer, slot, pass) : DRLLM_OK;
        if (status == DRLLM_OK && session->next[layer].count != session->decisions[layer].count) {
            *differs = drllm_depth_widen(session, pass);
            if (*differs) {
                return DRLLM_OK;
            }
        }
        if (status == DRLLM_OK) {
            status = run_block(session, layer, &slot, pass);
        }
        if (status != DRLLM_OK) {
            return status;
        }
        if (session->layer_hook != NULL) {
            session->layer_hook(session->layer_hook_user, layer, last);
        }
    }
    return DRLLM_OK;
}

int drllm_forward(struct drllm_session *session, struct drllm_pass *pass) {
    const struct drllm_model *model = session->model;
    const struct drllm_config *config = &model->config;
    bool differs;
    do {
        differs = false;
        int status = drllm_pass_reserve(session, pass);
        if (status == DRLLM_OK) {
            drllm_pass_embed(session, pass);
            status = run_blocks(session, pass, &differs);
        }
        if (status != DRLLM_OK) {
            return status;
        }
    } while (differs); /* once at most: the widened pass has all tokens */
    if (session->layer_hook != NULL) {
        const float *last = session->residual + (pass->n_rows - 1) * config->d_model;
        model->vec->rms_norm(session->scratch.normed, last, model->output_norm, config->d_model, config->rms_eps);
        session->layer_hook(session->layer_hook_user, config->n_layers, session->scratch.normed);
    }
    return drllm_pass_logits(session, pass);
}
