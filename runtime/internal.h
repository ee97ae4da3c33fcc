/* What the tools and tests need from inside a network, beyond the public header. Not stable. */
#ifndef DRLLM_RUNTIME_INTERNAL_H
#define DRLLM_RUNTIME_INTERNAL_H

#include "runtime/drllm.h"

/* Called during a prefill, with the residual of the pass's last token after block `layer`, and with layer ==
 * n_layers for the output of the final norm; also for a block that the program skips. When routers come to another
 * program half-way, the pass begins anew and so do the calls. hidden: float[d_model], valid during the call. NULL hook: none. */
typedef void (*drllm_layer_hook)(void *user, size_t layer, const float *hidden);
void drllm_session_set_layer_hook(struct drllm_session *session, drllm_layer_hook hook, void *user);

/* Called with the logits after prompt position `position` (0-based within the call's tokens), in rising order.
 * Non-zero stops the pass with that value as a status. */
typedef int (*drllm_logits_hook)(void *user, size_t position, const float *logits);

/* What router files know a model by: a hash (64-bit FNV-1a) over its shapes, the texts of its vocabulary and its norm
 * weights, all of which are the same in every quantisation of a model. Not a protection against forgery. A vocabulary
 * alone has none: 0. */
uint64_t drllm_model_fingerprint(const struct drllm_model *model);

/* Prefill that also computes the logits of positions first .. n_tokens-1 and hands each to the hook. */
int drllm_session_prefill_logits(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first,
                                 drllm_logits_hook hook, void *user);
/* The same under the program of the context, which must not be empty (STATE): text that a prompt is followed by. */
int drllm_session_extend_logits(struct drllm_session *session, const int32_t *tokens, size_t n_tokens, size_t first,
                                drllm_logits_hook hook, void *user);

/* ---- A question under many programs ----
 *
 * A probe holds a prompt and the choices after it, all of which go through the network in one pass: a row a token, the
 * prompt's first, then those of every choice but its last token. It remembers the hidden states ahead of each block
 * from the last run that was kept, and later runs resume there. Nothing of the session's context is used or changed
 * but its cache, which must be empty of tokens (STATE). One probe at a time a session. */
struct drllm_probe;

/* The tokens stay the caller's, and stay. Errors: as drllm_session_score. */
int drllm_probe_open(struct drllm_session *session, const int32_t *prompt, size_t n_prompt,
                     const struct drllm_choice *choices, size_t n_choices, struct drllm_probe **probe);
void drllm_probe_close(struct drllm_probe *probe); /* NULL is allowed */

/* Run blocks `layer` .. n_layers-1 as often as counts[n_layers] says, from the hidden states that the last kept run had
 * ahead of block `layer`; layer 0 begins with the embeddings. What came before must have run under the same counts.
 * keep: remember the hidden states of this run ahead of the blocks behind `layer`. log_probs [n_choices], NULL: not
 * asked for (no head). Errors: STATE (nothing was kept for this layer), MEMORY, CANCELLED, SYSTEM, FORMAT. */
int drllm_probe_run(struct drllm_probe *probe, const uint8_t *counts, size_t layer, bool keep, double *log_probs);

/* The hidden states of the prompt that were kept ahead of a block: float[n_prompt][d_model], valid until the next kept
 * run; layer n_layers: behind the last block. NULL when there are none. */
const float *drllm_probe_hidden(const struct drllm_probe *probe, size_t layer);

/* The sums over the W windows of the prompt (as in struct drllm_routers, of a prompt of n_tokens) of hidden states
 * [n_tokens][d_model]: the bits that a router reads in a session. scratch: float[d_model]. Returns W. */
size_t drllm_router_window_sums(const struct drllm_model *model, const float *hidden, size_t n_tokens, size_t n_windows,
                                float *sums, float *scratch);

/* ln p(token) under softmax(logits), of finite logits [n_vocab]. */
double drllm_log_prob(const struct drllm_model *model, const float *logits, int32_t token);

#endif
