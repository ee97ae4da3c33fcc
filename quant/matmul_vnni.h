/* What the integer kernels on VNNI share, whatever the encoding and the width of the instruction. */
#ifndef DRLLM_QUANT_MATMUL_VNNI_H
#define DRLLM_QUANT_MATMUL_VNNI_H

#include "quant/inline.h"
#include "quant/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

enum {
    ROWS = DRLLM_PANEL_ROWS,
    SCALE_BYTES = 2 * ROWS,
    STEP_BYTES = 4 * ROWS,
    STEPS = DRLLM_GROUP / 4,
    SIGN_BITS = -0x7f7f7f80, /* of four bytes */
    BLOCK = 4,               /* tokens whose sums grow side by side, which hides the latency */
    PREFETCH_BYTES = 8192    /* covers the latency of memory at full bandwidth */
};

INLINE bool is_int4(enum drllm_format format) {
    return format == DRLLM_FORMAT_Q4_0 || format == DRLLM_FORMAT_Q4_1;
}

/* Scales and minima ahead of a group's weights. */
INLINE size_t header_bytes(enum drllm_format format) {
    return format == DRLLM_FORMAT_Q8C ? 0 : format == DRLLM_FORMAT_Q4_1 ? 2 * SCALE_BYTES : SCALE_BYTES;
}

INLINE size_t group_bytes(enum drllm_format format) {
    return header_bytes(format) + (size_t)ROWS * DRLLM_GROUP / (is_int4(format) ? 2 : 1);
}

/* The offset of a format's unsigned weights is two to this power. */
INLINE int offset_bits(enum drllm_format format) {
    return is_int4(format) ? 3 : 7;
}

/* Four activations as one number. */
INLINE int32_t four(const int8_t *q) {
    int32_t value;
    memcpy(&value, q, sizeof value);
    return value;
}

/* A kernel from matmul_vnni_tiles.inc. */
#define VNNI_KERNEL(FORMAT, format, backend)                                                                         \
    void drllm_matmul_##format##_##backend(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups, \
                                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {    \
        run_kernel(DRLLM_FORMAT_##FORMAT, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);             \
    }

/* AVX512-VNNI's kernels for few tokens: one panel in a register, since memory is the limit and one stream is what the
 * processor follows best. */
DRLLM_DECLARE_Q8(q4_0, few_avx512vnni)
DRLLM_DECLARE_Q8(q4_1, few_avx512vnni)
DRLLM_DECLARE_Q8(q8_0, few_avx512vnni)
DRLLM_DECLARE_Q8(q8c, few_avx512vnni)

#endif
