#include "tools/eval_report.h"

#include "tools/csv.h"

#include "tools/depth.h"
#include "tools/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const eval_method_names[] = {"full", "routed", "static", "shortgpt", "random", NULL};
const size_t eval_all = SIZE_MAX;

static const double z95 = 1.959963984540054; /* of the normal distribution */

/* ---- Statistics ---- */

struct interval wilson_interval(double share, size_t n) {
    if (n == 0) {
        return (struct interval){0.0, 1.0};
    }
    const double count = (double)n;
    const double z2 = z95 * z95;
    const double middle = (share + z2 / (2.0 * count)) / (1.0 + z2 / count);
    const double half = z95 * sqrt(share * (1.0 - share) / count + z2 / (4.0 * count * count)) / (1.0 + z2 / count);
    return (struct interval){fmax(middle - half, 0.0), fmin(middle + half, 1.0)};
}

double mcnemar(size_t only_a, size_t only_b) {
    const size_t n = only_a + only_b;
    const size_t less = only_a < only_b ? only_a : only_b;
    double sum = 0.0;
    double log_term = -(double)n * log(2.0); /* of the binomial distribution: the powers of 2 may be too small */
    for (size_t i = 0; i <= less; i++) {
        sum += exp(log_term);
        log_term += log((double)(n - i)) - log((double)(i + 1));
    }
    return fmin(2.0 * sum, 1.0);
}

/* ---- Rows ---- */

static bool is_of(const struct eval_results *results, size_t question, size_t task) {
    return task == eval_all || results->task_of[question] == task;
}

static size_t count_questions(const struct eval_results *results, size_t task) {
    size_t n = 0;
    for (size_t i = 0; i < results->n_questions; i++) {
        n += is_of(results, i, task);
    }
    return n;
}

static void add_times(const struct eval_results *results, const struct eval_run *run, size_t task,
                      struct eval_row *row) {
    double *times = allocate(results->n_questions, sizeof *times);
    double ms = 0.0;
    double n_rows = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < results->n_questions; i++) {
        if (is_of(results, i, task) && !isnan(run->ms[i])) {
            times[n++] = run->ms[i];
            ms += run->ms[i];
            n_rows += run->rows[i];
        }
    }
    row->ms = n != 0 ? median(times, n) : NAN;
    row->tokens_per_second = ms > 0.0 ? n_rows / ms * 1000.0 : NAN;
    free(times);
}

static struct eval_row row_of_task(const struct eval_results *results, const struct eval_run *run, size_t task) {
    struct eval_row row = {.n = count_questions(results, task)};
    double right = 0.0;
    double saved = 0.0;
    for (size_t part = 0; part < run->n_parts; part++) {
        for (size_t i = 0; i < results->n_questions; i++) {
            if (is_of(results, i, task)) {
                right += run->right[part * results->n_questions + i];
                saved += run->saved[part * results->n_questions + i];
            }
        }
    }
    const double n = (double)(row.n * run->n_parts);
    row.accuracy = n > 0.0 ? right / n : 0.0;
    row.layers_saved = n > 0.0 ? saved / n : 0.0;
    row.interval = wilson_interval(row.accuracy, row.n);
    add_times(results, run, task, &row);
    return row;
}

static struct eval_row row_of_mean(const struct eval_results *results, const struct eval_run *run) {
    struct eval_row mean = {.n = results->n_questions};
    double n_tasks = 0.0;
    double variance = 0.0;
    for (size_t task = 0; task < results->n_tasks; task++) {
        const struct eval_row row = row_of_task(results, run, task);
        if (row.n == 0) {
            continue;
        }
        mean.accuracy += row.accuracy;
        mean.layers_saved += row.layers_saved;
        mean.ms += row.ms;
        mean.tokens_per_second += row.tokens_per_second;
        variance += row.accuracy * (1.0 - row.accuracy) / (double)row.n;
        n_tasks += 1.0;
    }
    if (n_tasks > 0.0) {
        mean.accuracy /= n_tasks;
        mean.layers_saved /= n_tasks;
        mean.ms /= n_tasks;
        mean.tokens_per_second /= n_tasks;
        const double half = z95 * sqrt(variance) / n_tasks;
        mean.interval = (struct interval){fmax(mean.accuracy - half, 0.0), fmin(mean.accuracy + half, 1.0)};
    }
    return mean;
}

