/* What a router file knows its model by (drllm_model_fingerprint in internal.h). */
#include "runtime/hash.h"
#include "runtime/internal.h"
#include "runtime/model.h"

#include <string.h>

/* Little-endian, on every machine. */
static void add_number(uint64_t *hash, uint64_t number) {
    unsigned char bytes[8];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(number >> (8 * i));
    }
    *hash = drllm_hash_bytes(*hash, bytes, sizeof bytes);
}

static void add_floats(uint64_t *hash, const float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        add_number(hash, bits);
    }
}

static void add_shapes(uint64_t *hash, const struct drllm_config *config) {
    const size_t shapes[] = {config->n_layers, config->d_model, config->n_heads, config->n_kv_heads,
                             config->head_dim, config->d_ff,    config->n_vocab, config->n_rot};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        add_number(hash, shapes[i]);
    }
}

static void add_vocabulary(uint64_t *hash, const struct drllm_tokenizer *tokenizer) {
    for (size_t id = 0; id < drllm_tokenizer_n_vocab(tokenizer); id++) {
        const struct drllm_string text = drllm_tokenizer_token_text(tokenizer, (int32_t)id);
        add_number(hash, text.size);
        *hash = drllm_hash_bytes(*hash, text.data, text.size);
    }
}

uint64_t drllm_model_fingerprint(const struct drllm_model *model) {
    uint64_t hash = DRLLM_HASH_START;
    if (model->vocab_only) {
        return 0;
    }
    if (model->is_packed) {
        return model->fingerprint;
    }
    const size_t d_model = model->config.d_model;
    add_shapes(&hash, &model->config);
    add_vocabulary(&hash, model->tokenizer);
    for (size_t layer = 0; layer < model->config.n_layers; layer++) {
        add_floats(&hash, model->blocks[layer].attention_norm, d_model);
        add_floats(&hash, model->blocks[layer].ffn_norm, d_model);
    }
    add_floats(&hash, model->output_norm, d_model);
    return hash;
}
