/* A model from a packed file: the shape and the tables are checked, then everything is used where it lies. */
#include "runtime/chat.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/model.h"
#include "runtime/packed_file.h"

#include <math.h>
#include <string.h>

struct packed_loader {
    struct drllm_model *model;
    struct drllm_packed_file file;
    struct drllm_error *error;
};

static int damaged(const struct packed_loader *loader, enum drllm_packed_kind kind) {
    return drllm_fail(
        loader->error, DRLLM_ERR_FORMAT,
        "the packed model is damaged: its section '%s' does not fit the others; make it again with 'drllm "
        "pack'",
        drllm_packed_kind_name((uint32_t)kind));
}

/* The section, of exactly count * size bytes. */
static int find(const struct packed_loader *loader, enum drllm_packed_kind kind, size_t count, size_t size,
                const uint8_t **data) {
    size_t bytes;
    const int status = drllm_packed_check(&loader->file, kind, loader->error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (!drllm_multiply(count, size, &bytes) || loader->file.sections[kind].size != bytes) {
        return damaged(loader, kind);
    }
    *data = loader->file.sections[kind].data;
    return DRLLM_OK;
}

/* size bytes at `offset` of a section that need not be read for this; NULL: it has no such range. */
static const uint8_t *range(const struct packed_loader *loader, enum drllm_packed_kind kind, uint64_t offset,
                            size_t size) {
    const size_t all = loader->file.sections[kind].size;
    if (loader->file.sections[kind].data == NULL || offset % DRLLM_PACKED_ALIGNMENT != 0 || offset > all ||
        size > all - offset) {
        return NULL;
    }
    return loader->file.sections[kind].data + offset;
}

static bool to_size(uint64_t number, size_t *size) {
    *size = (size_t)number;
    return number <= SIZE_MAX;
}

static int read_config(struct packed_loader *loader) {
    struct drllm_packed_config packed;
    struct drllm_model *model = loader->model;
    struct drllm_config *config = &model->config;
    const uint8_t *data = NULL;
    int status = find(loader, DRLLM_PACKED_CONFIG, 1, sizeof packed, &data);
    if (status != DRLLM_OK) {
        return status;
    }
    memcpy(&packed, data, sizeof packed);
    const bool fits = to_size(packed.n_layers, &config->n_layers) && to_size(packed.d_model, &config->d_model) &&
                      to_size(packed.d_ff, &config->d_ff) && to_size(packed.n_heads, &config->n_heads) &&
                      to_size(packed.n_kv_heads, &config->n_kv_heads) && to_size(packed.head_dim, &config->head_dim) &&
                      to_size(packed.n_rot, &config->n_rot) && to_size(packed.n_vocab, &config->n_vocab) &&
                      to_size(packed.n_context_trained, &config->n_context_trained);
    config->rms_eps = packed.rms_eps;
    config->rope_theta = packed.rope_theta;
    config->rope_linear_factor = packed.rope_linear_factor;
    if (!fits || config->n_vocab != drllm_tokenizer_n_vocab(model->tokenizer)) {
        return damaged(loader, DRLLM_PACKED_CONFIG);
    }
    model->n_params = packed.n_params;
    model->fingerprint = packed.fingerprint;
    model->quantization = drllm_format_name(packed.quantization);
    return drllm_config_check(config, loader->error);
}

static int read_texts(struct packed_loader *loader) {
    struct drllm_model *model = loader->model;
    struct drllm_string name = {"", 0};
    const enum drllm_packed_kind kinds[] = {DRLLM_PACKED_NAME, DRLLM_PACKED_CHAT_TEMPLATE};
    struct drllm_string *const texts[] = {&name, &model->chat_text};
    for (size_t i = 0; i < 2; i++) {
        if (loader->file.sections[kinds[i]].data == NULL) {
            continue;
        }
        const int status = drllm_packed_check(&loader->file, kinds[i], loader->error);
        if (status != DRLLM_OK) {
            return status;
        }
        *texts[i] = (struct drllm_string){(const char *)loader->file.sections[kinds[i]].data,
                                          loader->file.sections[kinds[i]].size};
    }
    model->chat_template = drllm_chat_recognise(model->chat_text);
    return drllm_model_set_name(model, name, loader->error);
}

static int out_of_memory(const struct packed_loader *loader) {
    return drllm_fail(loader->error, DRLLM_ERR_MEMORY, "not enough memory for the model");
}

static int read_matrix(const struct packed_loader *loader, const struct drllm_packed_matrix *packed, size_t rows,
                       size_t cols, struct drllm_matrix *matrix) {
    struct drllm_model *model = loader->model;
    const enum drllm_format format = (enum drllm_format)packed->format;
    const size_t bytes = drllm_packed_bytes(format, rows, cols);
    *matrix = (struct drllm_matrix){.format = format,
                                    .rows = rows,
                                    .cols = cols,
                                    .panel_bytes = drllm_packed_bytes(format, DRLLM_PANEL_ROWS, cols),
                                    .kernel = drllm_kernel_choose(format, model->cpu_features)};
    if (bytes == 0 || matrix->kernel == NULL || packed->size != bytes) {
        return damaged(loader, DRLLM_PACKED_MATRICES);
    }
    matrix->data = range(loader, DRLLM_PACKED_WEIGHTS, packed->offset, bytes);
    model->weight_bytes += bytes;
    return matrix->data != NULL ? DRLLM_OK : damaged(loader, DRLLM_PACKED_MATRICES);
}

static int read_embedding(const struct packed_loader *loader, const struct drllm_packed_matrix *packed) {
    struct drllm_model *model = loader->model;
    const size_t rows = model->config.n_vocab;
    const size_t cols = model->config.d_model;
    struct drllm_embedding *embedding = &model->embedding;
    embedding->format = (enum drllm_format)packed->format;
    if (packed->size == 0) {
        embedding->packed = &model->head;
        return packed->format == (uint32_t)model->head.format ? DRLLM_OK : damaged(loader, DRLLM_PACKED_MATRICES);
    }
    const bool q8c = embedding->format == DRLLM_FORMAT_Q8C;
    const struct drllm_format_traits *traits = drllm_format_find(packed->format);
    if (!q8c && (traits == NULL || traits->format == DRLLM_FORMAT_I8)) {
        return damaged(loader, DRLLM_PACKED_MATRICES);
    }
    embedding->row_bytes = q8c ? cols : drllm_format_row_bytes(embedding->format, cols);
    size_t bytes;
    size_t scales_at = 0;
    if (embedding->row_bytes == 0 || !drllm_multiply(rows, embedding->row_bytes, &bytes)) {
        return damaged(loader, DRLLM_PACKED_MATRICES);
    }
    if (q8c) {
        if (!drllm_add_sizes(bytes, DRLLM_PACKED_ALIGNMENT - 1, &bytes)) {
            return damaged(loader, DRLLM_PACKED_MATRICES);
        }
        bytes -= bytes % DRLLM_PACKED_ALIGNMENT;
        scales_at = bytes;
        if (!drllm_add_sizes(bytes, rows * sizeof *embedding->scales, &bytes)) {
            return damaged(loader, DRLLM_PACKED_MATRICES);
        }
    }
    embedding->rows = range(loader, DRLLM_PACKED_WEIGHTS, packed->offset, bytes);
    if (embedding->rows == NULL || packed->size != bytes) {
        return damaged(loader, DRLLM_PACKED_MATRICES);
    }
    embedding->scales = q8c ? (const float *)(const void *)(embedding->rows + scales_at) : NULL;
    return DRLLM_OK;
}

static int read_matrices(struct packed_loader *loader) {
    struct drllm_model *model = loader->model;
    const size_t n_layers = model->config.n_layers;
    const size_t n = n_layers * DRLLM_BLOCK_MATRICES + 2; /* the head and the embedding */
    const uint8_t *table = NULL;
    int status = find(loader, DRLLM_PACKED_MATRICES, n, sizeof(struct drllm_packed_matrix), &table);
    for (size_t i = 0; i < n && status == DRLLM_OK; i++) {
        struct drllm_packed_matrix packed;
        memcpy(&packed, table + i * sizeof packed, sizeof packed);
        size_t rows = model->config.n_vocab;
        size_t cols = model->config.d_model;
        if (i + 1 == n) {
            status = read_embedding(loader, &packed);
        } else if (i + 2 == n) {
            status = read_matrix(loader, &packed, rows, cols, &model->head);
        } else {
            const enum drllm_block_matrix which = (enum drllm_block_matrix)(i % DRLLM_BLOCK_MATRICES);
            drllm_block_matrix_shape(&model->config, which, &rows, &cols);
            status = read_matrix(loader, &packed, rows, cols, &model->blocks[i / DRLLM_BLOCK_MATRICES].matrix[which]);
        }
    }
    return status;
}

/* *values is NULL where there is none. */
static int read_vector(const struct packed_loader *loader, const uint8_t *entry, size_t n, bool optional,
                       const float **values) {
    struct drllm_packed_vector packed;
    memcpy(&packed, entry, sizeof packed);
    *values = NULL;
    if (optional && packed.count == 0) {
        return DRLLM_OK;
    }
    /* n comes from the checked shape, so that the product is small. */
    const void *floats = range(loader, DRLLM_PACKED_VALUES, packed.offset, n * sizeof **values);
    if (packed.count != n || floats == NULL) {
        return damaged(loader, DRLLM_PACKED_VECTORS);
    }
    *values = floats;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite((*values)[i])) {
            return drllm_fail(loader->error, DRLLM_ERR_FORMAT,
                              "the packed model's section 'values' holds NaN or infinite values; make it again with "
                              "'drllm pack'");
        }
    }
    return DRLLM_OK;
}

