/* Blocks of keys and of values in the cache: 8 positions of one head, contiguous, in F32, F16 or Q8_0.
 *
 * Keys lie [head_dim][8 positions], so that a score kernel reads 8 positions in one load and never adds across lanes;
 * values lie [8 positions][head_dim], so that a sum over positions does not either. In Q8_0 the integers lie like that,
 * and their scales in F16 behind them: of keys [head_dim/32][8 positions], of values [8 positions][head_dim/32]. */
#ifndef DRLLM_QUANT_KV_BLOCK_H
#define DRLLM_QUANT_KV_BLOCK_H

#include "quant/formats.h"

enum { DRLLM_KV_BLOCK = 8 };

/* n positions rounded up to whole blocks. */
static inline size_t drllm_kv_round_up(size_t n) {
    return (n + DRLLM_KV_BLOCK - 1) / DRLLM_KV_BLOCK * DRLLM_KV_BLOCK;
}

/* Where the scales of a Q8_0 block begin, in bytes. */
static inline size_t drllm_kv_scales(size_t head_dim) {
    return DRLLM_KV_BLOCK * head_dim;
}

/* format is F32, F16, or Q8_0, which needs a head_dim that is a multiple of 32. */
static inline size_t drllm_kv_block_bytes(enum drllm_format format, size_t head_dim) {
    const size_t n = DRLLM_KV_BLOCK * head_dim;
    return format == DRLLM_FORMAT_F32   ? n * sizeof(float)
           : format == DRLLM_FORMAT_F16 ? n * sizeof(uint16_t)
                                        : n + n / DRLLM_GROUP * sizeof(uint16_t);
}

#endif
