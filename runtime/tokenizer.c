/* The vocabulary, special tokens, detokenising. What a key or a text means is llama.cpp's doing
 * (llama_vocab::impl::load, tokenizer_st_partition, token_to_piece), so that ids are equal. */
#include "runtime/tokenizer.h"

#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/tokenizer_internal.h"

#include <string.h>

/* ---- Texts ---- */

static uint32_t mix(uint64_t hash) {
    hash ^= hash >> 32;
    return (uint32_t)(hash * 0x9E3779B97F4A7C15u >> 32);
}

static size_t text_start(const struct drllm_tokenizer *tokenizer, uint32_t hash) {
    return (size_t)((uint64_t)hash * tokenizer->n_texts >> 32);
}

int32_t drllm_tokenizer_probe(const struct drllm_tokenizer *tokenizer, uint64_t hash, size_t *step) {
    const uint32_t mixed = mix(hash);
    size_t at = text_start(tokenizer, mixed) + *step;
    at -= at >= tokenizer->n_texts ? tokenizer->n_texts : 0;
    while (*step < DRLLM_MOST_PROBES) {
        const struct drllm_text_slot slot = tokenizer->texts[at];
        if (slot.id < 0 || slot.hash == mixed) {
            ++*step;
            return slot.id;
        }
        ++*step;
        at = at + 1 == tokenizer->n_texts ? 0 : at + 1;
    }
    return -1;
}

int32_t drllm_tokenizer_find(const struct drllm_tokenizer *tokenizer, const char *text, size_t size) {
    if (size > tokenizer->longest) {
        return -1;
    }
    const uint64_t hash = drllm_hash_bytes(DRLLM_HASH_START, text, size);
    size_t step = 0;
    for (;;) {
        const int32_t id = drllm_tokenizer_probe(tokenizer, hash, &step);
        if (id < 0 ||
            (tokenizer->tokens[id].size == size && memcmp(drllm_token_at(tokenizer, id).text, text, size) == 0)) {
            return id;
        }
    }
}

/* The last of several equal texts counts. False: too many collide. */
static bool insert_text(struct drllm_tokenizer *tokenizer, int32_t id) {
    const struct drllm_token token = drllm_token_at(tokenizer, id);
    const uint32_t hash = mix(drllm_hash_bytes(DRLLM_HASH_START, token.text, token.size));
    size_t at = text_start(tokenizer, hash);
    for (size_t probes = 0; probes < DRLLM_MOST_PROBES; probes++) {
        struct drllm_text_slot *slot = &tokenizer->made.texts[at];
        if (slot->id < 0 || (slot->hash == hash && tokenizer->tokens[slot->id].size == token.size &&
                             memcmp(drllm_token_at(tokenizer, slot->id).text, token.text, token.size) == 0)) {
            *slot = (struct drllm_text_slot){hash, id};
            return true;
        }
        at = at + 1 == tokenizer->n_texts ? 0 : at + 1;
    }
    return false;
}

/* ---- Reading the metadata ---- */

static const struct drllm_gguf_entry *find_array(const struct drllm_gguf *gguf, const char *key, uint32_t item_type) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, key);
    return entry != NULL && entry->type == DRLLM_GGUF_ARRAY && entry->item_type == item_type ? entry : NULL;
}

static int read_kind(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char key[] = "tokenizer.ggml.model";
    struct drllm_string model;
    if (!drllm_gguf_get_string(gguf, key, &model)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file has no vocabulary: no string %s", key);
    }
    tokenizer->is_bpe = drllm_string_equals(model, "gpt2");
    if (!tokenizer->is_bpe && !drllm_string_equals(model, "llama")) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "the tokenizer model '%.*s' (%s) is not supported, only gpt2 and llama",
                          model.size < 64 ? (int)model.size : 64, model.data, key);
    }
    return DRLLM_OK;
}

static uint8_t read_type(const struct drllm_gguf_entry *types, size_t id) {
    const uint8_t *bytes = types->data + id * 4;
    const bool known = bytes[0] >= DRLLM_TOKEN_NORMAL && bytes[0] <= DRLLM_TOKEN_BYTE && bytes[1] == 0 &&
                       bytes[2] == 0 && bytes[3] == 0;
    return known ? bytes[0] : DRLLM_TOKEN_UNUSED;
}

