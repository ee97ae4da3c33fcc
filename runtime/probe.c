/* One question under many programs (internal.h): what layer search runs. */
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/session.h"

#include <string.h>

struct drllm_probe {
    struct drllm_session *session;
    const struct drllm_choice *choices;
    size_t n_choices;
    size_t n_prompt;
    struct drllm_pass pass;
    size_t *choice_of_segment; /* [n_segments], of the choices' segments */
    float *hidden;             /* [n_layers + 1][n_rows][d_model] */
    size_t n_kept;             /* of them, those ahead of blocks 0 .. n_kept-1 are there */
    double *log_probs;         /* of the run in progress */
    size_t segment;            /* that the next row of logits belongs to */
};

static size_t row_floats(const struct drllm_probe *probe) {
    return probe->pass.n_rows * probe->session->model->config.d_model;
}

/* ---- Opening ---- */

static int check(struct drllm_session *session, const int32_t *prompt, size_t n_prompt,
                 const struct drllm_choice *choices, size_t n_choices) {
    if (session->n_tokens != 0) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "a probe needs an empty context; reset the session first");
    }
    const int status = drllm_score_check(session, n_prompt, choices, n_choices);
    return status != DRLLM_OK ? status : drllm_session_check_tokens(session, prompt, n_prompt);
}

static bool lay_out(struct drllm_probe *probe, const int32_t *prompt) {
    const struct drllm_allocator *allocator = &probe->session->allocator;
    const size_t n_states = probe->session->model->config.n_layers + 1;
    size_t floats;
    drllm_pass_add(&probe->pass, prompt, probe->n_prompt, 0);
    probe->choice_of_segment = drllm_allocate(allocator, DRLLM_MAX_SEGMENTS, sizeof *probe->choice_of_segment);
    for (size_t i = 0; i < probe->n_choices && probe->choice_of_segment != NULL; i++) {
        if (probe->choices[i].n_tokens > 1) {
            probe->choice_of_segment[probe->pass.n_segments] = i;
            drllm_pass_add(&probe->pass, probe->choices[i].tokens, probe->choices[i].n_tokens - 1, probe->n_prompt);
        }
    }
    probe->pass.first_logits = probe->n_prompt - 1;
    if (!drllm_multiply(row_floats(probe), sizeof(float), &floats)) {
        return false;
    }
    probe->hidden = drllm_allocate(allocator, n_states, floats);
    return probe->hidden != NULL && probe->choice_of_segment != NULL;
}

int drllm_probe_open(struct drllm_session *session, const int32_t *prompt, size_t n_prompt,
                     const struct drllm_choice *choices, size_t n_choices, struct drllm_probe **probe) {
    if (session == NULL || probe == NULL || (choices == NULL && n_choices > 0)) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (n_choices >= DRLLM_MAX_SEGMENTS) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "%zu choices; a probe takes at most %d", n_choices,
                                  DRLLM_MAX_SEGMENTS - 1);
    }
    const int status = check(session, prompt, n_prompt, choices, n_choices);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_probe *opened = drllm_allocate_zeroed(&session->allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory for a probe");
    }
    opened->session = session;
    opened->choices = choices;
    opened->n_choices = n_choices;
    opened->n_prompt = n_prompt;
    if (!lay_out(opened, prompt)) {
        drllm_probe_close(opened);
        return drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory for a probe");
    }
    *probe = opened;
    return DRLLM_OK;
}

void drllm_probe_close(struct drllm_probe *probe) {
    if (probe == NULL) {
        return;
    }
    const struct drllm_allocator *allocator = &probe->session->allocator;
    drllm_release(allocator, probe->choice_of_segment, DRLLM_MAX_SEGMENTS, sizeof *probe->choice_of_segment);
    drllm_release(allocator, probe->hidden, probe->session->model->config.n_layers + 1,
                  row_floats(probe) * sizeof(float));
    drllm_release(allocator, probe, 1, sizeof *probe);
}

/* ---- Running ---- */

static float *kept(const struct drllm_probe *probe, size_t layer) {
    return probe->hidden + layer * row_floats(probe);
}

static int add_log_probs(void *user, size_t row, const float *logits) {
    struct drllm_probe *probe = user;
    const struct drllm_model *model = probe->session->model;
    if (row == probe->n_prompt - 1) {
        for (size_t i = 0; i < probe->n_choices; i++) {
            probe->log_probs[i] = drllm_log_prob(model, logits, probe->choices[i].tokens[0]);
        }
        probe->segment = 1;
        return DRLLM_OK;
    }
    probe->segment = drllm_pass_segment(&probe->pass, probe->segment, row);
    const size_t choice = probe->choice_of_segment[probe->segment];
    const size_t position = row - probe->pass.segments[probe->segment].row;
    probe->log_probs[choice] += drllm_log_prob(model, logits, probe->choices[choice].tokens[position + 1]);
    return DRLLM_OK;
}

/* Blocks do not read what other blocks stored, so that one slot serves all. */
static int run_block(struct drllm_probe *probe, size_t layer, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const int status = drllm_pass_run_block(probe->session, &probe->pass, layer, 0);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    return DRLLM_OK;
}

static int run_blocks(struct drllm_probe *probe, const uint8_t *counts, size_t layer, bool keep) {
    struct drllm_session *session = probe->session;
    const size_t n_layers = session->model->config.n_layers;
    const size_t bytes = row_floats(probe) * sizeof(float);
    drllm_pass_embed(session, &probe->pass); /* the angles are needed in any case */
    if (layer > 0) {
        memcpy(session->residual, kept(probe, layer), bytes);
    }
    for (size_t i = layer; i <= n_layers; i++) {
        if (keep) {
            memcpy(kept(probe, i), session->residual, bytes);
            probe->n_kept = i + 1;
        }
        const int status = i < n_layers ? run_block(probe, i, counts[i]) : DRLLM_OK;
        if (status != DRLLM_OK) {
            return status;
        }
    }
    return DRLLM_OK;
}

int drllm_probe_run(struct drllm_probe *probe, const uint8_t *counts, size_t layer, bool keep, double *log_probs) {
    struct drllm_session *session = probe->session;
    session->has_logits = false;
    session->error = (struct drllm_error){0};
    if (session->n_tokens != 0 || (layer > 0 && layer >= probe->n_kept)) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "there is nothing to resume in front of block %zu", layer);
    }
    int status = drllm_pass_reserve(session, &probe->pass);
    if (status == DRLLM_OK && drllm_kvcache_use(&session->kv, 0, 0) != DRLLM_OK) {
        status = drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory for the key/value cache");
    }
    if (status == DRLLM_OK) {
        status = run_blocks(probe, counts, layer, keep);
    }
    if (status == DRLLM_OK && log_probs != NULL) {
        probe->log_probs = log_probs;
        probe->pass.hook = add_log_probs;
        probe->pass.user = probe;
        status = drllm_pass_logits(session, &probe->pass);
    }
    return status;
}

const float *drllm_probe_hidden(const struct drllm_probe *probe, size_t layer) {
    return layer < probe->n_kept ? kept(probe, layer) : NULL;
}
