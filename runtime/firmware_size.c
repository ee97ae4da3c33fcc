/* How much memory drllm_fw_open will need, before there is any: every allocation of runtime/ that it leads to, added up
 * from what the file says of itself.
 *
 * The arena takes the first hole that fits, and only otherwise more of itself. So what was ever in use at once is at most
 * the sum of all allocations, released ones included, except that what is released while it is the last takes nothing for
 * good. tests/test_firmware.c runs models in exactly this much. */
#include "runtime/choice.h"
#include "runtime/error.h"
#include "runtime/firmware.h"
#include "runtime/memory.h"
#include "runtime/packed_file.h"
#include "runtime/program.h"
#include "runtime/session.h"
#include "runtime/tokenizer_internal.h"
#include "runtime/weights.h"

#include <assert.h>
#include <string.h>

enum { PEEK_ENTRIES = 48 };

struct sum {
    size_t bytes;   /* what stays, or may not be filled again */
    size_t passing; /* the most that is in use for a while on top of the above, while a model is loaded */
    bool overflow;
};

static void add(struct sum *sum, size_t count, size_t size) {
    size_t bytes = 0;
    if (count == 0 || size == 0) {
        return;
    }
    if (!drllm_multiply(count, size, &bytes) || drllm_round_up(bytes) == SIZE_MAX ||
        !drllm_add_sizes(sum->bytes, drllm_round_up(bytes), &sum->bytes)) {
        sum->overflow = true;
    }
}

/* As drllm_keep: beside the memory there is an entry of a list. */
static void add_kept(struct sum *sum, size_t count, size_t size) {
    add(sum, 1, DRLLM_ALIGNMENT);
    add(sum, count, size);
}

/* What the file says that the sizes depend on. */
struct shape {
    struct drllm_config config;
    size_t name_bytes;
    size_t n_specials, longest; /* of the vocabulary */
    const void *routers;
    size_t routers_size;
};

static void count_token(struct shape *shape, uint32_t type, size_t size) {
    shape->n_specials += type == DRLLM_TOKEN_CONTROL || type == DRLLM_TOKEN_USER_DEFINED || type == DRLLM_TOKEN_UNKNOWN;
    shape->longest = size > shape->longest ? size : shape->longest;
}

static void add_model(struct sum *sum, const struct shape *shape) {
    add(sum, 1, sizeof(struct drllm_model));
    add(sum, 1, shape->name_bytes);
    add(sum, 1, sizeof(struct drllm_tokenizer));
    for (size_t i = 0; i < 3; i++) {
        add(sum, shape->n_specials, sizeof(int32_t));
    }
    add_kept(sum, shape->config.n_layers, sizeof(struct drllm_block_weights));
    add_kept(sum, shape->config.n_rot / 2, sizeof(double));
}

/* ---- Packed models ---- */

static int find(const struct drllm_packed_file *file, enum drllm_packed_kind kind, size_t least,
                struct drllm_error *error) {
    const int status = drllm_packed_check(file, kind, error);
    if (status != DRLLM_OK || file->sections[kind].size >= least) {
        return status;
    }
    return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: its section '%s' is too short",
                      drllm_packed_kind_name((uint32_t)kind));
}

