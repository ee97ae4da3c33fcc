/* Generation, with models that say what the test wants: token after token of a script. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STEPS = 48, N_VOCAB = TINY_FIRST_PIECE + MOST_STEPS, TEXT_BYTES = 4096, MOST_CALLS = 512 };

/* ---- Models with a script ---- */

struct spoken {
    uint8_t *file;
    struct drllm_model *model;
    struct drllm_session *session;
};

static size_t count_steps(const char *const *script) {
    size_t n = 0;
    while (script[n] != NULL) {
        n++;
    }
    assert_in_range(n, 1, MOST_STEPS);
    return n;
}

static int32_t step_token(size_t step) {
    return (int32_t)(TINY_FIRST_PIECE + step);
}

/* After BOS comes the script, a piece a token, and then `then`, after which it begins again. The context holds BOS. */
static struct spoken open_spoken(const char *const *script, int32_t then, size_t n_context) {
    const size_t n_steps = count_steps(script);
    const char *pieces[MOST_STEPS];
    int32_t next[N_VOCAB];
    for (size_t i = 0; i < N_VOCAB; i++) {
        next[i] = -1;
    }
    for (size_t i = 0; i < MOST_STEPS; i++) {
        pieces[i] = i < n_steps ? script[i] : "-";
        next[step_token(i)] = i + 1 < n_steps ? step_token(i + 1) : -1;
    }
    next[TINY_BOS] = step_token(0);
    next[then] = step_token(0);
    next[step_token(n_steps - 1)] = then;
    struct tiny_options options = tiny_default_options();
    options.n_layers = 1;
    options.d_model = 320;
    options.d_ff = 8;
    options.n_heads = options.n_kv_heads = 1;
    options.head_dim = 8;
    options.n_vocab = N_VOCAB;
    options.pieces = pieces;
    options.next = next;
    struct spoken spoken;
    size_t size;
    spoken.file = tiny_model_file(&options, &size);
    struct drllm_error error = {0};
    struct drllm_model_params params = drllm_model_default_params();
    params.load_threads = 1;
    if (drllm_model_open_memory(spoken.file, size, &params, &spoken.model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    struct drllm_session_params session_params = drllm_session_default_params();
    session_params.n_context = n_context;
    session_params.n_threads = 1;
    assert_int_equal(drllm_session_open(spoken.model, &session_params, &spoken.session, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_decode(spoken.session, TINY_BOS), DRLLM_OK);
    return spoken;
}

static void close_spoken(struct spoken *spoken) {
    drllm_session_close(spoken->session);
    assert_int_equal(drllm_model_close(spoken->model), DRLLM_OK);
    free(spoken->file);
}

static struct drllm_sampler greedy(void) {
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = 0.0f;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, &params, NULL), DRLLM_OK);
    return sampler;
}

/* ---- What was said ---- */

struct heard {
    char text[TEXT_BYTES];
    size_t size;
    int32_t tokens[MOST_CALLS];
    size_t n_calls;
    size_t stop_at; /* the number of the call that returns false, from 1; 0: none */
    bool stopped;
    struct drllm_session *cancel; /* at call cancel_at, from 1 */
    size_t cancel_at;
};

/* Only whole characters are handed out. */
static void check_utf8(const char *text, size_t size) {
    for (size_t at = 0; at < size;) {
        const uint8_t first = (uint8_t)text[at];
        const size_t n = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        assert_true(first < 0x80 || (first >= 0xC2 && first <= 0xF4));
        assert_true(n <= size - at);
        for (size_t i = 1; i < n; i++) {
            assert_int_equal((uint8_t)text[at + i] & 0xC0, 0x80);
        }
        at += n;
    }
}

static bool hear(void *user, int32_t token, const char *text, size_t size) {
    struct heard *heard = user;
    assert_false(heard->stopped); /* no call after one that said no */
    assert_true(heard->size + size < TEXT_BYTES && heard->n_calls < MOST_CALLS);
    assert_non_null(text);
    check_utf8(text, size);
    memcpy(heard->text + heard->size, text, size);
    heard->size += size;
    heard->text[heard->size] = '\0';
    heard->tokens[heard->n_calls++] = token;
    if (heard->n_calls == heard->cancel_at) {
        drllm_session_cancel(heard->cancel);
    }
    heard->stopped = heard->n_calls == heard->stop_at;
    return !heard->stopped;
}

struct expected {
    const char *text;
    enum drllm_stop_reason reason;
    size_t n_tokens;
};

/* Generate from the script and compare; heard is for further looks. */
static void check_generation(const char *const *script, const char *const *stop, size_t max_tokens,
                             const struct expected *expected) {
    struct spoken spoken = open_spoken(script, TINY_EOS, 256);
    struct heard heard = {.size = 0};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = max_tokens;
    params.stop = stop;
    while (stop != NULL && stop[params.n_stop] != NULL) {
        params.n_stop++;
    }
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
    if (strcmp(heard.text, expected->text) != 0 || heard.size != strlen(expected->text) ||
        result.reason != expected->reason || result.n_tokens != expected->n_tokens) {
        fail_msg("'%s', reason %d, %zu tokens; expected '%s', %d, %zu", heard.text, (int)result.reason, result.n_tokens,
                 expected->text, (int)expected->reason, expected->n_tokens);
    }
    /* The context: BOS and what was sampled, but for the last one. */
    assert_int_equal(drllm_session_n_tokens(spoken.session), result.n_tokens > 0 ? result.n_tokens : 1);
    close_spoken(&spoken);
}

#define CHECK(script, stop, max_tokens, text, reason, n_tokens) \
    check_generation(script, stop, max_tokens, &(const struct expected){text, reason, n_tokens})
#define SCRIPT(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- Ends ---- */

static void test_max_tokens(void **state) {
    (void)state;
    const char *const *script = SCRIPT("Hello", "\xE2\x96\x81world", ",", "\xE2\x96\x81how", "\xE2\x96\x81is");
    CHECK(script, NULL, 0, "", DRLLM_STOP_MAX_TOKENS, 0);
    CHECK(script, NULL, 1, "Hello", DRLLM_STOP_MAX_TOKENS, 1);
    CHECK(script, NULL, 4, "Hello world, how", DRLLM_STOP_MAX_TOKENS, 4);
    CHECK(script, NULL, 5, "Hello world, how is", DRLLM_STOP_MAX_TOKENS, 5);
}

static void test_end_token(void **state) {
    (void)state;
    const char *const *script = SCRIPT("one", " two");
    CHECK(script, NULL, 6, "one two", DRLLM_STOP_END, 3);
    CHECK(script, NULL, 3, "one two", DRLLM_STOP_END, 3);

    struct spoken spoken = open_spoken(script, TINY_EOS, 64);
    struct heard heard = {.size = 0};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = 7;
    params.ignore_end = true;
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
    assert_string_equal(heard.text, "one twoone twoone");
    assert_int_equal(result.reason, DRLLM_STOP_MAX_TOKENS);
    assert_int_equal(result.n_tokens, 7);
    /* A call for every token, also for those that end no character. */
    const int32_t expected[] = {step_token(0), step_token(1), TINY_EOS,     step_token(0),
                                step_token(1), TINY_EOS,      step_token(0)};
    assert_int_equal(heard.n_calls, 7);
    assert_memory_equal(heard.tokens, expected, sizeof expected);
    close_spoken(&spoken);
}

static void test_context_end(void **state) {
    (void)state;
    const char *const *script = SCRIPT("a", "b", "c", "d", "e", "f");
    struct spoken spoken = open_spoken(script, TINY_EOS, 4);
    struct heard heard = {.size = 0};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
    assert_int_equal(result.reason, DRLLM_STOP_CONTEXT);
    assert_string_equal(heard.text, "abcd"); /* one more than fits, which nothing follows */
    assert_int_equal(result.n_tokens, 4);
    assert_int_equal(drllm_session_n_tokens(spoken.session), 4);
    close_spoken(&spoken);
}

static void test_going_on(void **state) {
    (void)state;
    struct spoken spoken = open_spoken(SCRIPT("a", "b", "c", "d", "e"), TINY_EOS, 64);
    struct heard heard = {.size = 0};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = 2;
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, NULL), DRLLM_OK);
    assert_string_equal(heard.text, "ab");
    assert_int_equal(drllm_session_decode(spoken.session, heard.tokens[1]), DRLLM_OK);
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, NULL), DRLLM_OK);
    assert_string_equal(heard.text, "abcd");
    close_spoken(&spoken);

    /* Without a callback, and with the default parameters. */
    spoken = open_spoken(SCRIPT("a", "b"), step_token(0), 512);
    struct drllm_generation result;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, NULL, &result), DRLLM_OK);
    assert_int_equal(result.reason, DRLLM_STOP_MAX_TOKENS);
    assert_int_equal(result.n_tokens, 128);
    close_spoken(&spoken);
}

