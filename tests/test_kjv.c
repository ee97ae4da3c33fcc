/* The trained model in the repository (examples/firmware/tiny): what can be tested of a real one without a download.
 * tests/data/kjv.inc is made by examples/firmware/tiny/golden.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tests/tests.h"

#include <math.h>
#include <string.h>

#include "tests/data/kjv.inc"

static const char path[] = "examples/firmware/tiny/tiny-kjv-q4_0.gguf"; /* the runner starts in the root */
enum { N_LAYERS = 8, N_VOCAB = 1280, N_CONTEXT = 256, N_SCORED = 128, MOST_TOKENS = 1024, MOST_BYTES = 4096 };

/* A little above what was measured. */
static const double most_perplexity = 8.6, most_program_ratio = 1.12;
static const char cheapest_program[] = "0,2-7";

/* ---- Opening ---- */

struct opened {
    struct drllm_model *model;
    struct drllm_session *session;
};

static struct opened open_model(uint64_t cpu_mask, enum drllm_compute compute) {
    struct opened opened;
    struct drllm_error error = {0};
    struct drllm_model_params params = drllm_model_default_params();
    params.cpu_mask = cpu_mask;
    params.compute = compute;
    params.load_threads = 1;
    struct drllm_session_params session_params = drllm_session_default_params();
    session_params.n_context = N_CONTEXT;
    session_params.n_threads = 1;
    if (drllm_model_open_path(path, &params, &opened.model, &error) != DRLLM_OK ||
        drllm_session_open(opened.model, &session_params, &opened.session, &error) != DRLLM_OK) {
        fail_msg("%s (the tests run in the root of the repository)", error.detail);
    }
    return opened;
}

static void close_model(struct opened *opened) {
    drllm_session_close(opened->session);
    assert_int_equal(drllm_model_close(opened->model), DRLLM_OK);
}

static size_t tokenize(const struct drllm_model *model, const char *text, int32_t ids[MOST_TOKENS]) {
    size_t n = 0;
    assert_int_equal(drllm_tokenize(model, text, strlen(text), DRLLM_TOKENIZE_BOS, ids, MOST_TOKENS, &n, NULL),
                     DRLLM_OK);
    return n;
}

static void prefill(const struct opened *opened, const char *prompt) {
    int32_t ids[MOST_TOKENS];
    const size_t n = tokenize(opened->model, prompt, ids);
    assert_int_equal(drllm_session_prefill(opened->session, ids, n), DRLLM_OK);
}

/* ---- The file ---- */

static void test_shape(void **state) {
    (void)state;
    struct opened opened = open_model(UINT64_MAX, DRLLM_COMPUTE_EXACT);
    struct drllm_model_info info;
    drllm_model_get_info(opened.model, &info);
    assert_string_equal(info.quantization, "q4_0");
    assert_string_equal(info.head_format, "q8_0");
    assert_int_equal(info.n_layers, N_LAYERS);
    assert_int_equal(info.d_model, 192);
    assert_int_equal(info.n_heads, 6);
    assert_int_equal(info.n_kv_heads, 2);
    assert_int_equal(info.head_dim, 32);
    assert_int_equal(info.d_ff, 384);
    assert_int_equal(info.n_vocab, N_VOCAB);
    assert_int_equal(info.n_context_trained, N_CONTEXT);
    assert_true(info.add_bos && drllm_token_is_end(opened.model, info.eos_token));
    close_model(&opened);
}

/* ---- Text ---- */

static void check_round_trip(const struct drllm_model *model, const char *text, size_t size) {
    int32_t ids[MOST_TOKENS];
    char back[MOST_BYTES];
    size_t n = 0, n_back = 0;
    assert_int_equal(drllm_tokenize(model, text, size, 0, ids, MOST_TOKENS, &n, NULL), DRLLM_OK);
    assert_int_equal(drllm_detokenize(model, ids, n, false, back, MOST_BYTES, &n_back), DRLLM_OK);
    assert_int_equal(n_back, size);
    assert_memory_equal(back, text, size);
}

static void test_text(void **state) {
    (void)state;
    struct opened opened = open_model(UINT64_MAX, DRLLM_COMPUTE_EXACT);
    int32_t ids[MOST_TOKENS];
    const size_t n = tokenize(opened.model, kjv_first_line, ids);
    assert_int_equal(n, sizeof kjv_first_line_ids / sizeof *kjv_first_line_ids);
    assert_memory_equal(ids, kjv_first_line_ids, n * sizeof *ids);

    check_round_trip(opened.model, kjv_text, strlen(kjv_text));
    static const char odd[] = " two  blanks, na\xC3\xAFve \xF0\x9F\x90\x8D\r\n";
    check_round_trip(opened.model, odd, sizeof odd - 1);
    char bytes[256];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (char)i;
    }
    check_round_trip(opened.model, bytes, sizeof bytes);
    close_model(&opened);
}

/* ---- What it writes ---- */

static size_t write_ids(struct opened *opened, const char *prompt, float temperature, size_t n, int32_t *ids) {
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = temperature;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, &params, NULL), DRLLM_OK);
    drllm_session_reset(opened->session);
    prefill(opened, prompt);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(drllm_session_sample(opened->session, &sampler, &ids[i]), DRLLM_OK);
        assert_int_equal(drllm_session_decode(opened->session, ids[i]), DRLLM_OK);
    }
    return n;
}

static void expect_ids(const char *what, const int32_t *ids, const int32_t *expected, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] != expected[i]) {
            fail_msg("%s: token %zu is %d, not %d", what, i, (int)ids[i], (int)expected[i]);
        }
    }
}

