/* The reader on sound files, on damaged ones and without memory; the writer of tools/gguf_file.c; messages. */

#include "tests/tests.h"

#include "platform/file.h"
#include "quant/formats.h"
#include "runtime/error.h"
#include "runtime/gguf.h"
#include "runtime/memory.h"
#include "tests/gguf_writer.h"
#include "tools/gguf_file.c" /* NOLINT(bugprone-suspicious-include): its inner functions are tested, too */

#include <dirent.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* ---- Memory that is counted and can run out ---- */

struct counted {
    size_t n_calls, fail_at; /* fail_at: the number of the call that fails; SIZE_MAX: none */
    size_t n_live, live_bytes, most_bytes;
};

static void *counted_allocate(void *user, size_t size, size_t alignment) {
    struct counted *counted = user;
    assert_true(size != 0 && alignment != 0 && (alignment & (alignment - 1)) == 0 && alignment <= 64);
    if (counted->n_calls++ == counted->fail_at) {
        return NULL;
    }
    counted->n_live++;
    counted->live_bytes += size;
    counted->most_bytes = counted->live_bytes > counted->most_bytes ? counted->live_bytes : counted->most_bytes;
    /* The size stands in front, so that release can compare it. */
    uint8_t *memory = NULL;
    assert_int_equal(posix_memalign((void **)&memory, 64, size + 64), 0);
    memcpy(memory, &size, sizeof size);
    return memory + 64;
}

static void counted_release(void *user, void *memory, size_t size) {
    struct counted *counted = user;
    size_t allocated = 0;
    assert_non_null(memory);
    memcpy(&allocated, (uint8_t *)memory - 64, sizeof allocated);
    assert_int_equal(allocated, size);
    counted->n_live--;
    counted->live_bytes -= size;
    free((uint8_t *)memory - 64);
}

static struct counted counted;
static const struct drllm_allocator allocator = {counted_allocate, counted_release, &counted};

static void count_anew(void) {
    counted = (struct counted){.fail_at = SIZE_MAX};
}

/* ---- A file with everything in it ---- */