/* ---- Stop strings ---- */

static void test_stop_strings(void **state) {
    (void)state;
    const char *const *stop = SCRIPT("STOP");
    CHECK(SCRIPT("say STOP now", "x"), stop, 9, "say ", DRLLM_STOP_STRING, 1);
    CHECK(SCRIPT("say ", "ST", "OP", "x"), stop, 9, "say ", DRLLM_STOP_STRING, 3);
    CHECK(SCRIPT("say S", "T", "O", "P then", "x"), stop, 9, "say ", DRLLM_STOP_STRING, 4);
    CHECK(SCRIPT("STOP", "x"), stop, 9, "", DRLLM_STOP_STRING, 1);
    CHECK(SCRIPT("say ", "ST", "OP"), stop, 3, "say ", DRLLM_STOP_STRING, 3);
    /* What looked like one and is none comes out. */
    CHECK(SCRIPT("say ", "STO", "RE"), stop, 9, "say STORE", DRLLM_STOP_END, 4);
    CHECK(SCRIPT("say ", "ST", "ST", "OP"), stop, 9, "say ST", DRLLM_STOP_STRING, 4);
    CHECK(SCRIPT("say ", "STO"), stop, 9, "say STO", DRLLM_STOP_END, 3);
    CHECK(SCRIPT("say ", "STO", "P"), stop, 2, "say STO", DRLLM_STOP_MAX_TOKENS, 2);
    CHECK(SCRIPT("a", "a", "a", "b", "c"), SCRIPT("aab"), 9, "a", DRLLM_STOP_STRING, 4);
    CHECK(SCRIPT("abab", "abac", "x"), SCRIPT("ababac"), 9, "ab", DRLLM_STOP_STRING, 2);
    /* Several: the one that begins first among the whole ones. */
    CHECK(SCRIPT("one two three"), SCRIPT("three", "two"), 9, "one ", DRLLM_STOP_STRING, 1);
    CHECK(SCRIPT("abcX", "Y"), SCRIPT("bc", "abcX"), 9, "", DRLLM_STOP_STRING, 1);
    CHECK(SCRIPT("abc", "X"), SCRIPT("abcX", "bc"), 9, "a", DRLLM_STOP_STRING, 1); /* does not wait for the other */
    CHECK(SCRIPT("ab", "c"), SCRIPT("abX", "bc"), 9, "a", DRLLM_STOP_STRING, 2);
    CHECK(SCRIPT("x", "\n", "\n", "y"), SCRIPT("\n\n", "y"), 9, "x", DRLLM_STOP_STRING, 3);
    /* No string at all never comes. */
    CHECK(SCRIPT("abc", "d"), SCRIPT(""), 9, "abcd", DRLLM_STOP_END, 3);
    CHECK(SCRIPT("abc", "d"), SCRIPT("", "d"), 9, "abc", DRLLM_STOP_STRING, 2);
    /* Characters of several bytes. */
    CHECK(SCRIPT("caf", "\xC3", "\xA9", "!"), SCRIPT("\xC3\xA9"), 9, "caf", DRLLM_STOP_STRING, 3);
    CHECK(SCRIPT("caf", "\xC3", "\xA8", "!"), SCRIPT("\xC3\xA9"), 9, "caf\xC3\xA8!", DRLLM_STOP_END, 5);
    CHECK(SCRIPT("\xF0\x9F", "\x98\x80", "S", "\xF0\x9F", "\x98\x81"), SCRIPT("S\xF0\x9F\x98\x81"), 9,
          "\xF0\x9F\x98\x80", DRLLM_STOP_STRING, 5);
}

