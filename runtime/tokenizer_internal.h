/* What the tokenizer's files share. */
#ifndef DRLLM_RUNTIME_TOKENIZER_INTERNAL_H
#define DRLLM_RUNTIME_TOKENIZER_INTERNAL_H

#include "runtime/hash.h"
#include "runtime/tokenizer.h"

#include <assert.h>

/* The longest text for one call: positions are 32 bits, also when every space has become the three bytes of U+2581. */
#define DRLLM_MOST_TEXT_BYTES ((size_t)1 << 30)

/* How far from its place an item of a hash table may lie. Tables are 60 % full, so only texts made to collide need
 * more, and with the limit they cannot make searches slow either. */
enum { DRLLM_MOST_PROBES = 1024 };

enum drllm_pretokenizer {
    DRLLM_PRETOKENIZE_DEFAULT,
    DRLLM_PRETOKENIZE_GPT2,
    DRLLM_PRETOKENIZE_SMOLLM,
    DRLLM_PRETOKENIZE_LLAMA3
};

/* The tables that follow are made from a GGUF file, or lie ready in a packed one (packed_file.h), hence their sizes. */

struct drllm_token_entry {
    uint32_t at, size; /* of the text, in `bytes` */
    uint32_t type;     /* enum drllm_token_type */
};
static_assert(sizeof(struct drllm_token_entry) == 12, "part of the packed file's format");

/* Open addressing with linear probing; the slot is the hash's share of the table, so that any size will do. */
struct drllm_text_slot {
    uint32_t hash;
    int32_t id; /* -1: free */
};
static_assert(sizeof(struct drllm_text_slot) == 8, "part of the packed file's format");

struct drllm_pair_slot {
    int32_t left, right; /* left -1: free */
    int32_t merged;
    uint32_t rank; /* the lowest merges first */
};
static_assert(sizeof(struct drllm_pair_slot) == 16, "part of the packed file's format");

struct drllm_tokenizer {
    struct drllm_allocator allocator;
    bool is_bpe; /* else SentencePiece */
    bool add_bos;
    bool add_space_prefix;
    bool whole_words;      /* a word that is a token needs no merging (llama.cpp's ignore_merges) */
    bool has_all_bytes;    /* byte_tokens has no -1 */
    bool has_user_defined; /* tokens that are matched whatever the flags say */
    enum drllm_pretokenizer pretokenizer;
    int32_t bos, eos, unknown; /* -1: none */
    uint32_t longest;          /* bytes of the longest token */
    int32_t byte_tokens[256];  /* -1: none */

    const char *bytes; /* the texts, in the file */
    const struct drllm_token_entry *tokens;
    size_t n_tokens;
    const struct drllm_text_slot *texts;
    size_t n_texts;
    const struct drllm_pair_slot *pairs; /* BPE */
    size_t n_pairs;
    const uint8_t *scores; /* SentencePiece: float32 in the file, unaligned */
    struct {
        struct drllm_token_entry *tokens;
        struct drllm_text_slot *texts;
        struct drllm_pair_slot *pairs;
    } made; /* the same tables where they are this tokenizer's own; NULL where they lie in the file */

    int32_t *specials;       /* control, user-defined and unknown tokens by their texts' bytes */
    uint32_t *special_ranks; /* their places among them, the longest first */
    size_t n_specials;
    uint32_t special_begin[257]; /* those that begin with byte b are special_begin[b] .. [b + 1] */

    int32_t ends[64];
    size_t n_ends;
};

/* ---- Tokens ---- */

struct drllm_token {
    const char *text;
    uint32_t size;
    uint32_t type; /* enum drllm_token_type */
};

static inline struct drllm_token drllm_token_at(const struct drllm_tokenizer *tokenizer, int32_t id) {
    const struct drllm_token_entry *entry = &tokenizer->tokens[id];
    return (struct drllm_token){tokenizer->bytes + entry->at, entry->size, entry->type};
}

/* ---- Texts (tokenizer.c) ---- */

