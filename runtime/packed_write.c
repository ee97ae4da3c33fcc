/* Writing packed model files: first where everything goes and what its checksum is, then the bytes in order. */
#include "runtime/crc32.h"
#include "runtime/error.h"
#include "runtime/internal.h"
#include "runtime/memory.h"
#include "runtime/model.h"
#include "runtime/packed_file.h"
#include "runtime/tokenizer_internal.h"

#include <string.h>

/* A piece of a section: bytes, then zeros up to a multiple of 64. */
struct piece {
    enum drllm_packed_kind kind;
    const void *data;
    size_t size;
};

struct writer {
    const struct drllm_model *model;
    struct piece *pieces;
    size_t n_pieces, capacity;
    struct drllm_packed_section sections[DRLLM_PACKED_KINDS];
    size_t n_sections;
    drllm_packed_sink sink;
    void *user;
};

static const uint8_t zeros[DRLLM_PACKED_ALIGNMENT];

static size_t padding(uint64_t size) {
    return (size_t)((DRLLM_PACKED_ALIGNMENT - size % DRLLM_PACKED_ALIGNMENT) % DRLLM_PACKED_ALIGNMENT);
}

/* ---- The plan ---- */

/* Pieces of one section come one after another. Returns where in the section the piece begins. */
static uint64_t add_piece(struct writer *writer, enum drllm_packed_kind kind, const void *data, size_t size) {
    const bool begins = writer->n_sections == 0 || writer->sections[writer->n_sections - 1].kind != (uint32_t)kind;
    writer->n_sections += begins;
    struct drllm_packed_section *section = &writer->sections[writer->n_sections - 1];
    if (begins) {
        *section = (struct drllm_packed_section){.kind = (uint32_t)kind};
    } else {
        const size_t n = padding(section->size);
        section->checksum = n > 0 ? drllm_crc32(section->checksum, zeros, n) : section->checksum;
        section->size += n;
    }
    const uint64_t offset = section->size;
    section->checksum = size > 0 ? drllm_crc32(section->checksum, data, size) : section->checksum;
    section->size += size;
    writer->pieces[writer->n_pieces++] = (struct piece){kind, data, size};
    return offset;
}

static void add_matrix(struct writer *writer, const struct drllm_matrix *matrix, struct drllm_packed_matrix *entry) {
    const size_t bytes = drllm_packed_bytes(matrix->format, matrix->rows, matrix->cols);
    *entry = (struct drllm_packed_matrix){
        .format = (uint32_t)matrix->format,
        .offset = add_piece(writer, DRLLM_PACKED_WEIGHTS, matrix->data, bytes),
        .size = bytes,
    };
}

static void add_embedding(struct writer *writer, struct drllm_packed_matrix *entry) {
    const struct drllm_embedding *embedding = &writer->model->embedding;
    const size_t rows = writer->model->config.n_vocab;
    *entry = (struct drllm_packed_matrix){.format = (uint32_t)embedding->format};
    if (embedding->packed == &writer->model->head) {
        return;
    }
    entry->size = rows * embedding->row_bytes;
    entry->offset = add_piece(writer, DRLLM_PACKED_WEIGHTS, embedding->rows, (size_t)entry->size);
    if (embedding->scales != NULL) {
        const uint64_t at = add_piece(writer, DRLLM_PACKED_WEIGHTS, embedding->scales, rows * sizeof(float));
        entry->size = at - entry->offset + rows * sizeof(float);
    }
}

static struct drllm_packed_vector add_vector(struct writer *writer, const float *values, size_t n) {
    if (values == NULL) {
        return (struct drllm_packed_vector){0, 0};
    }
    return (struct drllm_packed_vector){add_piece(writer, DRLLM_PACKED_VALUES, values, n * sizeof *values), n};
}

/* ---- Tables that are made for the file ---- */

