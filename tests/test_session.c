/* Sessions: the same numbers however the work is cut up, the life of a context, cancelling, scoring, misuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct loaded {
    uint8_t *file;
    struct drllm_model *model;
    size_t n_vocab;
};

static struct loaded load_with(const struct tiny_options *options, const struct drllm_model_params *params) {
    struct loaded loaded = {.n_vocab = options->n_vocab};
    size_t size;
    loaded.file = tiny_model_file(options, &size);
    struct drllm_error error = {0};
    if (drllm_model_open_memory(loaded.file, size, params, &loaded.model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return loaded;
}

static struct loaded load_tiny(void) {
    struct tiny_options options = tiny_default_options();
    options.blocks = options.down = DRLLM_FORMAT_Q4_1;
    options.embedding = DRLLM_FORMAT_Q8_0;
    return load_with(&options, NULL);
}

static void unload(struct loaded *loaded) {
    assert_int_equal(drllm_model_close(loaded->model), DRLLM_OK);
    free(loaded->file);
}

static struct drllm_session *open_session_kv(const struct drllm_model *model, enum drllm_kv_type kv_type,
                                             size_t n_context, unsigned n_threads, size_t n_chunk) {
    struct drllm_session_params params = drllm_session_default_params();
    params.kv_type = kv_type;
    params.n_context = n_context;
    params.n_threads = n_threads;
    params.n_chunk = n_chunk;
    struct drllm_session *session = NULL;
    struct drllm_error error = {0};
    if (drllm_session_open(model, &params, &session, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return session;
}

static struct drllm_session *open_session(const struct drllm_model *model, size_t n_context, unsigned n_threads,
                                          size_t n_chunk) {
    return open_session_kv(model, DRLLM_KV_F16, n_context, n_threads, n_chunk);
}

static float *floats(size_t n) {
    float *memory = calloc(n, sizeof *memory);
    assert_non_null(memory);
    return memory;
}

/* ---- The same numbers ---- */

/* Logits after every token of a text, however it is cut into calls. */
struct text_run {
    const int32_t *tokens;
    size_t n_tokens, n_vocab;
    enum drllm_kv_type kv_type;
    size_t done; /* positions in earlier calls */
    float *logits;
};

static int keep_logits(void *user, size_t position, const float *logits) {
    const struct text_run *run = user;
    memcpy(run->logits + (run->done + position) * run->n_vocab, logits, run->n_vocab * sizeof *logits);
    return 0;
}

static void run_call(struct drllm_session *session, struct text_run *run, size_t n) {
    assert_int_equal(drllm_session_prefill_logits(session, run->tokens + run->done, n, 0, keep_logits, run), DRLLM_OK);
    run->done += n;
    assert_memory_equal(drllm_session_logits(session), run->logits + (run->done - 1) * run->n_vocab,
                        run->n_vocab * sizeof(float));
    assert_int_equal(drllm_session_n_tokens(session), run->done);
    assert_memory_equal(drllm_session_tokens(session), run->tokens, run->done * sizeof *run->tokens);
}

enum split { SPLIT_ONE_CALL, SPLIT_SINGLE, SPLIT_RANDOM };

static void run_text(const struct drllm_model *model, unsigned n_threads, size_t n_chunk, enum split split,
                     struct text_run *run) {
    struct drllm_session *session = open_session_kv(model, run->kv_type, run->n_tokens, n_threads, n_chunk);
    struct tiny_random random = {n_threads * 1000 + n_chunk};
    run->done = 0;
    memset(run->logits, 0xFF, run->n_tokens * run->n_vocab * sizeof(float));
    while (run->done < run->n_tokens) {
        const size_t left = run->n_tokens - run->done;
        size_t n = left;
        if (split == SPLIT_SINGLE) {
            n = 1;
        } else if (split == SPLIT_RANDOM) {
            n = 1 + (size_t)(tiny_random_u64(&random) % left);
        }
        run_call(session, run, n);
    }
    drllm_session_close(session);
}

static void check_same(const char *what, const struct text_run *run, const float *expected) {
    for (size_t i = 0; i < run->n_tokens; i++) {
        if (memcmp(run->logits + i * run->n_vocab, expected + i * run->n_vocab, run->n_vocab * sizeof(float)) != 0) {
            fail_msg("%s: other logits after token %zu", what, i);
        }
    }
}

/* Over threads, chunks and calls. Where the cores are busy with other work a region of several threads may take
 * milliseconds, so those with many regions run on one thread. */
