/* What bench.c measures and bench_print.c prints. */
#ifndef DRLLM_TOOLS_BENCH_H
#define DRLLM_TOOLS_BENCH_H

#include "tools/bench_depth.h"
#include "tools/bench_tokens.h"
#include "tools/common.h"

enum output { OUTPUT_MD, OUTPUT_JSON, OUTPUT_CSV };

struct bench_options {
    struct model_options model; /* without the path */
    struct depth_options depth;
    struct text_list models;
    struct text_list synthetic; /* shapes */
    const char *format;         /* of the synthetic weights, or the kernels' formats; NULL: the default */
    bool kernels;
    const char *shapes;          /* of the kernels' matrices */
    const char *plot;            /* where their roofline goes; NULL: nowhere */
    struct integer_list batches; /* tokens of their products */
    struct integer_list prompts;
    struct integer_list generations;
    struct integer_list threads;
    int64_t repetitions;
    int output; /* enum output */
};

/* One test: n_prompt or n_gen tokens, the other is 0. */
struct row {
    const char *path; /* or what stands for it */
    char model_type[64];
    char test_time[32];
    struct drllm_model_info info; /* its texts are constants or were copied above */
    size_t n_prompt;
    size_t n_gen;
    unsigned n_threads;
    uint64_t *pass_ns[BENCH_PASSES]; /* [repetitions]; NULL for a pass that is not run */
    double *samples;                 /* [repetitions], tokens a second */
    struct bench_depth depth;        /* without a program where no depth is asked for */
    struct bench_tokens tokens;
    struct bench_tokens reading; /* of passes that only read as many bytes as a token does */
    double average, deviation, median, least, most;
    double bytes_per_token; /* weights, keys and values that a generated token reads; 0 for a prompt */
    double load_ms;
    double bandwidth; /* 0: unknown */
};

struct bench {
    const struct command *command;
    const struct bench_options *options;
    struct depth depth; /* of the model at hand */
    struct row *rows;
    size_t n_rows;
    uint64_t peak_memory;
};

/* Where a depth is asked for, it is compared with others; otherwise there is one pass. */
size_t bench_count_passes(const struct bench *bench);

/* All rows, in the form that the options ask for. Returns an exit code. */
int bench_print(const struct bench *bench);
/* One line of CSV of the items of an object, lists left out; with `header` a line of their keys before it. */
void bench_print_csv(const cJSON *object, bool header);

#endif
