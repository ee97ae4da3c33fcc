/* Allocation through the caller's hooks. */
#ifndef DRLLM_RUNTIME_MEMORY_H
#define DRLLM_RUNTIME_MEMORY_H

#include "runtime/drllm.h"

enum { DRLLM_ALIGNMENT = 64 };

/* count * size bytes, 64-byte aligned, not cleared; NULL on overflow, for none, and when memory is out. */
void *drllm_allocate(const struct drllm_allocator *allocator, size_t count, size_t size);
/* The same, cleared. */
void *drllm_allocate_zeroed(const struct drllm_allocator *allocator, size_t count, size_t size);
/* NULL is allowed; count and size as they were allocated. */
void drllm_release(const struct drllm_allocator *allocator, void *memory, size_t count, size_t size);

/* So many bytes as whole units of DRLLM_ALIGNMENT, which an arena gives (arena.h); SIZE_MAX on overflow. */
size_t drllm_round_up(size_t bytes);

/* *product = a * b; false on overflow. */
bool drllm_multiply(size_t a, size_t b, size_t *product);
bool drllm_add_sizes(size_t a, size_t b, size_t *sum);

/* Memory that lives as long as its owner, who releases it all at once: a list, newest first, that begins as NULL. */
struct drllm_kept;
/* As drllm_allocate; the memory joins the list. */
void *drllm_keep(const struct drllm_allocator *allocator, struct drllm_kept **kept, size_t count, size_t size);
void drllm_release_kept(const struct drllm_allocator *allocator, struct drllm_kept **kept);

#endif
