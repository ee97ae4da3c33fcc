/* Models: the forward pass against a plain one in double precision, every stored format, the ways to open a file,
 * damaged files, and memory that runs out at each allocation in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "platform/cpu.h"
#include "quant/matmul_xnnpack.h"
#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TOKENS = 19, LOG_BYTES = 4096 };

static struct drllm_model *open_file(const uint8_t *file, size_t size, const struct drllm_model_params *params) {
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    if (drllm_model_open_memory(file, size, params, &model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return model;
}

static struct drllm_model_params one_thread(enum drllm_compute compute) {
    struct drllm_model_params params = drllm_model_default_params();
    params.compute = compute;
    params.load_threads = 1;
    return params;
}

static struct drllm_session *open_session(const struct drllm_model *model) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = 64;
    params.n_threads = 1;
    params.n_chunk = 7;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    return session;
}

/* ---- Against the reference ---- */

struct run {
    size_t n_vocab, d_model, n_layers;
    float *logits; /* [N_TOKENS][n_vocab] */
    float *hidden; /* [n_layers + 1][d_model] */
};

static int keep_logits(void *user, size_t position, const float *logits) {
    const struct run *run = user;
    memcpy(run->logits + position * run->n_vocab, logits, run->n_vocab * sizeof *logits);
    return 0;
}

static void keep_hidden(void *user, size_t layer, const float *hidden) {
    const struct run *run = user;
    assert_true(layer <= run->n_layers);
    memcpy(run->hidden + layer * run->d_model, hidden, run->d_model * sizeof *hidden);
}

/* |a - b| / |b| as vectors. */
static double distance(const float *a, const double *b, size_t n) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += b[i] * b[i];
    }
    return sqrt(difference / size); /* NaN fails every comparison with a bound */
}

struct distances {
    double logits; /* of the worst position */
    double all;    /* logits of all positions together, which says more where rounding is coarse */
    size_t n_same; /* positions whose logits differ by float's rounding only */
    double hidden; /* of the worst layer, last position */
};

/* group: as for tiny_model_reference */
static struct distances compare_with_reference(const struct tiny_model *tiny, size_t group,
                                               const struct drllm_model *model) {
    const struct tiny_options *o = &tiny->options;
    int32_t tokens[N_TOKENS];
    tiny_random_tokens(o->seed + 100, tokens, N_TOKENS, o->n_vocab);
    const size_t n_logits = N_TOKENS * o->n_vocab, n_hidden = (o->n_layers + 1) * o->d_model;
    struct run run = {.n_vocab = o->n_vocab,
                      .d_model = o->d_model,
                      .n_layers = o->n_layers,
                      .logits = calloc(n_logits, sizeof *run.logits),
                      .hidden = calloc(n_hidden, sizeof *run.hidden)};
    double *logits = calloc(n_logits, sizeof *logits), *hidden = calloc(n_hidden, sizeof *hidden);
    assert_true(run.logits != NULL && run.hidden != NULL && logits != NULL && hidden != NULL);
    tiny_model_reference(tiny, group, tokens, N_TOKENS, logits, hidden);
    struct drllm_session *session = open_session(model);
    drllm_session_set_layer_hook(session, keep_hidden, &run);
    assert_int_equal(drllm_session_prefill_logits(session, tokens, N_TOKENS, 0, keep_logits, &run), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), run.logits + (N_TOKENS - 1) * o->n_vocab,
                        o->n_vocab * sizeof(float));
    drllm_session_close(session);

    struct distances worst = {.all = distance(run.logits, logits, n_logits)};
    for (size_t i = 0; i < N_TOKENS; i++) {
        const double d = distance(run.logits + i * o->n_vocab, logits + i * o->n_vocab, o->n_vocab);
        worst.logits = d <= worst.logits ? worst.logits : d;
        worst.n_same += d <= 1e-5;
    }
    for (size_t i = 0; i <= o->n_layers; i++) {
        const double d = distance(run.hidden + i * o->d_model, hidden + i * o->d_model, o->d_model);
        worst.hidden = d <= worst.hidden ? worst.hidden : d;
    }
    free(run.logits);
    free(run.hidden);
    free(logits);
    free(hidden);
    return worst;
}

static struct distances open_and_compare(const struct tiny_options *options, const struct drllm_model_params *params) {
    struct tiny_model tiny;
    tiny_model_make(&tiny, options);
    size_t size;
    uint8_t *file = tiny_model_write(&tiny, NULL, 0, &size);
    struct drllm_model *model = open_file(file, size, params);
    const struct distances distances = compare_with_reference(&tiny, 0, model);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    tiny_model_free(&tiny);
    free(file);
    return distances;
}

static struct tiny_options options_of_format(enum drllm_format format) {
    struct tiny_options options = tiny_default_options();
    const bool superblocks = format == DRLLM_FORMAT_Q4_K || format == DRLLM_FORMAT_Q5_K || format == DRLLM_FORMAT_Q6_K;
    if (superblocks) {
        options.n_layers = 2;
        options.d_model = 256;
        options.d_ff = 256;
        options.head_dim = 64;
    }
    options.blocks = format;
    options.down = format;
    options.embedding = format;
    options.head = format;
    options.seed = (uint64_t)format + 7;
    return options;
}

static const enum drllm_format all_formats[] = {
    DRLLM_FORMAT_F32,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q5_0,
    DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q5_K, DRLLM_FORMAT_Q6_K, DRLLM_FORMAT_Q8C};
enum { N_FORMATS = sizeof all_formats / sizeof all_formats[0] };

static void test_f32_is_the_reference(void **state) {
    (void)state;
    struct {
        const char *name;
        struct tiny_options options;
    } variants[24];
    const size_t n_variants = 12;
    for (size_t i = 0; i < n_variants; i++) {
        variants[i].options = tiny_default_options();
        variants[i].options.seed = i + 1;
    }
    variants[0].name = "plain";
    variants[1].name = "untied";
    variants[1].options.untied = true;
    variants[2].name = "biases";
    variants[2].options.biases = true;
    variants[3].name = "rope_freqs";
    variants[3].options.rope_freqs = true;
    variants[4].name = "linear scaling";
    variants[4].options.rope_linear = 2.5f;
    variants[5].name = "half of each head rotated";
    variants[5].options.n_rot = 8;
    variants[6].name = "a key head for each head";
    variants[6].options.n_kv_heads = 4;
    variants[7].name = "one key head";
    variants[7].options.n_kv_heads = 1;
    variants[8].name = "heads wider than the model";
    variants[8].options.head_dim = 24;
    variants[9].name = "large theta";
    variants[9].options.rope_theta = 500000.0f;
    variants[10].name = "odd sizes";
    variants[10].options.d_model = 72;
    variants[10].options.d_ff = 99;
    variants[10].options.n_heads = 3;
    variants[10].options.n_kv_heads = 3;
    variants[10].options.head_dim = 24;
    variants[10].options.n_vocab = TINY_FIRST_PIECE + 12;
    variants[11].name = "all at once";
    variants[11].options.untied = true;
    variants[11].options.biases = true;
    variants[11].options.rope_freqs = true;
    variants[11].options.rope_linear = 4.0f;
    variants[11].options.n_rot = 12;
    for (size_t i = 0; i < n_variants; i++) {
        const struct drllm_model_params params = one_thread(DRLLM_COMPUTE_F32);
        const struct distances d = open_and_compare(&variants[i].options, &params);
        if (!(d.logits <= 1e-4 && d.hidden <= 1e-4)) {
            fail_msg("%s: logits differ by %g, hidden states by %g", variants[i].name, d.logits, d.hidden);
        }
    }
}

