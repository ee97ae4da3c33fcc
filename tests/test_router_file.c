/* Router files: what is read from sound ones, what is refused and how it is named, the model that a file is for, memory
 * that runs out at each allocation in turn. */
#include "tests/tests.h"

#include "runtime/internal.h"
#include "runtime/router_file.h"
#include "tests/router_builder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const float table_bias[] = {-1.5f, 0.0f, 2.25f}, table_saved[] = {-0.5f, 0.25f, 0.25f};

static struct tiny_options small_model(void) {
    struct tiny_options options = tiny_default_options();
    options.n_layers = 2;
    options.d_model = options.d_ff = 32;
    options.n_heads = 2;
    options.n_kv_heads = 1;
    options.n_vocab = TINY_FIRST_PIECE + 5;
    return options;
}

static struct router_options small_routers(void) {
    const struct tiny_options model = small_model();
    return router_default_options(&model);
}

static struct router_options with_metadata(struct router_options options) {
    options.name = "tiny routers";
    options.model_name = "tiny";
    options.model_quantization = "q4_1";
    options.fingerprint = "0123456789abcdef";
    options.training = "{\"questions\": 3}";
    options.bias = table_bias;
    options.saved = table_saved;
    options.n_bias = options.n_saved = 3;
    return options;
}

/* ---- Sound files ---- */

static void check_text(struct drllm_string string, const char *expected) {
    assert_true(drllm_string_equals(string, expected != NULL ? expected : ""));
}

static void check_matrix(const struct drllm_router_file *file, const struct router_builder *builder, size_t layer,
                         enum drllm_router_matrix which) {
    const char *fc = which == DRLLM_ROUTER_FC1 ? "fc1" : "fc2";
    char name[48];
    (void)snprintf(name, sizeof name, "blk.%zu.router.%s.weight", layer, fc);
    const struct tiny_tensor *weight = router_builder_find(builder, name);
    (void)snprintf(name, sizeof name, "blk.%zu.router.%s.bias", layer, fc);
    const struct tiny_tensor *bias = router_builder_find(builder, name);
    const struct drllm_router_tensor *tensor = drllm_router_file_tensor(file, layer, which);
    assert_int_equal(tensor->weight->dims[0], weight->dims[0]);
    assert_int_equal(tensor->weight->dims[1], weight->dims[1]);
    assert_int_equal(tensor->weight->type, builder->options.int8 ? DRLLM_FORMAT_I8 : DRLLM_FORMAT_F32);
    assert_int_equal(tensor->scales != NULL, builder->options.int8);
    assert_memory_equal(tensor->bias, bias->values, bias->size);
    float *row = calloc(weight->dims[0], sizeof *row);
    assert_non_null(row);
    for (size_t i = 0; i < weight->dims[1]; i++) {
        drllm_router_file_row(tensor, i, row);
        assert_memory_equal(row, weight->values + i * weight->dims[0], weight->dims[0] * sizeof *row);
    }
    free(row);
}

