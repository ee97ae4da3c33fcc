/* drllm train: from prompts with layer programs to routers that choose these programs (Dr.LLM, arXiv 2510.12773): the
 * model's hidden states are computed under the labels' programs, a network ahead of each block learns the label there, and
 * the file is measured with the runtime that will use it. */
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/train_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct train_options {
    struct model_options model;
    struct text_list files[N_ROLES];
    const char *out;
    const char *as_float;
    const char *features;
    const char *name;
    int64_t epochs, hidden, windows, seed, calibrate;
    double rate, decay, gamma, guard_weight;
    bool json;
};

struct train_job {
    const struct command *command;
    const struct train_options *options;
    struct train_params params;
    struct drllm_model *model;
    struct workers workers;
    struct examples examples;
    struct features features;
    struct trained trained;
    struct router_set set;
    struct measured measured;
    struct training_report report;
};

static struct train_params params_of(const struct train_options *options) {
    return (struct train_params){.n_epochs = (size_t)options->epochs,
                                 .n_hidden = (size_t)options->hidden,
                                 .rate = options->rate,
                                 .decay = options->decay,
                                 .gamma = options->gamma,
                                 .guard_weight = options->guard_weight,
                                 .seed = choose_seed(options->seed)};
}

/* ---- Steps ---- */

/* That the result can be written is known before the work. */
static int check_output(const struct command *command, const char *path) {
    struct output_file output;
    const int exit_code = output_open(command, path, &output);
    output_discard(&output);
    return exit_code;
}

static int open_features(struct train_job *job) {
    const char *given = job->options->features;
    const size_t size = strlen(job->options->out) + sizeof ".features";
    char *own = allocate_bytes(size);
    (void)snprintf(own, size, "%s.features", job->options->out);
    const int exit_code = features_open(job->command, job->model, &job->examples, (size_t)job->options->windows,
                                        given != NULL ? given : own, &job->features);
    free(own);
    return exit_code;
}

static int open_all(struct train_job *job) {
    const struct train_options *options = job->options;
    int exit_code = check_output(job->command, options->out);
    if (exit_code == TOOL_OK && options->as_float != NULL) {
        exit_code = check_output(job->command, options->as_float);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_model(job->command, &options->model, &job->model);
    }
    if (exit_code == TOOL_OK) {
        exit_code =
            examples_read(job->command, job->model, (size_t)options->model.context, options->files, &job->examples);
    }
    if (exit_code == TOOL_OK) {
        exit_code = workers_open(job->command, job->model, (size_t)options->model.threads,
                                 (size_t)options->model.context, options->model.kv, &job->workers);
    }
    return exit_code == TOOL_OK ? open_features(job) : exit_code;
}

static void close_all(struct train_job *job, bool is_done) {
    training_report_release(&job->report);
    measured_release(&job->measured);
    router_set_release(&job->set);
    trained_release(&job->trained);
    features_close(&job->features, is_done && job->options->features == NULL);
    workers_release(&job->workers);
    examples_release(&job->examples);
    drllm_model_close(job->model);
}

static void fill_set(struct train_job *job) {
    trained_fold(&job->trained, &job->set);
    router_set_stamp(&job->set, job->model);
    if (job->options->name != NULL && job->options->name[0] != '\0') {
        job->set.name = copy_text(job->options->name);
    }
}

static int compute(struct train_job *job) {
    int exit_code = features_compute(&job->features, job->model, &job->workers, &job->examples);
    if (exit_code == TOOL_OK) {
        exit_code = trained_make(&job->params, &job->examples, &job->features, job->workers.threads, &job->trained);
    }
    if (exit_code == TOOL_OK) {
        fill_set(job);
        exit_code = measure_routed(job->command, job->model, &job->workers, &job->examples, &job->trained,
                                   job->options->out, (size_t)job->options->calibrate, &job->set, &job->measured);
    }
    return exit_code;
}

static int write_results(struct train_job *job) {
    training_report_make(&job->examples, &job->trained, &job->measured, &job->set, &job->report);
    job->set.training = training_record(&job->report, &job->params);
    int exit_code = router_set_write(job->command, job->options->out, &job->set, true);
    if (exit_code == TOOL_OK && job->options->as_float != NULL) {
        exit_code = router_set_write(job->command, job->options->as_float, &job->set, false);
    }
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    if (job->options->json) {
        return json_print(job->command, training_report_json(&job->report), false);
    }
    training_report_print(&job->report);
    return flush_output(job->command);
}