static int read_tokens(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char key[] = "tokenizer.ggml.tokens", types_key[] = "tokenizer.ggml.token_type";
    const struct drllm_gguf_entry *texts = find_array(gguf, key, DRLLM_GGUF_STRING);
    if (texts == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file has no vocabulary: no array of strings %s", key);
    }
    if (texts->count == 0 || texts->count > INT32_MAX) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s has %zu entries", key, texts->count);
    }
    const size_t n = texts->count;
    const struct drllm_gguf_entry *types = find_array(gguf, types_key, DRLLM_GGUF_I32);
    if (drllm_gguf_find(gguf, types_key) != NULL && (types == NULL || types->count < n)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is not an array of %zu i32", types_key, n);
    }
    struct drllm_token_entry *tokens = drllm_allocate(&tokenizer->allocator, n, sizeof *tokens);
    tokenizer->tokens = tokenizer->made.tokens = tokens;
    if (tokens == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %zu tokens", n);
    }
    tokenizer->n_tokens = n;
    tokenizer->bytes = (const char *)texts->data;
    tokenizer->n_texts = drllm_table_slots(n);
    struct drllm_text_slot *slots = drllm_allocate(&tokenizer->allocator, tokenizer->n_texts, sizeof *slots);
    tokenizer->texts = tokenizer->made.texts = slots;
    if (slots == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %zu tokens", n);
    }
    memset(slots, 0xFF, tokenizer->n_texts * sizeof *slots);
    struct drllm_string text;
    size_t id = 0;
    for (size_t position = 0; id < n && drllm_gguf_next_string(texts, &position, &text); id++) {
        const size_t at = (size_t)(text.data - tokenizer->bytes);
        if (text.size > DRLLM_MOST_TEXT_BYTES || at > UINT32_MAX) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "%s: token %zu has %zu bytes, %zu bytes into the list", key, id,
                              text.size, at);
        }
        tokens[id] = (struct drllm_token_entry){(uint32_t)at, (uint32_t)text.size,
                                                types != NULL ? read_type(types, id) : (uint8_t)DRLLM_TOKEN_NORMAL};
        if (text.size > tokenizer->longest) {
            tokenizer->longest = (uint32_t)text.size;
        }
        if (text.size > 0 && !insert_text(tokenizer, (int32_t)id)) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "%s: too many texts with one hash", key);
        }
    }
    return id == n ? DRLLM_OK : drllm_fail(error, DRLLM_ERR_FORMAT, "%s is cut off at token %zu", key, id);
}

/* *id stays as it is when there is no such key or its value is no token. */
static void read_id(const struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, const char *key,
                    int32_t *id) {
    uint64_t value;
    if (drllm_gguf_get_u64(gguf, key, &value) && value < tokenizer->n_tokens) {
        *id = (int32_t)value;
    }
}

static void add_end(struct drllm_tokenizer *tokenizer, int32_t id) {
    if (id >= 0 && !drllm_tokenizer_is_end(tokenizer, id) &&
        tokenizer->n_ends < sizeof tokenizer->ends / sizeof tokenizer->ends[0]) {
        tokenizer->ends[tokenizer->n_ends++] = id;
    }
}

