#include "tools/bench.h"

#include "platform/cpu.h"
#include "tools/json.h"

#include <math.h>
#include <string.h>

/* Of the memory's bandwidth that generation reaches; negative when there is no saying. */
static double share(const struct row *row) {
    return row->n_gen != 0 && row->bandwidth > 0.0 ? row->median * row->bytes_per_token / row->bandwidth : -1.0;
}

static void print_depths(const struct bench *bench) {
    printf("\n");
    bench_depth_print_head();
    for (size_t i = 0; i < bench->n_rows; i++) {
        const struct row *row = &bench->rows[i];
        printf("| %s | %s%zu | %u |", row->model_type, row->n_gen != 0 ? "tg" : "pp", row->n_prompt + row->n_gen,
               row->n_threads);
        bench_depth_print(&row->depth, row->median);
    }
}

static void print_tokens(const struct bench *bench) {
    bool head = false;
    for (size_t i = 0; i < bench->n_rows; i++) {
        const struct row *row = &bench->rows[i];
        if (row->tokens.n == 0) {
            continue;
        }
        if (!head) {
            printf("\n");
            bench_tokens_print_head();
            head = true;
        }
        printf("| %s | %zu x %lld | %u |", row->model_type, row->n_gen, (long long)bench->options->repetitions,
               row->n_threads);
        bench_tokens_print(&row->tokens);
        if (row->reading.n != 0) {
            char bytes[16];
            printf("| only reading %s | %zu | %u |", format_bytes(row->bytes_per_token, bytes), row->reading.n,
                   row->n_threads);
            bench_tokens_print(&row->reading);
        }
    }
}

static void print_md(const struct bench *bench) {
    char bytes[16];
    printf("| model | size | params | backend | threads | test | median t/s | mean t/s | range | of bandwidth |\n"
           "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t i = 0; i < bench->n_rows; i++) {
        const struct row *row = &bench->rows[i];
        printf("| %s | %s | %.2f M | %s | %u | %s%zu | %.2f | %.2f ± %.2f | %.2f - %.2f | ", row->model_type,
               format_bytes((double)row->info.weight_bytes, bytes), (double)row->info.n_params / 1e6, row->info.backend,
               row->n_threads, row->n_gen != 0 ? "tg" : "pp", row->n_prompt + row->n_gen, row->median, row->average,
               row->deviation, row->least, row->most);
        printf(share(row) >= 0.0 ? "%.1f %% |\n" : "|\n", 100.0 * share(row));
    }
    print_tokens(bench);
    if (bench_count_passes(bench) > 1) {
        print_depths(bench);
    }
    printf("\n");
    for (size_t t = 0; t < bench->options->threads.count; t++) {
        const unsigned n_threads = (unsigned)bench->options->threads.items[t];
        for (size_t i = 0; i < bench->n_rows; i++) {
            if (bench->rows[i].n_threads == n_threads) {
                printf("Memory is read at %.1f GB/s (threads: %u).\n", bench->rows[i].bandwidth / 1e9, n_threads);
                break;
            }
        }
    }
    for (size_t i = 0; i < bench->n_rows; i++) {
        if (i == 0 || bench->rows[i].path != bench->rows[i - 1].path) {
            printf("Load: %.1f ms (%s).\n", bench->rows[i].load_ms, bench->rows[i].path);
        }
    }
    printf("Peak memory: %s.\n", format_bytes((double)bench->peak_memory, bytes));
}