static const float first_weights[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

static void add_values(struct gguf_writer *writer) {
    static const char *const strings[] = {"", "one", "two words", "\xE2\x96\x81"};
    static const float floats[] = {0.5f, -1.0f};
    static const int32_t integers[] = {1, -2, 3};
    static const uint8_t bytes[] = {1, 2, 3};
    static const uint64_t longs[] = {1, UINT64_MAX};
    const int8_t i8 = -8;
    const int16_t i16 = -1600;
    const uint16_t u16 = 1600;
    const int64_t i64 = INT64_MIN;
    const double f64 = 0.1;
    const uint8_t u8 = 200;
    gguf_writer_add_string(writer, "general.architecture", "llama");
    gguf_writer_add_raw(writer, "t.u8", DRLLM_GGUF_U8, &u8, sizeof u8);
    gguf_writer_add_raw(writer, "t.i8", DRLLM_GGUF_I8, &i8, sizeof i8);
    gguf_writer_add_raw(writer, "t.u16", DRLLM_GGUF_U16, &u16, sizeof u16);
    gguf_writer_add_raw(writer, "t.i16", DRLLM_GGUF_I16, &i16, sizeof i16);
    gguf_writer_add_u32(writer, "t.u32", 3000000000u);
    gguf_writer_add_i32(writer, "t.i32", 42);
    gguf_writer_add_f32(writer, "t.f32", 1e-5f);
    gguf_writer_add_bool(writer, "t.bool", true);
    gguf_writer_add_bool(writer, "t.false", false);
    gguf_writer_add_string(writer, "t.string", "text");
    gguf_writer_add_bytes(writer, "t.zeros", "a\0b", 3);
    gguf_writer_add_u64(writer, "t.u64", UINT64_MAX);
    gguf_writer_add_raw(writer, "t.i64", DRLLM_GGUF_I64, &i64, sizeof i64);
    gguf_writer_add_raw(writer, "t.f64", DRLLM_GGUF_F64, &f64, sizeof f64);
    gguf_writer_add_strings(writer, "t.strings", strings, NULL, 4);
    gguf_writer_add_strings(writer, "t.nothing", strings, NULL, 0);
    gguf_writer_add_f32s(writer, "t.f32s", floats, 2);
    gguf_writer_add_i32s(writer, "t.i32s", integers, 3);
    gguf_writer_add_array(writer, "t.u8s", DRLLM_GGUF_U8, bytes, 3, 1);
    gguf_writer_add_array(writer, "t.u64s", DRLLM_GGUF_U64, longs, 2, 8);
}

enum { N_VALUES = 21 };

static void add_tensors(struct gguf_writer *writer) {
    static const size_t first[] = {4, 3}, second[] = {64, 2}, third[] = {256}, fourth[] = {32, 1, 2, 3};
    gguf_writer_add_tensor(writer, "a.weight", DRLLM_FORMAT_F32, 2, first, first_weights, sizeof first_weights);
    gguf_writer_add_tensor(writer, "b.weight", DRLLM_FORMAT_Q4_1, 2, second, NULL, 80);
    gguf_writer_add_tensor(writer, "c.weight", 16, 1, third, NULL, 66); /* iq2_xxs, which is not read */
    gguf_writer_add_tensor(writer, "d.weight", DRLLM_FORMAT_Q8_0, 4, fourth, NULL, 204);
}

static uint8_t *make_sample(uint32_t version, size_t *size) {
    struct gguf_writer writer;
    gguf_writer_init(&writer);
    writer.version = version;
    add_values(&writer);
    add_tensors(&writer);
    return gguf_writer_finish(&writer, size);
}

static void open_sound(struct drllm_gguf *gguf, const void *data, size_t size) {
    struct drllm_error error = {0, "untouched"};
    if (drllm_gguf_open(gguf, data, size, &allocator, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    assert_string_equal(error.detail, "untouched");
}

static void assert_string(struct drllm_string string, const char *text) {
    assert_true(drllm_string_equals(string, text));
}

/* ---- Sound files ---- */

static void check_values(const struct drllm_gguf *gguf) {
    assert_int_equal(gguf->n_entries, N_VALUES);
    assert_string(gguf->entries[0].key, "general.architecture"); /* the file's order */
    assert_string(gguf->entries[N_VALUES - 1].key, "t.u64s");
    assert_null(drllm_gguf_find(gguf, "t."));
    assert_null(drllm_gguf_find(gguf, "t.u8 "));
    assert_null(drllm_gguf_find(gguf, ""));
    assert_null(drllm_gguf_find(gguf, "zzz"));

    static const struct {
        const char *key;
        bool fits;
        uint64_t value;
    } integers[] = {
        {"t.u8", true, 200},         {"t.i8", false, 0},   {"t.u16", true, 1600},       {"t.i16", false, 0},
        {"t.u32", true, 3000000000}, {"t.i32", true, 42},  {"t.u64", true, UINT64_MAX}, {"t.i64", false, 0},
        {"t.f32", false, 0},         {"t.f64", false, 0},  {"t.bool", false, 0},        {"t.string", false, 0},
        {"t.u8s", false, 0},         {"t.none", false, 0}, {"t.strings", false, 0},
    };
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++) {
        uint64_t value = 77;
        assert_int_equal(drllm_gguf_get_u64(gguf, integers[i].key, &value), integers[i].fits);
        assert_int_equal(value, integers[i].fits ? integers[i].value : 77);
    }
    float f = 77;
    assert_true(drllm_gguf_get_f32(gguf, "t.f32", &f) && f == 1e-5f);
    assert_true(drllm_gguf_get_f32(gguf, "t.f64", &f) && f == 0.1f);
    assert_false(drllm_gguf_get_f32(gguf, "t.u32", &f) || drllm_gguf_get_f32(gguf, "t.f32s", &f) ||
                 drllm_gguf_get_f32(gguf, "none", &f));
    assert_true(f == 0.1f);
    bool b = false;
    assert_true(drllm_gguf_get_bool(gguf, "t.bool", &b) && b);
    assert_true(drllm_gguf_get_bool(gguf, "t.false", &b) && !b);
    assert_false(drllm_gguf_get_bool(gguf, "t.u8", &b) || drllm_gguf_get_bool(gguf, "none", &b));
    struct drllm_string string = {NULL, 77};
    assert_false(drllm_gguf_get_string(gguf, "t.strings", &string) || drllm_gguf_get_string(gguf, "t.u8", &string) ||
                 drllm_gguf_get_string(gguf, "none", &string));
    assert_int_equal(string.size, 77);
    assert_true(drllm_gguf_get_string(gguf, "t.string", &string));
    assert_string(string, "text");
    assert_false(drllm_string_equals(string, "tex") || drllm_string_equals(string, "texts"));
    assert_true(drllm_gguf_get_string(gguf, "t.zeros", &string));
    assert_int_equal(string.size, 3);
    assert_memory_equal(string.data, "a\0b", 3);
    assert_false(drllm_string_equals(string, "a"));
}

static void check_arrays(const struct drllm_gguf *gguf) {
    const struct drllm_gguf_entry *strings = drllm_gguf_find(gguf, "t.strings");
    static const char *const expected[] = {"", "one", "two words", "\xE2\x96\x81"};
    size_t position = 0, n = 0;
    struct drllm_string string;
    assert_int_equal(strings->count, 4);
    while (drllm_gguf_next_string(strings, &position, &string)) {
        assert_string(string, expected[n++]);
    }
    assert_int_equal(n, 4);
    assert_int_equal(position, strings->size);
    position = 0;
    assert_false(drllm_gguf_next_string(drllm_gguf_find(gguf, "t.nothing"), &position, &string));
    assert_false(drllm_gguf_next_string(drllm_gguf_find(gguf, "t.u8s"), &position, &string));
    assert_false(drllm_gguf_next_string(drllm_gguf_find(gguf, "t.string"), &position, &string));

    const struct drllm_gguf_entry *integers = drllm_gguf_find(gguf, "t.i32s");
    const int32_t values[] = {1, -2, 3};
    assert_int_equal(integers->type, DRLLM_GGUF_ARRAY);
    assert_int_equal(integers->item_type, DRLLM_GGUF_I32);
    assert_int_equal(integers->count, 3);
    assert_int_equal(integers->size, sizeof values);
    assert_memory_equal(integers->data, values, sizeof values);
    assert_int_equal(drllm_gguf_find(gguf, "t.u64s")->size, 16);
    assert_int_equal(drllm_gguf_find(gguf, "t.u8")->count, 1);
}

static void check_tensors(const struct drllm_gguf *gguf, const uint8_t *file, size_t size) {
    assert_int_equal(gguf->n_tensors, 4);
    assert_int_equal(gguf->alignment, 32);
    assert_int_equal(gguf->data_offset % 32, 0);
    const struct drllm_gguf_tensor *first = drllm_gguf_find_tensor(gguf, "a.weight");
    assert_ptr_equal(first, &gguf->tensors[0]);
    assert_int_equal(first->n_dims, 2);
    assert_true(first->dims[0] == 4 && first->dims[1] == 3 && first->dims[2] == 1 && first->dims[3] == 1);
    assert_int_equal(first->size, sizeof first_weights);
    assert_int_equal(first->offset, gguf->data_offset);
    assert_ptr_equal(first->data, file + first->offset);
    assert_memory_equal(first->data, first_weights, sizeof first_weights);
    assert_int_equal(drllm_gguf_find_tensor(gguf, "b.weight")->size, 80);
    const struct drllm_gguf_tensor *unread = drllm_gguf_find_tensor(gguf, "c.weight");
    assert_int_equal(unread->type, 16);
    assert_null(unread->data);
    assert_int_equal(unread->size, 0);
    const struct drllm_gguf_tensor *last = drllm_gguf_find_tensor(gguf, "d.weight");
    assert_true(last->n_dims == 4 && last->dims[2] == 2 && last->dims[3] == 3);
    assert_ptr_equal((const uint8_t *)last->data + last->size, file + size);
    assert_null(drllm_gguf_find_tensor(gguf, "e.weight"));
    assert_null(drllm_gguf_find_tensor(gguf, "t.u8"));
}

static void test_sound(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        size_t size = 0;
        uint8_t *file = make_sample(version, &size);
        struct drllm_gguf gguf;
        count_anew();
        open_sound(&gguf, file, size);
        assert_int_equal(gguf.version, version);
        check_values(&gguf);
        check_arrays(&gguf);
        check_tensors(&gguf, file, size);
        drllm_gguf_close(&gguf);
        assert_int_equal(counted.n_live, 0);
        drllm_gguf_close(&gguf); /* does nothing */
        free(file);
    }
}

static void test_vocabulary_only(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct drllm_gguf gguf;
    size_t size = 0;
    gguf_writer_init(&writer);
    uint8_t *file = gguf_writer_finish(&writer, &size); /* not even an entry */
    open_sound(&gguf, file, size);
    assert_int_equal(gguf.n_entries + gguf.n_tensors, 0);
    assert_null(drllm_gguf_find(&gguf, "general.architecture"));
    assert_null(drllm_gguf_find_tensor(&gguf, "a.weight"));
    drllm_gguf_close(&gguf);
    free(file);

    add_values(&writer);
    file = gguf_writer_finish(&writer, &size);
    open_sound(&gguf, file, size);
    assert_true(gguf.data_offset <= size);
    check_values(&gguf);
    drllm_gguf_close(&gguf);
    free(file);
}

static void test_alignment(void **state) {
    (void)state;
    static const size_t alignments[] = {8, 16, 64, 4096};
    static const size_t dims[] = {3};
    for (size_t i = 0; i < sizeof alignments / sizeof alignments[0]; i++) {
        struct gguf_writer writer;
        struct drllm_gguf gguf;
        size_t size = 0;
        gguf_writer_init(&writer);
        writer.alignment = alignments[i];
        gguf_writer_add_u32(&writer, "general.alignment", (uint32_t)alignments[i]);
        gguf_writer_add_tensor(&writer, "x", DRLLM_FORMAT_F32, 1, dims, first_weights, 12);
        gguf_writer_add_tensor(&writer, "y", DRLLM_FORMAT_F32, 1, dims, first_weights, 12);
        uint8_t *file = gguf_writer_finish(&writer, &size);
        open_sound(&gguf, file, size);
        assert_int_equal(gguf.alignment, alignments[i]);
        assert_int_equal(gguf.data_offset % alignments[i], 0);
        assert_memory_equal(drllm_gguf_find_tensor(&gguf, "y")->data, first_weights, 12);
        drllm_gguf_close(&gguf);
        free(file);
    }
}

/* As many as large models have, in an order that is not sorted; every one is found. */
static void test_many(void **state) {
    (void)state;
    enum { N = 5000 };
    static const size_t dims[] = {1};
    struct gguf_writer writer;
    struct drllm_gguf gguf;
    size_t size = 0;
    char name[64];
    gguf_writer_init(&writer);
    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "key.%u", i * 2311 % N);
        gguf_writer_add_u32(&writer, name, i);
        (void)snprintf(name, sizeof name, "blk.%u.weight", i * 3119 % N);
        gguf_writer_add_tensor(&writer, name, DRLLM_FORMAT_F32, 1, dims, first_weights + i % 12, 4);
    }
    uint8_t *file = gguf_writer_finish(&writer, &size);
    open_sound(&gguf, file, size);
    for (unsigned i = 0; i < N; i++) {
        uint64_t value = N;
        (void)snprintf(name, sizeof name, "key.%u", i * 2311 % N);
        assert_true(drllm_gguf_get_u64(&gguf, name, &value));
        assert_int_equal(value, i);
        (void)snprintf(name, sizeof name, "blk.%u.weight", i * 3119 % N);
        const struct drllm_gguf_tensor *tensor = drllm_gguf_find_tensor(&gguf, name);
        assert_ptr_equal(tensor, &gguf.tensors[i]);
        assert_memory_equal(tensor->data, first_weights + i % 12, 4);
    }
    assert_null(drllm_gguf_find(&gguf, "key.5000"));
    drllm_gguf_close(&gguf);
    free(file);
}

