#include "tools/bench_depth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool bench_depth_is_asked(const struct depth_options *options) {
    return options->routers != NULL || options->program != NULL || options->depth != NULL;
}

int bench_depth_set(const struct command *command, struct drllm_session *const sessions[BENCH_PASSES],
                    const struct depth *depth) {
    uint8_t *no_block = allocate(depth->n_layers, sizeof *no_block);
    memset(no_block, 0, depth->n_layers);
    struct depth full = {.depth = drllm_depth_default(), .n_layers = depth->n_layers};
    struct depth none = full;
    none.depth.kind = DRLLM_DEPTH_STATIC;
    none.depth.program = no_block;
    const struct depth *const depths[BENCH_PASSES] = {
        [BENCH_ASKED] = depth, [BENCH_FULL] = &full, [BENCH_NONE] = &none};
    int exit_code = TOOL_OK;
    for (size_t i = 0; i < BENCH_PASSES && exit_code == TOOL_OK; i++) {
        exit_code = depth_set(command, sessions[i], depths[i]);
    }
    free(no_block);
    return exit_code;
}

/* ---- Numbers ---- */

static double median_speed(const uint64_t *samples_ns, size_t n, size_t n_tokens, double *work) {
    for (size_t i = 0; i < n; i++) {
        work[i] = per_second((double)n_tokens, samples_ns[i]);
    }
    return median(work, n);
}

static void compare_times(struct bench_depth *result, uint64_t *const samples_ns[BENCH_PASSES], size_t n,
                          double *work) {
    for (size_t i = 0; i < n; i++) {
        work[i] = (double)samples_ns[BENCH_ASKED][i] / (double)samples_ns[BENCH_FULL][i];
    }
    result->ratio = median(work, n);
    result->ratio_least = work[0];
    result->ratio_most = work[n - 1];
    result->reached = NAN;
    if (result->saved != 0) {
        const double expected = (double)result->saved / (double)result->n_layers;
        for (size_t i = 0; i < n; i++) {
            const double full = (double)samples_ns[BENCH_FULL][i];
            work[i] =
                (full - (double)samples_ns[BENCH_ASKED][i]) / ((full - (double)samples_ns[BENCH_NONE][i]) * expected);
        }
        result->reached = median(work, n);
    }
}

static double kv_bytes(const struct drllm_session *session) {
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    return (double)timings.kv_bytes;
}

void bench_depth_summarise(struct bench_depth *result, const struct depth *depth,
                           struct drllm_session *const sessions[BENCH_PASSES], uint64_t *const samples_ns[BENCH_PASSES],
                           size_t n_repetitions, size_t n_tokens, uint64_t router_ns) {
    double *work = allocate(n_repetitions, sizeof *work);
    uint8_t *counts = allocate(depth->n_layers, sizeof *counts);
    double asked_ns = 0.0;
    for (size_t i = 0; i < n_repetitions; i++) {
        asked_ns += (double)samples_ns[BENCH_ASKED][i];
    }
    drllm_session_get_program(sessions[BENCH_ASKED], counts);
    drllm_session_get_layers_saved(sessions[BENCH_ASKED], &result->saved);
    result->program = program_text(counts, depth->n_layers);
    result->n_layers = depth->n_layers;
    result->full_median = median_speed(samples_ns[BENCH_FULL], n_repetitions, n_tokens, work);
    result->none_median = median_speed(samples_ns[BENCH_NONE], n_repetitions, n_tokens, work);
    compare_times(result, samples_ns, n_repetitions, work);
    result->kv_ratio = kv_bytes(sessions[BENCH_ASKED]) / kv_bytes(sessions[BENCH_FULL]);
    result->router_share = depth->routers != NULL ? (double)router_ns / asked_ns : NAN;
    free(counts);
    free(work);
}

void bench_depth_release(struct bench_depth *result) {
    free(result->program);
    result->program = NULL;
}

/* ---- Printing ---- */

void bench_depth_print_head(void) {
    printf("| model | test | threads | t/s | full t/s | no block t/s | time / full | range | layers saved | of saving "
           "| KV / full | routers | program |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n");
}

static void print_share(double share) {
    if (isfinite(share)) {
        printf(" %.2f %% |", 100.0 * share);
    } else {
        printf(" |");
    }
}

void bench_depth_print(const struct bench_depth *result, double median) {
    printf(" %.2f | %.2f | %.2f | %.4f | %.4f - %.4f | %d of %zu |", median, result->full_median, result->none_median,
           result->ratio, result->ratio_least, result->ratio_most, result->saved, result->n_layers);
    print_share(result->reached);
    printf(" %.4f |", result->kv_ratio);
    print_share(result->router_share);
    printf(" %s |\n", result->program);
}

void bench_depth_add_json(cJSON *json, const struct bench_depth *result) {
    cJSON_AddStringToObject(json, "program", result->program);
    cJSON_AddNumberToObject(json, "layers_saved", result->saved);
    cJSON_AddNumberToObject(json, "full_median_ts", result->full_median);
    cJSON_AddNumberToObject(json, "no_block_median_ts", result->none_median);
    json_add_number(json, "time_ratio", result->ratio);
    json_add_number(json, "time_ratio_min", result->ratio_least);
    json_add_number(json, "time_ratio_max", result->ratio_most);
    json_add_number(json, "saving_reached", result->reached);
    json_add_number(json, "kv_ratio", result->kv_ratio);
    json_add_number(json, "router_share", result->router_share);
}
