#include "tools/eval_within.h"

#include "tools/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Programs ---- */

struct counted {
    uint8_t *counts;
    size_t n, order;
};

static int by_frequency(const void *a, const void *b) {
    const struct counted *x = a;
    const struct counted *y = b;
    if (x->n != y->n) {
        return x->n > y->n ? -1 : 1;
    }
    return x->order < y->order ? -1 : 1;
}

static size_t find_program(const struct counted *list, size_t n, const uint8_t *counts, size_t n_layers) {
    size_t i = 0;
    while (i < n && memcmp(list[i].counts, counts, n_layers) != 0) {
        i++;
    }
    return i;
}

static bool parse(const struct question *label, size_t n_layers, uint8_t *counts) {
    return label->program != NULL && drllm_program_parse(label->program, n_layers, counts, NULL) == DRLLM_OK;
}

/* The different programs of a task's labels (task NULL: of all), the most frequent first. */
static size_t count_programs(const struct questions *labels, const char *task, size_t n_layers, struct counted **list) {
    uint8_t *counts = allocate(n_layers, 1);
    size_t n = 0;
    *list = allocate(labels->count + 1, sizeof **list);
    for (size_t i = 0; i < labels->count; i++) {
        const struct question *label = &labels->items[i];
        if ((task != NULL && strcmp(label->task, task) != 0) || !parse(label, n_layers, counts)) {
            continue;
        }
        const size_t found = find_program(*list, n, counts, n_layers);
        if (found == n) {
            (*list)[n] = (struct counted){allocate(n_layers, 1), 0, n};
            memcpy((*list)[n++].counts, counts, n_layers);
        }
        (*list)[found].n++;
    }
    free(counts);
    qsort(*list, n, sizeof **list, by_frequency);
    return n;
}

static void release(struct counted *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        free(list[i].counts);
    }
    free(list);
}

static size_t report_bad(const struct command *command, const struct questions *labels, size_t n_layers) {
    uint8_t *counts = allocate(n_layers, 1);
    size_t n = 0;
    for (size_t i = 0; i < labels->count; i++) {
        if (!parse(&labels->items[i], n_layers, counts)) {
            report(command, "%s, line %zu: it has no \"program\" for this model", labels->items[i].file,
                   labels->items[i].line);
            n++;
        }
    }
    free(counts);
    return n;
}

size_t within_programs(const struct command *command, const struct questions *labels, size_t n_layers,
                       uint8_t **programs, size_t *n_bad) {
    struct counted *list;
    size_t n = 1;
    const size_t n_different = count_programs(labels, NULL, n_layers, &list);
    *n_bad += report_bad(command, labels, n_layers);
    *programs = allocate(WITHIN_MOST_PROGRAMS * n_layers, 1);
    memset(*programs, 1, n_layers);
    for (size_t i = 0; i < n_different && n < WITHIN_MOST_PROGRAMS; i++) {
        if (memcmp(list[i].counts, *programs, n_layers) != 0) {
            memcpy(*programs + n++ * n_layers, list[i].counts, n_layers);
        }
    }
    if (n_different >= WITHIN_MOST_PROGRAMS) {
        report(command, "the labels name %zu programs; the %zu most frequent ones are compared", n_different, n - 1);
    }
    release(list, n_different);
    return n;
}

/* ---- Accuracies ---- */

/* Which of the run's programs is the task's own; the first is full depth. */
static size_t own_part(const struct eval_results *results, const struct questions *labels, const struct eval_run *run,
                       const char *task) {
    struct counted *list;
    const size_t n = count_programs(labels, task, results->n_layers, &list);
    size_t part = 0;
    while (n != 0 && part < run->n_parts &&
           memcmp(run->programs + part * results->n_layers, list[0].counts, results->n_layers) != 0) {
        part++;
    }
    release(list, n);
    return part < run->n_parts ? part : 0;
}