static int run(struct train_job *job) {
    job->features.descriptor = -1;
    interrupt_install();
    int exit_code = open_all(job);
    if (exit_code == TOOL_OK) {
        exit_code = compute(job);
    }
    if (exit_code == TOOL_INTERRUPTED) {
        report(job->command, "interrupted; the same command goes on with the features that are in %s",
               job->features.path);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_results(job);
    }
    const size_t n_bad = job->examples.n_bad;
    close_all(job, exit_code == TOOL_OK);
    if (exit_code == TOOL_OK && n_bad != 0) {
        report(job->command, "%zu bad lines were left out", n_bad);
        exit_code = TOOL_FAILED;
    }
    return exit_code;
}

/* ---- Command line ---- */

static int check(const struct command *command, const struct train_options *options) {
    if (options->model.path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    if (options->files[ROLE_LABELS].count == 0) {
        return usage_error(command, "no labels: -l FILE is missing");
    }
    if (options->out == NULL) {
        return usage_error(command, "nowhere to write to: -o FILE is missing");
    }
    if (strcmp(options->out, "-") == 0 || (options->as_float != NULL && strcmp(options->as_float, "-") == 0)) {
        return usage_error(command, "routers cannot go to standard output");
    }
    for (size_t role = 0; role < N_ROLES; role++) {
        for (size_t i = 0; i < options->files[role].count; i++) {
            if (strcmp(options->files[role].items[i], "-") == 0) {
                return usage_error(command, "files are read twice, which standard input cannot be");
            }
        }
    }
    return TOOL_OK;
}

int train_main(const struct command *command, int argc, char **argv) {
    struct train_options options = {.model = model_options_default(),
                                    .epochs = 25,
                                    .hidden = 128,
                                    .windows = 8,
                                    .seed = 1,
                                    .calibrate = 200,
                                    .rate = 1e-3,
                                    .decay = 0.01,
                                    .gamma = 2.0,
                                    .guard_weight = 1.0};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXTS('l', "labels", &options.files[ROLE_LABELS], "FILE", "prompts with programs; may be repeated"),
        OPT_TEXTS(0, "guard", &options.files[ROLE_GUARD], "FILE", "prompts that shall run at full depth"),
        OPT_TEXTS(0, "valid", &options.files[ROLE_VALID], "FILE",
                  "prompts with programs that are not trained on: they choose the epoch and are measured"),
        OPT_TEXTS(0, "valid-guard", &options.files[ROLE_VALID_GUARD], "FILE", "the same for guard prompts"),
        OPT_TEXT('o', "output", &options.out, "FILE", "where the routers go, with int8 weights"),
        OPT_TEXT(0, "float", &options.as_float, "FILE", "where they go with float32 weights as well"),
        OPT_TEXT(0, "features", &options.features, "FILE",
                 "keep the features here, for other trainings on the same examples"),
        OPT_TEXT(0, "name", &options.name, "TEXT", "name of the routers"),
        OPT_INTEGER(0, "epochs", &options.epochs, "N", 1, 10000, "passes over the examples"),
        OPT_REAL(0, "lr", &options.rate, "X", 0, 1, "peak of the learning rate"),
        OPT_REAL(0, "decay", &options.decay, "X", 0, 1, "decay of the weights"),
        OPT_INTEGER(0, "hidden", &options.hidden, "N", 1, DRLLM_ROUTER_MAX_HIDDEN, "width of the hidden layer"),
        OPT_INTEGER(0, "windows", &options.windows, "N", 1, DRLLM_ROUTER_MAX_WINDOWS,
                    "windows that a prompt is cut into"),
        OPT_REAL(0, "gamma", &options.gamma, "X", 0, 10, "of the focal loss; 0: cross-entropy"),
        OPT_REAL(0, "guard-weight", &options.guard_weight, "X", 0, 1000, "weight of a guard prompt in the loss"),
        OPT_INTEGER(0, "calibrate", &options.calibrate, "N", 0, 1 << 30,
                    "prompts that the table for --save-layers is measured on; 0: no table"),
        OPT_INTEGER(0, "seed", &options.seed, "N", -1, 9007199254740992.0, "of the start and the order; -1: a new one"),
        OPT_FLAG(0, "json", &options.json, "print the report as JSON"),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK) {
            struct train_job job = {.command = command, .options = &options, .params = params_of(&options)};
            exit_code = run(&job);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
