/* The vocabulary of a packed file, whose tables are used where they lie. Every index in them is checked once, here. */
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/packed_file.h"
#include "runtime/tokenizer_internal.h"

#include <string.h>

static int damaged(struct drllm_error *error, enum drllm_packed_kind kind) {
    return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: its section '%s' does not fit the others",
                      drllm_packed_kind_name((uint32_t)kind));
}

/* The section as an array of items of a size that is a multiple of its alignment, at most 4. */
static int find_table(const struct drllm_packed_file *file, enum drllm_packed_kind kind, size_t item,
                      const void **items, size_t *count, struct drllm_error *error) {
    const int status = drllm_packed_check(file, kind, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (file->sections[kind].size % item != 0) {
        return damaged(error, kind);
    }
    *items = file->sections[kind].data;
    *count = file->sections[kind].size / item;
    return DRLLM_OK;
}

static int read_tokens(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                       struct drllm_error *error) {
    const void *items = NULL;
    int status = find_table(file, DRLLM_PACKED_TOKENS, sizeof *tokenizer->tokens, &items, &tokenizer->n_tokens, error);
    tokenizer->tokens = items;
    if (status == DRLLM_OK) {
        status = drllm_packed_check(file, DRLLM_PACKED_TOKEN_BYTES, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    const size_t n_bytes = file->sections[DRLLM_PACKED_TOKEN_BYTES].size;
    tokenizer->bytes = (const char *)file->sections[DRLLM_PACKED_TOKEN_BYTES].data;
    bool sound = tokenizer->n_tokens > 0 && tokenizer->n_tokens <= INT32_MAX;
    for (size_t id = 0; sound && id < tokenizer->n_tokens; id++) {
        const struct drllm_token_entry *token = &tokenizer->tokens[id];
        sound = token->size <= DRLLM_MOST_TEXT_BYTES && token->at <= n_bytes && token->size <= n_bytes - token->at &&
                token->type >= DRLLM_TOKEN_NORMAL && token->type <= DRLLM_TOKEN_BYTE;
        tokenizer->longest = token->size > tokenizer->longest ? token->size : tokenizer->longest;
    }
    return sound ? DRLLM_OK : damaged(error, DRLLM_PACKED_TOKENS);
}

static bool is_id(const struct drllm_tokenizer *tokenizer, int32_t id) {
    return id >= 0 && (size_t)id < tokenizer->n_tokens;
}

static bool is_id_or_none(const struct drllm_tokenizer *tokenizer, int32_t id) {
    return id == -1 || is_id(tokenizer, id);
}

/* Searches end at a free slot, so one is needed. */
static int read_index(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                      struct drllm_error *error) {
    const void *items = NULL;
    const int status =
        find_table(file, DRLLM_PACKED_TOKEN_INDEX, sizeof *tokenizer->texts, &items, &tokenizer->n_texts, error);
    if (status != DRLLM_OK) {
        return status;
    }
    tokenizer->texts = items;
    bool sound = tokenizer->n_texts == drllm_table_slots(tokenizer->n_tokens);
    size_t n_free = 0;
    for (size_t i = 0; sound && i < tokenizer->n_texts; i++) {
        sound = is_id_or_none(tokenizer, tokenizer->texts[i].id);
        n_free += tokenizer->texts[i].id < 0;
    }
    return sound && n_free > 0 ? DRLLM_OK : damaged(error, DRLLM_PACKED_TOKEN_INDEX);
}

static int read_merges(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                       struct drllm_error *error) {
    const void *items = NULL;
    const int status =
        find_table(file, DRLLM_PACKED_MERGES, sizeof *tokenizer->pairs, &items, &tokenizer->n_pairs, error);
    if (status != DRLLM_OK) {
        return status;
    }
    tokenizer->pairs = items;
    bool sound = tokenizer->n_pairs > 0 && tokenizer->n_pairs <= UINT32_MAX;
    for (size_t i = 0; sound && i < tokenizer->n_pairs; i++) {
        sound = tokenizer->pairs[i].left == -1 || is_id(tokenizer, tokenizer->pairs[i].merged);
    }
    return sound ? DRLLM_OK : damaged(error, DRLLM_PACKED_MERGES);
}

static int read_scores(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                       struct drllm_error *error) {
    const void *items = NULL;
    size_t n = 0;
    const int status = find_table(file, DRLLM_PACKED_SCORES, sizeof(float), &items, &n, error);
    if (status != DRLLM_OK) {
        return status;
    }
    tokenizer->scores = items;
    return n >= tokenizer->n_tokens ? DRLLM_OK : damaged(error, DRLLM_PACKED_SCORES);
}

static int read_settings(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                         struct drllm_error *error) {
    struct drllm_packed_vocabulary settings;
    const int status = drllm_packed_check(file, DRLLM_PACKED_VOCABULARY, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (file->sections[DRLLM_PACKED_VOCABULARY].size != sizeof settings) {
        return damaged(error, DRLLM_PACKED_VOCABULARY);
    }
    memcpy(&settings, file->sections[DRLLM_PACKED_VOCABULARY].data, sizeof settings);
    bool sound = settings.pretokenizer <= DRLLM_PRETOKENIZE_LLAMA3 && settings.n_ends <= DRLLM_PACKED_MAX_ENDS &&
                 is_id_or_none(tokenizer, settings.bos) && is_id_or_none(tokenizer, settings.eos) &&
                 is_id_or_none(tokenizer, settings.unknown);
    tokenizer->is_bpe = settings.is_bpe != 0;
    tokenizer->add_space_prefix = (settings.flags & DRLLM_PACKED_SPACE_PREFIX) != 0;
    tokenizer->add_bos = (settings.flags & DRLLM_PACKED_ADD_BOS) != 0 && settings.bos >= 0;
    tokenizer->pretokenizer = (enum drllm_pretokenizer)settings.pretokenizer;
    tokenizer->whole_words = tokenizer->is_bpe && tokenizer->pretokenizer == DRLLM_PRETOKENIZE_LLAMA3;
    tokenizer->bos = settings.bos;
    tokenizer->eos = settings.eos;
    tokenizer->unknown = settings.unknown;
    for (size_t i = 0; sound && i < settings.n_ends; i++) {
        sound = is_id(tokenizer, settings.ends[i]);
        tokenizer->ends[tokenizer->n_ends++] = settings.ends[i];
    }
    return sound ? DRLLM_OK : damaged(error, DRLLM_PACKED_VOCABULARY);
}

static int read_vocabulary(struct drllm_tokenizer *tokenizer, const struct drllm_packed_file *file,
                           struct drllm_error *error) {
    int status = read_tokens(tokenizer, file, error);
    if (status == DRLLM_OK) {
        status = read_index(tokenizer, file, error);
    }
    if (status == DRLLM_OK) {
        status = read_settings(tokenizer, file, error);
    }
    if (status == DRLLM_OK) {
        status = tokenizer->is_bpe ? read_merges(tokenizer, file, error) : read_scores(tokenizer, file, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    if (tokenizer->is_bpe) {
        drllm_bpe_find_bytes(tokenizer);
    } else {
        drllm_spm_find_bytes(tokenizer);
    }
    return drllm_tokenizer_collect_specials(tokenizer, error);
}

int drllm_tokenizer_open_packed(const struct drllm_packed_file *file, const struct drllm_allocator *allocator,
                                struct drllm_tokenizer **tokenizer, struct drllm_error *error) {
    static_assert(DRLLM_PACKED_MAX_ENDS == sizeof((struct drllm_tokenizer){0}.ends) / sizeof(int32_t), "as many ends");
    struct drllm_tokenizer *opened = drllm_allocate_zeroed(allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for a tokenizer");
    }
    opened->allocator = *allocator;
    const int status = read_vocabulary(opened, file, error);
    if (status != DRLLM_OK) {
        drllm_tokenizer_close(opened);
        return status;
    }
    *tokenizer = opened;
    return DRLLM_OK;
}
