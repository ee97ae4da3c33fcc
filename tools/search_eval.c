/* Outcomes of programs on questions: computed on all cores, resumed where hidden states can be reused, remembered. */
#include "runtime/hash.h"
#include "runtime/internal.h"
#include "runtime/program.h"
#include "tools/interrupt.h"
#include "tools/search.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const double soft_sharpness = 8.0; /* of the softmax over the choices' scores */

/* ---- Memos ---- */

void evaluator_open(struct evaluator *evaluator, const struct command *command, struct workers *workers,
                    const struct group *group, size_t n_layers) {
    *evaluator = (struct evaluator){.command = command, .workers = workers, .group = group, .n_layers = n_layers};
}

void evaluator_close(struct evaluator *evaluator) {
    for (size_t i = 0; i < MEMO_BUCKETS; i++) {
        while (evaluator->memos[i] != NULL) {
            struct memo *memo = evaluator->memos[i];
            evaluator->memos[i] = memo->next;
            free(memo->counts);
            free(memo->outcomes);
            free(memo);
        }
    }
}

static size_t bucket_of(const uint8_t *counts, size_t n_layers) {
    const uint64_t hash = drllm_hash_bytes(DRLLM_HASH_START, counts, n_layers);
    return (size_t)((hash >> 32 ^ hash) % MEMO_BUCKETS);
}

struct memo *evaluator_memo(struct evaluator *evaluator, const uint8_t *counts) {
    struct memo **bucket = &evaluator->memos[bucket_of(counts, evaluator->n_layers)];
    for (struct memo *memo = *bucket; memo != NULL; memo = memo->next) {
        if (memcmp(memo->counts, counts, evaluator->n_layers) == 0) {
            return memo;
        }
    }
    struct memo *memo = allocate(1, sizeof *memo);
    *memo = (struct memo){.counts = allocate(evaluator->n_layers, 1),
                          .outcomes = allocate(evaluator->group->n_questions, sizeof *memo->outcomes),
                          .next = *bucket};
    memcpy(memo->counts, counts, evaluator->n_layers);
    for (size_t i = 0; i < evaluator->group->n_questions; i++) {
        memo->outcomes[i].soft = NAN;
    }
    *bucket = memo;
    return memo;
}

double reward_of(enum reward reward, const struct outcome *outcome) {
    switch (reward) {
    case REWARD_SOFT:
        return (double)outcome->soft;
    case REWARD_PROBABILITY:
        return exp((double)outcome->soft);
    case REWARD_EXACT:
        break;
    }
    return (double)outcome->right;
}

double mean_reward(enum reward reward, const struct memo *memo, size_t first, size_t n) {
    double sum = 0.0;
    for (size_t i = first; i < first + n; i++) {
        sum += reward_of(reward, &memo->outcomes[i]);
    }
    return n > 0 ? sum / (double)n : 0.0;
}

/* ---- One question ---- */

struct batch {
    struct evaluator *evaluator;
    const uint8_t *base;
    struct memo *const *programs;
    size_t n_programs;
    size_t first; /* question of task 0 */
};

static struct outcome judge(const struct question *question, const double *log_probs) {
    double *scores = allocate(question->n_choices, sizeof *scores);
    const size_t best = question_scores(question, log_probs, scores);
    double sum = 0.0;
    for (size_t i = 0; i < question->n_choices; i++) {
        sum += exp(soft_sharpness * (scores[i] - scores[best]));
    }
    const struct outcome outcome = {.soft =
                                        (float)(soft_sharpness * (scores[question->answer] - scores[best]) - log(sum)),
                                    .right = best == question->answer ? 1.0F : 0.0F};
    free(scores);
    return outcome;
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t n) {
    size_t i = 0;
    while (i < n && a[i] == b[i]) {
        i++;
    }
    return i;
}

static size_t resume_layer(const struct batch *batch, const struct memo *memo) {
    const size_t n_layers = batch->evaluator->n_layers;
    const size_t layer = batch->evaluator->no_reuse ? 0 : first_difference(memo->counts, batch->base, n_layers);
    return layer < n_layers ? layer : n_layers - 1; /* the base itself, without a run of its own */
}

/* How many blocks of the base are run ahead of the programs, to resume behind them; 0 where that does not pay, as for a
 * program alone. */
static size_t base_blocks(const struct batch *batch, size_t index) {
    size_t end = 0;
    size_t spared = 0;
    for (size_t i = 0; i < batch->n_programs; i++) {
        if (isnan(batch->programs[i]->outcomes[index].soft)) {
            const size_t layer = resume_layer(batch, batch->programs[i]);
            end = layer > end ? layer : end;
            spared += drllm_program_executions(batch->base, layer);
        }
    }
    return spared > drllm_program_executions(batch->base, end) ? end : 0;
}

static int run_base(struct batch *batch, struct drllm_probe *probe, size_t end, size_t rows) {
    const size_t n_layers = batch->evaluator->n_layers;
    uint8_t *counts = allocate(n_layers, 1);
    memset(counts, 0, n_layers);
    memcpy(counts, batch->base, end);
    const int status = drllm_probe_run(probe, counts, 0, true, NULL);
    atomic_fetch_add(&batch->evaluator->cost.row_blocks, rows * drllm_program_executions(counts, n_layers));
    free(counts);
    return status;
}

