/* The firmware interface on the host: exactly the memory that was told suffices, and the ids are those of the ordinary
 * library. tests/firmware.sh runs the same library on emulated boards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "platform/file.h"
#include "runtime/drllm_fw.h"
#include "runtime/model.h"
#include "runtime/packed_file.h"
#include "tests/real_model.h"
#include "tests/router_builder.h"
#include "tests/tests.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 0xA5, GUARD_BYTES = 4096, MOST_IDS = 512 };

/* ---- An arena of exactly so many bytes ---- */

struct exact {
    unsigned char *memory;
    size_t size;
};

static struct exact exact_new(size_t size) {
    struct exact exact = {NULL, size};
    assert_int_equal(posix_memalign((void **)&exact.memory, DRLLM_FW_ALIGNMENT, size + GUARD_BYTES), 0);
    memset(exact.memory, GUARD, size + GUARD_BYTES);
    return exact;
}

static void exact_free(struct exact *exact) {
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        assert_int_equal(exact->memory[exact->size + i], GUARD);
    }
    free(exact->memory);
}

/* ---- Models ---- */

struct bytes {
    uint8_t *data;
    size_t size;
};

static bool take(void *user, const void *data, size_t size) {
    struct bytes *bytes = user;
    bytes->data = realloc(bytes->data, bytes->size + size);
    assert_non_null(bytes->data);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
    return true;
}