static void check_deterministic(const char *what, const struct drllm_model *model, enum drllm_kv_type kv_type,
                                const int32_t *tokens, size_t n_tokens, float *expected) {
    static const struct {
        unsigned n_threads;
        size_t n_chunk;
        enum split split;
    } runs[] = {{1, 1, SPLIT_ONE_CALL},  {1, 3, SPLIT_RANDOM},   {1, 7, SPLIT_ONE_CALL}, {1, 7, SPLIT_RANDOM},
                {1, 0, SPLIT_SINGLE},    {1, 128, SPLIT_RANDOM}, {2, 7, SPLIT_RANDOM},   {2, 128, SPLIT_ONE_CALL},
                {3, 17, SPLIT_ONE_CALL}, {3, 128, SPLIT_RANDOM}};
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    struct text_run run = {.tokens = tokens,
                           .n_tokens = n_tokens,
                           .n_vocab = info.n_vocab,
                           .kv_type = kv_type,
                           .logits = floats(n_tokens * info.n_vocab)};
    run_text(model, 1, 128, SPLIT_ONE_CALL, &run);
    memcpy(expected, run.logits, n_tokens * info.n_vocab * sizeof(float));
    for (size_t i = 0; i < info.n_vocab; i++) {
        assert_true(isfinite(expected[i]));
    }
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        run_text(model, runs[i].n_threads, runs[i].n_chunk, runs[i].split, &run);
        check_same(what, &run, expected);
    }
    free(run.logits);
}

static void check_same_numbers(enum drllm_format format, enum drllm_kv_type kv_type, bool biases, uint64_t seed) {
    enum { N = 100 }; /* more than a tile of keys */
    struct tiny_options options = tiny_default_options();
    options.blocks = options.down = options.embedding = format;
    options.biases = biases;
    options.head_dim = kv_type == DRLLM_KV_Q8_0 ? 32 : options.head_dim;
    int32_t tokens[N];
    tiny_random_tokens(seed, tokens, N, options.n_vocab);
    float *expected = floats(N * options.n_vocab), *portable = floats(N * options.n_vocab);
    struct loaded loaded = load_with(&options, NULL);
    check_deterministic(drllm_format_name((uint32_t)format), loaded.model, kv_type, tokens, N, expected);
    unload(&loaded);

    struct drllm_model_params params = drllm_model_default_params();
    params.cpu_mask = 0;
    loaded = load_with(&options, &params);
    struct text_run run = {
        .tokens = tokens, .n_tokens = N, .n_vocab = options.n_vocab, .kv_type = kv_type, .logits = portable};
    run_text(loaded.model, 1, 7, SPLIT_ONE_CALL, &run);
    check_same("portable kernels", &run, expected);
    unload(&loaded);
    free(expected);
    free(portable);
}

static void test_same_numbers(void **state) {
    (void)state;
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
                                                DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16, DRLLM_FORMAT_F32};
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        check_same_numbers(formats[i], DRLLM_KV_F16, i % 2 == 0, i);
    }
    check_same_numbers(DRLLM_FORMAT_Q4_1, DRLLM_KV_Q8_0, false, 6);
}

/* Integers in the cache change logits a little, and only a little. */
static void test_q8_0_cache_is_close(void **state) {
    (void)state;
    enum { N = 100 };
    for (size_t head_dim = 32; head_dim <= 256; head_dim *= 2) {
        struct tiny_options options = tiny_default_options();
        options.blocks = options.down = options.embedding = DRLLM_FORMAT_F32;
        options.head_dim = head_dim;
        int32_t tokens[N];
        tiny_random_tokens(head_dim, tokens, N, options.n_vocab);
        struct loaded loaded = load_with(&options, NULL);
        float *logits[2];
        const enum drllm_kv_type kv_types[2] = {DRLLM_KV_F16, DRLLM_KV_Q8_0};
        for (size_t i = 0; i < 2; i++) {
            logits[i] = floats(N * options.n_vocab);
            struct text_run run = {.tokens = tokens,
                                   .n_tokens = N,
                                   .n_vocab = options.n_vocab,
                                   .kv_type = kv_types[i],
                                   .logits = logits[i]};
            run_text(loaded.model, 1, 0, SPLIT_ONE_CALL, &run);
        }
        double squares = 0.0;
        double differences = 0.0;
        for (size_t i = 0; i < N * options.n_vocab; i++) {
            const double difference = (double)logits[1][i] - (double)logits[0][i];
            squares += (double)logits[0][i] * (double)logits[0][i];
            differences += difference * difference;
        }
        const double error = sqrt(differences / squares);
        if (error < 0.001 || error > 0.03) {
            print_error("heads of %zu: error %g\n", head_dim, error);
        }
        assert_true(error >= 0.001 && error <= 0.03);
        free(logits[0]);
        free(logits[1]);
        unload(&loaded);
    }
}

