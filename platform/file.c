#define _FILE_OFFSET_BITS 64 /* NOLINT: the C library's name */

#include "platform/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t page_size(void) {
    const long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (size_t)size : 4096;
}

int drllm_file_map_fd(int descriptor, uint64_t offset, uint64_t size, struct drllm_file *file) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        return errno;
    }
    if (!S_ISREG(status.st_mode)) {
        return EINVAL;
    }
    const uint64_t file_size = (uint64_t)status.st_size;
    if (offset > file_size || size > file_size - offset) {
        return ERANGE;
    }
    size = size != 0 ? size : file_size - offset;
    if (size == 0) {
        *file = (struct drllm_file){NULL, 0, NULL, 0};
        return 0;
    }
    const uint64_t before = offset % page_size(); /* a mapping begins on a page */
    if (size > SIZE_MAX - before) {
        return ENOMEM;
    }
    const size_t map_size = (size_t)(size + before);
    void *map = mmap(NULL, map_size, PROT_READ, MAP_PRIVATE, descriptor, (off_t)(offset - before));
    if (map == MAP_FAILED) {
        return errno;
    }
    *file = (struct drllm_file){(const uint8_t *)map + before, (size_t)size, map, map_size};
    return 0;
}

int drllm_file_map_path(const char *path, struct drllm_file *file) {
    /* Without O_NONBLOCK, opening a pipe by mistake would wait for its writer. */
    int descriptor = -1;
    do {
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) {
        return errno;
    }
    const int failed = drllm_file_map_fd(descriptor, 0, 0, file);
    close(descriptor);
    return failed;
}

void drllm_file_unmap(struct drllm_file *file) {
    if (file->map != NULL) {
        munmap(file->map, file->map_size);
    }
    *file = (struct drllm_file){NULL, 0, NULL, 0};
}

void drllm_file_forget(const void *data, size_t size) {
    /* Only pages that lie wholly inside: the ends may share theirs with what is still in use. */
    const size_t page = page_size();
    const uintptr_t begin = (uintptr_t)data;
    const size_t before = (page - begin % page) % page;
    if (data == NULL || size < before || (size - before) / page == 0) {
        return;
    }
    (void)madvise((uint8_t *)(begin + before), (size - before) / page * page, MADV_DONTNEED);
}

/* strerror_r gives a number in POSIX, musl and old Androids, and a text, perhaps not in the buffer, in glibc. */
static void take_number(int failed, int errno_value, char *text, size_t size) {
    if (failed != 0) {
        (void)snprintf(text, size, "error %d", errno_value);
    }
}

static void take_text(const char *message, int errno_value, char *text, size_t size) {
    (void)errno_value;
    if (message != text) {
        (void)snprintf(text, size, "%s", message);
    }
}

void drllm_file_error_text(int errno_value, char *text, size_t size) {
    if (size == 0) {
        return;
    }
    text[0] = '\0';
    _Generic(strerror_r(errno_value, text, size), int
             : take_number, default
             : take_text)(strerror_r(errno_value, text, size), errno_value, text, size);
}