static cJSON *row_json(const struct bench *bench, const struct row *row) {
    const int repetitions = (int)bench->options->repetitions;
    char features[128];
    drllm_cpu_format(row->info.cpu_features, features, sizeof features);
    const bool has_share = share(row) >= 0.0;
    double average_ns = 0.0;
    double squares = 0.0;
    for (int i = 0; i < repetitions; i++) {
        average_ns += (double)row->pass_ns[BENCH_ASKED][i] / repetitions;
    }
    for (int i = 0; i < repetitions; i++) {
        const double d = (double)row->pass_ns[BENCH_ASKED][i] - average_ns;
        squares += d * d;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "model_filename", json_text(row->path, strlen(row->path)));
    cJSON_AddStringToObject(json, "model_type", row->model_type);
    cJSON_AddItemToObject(json, "model_size", json_u64(row->info.weight_bytes));
    cJSON_AddItemToObject(json, "model_n_params", json_u64(row->info.n_params));
    cJSON_AddStringToObject(json, "backends", row->info.backend);
    cJSON_AddStringToObject(json, "head_format", row->info.head_format);
    cJSON_AddStringToObject(json, "head_backend", row->info.head_backend);
    cJSON_AddStringToObject(json, "compute", compute_names[bench->options->model.compute]);
    cJSON_AddStringToObject(json, "cpu_features", features);
    cJSON_AddNumberToObject(json, "n_threads", row->n_threads);
    cJSON_AddNumberToObject(json, "n_prompt", (double)row->n_prompt);
    cJSON_AddNumberToObject(json, "n_gen", (double)row->n_gen);
    cJSON_AddStringToObject(json, "test_time", row->test_time);
    cJSON_AddNumberToObject(json, "avg_ns", round(average_ns));
    cJSON_AddNumberToObject(json, "stddev_ns", repetitions > 1 ? round(sqrt(squares / (repetitions - 1))) : 0.0);
    cJSON_AddNumberToObject(json, "avg_ts", row->average);
    cJSON_AddNumberToObject(json, "stddev_ts", row->deviation);
    cJSON_AddNumberToObject(json, "median_ts", row->median);
    cJSON_AddNumberToObject(json, "min_ts", row->least);
    cJSON_AddNumberToObject(json, "max_ts", row->most);
    cJSON *samples_ns = cJSON_AddArrayToObject(json, "samples_ns");
    for (int i = 0; i < repetitions; i++) {
        cJSON_AddItemToArray(samples_ns, json_u64(row->pass_ns[BENCH_ASKED][i]));
    }
    cJSON_AddItemToObject(json, "samples_ts", cJSON_CreateDoubleArray(row->samples, repetitions));
    cJSON_AddNumberToObject(json, "bandwidth", row->bandwidth);
    json_add_number(json, "bytes_per_token", has_share ? row->bytes_per_token : NAN);
    json_add_number(json, "share_of_bandwidth", has_share ? share(row) : NAN);
    bench_tokens_add_json(json, "token", &row->tokens);
    bench_tokens_add_json(json, "reading", &row->reading);
    if (row->depth.program != NULL) {
        bench_depth_add_json(json, &row->depth);
    }
    cJSON_AddNumberToObject(json, "load_ms", row->load_ms);
    cJSON_AddItemToObject(json, "peak_memory", json_u64(bench->peak_memory));
    return json;
}

void bench_print_csv(const cJSON *object, bool header) {
    const cJSON *item;
    for (int keys = header ? 1 : 0; keys >= 0; keys--) {
        const char *separator = "";
        cJSON_ArrayForEach(item, object) {
            if (cJSON_IsArray(item)) {
                continue;
            }
            char *value = keys ? NULL : cJSON_PrintUnformatted(item);
            printf("%s%s", separator, keys ? item->string : cJSON_IsNull(item) ? "" : value);
            cJSON_free(value);
            separator = ",";
        }
        printf("\n");
    }
}

int bench_print(const struct bench *bench) {
    if (bench->options->output == OUTPUT_MD) {
        print_md(bench);
        return flush_output(bench->command);
    }
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < bench->n_rows; i++) {
        cJSON_AddItemToArray(array, row_json(bench, &bench->rows[i]));
    }
    if (bench->options->output == OUTPUT_JSON) {
        return json_print(bench->command, array, false);
    }
    const cJSON *row;
    cJSON_ArrayForEach(row, array) {
        bench_print_csv(row, row == array->child);
    }
    cJSON_Delete(array);
    return flush_output(bench->command);
}
