#define _FILE_OFFSET_BITS 64 /* NOLINT: the C library's name */

#include "tools/gguf_file.h"

#include "platform/file.h"
#include "platform/memory.h"
#include "quant/formats.h"
#include "runtime/error.h"
#include "runtime/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK_BYTES = 1 << 20, VERSION = 3, DEFAULT_ALIGNMENT = 32 };
static const uint32_t left_out = UINT32_MAX; /* the type of an entry that is not written */

static void store(uint8_t *bytes, uint64_t value, size_t n) {
    for (size_t i = 0; i < n; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* ---- Changes ---- */

/* A new entry whose value has `size` bytes, which the caller fills in; NULL without memory. */
static uint8_t *add(struct drllm_gguf_changes *changes, const char *key, uint32_t type, uint32_t item_type,
                    size_t count, size_t size) {
    struct drllm_gguf_entry *grown = realloc(changes->entries, (changes->n_entries + 1) * sizeof *grown);
    const size_t key_size = strlen(key);
    uint8_t *value = NULL;
    if (grown != NULL) {
        changes->entries = grown;
        value = malloc(size + key_size + 1); /* the key stands behind the value */
    }
    if (value == NULL) {
        changes->failed = true;
        return NULL;
    }
    memcpy(value + size, key, key_size + 1);
    grown[changes->n_entries++] = (struct drllm_gguf_entry){
        {(const char *)value + size, key_size}, type, item_type, count, value, size,
    };
    return value;
}

static void add_number(struct drllm_gguf_changes *changes, const char *key, uint32_t type, uint64_t bits, size_t size) {
    uint8_t *value = add(changes, key, type, 0, 1, size);
    if (value != NULL) {
        store(value, bits, size);
    }
}

void drllm_gguf_set_u32(struct drllm_gguf_changes *changes, const char *key, uint32_t value) {
    add_number(changes, key, DRLLM_GGUF_U32, value, 4);
}

void drllm_gguf_set_f32(struct drllm_gguf_changes *changes, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    add_number(changes, key, DRLLM_GGUF_F32, bits, 4);
}

void drllm_gguf_set_bool(struct drllm_gguf_changes *changes, const char *key, bool value) {
    add_number(changes, key, DRLLM_GGUF_BOOL, value ? 1 : 0, 1);
}

static void store_string(uint8_t *bytes, struct drllm_string string) {
    store(bytes, string.size, 8);
    if (string.size != 0) {
        memcpy(bytes + 8, string.data, string.size);
    }
}

void drllm_gguf_set_string(struct drllm_gguf_changes *changes, const char *key, const char *text, size_t size) {
    uint8_t *value = add(changes, key, DRLLM_GGUF_STRING, 0, 1, 8 + size);
    if (value != NULL) {
        store_string(value, (struct drllm_string){text, size});
    }
}

void drllm_gguf_set_f32s(struct drllm_gguf_changes *changes, const char *key, const float *values, size_t count) {
    uint8_t *bytes = add(changes, key, DRLLM_GGUF_ARRAY, DRLLM_GGUF_F32, count, count * 4);
    for (size_t i = 0; bytes != NULL && i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        store(bytes + 4 * i, bits, 4);
    }
}

void drllm_gguf_set_i32s(struct drllm_gguf_changes *changes, const char *key, const int32_t *values, size_t count) {
    uint8_t *bytes = add(changes, key, DRLLM_GGUF_ARRAY, DRLLM_GGUF_I32, count, count * 4);
    for (size_t i = 0; bytes != NULL && i < count; i++) {
        store(bytes + 4 * i, (uint32_t)values[i], 4);
    }
}

void drllm_gguf_set_strings(struct drllm_gguf_changes *changes, const char *key, const struct drllm_string *values,
                            size_t count) {
    size_t size = 0;
    for (size_t i = 0; i < count; i++) {
        size += 8 + values[i].size;
    }
    uint8_t *bytes = add(changes, key, DRLLM_GGUF_ARRAY, DRLLM_GGUF_STRING, count, size);
    for (size_t i = 0; bytes != NULL && i < count; i++) {
        store_string(bytes, values[i]);
        bytes += 8 + values[i].size;
    }
}

void drllm_gguf_leave_out(struct drllm_gguf_changes *changes, const char *key) {
    (void)add(changes, key, left_out, 0, 0, 0);
}

void drllm_gguf_changes_release(struct drllm_gguf_changes *changes) {
    for (size_t i = 0; i < changes->n_entries; i++) {
        free((void *)(uintptr_t)changes->entries[i].data);
    }
    free(changes->entries);
    *changes = (struct drllm_gguf_changes){NULL, 0, false};
}

/* The last change for a key counts. */
static const struct drllm_gguf_entry *find_change(const struct drllm_gguf_changes *changes, struct drllm_string key) {
    for (size_t i = changes != NULL ? changes->n_entries : 0; i-- > 0;) {
        const struct drllm_gguf_entry *entry = &changes->entries[i];
        if (entry->key.size == key.size && memcmp(entry->key.data, key.data, key.size) == 0) {
            return entry;
        }
    }
    return NULL;
}

/* ---- Bytes ---- */

struct output {
    FILE *file; /* NULL: only count */
    uint64_t written;
    int failed; /* errno of the first write that failed */
};

static void put(struct output *output, const void *bytes, size_t n) {
    if (output->file != NULL && output->failed == 0 && n != 0 && fwrite(bytes, 1, n, output->file) != n) {
        output->failed = errno != 0 ? errno : EIO;
    }
    output->written += n;
}

static void put_number(struct output *output, uint64_t value, size_t n) {
    uint8_t bytes[8];
    store(bytes, value, n);
    put(output, bytes, n);
}

static void put_string(struct output *output, struct drllm_string string) {
    put_number(output, string.size, 8);
    put(output, string.data, string.size);
}

static void put_padding(struct output *output, size_t alignment) {
    static const uint8_t zeros[64] = {0};
    size_t n = (size_t)((alignment - output->written % alignment) % alignment);
    while (n != 0) {
        const size_t part = n < sizeof zeros ? n : sizeof zeros;
        put(output, zeros, part);
        n -= part;
    }
}

static void put_entry(struct output *output, const struct drllm_gguf_entry *entry) {
    put_string(output, entry->key);
    put_number(output, entry->type, 4);
    if (entry->type == DRLLM_GGUF_ARRAY) {
        put_number(output, entry->item_type, 4);
        put_number(output, entry->count, 8);
    }
    put(output, entry->data, entry->size);
}

/* ---- The file ---- */

struct plan {
    const struct drllm_gguf_file *file;
    size_t alignment;
    uint64_t n_entries;
    size_t row_bytes_most;
    uint64_t total; /* bytes of the whole file */
};

/* Every entry that is to be written, in order, goes to `output`, or is counted where it is NULL. */
static uint64_t put_entries(struct output *output, const struct drllm_gguf_file *file) {
    const struct drllm_gguf *source = file->source;
    const struct drllm_gguf_changes *changes = file->changes;
    uint64_t n = 0;
    for (size_t i = 0; i < (source != NULL ? source->n_entries : 0); i++) {
        const struct drllm_gguf_entry *change = find_change(changes, source->entries[i].key);
        const struct drllm_gguf_entry *entry = change != NULL ? change : &source->entries[i];
        if (entry->type != left_out) {
            n++;
            if (output != NULL) {
                put_entry(output, entry);
            }
        }
    }
    for (size_t i = 0; i < (changes != NULL ? changes->n_entries : 0); i++) {
        const struct drllm_gguf_entry *entry = &changes->entries[i];
        const bool last = find_change(changes, entry->key) == entry;
        if (last && entry->type != left_out && (source == NULL || drllm_gguf_find(source, entry->key.data) == NULL)) {
            n++;
            if (output != NULL) {
                put_entry(output, entry);
            }
        }
    }
    return n;
}

static size_t count_rows(const struct drllm_gguf_file_tensor *tensor) {
    size_t n = 1;
    for (size_t i = 1; i < tensor->n_dims; i++) {
        n *= tensor->dims[i];
    }
    return n;
}

static size_t count_row_bytes(const struct drllm_gguf_file_tensor *tensor) {
    return drllm_format_row_bytes((enum drllm_format)tensor->type, tensor->dims[0]);
}

static size_t aligned(size_t size, size_t alignment) {
    return (size + alignment - 1) / alignment * alignment;
}

static void put_header(struct output *output, const struct plan *plan) {
    const struct drllm_gguf_file *file = plan->file;
    put(output, "GGUF", 4);
    put_number(output, VERSION, 4);
    put_number(output, file->n_tensors, 8);
    put_number(output, plan->n_entries, 8);
    (void)put_entries(output, file);
    uint64_t offset = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct drllm_gguf_file_tensor *tensor = &file->tensors[i];
        put_string(output, tensor->name);
        put_number(output, tensor->n_dims, 4);
        for (size_t k = 0; k < tensor->n_dims; k++) {
            put_number(output, tensor->dims[k], 8);
        }
        put_number(output, tensor->type, 4);
        put_number(output, offset, 8);
        offset += aligned(count_rows(tensor) * count_row_bytes(tensor), plan->alignment);
    }
    put_padding(output, plan->alignment);
}

static int check_tensor(const struct drllm_gguf_file_tensor *tensor, struct drllm_error *error) {
    size_t bytes = tensor->n_dims >= 1 && tensor->n_dims <= DRLLM_GGUF_MAX_DIMS ? count_row_bytes(tensor) : 0;
    bool sound = bytes != 0 && bytes <= SIZE_MAX / 4;
    for (size_t i = 1; sound && i < tensor->n_dims; i++) {
        sound = drllm_multiply(bytes, tensor->dims[i], &bytes) && bytes != 0 && bytes <= SIZE_MAX / 4;
    }
    if (!sound) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                          "tensor '%.*s' cannot be written as %s: its dimensions do not allow it",
                          (int)(tensor->name.size < 100 ? tensor->name.size : 100), tensor->name.data,
                          drllm_format_name(tensor->type));
    }
    return DRLLM_OK;
}

