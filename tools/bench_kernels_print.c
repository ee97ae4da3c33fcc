#include "platform/cpu.h"
#include "runtime/choice.h"
#include "tools/bench.h"
#include "tools/bench_kernels.h"
#include "tools/json.h"

#include <math.h>
#include <string.h>

static const char *const class_names[N_KERNEL_CLASSES] = {"q, output", "k, v", "gate, up", "down", "head"};

double kernel_ops(const struct kernel_result *result) {
    return 2e9 * (double)result->n_tokens * (double)result->rows * (double)result->shape->cols / result->ns;
}

double kernel_bytes(const struct kernel_result *result) {
    return result->weight_bytes * 1e9 / result->ns;
}

static const struct kernel_result *find(const struct kernel_bench *bench, const struct kernel_candidate *candidate,
                                        const struct kernel_shape *shape, size_t n_tokens, bool cached,
                                        unsigned n_threads) {
    for (size_t i = 0; i < bench->n_results; i++) {
        const struct kernel_result *result = &bench->results[i];
        if (result->candidate == candidate && result->shape == shape && result->n_tokens == n_tokens &&
            result->cached == cached && result->n_threads == n_threads) {
            return result;
        }
    }
    return NULL;
}

/* ---- The fastest ---- */

/* Of a class of shapes, for one format as files store it. */
struct verdict {
    enum drllm_format format;
    enum kernel_class class;
    size_t n_tokens;
    unsigned n_threads;
    const char *now;                                         /* what drllm runs unasked */
    const struct kernel_candidate *fastest, *next, *xnnpack; /* of this format; xnnpack: what --compute xnnpack runs */
    double ops, next_ops, now_ops, xnnpack_ops;              /* a second; 0: not measured */
};

/* Over all shapes of the class, each counted by the time of its weights; 0 where one was not measured. */
static double class_ops(const struct kernel_bench *bench, const struct kernel_candidate *candidate,
                        const struct verdict *verdict) {
    double ops = 0.0;
    double seconds = 0.0;
    for (size_t s = 0; s < bench->n_shapes; s++) {
        const struct kernel_shape *shape = &bench->shapes[s];
        if (shape->class != verdict->class) {
            continue;
        }
        const struct kernel_result *result =
            find(bench, candidate, shape, verdict->n_tokens, false, verdict->n_threads);
        if (result == NULL) {
            return 0.0;
        }
        const double work = 2.0 * (double)shape->rows * (double)shape->cols * (double)verdict->n_tokens;
        ops += work;
        seconds += work / kernel_ops(result);
    }
    return seconds > 0.0 ? ops / seconds : 0.0;
}

static const struct kernel_candidate *find_candidate(const struct kernel_bench *bench, enum drllm_format format,
                                                     const struct drllm_kernel *kernel) {
    for (size_t c = 0; c < bench->n_candidates; c++) {
        if (bench->candidates[c].format == format && bench->candidates[c].kernel == kernel) {
            return &bench->candidates[c];
        }
    }
    return NULL;
}

/* What runtime/choice.c and the kernels' table choose. NULL where it was not measured. */
static const struct kernel_candidate *chosen(const struct kernel_bench *bench, const struct verdict *verdict,
                                             enum drllm_compute compute) {
    struct drllm_choice_of_format choice;
    size_t cols = DRLLM_SUPERBLOCK;
    for (size_t s = 0; s < bench->n_shapes; s++) {
        cols = bench->shapes[s].class == verdict->class ? bench->shapes[s].cols : cols;
    }
    if (!drllm_choose_format(verdict->format, cols, verdict->class == KERNEL_HEAD, compute, DRLLM_HEAD_AUTO,
                             bench->cpu_features, &choice) ||
        (compute == DRLLM_COMPUTE_XNNPACK && !choice.xnnpack)) {
        return NULL;
    }
    return find_candidate(bench, choice.format,
                          choice.xnnpack ? NULL : drllm_kernel_choose(choice.format, bench->cpu_features));
}

