/* GGUF files in memory, for tests. Allocation failures end the program. */
#ifndef DRLLM_TESTS_GGUF_WRITER_H
#define DRLLM_TESTS_GGUF_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf_bytes {
    uint8_t *data;
    size_t size, capacity;
};

struct gguf_writer {
    struct gguf_bytes entries, tensors, data;
    uint64_t n_entries, n_tensors;
    uint32_t version; /* 3; may be changed before finish */
    size_t alignment; /* 32; a change must come before the first tensor, with its general.alignment added by hand */
};

void gguf_writer_init(struct gguf_writer *writer);

/* value: `size` bytes as they stand in the file. */
void gguf_writer_add_raw(struct gguf_writer *writer, const char *key, uint32_t type, const void *value, size_t size);
void gguf_writer_add_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_writer_add_i32(struct gguf_writer *writer, const char *key, int32_t value);
void gguf_writer_add_u64(struct gguf_writer *writer, const char *key, uint64_t value);
void gguf_writer_add_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_writer_add_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_writer_add_string(struct gguf_writer *writer, const char *key, const char *text);
void gguf_writer_add_bytes(struct gguf_writer *writer, const char *key, const void *text, size_t size); /* a string */
/* sizes NULL: zero-terminated strings */
void gguf_writer_add_strings(struct gguf_writer *writer, const char *key, const char *const *texts, const size_t *sizes,
                             size_t count);
/* items: count * item_bytes bytes of plain values of type item_type */
void gguf_writer_add_array(struct gguf_writer *writer, const char *key, uint32_t item_type, const void *items,
                           size_t count, size_t item_bytes);
void gguf_writer_add_f32s(struct gguf_writer *writer, const char *key, const float *values, size_t count);
void gguf_writer_add_i32s(struct gguf_writer *writer, const char *key, const int32_t *values, size_t count);

/* data NULL: zeros */
void gguf_writer_add_tensor(struct gguf_writer *writer, const char *name, uint32_t type, size_t n_dims,
                            const size_t *dims, const void *data, size_t size);

/* The whole file, to be freed, in a block of just its size. It ends with the last tensor's last byte, or without
 * tensors with the metadata's. The writer is released. */
uint8_t *gguf_writer_finish(struct gguf_writer *writer, size_t *size);

#endif
