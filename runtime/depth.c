/* How deep a session runs: full, under a given program, or as routers decide. */
#include "runtime/error.h"
#include "runtime/program.h"
#include "runtime/session.h"

#include <math.h>
#include <string.h>

static const float plain_router_p = -0.5f;

struct drllm_depth drllm_depth_default(void) {
    return (struct drllm_depth){.kind = DRLLM_DEPTH_FULL, .router_p = plain_router_p, .save_layers = -1.0f};
}

/* ---- Setting ---- */

static int check_depth(struct drllm_session *session, const struct drllm_depth *depth) {
    if ((int)depth->kind < DRLLM_DEPTH_FULL || depth->kind > DRLLM_DEPTH_ROUTED ||
        (int)depth->reroute < DRLLM_REROUTE_TURN || depth->reroute > DRLLM_REROUTE_NEVER) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "there is no depth %d or reroute %d", (int)depth->kind,
                                  (int)depth->reroute);
    }
    if (depth->kind == DRLLM_DEPTH_STATIC &&
        (depth->program == NULL || !drllm_program_is_valid(depth->program, session->model->config.n_layers))) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "a program is %zu counts of 0, 1 or 2",
                                  session->model->config.n_layers);
    }
    if (depth->kind == DRLLM_DEPTH_ROUTED && (depth->routers == NULL || depth->routers->model != session->model)) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "%s",
                                  depth->routers == NULL ? "a routed depth needs routers"
                                                         : "the routers were opened for another model");
    }
    return DRLLM_OK;
}

static int read_budget(struct drllm_session *session, const struct drllm_depth *depth, struct drllm_budget *budget) {
    *budget = (struct drllm_budget){.router_p = depth->router_p};
    if (!(depth->router_p >= -1.0f && depth->router_p <= 1.0f)) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "router_p must be from -1 to 1");
    }
    if (!isfinite(depth->save_layers)) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "save_layers must be a number");
    }
    if (depth->save_layers < 0.0f) {
        return DRLLM_OK;
    }
    if (depth->router_p < plain_router_p || depth->router_p > plain_router_p) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "router_p and save_layers exclude each other");
    }
    return drllm_routers_skip_bias(depth->routers, depth->save_layers, &budget->skip_bias, &session->error);
}

