/* The sampler against a plain one, on logits that the tests write into the session. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = TINY_FIRST_PIECE + 18 };

struct fixture {
    uint8_t *file;
    struct drllm_model *model;
    struct drllm_session *session;
    float *logits; /* the session's own */
};
static struct fixture fixture;

static const int32_t history[] = {5, 9, 9, 100, 5, 200, 7};
enum { N_HISTORY = sizeof history / sizeof history[0] };

static int set_up(void **state) {
    (void)state;
    struct tiny_options options = tiny_default_options();
    options.n_layers = 1;
    size_t size;
    fixture.file = tiny_model_file(&options, &size);
    assert_int_equal(options.n_vocab, N_VOCAB);
    assert_int_equal(drllm_model_open_memory(fixture.file, size, NULL, &fixture.model, NULL), DRLLM_OK);
    struct drllm_session_params params = drllm_session_default_params();
    params.n_threads = 1;
    assert_int_equal(drllm_session_open(fixture.model, &params, &fixture.session, NULL), DRLLM_OK);
    int32_t token;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, NULL, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_sample(fixture.session, &sampler, &token), DRLLM_ERR_STATE);
    assert_non_null(strstr(drllm_session_last_error(fixture.session), "prefill"));
    assert_int_equal(drllm_session_prefill(fixture.session, history, N_HISTORY), DRLLM_OK);
    fixture.logits = (float *)drllm_session_logits(fixture.session);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    drllm_session_close(fixture.session);
    (void)drllm_model_close(fixture.model);
    free(fixture.file);
    return 0;
}

static void random_logits(uint64_t seed, float spread) {
    struct tiny_random random = {seed};
    for (size_t i = 0; i < N_VOCAB; i++) {
        fixture.logits[i] = spread * tiny_random_normal(&random);
    }
    fixture.logits[30] = fixture.logits[20]; /* a tie */
}

static struct drllm_sampler make_sampler(const struct drllm_sampler_params *params) {
    struct drllm_sampler sampler;
    struct drllm_error error = {0};
    if (drllm_sampler_init(&sampler, params, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return sampler;
}

static int32_t sample(struct drllm_sampler *sampler) {
    int32_t token = -1;
    assert_int_equal(drllm_session_sample(fixture.session, sampler, &token), DRLLM_OK);
    assert_in_range(token, 0, N_VOCAB - 1);
    assert_int_equal(drllm_session_n_tokens(fixture.session), N_HISTORY);
    return token;
}

static struct drllm_sampler_params everything_off(void) {
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = 1.0f;
    params.top_k = 0;
    params.top_p = 1.0f;
    params.min_p = 0.0f;
    return params;
}

/* ---- The plain sampler: what the probability of each token is ---- */

static bool was_said(const struct drllm_sampler_params *params, size_t token) {
    for (size_t i = 0; i < N_HISTORY; i++) {
        if (N_HISTORY - i <= params->repeat_last_n && (size_t)history[i] == token) {
            return true;
        }
    }
    return false;
}

/* p[i] = exp((logit[i] - most) / temperature) over what is kept, and that sums up to 1. */
static void soften(const double *logits, const bool *kept, double temperature, double *p) {
    double most = -INFINITY, total = 0.0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        most = kept[i] ? fmax(most, logits[i]) : most;
    }
    for (size_t i = 0; i < N_VOCAB; i++) {
        p[i] = kept[i] ? exp((logits[i] - most) / temperature) : 0.0;
        total += p[i];
    }
    for (size_t i = 0; i < N_VOCAB; i++) {
        p[i] /= total;
    }
}

/* The likelier first, then the lower id. */
static size_t rank_of(const double *logits, size_t token) {
    size_t rank = 0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
    }
    return rank;
}

