#include "platform/memory.h"

#include <stdlib.h>

void *drllm_memory_allocate(size_t size, size_t alignment) {
    void *memory = NULL;
    if (size == 0 || posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment, size) != 0) {
        return NULL;
    }
    return memory;
}

void drllm_memory_release(void *memory) {
    free(memory);
}
