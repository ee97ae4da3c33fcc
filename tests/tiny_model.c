#include "tests/tiny_model.h"

#include "runtime/tokenizer_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must_allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

/* ---- Random numbers ---- */

/* splitmix64 */
uint64_t tiny_random_u64(struct tiny_random *random) {
    random->state += 0x9e3779b97f4a7c15u;
    uint64_t z = random->state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double tiny_random_uniform(struct tiny_random *random) {
    return (double)(tiny_random_u64(random) >> 11) * 0x1p-53;
}

/* Nearly: the sum of twelve, which needs no library's logarithm. */
float tiny_random_normal(struct tiny_random *random) {
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        sum += tiny_random_uniform(random);
    }
    return (float)sum;
}

void tiny_random_tokens(uint64_t seed, int32_t *tokens, size_t n_tokens, size_t n_vocab) {
    struct tiny_random random = {seed};
    for (size_t i = 0; i < n_tokens; i++) {
        tokens[i] = (int32_t)(tiny_random_u64(&random) % n_vocab);
    }
}

/* ---- Tensors ---- */

static struct tiny_tensor *add_tensor(struct tiny_model *model, const char *name, uint32_t type, size_t n_dims,
                                      size_t cols, size_t rows, size_t size) {
    if (model->n_tensors == TINY_MAX_TENSORS) {
        abort();
    }
    struct tiny_tensor *tensor = &model->tensors[model->n_tensors++];
    *tensor = (struct tiny_tensor){.type = type, .n_dims = n_dims, .dims = {cols, rows}, .size = size};
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the data is the model's */
    (void)snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->data = must_allocate(size, 1);
    return tensor;
}

static void add_vector(struct tiny_model *model, const char *name, const float *values, size_t n) {
    struct tiny_tensor *tensor = add_tensor(model, name, DRLLM_FORMAT_F32, 1, n, 1, n * sizeof *values);
    memcpy(tensor->data, values, n * sizeof *values);
    tensor->values = must_allocate(n, sizeof *values);
    memcpy(tensor->values, values, n * sizeof *values);
}

static void add_random_vector(struct tiny_model *model, struct tiny_random *random, const char *name, float mean,
                              float deviation, size_t n) {
    float *values = must_allocate(n, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        values[i] = mean + deviation * tiny_random_normal(random);
    }
    add_vector(model, name, values, n);
    free(values);
}

static void put_f16(struct tiny_random *random, uint16_t *field, float value) {
    const float scaled = value * (float)(0.75 + 0.5 * tiny_random_uniform(random));
    (void)drllm_quantize_row(DRLLM_FORMAT_F16, &scaled, field, 1);
}

static void random_bytes(struct tiny_random *random, void *memory, size_t size) {
    uint8_t *bytes = memory;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)(tiny_random_u64(random) >> 56);
    }
}

/* One block of a format that the library reads but does not write: random bytes, and scales that give weights of
 * about this deviation. */
static void random_block(struct tiny_random *random, enum drllm_format format, void *block, size_t size,
                         float deviation) {
    random_bytes(random, block, size);
    switch (format) {
    case DRLLM_FORMAT_Q5_0:
        put_f16(random, &((struct drllm_block_q5_0 *)block)->d, deviation / 9.2f);
        break;
    case DRLLM_FORMAT_Q5_1:
        put_f16(random, &((struct drllm_block_q5_1 *)block)->d, deviation / 9.2f);
        put_f16(random, &((struct drllm_block_q5_1 *)block)->m, -deviation / 9.2f * 15.5f);
        break;
    case DRLLM_FORMAT_Q4_K:
        put_f16(random, &((struct drllm_block_q4_k *)block)->d, deviation / 250.0f);
        put_f16(random, &((struct drllm_block_q4_k *)block)->dmin, deviation / 250.0f * 7.5f);
        break;
    case DRLLM_FORMAT_Q5_K:
        put_f16(random, &((struct drllm_block_q5_k *)block)->d, deviation / 500.0f);
        put_f16(random, &((struct drllm_block_q5_k *)block)->dmin, deviation / 500.0f * 15.5f);
        break;
    case DRLLM_FORMAT_Q6_K:
        put_f16(random, &((struct drllm_block_q6_k *)block)->d, deviation / 1400.0f);
        break;
    default:
        abort();
    }
}