static void plain_probabilities(const struct drllm_sampler_params *params, double *p) {
    double logits[N_VOCAB];
    bool kept[N_VOCAB];
    size_t by_rank[N_VOCAB];
    for (size_t i = 0; i < N_VOCAB; i++) {
        logits[i] = (double)fixture.logits[i];
        if (was_said(params, i)) {
            /* in float, as it is: the order of near equals depends on it */
            const float logit = fixture.logits[i];
            logits[i] = (double)(logit > 0.0f ? logit / params->repeat_penalty : logit * params->repeat_penalty);
        }
    }
    for (size_t i = 0; i < N_VOCAB; i++) {
        const size_t rank = rank_of(logits, i);
        by_rank[rank] = i;
        kept[i] = params->top_k == 0 || rank < params->top_k;
    }
    /* top-p: the likeliest until they make up p. */
    soften(logits, kept, 1.0, p);
    double reached = 0.0;
    for (size_t rank = 0; rank < N_VOCAB && params->top_p < 1.0f; rank++) {
        kept[by_rank[rank]] = kept[by_rank[rank]] && reached < (double)params->top_p;
        reached += p[by_rank[rank]];
    }
    soften(logits, kept, 1.0, p);
    const double most = p[by_rank[0]];
    for (size_t i = 0; i < N_VOCAB; i++) {
        kept[i] = kept[i] && p[i] >= (double)params->min_p * most;
    }
    soften(logits, kept, (double)params->temperature, p);
}

/* Draws are from the expected set, and as often as they should be by Pearson's test. */
static void check_draws(const char *what, const struct drllm_sampler_params *params) {
    enum { N_DRAWS = 3000 };
    double p[N_VOCAB];
    size_t counts[N_VOCAB] = {0};
    plain_probabilities(params, p);
    struct drllm_sampler sampler = make_sampler(params);
    for (size_t i = 0; i < N_DRAWS; i++) {
        counts[sample(&sampler)]++;
    }
    double chi_square = 0.0, rest_expected = 0.0;
    size_t rest_count = 0, n_bins = 0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        const double expected = p[i] * N_DRAWS;
        if (p[i] == 0.0 && counts[i] != 0) {
            fail_msg("%s: token %zu was drawn %zu times", what, i, counts[i]);
        }
        if (expected < 5.0) {
            rest_expected += expected;
            rest_count += counts[i];
            continue;
        }
        const double difference = (double)counts[i] - expected;
        chi_square += difference * difference / expected;
        n_bins++;
    }
    if (rest_expected >= 5.0) {
        const double difference = (double)rest_count - rest_expected;
        chi_square += difference * difference / rest_expected;
        n_bins++;
    }
    assert_true(n_bins >= 1);
    /* Mean n - 1, deviation sqrt(2 (n - 1)); the seeds are fixed, so this passes always or never. */
    const double degrees = (double)n_bins - 1.0;
    if (chi_square > degrees + 4.0 * sqrt(2.0 * degrees) + 1e-9) {
        fail_msg("%s: chi square %g with %zu bins", what, chi_square, n_bins);
    }
}

static void test_against_a_plain_sampler(void **state) {
    (void)state;
    struct drllm_sampler_params params = everything_off();
    random_logits(1, 2.0f);
    check_draws("all", &params);
    params.temperature = 0.5f;
    check_draws("temperature 0.5", &params);
    params.temperature = 3.0f;
    check_draws("temperature 3", &params);
    params.top_k = 7;
    check_draws("top-k 7", &params);
    params.top_k = 1;
    check_draws("top-k 1", &params);
    params.top_k = 100000;
    check_draws("top-k above the vocabulary", &params);
    params = everything_off();
    params.top_p = 0.6f;
    check_draws("top-p 0.6", &params);
    params.temperature = 2.0f; /* comes after top-p */
    check_draws("top-p 0.6, temperature 2", &params);
    params.top_p = 1e-6f;
    check_draws("top-p 0", &params);
    params = everything_off();
    params.min_p = 0.1f;
    check_draws("min-p 0.1", &params);
    params.min_p = 0.999f;
    check_draws("min-p 0.999", &params);
    params = everything_off();
    params.repeat_penalty = 2.5f;
    check_draws("penalty", &params);
    params.repeat_penalty = 0.4f;
    check_draws("reward", &params);
    params.repeat_penalty = 8.0f;
    params.repeat_last_n = 3;
    check_draws("penalty on the last 3", &params);
    params.repeat_last_n = 0;
    check_draws("penalty on nothing", &params);
    random_logits(2, 1.0f);
    params = drllm_sampler_default_params();
    check_draws("defaults", &params);
    params = (struct drllm_sampler_params){.temperature = 1.3f,
                                           .top_k = 60,
                                           .top_p = 0.8f,
                                           .min_p = 0.12f,
                                           .repeat_penalty = 1.4f,
                                           .repeat_last_n = 5,
                                           .seed = 99};
    check_draws("all at once", &params);
}

/* ---- Single properties ---- */

