/* An allocator over one block of the caller's memory: the first hole that fits, else what was never used. */
#ifndef DRLLM_RUNTIME_ARENA_H
#define DRLLM_RUNTIME_ARENA_H

#include "runtime/drllm.h"

struct drllm_arena_hole;

struct drllm_arena {
    unsigned char *memory;
    size_t size;
    size_t end;                     /* what lies behind was never used, or is free again */
    size_t most;                    /* the furthest that `end` has been */
    struct drllm_arena_hole *holes; /* by address; no two touch, and none touches the end */
};

/* memory is aligned to DRLLM_ALIGNMENT (memory.h); size is rounded down to it. */
void drllm_arena_init(struct drllm_arena *arena, void *memory, size_t size);
/* The arena must stay where it is. */
struct drllm_allocator drllm_arena_allocator(struct drllm_arena *arena);

#endif
