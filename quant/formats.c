/* The table of formats and the names of GGUF's tensor types (enum ggml_type of ggml.h, type_traits of ggml.c). */
#include "quant/formats.h"

#include <string.h>

static const struct drllm_format_traits traits[] = {
    {DRLLM_FORMAT_F32, "f32", 1, 4},
    {DRLLM_FORMAT_F16, "f16", 1, 2},
    {DRLLM_FORMAT_BF16, "bf16", 1, 2},
    {DRLLM_FORMAT_Q4_0, "q4_0", DRLLM_GROUP, sizeof(struct drllm_block_q4_0)},
    {DRLLM_FORMAT_Q4_1, "q4_1", DRLLM_GROUP, sizeof(struct drllm_block_q4_1)},
    {DRLLM_FORMAT_Q5_0, "q5_0", DRLLM_GROUP, sizeof(struct drllm_block_q5_0)},
    {DRLLM_FORMAT_Q5_1, "q5_1", DRLLM_GROUP, sizeof(struct drllm_block_q5_1)},
    {DRLLM_FORMAT_Q8_0, "q8_0", DRLLM_GROUP, sizeof(struct drllm_block_q8_0)},
    {DRLLM_FORMAT_Q4_K, "q4_k", DRLLM_SUPERBLOCK, sizeof(struct drllm_block_q4_k)},
    {DRLLM_FORMAT_Q5_K, "q5_k", DRLLM_SUPERBLOCK, sizeof(struct drllm_block_q5_k)},
    {DRLLM_FORMAT_Q6_K, "q6_k", DRLLM_SUPERBLOCK, sizeof(struct drllm_block_q6_k)},
    {DRLLM_FORMAT_I8, "i8", 1, 1},
    {DRLLM_FORMAT_Q8C, "q8c", 1, 0},
    {DRLLM_FORMAT_QB4W, "qb4w", DRLLM_GROUP, 0},
};
enum { N_TRAITS = sizeof traits / sizeof traits[0] };

/* By type number. 4, 5, 31 to 33 and 36 to 38 were removed from ggml; files with them exist. */
static const char *const type_names[] = {
    "f32",        "f16",        "q4_0",       "q4_1",  "q4_2",     "q4_3",     "q5_0",     "q5_1",    "q8_0",
    "q8_1",       "q2_k",       "q3_k",       "q4_k",  "q5_k",     "q6_k",     "q8_k",     "iq2_xxs", "iq2_xs",
    "iq3_xxs",    "iq1_s",      "iq4_nl",     "iq3_s", "iq2_s",    "iq4_xs",   "i8",       "i16",     "i32",
    "i64",        "f64",        "iq1_m",      "bf16",  "q4_0_4x4", "q4_0_4x8", "q4_0_8x8", "tq1_0",   "tq2_0",
    "iq4_nl_4x4", "iq4_nl_4x8", "iq4_nl_8x8", "mxfp4", "nvfp4",    "q1_0",     "q2_0",
};
enum { N_TYPE_NAMES = sizeof type_names / sizeof type_names[0] };

static const struct drllm_format_traits *find(uint32_t number) {
    for (size_t i = 0; i < N_TRAITS; i++) {
        if ((uint32_t)traits[i].format == number) {
            return &traits[i];
        }
    }
    return NULL;
}

const struct drllm_format_traits *drllm_format_find(uint32_t gguf_type) {
    /* A file that gives a tensor one of our own numbers is as wrong as one with an unknown number. */
    const struct drllm_format_traits *found = find(gguf_type);
    return found != NULL && found->block_bytes != 0 ? found : NULL;
}

const struct drllm_format_traits *drllm_format_find_name(const char *name) {
    for (size_t i = 0; i < N_TRAITS; i++) {
        if (strcmp(traits[i].name, name) == 0) {
            return &traits[i];
        }
    }
    return NULL;
}

const char *drllm_format_name(uint32_t gguf_type) {
    if (gguf_type < N_TYPE_NAMES) {
        return type_names[gguf_type];
    }
    const struct drllm_format_traits *own = find(gguf_type);
    return own != NULL ? own->name : "unknown";
}

size_t drllm_format_row_bytes(enum drllm_format format, size_t n) {
    const struct drllm_format_traits *found = find((uint32_t)format);
    if (found == NULL || found->block_bytes == 0 || n % found->block_size != 0) {
        return 0;
    }
    const size_t n_blocks = n / found->block_size;
    return n_blocks <= SIZE_MAX / found->block_bytes ? n_blocks * found->block_bytes : 0;
}
