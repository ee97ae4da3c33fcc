/* There is no memory but what the caller brings: drllm_fw_open's arena, or the allocator of the model's parameters. */
#include "platform/memory.h"

void *drllm_memory_allocate(size_t size, size_t alignment) {
    (void)size;
    (void)alignment;
    return NULL;
}

void drllm_memory_release(void *memory) {
    (void)memory;
}
