/* Greedy search: from full depth, one or two blocks left out (or one taken back) at a time, as long as the group's mean
 * reward with what saved layers are worth rises; then the same with blocks repeated as well; then, where more layers are
 * wanted, with each worth more. Candidates race: all of them run on some questions, the better ones on more. */
#include "runtime/program.h"
#include "tools/search.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* A neighbour of the current program, and how far it is ahead on the questions so far. */
struct candidate {
    struct memo *memo;
    double lead;  /* of the mean objective */
    double error; /* its standard error */
};

struct race {
    struct evaluator *evaluator;
    const struct search_options *options;
    struct memo *current;
    struct candidate *candidates;
    size_t count;
    bool repeats;
};

static int layers_saved(const uint8_t *counts, size_t n_layers) {
    return (int)n_layers - (int)drllm_program_executions(counts, n_layers);
}

double objective(const struct search_options *options, const struct memo *memo, size_t n_layers, size_t first,
                 size_t n) {
    return mean_reward(options->reward, memo, first, n) + options->layer_value * layers_saved(memo->counts, n_layers);
}

/* ---- The path ---- */

void path_release(struct path *path) {
    for (size_t i = 0; i < path->count; i++) {
        free(path->points[i].counts);
    }
    free(path->points);
    *path = (struct path){.points = NULL};
}

/* Half the width of the 95 % interval of the gain in accuracy over full depth, on the verifying questions. */
static double gain_error(struct evaluator *evaluator, const struct path *path, const struct memo *memo) {
    const struct group *group = evaluator->group;
    const size_t n = group->n_questions - group->n_search;
    const struct memo *full = evaluator_memo(evaluator, path->points[0].counts);
    double sum = 0.0;
    double squares = 0.0;
    for (size_t i = group->n_search; i < group->n_questions; i++) {
        const double gain = (double)memo->outcomes[i].right - (double)full->outcomes[i].right;
        sum += gain;
        squares += gain * gain;
    }
    const double mean = n > 0 ? sum / (double)n : 0.0;
    return n > 1 ? 1.96 * sqrt((squares / (double)n - mean * mean) / (double)(n - 1)) : 0.0;
}

int path_add(struct evaluator *evaluator, const struct search_options *options, struct path *path, const uint8_t *base,
             const uint8_t *counts) {
    const struct group *group = evaluator->group;
    const size_t n_verify = group->n_questions - group->n_search;
    struct memo *memo = evaluator_memo(evaluator, counts);
    const int exit_code = evaluate(evaluator, base, &memo, 1, 0, group->n_questions);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    path->points = reallocate(path->points, path->count + 1, sizeof *path->points);
    struct found *point = &path->points[path->count++];
    *point = (struct found){.counts = allocate(evaluator->n_layers, 1),
                            .saved = layers_saved(counts, evaluator->n_layers),
                            .search_reward = mean_reward(options->reward, memo, 0, group->n_search),
                            .verify_reward = mean_reward(options->reward, memo, group->n_search, n_verify),
                            .right = mean_reward(REWARD_EXACT, memo, group->n_search, n_verify)};
    memcpy(point->counts, counts, evaluator->n_layers);
    point->gain_error = gain_error(evaluator, path, memo);
    path->n_search = group->n_search;
    path->n_verify = n_verify;
    return TOOL_OK;
}

/* ---- The race ---- */

static void add_candidate(struct race *race, const uint8_t *counts) {
    race->candidates[race->count++] = (struct candidate){.memo = evaluator_memo(race->evaluator, counts)};
}

