/* A session: a context, its keys and values, scratch memory, threads. */
#ifndef DRLLM_RUNTIME_SESSION_H
#define DRLLM_RUNTIME_SESSION_H

#include "platform/threads.h"
#include "runtime/internal.h"
#include "runtime/kvcache.h"
#include "runtime/model.h"
#include "runtime/pool.h"
#include "runtime/router.h"

#include <stdatomic.h>

/* Working memory of one pass through a block, for up to n_chunk tokens. All rows are floats. */
struct drllm_scratch {
    void *memory;
    size_t bytes;
    size_t n_chunk;
    float *normed;                    /* [n_chunk][d_model] */
    float *q;                         /* [n_chunk][n_heads * head_dim] */
    float *k;                         /* [n_chunk][n_kv_heads * head_dim] */
    float *v;                         /* the same */
    float *attended;                  /* [n_chunk][n_heads * head_dim] */
    float *projected;                 /* [n_chunk][d_model] */
    float *gate;                      /* [n_chunk][d_ff] */
    float *up;                        /* the same */
    float *tail;                      /* for drllm_matmul */
    unsigned char *attention;         /* [n_threads][drllm_attention_bytes] */
    unsigned char *quantised_d_model; /* for drllm_activations_init, by row length */
    unsigned char *quantised_heads;
    unsigned char *quantised_d_ff;
};

/* A token that sampling may choose. */
struct drllm_candidate {
    float logit;
    int32_t token;
};

struct drllm_session {
    struct drllm_model *model;
    struct drllm_allocator allocator;
    struct drllm_threads *threads;
    unsigned n_threads;
    size_t n_context;

    int32_t *tokens; /* [n_context] */
    size_t n_tokens;
    struct drllm_kvcache kv;
    drllm_matmul_q8_fn kv_multiply;   /* of a Q8_0 cache; else NULL */
    size_t n_cached;                  /* leading tokens whose keys and values are in the cache: all, unless a pass that
                                         changed the program failed */
    struct drllm_decision *decisions; /* [n_layers]: the program of the tokens in the context */
    struct drllm_decision *next;      /* [n_layers]: of the pass that runs */

    enum drllm_depth_kind depth; /* of the next prefill */
    enum drllm_reroute reroute;
    uint8_t *program;               /* [n_layers], for DRLLM_DEPTH_STATIC */
    struct drllm_router_run router; /* for DRLLM_DEPTH_ROUTED, otherwise all zeros */
    struct drllm_pool pool;         /* in use while each turn is routed anew, otherwise empty */

    struct drllm_scratch scratch;
    float *residual; /* [pass_rows][d_model] */
    float *cos_sin;  /* [pass_rows][n_rot]: the angles of the pass's positions */
    size_t pass_rows;
    float *logits; /* [logits_rows][n_vocab]; the last token's are in row 0 */
    size_t logits_rows;
    bool has_logits;
    bool is_reserved;                   /* by drllm_session_reserve: the rows of logits that are there must do */
    struct drllm_candidate *candidates; /* [n_vocab], from the first sampling that needs them on */
    struct drllm_xnn_session *xnn;      /* NULL when no matrix runs on XNNPACK */

    atomic_bool cancelled;
    drllm_layer_hook layer_hook;
    void *layer_hook_user;
    struct drllm_timings timings;
    struct drllm_error error;
};

/* Fail with the session's own error. */
#define drllm_session_fail(session, status, ...) drllm_fail(&(session)->error, status, __VA_ARGS__)

/* Neighbouring tokens that a pass computes, in its rows from `row` on. */
struct drllm_segment {
    const int32_t *tokens; /* [n] */
    size_t n;
    size_t first; /* position of the first */
    size_t row;
};

enum { DRLLM_MAX_SEGMENTS = DRLLM_ROUTER_MAX_WINDOWS + 1 };

/* One pass through the network. Every block runs a segment's rows before the next segment's, so that a segment sees in the
 * cache what is there and what the segments in front of it stored; one at the same positions takes their place. Usually
 * there is one segment, which ends with the newest token. More come in front of it when routers decide: tokens whose
 * keys and values are in the cache, but whose hidden states at the edges of windows are needed once more. Choices after
 * a prompt are a segment each, all at the same positions. */
struct drllm_pass {
    struct drllm_segment segments[DRLLM_MAX_SEGMENTS];
    size_t n_segments;
    size_t n_rows;
    size_t n_tokens;     /* past the last position */
    bool decide;         /* the routers fill in session->next while the pass runs; otherwise it holds the program */
    bool pool;           /* the last segment's hidden states are added to session->pool */
    size_t first_logits; /* the first row that gets logits */
    size_t first_new;    /* the row of the first token that is new: position 0 of the hook */
    drllm_logits_hook hook;
    void *user;
    uint64_t router_ns; /* out: spent on deciding */
};