static void test_same_numbers_f32(void **state) {
    (void)state;
    enum { N = 40 };
    struct tiny_options options = tiny_default_options();
    options.blocks = options.down = options.embedding = DRLLM_FORMAT_Q4_1;
    struct drllm_model_params params = drllm_model_default_params();
    params.compute = DRLLM_COMPUTE_F32;
    int32_t tokens[N];
    tiny_random_tokens(1, tokens, N, options.n_vocab);
    float *expected = floats(N * options.n_vocab);
    struct loaded loaded = load_with(&options, &params);
    check_deterministic("f32", loaded.model, DRLLM_KV_F16, tokens, N, expected);
    unload(&loaded);
    free(expected);
}

static void test_same_numbers_on_the_real_model(void **state) {
    (void)state;
    enum { N = 40 };
    const char *path = getenv("DRLLM_TEST_MODEL");
    if (path == NULL || path[0] == '\0' || drllm_test_is_fast()) {
        drllm_skip("needs DRLLM_TEST_MODEL, and not --fast");
    }
    struct drllm_model *model = NULL;
    assert_int_equal(drllm_model_open_path(path, NULL, &model, NULL), DRLLM_OK);
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    int32_t tokens[N];
    tiny_random_tokens(3, tokens, N, info.n_vocab);
    static const enum drllm_kv_type kv_types[] = {DRLLM_KV_F16, DRLLM_KV_Q8_0};
    float *expected[2];
    struct text_run run = {
        .tokens = tokens, .n_tokens = N, .n_vocab = info.n_vocab, .logits = floats(N * info.n_vocab)};
    for (size_t i = 0; i < 2; i++) {
        expected[i] = floats(N * info.n_vocab);
        run.kv_type = kv_types[i];
        run_text(model, 1, 128, SPLIT_ONE_CALL, &run);
        memcpy(expected[i], run.logits, N * info.n_vocab * sizeof(float));
        run_text(model, 2, 0, SPLIT_ONE_CALL, &run);
        check_same("2 threads", &run, expected[i]);
        run_text(model, 3, 17, SPLIT_RANDOM, &run);
        check_same("3 threads, chunks of 17", &run, expected[i]);
        run_text(model, 1, 1, SPLIT_SINGLE, &run);
        check_same("token by token", &run, expected[i]);
    }
    assert_int_equal(drllm_model_close(model), DRLLM_OK);

    struct drllm_model_params params = drllm_model_default_params();
    params.cpu_mask = 0;
    assert_int_equal(drllm_model_open_path(path, &params, &model, NULL), DRLLM_OK);
    for (size_t i = 0; i < 2; i++) {
        run.kv_type = kv_types[i];
        run_text(model, 2, 0, SPLIT_ONE_CALL, &run);
        check_same("portable kernels", &run, expected[i]);
        free(expected[i]);
    }
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    free(run.logits);
}

struct user_of_model {
    const struct drllm_model *model;
    const int32_t *tokens;
    size_t n_tokens, n_vocab;
    float *logits; /* of the last token */
};

static void *use_model(void *argument) {
    const struct user_of_model *user = argument;
    for (unsigned n_threads = 1; n_threads <= 2; n_threads++) {
        struct drllm_session_params params = drllm_session_default_params();
        params.n_threads = n_threads;
        params.n_chunk = 16;
        struct drllm_session *session = NULL;
        if (drllm_session_open(user->model, &params, &session, NULL) != DRLLM_OK) {
            return NULL;
        }
        const size_t n_prefill = user->n_tokens - 8;
        int status = drllm_session_prefill(session, user->tokens, n_prefill);
        for (size_t i = n_prefill; i < user->n_tokens && status == DRLLM_OK; i++) {
            status = drllm_session_decode(session, user->tokens[i]);
        }
        if (status == DRLLM_OK) {
            memcpy(user->logits, drllm_session_logits(session), user->n_vocab * sizeof(float));
        }
        drllm_session_close(session);
    }
    return NULL;
}

static void test_two_sessions_at_once(void **state) {
    (void)state;
    enum { N = 60 };
    struct loaded loaded = load_tiny();
    int32_t tokens[2][N];
    struct user_of_model users[2];
    float *expected[2];
    for (size_t i = 0; i < 2; i++) {
        tiny_random_tokens(20 + i, tokens[i], N, loaded.n_vocab);
        expected[i] = floats(loaded.n_vocab);
        users[i] = (struct user_of_model){loaded.model, tokens[i], N, loaded.n_vocab, expected[i]};
        (void)use_model(&users[i]);
        users[i].logits = floats(loaded.n_vocab);
    }
    assert_memory_not_equal(expected[0], expected[1], loaded.n_vocab * sizeof(float));
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use_model, &users[i]), 0);
    }
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_memory_equal(users[i].logits, expected[i], loaded.n_vocab * sizeof(float));
        free(users[i].logits);
        free(expected[i]);
    }
    unload(&loaded);
}

/* ---- The life of a context ---- */

