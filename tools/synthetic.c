#include "tools/synthetic.h"

#include "quant/half.h"
#include "runtime/gguf.h"
#include "tools/interrupt.h"
#include "tools/random.h"
#include "tools/synthetic_vocabulary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct synthetic_shape synthetic_shapes[] = {
    {"smollm2-135m", 30, 576, 1536, 9, 3, 49152, 8192, 100000, true, SYNTHETIC_SMOLLM},
    {"llama-3.2-1b", 16, 2048, 8192, 32, 8, 128256, 131072, 500000, true, SYNTHETIC_LLAMA3},
    {"tinyllama-1.1b", 22, 2048, 5632, 32, 4, 32000, 2048, 10000, false, SYNTHETIC_SPM},
    {"llama-3.2-3b", 28, 3072, 8192, 24, 8, 128256, 131072, 500000, true, SYNTHETIC_LLAMA3},
};
const size_t n_synthetic_shapes = sizeof synthetic_shapes / sizeof synthetic_shapes[0];

/* ---- What the command line names ---- */

int synthetic_parse_shape(const struct command *command, const char *text, struct synthetic_shape *shape) {
    const size_t size = strcspn(text, ":");
    int64_t n_layers = 0;
    if (text[size] == ':' && (!parse_integer(text + size + 1, &n_layers) || n_layers < 1 || n_layers > 1000)) {
        return usage_error(command, "'%s': a number of layers from 1 to 1000 must follow the colon", text);
    }
    for (size_t i = 0; i < n_synthetic_shapes; i++) {
        if (strlen(synthetic_shapes[i].name) == size && memcmp(synthetic_shapes[i].name, text, size) == 0) {
            *shape = synthetic_shapes[i];
            shape->n_layers = n_layers != 0 ? (size_t)n_layers : shape->n_layers;
            return TOOL_OK;
        }
    }
    struct text names = {NULL, 0, 0};
    for (size_t i = 0; i < n_synthetic_shapes; i++) {
        text_append(&names, i != 0 ? ", " : "", i != 0 ? 2 : 0);
        text_append(&names, synthetic_shapes[i].name, strlen(synthetic_shapes[i].name));
    }
    const int exit_code = usage_error(command, "there is no shape '%.*s'; known are %s", (int)(size < 100 ? size : 100),
                                      text, names.data);
    text_release(&names);
    return exit_code;
}

int synthetic_parse_format(const struct command *command, const char *text, enum drllm_format *format) {
    static const enum drllm_format known[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(drllm_format_name(known[i]), text) == 0) {
            *format = known[i];
            return TOOL_OK;
        }
    }
    return usage_error(command, "random weights are made in q4_0, q4_1 and q8_0, not in '%s'", text);
}

/* ---- Tensors ---- */

enum { NAME_BYTES = 48, LAYER_TENSORS = 9, OTHER_TENSORS = 4 };

struct model {
    const struct synthetic *synthetic;
    struct drllm_gguf_file_tensor *tensors;
    char (*names)[NAME_BYTES];
    size_t count;
};

static void add_tensor(struct model *model, const char *name, size_t cols, size_t rows, enum drllm_format format) {
    char *copy = model->names[model->count];
    snprintf(copy, NAME_BYTES, "%s", name);
    model->tensors[model->count++] = (struct drllm_gguf_file_tensor){
        .name = {copy, strlen(copy)}, .n_dims = rows != 0 ? 2 : 1, .dims = {cols, rows}, .type = format};
}

static size_t head_width(const struct synthetic_shape *shape) {
    return shape->d_model / shape->n_heads;
}

