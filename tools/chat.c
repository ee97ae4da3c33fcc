/* drllm chat: a conversation.
 *
 * Each turn formats the whole conversation anew and computes only what differs from the session's context: the
 * tokens that both begin with stay. */
#include "tools/commands.h"
#include "tools/generate.h"
#include "tools/interrupt.h"
#include "tools/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct chat_options {
    struct model_options model;
    struct generate_options generate;
    struct depth_options depth;
    const char *system;
    bool trace;
};

struct message {
    const char *role;
    struct text content;
};

struct chat {
    const struct command *command;
    const struct chat_options *options;
    struct drllm_model *model;
    struct depth depth;
    struct drllm_session *session;
    struct drllm_sampler sampler;
    size_t n_context;
    struct message *messages; /* user and assistant in turn, behind the system message if there is one */
    size_t n_messages;
    size_t n_system;   /* 0 or 1 */
    struct text input; /* bytes read but not yet used */
    bool input_ended;
    bool interactive; /* a person types */
    bool colour;
};

/* ---- The conversation ---- */

static void add_message(struct chat *chat, const char *role, const char *text, size_t size) {
    chat->messages = reallocate(chat->messages, chat->n_messages + 1, sizeof *chat->messages);
    struct message *message = &chat->messages[chat->n_messages++];
    *message = (struct message){role, {NULL, 0, 0}};
    text_append(&message->content, text, size);
}

/* Remove `count` messages from number `first` on. */
static void remove_messages(struct chat *chat, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        text_release(&chat->messages[first + i].content);
    }
    const size_t behind = chat->n_messages - first - count;
    if (behind != 0) {
        memmove(chat->messages + first, chat->messages + first + count, behind * sizeof *chat->messages);
    }
    chat->n_messages -= count;
}

/* The tokens of the conversation without its `n_left_out` oldest messages behind the system message. */
static int conversation_tokens(const struct chat *chat, size_t n_left_out, struct tokens *tokens) {
    struct drllm_chat_message *messages = allocate(chat->n_messages, sizeof *messages);
    size_t n = 0;
    for (size_t i = 0; i < chat->n_messages; i++) {
        if (i < chat->n_system || i >= chat->n_system + n_left_out) {
            messages[n++] = (struct drllm_chat_message){chat->messages[i].role, chat->messages[i].content.data};
        }
    }
    struct text text = {NULL, 0, 0};
    int exit_code = format_chat(chat->command, chat->model, messages, n, &text);
    if (exit_code == TOOL_OK) {
        exit_code = tokenize(chat->command, chat->model, text.data, text.size,
                             DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, tokens);
    }
    text_release(&text);
    free(messages);
    return exit_code;
}

/* Room that an answer should have. */
static size_t answer_room(const struct chat *chat) {
    const size_t room = chat->n_context / 4 < 256 ? chat->n_context / 4 : 256;
    const int64_t most = chat->options->generate.max_tokens;
    return most >= 0 && (size_t)most < room ? (size_t)most : room;
}

/* The tokens of the conversation, without its oldest turns if it grew too long. *fits: false if even the last
 * message alone is too long; then no turn is forgotten. */
static int fit_conversation(struct chat *chat, struct tokens *tokens, bool *fits) {
    *fits = false;
    for (size_t turns = 0; !*fits && chat->n_system + 2 * turns < chat->n_messages; turns++) {
        const int exit_code = conversation_tokens(chat, 2 * turns, tokens);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        *fits = tokens->count <= chat->n_context - answer_room(chat);
        if (*fits && turns != 0) {
            remove_messages(chat, chat->n_system, 2 * turns);
            fprintf(stderr, "(the context is full: %zu of the oldest turns forgotten)\n", turns);
        }
    }
    return TOOL_OK;
}

/* Compute the tokens, keeping what the context already begins with. Returns a drllm_status. */
static int prefill_conversation(struct chat *chat, const struct tokens *tokens) {
    const int32_t *kept = drllm_session_tokens(chat->session);
    const size_t n_kept = drllm_session_n_tokens(chat->session);
    size_t common = 0;
    /* The last token is computed in any case: its logits are needed. */
    while (common < n_kept && common + 1 < tokens->count && kept[common] == tokens->ids[common]) {
        common++;
    }
    const int status = drllm_session_rewind(chat->session, common);
    if (status != DRLLM_OK) {
        return status;
    }
    return drllm_session_prefill(chat->session, tokens->ids + common, tokens->count - common);
}

/* ---- One turn ---- */

static void paint(const struct chat *chat, const char *code) {
    if (chat->colour) {
        fprintf(stderr, "\033[%sm", code);
        fflush(stderr);
    }
}