static int make_plan(struct plan *plan, struct drllm_error *error) {
    const struct drllm_gguf_file *file = plan->file;
    if (file->changes != NULL && file->changes->failed) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for the metadata");
    }
    const struct drllm_gguf_entry *change = find_change(file->changes, (struct drllm_string){"general.alignment", 17});
    if (change == NULL && file->source != NULL) {
        plan->alignment = file->source->alignment;
    } else if (change != NULL && change->type == DRLLM_GGUF_U32) {
        plan->alignment = 0;
        for (size_t i = 4; i-- > 0;) {
            plan->alignment = plan->alignment << 8 | change->data[i];
        }
    }
    if (plan->alignment < 8 || (plan->alignment & (plan->alignment - 1)) != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "general.alignment must be a power of two from 8 upwards");
    }
    uint64_t data_bytes = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct drllm_gguf_file_tensor *tensor = &file->tensors[i];
        const int status = check_tensor(tensor, error);
        if (status != DRLLM_OK) {
            return status;
        }
        const size_t row_bytes = count_row_bytes(tensor);
        plan->row_bytes_most = row_bytes > plan->row_bytes_most ? row_bytes : plan->row_bytes_most;
        data_bytes += aligned(count_rows(tensor) * row_bytes, plan->alignment);
    }
    struct output counted = {NULL, 0, 0};
    plan->n_entries = put_entries(NULL, file);
    put_header(&counted, plan);
    plan->total = counted.written + data_bytes;
    return DRLLM_OK;
}

