/* The functions of the C library that drllm needs, for boards that have none: undefined.txt lists them. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    unsigned char *out = to;
    const unsigned char *in = from;
    if (((uintptr_t)out | (uintptr_t)in) % sizeof(uint64_t) == 0) {
        for (; size >= sizeof(uint64_t); size -= sizeof(uint64_t)) {
            *(uint64_t *)(void *)out = *(const uint64_t *)(const void *)in;
            out += sizeof(uint64_t);
            in += sizeof(uint64_t);
        }
    }
    for (; size > 0; size--) {
        *out++ = *in++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    unsigned char *out = to;
    const unsigned char *in = from;
    if ((uintptr_t)out - (uintptr_t)in >= size) { /* behind it, or it ends in front */
        return memcpy(to, from, size);
    }
    while (size-- > 0) {
        out[size] = in[size];
    }
    return to;
}

void *memset(void *to, int byte, size_t size) {
    unsigned char *out = to;
    while (size-- > 0) {
        *out++ = (unsigned char)byte;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *left = a, *right = b;
    for (size_t i = 0; i < size; i++) {
        if (left[i] != right[i]) {
            return left[i] < right[i] ? -1 : 1;
        }
    }
    return 0;
}

void *memchr(const void *in, int byte, size_t size) {
    const unsigned char *at = in;
    for (; size > 0; size--, at++) {
        if (*at == (unsigned char)byte) {
            return (void *)(uintptr_t)at;
        }
    }
    return NULL;
}

size_t strlen(const char *text) {
    size_t size = 0;
    while (text[size] != '\0') {
        size++;
    }
    return size;
}

int strcmp(const char *a, const char *b) {
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return (unsigned char)*a - (unsigned char)*b;
}

int strncmp(const char *a, const char *b, size_t size) {
    for (; size > 0 && *a != '\0' && *a == *b; size--) {
        a++;
        b++;
    }
    return size == 0 ? 0 : (unsigned char)*a - (unsigned char)*b;
}

char *strncpy(char *restrict to, const char *restrict from, size_t size) {
    size_t i = 0;
    for (; i < size && from[i] != '\0'; i++) {
        to[i] = from[i];
    }
    for (; i < size; i++) {
        to[i] = '\0';
    }
    return to;
}

char *strchr(const char *text, int byte) {
    for (;; text++) {
        if (*text == (char)byte) {
            return (char *)(uintptr_t)text;
        }
        if (*text == '\0') {
            return NULL;
        }
    }
}

size_t strcspn(const char *text, const char *any) {
    size_t size = 0;
    while (text[size] != '\0' && strchr(any, text[size]) == NULL) {
        size++;
    }
    return size;
}
