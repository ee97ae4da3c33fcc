/* Routers that run: a small network ahead of each block reads the prompt's hidden states there (router.c), from weights
 * packed like the model's (routers.c). */
#ifndef DRLLM_RUNTIME_ROUTER_H
#define DRLLM_RUNTIME_ROUTER_H

#include "quant/matmul_xnnpack.h"
#include "runtime/budget.h"
#include "runtime/memory.h"
#include "runtime/model.h"
#include "runtime/router_file.h"

struct drllm_router {
    struct drllm_matrix matrix[DRLLM_ROUTER_MATRICES];
    const float *bias[DRLLM_ROUTER_MATRICES]; /* [rows] */
    const float *input_scale;                 /* [d_model], of an int8 fc1 (runtime/router_file.h); otherwise NULL */
    /* Of weights that are used where they lie (model->data_stays), the file's int8 rows: the matrix has no data, and is
     * interleaved in the session's memory whenever it is used. */
    const int8_t *rows[DRLLM_ROUTER_MATRICES];
    const float *scales[DRLLM_ROUTER_MATRICES]; /* [rows] */
};

struct drllm_routers {
    struct drllm_model *model; /* of which only the count of users changes */
    struct drllm_kept *kept;   /* everything that is pointed to below */
    struct drllm_router *blocks;
    size_t n_windows, n_hidden;
    bool names_model;
    const char *name, *model_name, *model_quantization, *training;
    size_t n_calibration;
    float *bias, *saved; /* [n_calibration] */
    size_t weight_bytes;
    _Atomic size_t n_users; /* sessions */
};

/* The bias on the skip logit that saves so many layers on average. Errors: STATE without a table, ARGUMENT past its end. */
int drllm_routers_skip_bias(const struct drllm_routers *routers, float save_layers, float *bias,
                            struct drllm_error *error);

/* What one session needs to run a set of routers: memory, and XNNPACK's operators. */
struct drllm_router_run {
    const struct drllm_routers *routers;
    struct drllm_budget budget;
    struct drllm_kept *kept;
    float *pooled;    /* [n_windows][d_model]: sums over the tokens of a window */
    float *cell;      /* [d_model]: the sum over a part of a window */
    float *hidden;    /* [n_windows][n_hidden] */
    float *factor;    /* [n_hidden] */
    float *logits;    /* [n_windows][DRLLM_ROUTER_CLASSES] */
    float *tail;      /* for drllm_matmul */
    void *quantised;  /* for drllm_activations_init */
    void *panels;     /* for a matrix that is used where it lies; otherwise NULL */
    bool has_xnnpack; /* what follows is there */
    struct drllm_xnn_input input;
    struct drllm_xnn_op *ops; /* [n_layers][DRLLM_ROUTER_MATRICES] */
};

/* The run counts as a user of the routers until it is closed. Errors: MEMORY, SYSTEM; *run is then closed. */
int drllm_router_run_open(struct drllm_router_run *run, const struct drllm_routers *routers,
                          const struct drllm_budget *budget, struct drllm_error *error);
void drllm_router_run_close(struct drllm_router_run *run); /* also one that is all zeros */

/* W = min(n_windows, n_tokens): a prompt of n_tokens is cut into so many windows of n_tokens / W tokens, the rest is left
 * out. */
static inline size_t drllm_router_windows(const struct drllm_routers *routers, size_t n_tokens) {
    return routers->n_windows < n_tokens ? routers->n_windows : n_tokens;
}

/* How often block `layer` shall run after a prompt of n_tokens, whose hidden states there are in run->pooled. Errors:
 * FORMAT (values that are no numbers), SYSTEM. */
int drllm_router_decide(struct drllm_router_run *run, size_t layer, size_t n_tokens, struct drllm_decision *decision,
                        struct drllm_error *error);

#endif
