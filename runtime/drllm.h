/* drllm: an int4/int8 runtime for Llama models.
 *
 * This header needs no operating system: models are in memory. Paths, descriptors and core counts are in drllm_os.h.
 *
 * Conventions
 * - Functions that can fail return DRLLM_OK (0) or a negative enum drllm_status. Those with a `struct drllm_error *`
 *   fill it in as well, when it is not NULL, with a sentence that says what is wrong and what to do. On failure no
 *   output is changed unless its comment says so. The library never prints, aborts or exits.
 * - Structs of parameters come from their defaults function and are then changed field by field; never zero them
 *   yourself.
 * - A model may be used from any number of threads and sessions at once. A session, and a sampler, belong to one
 *   thread at a time; drllm_session_cancel alone may be called from any other.
 * - A NULL model or session is DRLLM_ERR_ARGUMENT where a status is returned; the functions that return something
 *   else need one. A session's error text is that of its last failure until a prefill or a reset clears it.
 * - Token ids are int32_t in [0, n_vocab). Text is UTF-8 with a length in bytes; it may hold zero bytes and need not
 *   end with one. Sizes and counts are size_t.
 * - Buffer functions (tokenise, chat format, ...) always set the needed size and return DRLLM_ERR_BUFFER if the
 *   capacity is less, so that a first call with capacity 0 (and a NULL buffer) asks for the size. */
#ifndef DRLLM_H
#define DRLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Errors, log, memory ---------------------------------------------------------------------------------------- */

/* The numbers are pinned: they never change their meaning. */
enum drllm_status {
    DRLLM_OK = 0,
    DRLLM_ERR_ARGUMENT = -1,     /* the caller passed something out of range, or NULL */
    DRLLM_ERR_MEMORY = -2,       /* an allocation failed; everything is as it was before the call */
    DRLLM_ERR_IO = -3,           /* the system could not open, map or read */
    DRLLM_ERR_FORMAT = -4,       /* not a GGUF file, damaged or truncated */
    DRLLM_ERR_UNSUPPORTED = -5,  /* a sound file that needs what this library does not have; the detail names it */
    DRLLM_ERR_CONTEXT_FULL = -6, /* the tokens do not fit into the session's context */
    DRLLM_ERR_CANCELLED = -7,    /* drllm_session_cancel was called */
    DRLLM_ERR_STATE = -8,        /* the call makes no sense now: logits before a prefill, closing a model in use */
    DRLLM_ERR_BUFFER = -9,       /* the caller's buffer is too small; the needed size is set */
    DRLLM_ERR_SYSTEM = -10       /* threads or XNNPACK could not be set up or run */
};

/* A short English name for a status, "unknown status" for any other number. Static storage, thread-safe. */
const char *drllm_strerror(int status);

struct drllm_error {
    int status;       /* enum drllm_status */
    char detail[508]; /* zero-terminated, cut if need be; empty when there is nothing to add */
};

enum drllm_log_level { DRLLM_LOG_INFO = 0, DRLLM_LOG_WARNING = 1 };

/* Called with one line, without newline, from the thread that called the library. NULL write: no log. */
struct drllm_log {
    void (*write)(void *user, enum drllm_log_level level, const char *line);
    void *user;
};

/* All memory of models and sessions comes from here, except what XNNPACK and the thread pool allocate for
 * themselves. allocate: `size` bytes aligned to `alignment` (a power of two up to 64), or NULL; size is never 0.
 * The packed weights of a GGUF file are one request; huge pages are worth a fifth of the decoding speed there.
 * Both functions may be called from any thread that calls the library. */
struct drllm_allocator {
    void *(*allocate)(void *user, size_t size, size_t alignment);
    void (*release)(void *user, void *memory, size_t size); /* size as it was allocated; memory is never NULL */
    void *user;
};

/* ---- Models ----------------------------------------------------------------------------------------------------- */

struct drllm_model;