/* Special numbers of f64, whose range is larger than a float's. */
static void test_f64_range(void **state) {
    (void)state;
    const double values[] = {1e300, -1e300, INFINITY, -INFINITY, FLT_MAX};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct gguf_writer writer;
        struct drllm_gguf gguf;
        size_t size = 0;
        float value = 77;
        gguf_writer_init(&writer);
        gguf_writer_add_raw(&writer, "x", DRLLM_GGUF_F64, &values[i], 8);
        uint8_t *file = gguf_writer_finish(&writer, &size);
        open_sound(&gguf, file, size);
        assert_int_equal(drllm_gguf_get_f32(&gguf, "x", &value), i >= 2);
        assert_true((double)value == (i >= 2 ? values[i] : 77));
        drllm_gguf_close(&gguf);
        free(file);
    }
}

/* ---- Damaged files ---- */

/* Open a copy of the file that has its own block of memory, so that reading past its end shows. */
static int try_open(const void *data, size_t size, struct drllm_gguf *gguf, struct drllm_error *error) {
    uint8_t *copy = malloc(size != 0 ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    const int status = drllm_gguf_open(gguf, size != 0 ? copy : NULL, size, &allocator, error);
    if (status == DRLLM_OK) { /* touch all that was found */
        unsigned sum = 0;
        for (size_t i = 0; i < gguf->n_entries; i++) {
            const struct drllm_gguf_entry *entry = &gguf->entries[i];
            size_t position = 0;
            struct drllm_string string;
            while (drllm_gguf_next_string(entry, &position, &string)) {
                sum += string.size != 0 ? (unsigned)string.data[string.size - 1] : 0;
            }
            sum += entry->size != 0 ? entry->data[entry->size - 1] : 0u;
        }
        for (size_t i = 0; i < gguf->n_tensors; i++) {
            const struct drllm_gguf_tensor *tensor = &gguf->tensors[i];
            sum += tensor->data != NULL ? ((const uint8_t *)tensor->data)[tensor->size - 1] : 0u;
        }
        volatile unsigned kept = sum;
        (void)kept;
        drllm_gguf_close(gguf);
    }
    free(copy);
    return status;
}

static void assert_refused(const char *what, const void *data, size_t size, int status, const char *mention) {
    struct drllm_gguf gguf, before;
    struct drllm_error error = {0, ""};
    memset(&gguf, 0x5A, sizeof gguf);
    memset(&before, 0x5A, sizeof before);
    count_anew();
    const int got = try_open(data, size, &gguf, &error);
    if (got != status || error.status != status || strstr(error.detail, mention) == NULL || error.detail[0] == '\0') {
        fail_msg("%s: status %d, not %d; detail \"%s\", which should mention \"%s\"", what, got, status, error.detail,
                 mention);
    }
    assert_memory_equal(&gguf, &before, sizeof gguf);
    assert_int_equal(counted.n_live, 0);
    /* Bounded by what is there, whatever the file claims. */
    assert_true(counted.most_bytes <= 8 * size + 64);
    /* The same without a place for the error. */
    assert_int_equal(try_open(data, size, &gguf, NULL), status);
}

struct damage {
    const char *anchor; /* a text in the file */
    long offset;        /* of the patch, from the end of that text */
    uint64_t value;
    size_t width;
    int status;
    const char *mention;
};

#define FORMAT DRLLM_ERR_FORMAT
#define UNSUPPORTED DRLLM_ERR_UNSUPPORTED

/* clang-format off */
static const struct damage damages[] = {
    /* header */
    {"", 0, 'X', 1, FORMAT, "not a GGUF file"},
    {"", 4, 0, 4, FORMAT, "version is 0"},
    {"", 4, 1, 4, UNSUPPORTED, "version 1"},
    {"", 4, 4, 4, UNSUPPORTED, "version 4"},
    {"", 4, UINT32_MAX, 4, UNSUPPORTED, "version 4294967295"},
    {"", 4, 0x03000000, 4, UNSUPPORTED, "big-endian"},
    {"", 4, 0x02000000, 4, UNSUPPORTED, "big-endian"},
    {"", 8, UINT64_MAX, 8, FORMAT, "18446744073709551615 tensors"},
    {"", 8, (uint64_t)1 << 60, 8, FORMAT, "tensors"},
    {"", 8, 5, 8, FORMAT, "tensor"},
    {"", 16, UINT64_MAX, 8, FORMAT, "18446744073709551615 metadata entries"},
    {"", 16, (uint64_t)1 << 32, 8, FORMAT, "metadata entries"},
    {"", 16, N_VALUES - 1, 8, FORMAT, ""},
    {"", 16, N_VALUES + 1, 8, FORMAT, ""},
    /* keys */
    {"t.u8", -12, (uint64_t)1 << 63, 8, FORMAT, "key of metadata entry 1 of 21"},
    {"t.u8", -12, UINT64_MAX, 8, FORMAT, "key of metadata entry 1 of 21"},
    {"t.i8", -2, 'u', 1, FORMAT, "'t.u8' is there twice"},
    /* values */
    {"t.u8", 0, 13, 4, FORMAT, "'t.u8'"},
    {"t.u8", 0, UINT32_MAX, 4, FORMAT, "'t.u8'"},
    {"t.u8s", 4, DRLLM_GGUF_ARRAY, 4, UNSUPPORTED, "'t.u8s' is an array of arrays"},
    {"t.u8s", 4, 99, 4, FORMAT, "'t.u8s'"},
    {"t.u8s", 8, UINT64_MAX, 8, FORMAT, "'t.u8s'"},
    {"t.u64s", 8, ((uint64_t)1 << 61) + 1, 8, FORMAT, "'t.u64s'"}, /* times 8: 8 */
    {"t.strings", 8, (uint64_t)1 << 61, 8, FORMAT, "'t.strings'"},
    {"t.strings", 8, 40, 8, FORMAT, "'t.strings'"},
    {"t.strings", 16, UINT64_MAX, 8, FORMAT, "string 0 of entry 't.strings'"},
    {"t.strings", 24, UINT64_MAX - 7, 8, FORMAT, "string 1 of entry 't.strings'"},
    {"t.string", 4, 1 << 20, 8, FORMAT, "'t.string'"},
    {"t.string", 4, UINT64_MAX, 8, FORMAT, "'t.string'"},
    /* tensors; a.weight has two dimensions, its type stands 20 and its offset 24 behind the name */
    {"a.weight", -16, UINT64_MAX, 8, FORMAT, "name of tensor 0 of 4"},
    {"a.weight", 0, 0, 4, FORMAT, "'a.weight'"},
    {"a.weight", 0, 5, 4, FORMAT, "'a.weight'"},
    {"a.weight", 0, UINT32_MAX, 4, FORMAT, "'a.weight'"},
    {"a.weight", 4, 0, 8, FORMAT, "dimension 0 of tensor 'a.weight' is 0"},
    {"a.weight", 12, 0, 8, FORMAT, "dimension 1 of tensor 'a.weight' is 0"},
    {"a.weight", 4, UINT64_MAX, 8, FORMAT, "'a.weight'"},
    {"a.weight", 4, (uint64_t)1 << 62, 8, FORMAT, "'a.weight'"},
    {"a.weight", 4, (uint64_t)1 << 60, 8, FORMAT, "'a.weight'"},
    {"a.weight", 12, ((uint64_t)1 << 62) + 1, 8, FORMAT, "'a.weight'"}, /* times 4 dims: 4 */
    {"c.weight", 4, (uint64_t)1 << 63, 8, FORMAT, "'c.weight'"},
    {"a.weight", 12, 1 << 20, 8, FORMAT, "tensor 'a.weight' is not all there"},
    {"a.weight", 12, 4, 8, FORMAT, ""}, /* fits exactly; see below */
    {"a.weight", 12, 5, 8, FORMAT, "'a.weight' and 'b.weight' overlap"},
    {"b.weight", 4, 63, 8, FORMAT, "'b.weight'"},
    {"d.weight", 4, 1, 8, FORMAT, "'d.weight'"},
    {"a.weight", 24, 1, 8, FORMAT, "'a.weight'"},
    {"b.weight", 24, 16, 8, FORMAT, "'b.weight'"},
    {"b.weight", 24, 0, 8, FORMAT, "overlap"},
    {"b.weight", 24, (uint64_t)1 << 63, 8, FORMAT, "'b.weight'"},
    {"b.weight", 24, UINT64_MAX - 31, 8, FORMAT, "'b.weight'"},
    {"b.weight", 24, (uint64_t)1 << 61, 8, FORMAT, "'b.weight'"},
    {"b.weight", 24, 1 << 16, 8, FORMAT, "bytes early"},
    {"c.weight", 16, 1 << 16, 8, FORMAT, "'c.weight'"}, /* also of a type that is not read */
    {"c.weight", -8, 'b', 1, FORMAT, "'b.weight' is there twice"},
    {"d.weight", 36, DRLLM_FORMAT_F32, 4, FORMAT, "'d.weight'"},
};
/* clang-format on */

/* The patched place. */
static uint8_t *apply(uint8_t *file, size_t size, const struct damage *damage) {
    const size_t n = strlen(damage->anchor);
    const uint8_t *anchor = memmem(file, size, damage->anchor, n);
    /* "t.u8" is also the beginning of "t.u8s": the whole name has its size in front. */
    while (n != 0 && (anchor - file < 8 || anchor[-8] != n)) {
        anchor = memmem(anchor + 1, size - (size_t)(anchor + 1 - file), damage->anchor, n);
        assert_non_null(anchor);
    }
    uint8_t *place = file + (anchor - file) + (long)n + damage->offset;
    for (size_t i = 0; i < damage->width; i++) {
        place[i] = (uint8_t)(damage->value >> 8 * i);
    }
    return place;
}

static void test_damage(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        const struct damage *damage = &damages[i];
        size_t size = 0;
        uint8_t *file = make_sample(3, &size);
        char what[160];
        (void)snprintf(what, sizeof what, "'%s' %+ld = %llu", damage->anchor, damage->offset,
                       (unsigned long long)damage->value);
        apply(file, size, damage);
        if (strcmp(damage->anchor, "a.weight") == 0 && damage->offset == 12 && damage->value == 4) {
            struct drllm_gguf gguf; /* 64 bytes: up to the very beginning of the next tensor */
            assert_int_equal(try_open(file, size, &gguf, NULL), DRLLM_OK);
        } else {
            assert_refused(what, file, size, damage->status, damage->mention);
        }
        free(file);
    }
}

