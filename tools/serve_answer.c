#include "tools/serve_answer.h"

#include "runtime/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void serve_choice_release(struct serve_choice *choice) {
    text_release(&choice->text);
    free(choice->log_probs.tokens);
    free(choice->log_probs.top);
    free(choice->program);
    *choice = (struct serve_choice){.program = NULL};
}

struct answering {
    const struct serve_model *model;
    struct drllm_session *session;
    const struct serve_request *request;
    const struct tokens *prompt;
    struct serve_choice *choice;
    serve_progress progress;
    void *user;
    size_t n_seen; /* tokens in the context at the last call of take_text, to know the call that only brings text */
};

/* ---- Log-probabilities ---- */

/* Room for one more token, all of its fields set. Returns its number. */
static size_t add_log_prob(struct serve_log_probs *list, int32_t token, double log_prob) {
    if (list->count == list->capacity) {
        list->capacity = 2 * list->capacity + 32;
        list->tokens = reallocate(list->tokens, list->capacity, sizeof *list->tokens);
        if (list->n_top != 0) {
            list->top = reallocate(list->top, list->capacity, list->n_top * sizeof *list->top);
        }
    }
    const size_t at = list->count++;
    list->tokens[at] = (struct serve_top){token, log_prob};
    for (size_t i = 0; i < list->n_top; i++) {
        list->top[at * list->n_top + i] = (struct serve_top){-1, NAN};
    }
    return at;
}

/* The n likeliest, of equal ones the lower id first. */
static void find_top(const struct serve_model *model, const float *logits, struct serve_top *top, size_t n) {
    size_t count = 0;
    for (size_t token = 0; token < model->info.n_vocab; token++) {
        const double logit = (double)logits[token];
        if (count == n && !(logit > top[n - 1].log_prob)) {
            continue;
        }
        size_t at = count < n ? count++ : n - 1;
        for (; at > 0 && top[at - 1].log_prob < logit; at--) {
            top[at] = top[at - 1];
        }
        top[at] = (struct serve_top){(int32_t)token, logit};
    }
    for (size_t i = 0; i < count; i++) {
        top[i].log_prob = drllm_log_prob(model->model, logits, top[i].token);
    }
}

static void add_predicted(const struct answering *answering, int32_t token, const float *logits) {
    struct serve_log_probs *list = &answering->choice->log_probs;
    const size_t at = add_log_prob(list, token, drllm_log_prob(answering->model->model, logits, token));
    if (list->n_top != 0) {
        find_top(answering->model, logits, list->top + at * list->n_top, list->n_top);
    }
}

/* ---- The prompt ---- */

static int add_prompt_token(void *user, size_t position, const float *logits) {
    const struct answering *answering = user;
    if (position + 1 < answering->prompt->count) {
        add_predicted(answering, answering->prompt->ids[position + 1], logits);
    }
    return DRLLM_OK;
}

/* Whole, with the log-probability of each token. */
static int score_prompt(struct answering *answering) {
    const int status = drllm_session_rewind(answering->session, 0);
    if (status != DRLLM_OK) {
        return status;
    }
    add_log_prob(&answering->choice->log_probs, answering->prompt->ids[0], NAN);
    return drllm_session_prefill_logits(answering->session, answering->prompt->ids, answering->prompt->count, 0,
                                        add_prompt_token, answering);
}

/* Only what the context does not begin with; the last token in any case, whose logits are needed. */
static int extend_prompt(const struct answering *answering) {
    const int32_t *kept = drllm_session_tokens(answering->session);
    const size_t n_kept = drllm_session_n_tokens(answering->session);
    const struct tokens *prompt = answering->prompt;
    size_t common = 0;
    while (common < n_kept && common + 1 < prompt->count && kept[common] == prompt->ids[common]) {
        common++;
    }
    const int status = drllm_session_rewind(answering->session, common);
    if (status != DRLLM_OK) {
        return status;
    }
    answering->choice->n_cached = common;
    return drllm_session_prefill(answering->session, prompt->ids + common, prompt->count - common);
}