enum drllm_compute {
    DRLLM_COMPUTE_EXACT = 0,   /* the products are faithful to the file's formats, on this library's kernels */
    DRLLM_COMPUTE_XNNPACK = 1, /* the whole network on XNNPACK: int8 per channel, or int4 for 4-bit files; less exact */
    DRLLM_COMPUTE_F32 = 2      /* weights dequantised to float: slow and large, the reference for tests */
};

enum drllm_head {
    DRLLM_HEAD_AUTO = 0, /* what the table in runtime/choice.c says for this format and processor */
    DRLLM_HEAD_FILE = 1, /* the output head in the file's own format */
    DRLLM_HEAD_Q8C = 2   /* int8 per output channel, made at load */
};

struct drllm_model_params {
    struct drllm_allocator allocator; /* default: the platform's aligned allocator */
    struct drllm_log log;             /* default: none */
    uint64_t cpu_mask; /* CPU features that may be used (drllm_cpu_mask_parse in drllm_os.h); default: all. With XNNPACK
                                         in use the mask of the first such model holds for the process, and another is
                                         DRLLM_ERR_STATE */
    enum drllm_compute compute;
    enum drllm_head head;
    bool vocab_only;       /* read the vocabulary and metadata only; no sessions */
    bool verify;           /* of a packed model, check the weights against their checksum, which reads all of them */
    unsigned load_threads; /* threads that interleave the weights; 0: as many as a session would use */
    uint64_t reserved[8];  /* zero */
};
struct drllm_model_params drllm_model_default_params(void);

/* Read a model that lies at data[0 .. size): a GGUF file (version 2 or 3, architecture llama), or a packed model, which
 * `drllm pack` makes of one and which opens without copying or converting anything. The bytes must stay in place and
 * unchanged until the model is closed: embedding rows and the vocabulary are used where they are, and of a packed model
 * the weights as well. data is a multiple of 4 (of 64 for the best speed of a packed model). params NULL: the defaults.
 *
 * A packed model runs with DRLLM_COMPUTE_EXACT and without DRLLM_HEAD_Q8C only (UNSUPPORTED otherwise), and then gives the
 * same bits as the GGUF file. All of it but the weights and the routers is checked against checksums here.
 *
 * Errors: ARGUMENT, MEMORY, FORMAT, UNSUPPORTED (such as a packed model of another version), STATE, SYSTEM. */
int drllm_model_open_memory(const void *data, size_t size, const struct drllm_model_params *params,
                            struct drllm_model **model, struct drllm_error *error);

/* DRLLM_ERR_STATE, and nothing happens, while sessions or routers of the model are open. NULL is allowed. */
int drllm_model_close(struct drllm_model *model);

enum drllm_chat_template {
    DRLLM_CHAT_NONE = 0,    /* the file has no template */
    DRLLM_CHAT_UNKNOWN = 1, /* it has one that is none of the following */
    DRLLM_CHAT_CHATML = 2,
    DRLLM_CHAT_LLAMA2 = 3,
    DRLLM_CHAT_LLAMA3 = 4,
    DRLLM_CHAT_ZEPHYR = 5
};

struct drllm_model_info {
    const char *name;         /* general.name, or "" ; zero-terminated, the model's */
    const char *quantization; /* the format of most weights, "q4_1"; "" for a vocabulary */
    size_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_vocab;
    size_t n_context_trained;
    uint64_t n_params;
    uint64_t weight_bytes;        /* that one token reads: the packed matrices of all blocks and of the head */
    uint64_t head_bytes;          /* of them the head's */
    int32_t bos_token, eos_token; /* -1: the vocabulary has none */
    bool add_bos;                 /* texts begin with the BOS token */
    enum drllm_chat_template chat_template;
    uint64_t cpu_features;   /* in use: detected and not masked */
    const char *backend;     /* of the blocks' products, "avx2" or "xnnpack" */
    const char *head_format; /* what the output head runs in, "q8_0" */
    const char *head_backend;
    uint64_t reserved[8];
};
void drllm_model_get_info(const struct drllm_model *model, struct drllm_model_info *info);

/* ---- Text ------------------------------------------------------------------------------------------------------- */