/* ---- Characters ---- */

static void test_whole_characters(void **state) {
    (void)state;
    CHECK(SCRIPT("\xF0", "\x9F", "\x98", "\x80", "!"), NULL, 9, "\xF0\x9F\x98\x80!", DRLLM_STOP_END, 6);
    CHECK(SCRIPT("a\xE2", "\x82", "\xAC\xC3", "\xA9"), NULL, 9, "a\xE2\x82\xAC\xC3\xA9", DRLLM_STOP_END, 5);
    /* Cut off at the end. */
    CHECK(SCRIPT("a", "\xE2\x82", "\xAC"), NULL, 2, "a\xEF\xBF\xBD", DRLLM_STOP_MAX_TOKENS, 2);
    CHECK(SCRIPT("a", "\xF0"), NULL, 9, "a\xEF\xBF\xBD", DRLLM_STOP_END, 3);
    /* Never valid. */
    CHECK(SCRIPT("a", "\x80", "b"), NULL, 9,
          "a\xEF\xBF\xBD"
          "b",
          DRLLM_STOP_END, 4);
    CHECK(SCRIPT("\xE2", "\x82", "b"), NULL, 9,
          "\xEF\xBF\xBD"
          "b",
          DRLLM_STOP_END, 4);
    CHECK(SCRIPT("\xC0\xAF", "b"), NULL, 9,
          "\xEF\xBF\xBD\xEF\xBF\xBD"
          "b",
          DRLLM_STOP_END, 3);
}