struct eval_row eval_row(const struct eval_results *results, const struct eval_run *run, size_t task) {
    return task == eval_all ? row_of_mean(results, run) : row_of_task(results, run, task);
}

/* ---- Comparisons ---- */

struct eval_test eval_compare(const struct eval_results *results, const struct eval_run *other,
                              const struct eval_run *run, size_t task) {
    struct eval_test test = {.n = 0};
    for (size_t i = 0; i < results->n_questions; i++) {
        if (is_of(results, i, task)) {
            test.n++;
            test.only_other += other->right[i] && !run->right[i];
            test.only_run += run->right[i] && !other->right[i];
        }
    }
    const double n = test.n != 0 ? (double)test.n : 1.0;
    const double split = (double)(test.only_other + test.only_run);
    const double lead = (double)test.only_run - (double)test.only_other;
    const double half = z95 * sqrt(fmax(split - lead * lead / n, 0.0)) / n;
    test.gain = lead / n;
    test.interval = (struct interval){test.gain - half, test.gain + half};
    test.p = mcnemar(test.only_other, test.only_run);
    return test;
}

struct eval_latency eval_latency(const struct eval_results *results, const struct eval_run *full,
                                 const struct eval_run *run, size_t task) {
    struct eval_latency latency = {.n = 0};
    double full_ms = 0.0;
    double saved_ms = 0.0;
    double expected_ms = 0.0;        /* to be saved */
    double expected_blocks_ms = 0.0; /* of the blocks' time alone */
    for (size_t i = 0; i < results->n_questions; i++) {
        if (!is_of(results, i, task) || isnan(run->ms[i]) || isnan(full->ms[i])) {
            continue;
        }
        const double share = (double)run->saved[i] / (double)results->n_layers;
        latency.n++;
        full_ms += full->ms[i];
        saved_ms += full->ms[i] - run->ms[i];
        expected_ms += share * full->ms[i];
        expected_blocks_ms += share * (full->ms[i] - results->no_block_ms[i]);
    }
    latency.saved_time = full_ms > 0.0 ? saved_ms / full_ms : NAN;
    latency.saved_layers = full_ms > 0.0 ? expected_ms / full_ms : NAN;
    latency.reached = expected_ms > 0.0 ? saved_ms / expected_ms : NAN;
    latency.of_blocks = expected_blocks_ms > 0.0 ? saved_ms / expected_blocks_ms : NAN;
    return latency;
}

/* ---- Walks over what is reported ---- */

/* Task 0, 1, .., then all: the number of rows, and the task of each. Tasks without a question have none. */
static size_t list_tasks(const struct eval_results *results, size_t *tasks) {
    size_t n = 0;
    for (size_t task = 0; task < results->n_tasks; task++) {
        if (count_questions(results, task) != 0) {
            tasks[n++] = task;
        }
    }
    tasks[n++] = eval_all;
    return n;
}

static const struct eval_run *find_run(const struct eval_results *results, enum eval_method method, double budget) {
    for (size_t i = 0; i < results->n_runs; i++) {
        const struct eval_run *run = &results->runs[i];
        if (run->method == method && (run->budget == budget || (isnan(run->budget) && isnan(budget)))) {
            return run;
        }
    }
    return NULL;
}

static const struct eval_run *find_full(const struct eval_results *results) {
    return find_run(results, EVAL_FULL, NAN);
}

struct comparison {
    const struct eval_run *run, *other;
};

