#include "tests/router_builder.h"

#include "quant/formats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLASSES = 3, TENSORS_PER_BLOCK = 6 };

static void *must_allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

struct router_options router_default_options(const struct tiny_options *model) {
    return (struct router_options){.n_layers = model->n_layers,
                                   .d_model = model->d_model,
                                   .n_hidden = 6,
                                   .n_windows = 8,
                                   .seed = 1,
                                   .certainty = 5.0f};
}

/* ---- Tensors ---- */

/* values: [rows][cols], of which the tensor gets a copy. */
static struct tiny_tensor *add_tensor(struct router_builder *builder, size_t layer, const char *name, size_t n_dims,
                                      const float *values, size_t cols, size_t rows) {
    struct tiny_tensor *tensor = &builder->tensors[builder->n_tensors++];
    const size_t n = cols * rows;
    *tensor = (struct tiny_tensor){
        .type = DRLLM_FORMAT_F32, .n_dims = n_dims, .dims = {cols, rows}, .size = n * sizeof *values};
    (void)snprintf(tensor->name, sizeof tensor->name, "blk.%zu.router.%s", layer, name);
    tensor->data = must_allocate(n, sizeof *values);
    tensor->values = must_allocate(n, sizeof *values);
    memcpy(tensor->data, values, n * sizeof *values);
    memcpy(tensor->values, values, n * sizeof *values);
    return tensor;
}

static void add_matrix(struct router_builder *builder, size_t layer, const char *name, const float *values, size_t cols,
                       size_t rows) {
    char full[32];
    (void)snprintf(full, sizeof full, "%s.weight", name);
    struct tiny_tensor *tensor = add_tensor(builder, layer, full, 2, values, cols, rows);
    if (!builder->options.int8) {
        return;
    }
    float *scales = must_allocate(rows, sizeof *scales);
    tensor->type = DRLLM_FORMAT_I8;
    tensor->size = cols * rows;
    for (size_t row = 0; row < rows; row++) {
        int8_t *q = (int8_t *)tensor->data + row * cols;
        if (!drllm_quantize_row_q8c(values + row * cols, q, &scales[row], cols)) {
            abort();
        }
        for (size_t i = 0; i < cols; i++) {
            tensor->values[row * cols + i] = scales[row] * (float)q[i];
        }
    }
    (void)snprintf(full, sizeof full, "%s.weight_scale", name);
    (void)add_tensor(builder, layer, full, 1, scales, rows, 1);
    free(scales);
}

static void fill(struct tiny_random *random, float *values, size_t n, float deviation) {
    for (size_t i = 0; i < n; i++) {
        values[i] = deviation * tiny_random_normal(random);
    }
}

static void add_router(struct router_builder *builder, struct tiny_random *random, size_t layer) {
    const struct router_options *o = &builder->options;
    float *fc1 = must_allocate(o->n_hidden * o->d_model, sizeof *fc1);
    float *fc1_bias = must_allocate(o->n_hidden, sizeof *fc1_bias);
    float *fc2 = must_allocate(CLASSES * o->n_hidden, sizeof *fc2);
    float fc2_bias[CLASSES] = {-1.0f, 0.0f, -1.0f};
    if (o->program != NULL) {
        fc2_bias[o->program[layer]] = o->certainty;
    } else {
        /* Wide enough that prompts differ in what they decide. */
        fill(random, fc1, o->n_hidden * o->d_model, 4.0f / sqrtf((float)o->d_model));
        fill(random, fc1_bias, o->n_hidden, 0.5f);
        fill(random, fc2, CLASSES * o->n_hidden, 3.0f / sqrtf((float)o->n_hidden));
        fill(random, fc2_bias, CLASSES, 0.5f);
    }
    add_matrix(builder, layer, "fc1", fc1, o->d_model, o->n_hidden);
    (void)add_tensor(builder, layer, "fc1.bias", 1, fc1_bias, o->n_hidden, 1);
    add_matrix(builder, layer, "fc2", fc2, o->n_hidden, CLASSES);
    (void)add_tensor(builder, layer, "fc2.bias", 1, fc2_bias, CLASSES, 1);
    free(fc1);
    free(fc1_bias);
    free(fc2);
}

void router_builder_make(struct router_builder *builder, const struct router_options *options) {
    struct tiny_random random = {options->seed};
    *builder = (struct router_builder){.options = *options};
    builder->tensors = must_allocate(options->n_layers * TENSORS_PER_BLOCK, sizeof *builder->tensors);
    for (size_t layer = 0; layer < options->n_layers; layer++) {
        add_router(builder, &random, layer);
    }
}

static void free_tensor(struct tiny_tensor *tensor) {
    free(tensor->data);
    free(tensor->values);
}

void router_builder_free(struct router_builder *builder) {
    for (size_t i = 0; i < builder->n_tensors; i++) {
        free_tensor(&builder->tensors[i]);
    }
    free(builder->tensors);
    *builder = (struct router_builder){.tensors = NULL};
}

struct tiny_tensor *router_builder_find(const struct router_builder *builder, const char *name) {
    for (size_t i = 0; i < builder->n_tensors; i++) {
        if (strcmp(builder->tensors[i].name, name) == 0) {
            return &builder->tensors[i];
        }
    }
    abort();
}

void router_builder_remove(struct router_builder *builder, const char *name) {
    struct tiny_tensor *tensor = router_builder_find(builder, name);
    free_tensor(tensor);
    const size_t behind = (size_t)(builder->tensors + builder->n_tensors - (tensor + 1));
    memmove(tensor, tensor + 1, behind * sizeof *tensor);
    builder->n_tensors--;
}

