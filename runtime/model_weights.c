/* The tensors of a model: found by name, checked against the metadata, and handed to weights_pack.c. */
#include "quant/unpack.h"
#include "runtime/choice.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/rope.h"
#include "runtime/weights.h"

#include <math.h>
#include <string.h>

enum { NAME_BYTES = 64 };

/* ---- Finding tensors ---- */

static const struct drllm_gguf_tensor *find(const struct drllm_loader *loader, const char *name) {
    return drllm_gguf_find_tensor(loader->gguf, name);
}

static int check_shape(const struct drllm_loader *loader, const struct drllm_gguf_tensor *tensor, const char *name,
                       size_t cols, size_t rows) {
    if (tensor->data == NULL) {
        return drllm_fail(
            loader->error, DRLLM_ERR_UNSUPPORTED,
            "tensor %s has type %s, which is not supported; f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, "
            "q4_k, q5_k and q6_k are",
            name, drllm_format_name(tensor->type));
    }
    if (tensor->dims[0] != cols || tensor->dims[1] != rows || tensor->dims[2] != 1 || tensor->dims[3] != 1) {
        return drllm_fail(loader->error, DRLLM_ERR_FORMAT, "tensor %s is %zu x %zu; the metadata wants %zu x %zu", name,
                          tensor->dims[0], tensor->dims[1], cols, rows);
    }
    return DRLLM_OK;
}

/* A vector as floats in memory of the model's; *values is NULL when the tensor is not there. */
static int load_vector(struct drllm_loader *loader, const char *name, size_t n, const float **values) {
    const struct drllm_gguf_tensor *tensor = find(loader, name);
    *values = NULL;
    if (tensor == NULL) {
        return DRLLM_OK;
    }
    const int status = check_shape(loader, tensor, name, n, 1);
    if (status != DRLLM_OK) {
        return status;
    }
    float *copy = drllm_weights_keep(loader, n, sizeof *copy);
    if (copy == NULL) {
        return drllm_weights_out_of_memory(loader, name);
    }
    if (tensor->type == DRLLM_FORMAT_I8) {
        return drllm_fail(loader->error, DRLLM_ERR_FORMAT, "tensor %s cannot be int8", name);
    }
    drllm_dequantize_row((enum drllm_format)tensor->type, tensor->data, copy, n);
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(copy[i])) {
            return drllm_fail(loader->error, DRLLM_ERR_FORMAT,
                              "tensor %s holds NaN or infinite values; the file is damaged", name);
        }
    }
    *values = copy;
    return DRLLM_OK;
}

static int load_norm(struct drllm_loader *loader, const char *name, const float **values) {
    const int status = load_vector(loader, name, loader->model->config.d_model, values);
    if (status == DRLLM_OK && *values == NULL) {
        return drllm_fail(loader->error, DRLLM_ERR_FORMAT,
                          "the file has no tensor %s; it is damaged or not a whole model", name);
    }
    return status;
}

/* The kernels' exact sums need |q| <= 127. */
static int check_q8c(const struct drllm_loader *loader, const struct drllm_source *source) {
    if (source->scales == NULL) { /* not q8c */
        return DRLLM_OK;
    }
    bool sound = memchr(source->data, 0x80, source->bytes) == NULL;
    for (size_t i = 0; i < source->rows; i++) {
        sound = sound && isfinite(source->scales[i]) && source->scales[i] >= 0.0f;
    }
    return sound ? DRLLM_OK
                 : drllm_fail(loader->error, DRLLM_ERR_FORMAT, "tensor %s holds -128 or a scale that is none",
                              source->name);
}

/* `base` is the name without ".weight". */
static int find_matrix(const struct drllm_loader *loader, const char *base, size_t cols, size_t rows,
                       char name[NAME_BYTES], struct drllm_source *source) {
    drllm_format_text(name, NAME_BYTES, "%s.weight", base);
    const struct drllm_gguf_tensor *tensor = find(loader, name);
    if (tensor == NULL) {
        return drllm_fail(loader->error, DRLLM_ERR_FORMAT,
                          "the file has no tensor %s; it is damaged or not a whole model", name);
    }
    const int status = check_shape(loader, tensor, name, cols, rows);
    if (status != DRLLM_OK) {
        return status;
    }
    *source = (struct drllm_source){.name = name,
                                    .stored = (enum drllm_format)tensor->type,
                                    .data = tensor->data,
                                    .rows = rows,
                                    .cols = cols,
                                    .row_bytes = tensor->size / rows,
                                    .bytes = tensor->size};
    if (source->stored == DRLLM_FORMAT_I8) {
        char scale_name[NAME_BYTES];
        drllm_format_text(scale_name, sizeof scale_name, "%s_scale", name);
        const struct drllm_gguf_tensor *scales = find(loader, scale_name);
        if (scales == NULL || scales->type != DRLLM_FORMAT_F32 || scales->size != rows * sizeof(float)) {
            return drllm_fail(loader->error, DRLLM_ERR_FORMAT, "tensor %s is int8, but %s does not hold its %zu scales",
                              name, scale_name, rows);
        }
        source->stored = DRLLM_FORMAT_Q8C;
        source->scales = scales->data;
    }
    return DRLLM_OK;
}