static void test_f32_run_of_each_format(void **state) {
    (void)state;
    for (size_t i = 0; i < N_FORMATS; i++) {
        struct tiny_options options = options_of_format(all_formats[i]);
        options.untied = i % 2 == 0;
        options.biases = true;
        const struct drllm_model_params params = one_thread(DRLLM_COMPUTE_F32);
        const struct distances d = open_and_compare(&options, &params);
        if (!(d.logits <= 1e-4 && d.hidden <= 1e-4)) {
            fail_msg("%s: logits differ by %g, hidden states by %g", drllm_format_name((uint32_t)all_formats[i]),
                     d.logits, d.hidden);
        }
    }
}

/* ---- The formats as they run ---- */

struct log_text {
    char text[LOG_BYTES];
    size_t n_lines;
};

static void keep_line(void *user, enum drllm_log_level level, const char *line) {
    struct log_text *log = user;
    (void)level;
    assert_null(strchr(line, '\n'));
    const size_t used = strlen(log->text);
    (void)snprintf(log->text + used, LOG_BYTES - used, "%s\n", line);
    log->n_lines++;
}

/* What the matrices stand for becomes what is left of it in another format. */
static void convert_values(struct tiny_model *tiny, enum drllm_format format) {
    for (size_t i = 0; i < tiny->n_tensors; i++) {
        struct tiny_tensor *tensor = &tiny->tensors[i];
        if (tensor->n_dims != 2 || tensor->type == (uint32_t)format || strcmp(tensor->name, "token_embd.weight") == 0) {
            continue;
        }
        void *row = malloc(drllm_format_row_bytes(format, tensor->dims[0]));
        assert_non_null(row);
        for (size_t r = 0; r < tensor->dims[1]; r++) {
            float *values = tensor->values + r * tensor->dims[0];
            assert_true(drllm_quantize_row(format, values, row, tensor->dims[0]));
            drllm_dequantize_row(format, row, values, tensor->dims[0]);
        }
        free(row);
    }
}

static void test_stored_formats_run(void **state) {
    (void)state;
    static const struct {
        enum drllm_format stored, run;
        double bound; /* nearly all of it from 8-bit activations */
    } rows[] = {
        {DRLLM_FORMAT_F32, DRLLM_FORMAT_F32, 1e-3},   {DRLLM_FORMAT_F16, DRLLM_FORMAT_F16, 1e-3},
        {DRLLM_FORMAT_BF16, DRLLM_FORMAT_BF16, 1e-3}, {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_0, 0.04},
        {DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q4_1, 0.04}, {DRLLM_FORMAT_Q5_0, DRLLM_FORMAT_Q8_0, 0.04},
        {DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q8_0, 0.04}, {DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8_0, 0.04},
        {DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q4_1, 0.04}, {DRLLM_FORMAT_Q5_K, DRLLM_FORMAT_Q8_0, 0.04},
        {DRLLM_FORMAT_Q6_K, DRLLM_FORMAT_Q8_0, 0.04}, {DRLLM_FORMAT_Q8C, DRLLM_FORMAT_Q8C, 0.04},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tiny_options options = options_of_format(rows[i].stored);
        options.biases = i % 3 == 0;
        options.untied = true;
        struct log_text log = {.n_lines = 0};
        struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
        params.log = (struct drllm_log){keep_line, &log};
        const char *stored = drllm_format_name((uint32_t)rows[i].stored);
        const char *run = drllm_format_name((uint32_t)rows[i].run);
        struct tiny_model tiny;
        tiny_model_make(&tiny, &options);
        size_t size;
        uint8_t *file = tiny_model_write(&tiny, NULL, 0, &size);
        struct drllm_model *model = open_file(file, size, &params);
        const struct distances d = compare_with_reference(&tiny, 0, model);
        if (!(d.all <= rows[i].bound)) {
            fail_msg("%s: logits differ by %g", stored, d.all);
        }
        /* With activations rounded alike, and weights as converted, a group format has no error of its own:
         * positions are the same until the first value that lies between two of 8 bits as float has it, and in
         * double does not. */
        if (rows[i].run == DRLLM_FORMAT_Q4_0 || rows[i].run == DRLLM_FORMAT_Q4_1 || rows[i].run == DRLLM_FORMAT_Q8_0) {
            convert_values(&tiny, rows[i].run);
            const struct distances rounded = compare_with_reference(&tiny, DRLLM_GROUP, model);
            if (!(rounded.n_same >= N_TOKENS / 3 && rounded.all <= rows[i].bound)) {
                fail_msg("%s: logits of %zu positions are those with rounded activations; all differ by %g", stored,
                         rounded.n_same, rounded.all);
            }
        }
        struct drllm_model_info info;
        drllm_model_get_info(model, &info);
        assert_string_equal(info.quantization, stored);
        assert_string_equal(info.head_format, run);
        assert_true(strlen(info.backend) > 0 && strlen(info.head_backend) > 0);
        char arrow[64];
        (void)snprintf(arrow, sizeof arrow, "%s -> %s", stored, run);
        if (rows[i].stored == rows[i].run) {
            assert_int_equal(log.n_lines, 0);
        } else if (log.n_lines != 1 || strstr(log.text, arrow) == NULL) {
            fail_msg("%s: the log says '%s'", stored, log.text);
        }
        assert_int_equal(drllm_model_close(model), DRLLM_OK);
        tiny_model_free(&tiny);
        free(file);
    }
}