enum {
    DRLLM_TOKENIZE_BOS = 1,    /* put the BOS token first if the model wants one (add_bos) */
    DRLLM_TOKENIZE_SPECIAL = 2 /* text such as <|im_start|> becomes the special token; otherwise it is plain text */
};

/* Text to ids. Any bytes are accepted; invalid UTF-8 is kept by byte tokens where the vocabulary has them and becomes
 * U+FFFD or the unknown token where it has not. Errors: ARGUMENT, MEMORY, BUFFER. */
int drllm_tokenize(const struct drllm_model *model, const char *text, size_t size, unsigned flags, int32_t *tokens,
                   size_t capacity, size_t *n_tokens, struct drllm_error *error);

/* The bytes of one token; a piece may be part of a character. Control tokens give no bytes unless `special` is true.
 * Errors: ARGUMENT, BUFFER. */
int drllm_token_bytes(const struct drllm_model *model, int32_t token, bool special, char *bytes, size_t capacity,
                      size_t *size);

/* Ids to text: the bytes of all tokens, and for SentencePiece vocabularies without the space that tokenising put in
 * front. Errors: ARGUMENT, BUFFER. */
int drllm_detokenize(const struct drllm_model *model, const int32_t *tokens, size_t n_tokens, bool special, char *text,
                     size_t capacity, size_t *size);

/* True for the tokens that end an answer (EOS, EOT, <|im_end|>, ...). */
bool drllm_token_is_end(const struct drllm_model *model, int32_t token);

struct drllm_chat_message {
    const char *role; /* "system", "user" or "assistant" */
    const char *content;
};

/* The conversation as the model was trained to read it, with the opening of the assistant's answer if add_assistant.
 * A missing system message is treated as the model's template does. Tokenise the result with DRLLM_TOKENIZE_SPECIAL and
 * DRLLM_TOKENIZE_BOS. Errors: UNSUPPORTED (no template, or one that is not recognised), ARGUMENT (a role), BUFFER. */
int drllm_chat_format(const struct drllm_model *model, const struct drllm_chat_message *messages, size_t n_messages,
                      bool add_assistant, char *text, size_t capacity, size_t *size, struct drllm_error *error);

/* ---- Layer programs --------------------------------------------------------------------------------------------- */

/* A program says how often each block runs: uint8_t counts[n_layers], where 0 skips the block, 1 executes it and 2
 * executes it twice in a row. All ones is full depth; all zeros hands the embedding straight to the output head. Every
 * execution has its own keys and values in the cache.
 *
 * As text it names the blocks that run, in rising order: "0-9,11-14,15x2,16-29"; "none" if none does. */

/* Strict: rising blocks below n_layers, no blanks, no suffix but x2. "" is read as "none". Errors: ARGUMENT, and
 * counts[n_layers] is unchanged. */
int drllm_program_parse(const char *text, size_t n_layers, uint8_t *counts, struct drllm_error *error);

/* The shortest text: neighbours of equal count are one range. It is zero-terminated, and *size includes the zero;
 * 8 bytes a block suffice up to 999 blocks. Errors: ARGUMENT (a count above 2), BUFFER. */
int drllm_program_format(const uint8_t *counts, size_t n_layers, char *text, size_t capacity, size_t *size);

/* ---- Routers ---------------------------------------------------------------------------------------------------- */

/* A set of routers, one ahead of each block (Dr.LLM, arXiv 2510.12773): from the hidden states of the prompt there,
 * averaged over W = min(8, T) windows of floor(T / W) tokens, a small network says skip, execute or repeat.
 * Immutable and shared like a model: any number of sessions and threads. */
struct drllm_routers;

/* Read a router file (a GGUF file of its own, see runtime/router_file.h), or the one inside a packed model, that lies
 * at data[0 .. size); the bytes are not needed afterwards. The weights run as int8, on XNNPACK where it is built in
 * and works, otherwise on this library's kernels; with DRLLM_COMPUTE_F32 they run as floats. Errors: FORMAT (damaged,
 * NaN weights, no router file), UNSUPPORTED, ARGUMENT (made for another model), MEMORY. A file for another
 * quantisation of the model, or one that does not say which model it is for but has its shapes, is opened with a
 * warning to the model's log. */
