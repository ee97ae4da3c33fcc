/* Answering a request on the session: one choice a prompt. */
#ifndef DRLLM_TOOLS_SERVE_ANSWER_H
#define DRLLM_TOOLS_SERVE_ANSWER_H

#include "tools/serve_request.h"

struct serve_top {
    int32_t token;
    double log_prob;
};

/* Tokens of a choice that the client sees, each with its log-probability (NAN: nothing came before it) and the likeliest
 * tokens in its place, in falling order. */
struct serve_log_probs {
    struct serve_top *tokens; /* [count] */
    size_t count;
    size_t capacity;
    size_t n_top;
    struct serve_top *top; /* [count][n_top]; token -1 where there are none */
};

struct serve_choice {
    struct text text;
    struct serve_log_probs log_probs;
    size_t n_prompt, n_cached, n_generated; /* tokens; n_cached of the prompt were in the context already */
    const char *finish_reason;              /* "stop" or "length"; NULL until it is done */
    char *program;                          /* the layers that ran, NULL until it is done */
    int layers_saved;
    uint64_t prompt_ns, generate_ns;
};
void serve_choice_release(struct serve_choice *choice);

/* Called when something came to the choice. */
typedef void (*serve_progress)(void *user, const struct serve_choice *choice);

/* Answer prompt number `index` into an empty choice. DRLLM_OK or the status of the session's call that failed; the session's
 * own error says why. The tokens that prompt and context begin with are not computed again. */
int serve_answer(const struct serve_model *model, struct drllm_session *session, struct serve_request *request,
                 size_t index, struct serve_choice *choice, serve_progress progress, void *user);

#endif
