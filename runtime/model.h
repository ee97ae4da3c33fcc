/* A model in memory: shape, vocabulary, weights ready to multiply. Immutable once open. */
#ifndef DRLLM_RUNTIME_MODEL_H
#define DRLLM_RUNTIME_MODEL_H

#include "quant/matmul.h"
#include "quant/vec.h"
#include "runtime/config.h"
#include "runtime/drllm.h"
#include "runtime/tokenizer.h"

#include <stdatomic.h>

/* The seven products of a block, in the order of the data. */
enum drllm_block_matrix {
    DRLLM_MATRIX_Q,
    DRLLM_MATRIX_K,
    DRLLM_MATRIX_V,
    DRLLM_MATRIX_OUTPUT,
    DRLLM_MATRIX_GATE,
    DRLLM_MATRIX_UP,
    DRLLM_MATRIX_DOWN,
    DRLLM_BLOCK_MATRICES
};

struct drllm_block_weights {
    const float *attention_norm; /* [d_model] */
    const float *ffn_norm;       /* [d_model] */
    struct drllm_matrix matrix[DRLLM_BLOCK_MATRICES];
    const float *bias[DRLLM_BLOCK_MATRICES]; /* [rows], NULL where the file has none */
};

/* Token embeddings are read where they lie in the file, or out of the head where it is the same matrix in the same
 * format: two copies of the largest matrix would not be. */
struct drllm_embedding {
    const struct drllm_matrix *packed; /* the head, or NULL */
    enum drllm_format format;          /* as stored; Q8C with scales */
    const unsigned char *rows;
    const float *scales;
    size_t row_bytes;
};

struct drllm_kept;

/* The memory that a model lies in, where it has to be given back or can be advised on. All zero: the caller's. */
struct drllm_backing {
    const void *data;
    size_t size;
    void *map; /* for close */
    size_t map_size;
    void (*close)(const struct drllm_backing *backing);
    void (*forget)(const void *data, size_t size); /* the range will not be read again soon: a hint */
};

struct drllm_model {
    struct drllm_allocator allocator;
    struct drllm_log log;
    enum drllm_compute compute;
    enum drllm_head head_choice;
    uint64_t cpu_features; /* detected and not masked */
    const struct drllm_vec_ops *vec;
    bool vocab_only;

    struct drllm_config config;
    struct drllm_tokenizer *tokenizer;
    struct drllm_string chat_text; /* tokenizer.chat_template */
    enum drllm_chat_template chat_template;

    struct drllm_embedding embedding;
    struct drllm_block_weights *blocks; /* [n_layers] */
    const float *output_norm;           /* [d_model] */
    struct drllm_matrix head;           /* [n_vocab][d_model] */
    double *rope_frequency;             /* [n_rot / 2] */

    struct drllm_kept *kept; /* everything that the weights own */
    struct drllm_backing backing;

    bool is_packed; /* from a packed file (packed_file.h), which says the following */
    uint64_t fingerprint;
    bool brings_routers;
    bool data_stays; /* the bytes of routers stay where they are, too, and are used there (firmware.c) */

    char *name; /* zero-terminated general.name */
    size_t name_bytes;
    const char *quantization;
    uint64_t n_params;
    uint64_t weight_bytes;
    _Atomic size_t n_users; /* open sessions and routers */
};

/* model_weights.c: find, check, convert and pack every tensor. The config must be read. */
int drllm_model_load_weights(struct drllm_model *model, const struct drllm_gguf *gguf, unsigned n_threads,
                             struct drllm_error *error);

/* Rows and columns of a block's matrix. */
void drllm_block_matrix_shape(const struct drllm_config *config, enum drllm_block_matrix which, size_t *rows,
                              size_t *cols);

/* Keep the model's name. Errors: MEMORY. */
int drllm_model_set_name(struct drllm_model *model, struct drllm_string name, struct drllm_error *error);

/* The open of drllm.h with memory that the model takes over (also when it fails). */
int drllm_model_open_backing(const struct drllm_backing *backing, const struct drllm_model_params *params,
                             struct drllm_model **model, struct drllm_error *error);

/* One row of the embedding as floats[d_model]. token in range. */
void drllm_model_embed(const struct drllm_model *model, int32_t token, float *x);

#endif