static void test_other_kinds(void **state) {
    (void)state;
    static const struct {
        const char *data;
        size_t size;
        const char *mention;
    } files[] = {
        {"", 0, "empty"},
        {"G", 1, "not a GGUF file"},
        {"GGUF", 4, "ends inside its header"},
        {"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 23, "ends inside its header, after 23 bytes"},
        {"\x40\0\0\0\0\0\0\0{\"__metadata__\"", 23, "safetensors"},
        {"lmgg\1\0\0\0", 8, "before GGUF"},
        {"tjgg\3\0\0\0", 8, "before GGUF"},
        {"PK\3\4data", 8, "zip"},
        {"<!DOCTYPE html>", 15, "web page"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "Git LFS"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, "not a GGUF file"},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        assert_refused(files[i].mention, files[i].data, files[i].size, DRLLM_ERR_FORMAT, files[i].mention);
    }
    assert_refused("version 1, short", "GGUF\1\0\0\0\0\0\0\0", 12, DRLLM_ERR_UNSUPPORTED, "version 1");
}

static void test_bad_alignment(void **state) {
    (void)state;
    static const uint32_t values[] = {0, 1, 4, 24, 33, 0x80000001, UINT32_MAX};
    struct gguf_writer writer;
    size_t size = 0;
    gguf_writer_init(&writer);
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        gguf_writer_add_u32(&writer, "general.alignment", values[i]);
        add_tensors(&writer);
        uint8_t *file = gguf_writer_finish(&writer, &size);
        assert_refused("alignment", file, size, DRLLM_ERR_FORMAT, "general.alignment");
        free(file);
    }
    /* A power of two that puts the data far behind the end. */
    gguf_writer_add_u32(&writer, "general.alignment", 0x80000000);
    static const size_t dims[] = {4};
    gguf_writer_add_tensor(&writer, "x", DRLLM_FORMAT_F32, 1, dims, NULL, 16);
    uint8_t *file = gguf_writer_finish(&writer, &size);
    assert_refused("alignment", file, size, DRLLM_ERR_FORMAT, "'x'");
    free(file);
    gguf_writer_add_f32(&writer, "general.alignment", 32);
    file = gguf_writer_finish(&writer, &size);
    assert_refused("alignment", file, size, DRLLM_ERR_FORMAT, "general.alignment is of type f32");
    free(file);
}

