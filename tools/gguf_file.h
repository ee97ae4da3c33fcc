/* Writing GGUF files: the metadata of another file with changes, and tensors that are computed while they are
 * written. */
#ifndef DRLLM_TOOLS_GGUF_FILE_H
#define DRLLM_TOOLS_GGUF_FILE_H

#include "runtime/gguf.h"

/* Entries to set or to leave out, with copies of their keys and values. Begin with {0}. Memory that runs out is
 * reported by drllm_gguf_file_write. */
struct drllm_gguf_changes {
    struct drllm_gguf_entry *entries;
    size_t n_entries;
    bool failed;
};

void drllm_gguf_set_u32(struct drllm_gguf_changes *changes, const char *key, uint32_t value);
void drllm_gguf_set_f32(struct drllm_gguf_changes *changes, const char *key, float value);
void drllm_gguf_set_bool(struct drllm_gguf_changes *changes, const char *key, bool value);
void drllm_gguf_set_string(struct drllm_gguf_changes *changes, const char *key, const char *text, size_t size);
void drllm_gguf_set_f32s(struct drllm_gguf_changes *changes, const char *key, const float *values, size_t count);
void drllm_gguf_set_i32s(struct drllm_gguf_changes *changes, const char *key, const int32_t *values, size_t count);
void drllm_gguf_set_strings(struct drllm_gguf_changes *changes, const char *key, const struct drllm_string *values,
                            size_t count);
void drllm_gguf_leave_out(struct drllm_gguf_changes *changes, const char *key);
void drllm_gguf_changes_release(struct drllm_gguf_changes *changes);

struct drllm_gguf_file_tensor {
    struct drllm_string name;
    size_t n_dims;
    size_t dims[DRLLM_GGUF_MAX_DIMS]; /* dims[0] is the row length; unused ones are ignored */
    uint32_t type;                    /* enum drllm_format, of those that files have */
};

struct drllm_gguf_file {
    const struct drllm_gguf *source; /* all its entries are copied, in order; NULL: there is none */
    /* One with the key of an entry of source takes its place, the others come behind. NULL: none. */
    const struct drllm_gguf_changes *changes;
    const struct drllm_gguf_file_tensor *tensors;
    size_t n_tensors;
    /* Fill in rows first_row .. first_row + n_rows - 1 of tensor number `tensor`; a row is dims[0] weights, and rows
     * count over all further dimensions. Called in the order of the file. Any status but DRLLM_OK ends the writing. */
    int (*produce)(void *user, size_t tensor, size_t first_row, size_t n_rows, void *bytes, struct drllm_error *error);
    void *user;
};

/* Write the file, version 3. It grows under another name beside `path` and takes its place in one step once it is
 * whole, on the disk and readable: whatever fails, what was at `path` stays as it was, and nothing else is left
 * behind. `path` may be the very file that source is mapped from. Errors: IO, MEMORY, ARGUMENT (a tensor that cannot
 * be written), and those of produce. size, if not NULL: bytes written. */
int drllm_gguf_file_write(const char *path, const struct drllm_gguf_file *file, uint64_t *size,
                          struct drllm_error *error);

#endif