static int read_vectors(struct packed_loader *loader) {
    enum { BLOCK_VECTORS = 2 + DRLLM_BLOCK_MATRICES };
    struct drllm_model *model = loader->model;
    const struct drllm_config *config = &model->config;
    const size_t step = sizeof(struct drllm_packed_vector);
    const uint8_t *table = NULL;
    int status = find(loader, DRLLM_PACKED_VECTORS, config->n_layers * BLOCK_VECTORS + 1, step, &table);
    if (status == DRLLM_OK) {
        status = drllm_packed_check(&loader->file, DRLLM_PACKED_VALUES, loader->error);
    }
    for (size_t layer = 0; layer < config->n_layers && status == DRLLM_OK; layer++) {
        struct drllm_block_weights *block = &model->blocks[layer];
        status = read_vector(loader, table, config->d_model, false, &block->attention_norm);
        table += step;
        if (status == DRLLM_OK) {
            status = read_vector(loader, table, config->d_model, false, &block->ffn_norm);
        }
        table += step;
        for (size_t i = 0; i < DRLLM_BLOCK_MATRICES && status == DRLLM_OK; i++, table += step) {
            status = read_vector(loader, table, block->matrix[i].rows, true, &block->bias[i]);
        }
    }
    return status != DRLLM_OK ? status : read_vector(loader, table, config->d_model, false, &model->output_norm);
}