static void fill_row(struct tiny_random *random, enum drllm_format format, const float *values, void *row, size_t cols,
                     float deviation) {
    if (drllm_quantize_row(format, values, row, cols)) {
        return;
    }
    const struct drllm_format_traits *traits = drllm_format_find((uint32_t)format);
    if (traits == NULL) {
        abort();
    }
    for (size_t i = 0; i < cols / traits->block_size; i++) {
        random_block(random, format, (uint8_t *)row + i * traits->block_bytes, traits->block_bytes, deviation);
    }
}

/* values [rows][cols] are what the tensor gets, as exactly as its format allows. */
static void add_matrix_of(struct tiny_model *model, struct tiny_random *random, const char *base,
                          enum drllm_format format, const float *values, size_t cols, size_t rows, float deviation) {
    char name[48];
    (void)snprintf(name, sizeof name, "%s.weight", base);
    const bool q8c = format == DRLLM_FORMAT_Q8C;
    const uint32_t type = q8c ? DRLLM_FORMAT_I8 : (uint32_t)format;
    const size_t row_bytes = q8c ? cols : drllm_format_row_bytes(format, cols);
    if (row_bytes == 0) {
        abort();
    }
    struct tiny_tensor *tensor = add_tensor(model, name, type, 2, cols, rows, rows * row_bytes);
    float *scales = must_allocate(rows, sizeof *scales);
    tensor->values = must_allocate(rows * cols, sizeof *tensor->values);
    for (size_t row = 0; row < rows; row++) {
        uint8_t *stored = (uint8_t *)tensor->data + row * row_bytes;
        float *stands_for = tensor->values + row * cols;
        if (!q8c) {
            fill_row(random, format, values + row * cols, stored, cols, deviation);
            drllm_dequantize_row(format, stored, stands_for, cols);
            continue;
        }
        (void)drllm_quantize_row_q8c(values + row * cols, (int8_t *)stored, &scales[row], cols);
        for (size_t i = 0; i < cols; i++) {
            stands_for[i] = scales[row] * (float)(int8_t)stored[i];
        }
    }
    if (q8c) {
        (void)snprintf(name, sizeof name, "%s.weight_scale", base);
        add_vector(model, name, scales, rows);
    }
    free(scales);
}

static void add_matrix(struct tiny_model *model, struct tiny_random *random, const char *base, enum drllm_format format,
                       size_t cols, size_t rows, float deviation) {
    float *values = must_allocate(rows * cols, sizeof *values);
    for (size_t i = 0; i < rows * cols; i++) {
        values[i] = deviation * tiny_random_normal(random);
    }
    add_matrix_of(model, random, base, format, values, cols, rows, deviation);
    free(values);
}

/* ---- The model ---- */

struct tiny_options tiny_default_options(void) {
    return (struct tiny_options){.n_layers = 3,
                                 .d_model = 64,
                                 .d_ff = 96,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 16,
                                 .n_vocab = TINY_FIRST_PIECE + 18,
                                 .n_context = 512,
                                 .rope_theta = 10000.0f,
                                 .seed = 1};
}

static void add_block(struct tiny_model *model, struct tiny_random *random, size_t layer) {
    const struct tiny_options *o = &model->options;
    const size_t q_width = o->n_heads * o->head_dim;
    const size_t kv_width = o->n_kv_heads * o->head_dim;
    const struct {
        const char *name;
        size_t cols, rows;
        enum drllm_format format;
    } matrices[] = {{"attn_q", o->d_model, q_width, o->blocks},   {"attn_k", o->d_model, kv_width, o->blocks},
                    {"attn_v", o->d_model, kv_width, o->blocks},  {"attn_output", q_width, o->d_model, o->blocks},
                    {"ffn_gate", o->d_model, o->d_ff, o->blocks}, {"ffn_up", o->d_model, o->d_ff, o->blocks},
                    {"ffn_down", o->d_ff, o->d_model, o->down}};
    char name[48];
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        /* Blocks that do nothing have zeros. */
        const float deviation = o->next != NULL ? 0.0f : 1.0f / sqrtf((float)matrices[i].cols);
        (void)snprintf(name, sizeof name, "blk.%zu.%s", layer, matrices[i].name);
        add_matrix(model, random, name, matrices[i].format, matrices[i].cols, matrices[i].rows, deviation);
        if (o->biases) {
            (void)snprintf(name, sizeof name, "blk.%zu.%s.bias", layer, matrices[i].name);
            add_random_vector(model, random, name, 0.0f, 0.3f, matrices[i].rows);
        }
    }
    (void)snprintf(name, sizeof name, "blk.%zu.attn_norm.weight", layer);
    add_random_vector(model, random, name, 1.0f, 0.2f, o->d_model);
    (void)snprintf(name, sizeof name, "blk.%zu.ffn_norm.weight", layer);
    add_random_vector(model, random, name, 1.0f, 0.2f, o->d_model);
}