/* Texts that mean the same in every vocabulary that has them, whatever type the file gives them. */
static void find_known_texts(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf) {
    enum use { USE_END, USE_FIM_PAD, USE_FIM_REP, USE_FIM_SEP, USE_FIM_PRE, USE_FIM_SUF, USE_FIM_MID, N_USES };
    static const struct {
        const char *text;
        enum use use;
    } known[] = {
        {"<|eot_id|>", USE_END},
        {"<|im_end|>", USE_END},
        {"<|end|>", USE_END},
        {"<end_of_turn>", USE_END},
        {"<|endoftext|>", USE_END},
        {"</s>", USE_END},
        {"<|eom_id|>", USE_END},
        {"<EOT>", USE_END},
        {"_<EOT>", USE_END},
        {"[EOT]", USE_END},
        {"[EOS]", USE_END},
        {"<|end_of_text|>", USE_END},
        {"<end_of_utterance>", USE_END},
        {"<eos>", USE_END},
        {"<\xEF\xBD\x9C"
         "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
         USE_END},
        {"<|fim_pad|>", USE_FIM_PAD},
        {"<fim-pad>", USE_FIM_PAD},
        {"<fim_pad>", USE_FIM_PAD},
        {"<PAD>", USE_FIM_PAD},
        {"[PAD]", USE_FIM_PAD},
        {"<|fim_repo|>", USE_FIM_REP},
        {"<|repo_name|>", USE_FIM_REP},
        {"<fim-repo>", USE_FIM_REP},
        {"<REPO>", USE_FIM_REP},
        {"<reponame>", USE_FIM_REP},
        {"<|file_sep|>", USE_FIM_SEP},
        {"<|fim_prefix|>", USE_FIM_PRE},
        {"<fim-prefix>", USE_FIM_PRE},
        {"<fim_prefix>", USE_FIM_PRE},
        {"<PRE>", USE_FIM_PRE},
        {"\xE2\x96\x81<PRE>", USE_FIM_PRE},
        {"<|fim_suffix|>", USE_FIM_SUF},
        {"<fim-suffix>", USE_FIM_SUF},
        {"<fim_suffix>", USE_FIM_SUF},
        {"<SUF>", USE_FIM_SUF},
        {"\xE2\x96\x81<SUF>", USE_FIM_SUF},
        {"<|fim_middle|>", USE_FIM_MID},
        {"<fim-middle>", USE_FIM_MID},
        {"<fim_middle>", USE_FIM_MID},
        {"<MID>", USE_FIM_MID},
        {"\xE2\x96\x81<MID>", USE_FIM_MID},
    };
    /* A key settles which token has the use; else it is the first of the texts. */
    static const char *const keys[N_USES][2] = {
        [USE_FIM_PAD] = {"tokenizer.ggml.fim_pad_token_id", NULL},
        [USE_FIM_REP] = {"tokenizer.ggml.fim_rep_token_id", NULL},
        [USE_FIM_SEP] = {"tokenizer.ggml.fim_sep_token_id", NULL},
        [USE_FIM_PRE] = {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
        [USE_FIM_SUF] = {"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
        [USE_FIM_MID] = {"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
    };
    int32_t found[N_USES];
    for (size_t use = 0; use < N_USES; use++) {
        found[use] = -1;
        for (size_t i = 0; i < 2 && keys[use][i] != NULL; i++) {
            read_id(tokenizer, gguf, keys[use][i], &found[use]);
        }
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const int32_t id = drllm_tokenizer_find(tokenizer, known[i].text, strlen(known[i].text));
        const enum use use = known[i].use;
        if (id < 0 || (use != USE_END && found[use] >= 0)) {
            continue;
        }
        found[use] = id;
        tokenizer->made.tokens[id].type = DRLLM_TOKEN_CONTROL;
        if (use == USE_END) {
            add_end(tokenizer, id);
        }
    }
    /* A model that begins to write another file is done as well. */
    add_end(tokenizer, found[USE_FIM_PAD]);
    add_end(tokenizer, found[USE_FIM_REP]);
    add_end(tokenizer, found[USE_FIM_SEP]);
}

static int read_settings(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char *const flags[] = {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"};
    tokenizer->add_bos = !tokenizer->is_bpe || tokenizer->pretokenizer == DRLLM_PRETOKENIZE_LLAMA3;
    tokenizer->add_space_prefix = !tokenizer->is_bpe;
    bool *const values[] = {&tokenizer->add_bos, &tokenizer->add_space_prefix};
    for (size_t i = 0; i < 2; i++) {
        if (drllm_gguf_find(gguf, flags[i]) != NULL && !drllm_gguf_get_bool(gguf, flags[i], values[i])) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is not a bool", flags[i]);
        }
    }
    /* Old files of SentencePiece vocabularies leave these to the reader. */
    const bool defaults = !tokenizer->is_bpe;
    tokenizer->unknown = defaults ? 0 : -1;
    tokenizer->bos = defaults && tokenizer->n_tokens > 1 ? 1 : -1;
    tokenizer->eos = defaults && tokenizer->n_tokens > 2 ? 2 : -1;
    read_id(tokenizer, gguf, "tokenizer.ggml.unknown_token_id", &tokenizer->unknown);
    read_id(tokenizer, gguf, "tokenizer.ggml.bos_token_id", &tokenizer->bos);
    read_id(tokenizer, gguf, "tokenizer.ggml.eos_token_id", &tokenizer->eos);
    tokenizer->add_bos = tokenizer->add_bos && tokenizer->bos >= 0;

    int32_t eot = -1, eom = -1;
    read_id(tokenizer, gguf, "tokenizer.ggml.eot_token_id", &eot);
    read_id(tokenizer, gguf, "tokenizer.ggml.eom_token_id", &eom);
    add_end(tokenizer, tokenizer->eos);
    add_end(tokenizer, eot);
    add_end(tokenizer, eom);
    find_known_texts(tokenizer, gguf);
    return DRLLM_OK;
}

/* ---- The special tokens' order ---- */

static int compare_texts(struct drllm_token a, struct drllm_token b) {
    const int order = memcmp(a.text, b.text, a.size < b.size ? a.size : b.size);
    return order != 0 ? order : (a.size > b.size) - (a.size < b.size);
}

struct order {
    const struct drllm_tokenizer *tokenizer;
    bool by_length; /* of `specials[item]`, the longest first, equals by id; else `item` is an id, by its text */
};

static bool is_behind(const struct order *order, uint32_t a, uint32_t b) {
    const struct drllm_tokenizer *tokenizer = order->tokenizer;
    if (!order->by_length) {
        const int behind = compare_texts(drllm_token_at(tokenizer, (int32_t)a), drllm_token_at(tokenizer, (int32_t)b));
        return behind != 0 ? behind > 0 : a > b;
    }
    const int32_t first = tokenizer->specials[a], second = tokenizer->specials[b];
    const uint32_t first_size = tokenizer->tokens[first].size, second_size = tokenizer->tokens[second].size;
    return first_size != second_size ? first_size < second_size : first > second;
}

static void sift_down(const struct order *order, uint32_t *items, size_t root, size_t n) {
    for (size_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && is_behind(order, items[child + 1], items[child])) {
            child++;
        }
        if (!is_behind(order, items[child], items[root])) {
            return;
        }
        const uint32_t moved = items[root];
        items[root] = items[child];
        items[child] = moved;
        root = child;
    }
}

/* Heap sort: n log n whatever the file holds. */
static void sort(const struct order *order, uint32_t *items, size_t n) {
    for (size_t i = n / 2; i-- > 0;) {
        sift_down(order, items, i, n);
    }
    for (size_t end = n; end > 1; end--) {
        const uint32_t last = items[0];
        items[0] = items[end - 1];
        items[end - 1] = last;
        sift_down(order, items, 0, end - 1);
    }
}

/* Longer ones, which no real vocabulary has, are not looked for: a megabyte of a's would cost too much time in a
 * megabyte of a's. */
enum { MOST_SPECIAL_BYTES = 1024 };

static bool is_special(const struct drllm_tokenizer *tokenizer, int32_t id) {
    const struct drllm_token token = drllm_token_at(tokenizer, id);
    return token.size > 0 && token.size <= MOST_SPECIAL_BYTES &&
           (token.type == DRLLM_TOKEN_CONTROL || token.type == DRLLM_TOKEN_USER_DEFINED ||
            token.type == DRLLM_TOKEN_UNKNOWN);
}

int drllm_tokenizer_collect_specials(struct drllm_tokenizer *tokenizer, struct drllm_error *error) {
    const struct drllm_allocator *allocator = &tokenizer->allocator;
    size_t n = 0;
    for (size_t id = 0; id < tokenizer->n_tokens; id++) {
        n += is_special(tokenizer, (int32_t)id);
    }
    if (n == 0) {
        return DRLLM_OK;
    }
    tokenizer->n_specials = n;
    tokenizer->specials = drllm_allocate(allocator, n, sizeof *tokenizer->specials);
    tokenizer->special_ranks = drllm_allocate(allocator, n, sizeof *tokenizer->special_ranks);
    uint32_t *order = drllm_allocate(allocator, n, sizeof *order);
    if (tokenizer->specials == NULL || tokenizer->special_ranks == NULL || order == NULL) {
        drllm_release(allocator, order, n, sizeof *order);
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %zu special tokens", n);
    }
    size_t n_found = 0;
    for (size_t id = 0; id < tokenizer->n_tokens; id++) {
        if (is_special(tokenizer, (int32_t)id)) {
            order[n_found++] = (uint32_t)id;
            tokenizer->has_user_defined =
                tokenizer->has_user_defined || tokenizer->tokens[id].type == DRLLM_TOKEN_USER_DEFINED;
        }
    }
    sort(&(struct order){tokenizer, false}, order, n);
    for (size_t i = 0; i < n; i++) {
        tokenizer->specials[i] = (int32_t)order[i];
        tokenizer->special_begin[(uint8_t)drllm_token_at(tokenizer, (int32_t)order[i]).text[0] + 1]++;
    }
    for (size_t byte = 0; byte < 256; byte++) {
        tokenizer->special_begin[byte + 1] += tokenizer->special_begin[byte];
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
    }
    sort(&(struct order){tokenizer, true}, order, n);
    for (size_t i = 0; i < n; i++) {
        tokenizer->special_ranks[order[i]] = (uint32_t)i;
    }
    drllm_release(allocator, order, n, sizeof *order);
    return DRLLM_OK;
}

/* ---- Opening ---- */

int drllm_tokenizer_open(const struct drllm_gguf *gguf, const struct drllm_allocator *allocator,
                         struct drllm_tokenizer **tokenizer, struct drllm_error *error) {
    struct drllm_tokenizer *opened = drllm_allocate_zeroed(allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for a tokenizer");
    }
    opened->allocator = *allocator;
    int status = read_kind(opened, gguf, error);
    if (status == DRLLM_OK) {
        status = read_tokens(opened, gguf, error);
    }
    if (status == DRLLM_OK) {
        status = opened->is_bpe ? drllm_bpe_open(opened, gguf, error) : drllm_spm_open(opened, gguf, error);
    }
    if (status == DRLLM_OK) {
        status = read_settings(opened, gguf, error);
    }
    if (status == DRLLM_OK) {
        status = drllm_tokenizer_collect_specials(opened, error);
    }
    if (status != DRLLM_OK) {
        drllm_tokenizer_close(opened);
        return status;
    }
    *tokenizer = opened;
    return DRLLM_OK;
}

void drllm_tokenizer_close(struct drllm_tokenizer *tokenizer) {
    if (tokenizer == NULL) {
        return;
    }
    const struct drllm_allocator allocator = tokenizer->allocator;
    drllm_release(&allocator, tokenizer->specials, tokenizer->n_specials, sizeof *tokenizer->specials);
    drllm_release(&allocator, tokenizer->special_ranks, tokenizer->n_specials, sizeof *tokenizer->special_ranks);
    drllm_release(&allocator, tokenizer->made.pairs, tokenizer->n_pairs, sizeof *tokenizer->made.pairs);
    drllm_release(&allocator, tokenizer->made.texts, tokenizer->n_texts, sizeof *tokenizer->made.texts);
    drllm_release(&allocator, tokenizer->made.tokens, tokenizer->n_tokens, sizeof *tokenizer->made.tokens);
    drllm_release(&allocator, tokenizer, 1, sizeof *tokenizer);
}

size_t drllm_tokenizer_n_vocab(const struct drllm_tokenizer *tokenizer) {
    return tokenizer->n_tokens;
}

int32_t drllm_tokenizer_bos(const struct drllm_tokenizer *tokenizer) {
    return tokenizer->bos;
}

int32_t drllm_tokenizer_eos(const struct drllm_tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool drllm_tokenizer_add_bos(const struct drllm_tokenizer *tokenizer) {
    return tokenizer->add_bos;
}

bool drllm_tokenizer_is_end(const struct drllm_tokenizer *tokenizer, int32_t token) {
    for (size_t i = 0; i < tokenizer->n_ends; i++) {
        if (tokenizer->ends[i] == token) {
            return true;
        }
    }
    return false;
}

struct drllm_string drllm_tokenizer_token_text(const struct drllm_tokenizer *tokenizer, int32_t token) {
    return (struct drllm_string){drllm_token_at(tokenizer, token).text, tokenizer->tokens[token].size};
}

enum drllm_token_type drllm_tokenizer_token_type(const struct drllm_tokenizer *tokenizer, int32_t token) {
    return (enum drllm_token_type)tokenizer->tokens[token].type;
}

/* ---- Arrays that grow ---- */

bool drllm_grow(const struct drllm_allocator *allocator, void **memory, size_t *capacity, size_t needed, size_t item,
                size_t keep) {
    if (needed <= *capacity) {
        return true;
    }
    const size_t larger = *capacity <= SIZE_MAX / 2 && *capacity * 2 > needed ? *capacity * 2 : needed;
    void *grown = drllm_allocate(allocator, larger, item);
    if (grown == NULL) {
        return false;
    }
    if (keep > 0) {
        memcpy(grown, *memory, keep * item);
    }
    drllm_release(allocator, *memory, *capacity, item);
    *memory = grown;
    *capacity = larger;
    return true;
}

bool drllm_ids_append(struct drllm_ids *ids, int32_t id) {
    if (ids->count == ids->capacity) {
        void *memory = ids->ids;
        const size_t needed = ids->count < 64 ? 64 : ids->count + 1;
        if (!drllm_grow(ids->allocator, &memory, &ids->capacity, needed, sizeof *ids->ids, ids->count)) {
            return false;
        }
        ids->ids = memory;
    }
    ids->ids[ids->count++] = id;
    return true;
}

/* ---- Encoding ---- */

/* Where a special token could be in a text. */
struct mark {
    uint32_t at;
    uint32_t special; /* index into `specials` */
    bool taken;
};

struct marks {
    struct mark *marks; /* by `at` */
    size_t count, capacity;
};

/* specials[low .. high) agree with the text in their first `depth` bytes; narrow to those that go on with `byte`. */
static void narrow(const struct drllm_tokenizer *tokenizer, size_t depth, uint8_t byte, size_t *low, size_t *high) {
    const struct drllm_token least = drllm_token_at(tokenizer, tokenizer->specials[*low]);
    const struct drllm_token most = drllm_token_at(tokenizer, tokenizer->specials[*high - 1]);
    if (least.size > depth && (uint8_t)least.text[depth] == byte && (uint8_t)most.text[depth] == byte) {
        return; /* they are sorted, so all between go on alike */
    }
    for (int upper = 0; upper < 2; upper++) {
        size_t first = *low, last = *high;
        while (first < last) {
            const size_t middle = first + (last - first) / 2;
            const struct drllm_token token = drllm_token_at(tokenizer, tokenizer->specials[middle]);
            const int next = token.size > depth ? (uint8_t)token.text[depth] : -1;
            if (next < byte + upper) {
                first = middle + 1;
            } else {
                last = middle;
            }
        }
        *(upper ? high : low) = first;
    }
}

static bool mark_specials_at(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, size_t at,
                             bool all, struct marks *marks) {
    const uint8_t byte = (uint8_t)text[at];
    size_t low = tokenizer->special_begin[byte], high = tokenizer->special_begin[byte + 1];
    for (size_t depth = 1; low < high; depth++) {
        /* The shortest is first; of equal texts the first counts. */
        const struct drllm_token token = drllm_token_at(tokenizer, tokenizer->specials[low]);
        if (token.size == depth && (all || token.type == DRLLM_TOKEN_USER_DEFINED)) {
            void *memory = marks->marks;
            const size_t needed = marks->count < 16 ? 16 : marks->count + 1;
            if (marks->count == UINT32_MAX || !drllm_grow(&tokenizer->allocator, &memory, &marks->capacity, needed,
                                                          sizeof *marks->marks, marks->count)) {
                return false;
            }
            marks->marks = memory;
            marks->marks[marks->count++] = (struct mark){(uint32_t)at, (uint32_t)low, false};
        }
        if (at + depth == size) {
            return true;
        }
        narrow(tokenizer, depth, (uint8_t)text[at + depth], &low, &high);
    }
    return true;
}

static bool mark_specials(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, bool all,
                          struct marks *marks) {
    if (tokenizer->n_specials == 0 || !(all || tokenizer->has_user_defined)) {
        return true;
    }
    for (size_t at = 0; at < size; at++) {
        const uint8_t byte = (uint8_t)text[at];
        if (tokenizer->special_begin[byte] != tokenizer->special_begin[byte + 1] &&
            !mark_specials_at(tokenizer, text, size, at, all, marks)) {
            return false;
        }
    }
    return true;
}

static bool is_covered(const uint8_t *covered, size_t at) {
    return (covered[at / 8] >> (at % 8) & 1) != 0;
}

/* Choose among marks that overlap: the longest token first, and of one token the leftmost. */
static bool take_marks(const struct drllm_tokenizer *tokenizer, size_t size, struct marks *marks) {
    const struct drllm_allocator *allocator = &tokenizer->allocator;
    const size_t n_ranks = tokenizer->n_specials + 1, n_covered = size / 8 + 1;
    size_t *begin = drllm_allocate_zeroed(allocator, n_ranks, sizeof *begin);
    uint32_t *order = drllm_allocate(allocator, marks->count, sizeof *order);
    uint8_t *covered = drllm_allocate_zeroed(allocator, n_covered, 1);
    const bool done = begin != NULL && order != NULL && covered != NULL;
    if (done) {
        /* Counting sort by rank. */
        for (size_t i = 0; i < marks->count; i++) {
            begin[tokenizer->special_ranks[marks->marks[i].special] + 1]++;
        }
        for (size_t rank = 1; rank < n_ranks; rank++) {
            begin[rank] += begin[rank - 1];
        }
        for (size_t i = 0; i < marks->count; i++) {
            order[begin[tokenizer->special_ranks[marks->marks[i].special]]++] = (uint32_t)i;
        }
        for (size_t i = 0; i < marks->count; i++) {
            struct mark *mark = &marks->marks[order[i]];
            const size_t token_size = tokenizer->tokens[tokenizer->specials[mark->special]].size;
            /* What is taken is at least as long, so an overlap covers one of the ends. */
            mark->taken = !is_covered(covered, mark->at) && !is_covered(covered, mark->at + token_size - 1);
            for (size_t at = mark->at; mark->taken && at < mark->at + token_size; at++) {
                covered[at / 8] = (uint8_t)(covered[at / 8] | 1u << at % 8);
            }
        }
    }
    drllm_release(allocator, begin, n_ranks, sizeof *begin);
    drllm_release(allocator, order, marks->count, sizeof *order);
    drllm_release(allocator, covered, n_covered, 1);
    return done;
}

static bool encode_plain(const struct drllm_tokenizer *tokenizer, const char *text, size_t size,
                         struct drllm_ids *ids) {
    if (size == 0) {
        return true;
    }
    /* Called for the first text and for every one after a special token. */
    return tokenizer->is_bpe ? drllm_bpe_encode(tokenizer, text, size, ids)
                             : drllm_spm_encode(tokenizer, text, size, tokenizer->add_space_prefix, ids);
}

static bool encode_marked(const struct drllm_tokenizer *tokenizer, const char *text, size_t size,
                          const struct marks *marks, struct drllm_ids *ids) {
    size_t at = 0;
    for (size_t i = 0; i < marks->count; i++) {
        const struct mark *mark = &marks->marks[i];
        const int32_t id = tokenizer->specials[mark->special];
        if (!mark->taken) {
            continue;
        }
        if (!encode_plain(tokenizer, text + at, mark->at - at, ids) || !drllm_ids_append(ids, id)) {
            return false;
        }
        at = mark->at + tokenizer->tokens[id].size;
    }
    return at == size || encode_plain(tokenizer, text + at, size - at, ids);
}

static bool encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, unsigned flags,
                   struct drllm_ids *ids) {
    if ((flags & DRLLM_TOKENIZE_BOS) != 0 && tokenizer->add_bos && !drllm_ids_append(ids, tokenizer->bos)) {
        return false;
    }
    struct marks marks = {NULL, 0, 0};
    const bool done = mark_specials(tokenizer, text, size, (flags & DRLLM_TOKENIZE_SPECIAL) != 0, &marks) &&
                      (marks.count == 0 || take_marks(tokenizer, size, &marks)) &&
                      encode_marked(tokenizer, text, size, &marks, ids);
    drllm_release(&tokenizer->allocator, marks.marks, marks.capacity, sizeof *marks.marks);
    return done;
}

int drllm_tokenizer_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, unsigned flags,
                           int32_t *tokens, size_t capacity, size_t *n_tokens, struct drllm_error *error) {
    if ((text == NULL && size > 0) || (tokens == NULL && capacity > 0) || n_tokens == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "text, tokens and n_tokens must not be NULL");
    }
    if ((flags & ~(unsigned)(DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL)) != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "unknown flags %x", flags);
    }
    if (size > DRLLM_MOST_TEXT_BYTES) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "a text of %zu bytes; the most is %zu", size,
                          DRLLM_MOST_TEXT_BYTES);
    }
    struct drllm_ids ids = {&tokenizer->allocator, NULL, 0, 0};
    int status = DRLLM_OK;
    if (!encode(tokenizer, text, size, flags, &ids)) {
        status = drllm_fail(error, DRLLM_ERR_MEMORY, "no memory to tokenise %zu bytes", size);
    } else {
        *n_tokens = ids.count;
        if (ids.count > capacity) {
            status = drllm_fail(error, DRLLM_ERR_BUFFER, "room for %zu tokens, %zu needed", capacity, ids.count);
        } else if (ids.count > 0) {
            memcpy(tokens, ids.ids, ids.count * sizeof *tokens);
        }
    }
    drllm_release(&tokenizer->allocator, ids.ids, ids.capacity, sizeof *ids.ids);
    return status;
}