static void add_layer(struct model *model, size_t layer) {
    const struct synthetic_shape *shape = &model->synthetic->shape;
    const size_t d = shape->d_model;
    const size_t kv = shape->n_kv_heads * head_width(shape);
    const struct {
        const char *name;
        size_t cols, rows; /* rows 0: a vector */
    } tensors[LAYER_TENSORS] = {
        {"attn_norm", d, 0},
        {"attn_q", d, d},
        {"attn_k", d, kv},
        {"attn_v", d, kv},
        {"attn_output", d, d},
        {"ffn_norm", d, 0},
        {"ffn_gate", d, shape->d_ff},
        {"ffn_up", d, shape->d_ff},
        {"ffn_down", shape->d_ff, d},
    };
    for (size_t i = 0; i < LAYER_TENSORS; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "blk.%zu.%s.weight", layer, tensors[i].name);
        add_tensor(model, name, tensors[i].cols, tensors[i].rows,
                   tensors[i].rows != 0 ? model->synthetic->format : DRLLM_FORMAT_F32);
    }
}

static void add_tensors(struct model *model) {
    const struct synthetic_shape *shape = &model->synthetic->shape;
    const size_t most = shape->n_layers * LAYER_TENSORS + OTHER_TENSORS;
    const enum drllm_format outer = model->synthetic->pure ? model->synthetic->format : DRLLM_FORMAT_Q8_0;
    model->tensors = allocate(most, sizeof *model->tensors);
    model->names = allocate(most, sizeof *model->names);
    add_tensor(model, "token_embd.weight", shape->d_model, shape->n_vocab, outer);
    if (shape->vocabulary == SYNTHETIC_LLAMA3) {
        add_tensor(model, "rope_freqs.weight", head_width(shape) / 2, 0, DRLLM_FORMAT_F32);
    }
    for (size_t layer = 0; layer < shape->n_layers; layer++) {
        add_layer(model, layer);
    }
    add_tensor(model, "output_norm.weight", shape->d_model, 0, DRLLM_FORMAT_F32);
    if (!shape->tied) {
        add_tensor(model, "output.weight", shape->d_model, shape->n_vocab, outer);
    }
}

/* ---- Weights: even over the format's values, with scales that give a row of n weights the length 1 ---- */

static uint16_t random_scale(uint64_t *random, double deviation, size_t n) {
    return drllm_f32_to_f16((float)((0.75 + 0.5 * random_uniform(random)) / (deviation * sqrt((double)n))));
}

static void random_bytes(uint64_t *random, void *bytes, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        const uint64_t word = random_next(random);
        memcpy((uint8_t *)bytes + i, &word, 8);
    }
}

/* Deviations: of 0..15, and of -127..127. */
static void random_blocks(enum drllm_format format, uint64_t *random, void *row, size_t n) {
    const double deviation4 = 4.61;
    const double deviation8 = 73.3;
    for (size_t i = 0; i < n / DRLLM_GROUP; i++) {
        if (format == DRLLM_FORMAT_Q4_0) {
            struct drllm_block_q4_0 *block = (struct drllm_block_q4_0 *)row + i;
            random_bytes(random, block->qs, sizeof block->qs);
            /* Of either sign, or the missing +8 would add up over a row. */
            block->d = (uint16_t)(random_scale(random, deviation4, n) | (i % 2 != 0 ? 0x8000u : 0));
        } else if (format == DRLLM_FORMAT_Q4_1) {
            struct drllm_block_q4_1 *block = (struct drllm_block_q4_1 *)row + i;
            random_bytes(random, block->qs, sizeof block->qs);
            block->d = random_scale(random, deviation4, n);
            block->m = drllm_f32_to_f16(-7.5f * drllm_f16_to_f32(block->d));
        } else {
            struct drllm_block_q8_0 *block = (struct drllm_block_q8_0 *)row + i;
            random_bytes(random, block->qs, sizeof block->qs);
            for (size_t k = 0; k < DRLLM_GROUP; k++) {
                block->qs[k] = block->qs[k] == -128 ? 0 : block->qs[k];
            }
            block->d = random_scale(random, deviation8, n);
        }
    }
}

/* Llama 3's: wavelengths beyond the old context are stretched. */
static void rope_factors(const struct synthetic_shape *shape, float *factors, size_t n) {
    const double pi = 3.14159265358979323846, context = 8192, low = 1, high = 4, most = 32;
    for (size_t i = 0; i < n; i++) {
        const double turns = context * pow(shape->rope_theta, -(double)i / (double)n) / (2 * pi);
        const double smooth = (turns - low) / (high - low);
        factors[i] = (float)(turns > high ? 1 : turns < low ? most : 1 / ((1 - smooth) / most + smooth));
    }
}

