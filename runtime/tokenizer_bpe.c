/* GPT-2 style byte pair encoding: a word's bytes, written as printable characters, are merged in the order of the
 * merges. As llama.cpp's llm_tokenizer_bpe does it, but on ids: a merge whose parts or whole are no tokens is left
 * out. */
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/tokenizer_internal.h"
#include "runtime/utf8.h"

#include <string.h>

/* ---- The vocabulary ---- */

/* The bytes that are no printable character of Latin-1 come from U+0100 on, in their order. */
uint32_t drllm_byte_character(uint8_t byte) {
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121u + (byte - 0x7Fu);
    }
    return byte == 0xAD ? 0x143 : byte;
}

static size_t write_character(uint32_t character, char out[2]) {
    if (character < 0x80) {
        out[0] = (char)character;
        return 1;
    }
    out[0] = (char)(0xC0 | character >> 6);
    out[1] = (char)(0x80 | (character & 0x3F));
    return 2;
}

static size_t pair_start(const struct drllm_tokenizer *tokenizer, int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
    return (size_t)((hash >> 32) * tokenizer->n_pairs >> 32);
}

static const struct drllm_pair_slot *find_pair(const struct drllm_tokenizer *tokenizer, int32_t left, int32_t right) {
    size_t at = pair_start(tokenizer, left, right);
    for (size_t probes = 0; probes < DRLLM_MOST_PROBES; probes++) {
        const struct drllm_pair_slot *slot = &tokenizer->pairs[at];
        if (slot->left < 0) {
            return NULL;
        }
        if (slot->left == left && slot->right == right) {
            return slot;
        }
        at = at + 1 == tokenizer->n_pairs ? 0 : at + 1;
    }
    return NULL;
}

/* The first of several equal merges counts. False: too many collide. */
static bool insert_pair(struct drllm_tokenizer *tokenizer, struct drllm_pair_slot pair) {
    size_t at = pair_start(tokenizer, pair.left, pair.right);
    for (size_t probes = 0; probes < DRLLM_MOST_PROBES; probes++) {
        struct drllm_pair_slot *slot = &tokenizer->made.pairs[at];
        if (slot->left < 0) {
            *slot = pair;
            return true;
        }
        if (slot->left == pair.left && slot->right == pair.right) {
            return true;
        }
        at = at + 1 == tokenizer->n_pairs ? 0 : at + 1;
    }
    return false;
}

static bool is_joined(struct drllm_token token, struct drllm_string left, struct drllm_string right) {
    return token.size == left.size + right.size && memcmp(token.text, left.data, left.size) == 0 &&
           memcmp(token.text + left.size, right.data, right.size) == 0;
}

static int32_t find_joined(const struct drllm_tokenizer *tokenizer, struct drllm_string left, struct drllm_string right,
                           int32_t guess) {
    /* Merges come in the order of the tokens they make, one or more for each. */
    for (int32_t id = guess; id <= guess + 1 && (size_t)id < tokenizer->n_tokens; id++) {
        if (is_joined(drllm_token_at(tokenizer, id), left, right)) {
            return id;
        }
    }
    const uint64_t hash =
        drllm_hash_bytes(drllm_hash_bytes(DRLLM_HASH_START, left.data, left.size), right.data, right.size);
    size_t step = 0;
    int32_t id = -1;
    do {
        id = drllm_tokenizer_probe(tokenizer, hash, &step);
    } while (id >= 0 && !is_joined(drllm_token_at(tokenizer, id), left, right));
    return id;
}

/* Merges are read some at a time, each step for all of them before the next: a step waits for memory all over the
 * place, and so the processor can wait for several at once. */
enum { MERGES_AT_A_TIME = 32 };

struct merge {
    struct drllm_string left, right; /* "left right" in the file */
    uint64_t left_hash, right_hash;
    size_t left_step, right_step;
    int32_t left_id, right_id;
    uint32_t rank;
};

/* False: not two texts of tokens. */
static bool split_merge(const struct drllm_tokenizer *tokenizer, struct drllm_string text, uint32_t rank,
                        struct merge *merge) {
    /* The first byte is never the separator, as in llama.cpp. */
    const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
    if (space == NULL || text.size - 1 > tokenizer->longest) {
        return false;
    }
    *merge = (struct merge){.left = {text.data, (size_t)(space - text.data)}, .rank = rank};
    merge->right = (struct drllm_string){space + 1, text.size - merge->left.size - 1};
    merge->left_hash = drllm_hash_bytes(DRLLM_HASH_START, merge->left.data, merge->left.size);
    merge->right_hash = drllm_hash_bytes(DRLLM_HASH_START, merge->right.data, merge->right.size);
    return true;
}

