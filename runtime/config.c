#include "runtime/config.h"

#include "runtime/error.h"

/* No real model comes near; sizes below never overflow when two of them are multiplied with a few bytes (64-bit),
 * and the int32 sums of the q8c kernels hold. */
enum { MAX_WIDTH = 1 << 17, MAX_LAYERS = 1 << 12, MAX_CONTEXT = 1 << 28, MAX_HEADS = 1 << 12 };

static int read_size(const struct drllm_gguf *gguf, const char *key, size_t max, size_t *value,
                     struct drllm_error *error) {
    uint64_t number;
    if (!drllm_gguf_get_u64(gguf, key, &number)) {
        if (drllm_gguf_find(gguf, key) != NULL) {
            return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                              "%s is not a single number; only uniform layers are supported", key);
        }
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file has no key %s; it is damaged or not a whole model", key);
    }
    if (number == 0 || number > max) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%s is %llu; 1 to %zu makes sense", key, (unsigned long long)number,
                          max);
    }
    *value = (size_t)number;
    return DRLLM_OK;
}

static int read_size_or(const struct drllm_gguf *gguf, const char *key, size_t max, size_t otherwise, size_t *value,
                        struct drllm_error *error) {
    if (drllm_gguf_find(gguf, key) == NULL) {
        *value = otherwise;
        return DRLLM_OK;
    }
    return read_size(gguf, key, max, value, error);
}

int drllm_config_check_architecture(const struct drllm_gguf *gguf, struct drllm_error *error) {
    struct drllm_string architecture;
    if (!drllm_gguf_get_string(gguf, "general.architecture", &architecture)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file has no key general.architecture; it is not a model");
    }
    if (!drllm_string_equals(architecture, "llama")) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "the architecture is \"%.*s\"; only llama is supported",
                          (int)(architecture.size < 64 ? architecture.size : 64), architecture.data);
    }
    return DRLLM_OK;
}

static int read_rope(const struct drllm_gguf *gguf, struct drllm_config *config, struct drllm_error *error) {
    float theta = 10000.0f;
    (void)drllm_gguf_get_f32(gguf, "llama.rope.freq_base", &theta);
    if (!(theta >= 1.0f && theta <= 1e12f)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "llama.rope.freq_base is out of range");
    }
    config->rope_theta = (double)theta;

    struct drllm_string type;
    const bool typed = drllm_gguf_get_string(gguf, "llama.rope.scaling.type", &type);
    float factor = 1.0f;
    if (typed && !drllm_string_equals(type, "linear") && !drllm_string_equals(type, "none")) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "llama.rope.scaling.type is \"%.*s\"; none, linear and the rope_freqs tensor are supported",
                          (int)(type.size < 64 ? type.size : 64), type.data);
    }
    /* Files without a type are scaled linearly by whichever factor they name; 0 stands for none. */
    if ((!typed || drllm_string_equals(type, "linear")) &&
        !drllm_gguf_get_f32(gguf, "llama.rope.scaling.factor", &factor)) {
        (void)drllm_gguf_get_f32(gguf, "llama.rope.scale_linear", &factor);
    }
    factor = factor == 0.0f ? 1.0f : factor;
    if (!(factor >= 1e-3f && factor <= 1e6f)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the rope scaling factor is out of range");
    }
    config->rope_linear_factor = (double)factor;
    return DRLLM_OK;
}

static int check_heads(const struct drllm_config *c, size_t value_length, struct drllm_error *error) {
    if (c->n_heads % c->n_kv_heads != 0) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "%zu key/value heads do not divide %zu heads", c->n_kv_heads,
                          c->n_heads);
    }
    if (value_length != c->head_dim || c->head_dim % 8 != 0 || c->head_dim == 0) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "heads of %zu keys and %zu values; equal numbers that are multiples of 8 are supported",
                          c->head_dim, value_length);
    }
    if (c->head_dim > MAX_WIDTH / c->n_heads) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "%zu heads of %zu are too wide", c->n_heads, c->head_dim);
    }
    if (c->n_rot > c->head_dim || c->n_rot % 2 != 0) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "llama.rope.dimension_count is %zu for heads of %zu", c->n_rot,
                          c->head_dim);
    }
    return DRLLM_OK;
}

int drllm_config_check(const struct drllm_config *config, struct drllm_error *error) {
    const struct {
        const char *name;
        size_t value, most;
    } sizes[] = {
        {"blocks", config->n_layers, MAX_LAYERS},           {"the width", config->d_model, MAX_WIDTH},
        {"the inner width", config->d_ff, MAX_WIDTH},       {"heads", config->n_heads, MAX_HEADS},
        {"key/value heads", config->n_kv_heads, MAX_HEADS}, {"a head's width", config->head_dim, MAX_HEADS},
        {"rotated values", config->n_rot, MAX_HEADS},       {"the context", config->n_context_trained, MAX_CONTEXT},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i].value == 0 || sizes[i].value > sizes[i].most) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "%s: %zu; 1 to %zu makes sense", sizes[i].name, sizes[i].value,
                              sizes[i].most);
        }
    }
    if (!(config->rms_eps > 0.0f && config->rms_eps < 1.0f)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the norms' epsilon is out of range");
    }
    return check_heads(config, config->head_dim, error);
}

int drllm_config_read(const struct drllm_gguf *gguf, struct drllm_config *config, struct drllm_error *error) {
    uint64_t n_experts = 0;
    if (drllm_gguf_get_u64(gguf, "llama.expert_count", &n_experts) && n_experts > 0) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "the model has %llu experts; mixtures of experts are not supported",
                          (unsigned long long)n_experts);
    }
    struct drllm_config c = {0};
    int status = read_size(gguf, "llama.block_count", MAX_LAYERS, &c.n_layers, error);
    if (status == DRLLM_OK) {
        status = read_size(gguf, "llama.embedding_length", MAX_WIDTH, &c.d_model, error);
    }
    if (status == DRLLM_OK) {
        status = read_size(gguf, "llama.feed_forward_length", MAX_WIDTH, &c.d_ff, error);
    }
    if (status == DRLLM_OK) {
        status = read_size(gguf, "llama.attention.head_count", MAX_HEADS, &c.n_heads, error);
    }
    if (status == DRLLM_OK) {
        status = read_size_or(gguf, "llama.attention.head_count_kv", MAX_HEADS, c.n_heads, &c.n_kv_heads, error);
    }
    if (status == DRLLM_OK) {
        status = read_size_or(gguf, "llama.attention.key_length", MAX_HEADS, c.d_model / c.n_heads, &c.head_dim, error);
    }
    size_t value_length = 0;
    if (status == DRLLM_OK) {
        status = read_size_or(gguf, "llama.attention.value_length", MAX_HEADS, c.head_dim, &value_length, error);
    }
    if (status == DRLLM_OK) {
        status = read_size_or(gguf, "llama.rope.dimension_count", MAX_HEADS, c.head_dim, &c.n_rot, error);
    }
    if (status == DRLLM_OK) {
        status = read_size_or(gguf, "llama.context_length", MAX_CONTEXT, 2048, &c.n_context_trained, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    status = check_heads(&c, value_length, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (!drllm_gguf_get_f32(gguf, "llama.attention.layer_norm_rms_epsilon", &c.rms_eps) ||
        !(c.rms_eps > 0.0f && c.rms_eps < 1.0f)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "llama.attention.layer_norm_rms_epsilon is missing or out of range");
    }
    status = read_rope(gguf, &c, error);
    if (status == DRLLM_OK) {
        *config = c;
    }
    return status;
}