/* Embedding t is the unit vector t; the head's row of the next token looks for it. */
static void add_script(struct tiny_model *model, struct tiny_random *random) {
    const struct tiny_options *o = &model->options;
    if (o->n_vocab > o->d_model) {
        abort();
    }
    float *embedding = must_allocate(o->n_vocab * o->d_model, sizeof *embedding);
    float *head = must_allocate(o->n_vocab * o->d_model, sizeof *head);
    for (size_t t = 0; t < o->n_vocab; t++) {
        embedding[t * o->d_model + t] = 1.0f;
        if (o->next[t] >= 0) {
            head[(size_t)o->next[t] * o->d_model + t] = 4.0f;
        }
    }
    add_matrix_of(model, random, "token_embd", o->embedding, embedding, o->d_model, o->n_vocab, 0.0f);
    add_matrix_of(model, random, "output", o->head, head, o->d_model, o->n_vocab, 0.0f);
    free(embedding);
    free(head);
}

void tiny_model_make(struct tiny_model *model, const struct tiny_options *options) {
    *model = (struct tiny_model){.options = *options};
    struct tiny_options *o = &model->options;
    o->n_rot = o->n_rot == 0 ? o->head_dim : o->n_rot;
    struct tiny_random random = {o->seed};
    if (o->next != NULL) {
        o->untied = true;
        add_script(model, &random);
    } else {
        add_matrix(model, &random, "token_embd", o->embedding, o->d_model, o->n_vocab, 0.4f);
    }
    for (size_t layer = 0; layer < o->n_layers; layer++) {
        add_block(model, &random, layer);
    }
    add_random_vector(model, &random, "output_norm.weight", 1.0f, o->next != NULL ? 0.0f : 0.2f, o->d_model);
    if (o->untied && o->next == NULL) {
        add_matrix(model, &random, "output", o->head, o->d_model, o->n_vocab, 0.3f);
    }
    if (o->rope_freqs) {
        float *factors = must_allocate(o->n_rot / 2, sizeof *factors);
        for (size_t i = 0; i < o->n_rot / 2; i++) {
            factors[i] = i < o->n_rot / 4 ? 1.0f : (float)(1.0 + 7.0 * tiny_random_uniform(&random));
        }
        add_vector(model, "rope_freqs.weight", factors, o->n_rot / 2);
        free(factors);
    }
}

void tiny_model_free(struct tiny_model *model) {
    for (size_t i = 0; i < model->n_tensors; i++) {
        free(model->tensors[i].data);
        free(model->tensors[i].values);
    }
    model->n_tensors = 0;
}

struct tiny_tensor *tiny_model_find(struct tiny_model *model, const char *name) {
    for (size_t i = 0; i < model->n_tensors; i++) {
        if (strcmp(model->tensors[i].name, name) == 0) {
            return &model->tensors[i];
        }
    }
    abort();
}

const float *tiny_model_values(const struct tiny_model *model, const char *name) {
    for (size_t i = 0; i < model->n_tensors; i++) {
        if (strcmp(model->tensors[i].name, name) == 0) {
            return model->tensors[i].values;
        }
    }
    return NULL;
}

void tiny_model_remove(struct tiny_model *model, const char *name) {
    struct tiny_tensor *tensor = tiny_model_find(model, name);
    free(tensor->data);
    free(tensor->values);
    const size_t behind = (size_t)(model->tensors + model->n_tensors - (tensor + 1));
    memmove(tensor, tensor + 1, behind * sizeof *tensor);
    model->n_tensors--;
}

void tiny_model_add(struct tiny_model *model, const char *name, uint32_t type, size_t cols, size_t rows, size_t size) {
    (void)add_tensor(model, name, type, 2, cols, rows, size);
}

