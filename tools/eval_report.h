/* What `drllm eval` measured: numbers out of the single answers, and the table, JSON, CSV and plot of them. */
#ifndef DRLLM_TOOLS_EVAL_REPORT_H
#define DRLLM_TOOLS_EVAL_REPORT_H

#include "tools/json.h"
#include "tools/questions.h"

enum eval_method { EVAL_FULL, EVAL_ROUTED, EVAL_STATIC, EVAL_SHORTGPT, EVAL_RANDOM, N_EVAL_METHODS };
extern const char *const eval_method_names[]; /* full, routed, static, shortgpt, random */

/* ---- Statistics ---- */

struct interval {
    double low, high;
};
/* Wilson's 95 % interval of a share, which may be a mean of shares, of n; 0 to 1 for n 0. */
struct interval wilson_interval(double share, size_t n);
/* McNemar's exact test, two-sided: how likely so uneven a split of the answers that differ is, if neither is better. */
double mcnemar(size_t only_a, size_t only_b);

/* ---- Results ---- */

/* All questions answered one way; where there are several programs, masks of several seeds, each answers all. */
struct eval_run {
    enum eval_method method;
    double budget;     /* NAN: none */
    uint8_t *programs; /* [n_parts][n_layers]; NULL: the routers decide */
    size_t n_parts;
    bool *right;  /* [n_parts][n_questions] */
    int *saved;   /* [n_parts][n_questions] */
    double *ms;   /* [n_questions], of the first part; NAN: not measured */
    double *rows; /* [n_questions]: tokens computed then */
};

struct eval_results {
    const char *model;   /* a name for titles */
    const char *routers; /* file, or NULL */
    size_t n_layers;
    const char *const *tasks;
    size_t n_tasks;
    const struct question **questions; /* of all tasks */
    const size_t *task_of;             /* [n_questions] */
    size_t n_questions;
    struct eval_run *runs;
    size_t n_runs;
    double *no_block_ms;     /* [n_questions]: without any block; NAN: not measured */
    const double *influence; /* [n_layers], or NULL */
    const cJSON *within;     /* see eval_within.h, or NULL */
};

extern const size_t eval_all; /* as a task: all of them */

struct eval_row {
    size_t n;
    double accuracy;
    struct interval interval;
    double layers_saved;
    double ms;                /* median over the measured examples; NAN: none */
    double tokens_per_second; /* of those; NAN: none */
};
/* Of a task, or of the tasks in the mean (eval_all), where each counts the same. */
struct eval_row eval_row(const struct eval_results *results, const struct eval_run *run, size_t task);

struct eval_test {
    size_t n, only_other, only_run; /* that the one alone, the other alone answers */
    double gain;                    /* of the run over the other, in accuracy over all questions at hand */
    struct interval interval;       /* normal, 95 % */
    double p;
};
/* Both of one part. */
struct eval_test eval_compare(const struct eval_results *results, const struct eval_run *other,
                              const struct eval_run *run, size_t task);

struct eval_latency {
    size_t n;
    double saved_time;   /* share of full depth's time */
    double saved_layers; /* share, each example weighing as its time at full depth */
    double reached;      /* the one over the other; NAN where nothing is saved */
    double of_blocks;    /* the same, where what is left without any block does not count as time */
};
struct eval_latency eval_latency(const struct eval_results *results, const struct eval_run *full,
                                 const struct eval_run *run, size_t task);

/* ---- Output ---- */

void eval_print(FILE *stream, const struct eval_results *results);
void eval_put_csv(FILE *stream, const struct eval_results *results);
cJSON *eval_json(const struct eval_results *results);
void eval_draw(FILE *stream, const struct eval_results *results);

#endif
