/* Tiny Llama models as GGUF files in memory, and what the tests that use them share. Allocation failures end the
 * program.
 *
 * A model is made in two steps, so that a test can damage it in between: tiny_model_make fills in the list of
 * tensors, tiny_model_write puts metadata and tensors into a file. */
#ifndef DRLLM_TESTS_TINY_MODEL_H
#define DRLLM_TESTS_TINY_MODEL_H

#include "quant/formats.h"
#include "runtime/drllm.h"
#include "tests/gguf_writer.h"

struct tiny_options {
    size_t n_layers, d_model, d_ff, n_heads, n_kv_heads, head_dim;
    size_t n_vocab; /* at least TINY_FIRST_PIECE */
    size_t n_rot;   /* 0: head_dim */
    size_t n_context;
    enum drllm_format blocks, down, embedding,
        head;    /* down: of ffn_down, whose rows have another length. Q8C: int8 beside
                                                        its scales */
    bool untied; /* a head of its own */
    bool biases;
    bool rope_freqs;
    float rope_linear; /* 0: none */
    float rope_theta;
    uint64_t seed;
    /* Texts of the tokens from TINY_FIRST_PIECE on; NULL: made up */
    const char *const *pieces;
    bool
        bpe; /* a GPT-2 style vocabulary instead of SentencePiece; its pieces are pairs of letters, with their merges */
    /* NULL: random weights. Otherwise blocks do nothing and the token after t is next[t] by far the likeliest; this
     * needs n_vocab <= d_model. Where next[t] is -1, all are alike. */
    const int32_t *next;
};

/* Three layers, F32, tied head. */
struct tiny_options tiny_default_options(void);

enum {
    TINY_UNKNOWN = 0,
    TINY_BOS = 1,
    TINY_EOS = 2,
    TINY_FIRST_BYTE = 3,
    TINY_FIRST_PIECE = TINY_FIRST_BYTE + 256,
    TINY_MAX_TENSORS = 96
};

struct tiny_tensor {
    char name[48];
    uint32_t type;
    size_t n_dims, dims[2];
    void *data; /* as the file has it */
    size_t size;
    float *values; /* what it stands for; those of an int8 tensor include its scales */
};

/* An entry of the metadata that is not as it should be. */
struct tiny_edit {
    const char *key;
    enum { TINY_OMIT, TINY_U32, TINY_F32, TINY_STRING, TINY_U32_ARRAY } kind; /* an array of two equal numbers */
    uint32_t u32;
    float f32;
    const char *string;
};
/* The entry as it goes into a file: nothing for TINY_OMIT. */
void tiny_edit_write(const struct tiny_edit *edit, struct gguf_writer *writer);

struct tiny_model {
    struct tiny_options options;
    struct tiny_tensor tensors[TINY_MAX_TENSORS];
    size_t n_tensors;
};

void tiny_model_make(struct tiny_model *model, const struct tiny_options *options);
void tiny_model_free(struct tiny_model *model);
/* The end of the program if there is none. */
struct tiny_tensor *tiny_model_find(struct tiny_model *model, const char *name);
/* NULL if there is none. */
const float *tiny_model_values(const struct tiny_model *model, const char *name);
void tiny_model_remove(struct tiny_model *model, const char *name);
/* A tensor of `size` zero bytes without values. */
void tiny_model_add(struct tiny_model *model, const char *name, uint32_t type, size_t cols, size_t rows, size_t size);
/* The file, to be freed. */
uint8_t *tiny_model_write(const struct tiny_model *model, const struct tiny_edit *edits, size_t n_edits, size_t *size);
/* Both steps. */
uint8_t *tiny_model_file(const struct tiny_options *options, size_t *size);

/* A pass over tokens in double precision, from the tensors' values. */
struct tiny_pass {
    const struct tiny_model *model;
    /* What goes into a product is first rounded to 8 bits with one scale for so many values, and keys and values to
     * F16; 0: neither is. */
    size_t group;
    const uint8_t *program; /* how often each block runs, [n_layers]; NULL: once */
    const int32_t *tokens;
    size_t n_tokens;
    double *logits; /* out: after each token, [n_tokens][n_vocab] */
    double *hidden; /* out: the last token's residual after every block and the final norm, [n_layers + 1][d_model] */
    double *inputs; /* out: the residuals ahead of every block, [n_layers][n_tokens][d_model]; either may be NULL */
};
void tiny_pass_run(const struct tiny_pass *pass);

/* At full depth, without inputs. */
void tiny_model_reference(const struct tiny_model *model, size_t group, const int32_t *tokens, size_t n_tokens,
                          double *logits, double *hidden);

/* ---- Random numbers, the same everywhere ---- */

struct tiny_random {
    uint64_t state;
};
uint64_t tiny_random_u64(struct tiny_random *random);
double tiny_random_uniform(struct tiny_random *random); /* [0, 1) */
float tiny_random_normal(struct tiny_random *random);
void tiny_random_tokens(uint64_t seed, int32_t *tokens, size_t n_tokens, size_t n_vocab);

/* ---- Memory that is counted and can run out ---- */

struct tiny_counted {
    size_t n_calls, fail_at; /* fail_at: the number of the call that fails, from 0; SIZE_MAX: none */
    size_t n_live, live_bytes;
    bool wrong; /* a release with another size than allocated, or an allocation that the header forbids */
};
struct drllm_allocator tiny_counted_allocator(struct tiny_counted *counted);

#endif
