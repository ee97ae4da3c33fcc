/* Greedy search: from full depth, one block left out (or taken back) at a time, as long as the group's mean reward with what
 * saved layers are worth rises; then the same with blocks repeated as well. Candidates race: all of them run on some
 * questions, the better ones on more. */
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

static double reward_of(const struct search_options *options, const struct outcome *outcome) {
    return (double)(options->reward == REWARD_SOFT ? outcome->soft : outcome->right);
}

static int layers_saved(const uint8_t *counts, size_t n_layers) {
    return (int)n_layers - (int)drllm_program_executions(counts, n_layers);
}

static double mean_reward(const struct search_options *options, const struct memo *memo, size_t first, size_t n) {
    return options->reward == REWARD_SOFT ? mean_soft(memo, first, n) : mean_right(memo, first, n);
}

double objective(const struct search_options *options, const struct memo *memo, size_t n_layers, size_t first,
                 size_t n) {
    return mean_reward(options, memo, first, n) + options->layer_value * layers_saved(memo->counts, n_layers);
}

/* ---- The path ---- */

void path_release(struct path *path) {
    for (size_t i = 0; i < path->count; i++) {
        free(path->points[i].counts);
    }
    free(path->points);
    *path = (struct path){NULL, 0, 0};
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
                            .search_reward = mean_reward(options, memo, 0, group->n_search),
                            .soft = mean_soft(memo, group->n_search, n_verify),
                            .right = mean_right(memo, group->n_search, n_verify)};
    memcpy(point->counts, counts, evaluator->n_layers);
    return TOOL_OK;
}

/* ---- The race ---- */

static void add_neighbours(struct race *race) {
    const size_t n_layers = race->evaluator->n_layers;
    uint8_t *counts = allocate(n_layers, 1);
    race->candidates = allocate(2 * n_layers, sizeof *race->candidates);
    for (size_t i = 0; i < 2 * n_layers; i++) {
        const size_t layer = i / 2;
        const int change = i % 2 == 0 ? -1 : 1;
        const int most = race->repeats ? 2 : 1;
        memcpy(counts, race->current->counts, n_layers);
        const int count = counts[layer] + change;
        if (count < 0 || count > most) {
            continue;
        }
        counts[layer] = (uint8_t)count;
        race->candidates[race->count++] = (struct candidate){.memo = evaluator_memo(race->evaluator, counts)};
    }
    free(counts);
}

static void measure_lead(const struct race *race, struct candidate *candidate, size_t n) {
    const size_t n_layers = race->evaluator->n_layers;
    double sum = 0.0;
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double lead = reward_of(race->options, &candidate->memo->outcomes[i]) -
                            reward_of(race->options, &race->current->outcomes[i]);
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

/* The best finalist, and with it each further one that still helps on top: *next is the program. */
static int take_finalists(struct race *race, uint8_t *next, bool *better) {
    struct evaluator *evaluator = race->evaluator;
    const size_t n_search = evaluator->group->n_search;
    struct memo *best = race->current;
    *better = false;
    for (size_t i = 0; i < race->count && race->candidates[i].lead > 0.0; i++) {
        uint8_t *counts = allocate(evaluator->n_layers, 1);
        for (size_t j = 0; j < evaluator->n_layers; j++) {
            const int change = (int)race->candidates[i].memo->counts[j] - (int)race->current->counts[j];
            counts[j] = (uint8_t)((int)best->counts[j] + change);
        }
        struct memo *tried = evaluator_memo(evaluator, counts);
        free(counts);
        /* What loses on the first questions is not tried on the rest. */
        for (size_t part = race->options->no_racing ? 1 : 4; part > 0; part /= 4) {
            const size_t n = n_search / part;
            const int exit_code = evaluate(evaluator, best->counts, &tried, 1, 0, n);
            if (exit_code != TOOL_OK) {
                return exit_code;
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
    return TOOL_OK;
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
    return on_point(user, point) ? TOOL_OK : TOOL_FAILED;
}

int search_greedy(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                  path_hook on_point, void *user) {
    uint8_t *next = allocate(evaluator->n_layers, 1);
    const struct found *last = &path->points[path->count - 1];
    bool better = true;
    bool repeats = last->repeats;
    int exit_code = TOOL_OK;
    for (size_t step = last->step + 1; step <= options->max_steps && exit_code == TOOL_OK; step++) {
        if (!better && (repeats || options->no_repeats)) {
            break;
        }
        repeats = repeats || !better;
        const uint8_t *current = path->points[path->count - 1].counts;
        struct race race = {.evaluator = evaluator,
                            .options = options,
                            .current = evaluator_memo(evaluator, current),
                            .repeats = repeats};
        exit_code = run_race(&race);
        if (exit_code == TOOL_OK) {
            exit_code = take_finalists(&race, next, &better);
        }
        if (exit_code == TOOL_OK && better) {
            exit_code = take_step(evaluator, options, path, &(struct step){next, step, repeats}, on_point, user);
        }
        free(race.candidates);
    }
    free(next);
    return exit_code;
}