/* False where nothing of it was measured. */
static bool judge(const struct kernel_bench *bench, struct verdict *verdict) {
    for (size_t c = 0; c < bench->n_candidates; c++) {
        const struct kernel_candidate *candidate = &bench->candidates[c];
        const double ops = candidate->format == verdict->format ? class_ops(bench, candidate, verdict) : 0.0;
        if (ops > verdict->ops) {
            verdict->next = verdict->fastest;
            verdict->next_ops = verdict->ops;
            verdict->fastest = candidate;
            verdict->ops = ops;
        } else if (ops > verdict->next_ops) {
            verdict->next = candidate;
            verdict->next_ops = ops;
        }
    }
    const struct kernel_candidate *now = chosen(bench, verdict, DRLLM_COMPUTE_EXACT);
    verdict->xnnpack = chosen(bench, verdict, DRLLM_COMPUTE_XNNPACK);
    verdict->now = now != NULL ? now->name : "";
    verdict->now_ops = now != NULL ? class_ops(bench, now, verdict) : 0.0;
    verdict->xnnpack_ops = verdict->xnnpack != NULL ? class_ops(bench, verdict->xnnpack, verdict) : 0.0;
    return verdict->fastest != NULL;
}

/* One token, and the most tokens that were measured. */
static size_t judged_tokens(const struct kernel_bench *bench, bool most) {
    const struct integer_list *batches = &bench->options->batches;
    size_t n = (size_t)batches->items[0];
    for (size_t b = 1; b < batches->count; b++) {
        const size_t other = (size_t)batches->items[b];
        n = (most ? other > n : other < n) ? other : n;
    }
    return n;
}

typedef void (*verdict_fn)(void *user, const struct verdict *verdict);

static void walk_verdicts(const struct kernel_bench *bench, verdict_fn take, void *user) {
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
                                                DRLLM_FORMAT_Q8C,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16,
                                                DRLLM_FORMAT_F32};
    const struct integer_list *threads = bench->options->threads;
    const size_t tokens[] = {judged_tokens(bench, false), judged_tokens(bench, true)};
    for (size_t t = 0; t < threads->count; t++) {
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            for (int class = 0; class < N_KERNEL_CLASSES; class ++) {
                for (size_t k = 0; k < (tokens[0] != tokens[1] ? 2 : 1); k++) {
                    struct verdict verdict = {.format = formats[f], .class = (enum kernel_class) class};
                    verdict.n_tokens = tokens[k];
                    verdict.n_threads = (unsigned)threads->items[t];
                    if (judge(bench, &verdict)) {
                        take(user, &verdict);
                    }
                }
            }
        }
    }
}

/* ---- Tables ---- */

static void print_share(double part, double whole) {
    if (whole > 0.0) {
        printf(" %.0f %% |", 100.0 * part / whole);
    } else {
        printf(" |");
    }
}

/* GB/s and the share of memory's for weights out of memory, GOP/s and the share of the registers' for all. */
static void print_cells(const struct kernel_result *result, bool with_bytes) {
    if (result == NULL) {
        printf(with_bytes ? " | | | |" : " | |");
        return;
    }
    if (with_bytes) {
        printf(" %.1f |", kernel_bytes(result) / 1e9);
        print_share(kernel_bytes(result), result->bandwidth);
    }
    printf(" %.1f |", kernel_ops(result) / 1e9);
    print_share(kernel_ops(result), result->peak);
}