static int io_error(const char *what, const char *path, int errno_value, uint64_t needed, struct drllm_error *error) {
    char text[128];
    drllm_file_error_text(errno_value, text, sizeof text);
    if (errno_value == ENOSPC || errno_value == EDQUOT || errno_value == EFBIG) {
        return drllm_fail(error, DRLLM_ERR_IO, "cannot %s %s: %s (%llu bytes are needed); nothing was changed", what,
                          path, text, (unsigned long long)needed);
    }
    return drllm_fail(error, DRLLM_ERR_IO, "cannot %s %s: %s", what, path, text);
}

static int write_tensors(struct output *output, const struct plan *plan, const char *path, struct drllm_error *error) {
    const struct drllm_gguf_file *file = plan->file;
    const size_t chunk_size = plan->row_bytes_most > CHUNK_BYTES ? plan->row_bytes_most : CHUNK_BYTES;
    void *chunk = drllm_memory_allocate(chunk_size, DRLLM_ALIGNMENT);
    if (chunk == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %zu bytes of weights", chunk_size);
    }
    int status = DRLLM_OK;
    for (size_t i = 0; i < file->n_tensors && status == DRLLM_OK; i++) {
        const size_t n_rows = count_rows(&file->tensors[i]);
        const size_t row_bytes = count_row_bytes(&file->tensors[i]);
        const size_t most = chunk_size / row_bytes;
        for (size_t row = 0; row < n_rows && status == DRLLM_OK; row += most) {
            const size_t n = n_rows - row < most ? n_rows - row : most;
            status = file->produce(file->user, i, row, n, chunk, error);
            if (status == DRLLM_OK) {
                put(output, chunk, n * row_bytes);
            }
            if (status == DRLLM_OK && output->failed != 0) {
                status = io_error("write", path, output->failed, plan->total, error);
            }
        }
        put_padding(output, plan->alignment);
    }
    drllm_memory_release(chunk);
    return status;
}

static void *allocate(void *user, size_t size, size_t alignment) {
    (void)user;
    return drllm_memory_allocate(size, alignment);
}

static void release(void *user, void *memory, size_t size) {
    (void)user;
    (void)size;
    drllm_memory_release(memory);
}