static int read_packed(const void *model, size_t size, struct shape *shape, struct drllm_error *error) {
    struct drllm_packed_file file;
    struct drllm_packed_config packed;
    int status = drllm_packed_open(&file, model, size, error);
    if (status == DRLLM_OK) {
        status = find(&file, DRLLM_PACKED_CONFIG, sizeof packed, error);
    }
    if (status == DRLLM_OK) {
        status = find(&file, DRLLM_PACKED_TOKENS, sizeof(struct drllm_token_entry), error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    memcpy(&packed, file.sections[DRLLM_PACKED_CONFIG].data, sizeof packed);
    const uint64_t numbers[] = {packed.n_layers, packed.d_model,    packed.d_ff,
                                packed.n_heads,  packed.n_kv_heads, packed.head_dim,
                                packed.n_rot,    packed.n_vocab,    packed.n_context_trained};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (numbers[i] > UINT32_MAX) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: its shape is absurd");
        }
    }
    shape->config = (struct drllm_config){.n_layers = (size_t)packed.n_layers,
                                          .d_model = (size_t)packed.d_model,
                                          .d_ff = (size_t)packed.d_ff,
                                          .n_heads = (size_t)packed.n_heads,
                                          .n_kv_heads = (size_t)packed.n_kv_heads,
                                          .head_dim = (size_t)packed.head_dim,
                                          .n_rot = (size_t)packed.n_rot,
                                          .n_vocab = (size_t)packed.n_vocab,
                                          .n_context_trained = (size_t)packed.n_context_trained,
                                          .rms_eps = packed.rms_eps};
    shape->name_bytes = file.sections[DRLLM_PACKED_NAME].size + 1;
    shape->routers = file.sections[DRLLM_PACKED_ROUTERS].data;
    shape->routers_size = file.sections[DRLLM_PACKED_ROUTERS].size;
    const uint8_t *tokens = file.sections[DRLLM_PACKED_TOKENS].data;
    for (size_t i = 0; i < file.sections[DRLLM_PACKED_TOKENS].size / sizeof(struct drllm_token_entry); i++) {
        struct drllm_token_entry token;
        memcpy(&token, tokens + i * sizeof token, sizeof token);
        count_token(shape, token.type, token.size);
    }
    return drllm_config_check(&shape->config, error);
}

/* ---- GGUF files ---- */

static bool is_wanted(struct drllm_string key) {
    static const char *const beginnings[] = {"llama.",
                                             "general.name",
                                             "general.architecture",
                                             "tokenizer.ggml.tokens",
                                             "tokenizer.ggml.token_type",
                                             "tokenizer.ggml.merges",
                                             "drllm.router."};
    for (size_t i = 0; i < sizeof beginnings / sizeof beginnings[0]; i++) {
        const size_t size = strlen(beginnings[i]);
        if (key.size >= size && memcmp(key.data, beginnings[i], size) == 0) {
            return true;
        }
    }
    return false;
}

/* The tensors of a model, one after the other. */
struct tensors {
    struct sum *sum;
    size_t packed_bytes; /* of the matrices, which are one piece of memory */
    size_t head_bytes;   /* of the embedding, as long as it may be the head, too */
    bool has_head;
    uint64_t cpu_features;
};

static bool is_named(const struct drllm_gguf_tensor *tensor, const char *name) {
    return drllm_string_equals(tensor->name, name);
}

static bool ends_with(const struct drllm_gguf_tensor *tensor, const char *ending) {
    const size_t size = strlen(ending);
    return tensor->name.size >= size && memcmp(tensor->name.data + tensor->name.size - size, ending, size) == 0;
}

static void add_packed(struct tensors *tensors, size_t bytes) {
    if (!drllm_add_sizes(tensors->packed_bytes, bytes, &tensors->packed_bytes)) {
        tensors->sum->overflow = true;
    }
}

/* Matrices are interleaved, by way of one panel in another format where they are converted; vectors become floats. */
static void add_tensor(void *user, const struct drllm_gguf_tensor *tensor) {
    struct tensors *tensors = user;
    const enum drllm_format stored =
        tensor->type == (uint32_t)DRLLM_FORMAT_I8 ? DRLLM_FORMAT_Q8C : (enum drllm_format)tensor->type;
    const size_t cols = tensor->dims[0], rows = tensor->dims[1];
    struct drllm_choice_of_format choice;
    if (rows == 1 || ends_with(tensor, "_scale")) {
        add_kept(tensors->sum, cols, sizeof(float));
        return;
    }
    if (!drllm_choose_format(stored, cols, false, DRLLM_COMPUTE_EXACT, DRLLM_HEAD_FILE, tensors->cpu_features,
                             &choice)) {
        return; /* the open says so */
    }
    const size_t bytes = drllm_round_up(drllm_packed_bytes(choice.format, rows, cols));
    tensors->has_head = tensors->has_head || is_named(tensor, "output.weight");
    if (is_named(tensor, "token_embd.weight")) {
        tensors->head_bytes = bytes;
    } else {
        add_packed(tensors, bytes);
    }
    if (choice.format != stored) {
        const size_t passing = (DRLLM_PANEL_ROWS + cols) * sizeof(float) + DRLLM_PANEL_ROWS * cols * sizeof(float);
        tensors->sum->passing = passing > tensors->sum->passing ? passing : tensors->sum->passing;
    }
}