static void check_sound(const struct router_options *options) {
    struct router_builder builder;
    router_builder_make(&builder, options);
    size_t size;
    uint8_t *data = router_builder_write(&builder, NULL, 0, &size);
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    struct drllm_router_file file;
    struct drllm_error error = {0};
    if (drllm_router_file_open(&file, data, size, &allocator, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    assert_true(file.n_layers == options->n_layers && file.d_model == options->d_model);
    assert_true(file.n_windows == options->n_windows && file.n_hidden == options->n_hidden);
    assert_true(file.int8 == options->int8);
    check_text(file.name, options->name);
    check_text(file.model_name, options->model_name);
    check_text(file.model_quantization, options->model_quantization);
    check_text(file.training, options->training);
    assert_int_equal(file.has_fingerprint, options->fingerprint != NULL);
    assert_true(file.fingerprint == (options->fingerprint != NULL ? 0x0123456789abcdefu : 0));
    assert_int_equal(file.n_calibration, options->n_bias);
    for (size_t i = 0; i < options->n_bias; i++) {
        float bias = NAN, saved = NAN;
        drllm_router_file_calibration(&file, i, &bias, &saved);
        assert_true(bias == options->bias[i] && saved == options->saved[i]);
    }
    for (size_t layer = 0; layer < options->n_layers; layer++) {
        check_matrix(&file, &builder, layer, DRLLM_ROUTER_FC1);
        check_matrix(&file, &builder, layer, DRLLM_ROUTER_FC2);
    }
    drllm_router_file_close(&file);
    assert_true(counted.n_live == 0 && !counted.wrong);
    router_builder_free(&builder);
    free(data);
}

static void test_sound_files(void **state) {
    (void)state;
    for (int int8 = 0; int8 < 2; int8++) {
        struct router_options options = small_routers();
        options.int8 = int8 != 0;
        check_sound(&options);
        options = with_metadata(options);
        check_sound(&options);
        options.n_bias = options.n_saved = 1; /* a table of one row */
        check_sound(&options);
        options.n_windows = 64;
        options.n_hidden = 1;
        options.n_layers = 1;
        check_sound(&options);
        options.n_windows = 1;
        options.d_model = 5; /* odd sizes */
        options.n_hidden = 7;
        options.n_layers = 3;
        check_sound(&options);
    }
}

/* A missing version is version 1, and what the file does not ask for is not asked of it. */
static void test_what_may_be_missing(void **state) {
    (void)state;
    static const struct tiny_edit edits[] = {{.key = "drllm.router.version", .kind = TINY_OMIT},
                                             {.key = "general.type", .kind = TINY_OMIT},
                                             {.key = "some.other.key", .kind = TINY_F32, .f32 = 3.0f}};
    struct router_builder builder;
    const struct router_options options = small_routers();
    router_builder_make(&builder, &options);
    size_t size;
    uint8_t *data = router_builder_write(&builder, edits, 3, &size);
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    struct drllm_router_file file;
    assert_int_equal(drllm_router_file_open(&file, data, size, &allocator, NULL), DRLLM_OK);
    drllm_router_file_close(&file);
    assert_true(counted.n_live == 0 && !counted.wrong);
    router_builder_free(&builder);
    free(data);
}

/* ---- Refusals ---- */

static void expect_refusal(const char *what, const uint8_t *data, size_t size, int status, const char *word) {
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    struct drllm_router_file file;
    struct drllm_error error = {0};
    const int got = drllm_router_file_open(&file, data, size, &allocator, &error);
    if (got == DRLLM_OK) {
        drllm_router_file_close(&file);
    }
    if (got != status || error.status != status || strstr(error.detail, word) == NULL) {
        fail_msg("%s: status %d (%s), wanted %d with '%s'", what, got, error.detail, status, word);
    }
    if (counted.n_live != 0 || counted.wrong) {
        fail_msg("%s: %zu allocations left, wrong sizes: %d", what, counted.n_live, counted.wrong);
    }
}

static void test_refused_metadata(void **state) {
    (void)state;
    static const struct {
        struct tiny_edit edit;
        int status;
        const char *word;
    } rows[] = {
        {{.key = "general.architecture", .kind = TINY_STRING, .string = "llama"}, DRLLM_ERR_FORMAT, "llama"},
        {{.key = "general.architecture", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "no router file"},
        {{.key = "general.architecture", .kind = TINY_U32, .u32 = 1}, DRLLM_ERR_FORMAT, "no router file"},
        {{.key = "drllm.router.version", .kind = TINY_U32, .u32 = 2}, DRLLM_ERR_UNSUPPORTED, "router.version"},
        {{.key = "drllm.router.version", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_UNSUPPORTED, "router.version"},
        {{.key = "drllm.router.blocks", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_FORMAT, "drllm.router.blocks"},
        {{.key = "drllm.router.blocks", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "drllm.router.blocks"},
        {{.key = "drllm.router.blocks", .kind = TINY_STRING, .string = "2"}, DRLLM_ERR_FORMAT, "drllm.router.blocks"},
        {{.key = "drllm.router.blocks", .kind = TINY_F32, .f32 = 2.0f}, DRLLM_ERR_FORMAT, "drllm.router.blocks"},
        {{.key = "drllm.router.blocks", .kind = TINY_U32, .u32 = 3}, DRLLM_ERR_FORMAT, "blk.2.router.fc1.weight"},
        {{.key = "drllm.router.blocks", .kind = TINY_U32, .u32 = UINT32_MAX}, DRLLM_ERR_FORMAT, "drllm.router.blocks"},
        {{.key = "drllm.router.windows", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_FORMAT, "drllm.router.windows"},
        {{.key = "drllm.router.windows", .kind = TINY_U32, .u32 = 65}, DRLLM_ERR_FORMAT, "drllm.router.windows"},
        {{.key = "drllm.router.windows", .kind = TINY_U32, .u32 = UINT32_MAX}, DRLLM_ERR_FORMAT, "router.windows"},
        {{.key = "drllm.router.windows", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "drllm.router.windows"},
        {{.key = "drllm.router.hidden", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_FORMAT, "drllm.router.hidden"},
        {{.key = "drllm.router.hidden", .kind = TINY_U32, .u32 = 4097}, DRLLM_ERR_FORMAT, "drllm.router.hidden"},
        {{.key = "drllm.router.hidden", .kind = TINY_U32, .u32 = UINT32_MAX}, DRLLM_ERR_FORMAT, "router.hidden"},
        {{.key = "drllm.router.hidden", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "drllm.router.hidden"},
        {{.key = "drllm.router.hidden", .kind = TINY_U32, .u32 = 7}, DRLLM_ERR_FORMAT, "blk.0.router.fc1.weight"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_STRING, .string = ""}, DRLLM_ERR_FORMAT, "fingerprint"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_STRING, .string = "0123456789abcde"},
         DRLLM_ERR_FORMAT,
         "fingerprint"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_STRING, .string = "0123456789abcdef0"},
         DRLLM_ERR_FORMAT,
         "fingerprint"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_STRING, .string = "0123456789abcdeg"},
         DRLLM_ERR_FORMAT,
         "fingerprint"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_STRING, .string = " 123456789abcdef"},
         DRLLM_ERR_FORMAT,
         "fingerprint"},
        {{.key = "drllm.router.model.fingerprint", .kind = TINY_U32, .u32 = 5}, DRLLM_ERR_FORMAT, "fingerprint"},
        {{.key = "drllm.router.calibration.bias", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "calibration"},
        {{.key = "drllm.router.calibration.saved", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "calibration"},
        {{.key = "drllm.router.calibration.saved", .kind = TINY_F32, .f32 = 1.0f}, DRLLM_ERR_FORMAT, "calibration"},
        {{.key = "drllm.router.calibration.bias", .kind = TINY_U32_ARRAY, .u32 = 1}, DRLLM_ERR_FORMAT, "calibration"},
    };
    struct router_builder builder;
    const struct router_options options = with_metadata(small_routers());
    router_builder_make(&builder, &options);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t size;
        uint8_t *data = router_builder_write(&builder, &rows[i].edit, 1, &size);
        char what[96];
        (void)snprintf(what, sizeof what, "row %zu, %s", i, rows[i].edit.key);
        expect_refusal(what, data, size, rows[i].status, rows[i].word);
        free(data);
    }
    router_builder_free(&builder);
}

static void test_refused_calibration(void **state) {
    (void)state;
    static const float rising[] = {1.0f, 2.0f, 3.0f}, flat[] = {1.0f, 2.0f, 2.0f}, falling[] = {1.0f, 2.0f, 1.5f},
                       with_nan[] = {1.0f, NAN, 3.0f}, nan_first[] = {NAN, 2.0f, 3.0f},
                       infinite[] = {1.0f, 2.0f, INFINITY}, saved[] = {0.0f, 0.5f, 0.5f},
                       all_but[] = {-2.5f, 0.0f, 1.0f}, more[] = {0.0f, 1.0f, 2.5f}, less[] = {0.0f, 0.5f, 0.25f};
    static const struct {
        const char *what;
        const float *bias, *saved;
        size_t n_bias, n_saved;
    } rows[] = {
        {"fewer saved", rising, saved, 3, 2},
        {"fewer biases", rising, saved, 2, 3},
        {"no rows", rising, saved, 0, 0},
        {"no saved", rising, saved, 1, 0},
        {"equal biases", flat, saved, 3, 3},
        {"falling biases", falling, saved, 3, 3},
        {"falling saved", rising, less, 3, 3},
        {"NaN bias", with_nan, saved, 3, 3},
        {"NaN saved", rising, with_nan, 3, 3},
        {"NaN bias in front", nan_first, saved, 3, 3},
        {"infinite bias", infinite, saved, 3, 3},
        {"infinite saved", rising, infinite, 3, 3},
        {"NaN saved alone", rising, nan_first, 1, 1},
        {"more saved than there are", rising, more, 3, 3},
        {"more repeated than there are", rising, all_but, 3, 3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct router_options options = with_metadata(small_routers());
        options.bias = rows[i].bias;
        options.saved = rows[i].saved;
        options.n_bias = rows[i].n_bias;
        options.n_saved = rows[i].n_saved;
        size_t size;
        uint8_t *data = router_builder_file(&options, &size);
        expect_refusal(rows[i].what, data, size, DRLLM_ERR_FORMAT, "calibration");
        free(data);
    }
}

static void put_float(const struct router_builder *builder, const char *name, size_t at, float value) {
    ((float *)router_builder_find(builder, name)->data)[at] = value;
}

static void no_fc1(struct router_builder *b) {
    router_builder_remove(b, "blk.0.router.fc1.weight");
}
static void no_fc2(struct router_builder *b) {
    router_builder_remove(b, "blk.1.router.fc2.weight");
}
static void no_bias(struct router_builder *b) {
    router_builder_remove(b, "blk.1.router.fc1.bias");
}
static void other_width(struct router_builder *b) {
    router_builder_find(b, "blk.1.router.fc1.weight")->dims[0] = 31;
}
static void turned(struct router_builder *b) {
    struct tiny_tensor *tensor = router_builder_find(b, "blk.0.router.fc2.weight");
    tensor->dims[0] = 3;
    tensor->dims[1] = 6;
}
static void two_classes(struct router_builder *b) {
    router_builder_find(b, "blk.1.router.fc2.weight")->dims[1] = 2;
}
static void short_bias(struct router_builder *b) {
    router_builder_find(b, "blk.1.router.fc2.bias")->dims[0] = 2;
}
static void f16_weight(struct router_builder *b) {
    router_builder_find(b, "blk.0.router.fc1.weight")->type = DRLLM_FORMAT_F16;
}
static void f16_bias(struct router_builder *b) {
    router_builder_find(b, "blk.0.router.fc1.bias")->type = DRLLM_FORMAT_F16;
}
static void nan_weight(struct router_builder *b) {
    put_float(b, "blk.1.router.fc1.weight", 77, NAN);
}
static void infinite_weight(struct router_builder *b) {
    put_float(b, "blk.0.router.fc2.weight", 17, -INFINITY);
}
static void nan_bias(struct router_builder *b) {
    put_float(b, "blk.1.router.fc1.bias", 5, NAN);
}
static void infinite_bias(struct router_builder *b) {
    put_float(b, "blk.0.router.fc2.bias", 2, INFINITY);
}
static void no_scales(struct router_builder *b) {
    router_builder_remove(b, "blk.1.router.fc1.weight_scale");
}
static void no_scales_of_fc2(struct router_builder *b) {
    router_builder_remove(b, "blk.0.router.fc2.weight_scale");
}
static void short_scales(struct router_builder *b) {
    router_builder_find(b, "blk.1.router.fc1.weight_scale")->dims[0] = 5;
}
static void i8_scales(struct router_builder *b) {
    router_builder_find(b, "blk.1.router.fc1.weight_scale")->type = DRLLM_FORMAT_I8;
}
static void nan_scale(struct router_builder *b) {
    put_float(b, "blk.1.router.fc2.weight_scale", 2, NAN);
}
static void infinite_scale(struct router_builder *b) {
    put_float(b, "blk.0.router.fc1.weight_scale", 0, INFINITY);
}
static void negative_scale(struct router_builder *b) {
    put_float(b, "blk.0.router.fc1.weight_scale", 3, -0.01f);
}
static void minus_128(struct router_builder *b) {
    ((uint8_t *)router_builder_find(b, "blk.1.router.fc2.weight")->data)[17] = 0x80;
}

static void test_refused_tensors(void **state) {
    (void)state;
    static const struct {
        const char *what;
        bool int8;
        void (*damage)(struct router_builder *);
        int status;
        const char *word;
    } rows[] = {
        {"no fc1", false, no_fc1, DRLLM_ERR_FORMAT, "blk.0.router.fc1.weight"},
        {"no fc2", false, no_fc2, DRLLM_ERR_FORMAT, "blk.1.router.fc2.weight"},
        {"no bias", false, no_bias, DRLLM_ERR_FORMAT, "blk.1.router.fc1.bias"},
        {"another width than block 0", false, other_width, DRLLM_ERR_FORMAT, "blk.1.router.fc1.weight"},
        {"turned", false, turned, DRLLM_ERR_FORMAT, "blk.0.router.fc2.weight"},
        {"two classes", false, two_classes, DRLLM_ERR_FORMAT, "blk.1.router.fc2.weight"},
        {"short bias", false, short_bias, DRLLM_ERR_FORMAT, "blk.1.router.fc2.bias"},
        {"F16 weights", false, f16_weight, DRLLM_ERR_UNSUPPORTED, "blk.0.router.fc1.weight"},
        {"F16 bias", false, f16_bias, DRLLM_ERR_UNSUPPORTED, "blk.0.router.fc1.bias"},
        {"NaN weight", false, nan_weight, DRLLM_ERR_FORMAT, "blk.1.router.fc1.weight"},
        {"infinite weight", false, infinite_weight, DRLLM_ERR_FORMAT, "blk.0.router.fc2.weight"},
        {"NaN bias", true, nan_bias, DRLLM_ERR_FORMAT, "blk.1.router.fc1.bias"},
        {"infinite bias", false, infinite_bias, DRLLM_ERR_FORMAT, "blk.0.router.fc2.bias"},
        {"no scales", true, no_scales, DRLLM_ERR_FORMAT, "blk.1.router.fc1.weight_scale"},
        {"no scales of fc2", true, no_scales_of_fc2, DRLLM_ERR_FORMAT, "blk.0.router.fc2.weight_scale"},
        {"short scales", true, short_scales, DRLLM_ERR_FORMAT, "blk.1.router.fc1.weight_scale"},
        {"I8 scales", true, i8_scales, DRLLM_ERR_UNSUPPORTED, "blk.1.router.fc1.weight_scale"},
        {"NaN scale", true, nan_scale, DRLLM_ERR_FORMAT, "blk.1.router.fc2.weight_scale"},
        {"infinite scale", true, infinite_scale, DRLLM_ERR_FORMAT, "blk.0.router.fc1.weight_scale"},
        {"negative scale", true, negative_scale, DRLLM_ERR_FORMAT, "blk.0.router.fc1.weight_scale"},
        {"-128", true, minus_128, DRLLM_ERR_FORMAT, "blk.1.router.fc2.weight"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct router_options options = small_routers();
        options.int8 = rows[i].int8;
        struct router_builder builder;
        router_builder_make(&builder, &options);
        rows[i].damage(&builder);
        size_t size;
        uint8_t *data = router_builder_write(&builder, NULL, 0, &size);
        expect_refusal(rows[i].what, data, size, rows[i].status, rows[i].word);
        router_builder_free(&builder);
        free(data);
    }
}

static void test_models_are_no_router_files(void **state) {
    (void)state;
    const struct tiny_options options = small_model();
    size_t size;
    uint8_t *data = tiny_model_file(&options, &size);
    expect_refusal("a model", data, size, DRLLM_ERR_FORMAT, "no router file");
    free(data);
    static const char text[] = "{\"routers\": []}     ";
    uint32_t words[5];
    memcpy(words, text, sizeof words);
    expect_refusal("a text", (const uint8_t *)words, sizeof words, DRLLM_ERR_FORMAT, "");
}

static void test_truncated(void **state) {
    (void)state;
    struct router_options options = with_metadata(small_routers());
    options.d_model = 4;
    options.n_hidden = 2;
    options.int8 = true;
    size_t size;
    uint8_t *data = router_builder_file(&options, &size);
    for (size_t length = 0; length < size; length++) {
        /* A block of just this size, so that reading behind it shows. */
        uint8_t *cut = malloc(length > 0 ? length : 1);
        assert_non_null(cut);
        memcpy(cut, data, length);
        char what[48];
        (void)snprintf(what, sizeof what, "cut to %zu bytes", length);
        expect_refusal(what, cut, length, DRLLM_ERR_FORMAT, "");
        free(cut);
    }
    expect_refusal("cut by a byte", data, size - 1, DRLLM_ERR_FORMAT, "blk.1.router.fc2.bias");
    free(data);
}

/* ---- The model that a file is for ---- */

struct warnings {
    size_t n;
    char text[512]; /* the last one */
};

static void keep_line(void *user, enum drllm_log_level level, const char *line) {
    struct warnings *warnings = user;
    if (level != DRLLM_LOG_WARNING) {
        return;
    }
    warnings->n++;
    (void)snprintf(warnings->text, sizeof warnings->text, "%s", line);
}

struct loaded {
    uint8_t *file;
    struct drllm_model *model;
    struct warnings warnings;
    struct tiny_counted counted;
};

/* loaded stays where it is: the model's log and allocator point into it. */
static void load(struct loaded *loaded, const struct tiny_options *options, enum drllm_compute compute) {
    *loaded = (struct loaded){.counted = {.fail_at = SIZE_MAX}};
    size_t size;
    loaded->file = tiny_model_file(options, &size);
    struct drllm_model_params params = drllm_model_default_params();
    params.compute = compute;
    params.load_threads = 1;
    params.log = (struct drllm_log){keep_line, &loaded->warnings};
    params.allocator = tiny_counted_allocator(&loaded->counted);
    struct drllm_error error = {0};
    if (drllm_model_open_memory(loaded->file, size, &params, &loaded->model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    loaded->warnings = (struct warnings){.n = 0};
}

static void unload(struct loaded *loaded) {
    assert_int_equal(drllm_model_close(loaded->model), DRLLM_OK);
    assert_true(loaded->counted.n_live == 0 && !loaded->counted.wrong);
    free(loaded->file);
}

static void fingerprint_text(const struct drllm_model *model, char text[17]) {
    (void)snprintf(text, 17, "%016llx", (unsigned long long)drllm_model_fingerprint(model));
}

/* The outcome of opening routers, closed again. */
static int open_status(struct loaded *loaded, const struct router_options *options, struct drllm_error *error) {
    size_t size;
    uint8_t *data = router_builder_file(options, &size);
    struct drllm_routers *const untouched = (struct drllm_routers *)(void *)loaded;
    struct drllm_routers *routers = untouched;
    const size_t n_live = loaded->counted.n_live;
    loaded->warnings = (struct warnings){.n = 0};
    *error = (struct drllm_error){0};
    const int status = drllm_routers_open_memory(loaded->model, data, size, &routers, error);
    if (status == DRLLM_OK) {
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    } else {
        assert_ptr_equal(routers, untouched);
        assert_int_equal(error->status, status);
    }
    assert_int_equal(loaded->counted.n_live, n_live);
    free(data);
    return status;
}

static void test_the_right_model(void **state) {
    (void)state;
    struct tiny_options model_options = small_model();
    model_options.blocks = model_options.down = DRLLM_FORMAT_Q4_1;
    struct loaded loaded;
    load(&loaded, &model_options, DRLLM_COMPUTE_EXACT);
    char fingerprint[17];
    fingerprint_text(loaded.model, fingerprint);
    struct router_options options = with_metadata(small_routers());
    options.fingerprint = fingerprint;
    struct drllm_error error;
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_OK);
    if (loaded.warnings.n != 0) {
        fail_msg("the log says '%s'", loaded.warnings.text);
    }
    options.model_quantization = "q8_0";
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_OK);
    assert_int_equal(loaded.warnings.n, 1);
    assert_non_null(strstr(loaded.warnings.text, "q8_0"));
    assert_non_null(strstr(loaded.warnings.text, "q4_1"));
    options.model_quantization = "q4_1";
    options.fingerprint = NULL;
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_OK);
    assert_int_equal(loaded.warnings.n, 1);
    options = small_routers(); /* says nothing */
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_OK);
    assert_int_equal(loaded.warnings.n, 1);
    unload(&loaded);
}

static void test_another_model(void **state) {
    (void)state;
    const struct tiny_options model_options = small_model();
    struct loaded loaded;
    load(&loaded, &model_options, DRLLM_COMPUTE_EXACT);
    char fingerprint[17];
    fingerprint_text(loaded.model, fingerprint);
    fingerprint[3] = fingerprint[3] == '0' ? '1' : '0';
    struct drllm_error error;
    struct router_options options = small_routers();
    options.fingerprint = fingerprint;
    options.model_name = "somebody else's";
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "somebody else's"));
    options = small_routers();
    options.n_layers = 7;
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_ERR_ARGUMENT);
    assert_true(strstr(error.detail, "7") != NULL && strstr(error.detail, "2") != NULL);
    options = small_routers();
    options.d_model = 48;
    assert_int_equal(open_status(&loaded, &options, &error), DRLLM_ERR_ARGUMENT);
    assert_true(strstr(error.detail, "48") != NULL && strstr(error.detail, "32") != NULL);
    assert_int_equal(loaded.warnings.n, 0);
    unload(&loaded);
}

static uint64_t fingerprint_of(const struct tiny_model *tiny, enum drllm_compute compute) {
    size_t size;
    uint8_t *file = tiny_model_write(tiny, NULL, 0, &size);
    struct drllm_model_params params = drllm_model_default_params();
    params.load_threads = 1;
    params.compute = compute;
    struct drllm_model *model = NULL;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, NULL), DRLLM_OK);
    const uint64_t fingerprint = drllm_model_fingerprint(model);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(file);
    return fingerprint;
}

/* Of a model with these options, and the norms of another where that one has them. */
static uint64_t fingerprint_of_options(const struct tiny_options *options, const struct tiny_model *norms) {
    struct tiny_model tiny;
    tiny_model_make(&tiny, options);
    for (size_t i = 0; i < tiny.n_tensors; i++) {
        struct tiny_tensor *tensor = &tiny.tensors[i];
        const float *values = strstr(tensor->name, "norm") != NULL ? tiny_model_values(norms, tensor->name) : NULL;
        if (values != NULL) {
            memcpy(tensor->data, values, tensor->size);
        }
    }
    const uint64_t fingerprint = fingerprint_of(&tiny, DRLLM_COMPUTE_EXACT);
    tiny_model_free(&tiny);
    return fingerprint;
}

/* One weight of one norm, in its last bit. */
static uint64_t fingerprint_with_norm(const struct tiny_options *options, const char *name, size_t at) {
    struct tiny_model tiny;
    tiny_model_make(&tiny, options);
    ((uint8_t *)tiny_model_find(&tiny, name)->data)[at * sizeof(float)] ^= 1;
    const uint64_t fingerprint = fingerprint_of(&tiny, DRLLM_COMPUTE_EXACT);
    tiny_model_free(&tiny);
    return fingerprint;
}

static void test_fingerprint(void **state) {
    (void)state;
    static const enum drllm_format formats[] = {DRLLM_FORMAT_F32,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_Q4_0,
                                                DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C};
    static const char *const pieces[] = {"\xE2\x96\x81"
                                         "a",
                                         "\xE2\x96\x81"
                                         "b",
                                         "\xE2\x96\x81"
                                         "c",
                                         "\xE2\x96\x81"
                                         "d",
                                         "other"};
    const struct tiny_options options = small_model();
    struct tiny_model tiny;
    tiny_model_make(&tiny, &options);
    const uint64_t expected = fingerprint_of(&tiny, DRLLM_COMPUTE_EXACT);
    assert_true(expected != 0);
    assert_true(fingerprint_of(&tiny, DRLLM_COMPUTE_F32) == expected);
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        struct tiny_options other = options;
        other.blocks = other.down = other.embedding = formats[i];
        assert_true(fingerprint_of_options(&other, &tiny) == expected);
    }
    struct tiny_options others[7];
    size_t n = 0;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        others[i] = options;
    }
    others[n++].pieces = pieces; /* one text of the vocabulary */
    others[n++].n_vocab += 1;
    others[n++].n_layers = 1;
    others[n++].d_ff = 64;
    others[n++].n_kv_heads = 2;
    others[n++].n_rot = 8;
    others[n].n_heads = 4;
    others[n++].head_dim = 8;
    for (size_t i = 0; i < n; i++) {
        if (fingerprint_of_options(&others[i], &tiny) == expected) {
            fail_msg("model %zu has the same fingerprint", i);
        }
    }
    tiny_model_free(&tiny);
    assert_true(fingerprint_with_norm(&options, "blk.0.attn_norm.weight", 0) != expected);
    assert_true(fingerprint_with_norm(&options, "blk.1.ffn_norm.weight", 31) != expected);
    assert_true(fingerprint_with_norm(&options, "output_norm.weight", 16) != expected);
}