static void print_results(const struct kernel_bench *bench, unsigned n_threads) {
    const struct integer_list *batches = &bench->options->batches;
    printf("| kernel | K x N | is |");
    for (size_t b = 0; b < batches->count; b++) {
        const long long m = (long long)batches->items[b];
        printf(m == 1 ? " M=%lld GB/s | of memory | GOP/s | of peak | cached GOP/s | of peak |"
                      : " M=%lld GOP/s | of peak |",
               m);
    }
    printf("\n| --- | --- | --- |");
    for (size_t b = 0; b < batches->count; b++) {
        printf(batches->items[b] == 1 ? " ---: | ---: | ---: | ---: | ---: | ---: |" : " ---: | ---: |");
    }
    printf("\n");
    for (size_t c = 0; c < bench->n_candidates; c++) {
        for (size_t s = 0; s < bench->n_shapes; s++) {
            const struct kernel_candidate *candidate = &bench->candidates[c];
            const struct kernel_shape *shape = &bench->shapes[s];
            printf("| %s | %zu x %zu | %s |", candidate->name, shape->cols, shape->rows, class_names[shape->class]);
            for (size_t b = 0; b < batches->count; b++) {
                const size_t m = (size_t)batches->items[b];
                print_cells(find(bench, candidate, shape, m, false, n_threads), m == 1);
                if (m == 1) {
                    print_cells(find(bench, candidate, shape, m, true, n_threads), false);
                }
            }
            printf("\n");
        }
    }
}

static void print_verdict(void *user, const struct verdict *verdict) {
    (void)user;
    printf("| %s | %s | %zu | %u | %s%s | %.1f | ", drllm_format_name((uint32_t)verdict->format),
           class_names[verdict->class], verdict->n_tokens, verdict->n_threads, verdict->fastest->name,
           strcmp(verdict->fastest->name, verdict->now) == 0 ? "" : " (!)", verdict->ops / 1e9);
    if (verdict->next != NULL) {
        printf("%s, %.2f", verdict->next->name, verdict->next_ops / verdict->ops);
    }
    printf(" | %s", verdict->now);
    if (verdict->now_ops > 0.0) {
        printf(", %.2f", verdict->now_ops / verdict->ops);
    }
    printf(" | ");
    if (verdict->xnnpack_ops > 0.0) {
        printf("%s, %.2f", verdict->xnnpack->name, verdict->xnnpack_ops / verdict->ops);
    }
    printf(" |\n");
}

static void print_machine(const struct kernel_bench *bench, unsigned n_threads) {
    const struct drllm_peak *printed = NULL;
    for (size_t i = 0; i < bench->n_results; i++) {
        const struct kernel_result *result = &bench->results[i];
        if (result->n_threads != n_threads) {
            continue;
        }
        if (printed == NULL) {
            printf("Threads: %u. Memory is read at %.1f GB/s. Registers:", n_threads, result->bandwidth / 1e9);
        }
        bool known = false;
        for (size_t k = 0; k < i; k++) {
            known = known || (bench->results[k].n_threads == n_threads &&
                              bench->results[k].candidate->peak == result->candidate->peak);
        }
        if (!known) {
            printf("%s %s %.0f GOP/s", printed != NULL ? "," : "", result->candidate->peak->name, result->peak / 1e9);
            printed = result->candidate->peak;
        }
    }
    printf(printed != NULL ? ".\n\n" : "");
}

static void print_md(const struct kernel_bench *bench) {
    const struct integer_list *threads = bench->options->threads;
    for (size_t t = 0; t < threads->count; t++) {
        print_machine(bench, (unsigned)threads->items[t]);
        print_results(bench, (unsigned)threads->items[t]);
        printf("\n");
    }
    printf("| format | is | M | threads | fastest | GOP/s | next, share | runs unasked, share | --compute xnnpack, "
           "share |\n"
           "| --- | --- | ---: | ---: | --- | ---: | --- | --- | --- |\n");
    walk_verdicts(bench, print_verdict, NULL);
}

/* ---- JSON and CSV ---- */

static void add_share(cJSON *json, const char *key, double part, double whole) {
    json_add_number(json, key, whole > 0.0 ? part / whole : NAN);
}