static int produce(void *user, size_t tensor, size_t first_row, size_t n_rows, void *bytes, struct drllm_error *error) {
    const struct model *model = user;
    const struct drllm_gguf_file_tensor *made = &model->tensors[tensor];
    const size_t n = made->dims[0];
    (void)error;
    if (interrupt_seen()) {
        return DRLLM_ERR_CANCELLED;
    }
    if (strcmp(model->names[tensor], "rope_freqs.weight") == 0) {
        rope_factors(&model->synthetic->shape, bytes, n);
        return DRLLM_OK;
    }
    const size_t row_bytes = drllm_format_row_bytes((enum drllm_format)made->type, n);
    for (size_t i = 0; i < n_rows; i++) {
        uint64_t place = model->synthetic->seed ^ (uint64_t)tensor << 40 ^ (first_row + i);
        uint64_t random = random_next(&place); /* each row its own, so that it does not matter how they are cut */
        if (made->type == DRLLM_FORMAT_F32) {
            for (size_t k = 0; k < n; k++) {
                ((float *)bytes)[k] = (float)(0.9 + 0.2 * random_uniform(&random));
            }
        } else {
            random_blocks((enum drllm_format)made->type, &random, (uint8_t *)bytes + i * row_bytes, n);
        }
    }
    return DRLLM_OK;
}

/* ---- The file ---- */

static void add_metadata(struct drllm_gguf_changes *changes, const struct synthetic *synthetic) {
    const struct synthetic_shape *shape = &synthetic->shape;
    const enum drllm_format format = synthetic->format;
    char name[64];
    snprintf(name, sizeof name, "synthetic %s", shape->name);
    const struct {
        const char *key;
        size_t value;
    } numbers[] = {
        {"general.quantization_version", 2},
        {"general.file_type", format == DRLLM_FORMAT_Q4_0   ? 2
                              : format == DRLLM_FORMAT_Q4_1 ? 3
                                                            : 7}, /* llama.cpp's */
        {"llama.block_count", shape->n_layers},
        {"llama.context_length", shape->n_context},
        {"llama.embedding_length", shape->d_model},
        {"llama.feed_forward_length", shape->d_ff},
        {"llama.attention.head_count", shape->n_heads},
        {"llama.attention.head_count_kv", shape->n_kv_heads},
        {"llama.rope.dimension_count", head_width(shape)},
        {"llama.vocab_size", shape->n_vocab},
    };
    drllm_gguf_set_string(changes, "general.architecture", "llama", 5);
    drllm_gguf_set_string(changes, "general.name", name, strlen(name));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        drllm_gguf_set_u32(changes, numbers[i].key, (uint32_t)numbers[i].value);
    }
    drllm_gguf_set_f32(changes, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    drllm_gguf_set_f32(changes, "llama.rope.freq_base", (float)shape->rope_theta);
    synthetic_add_vocabulary(changes, shape);
}

int synthetic_write(const struct command *command, const struct synthetic *synthetic, const char *path,
                    uint64_t *size) {
    struct model model = {.synthetic = synthetic};
    struct drllm_gguf_changes changes = {0};
    struct drllm_error error = {0};
    add_tensors(&model);
    add_metadata(&changes, synthetic);
    const struct drllm_gguf_file file = {
        .changes = &changes, .tensors = model.tensors, .n_tensors = model.count, .produce = produce, .user = &model};
    const int status = drllm_gguf_file_write(path, &file, size, &error);
    drllm_gguf_changes_release(&changes);
    free(model.tensors);
    free(model.names);
    if (status == DRLLM_ERR_CANCELLED) {
        report(command, "interrupted; nothing was written");
        return TOOL_INTERRUPTED;
    }
    return status == DRLLM_OK ? TOOL_OK : report_status(command, "cannot write the model", status, error.detail);
}