int drllm_routers_open_memory(const struct drllm_model *model, const void *data, size_t size,
                              struct drllm_routers **routers, struct drllm_error *error);

/* The same for the routers that came with the model, in its packed file; STATE if there are none. */
int drllm_routers_open_packed(const struct drllm_model *model, struct drllm_routers **routers,
                              struct drllm_error *error);

/* DRLLM_ERR_STATE, and nothing happens, while a session uses them. They must be closed before their model. NULL is
 * allowed. */
int drllm_routers_close(struct drllm_routers *routers);

struct drllm_routers_info {
    const char *name;               /* zero-terminated, the routers'; "" where the file says nothing */
    const char *model_name;         /* of the model that they were trained with */
    const char *model_quantization; /* of its weights then, "q4_1" */
    const char *training;           /* the record of the training, a JSON object */
    const char *backend;            /* of the products, "xnnpack" */
    size_t n_windows, n_hidden;
    size_t weight_bytes;
    bool names_model;              /* the file holds a fingerprint, which is this model's */
    size_t n_calibration;          /* rows of the table for save_layers; 0: there is none */
    float least_saved, most_saved; /* mean layers saved at its ends */
    uint64_t reserved[8];
};
void drllm_routers_get_info(const struct drllm_routers *routers, struct drllm_routers_info *info);

/* ---- Sessions --------------------------------------------------------------------------------------------------- */

struct drllm_session;

/* How a session keeps keys and values. A model that computes in F32 keeps them in F32 whatever is asked for. */
enum drllm_kv_type {
    DRLLM_KV_F16 = 0,
    /* int8 with a scale for each key and each value of a head, multiplied as integers: 140/256 of the
     * memory of F16 with heads of 64 dimensions. Needs heads of a multiple of 32, at most 256. */
    DRLLM_KV_Q8_0 = 1
};

struct drllm_session_params {
    size_t n_context;   /* most tokens that the session holds; default 2048; 0: what the model was trained for */
    unsigned n_threads; /* default 0: one per fast core that the process may use */
    enum drllm_kv_type kv_type; /* default DRLLM_KV_F16 */
    size_t n_chunk;             /* tokens that one pass through a block takes at once; default 0: chosen by size */
    /* Most executions that have keys and values, at least n_layers; default 0: no limit. A repeat becomes an execution
     * where it would leave fewer slots than there are blocks to come. */
    size_t n_slots;
    uint64_t reserved[7];
};
struct drllm_session_params drllm_session_default_params(void);

/* A session is a context (the tokens so far and their keys and values), scratch memory and worker threads. The cache
 * grows as tokens come. Errors: ARGUMENT, MEMORY, STATE (a vocabulary has no sessions), SYSTEM, UNSUPPORTED (kv_type does
 * not suit the model's heads). */
int drllm_session_open(const struct drllm_model *model, const struct drllm_session_params *params,
                       struct drllm_session **session, struct drllm_error *error);
void drllm_session_close(struct drllm_session *session); /* NULL is allowed */

/* The sentence about the last call on this session that failed; "" when none did since the last prefill that succeeded.
 * Valid until the next call. */
const char *drllm_session_last_error(const struct drllm_session *session);

/* Append n_tokens >= 1 tokens, a prompt or a turn of a conversation, and compute them; afterwards the logits of the last
 * one are there. The depth (drllm_session_set_depth) decides which blocks run. When it fails (ARGUMENT: an id out of
 * range; CONTEXT_FULL; MEMORY; CANCELLED; SYSTEM) the context is as long as before, under the program that it had; what
 * was lost of its keys and values is computed again by the next call. */
int drllm_session_prefill(struct drllm_session *session, const int32_t *tokens, size_t n_tokens);

/* Append one token and compute it under the program of the context; the step of a generation. In an empty context it is
 * a prefill. */
int drllm_session_decode(struct drllm_session *session, int32_t token);

/* float[n_vocab], the last token's; the session's memory, valid until the next call. NULL before the first prefill and
 * after reset, an error, or a rewind to fewer tokens. */
