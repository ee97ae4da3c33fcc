/* How likely given continuations are. */
#include "platform/clock.h"
#include "runtime/error.h"
#include "runtime/math.h"
#include "runtime/memory.h"
#include "runtime/session.h"

#include <string.h>

double drllm_log_prob(const struct drllm_model *model, const float *logits, int32_t token) {
    float max;
    const double sum = model->vec->sum_exp(logits, model->config.n_vocab, &max);
    return (double)logits[token] - (double)max - drllm_log(sum);
}

/* The pass over the choices: their tokens but the last, each choice a segment behind the prompt. */
struct choice_pass {
    struct drllm_pass pass;
    struct drllm_choice *of_segment[DRLLM_MAX_SEGMENTS];
    size_t segment; /* that the next row of logits belongs to */
    const struct drllm_model *model;
};

static int add_next_token(void *user, size_t row, const float *logits) {
    struct choice_pass *choices = user;
    choices->segment = drllm_pass_segment(&choices->pass, choices->segment, row);
    struct drllm_choice *choice = choices->of_segment[choices->segment];
    const size_t position = row - choices->pass.segments[choices->segment].row;
    choice->log_prob += drllm_log_prob(choices->model, logits, choice->tokens[position + 1]);
    return DRLLM_OK;
}

/* Add what follows the first tokens of the choices, whose log-probabilities are known. The context stays. */
static int score_tails(struct drllm_session *session, struct drllm_choice *choices, size_t n_choices) {
    const uint64_t start = drllm_clock_ns();
    int status = DRLLM_OK;
    drllm_depth_keep(session);
    for (size_t i = 0; i < n_choices && status == DRLLM_OK;) {
        struct choice_pass tails = {.model = session->model};
        for (; i < n_choices && tails.pass.n_segments < DRLLM_MAX_SEGMENTS; i++) {
            if (choices[i].n_tokens > 1) {
                tails.of_segment[tails.pass.n_segments] = &choices[i];
                drllm_pass_add(&tails.pass, choices[i].tokens, choices[i].n_tokens - 1, session->n_tokens);
            }
        }
        tails.pass.hook = add_next_token;
        tails.pass.user = &tails;
        if (tails.pass.n_segments > 0) {
            status = drllm_forward(session, &tails.pass);
            session->timings.n_prefill += tails.pass.n_rows;
        }
    }
    session->timings.prefill_ns += drllm_clock_ns() - start;
    return status;
}

int drllm_score_check(struct drllm_session *session, size_t n_prompt, const struct drllm_choice *choices, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (choices[i].tokens == NULL || choices[i].n_tokens == 0) {
            return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "choice %zu has no tokens", i);
        }
        if (n_prompt > session->n_context || choices[i].n_tokens > session->n_context - n_prompt) {
            return drllm_session_fail(session, DRLLM_ERR_CONTEXT_FULL,
                                      "the prompt (%zu tokens) and choice %zu (%zu) do not fit into a context of %zu",
                                      n_prompt, i, choices[i].n_tokens, session->n_context);
        }
        for (size_t j = 0; j < choices[i].n_tokens; j++) {
            if (choices[i].tokens[j] < 0 || (size_t)choices[i].tokens[j] >= session->model->config.n_vocab) {
                return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "token %zu of choice %zu is out of range", j, i);
            }
        }
    }
    return DRLLM_OK;
}

int drllm_session_score(struct drllm_session *session, const int32_t *prompt, size_t n_prompt,
                        struct drllm_choice *choices, size_t n_choices) {
    if (session == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (session->n_tokens != 0) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "scoring needs an empty context; reset the session first");
    }
    if (choices == NULL || n_choices == 0) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "there are no choices to score");
    }
    int status = drllm_score_check(session, n_prompt, choices, n_choices);
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(session, prompt, n_prompt);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    const size_t n_vocab = session->model->config.n_vocab;
    float *prompt_logits = drllm_allocate(&session->allocator, n_vocab, sizeof *prompt_logits);
    if (prompt_logits == NULL) {
        (void)drllm_session_rewind(session, 0);
        return drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory to score");
    }
    memcpy(prompt_logits, session->logits, n_vocab * sizeof *prompt_logits);
    for (size_t i = 0; i < n_choices; i++) {
        choices[i].log_prob = drllm_log_prob(session->model, prompt_logits, choices[i].tokens[0]);
    }
    status = score_tails(session, choices, n_choices);
    if (status == DRLLM_OK) {
        status = drllm_session_check_cancel(session);
    }
    if (status == DRLLM_OK) {
        memcpy(session->logits, prompt_logits, n_vocab * sizeof *prompt_logits);
        session->has_logits = true;
    } else {
        (void)drllm_session_rewind(session, 0); /* as before the call */
    }
    drllm_release(&session->allocator, prompt_logits, n_vocab, sizeof *prompt_logits);
    return status;
}
