/* drllm pack: a model as it lies in memory, in a file (runtime/packed_file.h). */
#include "platform/file.h"
#include "runtime/drllm_os.h"
#include "runtime/packed_file.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct pack_options {
    struct model_options model;
    const char *routers;
    const char *out;
};

static bool write_bytes(void *user, const void *data, size_t size) {
    FILE *stream = user;
    return fwrite(data, 1, size, stream) == size;
}

/* Whoever runs the file must be able to open them, so they are opened here. */
static int check_routers(const struct command *command, const struct drllm_model *model, const char *path) {
    struct drllm_error error = {0};
    struct drllm_routers *routers = NULL;
    const int status = drllm_routers_open_path(model, path, &routers, &error);
    drllm_routers_close(routers);
    return status == DRLLM_OK ? TOOL_OK : report_status(command, path, status, error.detail);
}

static int map_routers(const struct command *command, const struct pack_options *options,
                       const struct drllm_model *model, struct drllm_file *file) {
    const int exit_code = check_routers(command, model, options->routers);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const int problem = drllm_file_map_path(options->routers, file);
    if (problem != 0) {
        char text[128];
        drllm_file_error_text(problem, text, sizeof text);
        report(command, "cannot open %s: %s", options->routers, text);
        return TOOL_FAILED;
    }
    if (drllm_packed_is(file->data, file->size)) {
        report(command, "%s is a packed model; --routers wants the router file itself", options->routers);
        drllm_file_unmap(file);
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

static int write_model(const struct command *command, const struct pack_options *options,
                       const struct drllm_model *model, const struct drllm_file *routers) {
    struct drllm_error error = {0};
    struct output_file output;
    int exit_code = output_open(command, options->out, &output);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    errno = 0;
    const int status = drllm_packed_write(model, routers->data, routers->size, write_bytes, output.stream, &error);
    const int problem = errno;
    if (status == DRLLM_OK) {
        return output_commit(command, &output);
    }
    output_discard(&output);
    if (status == DRLLM_ERR_IO) {
        report(command, "cannot write %s: %s", options->out, strerror(problem));
        return TOOL_FAILED;
    }
    return report_status(command, "cannot pack the model", status, error.detail);
}

static int pack(const struct command *command, const struct pack_options *options) {
    struct drllm_model *model = NULL;
    struct drllm_file routers = {NULL, 0, NULL, 0};
    int exit_code = open_model(command, &options->model, &model);
    if (exit_code == TOOL_OK && options->routers != NULL) {
        exit_code = map_routers(command, options, model, &routers);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_model(command, options, model, &routers);
    }
    drllm_file_unmap(&routers);
    drllm_model_close(model);
    return exit_code;
}

int pack_main(const struct command *command, int argc, char **argv) {
    struct pack_options options = {.model = model_options_default()};
    options.model.head = DRLLM_HEAD_FILE;
    const struct option table[] = {
        OPT_TEXT('m', "model", &options.model.path, "FILE", "the same as MODEL"),
        OPT_TEXT('r', "routers", &options.routers, "FILE", "routers for this model, to be put into the file"),
        OPT_TEXT('o', "output", &options.out, "FILE", "where the packed model goes"),
        VERBOSE_OPTION(&options.model),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        if (operands.count + (options.model.path != NULL) != 1) {
            exit_code = usage_error(command, "one model must be named");
        } else if (options.out == NULL) {
            exit_code = usage_error(command, "no output: -o FILE is missing");
        } else {
            options.model.path = options.model.path != NULL ? options.model.path : operands.items[0];
            exit_code = pack(command, &options);
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
