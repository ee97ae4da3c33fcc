/* The platform's own memory, for callers that bring no allocator. */
#ifndef DRLLM_PLATFORM_MEMORY_H
#define DRLLM_PLATFORM_MEMORY_H

#include <stddef.h>

/* `size` bytes aligned to `alignment` (a power of two), not cleared; NULL when there are none. size 0 gives NULL.
 * 4 MiB or more are aligned to 2 MiB and in huge pages where the system has them. */
void *drllm_memory_allocate(size_t size, size_t alignment);
void drllm_memory_release(void *memory);

#endif
