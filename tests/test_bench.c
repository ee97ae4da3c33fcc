/* Synthetic models, and what drllm bench says besides speeds: outcomes, never timings. */
#include "tests/cli.h"

#include "platform/cpu.h"
#include "quant/matmul.h"
#include "quant/matmul_xnnpack.h"
#include "quant/peak.h"
#include "runtime/drllm_os.h"
#include "tools/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command command = {.name = "test"};

static int remove_folder(void **state) {
    (void)state;
    return cli_remove_folder();
}

static int make_folder(void **state) {
    (void)state;
    return cli_make_folder();
}

/* ---- Register peaks ---- */

static void test_peaks(void **state) {
    (void)state;
    size_t n;
    const struct drllm_peak *peaks = drllm_peaks(&n);
    const uint64_t features = drllm_cpu_detect();
    for (size_t i = 0; i < n; i++) {
        assert_true(peaks[i].round_ops > 0);
        if ((peaks[i].cpu_features & ~features) == 0) {
            (void)peaks[i].run(0);
            assert_int_equal(peaks[i].run(100), peaks[i].run(100));
        }
        /* Whoever has just what it needs gets it or something better. */
        const struct drllm_peak *chosen = drllm_peak_choose(peaks[i].is_float, peaks[i].cpu_features);
        assert_true(chosen <= &peaks[i]);
        assert_int_equal(chosen->cpu_features & ~peaks[i].cpu_features, 0);
        assert_int_equal(chosen->is_float, peaks[i].is_float);
    }
    assert_string_equal(drllm_peak_choose(false, 0)->name, "int8_ref");
    assert_string_equal(drllm_peak_choose(true, 0)->name, "float_ref");
}

/* ---- Synthetic models ---- */

static const struct synthetic small = {.shape = {"small", 2, 64, 96, 4, 2, 700, 128, 10000, true, SYNTHETIC_SMOLLM},
                                       .format = DRLLM_FORMAT_Q4_0};

static struct drllm_model *write_and_open(const struct synthetic *synthetic) {
    char path[CLI_PATH_BYTES];
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    uint64_t size = 0;
    assert_int_equal(synthetic_write(&command, synthetic, cli_path("small.gguf", path), &size), TOOL_OK);
    assert_true(size > 0);
    if (drllm_model_open_path(path, NULL, &model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return model;
}

static void check_texts(const struct drllm_model *model) {
    static const char *const texts[] = {"hello world 123", "W\xC3\xB6rter, \xE2\x82\xAC", " a  b\n", "\x01"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        int32_t ids[64];
        char text[64];
        size_t n = 0;
        size_t size = 0;
        struct drllm_error error;
        assert_int_equal(drllm_tokenize(model, texts[i], strlen(texts[i]), 0, ids, 64, &n, &error), DRLLM_OK);
        assert_true(n > 0 && n <= strlen(texts[i]) + 1);
        assert_int_equal(drllm_detokenize(model, ids, n, false, text, sizeof text, &size), DRLLM_OK);
        assert_int_equal(size, strlen(texts[i]));
        assert_memory_equal(text, texts[i], size);
    }
}

static void check_logits(const struct drllm_model *model, size_t n_vocab) {
    static const int32_t tokens[] = {5, 300, 650, 1};
    struct drllm_session *session = NULL;
    struct drllm_session_params params = drllm_session_default_params();
    struct drllm_error error = {0};
    params.n_context = 16;
    params.n_threads = 1;
    assert_int_equal(drllm_session_open(model, &params, &session, &error), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, tokens, 4), DRLLM_OK);
    const float *logits = drllm_session_logits(session);
    double squares = 0.0;
    for (size_t i = 0; i < n_vocab; i++) {
        assert_true(isfinite(logits[i]));
        squares += (double)logits[i] * (double)logits[i];
    }
    const double deviation = sqrt(squares / (double)n_vocab);
    assert_true(deviation > 0.3 && deviation < 3.0); /* as sensible scales give it */
    drllm_session_close(session);
}

static void test_synthetic_models(void **state) {
    (void)state;
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0};
    static const enum synthetic_vocabulary vocabularies[] = {SYNTHETIC_SMOLLM, SYNTHETIC_LLAMA3, SYNTHETIC_SPM};
    for (size_t i = 0; i < 9; i++) {
        struct synthetic synthetic = small;
        struct drllm_model_info info;
        synthetic.format = formats[i % 3];
        synthetic.shape.vocabulary = vocabularies[i / 3];
        synthetic.shape.tied = i % 2 == 0;
        synthetic.pure = i % 4 == 0;
        struct drllm_model *model = write_and_open(&synthetic);
        drllm_model_get_info(model, &info);
        assert_int_equal(info.n_vocab, 700);
        assert_int_equal(info.n_layers, 2);
        assert_int_equal(info.d_model, 64);
        assert_int_equal(info.d_ff, 96);
        assert_int_equal(info.n_heads, 4);
        assert_int_equal(info.n_kv_heads, 2);
        assert_string_equal(info.head_format, synthetic.pure ? drllm_format_name(synthetic.format) : "q8_0");
        assert_true(info.eos_token >= 0 && drllm_token_is_end(model, info.eos_token));
        check_texts(model);
        check_logits(model, 700);
        drllm_model_close(model);
    }
}

