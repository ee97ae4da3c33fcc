/* Sums of the hidden states ahead of each block, so that at a later turn of a conversation the routers read the whole
 * prompt without computing all of it again.
 *
 * Windows move as the prompt grows, so that their own sums are of no use later. Kept are sums over cells of 16 tokens:
 * a window is the whole cells inside it and single tokens at its ends, which are computed once more. A window's sum is
 * taken in the order of positions, cell by cell, whether its cells were kept or not: the bits are the same. */
#ifndef DRLLM_RUNTIME_POOL_H
#define DRLLM_RUNTIME_POOL_H

#include "runtime/drllm.h"

enum { DRLLM_POOL_CELL = 16 };

struct drllm_pool {
    float *sums;        /* [n_layers][capacity][d_model]; NULL: none are kept */
    size_t capacity;    /* cells a layer */
    size_t layer_bytes; /* of one cell in all layers, for the release */
    size_t n_tokens;    /* leading tokens that were added */
};

/* The position of the cell that `position` is in. */
static inline size_t drllm_pool_round_down(size_t position) {
    return position / DRLLM_POOL_CELL * DRLLM_POOL_CELL;
}

/* Room for so many tokens, keeping what is there. MEMORY on failure; the pool is then as before. */
int drllm_pool_reserve(struct drllm_pool *pool, const struct drllm_allocator *allocator, size_t n_layers,
                       size_t d_model, size_t n_tokens);
void drllm_pool_free(struct drllm_pool *pool, const struct drllm_allocator *allocator);
/* Forget the tokens from number n_tokens on. */
void drllm_pool_rewind(struct drllm_pool *pool, size_t n_tokens);

#endif