/* ---- Decoding ---- */

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* <0xXX> */
static bool read_byte_name(struct drllm_token token, char *byte) {
    if (token.size != 6 || memcmp(token.text, "<0x", 3) != 0 || token.text[5] != '>') {
        return false;
    }
    const int high = hex_digit(token.text[3]), low = hex_digit(token.text[4]);
    *byte = (char)(high * 16 + low);
    return high >= 0 && low >= 0;
}

static bool is_space_mark(struct drllm_token token, size_t at) {
    return token.size - at >= 3 && memcmp(token.text + at, "\xE2\x96\x81", 3) == 0;
}

/* The byte that GPT-2 writes as the character at text[0 .. size). Returns how many bytes that character has; 0, and
 * *byte unchanged, if it is none of GPT-2's. */
static size_t read_byte_character(const char *text, size_t size, char *byte) {
    uint32_t character = (uint8_t)text[0];
    size_t n = 1;
    if (character >= 0x80) {
        if (size < 2 || character < 0xC2 || character > 0xC5 || ((uint8_t)text[1] & 0xC0) != 0x80) {
            return 0;
        }
        character = (character & 0x1F) << 6 | ((uint8_t)text[1] & 0x3F);
        n = 2;
    }
    uint32_t value = character;
    if (character >= 0x100) {
        value = character <= 0x120 ? character - 0x100 : character <= 0x142 ? character - 0x121 + 0x7F : 0xAD;
    }
    if (value > 0xFF || drllm_byte_character((uint8_t)value) != character) {
        return 0;
    }
    *byte = (char)value;
    return n;
}

