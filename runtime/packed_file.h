/* Packed model files: a model as it lies in memory once it is open, to be mapped and used in place.
 *
 * All numbers are little-endian. The weights are interleaved as quant/matmul.h says ("r8k4": 8 rows by 4 columns), which
 * is the one layout of all our kernels, so that a file serves every processor with this byte order.
 *
 *   header    struct drllm_packed_header, 64 bytes
 *   table     n_sections times struct drllm_packed_section, 32 bytes each
 *   sections  in rising order, each at a multiple of 64 bytes from the file's beginning, zeros between them
 *
 * A kind of section is there at most once; readers ignore kinds that they do not know.
 *
 *   CONFIG         struct drllm_packed_config: the shape of the model
 *   NAME           general.name
 *   CHAT_TEMPLATE  tokenizer.chat_template
 *   VOCABULARY     struct drllm_packed_vocabulary
 *   TOKENS         n_vocab times struct drllm_token_entry (tokenizer_internal.h): where its text lies, its type
 *   TOKEN_BYTES    the texts
 *   TOKEN_INDEX    a hash table of ids by text: struct drllm_text_slot
 *   MERGES         of BPE, a hash table of merges by pair of ids: struct drllm_pair_slot
 *   SCORES         of SentencePiece, float32[n_vocab]
 *   MATRICES       struct drllm_packed_matrix for the seven matrices of block 0, those of block 1, ..., the output head,
 *                  and the embedding; their offsets count from WEIGHTS
 *   WEIGHTS        the matrices, each at a multiple of 64
 *   VECTORS        struct drllm_packed_vector for attention norm, ffn norm and seven biases of block 0, ..., and the
 *                  output norm; their offsets count from VALUES
 *   VALUES         float32, each vector at a multiple of 64
 *   ROPE           float64[n_rot / 2]: the angle per position of each pair
 *   ROUTERS        a router file (router_file.h), if the model brings routers along
 *
 * Checksums are CRC-32. Opening checks those of the header, the table and every section but WEIGHTS and ROUTERS: theirs
 * would cost more than the whole start. ROUTERS is checked when routers are opened, WEIGHTS by drllm_packed_verify. */
#ifndef DRLLM_RUNTIME_PACKED_FILE_H
#define DRLLM_RUNTIME_PACKED_FILE_H

#include "runtime/gguf.h"

#include <assert.h>

#define DRLLM_PACKED_MAGIC "drllm\r\n\x1A"

enum {
    DRLLM_PACKED_VERSION = 1,
    DRLLM_PACKED_LAYOUT_R8K4 = 1,
    DRLLM_PACKED_ALIGNMENT = 64,
    DRLLM_PACKED_MAX_SECTIONS = 64,
    DRLLM_PACKED_MAX_ENDS = 64
};

struct drllm_packed_header {
    char magic[8];
    uint32_t version;
    uint32_t layout; /* of WEIGHTS */
    uint64_t file_size;
    uint32_t n_sections;
    uint32_t checksum; /* of the header with zeros here, and of the table */
    uint8_t zero[32];
};
static_assert(sizeof(struct drllm_packed_header) == 64, "part of the format");

struct drllm_packed_section {
    uint32_t kind; /* enum drllm_packed_kind */
    uint32_t checksum;
    uint64_t offset, size; /* in the file */
    uint64_t zero;
};
static_assert(sizeof(struct drllm_packed_section) == 32, "part of the format");

enum drllm_packed_kind {
    DRLLM_PACKED_CONFIG = 1,
    DRLLM_PACKED_NAME = 2,
    DRLLM_PACKED_CHAT_TEMPLATE = 3,
    DRLLM_PACKED_VOCABULARY = 4,
    DRLLM_PACKED_TOKENS = 5,
    DRLLM_PACKED_TOKEN_BYTES = 6,
    DRLLM_PACKED_TOKEN_INDEX = 7,
    DRLLM_PACKED_MERGES = 8,
    DRLLM_PACKED_SCORES = 9,
    DRLLM_PACKED_MATRICES = 10,
    DRLLM_PACKED_WEIGHTS = 11,
    DRLLM_PACKED_VECTORS = 12,
    DRLLM_PACKED_VALUES = 13,
    DRLLM_PACKED_ROPE = 14,
    DRLLM_PACKED_ROUTERS = 15,
    DRLLM_PACKED_KINDS = 16
};

