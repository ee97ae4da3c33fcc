#include "tests/gguf_writer.h"

#include <stdlib.h>
#include <string.h>

static void append(struct gguf_bytes *bytes, const void *data, size_t size) {
    if (bytes->capacity - bytes->size < size) {
        bytes->capacity = 2 * (bytes->size + size) + 64;
        bytes->data = realloc(bytes->data, bytes->capacity);
        if (bytes->data == NULL) {
            abort();
        }
    }
    if (size != 0 && data != NULL) {
        memcpy(bytes->data + bytes->size, data, size);
    } else if (size != 0) {
        memset(bytes->data + bytes->size, 0, size);
    }
    bytes->size += size;
}

static void append_number(struct gguf_bytes *bytes, uint64_t value, size_t size) {
    uint8_t little_endian[8];
    for (size_t i = 0; i < size; i++) {
        little_endian[i] = (uint8_t)(value >> 8 * i);
    }
    append(bytes, little_endian, size);
}

static void append_string(struct gguf_bytes *bytes, const char *text, size_t size) {
    append_number(bytes, size, 8);
    append(bytes, text, size);
}

static void pad(struct gguf_bytes *bytes, size_t alignment) {
    append(bytes, NULL, (alignment - bytes->size % alignment) % alignment);
}

static struct gguf_bytes *begin_entry(struct gguf_writer *writer, const char *key, uint32_t type) {
    append_string(&writer->entries, key, strlen(key));
    append_number(&writer->entries, type, 4);
    writer->n_entries++;
    return &writer->entries;
}

static struct gguf_bytes *begin_array(struct gguf_writer *writer, const char *key, uint32_t item_type, size_t count) {
    struct gguf_bytes *entry = begin_entry(writer, key, 9);
    append_number(entry, item_type, 4);
    append_number(entry, count, 8);
    return entry;
}

void gguf_writer_init(struct gguf_writer *writer) {
    *writer = (struct gguf_writer){.version = 3, .alignment = 32};
}

void gguf_writer_add_raw(struct gguf_writer *writer, const char *key, uint32_t type, const void *value, size_t size) {
    append(begin_entry(writer, key, type), value, size);
}

void gguf_writer_add_u32(struct gguf_writer *writer, const char *key, uint32_t value) {
    append_number(begin_entry(writer, key, 4), value, 4);
}

void gguf_writer_add_i32(struct gguf_writer *writer, const char *key, int32_t value) {
    append_number(begin_entry(writer, key, 5), (uint32_t)value, 4);
}

void gguf_writer_add_u64(struct gguf_writer *writer, const char *key, uint64_t value) {
    append_number(begin_entry(writer, key, 10), value, 8);
}

void gguf_writer_add_f32(struct gguf_writer *writer, const char *key, float value) {
    append(begin_entry(writer, key, 6), &value, 4);
}

void gguf_writer_add_bool(struct gguf_writer *writer, const char *key, bool value) {
    append_number(begin_entry(writer, key, 7), value, 1);
}

void gguf_writer_add_bytes(struct gguf_writer *writer, const char *key, const void *text, size_t size) {
    append_string(begin_entry(writer, key, 8), text, size);
}

void gguf_writer_add_string(struct gguf_writer *writer, const char *key, const char *text) {
    gguf_writer_add_bytes(writer, key, text, strlen(text));
}

void gguf_writer_add_strings(struct gguf_writer *writer, const char *key, const char *const *texts, const size_t *sizes,
                             size_t count) {
    struct gguf_bytes *entry = begin_array(writer, key, 8, count);
    for (size_t i = 0; i < count; i++) {
        append_string(entry, texts[i], sizes != NULL ? sizes[i] : strlen(texts[i]));
    }
}

void gguf_writer_add_array(struct gguf_writer *writer, const char *key, uint32_t item_type, const void *items,
                           size_t count, size_t item_bytes) {
    append(begin_array(writer, key, item_type, count), items, count * item_bytes);
}

void gguf_writer_add_f32s(struct gguf_writer *writer, const char *key, const float *values, size_t count) {
    gguf_writer_add_array(writer, key, 6, values, count, sizeof *values);
}

void gguf_writer_add_i32s(struct gguf_writer *writer, const char *key, const int32_t *values, size_t count) {
    gguf_writer_add_array(writer, key, 5, values, count, sizeof *values);
}

void gguf_writer_add_tensor(struct gguf_writer *writer, const char *name, uint32_t type, size_t n_dims,
                            const size_t *dims, const void *data, size_t size) {
    pad(&writer->data, writer->alignment);
    append_string(&writer->tensors, name, strlen(name));
    append_number(&writer->tensors, n_dims, 4);
    for (size_t i = 0; i < n_dims; i++) {
        append_number(&writer->tensors, dims[i], 8);
    }
    append_number(&writer->tensors, type, 4);
    append_number(&writer->tensors, writer->data.size, 8);
    append(&writer->data, data, size);
    writer->n_tensors++;
}

uint8_t *gguf_writer_finish(struct gguf_writer *writer, size_t *size) {
    struct gguf_bytes file = {NULL, 0, 0};
    append(&file, "GGUF", 4);
    append_number(&file, writer->version, 4);
    append_number(&file, writer->n_tensors, 8);
    append_number(&file, writer->n_entries, 8);
    append(&file, writer->entries.data, writer->entries.size);
    append(&file, writer->tensors.data, writer->tensors.size);
    if (writer->n_tensors != 0) {
        pad(&file, writer->alignment);
    }
    append(&file, writer->data.data, writer->data.size);
    free(writer->entries.data);
    free(writer->tensors.data);
    free(writer->data.data);
    gguf_writer_init(writer);
    *size = file.size;
    uint8_t *exact = realloc(file.data, file.size);
    return exact != NULL ? exact : file.data;
}