static void test_mixed_formats(void **state) {
    (void)state;
    struct tiny_options options = options_of_format(DRLLM_FORMAT_Q4_K);
    options.down = DRLLM_FORMAT_Q6_K;
    options.embedding = DRLLM_FORMAT_Q5_0;
    options.untied = true;
    options.head = DRLLM_FORMAT_BF16;
    struct log_text log = {.n_lines = 0};
    struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
    params.log = (struct drllm_log){keep_line, &log};
    const struct distances d = open_and_compare(&options, &params);
    assert_true(d.all <= 0.06);
    assert_int_equal(log.n_lines, 2);
    assert_non_null(strstr(log.text, "12 tensors"));
    assert_non_null(strstr(log.text, "q4_k -> q4_1"));
    assert_non_null(strstr(log.text, "q6_k -> q8_0"));
}

static void test_xnnpack_formats(void **state) {
    (void)state;
    struct drllm_model_params params = one_thread(DRLLM_COMPUTE_XNNPACK);
    if (!drllm_xnn_available()) {
        struct drllm_model *model = NULL;
        const uint8_t byte[4] = {0};
        assert_int_equal(drllm_model_open_memory(byte, 4, &params, &model, NULL), DRLLM_ERR_UNSUPPORTED);
        return;
    }
    for (size_t i = 0; i < N_FORMATS; i++) {
        const struct tiny_options options = options_of_format(all_formats[i]);
        const struct distances d = open_and_compare(&options, &params);
        if (!(d.all <= (all_formats[i] == DRLLM_FORMAT_Q4_0 ? 0.2 : 0.06))) {
            fail_msg("%s: logits differ by %g", drllm_format_name((uint32_t)all_formats[i]), d.all);
        }
    }
    params = one_thread(DRLLM_COMPUTE_EXACT);
    params.head = DRLLM_HEAD_Q8C;
    const struct tiny_options options = options_of_format(DRLLM_FORMAT_Q8_0);
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    struct drllm_model *model = open_file(file, size, &params);
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    assert_string_equal(info.head_format, "q8c");
    assert_string_equal(info.head_backend, "xnnpack");
    assert_string_not_equal(info.backend, "xnnpack");
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(file);
    assert_true(open_and_compare(&options, &params).all <= 0.04);
}

/* ---- Opening ---- */

static void test_info(void **state) {
    (void)state;
    struct tiny_options options = tiny_default_options();
    options.blocks = options.down = DRLLM_FORMAT_Q4_0;
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    struct drllm_model *model = open_file(file, size, NULL);
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    assert_string_equal(info.name, "tiny");
    assert_string_equal(info.quantization, "q4_0");
    assert_string_equal(info.head_format, "f32");
    assert_int_equal(info.n_layers, 3);
    assert_int_equal(info.d_model, 64);
    assert_int_equal(info.n_heads, 4);
    assert_int_equal(info.n_kv_heads, 2);
    assert_int_equal(info.head_dim, 16);
    assert_int_equal(info.d_ff, 96);
    assert_int_equal(info.n_vocab, options.n_vocab);
    assert_int_equal(info.n_context_trained, 512);
    const size_t block = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64;
    assert_int_equal(info.n_params, 3 * block + 64 + 64 * options.n_vocab);
    const size_t head_rows = (options.n_vocab + 7) / 8 * 8;
    assert_int_equal(info.weight_bytes, 3 * (block - 2 * 64) / 32 * 18 + head_rows * 64 * 4);
    assert_int_equal(info.bos_token, TINY_BOS);
    assert_int_equal(info.eos_token, TINY_EOS);
    assert_true(info.add_bos);
    assert_int_equal(info.chat_template, DRLLM_CHAT_NONE);
    assert_true(info.cpu_features == drllm_cpu_features());
    assert_true(drllm_token_is_end(model, TINY_EOS) && !drllm_token_is_end(model, TINY_BOS));
    assert_int_equal(drllm_model_close(model), DRLLM_OK);

    struct drllm_model_params params = drllm_model_default_params();
    params.cpu_mask = 0;
    model = open_file(file, size, &params);
    drllm_model_get_info(model, &info);
    assert_true(info.cpu_features == 0);
    assert_string_equal(info.backend, "ref");
    assert_int_equal(drllm_model_close(model), DRLLM_OK);

    params = drllm_model_default_params();
    params.vocab_only = true;
    model = open_file(file, size, &params);
    drllm_model_get_info(model, &info);
    assert_int_equal(info.n_vocab, options.n_vocab);
    assert_int_equal(info.n_layers, 0);
    assert_string_equal(info.quantization, "");
    assert_string_equal(info.backend, "");
    struct drllm_session *session = NULL;
    struct drllm_error error = {0};
    assert_int_equal(drllm_session_open(model, NULL, &session, &error), DRLLM_ERR_STATE);
    assert_non_null(strstr(error.detail, "vocabulary"));
    assert_null(session);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(file);
}

static void write_all(int descriptor, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        const ssize_t n = write(descriptor, bytes, size);
        assert_true(n > 0);
        bytes += n;
        size -= (size_t)n;
    }
}

static int make_temporary(char path[64]) {
    (void)snprintf(path, 64, "/tmp/drllm-test-model-XXXXXX");
    const int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    return descriptor;
}

static void last_logits(const struct drllm_model *model, float *logits, size_t n_vocab) {
    int32_t tokens[N_TOKENS];
    tiny_random_tokens(5, tokens, N_TOKENS, n_vocab);
    struct drllm_session *session = open_session(model);
    assert_int_equal(drllm_session_prefill(session, tokens, N_TOKENS), DRLLM_OK);
    memcpy(logits, drllm_session_logits(session), n_vocab * sizeof *logits);
    drllm_session_close(session);
}

static void test_open_path_fd_memory(void **state) {
    (void)state;
    enum { MOST_VOCAB = 512 };
    static const uint64_t offsets[] = {0, 4, 36, 4096, 5000};
    static const uint8_t junk[5000] = {'j', 'u', 'n', 'k'};
    struct tiny_options options = tiny_default_options();
    options.blocks = options.embedding = options.down = DRLLM_FORMAT_Q8_0;
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    float expected[MOST_VOCAB], logits[MOST_VOCAB];
    assert_true(options.n_vocab <= MOST_VOCAB);
    struct drllm_model *model = open_file(file, size, NULL);
    last_logits(model, expected, options.n_vocab);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);

    char path[64];
    int descriptor = make_temporary(path);
    write_all(descriptor, file, size);
    (void)close(descriptor);
    struct drllm_error error = {0};
    assert_int_equal(drllm_model_open_path(path, NULL, &model, &error), DRLLM_OK);
    (void)unlink(path);
    last_logits(model, logits, options.n_vocab);
    assert_memory_equal(logits, expected, options.n_vocab * sizeof *logits);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);

    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        for (int with_size = 0; with_size < 2; with_size++) {
            descriptor = make_temporary(path);
            (void)unlink(path);
            write_all(descriptor, junk, (size_t)offsets[i]);
            write_all(descriptor, file, size);
            write_all(descriptor, junk, with_size ? 100 : 0);
            assert_int_equal(drllm_model_open_fd(descriptor, offsets[i], with_size ? size : 0, NULL, &model, &error),
                             DRLLM_OK);
            (void)close(descriptor);
            last_logits(model, logits, options.n_vocab);
            assert_memory_equal(logits, expected, options.n_vocab * sizeof *logits);
            assert_int_equal(drllm_model_close(model), DRLLM_OK);
        }
    }
    free(file);
}

