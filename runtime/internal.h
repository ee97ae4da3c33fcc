/* What the tools and tests need from inside a network, beyond the public header. Not stable. */
#ifndef DRLLM_RUNTIME_INTERNAL_H
#define DRLLM_RUNTIME_INTERNAL_H

#include "runtime/drllm.h"

/* Called during a prefill, with the residual of the pass's last token after block `layer`, and with layer ==
 * n_layers for the output of the final norm. hidden: float[d_model], valid during the call. NULL hook: none. */
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

/* ln p(token) under softmax(logits), in double. */
double drllm_log_prob(const float *logits, size_t n_vocab, int32_t token);

#endif
