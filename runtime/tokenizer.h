/* Text to token ids and back. tokenizer.c: the vocabulary, special tokens, detokenising; tokenizer_bpe.c: GPT-2
 * style byte pair encoding; tokenizer_pretokenize.c: how BPE splits text into words; tokenizer_spm.c:
 * SentencePiece-style merging by score with byte fallback. */
#ifndef DRLLM_RUNTIME_TOKENIZER_H
#define DRLLM_RUNTIME_TOKENIZER_H

#include "runtime/gguf.h"

struct drllm_tokenizer;

/* The numbers of tokenizer.ggml.token_type. */
enum drllm_token_type {
    DRLLM_TOKEN_NORMAL = 1,
    DRLLM_TOKEN_UNKNOWN = 2,
    DRLLM_TOKEN_CONTROL = 3,
    DRLLM_TOKEN_USER_DEFINED = 4,
    DRLLM_TOKEN_UNUSED = 5,
    DRLLM_TOKEN_BYTE = 6
};

/* The gguf's data must outlive the tokenizer (token texts stay there); the struct itself need not. Errors: FORMAT,
 * UNSUPPORTED (names the tokenizer model or pre-tokeniser), MEMORY. Thread-safe once open. */
int drllm_tokenizer_open(const struct drllm_gguf *gguf, const struct drllm_allocator *allocator,
                         struct drllm_tokenizer **tokenizer, struct drllm_error *error);
void drllm_tokenizer_close(struct drllm_tokenizer *tokenizer);

size_t drllm_tokenizer_n_vocab(const struct drllm_tokenizer *tokenizer);
int32_t drllm_tokenizer_bos(const struct drllm_tokenizer *tokenizer); /* -1: none */
int32_t drllm_tokenizer_eos(const struct drllm_tokenizer *tokenizer);
bool drllm_tokenizer_add_bos(const struct drllm_tokenizer *tokenizer);
bool drllm_tokenizer_is_end(const struct drllm_tokenizer *tokenizer, int32_t token);
/* The token as the file writes it. id in range. */
struct drllm_string drllm_tokenizer_token_text(const struct drllm_tokenizer *tokenizer, int32_t token);
enum drllm_token_type drllm_tokenizer_token_type(const struct drllm_tokenizer *tokenizer, int32_t token);

/* As drllm_tokenize, drllm_token_bytes, drllm_detokenize of drllm.h. */
int drllm_tokenizer_encode(const struct drllm_tokenizer *tokenizer, const char *text, size_t size, unsigned flags,
                           int32_t *tokens, size_t capacity, size_t *n_tokens, struct drllm_error *error);
int drllm_tokenizer_token_bytes(const struct drllm_tokenizer *tokenizer, int32_t token, bool special, char *bytes,
                                size_t capacity, size_t *size);
int drllm_tokenizer_decode(const struct drllm_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                           bool special, char *text, size_t capacity, size_t *size);

#endif