static int finish_answer(struct chat *chat, const struct answer *answer, const struct drllm_timings *before) {
    if (answer->text.size == 0 || answer->text.data[answer->text.size - 1] != '\n') {
        putchar('\n');
    }
    const int exit_code = flush_output(chat->command);
    if (answer->interrupted) {
        fprintf(stderr, "(stopped)\n");
    } else if (answer->result.reason == DRLLM_STOP_CONTEXT) {
        fprintf(stderr, "(the context is full: the answer is cut; raise it with -c)\n");
    }
    if (chat->options->model.verbose && !chat->options->generate.quiet) {
        struct drllm_timings now;
        drllm_session_get_timings(chat->session, &now);
        const struct drllm_timings spent = timings_since(before, &now);
        depth_print(chat->session, &chat->depth);
        print_timings(&spent, answer);
    }
    return exit_code;
}

/* Answer the last message, which is the user's; it is forgotten if no answer came. */
static int answer_turn(struct chat *chat) {
    struct tokens tokens = {NULL, 0, 0};
    struct answer answer = {.print = true};
    struct drllm_timings before;
    bool fits = false;
    int exit_code = fit_conversation(chat, &tokens, &fits);
    if (exit_code == TOOL_OK && !fits) {
        report(chat->command, "this message is too long for a context of %zu tokens; raise it with -c",
               chat->n_context);
    } else if (exit_code == TOOL_OK) {
        drllm_session_get_timings(chat->session, &before);
        interrupt_watch(chat->session);
        int status = prefill_conversation(chat, &tokens);
        if (status == DRLLM_ERR_CANCELLED && !interrupt_seen()) {
            /* A Ctrl-C that came just as the last answer ended had nothing to stop. */
            status = prefill_conversation(chat, &tokens);
        }
        if (status == DRLLM_ERR_CANCELLED) {
            fprintf(stderr, "(stopped)\n");
        } else if (status != DRLLM_OK) {
            exit_code = session_error(chat->command, chat->session, "cannot compute the conversation", status);
        } else {
            if (chat->options->trace) {
                trace_print(stderr, chat->session, &chat->depth);
            }
            exit_code =
                generate_answer(chat->command, chat->session, &chat->sampler, &chat->options->generate, &answer);
            if (exit_code == TOOL_OK) {
                exit_code = finish_answer(chat, &answer, &before);
            }
        }
        interrupt_watch(NULL);
        interrupt_forget();
    }
    if (answer.tokens.count != 0 || answer.result.reason == DRLLM_STOP_END) {
        add_message(chat, "assistant", answer.text.data, answer.text.size);
    } else {
        remove_messages(chat, chat->n_messages - 1, 1);
    }
    answer_release(&answer);
    tokens_release(&tokens);
    return exit_code;
}

/* ---- Input ---- */

enum line_result { LINE_READ, LINE_END, LINE_INTERRUPTED, LINE_FAILED };

/* Read until the input holds a whole line, or the last one. *size: of the line without its end. */
static enum line_result fill_line(struct chat *chat, size_t *size) {
    enum { LONGEST_LINE = 1 << 24 };
    char buffer[4096];
    size_t searched = 0;
    for (;;) {
        const char *end = chat->input.size == searched
                              ? NULL
                              : memchr(chat->input.data + searched, '\n', chat->input.size - searched);
        if (end != NULL) {
            *size = (size_t)(end - chat->input.data);
            return LINE_READ;
        }
        searched = chat->input.size;
        if (chat->input_ended) {
            *size = chat->input.size;
            return *size != 0 ? LINE_READ : LINE_END;
        }
        if (!interrupt_wait_readable(STDIN_FILENO)) {
            return LINE_INTERRUPTED;
        }
        const ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (n < 0 || chat->input.size > LONGEST_LINE) {
            report(chat->command, "cannot read standard input: %s", n < 0 ? strerror(errno) : "a line is too long");
            return LINE_FAILED;
        }
        chat->input_ended = n == 0;
        text_append(&chat->input, buffer, (size_t)n);
    }
}

/* One line, or several of which all but the last end with a backslash; replaces what `message` held. */
static enum line_result read_message(struct chat *chat, struct text *message) {
    bool goes_on = true;
    message->size = 0;
    for (size_t lines = 0; goes_on; lines++) {
        if (chat->interactive) {
            paint(chat, "1;32");
            fprintf(stderr, "%s", lines == 0 ? "> " : "  ");
            fflush(stderr);
        }
        size_t size = 0;
        const enum line_result result = fill_line(chat, &size);
        if (chat->interactive) {
            paint(chat, "0");
        }
        if (result == LINE_END && lines != 0) {
            return LINE_READ;
        }
        if (result != LINE_READ) {
            return result;
        }
        size_t used = size;
        while (used > 0 && chat->input.data[used - 1] == '\r') {
            used--;
        }
        goes_on = used > 0 && chat->input.data[used - 1] == '\\';
        text_append(message, chat->input.data, goes_on ? used - 1 : used);
        if (goes_on) {
            text_append(message, "\n", 1);
        }
        const size_t taken = size < chat->input.size ? size + 1 : size;
        memmove(chat->input.data, chat->input.data + taken, chat->input.size - taken);
        chat->input.size -= taken;
    }
    return LINE_READ;
}

