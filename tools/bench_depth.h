/* What a depth saves, beside full depth and beside no block at all, all from one run. */
#ifndef DRLLM_TOOLS_BENCH_DEPTH_H
#define DRLLM_TOOLS_BENCH_DEPTH_H

#include "tools/depth.h"

enum bench_pass {
    BENCH_ASKED, /* as the command line says; the only pass where it says nothing about depth */
    BENCH_FULL,
    BENCH_NONE, /* what the embedding and the head take */
    BENCH_PASSES
};

/* Ratios are NAN where there is nothing to say. */
struct bench_depth {
    char *program; /* that the asked depth came to, as text */
    size_t n_layers;
    int saved;
    double full_median, none_median;       /* tokens a second */
    double ratio, ratio_least, ratio_most; /* time of the asked depth / of full depth, repetition by repetition */
    double reached;                        /* the time saved / the share of the blocks' time that `saved` stands for */
    double kv_ratio;
    double router_share; /* of the asked depth's time */
};

bool bench_depth_is_asked(const struct depth_options *options);

/* Sessions of one model, one a pass, so that each keeps the caches it has grown. Returns an exit code. */
int bench_depth_set(const struct command *command, struct drllm_session *const sessions[BENCH_PASSES],
                    const struct depth *depth);

/* After all passes: samples are of n_repetitions passes with n_tokens each, router_ns is what routers took in all of
 * the asked depth's. */
void bench_depth_summarise(struct bench_depth *result, const struct depth *depth,
                           struct drllm_session *const sessions[BENCH_PASSES], uint64_t *const samples_ns[BENCH_PASSES],
                           size_t n_repetitions, size_t n_tokens, uint64_t router_ns);
void bench_depth_release(struct bench_depth *result);

void bench_depth_print_head(void);
/* The rest of a row that begins with the test. */
void bench_depth_print(const struct bench_depth *result, double median);
void bench_depth_add_json(cJSON *json, const struct bench_depth *result);

#endif
