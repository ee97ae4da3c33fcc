#include "runtime/gguf.h"

#include "quant/formats.h"
#include "runtime/error.h"
#include "runtime/memory.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    HEADER_BYTES = 24,
    LEAST_ENTRY_BYTES = 8 + 4 + 1,          /* an empty key, the type, one byte */
    LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8, /* an empty name, one dimension */
    DEFAULT_ALIGNMENT = 32,
    MOST_NAME_BYTES = 65535, /* of a key, as the specification says; no name of a tensor comes near it */
    SHOWN_BYTES = 120        /* of a name in a message */
};

#define CUT_OR_DAMAGED "the file is cut short or damaged; download it again"

/* ---- Bytes ---- */

struct reader {
    const uint8_t *data;
    size_t size, at;
};

static uint64_t load(const uint8_t *bytes, size_t n) {
    uint64_t value = 0;
    for (size_t i = n; i-- > 0;) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static size_t bytes_left(const struct reader *reader) {
    return reader->size - reader->at;
}

static bool read_u32(struct reader *reader, uint32_t *value) {
    if (bytes_left(reader) < 4) {
        return false;
    }
    *value = (uint32_t)load(reader->data + reader->at, 4);
    reader->at += 4;
    return true;
}

static bool read_u64(struct reader *reader, uint64_t *value) {
    if (bytes_left(reader) < 8) {
        return false;
    }
    *value = load(reader->data + reader->at, 8);
    reader->at += 8;
    return true;
}

static bool read_string(struct reader *reader, struct drllm_string *string) {
    uint64_t size = 0;
    if (!read_u64(reader, &size) || size > bytes_left(reader)) {
        return false;
    }
    *string = (struct drllm_string){(const char *)reader->data + reader->at, (size_t)size};
    reader->at += string->size;
    return true;
}

/* The precision for a name in a message. */
static int shown(struct drllm_string string) {
    return string.size < SHOWN_BYTES ? (int)string.size : SHOWN_BYTES;
}

static int compare_strings(struct drllm_string a, struct drllm_string b) {
    const size_t n = a.size < b.size ? a.size : b.size;
    const int order = n != 0 ? memcmp(a.data, b.data, n) : 0;
    return order != 0 ? order : (a.size > b.size) - (a.size < b.size);
}

bool drllm_string_equals(struct drllm_string string, const char *text) {
    return compare_strings(string, (struct drllm_string){text, strlen(text)}) == 0;
}

/* ---- Order ---- */

/* Entries and tensors stay in the file's order. Their numbers, sorted by name, lie behind them in the same
 * allocation. */
enum {
    ENTRY_BYTES = sizeof(struct drllm_gguf_entry) + sizeof(uint32_t),
    TENSOR_BYTES = sizeof(struct drllm_gguf_tensor) + sizeof(uint32_t)
};

static uint32_t *entry_order(const struct drllm_gguf *gguf) {
    return (uint32_t *)(void *)(gguf->entries + gguf->n_entries);
}

static uint32_t *tensor_order(const struct drllm_gguf *gguf) {
    return (uint32_t *)(void *)(gguf->tensors + gguf->n_tensors);
}

typedef int (*compare_fn)(const struct drllm_gguf *gguf, uint32_t a, uint32_t b);

static int compare_keys(const struct drllm_gguf *gguf, uint32_t a, uint32_t b) {
    return compare_strings(gguf->entries[a].key, gguf->entries[b].key);
}

static int compare_names(const struct drllm_gguf *gguf, uint32_t a, uint32_t b) {
    return compare_strings(gguf->tensors[a].name, gguf->tensors[b].name);
}

static int compare_offsets(const struct drllm_gguf *gguf, uint32_t a, uint32_t b) {
    const struct drllm_gguf_tensor *first = &gguf->tensors[a], *second = &gguf->tensors[b];
    if (first->offset != second->offset) {
        return first->offset < second->offset ? -1 : 1;
    }
    return (first->size > second->size) - (first->size < second->size);
}

static void sift_down(const struct drllm_gguf *gguf, compare_fn compare, uint32_t *order, size_t root, size_t n) {
    for (size_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && compare(gguf, order[child], order[child + 1]) < 0) {
            child++;
        }
        if (compare(gguf, order[root], order[child]) >= 0) {
            return;
        }
        const uint32_t moved = order[root];
        order[root] = order[child];
        order[child] = moved;
        root = child;
    }
}

