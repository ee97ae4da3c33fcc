/* Blocks of keys and of values in the cache, those of one head contiguous.
 *
 * F32, F16: 8 positions. Keys lie [head_dim][8 positions], so that a score kernel reads 8 positions in one load and never
 * adds across lanes; values lie [8 positions][head_dim], so that a sum over positions does not either.
 *
 * Q8_0: q8c panels as the product kernels read them (matmul.h), so that scores and weighted values are products of
 * integers; every position has one scale for its key and one for its value. A block of keys is a panel whose rows are 8
 * positions and whose columns are dimensions. A block of values is 64 positions: head_dim / 8 panels whose rows are
 * dimensions and whose columns are positions, with scales of 1; the positions' own scales, float[64], lie behind them
 * and go into the weights. */
#ifndef DRLLM_QUANT_KV_BLOCK_H
#define DRLLM_QUANT_KV_BLOCK_H

#include "quant/formats.h"

enum {
    DRLLM_KV_BLOCK = 8,
    DRLLM_KV_TILE = 64,                     /* positions that attention takes at a time; slots hold whole tiles */
    DRLLM_KV_PANEL_GROUP = 8 * DRLLM_GROUP, /* bytes of 8 rows by 32 columns in Q8_0 */
    DRLLM_KV_Q8_0_MOST_DIM = 256
};

/* n positions rounded up to a multiple of `unit`. */
static inline size_t drllm_kv_round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Positions of a block of values. */
static inline size_t drllm_kv_value_positions(enum drllm_format format) {
    return format == DRLLM_FORMAT_Q8_0 ? DRLLM_KV_TILE : DRLLM_KV_BLOCK;
}

/* Bytes of a Q8_0 panel, whose scales, float[8], lie behind its groups. */
static inline size_t drllm_kv_panel_bytes(size_t columns) {
    return columns / DRLLM_GROUP * DRLLM_KV_PANEL_GROUP + DRLLM_KV_BLOCK * sizeof(float);
}

/* Bytes of a block; format is F32, F16, or Q8_0, which needs a head_dim that is a multiple of 32. */
static inline size_t drllm_kv_key_bytes(enum drllm_format format, size_t head_dim) {
    return format == DRLLM_FORMAT_F32   ? DRLLM_KV_BLOCK * head_dim * sizeof(float)
           : format == DRLLM_FORMAT_F16 ? DRLLM_KV_BLOCK * head_dim * sizeof(uint16_t)
                                        : drllm_kv_panel_bytes(head_dim);
}

static inline size_t drllm_kv_value_bytes(enum drllm_format format, size_t head_dim) {
    return format == DRLLM_FORMAT_Q8_0
               ? head_dim / DRLLM_KV_BLOCK * drllm_kv_panel_bytes(DRLLM_KV_TILE) + DRLLM_KV_TILE * sizeof(float)
               : drllm_kv_key_bytes(format, head_dim);
}

#endif