static void test_greedy(void **state) {
    (void)state;
    random_logits(3, 1.0f);
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = 0.0f;
    struct drllm_sampler sampler = make_sampler(&params);
    fixture.logits[123] = 50.0f;
    assert_int_equal(sample(&sampler), 123);
    fixture.logits[77] = 50.0f;
    assert_int_equal(sample(&sampler), 77); /* the lower of equals */
    fixture.logits[0] = fixture.logits[N_VOCAB - 1] = 60.0f;
    assert_int_equal(sample(&sampler), 0);
    fixture.logits[0] = -60.0f;
    assert_int_equal(sample(&sampler), N_VOCAB - 1);
    /* What overflowed is as large as the largest number, and the lower of equals is the one. */
    fixture.logits[N_VOCAB - 2] = FLT_MAX;
    fixture.logits[N_VOCAB - 1] = INFINITY;
    assert_int_equal(sample(&sampler), N_VOCAB - 2);
    fixture.logits[5] = INFINITY;
    assert_int_equal(sample(&sampler), 5);
    fixture.logits[4] = NAN;
    assert_int_equal(sample(&sampler), 5);
    /* Zeros of both signs are equals, and below them the order is the same. */
    for (size_t i = 0; i < N_VOCAB; i++) {
        fixture.logits[i] = -1.0f - (float)(i % 7);
    }
    assert_int_equal(sample(&sampler), 0);
    fixture.logits[N_VOCAB - 3] = -0.5f;
    assert_int_equal(sample(&sampler), N_VOCAB - 3);
    fixture.logits[70] = -0.0f;
    fixture.logits[N_VOCAB - 3] = 0.0f;
    assert_int_equal(sample(&sampler), 70);
    random_logits(3, 1.0f);
    fixture.logits[0] = -60.0f;
    /* The penalty holds here, too. Token 200 was said, 150 was not. */
    params.repeat_penalty = 1.5f;
    sampler = make_sampler(&params);
    fixture.logits[200] = 120.0f;
    fixture.logits[150] = 79.0f;
    assert_int_equal(sample(&sampler), 200);
    fixture.logits[150] = 81.0f;
    assert_int_equal(sample(&sampler), 150);
    /* Negative logits are multiplied, and a token that was said twice pays once. */
    for (size_t i = 0; i < N_VOCAB; i++) {
        fixture.logits[i] = -100.0f;
    }
    fixture.logits[9] = -10.0f;
    fixture.logits[150] = -15.5f;
    assert_int_equal(sample(&sampler), 9);
    fixture.logits[150] = -14.5f;
    assert_int_equal(sample(&sampler), 150);
    assert_true(fixture.logits[9] == -10.0f && fixture.logits[150] == -14.5f); /* the logits stay as they are */
}

static void test_seeds(void **state) {
    (void)state;
    enum { N = 24 };
    /* From this very test; on every machine. */
    static const int32_t golden[N] = {55,  16, 84, 160, 199, 71,  241, 21,  207, 29, 8,  165,
                                      254, 29, 42, 249, 262, 270, 37,  105, 194, 76, 42, 55};
    for (size_t i = 0; i < N_VOCAB; i++) {
        fixture.logits[i] = (float)((uint32_t)i * 2654435761u >> 20) / 1024.0f;
    }
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.seed = 1234;
    struct drllm_sampler sampler = make_sampler(&params);
    int32_t drawn[N];
    for (size_t i = 0; i < N; i++) {
        drawn[i] = sample(&sampler);
    }
    assert_memory_equal(drawn, golden, sizeof golden);
    struct drllm_sampler again = make_sampler(&params);
    for (size_t i = 0; i < N / 2; i++) {
        assert_int_equal(sample(&again), golden[i]);
    }
    struct drllm_sampler copy = again; /* owns nothing */
    for (size_t i = N / 2; i < N; i++) {
        assert_int_equal(sample(&again), golden[i]);
        assert_int_equal(sample(&copy), golden[i]);
    }
    params.seed = 1235;
    struct drllm_sampler other = make_sampler(&params);
    size_t n_equal = 0;
    for (size_t i = 0; i < N; i++) {
        n_equal += sample(&other) == golden[i];
    }
    assert_true(n_equal < N / 2);
}