/* forward.c: run the pass under the program in session->next, then the final norm and the head for rows first_logits ..
 * n_rows-1, the hook called for each when it is not NULL. The logits of the last row end in session->logits. The context is
 * not changed, but n_cached becomes 0 when keys and values of another program are overwritten. */
int drllm_forward(struct drllm_session *session, struct drllm_pass *pass);

/* forward.c, the parts of it: add a segment to a pass; make room for it; its embeddings and angles into
 * session->residual and session->cos_sin; one execution of a block with a slot; final norm, head and hook. */
void drllm_pass_add(struct drllm_pass *pass, const int32_t *tokens, size_t n, size_t first);
int drllm_pass_reserve(struct drllm_session *session, const struct drllm_pass *pass);
void drllm_pass_embed(struct drllm_session *session, const struct drllm_pass *pass);
int drllm_pass_run_block(struct drllm_session *session, const struct drllm_pass *pass, size_t layer, size_t slot);
int drllm_pass_logits(struct drllm_session *session, const struct drllm_pass *pass);

/* forward.c: allocate now what a pass over the whole context will need, the sums of later turns (pool.h) if `pool`. */
int drllm_session_reserve(struct drllm_session *session, bool pool);

/* The segment that a row is in, at or behind segment number `from`. */
size_t drllm_pass_segment(const struct drllm_pass *pass, size_t from, size_t row);

/* depth.c: which tokens a pass for `n` new ones runs, and under what. A turn takes the session's depth, what follows a
 * prompt keeps the program. Fills in the pass, and session->next unless the routers decide. */
void drllm_depth_plan(struct drllm_session *session, size_t n, bool is_turn, struct drllm_pass *pass);
/* depth.c: how often block `layer` may run of the `count` times that are wanted, when the blocks ahead of it took n_used
 * slots: a repeat must leave a slot for every block to come. */
uint8_t drllm_depth_fit(const struct drllm_session *session, size_t layer, size_t n_used, uint8_t count);
/* depth.c: session->next for a pass under the program of the context. */
void drllm_depth_keep(struct drllm_session *session);
/* depth.c: the routers came to another program than the context's: let the pass run all tokens. False if it does. */
bool drllm_depth_widen(struct drllm_session *session, struct drllm_pass *pass);
/* depth.c: the pass succeeded; its program and its tokens are now the context's. */
void drllm_depth_commit(struct drllm_session *session, const struct drllm_pass *pass);

/* pool.c: the sums over the windows of a prompt ahead of block `layer`, into session->router.pooled. */
void drllm_pool_read(struct drllm_session *session, size_t layer, const struct drllm_pass *pass);
/* pool.c: add the hidden states of the pass's last segment ahead of block `layer`. */
void drllm_pool_add(struct drllm_session *session, size_t layer, const struct drllm_pass *pass);

/* block.c: run block `layer` with KV slot `slot` on the rows of a segment, of session->residual and of
 * session->cos_sin. */
int drllm_block_run(struct drllm_session *session, size_t layer, size_t slot, const struct drllm_segment *segment);

/* attention.c: for n rows of scratch->q at positions first ..., whose keys and values are in the cache already, the
 * weighted values into scratch->attended. */
void drllm_attention_run(struct drllm_session *session, size_t slot, size_t n, size_t first);
/* Bytes of scratch that one worker needs, a multiple of DRLLM_ALIGNMENT. */
size_t drllm_attention_bytes(const struct drllm_config *config);

/* session.c, score.c: ARGUMENT or CONTEXT_FULL, with the session's error set, unless the tokens (behind the context), or
 * the choices behind a prompt, can be computed. */
int drllm_session_check_tokens(struct drllm_session *session, const int32_t *tokens, size_t n_tokens);
int drllm_score_check(struct drllm_session *session, size_t n_prompt, const struct drllm_choice *choices, size_t n);

/* session.c: what the session allocates for its scratch memory; SIZE_MAX on overflow. */
size_t drllm_session_scratch_bytes(const struct drllm_config *config, size_t n_chunk, unsigned n_threads);

/* sampler.c: allocate what sampling needs. */
int drllm_session_reserve_candidates(struct drllm_session *session);

/* CANCELLED, with the session's error set, once after drllm_session_cancel; otherwise DRLLM_OK. */
int drllm_session_check_cancel(struct drllm_session *session);

#endif
