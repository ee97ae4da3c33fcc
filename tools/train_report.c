#include "tools/train_report.h"

#include "runtime/program.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const class_names[NETWORK_CLASSES] = {"skip", "execute", "repeat"};

/* ---- Counting ---- */

void scores_add(struct scores *scores, const struct example *example, const uint8_t *decided, size_t n_layers) {
    size_t n_right = 0, n_executed = 0;
    for (size_t i = 0; i < n_layers; i++) {
        scores->decisions[example->counts[i]][decided[i]]++;
        n_right += example->counts[i] == decided[i];
        n_executed += decided[i] == 1;
    }
    scores->n_examples++;
    scores->n_programs += n_right == n_layers;
    if (role_is_guard(example->role)) {
        scores->n_guard++;
        scores->n_guard_full += n_executed == n_layers;
    }
}

static double divide(double a, double b) {
    return b > 0.0 ? a / b : NAN;
}

struct class_scores scores_of_class(const struct scores *scores, size_t class) {
    struct class_scores of = {0};
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        of.n_labels += scores->decisions[class][i];
        of.n_decisions += scores->decisions[i][class];
    }
    const double right = (double)scores->decisions[class][class];
    of.precision = divide(right, (double)of.n_decisions);
    of.recall = divide(right, (double)of.n_labels);
    of.f1 = divide(2.0 * right, (double)(of.n_labels + of.n_decisions));
    return of;
}

double scores_macro_f1(const struct scores *scores) {
    double sum = 0.0, n = 0.0;
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        const struct class_scores of = scores_of_class(scores, i);
        if (of.n_labels != 0) {
            sum += of.f1;
            n += 1.0;
        }
    }
    return divide(sum, n);
}

double scores_share_of_decisions(const struct scores *scores) {
    double right = 0.0, n = 0.0;
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        right += (double)scores->decisions[i][i];
        for (size_t j = 0; j < NETWORK_CLASSES; j++) {
            n += (double)scores->decisions[i][j];
        }
    }
    return divide(right, n);
}

static void score_trained(struct training_report *report, struct scores *scores, size_t first, size_t end) {
    const size_t n_layers = report->examples->n_layers;
    uint8_t *decided = allocate(n_layers, 1);
    for (size_t i = first; i < end; i++) {
        for (size_t layer = 0; layer < n_layers; layer++) {
            decided[layer] = (uint8_t)decided_class(trained_logits(report->trained, layer, i));
        }
        scores_add(scores, &report->examples->items[i], decided, n_layers);
    }
    free(decided);
}

static double layers_saved(const uint8_t *counts, size_t n_layers) {
    return (double)n_layers - (double)drllm_program_executions(counts, n_layers);
}

static void score_routed(struct training_report *report) {
    const size_t n_layers = report->examples->n_layers;
    for (size_t i = 0; i < report->measured->n_items; i++) {
        const struct example *example = &report->examples->items[report->measured->items[i]];
        const uint8_t *counts = report->measured->counts + i * n_layers;
        struct task_scores *task = &report->tasks[example->task];
        scores_add(&report->routed, example, counts, n_layers);
        task->n_examples++;
        task->n_programs += memcmp(counts, example->counts, n_layers) == 0;
        task->saved += layers_saved(counts, n_layers);
        task->label_saved += layers_saved(example->counts, n_layers);
    }
}

void training_report_make(const struct examples *examples, const struct trained *trained,
                          const struct measured *measured, const struct router_set *set,
                          struct training_report *report) {
    *report = (struct training_report){.examples = examples,
                                       .trained = trained,
                                       .measured = measured,
                                       .set = set,
                                       .tasks = allocate(examples->n_tasks, sizeof *report->tasks),
                                       .routed_is_validation = examples->count > examples->n_train};
    for (size_t i = 0; i < examples->n_tasks; i++) {
        report->tasks[i] = (struct task_scores){0};
    }
    score_trained(report, &report->training, 0, examples->n_train);
    score_trained(report, &report->validation, examples->n_train, examples->count);
    score_routed(report);
}

void training_report_release(struct training_report *report) {
    free(report->tasks);
    *report = (struct training_report){.examples = NULL};
}

/* ---- Epochs ---- */

/* Means over the blocks that were trained. */
struct epoch_means {
    size_t n_constant, n_trained;
    double best_epoch, train_loss, valid_loss; /* at the best epoch */
};

static struct epoch_means average_epochs(const struct trained *trained) {
    struct epoch_means means = {0};
    for (size_t i = 0; i < trained->n_layers; i++) {
        const struct trained_block *block = &trained->blocks[i];
        if (block->is_constant) {
            means.n_constant++;
        } else {
            means.n_trained++;
            means.best_epoch += (double)block->best_epoch;
            means.train_loss += block->train_loss[block->best_epoch - 1];
            means.valid_loss += block->valid_loss[block->best_epoch - 1];
        }
    }
    const double n = means.n_trained != 0 ? (double)means.n_trained : 1.0;
    means.best_epoch /= n;
    means.train_loss /= n;
    means.valid_loss /= n;
    return means;
}

