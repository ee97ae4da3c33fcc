/* Keys and values of the tokens so far, in F16 (in F32 for the F32 reference network): one slot per execution of a
 * block.
 *
 * A slot's keys lie in blocks of 8 positions, [position / 8][kv head][head_dim][position % 8], so that a score
 * kernel reads 8 positions in one load; its values lie [position][kv head][head_dim]. A slot is allocated when it is
 * first used and grows by need; a skipped block has none. */
#ifndef DRLLM_RUNTIME_KVCACHE_H
#define DRLLM_RUNTIME_KVCACHE_H

#include "runtime/drllm.h"

enum { DRLLM_KV_BLOCK = 8 };

/* n positions rounded up to whole blocks of keys. */
static inline size_t drllm_kv_round_up(size_t n) {
    return (n + DRLLM_KV_BLOCK - 1) / DRLLM_KV_BLOCK * DRLLM_KV_BLOCK;
}

struct drllm_kv_slot {
    void *keys;
    void *values;
    size_t capacity; /* positions, a multiple of DRLLM_KV_BLOCK */
};

struct drllm_kvcache {
    struct drllm_allocator allocator;
    struct drllm_kv_slot *slots;
    size_t n_slots;
    size_t n_kv_heads;
    size_t head_dim;
    size_t element_bytes; /* 2: F16, 4: F32 */
    size_t max_positions;
    size_t capacity; /* positions that a slot in use has room for */
};

/* MEMORY on failure. Nothing is allocated for the slots yet. */
int drllm_kvcache_init(struct drllm_kvcache *cache, const struct drllm_allocator *allocator, size_t n_slots,
                       size_t n_kv_heads, size_t head_dim, size_t element_bytes, size_t max_positions);
void drllm_kvcache_free(struct drllm_kvcache *cache);

/* Slots that are used from now on get room for n_positions. */
void drllm_kvcache_set_positions(struct drllm_kvcache *cache, size_t n_positions);
/* Give a slot its room, keeping its first n_used positions. MEMORY on failure; the slot is then as before. */
int drllm_kvcache_use(struct drllm_kvcache *cache, size_t slot, size_t n_used);
/* Free the slots from number n_slots on. */
void drllm_kvcache_trim(struct drllm_kvcache *cache, size_t n_slots);

/* The distance in elements between neighbouring blocks of a slot's keys, and between positions of its values. */
size_t drllm_kvcache_key_stride(const struct drllm_kvcache *cache);
size_t drllm_kvcache_value_stride(const struct drllm_kvcache *cache);

/* Store one position; keys and values are elements, [n_kv_heads][head_dim]. */
void drllm_kvcache_store(const struct drllm_kvcache *cache, size_t slot, size_t position, const void *keys,
                         const void *values);

uint64_t drllm_kvcache_bytes(const struct drllm_kvcache *cache);

#endif