static void test_context(void **state) {
    (void)state;
    struct loaded loaded = load_tiny();
    struct drllm_session *session = open_session(loaded.model, 10, 1, 4);
    int32_t tokens[12];
    tiny_random_tokens(1, tokens, 12, loaded.n_vocab);
    float *after_four = floats(loaded.n_vocab), *after_ten = floats(loaded.n_vocab);
    assert_null(drllm_session_logits(session));
    assert_int_equal(drllm_session_n_tokens(session), 0);
    assert_string_equal(drllm_session_last_error(session), "");

    assert_int_equal(drllm_session_prefill(session, tokens, 0), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(drllm_session_last_error(session), "no tokens"));
    assert_int_equal(drllm_session_prefill(session, tokens, 11), DRLLM_ERR_CONTEXT_FULL);
    assert_non_null(strstr(drllm_session_last_error(session), "11 tokens"));
    assert_int_equal(drllm_session_prefill(session, tokens, SIZE_MAX), DRLLM_ERR_CONTEXT_FULL);
    const int32_t bad[] = {3, -1, 4}, large[] = {3, 4, (int32_t)loaded.n_vocab};
    assert_int_equal(drllm_session_prefill(session, bad, 3), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(drllm_session_last_error(session), "token 1 is -1"));
    assert_int_equal(drllm_session_prefill(session, large, 3), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_decode(session, INT32_MAX), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_decode(session, INT32_MIN), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_n_tokens(session), 0);
    assert_null(drllm_session_logits(session));

    assert_int_equal(drllm_session_prefill(session, tokens, 4), DRLLM_OK);
    assert_string_equal(drllm_session_last_error(session), "");
    memcpy(after_four, drllm_session_logits(session), loaded.n_vocab * sizeof(float));
    assert_int_equal(drllm_session_prefill(session, tokens + 4, 6), DRLLM_OK);
    memcpy(after_ten, drllm_session_logits(session), loaded.n_vocab * sizeof(float));
    assert_int_equal(drllm_session_decode(session, 5), DRLLM_ERR_CONTEXT_FULL);
    assert_int_equal(drllm_session_n_tokens(session), 10);
    assert_null(drllm_session_logits(session)); /* after an error */

    assert_int_equal(drllm_session_rewind(session, 11), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_rewind(session, 3), DRLLM_OK);
    assert_int_equal(drllm_session_n_tokens(session), 3);
    assert_null(drllm_session_logits(session));
    assert_int_equal(drllm_session_decode(session, tokens[3]), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), after_four, loaded.n_vocab * sizeof(float));
    assert_int_equal(drllm_session_rewind(session, 4), DRLLM_OK); /* nothing to forget */
    assert_memory_equal(drllm_session_logits(session), after_four, loaded.n_vocab * sizeof(float));
    /* Another end, forgotten again. */
    assert_int_equal(drllm_session_prefill(session, tokens + 2, 6), DRLLM_OK);
    assert_int_equal(drllm_session_rewind(session, 4), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, tokens + 4, 6), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), after_ten, loaded.n_vocab * sizeof(float));
    assert_memory_equal(drllm_session_tokens(session), tokens, 10 * sizeof *tokens);

    assert_int_equal(drllm_session_decode(session, -1), DRLLM_ERR_CONTEXT_FULL);
    drllm_session_reset(session);
    assert_int_equal(drllm_session_n_tokens(session), 0);
    assert_null(drllm_session_logits(session));
    assert_string_equal(drllm_session_last_error(session), "");
    assert_int_equal(drllm_session_prefill(session, tokens, 10), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), after_ten, loaded.n_vocab * sizeof(float));
    drllm_session_close(session);
    free(after_four);
    free(after_ten);
    unload(&loaded);
}

/* The cache grows from 64 positions by half; what is in it stays, also behind a rewind to the middle of a block of
 * keys. key_bytes, value_bytes: of a position of one head. */
static void check_growing_cache(enum drllm_kv_type kv_type, uint64_t key_bytes, uint64_t value_bytes) {
    enum { N = 400, ROOM = 448 }; /* whole tiles of 64 */
    struct tiny_options options = tiny_default_options();
    options.head_dim = 32;
    struct loaded loaded = load_with(&options, NULL);
    int32_t tokens[N];
    tiny_random_tokens(8, tokens, N, loaded.n_vocab);
    float *expected = floats(loaded.n_vocab);
    struct drllm_session *whole = open_session_kv(loaded.model, kv_type, N, 1, 0);
    assert_int_equal(drllm_session_prefill(whole, tokens, N), DRLLM_OK);
    memcpy(expected, drllm_session_logits(whole), loaded.n_vocab * sizeof(float));
    drllm_session_close(whole);

    struct drllm_session *session = open_session_kv(loaded.model, kv_type, N, 1, 0);
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    assert_true(timings.kv_bytes == 0);
    uint64_t before = 0;
    size_t n_growths = 0;
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(drllm_session_decode(session, tokens[i]), DRLLM_OK);
        if (i % 50 == 20) {
            assert_int_equal(drllm_session_rewind(session, i - 4), DRLLM_OK);
            assert_int_equal(drllm_session_prefill(session, tokens + i - 4, 5), DRLLM_OK);
        }
        drllm_session_get_timings(session, &timings);
        n_growths += timings.kv_bytes > before;
        assert_true(timings.kv_bytes >= before);
        before = timings.kv_bytes;
    }
    assert_true(n_growths >= 4);
    assert_true(timings.kv_bytes == 3 * 2 * (key_bytes + value_bytes) * ROOM); /* 3 layers of 2 heads */
    assert_memory_equal(drllm_session_logits(session), expected, loaded.n_vocab * sizeof(float));
    drllm_session_close(session);
    free(expected);
    unload(&loaded);
}