/* From a first id with the hash on, the id whose text it is. */
static int32_t confirm(const struct drllm_tokenizer *tokenizer, int32_t id, uint64_t hash, size_t *step,
                       struct drllm_string text) {
    while (id >= 0 && (tokenizer->tokens[id].size != text.size ||
                       memcmp(drllm_token_at(tokenizer, id).text, text.data, text.size) != 0)) {
        id = drllm_tokenizer_probe(tokenizer, hash, step);
    }
    return id;
}

/* False: too many collide. *guess: the token that the last merge made. */
static bool insert_merges(struct drllm_tokenizer *tokenizer, struct merge *merges, size_t n, int32_t *guess) {
    for (size_t i = 0; i < n; i++) {
        merges[i].left_id = drllm_tokenizer_probe(tokenizer, merges[i].left_hash, &merges[i].left_step);
        merges[i].right_id = drllm_tokenizer_probe(tokenizer, merges[i].right_hash, &merges[i].right_step);
    }
    for (size_t i = 0; i < n; i++) {
        struct merge *merge = &merges[i];
        merge->left_id = confirm(tokenizer, merge->left_id, merge->left_hash, &merge->left_step, merge->left);
        merge->right_id = confirm(tokenizer, merge->right_id, merge->right_hash, &merge->right_step, merge->right);
    }
    for (size_t i = 0; i < n; i++) {
        const struct merge *merge = &merges[i];
        const int32_t merged = find_joined(tokenizer, merge->left, merge->right, *guess);
        if (merge->left_id < 0 || merge->right_id < 0 || merged < 0) {
            continue;
        }
        *guess = merged;
        if (!insert_pair(tokenizer, (struct drllm_pair_slot){merge->left_id, merge->right_id, merged, merge->rank})) {
            return false;
        }
    }
    return true;
}

static int read_merges(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char key[] = "tokenizer.ggml.merges";
    const struct drllm_gguf_entry *merges = drllm_gguf_find(gguf, key);
    if (merges == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "a BPE vocabulary without %s; convert the model again", key);
    }
    if (merges->type != DRLLM_GGUF_ARRAY || merges->item_type != DRLLM_GGUF_STRING) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is not an array of strings", key);
    }
    if (merges->count > INT32_MAX) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s has %zu entries", key, merges->count);
    }
    tokenizer->n_pairs = drllm_table_slots(merges->count);
    struct drllm_pair_slot *pairs = drllm_allocate(&tokenizer->allocator, tokenizer->n_pairs, sizeof *pairs);
    tokenizer->pairs = tokenizer->made.pairs = pairs;
    if (pairs == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %zu merges", merges->count);
    }
    memset(pairs, 0xFF, tokenizer->n_pairs * sizeof *pairs);
    struct merge some[MERGES_AT_A_TIME];
    struct drllm_string text;
    size_t n = 0, position = 0;
    int32_t guess = 0;
    bool inserted = true;
    for (uint32_t rank = 0; inserted && drllm_gguf_next_string(merges, &position, &text); rank++) {
        n += split_merge(tokenizer, text, rank, &some[n]);
        if (n == MERGES_AT_A_TIME) {
            inserted = insert_merges(tokenizer, some, n, &guess);
            n = 0;
        }
    }
    if (!inserted || !insert_merges(tokenizer, some, n, &guess)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s: too many pairs with one hash", key);
    }
    return DRLLM_OK;
}

void drllm_bpe_find_bytes(struct drllm_tokenizer *tokenizer) {
    tokenizer->has_all_bytes = true;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[2];
        const size_t size = write_character(drllm_byte_character((uint8_t)byte), text);
        tokenizer->byte_tokens[byte] = drllm_tokenizer_find(tokenizer, text, size);
        tokenizer->has_all_bytes = tokenizer->has_all_bytes && tokenizer->byte_tokens[byte] >= 0;
    }
}

int drllm_bpe_open(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char key[] = "tokenizer.ggml.pre";
    struct drllm_string name = {"", 0};
    if (drllm_gguf_find(gguf, key) != NULL && !drllm_gguf_get_string(gguf, key, &name)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is not a string", key);
    }
    if (!drllm_pretokenizer_find(name, &tokenizer->pretokenizer)) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "the pre-tokeniser '%.*s' (%s) is not supported",
                          name.size < 64 ? (int)name.size : 64, name.data, key);
    }
    tokenizer->whole_words = tokenizer->pretokenizer == DRLLM_PRETOKENIZE_LLAMA3;
    drllm_bpe_find_bytes(tokenizer);
    return read_merges(tokenizer, gguf, error);
}

/* ---- Encoding ---- */

