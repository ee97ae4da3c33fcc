/* The shape of a Llama model, read from the metadata of its GGUF file. */
#ifndef DRLLM_RUNTIME_CONFIG_H
#define DRLLM_RUNTIME_CONFIG_H

#include "runtime/gguf.h"

struct drllm_config {
    size_t n_layers;
    size_t d_model;
    size_t d_ff;
    size_t n_heads;
    size_t n_kv_heads; /* divides n_heads */
    size_t head_dim;   /* a multiple of 8 */
    size_t n_rot;      /* leading values of a head that are rotated; even */
    size_t n_vocab;
    size_t n_context_trained;
    float rms_eps;
    double rope_theta;
    double rope_linear_factor; /* positions are divided by it */
};

/* Everything but n_vocab, which is the vocabulary's. Errors: FORMAT (a key is missing or absurd), UNSUPPORTED (another
 * architecture, experts, rope scaling of another kind; the detail names it). */
int drllm_config_read(const struct drllm_gguf *gguf, struct drllm_config *config, struct drllm_error *error);

/* Whether the numbers make sense, alone and together; all but n_vocab. Errors: FORMAT, UNSUPPORTED. */
int drllm_config_check(const struct drllm_config *config, struct drllm_error *error);

/* UNSUPPORTED unless general.architecture is llama. */
int drllm_config_check_architecture(const struct drllm_gguf *gguf, struct drllm_error *error);

#endif