static void test_growing_cache(void **state) {
    (void)state;
    check_growing_cache(DRLLM_KV_F16, 32 * 2, 32 * 2);
    check_growing_cache(DRLLM_KV_Q8_0, 32 + 4, 32 + 2 + 4);
}

static void test_timings(void **state) {
    (void)state;
    struct loaded loaded = load_tiny();
    struct drllm_session *session = open_session(loaded.model, 64, 1, 0);
    int32_t tokens[20];
    tiny_random_tokens(1, tokens, 20, loaded.n_vocab);
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    assert_true(timings.n_prefill == 0 && timings.n_decode == 0 && timings.prefill_ns == 0 && timings.decode_ns == 0);
    assert_int_equal(drllm_session_prefill(session, tokens, 20), DRLLM_OK);
    assert_int_equal(drllm_session_decode(session, 7), DRLLM_OK);
    assert_int_equal(drllm_session_decode(session, 8), DRLLM_OK);
    assert_int_equal(drllm_session_decode(session, -8), DRLLM_ERR_ARGUMENT);
    drllm_session_get_timings(session, &timings);
    assert_true(timings.n_prefill == 20 && timings.n_decode == 2);
    assert_true(timings.prefill_ns > 0 && timings.decode_ns > 0 && timings.kv_bytes > 0);
    drllm_session_reset(session);
    drllm_session_get_timings(session, &timings);
    assert_true(timings.n_prefill == 0 && timings.n_decode == 0 && timings.prefill_ns == 0 && timings.decode_ns == 0);
    assert_true(timings.kv_bytes > 0); /* reset keeps memory */
    drllm_session_close(session);
    unload(&loaded);
}

/* ---- Hooks ---- */

struct seen_layers {
    size_t n_calls;
    size_t d_model;
    float hidden[4][64];
};

static void see_layer(void *user, size_t layer, const float *hidden) {
    struct seen_layers *seen = user;
    assert_int_equal(layer, seen->n_calls % 4);
    memcpy(seen->hidden[layer], hidden, sizeof seen->hidden[layer]);
    seen->n_calls++;
}

static void test_layer_hook(void **state) {
    (void)state;
    struct loaded loaded = load_tiny();
    int32_t tokens[30];
    tiny_random_tokens(2, tokens, 30, loaded.n_vocab);
    struct seen_layers at_once = {0}, one_by_one = {0};
    struct drllm_session *session = open_session(loaded.model, 64, 1, 8);
    drllm_session_set_layer_hook(session, see_layer, &at_once);
    assert_int_equal(drllm_session_prefill(session, tokens, 30), DRLLM_OK);
    assert_int_equal(at_once.n_calls, 4);
    drllm_session_reset(session);
    drllm_session_set_layer_hook(session, see_layer, &one_by_one);
    for (size_t i = 0; i < 30; i++) {
        assert_int_equal(drllm_session_decode(session, tokens[i]), DRLLM_OK);
    }
    assert_int_equal(one_by_one.n_calls, 120);
    assert_memory_equal(at_once.hidden, one_by_one.hidden, sizeof at_once.hidden);
    drllm_session_set_layer_hook(session, NULL, NULL);
    assert_int_equal(drllm_session_decode(session, 4), DRLLM_OK);
    assert_int_equal(one_by_one.n_calls, 120);
    drllm_session_close(session);
    unload(&loaded);
}

struct counted_positions {
    size_t n_calls, first, stop_at;
};

static int count_position(void *user, size_t position, const float *logits) {
    struct counted_positions *counted = user;
    assert_non_null(logits);
    assert_int_equal(position, counted->first + counted->n_calls);
    counted->n_calls++;
    return position == counted->stop_at ? 77 : 0;
}