static double part_accuracy(const struct eval_results *results, const struct eval_run *run, size_t part, size_t task) {
    size_t n = 0;
    size_t right = 0;
    for (size_t i = 0; i < results->n_questions; i++) {
        if (results->task_of[i] == task) {
            n++;
            right += run->right[part * results->n_questions + i];
        }
    }
    return n != 0 ? (double)right / (double)n : 0.0;
}

static double oracle_accuracy(const struct eval_results *results, const struct eval_run *run, size_t task) {
    size_t n = 0;
    size_t right = 0;
    for (size_t i = 0; i < results->n_questions; i++) {
        bool any = false;
        for (size_t part = 0; part < run->n_parts && !any; part++) {
            any = run->right[part * results->n_questions + i];
        }
        n += results->task_of[i] == task;
        right += results->task_of[i] == task && any;
    }
    return n != 0 ? (double)right / (double)n : 0.0;
}

static double best_accuracy(const struct eval_results *results, const struct eval_run *run, size_t task) {
    double best = 0.0;
    for (size_t part = 0; part < run->n_parts; part++) {
        const double accuracy = part_accuracy(results, run, part, task);
        best = accuracy > best ? accuracy : best;
    }
    return best;
}

static const struct eval_run *find_routed(const struct eval_results *results) {
    for (size_t i = 0; i < results->n_runs; i++) {
        if (results->runs[i].method == EVAL_ROUTED) {
            return &results->runs[i];
        }
    }
    return NULL;
}

cJSON *within_json(const struct eval_results *results, const struct questions *labels, const struct eval_run *run) {
    const struct eval_run *routed = find_routed(results);
    cJSON *list = cJSON_CreateArray();
    for (size_t task = 0; task < results->n_tasks; task++) {
        const struct eval_row row = eval_row(results, run, task);
        if (row.n == 0) {
            continue;
        }
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "task", json_text(results->tasks[task], strlen(results->tasks[task])));
        cJSON_AddNumberToObject(json, "n", (double)row.n);
        cJSON_AddNumberToObject(json, "n_programs", (double)run->n_parts);
        cJSON_AddNumberToObject(json, "full", part_accuracy(results, run, 0, task));
        const size_t own = own_part(results, labels, run, results->tasks[task]);
        cJSON_AddNumberToObject(json, "own", part_accuracy(results, run, own, task));
        cJSON_AddNumberToObject(json, "best", best_accuracy(results, run, task));
        cJSON_AddNumberToObject(json, "oracle", oracle_accuracy(results, run, task));
        json_add_number(json, "routed", routed != NULL ? part_accuracy(results, routed, 0, task) : NAN);
        cJSON_AddItemToArray(list, json);
    }
    return list;
}

void within_print(FILE *stream, const cJSON *within) {
    static const char *const keys[] = {"full", "own", "best", "oracle", "routed"};
    enum { N_KEYS = sizeof keys / sizeof keys[0] };
    const cJSON *first = cJSON_GetArrayItem(within, 0);
    if (first == NULL) {
        return;
    }
    fprintf(stream, "\nAccuracy of %.0f programs (own: the task's; best, oracle: picked with the answers known):\n%6s",
            cJSON_GetObjectItemCaseSensitive(first, "n_programs")->valuedouble, "n");
    for (size_t i = 0; i < N_KEYS; i++) {
        fprintf(stream, " %8s", keys[i]);
    }
    fputs("  task\n", stream);
    const cJSON *json;
    cJSON_ArrayForEach(json, within) {
        fprintf(stream, "%6.0f", cJSON_GetObjectItemCaseSensitive(json, "n")->valuedouble);
        for (size_t i = 0; i < N_KEYS; i++) {
            const cJSON *accuracy = cJSON_GetObjectItemCaseSensitive(json, keys[i]);
            if (cJSON_IsNumber(accuracy)) {
                fprintf(stream, " %8.2f", 100.0 * accuracy->valuedouble);
            } else {
                fprintf(stream, " %8s", "-");
            }
        }
        const char *task = cJSON_GetObjectItemCaseSensitive(json, "task")->valuestring;
        fputs("  ", stream);
        print_plain(stream, task, strlen(task));
        fputc('\n', stream);
    }
}