struct tables {
    struct drllm_packed_config config;
    struct drllm_packed_vocabulary vocabulary;
    struct drllm_token_entry *tokens; /* [n_vocab] */
    char *bytes;                      /* [n_bytes] */
    size_t n_bytes;
    struct drllm_packed_matrix *matrices; /* [n_matrices] */
    size_t n_matrices;
    struct drllm_packed_vector *vectors; /* [n_vectors] */
    size_t n_vectors;
};

static void make_config(const struct drllm_model *model, struct drllm_packed_config *packed) {
    const struct drllm_config *config = &model->config;
    uint32_t quantization = 0;
    while (quantization < DRLLM_FORMAT_Q8C && strcmp(drllm_format_name(quantization), model->quantization) != 0) {
        quantization++;
    }
    *packed = (struct drllm_packed_config){.n_layers = config->n_layers,
                                           .d_model = config->d_model,
                                           .d_ff = config->d_ff,
                                           .n_heads = config->n_heads,
                                           .n_kv_heads = config->n_kv_heads,
                                           .head_dim = config->head_dim,
                                           .n_rot = config->n_rot,
                                           .n_vocab = config->n_vocab,
                                           .n_context_trained = config->n_context_trained,
                                           .n_params = model->n_params,
                                           .fingerprint = drllm_model_fingerprint(model),
                                           .rope_theta = config->rope_theta,
                                           .rope_linear_factor = config->rope_linear_factor,
                                           .rms_eps = config->rms_eps,
                                           .quantization = quantization};
}

static bool make_vocabulary(const struct drllm_tokenizer *tokenizer, struct tables *tables) {
    tables->vocabulary = (struct drllm_packed_vocabulary){
        .is_bpe = tokenizer->is_bpe,
        .pretokenizer = (uint32_t)tokenizer->pretokenizer,
        .flags = (tokenizer->add_bos ? (uint32_t)DRLLM_PACKED_ADD_BOS : 0) |
                 (tokenizer->add_space_prefix ? (uint32_t)DRLLM_PACKED_SPACE_PREFIX : 0),
        .bos = tokenizer->bos,
        .eos = tokenizer->eos,
        .unknown = tokenizer->unknown,
        .n_ends = (uint32_t)tokenizer->n_ends,
    };
    memcpy(tables->vocabulary.ends, tokenizer->ends, tokenizer->n_ends * sizeof tokenizer->ends[0]);
    for (size_t id = 0; id < tokenizer->n_tokens; id++) {
        tables->n_bytes += tokenizer->tokens[id].size; /* they lie in memory, some perhaps twice: no overflow */
    }
    const struct drllm_allocator *allocator = &tokenizer->allocator;
    tables->tokens = drllm_allocate(allocator, tokenizer->n_tokens, sizeof *tables->tokens);
    tables->bytes = drllm_allocate(allocator, tables->n_bytes + 1, 1); /* never none */
    if (tables->tokens == NULL || tables->bytes == NULL) {
        return false;
    }
    size_t at = 0;
    for (size_t id = 0; id < tokenizer->n_tokens; id++) {
        const struct drllm_token token = drllm_token_at(tokenizer, (int32_t)id);
        tables->tokens[id] = (struct drllm_token_entry){(uint32_t)at, token.size, token.type};
        if (token.size > 0) {
            memcpy(tables->bytes + at, token.text, token.size);
        }
        at += token.size;
    }
    return true;
}

static bool make_tables(const struct drllm_model *model, struct tables *tables) {
    const size_t n_layers = model->config.n_layers;
    make_config(model, &tables->config);
    tables->n_matrices = n_layers * DRLLM_BLOCK_MATRICES + 2;
    tables->n_vectors = n_layers * (2 + DRLLM_BLOCK_MATRICES) + 1;
    tables->matrices = drllm_allocate(&model->allocator, tables->n_matrices, sizeof *tables->matrices);
    tables->vectors = drllm_allocate(&model->allocator, tables->n_vectors, sizeof *tables->vectors);
    return tables->matrices != NULL && tables->vectors != NULL && make_vocabulary(model->tokenizer, tables);
}