/* Writes the token's bytes to out, unless it is NULL; returns how many. skip: bytes of a normal token to leave out
 * in front. */
static size_t write_piece(const struct drllm_tokenizer *tokenizer, int32_t id, bool special, size_t skip, char *out) {
    const struct drllm_token token = drllm_token_at(tokenizer, id);
    const bool hidden = token.type == DRLLM_TOKEN_CONTROL || token.type == DRLLM_TOKEN_UNKNOWN;
    char byte = 0;
    if (token.type == DRLLM_TOKEN_UNUSED || (hidden && !special)) {
        return 0;
    }
    if (token.type == DRLLM_TOKEN_BYTE && read_byte_name(token, &byte)) {
        if (out != NULL) {
            *out = byte;
        }
        return 1;
    }
    if (token.type != DRLLM_TOKEN_NORMAL) {
        if (out != NULL && token.size > 0) {
            memcpy(out, token.text, token.size);
        }
        return token.size;
    }
    size_t n = 0;
    for (size_t at = 0; at < token.size; n++) {
        size_t n_read = 0;
        byte = token.text[at];
        if (tokenizer->is_bpe) {
            n_read = read_byte_character(token.text + at, token.size - at, &byte);
        } else if (is_space_mark(token, at)) {
            byte = ' ';
            n_read = 3;
        }
        at += n_read > 0 ? n_read : 1;
        if (out != NULL && n >= skip) {
            out[n - skip] = byte;
        }
    }
    return n - skip;
}

