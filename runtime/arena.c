#include "runtime/arena.h"

#include "runtime/memory.h"

#include <assert.h>

/* Releases say how large a block is, so that blocks need no headers; holes keep theirs inside. */
struct drllm_arena_hole {
    struct drllm_arena_hole *next;
    size_t size;
};
static_assert(sizeof(struct drllm_arena_hole) <= DRLLM_ALIGNMENT, "the smallest block holds it");

void drllm_arena_init(struct drllm_arena *arena, void *memory, size_t size) {
    *arena = (struct drllm_arena){.memory = memory, .size = size / DRLLM_ALIGNMENT * DRLLM_ALIGNMENT};
}

static void *allocate(void *user, size_t size, size_t alignment) {
    struct drllm_arena *arena = user;
    const size_t cost = drllm_round_up(size);
    (void)alignment; /* DRLLM_ALIGNMENT at most, which all blocks have */
    for (struct drllm_arena_hole **link = &arena->holes; *link != NULL; link = &(*link)->next) {
        struct drllm_arena_hole *hole = *link;
        if (hole->size < cost) {
            continue;
        }
        if (hole->size == cost) {
            *link = hole->next;
        } else {
            struct drllm_arena_hole *rest = (struct drllm_arena_hole *)(void *)((unsigned char *)hole + cost);
            *rest = (struct drllm_arena_hole){hole->next, hole->size - cost};
            *link = rest;
        }
        return hole;
    }
    if (cost > arena->size - arena->end) {
        return NULL;
    }
    void *memory = arena->memory + arena->end;
    arena->end += cost;
    arena->most = arena->end > arena->most ? arena->end : arena->most;
    return memory;
}

static unsigned char *end_of(struct drllm_arena_hole *hole) {
    return (unsigned char *)hole + hole->size;
}

static void release(void *user, void *memory, size_t size) {
    struct drllm_arena *arena = user;
    struct drllm_arena_hole *hole = memory, *before = NULL, *behind = arena->holes;
    while (behind != NULL && behind < hole) {
        before = behind;
        behind = behind->next;
    }
    *hole = (struct drllm_arena_hole){behind, drllm_round_up(size)};
    if (behind != NULL && end_of(hole) == (unsigned char *)behind) {
        *hole = (struct drllm_arena_hole){behind->next, hole->size + behind->size};
    }
    if (before != NULL && end_of(before) == (unsigned char *)hole) {
        *before = (struct drllm_arena_hole){hole->next, before->size + hole->size};
        hole = before;
    } else if (before != NULL) {
        before->next = hole;
    } else {
        arena->holes = hole;
    }
    if (end_of(hole) != arena->memory + arena->end) {
        return;
    }
    /* The last hole is given back to what was never used. */
    struct drllm_arena_hole **link = &arena->holes;
    while (*link != hole) {
        link = &(*link)->next;
    }
    *link = NULL;
    arena->end = (size_t)((unsigned char *)hole - arena->memory);
}

struct drllm_allocator drllm_arena_allocator(struct drllm_arena *arena) {
    return (struct drllm_allocator){allocate, release, arena};
}