/* Heap sort: n log n for every input, and no memory. */
static void sort(const struct drllm_gguf *gguf, compare_fn compare, uint32_t *order, size_t n) {
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
    }
    for (size_t i = n / 2; i-- > 0;) {
        sift_down(gguf, compare, order, i, n);
    }
    for (size_t end = n; end > 1; end--) {
        const uint32_t largest = order[0];
        order[0] = order[end - 1];
        order[end - 1] = largest;
        sift_down(gguf, compare, order, 0, end - 1);
    }
}

/* ---- Header ---- */

static bool begins_with(const struct reader *file, const char *text) {
    const size_t n = strlen(text);
    return file->size >= n && memcmp(file->data, text, n) == 0;
}

/* What is given for a model by mistake; NULL if it is nothing known. */
static const char *guess_kind(const struct reader *file) {
    static const struct {
        const char *beginning, *kind;
    } known[] = {
        {"lmgg", "a GGML file from before GGUF"},
        {"fmgg", "a GGML file from before GGUF"},
        {"tjgg", "a GGML file from before GGUF"},
        {"algg", "a GGML adapter file"},
        {"PK\003\004", "a zip archive, perhaps a PyTorch checkpoint"},
        {"version https://git-lfs", "a Git LFS pointer, which only stands for the real file"},
        {"<!DOCTYPE", "a web page"},
        {"<!doctype", "a web page"},
        {"<html", "a web page"},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (begins_with(file, known[i].beginning)) {
            return known[i].kind;
        }
    }
    /* The size of a JSON header, then the header. */
    if (file->size > 8 && file->data[8] == '{' && load(file->data, 8) <= 100000000) {
        return "a safetensors file";
    }
    return NULL;
}

static int read_header(struct reader *file, struct drllm_gguf *gguf, uint64_t *n_tensors, uint64_t *n_entries,
                       struct drllm_error *error) {
    if (file->size == 0) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is empty");
    }
    if (!begins_with(file, "GGUF")) {
        const char *kind = guess_kind(file);
        if (kind != NULL) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "this is %s, not a GGUF file", kind);
        }
        return drllm_fail(error, DRLLM_ERR_FORMAT, "not a GGUF file: it does not begin with the letters GGUF");
    }
    file->at = 4;
    const bool complete = read_u32(file, &gguf->version) && read_u64(file, n_tensors) && read_u64(file, n_entries);
    const uint32_t version = gguf->version;
    if (file->at >= 8 && version != 0 && (version & 0xFFFF) == 0) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "this GGUF file is big-endian; only little-endian ones are read: convert the model again");
    }
    if (file->at >= 8 && (version == 1 || version > 3)) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "GGUF version %u is not read, only 2 and 3%s",
                          (unsigned)version, version == 1 ? ": convert the model again" : "");
    }
    if (file->at >= 8 && version == 0) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: its GGUF version is 0");
    }
    if (!complete) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file ends inside its header, after %zu bytes; download it again", file->size);
    }
    return DRLLM_OK;
}

/* ---- Entries ---- */