/* ---- The file ---- */

struct metadata {
    struct gguf_writer writer;
    const struct tiny_edit *edits;
    size_t n_edits;
};

void tiny_edit_write(const struct tiny_edit *edit, struct gguf_writer *writer) {
    const uint32_t two[] = {edit->u32, edit->u32};
    switch (edit->kind) {
    case TINY_OMIT:
        break;
    case TINY_U32:
        gguf_writer_add_u32(writer, edit->key, edit->u32);
        break;
    case TINY_F32:
        gguf_writer_add_f32(writer, edit->key, edit->f32);
        break;
    case TINY_STRING:
        gguf_writer_add_string(writer, edit->key, edit->string);
        break;
    case TINY_U32_ARRAY:
        gguf_writer_add_array(writer, edit->key, 4, two, 2, sizeof two[0]);
        break;
    }
}

static bool is_edited(const struct metadata *metadata, const char *key) {
    for (size_t i = 0; i < metadata->n_edits; i++) {
        if (strcmp(metadata->edits[i].key, key) == 0) {
            return true;
        }
    }
    return false;
}

static void add_u32(struct metadata *metadata, const char *key, size_t value) {
    if (!is_edited(metadata, key)) {
        gguf_writer_add_u32(&metadata->writer, key, (uint32_t)value);
    }
}

static void add_f32(struct metadata *metadata, const char *key, float value) {
    if (!is_edited(metadata, key)) {
        gguf_writer_add_f32(&metadata->writer, key, value);
    }
}

static void add_string(struct metadata *metadata, const char *key, const char *value) {
    if (!is_edited(metadata, key)) {
        gguf_writer_add_string(&metadata->writer, key, value);
    }
}

/* A SentencePiece vocabulary: special tokens, all bytes, pieces. */
static void add_vocabulary(struct metadata *metadata, const struct tiny_options *o) {
    enum { TEXT_BYTES = 64 };
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    static const int32_t special_types[] = {2, 3, 3};
    char(*texts)[TEXT_BYTES] = must_allocate(o->n_vocab, sizeof *texts);
    const char **pointers = must_allocate(o->n_vocab, sizeof *pointers);
    float *scores = must_allocate(o->n_vocab, sizeof *scores);
    int32_t *types = must_allocate(o->n_vocab, sizeof *types);
    if (o->n_vocab < TINY_FIRST_PIECE) {
        abort();
    }
    for (size_t i = 0; i < o->n_vocab; i++) {
        pointers[i] = texts[i];
        scores[i] = -(float)i;
        if (i < TINY_FIRST_BYTE) {
            (void)snprintf(texts[i], TEXT_BYTES, "%s", special[i]);
            types[i] = special_types[i];
        } else if (i < TINY_FIRST_PIECE) {
            (void)snprintf(texts[i], TEXT_BYTES, "<0x%02X>", (unsigned)(i - TINY_FIRST_BYTE));
            types[i] = 6;
        } else {
            types[i] = 1;
            if (o->pieces != NULL) {
                pointers[i] = o->pieces[i - TINY_FIRST_PIECE];
            } else {
                const size_t number = i - TINY_FIRST_PIECE;
                (void)snprintf(texts[i], TEXT_BYTES, "\xE2\x96\x81%c%c", (char)('a' + number % 26),
                               (char)('a' + number / 26 % 26));
            }
        }
    }
    add_string(metadata, "tokenizer.ggml.model", "llama");
    if (!is_edited(metadata, "tokenizer.ggml.tokens")) {
        gguf_writer_add_strings(&metadata->writer, "tokenizer.ggml.tokens", pointers, NULL, o->n_vocab);
    }
    gguf_writer_add_f32s(&metadata->writer, "tokenizer.ggml.scores", scores, o->n_vocab);
    gguf_writer_add_i32s(&metadata->writer, "tokenizer.ggml.token_type", types, o->n_vocab);
    add_u32(metadata, "tokenizer.ggml.bos_token_id", TINY_BOS);
    add_u32(metadata, "tokenizer.ggml.eos_token_id", TINY_EOS);
    free(texts);
    free(pointers);
    free(scores);
    free(types);
}