static cJSON *result_json(const struct kernel_result *result) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kernel", result->candidate->name);
    cJSON_AddStringToObject(json, "format", drllm_format_name((uint32_t)result->candidate->format));
    cJSON_AddStringToObject(json, "class", class_names[result->shape->class]);
    cJSON_AddStringToObject(json, "models", result->shape->models);
    cJSON_AddNumberToObject(json, "k", (double)result->shape->cols);
    cJSON_AddNumberToObject(json, "n", (double)result->shape->rows);
    cJSON_AddNumberToObject(json, "n_measured", (double)result->rows);
    cJSON_AddNumberToObject(json, "m", (double)result->n_tokens);
    cJSON_AddStringToObject(json, "weights", result->cached ? "cache" : "memory");
    cJSON_AddNumberToObject(json, "n_threads", result->n_threads);
    cJSON_AddNumberToObject(json, "ns", result->ns);
    cJSON_AddNumberToObject(json, "ns_median", result->ns_median);
    cJSON_AddNumberToObject(json, "ns_max", result->ns_most);
    cJSON_AddNumberToObject(json, "gops", kernel_ops(result) / 1e9);
    cJSON_AddNumberToObject(json, "gb_s", kernel_bytes(result) / 1e9);
    cJSON_AddStringToObject(json, "peak_name", result->candidate->peak->name);
    cJSON_AddNumberToObject(json, "peak_gops", result->peak / 1e9);
    add_share(json, "share_of_peak", kernel_ops(result), result->peak);
    cJSON_AddNumberToObject(json, "bandwidth_gb_s", result->bandwidth / 1e9);
    add_share(json, "share_of_bandwidth", kernel_bytes(result), result->cached ? 0.0 : result->bandwidth);
    return json;
}

static void add_verdict(void *user, const struct verdict *verdict) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "format", drllm_format_name((uint32_t)verdict->format));
    cJSON_AddStringToObject(json, "class", class_names[verdict->class]);
    cJSON_AddNumberToObject(json, "m", (double)verdict->n_tokens);
    cJSON_AddNumberToObject(json, "n_threads", verdict->n_threads);
    cJSON_AddStringToObject(json, "fastest", verdict->fastest->name);
    cJSON_AddNumberToObject(json, "gops", verdict->ops / 1e9);
    cJSON_AddStringToObject(json, "next", verdict->next != NULL ? verdict->next->name : "");
    add_share(json, "next_share", verdict->next_ops, verdict->ops);
    cJSON_AddStringToObject(json, "unasked", verdict->now);
    add_share(json, "unasked_share", verdict->now_ops, verdict->ops);
    cJSON_AddStringToObject(json, "xnnpack", verdict->xnnpack != NULL ? verdict->xnnpack->name : "");
    add_share(json, "xnnpack_share", verdict->xnnpack_ops, verdict->ops);
    cJSON_AddItemToArray(user, json);
}

int bench_kernels_print(const struct kernel_bench *bench) {
    if (bench->options->output == OUTPUT_MD) {
        print_md(bench);
        return flush_output(bench->command);
    }
    if (bench->options->output == OUTPUT_CSV) {
        for (size_t i = 0; i < bench->n_results; i++) {
            cJSON *row = result_json(&bench->results[i]);
            bench_print_csv(row, i == 0);
            cJSON_Delete(row);
        }
        return flush_output(bench->command);
    }
    char features[128];
    cJSON *json = cJSON_CreateObject();
    drllm_cpu_format(bench->cpu_features, features, sizeof features);
    cJSON_AddStringToObject(json, "cpu_features", features);
    cJSON *results = cJSON_AddArrayToObject(json, "results");
    for (size_t i = 0; i < bench->n_results; i++) {
        cJSON_AddItemToArray(results, result_json(&bench->results[i]));
    }
    walk_verdicts(bench, add_verdict, cJSON_AddArrayToObject(json, "fastest"));
    return json_print(bench->command, json, false);
}
