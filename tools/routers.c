/* drllm routers: a router file made ready for a model: checked against it, named after it, and quantised. */
#include "runtime/internal.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/files.h"
#include "tools/jsonl.h"
#include "tools/mapped.h"
#include "tools/router_info.h"
#include "tools/router_writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct routers_options {
    struct model_options model;
    const char *in;
    const char *out;
    const char *name;
    const char *training;
    bool as_float;
};

/* ---- Reading ---- */

static int check_model(const struct command *command, const struct routers_options *options,
                       const struct drllm_router_file *file, const struct drllm_model *model) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    if (file->n_layers != info.n_layers || file->d_model != info.d_model) {
        report(command, "%s is for a model of %zu blocks of width %zu; %s has %zu blocks of width %zu", options->in,
               file->n_layers, file->d_model, options->model.path, info.n_layers, info.d_model);
        return TOOL_FAILED;
    }
    const uint64_t fingerprint = drllm_model_fingerprint(model);
    if (file->has_fingerprint && file->fingerprint != fingerprint) {
        const struct drllm_string name =
            file->model_name.size != 0 ? file->model_name : (struct drllm_string){"another model", 13};
        report(command, "%s is for %.*s (fingerprint %016" PRIx64 "); %s has the fingerprint %016" PRIx64, options->in,
               (int)(name.size < 100 ? name.size : 100), name.data, file->fingerprint, options->model.path,
               fingerprint);
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

static int read_routers(const struct command *command, const struct routers_options *options,
                        const struct drllm_model *model, struct router_set *set) {
    struct mapped_gguf mapped = {0};
    struct drllm_router_file file;
    int exit_code = mapped_open(command, options->in, &mapped);
    if (exit_code == TOOL_OK) {
        exit_code = router_info_open(command, options->in, &mapped, &file);
    }
    if (exit_code == TOOL_OK) {
        exit_code = check_model(command, options, &file, model);
        if (exit_code == TOOL_OK) {
            router_set_read(set, &file);
            router_set_stamp(set, model);
        }
        drllm_router_file_close(&file);
    }
    mapped_close(&mapped);
    return exit_code;
}

static void replace_text(char **text, const char *with, size_t size) {
    free(*text);
    *text = allocate_bytes(size + 1);
    memcpy(*text, with, size);
    (*text)[size] = '\0';
}

/* What the command line puts in the place of the file's texts. */
static int replace_texts(const struct command *command, const struct routers_options *options, struct router_set *set) {
    if (options->name != NULL) {
        replace_text(&set->name, options->name, strlen(options->name));
    }
    if (options->training == NULL) {
        return TOOL_OK;
    }
    struct text text = {NULL, 0, 0};
    int exit_code = read_text(command, options->training, &text);
    if (exit_code == TOOL_OK) {
        const char *wrong = "it is empty";
        cJSON *json = text.size == 0 ? NULL : json_parse_object(text.data, text.size, &wrong);
        if (json == NULL) {
            report(command, "%s is no record of a training: %s", options->training, wrong);
            exit_code = TOOL_FAILED;
        } else {
            drop_last_newline(&text);
            replace_text(&set->training, text.data, text.size);
        }
        cJSON_Delete(json);
    }
    text_release(&text);
    return exit_code;
}

/* ---- Writing ---- */

/* |error| / |row|, both Euclidean norms. */
static double row_error(const float *values, const float *written, size_t n_cols) {
    double errors = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < n_cols; i++) {
        const double error = (double)values[i] - (double)written[i];
        errors += error * error;
        sum += (double)values[i] * (double)values[i];
    }
    return sum > 0.0 ? sqrt(errors / sum) : 0.0;
}

static double largest_error(const struct router_set *set, const struct router_set *written) {
    double largest = 0.0;
    for (size_t i = 0; i < set->n_layers * set->n_hidden; i++) {
        const size_t at = i * set->d_model;
        largest = fmax(largest, row_error(set->fc1 + at, written->fc1 + at, set->d_model));
    }
    for (size_t i = 0; i < set->n_layers * DRLLM_ROUTER_CLASSES; i++) {
        const size_t at = i * set->n_hidden;
        largest = fmax(largest, row_error(set->fc2 + at, written->fc2 + at, set->n_hidden));
    }
    return largest;
}

/* By what is in the file now. */
static int print_result(const struct command *command, const struct routers_options *options,
                        const struct drllm_model *model, const struct router_set *set) {
    struct routers_options again = *options;
    struct router_set written = {.n_layers = 0};
    struct stat info;
    char bytes[16];
    again.in = options->out;
    int exit_code = read_routers(command, &again, model, &written);
    if (exit_code == TOOL_OK) {
        const double size = stat(options->out, &info) == 0 ? (double)info.st_size : 0.0;
        printf("%s: %zu routers in %s, %s, largest rounding error of a row %.2f %%\n", options->out, set->n_layers,
               options->as_float ? "float32" : "int8", format_bytes(size, bytes), 100.0 * largest_error(set, &written));
        exit_code = flush_output(command);
    }
    router_set_release(&written);
    return exit_code;
}

static int convert(const struct command *command, const struct routers_options *options) {
    struct drllm_model *model = NULL;
    struct router_set set = {.n_layers = 0};
    int exit_code = open_model(command, &options->model, &model);
    if (exit_code == TOOL_OK) {
        exit_code = read_routers(command, options, model, &set);
    }
    if (exit_code == TOOL_OK) {
        exit_code = replace_texts(command, options, &set);
    }
    if (exit_code == TOOL_OK) {
        exit_code = router_set_write(command, options->out, &set, !options->as_float);
    }
    if (exit_code == TOOL_OK) {
        exit_code = print_result(command, options, model, &set);
    }
    router_set_release(&set);
    drllm_model_close(model);
    return exit_code;
}

int routers_main(const struct command *command, int argc, char **argv) {
    struct routers_options options = {.model = model_options_default()};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_FLAG(0, "float", &options.as_float, "write float32 weights instead of int8"),
        OPT_TEXT(0, "name", &options.name, "TEXT", "name of the routers"),
        OPT_TEXT(0, "training", &options.training, "FILE",
                 "a JSON object, the record of the training; -: standard input"),
        VERBOSE_OPTION(&options.model),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        if (options.model.path == NULL) {
            exit_code = usage_error(command, "no model: -m FILE is missing");
        } else if (operands.count != 2) {
            exit_code = usage_error(command, "IN and OUT must be given");
        } else {
            options.in = operands.items[0];
            options.out = operands.items[1];
            exit_code = convert(command, &options);
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