static void test_long_names(void **state) {
    (void)state;
    static const size_t dims[] = {4};
    char *name = malloc(70000);
    struct gguf_writer writer;
    struct drllm_gguf gguf;
    size_t size = 0;
    assert_non_null(name);
    memset(name, 'k', 69999);
    name[69999] = '\0';
    gguf_writer_init(&writer);
    gguf_writer_add_u32(&writer, name, 1);
    uint8_t *file = gguf_writer_finish(&writer, &size);
    assert_refused("long key", file, size, DRLLM_ERR_FORMAT, "kkk', has 69999 bytes");
    free(file);
    gguf_writer_add_tensor(&writer, name, DRLLM_FORMAT_F32, 1, dims, NULL, 16);
    file = gguf_writer_finish(&writer, &size);
    assert_refused("long name", file, size, DRLLM_ERR_FORMAT, "kkk', has 69999 bytes");
    free(file);
    name[65535] = '\0';
    gguf_writer_add_u32(&writer, name, 1);
    file = gguf_writer_finish(&writer, &size);
    open_sound(&gguf, file, size);
    assert_non_null(drllm_gguf_find(&gguf, name));
    drllm_gguf_close(&gguf);
    free(file);
    free(name);
}

/* Names come from files and go to terminals. */
static void test_hostile_names(void **state) {
    (void)state;
    struct gguf_writer writer;
    size_t size = 0;
    gguf_writer_init(&writer);
    gguf_writer_add_raw(&writer, "\x1B[2J\xFF\xC2\x9B\xC3\xA9", 99, "", 1);
    uint8_t *file = gguf_writer_finish(&writer, &size);
    assert_refused("escape sequence", file, size, DRLLM_ERR_FORMAT, "'?[2J???\xC3\xA9'");
    free(file);
}

static void test_truncation(void **state) {
    (void)state;
    for (int tensors = 0; tensors < 2; tensors++) {
        struct gguf_writer writer;
        size_t size = 0;
        gguf_writer_init(&writer);
        add_values(&writer);
        if (tensors != 0) {
            add_tensors(&writer);
        }
        uint8_t *file = gguf_writer_finish(&writer, &size);
        for (size_t n = 0; n < size; n++) {
            assert_refused("truncated", file, n, DRLLM_ERR_FORMAT, n == 0 ? "empty" : "");
        }
        free(file);
    }
}

/* The commonest damage: what is missing is said in bytes. */
static void test_missing_bytes(void **state) {
    (void)state;
    size_t size = 0;
    uint8_t *file = make_sample(3, &size);
    char mention[80];
    for (size_t n = 1; n < 450; n += 83) {
        (void)snprintf(mention, sizeof mention, "the file ends %zu bytes early: it has %zu of %zu,", n, size - n, size);
        assert_refused("missing", file, size - n, DRLLM_ERR_FORMAT, mention);
        assert_refused("missing", file, size - n, DRLLM_ERR_FORMAT, "download it again");
    }
    free(file);
}

/* Every bit flipped, and every byte set to 0 and 0xFF: sound or refused, never worse. */
static void test_flips(void **state) {
    (void)state;
    size_t size = 0, n_refused = 0;
    uint8_t *file = make_sample(3, &size);
    for (size_t i = 0; i < size; i++) {
        const uint8_t was = file[i];
        for (unsigned k = 0; k < 10; k++) {
            struct drllm_gguf gguf;
            struct drllm_error error = {0, ""};
            file[i] = (uint8_t)(k < 8 ? was ^ 1u << k : k == 8 ? 0 : 0xFF);
            count_anew();
            const int status = try_open(file, size, &gguf, &error);
            assert_true(status == DRLLM_OK || status == DRLLM_ERR_FORMAT || status == DRLLM_ERR_UNSUPPORTED);
            assert_int_equal(status != DRLLM_OK, error.detail[0] != '\0');
            assert_int_equal(counted.n_live, 0);
            n_refused += status != DRLLM_OK;
        }
        file[i] = was;
    }
    assert_true(n_refused > 1000);
    free(file);
}

static void test_no_memory(void **state) {
    (void)state;
    size_t size = 0;
    uint8_t *file = make_sample(3, &size);
    struct drllm_gguf gguf;
    count_anew();
    open_sound(&gguf, file, size);
    const size_t n_calls = counted.n_calls;
    drllm_gguf_close(&gguf);
    assert_true(n_calls >= 2);
    for (size_t i = 0; i < n_calls; i++) {
        struct drllm_gguf untouched, before;
        struct drllm_error error = {0, ""};
        memset(&untouched, 0x5A, sizeof untouched);
        memset(&before, 0x5A, sizeof before);
        count_anew();
        counted.fail_at = i;
        assert_int_equal(drllm_gguf_open(&untouched, file, size, &allocator, &error), DRLLM_ERR_MEMORY);
        assert_int_equal(error.status, DRLLM_ERR_MEMORY);
        assert_true(error.detail[0] != '\0');
        assert_memory_equal(&untouched, &before, sizeof before);
        assert_int_equal(counted.n_live, 0);
    }
    free(file);
}

static void test_type_names(void **state) {
    (void)state;
    assert_string_equal(drllm_gguf_type_name(DRLLM_GGUF_U8), "u8");
    assert_string_equal(drllm_gguf_type_name(DRLLM_GGUF_STRING), "string");
    assert_string_equal(drllm_gguf_type_name(DRLLM_GGUF_F64), "f64");
    assert_string_equal(drllm_gguf_type_name(13), "unknown");
    assert_string_equal(drllm_gguf_type_name(UINT32_MAX), "unknown");
}

/* ---- Messages and memory ---- */

static void test_format_text(void **state) {
    (void)state;
    char text[100], expected[100];
    assert_int_equal(drllm_format_text(text, sizeof text, "%s|%.*s|%c|%d|%u|%x|%zu|%llu|%lld|%%", "string", 3,
                                       "cut here", 'c', -12, 34u, 0xBEEFu, (size_t)56, 78ull, -90ll),
                     (size_t)snprintf(expected, sizeof expected, "%s|%.*s|%c|%d|%u|%x|%zu|%llu|%lld|%%", "string", 3,
                                      "cut here", 'c', -12, 34u, 0xBEEFu, (size_t)56, 78ull, -90ll));
    assert_string_equal(text, expected);
    drllm_format_text(text, sizeof text, "%d %d %lld %llu %u %x %zu", INT32_MIN, 0, (long long)INT64_MIN,
                      (unsigned long long)UINT64_MAX, UINT32_MAX, UINT32_MAX, SIZE_MAX);
    (void)snprintf(expected, sizeof expected, "%d %d %lld %llu %u %x %zu", INT32_MIN, 0, (long long)INT64_MIN,
                   (unsigned long long)UINT64_MAX, UINT32_MAX, UINT32_MAX, SIZE_MAX);
    assert_string_equal(text, expected);
    const char *volatile null = NULL; /* from the compiler's warnings */
    drllm_format_text(text, sizeof text, "%s %.*s.", null, 0, null);
    assert_string_equal(text, "(null) .");
    const char unterminated[3] = {'a', 'b', 'c'};
    drllm_format_text(text, sizeof text, "%.*s", 3, unterminated);
    assert_string_equal(text, "abc");
    drllm_format_text(text, sizeof text, "%.*s|", 10, "ab");
    assert_string_equal(text, "ab|");
    for (size_t size = 1; size < 8; size++) {
        memset(text, 'x', sizeof text);
        assert_int_equal(drllm_format_text(text, size, "%s%d", "abc", 123456), size - 1 < 9 ? size - 1 : 9);
        assert_int_equal(strlen(text), size - 1);
        assert_memory_equal(text, "abc123456", size - 1);
        assert_int_equal(text[size], 'x');
    }
}

