#include "tools/common.h"

#include "platform/cpu.h"
#include "runtime/drllm_os.h"
#include "tools/processors.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

const char *const compute_names[] = {"exact", "xnnpack", "f32", NULL};
const char *const head_names[] = {"auto", "file", "q8c", NULL};
const char *const kv_names[] = {"f16", "q8_0", NULL};

/* ---- Messages ---- */

static bool is_control(char c) {
    return (unsigned char)c < 0x20 || c == 0x7f;
}

static void print_message(const struct command *command, const char *format, va_list arguments) {
    /* Whole lines, so that messages do not tear an answer that stands on the same terminal. */
    char line[2048];
    vsnprintf(line, sizeof line, format, arguments);
    for (char *p = line; *p != '\0'; p++) {
        *p = is_control(*p) ? '?' : *p; /* names come from files */
    }
    fprintf(stderr, "drllm %s: %s\n", command->name, line);
}

void report(const struct command *command, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(command, format, arguments);
    va_end(arguments);
}

int usage_error(const struct command *command, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(command, format, arguments);
    va_end(arguments);
    fprintf(stderr, "Try 'drllm %s --help'.\n", command->name);
    return TOOL_USAGE;
}

int report_status(const struct command *command, const char *what, int status, const char *detail) {
    if (detail != NULL && detail[0] != '\0') {
        report(command, "%s: %s (%s)", what, detail, drllm_strerror(status));
    } else {
        report(command, "%s: %s", what, drllm_strerror(status));
    }
    return TOOL_FAILED;
}

int flush_output(const struct command *command) {
    if (ferror(stdout) == 0 && fflush(stdout) == 0) {
        return TOOL_OK;
    }
    report(command, "cannot write to standard output: %s", strerror(errno));
    return TOOL_FAILED;
}

bool wants_colour(FILE *stream) {
    const char *no_colour = getenv("NO_COLOR");
    const char *terminal = getenv("TERM");
    return (no_colour == NULL || no_colour[0] == '\0') && terminal != NULL && strcmp(terminal, "dumb") != 0 &&
           isatty(fileno(stream)) == 1;
}

void print_plain(FILE *stream, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        fputc(is_control(text[i]) ? '?' : text[i], stream);
    }
}

void print_quoted(FILE *stream, const char *text, size_t size) {
    fputc('"', stream);
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c == '\n') {
            fputs("\\n", stream);
        } else if (c == '"' || c == '\\') {
            fprintf(stream, "\\%c", c);
        } else if (is_control(text[i])) {
            fprintf(stream, "\\x%02x", c);
        } else {
            fputc(c, stream);
        }
    }
    fputc('"', stream);
}

/* ---- Memory ---- */

static _Noreturn void out_of_memory(void) {
    fputs("drllm: out of memory\n", stderr);
    exit(TOOL_FAILED);
}

void *reallocate(void *memory, size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) {
        out_of_memory();
    }
    void *grown = realloc(memory, count * size != 0 ? count * size : 1);
    if (grown == NULL) {
        out_of_memory();
    }
    return grown;
}

void *allocate(size_t count, size_t size) {
    return reallocate(NULL, count, size);
}

void *allocate_bytes(size_t size) {
    return reallocate(NULL, size, 1);
}

char *copy_text(const char *text) {
    const size_t size = strlen(text) + 1;
    return memcpy(allocate_bytes(size), text, size);
}

size_t count_characters(const char *text) {
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += ((unsigned char)*text & 0xc0) != 0x80; /* every byte of UTF-8 but those inside a character */
    }
    return n;
}

void text_append(struct text *text, const char *data, size_t size) {
    if (size >= text->capacity - text->size || text->data == NULL) {
        if (size > SIZE_MAX / 4 || text->size > SIZE_MAX / 4) {
            out_of_memory();
        }
        text->capacity = 2 * (text->size + size) + 64;
        text->data = reallocate(text->data, text->capacity, 1);
    }
    if (size != 0) {
        memcpy(text->data + text->size, data, size);
    }
    text->size += size;
    text->data[text->size] = '\0';
}

