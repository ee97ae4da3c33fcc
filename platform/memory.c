#include "platform/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Of x86-64, and of AArch64 with pages of 4 KiB. */
enum { HUGE_PAGE = 2 << 20, LARGE = 2 * HUGE_PAGE };

/* What is read from end to end for every token is slower by a fifth in small pages: each is looked up, and at its
 * end the processor no longer knows what comes next. A hint, for the pages that lie wholly inside. */
static void ask_for_huge_pages(void *memory, size_t size) {
#ifdef MADV_HUGEPAGE
    (void)madvise(memory, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)size;
#endif
}

void *drllm_memory_allocate(size_t size, size_t alignment) {
    void *memory = NULL;
    alignment = alignment < sizeof(void *) ? sizeof(void *) : alignment;
    if (size >= LARGE) {
        alignment = alignment < HUGE_PAGE ? HUGE_PAGE : alignment;
    }
    if (size == 0 || size > PTRDIFF_MAX || posix_memalign(&memory, alignment, size) != 0) {
        return NULL;
    }
    if (size >= LARGE) {
        ask_for_huge_pages(memory, size);
    }
    return memory;
}

void drllm_memory_release(void *memory) {
    free(memory);
}
