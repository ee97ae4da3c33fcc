#include "runtime/memory.h"

#include <string.h>

bool drllm_multiply(size_t a, size_t b, size_t *product) {
    if (b != 0 && a > SIZE_MAX / b) {
        return false;
    }
    *product = a * b;
    return true;
}

bool drllm_add_sizes(size_t a, size_t b, size_t *sum) {
    if (a > SIZE_MAX - b) {
        return false;
    }
    *sum = a + b;
    return true;
}

size_t drllm_round_up(size_t bytes) {
    return bytes > SIZE_MAX - (DRLLM_ALIGNMENT - 1) ? SIZE_MAX
                                                    : (bytes + DRLLM_ALIGNMENT - 1) / DRLLM_ALIGNMENT * DRLLM_ALIGNMENT;
}

void *drllm_allocate(const struct drllm_allocator *allocator, size_t count, size_t size) {
    size_t bytes = 0;
    if (!drllm_multiply(count, size, &bytes) || bytes == 0) {
        return NULL;
    }
    return allocator->allocate(allocator->user, bytes, DRLLM_ALIGNMENT);
}

void *drllm_allocate_zeroed(const struct drllm_allocator *allocator, size_t count, size_t size) {
    void *memory = drllm_allocate(allocator, count, size);
    if (memory != NULL) {
        memset(memory, 0, count * size);
    }
    return memory;
}

void drllm_release(const struct drllm_allocator *allocator, void *memory, size_t count, size_t size) {
    if (memory != NULL) {
        allocator->release(allocator->user, memory, count * size);
    }
}

struct drllm_kept {
    struct drllm_kept *next;
    void *memory;
    size_t size;
};

void *drllm_keep(const struct drllm_allocator *allocator, struct drllm_kept **kept, size_t count, size_t size) {
    size_t bytes;
    if (!drllm_multiply(count, size, &bytes)) {
        return NULL;
    }
    struct drllm_kept *entry = drllm_allocate(allocator, 1, sizeof *entry);
    if (entry == NULL) {
        return NULL;
    }
    *entry = (struct drllm_kept){.next = *kept, .memory = drllm_allocate(allocator, bytes, 1), .size = bytes};
    if (entry->memory == NULL) {
        drllm_release(allocator, entry, 1, sizeof *entry);
        return NULL;
    }
    *kept = entry;
    return entry->memory;
}

void drllm_release_kept(const struct drllm_allocator *allocator, struct drllm_kept **kept) {
    while (*kept != NULL) {
        struct drllm_kept *entry = *kept;
        *kept = entry->next;
        drllm_release(allocator, entry->memory, entry->size, 1);
        drllm_release(allocator, entry, 1, sizeof *entry);
    }
}