int drllm_session_set_depth(struct drllm_session *session, const struct drllm_depth *depth) {
    if (session == NULL || depth == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    int status = check_depth(session, depth);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_router_run router = {0};
    if (depth->kind == DRLLM_DEPTH_ROUTED) {
        struct drllm_budget budget;
        status = read_budget(session, depth, &budget);
        if (status == DRLLM_OK && session->router.routers == depth->routers) {
            session->router.budget = budget; /* the same routers, so that nothing can fail */
            router = session->router;
        } else if (status == DRLLM_OK) {
            status = drllm_router_run_open(&router, depth->routers, &budget, &session->error);
        }
        if (status != DRLLM_OK) {
            return status;
        }
    }
    if (router.routers == NULL || router.routers != session->router.routers) {
        drllm_router_run_close(&session->router);
    }
    session->router = router;
    if (depth->kind != DRLLM_DEPTH_ROUTED || depth->reroute != DRLLM_REROUTE_TURN) {
        drllm_pool_free(&session->pool, &session->allocator);
    }
    session->depth = depth->kind;
    session->reroute = depth->reroute;
    if (depth->kind == DRLLM_DEPTH_STATIC) {
        memcpy(session->program, depth->program, session->model->config.n_layers);
    }
    return DRLLM_OK;
}

/* ---- What a pass runs ---- */

static bool is_decided_anew(const struct drllm_session *session, bool is_turn) {
    return session->n_tokens == 0 ||
           (is_turn && (session->depth != DRLLM_DEPTH_ROUTED || session->reroute == DRLLM_REROUTE_TURN));
}

static void forget_cache(struct drllm_session *session) {
    session->n_cached = 0;
    drllm_pool_rewind(&session->pool, 0);
}

/* All tokens from position `first` on. */
static void plan_tail(const struct drllm_session *session, struct drllm_pass *pass, size_t first) {
    pass->n_segments = 0;
    pass->n_rows = 0;
    drllm_pass_add(pass, session->tokens + first, pass->n_tokens - first, first);
}

/* The cells that the windows cut through, in front of the tokens whose sums are not kept, and these tokens. */
static void plan_windows(const struct drllm_session *session, struct drllm_pass *pass) {
    const size_t n_kept =
        drllm_pool_round_down(session->pool.n_tokens < session->n_cached ? session->pool.n_tokens : session->n_cached);
    const size_t n_windows = drllm_router_windows(session->router.routers, pass->n_tokens);
    const size_t width = pass->n_tokens / n_windows;
    size_t end = 0; /* of the segments so far */
    pass->n_segments = 0;
    pass->n_rows = 0;
    for (size_t i = 1; i <= n_windows && i * width < n_kept; i++) {
        const size_t cell = drllm_pool_round_down(i * width);
        if (i * width != cell && cell >= end) {
            end = cell + DRLLM_POOL_CELL;
            drllm_pass_add(pass, session->tokens + cell, DRLLM_POOL_CELL, cell);
        }
    }
    drllm_pass_add(pass, session->tokens + n_kept, pass->n_tokens - n_kept, n_kept);
    if (pass->n_rows >= pass->n_tokens) {
        plan_tail(session, pass, 0);
    }
}

void drllm_depth_keep(struct drllm_session *session) {
    memcpy(session->next, session->decisions, session->model->config.n_layers * sizeof *session->next);
}

uint8_t drllm_depth_fit(const struct drllm_session *session, size_t layer, size_t n_used, uint8_t count) {
    const size_t n_behind = session->model->config.n_layers - layer - 1;
    return count > 1 && n_used + count + n_behind > session->kv.n_slots ? 1 : count;
}

static void plan_program(struct drllm_session *session, bool anew) {
    size_t n_used = 0;
    for (size_t layer = 0; layer < session->model->config.n_layers; layer++) {
        struct drllm_decision *next = &session->next[layer];
        const struct drllm_decision *now = &session->decisions[layer];
        const uint8_t count = session->depth == DRLLM_DEPTH_STATIC ? session->program[layer] : 1;
        *next = anew ? (struct drllm_decision){.count = drllm_depth_fit(session, layer, n_used, count)} : *now;
        n_used += next->count;
        if (next->count != now->count) {
            forget_cache(session); /* keys and values of another program are of no use */
        }
    }
}

void drllm_depth_plan(struct drllm_session *session, size_t n, bool is_turn, struct drllm_pass *pass) {
    const bool anew = is_decided_anew(session, is_turn);
    const bool keeps_sums = session->depth == DRLLM_DEPTH_ROUTED && session->reroute == DRLLM_REROUTE_TURN;
    pass->n_tokens = session->n_tokens + n;
    pass->decide = anew && session->depth == DRLLM_DEPTH_ROUTED;
    if (pass->decide) {
        plan_windows(session, pass);
    } else {
        plan_program(session, anew);
        plan_tail(session, pass, session->n_cached);
    }
    const size_t first = pass->segments[pass->n_segments - 1].first;
    pass->pool = keeps_sums && (pass->decide || session->pool.n_tokens == first);
    pass->first_new = pass->n_rows - n;
    if (pass->pool) {
        session->pool.n_tokens = drllm_pool_round_down(first); /* what is left if the pass fails */
    }
}

bool drllm_depth_widen(struct drllm_session *session, struct drllm_pass *pass) {
    forget_cache(session);
    if (pass->n_rows == pass->n_tokens) {
        return false;
    }
    const size_t n_new = pass->n_rows - pass->first_new;
    const size_t n_logits = pass->n_rows - pass->first_logits;
    plan_tail(session, pass, 0);
    pass->first_new = pass->n_rows - n_new;
    pass->first_logits = pass->n_rows - n_logits;
    return true;
}

void drllm_depth_commit(struct drllm_session *session, const struct drllm_pass *pass) {
    size_t n_executions = 0;
    for (size_t layer = 0; layer < session->model->config.n_layers; layer++) {
        session->decisions[layer] = session->next[layer];
        n_executions += session->decisions[layer].count;
    }
    drllm_kvcache_trim(&session->kv, n_executions);
    session->n_tokens = pass->n_tokens;
    session->n_cached = pass->n_tokens;
    if (pass->pool) {
        session->pool.n_tokens = pass->n_tokens;
    }
}

/* ---- What was run ---- */

int drllm_session_get_program(const struct drllm_session *session, uint8_t *counts) {
    if (session == NULL || counts == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (session->n_tokens == 0) {
        return DRLLM_ERR_STATE;
    }
    for (size_t layer = 0; layer < session->model->config.n_layers; layer++) {
        counts[layer] = session->decisions[layer].count;
    }
    return DRLLM_OK;
}

int drllm_session_get_decisions(const struct drllm_session *session, struct drllm_decision *decisions) {
    if (session == NULL || decisions == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (session->n_tokens == 0) {
        return DRLLM_ERR_STATE;
    }
    memcpy(decisions, session->decisions, session->model->config.n_layers * sizeof *decisions);
    return DRLLM_OK;
}

int drllm_session_get_layers_saved(const struct drllm_session *session, int *saved) {
    if (session == NULL || saved == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (session->n_tokens == 0) {
        return DRLLM_ERR_STATE;
    }
    *saved = 0;
    for (size_t layer = 0; layer < session->model->config.n_layers; layer++) {
        *saved += 1 - (int)session->decisions[layer].count;
    }
    return DRLLM_OK;
}