/* Bytes of a value; 0 for those without a fixed size and for unknown types. */
static size_t value_bytes(uint32_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

const char *drllm_gguf_type_name(uint32_t type) {
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return type < sizeof names / sizeof names[0] ? names[type] : "unknown";
}

static int read_value(struct reader *file, struct drllm_gguf_entry *entry, struct drllm_error *error) {
    const int n_shown = shown(entry->key);
    const char *key = entry->key.data;
    if (!read_u32(file, &entry->type)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file ends behind the key '%.*s'; download it again", n_shown,
                          key);
    }
    uint64_t count = 1;
    entry->item_type = entry->type;
    if (entry->type == DRLLM_GGUF_ARRAY) {
        if (!read_u32(file, &entry->item_type) || !read_u64(file, &count)) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file ends inside the array '%.*s'; download it again",
                              n_shown, key);
        }
        if (entry->item_type == DRLLM_GGUF_ARRAY) {
            return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "entry '%.*s' is an array of arrays, which is not read",
                              n_shown, key);
        }
    }
    const size_t item_bytes = value_bytes(entry->item_type);
    if (item_bytes == 0 && entry->item_type != DRLLM_GGUF_STRING) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: entry '%.*s' has the unknown type %u", n_shown,
                          key, (unsigned)entry->item_type);
    }
    const size_t least_bytes = item_bytes != 0 ? item_bytes : 8;
    if (count > bytes_left(file) / least_bytes) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "entry '%.*s' claims %llu values, but only %zu bytes follow: " CUT_OR_DAMAGED, n_shown, key,
                          (unsigned long long)count, bytes_left(file));
    }
    const size_t begin = file->at;
    if (item_bytes != 0) {
        file->at += (size_t)count * item_bytes;
    }
    for (uint64_t i = 0; item_bytes == 0 && i < count; i++) {
        struct drllm_string string;
        if (!read_string(file, &string)) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "string %llu of entry '%.*s' reaches past the end of the file: " CUT_OR_DAMAGED,
                              (unsigned long long)i, n_shown, key);
        }
    }
    if (entry->type != DRLLM_GGUF_ARRAY) {
        entry->item_type = 0;
    }
    entry->count = (size_t)count;
    entry->data = file->data + begin;
    entry->size = file->at - begin;
    return DRLLM_OK;
}

static int read_entry(struct reader *file, struct drllm_gguf_entry *entry, size_t number, size_t n_entries,
                      struct drllm_error *error) {
    if (!read_string(file, &entry->key)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the key of metadata entry %zu of %zu reaches past the end of the file: " CUT_OR_DAMAGED,
                          number, n_entries);
    }
    if (entry->key.size > MOST_NAME_BYTES) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file is damaged: the key of metadata entry %zu, '%.*s', has %zu bytes", number,
                          shown(entry->key), entry->key.data, entry->key.size);
    }
    return read_value(file, entry, error);
}

/* By key, each of which is there once. */
static int order_entries(const struct drllm_gguf *gguf, struct drllm_error *error) {
    uint32_t *order = entry_order(gguf);
    sort(gguf, compare_keys, order, gguf->n_entries);
    for (size_t i = 1; i < gguf->n_entries; i++) {
        if (compare_keys(gguf, order[i - 1], order[i]) == 0) {
            const struct drllm_string key = gguf->entries[order[i]].key;
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: the key '%.*s' is there twice", shown(key),
                              key.data);
        }
    }
    return DRLLM_OK;
}

static int check_n_entries(const struct reader *file, uint64_t n_entries, struct drllm_error *error) {
    if (n_entries > bytes_left(file) / LEAST_ENTRY_BYTES || n_entries > UINT32_MAX) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the header claims %llu metadata entries, but only %zu bytes follow: " CUT_OR_DAMAGED,
                          (unsigned long long)n_entries, bytes_left(file));
    }
    return DRLLM_OK;
}

static int read_entries(struct reader *file, struct drllm_gguf *gguf, uint64_t n_entries, struct drllm_error *error) {
    const int checked = check_n_entries(file, n_entries, error);
    if (checked != DRLLM_OK || n_entries == 0) {
        return checked;
    }
    gguf->entries = drllm_allocate(&gguf->allocator, (size_t)n_entries, ENTRY_BYTES);
    if (gguf->entries == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for %llu metadata entries",
                          (unsigned long long)n_entries);
    }
    gguf->n_entries = (size_t)n_entries;
    for (size_t i = 0; i < gguf->n_entries; i++) {
        const int status = read_entry(file, &gguf->entries[i], i, gguf->n_entries, error);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    return order_entries(gguf, error);
}