static void check_backend(const char *name, uint64_t mask, bool is_portable, float portable[N_VOCAB]) {
    struct opened opened = open_model(mask, DRLLM_COMPUTE_EXACT);
    int32_t ids[MOST_TOKENS];
    expect_ids(name, ids, kjv_greedy_ids, write_ids(&opened, kjv_greedy_prompt, 0.0f, KJV_N_GREEDY, ids));
    expect_ids(name, ids, kjv_sampled_ids, write_ids(&opened, kjv_sampled_prompt, 0.8f, KJV_N_SAMPLED, ids));
    const float *logits = drllm_session_logits(opened.session);
    assert_non_null(logits);
    if (is_portable) {
        memcpy(portable, logits, N_VOCAB * sizeof *portable);
    } else if (drllm_first_difference(logits, portable, N_VOCAB) != N_VOCAB) {
        fail_msg("%s: logits differ from those without features", name);
    }
    close_model(&opened);
}

/* Every backend of this processor writes what the portable one wrote when the file was recorded, from the same bits. */
static void test_backends(void **state) {
    (void)state;
    static const char *const masks[] = {"none",     "x86-avx2",    "x86-avx2,avxvnni", "x86-avx2,avx512,avx512vnni",
                                        "arm-neon", "arm-dotprod", "arm-i8mm",         "all"};
    enum { N_MASKS = sizeof masks / sizeof *masks };
    uint64_t tried[N_MASKS];
    size_t n_tried = 0;
    float portable[N_VOCAB];
    for (size_t i = 0; i < N_MASKS; i++) {
        uint64_t mask = 0;
        assert_int_equal(drllm_cpu_mask_parse(masks[i], &mask, NULL), DRLLM_OK);
        const uint64_t features = mask & drllm_cpu_features();
        size_t same = 0;
        while (same < n_tried && tried[same] != features) {
            same++;
        }
        if (same == n_tried) {
            tried[n_tried++] = features;
            check_backend(masks[i], mask, n_tried == 1, portable);
        }
    }
}

/* ---- How well it knows what it has not seen ---- */

struct prediction {
    const struct drllm_model *model;
    const int32_t *ids;
    size_t n;
    double loss;
};

static int add_loss(void *user, size_t position, const float *logits) {
    struct prediction *prediction = user;
    if (position + 1 < prediction->n) {
        prediction->loss -= drllm_log_prob(prediction->model, logits, prediction->ids[position + 1]);
    }
    return DRLLM_OK;
}

/* Of the first N_SCORED tokens of the text, under the session's depth. */
static double text_perplexity(const struct opened *opened) {
    int32_t ids[MOST_TOKENS];
    assert_true(tokenize(opened->model, kjv_text, ids) >= N_SCORED);
    struct prediction prediction = {opened->model, ids, N_SCORED, 0.0};
    drllm_session_reset(opened->session);
    assert_int_equal(drllm_session_prefill_logits(opened->session, ids, N_SCORED, 0, add_loss, &prediction), DRLLM_OK);
    return exp(prediction.loss / (N_SCORED - 1));
}

static void test_perplexity(void **state) {
    (void)state;
    struct opened opened = open_model(UINT64_MAX, DRLLM_COMPUTE_EXACT);
    const double exact = text_perplexity(&opened);
    close_model(&opened);
    opened = open_model(UINT64_MAX, DRLLM_COMPUTE_F32);
    const double f32 = text_perplexity(&opened);
    close_model(&opened);
    print_message("             perplexity %.3f, in floats %.3f\n", exact, f32);
    if (!(exact < most_perplexity && f32 < most_perplexity)) {
        fail_msg("perplexity %.3f, in floats %.3f; %.3f is allowed", exact, f32, most_perplexity);
    }
    assert_true(fabs(log(exact / f32)) < 0.02); /* what rounding the activations costs */
}

/* Trained with blocks left out at random, it bears a program that skips one in the middle. The first was never left out,
 * and without it all is lost, which shows that programs do something. */
static void test_program(void **state) {
    (void)state;
    struct opened opened = open_model(UINT64_MAX, DRLLM_COMPUTE_EXACT);
    const double full = text_perplexity(&opened);
    uint8_t counts[N_LAYERS];
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = counts;
    double skipped[2];
    static const char *const programs[2] = {cheapest_program, "1-7"};
    for (size_t i = 0; i < 2; i++) {
        int saved = 0;
        assert_int_equal(drllm_program_parse(programs[i], N_LAYERS, counts, NULL), DRLLM_OK);
        assert_int_equal(drllm_session_set_depth(opened.session, &depth), DRLLM_OK);
        skipped[i] = text_perplexity(&opened);
        assert_int_equal(drllm_session_get_layers_saved(opened.session, &saved), DRLLM_OK);
        assert_int_equal(saved, 1);
    }
    close_model(&opened);
    print_message("             perplexity %.3f, with %s %.3f, with %s %.3f\n", full, programs[0], skipped[0],
                  programs[1], skipped[1]);
    assert_true(skipped[0] > full && skipped[0] < full * most_program_ratio);
    assert_true(skipped[1] > 2.0 * skipped[0]);
}

int drllm_test_kjv(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape),      cmocka_unit_test(test_text),    cmocka_unit_test(test_backends),
        cmocka_unit_test(test_perplexity), cmocka_unit_test(test_program),
    };
    return drllm_run_group("kjv", tests, NULL, NULL);
}