int drllm_tokenizer_token_bytes(const struct drllm_tokenizer *tokenizer, int32_t token, bool special, char *bytes,
                                size_t capacity, size_t *size) {
    if (size == NULL || (bytes == NULL && capacity > 0) || token < 0 || (size_t)token >= tokenizer->n_tokens) {
        return DRLLM_ERR_ARGUMENT;
    }
    *size = write_piece(tokenizer, token, special, 0, NULL);
    if (*size > capacity) {
        return DRLLM_ERR_BUFFER;
    }
    if (*size > 0) {
        (void)write_piece(tokenizer, token, special, 0, bytes);
    }
    return DRLLM_OK;
}

/* True if the token's bytes begin with the space that encoding puts in front of a text. */
static bool has_space_prefix(struct drllm_token token) {
    return token.type == DRLLM_TOKEN_NORMAL && token.size > 0 && (token.text[0] == ' ' || is_space_mark(token, 0));
}

int drllm_tokenizer_decode(const struct drllm_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                           bool special, char *text, size_t capacity, size_t *size) {
    if (size == NULL || (text == NULL && capacity > 0) || (tokens == NULL && n_tokens > 0)) {
        return DRLLM_ERR_ARGUMENT;
    }
    /* Control tokens such as BOS may come before the token with the space. */
    bool in_front = tokenizer->add_space_prefix && !tokenizer->is_bpe;
    size_t needed = 0, with_space = n_tokens;
    for (size_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || (size_t)tokens[i] >= tokenizer->n_tokens) {
            return DRLLM_ERR_ARGUMENT;
        }
        const struct drllm_token token = drllm_token_at(tokenizer, tokens[i]);
        if (in_front && token.type != DRLLM_TOKEN_CONTROL) {
            in_front = false;
            with_space = has_space_prefix(token) ? i : n_tokens;
        }
        if (!drllm_add_sizes(needed, write_piece(tokenizer, tokens[i], special, i == with_space, NULL), &needed)) {
            return DRLLM_ERR_ARGUMENT;
        }
    }
    *size = needed;
    if (needed > capacity) {
        return DRLLM_ERR_BUFFER;
    }
    for (size_t i = 0, at = 0; i < n_tokens && at < needed; i++) {
        at += write_piece(tokenizer, tokens[i], special, i == with_space, text + at);
    }
    return DRLLM_OK;
}