static void print_commands(void) {
    fputs("/reset  forget the conversation\n"
          "/quit   end the program\n"
          "/help   this list\n"
          "A line that ends with \\ goes on in the next. Ctrl-C stops an answer, Ctrl-D ends the program.\n",
          stderr);
}

/* *ends: /quit came. */
static int take_message(struct chat *chat, const struct text *message, bool *ends) {
    if (message->size == 0) {
        return TOOL_OK;
    }
    if (message->data[0] != '/') {
        if (memchr(message->data, '\0', message->size) != NULL) {
            report(chat->command, "a message cannot hold zero bytes; ignored");
            return TOOL_OK;
        }
        add_message(chat, "user", message->data, message->size);
        return answer_turn(chat);
    }
    if (strcmp(message->data, "/quit") == 0) {
        *ends = true;
    } else if (strcmp(message->data, "/reset") == 0) {
        remove_messages(chat, chat->n_system, chat->n_messages - chat->n_system);
        drllm_session_reset(chat->session);
        fprintf(stderr, "(the conversation is forgotten)\n");
    } else {
        if (strcmp(message->data, "/help") != 0) {
            fprintf(stderr, "(unknown command %s)\n", message->data);
        }
        print_commands();
    }
    return TOOL_OK;
}

static int converse(struct chat *chat) {
    struct text message = {NULL, 0, 0};
    int exit_code = TOOL_OK;
    bool ends = false;
    while (exit_code == TOOL_OK && !ends) {
        const enum line_result result = read_message(chat, &message);
        ends = result != LINE_READ;
        if (result == LINE_READ) {
            exit_code = take_message(chat, &message, &ends);
        } else if (result != LINE_FAILED && chat->interactive) {
            fputc('\n', stderr);
        }
        if (result == LINE_INTERRUPTED) {
            exit_code = TOOL_INTERRUPTED;
        } else if (result == LINE_FAILED) {
            exit_code = TOOL_FAILED;
        }
    }
    text_release(&message);
    return exit_code;
}

/* ---- */

static int open_chat(struct chat *chat) {
    const struct model_options *options = &chat->options->model;
    int exit_code = make_sampler(chat->command, &chat->options->generate, choose_seed(chat->options->generate.seed),
                                 &chat->sampler);
    if (exit_code == TOOL_OK) {
        exit_code = open_model(chat->command, options, &chat->model);
    }
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    struct drllm_model_info info;
    drllm_model_get_info(chat->model, &info);
    if (info.chat_template == DRLLM_CHAT_NONE || info.chat_template == DRLLM_CHAT_UNKNOWN) {
        report(chat->command, "the model has %s chat template; 'drllm run --raw' continues plain text",
               info.chat_template == DRLLM_CHAT_NONE ? "no" : "an unknown");
        return TOOL_FAILED;
    }
    chat->n_context = options->context == 0 ? info.n_context_trained : (size_t)options->context;
    exit_code = depth_open(chat->command, &chat->options->depth, chat->model, &chat->depth);
    if (exit_code == TOOL_OK) {
        exit_code = open_session(chat->command, chat->model, chat->n_context, (unsigned)options->threads, options->kv,
                                 &chat->session);
    }
    return exit_code == TOOL_OK ? depth_set(chat->command, chat->session, &chat->depth) : exit_code;
}

static int run(struct chat *chat) {
    int exit_code = open_chat(chat);
    if (exit_code == TOOL_OK) {
        chat->interactive = isatty(STDIN_FILENO) == 1;
        chat->colour = chat->interactive && wants_colour(stderr);
        if (chat->options->system != NULL) {
            add_message(chat, "system", chat->options->system, strlen(chat->options->system));
            chat->n_system = 1;
        }
        if (chat->interactive && !chat->options->generate.quiet) {
            print_commands();
        }
        interrupt_install();
        interrupt_watch(NULL);
        exit_code = converse(chat);
    }
    interrupt_watch(NULL);
    remove_messages(chat, 0, chat->n_messages);
    free(chat->messages);
    text_release(&chat->input);
    drllm_session_close(chat->session);
    depth_close(&chat->depth);
    drllm_model_close(chat->model);
    return exit_code;
}

int chat_main(const struct command *command, int argc, char **argv) {
    struct chat_options options = {
        .model = model_options_default(), .generate = generate_options_default(), .depth = depth_options_default()};
    options.depth.reroute = DRLLM_REROUTE_TURN;
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),   OPT_TEXT(0, "system", &options.system, "TEXT", "the system message"),
        GENERATE_OPTIONS(&options.generate), DEPTH_OPTIONS(&options.depth),
        REROUTE_OPTION(&options.depth),      TRACE_OPTION(&options),
        CONTEXT_OPTION(&options.model),      THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct chat chat = {.command = command, .options = &options};
        exit_code = options.model.path == NULL ? usage_error(command, "no model: -m FILE is missing")
                                               : depth_check(command, &options.depth);
        if (exit_code == TOOL_OK) {
            exit_code = run(&chat);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