static void release_tables(const struct drllm_model *model, struct tables *tables) {
    const struct drllm_allocator *allocator = &model->allocator;
    drllm_release(allocator, tables->tokens, model->config.n_vocab, sizeof *tables->tokens);
    drllm_release(allocator, tables->bytes, tables->n_bytes + 1, 1);
    drllm_release(allocator, tables->matrices, tables->n_matrices, sizeof *tables->matrices);
    drllm_release(allocator, tables->vectors, tables->n_vectors, sizeof *tables->vectors);
}

static void add_vocabulary(struct writer *writer, const struct tables *tables) {
    const struct drllm_tokenizer *tokenizer = writer->model->tokenizer;
    const size_t n = tokenizer->n_tokens;
    (void)add_piece(writer, DRLLM_PACKED_VOCABULARY, &tables->vocabulary, sizeof tables->vocabulary);
    (void)add_piece(writer, DRLLM_PACKED_TOKENS, tables->tokens, n * sizeof *tables->tokens);
    (void)add_piece(writer, DRLLM_PACKED_TOKEN_BYTES, tables->bytes, tables->n_bytes);
    (void)add_piece(writer, DRLLM_PACKED_TOKEN_INDEX, tokenizer->texts, tokenizer->n_texts * sizeof *tokenizer->texts);
    if (tokenizer->is_bpe) {
        (void)add_piece(writer, DRLLM_PACKED_MERGES, tokenizer->pairs, tokenizer->n_pairs * sizeof *tokenizer->pairs);
    } else {
        (void)add_piece(writer, DRLLM_PACKED_SCORES, tokenizer->scores, n * sizeof(float));
    }
}

static void add_values(struct writer *writer, struct tables *tables) {
    const struct drllm_model *model = writer->model;
    const size_t d_model = model->config.d_model;
    struct drllm_packed_vector *vector = tables->vectors;
    for (size_t layer = 0; layer < model->config.n_layers; layer++) {
        const struct drllm_block_weights *block = &model->blocks[layer];
        *vector++ = add_vector(writer, block->attention_norm, d_model);
        *vector++ = add_vector(writer, block->ffn_norm, d_model);
        for (size_t i = 0; i < DRLLM_BLOCK_MATRICES; i++) {
            *vector++ = add_vector(writer, block->bias[i], block->matrix[i].rows);
        }
    }
    *vector = add_vector(writer, model->output_norm, d_model);
}

static void add_weights(struct writer *writer, struct tables *tables) {
    const struct drllm_model *model = writer->model;
    struct drllm_packed_matrix *matrix = tables->matrices;
    for (size_t layer = 0; layer < model->config.n_layers; layer++) {
        for (size_t i = 0; i < DRLLM_BLOCK_MATRICES; i++) {
            add_matrix(writer, &model->blocks[layer].matrix[i], matrix++);
        }
    }
    add_matrix(writer, &model->head, matrix++);
    add_embedding(writer, matrix);
}

static void plan(struct writer *writer, struct tables *tables, const void *routers, size_t routers_size) {
    const struct drllm_model *model = writer->model;
    (void)add_piece(writer, DRLLM_PACKED_CONFIG, &tables->config, sizeof tables->config);
    (void)add_piece(writer, DRLLM_PACKED_NAME, model->name, strlen(model->name));
    (void)add_piece(writer, DRLLM_PACKED_CHAT_TEMPLATE, model->chat_text.data, model->chat_text.size);
    add_vocabulary(writer, tables);
    add_values(writer, tables);
    (void)add_piece(writer, DRLLM_PACKED_VECTORS, tables->vectors, tables->n_vectors * sizeof *tables->vectors);
    (void)add_piece(writer, DRLLM_PACKED_ROPE, model->rope_frequency,
                    model->config.n_rot / 2 * sizeof *model->rope_frequency);
    if (routers != NULL) {
        (void)add_piece(writer, DRLLM_PACKED_ROUTERS, routers, routers_size);
    }
    add_weights(writer, tables);
    /* Behind the weights, since only now it says where they are. */
    (void)add_piece(writer, DRLLM_PACKED_MATRICES, tables->matrices, tables->n_matrices * sizeof *tables->matrices);
}

