/* The loop that byte pair encoding and SentencePiece share: merge the best pair of neighbours until none is left. */
#include "runtime/memory.h"
#include "runtime/tokenizer_internal.h"

void drllm_merger_init(struct drllm_merger *merger, const struct drllm_allocator *allocator) {
    merger->allocator = allocator;
    merger->symbols = merger->few;
    merger->capacity = DRLLM_FEW_SYMBOLS;
    merger->heap = NULL;
    merger->heap_capacity = 0;
    merger->heap_size = 0;
}

void drllm_merger_free(struct drllm_merger *merger) {
    if (merger->symbols != merger->few) {
        drllm_release(merger->allocator, merger->symbols, merger->capacity, sizeof *merger->symbols);
    }
    drllm_release(merger->allocator, merger->heap, merger->heap_capacity, sizeof *merger->heap);
}

bool drllm_merger_reserve(struct drllm_merger *merger, size_t n) {
    if (n <= merger->capacity) {
        return true;
    }
    void *memory = merger->symbols == merger->few ? NULL : merger->symbols;
    size_t capacity = memory == NULL ? 0 : merger->capacity;
    const bool grown = drllm_grow(merger->allocator, &memory, &capacity, n, sizeof *merger->symbols, 0);
    if (grown) {
        merger->symbols = memory;
        merger->capacity = capacity;
    }
    return grown;
}

/* ---- A heap with the least on top ---- */

static void heap_push(struct drllm_merger *merger, uint64_t item) {
    uint64_t *heap = merger->heap;
    size_t at = merger->heap_size++;
    while (at > 0 && heap[(at - 1) / 2] > item) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

static uint64_t heap_pop(struct drllm_merger *merger) {
    uint64_t *heap = merger->heap;
    const uint64_t top = heap[0], item = heap[--merger->heap_size];
    const size_t n = merger->heap_size;
    size_t at = 0;
    for (size_t child = 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && heap[child + 1] < heap[child]) {
            child++;
        }
        if (heap[child] >= item) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
    return top;
}

/* ---- Merging ---- */

static void look_up(struct drllm_merger *merger, uint32_t left) {
    struct drllm_symbol *symbol = &merger->symbols[left];
    symbol->merged = -1;
    if (symbol->next != DRLLM_NO_SYMBOL) {
        merger->look_up(merger->context, symbol, &merger->symbols[symbol->next]);
    }
}

/* The pair of `left` and its neighbour becomes one symbol, which has pairs of its own. */
static void merge(struct drllm_merger *merger, uint32_t left) {
    struct drllm_symbol *symbols = merger->symbols, *symbol = &symbols[left], *right = &symbols[symbol->next];
    symbol->token = symbol->merged;
    symbol->size += right->size;
    right->merged = -1; /* nobody merges a symbol that is gone */
    symbol->next = right->next;
    if (symbol->next != DRLLM_NO_SYMBOL) {
        symbols[symbol->next].previous = left;
    }
    look_up(merger, left);
    if (symbol->previous != DRLLM_NO_SYMBOL) {
        look_up(merger, symbol->previous);
    }
}

/* Quadratic, and faster than a heap for words. */
static void merge_few(struct drllm_merger *merger) {
    for (;;) {
        uint32_t best = DRLLM_NO_SYMBOL;
        for (uint32_t i = 0; i != DRLLM_NO_SYMBOL; i = merger->symbols[i].next) {
            if (merger->symbols[i].merged >= 0 &&
                (best == DRLLM_NO_SYMBOL || merger->symbols[i].key < merger->symbols[best].key)) {
                best = i;
            }
        }
        if (best == DRLLM_NO_SYMBOL) {
            return;
        }
        merge(merger, best);
    }
}

static void heap_push_pair(struct drllm_merger *merger, uint32_t left) {
    if (left != DRLLM_NO_SYMBOL && merger->symbols[left].merged >= 0) {
        heap_push(merger, (uint64_t)merger->symbols[left].key << 32 | left);
    }
}

static bool merge_many(struct drllm_merger *merger, size_t n) {
    /* n - 1 pairs at first; each of at most n - 1 merges takes one out and puts two in. */
    size_t needed = 0;
    void *heap = merger->heap;
    if (!drllm_multiply(n, 2, &needed) ||
        !drllm_grow(merger->allocator, &heap, &merger->heap_capacity, needed, sizeof *merger->heap, 0)) {
        return false;
    }
    merger->heap = heap;
    merger->heap_size = 0;
    for (uint32_t i = 0; i < n; i++) {
        heap_push_pair(merger, i);
    }
    while (merger->heap_size > 0) {
        const uint64_t top = heap_pop(merger);
        const uint32_t left = (uint32_t)top;
        /* A pair that has changed since then has another key, or the same rightly. */
        const struct drllm_symbol *symbol = &merger->symbols[left];
        if (symbol->merged < 0 || symbol->key != (uint32_t)(top >> 32)) {
            continue;
        }
        merge(merger, left);
        heap_push_pair(merger, left);
        heap_push_pair(merger, symbol->previous);
    }
    return true;
}

bool drllm_merger_run(struct drllm_merger *merger, size_t n) {
    for (uint32_t i = 0; i < n; i++) {
        merger->symbols[i].previous = i == 0 ? DRLLM_NO_SYMBOL : i - 1;
        merger->symbols[i].next = i + 1 == n ? DRLLM_NO_SYMBOL : i + 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        look_up(merger, i);
    }
    if (n > DRLLM_FEW_SYMBOLS) {
        return merge_many(merger, n);
    }
    if (n > 1) {
        merge_few(merger);
    }
    return true;
}
