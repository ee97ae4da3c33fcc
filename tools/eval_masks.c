#include "tools/eval_masks.h"

#include "platform/clock.h"
#include "runtime/internal.h"
#include "tools/depth.h"
#include "tools/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Influence ---- */

struct measuring {
    const struct question *const *questions;
    size_t n_layers, d_model;
    const uint8_t *full;
    double *sums; /* [n_questions][n_layers], over the tokens of a prompt */
    struct progress progress;
    _Atomic size_t done;
};

static double influence_on(const float *ahead, const float *behind, size_t d_model) {
    double product = 0.0;
    double size_ahead = 0.0;
    double size_behind = 0.0;
    for (size_t i = 0; i < d_model; i++) {
        product += (double)ahead[i] * (double)behind[i];
        size_ahead += (double)ahead[i] * (double)ahead[i];
        size_behind += (double)behind[i] * (double)behind[i];
    }
    const double size = sqrt(size_ahead) * sqrt(size_behind);
    return size > 0.0 ? 1.0 - product / size : 0.0;
}

static void add_influences(struct measuring *measuring, const struct drllm_probe *probe, size_t n_tokens,
                           double *sums) {
    const size_t d_model = measuring->d_model;
    for (size_t layer = 0; layer < measuring->n_layers; layer++) {
        const float *ahead = drllm_probe_hidden(probe, layer);
        const float *behind = drllm_probe_hidden(probe, layer + 1);
        sums[layer] = 0.0;
        for (size_t i = 0; i < n_tokens; i++) {
            sums[layer] += influence_on(ahead + i * d_model, behind + i * d_model, d_model);
        }
    }
}

static int measure_prompt(void *user, size_t worker, struct drllm_session *session, size_t index) {
    struct measuring *measuring = user;
    const struct tokens *prompt = &measuring->questions[index]->prompt_tokens;
    struct drllm_probe *probe = NULL;
    (void)worker;
    int status = drllm_session_rewind(session, 0);
    if (status == DRLLM_OK) {
        status = drllm_probe_open(session, prompt->ids, prompt->count, NULL, 0, &probe);
    }
    if (status == DRLLM_OK) {
        status = drllm_probe_run(probe, measuring->full, 0, true, NULL);
    }
    if (status == DRLLM_OK) {
        add_influences(measuring, probe, prompt->count, measuring->sums + index * measuring->n_layers);
    }
    drllm_probe_close(probe);
    progress_show(&measuring->progress, ++measuring->done);
    return status;
}

/* In the order of the questions, whoever computed them, so that the sums are the same each time. */
static void average(const struct measuring *measuring, size_t n_questions, double *influence) {
    double n_tokens = 0.0;
    for (size_t layer = 0; layer < measuring->n_layers; layer++) {
        influence[layer] = 0.0;
    }
    for (size_t i = 0; i < n_questions; i++) {
        n_tokens += (double)measuring->questions[i]->prompt_tokens.count;
        for (size_t layer = 0; layer < measuring->n_layers; layer++) {
            influence[layer] += measuring->sums[i * measuring->n_layers + layer];
        }
    }
    for (size_t layer = 0; layer < measuring->n_layers && n_tokens > 0.0; layer++) {
        influence[layer] /= n_tokens;
    }
}

int block_influence(const struct command *command, const struct drllm_model *model, struct workers *workers,
                    const struct question *const *questions, size_t n_questions, double *influence) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    uint8_t *full = allocate(info.n_layers, 1);
    memset(full, 1, info.n_layers);
    struct measuring measuring = {.questions = questions,
                                  .n_layers = info.n_layers,
                                  .d_model = info.d_model,
                                  .full = full,
                                  .sums = allocate(n_questions * info.n_layers, sizeof(double)),
                                  .progress = {.what = "block influence", .total = n_questions}};
    const int status = workers_run(workers, measure_prompt, &measuring, n_questions);
    if (status == DRLLM_OK) {
        average(&measuring, n_questions, influence);
    }
    free(measuring.sums);
    free(full);
    return status == DRLLM_OK              ? TOOL_OK
           : status == DRLLM_ERR_CANCELLED ? TOOL_INTERRUPTED
                                           : report_status(command, "cannot compute a prompt", status, NULL);
}

