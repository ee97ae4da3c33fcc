/* Number formats: the blocks of GGUF files, byte for byte, and the formats that the kernels run.
 *
 * Source of the layouts: ggml-common.h of the ggml project (block_q4_0 ... block_q6_K); all fields little-endian. */
#ifndef DRLLM_QUANT_FORMATS_H
#define DRLLM_QUANT_FORMATS_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DRLLM_GROUP = 32,       /* weights or activations that share one scale */
    DRLLM_SUPERBLOCK = 256, /* weights of one K-quant block */
    DRLLM_PANEL_ROWS = 8    /* rows that packed weights interleave */
};

/* The formats by the number that GGUF gives them, so that a tensor's type needs no translation; Q8C is our own and
 * has no number there (see tools/quantize.c for how a file holds it). */
enum drllm_format {
    DRLLM_FORMAT_F32 = 0,
    DRLLM_FORMAT_F16 = 1,
    DRLLM_FORMAT_Q4_0 = 2,
    DRLLM_FORMAT_Q4_1 = 3,
    DRLLM_FORMAT_Q5_0 = 6,
    DRLLM_FORMAT_Q5_1 = 7,
    DRLLM_FORMAT_Q8_0 = 8,
    DRLLM_FORMAT_Q4_K = 12,
    DRLLM_FORMAT_Q5_K = 13,
    DRLLM_FORMAT_Q6_K = 14,
    DRLLM_FORMAT_I8 = 24, /* plain int8: a q8c tensor's values, beside its scales */
    DRLLM_FORMAT_BF16 = 30,
    DRLLM_FORMAT_Q8C = 1000, /* int8, one scale per output row */
    DRLLM_FORMAT_QB4W = 1001 /* XNNPACK's int4, zero point 8, one bf16 scale per group of 32 */
};

struct drllm_block_q4_0 {
    uint16_t d;     /* f16 scale: w = d * (q - 8) */
    uint8_t qs[16]; /* weight i in the low nibble of qs[i], weight i+16 in the high one */
};
struct drllm_block_q4_1 {
    uint16_t d; /* w = d * q + m */
    uint16_t m;
    uint8_t qs[16];
};
struct drllm_block_q5_0 {
    uint16_t d;    /* w = d * (q - 16) */
    uint8_t qh[4]; /* bit i: the fifth bit of weight i */
    uint8_t qs[16];
};
struct drllm_block_q5_1 {
    uint16_t d; /* w = d * q + m */
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct drllm_block_q8_0 {
    uint16_t d; /* w = d * q */
    int8_t qs[32];
};
struct drllm_block_q4_k {
    uint16_t d;         /* scale of the 6-bit scales */
    uint16_t dmin;      /* scale of the 6-bit minima */
    uint8_t scales[12]; /* 8 scales and 8 minima, 6 bits each */
    uint8_t qs[128];
};
struct drllm_block_q5_k {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct drllm_block_q6_k {
    uint8_t ql[128];   /* low 4 bits */
    uint8_t qh[64];    /* high 2 bits */
    int8_t scales[16]; /* one a group of 16 */
    uint16_t d;
};

static_assert(sizeof(struct drllm_block_q4_0) == 18, "q4_0 block");
static_assert(sizeof(struct drllm_block_q4_1) == 20, "q4_1 block");
static_assert(sizeof(struct drllm_block_q5_0) == 22, "q5_0 block");
static_assert(sizeof(struct drllm_block_q5_1) == 24, "q5_1 block");
static_assert(sizeof(struct drllm_block_q8_0) == 34, "q8_0 block");
static_assert(sizeof(struct drllm_block_q4_k) == 144, "q4_k block");
static_assert(sizeof(struct drllm_block_q5_k) == 176, "q5_k block");
static_assert(sizeof(struct drllm_block_q6_k) == 210, "q6_k block");

struct drllm_format_traits {
    enum drllm_format format;
    const char *name;   /* as users write it: "q4_1" */
    size_t block_size;  /* weights a block */
    size_t block_bytes; /* 0: the format is never a GGUF tensor's type */
};

/* NULL for a type that this library does not read. */
const struct drllm_format_traits *drllm_format_find(uint32_t gguf_type);
/* NULL for an unknown name. */
const struct drllm_format_traits *drllm_format_find_name(const char *name);
/* The name of any GGUF tensor type, read or not ("iq2_xxs"), for messages; "unknown" past the known ones. */
const char *drllm_format_name(uint32_t gguf_type);

/* Bytes of a row of n weights; 0 when n is not a whole number of blocks or the product would overflow. */
size_t drllm_format_row_bytes(enum drllm_format format, size_t n);

/* The reference conversions, exact to the format. n: a whole number of blocks; src and dst do not overlap.
 * Any GGUF format listed above but I8. */
void drllm_dequantize_row(enum drllm_format format, const void *src, float *dst, size_t n);

/* False if a weight is NaN or infinite; looks at the scales where there are some. F32, F16, BF16, Q4_0, Q4_1, Q8_0;
 * true for any other format. */
bool drllm_row_is_finite(enum drllm_format format, const void *src, size_t n);

/* F32, F16, BF16, Q4_0, Q4_1, Q8_0 as ggml's reference quantisers do it (round half away from zero where they do).
 * False for a format that cannot be written, and for weights that are NaN or infinite. */
bool drllm_quantize_row(enum drllm_format format, const float *src, void *dst, size_t n);

/* One row to int8 with one scale: q[i] = round(src[i] / scale), |q| <= 127, scale = max |src| / 127 (0 for a zero row).
 * False for weights that are NaN or infinite. */
bool drllm_quantize_row_q8c(const float *src, int8_t *q, float *scale, size_t n);

#endif