union peek_memory {
    struct drllm_gguf_entry entries[PEEK_ENTRIES + PEEK_ENTRIES / 8]; /* with room for their order behind them */
    uint64_t aligned;
};

static int peek(struct drllm_gguf *gguf, const void *data, size_t size, union peek_memory *memory,
                struct tensors *tensors, struct sum *sum, struct drllm_error *error) {
    struct drllm_gguf_peek peek = {.memory = memory,
                                   .bytes = sizeof *memory,
                                   .wanted = is_wanted,
                                   .tensor = tensors != NULL ? add_tensor : NULL,
                                   .user = tensors};
    const int status = drllm_gguf_open_peek(gguf, data, size, &peek, error);
    if (status == DRLLM_OK) {
        add(sum, 1, peek.table_bytes[0]);
        add(sum, 1, peek.table_bytes[1]);
    }
    return status;
}

static int read_gguf(const void *model, size_t size, uint64_t cpu_features, struct shape *shape, struct sum *sum,
                     struct drllm_error *error) {
    union peek_memory memory;
    struct drllm_gguf gguf;
    struct tensors tensors = {.sum = sum, .cpu_features = cpu_features};
    int status = peek(&gguf, model, size, &memory, &tensors, sum, error);
    if (status == DRLLM_OK) {
        status = drllm_config_check_architecture(&gguf, error);
    }
    if (status == DRLLM_OK) {
        status = drllm_config_read(&gguf, &shape->config, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    if (!tensors.has_head) {
        add_packed(&tensors, tensors.head_bytes);
    }
    add_kept(sum, tensors.packed_bytes, 1);
    struct drllm_string name = {"", 0}, text;
    (void)drllm_gguf_get_string(&gguf, "general.name", &name);
    shape->name_bytes = name.size + 1;
    const struct drllm_gguf_entry *texts = drllm_gguf_find(&gguf, "tokenizer.ggml.tokens");
    const struct drllm_gguf_entry *types = drllm_gguf_find(&gguf, "tokenizer.ggml.token_type");
    const struct drllm_gguf_entry *merges = drllm_gguf_find(&gguf, "tokenizer.ggml.merges");
    if (texts == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file has no vocabulary");
    }
    size_t position = 0;
    for (size_t id = 0; drllm_gguf_next_string(texts, &position, &text); id++) {
        uint32_t type = DRLLM_TOKEN_NORMAL;
        if (types != NULL && types->item_type == DRLLM_GGUF_I32 && id < types->count) {
            memcpy(&type, types->data + id * sizeof type, sizeof type);
        }
        count_token(shape, type, text.size);
    }
    shape->config.n_vocab = texts->count;
    add(sum, texts->count, sizeof(struct drllm_token_entry));
    add(sum, drllm_table_slots(texts->count), sizeof(struct drllm_text_slot));
    if (merges != NULL) {
        add(sum, drllm_table_slots(merges->count), sizeof(struct drllm_pair_slot));
    }
    return DRLLM_OK;
}

/* ---- Routers ---- */

/* Those of their own, which may be in a packed file, come before the model's. */
static int find_routers(const struct drllm_fw_params *params, struct shape *shape, struct drllm_error *error) {
    struct drllm_packed_file file;
    if (params->routers == NULL) {
        return DRLLM_OK;
    }
    shape->routers = params->routers;
    shape->routers_size = params->routers_size;
    if (!drllm_packed_is(params->routers, params->routers_size)) {
        return DRLLM_OK;
    }
    const int status = drllm_packed_open(&file, params->routers, params->routers_size, error);
    if (status == DRLLM_OK) {
        shape->routers = file.sections[DRLLM_PACKED_ROUTERS].data;
        shape->routers_size = file.sections[DRLLM_PACKED_ROUTERS].size;
    }
    return status;
}

static int add_routers(struct sum *sum, const struct shape *shape, const struct drllm_fw_params *params,
                       struct drllm_error *error) {
    static const char *const texts[] = {"general.name", "drllm.router.model.name", "drllm.router.model.quantization",
                                        "drllm.router.training"};
    const struct drllm_config *config = &shape->config;
    union peek_memory memory;
    struct drllm_gguf gguf;
    uint64_t n_hidden = 0, n_windows = 0;
    const int status = peek(&gguf, shape->routers, shape->routers_size, &memory, NULL, sum, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (!drllm_gguf_get_u64(&gguf, "drllm.router.hidden", &n_hidden) || n_hidden > DRLLM_ROUTER_MAX_HIDDEN ||
        !drllm_gguf_get_u64(&gguf, "drllm.router.windows", &n_windows) || n_windows > DRLLM_ROUTER_MAX_WINDOWS) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the router file's drllm.router.hidden or drllm.router.windows is missing or out of range");
    }
    const size_t hidden = (size_t)n_hidden, n_rows = (size_t)n_windows;
    const size_t widest = config->d_model > hidden ? config->d_model : hidden;
    add(sum, config->n_layers, DRLLM_ROUTER_MATRICES * sizeof(struct drllm_router_tensor));
    add(sum, 1, sizeof(struct drllm_routers));
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct drllm_string text = {"", 0};
        (void)drllm_gguf_get_string(&gguf, texts[i], &text);
        add_kept(sum, text.size + 1, 1);
    }
    const struct drllm_gguf_entry *bias = drllm_gguf_find(&gguf, "drllm.router.calibration.bias");
    add_kept(sum, bias != NULL ? bias->count : 0, sizeof(float));
    add_kept(sum, bias != NULL ? bias->count : 0, sizeof(float));
    add_kept(sum, config->n_layers, sizeof(struct drllm_router));
    /* The session's share: router.c, open_run. */
    const size_t fc1 = drllm_packed_bytes(DRLLM_FORMAT_Q8C, hidden, config->d_model);
    const size_t fc2 = drllm_packed_bytes(DRLLM_FORMAT_Q8C, DRLLM_ROUTER_CLASSES, hidden);
    add_kept(sum, n_rows * sizeof(float), config->d_model + DRLLM_XNN_EXTRA_BYTES);
    add_kept(sum, config->d_model, sizeof(float));
    add_kept(sum, n_rows * sizeof(float), hidden + DRLLM_XNN_EXTRA_BYTES);
    add_kept(sum, hidden, sizeof(float));
    add_kept(sum, n_rows, DRLLM_ROUTER_CLASSES * sizeof(float));
    add_kept(sum, n_rows, DRLLM_PANEL_ROWS * sizeof(float));
    add_kept(sum, drllm_activations_bytes(n_rows, widest, DRLLM_QUANT_ROW), 1);
    add_kept(sum, fc1 > fc2 ? fc1 : fc2, 1);
    if (params->reroute == DRLLM_REROUTE_TURN) {
        const size_t cells = params->n_context / DRLLM_POOL_CELL + 1;
        add(sum, (cells + cells / 2) * config->n_layers, config->d_model * sizeof(float));
    }
    return DRLLM_OK;
}

/* ---- The session ---- */

static void add_session(struct sum *sum, const struct drllm_config *config, const struct drllm_fw_params *params) {
    const size_t n_slots = params->n_slots != 0 ? params->n_slots : config->n_layers;
    const size_t n = params->n_context;
    const enum drllm_format kv = params->kv_type == DRLLM_KV_Q8_0 ? DRLLM_FORMAT_Q8_0 : DRLLM_FORMAT_F16;
    const size_t positions = drllm_kv_round_up(n, DRLLM_KV_TILE);
    const size_t block_bytes[] = {drllm_kv_key_bytes(kv, config->head_dim), drllm_kv_value_bytes(kv, config->head_dim)};
    const size_t block_positions[] = {DRLLM_KV_BLOCK, drllm_kv_value_positions(kv)};
    add(sum, 1, sizeof(struct drllm_session));
    add(sum, n, sizeof(int32_t));
    add(sum, n_slots, sizeof(struct drllm_kv_slot));
    add(sum, config->n_layers, sizeof(struct drllm_decision));
    add(sum, config->n_layers, sizeof(struct drllm_decision));
    add(sum, config->n_layers, sizeof(uint8_t));
    add(sum, drllm_session_scratch_bytes(config, params->n_chunk, 1), 1);
    add(sum, n, config->d_model * sizeof(float));
    add(sum, n, config->n_rot * sizeof(float));
    add(sum, config->n_vocab, sizeof(float));
    add(sum, config->n_vocab, sizeof(struct drllm_candidate));
    for (size_t i = 0; i < 2; i++) {
        size_t slot = 0;
        if (!drllm_multiply(positions / block_positions[i], config->n_kv_heads * block_bytes[i], &slot)) {
            sum->overflow = true;
        }
        add(sum, n_slots, drllm_round_up(slot));
    }
}

/* What calls need for a while: the lists of tokenising, which double as they grow, the text that drllm_session_generate
 * holds back, or the logits that drllm_session_score sets aside. */
static void add_calls(struct sum *sum, const struct shape *shape, const struct drllm_fw_params *params) {
    enum {
        IDS = 4 * sizeof(int32_t),
        SYMBOLS = 4 * sizeof(struct drllm_symbol) + 8 * sizeof(uint64_t),
        COPIES = 2 * 3,
        MARKS = 4 * 12 + sizeof(uint32_t) + 1,
        ROUNDING = 80 * DRLLM_ALIGNMENT,
        HELD_BACK = 1024
    };
    struct sum tokenize = {0}, generate = {0}, score = {0};
    add(&tokenize, params->max_text + 64, IDS + SYMBOLS + COPIES + MARKS);
    add(&tokenize, shape->n_specials + 1, sizeof(size_t));
    add(&tokenize, 1, ROUNDING);
    add(&generate, 8, shape->longest + HELD_BACK);
    add(&score, shape->config.n_vocab, sizeof(float));
    size_t most = tokenize.bytes > generate.bytes ? tokenize.bytes : generate.bytes;
    most = most > score.bytes ? most : score.bytes;
    sum->overflow = sum->overflow || tokenize.overflow || generate.overflow || score.overflow;
    add(sum, most, 1);
}

int drllm_fw_arena_bytes(const void *model, size_t model_size, const struct drllm_fw_params *params, size_t *bytes,
                         struct drllm_error *error) {
    struct drllm_fw_params checked;
    struct shape shape = {0};
    struct sum sum = {0}, session = {0};
    if (bytes == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "bytes must not be NULL");
    }
    int status = drllm_fw_check(model, model_size, params, &checked, error);
    if (status == DRLLM_OK) {
        status = drllm_packed_is(model, model_size)
                     ? read_packed(model, model_size, &shape, error)
                     : read_gguf(model, model_size, checked.cpu_mask, &shape, &sum, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    if (checked.n_slots != 0 && checked.n_slots < shape.config.n_layers) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "%zu slots for keys and values; the %zu blocks need one each",
                          checked.n_slots, shape.config.n_layers);
    }
    checked.n_slots = checked.n_slots > shape.config.n_layers * DRLLM_MAX_COUNT
                          ? shape.config.n_layers * DRLLM_MAX_COUNT
                          : checked.n_slots;
    add(&sum, 1, sizeof(struct drllm_fw_front));
    add_model(&sum, &shape);
    status = find_routers(&checked, &shape, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (shape.routers != NULL && !checked.without_routers) {
        status = add_routers(&session, &shape, &checked, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    add_session(&session, &shape.config, &checked);
    add_calls(&session, &shape, &checked);
    /* Loading is over when the session is made. */
    add(&sum, sum.passing > session.bytes ? sum.passing : session.bytes, 1);
    if (sum.overflow || session.overflow) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "the model needs more memory than this processor can address");
    }
    *bytes = sum.bytes;
    return DRLLM_OK;
}