static void test_fingerprint_of_a_vocabulary(void **state) {
    (void)state;
    const struct tiny_options options = small_model();
    const struct router_options router_options = small_routers();
    size_t size, router_size;
    uint8_t *file = tiny_model_file(&options, &size),
            *routers_file = router_builder_file(&router_options, &router_size);
    struct drllm_model_params params = drllm_model_default_params();
    params.vocab_only = true;
    struct drllm_model *model = NULL;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, NULL), DRLLM_OK);
    assert_true(drllm_model_fingerprint(model) == 0);
    struct drllm_routers *routers = NULL;
    struct drllm_error error = {0};
    assert_int_not_equal(drllm_routers_open_memory(model, routers_file, router_size, &routers, &error), DRLLM_OK);
    assert_true(strlen(error.detail) > 0 && routers == NULL);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(file);
    free(routers_file);
}

/* ---- Information ---- */

static void check_info(struct loaded *loaded, bool int8) {
    char fingerprint[17];
    fingerprint_text(loaded->model, fingerprint);
    struct router_options options = with_metadata(small_routers());
    options.int8 = int8;
    options.fingerprint = fingerprint;
    size_t size;
    uint8_t *data = router_builder_file(&options, &size);
    struct drllm_routers *routers = NULL;
    assert_int_equal(drllm_routers_open_memory(loaded->model, data, size, &routers, NULL), DRLLM_OK);
    memset(data, 0xFF, size); /* not needed any more */
    free(data);
    struct drllm_routers_info info;
    drllm_routers_get_info(routers, &info);
    assert_string_equal(info.name, "tiny routers");
    assert_string_equal(info.model_name, "tiny");
    assert_string_equal(info.model_quantization, "q4_1");
    assert_string_equal(info.training, "{\"questions\": 3}");
    assert_true(strlen(info.backend) > 0 && info.weight_bytes > 0);
    assert_true(info.n_windows == 8 && info.n_hidden == 6 && info.names_model);
    assert_true(info.n_calibration == 3 && info.least_saved == -0.5f && info.most_saved == 0.25f);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);

    options = small_routers();
    data = router_builder_file(&options, &size);
    assert_int_equal(drllm_routers_open_memory(loaded->model, data, size, &routers, NULL), DRLLM_OK);
    free(data);
    drllm_routers_get_info(routers, &info);
    assert_string_equal(info.name, "");
    assert_string_equal(info.model_name, "");
    assert_string_equal(info.model_quantization, "");
    assert_string_equal(info.training, "");
    assert_true(!info.names_model && info.n_calibration == 0);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
}