/* Routed against full depth, and against the static program of the same length: at most two for each run. */
static size_t list_comparisons(const struct eval_results *results, struct comparison *comparisons) {
    const struct eval_run *full = find_full(results);
    size_t n = 0;
    for (size_t i = 0; i < results->n_runs; i++) {
        const struct eval_run *run = &results->runs[i];
        if (run->method != EVAL_ROUTED) {
            continue;
        }
        const struct eval_run *one = find_run(results, EVAL_STATIC, run->budget);
        if (full != NULL) {
            comparisons[n++] = (struct comparison){run, full};
        }
        if (one != NULL) {
            comparisons[n++] = (struct comparison){run, one};
        }
    }
    return n;
}

static bool is_timed(const struct eval_results *results) {
    for (size_t i = 0; i < results->n_questions; i++) {
        if (!isnan(results->no_block_ms[i])) {
            return true;
        }
    }
    return false;
}

static const char *mean_or_all(const struct eval_results *results, size_t task, const char *all) {
    return task == eval_all ? all : results->tasks[task];
}

/* ---- Table ---- */

/* "routed 5" in a column of its own. */
static void print_way(FILE *stream, const struct eval_run *run) {
    fprintf(stream, "%-8s ", eval_method_names[run->method]);
    if (isnan(run->budget)) {
        fprintf(stream, "%6s", "");
    } else {
        fprintf(stream, "%6g", run->budget);
    }
}

static void print_task(FILE *stream, const struct eval_results *results, size_t task, const char *all) {
    const char *name = mean_or_all(results, task, all);
    name = name[0] == '\0' ? "(no task)" : name;
    fputs("  ", stream);
    print_plain(stream, name, strlen(name));
    fputc('\n', stream);
}

static void print_number(FILE *stream, const char *format, int width, double number) {
    if (isfinite(number)) {
        fprintf(stream, format, width,
                number); /* one of the literals below. NOLINT(clang-diagnostic-format-nonliteral) */
    } else {
        fprintf(stream, "%*s", width, "-");
    }
}

static void print_rows(FILE *stream, const struct eval_results *results, const size_t *tasks, size_t n_tasks) {
    fprintf(stream, "%-8s %6s %6s %9s %15s %7s %9s %9s  task\n", "method", "budget", "n", "accuracy", "95 %", "saved",
            "ms", "tokens/s");
    for (size_t t = 0; t < n_tasks; t++) {
        for (size_t i = 0; i < results->n_runs; i++) {
            const struct eval_run *run = &results->runs[i];
            const struct eval_row row = eval_row(results, run, tasks[t]);
            print_way(stream, run);
            fprintf(stream, " %6zu %9.2f %7.2f -%6.2f %7.2f", row.n, 100.0 * row.accuracy, 100.0 * row.interval.low,
                    100.0 * row.interval.high, row.layers_saved);
            print_number(stream, " %*.2f", 9, row.ms);
            print_number(stream, " %*.1f", 9, row.tokens_per_second);
            print_task(stream, results, tasks[t], "mean");
        }
    }
}

static void print_tests(FILE *stream, const struct eval_results *results, const size_t *tasks, size_t n_tasks) {
    struct comparison *comparisons = allocate(2 * results->n_runs, sizeof *comparisons);
    const size_t n = list_comparisons(results, comparisons);
    if (n != 0) {
        fprintf(stream,
                "\nRouted against the same questions otherwise, by McNemar's exact test:\n%-8s %6s %8s %7s %15s "
                "%7s %7s %9s  task\n",
                "method", "budget", "against", "points", "95 %", "lost", "won", "p");
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t t = 0; t < n_tasks; t++) {
            const struct eval_test test = eval_compare(results, comparisons[i].other, comparisons[i].run, tasks[t]);
            print_way(stream, comparisons[i].run);
            fprintf(stream, " %8s %+7.2f %+7.2f -%+6.2f %7zu %7zu %9.2g",
                    eval_method_names[comparisons[i].other->method], 100.0 * test.gain, 100.0 * test.interval.low,
                    100.0 * test.interval.high, test.only_other, test.only_run, test.p);
            print_task(stream, results, tasks[t], "all");
        }
    }
    free(comparisons);
}