static int read_alignment(struct drllm_gguf *gguf, struct drllm_error *error) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, "general.alignment");
    gguf->alignment = DEFAULT_ALIGNMENT;
    if (entry == NULL) {
        return DRLLM_OK;
    }
    if (entry->type != DRLLM_GGUF_U32) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: general.alignment is of type %s, not u32",
                          drllm_gguf_type_name(entry->type));
    }
    /* The specification asks for a multiple of 8, which also keeps every number in a tensor aligned. */
    const uint32_t alignment = (uint32_t)load(entry->data, 4);
    if (alignment < 8 || (alignment & (alignment - 1)) != 0) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file is damaged: general.alignment is %u, not a power of two from 8 upwards",
                          (unsigned)alignment);
    }
    gguf->alignment = alignment;
    return DRLLM_OK;
}

/* ---- Tensors ---- */

/* The tensor's place in the file's list; its offset stays relative to the data. */
static int read_tensor(struct reader *file, struct drllm_gguf_tensor *tensor, size_t number, size_t n_tensors,
                       struct drllm_error *error) {
    if (!read_string(file, &tensor->name)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the name of tensor %zu of %zu reaches past the end of the file: " CUT_OR_DAMAGED, number,
                          n_tensors);
    }
    const int n_shown = shown(tensor->name);
    const char *name = tensor->name.data;
    if (tensor->name.size > MOST_NAME_BYTES) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: the name of tensor %zu, '%.*s', has %zu bytes",
                          number, n_shown, name, tensor->name.size);
    }
    uint32_t n_dims = 0;
    if (!read_u32(file, &n_dims)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file ends inside its entry for tensor '%.*s'; download it again", n_shown, name);
    }
    if (n_dims < 1 || n_dims > DRLLM_GGUF_MAX_DIMS) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: tensor '%.*s' has %u dimensions, not 1 to %d",
                          n_shown, name, (unsigned)n_dims, DRLLM_GGUF_MAX_DIMS);
    }
    tensor->n_dims = n_dims;
    size_t n_weights = 1;
    for (size_t i = 0; i < DRLLM_GGUF_MAX_DIMS; i++) {
        uint64_t dim = 1;
        if (i < n_dims && !read_u64(file, &dim)) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "the file ends inside its entry for tensor '%.*s'; download it again", n_shown, name);
        }
        if (dim == 0) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: dimension %zu of tensor '%.*s' is 0", i,
                              n_shown, name);
        }
        if (dim > SIZE_MAX / 2 || !drllm_multiply(n_weights, (size_t)dim, &n_weights) || n_weights > SIZE_MAX / 2) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "the file is damaged: tensor '%.*s' has more weights than memory has bytes", n_shown,
                              name);
        }
        tensor->dims[i] = (size_t)dim;
    }
    if (!read_u32(file, &tensor->type) || !read_u64(file, &tensor->offset)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file ends inside its entry for tensor '%.*s'; download it again", n_shown, name);
    }
    tensor->data = NULL;
    tensor->size = 0;
    const struct drllm_format_traits *traits = drllm_format_find(tensor->type);
    if (traits == NULL) {
        return DRLLM_OK;
    }
    if (tensor->dims[0] % traits->block_size != 0) {
        return drllm_fail(
            error, DRLLM_ERR_FORMAT,
            "the file is damaged: the rows of tensor '%.*s' have %zu weights, no multiple of the %zu that "
            "a block of %s holds",
            n_shown, name, tensor->dims[0], traits->block_size, traits->name);
    }
    if (!drllm_multiply(n_weights / traits->block_size, traits->block_bytes, &tensor->size) ||
        tensor->size > SIZE_MAX / 4) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file is damaged: tensor '%.*s' has more bytes than memory can have", n_shown, name);
    }
    return DRLLM_OK;
}