static void test_info(void **state) {
    (void)state;
    const struct tiny_options options = small_model();
    for (int exact = 0; exact < 2; exact++) {
        struct loaded loaded;
        load(&loaded, &options, exact ? DRLLM_COMPUTE_EXACT : DRLLM_COMPUTE_F32);
        check_info(&loaded, false);
        check_info(&loaded, true);
        unload(&loaded);
    }
}

static void test_misuse(void **state) {
    (void)state;
    const struct tiny_options model_options = small_model();
    struct loaded loaded;
    load(&loaded, &model_options, DRLLM_COMPUTE_EXACT);
    const struct router_options options = small_routers();
    size_t size;
    uint8_t *data = router_builder_file(&options, &size);
    struct drllm_routers *routers = NULL;
    struct drllm_error error = {0};
    assert_int_equal(drllm_routers_open_memory(NULL, data, size, &routers, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_routers_open_memory(loaded.model, data, size, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_routers_open_memory(loaded.model, NULL, size, &routers, &error), DRLLM_ERR_ARGUMENT);
    assert_null(routers);
    assert_int_equal(drllm_routers_close(NULL), DRLLM_OK);
    free(data);
    unload(&loaded);
}

/* ---- Damage and want of memory ---- */

static void run_prompt(const struct drllm_model *model, const struct drllm_routers *routers) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = 16;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = routers;
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    static const int32_t tokens[] = {1, 5, 77, 200, 9, 9, 9, 3, 4, 260, 31};
    const int status = drllm_session_prefill(session, tokens, 11);
    if (status != DRLLM_OK && (status != DRLLM_ERR_FORMAT || strlen(drllm_session_last_error(session)) == 0)) {
        fail_msg("status %d, '%s'", status, drllm_session_last_error(session));
    }
    drllm_session_close(session);
}

/* Whatever a byte becomes: refused, or routers that run. */
static void flip_bytes(struct loaded *loaded, bool int8, size_t n_flips, uint64_t seed) {
    struct router_options options = with_metadata(small_routers());
    char fingerprint[17];
    fingerprint_text(loaded->model, fingerprint);
    options.fingerprint = fingerprint;
    options.int8 = int8;
    size_t size;
    uint8_t *data = router_builder_file(&options, &size);
    struct tiny_random random = {seed};
    size_t n_opened = 0;
    for (size_t i = 0; i < n_flips; i++) {
        const uint64_t bits = tiny_random_u64(&random);
        const size_t at = (size_t)((bits >> 8) % size);
        const uint8_t was = data[at];
        data[at] ^= (uint8_t)(bits & 0xFF);
        struct drllm_routers *routers = NULL;
        struct drllm_error error = {0};
        const int status = drllm_routers_open_memory(loaded->model, data, size, &routers, &error);
        if (status == DRLLM_OK) {
            if (n_opened++ % 4 == 0) {
                run_prompt(loaded->model, routers);
            }
            assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
        } else if (strlen(error.detail) == 0 || routers != NULL ||
                   (status != DRLLM_ERR_FORMAT && status != DRLLM_ERR_UNSUPPORTED && status != DRLLM_ERR_ARGUMENT &&
                    status != DRLLM_ERR_MEMORY)) {
            fail_msg("byte %zu: status %d, '%s'", at, status, error.detail);
        }
        data[at] = was;
    }
    assert_true(n_opened > n_flips / 10 && n_opened < n_flips);
    free(data);
}

static void test_flipped_bytes(void **state) {
    (void)state;
    const struct tiny_options options = small_model();
    struct loaded loaded;
    load(&loaded, &options, DRLLM_COMPUTE_EXACT);
    flip_bytes(&loaded, true, 1500, 1);
    flip_bytes(&loaded, false, 1000, 2);
    unload(&loaded);
    load(&loaded, &options, DRLLM_COMPUTE_F32);
    flip_bytes(&loaded, false, 500, 3);
    unload(&loaded);
}

static void run_out_of_memory(enum drllm_compute compute, bool int8) {
    const struct tiny_options model_options = small_model();
    struct loaded loaded;
    load(&loaded, &model_options, compute);
    struct router_options options = with_metadata(small_routers());
    options.fingerprint = NULL;
    options.int8 = int8;
    size_t size;
    uint8_t *data = router_builder_file(&options, &size);
    const size_t n_live = loaded.counted.n_live, live_bytes = loaded.counted.live_bytes;
    size_t n_failures = 0;
    for (int status = DRLLM_ERR_MEMORY; status != DRLLM_OK; n_failures++) {
        struct drllm_routers *routers = NULL;
        struct drllm_error error = {0};
        loaded.counted.n_calls = 0;
        loaded.counted.fail_at = n_failures;
        status = drllm_routers_open_memory(loaded.model, data, size, &routers, &error);
        if (status == DRLLM_OK) {
            /* None failed: there were no more than those that failed before. */
            assert_int_equal(loaded.counted.n_calls, n_failures);
            assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
        } else if (status != DRLLM_ERR_MEMORY || error.status != status || strlen(error.detail) == 0 ||
                   routers != NULL) {
            fail_msg("allocation %zu: status %d, '%s'", n_failures, status, error.detail);
        }
        assert_true(loaded.counted.n_live == n_live && loaded.counted.live_bytes == live_bytes);
    }
    assert_true(n_failures > 10);
    free(data);
    unload(&loaded);
}

static void test_memory_runs_out(void **state) {
    (void)state;
    run_out_of_memory(DRLLM_COMPUTE_EXACT, true);
    run_out_of_memory(DRLLM_COMPUTE_EXACT, false);
    run_out_of_memory(DRLLM_COMPUTE_F32, true);
    run_out_of_memory(DRLLM_COMPUTE_F32, false);
}

int drllm_test_router_file(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_files),
        cmocka_unit_test(test_what_may_be_missing),
        cmocka_unit_test(test_refused_metadata),
        cmocka_unit_test(test_refused_calibration),
        cmocka_unit_test(test_refused_tensors),
        cmocka_unit_test(test_models_are_no_router_files),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_the_right_model),
        cmocka_unit_test(test_another_model),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_fingerprint_of_a_vocabulary),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_memory_runs_out),
    };
    return drllm_run_group("router_file", tests, NULL, NULL);
}