static void print_latency(FILE *stream, const struct eval_results *results, const size_t *tasks, size_t n_tasks) {
    const struct eval_run *full = find_full(results);
    bool is_first = true;
    for (size_t i = 0; i < results->n_runs && full != NULL && is_timed(results); i++) {
        const struct eval_run *run = &results->runs[i];
        for (size_t t = 0; t < n_tasks && run->method == EVAL_ROUTED; t++) {
            const struct eval_latency latency = eval_latency(results, full, run, tasks[t]);
            if (is_first) {
                fprintf(stream,
                        "\nTime saved, in turn with full depth, one thread (of blocks: of what blocks take "
                        "alone):\n%-8s %6s %6s %7s %8s %8s %9s  task\n",
                        "method", "budget", "n", "time", "layers", "reached", "of blocks");
                is_first = false;
            }
            print_way(stream, run);
            fprintf(stream, " %6zu", latency.n);
            print_number(stream, " %*.2f%%", 6, 100.0 * latency.saved_time);
            print_number(stream, " %*.2f%%", 7, 100.0 * latency.saved_layers);
            print_number(stream, " %*.3f", 8, latency.reached);
            print_number(stream, " %*.3f", 9, latency.of_blocks);
            print_task(stream, results, tasks[t], "all");
        }
    }
}

void eval_print(FILE *stream, const struct eval_results *results) {
    size_t *tasks = allocate(results->n_tasks + 1, sizeof *tasks);
    const size_t n_tasks = list_tasks(results, tasks);
    print_rows(stream, results, tasks, n_tasks);
    print_tests(stream, results, tasks, n_tasks);
    print_latency(stream, results, tasks, n_tasks);
    free(tasks);
}

/* ---- CSV ---- */

static void put_csv_number(FILE *stream, double number) {
    fputc(',', stream);
    if (isfinite(number)) {
        fprintf(stream, "%.9g", number);
    }
}

void eval_put_csv(FILE *stream, const struct eval_results *results) {
    size_t *tasks = allocate(results->n_tasks + 1, sizeof *tasks);
    const size_t n_tasks = list_tasks(results, tasks);
    fputs("task,method,budget,n,accuracy,ci_low,ci_high,layers_saved,ms_per_example,tokens_per_second\n", stream);
    for (size_t t = 0; t < n_tasks; t++) {
        for (size_t i = 0; i < results->n_runs; i++) {
            const struct eval_run *run = &results->runs[i];
            const struct eval_row row = eval_row(results, run, tasks[t]);
            csv_put_text(stream, mean_or_all(results, tasks[t], "mean"));
            fprintf(stream, ",%s", eval_method_names[run->method]);
            put_csv_number(stream, run->budget);
            fprintf(stream, ",%zu", row.n);
            put_csv_number(stream, row.accuracy);
            put_csv_number(stream, row.interval.low);
            put_csv_number(stream, row.interval.high);
            put_csv_number(stream, row.layers_saved);
            put_csv_number(stream, row.ms);
            put_csv_number(stream, row.tokens_per_second);
            fputc('\n', stream);
        }
    }
    free(tasks);
}

/* ---- JSON ---- */

/* Appended to the list: what a row, a test or a latency is about. */
static cJSON *add_entry(cJSON *list, const struct eval_results *results, const struct eval_run *run, size_t task,
                        const char *all) {
    const char *name = mean_or_all(results, task, all);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "task", json_text(name, strlen(name)));
    cJSON_AddStringToObject(json, "method", eval_method_names[run->method]);
    json_add_number(json, "budget", run->budget);
    cJSON_AddItemToArray(list, json);
    return json;
}