static void echo_prompt(const struct answering *answering) {
    const struct tokens *prompt = answering->prompt;
    const struct drllm_model *model = answering->model->model;
    size_t size = 0;
    (void)drllm_detokenize(model, prompt->ids, prompt->count, true, NULL, 0, &size);
    char *text = allocate_bytes(size);
    if (drllm_detokenize(model, prompt->ids, prompt->count, true, text, size, &size) == DRLLM_OK) {
        text_append(&answering->choice->text, text, size);
    }
    free(text);
}

/* ---- The answer ---- */

static bool take_text(void *user, int32_t token, const char *text, size_t size) {
    struct answering *answering = user;
    const size_t n = drllm_session_n_tokens(answering->session);
    if (answering->request->wants_log_probs && n != answering->n_seen) {
        add_predicted(answering, token, drllm_session_logits(answering->session));
    }
    answering->n_seen = n;
    text_append(&answering->choice->text, text, size);
    answering->progress(answering->user, answering->choice);
    return true;
}

static int generate(struct answering *answering, struct drllm_sampler *sampler) {
    struct serve_choice *choice = answering->choice;
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_generation result = {.n_tokens = 0};
    params.max_tokens = answering->request->max_tokens;
    params.stop = answering->request->stop;
    params.n_stop = answering->request->n_stop;
    params.ignore_end = answering->request->ignore_end;
    params.on_text = take_text;
    params.user = answering;
    const int status = drllm_session_generate(answering->session, sampler, &params, &result);
    choice->n_generated = result.n_tokens;
    if (status != DRLLM_OK) {
        return status;
    }
    const bool has_ended = result.reason == DRLLM_STOP_END;
    /* Unless text that was held back came with it. */
    if (has_ended && answering->request->wants_log_probs &&
        drllm_session_n_tokens(answering->session) != answering->n_seen) {
        add_predicted(answering, result.token, drllm_session_logits(answering->session));
    }
    choice->finish_reason = has_ended || result.reason == DRLLM_STOP_STRING ? "stop" : "length";
    return DRLLM_OK;
}

/* ---- */

static void note_program(const struct answering *answering) {
    const size_t n_layers = answering->model->info.n_layers;
    uint8_t *counts = allocate(n_layers, sizeof *counts);
    if (drllm_session_get_program(answering->session, counts) == DRLLM_OK) {
        answering->choice->program = program_text(counts, n_layers);
        drllm_session_get_layers_saved(answering->session, &answering->choice->layers_saved);
    }
    free(counts);
}

int serve_answer(const struct serve_model *model, struct drllm_session *session, struct serve_request *request,
                 size_t index, struct serve_choice *choice, serve_progress progress, void *user) {
    struct answering answering = {model, session, request, &request->prompts[index], choice, progress, user, SIZE_MAX};
    struct drllm_timings before, after;
    /* Every prompt begins with the seed that was asked for. */
    struct drllm_sampler sampler = request->sampler;
    *choice = (struct serve_choice){.n_prompt = answering.prompt->count};
    choice->log_probs.n_top = request->wants_log_probs ? request->n_top : 0;
    int status = drllm_session_set_depth(session, &request->depth);
    if (status != DRLLM_OK) {
        return status;
    }
    drllm_session_get_timings(session, &before);
    status = request->echo && request->wants_log_probs ? score_prompt(&answering) : extend_prompt(&answering);
    if (status != DRLLM_OK) {
        return status;
    }
    if (request->echo) {
        echo_prompt(&answering);
        progress(user, choice);
    }
    if (request->max_tokens != 0) {
        status = generate(&answering, &sampler);
    } else {
        choice->finish_reason = "length";
    }
    drllm_session_get_timings(session, &after);
    choice->prompt_ns = after.prefill_ns - before.prefill_ns;
    choice->generate_ns = after.decode_ns - before.decode_ns;
    note_program(&answering);
    return status;
}