/* A GPT-2 style vocabulary: special tokens, all bytes, pairs of letters. */
static void add_bpe_vocabulary(struct metadata *metadata, const struct tiny_options *o) {
    enum { TEXT_BYTES = 16, MOST_PIECES = 26 * 26 };
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    char(*texts)[TEXT_BYTES] = must_allocate(o->n_vocab, sizeof *texts);
    char(*merges)[TEXT_BYTES] = must_allocate(o->n_vocab, sizeof *merges);
    const char **pointers = must_allocate(o->n_vocab, sizeof *pointers);
    const char **merge_pointers = must_allocate(o->n_vocab, sizeof *merge_pointers);
    int32_t *types = must_allocate(o->n_vocab, sizeof *types);
    if (o->n_vocab < TINY_FIRST_PIECE || o->n_vocab > TINY_FIRST_PIECE + MOST_PIECES) {
        abort();
    }
    size_t n_merges = 0;
    for (size_t i = 0; i < o->n_vocab; i++) {
        pointers[i] = texts[i];
        types[i] = i < TINY_FIRST_BYTE ? 3 : 1;
        if (i < TINY_FIRST_BYTE) {
            (void)snprintf(texts[i], TEXT_BYTES, "%s", special[i]);
        } else if (i < TINY_FIRST_PIECE) {
            const uint32_t c = drllm_byte_character((uint8_t)(i - TINY_FIRST_BYTE));
            texts[i][0] = (char)(c < 0x80 ? c : 0xC0 | c >> 6);
            texts[i][1] = (char)(c < 0x80 ? 0 : 0x80 | (c & 0x3F));
            texts[i][2] = 0;
        } else {
            const size_t number = i - TINY_FIRST_PIECE;
            const char left = (char)('a' + number % 26), right = (char)('a' + number / 26 % 26);
            (void)snprintf(texts[i], TEXT_BYTES, "%c%c", left, right);
            (void)snprintf(merges[n_merges], TEXT_BYTES, "%c %c", left, right);
            merge_pointers[n_merges] = merges[n_merges];
            n_merges++;
        }
    }
    add_string(metadata, "tokenizer.ggml.model", "gpt2");
    add_string(metadata, "tokenizer.ggml.pre", "smollm");
    gguf_writer_add_strings(&metadata->writer, "tokenizer.ggml.tokens", pointers, NULL, o->n_vocab);
    gguf_writer_add_i32s(&metadata->writer, "tokenizer.ggml.token_type", types, o->n_vocab);
    gguf_writer_add_strings(&metadata->writer, "tokenizer.ggml.merges", merge_pointers, NULL, n_merges);
    add_u32(metadata, "tokenizer.ggml.bos_token_id", TINY_BOS);
    add_u32(metadata, "tokenizer.ggml.eos_token_id", TINY_EOS);
    free(texts);
    free(merges);
    free(pointers);
    free(merge_pointers);
    free(types);
}

uint8_t *tiny_model_write(const struct tiny_model *model, const struct tiny_edit *edits, size_t n_edits, size_t *size) {
    const struct tiny_options *o = &model->options;
    struct metadata metadata = {.edits = edits, .n_edits = n_edits};
    gguf_writer_init(&metadata.writer);
    add_string(&metadata, "general.architecture", "llama");
    add_string(&metadata, "general.name", "tiny");
    add_u32(&metadata, "llama.block_count", o->n_layers);
    add_u32(&metadata, "llama.context_length", o->n_context);
    add_u32(&metadata, "llama.embedding_length", o->d_model);
    add_u32(&metadata, "llama.feed_forward_length", o->d_ff);
    add_u32(&metadata, "llama.attention.head_count", o->n_heads);
    add_u32(&metadata, "llama.attention.head_count_kv", o->n_kv_heads);
    if (o->head_dim * o->n_heads != o->d_model) {
        add_u32(&metadata, "llama.attention.key_length", o->head_dim);
        add_u32(&metadata, "llama.attention.value_length", o->head_dim);
    }
    add_f32(&metadata, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    add_u32(&metadata, "llama.rope.dimension_count", o->n_rot);
    add_f32(&metadata, "llama.rope.freq_base", o->rope_theta);
    if (o->rope_linear != 0.0f) {
        add_string(&metadata, "llama.rope.scaling.type", "linear");
        add_f32(&metadata, "llama.rope.scaling.factor", o->rope_linear);
    }
    if (o->bpe) {
        add_bpe_vocabulary(&metadata, o);
    } else {
        add_vocabulary(&metadata, o);
    }
    for (size_t i = 0; i < n_edits; i++) {
        tiny_edit_write(&edits[i], &metadata.writer);
    }
    for (size_t i = 0; i < model->n_tensors; i++) {
        const struct tiny_tensor *tensor = &model->tensors[i];
        gguf_writer_add_tensor(&metadata.writer, tensor->name, tensor->type, tensor->n_dims, tensor->dims, tensor->data,
                               tensor->size);
    }
    return gguf_writer_finish(&metadata.writer, size);
}

uint8_t *tiny_model_file(const struct tiny_options *options, size_t *size) {
    struct tiny_model model;
    tiny_model_make(&model, options);
    uint8_t *file = tiny_model_write(&model, NULL, 0, size);
    tiny_model_free(&model);
    return file;
}

/* ---- The reference: as the paper reads, in double precision ---- */

static const float *block_values(const struct tiny_model *model, size_t layer, const char *name, const char *what) {
    char full[96];
    (void)snprintf(full, sizeof full, "blk.%zu.%s.%s", layer, name, what);
    return tiny_model_values(model, full);
}

static void rms_norm(double *out, const double *x, const float *weight, size_t n) {
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        squares += x[i] * x[i];
    }
    const double scale = 1.0 / sqrt(squares / (double)n + (double)1e-5f);
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] * scale * (double)weight[i];
    }
}