void text_release(struct text *text) {
    free(text->data);
    *text = (struct text){NULL, 0, 0};
}

/* ---- Models and sessions ---- */

struct model_options model_options_default(void) {
    return (struct model_options){.path = NULL,
                                  .cpu_mask = "all",
                                  .compute = DRLLM_COMPUTE_EXACT,
                                  .head = DRLLM_HEAD_AUTO,
                                  .kv = DRLLM_KV_F16,
                                  .threads = 0,
                                  .context = (int64_t)drllm_session_default_params().n_context,
                                  .verbose = false};
}

static void log_line(void *user, enum drllm_log_level level, const char *line) {
    (void)user;
    fprintf(stderr, "drllm: %s%s\n", level == DRLLM_LOG_WARNING ? "warning: " : "", line);
}

static void log_warning(void *user, enum drllm_log_level level, const char *line) {
    if (level == DRLLM_LOG_WARNING) {
        log_line(user, level, line);
    }
}

/* What was picked for this processor. */
static void print_kernels(const struct drllm_model *model) {
    struct drllm_model_info info;
    char features[256];
    drllm_model_get_info(model, &info);
    drllm_cpu_format(info.cpu_features, features, sizeof features);
    fprintf(stderr, "drllm: CPU features %s; kernels %s, of the output head %s\n", features, info.backend,
            info.head_backend);
}

static int open_with(const struct command *command, const struct model_options *options, bool vocab_only,
                     struct drllm_model **model) {
    struct drllm_error error = {0};
    struct drllm_model_params params = drllm_model_default_params();
    if (options->path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    if (drllm_cpu_mask_parse(options->cpu_mask, &params.cpu_mask, &error) != DRLLM_OK) {
        return usage_error(command, "--cpu-mask: %s", error.detail);
    }
    const int exit_code = use_processors(command, options);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    params.compute = (enum drllm_compute)options->compute;
    params.head = (enum drllm_head)options->head;
    params.load_threads = (unsigned)options->threads;
    params.vocab_only = vocab_only;
    params.log = (struct drllm_log){options->verbose ? log_line : log_warning, NULL};
    const int status = drllm_model_open_path(options->path, &params, model, &error);
    if (status == DRLLM_OK && options->verbose && !vocab_only) {
        print_kernels(*model);
    }
    return status == DRLLM_OK ? TOOL_OK : report_status(command, "cannot open model", status, error.detail);
}

int open_model(const struct command *command, const struct model_options *options, struct drllm_model **model) {
    return open_with(command, options, false, model);
}

int open_vocabulary(const struct command *command, const struct model_options *options, struct drllm_model **model) {
    return open_with(command, options, true, model);
}

int open_session_params(const struct command *command, const struct drllm_model *model,
                        const struct drllm_session_params *params, struct drllm_session **session) {
    struct drllm_error error = {0};
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupt, &before);
    const int status = drllm_session_open(model, params, session, &error);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status == DRLLM_OK ? TOOL_OK : report_status(command, "cannot open a session", status, error.detail);
}

int open_session(const struct command *command, const struct drllm_model *model, size_t n_context, unsigned n_threads,
                 int kv, struct drllm_session **session) {
    struct drllm_session_params params = drllm_session_default_params();
    params.kv_type = (enum drllm_kv_type)kv;
    params.n_context = n_context;
    params.n_threads = n_threads;
    return open_session_params(command, model, &params, session);
}

int session_error(const struct command *command, const struct drllm_session *session, const char *what, int status) {
    if (status == DRLLM_ERR_CANCELLED) {
        return TOOL_INTERRUPTED;
    }
    return report_status(command, what, status, drllm_session_last_error(session));
}

/* ---- Tokens ---- */

static void tokens_reserve(struct tokens *tokens, size_t count) {
    if (count > tokens->capacity) {
        tokens->capacity = count > 2 * tokens->capacity ? count : 2 * tokens->capacity;
        tokens->ids = reallocate(tokens->ids, tokens->capacity, sizeof *tokens->ids);
    }
}

void tokens_add(struct tokens *tokens, int32_t id) {
    tokens_reserve(tokens, tokens->count + 1);
    tokens->ids[tokens->count++] = id;
}