static void test_logits_hook(void **state) {
    (void)state;
    struct loaded loaded = load_tiny();
    int32_t tokens[40];
    tiny_random_tokens(2, tokens, 40, loaded.n_vocab);
    struct drllm_session *session = open_session(loaded.model, 64, 1, 8);
    struct counted_positions counted = {.first = 3, .stop_at = SIZE_MAX};
    assert_int_equal(drllm_session_prefill_logits(session, tokens, 40, 3, count_position, &counted), DRLLM_OK);
    assert_int_equal(counted.n_calls, 37);
    /* A hook that stops: the call fails with its number, and the context is as long as before. */
    assert_int_equal(drllm_session_rewind(session, 10), DRLLM_OK);
    counted = (struct counted_positions){.first = 0, .stop_at = 11};
    assert_int_equal(drllm_session_prefill_logits(session, tokens + 10, 30, 0, count_position, &counted), 77);
    assert_int_equal(counted.n_calls, 12);
    assert_int_equal(drllm_session_n_tokens(session), 10);
    assert_null(drllm_session_logits(session));
    assert_int_equal(drllm_session_prefill_logits(session, tokens, 5, 5, NULL, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_prefill_logits(session, tokens, 5, 2, NULL, NULL), DRLLM_OK);
    drllm_session_close(session);
    unload(&loaded);
}

/* ---- Cancelling ---- */

struct canceller {
    struct drllm_session *session;
    size_t at_layer;
    bool waits; /* for another thread's cancel */
    atomic_bool reached, cancelled;
};

static void cancel_at_layer(void *user, size_t layer, const float *hidden) {
    struct canceller *canceller = user;
    (void)hidden;
    if (layer != canceller->at_layer) {
        return;
    }
    atomic_store(&canceller->reached, true);
    if (!canceller->waits) {
        drllm_session_cancel(canceller->session);
    }
    while (canceller->waits && !atomic_load(&canceller->cancelled)) {
        (void)sched_yield();
    }
}

static void *cancel_when_reached(void *argument) {
    struct canceller *canceller = argument;
    while (!atomic_load(&canceller->reached)) {
        (void)sched_yield();
    }
    drllm_session_cancel(canceller->session);
    atomic_store(&canceller->cancelled, true);
    return NULL;
}

static void test_cancel(void **state) {
    (void)state;
    enum { N = 100, BEFORE = 9 };
    struct loaded loaded = load_tiny();
    int32_t tokens[N];
    tiny_random_tokens(4, tokens, N, loaded.n_vocab);
    float *expected = floats(loaded.n_vocab);
    struct drllm_session *session = open_session(loaded.model, N, 1, 16);
    assert_int_equal(drllm_session_prefill(session, tokens, N), DRLLM_OK);
    memcpy(expected, drllm_session_logits(session), loaded.n_vocab * sizeof(float));

    for (size_t at_layer = 0; at_layer <= 3; at_layer++) {
        for (int waits = 0; waits < 2; waits++) {
            drllm_session_reset(session);
            assert_int_equal(drllm_session_prefill(session, tokens, BEFORE), DRLLM_OK);
            struct canceller canceller = {.session = session, .at_layer = at_layer, .waits = waits != 0};
            drllm_session_set_layer_hook(session, cancel_at_layer, &canceller);
            pthread_t thread;
            if (waits) {
                assert_int_equal(pthread_create(&thread, NULL, cancel_when_reached, &canceller), 0);
            }
            assert_int_equal(drllm_session_prefill(session, tokens + BEFORE, N - BEFORE), DRLLM_ERR_CANCELLED);
            if (waits) {
                assert_int_equal(pthread_join(thread, NULL), 0);
            }
            drllm_session_set_layer_hook(session, NULL, NULL);
            assert_string_equal(drllm_session_last_error(session), "cancelled");
            assert_int_equal(drllm_session_n_tokens(session), BEFORE);
            assert_memory_equal(drllm_session_tokens(session), tokens, BEFORE * sizeof *tokens);
            assert_null(drllm_session_logits(session));
            assert_int_equal(drllm_session_prefill(session, tokens + BEFORE, N - BEFORE), DRLLM_OK);
            assert_memory_equal(drllm_session_logits(session), expected, loaded.n_vocab * sizeof(float));
        }
    }

    /* Before a call: it ends the next one, and only that. */
    drllm_session_reset(session);
    drllm_session_cancel(session);
    drllm_session_cancel(session);
    assert_int_equal(drllm_session_decode(session, tokens[0]), DRLLM_ERR_CANCELLED);
    assert_int_equal(drllm_session_decode(session, tokens[0]), DRLLM_OK);
    drllm_session_cancel(session);
    drllm_session_reset(session);
    assert_int_equal(drllm_session_prefill(session, tokens, N), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), expected, loaded.n_vocab * sizeof(float));

    /* Scoring leaves an empty context. */
    drllm_session_reset(session);
    struct drllm_choice choice = {tokens + 10, 8, 0.0};
    struct canceller canceller = {.session = session, .at_layer = 1};
    drllm_session_set_layer_hook(session, cancel_at_layer, &canceller);
    assert_int_equal(drllm_session_score(session, tokens, 10, &choice, 1), DRLLM_ERR_CANCELLED);
    assert_int_equal(drllm_session_n_tokens(session), 0);
    drllm_session_set_layer_hook(session, NULL, NULL);
    assert_int_equal(drllm_session_score(session, tokens, 10, &choice, 1), DRLLM_OK);
    drllm_session_close(session);
    free(expected);
    unload(&loaded);
}