/* ---- The whole model ---- */

static void note_conversion(struct drllm_loader *loader, enum drllm_format stored, enum drllm_format run) {
    size_t i = 0;
    while (i < loader->n_conversions &&
           (loader->conversions[i].stored != stored || loader->conversions[i].run != run)) {
        i++;
    }
    if (i == DRLLM_MAX_CONVERSIONS) {
        return;
    }
    if (i == loader->n_conversions) {
        loader->conversions[loader->n_conversions++] = (struct drllm_conversion){stored, run, 0};
    }
    loader->conversions[i].count++;
}

/* A matrix of the network, without ".weight" in its name, and where it goes. */
struct place {
    char base[NAME_BYTES];
    size_t cols, rows;
    bool is_head;
    struct drllm_matrix *matrix;
};

static int choose(const struct drllm_loader *loader, const struct place *place, char name[NAME_BYTES],
                  struct drllm_source *source, struct drllm_choice_of_format *choice) {
    const struct drllm_model *model = loader->model;
    const int status = find_matrix(loader, place->base, place->cols, place->rows, name, source);
    if (status == DRLLM_OK && !drllm_choose_format(source->stored, place->cols, place->is_head, model->compute,
                                                   model->head_choice, model->cpu_features, choice)) {
        return drllm_fail(loader->error, DRLLM_ERR_UNSUPPORTED, "tensor %s has type %s, which cannot be multiplied",
                          name, drllm_format_name(source->stored));
    }
    return status;
}

static int measure_matrix(struct drllm_loader *loader, const struct place *place) {
    char name[NAME_BYTES];
    struct drllm_source source;
    struct drllm_choice_of_format choice;
    const int status = choose(loader, place, name, &source, &choice);
    if (status != DRLLM_OK || choice.xnnpack) {
        return status;
    }
    const size_t bytes = drllm_packed_bytes(choice.format, place->rows, place->cols);
    if (bytes == 0 || drllm_kernel_choose(choice.format, loader->model->cpu_features) == NULL) {
        return drllm_fail(loader->error, DRLLM_ERR_UNSUPPORTED, "tensor %s (%zu x %zu) cannot run as %s", name,
                          place->rows, place->cols, drllm_format_name(choice.format));
    }
    return drllm_add_sizes(loader->packed_bytes, drllm_round_up(bytes), &loader->packed_bytes)
               ? DRLLM_OK
               : drllm_weights_out_of_memory(loader, name);
}

