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

/* Bytes of the keys and of the values of one head's tile. */
static size_t key_tile_bytes(const struct drllm_kvcache *cache) {
    return DRLLM_KV_TILE / DRLLM_KV_BLOCK * drllm_kv_key_bytes(cache->format, cache->head_dim);
}

static size_t value_tile_bytes(const struct drllm_kvcache *cache) {
    return DRLLM_KV_TILE / drllm_kv_value_positions(cache->format) *
           drllm_kv_value_bytes(cache->format, cache->head_dim);
}

/* Tiles of a slot with room for so many positions, those of all heads. */
static size_t n_tiles(const struct drllm_kvcache *cache, size_t capacity) {
    return cache->n_kv_heads * (capacity / DRLLM_KV_TILE);
}

static void slot_free(const struct drllm_kvcache *cache, struct drllm_kv_slot *slot) {
    drllm_release(&cache->allocator, slot->keys, n_tiles(cache, slot->capacity), key_tile_bytes(cache));
    drllm_release(&cache->allocator, slot->values, n_tiles(cache, slot->capacity), value_tile_bytes(cache));
}

void drllm_kvcache_free(struct drllm_kvcache *cache) {
    for (size_t i = 0; cache->slots != NULL && i < cache->n_slots; i++) {
        slot_free(cache, &cache->slots[i]);
    }
    drllm_release(&cache->allocator, cache->slots, cache->n_slots, sizeof *cache->slots);
    cache->slots = NULL;
}

/* The scales of the panels of one head's Q8_0 values. */
static void set_panel_scales(unsigned char *block, size_t head_dim) {
    static const float ones[DRLLM_KV_BLOCK] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    for (size_t d = 0; d < head_dim; d += DRLLM_KV_BLOCK) {
        block += drllm_kv_panel_bytes(DRLLM_KV_TILE);
        memcpy(block - sizeof ones, ones, sizeof ones);
    }
}

/* What lies behind the last position in its tile is read, and what comes of it thrown away, before it is written. */
static void clear_tiles(const struct drllm_kvcache *cache, unsigned char *keys, unsigned char *values, size_t n) {
    memset(keys, 0, n * key_tile_bytes(cache));
    memset(values, 0, n * value_tile_bytes(cache));
    for (size_t i = 0; i < n && cache->format == DRLLM_FORMAT_Q8_0; i++) {
        set_panel_scales(values + i * value_tile_bytes(cache), cache->head_dim);
    }
}

static int slot_grow(const struct drllm_kvcache *cache, struct drllm_kv_slot *slot, size_t capacity, size_t n_used) {
    const size_t key_bytes = key_tile_bytes(cache);
    const size_t value_bytes = value_tile_bytes(cache);
    const size_t n_head = capacity / DRLLM_KV_TILE;
    const size_t n_before = slot->capacity / DRLLM_KV_TILE;
    const size_t n_kept = drllm_kv_round_up(n_used, DRLLM_KV_TILE) / DRLLM_KV_TILE;
    size_t n_all = 0; /* what has a capacity was multiplied before */
    struct drllm_kv_slot grown = {.capacity = capacity};
    if (drllm_multiply(cache->n_kv_heads, n_head, &n_all)) {
        grown.keys = drllm_allocate(&cache->allocator, n_all, key_bytes);
        grown.values = drllm_allocate(&cache->allocator, n_all, value_bytes);
    }
    if (grown.keys == NULL || grown.values == NULL) {
        slot_free(cache, &grown);
        return DRLLM_ERR_MEMORY;
    }
    for (size_t head = 0; head < cache->n_kv_heads; head++) {
        unsigned char *keys = grown.keys + head * n_head * key_bytes;
        unsigned char *values = grown.values + head * n_head * value_bytes;
        if (n_kept > 0) {
            memcpy(keys, slot->keys + head * n_before * key_bytes, n_kept * key_bytes);
            memcpy(values, slot->values + head * n_before * value_bytes, n_kept * value_bytes);
        }
        clear_tiles(cache, keys + n_kept * key_bytes, values + n_kept * value_bytes, n_head - n_kept);
    }
    slot_free(cache, slot);
    *slot = grown;
    return DRLLM_OK;
}

