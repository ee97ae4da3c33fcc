/* drllm logits: what the network says after a prompt, for comparison with other implementations. */
#include "runtime/internal.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct logits_options {
    struct model_options model;
    struct depth_options depth;
    const char *prompt;
    const char *file;
    const char *ids;
    const char *output;
    const char *layers;
    bool print_ids;
    bool trace;
};

struct job {
    const struct command *command;
    const struct logits_options *options;
    struct drllm_model *model;
    struct drllm_model_info info;
    struct depth depth;
    struct drllm_session *session;
    struct tokens tokens;
    float *layers; /* [n_layers + 1][d_model] */
};

/* A long prompt takes several passes; the last one leaves the last position's. */
static void keep_layer(void *user, size_t layer, const float *hidden) {
    const struct job *job = user;
    memcpy(job->layers + layer * job->info.d_model, hidden, job->info.d_model * sizeof *hidden);
}

static int write_floats(const struct job *job, const char *path, const float *values, size_t n) {
    unsigned char *bytes = allocate(n, 4);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        for (size_t j = 0; j < 4; j++) {
            bytes[4 * i + j] = (unsigned char)(bits >> (8 * j)); /* little-endian on any machine */
        }
    }
    const int exit_code = write_file(job->command, path, bytes, 4 * n);
    free(bytes);
    return exit_code;
}

static int read_tokens(struct job *job) {
    const struct logits_options *options = job->options;
    struct text text = {NULL, 0, 0};
    int exit_code = TOOL_OK;
    if (options->ids != NULL) {
        exit_code = parse_tokens(job->command, job->model, options->ids, strlen(options->ids), &job->tokens);
    } else {
        if (options->prompt != NULL) {
            text_append(&text, options->prompt, strlen(options->prompt));
        } else {
            exit_code = read_text(job->command, options->file, &text);
        }
        if (exit_code == TOOL_OK) {
            exit_code = tokenize(job->command, job->model, text.data, text.size,
                                 DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, &job->tokens);
        }
    }
    text_release(&text);
    if (exit_code == TOOL_OK && job->tokens.count == 0) {
        report(job->command, "there are no tokens");
        return TOOL_FAILED;
    }
    return exit_code;
}

static void print_top(const struct job *job, FILE *stream, const float *logits) {
    enum { TOP = 10 };
    int32_t best[TOP];
    size_t n = 0;
    for (size_t i = 0; i < job->info.n_vocab; i++) {
        size_t at = n;
        while (at > 0 && logits[i] > logits[best[at - 1]]) {
            at--;
        }
        if (at < TOP) {
            n += n < TOP;
            memmove(&best[at + 1], &best[at], (n - at - 1) * sizeof best[0]);
            best[at] = (int32_t)i;
        }
    }
    fprintf(stream, "   token      logit  probability  text\n");
    for (size_t i = 0; i < n; i++) {
        struct text text = {NULL, 0, 0};
        append_token_text(job->model, best[i], &text);
        fprintf(stream, "%8d %10.5f %12.6f  ", (int)best[i], (double)logits[best[i]],
                exp(drllm_log_prob(job->model, logits, best[i])));
        print_quoted(stream, text.data, text.size);
        fputc('\n', stream);
        text_release(&text);
    }
}

static int print_results(const struct job *job, const float *logits) {
    const struct logits_options *options = job->options;
    /* Raw numbers on stdout leave the table no place there. */
    const bool is_stdout = (options->output != NULL && strcmp(options->output, "-") == 0) ||
                           (options->layers != NULL && strcmp(options->layers, "-") == 0);
    FILE *stream = is_stdout ? stderr : stdout;
    if (options->print_ids) {
        fprintf(stream, "tokens:");
        for (size_t i = 0; i < job->tokens.count; i++) {
            fprintf(stream, "%c%d", i == 0 ? ' ' : ',', (int)job->tokens.ids[i]);
        }
        fputc('\n', stream);
    }
    print_top(job, stream, logits);
    int exit_code = TOOL_OK;
    if (options->output != NULL) {
        exit_code = write_floats(job, options->output, logits, job->info.n_vocab);
    }
    if (exit_code == TOOL_OK && options->layers != NULL) {
        exit_code = write_floats(job, options->layers, job->layers, (job->info.n_layers + 1) * job->info.d_model);
    }
    return exit_code == TOOL_OK ? flush_output(job->command) : exit_code;
}

static int compute(struct job *job) {
    if (job->options->layers != NULL) {
        job->layers = allocate((job->info.n_layers + 1) * job->info.d_model, sizeof *job->layers);
        drllm_session_set_layer_hook(job->session, keep_layer, job);
    }
    interrupt_install();
    interrupt_watch(job->session);
    const int status = drllm_session_prefill(job->session, job->tokens.ids, job->tokens.count);
    interrupt_watch(NULL);
    if (status != DRLLM_OK) {
        return session_error(job->command, job->session, "cannot compute the prompt", status);
    }
    if (job->options->trace) {
        trace_print(stderr, job->session, &job->depth);
    }
    return print_results(job, drllm_session_logits(job->session));
}

static int run(struct job *job) {
    const struct model_options *options = &job->options->model;
    int exit_code = open_model(job->command, options, &job->model);
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(job->command, &job->options->depth, job->model, &job->depth);
    }
    if (exit_code == TOOL_OK) {
        drllm_model_get_info(job->model, &job->info);
        exit_code = read_tokens(job);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_session(job->command, job->model, (size_t)options->context, (unsigned)options->threads,
                                 options->kv, &job->session);
    }
    if (exit_code == TOOL_OK) {
        exit_code = depth_set(job->command, job->session, &job->depth);
    }
    if (exit_code == TOOL_OK) {
        exit_code = compute(job);
    }
    drllm_session_close(job->session);
    depth_close(&job->depth);
    drllm_model_close(job->model);
    tokens_release(&job->tokens);
    free(job->layers);
    return exit_code;
}

int logits_main(const struct command *command, int argc, char **argv) {
    struct logits_options options = {.model = model_options_default(), .depth = depth_options_default()};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT('p', "prompt", &options.prompt, "TEXT", "the prompt, taken as it is"),
        OPT_TEXT('f', "file", &options.file, "FILE", "a file that is the prompt; -: standard input"),
        OPT_TEXT(0, "ids", &options.ids, "LIST", "the prompt as token ids: 1,2,3"),
        OPT_TEXT('o', "output", &options.output, "FILE", "write the logits of the last position; -: standard output"),
        OPT_TEXT(0, "layers", &options.layers, "FILE", "write every block's output at the last position"),
        OPT_FLAG(0, "print-ids", &options.print_ids, "print the prompt's token ids"),
        DEPTH_OPTIONS(&options.depth),
        TRACE_OPTION(&options),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        const int sources = (options.prompt != NULL) + (options.file != NULL) + (options.ids != NULL);
        struct job job = {.command = command, .options = &options};
        exit_code = options.model.path == NULL ? usage_error(command, "no model: -m FILE is missing")
                    : sources != 1 ? usage_error(command, "one of -p TEXT, -f FILE and --ids LIST must be given")
                                   : depth_check(command, &options.depth);
        if (exit_code == TOOL_OK) {
            exit_code = run(&job);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