/* ---- Scoring ---- */

/* ln softmax, plainly. */
static double log_prob(const float *logits, size_t n_vocab, int32_t token) {
    double total = 0.0;
    for (size_t i = 0; i < n_vocab; i++) {
        total += exp((double)logits[i] - (double)logits[token]);
    }
    return -log(total);
}

static void test_score(void **state) {
    (void)state;
    enum { N_PROMPT = 23 };
    static const int32_t one[] = {5}, three[] = {270, 9, 9}, again[] = {5}, many[] = {8, 7, 6, 5, 4, 3, 270, 271, 272};
    struct loaded loaded = load_tiny();
    int32_t prompt[N_PROMPT];
    tiny_random_tokens(6, prompt, N_PROMPT, loaded.n_vocab);
    struct drllm_choice choices[] = {{one, 1, 0.0}, {three, 3, 0.0}, {again, 1, 0.0}, {many, 9, 0.0}};
    enum { N_CHOICES = sizeof choices / sizeof choices[0] };
    struct drllm_session *session = open_session(loaded.model, N_PROMPT + 9, 1, 8);
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, choices, N_CHOICES), DRLLM_OK);
    assert_int_equal(drllm_session_n_tokens(session), N_PROMPT);
    assert_memory_equal(drllm_session_tokens(session), prompt, sizeof prompt);
    float *after_prompt = floats(loaded.n_vocab);
    memcpy(after_prompt, drllm_session_logits(session), loaded.n_vocab * sizeof(float));

    struct drllm_session *stepwise = open_session(loaded.model, 64, 1, 0);
    for (size_t i = 0; i < N_CHOICES; i++) {
        drllm_session_reset(stepwise);
        assert_int_equal(drllm_session_prefill(stepwise, prompt, N_PROMPT), DRLLM_OK);
        assert_memory_equal(drllm_session_logits(stepwise), after_prompt, loaded.n_vocab * sizeof(float));
        double sum = 0.0;
        for (size_t j = 0; j < choices[i].n_tokens; j++) {
            sum += log_prob(drllm_session_logits(stepwise), loaded.n_vocab, choices[i].tokens[j]);
            assert_int_equal(drllm_session_decode(stepwise, choices[i].tokens[j]), DRLLM_OK);
        }
        assert_true(fabs(sum - choices[i].log_prob) < 1e-6 * fabs(sum));
    }
    assert_true(choices[0].log_prob == choices[2].log_prob);

    /* The context goes on from the prompt. */
    assert_int_equal(drllm_session_decode(session, one[0]), DRLLM_OK);
    drllm_session_reset(stepwise);
    assert_int_equal(drllm_session_prefill(stepwise, prompt, N_PROMPT), DRLLM_OK);
    assert_int_equal(drllm_session_decode(stepwise, one[0]), DRLLM_OK);
    assert_memory_equal(drllm_session_logits(session), drllm_session_logits(stepwise), loaded.n_vocab * sizeof(float));
    drllm_session_close(stepwise);

    /* What cannot be scored. */
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, choices, 1), DRLLM_ERR_STATE);
    assert_non_null(strstr(drllm_session_last_error(session), "empty"));
    drllm_session_reset(session);
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, NULL, 1), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, choices, 0), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_score(session, NULL, N_PROMPT, choices, 1), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_score(session, prompt, 0, choices, 1), DRLLM_ERR_ARGUMENT);
    const int32_t out_of_range[] = {4, (int32_t)loaded.n_vocab};
    struct drllm_choice bad[] = {{one, 1, 0.0}, {NULL, 1, 0.0}};
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, bad, 2), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(drllm_session_last_error(session), "choice 1"));
    bad[1] = (struct drllm_choice){one, 0, 0.0};
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, bad, 2), DRLLM_ERR_ARGUMENT);
    bad[1] = (struct drllm_choice){out_of_range, 2, 0.0};
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, bad, 2), DRLLM_ERR_ARGUMENT);
    int32_t ten[10] = {0};
    bad[1] = (struct drllm_choice){ten, 10, 0.0};
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, bad, 2), DRLLM_ERR_CONTEXT_FULL);
    bad[1] = (struct drllm_choice){ten, SIZE_MAX, 0.0};
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, bad, 2), DRLLM_ERR_CONTEXT_FULL);
    assert_int_equal(drllm_session_n_tokens(session), 0);
    drllm_session_close(session);
    free(after_prompt);
    unload(&loaded);
}