/* How far the masks of several seeds lie apart. */
static void add_parts(cJSON *json, const struct eval_results *results, const struct eval_run *run, size_t task) {
    cJSON *list = run->n_parts > 1 ? cJSON_AddArrayToObject(json, "accuracy_by_seed") : NULL;
    for (size_t part = 0; part < run->n_parts && list != NULL; part++) {
        struct eval_run one = *run;
        one.n_parts = 1;
        one.right = run->right + part * results->n_questions;
        one.saved = run->saved + part * results->n_questions;
        cJSON_AddItemToArray(list, cJSON_CreateNumber(eval_row(results, &one, task).accuracy));
    }
}

static void add_row(cJSON *list, const struct eval_results *results, const struct eval_run *run, size_t task) {
    const struct eval_row row = eval_row(results, run, task);
    cJSON *json = add_entry(list, results, run, task, "mean");
    cJSON_AddNumberToObject(json, "n", (double)row.n);
    json_add_number(json, "accuracy", row.accuracy);
    json_add_number(json, "ci_low", row.interval.low);
    json_add_number(json, "ci_high", row.interval.high);
    json_add_number(json, "layers_saved", row.layers_saved);
    json_add_number(json, "ms_per_example", row.ms);
    json_add_number(json, "tokens_per_second", row.tokens_per_second);
    add_parts(json, results, run, task);
}

static void add_test(cJSON *list, const struct eval_results *results, const struct comparison *comparison,
                     size_t task) {
    const struct eval_test test = eval_compare(results, comparison->other, comparison->run, task);
    cJSON *json = add_entry(list, results, comparison->run, task, "all");
    cJSON_AddStringToObject(json, "against", eval_method_names[comparison->other->method]);
    cJSON_AddNumberToObject(json, "n", (double)test.n);
    json_add_number(json, "gain", test.gain);
    json_add_number(json, "ci_low", test.interval.low);
    json_add_number(json, "ci_high", test.interval.high);
    cJSON_AddNumberToObject(json, "lost", (double)test.only_other);
    cJSON_AddNumberToObject(json, "won", (double)test.only_run);
    json_add_number(json, "p", test.p);
}

static void add_latency(cJSON *list, const struct eval_results *results, const struct eval_run *run, size_t task) {
    const struct eval_latency latency = eval_latency(results, find_full(results), run, task);
    cJSON *json = add_entry(list, results, run, task, "all");
    cJSON_AddNumberToObject(json, "n", (double)latency.n);
    json_add_number(json, "time_saved", latency.saved_time);
    json_add_number(json, "layers_saved", latency.saved_layers);
    json_add_number(json, "reached", latency.reached);
    json_add_number(json, "reached_of_blocks", latency.of_blocks);
}

static void add_programs(cJSON *json, const struct eval_results *results) {
    cJSON *list = cJSON_AddArrayToObject(json, "programs");
    for (size_t i = 0; i < results->n_runs; i++) {
        const struct eval_run *run = &results->runs[i];
        for (size_t part = 0; part < run->n_parts && run->programs != NULL; part++) {
            char *program = program_text(run->programs + part * results->n_layers, results->n_layers);
            cJSON *entry = cJSON_CreateObject();
            cJSON_AddStringToObject(entry, "method", eval_method_names[run->method]);
            json_add_number(entry, "budget", run->budget);
            cJSON_AddStringToObject(entry, "program", program);
            cJSON_AddItemToArray(list, entry);
            free(program);
        }
    }
}

