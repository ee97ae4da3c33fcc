/* drllm run: one prompt, one answer. */
#include "platform/clock.h"
#include "tools/commands.h"
#include "tools/files.h"
#include "tools/generate.h"
#include "tools/interrupt.h"
#include "tools/json.h"
#include "tools/trace.h"

#include <inttypes.h>
#include <string.h>

struct run_options {
    struct model_options model;
    struct generate_options generate;
    struct depth_options depth;
    const char *prompt;
    const char *file;
    const char *system;
    bool raw;
    bool json;
    bool trace;
};

struct run {
    const struct command *command;
    const struct run_options *options;
    struct drllm_model *model;
    struct depth depth;
    struct drllm_session *session;
    struct text prompt;
    struct tokens tokens;
    struct answer answer;
    uint64_t seed;
    uint64_t load_ns;
};

static int read_prompt(struct run *run) {
    if (run->options->prompt != NULL) {
        text_append(&run->prompt, run->options->prompt, strlen(run->options->prompt));
        return TOOL_OK;
    }
    const int exit_code = read_text(run->command, run->options->file, &run->prompt);
    drop_last_newline(&run->prompt);
    return exit_code;
}

/* The prompt in the model's chat template. */
static int format_prompt(struct run *run, struct text *text) {
    struct drllm_model_info info;
    drllm_model_get_info(run->model, &info);
    if (info.chat_template == DRLLM_CHAT_NONE || info.chat_template == DRLLM_CHAT_UNKNOWN) {
        report(run->command, "the model has %s chat template; use --raw to continue the prompt as plain text",
               info.chat_template == DRLLM_CHAT_NONE ? "no" : "an unknown");
        return TOOL_FAILED;
    }
    if (strlen(run->prompt.data) != run->prompt.size) {
        report(run->command, "the prompt holds zero bytes, which no chat template takes; use --raw");
        return TOOL_FAILED;
    }
    struct drllm_chat_message messages[2];
    size_t n = 0;
    if (run->options->system != NULL) {
        messages[n++] = (struct drllm_chat_message){"system", run->options->system};
    }
    messages[n++] = (struct drllm_chat_message){"user", run->prompt.data};
    return format_chat(run->command, run->model, messages, n, text);
}

static int tokenize_prompt(struct run *run) {
    struct text chat = {NULL, 0, 0};
    int exit_code = run->options->raw ? TOOL_OK : format_prompt(run, &chat);
    if (exit_code == TOOL_OK) {
        const struct text *text = run->options->raw ? &run->prompt : &chat;
        exit_code = tokenize(run->command, run->model, text->data, text->size,
                             DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, &run->tokens);
    }
    text_release(&chat);
    if (exit_code == TOOL_OK && run->tokens.count == 0) {
        report(run->command, "the prompt is empty");
        return TOOL_FAILED;
    }
    return exit_code;
}

static int open_run_session(struct run *run) {
    const struct model_options *options = &run->options->model;
    struct drllm_model_info info;
    drllm_model_get_info(run->model, &info);
    const size_t n_context = options->context == 0 ? info.n_context_trained : (size_t)options->context;
    if (run->tokens.count > n_context) {
        report(run->command, "the prompt is %zu tokens, but the context holds %zu; raise it with -c", run->tokens.count,
               n_context);
        return TOOL_FAILED;
    }
    const int exit_code =
        open_session(run->command, run->model, n_context, (unsigned)options->threads, options->kv, &run->session);
    return exit_code == TOOL_OK ? depth_set(run->command, run->session, &run->depth) : exit_code;
}

/* A prompt that was interrupted leaves none. */
static bool has_program(const struct run *run) {
    return drllm_session_n_tokens(run->session) != 0;
}

static int print_json(const struct run *run, const struct drllm_timings *timings) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "prompt", json_text(run->prompt.data, run->prompt.size));
    cJSON_AddItemToObject(json, "text", json_text(run->answer.text.data, run->answer.text.size));
    cJSON_AddItemToObject(json, "tokens", json_tokens(run->answer.tokens.ids, run->answer.tokens.count));
    cJSON_AddNumberToObject(json, "n_prompt", (double)run->tokens.count);
    cJSON_AddNumberToObject(json, "n_generated", (double)run->answer.result.n_tokens);
    cJSON_AddStringToObject(json, "stop_reason", answer_stop_reason(&run->answer));
    if (has_program(run)) {
        depth_add_json(cJSON_AddObjectToObject(json, "routing"), run->session, &run->depth);
    }
    cJSON *times = cJSON_AddObjectToObject(json, "timings");
    cJSON_AddNumberToObject(times, "load_ms", milliseconds(run->load_ns));
    cJSON_AddNumberToObject(times, "prompt_ms", milliseconds(timings->prefill_ns));
    cJSON_AddNumberToObject(times, "prompt_tokens_per_second",
                            per_second((double)timings->n_prefill, timings->prefill_ns));
    cJSON_AddNumberToObject(times, "generate_ms", milliseconds(timings->decode_ns));
    cJSON_AddNumberToObject(times, "generate_tokens_per_second",
                            per_second((double)timings->n_decode, timings->decode_ns));
    cJSON_AddNumberToObject(times, "router_ms", milliseconds(timings->router_ns));
    cJSON_AddNumberToObject(times, "kv_bytes", (double)timings->kv_bytes);
    cJSON_AddItemToObject(json, "seed", json_u64(run->seed));
    return json_print(run->command, json, false);
}