const float *drllm_session_logits(const struct drllm_session *session);

/* Tokens in the context, and the ids themselves (valid until the next call). */
size_t drllm_session_n_tokens(const struct drllm_session *session);
const int32_t *drllm_session_tokens(const struct drllm_session *session);

/* Forget all tokens but the first n_tokens (keeps memory). ARGUMENT if there are fewer. */
int drllm_session_rewind(struct drllm_session *session, size_t n_tokens);
/* Forget everything, errors, timings and a pending cancel included; the depth stays. */
void drllm_session_reset(struct drllm_session *session);

/* Make the running call, or the next one if none runs, return DRLLM_ERR_CANCELLED soon (within one chunk of one block).
 * Safe from any thread and from a signal handler. One cancel ends one call. */
void drllm_session_cancel(struct drllm_session *session);

struct drllm_timings {
    uint64_t n_prefill, n_decode; /* tokens computed in calls of several tokens, of one token */
    uint64_t prefill_ns, decode_ns;
    uint64_t kv_bytes;  /* allocated for keys and values now */
    uint64_t router_ns; /* of prefill_ns (and of decode_ns), spent on deciding */
    uint64_t reserved[7];
};
void drllm_session_get_timings(const struct drllm_session *session, struct drllm_timings *timings);

/* ---- Depth ------------------------------------------------------------------------------------------------------ */

enum drllm_depth_kind {
    DRLLM_DEPTH_FULL = 0,   /* every block once; the default */
    DRLLM_DEPTH_STATIC = 1, /* a given program */
    DRLLM_DEPTH_ROUTED = 2  /* routers decide for each prompt */
};

enum drllm_reroute {
    DRLLM_REROUTE_TURN = 0, /* each prefill decides again, over all tokens so far and the new ones */
    DRLLM_REROUTE_NEVER =
        1 /* the program that an empty context got, by whatever depth, holds until it is empty again */
};

struct drllm_depth {
    enum drllm_depth_kind kind;
    const uint8_t *program;              /* STATIC: counts[n_layers], copied */
    const struct drllm_routers *routers; /* ROUTED: for the session's model; used until another depth is set */
    /* ROUTED, at most one of the two:
     * The knob of the paper, in [-1, 1]; default -0.5, the routers alone. Below, probabilities move from always-skip
     * at -1 to the routers' own; above, to always-execute at 0.5 and on to always-repeat at 1. */
    float router_p;
    /* Layers to save on average, at least 0; default -1 (any number below 0): off. Looked up in the file's calibration table, so that more
     * asked is never less saved on the questions that the table was measured on. */
    float save_layers;
    /* Neither lets the first or the last block be skipped that its router would run. */
    enum drllm_reroute reroute;
    uint64_t reserved[8];
};
struct drllm_depth drllm_depth_default(void);

/* How deep the next prefill runs. The tokens in the context keep their program until then; if the next prefill comes
 * to another one, it computes them again under it, in the same pass. Errors: ARGUMENT (a count above 2, routers of
 * another model, a budget out of range), STATE (save_layers without a table in the file), MEMORY, SYSTEM; the depth is
 * then as before. */
int drllm_session_set_depth(struct drllm_session *session, const struct drllm_depth *depth);

/* The program of the tokens in the context: counts[n_layers]. STATE while there are none. */
int drllm_session_get_program(const struct drllm_session *session, uint8_t *counts);

struct drllm_decision {
    uint8_t count;   /* as in the program */
    float logits[3]; /* of the router: skip, execute, repeat, averaged over the windows */
    /* ln(p(chosen) / p(the next likely)) after the budget, INFINITY where the budget leaves no choice */
    float margin;
};
/* What the routers decided for the tokens in the context: decisions[n_layers]. Logits and margins are 0 where the
 * program was given. STATE while there are no tokens. */
int drllm_session_get_decisions(const struct drllm_session *session, struct drllm_decision *decisions);

/* Blocks that a pass saves: n_layers less the executions; negative if more are repeated than skipped. STATE while there
 * are no tokens. */