static void round_to_8_bits(double *x, size_t group, size_t n) {
    for (size_t first = 0; first < n; first += group) {
        const size_t end = first + group < n ? first + group : n;
        double most = 0.0;
        for (size_t i = first; i < end; i++) {
            most = fmax(most, fabs(x[i]));
        }
        for (size_t i = first; i < end && most > 0.0; i++) {
            x[i] = rint(x[i] * 127.0 / most) * most / 127.0;
        }
    }
}

static void round_to_f16(double *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = (float)x[i];
        uint16_t half = 0;
        (void)drllm_quantize_row(DRLLM_FORMAT_F16, &value, &half, 1);
        drllm_dequantize_row(DRLLM_FORMAT_F16, &half, &value, 1);
        x[i] = (double)value;
    }
}

struct product {
    const float *weights, *bias; /* bias: NULL for none */
    size_t cols, rows;
    size_t group;
};

static void multiply(double *y, const struct product *p, const double *x) {
    double *rounded = must_allocate(p->cols, sizeof *rounded);
    memcpy(rounded, x, p->cols * sizeof *x);
    if (p->group != 0) {
        round_to_8_bits(rounded, p->group, p->cols);
    }
    for (size_t row = 0; row < p->rows; row++) {
        double sum = 0.0;
        for (size_t i = 0; i < p->cols; i++) {
            sum += (double)p->weights[row * p->cols + i] * rounded[i];
        }
        y[row] = sum + (p->bias != NULL ? (double)p->bias[row] : 0.0);
    }
    free(rounded);
}

struct reference {
    const struct tiny_model *model;
    size_t group;
    double *keys, *values; /* of all executions, [position][n_kv_heads][head_dim] */
    size_t cache_size;     /* of an execution */
};

static void multiply_block(const struct reference *reference, size_t layer, const char *name, double *y,
                           const double *x, size_t cols, size_t rows) {
    const struct tiny_model *model = reference->model;
    const struct product product = {.weights = block_values(model, layer, name, "weight"),
                                    .bias = block_values(model, layer, name, "bias"),
                                    .cols = cols,
                                    .rows = rows,
                                    .group = reference->group};
    multiply(y, &product, x);
}

/* Pairs (2i, 2i + 1) of the first n_rot values. */
static void rotate(const struct tiny_model *model, double *head, size_t position) {
    const struct tiny_options *o = &model->options;
    const float *factors = tiny_model_values(model, "rope_freqs.weight");
    const double linear = o->rope_linear != 0.0f ? (double)o->rope_linear : 1.0;
    for (size_t i = 0; i < o->n_rot / 2; i++) {
        double angle = (double)position * pow((double)o->rope_theta, -2.0 * (double)i / (double)o->n_rot) / linear;
        angle /= factors != NULL ? (double)factors[i] : 1.0;
        const double a = head[2 * i], b = head[2 * i + 1];
        head[2 * i] = a * cos(angle) - b * sin(angle);
        head[2 * i + 1] = a * sin(angle) + b * cos(angle);
    }
}