/* ---- As text ---- */

static void print_number(double number) {
    if (isnan(number)) {
        printf("%10s", "-");
    } else {
        printf("%10.4f", number);
    }
}

static void print_scores(const char *title, const struct scores *scores) {
    printf("\n%s, %zu examples\n  %-10s%10s%10s%10s%10s\n", title, scores->n_examples, "class", "precision", "recall",
           "F1", "labels");
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        const struct class_scores of = scores_of_class(scores, i);
        printf("  %-10s", class_names[i]);
        print_number(of.precision);
        print_number(of.recall);
        print_number(of.f1);
        printf("%10zu\n", of.n_labels);
    }
    printf("  macro-F1 %.4f; equal to the labels: %.2f %% of the decisions, %.2f %% of the programs\n",
           scores_macro_f1(scores), 100.0 * scores_share_of_decisions(scores),
           100.0 * (double)scores->n_programs / (double)scores->n_examples);
    if (scores->n_guard != 0) {
        printf("  guard prompts at full depth: %zu of %zu (%.2f %%)\n", scores->n_guard_full, scores->n_guard,
               100.0 * (double)scores->n_guard_full / (double)scores->n_guard);
    }
}

static void print_tasks(const struct training_report *report) {
    printf("\n  %-24s%10s%10s%12s%12s\n", "task", "prompts", "saved", "label saves", "programs");
    for (size_t i = 0; i < report->examples->n_tasks; i++) {
        const struct task_scores *task = &report->tasks[i];
        const struct example_task *name = &report->examples->tasks[i];
        if (task->n_examples != 0) {
            const double n = (double)task->n_examples;
            printf("  ");
            print_plain(stdout, name->name, strlen(name->name));
            const size_t width = strlen(name->name) + (name->is_guard ? 8 : 0);
            printf("%s%*s%10zu%10.2f%12.2f%10.2f %%\n", name->is_guard ? " (guard)" : "",
                   width < 24 ? (int)(24 - width) : 1, "", task->n_examples, task->saved / n, task->label_saved / n,
                   100.0 * (double)task->n_programs / n);
        }
    }
}

static void print_calibration(const struct training_report *report) {
    const struct router_set *set = report->set;
    printf("\ncalibration on %zu prompts: layers saved in the mean at a bias on skipping\n",
           report->measured->n_calibrated);
    for (size_t i = 0; i < set->n_calibration; i++) {
        printf("  %10.4f%10.3f\n", (double)set->bias[i], (double)set->saved[i]);
    }
}

void training_report_print(const struct training_report *report) {
    const struct epoch_means means = average_epochs(report->trained);
    printf("%zu routers, %zu of them for one class; best epoch %.1f, training loss %.5f, validation loss %.5f in the "
           "mean\n",
           report->trained->n_layers, means.n_constant, means.best_epoch, means.train_loss, means.valid_loss);
    print_scores("training, float32", &report->training);
    if (report->validation.n_examples != 0) {
        print_scores("validation, float32", &report->validation);
    }
    print_scores(report->routed_is_validation ? "validation, routed by the int8 file"
                                              : "prompts of the training, routed by the int8 file",
                 &report->routed);
    print_tasks(report);
    if (report->set->n_calibration != 0) {
        print_calibration(report);
    }
}

/* ---- As JSON ---- */

/* Short, since the record goes into the file. */
static void add_number(cJSON *json, const char *key, double number) {
    json_add_number(json, key, round(number * 1e5) / 1e5);
}

static cJSON *scores_json(const struct scores *scores) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "examples", (double)scores->n_examples);
    cJSON *classes = cJSON_AddObjectToObject(json, "classes");
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        const struct class_scores of = scores_of_class(scores, i);
        cJSON *class = cJSON_AddObjectToObject(classes, class_names[i]);
        cJSON_AddNumberToObject(class, "labels", (double)of.n_labels);
        add_number(class, "precision", of.precision);
        add_number(class, "recall", of.recall);
        add_number(class, "f1", of.f1);
    }
    add_number(json, "macro_f1", scores_macro_f1(scores));
    add_number(json, "decisions_equal", scores_share_of_decisions(scores));
    add_number(json, "programs_equal", divide((double)scores->n_programs, (double)scores->n_examples));
    cJSON_AddNumberToObject(json, "guard", (double)scores->n_guard);
    cJSON_AddNumberToObject(json, "guard_full", (double)scores->n_guard_full);
    return json;
}