void influence_mask(const double *influence, size_t n_layers, size_t n_removed, uint8_t *counts) {
    memset(counts, 1, n_layers);
    for (size_t i = 0; i < n_removed && i < n_layers; i++) {
        size_t least = SIZE_MAX;
        for (size_t layer = 0; layer < n_layers; layer++) {
            if (counts[layer] != 0 && (least == SIZE_MAX || influence[layer] < influence[least])) {
                least = layer;
            }
        }
        counts[least] = 0;
    }
}

/* ---- Chance ---- */

bool random_mask(uint64_t seed, size_t n_layers, size_t n_removed, uint8_t *counts) {
    size_t n = 0;
    if (n_removed != 0 && (n_layers < 2 || n_removed > n_layers - 2)) {
        return false;
    }
    size_t *blocks = allocate(n_layers, sizeof *blocks);
    for (size_t layer = 1; layer + 1 < n_layers; layer++) {
        blocks[n++] = layer;
    }
    memset(counts, 1, n_layers);
    for (size_t i = 0; i < n_removed && n != 0; i++) {
        const size_t drawn = (size_t)(random_next(&seed) % n);
        counts[blocks[drawn]] = 0;
        blocks[drawn] = blocks[--n];
    }
    free(blocks);
    return true;
}

/* ---- Search ---- */

struct walk {
    struct evaluator *evaluator;
    size_t n_layers, n_questions, most_saved;
    uint64_t start_ns;
};

/* In the race the mean reward is of questions 0 .. n-1. */
struct runner {
    struct memo *memo;
    double reward;
};

static int by_reward(const void *a, const void *b) {
    const struct runner *x = a;
    const struct runner *y = b;
    return x->reward > y->reward ? -1 : x->reward < y->reward ? 1 : 0;
}

static size_t find_neighbours(const struct walk *walk, const uint8_t *base, int change, struct runner *runners) {
    uint8_t *counts = allocate(walk->n_layers, 1);
    size_t n = 0;
    for (size_t layer = 0; layer < walk->n_layers; layer++) {
        const int count = base[layer] + change;
        if (count < 0 || count > 2) {
            continue;
        }
        memcpy(counts, base, walk->n_layers);
        counts[layer] = (uint8_t)count;
        runners[n++] = (struct runner){.memo = evaluator_memo(walk->evaluator, counts)};
    }
    free(counts);
    return n;
}

/* Rewards on questions 0 .. n-1, of which the first `done` are there; the best come first. */
static int run_heat(const struct walk *walk, const uint8_t *base, struct runner *runners, size_t n_runners, size_t done,
                    size_t n) {
    struct memo **memos = allocate(n_runners, sizeof(struct memo *));
    for (size_t i = 0; i < n_runners; i++) {
        memos[i] = runners[i].memo;
    }
    const int exit_code = evaluate(walk->evaluator, base, memos, n_runners, done, n - done);
    free((void *)memos);
    for (size_t i = 0; i < n_runners && exit_code == TOOL_OK; i++) {
        runners[i].reward = mean_reward(REWARD_SOFT, runners[i].memo, 0, n);
    }
    if (exit_code == TOOL_OK) {
        qsort(runners, n_runners, sizeof *runners, by_reward);
    }
    return exit_code;
}

/* The best program with one execution less (change -1) or more (1) than the base: all of them run on a few questions,
 * the better ones on more. *reward -INFINITY where there is none. */