static void test_parameter_ranges(void **state) {
    (void)state;
    static const struct {
        size_t field;
        float values[5];
        bool valid[5];
        const char *word;
    } rows[] = {
        {offsetof(struct drllm_sampler_params, temperature),
         {-0.1f, NAN, 100.5f, 0.0f, 100.0f},
         {false, false, false, true, true},
         "temperature"},
        {offsetof(struct drllm_sampler_params, top_p),
         {0.0f, NAN, 1.01f, 1e-6f, 1.0f},
         {false, false, false, true, true},
         "top_p"},
        {offsetof(struct drllm_sampler_params, min_p),
         {-0.1f, NAN, 1.0f, 0.0f, 0.999f},
         {false, false, false, true, true},
         "min_p"},
        {offsetof(struct drllm_sampler_params, repeat_penalty),
         {0.0f, NAN, INFINITY, 0.1f, 2.0f},
         {false, false, false, true, true},
         "repeat_penalty"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t j = 0; j < 5; j++) {
            struct drllm_sampler_params params = drllm_sampler_default_params();
            memcpy((char *)&params + rows[i].field, &rows[i].values[j], sizeof(float));
            struct drllm_sampler sampler, before;
            memset(&sampler, 0x5A, sizeof sampler);
            before = sampler;
            struct drllm_error error = {0};
            const int status = drllm_sampler_init(&sampler, &params, &error);
            if (rows[i].valid[j]) {
                assert_int_equal(status, DRLLM_OK);
                continue;
            }
            assert_int_equal(status, DRLLM_ERR_ARGUMENT);
            assert_non_null(strstr(error.detail, rows[i].word));
            assert_memory_equal(&sampler, &before, sizeof sampler);
        }
    }
    assert_int_equal(drllm_sampler_init(NULL, NULL, NULL), DRLLM_ERR_ARGUMENT);
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, NULL, NULL), DRLLM_OK);
    assert_true(sampler.params.temperature == drllm_sampler_default_params().temperature);
}

static void test_logits_that_are_none(void **state) {
    (void)state;
    struct drllm_sampler_params greedy = drllm_sampler_default_params();
    greedy.temperature = 0.0f;
    struct drllm_sampler_params params[] = {greedy, drllm_sampler_default_params(), everything_off()};
    for (size_t i = 0; i < 3; i++) {
        struct drllm_sampler sampler = make_sampler(&params[i]);
        random_logits(5, 1.0f);
        fixture.logits[3] = fixture.logits[N_VOCAB - 1] = NAN;
        fixture.logits[4] = -INFINITY;
        fixture.logits[6] = -NAN;
        for (size_t j = 0; j < 300; j++) {
            const int32_t token = sample(&sampler);
            assert_true(token != 3 && token != 4 && token != 6 && token != N_VOCAB - 1);
        }
        /* What overflowed is the likeliest. */
        fixture.logits[42] = INFINITY;
        for (size_t j = 0; j < 10; j++) {
            assert_int_equal(sample(&sampler), 42);
        }
        /* Nothing to choose from: any token, no crash. */
        for (size_t j = 0; j < N_VOCAB; j++) {
            fixture.logits[j] = NAN;
        }
        (void)sample(&sampler);
    }
}

/* A penalty on no tokens takes the way by a list, and comes to the same as the one without. */
static void test_greedy_with_and_without_a_list(void **state) {
    (void)state;
    static const float others[] = {INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 1.0f};
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = 0.0f;
    struct drllm_sampler without = make_sampler(&params);
    params.repeat_penalty = 2.0f;
    params.repeat_last_n = 0;
    struct drllm_sampler with = make_sampler(&params);
    uint64_t random = 5;
    for (size_t round = 0; round < 3000; round++) {
        random_logits(round, 1.0f);
        const uint32_t kinds = drllm_random(&random) % 9 + 1; /* the first of the others, or all */
        const uint32_t share = 1u << drllm_random(&random) % 9;
        for (size_t i = 0; i < N_VOCAB; i++) {
            const uint32_t n = drllm_random(&random);
            if (n % share == 0) {
                fixture.logits[i] = others[n / share % kinds];
            } else if (n % 16 == 1) {
                fixture.logits[i] = round % 2 == 0 ? NAN : -NAN;
            }
        }
        assert_int_equal(sample(&without), sample(&with));
    }
}

int drllm_test_sampler(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_a_plain_sampler),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_greedy_with_and_without_a_list),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_parameter_ranges),
        cmocka_unit_test(test_logits_that_are_none),
    };
    return drllm_run_group("sampler", tests, set_up, tear_down);
}
