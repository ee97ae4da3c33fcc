/* What the subcommands share: messages, memory, models and sessions from the common options, token ids. */
#ifndef DRLLM_TOOLS_COMMON_H
#define DRLLM_TOOLS_COMMON_H

#include "runtime/drllm.h"
#include "tools/options.h"

#include <stdio.h>

/* ---- Messages, on stderr as "drllm run: ..." ---- */

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

void report(const struct command *command, const char *format, ...) PRINTF_LIKE(2, 3);
/* The message and where to find help. Returns TOOL_USAGE. */
int usage_error(const struct command *command, const char *format, ...) PRINTF_LIKE(2, 3);
/* "what: detail (status name)"; detail may be empty or NULL. Returns TOOL_FAILED. */
int report_status(const struct command *command, const char *what, int status, const char *detail);
/* Flush stdout; a message and TOOL_FAILED if anything written to it is lost. */
int flush_output(const struct command *command);
/* Whether a terminal reads this stream and wants colours. */
bool wants_colour(FILE *stream);
/* With '?' for what a terminal would act on. */
void print_plain(FILE *stream, const char *text, size_t size);
/* In double quotes, with C escapes for what a terminal would act on. */
void print_quoted(FILE *stream, const char *text, size_t size);

/* ---- Memory; there is nothing sensible to do without it, so these end the program with a message ---- */

void *allocate(size_t count, size_t size); /* never NULL */
void *reallocate(void *memory, size_t count, size_t size);
void *allocate_bytes(size_t size);
char *copy_text(const char *text); /* of a zero-terminated text, to be freed */

/* Characters of a zero-terminated text in UTF-8. */
size_t count_characters(const char *text);

/* A growing array of bytes; data is NULL or zero-terminated. */
struct text {
    char *data;
    size_t size;
    size_t capacity;
};
void text_append(struct text *text, const char *data, size_t size);
void text_release(struct text *text);

/* ---- Models and sessions ---- */

struct model_options {
    const char *path;
    const char *cpu_mask;
    const char *cpu_list; /* processors; NULL: all, or the fast ones (processors.h) */
    int64_t priority;     /* the nice value; 0: as it was */
    int compute;          /* enum drllm_compute */
    int head;             /* enum drllm_head */
    int kv;               /* enum drllm_kv_type */
    int64_t threads;
    int64_t context;
    bool verbose;
};
struct model_options model_options_default(void);

extern const char *const compute_names[]; /* exact, xnnpack, f32 */
extern const char *const head_names[];    /* auto, file, q8c */
extern const char *const kv_names[];      /* f16, q8_0 */

#define MODEL_FILE_OPTION(o) OPT_TEXT('m', "model", &(o)->path, "FILE", "the model, a GGUF file")
#define VERBOSE_OPTION(o) OPT_FLAG('v', "verbose", &(o)->verbose, "say on stderr what the library reports")
#define CONTEXT_OPTION(o) \
    OPT_INTEGER('c', "ctx-size", &(o)->context, "N", 0, 1 << 30, "most tokens in the context; 0: as trained")
#define THREADS_OPTION(o) OPT_INTEGER('t', "threads", &(o)->threads, "N", 0, 1024, "threads; 0: one per free fast core")
#define KV_OPTION(o) OPT_WORD(0, "kv", &(o)->kv, kv_names, "format of the cache of keys and values")
/* How it is computed; every subcommand that computes takes these. */
#define COMPUTE_OPTIONS(o)                                                                                           \
    OPT_WORD(0, "compute", &(o)->compute, compute_names, "kernels: exact to the file, XNNPACK, or floats"),          \
        OPT_WORD(0, "head", &(o)->head, head_names, "format of the output head"), KV_OPTION(o),                      \
        OPT_TEXT(0, "cpu-mask", &(o)->cpu_mask, "LIST", "CPU features that may be used: all, none, avx2,f16c, ..."), \
        OPT_TEXT(0, "cpu-list", &(o)->cpu_list, "LIST", "processors to run on: 0-3,6; else all, or the fast ones"),  \
        OPT_INTEGER(0, "prio", &(o)->priority, "N", -20, 19, "nice value: 19 lets others go first; 0: as it is"),    \
        VERBOSE_OPTION(o)

/* Each returns an exit code, after a message if it is not TOOL_OK. */
int open_model(const struct command *command, const struct model_options *options, struct drllm_model **model);
int open_vocabulary(const struct command *command, const struct model_options *options, struct drllm_model **model);
/* kv: enum drllm_kv_type */
int open_session(const struct command *command, const struct drllm_model *model, size_t n_context, unsigned n_threads,
                 int kv, struct drllm_session **session);
/* drllm_session_open for drllm_session_params in general, with SIGINT kept from the session's threads (see
 * interrupt.h). */
int open_session_params(const struct command *command, const struct drllm_model *model,
                        const struct drllm_session_params *params, struct drllm_session **session);
/* Report a failed call on a session. Returns the exit code: TOOL_INTERRUPTED, without a message, for a cancelled
 * one. */
int session_error(const struct command *command, const struct drllm_session *session, const char *what, int status);

/* ---- Tokens ---- */

struct tokens {
    int32_t *ids;
    size_t count;
    size_t capacity;
};
void tokens_add(struct tokens *tokens, int32_t id);
void tokens_release(struct tokens *tokens);
/* flags as for drllm_tokenize; replaces what tokens held. */
int tokenize(const struct command *command, const struct drllm_model *model, const char *text, size_t size,
             unsigned flags, struct tokens *tokens);
/* Whole numbers apart by blanks or commas, in square brackets or not, each a token of the model. */
int parse_tokens(const struct command *command, const struct drllm_model *model, const char *text, size_t size,
                 struct tokens *tokens);
/* The text of one token, special ones included. */
void append_token_text(const struct drllm_model *model, int32_t token, struct text *text);
/* The conversation in the model's template, as text. */
int format_chat(const struct command *command, const struct drllm_model *model,
                const struct drllm_chat_message *messages, size_t n_messages, struct text *text);

/* ---- Numbers ---- */

double milliseconds(uint64_t ns);
/* count a second; 0 when no time passed. */
double per_second(double count, uint64_t ns);
double median(double *samples, size_t n); /* sorts them; n >= 1 */
/* -1 asks for a new seed at each run. */
uint64_t choose_seed(int64_t asked);
/* "95.3 MB", decimal units, into text. */
const char *format_bytes(double bytes, char text[16]);
uint64_t peak_memory_bytes(void);

#endif