static int load_matrix(struct drllm_loader *loader, const struct place *place) {
    struct drllm_model *model = loader->model;
    struct drllm_matrix *matrix = place->matrix;
    char name[NAME_BYTES];
    struct drllm_source source;
    struct drllm_choice_of_format choice;
    int status = choose(loader, place, name, &source, &choice);
    if (status == DRLLM_OK) {
        status = check_q8c(loader, &source);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    *matrix = (struct drllm_matrix){.format = choice.format, .rows = place->rows, .cols = place->cols};
    status = choice.xnnpack ? drllm_weights_pack_for_xnn(loader, &source, matrix)
                            : drllm_weights_pack(loader, &source, matrix);
    if (status != DRLLM_OK) {
        return status;
    }
    if (choice.format != source.stored) {
        note_conversion(loader, source.stored, choice.format);
    }
    if (!place->is_head) {
        loader->bytes_by_format[source.stored == DRLLM_FORMAT_Q8C ? DRLLM_FORMAT_I8 : source.stored] += source.bytes;
    }
    if (model->backing.forget != NULL) {
        /* All tensors, since systems map pages around the one that is read as well. */
        model->backing.forget(loader->data, loader->data_size);
    }
    if (place->is_head && source.data == model->embedding.rows && choice.format == source.stored && !choice.xnnpack) {
        model->embedding.packed = &model->head;
    }
    return DRLLM_OK;
}

void drllm_block_matrix_shape(const struct drllm_config *config, enum drllm_block_matrix which, size_t *rows,
                              size_t *cols) {
    const size_t q_width = config->n_heads * config->head_dim;
    const size_t kv_width = config->n_kv_heads * config->head_dim;
    const size_t shapes[DRLLM_BLOCK_MATRICES][2] = {
        [DRLLM_MATRIX_Q] = {q_width, config->d_model},         [DRLLM_MATRIX_K] = {kv_width, config->d_model},
        [DRLLM_MATRIX_V] = {kv_width, config->d_model},        [DRLLM_MATRIX_OUTPUT] = {config->d_model, q_width},
        [DRLLM_MATRIX_GATE] = {config->d_ff, config->d_model}, [DRLLM_MATRIX_UP] = {config->d_ff, config->d_model},
        [DRLLM_MATRIX_DOWN] = {config->d_model, config->d_ff},
    };
    *rows = shapes[which][0];
    *cols = shapes[which][1];
}

static void block_base(char base[NAME_BYTES], size_t layer, size_t which) {
    static const char *const names[DRLLM_BLOCK_MATRICES] = {
        [DRLLM_MATRIX_Q] = "attn_q",           [DRLLM_MATRIX_K] = "attn_k",      [DRLLM_MATRIX_V] = "attn_v",
        [DRLLM_MATRIX_OUTPUT] = "attn_output", [DRLLM_MATRIX_GATE] = "ffn_gate", [DRLLM_MATRIX_UP] = "ffn_up",
        [DRLLM_MATRIX_DOWN] = "ffn_down",
    };
    drllm_format_text(base, NAME_BYTES, "blk.%zu.%s", layer, names[which]);
}

/* All matrices in the order in which a token meets them. */
static int for_each_matrix(struct drllm_loader *loader, int (*visit)(struct drllm_loader *, const struct place *)) {
    struct drllm_model *model = loader->model;
    const struct drllm_config *config = &model->config;
    struct place place = {.is_head = false};
    for (size_t i = 0; i < config->n_layers * DRLLM_BLOCK_MATRICES; i++) {
        const size_t which = i % DRLLM_BLOCK_MATRICES;
        drllm_block_matrix_shape(config, (enum drllm_block_matrix)which, &place.rows, &place.cols);
        block_base(place.base, i / DRLLM_BLOCK_MATRICES, which);
        place.matrix = &model->blocks[i / DRLLM_BLOCK_MATRICES].matrix[which];
        const int status = visit(loader, &place);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    const char *head = find(loader, "output.weight") != NULL ? "output" : "token_embd"; /* tied */
    place = (struct place){.cols = config->d_model, .rows = config->n_vocab, .is_head = true, .matrix = &model->head};
    drllm_format_text(place.base, sizeof place.base, "%s", head);
    return visit(loader, &place);
}

/* One piece of memory for all: the system can give it in huge pages, of which a decoded token touches every one. */
static int load_matrices(struct drllm_loader *loader) {
    const int status = for_each_matrix(loader, measure_matrix);
    if (status != DRLLM_OK) {
        return status;
    }
    if (loader->packed_bytes != 0) {
        loader->packed = drllm_weights_keep(loader, loader->packed_bytes, 1);
        if (loader->packed == NULL) {
            return drllm_fail(loader->error, DRLLM_ERR_MEMORY, "not enough memory for %zu bytes of weights",
                              loader->packed_bytes);
        }
    }
    return for_each_matrix(loader, load_matrix);
}

/* Norms and biases. */
static int load_block_vectors(struct drllm_loader *loader, size_t layer) {
    struct drllm_block_weights *block = &loader->model->blocks[layer];
    char base[NAME_BYTES], name[NAME_BYTES];
    for (size_t i = 0; i < DRLLM_BLOCK_MATRICES; i++) {
        size_t rows, cols;
        drllm_block_matrix_shape(&loader->model->config, (enum drllm_block_matrix)i, &rows, &cols);
        block_base(base, layer, i);
        drllm_format_text(name, sizeof name, "%s.bias", base);
        const int status = load_vector(loader, name, rows, &block->bias[i]);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    drllm_format_text(name, sizeof name, "blk.%zu.attn_norm.weight", layer);
    const int status = load_norm(loader, name, &block->attention_norm);
    if (status != DRLLM_OK) {
        return status;
    }
    drllm_format_text(name, sizeof name, "blk.%zu.ffn_norm.weight", layer);
    return load_norm(loader, name, &block->ffn_norm);
}

static int load_rope(struct drllm_loader *loader) {
    struct drllm_model *model = loader->model;
    const struct drllm_config *config = &model->config;
    const float *factors = NULL;
    int status = load_vector(loader, "rope_freqs.weight", config->n_rot / 2, &factors);
    if (status != DRLLM_OK) {
        return status;
    }
    for (size_t i = 0; factors != NULL && i < config->n_rot / 2; i++) {
        if (!(factors[i] >= 1e-3f && factors[i] <= 1e6f)) {
            return drllm_fail(loader->error, DRLLM_ERR_FORMAT, "rope_freqs.weight holds a factor that is out of range");
        }
    }
    model->rope_frequency = drllm_weights_keep(loader, config->n_rot / 2, sizeof *model->rope_frequency);
    if (model->rope_frequency == NULL) {
        return drllm_weights_out_of_memory(loader, "rope_freqs.weight");
    }
    drllm_rope_frequencies(model->rope_frequency, config->n_rot, config->rope_theta, config->rope_linear_factor,
                           factors);
    return DRLLM_OK;
}

static int load_embedding(struct drllm_loader *loader) {
    struct drllm_model *model = loader->model;
    char name[NAME_BYTES];
    struct drllm_source source;
    int status = find_matrix(loader, "token_embd", model->config.d_model, model->config.n_vocab, name, &source);
    if (status == DRLLM_OK &&
        find(loader, "output.weight") != NULL) { /* else it is the head, whose values are checked */
        status = check_q8c(loader, &source);
    }
    if (status == DRLLM_OK) {
        model->embedding = (struct drllm_embedding){
            .format = source.stored, .rows = source.data, .scales = source.scales, .row_bytes = source.row_bytes};
    }
    return status;
}

void drllm_model_embed(const struct drllm_model *model, int32_t token, float *x) {
    const struct drllm_embedding *embedding = &model->embedding;
    if (embedding->packed != NULL) {
        drllm_dequantize_packed_row(embedding->packed, (size_t)token, x);
        return;
    }
    const struct drllm_source source = {.stored = embedding->format,
                                        .data = embedding->rows,
                                        .scales = embedding->scales,
                                        .cols = model->config.d_model,
                                        .row_bytes = embedding->row_bytes};
    drllm_weights_dequantize_row(&source, (size_t)token, x);
}

static void finish(struct drllm_loader *loader) {
    struct drllm_model *model = loader->model;
    for (size_t i = 0; i < loader->n_conversions; i++) {
        const struct drllm_conversion *conversion = &loader->conversions[i];
        drllm_log_line(&model->log, DRLLM_LOG_INFO, "%zu tensors converted at load: %s -> %s", conversion->count,
                       drllm_format_name(conversion->stored), drllm_format_name(conversion->run));
    }
    size_t most = 0;
    for (size_t i = 1; i <= DRLLM_FORMAT_BF16; i++) {
        most = loader->bytes_by_format[i] > loader->bytes_by_format[most] ? i : most;
    }
    model->quantization = drllm_format_name(most == DRLLM_FORMAT_I8 ? (uint32_t)DRLLM_FORMAT_Q8C : (uint32_t)most);
}

/* The bytes from the first tensor to the last. */
static void find_data(struct drllm_loader *loader) {
    const unsigned char *end = NULL;
    for (size_t i = 0; i < loader->gguf->n_tensors; i++) {
        const struct drllm_gguf_tensor *tensor = &loader->gguf->tensors[i];
        const unsigned char *data = tensor->data;
        if (data == NULL) {
            continue;
        }
        loader->data = loader->data == NULL || data < loader->data ? data : loader->data;
        end = end == NULL || data + tensor->size > end ? data + tensor->size : end;
    }
    loader->data_size = loader->data != NULL ? (size_t)(end - loader->data) : 0;
}

static int load(struct drllm_loader *loader) {
    struct drllm_model *model = loader->model;
    find_data(loader);
    const struct drllm_config *config = &model->config;
    model->blocks = drllm_weights_keep(loader, config->n_layers, sizeof *model->blocks);
    if (model->blocks == NULL) {
        return drllm_weights_out_of_memory(loader, "blk.0");
    }
    memset(model->blocks, 0, config->n_layers * sizeof *model->blocks);
    int status = load_rope(loader);
    if (status == DRLLM_OK) {
        status = load_embedding(loader);
    }
    if (status == DRLLM_OK) {
        status = load_norm(loader, "output_norm.weight", &model->output_norm);
    }
    for (size_t layer = 0; layer < config->n_layers && status == DRLLM_OK; layer++) {
        status = load_block_vectors(loader, layer);
    }
    if (status == DRLLM_OK) {
        status = load_matrices(loader);
    }
    if (status == DRLLM_OK) {
        finish(loader);
    }
    return status;
}

int drllm_model_load_weights(struct drllm_model *model, const struct drllm_gguf *gguf, unsigned n_threads,
                             struct drllm_error *error) {
    struct drllm_loader loader = {.model = model, .gguf = gguf, .error = error};
    /* Without threads loading is slower, not wrong. */
    loader.threads = drllm_threads_create(n_threads);
    const int status = load(&loader);
    drllm_threads_destroy(loader.threads);
    return status;
}