/* The ids whose texts have this hash, one a call; -1 at the end. Start with *step = 0. */
int32_t drllm_tokenizer_probe(const struct drllm_tokenizer *tokenizer, uint64_t hash, size_t *step);
/* -1: no such token. */
int32_t drllm_tokenizer_find(const struct drllm_tokenizer *tokenizer, const char *text, size_t size);

/* Find the special tokens and put them in order; the last step of opening. Errors: MEMORY. */
int drllm_tokenizer_collect_specials(struct drllm_tokenizer *tokenizer, struct drllm_error *error);

/* GPT-2's printable character for a byte. */
uint32_t drllm_byte_character(uint8_t byte);

/* ---- Ids that grow (tokenizer.c) ---- */

struct drllm_ids {
    const struct drllm_allocator *allocator;
    int32_t *ids;
    size_t count, capacity;
};

bool drllm_ids_append(struct drllm_ids *ids, int32_t id); /* false: no memory */
/* Room for `needed` items of `item` bytes; what is there is kept if `keep` items are. *memory may be NULL at first. */
bool drllm_grow(const struct drllm_allocator *allocator, void **memory, size_t *capacity, size_t needed, size_t item,
                size_t keep);

/* ---- Merging (tokenizer_merge.c) ---- */

#define DRLLM_NO_SYMBOL UINT32_MAX

struct drllm_symbol {
    uint32_t begin, size; /* bytes of the text */
    uint32_t previous, next;
    int32_t token;  /* -1: none */
    uint32_t key;   /* of the pair with the next symbol: the lowest is merged first, the leftmost of equals */
    int32_t merged; /* the pair's token; -1: they do not merge */
};

enum { DRLLM_FEW_SYMBOLS = 32 };

struct drllm_merger {
    const struct drllm_allocator *allocator;
    /* Sets left->key and left->merged. */
    void (*look_up)(const void *context, struct drllm_symbol *left, const struct drllm_symbol *right);
    const void *context;
    struct drllm_symbol *symbols; /* few, or allocated */
    size_t capacity;
    uint64_t *heap; /* key << 32 | left symbol */
    size_t heap_capacity, heap_size;
    struct drllm_symbol few[DRLLM_FEW_SYMBOLS];
};

void drllm_merger_init(struct drllm_merger *merger, const struct drllm_allocator *allocator);
void drllm_merger_free(struct drllm_merger *merger);
/* Room for n symbols, to be filled in (begin, size, token). */
bool drllm_merger_reserve(struct drllm_merger *merger, size_t n);
/* Merge the n symbols; the result is the list that begins at symbol 0 and goes on by `next`. False: no memory. */
bool drllm_merger_run(struct drllm_merger *merger, size_t n);

/* ---- The two kinds ---- */

/* Words of a text (tokenizer_pretokenize.c). */
struct drllm_splitter {
    enum drllm_pretokenizer kind;
    const uint8_t *text;
    size_t size, at;
    size_t segment_end, word_end, run_end;
};

/* False for a name that is not known. */
bool drllm_pretokenizer_find(struct drllm_string name, enum drllm_pretokenizer *kind);
void drllm_splitter_init(struct drllm_splitter *splitter, enum drllm_pretokenizer kind, const char *text, size_t size);
bool drllm_splitter_next(struct drllm_splitter *splitter, struct drllm_string *word); /* false at the end */

/* Read the kind's part of the metadata, once the texts can be found. */
int drllm_bpe_open(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error);
int drllm_spm_open(struct drllm_tokenizer *tokenizer, const struct drllm_gguf *gguf, struct drllm_error *error);
/* Fill in byte_tokens and has_all_bytes, once the texts can be found. */
void drllm_bpe_find_bytes(struct drllm_tokenizer *tokenizer);
void drllm_spm_find_bytes(struct drllm_tokenizer *tokenizer);

/* The sizes of the tables of texts and pairs for so many tokens or merges: 60 % full, and at least one slot stays free,
 * which ends every search. */
static inline size_t drllm_table_slots(size_t n) {
    return n + n / 3 * 2 + 2;
}

/* Append the ids of a text without special tokens. False: no memory. */
bool drllm_bpe_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, struct drllm_ids *ids);
bool drllm_spm_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, bool space_prefix,
                      struct drllm_ids *ids);

#endif