/* ---- The bytes ---- */

static bool put(const struct writer *writer, const void *data, size_t size) {
    return size == 0 || writer->sink(writer->user, data, size);
}

static bool write_all(struct writer *writer) {
    struct drllm_packed_header header = {.version = DRLLM_PACKED_VERSION,
                                         .layout = DRLLM_PACKED_LAYOUT_R8K4,
                                         .n_sections = (uint32_t)writer->n_sections};
    const size_t table_bytes = writer->n_sections * sizeof writer->sections[0];
    memcpy(header.magic, DRLLM_PACKED_MAGIC, sizeof header.magic);
    uint64_t at = sizeof header + table_bytes;
    for (size_t i = 0; i < writer->n_sections; i++) {
        at += padding(at);
        writer->sections[i].offset = at;
        at += writer->sections[i].size;
    }
    header.file_size = at;
    header.checksum = drllm_crc32(drllm_crc32(0, &header, sizeof header), writer->sections, table_bytes);
    bool good = put(writer, &header, sizeof header) && put(writer, writer->sections, table_bytes);
    /* A section begins at a multiple of 64, so that padding by section and by file is the same. */
    at = sizeof header + table_bytes;
    for (size_t i = 0; i < writer->n_pieces && good; i++) {
        const struct piece *piece = &writer->pieces[i];
        good = put(writer, zeros, padding(at)) && put(writer, piece->data, piece->size);
        at += padding(at) + piece->size;
    }
    return good;
}

static bool is_packable(const struct drllm_model *model) {
    bool ours = !model->vocab_only && model->head.kernel != NULL;
    for (size_t layer = 0; ours && layer < model->config.n_layers; layer++) {
        for (size_t i = 0; i < DRLLM_BLOCK_MATRICES; i++) {
            ours = ours && model->blocks[layer].matrix[i].kernel != NULL;
        }
    }
    return ours && model->compute == DRLLM_COMPUTE_EXACT;
}

int drllm_packed_write(const struct drllm_model *model, const void *routers, size_t routers_size,
                       drllm_packed_sink sink, void *user, struct drllm_error *error) {
    if (!is_packable(model)) {
        return drllm_fail(error, DRLLM_ERR_STATE,
                          "a model is packed as it runs exactly on this library's own kernels; open it so");
    }
    struct tables tables = {.tokens = NULL};
    struct writer writer = {.model = model, .sink = sink, .user = user};
    int status = DRLLM_OK;
    const bool made = make_tables(model, &tables);
    /* A section's parts at most: every matrix, the embedding's scales, every vector, and the single pieces. */
    writer.capacity = tables.n_matrices + tables.n_vectors + DRLLM_PACKED_KINDS + 1;
    writer.pieces = made ? drllm_allocate(&model->allocator, writer.capacity, sizeof *writer.pieces) : NULL;
    if (writer.pieces == NULL) {
        status = drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory to pack the model");
    } else if (tables.n_bytes > UINT32_MAX) {
        status = drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "the vocabulary has more than 4 GiB of text");
    } else {
        plan(&writer, &tables, routers, routers_size);
        if (!write_all(&writer)) {
            status = drllm_fail(error, DRLLM_ERR_IO, "the packed model could not be written");
        }
    }
    drllm_release(&model->allocator, writer.pieces, writer.capacity, sizeof *writer.pieces);
    release_tables(model, &tables);
    return status;
}