/* One block less, one more, or two neighbouring ones less: what one alone cannot spare, both together sometimes can. */
static void add_neighbours(struct race *race) {
    const size_t n_layers = race->evaluator->n_layers;
    const int most = race->repeats ? 2 : 1;
    uint8_t *counts = allocate(n_layers, 1);
    race->candidates = allocate(3 * n_layers, sizeof *race->candidates);
    memcpy(counts, race->current->counts, n_layers);
    for (size_t i = 0; i < n_layers; i++) {
        const uint8_t count = counts[i];
        if (count > 0) {
            counts[i] = (uint8_t)(count - 1);
            add_candidate(race, counts);
            if (i + 1 < n_layers && counts[i + 1] > 0) {
                counts[i + 1]--;
                add_candidate(race, counts);
                counts[i + 1]++;
            }
        }
        if (count < most) {
            counts[i] = (uint8_t)(count + 1);
            add_candidate(race, counts);
        }
        counts[i] = count;
    }
    free(counts);
}

static void measure_lead(const struct race *race, struct candidate *candidate, size_t n) {
    const size_t n_layers = race->evaluator->n_layers;
    double sum = 0.0;
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double lead = reward_of(race->options->reward, &candidate->memo->outcomes[i]) -
                            reward_of(race->options->reward, &race->current->outcomes[i]);
        sum += lead;
        squares += lead * lead;
    }
    const double mean = sum / (double)n;
    const double variance = squares / (double)n - mean * mean;
    candidate->lead = mean + race->options->layer_value * (layers_saved(candidate->memo->counts, n_layers) -
                                                           layers_saved(race->current->counts, n_layers));
    candidate->error = sqrt((variance > 0.0 ? variance : 0.0) / (double)n);
}

static int by_lead(const void *a, const void *b) {
    const struct candidate *x = a;
    const struct candidate *y = b;
    return x->lead > y->lead ? -1 : x->lead < y->lead ? 1 : 0;
}

/* All candidates on questions [from, n), then those that are not clearly behind, at most `keep`, stay. */
static int run_heat(struct race *race, size_t from, size_t n, size_t keep) {
    struct memo **memos = allocate(race->count + 1, sizeof(struct memo *));
    for (size_t i = 0; i < race->count; i++) {
        memos[i] = race->candidates[i].memo;
    }
    memos[race->count] = race->current;
    const int exit_code = evaluate(race->evaluator, race->current->counts, memos, race->count + 1, from, n - from);
    free(memos);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    for (size_t i = 0; i < race->count; i++) {
        measure_lead(race, &race->candidates[i], n);
    }
    qsort(race->candidates, race->count, sizeof *race->candidates, by_lead);
    const size_t before = race->count;
    while (race->count > 1 && (race->count > keep ||
                               race->candidates[race->count - 1].lead + 2.0 * race->candidates[race->count - 1].error <
                                   race->candidates[0].lead - 2.0 * race->candidates[0].error)) {
        race->count--;
    }
    atomic_fetch_add(&race->evaluator->cost.raced_out, (before - race->count) * (race->evaluator->group->n_search - n));
    return TOOL_OK;
}

static int run_race(struct race *race) {
    const size_t n_search = race->evaluator->group->n_search;
    static const struct {
        size_t share; /* of the questions: one in so many */
        size_t keep;  /* candidates that go on */
    } heats[] = {{10, 10}, {4, 4}, {1, 4}};
    size_t done = 0;
    add_neighbours(race);
    for (size_t i = race->options->no_racing ? 2 : 0; i < sizeof heats / sizeof heats[0]; i++) {
        const size_t n = n_search / heats[i].share;
        if (n < 16 && heats[i].share != 1) {
            continue;
        }
        const int exit_code = run_heat(race, done, n, heats[i].keep);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        done = n;
    }
    return TOOL_OK;
}

/* counts with what changes from the current program to `changed`; false where it has that already, in part. */
static bool add_change(const struct race *race, const uint8_t *changed, uint8_t *counts) {
    for (size_t i = 0; i < race->evaluator->n_layers; i++) {
        const int count = (int)counts[i] + (int)changed[i] - (int)race->current->counts[i];
        if (count < 0 || count > 2) {
            return false;
        }
        counts[i] = (uint8_t)count;
    }
    return true;
}