struct drllm_packed_config {
    uint64_t n_layers, d_model, d_ff, n_heads, n_kv_heads, head_dim, n_rot, n_vocab, n_context_trained;
    uint64_t n_params;
    uint64_t fingerprint; /* drllm_model_fingerprint of the model that was packed */
    double rope_theta, rope_linear_factor;
    float rms_eps;
    uint32_t quantization; /* enum drllm_format of most weights */
};
static_assert(sizeof(struct drllm_packed_config) == 112, "part of the format");

enum { DRLLM_PACKED_ADD_BOS = 1, DRLLM_PACKED_SPACE_PREFIX = 2 };

struct drllm_packed_vocabulary {
    uint32_t is_bpe;       /* 0: SentencePiece */
    uint32_t pretokenizer; /* enum drllm_pretokenizer */
    uint32_t flags;
    int32_t bos, eos, unknown; /* -1: none */
    uint32_t n_ends;
    int32_t ends[DRLLM_PACKED_MAX_ENDS];
};
static_assert(sizeof(struct drllm_packed_vocabulary) == 284, "part of the format");

struct drllm_packed_matrix {
    uint32_t format; /* enum drllm_format. Of the embedding: its rows lie there as GGUF has them, or, for q8c, int8
                        [rows][cols] and, at the next multiple of 64, float32 scales[rows] */
    uint32_t zero;
    uint64_t offset;
    uint64_t size; /* 0 for an embedding that is the head's matrix */
};
static_assert(sizeof(struct drllm_packed_matrix) == 24, "part of the format");

struct drllm_packed_vector {
    uint64_t offset;
    uint64_t count; /* floats; 0: there is no such bias */
};
static_assert(sizeof(struct drllm_packed_vector) == 16, "part of the format");

/* ---- Reading ---- */

/* Sections by kind; data NULL where there is none. */
struct drllm_packed_file {
    struct {
        const uint8_t *data;
        size_t size;
        uint32_t checksum;
    } sections[DRLLM_PACKED_KINDS];
    size_t file_size;
    uint32_t version, layout, n_sections;
};

/* Whether the bytes begin as a packed file does. */
bool drllm_packed_is(const void *data, size_t size);

/* Check the header and the table, find the sections. Their bytes stay in place. data: a multiple of 4. Errors: FORMAT,
 * UNSUPPORTED (another version or layout, a big-endian machine). */
int drllm_packed_open(struct drllm_packed_file *file, const void *data, size_t size, struct drllm_error *error);

/* Check a section's checksum. A missing section is FORMAT as well. */
int drllm_packed_check(const struct drllm_packed_file *file, enum drllm_packed_kind kind, struct drllm_error *error);
/* Check every section that is there, which reads the whole file. */
int drllm_packed_verify(const struct drllm_packed_file *file, struct drllm_error *error);

/* "weights"; "unknown" for a kind that this library does not know. */
const char *drllm_packed_kind_name(uint32_t kind);

/* ---- Models (packed_model.c, tokenizer_packed.c) ---- */

struct drllm_model;
struct drllm_tokenizer;

/* What drllm_gguf_open, drllm_config_read, drllm_tokenizer_open and drllm_model_load_weights do for a GGUF file. verify:
 * drllm_packed_verify comes first. Errors: FORMAT, UNSUPPORTED, MEMORY. */
int drllm_packed_load(struct drllm_model *model, const void *data, size_t size, bool verify, struct drllm_error *error);

/* The vocabulary, used in place. */
int drllm_tokenizer_open_packed(const struct drllm_packed_file *file, const struct drllm_allocator *allocator,
                                struct drllm_tokenizer **tokenizer, struct drllm_error *error);

/* ---- Writing (packed_write.c) ---- */

/* Takes the file's bytes in order; false stops. */
typedef bool (*drllm_packed_sink)(void *user, const void *data, size_t size);

/* Write a model. It must run on our kernels only: opened from a GGUF file with DRLLM_COMPUTE_EXACT and DRLLM_HEAD_FILE.
 * routers: the bytes of a router file that drllm_routers_open_memory takes for this model, NULL for none. Errors: STATE
 * (opened otherwise), MEMORY, IO (the sink said stop). */
int drllm_packed_write(const struct drllm_model *model, const void *routers, size_t routers_size,
                       drllm_packed_sink sink, void *user, struct drllm_error *error);

#endif