void drllm_kvcache_set_positions(struct drllm_kvcache *cache, size_t n_positions) {
    if (cache->capacity >= n_positions) {
        return;
    }
    /* Half as much again keeps copying linear; never beyond what the context can use. */
    size_t capacity = cache->capacity + cache->capacity / 2;
    capacity = capacity > n_positions ? capacity : n_positions;
    capacity = capacity < cache->max_positions ? capacity : cache->max_positions;
    cache->capacity = drllm_kv_round_up(capacity, DRLLM_KV_TILE);
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

static unsigned char *key_block(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    const size_t block = (kv_head * cache->slots[slot].capacity + position) / DRLLM_KV_BLOCK;
    return cache->slots[slot].keys + block * drllm_kv_key_bytes(cache->format, cache->head_dim);
}

static unsigned char *value_block(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    const size_t n = kv_head * cache->slots[slot].capacity + position;
    return cache->slots[slot].values +
           n / drllm_kv_value_positions(cache->format) * drllm_kv_value_bytes(cache->format, cache->head_dim);
}

const void *drllm_kvcache_keys(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    return key_block(cache, slot, kv_head, position);
}

const void *drllm_kvcache_values(const struct drllm_kvcache *cache, size_t slot, size_t kv_head, size_t position) {
    return value_block(cache, slot, kv_head, position);
}

/* ---- Storing ---- */

/* The n elements of x, `width` bytes each, at block elements first, first + step ... */
static void scatter(unsigned char *block, size_t first, size_t step, const void *x, size_t width, size_t n) {
    const unsigned char *from = x;
    for (size_t i = 0; i < n; i++) {
        memcpy(block + (first + i * step) * width, from + i * width, width);
    }
}

static void store_floats(const struct drllm_kvcache *cache, const struct drllm_vec_ops *vec, size_t lane,
                         const float *key, const float *value, unsigned char *keys, unsigned char *values) {
    const size_t head_dim = cache->head_dim;
    if (cache->format == DRLLM_FORMAT_F32) {
        scatter(keys, lane, DRLLM_KV_BLOCK, key, sizeof *key, head_dim);
        scatter(values, lane * head_dim, 1, value, sizeof *value, head_dim);
        return;
    }
    enum { PART = 64 };
    uint16_t half[PART];
    for (size_t d = 0; d < head_dim; d += PART) {
        const size_t n = head_dim - d < PART ? head_dim - d : (size_t)PART;
        vec->to_f16(half, key + d, n);
        scatter(keys, d * DRLLM_KV_BLOCK + lane, DRLLM_KV_BLOCK, half, sizeof half[0], n);
        vec->to_f16(half, value + d, n);
        scatter(values, lane * head_dim + d, 1, half, sizeof half[0], n);
    }
}

static void store_q8_0_key(const struct drllm_vec_ops *vec, size_t head_dim, size_t lane, const float *key,
                           unsigned char *panel) {
    int8_t q[DRLLM_KV_Q8_0_MOST_DIM];
    float scale, ssum;
    int32_t sum;
    vec->quantize_q8(key, head_dim, head_dim, q, &scale, &sum, &ssum);
    for (size_t d = 0; d < head_dim; d += 4) {
        memcpy(panel + d * DRLLM_KV_BLOCK + lane * 4, q + d, 4);
    }
    memcpy(panel + head_dim * DRLLM_KV_BLOCK + lane * sizeof scale, &scale, sizeof scale);
}

static void store_q8_0_value(const struct drllm_vec_ops *vec, size_t head_dim, size_t column, const float *value,
                             unsigned char *block) {
    int8_t q[DRLLM_KV_Q8_0_MOST_DIM];
    float scale, ssum;
    int32_t sum;
    vec->quantize_q8(value, head_dim, head_dim, q, &scale, &sum, &ssum);
    unsigned char *panel = block + column / 4 * 4 * DRLLM_KV_BLOCK + column % 4;
    for (size_t d = 0; d < head_dim; d += DRLLM_KV_BLOCK, panel += drllm_kv_panel_bytes(DRLLM_KV_TILE)) {
        for (size_t row = 0; row < DRLLM_KV_BLOCK; row++) {
            memcpy(panel + row * 4, &q[d + row], 1);
        }
    }
    memcpy(block + head_dim / DRLLM_KV_BLOCK * drllm_kv_panel_bytes(DRLLM_KV_TILE) + column * sizeof scale, &scale,
           sizeof scale);
}

void drllm_kvcache_store(const struct drllm_kvcache *cache, const struct drllm_vec_ops *vec, size_t slot,
                         size_t position, const float *keys, const float *values) {
    const size_t head_dim = cache->head_dim;
    const size_t lane = position % DRLLM_KV_BLOCK;
    for (size_t head = 0; head < cache->n_kv_heads; head++, keys += head_dim, values += head_dim) {
        unsigned char *to_keys = key_block(cache, slot, head, position);
        unsigned char *to_values = value_block(cache, slot, head, position);
        if (cache->format == DRLLM_FORMAT_Q8_0) {
            store_q8_0_key(vec, head_dim, lane, keys, to_keys);
            store_q8_0_value(vec, head_dim, position % DRLLM_KV_TILE, values, to_values);
        } else {
            store_floats(cache, vec, lane, keys, values, to_keys, to_values);
        }
    }
}

uint64_t drllm_kvcache_bytes(const struct drllm_kvcache *cache) {
    uint64_t total = 0;
    for (size_t i = 0; i < cache->n_slots; i++) {
        total += (uint64_t)cache->slots[i].capacity / DRLLM_KV_TILE * cache->n_kv_heads *
                 (key_tile_bytes(cache) + value_tile_bytes(cache));
    }
    return total;
}