static struct drllm_model *open_ordinary(const void *data, size_t size, uint64_t cpu_mask) {
    struct drllm_model_params params = drllm_model_default_params();
    struct drllm_model *model = NULL;
    struct drllm_error error = {0};
    params.cpu_mask = cpu_mask;
    params.head = DRLLM_HEAD_FILE;
    params.load_threads = 1;
    if (drllm_model_open_memory(data, size, &params, &model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return model;
}

static struct bytes pack(struct bytes gguf, struct bytes routers) {
    struct bytes packed = {NULL, 0};
    struct drllm_model *model = open_ordinary(gguf.data, gguf.size, UINT64_MAX);
    assert_int_equal(drllm_packed_write(model, routers.data, routers.size, take, &packed, NULL), DRLLM_OK);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    return packed;
}

static struct tiny_options options_of(enum drllm_format format, bool bpe, bool untied) {
    struct tiny_options options = tiny_default_options();
    options.n_layers = 3;
    options.d_model = options.d_ff = 64;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    options.head_dim = 16;
    options.n_context = 256;
    options.blocks = options.down = options.embedding = options.head = format;
    options.bpe = bpe;
    options.untied = untied;
    return options;
}

static struct bytes model_file(const struct tiny_options *options) {
    struct bytes file = {NULL, 0};
    file.data = tiny_model_file(options, &file.size);
    return file;
}

static struct bytes router_file(const struct tiny_options *model, const uint8_t *program) {
    struct router_options options = router_default_options(model);
    struct bytes file = {NULL, 0};
    options.int8 = true;
    options.program = program;
    options.name = "a name";
    options.training = "{\"questions\": 1}";
    file.data = router_builder_file(&options, &file.size);
    return file;
}

/* ---- What is computed ---- */

struct answer {
    int32_t ids[MOST_IDS];
    size_t n;
    uint8_t program[64];
};

/* Fill the context: a prompt, then the likeliest tokens, and some drawn ones. */
static void run(struct drllm_session *session, size_t n_context, size_t n_vocab, struct answer *answer) {
    int32_t prompt[MOST_IDS];
    struct drllm_sampler sampler;
    struct drllm_sampler_params greedy = drllm_sampler_default_params();
    const size_t n_prompt = n_context / 2;
    struct drllm_generate_params generate = drllm_generate_default_params();
    struct drllm_generation generation;
    assert_true(n_context <= MOST_IDS);
    tiny_random_tokens(5, prompt, n_prompt, n_vocab);
    greedy.temperature = 0.0f;
    generate.max_tokens = n_context;
    generate.ignore_end = true;
    assert_int_equal(drllm_sampler_init(&sampler, &greedy, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, prompt, n_prompt), DRLLM_OK);
    generate.max_tokens = n_context / 4;
    assert_int_equal(drllm_session_generate(session, &sampler, &generate, &generation), DRLLM_OK);
    assert_int_equal(drllm_sampler_init(&sampler, NULL, NULL), DRLLM_OK);
    generate.max_tokens = n_context;
    if (drllm_session_generate(session, &sampler, &generate, &generation) != DRLLM_OK) {
        fail_msg("%s", drllm_session_last_error(session));
    }
    assert_int_equal(generation.reason, DRLLM_STOP_CONTEXT);
    answer->n = drllm_session_n_tokens(session);
    memcpy(answer->ids, drllm_session_tokens(session), answer->n * sizeof *answer->ids);
    assert_int_equal(drllm_session_get_program(session, answer->program), DRLLM_OK);
}

static void run_ordinary(struct bytes file, const struct drllm_fw_params *params, const uint8_t *program,
                         struct answer *answer) {
    struct drllm_model *model = open_ordinary(file.data, file.size, params->cpu_mask);
    struct drllm_session_params session_params = drllm_session_default_params();
    struct drllm_session *session = NULL;
    session_params.n_context = params->n_context;
    session_params.n_threads = 1;
    session_params.kv_type = params->kv_type;
    assert_int_equal(drllm_session_open(model, &session_params, &session, NULL), DRLLM_OK);
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = program != NULL ? DRLLM_DEPTH_STATIC : DRLLM_DEPTH_FULL;
    depth.program = program;
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    run(session, params->n_context, model->config.n_vocab, answer);
    drllm_session_close(session);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
}

static struct drllm_fw open_exactly(struct exact *arena, struct bytes file, const struct drllm_fw_params *params) {
    struct drllm_fw fw = {NULL};
    struct drllm_error error = {0};
    size_t bytes = 0;
    if (drllm_fw_arena_bytes(file.data, file.size, params, &bytes, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    *arena = exact_new(bytes);
    assert_int_equal(drllm_fw_open(arena->memory, bytes - 1, file.data, file.size, params, &fw, &error),
                     DRLLM_ERR_MEMORY);
    assert_non_null(strstr(error.detail, "are needed"));
    if (drllm_fw_open(arena->memory, bytes, file.data, file.size, params, &fw, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return fw;
}

/* Texts that need the most memory, each as long as it may be. */
static void tokenise_hard_texts(const struct drllm_fw *fw, size_t max_text) {
    static const char *const patterns[] = {"a",       " ",     "ab",       "<s>",  "</s>x",
                                           "<s></s>", "word ", "\xC3\xA4", "\xFF", "\n\n x"};
    char *text = malloc(max_text);
    int32_t *ids = malloc(4 * max_text * sizeof *ids);
    assert_true(text != NULL && ids != NULL);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        for (size_t at = 0; at < max_text; at++) {
            text[at] = patterns[i][at % strlen(patterns[i])];
        }
        for (unsigned flags = 0; flags < 4; flags++) {
            size_t n = 0;
            struct drllm_error error = {0};
            if (drllm_tokenize(fw->model, text, max_text, flags, ids, 4 * max_text, &n, &error) != DRLLM_OK) {
                fail_msg("text %zu: %s", i, error.detail);
            }
        }
    }
    free(text);
    free(ids);
}

static void score_choices(const struct drllm_fw *fw) {
    const int32_t prompt[] = {TINY_FIRST_BYTE + 1, TINY_FIRST_BYTE + 2},
                  choice[] = {TINY_FIRST_BYTE + 3, TINY_FIRST_BYTE + 4};
    struct drllm_choice choices[2] = {{choice, 2, 0.0}, {choice + 1, 1, 0.0}};
    drllm_session_reset(fw->session);
    assert_int_equal(drllm_session_score(fw->session, prompt, 2, choices, 2), DRLLM_OK);
    assert_true(choices[0].log_prob < 0.0 && choices[1].log_prob < 0.0);
}

static void check_model(struct bytes file, const struct drllm_fw_params *params, const struct answer *expected) {
    struct exact arena;
    struct answer answer = {.n = 0};
    const struct drllm_fw fw = open_exactly(&arena, file, params);
    tokenise_hard_texts(&fw, params->max_text != 0 ? params->max_text : 4 * params->n_context);
    run(fw.session, params->n_context, fw.model->config.n_vocab, &answer);
    assert_int_equal(answer.n, expected->n);
    assert_memory_equal(answer.ids, expected->ids, answer.n * sizeof *answer.ids);
    assert_memory_equal(answer.program, expected->program, fw.model->config.n_layers);
    score_choices(&fw);
    tokenise_hard_texts(&fw, params->max_text != 0 ? params->max_text : 4 * params->n_context);
    /* Changing the depth back and forth needs no more. */
    struct drllm_depth depth = drllm_depth_default();
    assert_int_equal(drllm_session_set_depth(fw.session, &depth), DRLLM_OK);
    if (fw.routers != NULL) {
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = fw.routers;
        depth.reroute = params->reroute;
        assert_int_equal(drllm_session_set_depth(fw.session, &depth), DRLLM_OK);
        drllm_session_reset(fw.session);
        run(fw.session, params->n_context, fw.model->config.n_vocab, &answer);
        assert_memory_equal(answer.ids, expected->ids, answer.n * sizeof *answer.ids);
    }
    assert_true(drllm_fw_arena_used(&fw) <= arena.size);
    /* What is told is no fantasy either: the most of it is used, tokenising aside. */
    assert_true(drllm_fw_arena_used(&fw) >= arena.size / 2);
    exact_free(&arena);
}

/* ---- Tests ---- */

static void test_told_memory_suffices(void **state) {
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
                                                DRLLM_FORMAT_Q8C, DRLLM_FORMAT_F16};
    (void)state;
    for (size_t i = 0; i < 2 * sizeof formats / sizeof formats[0]; i++) {
        const bool bpe = i % 2 != 0;
        const struct tiny_options options = options_of(formats[i / 2], bpe, i % 3 == 0);
        struct drllm_fw_params params = drllm_fw_default_params();
        struct answer expected = {.n = 0};
        struct bytes gguf = model_file(&options);
        struct bytes packed = pack(gguf, (struct bytes){NULL, 0});
        params.n_context = i % 4 == 0 ? 37 : 128;
        params.n_chunk = i % 3 + 1;
        params.cpu_mask = i % 2 == 0 ? 0 : UINT64_MAX;
        run_ordinary(gguf, &params, NULL, &expected);
        check_model(gguf, &params, &expected);
        check_model(packed, &params, &expected);
        free(gguf.data);
        free(packed.data);
    }
}

static void test_routers_in_place(void **state) {
    static const uint8_t program[] = {1, 0, 2};
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q4_1, false, false);
    struct drllm_fw_params params = drllm_fw_default_params();
    struct answer expected = {.n = 0};
    struct bytes gguf = model_file(&options), routers = router_file(&options, program);
    struct bytes packed = pack(gguf, routers);
    params.n_context = 96;
    run_ordinary(gguf, &params, program, &expected);
    for (int reroute = 0; reroute < 2; reroute++) {
        params.reroute = (enum drllm_reroute)reroute;
        params.routers = NULL;
        params.routers_size = 0;
        check_model(packed, &params, &expected);
        params.routers = routers.data;
        params.routers_size = routers.size;
        check_model(gguf, &params, &expected);
        params.routers = packed.data;
        params.routers_size = packed.size;
        check_model(gguf, &params, &expected);
    }
    params.routers = NULL;
    params.routers_size = 0;
    params.without_routers = true;
    run_ordinary(gguf, &params, NULL, &expected);
    check_model(packed, &params, &expected);
    free(gguf.data);
    free(routers.data);
    free(packed.data);
}

/* Random routers: in place they decide as a copy of them does. */
static void test_routers_decide_alike(void **state) {
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q4_0, false, false);
    struct drllm_fw_params params = drllm_fw_default_params();
    struct bytes gguf = model_file(&options), routers = router_file(&options, NULL);
    struct exact arena;
    struct drllm_decision decisions[2][8];
    int32_t prompt[20];
    params.routers = routers.data;
    params.routers_size = routers.size;
    params.n_slots = 2 * options.n_layers;
    const struct drllm_fw fw = open_exactly(&arena, gguf, &params);
    /* Where XNNPACK does not run under this mask, the bits are the same. */
    struct drllm_model *model = open_ordinary(gguf.data, gguf.size, 0);
    struct drllm_routers *copied = NULL;
    struct drllm_routers_info info;
    struct drllm_session *session = NULL;
    struct drllm_depth depth = drllm_depth_default();
    assert_int_equal(drllm_routers_open_memory(model, routers.data, routers.size, &copied, NULL), DRLLM_OK);
    drllm_routers_get_info(copied, &info);
    const bool xnnpack = strcmp(info.backend, "xnnpack") == 0;
    assert_int_equal(drllm_session_open(model, NULL, &session, NULL), DRLLM_OK);
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = copied;
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    tiny_random_tokens(9, prompt, 20, model->config.n_vocab);
    assert_int_equal(drllm_session_prefill(session, prompt, 20), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(fw.session, prompt, 20), DRLLM_OK);
    assert_int_equal(drllm_session_get_decisions(session, decisions[0]), DRLLM_OK);
    assert_int_equal(drllm_session_get_decisions(fw.session, decisions[1]), DRLLM_OK);
    for (size_t layer = 0; layer < options.n_layers; layer++) {
        assert_int_equal(decisions[0][layer].count, decisions[1][layer].count);
        for (size_t i = 0; i < 3; i++) { /* XNNPACK rounds what goes in otherwise */
            const float expected = decisions[0][layer].logits[i];
            const float most = xnnpack ? 0.05f * (1.0f + fabsf(expected)) : 0.0f;
            assert_true(fabsf(decisions[1][layer].logits[i] - expected) <= most);
        }
    }
    drllm_session_close(session);
    assert_int_equal(drllm_routers_close(copied), DRLLM_OK);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    exact_free(&arena);
    free(gguf.data);
    free(routers.data);
}

static void test_repeats_become_executions(void **state) {
    static const uint8_t wanted[] = {2, 0, 2}, by_slots[4][3] = {{1, 0, 2}, {2, 0, 2}, {2, 0, 2}, {2, 0, 2}};
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q8_0, false, false);
    struct bytes gguf = model_file(&options), routers = router_file(&options, wanted);
    for (size_t n_slots = 3; n_slots < 7; n_slots++) {
        struct drllm_fw_params params = drllm_fw_default_params();
        struct answer expected = {.n = 0};
        params.n_context = 40;
        params.n_slots = n_slots;
        params.routers = routers.data;
        params.routers_size = routers.size;
        run_ordinary(gguf, &params, by_slots[n_slots - 3], &expected);
        check_model(gguf, &params, &expected);
    }
    struct drllm_fw_params params = drllm_fw_default_params();
    struct drllm_error error = {0};
    size_t bytes = 0;
    params.n_slots = 2;
    assert_int_equal(drllm_fw_arena_bytes(gguf.data, gguf.size, &params, &bytes, &error), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "2 slots"));
    free(gguf.data);
    free(routers.data);
}