/* Copied: float64 may lie at an odd multiple of 4 here. */
static int read_rope(struct packed_loader *loader) {
    struct drllm_model *model = loader->model;
    const size_t n = model->config.n_rot / 2;
    const uint8_t *data = NULL;
    const int status = find(loader, DRLLM_PACKED_ROPE, n, sizeof *model->rope_frequency, &data);
    if (status != DRLLM_OK) {
        return status;
    }
    model->rope_frequency = drllm_keep(&model->allocator, &model->kept, n, sizeof *model->rope_frequency);
    if (model->rope_frequency == NULL) {
        return out_of_memory(loader);
    }
    memcpy(model->rope_frequency, data, n * sizeof *model->rope_frequency);
    for (size_t i = 0; i < n; i++) {
        if (!(model->rope_frequency[i] >= 0.0 && model->rope_frequency[i] <= 1e3)) {
            return damaged(loader, DRLLM_PACKED_ROPE);
        }
    }
    return DRLLM_OK;
}

static int read_weights(struct packed_loader *loader) {
    struct drllm_model *model = loader->model;
    const size_t n_layers = model->config.n_layers;
    model->blocks = drllm_keep(&model->allocator, &model->kept, n_layers, sizeof *model->blocks);
    if (model->blocks == NULL) {
        return out_of_memory(loader);
    }
    memset(model->blocks, 0, n_layers * sizeof *model->blocks);
    int status = read_matrices(loader);
    if (status == DRLLM_OK) {
        status = read_vectors(loader);
    }
    if (status == DRLLM_OK) {
        status = read_rope(loader);
    }
    return status;
}

/* What was packed are this library's panels, and nothing else. */
static int check_compute(const struct packed_loader *loader) {
    const struct drllm_model *model = loader->model;
    if (!model->vocab_only && (model->compute != DRLLM_COMPUTE_EXACT || model->head_choice == DRLLM_HEAD_Q8C)) {
        return drllm_fail(loader->error, DRLLM_ERR_UNSUPPORTED,
                          "a packed model runs exactly and on this library's kernels only; for XNNPACK or float32 open "
                          "the GGUF file that it was made from");
    }
    return DRLLM_OK;
}

int drllm_packed_load(struct drllm_model *model, const void *data, size_t size, bool verify,
                      struct drllm_error *error) {
    struct packed_loader loader = {.model = model, .error = error};
    int status = check_compute(&loader);
    if (status == DRLLM_OK) {
        status = drllm_packed_open(&loader.file, data, size, error);
    }
    if (status == DRLLM_OK && verify) {
        status = drllm_packed_verify(&loader.file, error);
    }
    if (status == DRLLM_OK) {
        status = read_texts(&loader);
    }
    if (status == DRLLM_OK) {
        status = drllm_tokenizer_open_packed(&loader.file, &model->allocator, &model->tokenizer, error);
    }
    if (status == DRLLM_OK) {
        status = read_config(&loader);
    }
    if (status == DRLLM_OK && !model->vocab_only) {
        status = read_weights(&loader);
    }
    if (status == DRLLM_OK) {
        model->is_packed = true;
        model->brings_routers = loader.file.sections[DRLLM_PACKED_ROUTERS].data != NULL;
    }
    return status;
}
