#include "runtime/kvcache.h"

#include "runtime/memory.h"

#include <string.h>

int drllm_kvcache_init(struct drllm_kvcache *cache, const struct drllm_allocator *allocator, size_t n_slots,
                       size_t n_kv_heads, size_t head_dim, size_t element_bytes, size_t max_positions) {
    *cache = (struct drllm_kvcache){.allocator = *allocator,
                                    .n_slots = n_slots,
                                    .n_kv_heads = n_kv_heads,
                                    .head_dim = head_dim,
                                    .element_bytes = element_bytes,
                                    .max_positions = max_positions};
    cache->slots = drllm_allocate_zeroed(allocator, n_slots, sizeof *cache->slots);
    return cache->slots == NULL ? DRLLM_ERR_MEMORY : DRLLM_OK;
}

size_t drllm_kvcache_value_stride(const struct drllm_kvcache *cache) {
    return cache->n_kv_heads * cache->head_dim;
}

size_t drllm_kvcache_key_stride(const struct drllm_kvcache *cache) {
    return drllm_kvcache_value_stride(cache) * DRLLM_KV_BLOCK;
}

static size_t position_bytes(const struct drllm_kvcache *cache) {
    return drllm_kvcache_value_stride(cache) * cache->element_bytes;
}

static void slot_free(const struct drllm_kvcache *cache, struct drllm_kv_slot *slot) {
    drllm_release(&cache->allocator, slot->keys, slot->capacity, position_bytes(cache));
    drllm_release(&cache->allocator, slot->values, slot->capacity, position_bytes(cache));
}

void drllm_kvcache_free(struct drllm_kvcache *cache) {
    for (size_t i = 0; cache->slots != NULL && i < cache->n_slots; i++) {
        slot_free(cache, &cache->slots[i]);
    }
    drllm_release(&cache->allocator, cache->slots, cache->n_slots, sizeof *cache->slots);
    cache->slots = NULL;
}

static int slot_grow(const struct drllm_kvcache *cache, struct drllm_kv_slot *slot, size_t capacity, size_t n_used) {
    const size_t bytes = position_bytes(cache);
    struct drllm_kv_slot grown = {.capacity = capacity};
    grown.keys = drllm_allocate(&cache->allocator, capacity, bytes);
    grown.values = drllm_allocate(&cache->allocator, capacity, bytes);
    if (grown.keys == NULL || grown.values == NULL) {
        slot_free(cache, &grown);
        return DRLLM_ERR_MEMORY;
    }
    if (n_used > 0) {
        memcpy(grown.keys, slot->keys, drllm_kv_round_up(n_used) * bytes);
        memcpy(grown.values, slot->values, n_used * bytes);
    }
    /* The rest of the last block of keys is read, and its scores thrown away, before it is written. */
    const size_t end = drllm_kv_round_up(n_used);
    memset((unsigned char *)grown.keys + end * bytes, 0, (capacity - end) * bytes);
    slot_free(cache, slot);
    *slot = grown;
    return DRLLM_OK;
}

void drllm_kvcache_set_positions(struct drllm_kvcache *cache, size_t n_positions) {
    enum { LEAST = 64 };
    if (cache->capacity >= n_positions) {
        return;
    }
    /* Half as much again keeps copying linear; never beyond what the context can use. */
    size_t capacity = cache->capacity + cache->capacity / 2;
    capacity = capacity > n_positions ? capacity : n_positions;
    capacity = capacity < cache->max_positions ? capacity : cache->max_positions;
    cache->capacity = drllm_kv_round_up(capacity > LEAST ? capacity : LEAST);
}

int drllm_kvcache_use(struct drllm_kvcache *cache, size_t slot, size_t n_used) {
    struct drllm_kv_slot *used = &cache->slots[slot];
    return used->capacity >= cache->capacity ? DRLLM_OK : slot_grow(cache, used, cache->capacity, n_used);
}

void drllm_kvcache_trim(struct drllm_kvcache *cache, size_t n_slots) {
    for (size_t i = n_slots; i < cache->n_slots; i++) {
        slot_free(cache, &cache->slots[i]);
        cache->slots[i] = (struct drllm_kv_slot){0};
    }
}

/* Elements are contiguous in a position, 8 apart in a block of keys; heads and dimensions are one running index in
 * both. */
static void scatter_f16(uint16_t *block, const uint16_t *keys, size_t n) {
    for (size_t i = 0; i < n; i++) {
        block[i * DRLLM_KV_BLOCK] = keys[i];
    }
}

static void scatter_f32(float *block, const float *keys, size_t n) {
    for (size_t i = 0; i < n; i++) {
        block[i * DRLLM_KV_BLOCK] = keys[i];
    }
}

void drllm_kvcache_store(const struct drllm_kvcache *cache, size_t slot, size_t position, const void *keys,
                         const void *values) {
    const size_t width = drllm_kvcache_value_stride(cache);
    const size_t first = position / DRLLM_KV_BLOCK * drllm_kvcache_key_stride(cache) + position % DRLLM_KV_BLOCK;
    if (cache->element_bytes == sizeof(uint16_t)) {
        scatter_f16((uint16_t *)cache->slots[slot].keys + first, keys, width);
    } else {
        scatter_f32((float *)cache->slots[slot].keys + first, keys, width);
    }
    memcpy((unsigned char *)cache->slots[slot].values + position * position_bytes(cache), values,
           position_bytes(cache));
}

uint64_t drllm_kvcache_bytes(const struct drllm_kvcache *cache) {
    uint64_t total = 0;
    for (size_t i = 0; i < cache->n_slots; i++) {
        total += (uint64_t)cache->slots[i].capacity * position_bytes(cache) * 2;
    }
    return total;
}