int drllm_session_get_layers_saved(const struct drllm_session *session, int *saved);

/* ---- Sampling and generation ------------------------------------------------------------------------------------ */

struct drllm_sampler_params {
    float temperature;    /* default 0.8; 0: the likeliest token; range [0, 100] */
    size_t top_k;         /* default 40; 0: off */
    float top_p;          /* default 0.95; (0, 1], 1: off */
    float min_p;          /* default 0.05; [0, 1), 0: off. Keeps p >= min_p * the largest p */
    float repeat_penalty; /* default 1: off; > 0. Divides positive logits of recent tokens, multiplies negative ones */
    size_t repeat_last_n; /* default 64 tokens that the penalty looks at */
    uint64_t seed;        /* default 0. The same seed, model and prompt give the same text on every machine */
    uint64_t reserved[8];
};
struct drllm_sampler_params drllm_sampler_default_params(void);

/* A sampler is its parameters and the state of its random numbers; it owns nothing. */
struct drllm_sampler {
    struct drllm_sampler_params params;
    uint64_t random[4];
};
/* ARGUMENT when a parameter is out of its range or NaN. */
int drllm_sampler_init(struct drllm_sampler *sampler, const struct drllm_sampler_params *params,
                       struct drllm_error *error);

/* Choose a token from the session's logits: penalty, top-k, top-p, min-p, then temperature (the order of llama.cpp's
 * defaults). STATE without logits. The token is not appended. */
int drllm_session_sample(struct drllm_session *session, struct drllm_sampler *sampler, int32_t *token);

enum drllm_stop_reason {
    DRLLM_STOP_MAX_TOKENS = 0,
    DRLLM_STOP_END = 1,    /* the model ended its answer */
    DRLLM_STOP_STRING = 2, /* a stop string came; it is not part of the text */
    DRLLM_STOP_CALLBACK = 3,
    DRLLM_STOP_CONTEXT = 4 /* the context is full */
};

struct drllm_generate_params {
    size_t max_tokens;       /* default 128 */
    const char *const *stop; /* default none: zero-terminated strings */
    size_t n_stop;
    bool ignore_end; /* default false: go on after an end token */
    /* Called with whole characters of text (size bytes, not terminated; size may be 0 for a token that ended none),
     * and the token that completed them; text that was held back comes at the end, with the last token once more.
     * True goes on, false stops. NULL: no call. */
    bool (*on_text)(void *user, int32_t token, const char *text, size_t size);
    void *user;
    uint64_t reserved[8];
};
struct drllm_generate_params drllm_generate_default_params(void);

struct drllm_generation {
    enum drllm_stop_reason reason;
    size_t n_tokens; /* sampled, the end token included */
    int32_t token;   /* the last of them; -1: none */
};

/* Sample, report, decode, until something of the above stops it. Needs logits (STATE), so call prefill first. Text
 * that might be the beginning of a stop string is held back until it is clear; a whole one stops at once. A cut
 * character at the end comes out as U+FFFD. The context then holds the prompt and the sampled tokens, but for the
 * last one when nothing had to be computed after it. result may be NULL. On CANCELLED, MEMORY or SYSTEM the text so
 * far has been reported and result is set. */
int drllm_session_generate(struct drllm_session *session, struct drllm_sampler *sampler,
                           const struct drllm_generate_params *params, struct drllm_generation *result);

/* ---- Scoring ---------------------------------------------------------------------------------------------------- */

struct drllm_choice {
    const int32_t *tokens;
    size_t n_tokens; /* >= 1 */
    double log_prob; /* out: sum of ln p(token | prompt, choice so far) */
};

/* How likely each choice is after the prompt. The context must be empty (STATE otherwise); the prompt is computed and
 * routed once, all choices run under its program, and it is all that the context holds afterwards, with its logits. Errors as for prefill; log_prob is then
 * unspecified. */
int drllm_session_score(struct drllm_session *session, const int32_t *prompt, size_t n_prompt,
                        struct drllm_choice *choices, size_t n_choices);

#ifdef __cplusplus
}
#endif

#endif