static cJSON *tasks_json(const struct training_report *report) {
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < report->examples->n_tasks; i++) {
        const struct task_scores *task = &report->tasks[i];
        const struct example_task *name = &report->examples->tasks[i];
        if (task->n_examples != 0) {
            const double n = (double)task->n_examples;
            cJSON *json = cJSON_CreateObject();
            cJSON_AddItemToObject(json, "task", json_text(name->name, strlen(name->name)));
            cJSON_AddBoolToObject(json, "guard", name->is_guard);
            cJSON_AddNumberToObject(json, "examples", n);
            add_number(json, "layers_saved", task->saved / n);
            add_number(json, "label_saves", task->label_saved / n);
            add_number(json, "programs_equal", (double)task->n_programs / n);
            cJSON_AddItemToArray(list, json);
        }
    }
    return list;
}

static cJSON *epochs_json(const struct trained *trained) {
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < trained->n_layers; i++) {
        const struct trained_block *block = &trained->blocks[i];
        cJSON *json = cJSON_CreateObject();
        cJSON_AddNumberToObject(json, "best_epoch", (double)block->best_epoch);
        if (!block->is_constant) {
            add_number(json, "train_loss", block->train_loss[block->best_epoch - 1]);
            add_number(json, "valid_loss", block->valid_loss[block->best_epoch - 1]);
        }
        cJSON_AddItemToArray(list, json);
    }
    return list;
}

/* What the record and the report have in common. */
static cJSON *all_scores_json(const struct training_report *report) {
    const struct epoch_means means = average_epochs(report->trained);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "constant_blocks", (double)means.n_constant);
    add_number(json, "best_epoch", means.best_epoch);
    add_number(json, "train_loss", means.train_loss);
    add_number(json, "valid_loss", means.valid_loss);
    cJSON_AddItemToObject(json, "training", scores_json(&report->training));
    if (report->validation.n_examples != 0) {
        cJSON_AddItemToObject(json, "validation", scores_json(&report->validation));
    }
    cJSON *routed = scores_json(&report->routed);
    cJSON_AddStringToObject(routed, "of", report->routed_is_validation ? "validation" : "training");
    cJSON_AddItemToObject(json, "routed_int8", routed);
    cJSON_AddItemToObject(json, "tasks", tasks_json(report));
    cJSON_AddNumberToObject(json, "calibrated_on", (double)report->measured->n_calibrated);
    return json;
}

cJSON *training_report_json(const struct training_report *report) {
    cJSON *json = all_scores_json(report);
    cJSON *calibration = cJSON_AddArrayToObject(json, "calibration");
    for (size_t i = 0; i < report->set->n_calibration; i++) {
        cJSON *row = cJSON_CreateObject();
        add_number(row, "bias", (double)report->set->bias[i]);
        add_number(row, "saved", (double)report->set->saved[i]);
        cJSON_AddItemToArray(calibration, row);
    }
    cJSON_AddItemToObject(json, "blocks", epochs_json(report->trained));
    return json;
}

/* ---- The record ---- */

static void add_date(cJSON *json) {
    const char *given = getenv("SOURCE_DATE_EPOCH");
    int64_t seconds;
    time_t now = time(NULL);
    struct tm date;
    char text[16];
    if (given != NULL && parse_integer(given, &seconds)) {
        now = (time_t)seconds;
    }
    if (gmtime_r(&now, &date) != NULL && strftime(text, sizeof text, "%Y-%m-%d", &date) != 0) {
        cJSON_AddStringToObject(json, "date", text);
    }
}

static cJSON *params_json(const struct train_params *params, size_t n_windows) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "epochs", (double)params->n_epochs);
    cJSON_AddNumberToObject(json, "batch", TRAIN_BATCH);
    cJSON_AddStringToObject(json, "optimizer", "AdamW");
    cJSON_AddNumberToObject(json, "learning_rate", params->rate);
    cJSON_AddStringToObject(json, "schedule", "5 % warm-up, cosine");
    cJSON_AddNumberToObject(json, "decay", params->decay);
    cJSON_AddStringToObject(json, "loss", "focal, classes by effective number");
    cJSON_AddNumberToObject(json, "gamma", params->gamma);
    cJSON_AddNumberToObject(json, "guard_weight", params->guard_weight);
    cJSON_AddNumberToObject(json, "hidden", (double)params->n_hidden);
    cJSON_AddNumberToObject(json, "windows", (double)n_windows);
    return json;
}

char *training_record(const struct training_report *report, const struct train_params *params) {
    char digits[17];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "by", "drllm train");
    add_date(json);
    cJSON_AddItemToObject(json, "files", examples_files_json(report->examples));
    (void)snprintf(digits, sizeof digits, "%016" PRIx64, report->examples->labels_checksum);
    cJSON_AddStringToObject(json, "labels_fnv1a", digits);
    cJSON_AddItemToObject(json, "hyperparameters", params_json(params, report->trained->n_windows));
    cJSON_AddItemToObject(json, "seed", json_u64(params->seed));
    cJSON_AddItemToObject(json, "scores", all_scores_json(report));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}