/* From offsets behind data_offset to offsets in the file, with every tensor inside the file. */
static int place_tensors(const struct reader *file, struct drllm_gguf *gguf, struct drllm_error *error) {
    uint64_t end = 0; /* of the tensor that ends last */
    const struct drllm_gguf_tensor *first_outside = NULL;
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        struct drllm_gguf_tensor *tensor = &gguf->tensors[i];
        const int n_shown = shown(tensor->name);
        const char *name = tensor->name.data;
        if (tensor->offset % gguf->alignment != 0) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "the file is damaged: tensor '%.*s' begins at %llu, no multiple of the alignment %zu",
                              n_shown, name, (unsigned long long)tensor->offset, gguf->alignment);
        }
        if (tensor->offset > UINT64_MAX / 4) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: tensor '%.*s' begins at %llu", n_shown,
                              name, (unsigned long long)tensor->offset);
        }
        /* No sum overflows: offset and size are at most a quarter of the range, and data_offset lies within the file or
         * one alignment behind it. */
        tensor->offset += gguf->data_offset;
        const uint64_t tensor_end = tensor->offset + tensor->size;
        if (tensor_end > file->size) {
            first_outside = first_outside != NULL ? first_outside : tensor;
            end = tensor_end > end ? tensor_end : end;
        } else if (tensor->size != 0) {
            tensor->data = file->data + tensor->offset;
        }
    }
    if (first_outside != NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the file ends %llu bytes early: it has %zu of %llu, and tensor '%.*s' is not all there; "
                          "download it again",
                          (unsigned long long)(end - file->size), file->size, (unsigned long long)end,
                          shown(first_outside->name), first_outside->name.data);
    }
    return DRLLM_OK;
}

static int check_order(struct drllm_gguf *gguf, struct drllm_error *error) {
    uint32_t *order = tensor_order(gguf);
    sort(gguf, compare_offsets, order, gguf->n_tensors);
    for (size_t i = 1; i < gguf->n_tensors; i++) {
        const struct drllm_gguf_tensor *before = &gguf->tensors[order[i - 1]], *tensor = &gguf->tensors[order[i]];
        if (tensor->offset < before->offset + before->size) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: tensors '%.*s' and '%.*s' overlap",
                              shown(before->name), before->name.data, shown(tensor->name), tensor->name.data);
        }
    }
    sort(gguf, compare_names, order, gguf->n_tensors);
    for (size_t i = 1; i < gguf->n_tensors; i++) {
        if (compare_names(gguf, order[i - 1], order[i]) == 0) {
            const struct drllm_string name = gguf->tensors[order[i]].name;
            return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: the tensor '%.*s' is there twice",
                              shown(name), name.data);
        }
    }
    return DRLLM_OK;
}

static int check_n_tensors(const struct reader *file, uint64_t n_tensors, struct drllm_error *error) {
    if (n_tensors > bytes_left(file) / LEAST_TENSOR_BYTES || n_tensors > UINT32_MAX) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the header claims %llu tensors, but only %zu bytes follow: " CUT_OR_DAMAGED,
                          (unsigned long long)n_tensors, bytes_left(file));
    }
    return DRLLM_OK;
}

static int read_tensors(struct reader *file, struct drllm_gguf *gguf, uint64_t n_tensors, struct drllm_error *error) {
    const int checked = check_n_tensors(file, n_tensors, error);
    if (checked != DRLLM_OK) {
        return checked;
    }
    if (n_tensors != 0) {
        gguf->tensors = drllm_allocate(&gguf->allocator, (size_t)n_tensors, TENSOR_BYTES);
        if (gguf->tensors == NULL) {
            return drllm_fail(error, DRLLM_ERR_MEMORY, "no memory for the list of %llu tensors",
                              (unsigned long long)n_tensors);
        }
        gguf->n_tensors = (size_t)n_tensors;
    }
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const int status = read_tensor(file, &gguf->tensors[i], i, gguf->n_tensors, error);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    const size_t past = file->at % gguf->alignment;
    if (!drllm_add_sizes(file->at, past != 0 ? gguf->alignment - past : 0, &gguf->data_offset)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the file is damaged: general.alignment is %zu", gguf->alignment);
    }
    if (gguf->n_tensors == 0) {
        /* A vocabulary may end with its metadata. */
        gguf->data_offset = gguf->data_offset < file->size ? gguf->data_offset : file->size;
        return DRLLM_OK;
    }
    const int status = place_tensors(file, gguf, error);
    return status != DRLLM_OK ? status : check_order(gguf, error);
}