/* ---- The file ---- */

struct metadata {
    struct gguf_writer writer;
    const struct tiny_edit *edits;
    size_t n_edits;
};

static bool is_edited(const struct metadata *metadata, const char *key) {
    for (size_t i = 0; i < metadata->n_edits; i++) {
        if (strcmp(metadata->edits[i].key, key) == 0) {
            return true;
        }
    }
    return false;
}

static void add_string(struct metadata *metadata, const char *key, const char *value) {
    if (value != NULL && !is_edited(metadata, key)) {
        gguf_writer_add_string(&metadata->writer, key, value);
    }
}

static void add_u32(struct metadata *metadata, const char *key, size_t value) {
    if (!is_edited(metadata, key)) {
        gguf_writer_add_u32(&metadata->writer, key, (uint32_t)value);
    }
}

static void add_f32s(struct metadata *metadata, const char *key, const float *values, size_t n) {
    if (values != NULL && !is_edited(metadata, key)) {
        gguf_writer_add_f32s(&metadata->writer, key, values, n);
    }
}

uint8_t *router_builder_write(const struct router_builder *builder, const struct tiny_edit *edits, size_t n_edits,
                              size_t *size) {
    const struct router_options *o = &builder->options;
    struct metadata metadata = {.edits = edits, .n_edits = n_edits};
    gguf_writer_init(&metadata.writer);
    add_string(&metadata, "general.architecture", "drllm-routers");
    add_string(&metadata, "general.type", "drllm-routers");
    add_string(&metadata, "general.name", o->name);
    add_u32(&metadata, "drllm.router.version", 1);
    add_u32(&metadata, "drllm.router.blocks", o->n_layers);
    add_u32(&metadata, "drllm.router.windows", o->n_windows);
    add_u32(&metadata, "drllm.router.hidden", o->n_hidden);
    add_string(&metadata, "drllm.router.model.fingerprint", o->fingerprint);
    add_string(&metadata, "drllm.router.model.name", o->model_name);
    add_string(&metadata, "drllm.router.model.quantization", o->model_quantization);
    add_f32s(&metadata, "drllm.router.calibration.bias", o->bias, o->n_bias);
    add_f32s(&metadata, "drllm.router.calibration.saved", o->saved, o->n_saved);
    add_string(&metadata, "drllm.router.training", o->training);
    for (size_t i = 0; i < n_edits; i++) {
        tiny_edit_write(&edits[i], &metadata.writer);
    }
    for (size_t i = 0; i < builder->n_tensors; i++) {
        const struct tiny_tensor *tensor = &builder->tensors[i];
        gguf_writer_add_tensor(&metadata.writer, tensor->name, tensor->type, tensor->n_dims, tensor->dims, tensor->data,
                               tensor->size);
    }
    return gguf_writer_finish(&metadata.writer, size);
}

uint8_t *router_builder_file(const struct router_options *options, size_t *size) {
    struct router_builder builder;
    router_builder_make(&builder, options);
    uint8_t *file = router_builder_write(&builder, NULL, 0, size);
    router_builder_free(&builder);
    return file;
}

/* ---- The reference ---- */

static const float *values_of(const struct router_builder *builder, size_t layer, const char *what) {
    char name[48];
    (void)snprintf(name, sizeof name, "blk.%zu.router.%s", layer, what);
    return router_builder_find(builder, name)->values;
}

static double gelu(double x) {
    const double pi = 3.14159265358979323846;
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)));
}

/* y = W x + b */
static void multiply(const float *weights, const float *bias, const double *x, size_t cols, size_t rows, double *y) {
    for (size_t row = 0; row < rows; row++) {
        y[row] = (double)bias[row];
        for (size_t i = 0; i < cols; i++) {
            y[row] += (double)weights[row * cols + i] * x[i];
        }
    }
}

void router_builder_reference(const struct router_builder *builder, size_t layer, const double *inputs, size_t n_tokens,
                              double logits[3]) {
    const struct router_options *o = &builder->options;
    const size_t n_windows = o->n_windows < n_tokens ? o->n_windows : n_tokens;
    if (n_windows == 0) {
        abort();
    }
    const size_t width = n_tokens / n_windows;
    double *pooled = must_allocate(o->d_model, sizeof *pooled), *hidden = must_allocate(o->n_hidden, sizeof *hidden);
    memset(logits, 0, CLASSES * sizeof *logits);
    for (size_t window = 0; window < n_windows; window++) {
        for (size_t i = 0; i < o->d_model; i++) {
            pooled[i] = 0.0;
            for (size_t t = window * width; t < (window + 1) * width; t++) {
                pooled[i] += inputs[t * o->d_model + i] / (double)width;
            }
        }
        multiply(values_of(builder, layer, "fc1.weight"), values_of(builder, layer, "fc1.bias"), pooled, o->d_model,
                 o->n_hidden, hidden);
        for (size_t i = 0; i < o->n_hidden; i++) {
            hidden[i] = gelu(hidden[i]);
        }
        double y[CLASSES];
        multiply(values_of(builder, layer, "fc2.weight"), values_of(builder, layer, "fc2.bias"), hidden, o->n_hidden,
                 CLASSES, y);
        for (size_t i = 0; i < CLASSES; i++) {
            logits[i] += y[i] / (double)n_windows;
        }
    }
    free(pooled);
    free(hidden);
}