/* The same limit in a session of the ordinary library, with a given program. */
static void test_sessions_have_the_limit(void **state) {
    static const uint8_t wanted[] = {2, 2, 2}, expected[] = {2, 1, 1};
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q8_0, false, false);
    struct bytes gguf = model_file(&options);
    struct drllm_model *model = open_ordinary(gguf.data, gguf.size, UINT64_MAX);
    struct drllm_session_params params = drllm_session_default_params();
    struct drllm_session *session = NULL;
    struct drllm_depth depth = drllm_depth_default();
    uint8_t counts[3];
    params.n_slots = 4;
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = wanted;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, (const int32_t[]){TINY_BOS}, 1), DRLLM_OK);
    assert_int_equal(drllm_session_get_program(session, counts), DRLLM_OK);
    assert_memory_equal(counts, expected, 3);
    drllm_session_close(session);
    params.n_slots = 2;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(gguf.data);
}

/* Neither function reads behind a file that is cut anywhere, or believes one that was changed. */
static void test_damaged_files(void **state) {
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q4_1, true, false);
    struct bytes gguf = model_file(&options), routers = router_file(&options, NULL);
    struct bytes files[] = {gguf, pack(gguf, routers)};
    const struct drllm_fw_params params = drllm_fw_default_params();
    uint64_t random = 1;
    for (size_t i = 0; i < 2; i++) {
        for (size_t n = 0; n < 400; n++) {
            struct bytes file = files[i];
            struct drllm_fw fw;
            size_t bytes = 0;
            /* Most of what matters is in front. */
            const size_t range = n % 2 == 0 ? 1024 : files[i].size;
            file.size = n % 4 == 3 ? drllm_random(&random) % files[i].size : files[i].size;
            file.data = malloc(file.size + 1);
            assert_non_null(file.data);
            memcpy(file.data, files[i].data, file.size);
            for (size_t k = 0; k < 3 && file.size > 0 && n % 4 != 3; k++) {
                file.data[drllm_random(&random) % (range < file.size ? range : file.size)] =
                    (uint8_t)drllm_random(&random);
            }
            if (drllm_fw_arena_bytes(file.data, file.size, &params, &bytes, NULL) == DRLLM_OK && bytes < 1 << 26) {
                struct exact arena = exact_new(bytes);
                const int status = drllm_fw_open(arena.memory, bytes, file.data, file.size, &params, &fw, NULL);
                assert_true(status == DRLLM_OK || status == DRLLM_ERR_FORMAT || status == DRLLM_ERR_UNSUPPORTED ||
                            status == DRLLM_ERR_ARGUMENT || status == DRLLM_ERR_MEMORY);
                exact_free(&arena);
            }
            free(file.data);
        }
    }
    free(files[1].data);
    free(gguf.data);
    free(routers.data);
}