/* ---- Opening and asking ---- */

int drllm_gguf_open(struct drllm_gguf *gguf, const void *data, size_t size, const struct drllm_allocator *allocator,
                    struct drllm_error *error) {
    struct reader file = {data, size, 0};
    struct drllm_gguf opened = {.allocator = *allocator};
    uint64_t n_tensors = 0, n_entries = 0;
    int status = read_header(&file, &opened, &n_tensors, &n_entries, error);
    if (status == DRLLM_OK) {
        status = read_entries(&file, &opened, n_entries, error);
    }
    if (status == DRLLM_OK) {
        status = read_alignment(&opened, error);
    }
    if (status == DRLLM_OK) {
        status = read_tensors(&file, &opened, n_tensors, error);
    }
    if (status != DRLLM_OK) {
        drllm_gguf_close(&opened);
        return status;
    }
    *gguf = opened;
    return DRLLM_OK;
}

/* The wanted entries, into the memory of the peek. */
static int peek_entries(struct reader *file, struct drllm_gguf *gguf, struct drllm_gguf_peek *peek, uint64_t n_entries,
                        struct drllm_error *error) {
    const size_t capacity = peek->bytes / ENTRY_BYTES;
    gguf->entries = peek->memory;
    for (uint64_t i = 0; i < n_entries; i++) {
        struct drllm_gguf_entry entry;
        const int status = read_entry(file, &entry, (size_t)i, (size_t)n_entries, error);
        if (status != DRLLM_OK) {
            return status;
        }
        if (!peek->wanted(entry.key)) {
            continue;
        }
        if (gguf->n_entries == capacity) {
            return drllm_fail(error, DRLLM_ERR_MEMORY, "the file has more than %zu metadata entries about its model",
                              capacity);
        }
        gguf->entries[gguf->n_entries++] = entry;
    }
    return order_entries(gguf, error);
}

int drllm_gguf_open_peek(struct drllm_gguf *gguf, const void *data, size_t size, struct drllm_gguf_peek *peek,
                         struct drllm_error *error) {
    struct reader file = {data, size, 0};
    uint64_t n_tensors = 0, n_entries = 0;
    *gguf = (struct drllm_gguf){0};
    int status = read_header(&file, gguf, &n_tensors, &n_entries, error);
    if (status == DRLLM_OK) {
        status = check_n_entries(&file, n_entries, error);
    }
    if (status == DRLLM_OK) {
        status = peek_entries(&file, gguf, peek, n_entries, error);
    }
    if (status == DRLLM_OK) {
        status = check_n_tensors(&file, n_tensors, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    /* Both counts are below the file's size over the least bytes of an item. */
    peek->table_bytes[0] = (size_t)n_entries * ENTRY_BYTES;
    peek->table_bytes[1] = (size_t)n_tensors * TENSOR_BYTES;
    for (uint64_t i = 0; i < n_tensors && status == DRLLM_OK; i++) {
        struct drllm_gguf_tensor tensor;
        status = read_tensor(&file, &tensor, (size_t)i, (size_t)n_tensors, error);
        if (status == DRLLM_OK && peek->tensor != NULL) {
            peek->tensor(peek->user, &tensor);
        }
    }
    return status;
}

void drllm_gguf_close(struct drllm_gguf *gguf) {
    drllm_release(&gguf->allocator, gguf->entries, gguf->n_entries, ENTRY_BYTES);
    drllm_release(&gguf->allocator, gguf->tensors, gguf->n_tensors, TENSOR_BYTES);
    gguf->entries = NULL;
    gguf->tensors = NULL;
    gguf->n_entries = gguf->n_tensors = 0;
}

const struct drllm_gguf_entry *drllm_gguf_find(const struct drllm_gguf *gguf, const char *key) {
    const struct drllm_string wanted = {key, strlen(key)};
    size_t low = 0, high = gguf->n_entries;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const struct drllm_gguf_entry *entry = &gguf->entries[entry_order(gguf)[middle]];
        const int order = compare_strings(wanted, entry->key);
        if (order == 0) {
            return entry;
        }
        low = order > 0 ? middle + 1 : low;
        high = order > 0 ? high : middle;
    }
    return NULL;
}

const struct drllm_gguf_tensor *drllm_gguf_find_tensor(const struct drllm_gguf *gguf, const char *name) {
    const struct drllm_string wanted = {name, strlen(name)};
    size_t low = 0, high = gguf->n_tensors;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const struct drllm_gguf_tensor *tensor = &gguf->tensors[tensor_order(gguf)[middle]];
        const int order = compare_strings(wanted, tensor->name);
        if (order == 0) {
            return tensor;
        }
        low = order > 0 ? middle + 1 : low;
        high = order > 0 ? high : middle;
    }
    return NULL;
}