static void test_open_refusals(void **state) {
    (void)state;
    const struct tiny_options options = tiny_default_options();
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    struct drllm_model *const untouched = (struct drllm_model *)(void *)&size;
    struct drllm_model *model = untouched;
    struct drllm_error error = {0};

    assert_int_equal(drllm_model_open_path("/nowhere/model.gguf", NULL, &model, &error), DRLLM_ERR_IO);
    assert_non_null(strstr(error.detail, "/nowhere/model.gguf"));
    assert_int_equal(error.status, DRLLM_ERR_IO);
    assert_int_equal(drllm_model_open_path("/tmp", NULL, &model, NULL), DRLLM_ERR_IO);
    assert_int_equal(drllm_model_open_fd(-1, 0, 0, NULL, &model, &error), DRLLM_ERR_IO);
    assert_int_equal(drllm_model_open_path(NULL, NULL, &model, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_model_open_path("/tmp", NULL, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_model_open_fd(0, 0, 0, NULL, NULL, &error), DRLLM_ERR_ARGUMENT);

    char path[64];
    const int descriptor = make_temporary(path);
    assert_int_equal(drllm_model_open_path(path, NULL, &model, &error), DRLLM_ERR_FORMAT);
    assert_non_null(strstr(error.detail, "empty"));
    (void)unlink(path);
    write_all(descriptor, "abc", 3);
    write_all(descriptor, file, size);
    assert_int_equal(drllm_model_open_fd(descriptor, 3, 0, NULL, &model, &error), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "multiple of 4"));
    assert_int_equal(drllm_model_open_fd(descriptor, 0, 0, NULL, &model, &error), DRLLM_ERR_FORMAT);
    assert_int_equal(drllm_model_open_fd(descriptor, size + 4, 0, NULL, &model, &error), DRLLM_ERR_IO);
    assert_int_equal(drllm_model_open_fd(descriptor, 0, size + 4, NULL, &model, &error), DRLLM_ERR_IO);
    assert_int_equal(drllm_model_open_fd(descriptor, UINT64_MAX, UINT64_MAX, NULL, &model, &error), DRLLM_ERR_IO);
    (void)close(descriptor);

    uint8_t *shifted = malloc(size + 4);
    assert_non_null(shifted);
    for (size_t i = 1; i < 4; i++) {
        memcpy(shifted + i, file, size);
        assert_int_equal(drllm_model_open_memory(shifted + i, size, NULL, &model, &error), DRLLM_ERR_ARGUMENT);
        assert_non_null(strstr(error.detail, "multiple of 4"));
    }
    free(shifted);
    assert_int_equal(drllm_model_open_memory(NULL, 10, NULL, &model, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_model_open_memory(NULL, 0, NULL, &model, &error), DRLLM_ERR_FORMAT);
    assert_int_equal(drllm_model_open_memory(file, size, NULL, NULL, &error), DRLLM_ERR_ARGUMENT);

    struct drllm_model_params params = drllm_model_default_params();
    params.allocator.release = NULL;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, &error), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "allocator"));
    params = drllm_model_default_params();
    params.allocator.allocate = NULL;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, NULL), DRLLM_ERR_ARGUMENT);
    params = drllm_model_default_params();
    params.compute = (enum drllm_compute)3;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, &error), DRLLM_ERR_ARGUMENT);
    params = drllm_model_default_params();
    params.head = (enum drllm_head)17;
    assert_int_equal(drllm_model_open_memory(file, size, &params, &model, &error), DRLLM_ERR_ARGUMENT);
    assert_ptr_equal(model, untouched);
    assert_int_equal(drllm_model_close(NULL), DRLLM_OK);
    free(file);
}

static void test_close_needs_closed_sessions(void **state) {
    (void)state;
    const struct tiny_options options = tiny_default_options();
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    struct drllm_model *model = open_file(file, size, NULL);
    struct drllm_session *one = open_session(model), *two = open_session(model);
    assert_int_equal(drllm_model_close(model), DRLLM_ERR_STATE);
    drllm_session_close(one);
    assert_int_equal(drllm_model_close(model), DRLLM_ERR_STATE);
    assert_int_equal(drllm_session_decode(two, 5), DRLLM_OK);
    drllm_session_close(two);
    drllm_session_close(NULL);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(file);
}

/* ---- Damaged models ---- */

/* Ends the test unless opening the file fails with the status and says the word. */
static void expect_refusal(const char *what, const uint8_t *file, size_t size, int status, const char *word) {
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
    params.allocator = tiny_counted_allocator(&counted);
    const int got = drllm_model_open_memory(file, size, &params, &model, &error);
    if (got != status || error.status != status || strstr(error.detail, word) == NULL || model != NULL) {
        (void)drllm_model_close(model);
        fail_msg("%s: status %d (%s), wanted %d with '%s'", what, got, error.detail, status, word);
    }
    if (counted.n_live != 0 || counted.wrong) {
        fail_msg("%s: %zu allocations left, wrong sizes: %d", what, counted.n_live, counted.wrong);
    }
}

