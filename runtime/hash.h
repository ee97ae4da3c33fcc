/* 64-bit FNV-1a (draft-eastlake-fnv): for tables and checksums of what nobody forges. Byte by byte, so that the hash of a
 * text goes on into that of a longer one. */
#ifndef DRLLM_RUNTIME_HASH_H
#define DRLLM_RUNTIME_HASH_H

#include <stddef.h>
#include <stdint.h>

#define DRLLM_HASH_START UINT64_C(0xcbf29ce484222325)

static inline uint64_t drllm_hash_byte(uint64_t hash, uint8_t byte) {
    return (hash ^ byte) * UINT64_C(0x100000001b3);
}

static inline uint64_t drllm_hash_bytes(uint64_t hash, const void *data, size_t size) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++) {
        hash = drllm_hash_byte(hash, bytes[i]);
    }
    return hash;
}

#endif