void tokens_release(struct tokens *tokens) {
    free(tokens->ids);
    *tokens = (struct tokens){NULL, 0, 0};
}

int tokenize(const struct command *command, const struct drllm_model *model, const char *text, size_t size,
             unsigned flags, struct tokens *tokens) {
    struct drllm_error error = {0};
    tokens_reserve(tokens, size / 3 + 8);
    for (;;) {
        size_t needed = 0;
        const int status = drllm_tokenize(model, text, size, flags, tokens->ids, tokens->capacity, &needed, &error);
        if (status == DRLLM_OK) {
            tokens->count = needed;
            return TOOL_OK;
        }
        if (status != DRLLM_ERR_BUFFER || needed <= tokens->capacity) {
            return report_status(command, "cannot tokenise", status, error.detail);
        }
        tokens_reserve(tokens, needed);
    }
}

int parse_tokens(const struct command *command, const struct drllm_model *model, const char *text, size_t size,
                 struct tokens *tokens) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    tokens->count = 0;
    size_t i = 0;
    while (i < size) {
        if (strchr(" \t\r\n,[]", text[i]) != NULL && text[i] != '\0') {
            i++;
            continue;
        }
        char word[24];
        size_t n = 0;
        while (i < size && strchr(" \t\r\n,[]", text[i]) == NULL && n + 1 < sizeof word) {
            word[n++] = text[i++];
        }
        word[n] = '\0';
        int64_t id;
        if (!parse_integer(word, &id) || id < 0 || (uint64_t)id >= info.n_vocab) {
            report(command, "'%s' is not a token id from 0 to %zu", word, info.n_vocab - 1);
            return TOOL_FAILED;
        }
        tokens_add(tokens, (int32_t)id);
    }
    return TOOL_OK;
}

void append_token_text(const struct drllm_model *model, int32_t token, struct text *text) {
    char small[64];
    size_t size = 0;
    const int status = drllm_token_bytes(model, token, true, small, sizeof small, &size);
    if (status == DRLLM_OK) {
        text_append(text, small, size);
    } else if (status == DRLLM_ERR_BUFFER) {
        char *large = allocate_bytes(size);
        if (drllm_token_bytes(model, token, true, large, size, &size) == DRLLM_OK) {
            text_append(text, large, size);
        }
        free(large);
    }
}

int format_chat(const struct command *command, const struct drllm_model *model,
                const struct drllm_chat_message *messages, size_t n_messages, struct text *text) {
    struct drllm_error error = {0};
    size_t size = 0;
    int status = drllm_chat_format(model, messages, n_messages, true, NULL, 0, &size, &error);
    if (status == DRLLM_ERR_BUFFER) {
        text_release(text);
        *text = (struct text){allocate_bytes(size + 1), size, size + 1};
        status = drllm_chat_format(model, messages, n_messages, true, text->data, size, &size, &error);
        text->data[size] = '\0';
    }
    return status == DRLLM_OK ? TOOL_OK
                              : report_status(command, "cannot write the prompt as a chat", status, error.detail);
}

/* ---- Numbers ---- */

double milliseconds(uint64_t ns) {
    return (double)ns / 1e6;
}

double per_second(double count, uint64_t ns) {
    return ns == 0 ? 0.0 : count * 1e9 / (double)ns;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *samples, size_t n) {
    qsort(samples, n, sizeof *samples, compare_doubles);
    return n % 2 == 1 ? samples[n / 2] : (samples[n / 2 - 1] + samples[n / 2]) / 2;
}

uint64_t choose_seed(int64_t asked) {
    if (asked >= 0) {
        return (uint64_t)asked;
    }
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
        seed = (uint64_t)time(NULL);
    }
    return seed >> 11; /* JSON numbers are exact up to 2^53, and a seed that is printed must work again */
}

const char *format_bytes(double bytes, char text[16]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t unit = 0;
    while (bytes >= 999.95 && unit + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1000;
        unit++;
    }
    snprintf(text, 16, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return text;
}

uint64_t peak_memory_bytes(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0; /* Linux counts KiB */
}