static void test_wrong_arguments(void **state) {
    (void)state;
    const struct tiny_options options = options_of(DRLLM_FORMAT_Q4_1, false, false);
    struct bytes gguf = model_file(&options);
    struct router_options f32 = router_default_options(&options);
    struct bytes routers = {NULL, 0};
    struct drllm_fw_params params = drllm_fw_default_params();
    struct drllm_error error = {0};
    struct drllm_fw fw;
    size_t bytes = 0;
    routers.data = router_builder_file(&f32, &routers.size);
    assert_int_equal(drllm_fw_arena_bytes(NULL, 1, NULL, &bytes, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_fw_arena_bytes(gguf.data, gguf.size, NULL, NULL, NULL), DRLLM_ERR_ARGUMENT);
    params.n_context = 0;
    assert_int_equal(drllm_fw_arena_bytes(gguf.data, gguf.size, &params, &bytes, NULL), DRLLM_ERR_ARGUMENT);
    params = drllm_fw_default_params();
    params.routers = routers.data;
    params.routers_size = routers.size;
    assert_int_equal(drllm_fw_arena_bytes(gguf.data, gguf.size, &params, &bytes, NULL), DRLLM_OK);
    struct exact arena = exact_new(bytes);
    assert_int_equal(drllm_fw_open(arena.memory + 4, bytes, gguf.data, gguf.size, NULL, &fw, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_fw_open(arena.memory, bytes, gguf.data, gguf.size, &params, &fw, &error),
                     DRLLM_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.detail, "int8"));
    exact_free(&arena);
    free(gguf.data);
    free(routers.data);
}

/* SmolLM2-135M with its routers, context 256, 30 slots: at most 8 MiB beyond the file. */
static void test_real_model(void **state) {
    enum { MOST_BYTES = 8 << 20 };
    (void)state;
    real_need_model();
    const char *routers_path = "examples/routers/smollm2-135m-instruct-q4_1.gguf";
    struct drllm_file model_map, routers_map;
    assert_int_equal(drllm_file_map_path(getenv("DRLLM_TEST_MODEL"), &model_map), 0);
    assert_int_equal(drllm_file_map_path(routers_path, &routers_map), 0);
    struct bytes gguf = {(uint8_t *)model_map.data, model_map.size},
                 routers = {(uint8_t *)routers_map.data, routers_map.size};
    struct bytes packed = pack(gguf, routers);
    struct drllm_fw_params params = drllm_fw_default_params();
    struct exact arena;
    params.n_slots = REAL_N_LAYERS;
    const struct drllm_fw fw = open_exactly(&arena, packed, &params);
    printf("SmolLM2-135M at context 256, 30 slots: %zu bytes\n", arena.size);
    assert_true(arena.size <= MOST_BYTES);
    static const char text[] = "Review: a warm and clever film that never loses its way\nSentiment:";
    int32_t ids[64];
    size_t n = 0;
    struct answer answer = {.n = 0}, expected = {.n = 0};
    assert_int_equal(drllm_tokenize(fw.model, text, strlen(text), DRLLM_TOKENIZE_BOS, ids, 64, &n, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(fw.session, ids, n), DRLLM_OK);
    assert_int_equal(drllm_session_get_program(fw.session, answer.program), DRLLM_OK);
    drllm_session_reset(fw.session);
    run(fw.session, params.n_context, REAL_N_VOCAB, &answer);
    run_ordinary(gguf, &params, answer.program, &expected);
    assert_int_equal(answer.n, expected.n);
    assert_memory_equal(answer.ids, expected.ids, answer.n * sizeof *answer.ids);
    assert_true(drllm_fw_arena_used(&fw) <= arena.size);
    exact_free(&arena);
    free(packed.data);
    drllm_file_unmap(&model_map);
    drllm_file_unmap(&routers_map);
}

int drllm_test_firmware(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_told_memory_suffices),    cmocka_unit_test(test_routers_in_place),
        cmocka_unit_test(test_routers_decide_alike),    cmocka_unit_test(test_repeats_become_executions),
        cmocka_unit_test(test_sessions_have_the_limit), cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_wrong_arguments),         cmocka_unit_test(test_real_model),
    };
    return drllm_run_group("firmware", tests, NULL, NULL);
}