bool drllm_gguf_get_u64(const struct drllm_gguf *gguf, const char *key, uint64_t *value) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, key);
    if (entry == NULL) {
        return false;
    }
    const uint64_t bits = load(entry->data, entry->type == DRLLM_GGUF_ARRAY ? 0 : value_bytes(entry->type));
    switch (entry->type) {
    case DRLLM_GGUF_I8:
    case DRLLM_GGUF_I16:
    case DRLLM_GGUF_I32:
    case DRLLM_GGUF_I64:
        if (bits >> (8 * value_bytes(entry->type) - 1) != 0) {
            return false; /* negative */
        }
        break;
    case DRLLM_GGUF_U8:
    case DRLLM_GGUF_U16:
    case DRLLM_GGUF_U32:
    case DRLLM_GGUF_U64:
        break;
    default:
        return false;
    }
    *value = bits;
    return true;
}

bool drllm_gguf_get_f32(const struct drllm_gguf *gguf, const char *key, float *value) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, key);
    if (entry != NULL && entry->type == DRLLM_GGUF_F32) {
        const uint32_t bits = (uint32_t)load(entry->data, 4);
        memcpy(value, &bits, sizeof bits);
        return true;
    }
    if (entry != NULL && entry->type == DRLLM_GGUF_F64) {
        const uint64_t bits = load(entry->data, 8);
        double number;
        memcpy(&number, &bits, sizeof bits);
        if (isfinite(number) && (number > (double)FLT_MAX || number < -(double)FLT_MAX)) {
            return false;
        }
        *value = (float)number;
        return true;
    }
    return false;
}

bool drllm_gguf_get_bool(const struct drllm_gguf *gguf, const char *key, bool *value) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, key);
    if (entry == NULL || entry->type != DRLLM_GGUF_BOOL) {
        return false;
    }
    *value = entry->data[0] != 0;
    return true;
}

bool drllm_gguf_get_string(const struct drllm_gguf *gguf, const char *key, struct drllm_string *value) {
    const struct drllm_gguf_entry *entry = drllm_gguf_find(gguf, key);
    if (entry == NULL || entry->type != DRLLM_GGUF_STRING) {
        return false;
    }
    *value = (struct drllm_string){(const char *)entry->data + 8, entry->size - 8};
    return true;
}

bool drllm_gguf_next_string(const struct drllm_gguf_entry *array, size_t *position, struct drllm_string *value) {
    if (array->type != DRLLM_GGUF_ARRAY || array->item_type != DRLLM_GGUF_STRING || *position >= array->size) {
        return false;
    }
    struct reader items = {array->data, array->size, *position};
    if (!read_string(&items, value)) {
        return false;
    }
    *position = items.at;
    return true;
}