/* The best finalist, and with it each further one that still helps on top: *next is the program. */
static int take_finalists(struct race *race, uint8_t *next, bool *better) {
    struct evaluator *evaluator = race->evaluator;
    const size_t n_search = evaluator->group->n_search;
    struct memo *best = race->current;
    uint8_t *counts = allocate(evaluator->n_layers, 1);
    int exit_code = TOOL_OK;
    *better = false;
    for (size_t i = 0; i < race->count && race->candidates[i].lead > 0.0 && exit_code == TOOL_OK; i++) {
        memcpy(counts, best->counts, evaluator->n_layers);
        if (!add_change(race, race->candidates[i].memo->counts, counts)) {
            continue;
        }
        struct memo *tried = evaluator_memo(evaluator, counts);
        /* What loses on the first questions is not tried on the rest. */
        for (size_t part = race->options->no_racing ? 1 : 4; part > 0 && exit_code == TOOL_OK; part /= 4) {
            const size_t n = n_search / part;
            exit_code = evaluate(evaluator, best->counts, &tried, 1, 0, n);
            if (exit_code != TOOL_OK) {
                break;
            }
            const double lead = objective(race->options, tried, evaluator->n_layers, 0, n) -
                                objective(race->options, best, evaluator->n_layers, 0, n);
            if (lead <= 0.0) {
                break;
            }
            if (part == 1) {
                best = tried;
                *better = true;
            }
        }
    }
    memcpy(next, best->counts, evaluator->n_layers);
    free(counts);
    return exit_code;
}

struct step {
    const uint8_t *counts;
    size_t number;
    bool repeats;
};

static int take_step(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                     const struct step *step, path_hook on_point, void *user) {
    const int exit_code = path_add(evaluator, options, path, path->points[path->count - 1].counts, step->counts);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    struct found *point = &path->points[path->count - 1];
    point->step = step->number;
    point->repeats = step->repeats;
    point->layer_value = options->layer_value;
    return on_point(user, point) ? TOOL_OK : TOOL_FAILED;
}

/* Nothing was better: allow repeats, and then value layers more, as long as fewer than wanted are saved. */
static bool widen_search(const struct search_options *wanted, const struct found *last, struct search_options *options,
                         bool *repeats) {
    static const double least_value = 0.005;
    static const double most_value = 10.0; /* of rewards that lie in 0 .. 1, or are logarithms of such */
    if (!*repeats && !wanted->no_repeats) {
        *repeats = true;
        return true;
    }
    if ((double)last->saved >= wanted->min_saved || options->layer_value > most_value) {
        return false;
    }
    options->layer_value = 1.5 * (options->layer_value > least_value ? options->layer_value : least_value);
    return true;
}

int search_greedy(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                  path_hook on_point, void *user) {
    struct search_options now = *options;
    uint8_t *next = allocate(evaluator->n_layers, 1);
    const struct found *last = &path->points[path->count - 1];
    bool better = true;
    bool repeats = last->repeats;
    int exit_code = TOOL_OK;
    now.layer_value = last->step != 0 ? last->layer_value : options->layer_value;
    for (size_t step = last->step + 1; step <= now.max_steps && exit_code == TOOL_OK; step++) {
        last = &path->points[path->count - 1];
        if (!better && !widen_search(options, last, &now, &repeats)) {
            break;
        }
        struct race race = {.evaluator = evaluator,
                            .options = &now,
                            .current = evaluator_memo(evaluator, last->counts),
                            .repeats = repeats};
        exit_code = run_race(&race);
        if (exit_code == TOOL_OK) {
            exit_code = take_finalists(&race, next, &better);
        }
        if (exit_code == TOOL_OK && better) {
            exit_code = take_step(evaluator, &now, path, &(struct step){next, step, repeats}, on_point, user);
        }
        free(race.candidates);
    }
    free(next);
    return exit_code;
}
