/* Reader of GGUF files, versions 2 and 3, little-endian. Specification: docs/gguf.md of the ggml project.
 *
 *   header     "GGUF", uint32 version, uint64 n_tensors, uint64 n_entries
 *   entries    string key, uint32 type, value            (string: uint64 size, bytes)
 *   tensors    string name, uint32 n_dims, uint64 dims[n_dims], uint32 type, uint64 offset
 *   padding to general.alignment (default 32), then the tensors' data, each at its offset from here
 *
 * The reader checks every size against the bytes that are there and keeps pointers into the caller's data; nothing is
 * copied. Hostile input costs at most time and memory in proportion to its size. */
#ifndef DRLLM_RUNTIME_GGUF_H
#define DRLLM_RUNTIME_GGUF_H

#include "runtime/drllm.h"

/* Bytes in the file: not zero-terminated, perhaps not UTF-8. */
struct drllm_string {
    const char *data;
    size_t size;
};

enum drllm_gguf_type {
    DRLLM_GGUF_U8 = 0,
    DRLLM_GGUF_I8 = 1,
    DRLLM_GGUF_U16 = 2,
    DRLLM_GGUF_I16 = 3,
    DRLLM_GGUF_U32 = 4,
    DRLLM_GGUF_I32 = 5,
    DRLLM_GGUF_F32 = 6,
    DRLLM_GGUF_BOOL = 7,
    DRLLM_GGUF_STRING = 8,
    DRLLM_GGUF_ARRAY = 9,
    DRLLM_GGUF_U64 = 10,
    DRLLM_GGUF_I64 = 11,
    DRLLM_GGUF_F64 = 12
};

struct drllm_gguf_entry {
    struct drllm_string key;
    uint32_t type;       /* enum drllm_gguf_type */
    uint32_t item_type;  /* of an ARRAY; arrays of arrays are refused */
    size_t count;        /* items of an ARRAY, 1 otherwise */
    const uint8_t *data; /* the first item; unaligned */
    size_t size;         /* bytes of all items */
};

enum { DRLLM_GGUF_MAX_DIMS = 4 };

struct drllm_gguf_tensor {
    struct drllm_string name;
    size_t n_dims;
    size_t dims[DRLLM_GGUF_MAX_DIMS]; /* dims[0] is the row length; 1 past n_dims */
    uint32_t type;                    /* enum drllm_format, or a type that this library does not read */
    uint64_t offset;                  /* in the file */
    const void *data;                 /* NULL for an unread type */
    size_t size;                      /* bytes; 0 for an unread type */
};

struct drllm_gguf {
    uint32_t version;
    struct drllm_gguf_entry *entries;
    size_t n_entries;
    struct drllm_gguf_tensor *tensors;
    size_t n_tensors;
    size_t data_offset; /* where the tensors' data begins */
    size_t alignment;
    struct drllm_allocator allocator;
};

/* Errors: FORMAT (the detail names key or tensor), UNSUPPORTED (version, big-endian), MEMORY. */
int drllm_gguf_open(struct drllm_gguf *gguf, const void *data, size_t size, const struct drllm_allocator *allocator,
                    struct drllm_error *error);
void drllm_gguf_close(struct drllm_gguf *gguf);

/* What a file holds, before there is memory for drllm_gguf_open. */
struct drllm_gguf_peek {
    void *memory; /* for the entries that are wanted; aligned for any type */
    size_t bytes;
    bool (*wanted)(struct drllm_string key);
    void (*tensor)(void *user, const struct drllm_gguf_tensor *tensor); /* each in turn, unplaced: data is NULL */
    void *user;
    size_t table_bytes[2]; /* out: what drllm_gguf_open allocates for all entries and for all tensors */
};
/* Fill in a gguf that has the wanted entries, all of them in the peek's memory, and no tensors; it is not closed. Errors:
 * as for drllm_gguf_open; MEMORY when there are more wanted entries than fit. */
int drllm_gguf_open_peek(struct drllm_gguf *gguf, const void *data, size_t size, struct drllm_gguf_peek *peek,
                         struct drllm_error *error);

/* NULL when there is none. Keys and names are zero-terminated here. Constant time on average is not promised. */
const struct drllm_gguf_entry *drllm_gguf_find(const struct drllm_gguf *gguf, const char *key);
const struct drllm_gguf_tensor *drllm_gguf_find_tensor(const struct drllm_gguf *gguf, const char *name);

/* Typed access. False, and *value unchanged, when the key is missing or its value does not fit the type (any integer
 * type is accepted for u64 if it is not negative; F32 and F64 for f32). */
bool drllm_gguf_get_u64(const struct drllm_gguf *gguf, const char *key, uint64_t *value);
bool drllm_gguf_get_f32(const struct drllm_gguf *gguf, const char *key, float *value);
bool drllm_gguf_get_bool(const struct drllm_gguf *gguf, const char *key, bool *value);
bool drllm_gguf_get_string(const struct drllm_gguf *gguf, const char *key, struct drllm_string *value);

/* Walk the strings of an ARRAY of STRING: start with *position = 0; false at the end. */
bool drllm_gguf_next_string(const struct drllm_gguf_entry *array, size_t *position, struct drllm_string *value);

const char *drllm_gguf_type_name(uint32_t type);
bool drllm_string_equals(struct drllm_string string, const char *text);

#endif
