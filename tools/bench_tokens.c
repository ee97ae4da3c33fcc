#include "tools/bench_tokens.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const double bench_lateness_ms[BENCH_LATENESS_BINS] = {0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, INFINITY};

static int by_duration(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a;
    const uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t bin_of(double late_ms) {
    size_t bin = 0;
    while (bin + 1 < BENCH_LATENESS_BINS && late_ms >= bench_lateness_ms[bin]) {
        bin++;
    }
    return bin;
}

void bench_tokens_summarise(struct bench_tokens *tokens, uint64_t *ns, size_t n) {
    *tokens = (struct bench_tokens){.n = n};
    if (n == 0) {
        return;
    }
    qsort(ns, n, sizeof *ns, by_duration);
    const size_t middle = n / 2;
    const size_t hundredth = (n - 1) * 99 / 100;
    tokens->median = (double)ns[middle] / 1e6;
    tokens->p99 = (double)ns[hundredth] / 1e6;
    tokens->most = (double)ns[n - 1] / 1e6;
    for (size_t i = 0; i < n; i++) {
        tokens->total += (double)ns[i] / 1e6;
        tokens->late[bin_of((double)ns[i] / 1e6 - tokens->median)]++;
    }
}

void bench_tokens_print_head(void) {
    printf("| model | tokens | threads | median ms | 99 %% | slowest | late by < %g ms |", bench_lateness_ms[0]);
    for (size_t bin = 1; bin + 1 < BENCH_LATENESS_BINS; bin++) {
        printf(" < %g |", bench_lateness_ms[bin]);
    }
    printf(" more |\n| --- |");
    for (size_t column = 0; column < 5 + BENCH_LATENESS_BINS; column++) {
        printf(" ---: |");
    }
    printf("\n");
}

void bench_tokens_print(const struct bench_tokens *tokens) {
    printf(" %.3f | %.3f | %.3f |", tokens->median, tokens->p99, tokens->most);
    for (size_t bin = 0; bin < BENCH_LATENESS_BINS; bin++) {
        printf(" %zu |", tokens->late[bin]);
    }
    printf("\n");
}

static void add_number(cJSON *json, const char *what, const char *of, double number) {
    char key[32];
    snprintf(key, sizeof key, "%s_%s", what, of);
    json_add_number(json, key, number);
}

void bench_tokens_add_json(cJSON *json, const char *what, const struct bench_tokens *tokens) {
    char key[32];
    const bool any = tokens->n != 0;
    add_number(json, what, "ms_median", any ? tokens->median : NAN);
    add_number(json, what, "ms_p99", any ? tokens->p99 : NAN);
    add_number(json, what, "ms_max", any ? tokens->most : NAN);
    snprintf(key, sizeof key, "%s_lateness", what);
    cJSON *bins = cJSON_AddArrayToObject(json, key);
    for (size_t bin = 0; any && bin < BENCH_LATENESS_BINS; bin++) {
        cJSON *item = cJSON_CreateObject();
        json_add_number(item, "below_ms", bench_lateness_ms[bin]);
        cJSON_AddNumberToObject(item, "count", (double)tokens->late[bin]);
        cJSON_AddItemToArray(bins, item);
    }
}