static int finish(struct run *run) {
    struct drllm_timings timings;
    drllm_session_get_timings(run->session, &timings);
    int exit_code;
    if (run->options->json) {
        exit_code = print_json(run, &timings);
    } else {
        const struct text *text = &run->answer.text;
        if (text->size != 0 && text->data[text->size - 1] != '\n') {
            putchar('\n');
        }
        exit_code = flush_output(run->command);
    }
    if (!run->options->generate.quiet) {
        fprintf(stderr, "load: %.1f ms; seed %" PRIu64 "\n", milliseconds(run->load_ns), run->seed);
        if (has_program(run)) {
            depth_print(run->session, &run->depth);
        }
        print_timings(&timings, &run->answer);
    }
    return exit_code != TOOL_OK ? exit_code : run->answer.interrupted ? TOOL_INTERRUPTED : TOOL_OK;
}

/* After the prompt. */
static int give_answer(struct run *run, struct drllm_sampler *sampler) {
    if (run->options->trace) {
        trace_print(stderr, run->session, &run->depth);
    }
    if (run->options->generate.max_tokens == 0) {
        return TOOL_OK;
    }
    run->answer.print = !run->options->json;
    return generate_answer(run->command, run->session, sampler, &run->options->generate, &run->answer);
}

static int answer_prompt(struct run *run, struct drllm_sampler *sampler) {
    interrupt_install();
    interrupt_watch(run->session);
    const int status = drllm_session_prefill(run->session, run->tokens.ids, run->tokens.count);
    if (status == DRLLM_ERR_CANCELLED) {
        run->answer.interrupted = true;
    } else if (status != DRLLM_OK) {
        return session_error(run->command, run->session, "cannot compute the prompt", status);
    } else {
        const int exit_code = give_answer(run, sampler);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    interrupt_watch(NULL);
    return finish(run);
}

static int run_prompt(struct run *run) {
    struct drllm_sampler sampler;
    run->seed = choose_seed(run->options->generate.seed);
    int exit_code = make_sampler(run->command, &run->options->generate, run->seed, &sampler);
    if (exit_code == TOOL_OK) {
        exit_code = read_prompt(run);
    }
    const uint64_t start = drllm_clock_ns();
    if (exit_code == TOOL_OK) {
        exit_code = open_model(run->command, &run->options->model, &run->model);
    }
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(run->command, &run->options->depth, run->model, &run->depth);
    }
    run->load_ns = drllm_clock_ns() - start;
    if (exit_code == TOOL_OK) {
        exit_code = tokenize_prompt(run);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_run_session(run);
    }
    if (exit_code == TOOL_OK) {
        exit_code = answer_prompt(run, &sampler);
    }
    interrupt_watch(NULL); /* a late Ctrl-C must not reach a closed session */
    drllm_session_close(run->session);
    depth_close(&run->depth);
    drllm_model_close(run->model);
    text_release(&run->prompt);
    tokens_release(&run->tokens);
    answer_release(&run->answer);
    return exit_code;
}

static int check(const struct command *command, const struct run_options *options) {
    if (options->model.path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    if ((options->prompt == NULL) == (options->file == NULL)) {
        return usage_error(command, "%s",
                           options->prompt == NULL ? "no prompt: -p TEXT or -f FILE is missing"
                                                   : "-p and -f exclude each other");
    }
    if (options->raw && options->system != NULL) {
        return usage_error(command, "--system is part of the chat template, which --raw leaves out");
    }
    return depth_check(command, &options->depth);
}

int run_main(const struct command *command, int argc, char **argv) {
    struct run_options options = {
        .model = model_options_default(), .generate = generate_options_default(), .depth = depth_options_default()};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT('p', "prompt", &options.prompt, "TEXT", "the prompt"),
        OPT_TEXT('f', "file", &options.file, "FILE", "a file that holds the prompt; -: standard input"),
        OPT_TEXT(0, "system", &options.system, "TEXT", "the system message of the chat template"),
        OPT_FLAG(0, "raw", &options.raw, "continue the prompt as it is, without a chat template"),
        GENERATE_OPTIONS(&options.generate),
        DEPTH_OPTIONS(&options.depth),
        TRACE_OPTION(&options),
        OPT_FLAG(0, "json", &options.json, "print one JSON object at the end instead of the text"),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK) {
            struct run run = {.command = command, .options = &options};
            exit_code = run_prompt(&run);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