/* ---- Misuse ---- */

static void test_misuse(void **state) {
    (void)state;
    struct loaded loaded = load_tiny();
    struct drllm_session *const untouched = (struct drllm_session *)(void *)&loaded;
    struct drllm_session *session = untouched;
    struct drllm_error error = {0};
    struct drllm_session_params params = drllm_session_default_params();
    assert_int_equal(drllm_session_open(NULL, &params, &session, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(error.status, DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_open(loaded.model, &params, NULL, &error), DRLLM_ERR_ARGUMENT);
    params.n_context = SIZE_MAX;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_ERR_ARGUMENT);
    params = drllm_session_default_params();
    params.n_threads = 100000;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "100000 threads"));
    params = drllm_session_default_params();
    params.n_chunk = SIZE_MAX;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_ERR_ARGUMENT);
    params = drllm_session_default_params();
    params.kv_type = (enum drllm_kv_type)7;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_ERR_ARGUMENT);
    params.kv_type = DRLLM_KV_Q8_0;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.detail, "a multiple of 32 dimensions, at most 256; this model's have 16"));
    assert_ptr_equal(session, untouched);

    /* n_context 0: what the model was trained for. */
    params = drllm_session_default_params();
    params.n_context = 0;
    params.n_threads = 1;
    assert_int_equal(drllm_session_open(loaded.model, &params, &session, &error), DRLLM_OK);
    int32_t tokens[513] = {0};
    assert_int_equal(drllm_session_prefill(session, tokens, 513), DRLLM_ERR_CONTEXT_FULL);
    assert_int_equal(drllm_session_prefill(session, tokens, 512), DRLLM_OK);
    drllm_session_close(session);

    /* A context of one token. */
    session = open_session(loaded.model, 1, 1, 0);
    assert_int_equal(drllm_session_decode(session, 3), DRLLM_OK);
    assert_int_equal(drllm_session_decode(session, 3), DRLLM_ERR_CONTEXT_FULL);

    int32_t token = 0;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, NULL, NULL), DRLLM_OK);
    struct drllm_choice choice = {&token, 1, 0.0};
    assert_int_equal(drllm_session_prefill(NULL, &token, 1), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_prefill(session, NULL, 1), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_decode(NULL, 1), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_prefill_logits(NULL, &token, 1, 0, NULL, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_rewind(NULL, 0), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_sample(NULL, &sampler, &token), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_sample(session, NULL, &token), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_sample(session, &sampler, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_generate(NULL, &sampler, NULL, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_score(NULL, &token, 1, &choice, 1), DRLLM_ERR_ARGUMENT);
    size_t size = 0;
    char text[8];
    assert_int_equal(drllm_tokenize(NULL, "a", 1, 0, &token, 1, &size, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenize(loaded.model, NULL, 1, 0, &token, 1, &size, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenize(loaded.model, "a", 1, 0, NULL, 1, &size, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenize(loaded.model, "a", 1, 0, &token, 1, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_token_bytes(NULL, 1, true, text, 8, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_token_bytes(loaded.model, -1, true, text, 8, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_token_bytes(loaded.model, (int32_t)loaded.n_vocab, true, text, 8, &size),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_token_bytes(loaded.model, 1, true, NULL, 8, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_token_bytes(loaded.model, 1, true, text, 8, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_detokenize(NULL, &token, 1, true, text, 8, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_detokenize(loaded.model, NULL, 1, true, text, 8, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_detokenize(loaded.model, &token, 1, true, NULL, 8, &size), DRLLM_ERR_ARGUMENT);
    const struct drllm_chat_message message = {"user", "hello"};
    assert_int_equal(drllm_chat_format(NULL, &message, 1, true, text, 8, &size, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_format(loaded.model, NULL, 1, true, text, 8, &size, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_format(loaded.model, &message, 1, true, text, 8, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_format(loaded.model, &message, 1, true, text, 8, &size, &error), DRLLM_ERR_UNSUPPORTED);
    drllm_session_close(session);
    unload(&loaded);
}

int drllm_test_session(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_numbers),
        cmocka_unit_test(test_q8_0_cache_is_close),
        cmocka_unit_test(test_same_numbers_f32),
        cmocka_unit_test(test_same_numbers_on_the_real_model),
        cmocka_unit_test(test_two_sessions_at_once),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_growing_cache),
        cmocka_unit_test(test_timings),
        cmocka_unit_test(test_layer_hook),
        cmocka_unit_test(test_logits_hook),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_misuse),
    };
    return drllm_run_group("session", tests, NULL, NULL);
}