/* Whether our own reader takes the file: what it refuses must not replace a file of the user's. */
static int check_readable(int descriptor, const char *path, struct drllm_error *error) {
    const struct drllm_allocator allocator = {allocate, release, NULL};
    struct drllm_file mapped;
    struct drllm_gguf gguf;
    const int failed = drllm_file_map_fd(descriptor, 0, 0, &mapped);
    if (failed != 0) {
        return io_error("read", path, failed, 0, error);
    }
    const int status = drllm_gguf_open(&gguf, mapped.data, mapped.size, &allocator, error);
    if (status == DRLLM_OK) {
        drllm_gguf_close(&gguf);
    }
    drllm_file_unmap(&mapped);
    return status;
}

/* Everything into the new file, down to the disk. */
static int fill(FILE *stream, const struct plan *plan, const char *path, struct drllm_error *error) {
    struct output output = {stream, 0, 0};
    const int descriptor = fileno(stream);
    /* A full disk is known now, not after an hour; not every file system can say. */
    if (fallocate(descriptor, 0, 0, (off_t)plan->total) != 0 &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
        return io_error("write", path, errno, plan->total, error);
    }
    put_header(&output, plan);
    const int status = plan->file->n_tensors != 0 ? write_tensors(&output, plan, path, error) : DRLLM_OK;
    if (status != DRLLM_OK) {
        return status;
    }
    if (output.failed == 0 && fflush(stream) != 0) {
        output.failed = errno;
    }
    /* Some file systems have no fsync; rename still keeps the old file until the new one is there. */
    if (output.failed == 0 && fsync(descriptor) != 0 && errno != EINVAL && errno != ENOSYS) {
        output.failed = errno;
    }
    if (output.failed != 0) {
        return io_error("write", path, output.failed, plan->total, error);
    }
    return check_readable(descriptor, path, error);
}

/* A new file beside `path`, its name in `name`. Returns the descriptor, or -1. */
static int create_beside(const char *path, char *name, size_t name_size) {
    for (unsigned i = 0; i < 100; i++) {
        (void)snprintf(name, name_size, "%s.tmp-%ld-%u", path, (long)getpid(), i);
        const int descriptor = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor >= 0 || errno != EEXIST) {
            return descriptor;
        }
    }
    return -1;
}

/* So that the new name also outlives a power cut; not every file system can. */
static void sync_folder(const char *path) {
    char *folder = strdup(path);
    if (folder == NULL) {
        return;
    }
    char *slash = strrchr(folder, '/');
    if (slash != NULL) {
        slash[slash == folder ? 1 : 0] = '\0';
    }
    const int descriptor = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) {
        (void)fsync(descriptor);
        close(descriptor);
    }
    free(folder);
}

static int replace(const char *path, const struct plan *plan, struct drllm_error *error) {
    struct stat old;
    const bool exists = stat(path, &old) == 0;
    if (exists && !S_ISREG(old.st_mode)) {
        return drllm_fail(error, DRLLM_ERR_IO, "cannot write %s: it is not a plain file", path);
    }
    if (exists && access(path, W_OK) != 0) {
        return io_error("write", path, errno, plan->total, error);
    }
    const size_t name_size = strlen(path) + 64;
    char *name = malloc(name_size);
    if (name == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for a file name");
    }
    const int descriptor = create_beside(path, name, name_size);
    FILE *stream = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    int status = DRLLM_OK;
    if (stream == NULL) {
        status = io_error("create", name, errno, plan->total, error);
        if (descriptor >= 0) {
            close(descriptor);
        }
    } else {
        if (exists) {
            (void)fchmod(descriptor, old.st_mode & 0777);
        }
        status = fill(stream, plan, path, error);
        if (fclose(stream) != 0 && status == DRLLM_OK) {
            status = io_error("write", path, errno, plan->total, error);
        }
        if (status == DRLLM_OK && rename(name, path) != 0) {
            status = io_error("rename to", path, errno, plan->total, error);
        }
    }
    if (status == DRLLM_OK) {
        sync_folder(path);
    } else if (descriptor >= 0) {
        (void)unlink(name);
    }
    free(name);
    return status;
}

int drllm_gguf_file_write(const char *path, const struct drllm_gguf_file *file, uint64_t *size,
                          struct drllm_error *error) {
    struct plan plan = {.file = file, .alignment = DEFAULT_ALIGNMENT};
    int status = make_plan(&plan, error);
    if (status != DRLLM_OK) {
        return status;
    }
    /* A limit on file sizes is to be an error like a full disk, not the end of the program. */
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    const bool ignored = sigaction(SIGXFSZ, &ignore, &before) == 0;
    char *real = realpath(path, NULL); /* a link stays, and the file that it names is replaced */
    status = replace(real != NULL ? real : path, &plan, error);
    free(real);
    if (ignored) {
        (void)sigaction(SIGXFSZ, &before, NULL);
    }
    if (status == DRLLM_OK && size != NULL) {
        *size = plan.total;
    }
    return status;
}