/* ---- Callbacks and cancelling ---- */

static void test_callback_stops(void **state) {
    (void)state;
    for (size_t stop_at = 1; stop_at <= 3; stop_at++) {
        struct spoken spoken = open_spoken(SCRIPT("a", "b", "c", "d"), TINY_EOS, 64);
        struct heard heard = {.stop_at = stop_at};
        struct drllm_generate_params params = drllm_generate_default_params();
        params.on_text = hear;
        params.user = &heard;
        struct drllm_sampler sampler = greedy();
        struct drllm_generation result;
        assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
        assert_int_equal(result.reason, DRLLM_STOP_CALLBACK);
        assert_int_equal(result.n_tokens, stop_at);
        assert_int_equal(heard.n_calls, stop_at);
        assert_memory_equal(heard.text, "abcd", stop_at);
        assert_int_equal(drllm_session_n_tokens(spoken.session), stop_at);
        close_spoken(&spoken);
    }
    /* Nothing more is said, not even what was held back. */
    struct spoken spoken = open_spoken(SCRIPT("aS", "T", "x"), TINY_EOS, 64);
    struct heard heard = {.stop_at = 1};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.stop = SCRIPT("STOP");
    params.n_stop = 1;
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
    assert_int_equal(result.reason, DRLLM_STOP_CALLBACK);
    assert_string_equal(heard.text, "a");
    close_spoken(&spoken);
}