static void attend(const struct tiny_options *o, const double *q, const double *keys, const double *values,
                   size_t position, double *out) {
    double *weights = must_allocate(position + 1, sizeof *weights);
    const size_t kv_width = o->n_kv_heads * o->head_dim;
    if (o->n_kv_heads == 0 || o->n_heads < o->n_kv_heads) {
        abort();
    }
    const size_t heads_a_key = o->n_heads / o->n_kv_heads;
    for (size_t h = 0; h < o->n_heads; h++) {
        const size_t offset = h / heads_a_key * o->head_dim;
        double most = -INFINITY, total = 0.0;
        for (size_t p = 0; p <= position; p++) {
            double dot = 0.0;
            for (size_t i = 0; i < o->head_dim; i++) {
                dot += q[h * o->head_dim + i] * keys[p * kv_width + offset + i];
            }
            weights[p] = dot / sqrt((double)o->head_dim);
            most = fmax(most, weights[p]);
        }
        for (size_t p = 0; p <= position; p++) {
            weights[p] = exp(weights[p] - most);
            total += weights[p];
        }
        for (size_t i = 0; i < o->head_dim; i++) {
            double sum = 0.0;
            for (size_t p = 0; p <= position; p++) {
                sum += weights[p] / total * values[p * kv_width + offset + i];
            }
            out[h * o->head_dim + i] = sum;
        }
    }
    free(weights);
}