static void test_fail(void **state) {
    (void)state;
    struct drllm_error error = {0, "before"};
    assert_int_equal(drllm_fail(&error, DRLLM_ERR_IO, "cannot read %s", "it"), DRLLM_ERR_IO);
    assert_int_equal(error.status, DRLLM_ERR_IO);
    assert_string_equal(error.detail, "cannot read it");
    assert_int_equal(drllm_fail(&error, DRLLM_ERR_FORMAT, "in a file: %s", error.detail), DRLLM_ERR_FORMAT);
    assert_string_equal(error.detail, "in a file: cannot read it");
    assert_int_equal(drllm_fail(NULL, DRLLM_ERR_STATE, "%d", 1), DRLLM_ERR_STATE);

    static const struct {
        const char *text, *shown;
    } texts[] = {
        {"plain", "plain"},
        {"\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80", "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"},
        {"a\nb\tc\x7F", "a?b?c?"},
        {"\x1B[31m", "?[31m"},
        {"\xC2\x85", "??"}, /* a control character of two bytes */
        {"\xFF\xFE", "??"},
        {"\xC0\x80", "??"}, /* longer than need be */
        {"\xE0\x80\xAF", "???"},
        {"\xED\xA0\x80", "???"},      /* half a surrogate pair */
        {"\xF4\x90\x80\x80", "????"}, /* past the last character */
        {"\xE2\x82", "??"},
        {"\xE2\x82z", "??z"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        drllm_fail(&error, DRLLM_ERR_FORMAT, "%s", texts[i].text);
        assert_string_equal(error.detail, texts[i].shown);
    }
    /* Too long: cut, and not inside a character. */
    for (size_t shift = 0; shift < 3; shift++) {
        char text[600] = "ab";
        size_t n = shift;
        while (n + 3 < sizeof text) {
            memcpy(text + n, "\xE2\x82\xAC", 3);
            n += 3;
        }
        text[n] = '\0';
        drllm_fail(&error, DRLLM_ERR_FORMAT, "%s", text);
        const size_t length = strlen(error.detail);
        assert_true(length < sizeof error.detail && length + 3 >= sizeof error.detail);
        assert_int_equal((length - shift) % 3, 0);
        assert_memory_equal(error.detail, text, length);
    }
    assert_string_equal(drllm_strerror(DRLLM_OK), "no error");
    assert_string_equal(drllm_strerror(1), "unknown status");
    assert_string_equal(drllm_strerror(-1000), "unknown status");
    for (int status = DRLLM_ERR_SYSTEM; status < DRLLM_OK; status++) {
        assert_string_not_equal(drllm_strerror(status), "unknown status");
    }
}

static void keep_line(void *user, enum drllm_log_level level, const char *line) {
    (void)snprintf(user, 100, "%d: %s", (int)level, line);
}

static void test_log(void **state) {
    (void)state;
    char line[100] = "";
    const struct drllm_log log = {keep_line, line}, silent = {NULL, NULL};
    drllm_log_line(&log, DRLLM_LOG_WARNING, "%d\n%s", 1, "two");
    assert_string_equal(line, "1: 1?two");
    drllm_log_line(&silent, DRLLM_LOG_INFO, "%d", 3);
    drllm_log_line(NULL, DRLLM_LOG_INFO, "%d", 3);
}

static void test_memory(void **state) {
    (void)state;
    size_t product = 77, sum = 77;
    assert_true(drllm_multiply(SIZE_MAX / 2, 2, &product) && product == SIZE_MAX - 1);
    assert_true(drllm_multiply(SIZE_MAX, 0, &product) && product == 0);
    assert_true(drllm_multiply(0, SIZE_MAX, &product) && product == 0);
    assert_false(drllm_multiply(SIZE_MAX / 2 + 1, 2, &product));
    assert_false(drllm_multiply(SIZE_MAX, SIZE_MAX, &product));
    assert_true(drllm_add_sizes(SIZE_MAX - 1, 1, &sum) && sum == SIZE_MAX);
    assert_false(drllm_add_sizes(SIZE_MAX, 1, &sum));
    assert_int_equal(sum, SIZE_MAX);

    count_anew();
    assert_null(drllm_allocate(&allocator, SIZE_MAX / 2, 3));
    assert_null(drllm_allocate(&allocator, 0, 3));
    assert_null(drllm_allocate(&allocator, 3, 0));
    assert_null(drllm_allocate_zeroed(&allocator, SIZE_MAX, 2));
    assert_int_equal(counted.n_calls, 0);
    uint8_t *memory = drllm_allocate_zeroed(&allocator, 7, 3);
    assert_int_equal((uintptr_t)memory % DRLLM_ALIGNMENT, 0);
    for (size_t i = 0; i < 21; i++) {
        assert_int_equal(memory[i], 0);
    }
    drllm_release(&allocator, memory, 7, 3);
    drllm_release(&allocator, NULL, 7, 3);
    counted.fail_at = counted.n_calls;
    assert_null(drllm_allocate_zeroed(&allocator, 7, 3));
    assert_int_equal(counted.n_live, 0);
}

/* ---- The writer ---- */

/* A folder for one test, and a file in it. */
struct place {
    char folder[200], path[300];
};

static int make_place(void **state) {
    struct place *place = calloc(1, sizeof *place);
    const char *base = getenv("TMPDIR");
    if (place == NULL) {
        return -1;
    }
    (void)snprintf(place->folder, sizeof place->folder, "%s/drllm-gguf.XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(place->folder) == NULL) {
        return -1;
    }
    (void)snprintf(place->path, sizeof place->path, "%s/file.gguf", place->folder);
    *state = place;
    return 0;
}

static size_t count_files(const struct place *place) {
    DIR *folder = opendir(place->folder);
    size_t n = 0;
    assert_non_null(folder);
    while (readdir(folder) != NULL) {
        n++;
    }
    closedir(folder);
    return n - 2; /* . and .. */
}

static int remove_place(void **state) {
    struct place *place = *state;
    DIR *folder = opendir(place->folder);
    for (struct dirent *file = NULL; folder != NULL && (file = readdir(folder)) != NULL;) {
        (void)unlinkat(dirfd(folder), file->d_name, 0);
    }
    if (folder != NULL) {
        closedir(folder);
    }
    const int failed = rmdir(place->folder);
    free(place);
    return failed;
}

static void put_file(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void assert_file(const char *path, const void *data, size_t size) {
    struct drllm_file file;
    assert_int_equal(drllm_file_map_path(path, &file), 0);
    assert_int_equal(file.size, size);
    assert_memory_equal(file.data, data, size);
    drllm_file_unmap(&file);
}

/* What produce writes: byte k of row r of tensor t. */
static uint8_t pattern(size_t tensor, size_t row, size_t k) {
    return (uint8_t)(tensor * 131 + row * 17 + k * 7 + (row >> 8));
}

struct production {
    const struct drllm_gguf_file *file;
    size_t tensor, row; /* expected next */
    size_t fail_at;     /* the call that fails */
    size_t n_calls;
};

static int produce(void *user, size_t tensor, size_t first_row, size_t n_rows, void *bytes, struct drllm_error *error) {
    struct production *production = user;
    if (production->n_calls++ == production->fail_at) {
        return drllm_fail(error, DRLLM_ERR_CANCELLED, "told to fail");
    }
    if (tensor != production->tensor) {
        assert_int_equal(production->row, count_rows(&production->file->tensors[production->tensor]));
        production->tensor++;
        production->row = 0;
    }
    assert_int_equal(tensor, production->tensor);
    assert_int_equal(first_row, production->row);
    assert_true(n_rows > 0);
    production->row += n_rows;
    const size_t row_bytes = count_row_bytes(&production->file->tensors[tensor]);
    for (size_t row = 0; row < n_rows; row++) {
        for (size_t k = 0; k < row_bytes; k++) {
            ((uint8_t *)bytes)[row * row_bytes + k] = pattern(tensor, first_row + row, k);
        }
    }
    return DRLLM_OK;
}

static const struct drllm_gguf_file_tensor written_tensors[] = {
    {{"x.weight", 8}, 2, {64, 5}, DRLLM_FORMAT_Q8_0},
    {{"y.weight", 8}, 1, {3}, DRLLM_FORMAT_F32},
    {{"z.weight", 8}, 2, {1024, 3000}, DRLLM_FORMAT_Q4_0}, /* more than one block */
    {{"z.scales", 8}, 3, {7, 2, 3}, DRLLM_FORMAT_I8},
};
enum { N_WRITTEN = sizeof written_tensors / sizeof written_tensors[0] };

static void test_write(void **state) {
    const struct place *place = *state;
    size_t size = 0;
    uint8_t *sample = make_sample(2, &size);
    struct drllm_gguf source;
    struct drllm_error error = {0, ""};
    count_anew();
    open_sound(&source, sample, size);

    struct drllm_gguf_changes changes = {NULL, 0, false};
    static const float floats[] = {1.5f, -2.5f};
    static const struct drllm_string strings[] = {{"one", 3}, {NULL, 0}, {"a\0b", 3}};
    drllm_gguf_set_u32(&changes, "t.u8", 5);
    drllm_gguf_set_u32(&changes, "new.u32", 6);
    drllm_gguf_set_u32(&changes, "new.u32", 7); /* the last one counts */
    drllm_gguf_set_f32(&changes, "new.f32", 0.25f);
    drllm_gguf_set_bool(&changes, "new.bool", true);
    drllm_gguf_set_string(&changes, "t.strings", "no array any more", 17);
    drllm_gguf_set_f32s(&changes, "new.f32s", floats, 2);
    drllm_gguf_set_strings(&changes, "new.strings", strings, 3);
    drllm_gguf_leave_out(&changes, "t.i8");
    drllm_gguf_set_u32(&changes, "new.gone", 1);
    drllm_gguf_leave_out(&changes, "new.gone");
    drllm_gguf_leave_out(&changes, "was never there");

    struct drllm_gguf_file file = {&source, &changes, written_tensors, N_WRITTEN, produce, NULL};
    struct production production = {&file, 0, 0, SIZE_MAX, 0};
    file.user = &production;
    uint64_t written = 0;
    if (drllm_gguf_file_write(place->path, &file, &written, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    assert_int_equal(production.tensor, N_WRITTEN - 1);
    assert_int_equal(production.row, 6);
    assert_true(production.n_calls > N_WRITTEN);
    assert_int_equal(count_files(place), 1);

    struct drllm_file mapped;
    struct drllm_gguf gguf;
    assert_int_equal(drllm_file_map_path(place->path, &mapped), 0);
    assert_int_equal(mapped.size, written);
    open_sound(&gguf, mapped.data, mapped.size);
    assert_int_equal(gguf.version, 3);
    assert_int_equal(gguf.n_entries, N_VALUES - 1 + 5);
    assert_string(gguf.entries[0].key, "general.architecture");
    assert_string(gguf.entries[1].key, "t.u8"); /* in its place */
    assert_string(gguf.entries[N_VALUES - 1].key, "new.u32");
    uint64_t number = 0;
    float f = 0;
    bool b = false;
    struct drllm_string string;
    assert_true(drllm_gguf_get_u64(&gguf, "t.u8", &number) && number == 5);
    assert_true(drllm_gguf_get_u64(&gguf, "new.u32", &number) && number == 7);
    assert_true(drllm_gguf_get_f32(&gguf, "new.f32", &f) && f == 0.25f);
    assert_true(drllm_gguf_get_bool(&gguf, "new.bool", &b) && b);
    assert_true(drllm_gguf_get_string(&gguf, "t.strings", &string));
    assert_string(string, "no array any more");
    assert_int_equal(drllm_gguf_find(&gguf, "new.f32s")->count, 2);
    assert_memory_equal(drllm_gguf_find(&gguf, "new.f32s")->data, floats, sizeof floats);
    size_t position = 0;
    for (size_t i = 0; i < 3; i++) {
        assert_true(drllm_gguf_next_string(drllm_gguf_find(&gguf, "new.strings"), &position, &string));
        assert_int_equal(string.size, strings[i].size);
    }
    assert_null(drllm_gguf_find(&gguf, "t.i8"));
    assert_null(drllm_gguf_find(&gguf, "new.gone"));
    /* Untouched entries, byte for byte. */
    const struct drllm_gguf_entry *before = drllm_gguf_find(&source, "t.u64s"),
                                  *after = drllm_gguf_find(&gguf, "t.u64s");
    assert_true(after->count == before->count && after->size == before->size && after->item_type == before->item_type);
    assert_memory_equal(after->data, before->data, before->size);

    assert_int_equal(gguf.n_tensors, N_WRITTEN);
    for (size_t i = 0; i < N_WRITTEN; i++) {
        const struct drllm_gguf_file_tensor *wanted = &written_tensors[i];
        const struct drllm_gguf_tensor *tensor = &gguf.tensors[i];
        const size_t n_rows = count_rows(wanted), row_bytes = count_row_bytes(wanted);
        assert_string(tensor->name, wanted->name.data);
        assert_int_equal(tensor->type, wanted->type);
        assert_int_equal(tensor->n_dims, wanted->n_dims);
        assert_int_equal(tensor->size, n_rows * row_bytes);
        for (size_t row = 0; row < n_rows; row++) {
            for (size_t k = 0; k < row_bytes; k++) {
                if (((const uint8_t *)tensor->data)[row * row_bytes + k] != pattern(i, row, k)) {
                    fail_msg("tensor %zu, row %zu, byte %zu", i, row, k);
                }
            }
        }
    }
    drllm_gguf_close(&gguf);
    drllm_file_unmap(&mapped);
    drllm_gguf_changes_release(&changes);
    drllm_gguf_close(&source);
    free(sample);
}

/* Over the very file that the source is mapped from; its mode stays. And without a source. */
static void test_write_over_source(void **state) {
    const struct place *place = *state;
    size_t size = 0;
    uint8_t *sample = make_sample(3, &size);
    put_file(place->path, sample, size);
    assert_int_equal(chmod(place->path, 0640), 0);
    struct drllm_file mapped;
    struct drllm_gguf source;
    struct drllm_error error = {0, ""};
    assert_int_equal(drllm_file_map_path(place->path, &mapped), 0);
    open_sound(&source, mapped.data, mapped.size);
    const struct drllm_gguf_file file = {&source, NULL, NULL, 0, NULL, NULL};
    assert_int_equal(drllm_gguf_file_write(place->path, &file, NULL, &error), DRLLM_OK);
    check_values(&source); /* still there, and whole */
    drllm_gguf_close(&source);
    drllm_file_unmap(&mapped);
    struct stat status;
    assert_int_equal(stat(place->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0640);
    assert_int_equal(drllm_file_map_path(place->path, &mapped), 0);
    open_sound(&source, mapped.data, mapped.size);
    check_values(&source);
    drllm_gguf_close(&source);
    drllm_file_unmap(&mapped);

    const struct drllm_gguf_file nothing = {NULL, NULL, NULL, 0, NULL, NULL};
    assert_int_equal(drllm_gguf_file_write(place->path, &nothing, NULL, &error), DRLLM_OK);
    assert_int_equal(drllm_file_map_path(place->path, &mapped), 0);
    open_sound(&source, mapped.data, mapped.size);
    assert_int_equal(source.n_entries, 0);
    drllm_gguf_close(&source);
    drllm_file_unmap(&mapped);
    assert_int_equal(count_files(place), 1);
    free(sample);
}

/* Whatever goes wrong, the file that was there stays, and only it. */
static void assert_kept(const struct place *place, const struct drllm_gguf_file *file, int status,
                        const char *mention) {
    struct drllm_error error = {0, ""};
    uint64_t size = 77;
    put_file(place->path, "precious", 8);
    const int got = drllm_gguf_file_write(place->path, file, &size, &error);
    if (got != status || strstr(error.detail, mention) == NULL) {
        fail_msg("status %d, not %d: \"%s\" does not mention \"%s\"", got, status, error.detail, mention);
    }
    assert_int_equal(error.status, status);
    assert_int_equal(size, 77);
    assert_file(place->path, "precious", 8);
    assert_int_equal(count_files(place), 1);
}

static void test_write_cancelled(void **state) {
    const struct place *place = *state;
    struct drllm_gguf_file file = {NULL, NULL, written_tensors, N_WRITTEN, produce, NULL};
    for (size_t fail_at = 0; fail_at < N_WRITTEN + 1; fail_at++) {
        struct production production = {&file, 0, 0, fail_at, 0};
        file.user = &production;
        assert_kept(place, &file, DRLLM_ERR_CANCELLED, "told to fail");
    }
}

/* A limit on file sizes stands for a full disk. */
static void test_write_full(void **state) {
    const struct place *place = *state;
    struct drllm_gguf_file file = {NULL, NULL, written_tensors, N_WRITTEN, produce, NULL};
    struct production production = {&file, 0, 0, SIZE_MAX, 0};
    struct rlimit limit;
    file.user = &production;
    (void)fflush(NULL);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    const struct rlimit small = {65536, limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    struct drllm_error error = {0, ""};
    put_file(place->path, "precious", 8);
    const int status = drllm_gguf_file_write(place->path, &file, NULL, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(status, DRLLM_ERR_IO);
    assert_non_null(strstr(error.detail, "bytes are needed"));
    assert_non_null(strstr(error.detail, place->path));
    assert_file(place->path, "precious", 8);
    assert_int_equal(count_files(place), 1);
    struct sigaction action;
    assert_int_equal(sigaction(SIGXFSZ, NULL, &action), 0);
    assert_true(action.sa_handler == SIG_DFL);
}

static void test_write_refused(void **state) {
    const struct place *place = *state;
    static const struct drllm_gguf_file_tensor bad[] = {
        {{"q", 1}, 1, {33}, DRLLM_FORMAT_Q4_0},
        {{"q", 1}, 1, {32}, DRLLM_FORMAT_Q8C},
        {{"q", 1}, 1, {32}, 16},
        {{"q", 1}, 0, {32}, DRLLM_FORMAT_F32},
        {{"q", 1}, 5, {32, 1, 1, 1}, DRLLM_FORMAT_F32},
        {{"q", 1}, 1, {0}, DRLLM_FORMAT_F32},
        {{"q", 1}, 2, {32, 0}, DRLLM_FORMAT_F32},
        {{"q", 1}, 1, {SIZE_MAX / 8}, DRLLM_FORMAT_F32},
        {{"q", 1}, 2, {SIZE_MAX / 32, 3}, DRLLM_FORMAT_F32},
        {{"q", 1}, 3, {32, SIZE_MAX / 64, SIZE_MAX / 64}, DRLLM_FORMAT_F32},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct drllm_gguf_file file = {NULL, NULL, &bad[i], 1, produce, NULL};
        assert_kept(place, &file, DRLLM_ERR_ARGUMENT, "'q'");
    }
    /* What our own reader would refuse. */
    static const struct drllm_gguf_file_tensor twice[] = {
        {{"q", 1}, 1, {32}, DRLLM_FORMAT_F32},
        {{"q", 1}, 1, {32}, DRLLM_FORMAT_F32},
    };
    struct drllm_gguf_file file = {NULL, NULL, twice, 2, produce, NULL};
    struct production production = {&file, 0, 0, SIZE_MAX, 0};
    file.user = &production;
    assert_kept(place, &file, DRLLM_ERR_FORMAT, "'q' is there twice");
    struct drllm_gguf_changes changes = {NULL, 0, false};
    drllm_gguf_set_u32(&changes, "general.alignment", 7);
    const struct drllm_gguf_file odd = {NULL, &changes, NULL, 0, NULL, NULL};
    assert_kept(place, &odd, DRLLM_ERR_ARGUMENT, "general.alignment");
    drllm_gguf_set_bool(&changes, "general.alignment", true);
    assert_kept(place, &odd, DRLLM_ERR_FORMAT, "general.alignment");
    drllm_gguf_changes_release(&changes);
    changes.failed = true;
    assert_kept(place, &odd, DRLLM_ERR_MEMORY, "memory");
}

static void test_write_places(void **state) {
    const struct place *place = *state;
    const struct drllm_gguf_file file = {NULL, NULL, NULL, 0, NULL, NULL};
    struct drllm_error error = {0, ""};
    char path[400];
    assert_int_equal(drllm_gguf_file_write(place->folder, &file, NULL, &error), DRLLM_ERR_IO);
    assert_non_null(strstr(error.detail, "not a plain file"));
    assert_int_equal(drllm_gguf_file_write("/dev/null", &file, NULL, &error), DRLLM_ERR_IO);
    (void)snprintf(path, sizeof path, "%s/missing/file.gguf", place->folder);
    assert_int_equal(drllm_gguf_file_write(path, &file, NULL, &error), DRLLM_ERR_IO);
    assert_non_null(strstr(error.detail, "missing"));
    assert_int_equal(count_files(place), 0);

    /* Through a link: the link stays one. */
    put_file(place->path, "old", 3);
    (void)snprintf(path, sizeof path, "%s/link.gguf", place->folder);
    assert_int_equal(symlink("file.gguf", path), 0);
    assert_int_equal(drllm_gguf_file_write(path, &file, NULL, &error), DRLLM_OK);
    struct stat status;
    assert_int_equal(lstat(path, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_int_equal(stat(place->path, &status), 0);
    assert_int_equal(status.st_size, 32); /* the header, padded */
    assert_int_equal(count_files(place), 2);
}

int drllm_test_gguf(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),
        cmocka_unit_test(test_vocabulary_only),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_f64_range),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_other_kinds),
        cmocka_unit_test(test_bad_alignment),
        cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_hostile_names),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_missing_bytes),
        cmocka_unit_test(test_flips),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_type_names),
        cmocka_unit_test(test_format_text),
        cmocka_unit_test(test_fail),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_memory),
        cmocka_unit_test_setup_teardown(test_write, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_write_over_source, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_write_cancelled, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_write_full, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_write_refused, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_write_places, make_place, remove_place),
    };
    return drllm_run_group("gguf", tests, NULL, NULL);
}
