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

void drllm_depth_plan(struct drllm_session *session, size_t n, bool is_turn, struct drllm_pass *pass) {
    const size_t n_layers = session->model->config.n_layers;
    const bool anew = is_decided_anew(session, is_turn);
    pass->decide = anew && session->depth == DRLLM_DEPTH_ROUTED;
    for (size_t layer = 0; layer < n_layers && !pass->decide; layer++) {
        struct drllm_decision *next = &session->next[layer];
        const struct drllm_decision *now = &session->decisions[layer];
        const uint8_t count = session->depth == DRLLM_DEPTH_STATIC ? session->program[layer] : 1;
        *next = anew ? (struct drllm_decision){.count = count} : *now;
        if (next->count != now->count) {
            session->n_cached = 0; /* keys and values of another program are of no use */
        }
    }
    /* A router reads the whole prompt, also what was computed before. */
    pass->first = pass->decide ? 0 : session->n_cached;
    pass->n = session->n_tokens + n - pass->first;
    pass->first_new = session->n_tokens - pass->first;
}

void drllm_depth_commit(struct drllm_session *session) {
    const size_t n_layers = session->model->config.n_layers;
    size_t n_executions = 0;
    for (size_t layer = 0; layer < n_layers; layer++) {
        session->decisions[layer] = session->next[layer];
        n_executions += session->decisions[layer].count;
    }
    drllm_kvcache_trim(&session->kv, n_executions);
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
