/* drllm synthesize: a model of a known shape with random weights, as a file. */
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/synthetic.h"

#include <stdlib.h>
#include <unistd.h>

struct synthesize_options {
    const char *format;
    const char *output;
    int64_t seed;
    bool pure, force, quiet;
};

static int synthesize(const struct command *command, const struct synthesize_options *options, const char *shape) {
    struct synthetic synthetic = {.pure = options->pure, .seed = (uint64_t)options->seed};
    int exit_code = synthetic_parse_shape(command, shape, &synthetic.shape);
    if (exit_code == TOOL_OK) {
        exit_code = synthetic_parse_format(command, options->format, &synthetic.format);
    }
    if (exit_code == TOOL_OK && !options->force && access(options->output, F_OK) == 0) {
        report(command, "%s exists; --force replaces it", options->output);
        exit_code = TOOL_FAILED;
    }
    uint64_t size = 0;
    if (exit_code == TOOL_OK) {
        interrupt_install();
        exit_code = synthetic_write(command, &synthetic, options->output, &size);
    }
    if (exit_code == TOOL_OK && !options->quiet) {
        char text[16];
        fprintf(stderr, "%s: %s\n", options->output, format_bytes((double)size, text));
    }
    return exit_code;
}

int synthesize_main(const struct command *command, int argc, char **argv) {
    struct synthesize_options options = {.format = "q4_0"};
    const struct option table[] = {
        OPT_TEXT('o', "output", &options.output, "FILE", "where the model goes, a GGUF file"),
        OPT_TEXT(0, "format", &options.format, "TYPE", "of the weights: q4_0, q4_1 or q8_0"),
        OPT_FLAG(0, "pure", &options.pure, "the embedding and the output head in TYPE, too"),
        OPT_INTEGER('s', "seed", &options.seed, "N", 0, 9007199254740992.0, "of the weights"),
        OPT_FLAG(0, "force", &options.force, "replace FILE if it exists"),
        OPT_FLAG('q', "quiet", &options.quiet, "print only errors"),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        if (operands.count != 1) {
            exit_code = usage_error(command, "one SHAPE must be named");
        } else if (options.output == NULL) {
            exit_code = usage_error(command, "-o FILE is missing");
        } else {
            exit_code = synthesize(command, &options, operands.items[0]);
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
