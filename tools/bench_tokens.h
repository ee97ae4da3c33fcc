/* How evenly tokens are generated: what a user sees as stutter. */
#ifndef DRLLM_TOOLS_BENCH_TOKENS_H
#define DRLLM_TOOLS_BENCH_TOKENS_H

#include "tools/json.h"

#include <stddef.h>
#include <stdint.h>

enum { BENCH_LATENESS_BINS = 8 };

/* All of it in milliseconds. Zeroed: of a prompt, which has no single tokens. The same of passes over memory. */
struct bench_tokens {
    size_t n;
    double median, p99, most, total;
    size_t late[BENCH_LATENESS_BINS]; /* tokens by how far over the median they took, up to bench_lateness_ms */
};

/* Upper ends of the bins; the last one is infinity. */
extern const double bench_lateness_ms[BENCH_LATENESS_BINS];

/* Sorts `ns`, the durations of n tokens or passes. */
void bench_tokens_summarise(struct bench_tokens *tokens, uint64_t *ns, size_t n);
void bench_tokens_print_head(void);
/* The row of a table, behind its first columns. */
void bench_tokens_print(const struct bench_tokens *tokens);
/* Keys that begin with `what`; null where there are none, so that all rows have the same. */
void bench_tokens_add_json(cJSON *json, const char *what, const struct bench_tokens *tokens);

#endif
