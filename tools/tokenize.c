/* drllm tokenize: texts to ids, and back. */
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/files.h"

#include <stdlib.h>
#include <string.h>

struct tokenize_options {
    struct model_options model;
    struct text_list prompts;
    const char *file;
    bool lines;
    bool special;
    bool bos;
    bool decode;
};

struct job {
    const struct command *command;
    const struct tokenize_options *options;
    struct drllm_model *model;
    struct tokens tokens;
};

static int print_ids(struct job *job, const char *text, size_t size) {
    const unsigned flags = (job->options->bos ? (unsigned)DRLLM_TOKENIZE_BOS : 0) |
                           (job->options->special ? (unsigned)DRLLM_TOKENIZE_SPECIAL : 0);
    const int exit_code = tokenize(job->command, job->model, text, size, flags, &job->tokens);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    for (size_t i = 0; i < job->tokens.count; i++) {
        printf("%s%d", i == 0 ? "" : " ", (int)job->tokens.ids[i]);
    }
    putchar('\n');
    return TOOL_OK;
}

static int print_text(struct job *job, const char *ids, size_t ids_size, bool end_line) {
    const int exit_code = parse_tokens(job->command, job->model, ids, ids_size, &job->tokens);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    size_t size = 0;
    int status =
        drllm_detokenize(job->model, job->tokens.ids, job->tokens.count, job->options->special, NULL, 0, &size);
    if (status == DRLLM_ERR_BUFFER) {
        char *text = allocate_bytes(size);
        status =
            drllm_detokenize(job->model, job->tokens.ids, job->tokens.count, job->options->special, text, size, &size);
        if (status == DRLLM_OK) {
            fwrite(text, 1, size, stdout);
        }
        free(text);
    }
    if (status != DRLLM_OK) {
        return report_status(job->command, "cannot decode", status, NULL);
    }
    if (end_line) {
        putchar('\n');
    }
    return TOOL_OK;
}

static int print_one(struct job *job, const char *text, size_t size, bool end_line) {
    return job->options->decode ? print_text(job, text, size, end_line) : print_ids(job, text, size);
}

static int print_lines(struct job *job, const struct text *text) {
    size_t start = 0;
    while (start < text->size) {
        const char *end = memchr(text->data + start, '\n', text->size - start);
        const size_t size = end == NULL ? text->size - start : (size_t)(end - text->data) - start;
        const int exit_code = print_one(job, text->data + start, size, true);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        start += size + 1;
    }
    return TOOL_OK;
}

static int print_all(struct job *job) {
    for (size_t i = 0; i < job->options->prompts.count; i++) {
        const char *prompt = job->options->prompts.items[i];
        const int exit_code = print_one(job, prompt, strlen(prompt), true);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    if (job->options->file == NULL) {
        return TOOL_OK;
    }
    struct text text = {NULL, 0, 0};
    int exit_code = read_text(job->command, job->options->file, &text);
    if (exit_code == TOOL_OK) {
        exit_code = job->options->lines ? print_lines(job, &text) : print_one(job, text.data, text.size, false);
    }
    text_release(&text);
    return exit_code;
}

static int run_job(struct job *job) {
    int exit_code = open_vocabulary(job->command, &job->options->model, &job->model);
    if (exit_code == TOOL_OK) {
        exit_code = print_all(job);
    }
    if (exit_code == TOOL_OK) {
        exit_code = flush_output(job->command);
    }
    tokens_release(&job->tokens);
    drllm_model_close(job->model);
    return exit_code;
}

int tokenize_main(const struct command *command, int argc, char **argv) {
    struct tokenize_options options = {.model = model_options_default()};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXTS('p', "prompt", &options.prompts, "TEXT", "a text; may be repeated"),
        OPT_TEXT('f', "file", &options.file, "FILE", "a file that is one text; -: standard input"),
        OPT_FLAG(0, "lines", &options.lines, "each line of the file is a text, without its line end"),
        OPT_FLAG(0, "special", &options.special, "recognise special tokens; with --decode, show them"),
        OPT_FLAG(0, "bos", &options.bos, "begin with the BOS token if the model wants one"),
        OPT_FLAG(0, "decode", &options.decode, "ids to text"),
        VERBOSE_OPTION(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct job job = {.command = command, .options = &options};
        if (options.prompts.count == 0 && options.file == NULL) {
            exit_code = usage_error(command, "no text: -p TEXT or -f FILE is missing");
        } else if (options.lines && options.file == NULL) {
            exit_code = usage_error(command, "--lines is for -f FILE");
        } else {
            exit_code = run_job(&job);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