static void test_cancel(void **state) {
    (void)state;
    struct spoken spoken = open_spoken(SCRIPT("a", "bS", "T", "c"), TINY_EOS, 64);
    struct heard heard = {.cancel = spoken.session, .cancel_at = 2};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.stop = SCRIPT("STOP");
    params.n_stop = 1;
    params.on_text = hear;
    params.user = &heard;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result = {DRLLM_STOP_END, 99, 99};
    drllm_session_cancel(spoken.session);
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_ERR_CANCELLED);
    assert_int_equal(result.n_tokens, 0);
    assert_int_equal(result.token, -1);
    assert_int_equal(heard.n_calls, 0);
    assert_int_equal(drllm_session_n_tokens(spoken.session), 1);

    assert_int_equal(drllm_session_rewind(spoken.session, 0), DRLLM_OK);
    assert_int_equal(drllm_session_decode(spoken.session, TINY_BOS), DRLLM_OK);
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_ERR_CANCELLED);
    assert_string_equal(drllm_session_last_error(spoken.session), "cancelled");
    assert_int_equal(result.n_tokens, 2);
    assert_string_equal(heard.text, "abS"); /* the text so far has been reported */
    assert_int_equal(drllm_session_n_tokens(spoken.session), 2);

    /* And on. */
    assert_int_equal(drllm_session_decode(spoken.session, step_token(1)), DRLLM_OK);
    heard = (struct heard){.size = 0};
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_OK);
    assert_string_equal(heard.text, "Tc");
    close_spoken(&spoken);
}

struct speaker {
    struct drllm_session *session;
    atomic_size_t n_calls;
};

static bool count_call(void *user, int32_t token, const char *text, size_t size) {
    struct speaker *speaker = user;
    (void)token;
    (void)text;
    (void)size;
    (void)atomic_fetch_add(&speaker->n_calls, 1);
    return true;
}

static void *cancel_after_some(void *argument) {
    struct speaker *speaker = argument;
    while (atomic_load(&speaker->n_calls) < 10) {
        (void)sched_yield();
    }
    drllm_session_cancel(speaker->session);
    return NULL;
}

static void test_cancel_from_another_thread(void **state) {
    (void)state;
    struct spoken spoken = open_spoken(SCRIPT("a", "b"), step_token(0), (size_t)1 << 20);
    struct speaker speaker = {.session = spoken.session};
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = SIZE_MAX;
    params.on_text = count_call;
    params.user = &speaker;
    struct drllm_sampler sampler = greedy();
    struct drllm_generation result;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, cancel_after_some, &speaker), 0);
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, &result), DRLLM_ERR_CANCELLED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(result.n_tokens >= 10);
    assert_int_equal(result.n_tokens, atomic_load(&speaker.n_calls));
    close_spoken(&spoken);
}

static void test_misuse(void **state) {
    (void)state;
    struct spoken spoken = open_spoken(SCRIPT("a", "b"), TINY_EOS, 64);
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_sampler sampler = greedy();
    params.n_stop = 1;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, NULL), DRLLM_ERR_ARGUMENT);
    const char *const holes[] = {"x", NULL};
    params.stop = holes;
    params.n_stop = 2;
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, &params, NULL), DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(drllm_session_last_error(spoken.session), "stop string 1"));
    assert_int_equal(drllm_session_generate(spoken.session, NULL, NULL, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_n_tokens(spoken.session), 1);
    drllm_session_reset(spoken.session);
    assert_int_equal(drllm_session_generate(spoken.session, &sampler, NULL, NULL), DRLLM_ERR_STATE);
    assert_non_null(strstr(drllm_session_last_error(spoken.session), "prefill"));
    close_spoken(&spoken);
}

int drllm_test_generate(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_max_tokens),
        cmocka_unit_test(test_end_token),
        cmocka_unit_test(test_context_end),
        cmocka_unit_test(test_going_on),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_whole_characters),
        cmocka_unit_test(test_callback_stops),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_from_another_thread),
        cmocka_unit_test(test_misuse),
    };
    return drllm_run_group("generate", tests, NULL, NULL);
}
