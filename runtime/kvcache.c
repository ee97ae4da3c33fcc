#include "runtime/kvcache.h"

#include "runtime/memory.h"

#include <string.h>

int drllm_kvcache_init(struct drllm_kvcache *cache, const struct drllm_allocator *allocator, size_t n_slots,
                       size_t n_kv_heads, size_t head_dim, enum drllm_format format, size_t max_positions) {
    *cache = (struct drllm_kvcache){.allocator = *allocator,
                                    .n_slots = n_slots,
                                    .n_kv_heads = n_kv_heads,
                                    .head_dim = head_dim,
                                    .format = format,
                                    .max_positions = max_positions};
    cache->slots = drllm_allocate_zeroed(allocator, n_slots, sizeof *cache->slots);
    return cache->slots == NULL ? DRLLM_ERR_MEMORY : DRLLM_OK;
}

static size_t block_bytes(const struct drllm_kvcache *cache) {
    return drllm_kv_block_bytes(cache->format, cache->head_dim);
}

size_t drllm_kvcache_stride(const struct drllm_kvcache *cache) {
    return cache->n_kv_heads * block_bytes(cache);
}

static size_t position_bytes(const struct drllm_kvcache *cache) {
    return drllm_kvcache_stride(cache) / DRLLM_KV_BLOCK;
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
        memcpy(grown.values, slot->values, drllm_kv_round_up(n_used) * bytes);
    }
    /* The rest of the last block is read, and what comes of it thrown away, before it is written. */
    const size_t end = drllm_kv_round_up(n_used) * bytes;
    memset(grown.keys + end, 0, capacity * bytes - end);
    memset(grown.values + end, 0, capacity * bytes - end);
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

static size_t block_offset(const struct drllm_kvcache *cache, size_t kv_head, size_t position) {
    return position / DRLLM_KV_BLOCK * drllm_kvcache_stride(cache) + kv_head * block_bytes(cache);
}

const void *drllm_kvcache_keys(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    return cache->slots[slot].keys + block_offset(cache, kv_head, position);
}

const void *drllm_kvcache_values(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    return cache->slots[slot].values + block_offset(cache, kv_head, position);
}

/* Where a position's elements go in a block: number i at first + i * step. */
struct place {
    size_t first;
    size_t step;
};

static void put(unsigned char *block, struct place place, size_t i, const void *element, size_t size) {
    memcpy(block + (place.first + i * place.step) * size, element, size);
}

/* x are the elements i to i+n-1 of a head; n <= DRLLM_GROUP, and equal to it for Q8_0. `scales` is for their scale. */
static void store_group(const struct drllm_kvcache *cache, const struct drllm_vec_ops *vec, unsigned char *block,
                        struct place elements, struct place scales, size_t start, size_t n, const float *x) {
    if (cache->format == DRLLM_FORMAT_F32) {
        for (size_t i = 0; i < n; i++) {
            put(block, elements, start + i, &x[i], sizeof x[i]);
        }
        return;
    }
    if (cache->format == DRLLM_FORMAT_F16) {
        uint16_t half[DRLLM_GROUP];
        vec->to_f16(half, x, n);
        for (size_t i = 0; i < n; i++) {
            put(block, elements, start + i, &half[i], sizeof half[i]);
        }
        return;
    }
    int8_t q[DRLLM_GROUP];
    float scale, ssum;
    int32_t sum;
    uint16_t half;
    vec->quantize_q8(x, DRLLM_GROUP, DRLLM_GROUP, q, &scale, &sum, &ssum);
    vec->to_f16(&half, &scale, 1);
    for (size_t i = 0; i < n; i++) {
        put(block, elements, start + i, &q[i], sizeof q[i]);
    }
    put(block + drllm_kv_scales(cache->head_dim), scales, start / DRLLM_GROUP, &half, sizeof half);
}

void drllm_kvcache_store(const struct drllm_kvcache *cache, const struct drllm_vec_ops *vec, size_t slot,
                         size_t position, const float *keys, const float *values) {
    const size_t head_dim = cache->head_dim;
    const size_t lane = position % DRLLM_KV_BLOCK;
    const struct place key = {lane, DRLLM_KV_BLOCK};
    const struct place value = {lane * head_dim, 1};
    const struct place value_scale = {lane * (head_dim / DRLLM_GROUP), 1};
    for (size_t head = 0; head < cache->n_kv_heads; head++) {
        const size_t offset = block_offset(cache, head, position);
        for (size_t start = 0; start < head_dim; start += DRLLM_GROUP) {
            const size_t n = head_dim - start < DRLLM_GROUP ? head_dim - start : (size_t)DRLLM_GROUP;
            const size_t from = head * head_dim + start;
            store_group(cache, vec, cache->slots[slot].keys + offset, key, key, start, n, keys + from);
            store_group(cache, vec, cache->slots[slot].values + offset, value, value_scale, start, n, values + from);
        }
    }
}

uint64_t drllm_kvcache_bytes(const struct drllm_kvcache *cache) {
    uint64_t total = 0;
    for (size_t i = 0; i < cache->n_slots; i++) {
        total += (uint64_t)cache->slots[i].capacity * position_bytes(cache) * 2;
    }
    return total;
}
