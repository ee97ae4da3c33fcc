/* SentencePiece-style tokenising: characters are merged to the neighbours' token of the highest score; what is no token
 * becomes bytes. As llama.cpp's llm_tokenizer_spm does it. */
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/tokenizer_internal.h"

#include <string.h>

static const char space_mark[3] = {'\xE2', '\x96', '\x81'}; /* U+2581 */

void drllm_spm_find_bytes(struct drllm_tokenizer *tokenizer) {
    tokenizer->has_all_bytes = true;
    for (unsigned byte = 0; byte < 256; byte++) {
        static const char hex[] = "0123456789ABCDEF";
        const char name[] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'}, raw = (char)byte;
        int32_t token = drllm_tokenizer_find(tokenizer, name, sizeof name);
        if (token < 0) {
            token = drllm_tokenizer_find(tokenizer, &raw, 1);
        }
        tokenizer->byte_tokens[byte] = token;
        tokenizer->has_all_bytes = tokenizer->has_all_bytes && token >= 0;
    }
}

int drllm_spm_open(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error) {
    static const char key[] = "tokenizer.ggml.scores";
    const struct drllm_gguf_entry *scores = drllm_gguf_find(gguf, key);
    if (scores == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "a SentencePiece vocabulary without %s; convert the model again",
                          key);
    }
    if (scores->type != DRLLM_GGUF_ARRAY || scores->item_type != DRLLM_GGUF_F32 ||
        scores->count < tokenizer->n_tokens) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is not an array of %zu f32", key, tokenizer->n_tokens);
    }
    tokenizer->scores = scores->data;
    drllm_spm_find_bytes(tokenizer);
    return DRLLM_OK;
}

/* ---- Encoding ---- */

struct spm_text {
    const struct drllm_tokenizer *tokenizer;
    const char *bytes;
};

/* A key that is lower for a higher score. */
static uint32_t score_key(const struct drllm_tokenizer *tokenizer, int32_t token) {
    const uint8_t *bytes = tokenizer->scores + (size_t)token * 4;
    uint32_t bits = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    if (bits == 0x80000000u) {
        bits = 0; /* -0 is no less than 0 */
    }
    return bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
}

static void look_up_text(const void *context, struct drllm_symbol *left, const struct drllm_symbol *right) {
    const struct spm_text *text = context;
    const int32_t token = drllm_tokenizer_find(text->tokenizer, text->bytes + left->begin, left->size + right->size);
    if (token >= 0) {
        left->merged = token;
        left->key = score_key(text->tokenizer, token);
    }
}

/* Bytes of a character as its first byte says; they are not checked. */
static size_t character_size(char first) {
    const uint8_t byte = (uint8_t)first;
    return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

static bool append_bytes(const struct drllm_tokenizer *tokenizer, const char *bytes, size_t size,
                         struct drllm_ids *ids) {
    bool known = true;
    for (size_t i = 0; i < size; i++) {
        known = known && tokenizer->byte_tokens[(uint8_t)bytes[i]] >= 0;
    }
    if (!known) {
        return tokenizer->unknown < 0 || drllm_ids_append(ids, tokenizer->unknown);
    }
    for (size_t i = 0; i < size; i++) {
        if (!drllm_ids_append(ids, tokenizer->byte_tokens[(uint8_t)bytes[i]])) {
            return false;
        }
    }
    return true;
}

static bool encode_marked(const struct drllm_tokenizer *tokenizer, const char *bytes, size_t size,
                          struct drllm_merger *merger, struct drllm_ids *ids) {
    const struct spm_text text = {tokenizer, bytes};
    size_t n = 0;
    for (size_t at = 0; at < size; n++) {
        const size_t whole = character_size(bytes[at]);
        at += whole < size - at ? whole : size - at;
    }
    if (!drllm_merger_reserve(merger, n)) {
        return false;
    }
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        struct drllm_symbol *symbol = &merger->symbols[i];
        const size_t whole = character_size(bytes[at]);
        symbol->begin = (uint32_t)at;
        symbol->size = (uint32_t)(whole < size - at ? whole : size - at);
        symbol->token = drllm_tokenizer_find(tokenizer, bytes + at, symbol->size);
        at += symbol->size;
    }
    merger->look_up = look_up_text;
    merger->context = &text;
    if (!drllm_merger_run(merger, n)) {
        return false;
    }
    for (uint32_t i = 0; i != DRLLM_NO_SYMBOL; i = merger->symbols[i].next) {
        const struct drllm_symbol *symbol = &merger->symbols[i];
        if (!(symbol->token >= 0 ? drllm_ids_append(ids, symbol->token)
                                 : append_bytes(tokenizer, bytes + symbol->begin, symbol->size, ids))) {
            return false;
        }
    }
    return true;
}

bool drllm_spm_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, bool space_prefix,
                      struct drllm_ids *ids) {
    size_t n_spaces = space_prefix ? 1 : 0;
    for (size_t i = 0; i < size; i++) {
        n_spaces += text[i] == ' ';
    }
    /* size is at most DRLLM_MOST_TEXT_BYTES */
    const size_t most = size + (space_prefix ? 1 : 0) + 2 * n_spaces;
    if (most == 0) {
        return true;
    }
    char *marked = drllm_allocate(&tokenizer->allocator, most, 1);
    if (marked == NULL) {
        return false;
    }
    size_t at = 0;
    if (space_prefix) {
        memcpy(marked, space_mark, sizeof space_mark);
        at = sizeof space_mark;
    }
    for (size_t i = 0; i < size; i++) {
        if (text[i] == ' ') {
            memcpy(marked + at, space_mark, sizeof space_mark);
            at += sizeof space_mark;
        } else {
            marked[at++] = text[i];
        }
    }
    struct drllm_merger merger;
    drllm_merger_init(&merger, &tokenizer->allocator);
    const bool done = encode_marked(tokenizer, marked, at, &merger, ids);
    drllm_merger_free(&merger);
    drllm_release(&tokenizer->allocator, marked, most, 1);
    return done;
}