static void look_up_pair(const void *context, struct drllm_symbol *left, const struct drllm_symbol *right) {
    const struct drllm_tokenizer *tokenizer = context;
    if (left->token < 0 || right->token < 0) {
        return;
    }
    const struct drllm_pair_slot *pair = find_pair(tokenizer, left->token, right->token);
    if (pair != NULL) {
        left->key = pair->rank;
        left->merged = pair->merged;
    }
}

static bool is_written_as(struct drllm_token token, struct drllm_string word) {
    size_t at = 0;
    for (size_t i = 0; i < word.size; i++) {
        char text[2];
        const size_t size = write_character(drllm_byte_character((uint8_t)word.data[i]), text);
        if (token.size - at < size || memcmp(token.text + at, text, size) != 0) {
            return false;
        }
        at += size;
    }
    return at == token.size;
}

/* The token whose text is the whole word; -1 if there is none. */
static int32_t find_word(const struct drllm_tokenizer *tokenizer, struct drllm_string word) {
    if (word.size > tokenizer->longest) {
        return -1;
    }
    uint64_t hash = DRLLM_HASH_START;
    for (size_t i = 0; i < word.size; i++) {
        char text[2];
        hash = drllm_hash_bytes(hash, text, write_character(drllm_byte_character((uint8_t)word.data[i]), text));
    }
    int32_t id = -1;
    size_t step = 0;
    do {
        id = drllm_tokenizer_probe(tokenizer, hash, &step);
    } while (id >= 0 && !is_written_as(drllm_token_at(tokenizer, id), word));
    return id;
}

static bool encode_word(const struct drllm_tokenizer *tokenizer, struct drllm_string word, struct drllm_merger *merger,
                        struct drllm_ids *ids) {
    const int32_t whole = tokenizer->whole_words ? find_word(tokenizer, word) : -1;
    if (whole >= 0) {
        return drllm_ids_append(ids, whole);
    }
    if (!drllm_merger_reserve(merger, word.size)) {
        return false;
    }
    for (size_t i = 0; i < word.size; i++) {
        merger->symbols[i].begin = (uint32_t)i;
        merger->symbols[i].size = 1;
        merger->symbols[i].token = tokenizer->byte_tokens[(uint8_t)word.data[i]];
    }
    if (!drllm_merger_run(merger, word.size)) {
        return false;
    }
    for (uint32_t i = 0; i != DRLLM_NO_SYMBOL; i = merger->symbols[i].next) {
        /* A byte of a character that the vocabulary cannot write is left out, as in llama.cpp. */
        if (merger->symbols[i].token >= 0 && !drllm_ids_append(ids, merger->symbols[i].token)) {
            return false;
        }
    }
    return true;
}

static bool encode_words(const struct drllm_tokenizer *tokenizer, const char *text, size_t size,
                         struct drllm_ids *ids) {
    struct drllm_merger merger;
    drllm_merger_init(&merger, &tokenizer->allocator);
    merger.look_up = look_up_pair;
    merger.context = tokenizer;
    struct drllm_splitter splitter;
    drllm_splitter_init(&splitter, tokenizer->pretokenizer, text, size);
    struct drllm_string word;
    bool done = true;
    while (done && drllm_splitter_next(&splitter, &word)) {
        done = encode_word(tokenizer, word, &merger, ids);
    }
    drllm_merger_free(&merger);
    return done;
}

/* Invalid bytes that have no token become U+FFFD. Returns the size; out NULL: only that. */
static size_t replace_unknown_bytes(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, char *out) {
    size_t written = 0;
    for (size_t at = 0; at < size;) {
        bool whole = false;
        const size_t n = drllm_utf8_character(text + at, size - at, &whole);
        const bool replaced = !whole && tokenizer->byte_tokens[(uint8_t)text[at]] < 0;
        const size_t n_read = whole ? n : 1, n_written = replaced ? 3 : n_read;
        if (out != NULL) {
            memcpy(out + written, replaced ? "\xEF\xBF\xBD" : text + at, n_written);
        }
        at += n_read;
        written += n_written;
    }
    return written;
}

bool drllm_bpe_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, struct drllm_ids *ids) {
    const size_t replaced = tokenizer->has_all_bytes ? size : replace_unknown_bytes(tokenizer, text, size, NULL);
    if (replaced == size) {
        return encode_words(tokenizer, text, size, ids);
    }
    char *copy = drllm_allocate(&tokenizer->allocator, replaced, 1);
    if (copy == NULL) {
        return false;
    }
    (void)replace_unknown_bytes(tokenizer, text, size, copy);
    const bool done = encode_words(tokenizer, copy, replaced, ids);
    drllm_release(&tokenizer->allocator, copy, replaced, 1);
    return done;
}
