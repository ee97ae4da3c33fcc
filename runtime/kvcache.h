/* Keys and values of the tokens so far: one slot per execution of a block of the network.
 *
 * A slot's keys and its values lie in blocks of positions, [kv head][block], whose inside is described in
 * quant/kv_block.h: a head reads its own from end to end. A slot is allocated when it is first used and grows by need;
 * a skipped block has none. */
#ifndef DRLLM_RUNTIME_KVCACHE_H
#define DRLLM_RUNTIME_KVCACHE_H

#include "quant/vec.h"
#include "runtime/drllm.h"

struct drllm_kv_slot {
    unsigned char *keys;
    unsigned char *values;
    size_t capacity; /* positions, a multiple of DRLLM_KV_TILE */
};

struct drllm_kvcache {
    struct drllm_allocator allocator;
    struct drllm_kv_slot *slots;
    size_t n_slots;
    size_t n_kv_heads;
    size_t head_dim;
    enum drllm_format format; /* F16, Q8_0, or F32 for the F32 reference network */
    size_t max_positions;
    size_t capacity; /* positions that a slot in use has room for */
};

/* MEMORY on failure. Nothing is allocated for the slots yet. Q8_0 needs a head_dim that is a multiple of 32
 * and at most DRLLM_KV_Q8_0_MOST_DIM. */
int drllm_kvcache_init(struct drllm_kvcache *cache, const struct drllm_allocator *allocator, size_t n_slots,
                       size_t n_kv_heads, size_t head_dim, enum drllm_format format, size_t max_positions);
void drllm_kvcache_free(struct drllm_kvcache *cache);

/* Slots that are used from now on get room for n_positions. */
void drllm_kvcache_set_positions(struct drllm_kvcache *cache, size_t n_positions);
/* Give a slot its room, keeping its first n_used positions. MEMORY on failure; the slot is then as before. */
int drllm_kvcache_use(struct drllm_kvcache *cache, size_t slot, size_t n_used);
/* Free the slots from number n_slots on. */
void drllm_kvcache_trim(struct drllm_kvcache *cache, size_t n_slots);

/* One head's block that holds a position; its next blocks follow. */
const void *drllm_kvcache_keys(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position);
const void *drllm_kvcache_values(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position);

/* Store one position; keys and values are [n_kv_heads][head_dim]. */
void drllm_kvcache_store(const struct drllm_kvcache *cache, const struct drllm_vec_ops *vec, size_t slot,
                         size_t position, const float *keys, const float *values);

uint64_t drllm_kvcache_bytes(const struct drllm_kvcache *cache);

#endif
