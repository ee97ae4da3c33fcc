/* Layer search: which programs answer a group of questions best. The parts of `drllm search`. */
#ifndef DRLLM_TOOLS_SEARCH_H
#define DRLLM_TOOLS_SEARCH_H

#include "tools/questions.h"
#include "tools/workers.h"

/* Of a question: the log-probability of the right choice, its probability, or whether it is the best one. */
enum reward { REWARD_SOFT, REWARD_PROBABILITY, REWARD_EXACT };

/* What a program earned on one question. */
struct outcome {
    float soft;  /* ln of the right choice's share in softmax(8 * scores); NAN: not computed yet */
    float right; /* 1 if the best choice is the right one, otherwise 0 */
};

/* A program and its outcomes so far, remembered for the whole search of a group. */
struct memo {
    uint8_t *counts;          /* [n_layers] */
    struct outcome *outcomes; /* [n_questions of the group] */
    struct memo *next;        /* of the same bucket */
};

enum { MEMO_BUCKETS = 4096 };

/* Questions that share a program: a task, a cluster, or one question. */
struct group {
    const char *name;
    const struct question **questions; /* in search order: [0, n_search) are searched on, the rest verifies */
    size_t n_questions;
    size_t n_search;
    uint64_t seed;
};

/* How much work was done, in blocks run times rows, and what the same would have cost otherwise. */
struct search_cost {
    _Atomic uint64_t row_blocks;  /* run: rows times executions */
    _Atomic uint64_t resumed;     /* row_blocks not run, because hidden states were kept */
    _Atomic uint64_t evaluations; /* of a program on a question */
    _Atomic uint64_t memo_hits;   /* evaluations that were there already */
    _Atomic uint64_t raced_out;   /* evaluations that candidates which had lost were spared */
};

struct evaluator {
    const struct command *command;
    struct workers *workers;
    struct drllm_session *session; /* where questions are computed one after the other; NULL: on the workers */
    const struct group *group;
    size_t n_layers;
    bool no_reuse; /* run every program from its first block: to measure what reuse brings */
    struct memo *memos[MEMO_BUCKETS];
    struct search_cost cost;
};

void evaluator_open(struct evaluator *evaluator, const struct command *command, struct workers *workers,
                    const struct group *group, size_t n_layers);
void evaluator_close(struct evaluator *evaluator);

/* The memo of a program, made if there is none. */
struct memo *evaluator_memo(struct evaluator *evaluator, const uint8_t *counts);

/* Compute the outcomes of programs on questions first .. first + n - 1 of the group that are not there yet. Programs that
 * differ from `base` only from some block on resume there. Returns an exit code. */
int evaluate(struct evaluator *evaluator, const uint8_t *base, struct memo *const *programs, size_t n_programs,
             size_t first, size_t n);

/* The reward of an outcome. */
double reward_of(enum reward reward, const struct outcome *outcome);

/* Its mean over questions first .. first + n - 1, all of which must be computed. */
double mean_reward(enum reward reward, const struct memo *memo, size_t first, size_t n);

struct search_options {
    enum reward reward;
    bool tree;            /* otherwise greedy */
    double layer_value;   /* what one layer saved is worth, in reward */
    double min_saved;     /* greedy: where the search stands still with fewer, layer_value is raised */
    size_t max_steps;     /* greedy */
    size_t n_simulations; /* tree */
    bool no_racing;
    bool no_repeats;
};

/* A point of a search's path, verified on the group's other questions. */
struct found {
    uint8_t *counts; /* [n_layers] */
    int saved;
    double search_reward; /* on the questions searched on */
    double verify_reward; /* on the others, */
    double right;         /* and the share of right answers there, */
    double gain_error;    /* half the 95 % interval of its gain over full depth */
    size_t step;          /* greedy: which one found it, */
    bool repeats;         /* whether blocks could be repeated by then, */
    double layer_value;   /* and what a layer was worth */
};

struct path {
    struct found *points; /* the first is full depth */
    size_t count;
    size_t chosen;
    size_t n_search, n_verify; /* questions */
};
void path_release(struct path *path);

/* The reward of a program with what its saved layers are worth. */
double objective(const struct search_options *options, const struct memo *memo, size_t n_layers, size_t first,
                 size_t n);

/* Start behind the points that `path` holds already (from a checkpoint). on_point is called for each new one; false stops.
 * Each returns an exit code. */
typedef bool (*path_hook)(void *user, const struct found *point);
int search_greedy(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                  path_hook on_point, void *user);
int search_tree(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                path_hook on_point, void *user);

/* Put the labels of shards together, in the order of their questions, of which each must be there once. Returns an exit
 * code. */
int search_merge(const struct command *command, const struct text_list *files, const char *output);

/* Add a program to the path, with its outcomes on all questions computed. */
int path_add(struct evaluator *evaluator, const struct search_options *options, struct path *path, const uint8_t *base,
             const uint8_t *counts);

#endif