/* The rows that a probe of the question runs. */
static size_t question_rows(const struct question *question) {
    size_t rows = question->prompt_tokens.count;
    for (size_t i = 0; i < question->n_choices; i++) {
        rows += question->choice_tokens[i].count - 1;
    }
    return rows;
}

static int run_programs(struct batch *batch, struct drllm_probe *probe, const struct question *question, size_t index) {
    struct evaluator *evaluator = batch->evaluator;
    struct search_cost *cost = &evaluator->cost;
    const size_t n_layers = evaluator->n_layers;
    const size_t rows = question_rows(question);
    double *log_probs = allocate(question->n_choices, sizeof *log_probs);
    const size_t end = base_blocks(batch, index);
    int status = end > 0 ? run_base(batch, probe, end, rows) : DRLLM_OK;
    for (size_t i = 0; i < batch->n_programs && status == DRLLM_OK; i++) {
        struct memo *memo = batch->programs[i];
        if (!isnan(memo->outcomes[index].soft)) {
            atomic_fetch_add(&cost->memo_hits, 1);
            continue;
        }
        const size_t layer = end > 0 ? resume_layer(batch, memo) : 0;
        status = drllm_probe_run(probe, memo->counts, layer, false, log_probs);
        if (status == DRLLM_OK) {
            memo->outcomes[index] = judge(question, log_probs);
        }
        atomic_fetch_add(&cost->row_blocks, rows * drllm_program_executions(memo->counts + layer, n_layers - layer));
        atomic_fetch_add(&cost->resumed, rows * drllm_program_executions(memo->counts, layer));
        atomic_fetch_add(&cost->evaluations, 1);
    }
    free(log_probs);
    return status;
}

static int run_question(void *user, size_t worker, struct drllm_session *session, size_t task) {
    struct batch *batch = user;
    const size_t index = batch->first + task;
    const struct question *question = batch->evaluator->group->questions[index];
    struct drllm_choice *choices = question_choices(question);
    struct drllm_probe *probe = NULL;
    (void)worker;
    int status = drllm_probe_open(session, question->prompt_tokens.ids, question->prompt_tokens.count, choices,
                                  question->n_choices, &probe);
    if (status == DRLLM_OK) {
        status = run_programs(batch, probe, question, index);
    }
    drllm_probe_close(probe);
    free(choices);
    return status;
}

/* ---- Generative questions, which are answered under each program from the start ---- */

static int answer_question(struct drllm_session *session, const struct question *question, const uint8_t *counts,
                           struct outcome *outcome) {
    struct drllm_depth depth = drllm_depth_default();
    bool right = false;
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = counts;
    int status = drllm_session_rewind(session, 0);
    if (status == DRLLM_OK) {
        status = drllm_session_set_depth(session, &depth);
    }
    if (status == DRLLM_OK) {
        status = question_generate(session, question, &right);
    }
    if (status == DRLLM_OK) {
        *outcome = (struct outcome){.soft = right ? 0.0F : -1.0F, .right = right ? 1.0F : 0.0F};
        status = drllm_session_rewind(session, 0);
    }
    return status;
}

static int run_generative(void *user, size_t worker, struct drllm_session *session, size_t task) {
    struct batch *batch = user;
    struct search_cost *cost = &batch->evaluator->cost;
    const size_t index = batch->first + task;
    int status = DRLLM_OK;
    (void)worker;
    for (size_t i = 0; i < batch->n_programs && status == DRLLM_OK; i++) {
        struct memo *memo = batch->programs[i];
        if (!isnan(memo->outcomes[index].soft)) {
            atomic_fetch_add(&cost->memo_hits, 1);
            continue;
        }
        status =
            answer_question(session, batch->evaluator->group->questions[index], memo->counts, &memo->outcomes[index]);
        atomic_fetch_add(&cost->evaluations, 1);
    }
    return status;
}

static int run_any(void *user, size_t worker, struct drllm_session *session, size_t task) {
    const struct batch *batch = user;
    const struct question *question = batch->evaluator->group->questions[batch->first + task];
    return question->match == MATCH_CHOICE ? run_question(user, worker, session, task)
                                           : run_generative(user, worker, session, task);
}

static int run_here(struct batch *batch, size_t n) {
    int status = DRLLM_OK;
    for (size_t i = 0; i < n && status == DRLLM_OK; i++) {
        status = interrupt_seen() ? DRLLM_ERR_CANCELLED : run_any(batch, 0, batch->evaluator->session, i);
    }
    return status;
}

int evaluate(struct evaluator *evaluator, const uint8_t *base, struct memo *const *programs, size_t n_programs,
             size_t first, size_t n) {
    struct batch batch = {evaluator, base, programs, n_programs, first};
    const int status =
        evaluator->session != NULL ? run_here(&batch, n) : workers_run(evaluator->workers, run_any, &batch, n);
    if (status == DRLLM_ERR_CANCELLED) {
        return TOOL_INTERRUPTED;
    }
    return status == DRLLM_OK ? TOOL_OK : report_status(evaluator->command, "cannot compute a question", status, NULL);
}
