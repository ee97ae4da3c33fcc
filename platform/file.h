/* Files as read-only memory. */
#ifndef DRLLM_PLATFORM_FILE_H
#define DRLLM_PLATFORM_FILE_H

#include <stddef.h>
#include <stdint.h>

struct drllm_file {
    const void *data; /* the requested bytes, NULL when size is 0 */
    size_t size;
    void *map; /* the whole mapping, which starts on a page boundary */
    size_t map_size;
};

/* Map `size` bytes from `offset`; size 0 means up to the end of the file. The descriptor stays the caller's and may
 * be closed afterwards. Returns 0 or an errno value (ERANGE: the range lies outside the file; EINVAL: not a plain
 * file). */
int drllm_file_map_fd(int descriptor, uint64_t offset, uint64_t size, struct drllm_file *file);
int drllm_file_map_path(const char *path, struct drllm_file *file);
void drllm_file_unmap(struct drllm_file *file);

/* The range will not be read again soon: its pages need not stay resident. A hint; any range inside a mapping. */
void drllm_file_forget(const void *data, size_t size);

/* strerror, safe from any thread. */
void drllm_file_error_text(int errno_value, char *text, size_t size);

#endif