cJSON *eval_json(const struct eval_results *results) {
    size_t *tasks = allocate(results->n_tasks + 1, sizeof *tasks);
    struct comparison *comparisons = allocate(2 * results->n_runs, sizeof *comparisons);
    const size_t n_tasks = list_tasks(results, tasks);
    const size_t n_comparisons = list_comparisons(results, comparisons);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "model", json_text(results->model, strlen(results->model)));
    cJSON_AddItemToObject(json, "routers",
                          results->routers != NULL ? json_text(results->routers, strlen(results->routers))
                                                   : cJSON_CreateNull());
    cJSON_AddNumberToObject(json, "n_layers", (double)results->n_layers);
    cJSON *rows = cJSON_AddArrayToObject(json, "rows");
    cJSON *tests = cJSON_AddArrayToObject(json, "tests");
    cJSON *latencies = cJSON_AddArrayToObject(json, "latency");
    const bool timed = is_timed(results) && find_full(results) != NULL;
    for (size_t t = 0; t < n_tasks; t++) {
        for (size_t i = 0; i < results->n_runs; i++) {
            add_row(rows, results, &results->runs[i], tasks[t]);
            if (timed && results->runs[i].method == EVAL_ROUTED) {
                add_latency(latencies, results, &results->runs[i], tasks[t]);
            }
        }
        for (size_t i = 0; i < n_comparisons; i++) {
            add_test(tests, results, &comparisons[i], tasks[t]);
        }
    }
    add_programs(json, results);
    cJSON_AddItemToObject(json, "influence",
                          results->influence != NULL
                              ? cJSON_CreateDoubleArray(results->influence, (int)results->n_layers)
                              : cJSON_CreateNull());
    if (results->within != NULL) {
        cJSON_AddItemToObject(json, "within", cJSON_Duplicate(results->within, true));
    }
    free(comparisons);
    free(tasks);
    return json;
}

/* ---- Plot ---- */

static int by_x(const void *a, const void *b) {
    const struct plot_point *p = a;
    const struct plot_point *q = b;
    return p->x < q->x ? -1 : p->x > q->x ? 1 : 0;
}

static size_t list_points(const struct eval_results *results, enum eval_method method, struct plot_point *points) {
    size_t n = 0;
    for (size_t i = 0; i < results->n_runs; i++) {
        if (results->runs[i].method == method) {
            const struct eval_row row = eval_row(results, &results->runs[i], eval_all);
            points[n++] = (struct plot_point){.x = row.layers_saved,
                                              .y = 100.0 * row.accuracy,
                                              .low = 100.0 * row.interval.low,
                                              .high = 100.0 * row.interval.high};
        }
    }
    qsort(points, n, sizeof *points, by_x);
    return n;
}

void eval_draw(FILE *stream, const struct eval_results *results) {
    struct plot_line lines[N_EVAL_METHODS];
    struct plot_point *points = allocate(N_EVAL_METHODS * results->n_runs, sizeof *points);
    size_t *tasks = allocate(results->n_tasks + 1, sizeof *tasks);
    const size_t n_tasks = list_tasks(results, tasks) - 1;
    size_t n_lines = 0;
    for (size_t method = 0; method < N_EVAL_METHODS; method++) {
        struct plot_point *own = points + method * results->n_runs;
        const size_t n = list_points(results, (enum eval_method)method, own);
        if (n != 0) {
            lines[n_lines++] = (struct plot_line){eval_method_names[method], own, n};
        }
    }
    const size_t title_size = strlen(results->model) + 64;
    char *title = allocate(title_size, 1);
    char subtitle[128];
    (void)snprintf(title, title_size, "Accuracy of %s over layers saved", results->model);
    (void)snprintf(subtitle, sizeof subtitle, "mean over %zu task%s, %zu questions; bars: 95 %% intervals", n_tasks,
                   n_tasks == 1 ? "" : "s", results->n_questions);
    char x_label[64];
    (void)snprintf(x_label, sizeof x_label, "layers saved of %zu, per example", results->n_layers);
    const struct plot plot = {.title = title,
                              .subtitle = subtitle,
                              .x_label = x_label,
                              .y_label = "accuracy, %",
                              .lines = lines,
                              .n_lines = n_lines};
    plot_write(stream, &plot);
    free(title);
    free(tasks);
    free(points);
}