static void add_to(double *x, const double *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

/* slot: the number of this execution in the pass */
static void run_block(const struct reference *reference, size_t layer, size_t slot, double *x, size_t position) {
    const struct tiny_model *model = reference->model;
    double *keys = reference->keys + slot * reference->cache_size;
    double *values = reference->values + slot * reference->cache_size;
    const struct tiny_options *o = &model->options;
    const size_t q_width = o->n_heads * o->head_dim, kv_width = o->n_kv_heads * o->head_dim;
    double *h = must_allocate(o->d_model, sizeof *h), *projected = must_allocate(o->d_model, sizeof *projected);
    double *q = must_allocate(q_width, sizeof *q), *attended = must_allocate(q_width, sizeof *attended);
    double *gate = must_allocate(o->d_ff, sizeof *gate), *up = must_allocate(o->d_ff, sizeof *up);
    double *k = keys + position * kv_width, *v = values + position * kv_width;

    rms_norm(h, x, block_values(model, layer, "attn_norm", "weight"), o->d_model);
    multiply_block(reference, layer, "attn_q", q, h, o->d_model, q_width);
    multiply_block(reference, layer, "attn_k", k, h, o->d_model, kv_width);
    multiply_block(reference, layer, "attn_v", v, h, o->d_model, kv_width);
    for (size_t i = 0; i < o->n_heads; i++) {
        rotate(model, q + i * o->head_dim, position);
    }
    for (size_t i = 0; i < o->n_kv_heads; i++) {
        rotate(model, k + i * o->head_dim, position);
    }
    if (reference->group != 0) {
        round_to_f16(k, kv_width);
        round_to_f16(v, kv_width);
    }
    attend(o, q, keys, values, position, attended);
    multiply_block(reference, layer, "attn_output", projected, attended, q_width, o->d_model);
    add_to(x, projected, o->d_model);

    rms_norm(h, x, block_values(model, layer, "ffn_norm", "weight"), o->d_model);
    multiply_block(reference, layer, "ffn_gate", gate, h, o->d_model, o->d_ff);
    multiply_block(reference, layer, "ffn_up", up, h, o->d_model, o->d_ff);
    for (size_t i = 0; i < o->d_ff; i++) {
        gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    }
    multiply_block(reference, layer, "ffn_down", projected, gate, o->d_ff, o->d_model);
    add_to(x, projected, o->d_model);
    free(h);
    free(projected);
    free(q);
    free(attended);
    free(gate);
    free(up);
}

/* One token through all blocks. */
static void run_blocks(const struct tiny_pass *pass, const struct reference *reference, double *x, size_t position) {
    const struct tiny_options *o = &pass->model->options;
    size_t slot = 0;
    for (size_t layer = 0; layer < o->n_layers; layer++) {
        if (pass->inputs != NULL) {
            memcpy(pass->inputs + (layer * pass->n_tokens + position) * o->d_model, x, o->d_model * sizeof *x);
        }
        const size_t count = pass->program != NULL ? pass->program[layer] : 1;
        for (size_t i = 0; i < count; i++) {
            run_block(reference, layer, slot++, x, position);
        }
        if (pass->hidden != NULL) {
            memcpy(pass->hidden + layer * o->d_model, x, o->d_model * sizeof *x);
        }
    }
}

static size_t n_executions(const struct tiny_pass *pass) {
    size_t n = pass->program != NULL ? 0 : pass->model->options.n_layers;
    for (size_t layer = 0; pass->program != NULL && layer < pass->model->options.n_layers; layer++) {
        n += pass->program[layer];
    }
    return n;
}

void tiny_pass_run(const struct tiny_pass *pass) {
    const struct tiny_model *model = pass->model;
    const struct tiny_options *o = &model->options;
    const size_t n_slots = n_executions(pass);
    const size_t cache_size = pass->n_tokens * o->n_kv_heads * o->head_dim;
    const struct reference reference = {.model = model,
                                        .group = pass->group,
                                        .keys = must_allocate(n_slots * cache_size, sizeof(double)),
                                        .values = must_allocate(n_slots * cache_size, sizeof(double)),
                                        .cache_size = cache_size};
    double *x = must_allocate(o->d_model, sizeof *x), *normed = must_allocate(o->d_model, sizeof *normed);
    const float *embedding = tiny_model_values(model, "token_embd.weight");
    const struct product head = {.weights = o->untied ? tiny_model_values(model, "output.weight") : embedding,
                                 .cols = o->d_model,
                                 .rows = o->n_vocab,
                                 .group = pass->group};
    for (size_t position = 0; position < pass->n_tokens; position++) {
        for (size_t i = 0; i < o->d_model; i++) {
            x[i] = (double)embedding[(size_t)pass->tokens[position] * o->d_model + i];
        }
        run_blocks(pass, &reference, x, position);
        rms_norm(normed, x, tiny_model_values(model, "output_norm.weight"), o->d_model);
        if (pass->hidden != NULL) {
            memcpy(pass->hidden + o->n_layers * o->d_model, normed, o->d_model * sizeof *normed);
        }
        multiply(pass->logits + position * o->n_vocab, &head, normed);
    }
    free(reference.keys);
    free(reference.values);
    free(x);
    free(normed);
}

void tiny_model_reference(const struct tiny_model *model, size_t group, const int32_t *tokens, size_t n_tokens,
                          double *logits, double *hidden) {
    const struct tiny_pass pass = {
        .model = model, .group = group, .tokens = tokens, .n_tokens = n_tokens, .logits = logits, .hidden = hidden};
    tiny_pass_run(&pass);
}

/* ---- Counted memory ---- */

enum { IN_FRONT = 64 };

static void *counted_allocate(void *user, size_t size, size_t alignment) {
    struct tiny_counted *counted = user;
    counted->wrong =
        counted->wrong || size == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > IN_FRONT;
    if (counted->n_calls++ == counted->fail_at) {
        return NULL;
    }
    /* The size stands in front, so that release can compare it. */
    void *memory = NULL;
    if (size > SIZE_MAX - IN_FRONT || posix_memalign(&memory, IN_FRONT, size + IN_FRONT) != 0) {
        return NULL;
    }
    memcpy(memory, &size, sizeof size);
    counted->n_live++;
    counted->live_bytes += size;
    return (uint8_t *)memory + IN_FRONT;
}

static void counted_release(void *user, void *memory, size_t size) {
    struct tiny_counted *counted = user;
    if (memory == NULL) {
        counted->wrong = true;
        return;
    }
    size_t allocated = 0;
    memcpy(&allocated, (uint8_t *)memory - IN_FRONT, sizeof allocated);
    counted->wrong = counted->wrong || allocated != size;
    counted->n_live--;
    counted->live_bytes -= size;
    free((uint8_t *)memory - IN_FRONT);
}

struct drllm_allocator tiny_counted_allocator(struct tiny_counted *counted) {
    return (struct drllm_allocator){counted_allocate, counted_release, counted};
}