/* Tokens of three characters come once all of two are there. */
static void test_big_vocabulary(void **state) {
    (void)state;
    struct synthetic synthetic = small;
    synthetic.shape.vocabulary = SYNTHETIC_LLAMA3;
    synthetic.shape.n_vocab = 66500;
    struct drllm_model *model = write_and_open(&synthetic);
    check_texts(model);
    char text[16];
    size_t size = 0;
    assert_int_equal(drllm_token_bytes(model, 256 + 65536, false, text, sizeof text, &size), DRLLM_OK);
    assert_int_equal(size, 3);
    drllm_model_close(model);
}

static void test_synthesize(void **state) {
    (void)state;
    cli_require_program();
    char paths[3][CLI_PATH_BYTES];
    char *files[3];
    size_t sizes[3];
    for (size_t i = 0; i < 3; i++) {
        cli_path(i == 0 ? "a.gguf" : i == 1 ? "b.gguf" : "c.gguf", paths[i]);
        struct cli_outcome outcome = RUN("synthesize", "smollm2-135m:1", "--format", "q4_1", "--pure", "-o", paths[i],
                                         "--seed", i == 2 ? "7" : "6");
        cli_expect_text(outcome.err, paths[i]);
        cli_expect_success(outcome);
        files[i] = cli_read(paths[i], &sizes[i]);
        assert_int_equal(sizes[i], sizes[0]);
    }
    assert_memory_equal(files[0], files[1], sizes[0]);
    assert_memory_not_equal(files[0], files[2], sizes[0]);
    cli_expect_failure(RUN("synthesize", "smollm2-135m:1", "-o", paths[0]), 1, "exists; --force replaces it");
    cli_expect_success(RUN("synthesize", "smollm2-135m:2", "-q", "-o", paths[0], "--force"));
    cJSON *json =
        cli_expect_json(RUN("bench", "-m", paths[0], "-p", "2", "-n", "0", "-r", "1", "-t", "1", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 1);
    cJSON_Delete(json);
    for (size_t i = 0; i < 3; i++) {
        free(files[i]);
        assert_int_equal(unlink(paths[i]), 0);
    }
}

static void test_wrong_use(void **state) {
    (void)state;
    cli_require_program();
    static const struct {
        const char *arguments[8];
        const char *message;
    } cases[] = {
        {{"synthesize"}, "one SHAPE must be named"},
        {{"synthesize", "smollm2-135m"}, "-o FILE is missing"},
        {{"synthesize", "llama-9", "-o", "x"}, "there is no shape 'llama-9'; known are smollm2-135m, llama-3.2-1b"},
        {{"synthesize", "smollm2-135m:0", "-o", "x"}, "a number of layers from 1 to 1000"},
        {{"synthesize", "smollm2-135m:x", "-o", "x"}, "a number of layers from 1 to 1000"},
        {{"synthesize", "smollm2-135m", "-o", "x", "--format", "f16"}, "made in q4_0, q4_1 and q8_0, not in 'f16'"},
        {{"bench", "--synthetic", "gpt-2"}, "there is no shape 'gpt-2'"},
        {{"bench", "--synthetic", "smollm2-135m", "--format", "q5_0"}, "not in 'q5_0'"},
        {{"bench", "--kernels", "-m", "x"}, "--kernels takes a model only to draw it"},
        {{"bench", "-m", "x", "--plot", "x.svg"}, "--plot draws what --kernels measures"},
        {{"bench", "--kernels", "--shapes", "x"}, "there is no shape 'x'"},
        {{"bench", "--kernels", "--format", "q3_k"}, "--format q3_k: there are kernels for q4_0"},
        {{"bench", "--kernels", "-M", "0"}, "--batches"},
        {{"bench", "--kernels", "--cpu-mask", "mmx"}, "mmx"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cli_expect_failure(cli_run(NULL, cases[i].arguments), 2, cases[i].message);
    }
    cli_expect_failure(RUN("synthesize", "smollm2-135m:1", "-o", "/no/folder/x.gguf"), 1, "No such file or directory");
}

/* ---- bench ---- */

static void test_bench_synthetic(void **state) {
    (void)state;
    cli_require_program();
    assert_int_equal(setenv("TMPDIR", cli_folder, 1), 0);
    cJSON *json = cli_expect_json(RUN("bench", "--synthetic", "smollm2-135m:1", "--format", "q8_0", "-p", "2", "-n",
                                      "2", "-r", "1", "-t", "1", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 2);
    assert_string_equal(cli_string(cJSON_GetArrayItem(json, 0), "model_filename"), "smollm2-135m:1");
    assert_non_null(strstr(cli_string(cJSON_GetArrayItem(json, 0), "model_type"), "q8_0"));
    cJSON_Delete(json);
    assert_int_equal(cli_count_files("drllm-bench"), 0);
    assert_int_equal(setenv("TMPDIR", "/no/folder", 1), 0);
    cli_expect_failure(RUN("bench", "--synthetic", "smollm2-135m:1"), 1, "TMPDIR names another place");
    assert_int_equal(unsetenv("TMPDIR"), 0);
}

static size_t count_kernels(enum drllm_format format) {
    size_t n;
    size_t count = 0;
    const struct drllm_kernel *kernels = drllm_kernels(&n);
    for (size_t i = 0; i < n; i++) {
        count += kernels[i].format == format && (kernels[i].cpu_features & ~drllm_cpu_features()) == 0;
    }
    return count;
}

static void check_kernel_rows(const cJSON *json, int n_rows) {
    const cJSON *row;
    cJSON_ArrayForEach(row, cli_list(json, "results", n_rows)) {
        const bool is_cached = strcmp(cli_string(row, "weights"), "cache") == 0;
        const bool is_head = strcmp(cli_string(row, "class"), "head") == 0;
        assert_true(cli_number(row, "k") == 576 || cli_number(row, "k") == 1536);
        assert_true(cli_number(row, "m") == 1 || (cli_number(row, "m") == 3 && !is_head && !is_cached));
        assert_true(cli_number(row, "n_measured") >= 32 && cli_number(row, "n_measured") <= cli_number(row, "n"));
        assert_true(cli_number(row, "gops") > 0 && cli_number(row, "gb_s") > 0 && cli_number(row, "ns") > 0);
        assert_true(cli_number(row, "share_of_peak") > 0);
        assert_int_equal(cJSON_IsNumber(cJSON_GetObjectItem(row, "share_of_bandwidth")), !is_cached);
        assert_string_equal(cli_string(row, "models"), "smollm2-135m");
    }
}

static void test_bench_kernels(void **state) {
    (void)state;
    cli_require_program();
    /* Of each kernel: five shapes with one token, four of them in the cache as well, and four with three tokens. */
    cJSON *json = cli_expect_json(RUN("bench", "--kernels", "--shapes", "smollm2-135m", "--format", "q4_0", "-M", "1,3",
                                      "-r", "1", "-t", "1", "-o", "json"));
    check_kernel_rows(json, (int)(13 * count_kernels(DRLLM_FORMAT_Q4_0)));
    const cJSON *verdict;
    cJSON_ArrayForEach(verdict, cli_list(json, "fastest", 9)) {
        assert_ptr_equal(strstr(cli_string(verdict, "fastest"), "q4_0_"), cli_string(verdict, "fastest"));
        assert_string_equal(cli_string(verdict, "format"), "q4_0");
        assert_ptr_equal(strstr(cli_string(verdict, "unasked"), "q4_0_"), cli_string(verdict, "unasked"));
        assert_true(cli_number(verdict, "gops") > 0 && cli_number(verdict, "unasked_share") <= 1);
    }
    cJSON_Delete(json);
    char plot[CLI_PATH_BYTES];
    size_t size;
    cli_expect_success(RUN("bench", "--kernels", "--shapes", "smollm2-135m", "--format", "q8_0", "-M", "1,3", "-r", "1",
                           "-t", "1", "--cpu-mask", "none", "--plot", cli_path("roof.svg", plot)));
    char *svg = cli_read(plot, &size);
    cli_expect_text(svg, "kernels: ref on 576 x 1536 weights");
    cli_expect_text(svg, "<title>q8_0: "); /* a mark of the kernel's line */
    cli_expect_text(svg, "<title>roof: ");
    free(svg);
    struct cli_outcome outcome = RUN("bench", "--kernels", "--shapes", "smollm2-135m", "--format", "f32", "-M", "2",
                                     "-r", "1", "-t", "1", "--cpu-mask", "none");
    cli_expect_text(outcome.out, "| f32_ref | 1536 x 576 | down | ");
    cli_expect_text(outcome.out, "Registers: float_ref ");
    cli_expect_text(outcome.out, "| f32 | gate, up | 2 | 1 | f32_ref | ");
    cli_expect_success(outcome);
}

static void test_bench_xnnpack(void **state) {
    (void)state;
    cli_require_program();
    if (drllm_test_is_fast() || !drllm_xnn_available()) {
        drllm_skip("needs all tests and XNNPACK");
    }
    struct cli_outcome outcome = RUN("bench", "--kernels", "--shapes", "smollm2-135m", "--format", "q8c,qb4w", "-M",
                                     "1,3", "-r", "1", "-t", "2", "-o", "csv");
    if (strstr(outcome.err, "XNNPACK has no kernels") == NULL) {
        cli_expect_text(outcome.out, "\n\"q8c_xnnpack\",");
        cli_expect_text(outcome.out, "\n\"qb4w_xnnpack\",");
    }
    cli_expect_success(outcome);
}

int drllm_test_bench(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peaks),          cmocka_unit_test(test_synthetic_models),
        cmocka_unit_test(test_big_vocabulary), cmocka_unit_test(test_synthesize),
        cmocka_unit_test(test_wrong_use),      cmocka_unit_test(test_bench_synthetic),
        cmocka_unit_test(test_bench_kernels),  cmocka_unit_test(test_bench_xnnpack),
    };
    return drllm_run_group("bench", tests, make_folder, remove_folder);
}