static void test_damaged_metadata(void **state) {
    (void)state;
    static const uint32_t huge = UINT32_MAX;
    static const struct {
        struct tiny_edit edit;
        int status;
        const char *word;
    } rows[] = {
        {{.key = "general.architecture", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "general.architecture"},
        {{.key = "general.architecture", .kind = TINY_STRING, .string = "qwen2"}, DRLLM_ERR_UNSUPPORTED, "qwen2"},
        {{.key = "general.architecture", .kind = TINY_STRING, .string = "llama4"}, DRLLM_ERR_UNSUPPORTED, "llama4"},
        {{.key = "general.architecture", .kind = TINY_U32, .u32 = 1}, DRLLM_ERR_FORMAT, "general.architecture"},
        {{.key = "llama.expert_count", .kind = TINY_U32, .u32 = 8}, DRLLM_ERR_UNSUPPORTED, "experts"},
        {{.key = "llama.block_count", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "llama.block_count"},
        {{.key = "llama.block_count", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_FORMAT, "llama.block_count"},
        {{.key = "llama.block_count", .kind = TINY_U32, .u32 = 4}, DRLLM_ERR_FORMAT, "blk.3."},
        {{.key = "llama.block_count", .kind = TINY_U32, .u32 = huge}, DRLLM_ERR_FORMAT, "llama.block_count"},
        {{.key = "llama.block_count", .kind = TINY_STRING, .string = "3"}, DRLLM_ERR_UNSUPPORTED, "llama.block_count"},
        {{.key = "llama.embedding_length", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "llama.embedding_length"},
        {{.key = "llama.embedding_length", .kind = TINY_U32, .u32 = huge}, DRLLM_ERR_FORMAT, "embedding_length"},
        {{.key = "llama.embedding_length", .kind = TINY_U32, .u32 = 128}, DRLLM_ERR_FORMAT, "token_embd"},
        {{.key = "llama.feed_forward_length", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "llama.feed_forward_length"},
        {{.key = "llama.feed_forward_length", .kind = TINY_U32, .u32 = 128}, DRLLM_ERR_FORMAT, "ffn_gate"},
        {{.key = "llama.feed_forward_length", .kind = TINY_U32_ARRAY, .u32 = 96}, DRLLM_ERR_UNSUPPORTED, "uniform"},
        {{.key = "llama.attention.head_count", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "llama.attention.head_count"},
        {{.key = "llama.attention.head_count", .kind = TINY_U32, .u32 = 0}, DRLLM_ERR_FORMAT, "head_count"},
        {{.key = "llama.attention.head_count", .kind = TINY_U32, .u32 = huge}, DRLLM_ERR_FORMAT, "head_count"},
        {{.key = "llama.attention.head_count", .kind = TINY_U32, .u32 = 5}, DRLLM_ERR_FORMAT, "do not divide"},
        {{.key = "llama.attention.head_count", .kind = TINY_U32, .u32 = 16}, DRLLM_ERR_UNSUPPORTED, "multiples of 8"},
        {{.key = "llama.attention.head_count_kv", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "attn_k"},
        {{.key = "llama.attention.head_count_kv", .kind = TINY_U32, .u32 = 3}, DRLLM_ERR_FORMAT, "do not divide"},
        {{.key = "llama.attention.head_count_kv", .kind = TINY_U32, .u32 = 8}, DRLLM_ERR_FORMAT, "do not divide"},
        {{.key = "llama.attention.head_count_kv", .kind = TINY_U32_ARRAY, .u32 = 2}, DRLLM_ERR_UNSUPPORTED, "uniform"},
        {{.key = "llama.attention.key_length", .kind = TINY_U32, .u32 = 20}, DRLLM_ERR_UNSUPPORTED, "20"},
        {{.key = "llama.attention.value_length", .kind = TINY_U32, .u32 = 8}, DRLLM_ERR_UNSUPPORTED, "equal"},
        {{.key = "llama.attention.layer_norm_rms_epsilon", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "rms_epsilon"},
        {{.key = "llama.attention.layer_norm_rms_epsilon", .kind = TINY_F32, .f32 = -1}, DRLLM_ERR_FORMAT, "epsilon"},
        {{.key = "llama.attention.layer_norm_rms_epsilon", .kind = TINY_F32, .f32 = NAN}, DRLLM_ERR_FORMAT, "epsilon"},
        {{.key = "llama.rope.dimension_count", .kind = TINY_U32, .u32 = 18}, DRLLM_ERR_FORMAT, "dimension_count"},
        {{.key = "llama.rope.dimension_count", .kind = TINY_U32, .u32 = 7}, DRLLM_ERR_FORMAT, "dimension_count"},
        {{.key = "llama.rope.freq_base", .kind = TINY_F32, .f32 = 0}, DRLLM_ERR_FORMAT, "freq_base"},
        {{.key = "llama.rope.freq_base", .kind = TINY_F32, .f32 = INFINITY}, DRLLM_ERR_FORMAT, "freq_base"},
        {{.key = "llama.rope.scaling.type", .kind = TINY_STRING, .string = "yarn"}, DRLLM_ERR_UNSUPPORTED, "yarn"},
        {{.key = "llama.rope.scaling.type", .kind = TINY_STRING, .string = "longrope"},
         DRLLM_ERR_UNSUPPORTED,
         "longrope"},
        {{.key = "llama.rope.scaling.factor", .kind = TINY_F32, .f32 = -2}, DRLLM_ERR_FORMAT, "factor"},
        {{.key = "llama.context_length", .kind = TINY_U32, .u32 = huge}, DRLLM_ERR_FORMAT, "context_length"},
        {{.key = "tokenizer.ggml.model", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "tokenizer.ggml.model"},
        {{.key = "tokenizer.ggml.model", .kind = TINY_STRING, .string = "bert"}, DRLLM_ERR_UNSUPPORTED, "bert"},
        {{.key = "tokenizer.ggml.tokens", .kind = TINY_OMIT}, DRLLM_ERR_FORMAT, "tokenizer.ggml.tokens"},
        {{.key = "tokenizer.ggml.tokens", .kind = TINY_U32_ARRAY, .u32 = 1}, DRLLM_ERR_FORMAT, "tokenizer.ggml.tokens"},
    };
    const struct tiny_options options = tiny_default_options();
    struct tiny_model tiny;
    tiny_model_make(&tiny, &options);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t size;
        uint8_t *file = tiny_model_write(&tiny, &rows[i].edit, 1, &size);
        char what[96];
        (void)snprintf(what, sizeof what, "%s, row %zu", rows[i].edit.key, i);
        expect_refusal(what, file, size, rows[i].status, rows[i].word);
        free(file);
    }
    tiny_model_free(&tiny);
}

static void remove_embedding(struct tiny_model *m) {
    tiny_model_remove(m, "token_embd.weight");
}
static void remove_output_norm(struct tiny_model *m) {
    tiny_model_remove(m, "output_norm.weight");
}
static void remove_norm(struct tiny_model *m) {
    tiny_model_remove(m, "blk.1.attn_norm.weight");
}
static void remove_ffn_norm(struct tiny_model *m) {
    tiny_model_remove(m, "blk.2.ffn_norm.weight");
}
static void remove_query(struct tiny_model *m) {
    tiny_model_remove(m, "blk.0.attn_q.weight");
}
static void remove_down(struct tiny_model *m) {
    tiny_model_remove(m, "blk.2.ffn_down.weight");
}
static void transpose_key(struct tiny_model *m) {
    struct tiny_tensor *t = tiny_model_find(m, "blk.1.attn_k.weight");
    t->dims[0] = 32;
    t->dims[1] = 64;
}
static void shorten_up(struct tiny_model *m) {
    tiny_model_find(m, "blk.1.ffn_up.weight")->dims[1] -= 1;
}
static void shorten_vocabulary(struct tiny_model *m) {
    tiny_model_find(m, "token_embd.weight")->dims[1] -= 1;
}
static void shorten_norm(struct tiny_model *m) {
    tiny_model_find(m, "blk.0.ffn_norm.weight")->dims[0] = 32;
}
static void two_norms(struct tiny_model *m) {
    struct tiny_tensor *t = tiny_model_find(m, "output_norm.weight");
    t->n_dims = 2;
    t->dims[0] = t->dims[1] = 32;
}
static void shorten_bias(struct tiny_model *m) {
    tiny_model_add(m, "blk.1.attn_v.bias", DRLLM_FORMAT_F32, 31, 1, 31 * 4);
}
static void short_factors(struct tiny_model *m) {
    tiny_model_add(m, "rope_freqs.weight", DRLLM_FORMAT_F32, 7, 1, 7 * 4);
}
static void zero_factors(struct tiny_model *m) {
    tiny_model_add(m, "rope_freqs.weight", DRLLM_FORMAT_F32, 8, 1, 8 * 4);
}
static void other_head(struct tiny_model *m) {
    tiny_model_add(m, "output.weight", DRLLM_FORMAT_F32, 64, 64, (size_t)64 * 64 * 4);
}
static void iq3_gate(struct tiny_model *m) {
    tiny_model_find(m, "blk.2.ffn_gate.weight")->type = 18;
}
static void q3_k_embedding(struct tiny_model *m) {
    tiny_model_find(m, "token_embd.weight")->type = 11;
}
static void unknown_type(struct tiny_model *m) {
    tiny_model_find(m, "blk.0.attn_output.weight")->type = 77;
}
static void blocked_norm_type(struct tiny_model *m) {
    tiny_model_find(m, "blk.0.attn_norm.weight")->type = 20; /* iq4_nl */
}
static void int8_norm(struct tiny_model *m) {
    tiny_model_find(m, "blk.0.attn_norm.weight")->type = DRLLM_FORMAT_I8;
}
static void no_scales(struct tiny_model *m) {
    tiny_model_find(m, "blk.0.attn_q.weight")->type = DRLLM_FORMAT_I8;
}
static void put_float(struct tiny_model *m, const char *name, float value) {
    struct tiny_tensor *t = tiny_model_find(m, name);
    memcpy((uint8_t *)t->data + 4 * (size_t)5, &value, sizeof value);
}
static void nan_norm(struct tiny_model *m) {
    put_float(m, "blk.1.ffn_norm.weight", NAN);
}
static void infinite_norm(struct tiny_model *m) {
    put_float(m, "output_norm.weight", INFINITY);
}
static void nan_bias(struct tiny_model *m) {
    tiny_model_add(m, "blk.1.attn_v.bias", DRLLM_FORMAT_F32, 32, 1, 32 * 4);
    put_float(m, "blk.1.attn_v.bias", NAN);
}

static void test_damaged_tensors(void **state) {
    (void)state;
    static const struct {
        const char *what;
        void (*change)(struct tiny_model *);
        int status;
        const char *word;
    } rows[] = {
        {"no embedding", remove_embedding, DRLLM_ERR_FORMAT, "token_embd.weight"},
        {"no output norm", remove_output_norm, DRLLM_ERR_FORMAT, "output_norm.weight"},
        {"no norm", remove_norm, DRLLM_ERR_FORMAT, "blk.1.attn_norm.weight"},
        {"no ffn norm", remove_ffn_norm, DRLLM_ERR_FORMAT, "blk.2.ffn_norm.weight"},
        {"no query", remove_query, DRLLM_ERR_FORMAT, "blk.0.attn_q.weight"},
        {"no down", remove_down, DRLLM_ERR_FORMAT, "blk.2.ffn_down.weight"},
        {"transposed", transpose_key, DRLLM_ERR_FORMAT, "blk.1.attn_k.weight is 32 x 64"},
        {"a row less", shorten_up, DRLLM_ERR_FORMAT, "blk.1.ffn_up.weight"},
        {"fewer embeddings than tokens", shorten_vocabulary, DRLLM_ERR_FORMAT, "token_embd.weight"},
        {"a short norm", shorten_norm, DRLLM_ERR_FORMAT, "blk.0.ffn_norm.weight"},
        {"a norm of two rows", two_norms, DRLLM_ERR_FORMAT, "output_norm.weight"},
        {"a short bias", shorten_bias, DRLLM_ERR_FORMAT, "blk.1.attn_v.bias"},
        {"few rope factors", short_factors, DRLLM_ERR_FORMAT, "rope_freqs.weight"},
        {"rope factors of zero", zero_factors, DRLLM_ERR_FORMAT, "rope_freqs.weight"},
        {"a head of another size", other_head, DRLLM_ERR_FORMAT, "output.weight"},
        {"type iq3_xxs", iq3_gate, DRLLM_ERR_UNSUPPORTED, "iq3_xxs"},
        {"type q3_k", q3_k_embedding, DRLLM_ERR_UNSUPPORTED, "q3_k"},
        {"an unknown type", unknown_type, DRLLM_ERR_UNSUPPORTED, "unknown"},
        {"a norm of type iq4_nl", blocked_norm_type, DRLLM_ERR_UNSUPPORTED, "iq4_nl"},
        {"an int8 norm", int8_norm, DRLLM_ERR_FORMAT, "int8"},
        {"int8 without scales", no_scales, DRLLM_ERR_FORMAT, "blk.0.attn_q.weight_scale"},
        {"NaN in a norm", nan_norm, DRLLM_ERR_FORMAT, "blk.1.ffn_norm.weight"},
        {"infinity in a norm", infinite_norm, DRLLM_ERR_FORMAT, "output_norm.weight"},
        {"NaN in a bias", nan_bias, DRLLM_ERR_FORMAT, "blk.1.attn_v.bias"},
    };
    const struct tiny_options options = tiny_default_options();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tiny_model tiny;
        tiny_model_make(&tiny, &options);
        rows[i].change(&tiny);
        size_t size;
        uint8_t *file = tiny_model_write(&tiny, NULL, 0, &size);
        expect_refusal(rows[i].what, file, size, rows[i].status, rows[i].word);
        tiny_model_free(&tiny);
        free(file);
    }
}

static void minus_128(struct tiny_model *m) {
    ((uint8_t *)tiny_model_find(m, "blk.1.ffn_up.weight")->data)[77] = 0x80;
}
static void nan_scale(struct tiny_model *m) {
    put_float(m, "blk.1.ffn_up.weight_scale", NAN);
}
static void negative_scale(struct tiny_model *m) {
    put_float(m, "token_embd.weight_scale", -1.0f);
}
static void scale_of_other_size(struct tiny_model *m) {
    tiny_model_find(m, "blk.1.ffn_up.weight_scale")->dims[0] -= 1;
}
static void scale_of_other_type(struct tiny_model *m) {
    tiny_model_find(m, "blk.1.ffn_up.weight_scale")->type = DRLLM_FORMAT_F16;
}

static void test_damaged_int8(void **state) {
    (void)state;
    static const struct {
        const char *what;
        void (*change)(struct tiny_model *);
        const char *word;
        bool untied; /* an embedding that is not the head must be sound, too */
    } rows[] = {
        {"-128", minus_128, "blk.1.ffn_up.weight", false},
        {"NaN", nan_scale, "blk.1.ffn_up.weight", false},
        {"a negative scale", negative_scale, "token_embd.weight", false},
        {"a negative scale of an embedding alone", negative_scale, "token_embd.weight", true},
        {"too few scales", scale_of_other_size, "blk.1.ffn_up.weight_scale", false},
        {"scales of another type", scale_of_other_type, "blk.1.ffn_up.weight_scale", false},
    };
    struct tiny_options options = options_of_format(DRLLM_FORMAT_Q8C);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tiny_model tiny;
        options.untied = rows[i].untied;
        tiny_model_make(&tiny, &options);
        rows[i].change(&tiny);
        size_t size;
        uint8_t *file = tiny_model_write(&tiny, NULL, 0, &size);
        expect_refusal(rows[i].what, file, size, DRLLM_ERR_FORMAT, rows[i].word);
        tiny_model_free(&tiny);
        free(file);
    }
}

/* Scales that are NaN, in every format that has one, of a block in the middle. */
static void test_nan_in_weights(void **state) {
    (void)state;
    for (size_t i = 0; i < N_FORMATS; i++) {
        if (all_formats[i] == DRLLM_FORMAT_Q8C) {
            continue;
        }
        const struct tiny_options options = options_of_format(all_formats[i]);
        struct tiny_model tiny;
        tiny_model_make(&tiny, &options);
        struct tiny_tensor *tensor = tiny_model_find(&tiny, "blk.1.attn_output.weight");
        const struct drllm_format_traits *traits = drllm_format_find(tensor->type);
        assert_non_null(traits);
        const size_t at = all_formats[i] == DRLLM_FORMAT_Q6_K ? offsetof(struct drllm_block_q6_k, d) : 0;
        memset((uint8_t *)tensor->data + 5 * traits->block_bytes + at, 0xFF, traits->block_bytes == 4 ? 4 : 2);
        size_t size;
        uint8_t *file = tiny_model_write(&tiny, NULL, 0, &size);
        expect_refusal(drllm_format_name((uint32_t)all_formats[i]), file, size, DRLLM_ERR_FORMAT,
                       "blk.1.attn_output.weight");
        tiny_model_free(&tiny);
        free(file);
    }
}

static void test_truncated(void **state) {
    (void)state;
    struct tiny_options options = tiny_default_options();
    options.n_layers = 1;
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    for (size_t length = 0; length < size; length += length < 8192 || length + 64 > size ? 13 : 997) {
        /* A block of just this size, so that reading behind it shows. */
        uint8_t *cut = malloc(length > 0 ? length : 1);
        assert_non_null(cut);
        memcpy(cut, file, length);
        char what[48];
        (void)snprintf(what, sizeof what, "cut to %zu bytes", length);
        expect_refusal(what, cut, length, DRLLM_ERR_FORMAT, "");
        free(cut);
    }
    expect_refusal("cut by a byte", file, size - 1, DRLLM_ERR_FORMAT, "output_norm.weight");
    free(file);
}

/* Whatever a byte of the metadata becomes: refused, or a model that opens and closes. */
static void test_flipped_bytes(void **state) {
    (void)state;
    struct tiny_options options = tiny_default_options();
    options.n_layers = 1;
    size_t size;
    uint8_t *file = tiny_model_file(&options, &size);
    size_t data_size = 0;
    struct tiny_model tiny;
    tiny_model_make(&tiny, &options);
    for (size_t i = 0; i < tiny.n_tensors; i++) {
        data_size += tiny.tensors[i].size;
    }
    tiny_model_free(&tiny);
    struct tiny_random random = {42};
    for (size_t i = 0; i < 2000; i++) {
        const uint64_t bits = tiny_random_u64(&random);
        const size_t at = (size_t)((bits >> 8) % (size - data_size));
        const uint8_t was = file[at];
        file[at] ^= (uint8_t)(bits & 0xFF);
        struct drllm_model *model = NULL;
        struct drllm_error error = {0};
        const struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
        const int status = drllm_model_open_memory(file, size, &params, &model, &error);
        if (status == DRLLM_OK) {
            assert_int_equal(drllm_model_close(model), DRLLM_OK);
        } else if (strlen(error.detail) == 0 || model != NULL ||
                   (status != DRLLM_ERR_FORMAT && status != DRLLM_ERR_UNSUPPORTED && status != DRLLM_ERR_MEMORY)) {
            fail_msg("byte %zu: status %d, '%s'", at, status, error.detail);
        }
        file[at] = was;
    }
    free(file);
}

/* ---- Memory that runs out ---- */

enum { TEXT_BYTES = 512, N_GENERATED = 9 };

struct result {
    float logits[512];
    double log_prob[2];
    char text[TEXT_BYTES];
    size_t text_size;
};

static bool keep_text(void *user, int32_t token, const char *text, size_t size) {
    struct result *result = user;
    (void)token;
    assert_true(result->text_size + size < TEXT_BYTES);
    memcpy(result->text + result->text_size, text, size);
    result->text_size += size;
    return true;
}

/* Every call may fail for want of memory, once in all; then it is made again. */
#define ONCE_MORE(n_failures, call)                      \
    do {                                                 \
        int status_ = (call);                            \
        if (status_ != DRLLM_OK) {                       \
            assert_int_equal(status_, DRLLM_ERR_MEMORY); \
            assert_int_equal(++(n_failures), 1);         \
            status_ = (call);                            \
        }                                                \
        assert_int_equal(status_, DRLLM_OK);             \
    } while (0)

static int open_either(const char *path, const uint8_t *file, size_t size, const struct drllm_model_params *params,
                       struct drllm_model **model) {
    struct drllm_error error = {0};
    struct drllm_model *const before = *model;
    const int status = path != NULL ? drllm_model_open_path(path, params, model, &error)
                                    : drllm_model_open_memory(file, size, params, model, &error);
    if (status != DRLLM_OK) {
        assert_int_equal(error.status, status);
        assert_true(strlen(error.detail) > 0);
        assert_ptr_equal(*model, before);
    }
    return status;
}

static size_t run_everything(const char *path, const uint8_t *file, size_t size, struct drllm_model_params params,
                             struct tiny_counted *counted, struct result *result) {
    *result = (struct result){.text_size = 0};
    size_t n_failures = 0;
    params.allocator = tiny_counted_allocator(counted);
    struct drllm_model *model = (struct drllm_model *)(void *)&n_failures;
    ONCE_MORE(n_failures, open_either(path, file, size, &params, &model));
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    assert_true(info.n_vocab <= 512);
    int32_t tokens[N_TOKENS];
    tiny_random_tokens(9, tokens, N_TOKENS, info.n_vocab);

    struct drllm_session_params session_params = drllm_session_default_params();
    session_params.n_threads = 1;
    session_params.n_chunk = 8;
    struct drllm_session *session = NULL;
    ONCE_MORE(n_failures, drllm_session_open(model, &session_params, &session, NULL));

    struct drllm_choice choices[] = {{tokens, 2, 0.0}, {tokens + 3, 5, 0.0}};
    const size_t before = n_failures;
    ONCE_MORE(n_failures, drllm_session_score(session, tokens, 7, choices, 2));
    if (n_failures > before) {
        assert_string_equal(drllm_session_last_error(session), ""); /* the call that followed went well */
    }
    result->log_prob[0] = choices[0].log_prob;
    result->log_prob[1] = choices[1].log_prob;
    assert_int_equal(drllm_session_n_tokens(session), 7);
    ONCE_MORE(n_failures, drllm_session_prefill(session, tokens + 7, N_TOKENS - 7));
    memcpy(result->logits, drllm_session_logits(session), info.n_vocab * sizeof(float));

    struct drllm_sampler_params sampler_params = drllm_sampler_default_params();
    sampler_params.temperature = 0.0f;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, &sampler_params, NULL), DRLLM_OK);
    struct drllm_generate_params generate = drllm_generate_default_params();
    generate.max_tokens = N_GENERATED;
    generate.ignore_end = true;
    generate.on_text = keep_text;
    generate.user = result;
    int status = drllm_session_generate(session, &sampler, &generate, NULL);
    if (status != DRLLM_OK) {
        assert_int_equal(status, DRLLM_ERR_MEMORY);
        assert_int_equal(++n_failures, 1);
        /* What was generated so far is in the context: begin again behind the prompt. */
        result->text_size = 0;
        assert_int_equal(drllm_session_rewind(session, N_TOKENS - 1), DRLLM_OK);
        assert_int_equal(drllm_session_decode(session, tokens[N_TOKENS - 1]), DRLLM_OK);
        assert_int_equal(drllm_session_generate(session, &sampler, &generate, NULL), DRLLM_OK);
    }
    /* Beyond the first capacity of the cache. */
    int32_t more[64];
    tiny_random_tokens(10, more, 64, info.n_vocab);
    ONCE_MORE(n_failures, drllm_session_prefill(session, more, 64));
    assert_int_equal(drllm_session_n_tokens(session), N_TOKENS + N_GENERATED - 1 + 64);
    drllm_session_close(session);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    return n_failures;
}

static void run_out_of_memory(const struct tiny_options *options, const struct drllm_model_params *params,
                              bool from_path) {
    size_t size;
    uint8_t *file = tiny_model_file(options, &size);
    char path[64];
    if (from_path) {
        const int descriptor = make_temporary(path);
        write_all(descriptor, file, size);
        (void)close(descriptor);
    }
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    struct result expected, result;
    assert_int_equal(run_everything(from_path ? path : NULL, file, size, *params, &counted, &expected), 0);
    const size_t n_calls = counted.n_calls;
    assert_true(n_calls > 20);
    assert_true(counted.n_live == 0 && counted.live_bytes == 0 && !counted.wrong);
    size_t n_failures = 0;
    for (size_t i = 0; i < n_calls; i++) {
        counted = (struct tiny_counted){.fail_at = i};
        n_failures += run_everything(from_path ? path : NULL, file, size, *params, &counted, &result);
        if (counted.n_live != 0 || counted.live_bytes != 0 || counted.wrong) {
            fail_msg("allocation %zu of %zu: %zu left, wrong: %d", i, n_calls, counted.n_live, counted.wrong);
        }
        assert_memory_equal(&result, &expected, sizeof result);
    }
    assert_int_equal(n_failures, n_calls); /* no failure goes by unnoticed */
    if (from_path) {
        (void)unlink(path);
    }
    free(file);
}

static void test_memory_runs_out(void **state) {
    (void)state;
    struct tiny_options options = tiny_default_options();
    options.n_layers = 2;
    options.d_model = options.d_ff = 32;
    options.n_heads = 2;
    options.n_kv_heads = 1;
    options.blocks = options.embedding = DRLLM_FORMAT_Q4_1;
    options.down = DRLLM_FORMAT_Q5_0; /* converted */
    options.biases = true;
    options.rope_freqs = true;
    struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
    run_out_of_memory(&options, &params, false);
    options.untied = true;
    run_out_of_memory(&options, &params, true);
    params.compute = DRLLM_COMPUTE_F32;
    run_out_of_memory(&options, &params, false);
}

static void test_memory_runs_out_with_xnnpack(void **state) {
    (void)state;
    if (!drllm_xnn_available()) {
        drllm_skip("this build has no XNNPACK");
    }
    struct tiny_options options = tiny_default_options();
    options.n_layers = 1;
    options.blocks = options.down = DRLLM_FORMAT_Q4_0;
    options.d_ff = 64;
    options.embedding = DRLLM_FORMAT_Q8_0;
    struct drllm_model_params params = one_thread(DRLLM_COMPUTE_EXACT);
    params.head = DRLLM_HEAD_Q8C;
    run_out_of_memory(&options, &params, false);
    params.compute = DRLLM_COMPUTE_XNNPACK;
    run_out_of_memory(&options, &params, false);
    options.blocks = options.embedding = options.down = DRLLM_FORMAT_Q8C;
    params = one_thread(DRLLM_COMPUTE_EXACT);
    run_out_of_memory(&options, &params, false);
}

int drllm_test_model(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_is_the_reference),
        cmocka_unit_test(test_f32_run_of_each_format),
        cmocka_unit_test(test_stored_formats_run),
        cmocka_unit_test(test_mixed_formats),
        cmocka_unit_test(test_xnnpack_formats),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_open_path_fd_memory),
        cmocka_unit_test(test_open_refusals),
        cmocka_unit_test(test_close_needs_closed_sessions),
        cmocka_unit_test(test_damaged_metadata),
        cmocka_unit_test(test_damaged_tensors),
        cmocka_unit_test(test_damaged_int8),
        cmocka_unit_test(test_nan_in_weights),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_memory_runs_out_with_xnnpack),
    };
    return drllm_run_group("model", tests, NULL, NULL);
}