static int best_neighbour(const struct walk *walk, const uint8_t *base, int change, uint8_t *best, double *reward) {
    static const struct {
        size_t n, keep; /* questions, and the programs that stay behind them */
    } heats[] = {{32, 8}, {128, 3}, {SIZE_MAX, 1}};
    struct runner *runners = allocate(walk->n_layers, sizeof *runners);
    size_t n_runners = find_neighbours(walk, base, change, runners);
    size_t done = 0;
    int exit_code = TOOL_OK;
    *reward = -INFINITY;
    for (size_t i = 0; n_runners != 0 && done < walk->n_questions && exit_code == TOOL_OK; i++) {
        const size_t n = heats[i].n < walk->n_questions ? heats[i].n : walk->n_questions;
        exit_code = run_heat(walk, base, runners, n_runners, done, n);
        n_runners = n_runners < heats[i].keep ? n_runners : heats[i].keep;
        done = n;
    }
    if (exit_code == TOOL_OK && n_runners != 0) {
        memcpy(best, runners[0].memo->counts, walk->n_layers);
        *reward = runners[0].reward;
    }
    free(runners);
    return exit_code;
}

static void show_step(const struct walk *walk, size_t saved, const uint8_t *counts, double reward) {
    char *program = program_text(counts, walk->n_layers);
    fprintf(stderr, "static: %zu of %zu saved, reward %.4f, %s (%.0f s)\n", saved, walk->most_saved, reward, program,
            (double)(drllm_clock_ns() - walk->start_ns) / 1e9);
    free(program);
}

/* One execution less than `here`, into `next`; and back, if that makes a better program of the length of `here`, which
 * is then the point to start from. */
static int take_step(const struct walk *walk, uint8_t *here, double *here_reward, uint8_t *next, double *next_reward) {
    const size_t n_layers = walk->n_layers;
    uint8_t *other = allocate(n_layers, 1);
    double reward;
    int exit_code = best_neighbour(walk, here, -1, next, next_reward);
    if (exit_code == TOOL_OK && *next_reward > -INFINITY) {
        exit_code = best_neighbour(walk, next, 1, other, &reward);
        if (exit_code == TOOL_OK && reward > *here_reward) {
            memcpy(here, other, n_layers);
            *here_reward = reward;
            exit_code = best_neighbour(walk, here, -1, other, &reward);
            if (exit_code == TOOL_OK && reward > *next_reward) {
                memcpy(next, other, n_layers);
                *next_reward = reward;
            }
        }
    }
    free(other);
    return exit_code;
}

static int run_walk(const struct walk *walk, uint8_t *programs) {
    const size_t n_layers = walk->n_layers;
    const size_t most_saved = walk->most_saved;
    /* One length more than asked, so that the last one may be improved as the others are. */
    uint8_t *last = allocate(n_layers, 1);
    double reward;
    double next_reward = -INFINITY;
    memset(programs, 1, n_layers);
    struct memo *full = evaluator_memo(walk->evaluator, programs);
    int exit_code = evaluate(walk->evaluator, programs, &full, 1, 0, walk->n_questions);
    reward = exit_code == TOOL_OK ? mean_reward(REWARD_SOFT, full, 0, walk->n_questions) : 0.0;
    for (size_t saved = 0; saved <= most_saved && exit_code == TOOL_OK; saved++) {
        uint8_t *here = programs + saved * n_layers;
        uint8_t *next = saved < most_saved ? here + n_layers : last;
        exit_code = take_step(walk, here, &reward, next, &next_reward);
        if (exit_code == TOOL_OK) {
            show_step(walk, saved, here, reward);
            reward = next_reward;
        }
    }
    free(last);
    return exit_code;
}

int static_search(const struct command *command, struct workers *workers, const struct group *group, size_t n_layers,
                  size_t most_saved, uint8_t *programs) {
    struct evaluator *evaluator = allocate(1, sizeof *evaluator);
    evaluator_open(evaluator, command, workers, group, n_layers);
    const struct walk walk = {.evaluator = evaluator,
                              .n_layers = n_layers,
                              .n_questions = group->n_questions,
                              .most_saved = most_saved,
                              .start_ns = drllm_clock_ns()};
    const int exit_code = run_walk(&walk, programs);
    evaluator_close(evaluator);
    free(evaluator);
    return exit_code;
}
