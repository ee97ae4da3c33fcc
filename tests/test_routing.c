/* Sessions under layer programs and routers, on tiny models: against a plain forward pass and a plain router in double
 * precision, against other sessions that come to the same context another way, budgets, failures in the middle. */
#include "tests/tests.h"

#include "runtime/internal.h"
#include "tests/router_builder.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_LAYERS = 5, D_MODEL = 32, N_VOCAB = TINY_FIRST_PIECE + 5, CONTEXT = 48 };

/* ---- Models, routers, sessions ---- */

struct rig {
    struct tiny_model tiny;
    uint8_t *file;
    struct drllm_model *model;
    struct tiny_counted counted;
};

static struct tiny_options model_options(enum drllm_format format) {
    struct tiny_options options = tiny_default_options();
    options.n_layers = N_LAYERS;
    options.d_model = options.d_ff = D_MODEL;
    options.n_heads = 2;
    options.n_kv_heads = 1;
    options.n_vocab = N_VOCAB;
    options.blocks = options.down = format;
    options.embedding = format == DRLLM_FORMAT_F32 ? DRLLM_FORMAT_F32 : DRLLM_FORMAT_Q8_0;
    return options;
}

/* The rig stays where it is: the model's allocator points into it. */
static void set_up(struct rig *rig, const struct tiny_options *options, enum drllm_compute compute) {
    *rig = (struct rig){.counted = {.fail_at = SIZE_MAX}};
    tiny_model_make(&rig->tiny, options);
    size_t size;
    rig->file = tiny_model_write(&rig->tiny, NULL, 0, &size);
    struct drllm_model_params params = drllm_model_default_params();
    params.compute = compute;
    params.load_threads = 1;
    params.allocator = tiny_counted_allocator(&rig->counted);
    struct drllm_error error = {0};
    if (drllm_model_open_memory(rig->file, size, &params, &rig->model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
}

static void set_up_exact(struct rig *rig) {
    const struct tiny_options options = model_options(DRLLM_FORMAT_Q4_1);
    set_up(rig, &options, DRLLM_COMPUTE_EXACT);
}

static void set_up_f32(struct rig *rig) {
    const struct tiny_options options = model_options(DRLLM_FORMAT_F32);
    set_up(rig, &options, DRLLM_COMPUTE_F32);
}

static void tear_down(struct rig *rig) {
    assert_int_equal(drllm_model_close(rig->model), DRLLM_OK);
    assert_true(rig->counted.n_live == 0 && !rig->counted.wrong);
    tiny_model_free(&rig->tiny);
    free(rig->file);
}

static struct drllm_session *open_session_of(const struct rig *rig, size_t n_context, unsigned n_threads,
                                             size_t n_chunk) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = n_context;
    params.n_threads = n_threads;
    params.n_chunk = n_chunk;
    struct drllm_session *session = NULL;
    struct drllm_error error = {0};
    if (drllm_session_open(rig->model, &params, &session, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    return session;
}

static struct drllm_session *open_session(const struct rig *rig, unsigned n_threads, size_t n_chunk) {
    return open_session_of(rig, CONTEXT, n_threads, n_chunk);
}

static struct router_options router_options_of(const struct rig *rig, uint64_t seed) {
    struct router_options options = router_default_options(&rig->tiny.options);
    options.seed = seed;
    return options;
}

static struct drllm_routers *open_builder(const struct rig *rig, const struct router_builder *builder) {
    size_t size;
    uint8_t *data = router_builder_write(builder, NULL, 0, &size);
    struct drllm_routers *routers = NULL;
    struct drllm_error error = {0};
    if (drllm_routers_open_memory(rig->model, data, size, &routers, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    free(data);
    return routers;
}

static struct drllm_routers *open_routers(const struct rig *rig, const struct router_options *options) {
    struct router_builder builder;
    router_builder_make(&builder, options);
    struct drllm_routers *routers = open_builder(rig, &builder);
    router_builder_free(&builder);
    return routers;
}

static struct drllm_routers *open_random_routers(const struct rig *rig, uint64_t seed) {
    const struct router_options options = router_options_of(rig, seed);
    return open_routers(rig, &options);
}

static struct drllm_depth static_depth(const uint8_t *program) {
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = program;
    return depth;
}

static struct drllm_depth routed_depth(const struct drllm_routers *routers) {
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = routers;
    return depth;
}

static void set_depth(struct drllm_session *session, const struct drllm_depth *depth) {
    if (drllm_session_set_depth(session, depth) != DRLLM_OK) {
        fail_msg("%s", drllm_session_last_error(session));
    }
}

static void prefill(struct drllm_session *session, const int32_t *tokens, size_t n_tokens) {
    if (drllm_session_prefill(session, tokens, n_tokens) != DRLLM_OK) {
        fail_msg("%zu tokens: %s", n_tokens, drllm_session_last_error(session));
    }
}

static void decode(struct drllm_session *session, const int32_t *tokens, size_t n_tokens) {
    for (size_t i = 0; i < n_tokens; i++) {
        if (drllm_session_decode(session, tokens[i]) != DRLLM_OK) {
            fail_msg("%s", drllm_session_last_error(session));
        }
    }
}

static const uint8_t one_program[N_LAYERS] = {1, 0, 2, 1, 0}, another_program[N_LAYERS] = {2, 1, 0, 0, 2},
                     full_program[N_LAYERS] = {1, 1, 1, 1, 1};

/* The first ones are the ends: no block, every block twice, all of them once. */
static void make_program(size_t number, struct tiny_random *random, uint8_t program[N_LAYERS]) {
    static const uint8_t ends[] = {0, 2, 1};
    for (size_t i = 0; i < N_LAYERS; i++) {
        const uint8_t count = (uint8_t)(tiny_random_u64(random) % 3);
        program[i] = number < sizeof ends ? ends[number] : count;
    }
}

static size_t executions(const uint8_t program[N_LAYERS]) {
    size_t n = 0;
    for (size_t i = 0; i < N_LAYERS; i++) {
        n += program[i];
    }
    return n;
}

/* ---- What a session says ---- */

struct outcome {
    float logits[N_VOCAB];
    uint8_t program[N_LAYERS];
    struct drllm_decision decisions[N_LAYERS];
};

static void read_outcome(const struct drllm_session *session, struct outcome *outcome) {
    const float *logits = drllm_session_logits(session);
    assert_non_null(logits);
    memcpy(outcome->logits, logits, sizeof outcome->logits);
    assert_int_equal(drllm_session_get_program(session, outcome->program), DRLLM_OK);
    assert_int_equal(drllm_session_get_decisions(session, outcome->decisions), DRLLM_OK);
    int saved = 99;
    assert_int_equal(drllm_session_get_layers_saved(session, &saved), DRLLM_OK);
    assert_int_equal(saved, N_LAYERS - (int)executions(outcome->program));
    for (size_t i = 0; i < N_LAYERS; i++) {
        assert_int_equal(outcome->decisions[i].count, outcome->program[i]);
    }
}

/* A session of its own, just large enough, with all tokens in one call. */
static void run_fresh(const struct rig *rig, const struct drllm_depth *depth, const int32_t *tokens, size_t n_tokens,
                      struct outcome *outcome) {
    struct drllm_session *session = open_session_of(rig, n_tokens, 1, 0);
    set_depth(session, depth);
    prefill(session, tokens, n_tokens);
    read_outcome(session, outcome);
    drllm_session_close(session);
}

static bool same_decisions(const struct outcome *a, const struct outcome *b) {
    for (size_t i = 0; i < N_LAYERS; i++) {
        if (drllm_first_difference(a->decisions[i].logits, b->decisions[i].logits, 3) != 3 ||
            !drllm_same_float(a->decisions[i].margin, b->decisions[i].margin)) {
            return false;
        }
    }
    return memcmp(a->program, b->program, N_LAYERS) == 0;
}

static bool same_logits(const struct outcome *a, const struct outcome *b) {
    return drllm_first_difference(a->logits, b->logits, N_VOCAB) == N_VOCAB;
}

/* The session has come to what a session of its own computes for `tokens`. */
static void check_as_fresh(const char *what, const struct rig *rig, const struct drllm_session *session,
                           const struct drllm_depth *depth, const int32_t *tokens, size_t n_tokens) {
    struct outcome got, expected;
    read_outcome(session, &got);
    run_fresh(rig, depth, tokens, n_tokens, &expected);
    assert_int_equal(drllm_session_n_tokens(session), n_tokens);
    assert_memory_equal(drllm_session_tokens(session), tokens, n_tokens * sizeof *tokens);
    if (!same_decisions(&got, &expected)) {
        fail_msg("%s: other decisions than those of a session of its own", what);
    }
    if (!same_logits(&got, &expected)) {
        fail_msg("%s: other logits than those of a session of its own", what);
    }
}

static void check_program(const struct drllm_session *session, const uint8_t program[N_LAYERS]) {
    uint8_t got[N_LAYERS];
    assert_int_equal(drllm_session_get_program(session, got), DRLLM_OK);
    assert_memory_equal(got, program, N_LAYERS);
}

/* ---- Programs against the reference ---- */

struct seen {
    float logits[CONTEXT * N_VOCAB];
    float hidden[(N_LAYERS + 1) * D_MODEL];
    bool has_hidden[N_LAYERS + 1];
    size_t n_logits, first; /* first: position of the first logits */
};

static int see_logits(void *user, size_t position, const float *logits) {
    struct seen *seen = user;
    assert_int_equal(position, seen->first + seen->n_logits);
    memcpy(seen->logits + seen->n_logits++ * N_VOCAB, logits, N_VOCAB * sizeof *logits);
    return 0;
}

static void see_hidden(void *user, size_t layer, const float *hidden) {
    struct seen *seen = user;
    assert_true(layer <= N_LAYERS);
    memcpy(seen->hidden + layer * D_MODEL, hidden, D_MODEL * sizeof *hidden);
    seen->has_hidden[layer] = true;
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

/* hidden_bound: of the last token's residual after each block, where 8-bit activations leave more of a difference. */
static void check_against_reference(const struct rig *rig, const uint8_t program[N_LAYERS], double bound,
                                    double hidden_bound) {
    enum { N = 9 };
    static double logits[N * N_VOCAB], hidden[(N_LAYERS + 1) * D_MODEL];
    static struct seen seen;
    int32_t tokens[N];
    tiny_random_tokens(3, tokens, N, N_VOCAB);
    const struct tiny_pass pass = {
        .model = &rig->tiny, .program = program, .tokens = tokens, .n_tokens = N, .logits = logits, .hidden = hidden};
    tiny_pass_run(&pass);
    memset(&seen, 0, sizeof seen);
    struct drllm_session *session = open_session(rig, 1, 4);
    const struct drllm_depth depth = static_depth(program);
    set_depth(session, &depth);
    drllm_session_set_layer_hook(session, see_hidden, &seen);
    assert_int_equal(drllm_session_prefill_logits(session, tokens, N, 0, see_logits, &seen), DRLLM_OK);
    drllm_session_close(session);
    assert_int_equal(seen.n_logits, N);
    char text[64];
    size_t size;
    assert_int_equal(drllm_program_format(program, N_LAYERS, text, sizeof text, &size), DRLLM_OK);
    const double d = distance(seen.logits, logits, N * N_VOCAB);
    if (!(d <= bound)) {
        fail_msg("%s: logits differ by %g", text, d);
    }
    for (size_t i = 0; i <= N_LAYERS; i++) {
        const double h = distance(seen.hidden + i * D_MODEL, hidden + i * D_MODEL, D_MODEL);
        if ((i == N_LAYERS || program[i] > 0 || seen.has_hidden[i]) && !(h <= hidden_bound)) {
            fail_msg("%s: the residual after block %zu differs by %g", text, i, h);
        }
    }
}

static void check_programs_against_reference(const struct rig *rig, double bound, double hidden_bound) {
    struct tiny_random random = {5};
    for (size_t i = 0; i < 14; i++) {
        uint8_t program[N_LAYERS];
        make_program(i, &random, program);
        check_against_reference(rig, program, bound, hidden_bound);
    }
}

static void test_programs_are_the_reference(void **state) {
    (void)state;
    struct rig rig;
    set_up_f32(&rig);
    check_programs_against_reference(&rig, 1e-4, 1e-4);
    tear_down(&rig);
    struct tiny_options options = model_options(DRLLM_FORMAT_Q4_1);
    set_up(&rig, &options, DRLLM_COMPUTE_F32);
    check_programs_against_reference(&rig, 1e-4, 1e-4);
    tear_down(&rig);
    set_up_exact(&rig);
    check_programs_against_reference(&rig, 0.06, 0.15);
    tear_down(&rig);
    options = model_options(DRLLM_FORMAT_F16);
    options.biases = options.untied = options.rope_freqs = true;
    set_up(&rig, &options, DRLLM_COMPUTE_EXACT);
    check_programs_against_reference(&rig, 2e-3, 2e-3);
    tear_down(&rig);
}

/* ---- Prefill and decode against one pass ---- */

static uint64_t kv_bytes(const struct drllm_session *session) {
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    return timings.kv_bytes;
}

static uint64_t kv_bytes_at_full_depth(const struct rig *rig) {
    struct drllm_session *session = open_session(rig, 1, 0);
    static const int32_t token = 7;
    decode(session, &token, 1);
    const uint64_t bytes = kv_bytes(session);
    drllm_session_close(session);
    assert_true(bytes > 0 && bytes % N_LAYERS == 0);
    return bytes;
}

/* A prompt in one or two calls, then tokens one by one: the logits of each step, and the cache, are those of `whole`. */
static void check_steps(const struct rig *rig, const uint8_t program[N_LAYERS], const int32_t *tokens, size_t n_tokens,
                        struct tiny_random *random, const struct seen *whole) {
    const size_t n_prompt = 1 + (size_t)(tiny_random_u64(random) % n_tokens);
    const size_t n_first = 1 + (size_t)(tiny_random_u64(random) % n_prompt);
    struct drllm_session *session = open_session(rig, 1, 1 + (size_t)(tiny_random_u64(random) % 12));
    const struct drllm_depth depth = static_depth(program);
    set_depth(session, &depth);
    prefill(session, tokens, n_first);
    if (n_first < n_prompt) {
        prefill(session, tokens + n_first, n_prompt - n_first);
    }
    for (size_t i = n_prompt - 1; i < n_tokens; i++) {
        if (i >= n_prompt) {
            decode(session, tokens + i, 1);
        }
        if (drllm_first_difference(drllm_session_logits(session), whole->logits + i * N_VOCAB, N_VOCAB) != N_VOCAB) {
            fail_msg("a prompt of %zu and %zu tokens: other logits after token %zu than in one pass", n_first,
                     n_prompt - n_first, i);
        }
    }
    struct outcome outcome;
    read_outcome(session, &outcome);
    assert_memory_equal(outcome.program, program, N_LAYERS);
    for (size_t i = 0; i < N_LAYERS; i++) {
        const struct drllm_decision *decision = &outcome.decisions[i];
        assert_true(decision->logits[0] == 0.0f && decision->logits[1] == 0.0f && decision->logits[2] == 0.0f);
        assert_true(decision->margin == 0.0f);
    }
    assert_true(kv_bytes(session) == kv_bytes_at_full_depth(rig) / N_LAYERS * executions(program));
    drllm_session_close(session);
}

static void check_random_programs(const struct rig *rig, size_t n_programs) {
    static struct seen whole;
    struct tiny_random random = {n_programs};
    struct drllm_session *session = open_session(rig, 1, 0);
    for (size_t i = 0; i < n_programs; i++) {
        uint8_t program[N_LAYERS];
        make_program(i, &random, program);
        int32_t tokens[24];
        const size_t n_tokens = 2 + (size_t)(tiny_random_u64(&random) % 23);
        tiny_random_tokens(i, tokens, n_tokens, N_VOCAB);
        const struct drllm_depth depth = static_depth(program);
        drllm_session_reset(session);
        set_depth(session, &depth);
        whole.n_logits = 0;
        assert_int_equal(drllm_session_prefill_logits(session, tokens, n_tokens, 0, see_logits, &whole), DRLLM_OK);
        for (size_t j = 0; j < n_tokens * N_VOCAB; j++) {
            assert_true(isfinite(whole.logits[j]));
        }
        check_steps(rig, program, tokens, n_tokens, &random, &whole);
    }
    drllm_session_close(session);
}

static void test_random_programs(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    check_random_programs(&rig, 120);
    tear_down(&rig);
    set_up_f32(&rig);
    check_random_programs(&rig, 80);
    tear_down(&rig);
}

/* ---- The life of a context under a changing depth ---- */

/* Memory follows the program, also from one to another. Of contexts that never were long. */
static void check_kv_bytes(const struct rig *rig, const struct drllm_session *session) {
    uint8_t program[N_LAYERS];
    assert_int_equal(drllm_session_get_program(session, program), DRLLM_OK);
    assert_true(kv_bytes(session) == kv_bytes_at_full_depth(rig) / N_LAYERS * executions(program));
}

static void test_depth_changes_at_the_next_prefill(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    int32_t tokens[40];
    tiny_random_tokens(11, tokens, 40, N_VOCAB);
    uint8_t program[N_LAYERS];
    memcpy(program, one_program, N_LAYERS);
    struct drllm_depth one = static_depth(program);
    const struct drllm_depth another = static_depth(another_program), full = drllm_depth_default();
    struct drllm_session *session = open_session(&rig, 1, 5);
    set_depth(session, &one);
    memset(program, 2, N_LAYERS); /* it was copied */
    one.program = one_program;
    prefill(session, tokens, 9);
    check_as_fresh("one program", &rig, session, &one, tokens, 9);
    check_kv_bytes(&rig, session);

    /* Nothing changes until the next prefill; what follows the prompt keeps its program. */
    set_depth(session, &another);
    check_as_fresh("set", &rig, session, &one, tokens, 9);
    decode(session, tokens + 9, 3);
    check_as_fresh("decoded", &rig, session, &one, tokens, 12);
    prefill(session, tokens + 12, 8);
    check_as_fresh("another program", &rig, session, &another, tokens, 20);
    check_kv_bytes(&rig, session);
    decode(session, tokens + 20, 2);
    check_as_fresh("decoded", &rig, session, &another, tokens, 22);

    /* Behind a rewind, by one token. */
    assert_int_equal(drllm_session_rewind(session, 6), DRLLM_OK);
    check_program(session, another_program);
    set_depth(session, &one);
    decode(session, tokens + 6, 1);
    check_as_fresh("rewound", &rig, session, &another, tokens, 7);
    prefill(session, tokens + 7, 1);
    check_as_fresh("one token", &rig, session, &one, tokens, 8);
    check_kv_bytes(&rig, session);

    /* There and back between two prefills. */
    set_depth(session, &another);
    set_depth(session, &one);
    prefill(session, tokens + 8, 2);
    check_as_fresh("back", &rig, session, &one, tokens, 10);
    set_depth(session, &full);
    prefill(session, tokens + 10, 30);
    check_as_fresh("full depth", &rig, session, &full, tokens, 40);
    check_kv_bytes(&rig, session);
    check_program(session, full_program);

    /* An empty context takes the depth that is set, also by a decode. */
    set_depth(session, &another);
    assert_int_equal(drllm_session_rewind(session, 0), DRLLM_OK);
    uint8_t counts[N_LAYERS];
    struct drllm_decision decisions[N_LAYERS];
    int saved;
    assert_int_equal(drllm_session_get_program(session, counts), DRLLM_ERR_STATE);
    assert_int_equal(drllm_session_get_decisions(session, decisions), DRLLM_ERR_STATE);
    assert_int_equal(drllm_session_get_layers_saved(session, &saved), DRLLM_ERR_STATE);
    decode(session, tokens, 2);
    check_as_fresh("after rewind", &rig, session, &another, tokens, 2);
    set_depth(session, &one);
    drllm_session_reset(session);
    assert_int_equal(drllm_session_get_program(session, counts), DRLLM_ERR_STATE);
    prefill(session, tokens, 5); /* the depth outlives a reset */
    check_as_fresh("after reset", &rig, session, &one, tokens, 5);
    drllm_session_close(session);
    tear_down(&rig);
}

/* The logits of the new tokens only, although all are computed; and text behind a prompt, under its program. */
static void test_logits_of_new_tokens(void **state) {
    (void)state;
    static struct seen whole, seen;
    struct rig rig;
    set_up_exact(&rig);
    int32_t tokens[20];
    tiny_random_tokens(12, tokens, 20, N_VOCAB);
    const struct drllm_depth one = static_depth(one_program), another = static_depth(another_program);
    struct drllm_session *session = open_session(&rig, 1, 5), *other = open_session(&rig, 1, 0);
    set_depth(other, &another);
    whole.n_logits = seen.n_logits = 0;
    assert_int_equal(drllm_session_prefill_logits(other, tokens, 20, 0, see_logits, &whole), DRLLM_OK);

    assert_int_equal(drllm_session_extend_logits(session, tokens, 5, 0, NULL, NULL), DRLLM_ERR_STATE);
    assert_true(strlen(drllm_session_last_error(session)) > 0);
    set_depth(session, &one);
    prefill(session, tokens, 8);
    set_depth(session, &another);
    assert_int_equal(drllm_session_prefill_logits(session, tokens + 8, 7, 0, see_logits, &seen), DRLLM_OK);
    assert_int_equal(seen.n_logits, 7);
    assert_memory_equal(seen.logits, whole.logits + (size_t)8 * N_VOCAB, 7 * N_VOCAB * sizeof(float));
    set_depth(session, &one);
    seen.n_logits = 0;
    assert_int_equal(drllm_session_extend_logits(session, tokens + 15, 5, 0, see_logits, &seen), DRLLM_OK);
    assert_memory_equal(seen.logits, whole.logits + (size_t)15 * N_VOCAB, 5 * N_VOCAB * sizeof(float));
    check_as_fresh("extended", &rig, session, &another, tokens, 20);
    drllm_session_close(session);
    drllm_session_close(other);
    tear_down(&rig);
}

static uint64_t n_computed(struct drllm_session *session, const int32_t *tokens, size_t n_tokens) {
    struct drllm_timings before, after;
    drllm_session_get_timings(session, &before);
    prefill(session, tokens, n_tokens);
    drllm_session_get_timings(session, &after);
    return after.n_prefill - before.n_prefill;
}

static void test_same_program_keeps_the_cache(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    int32_t tokens[40];
    tiny_random_tokens(13, tokens, 40, N_VOCAB);
    struct drllm_session *session = open_session(&rig, 1, 0);
    const struct drllm_depth one = static_depth(one_program), another = static_depth(another_program),
                             full = drllm_depth_default(), ones = static_depth(full_program);
    set_depth(session, &one);
    assert_true(n_computed(session, tokens, 6) == 6);
    set_depth(session, &one);
    assert_true(n_computed(session, tokens + 6, 4) == 4);
    set_depth(session, &another);
    assert_true(n_computed(session, tokens + 10, 4) == 14);
    assert_true(n_computed(session, tokens + 14, 4) == 4);
    set_depth(session, &full);
    assert_true(n_computed(session, tokens + 18, 2) == 20);
    set_depth(session, &ones); /* the same by another name */
    assert_true(n_computed(session, tokens + 20, 5) == 5);
    check_as_fresh("in the end", &rig, session, &full, tokens, 25);
    drllm_session_close(session);
    tear_down(&rig);
}

/* ---- Scoring and generating ---- */

static double log_prob(const float *logits, int32_t token) {
    double total = 0.0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        total += exp((double)logits[i] - (double)logits[token]);
    }
    return -log(total);
}

static void check_scores(const struct rig *rig, const struct drllm_depth *depth) {
    enum { N_PROMPT = 13 };
    static const int32_t one[] = {5}, three[] = {250, 9, 9}, again[] = {5}, many[] = {8, 7, 6, 5, 4, 3, 250, 251, 252};
    int32_t prompt[N_PROMPT + 1];
    tiny_random_tokens(6, prompt, N_PROMPT, N_VOCAB);
    prompt[N_PROMPT] = one[0];
    struct drllm_choice choices[] = {{one, 1, 0.0}, {three, 3, 0.0}, {again, 1, 0.0}, {many, 9, 0.0}};
    struct drllm_session *session = open_session(rig, 1, 8);
    set_depth(session, depth);
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, choices, 4), DRLLM_OK);
    check_as_fresh("scored", rig, session, depth, prompt, N_PROMPT);
    for (size_t i = 0; i < 4; i++) {
        struct drllm_session *alone = open_session(rig, 1, 0);
        set_depth(alone, depth);
        prefill(alone, prompt, N_PROMPT);
        double sum = 0.0;
        for (size_t j = 0; j < choices[i].n_tokens; j++) {
            sum += log_prob(drllm_session_logits(alone), choices[i].tokens[j]);
            decode(alone, choices[i].tokens + j, 1);
        }
        if (!(fabs(sum - choices[i].log_prob) < 1e-6 * fabs(sum))) {
            fail_msg("choice %zu: %.12g, alone %.12g", i, choices[i].log_prob, sum);
        }
        drllm_session_close(alone);
    }
    decode(session, one, 1); /* the context goes on from the prompt */
    struct drllm_session *alone = open_session(rig, 1, 0);
    set_depth(alone, depth);
    prefill(alone, prompt, N_PROMPT);
    decode(alone, one, 1);
    assert_memory_equal(drllm_session_logits(session), drllm_session_logits(alone), N_VOCAB * sizeof(float));
    drllm_session_close(alone);
    drllm_session_close(session);
}

/* More choices than one pass takes, of 1 to 4 tokens: each is scored as if it were the only one. */
static void check_many_choices(const struct rig *rig, const struct drllm_depth *depth) {
    enum { N_PROMPT = 5, N_CHOICES = 150 };
    static int32_t tokens[N_CHOICES][4];
    static struct drllm_choice choices[N_CHOICES];
    int32_t prompt[N_PROMPT];
    tiny_random_tokens(7, prompt, N_PROMPT, N_VOCAB);
    for (size_t i = 0; i < N_CHOICES; i++) {
        tiny_random_tokens(i, tokens[i], 4, N_VOCAB);
        choices[i] = (struct drllm_choice){tokens[i], 1 + (i * 7 + i / 40) % 4, 0.0};
    }
    struct drllm_session *session = open_session_of(rig, N_PROMPT + 4, 1, 0);
    set_depth(session, depth);
    assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, choices, N_CHOICES), DRLLM_OK);
    check_as_fresh("scored", rig, session, depth, prompt, N_PROMPT);
    for (size_t i = 0; i < N_CHOICES; i++) {
        struct drllm_choice alone = choices[i];
        drllm_session_reset(session);
        assert_int_equal(drllm_session_score(session, prompt, N_PROMPT, &alone, 1), DRLLM_OK);
        if (alone.log_prob != choices[i].log_prob) {
            fail_msg("choice %zu: %.17g, alone %.17g", i, choices[i].log_prob, alone.log_prob);
        }
    }
    drllm_session_close(session);
}

static void test_scoring(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct tiny_random random = {4};
    for (size_t i = 0; i < 6; i++) {
        uint8_t program[N_LAYERS];
        make_program(i, &random, program);
        const struct drllm_depth depth = static_depth(program);
        check_scores(&rig, &depth);
        struct drllm_routers *routers = open_random_routers(&rig, i);
        const struct drllm_depth routed = routed_depth(routers);
        check_scores(&rig, &routed);
        if (i == 4) {
            check_many_choices(&rig, &depth);
            check_many_choices(&rig, &routed);
        }
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    tear_down(&rig);
}

static int32_t likeliest(const float *logits) {
    size_t best = 0;
    for (size_t i = 1; i < N_VOCAB; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return (int32_t)best;
}

static void check_generation(const struct rig *rig, const struct drllm_depth *depth) {
    enum { N_PROMPT = 11, N_GENERATED = 7 };
    int32_t tokens[N_PROMPT + N_GENERATED];
    tiny_random_tokens(8, tokens, N_PROMPT, N_VOCAB);
    struct drllm_session *session = open_session(rig, 1, 4), *stepwise = open_session(rig, 1, 0);
    set_depth(session, depth);
    set_depth(stepwise, depth);
    prefill(session, tokens, N_PROMPT);
    prefill(stepwise, tokens, N_PROMPT);
    struct outcome before, after;
    read_outcome(session, &before);
    struct drllm_sampler_params sampler_params = drllm_sampler_default_params();
    sampler_params.temperature = 0.0f;
    struct drllm_sampler sampler;
    assert_int_equal(drllm_sampler_init(&sampler, &sampler_params, NULL), DRLLM_OK);
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = N_GENERATED;
    params.ignore_end = true;
    assert_int_equal(drllm_session_generate(session, &sampler, &params, NULL), DRLLM_OK);
    const size_t n_tokens = drllm_session_n_tokens(session);
    assert_true(n_tokens >= N_PROMPT + N_GENERATED - 1 && n_tokens <= N_PROMPT + N_GENERATED);
    for (size_t i = N_PROMPT; i < n_tokens; i++) {
        tokens[i] = likeliest(drllm_session_logits(stepwise));
        decode(stepwise, tokens + i, 1);
        assert_int_equal(drllm_session_tokens(session)[i], tokens[i]);
    }
    read_outcome(stepwise, &after);
    assert_true(same_decisions(&before, &after)); /* frozen since the prompt */
    check_program(session, before.program);
    /* The same as with that program given, in one pass. */
    const struct drllm_depth given = static_depth(before.program);
    struct outcome whole;
    run_fresh(rig, &given, tokens, n_tokens, &whole);
    assert_true(same_logits(&after, &whole));
    drllm_session_close(session);
    drllm_session_close(stepwise);
}

static void test_generating(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    const struct drllm_depth one = static_depth(one_program);
    check_generation(&rig, &one);
    for (uint64_t seed = 0; seed < 5; seed++) {
        struct drllm_routers *routers = open_random_routers(&rig, seed);
        const struct drllm_depth routed = routed_depth(routers);
        check_generation(&rig, &routed);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    tear_down(&rig);
}

/* ---- Failures in the middle ---- */

struct canceller {
    struct drllm_session *session;
    size_t at_layer;
};

static void cancel_at_layer(void *user, size_t layer, const float *hidden) {
    const struct canceller *canceller = user;
    (void)hidden;
    if (layer == canceller->at_layer) {
        drllm_session_cancel(canceller->session);
    }
}

static void cancelled_prefill(struct drllm_session *session, size_t at_layer, const int32_t *tokens, size_t n_tokens) {
    struct canceller canceller = {session, at_layer};
    const size_t n_before = drllm_session_n_tokens(session);
    drllm_session_set_layer_hook(session, cancel_at_layer, &canceller);
    assert_int_equal(drllm_session_prefill(session, tokens, n_tokens), DRLLM_ERR_CANCELLED);
    drllm_session_set_layer_hook(session, NULL, NULL);
    assert_int_equal(drllm_session_n_tokens(session), n_before);
    assert_null(drllm_session_logits(session));
}

/* A turn that was to come to another program is cancelled; whatever is done next goes on as if it had not been. */
static void check_after_cancel(const struct rig *rig, const struct drllm_depth *next, size_t at_layer,
                               const int32_t *tokens) {
    const struct drllm_depth one = static_depth(one_program);
    struct drllm_session *session = open_session(rig, 1, 6);
    for (size_t what = 0; what < 5; what++) {
        drllm_session_reset(session);
        set_depth(session, &one);
        prefill(session, tokens, 9);
        set_depth(session, next);
        cancelled_prefill(session, at_layer, tokens + 9, 12);
        check_program(session, one_program);
        assert_memory_equal(drllm_session_tokens(session), tokens, 9 * sizeof *tokens);
        switch (what) {
        case 0: /* the same turn */
            prefill(session, tokens + 9, 12);
            check_as_fresh("again", rig, session, next, tokens, 21);
            break;
        case 1: /* one token under the old program, then the turn */
            decode(session, tokens + 9, 1);
            check_as_fresh("decoded", rig, session, &one, tokens, 10);
            prefill(session, tokens + 10, 11);
            check_as_fresh("turn", rig, session, next, tokens, 21);
            break;
        case 2: /* less of the context */
            assert_int_equal(drllm_session_rewind(session, 4), DRLLM_OK);
            decode(session, tokens + 4, 2);
            check_as_fresh("rewound", rig, session, &one, tokens, 6);
            break;
        case 3: /* the old depth again */
            set_depth(session, &one);
            prefill(session, tokens + 9, 12);
            check_as_fresh("old depth", rig, session, &one, tokens, 21);
            break;
        default: /* once more */
            cancelled_prefill(session, N_LAYERS - 1 - at_layer % N_LAYERS, tokens + 9, 12);
            decode(session, tokens + 9, 1);
            check_as_fresh("cancelled twice", rig, session, &one, tokens, 10);
            break;
        }
    }
    drllm_session_close(session);
}

static void test_cancelled_turns(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    int32_t tokens[21];
    tiny_random_tokens(14, tokens, 21, N_VOCAB);
    struct drllm_routers *routers = open_random_routers(&rig, 3);
    const struct drllm_depth another = static_depth(another_program), routed = routed_depth(routers);
    for (size_t at_layer = 0; at_layer <= N_LAYERS; at_layer++) {
        check_after_cancel(&rig, &another, at_layer, tokens);
        check_after_cancel(&rig, &routed, at_layer, tokens);
    }
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
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

/* After a failure the context goes on under its own program. */
static void check_context_is_sound(const struct rig *rig, struct drllm_session *session) {
    const size_t n = drllm_session_n_tokens(session);
    assert_true(strlen(drllm_session_last_error(session)) > 0);
    assert_null(drllm_session_logits(session));
    if (n == 0) {
        return;
    }
    int32_t tokens[CONTEXT + 1];
    uint8_t program[N_LAYERS];
    memcpy(tokens, drllm_session_tokens(session), n * sizeof *tokens);
    tokens[n] = 17;
    assert_int_equal(drllm_session_get_program(session, program), DRLLM_OK);
    decode(session, tokens + n, 1);
    const struct drllm_depth given = static_depth(program);
    struct outcome got, expected;
    read_outcome(session, &got);
    run_fresh(rig, &given, tokens, n + 1, &expected);
    assert_true(same_logits(&got, &expected) && memcmp(got.program, program, N_LAYERS) == 0);
    assert_int_equal(drllm_session_rewind(session, n), DRLLM_OK);
}

static void prefill_once_more(const struct rig *rig, struct drllm_session *session, const int32_t *tokens,
                              size_t n_tokens, size_t *n_failures) {
    const size_t n_before = drllm_session_n_tokens(session);
    uint8_t before[N_LAYERS], after[N_LAYERS];
    const int had_program = drllm_session_get_program(session, before);
    const int status = drllm_session_prefill(session, tokens, n_tokens);
    if (status == DRLLM_OK) {
        return;
    }
    assert_int_equal(status, DRLLM_ERR_MEMORY);
    assert_int_equal(++*n_failures, 1);
    assert_int_equal(drllm_session_n_tokens(session), n_before);
    assert_int_equal(drllm_session_get_program(session, after), had_program);
    assert_true(had_program != DRLLM_OK || memcmp(before, after, N_LAYERS) == 0);
    check_context_is_sound(rig, session);
    prefill(session, tokens, n_tokens);
}

enum { N_STAGES = 4 };

static size_t run_everything(const struct rig *rig, const uint8_t *routers_file, size_t routers_size,
                             struct outcome outcomes[N_STAGES], double *score) {
    size_t n_failures = 0;
    int32_t tokens[CONTEXT];
    tiny_random_tokens(15, tokens, CONTEXT, N_VOCAB);
    struct drllm_routers *routers = NULL;
    ONCE_MORE(n_failures, drllm_routers_open_memory(rig->model, routers_file, routers_size, &routers, NULL));
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = CONTEXT;
    params.n_threads = 1;
    params.n_chunk = 8;
    struct drllm_session *session = NULL;
    ONCE_MORE(n_failures, drllm_session_open(rig->model, &params, &session, NULL));
    const struct drllm_depth one = static_depth(one_program), another = static_depth(another_program),
                             routed = routed_depth(routers);
    struct drllm_choice choices[] = {{tokens + 20, 5, 0.0}, {tokens + 30, 3, 0.0}};
    ONCE_MORE(n_failures, drllm_session_set_depth(session, &one));
    ONCE_MORE(n_failures, drllm_session_score(session, tokens, 5, choices, 2));
    *score = choices[0].log_prob - choices[1].log_prob;
    prefill_once_more(rig, session, tokens + 5, 5, &n_failures);
    read_outcome(session, &outcomes[0]);
    ONCE_MORE(n_failures, drllm_session_set_depth(session, &another));
    prefill_once_more(rig, session, tokens + 10, 8, &n_failures);
    read_outcome(session, &outcomes[1]);
    ONCE_MORE(n_failures, drllm_session_set_depth(session, &routed));
    prefill_once_more(rig, session, tokens + 18, 9, &n_failures);
    read_outcome(session, &outcomes[2]);
    for (size_t i = 27; i < 30; i++) {
        ONCE_MORE(n_failures, drllm_session_decode(session, tokens[i]));
    }
    prefill_once_more(rig, session, tokens + 30, 9, &n_failures);
    read_outcome(session, &outcomes[3]);
    drllm_session_close(session);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    return n_failures;
}

static void run_out_of_memory(struct rig *rig) {
    struct router_options options = router_options_of(rig, 6);
    options.int8 = true;
    size_t size;
    uint8_t *file = router_builder_file(&options, &size);
    const size_t n_live = rig->counted.n_live;
    static struct outcome expected[N_STAGES], got[N_STAGES];
    double expected_score, score;
    rig->counted.n_calls = 0;
    assert_int_equal(run_everything(rig, file, size, expected, &expected_score), 0);
    const size_t n_calls = rig->counted.n_calls;
    assert_true(n_calls > 50);
    for (size_t i = 0; i < n_calls; i++) {
        rig->counted.n_calls = 0;
        rig->counted.fail_at = i;
        assert_int_equal(run_everything(rig, file, size, got, &score), 1);
        if (rig->counted.n_live != n_live || rig->counted.wrong) {
            fail_msg("allocation %zu of %zu: %zu left, wrong: %d", i, n_calls, rig->counted.n_live - n_live,
                     rig->counted.wrong);
        }
        assert_true(score == expected_score);
        for (size_t stage = 0; stage < N_STAGES; stage++) {
            if (!same_decisions(&got[stage], &expected[stage]) || !same_logits(&got[stage], &expected[stage])) {
                fail_msg("allocation %zu of %zu: another outcome of stage %zu", i, n_calls, stage);
            }
        }
    }
    rig->counted.fail_at = SIZE_MAX;
    free(file);
}

static void test_memory_runs_out(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    run_out_of_memory(&rig);
    tear_down(&rig);
}

/* ---- Routers that force a program ---- */

static void check_forced(const struct rig *rig, const uint8_t program[N_LAYERS], bool int8, size_t n_tokens) {
    struct router_options options = router_options_of(rig, 1);
    options.program = program;
    options.certainty = 2.5f;
    options.int8 = int8;
    struct drllm_routers *routers = open_routers(rig, &options);
    const struct drllm_depth routed = routed_depth(routers), given = static_depth(program);
    int32_t tokens[CONTEXT];
    tiny_random_tokens(n_tokens, tokens, n_tokens, N_VOCAB);
    struct outcome got, expected;
    run_fresh(rig, &routed, tokens, n_tokens, &got);
    run_fresh(rig, &given, tokens, n_tokens, &expected);
    assert_memory_equal(got.program, program, N_LAYERS);
    assert_true(same_logits(&got, &expected));
    for (size_t i = 0; i < N_LAYERS; i++) {
        const struct drllm_decision *decision = &got.decisions[i];
        const float others[] = {-1.0f, 0.0f, -1.0f};
        for (size_t j = 0; j < 3; j++) {
            assert_true(fabsf(decision->logits[j] - (j == program[i] ? 2.5f : others[j])) < 1e-5f);
        }
        assert_true(fabsf(decision->margin - (program[i] == 1 ? 3.5f : 2.5f)) < 1e-5f);
    }
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
}

static void test_forced_routers(void **state) {
    (void)state;
    struct tiny_random random = {9};
    for (int exact = 0; exact < 2; exact++) {
        struct rig rig;
        if (exact) {
            set_up_exact(&rig);
        } else {
            set_up_f32(&rig);
        }
        for (size_t i = 0; i < 16; i++) {
            uint8_t program[N_LAYERS];
            make_program(i, &random, program);
            check_forced(&rig, program, i % 2 == 0, 1 + i * 2);
        }
        tear_down(&rig);
    }
}

/* ---- Routers with random weights against the reference ---- */

static size_t best_of(const double values[3], double *margin) {
    size_t best = 0;
    for (size_t i = 1; i < 3; i++) {
        best = values[i] > values[best] ? i : best;
    }
    *margin = INFINITY;
    for (size_t i = 0; i < 3; i++) {
        *margin = i != best ? fmin(*margin, values[best] - values[i]) : *margin;
    }
    return best;
}

/* The inputs of each router come from the reference under the session's own program: where all decisions before were
 * right, they are the router's own. */
static void check_decisions(const struct rig *rig, const struct router_builder *builder,
                            const struct drllm_session *session, size_t counts[3]) {
    static double logits[CONTEXT * N_VOCAB], inputs[N_LAYERS * CONTEXT * D_MODEL];
    struct outcome outcome;
    read_outcome(session, &outcome);
    const size_t n = drllm_session_n_tokens(session);
    const struct tiny_pass pass = {.model = &rig->tiny,
                                   .program = outcome.program,
                                   .tokens = drllm_session_tokens(session),
                                   .n_tokens = n,
                                   .logits = logits,
                                   .inputs = inputs};
    tiny_pass_run(&pass);
    for (size_t layer = 0; layer < N_LAYERS; layer++) {
        const struct drllm_decision *decision = &outcome.decisions[layer];
        double expected[3], margin;
        router_builder_reference(builder, layer, inputs + layer * n * D_MODEL, n, expected);
        for (size_t i = 0; i < 3; i++) {
            if (!(fabs((double)decision->logits[i] - expected[i]) <= 1e-4)) {
                fail_msg("%zu tokens, block %zu: logit %zu is %.9g, not %.9g", n, layer, i, (double)decision->logits[i],
                         expected[i]);
            }
        }
        const size_t best = best_of(expected, &margin);
        if (margin > 1e-3 && best != decision->count) {
            fail_msg("%zu tokens, block %zu: count %u, not %zu", n, layer, decision->count, best);
        }
        assert_true(fabs((double)decision->margin - margin) <= 2e-4);
        counts[decision->count]++;
    }
    assert_true(distance(drllm_session_logits(session), logits + (n - 1) * N_VOCAB, N_VOCAB) <= 1e-4);
}

static void test_random_routers(void **state) {
    (void)state;
    static const struct {
        bool int8;
        size_t n_windows, n_hidden;
    } variants[] = {{false, 8, 6}, {true, 8, 9}, {false, 1, 1}, {false, 3, 33}, {true, 64, 4}};
    struct rig rig;
    set_up_f32(&rig);
    size_t counts[3] = {0};
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        struct router_options options = router_options_of(&rig, 100 + i);
        options.int8 = variants[i].int8;
        options.n_windows = variants[i].n_windows;
        options.n_hidden = variants[i].n_hidden;
        struct router_builder builder;
        router_builder_make(&builder, &options);
        struct drllm_routers *routers = open_builder(&rig, &builder);
        const struct drllm_depth routed = routed_depth(routers);
        struct drllm_session *session = open_session(&rig, 1, 7);
        set_depth(session, &routed);
        /* Every length for the usual number of windows, otherwise a few. */
        for (size_t n = 1; n <= CONTEXT; n += i == 0 ? 1 : 7) {
            int32_t tokens[CONTEXT];
            tiny_random_tokens(n + i * 1000, tokens, n, N_VOCAB);
            drllm_session_reset(session);
            prefill(session, tokens, n);
            check_decisions(&rig, &builder, session, counts);
        }
        drllm_session_close(session);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
        router_builder_free(&builder);
    }
    assert_true(counts[0] > 20 && counts[1] > 20 && counts[2] > 20);
    tear_down(&rig);
}

/* Int8 products decide as the floats do, but where it is close. */
static void test_random_routers_on_a_quantised_model(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    size_t n_blocks = 0, n_same = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct router_options options = router_options_of(&rig, seed);
        options.int8 = seed == 1;
        options.n_hidden = seed == 2 ? 128 : 6;
        struct drllm_routers *routers = open_routers(&rig, &options);
        const struct drllm_depth routed = routed_depth(routers);
        struct drllm_session *session = open_session(&rig, 1, 7);
        set_depth(session, &routed);
        for (size_t n = 1; n <= CONTEXT; n++) {
            int32_t tokens[CONTEXT];
            tiny_random_tokens(n, tokens, n, N_VOCAB);
            drllm_session_reset(session);
            prefill(session, tokens, n);
            struct outcome got, given;
            read_outcome(session, &got);
            const struct drllm_depth depth = static_depth(got.program);
            run_fresh(&rig, &depth, tokens, n, &given);
            assert_true(same_logits(&got, &given));
            for (size_t i = 0; i < N_LAYERS; i++) {
                double logits[3], margin;
                for (size_t j = 0; j < 3; j++) {
                    logits[j] = (double)got.decisions[i].logits[j];
                    assert_true(isfinite(logits[j]));
                }
                n_blocks++;
                n_same += best_of(logits, &margin) == got.program[i];
            }
        }
        drllm_session_close(session);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    assert_int_equal(n_same, n_blocks);
    tear_down(&rig);
}

static void check_prompt_alone(const struct rig *rig, const struct drllm_depth *depth, const int32_t *tokens,
                               size_t n) {
    static const struct {
        unsigned n_threads;
        size_t n_chunk;
    } runs[] = {{1, 1}, {1, 3}, {1, 16}, {1, 48}, {2, 5}, {3, 48}};
    struct outcome expected, got;
    run_fresh(rig, depth, tokens, n, &expected);
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        struct drllm_session *session = open_session(rig, runs[i].n_threads, runs[i].n_chunk);
        set_depth(session, depth);
        prefill(session, tokens, n);
        read_outcome(session, &got);
        if (!same_decisions(&got, &expected) || !same_logits(&got, &expected)) {
            fail_msg("%zu tokens with %u threads, chunks of %zu: another outcome", n, runs[i].n_threads,
                     runs[i].n_chunk);
        }
        /* And with choices behind it. */
        int32_t text[9] = {9, 8, 7, 6, 5, 4, 3, 2, 1};
        struct drllm_choice choices[] = {{text, 9, 0.0}, {text + 3, 1, 0.0}};
        drllm_session_reset(session);
        assert_int_equal(drllm_session_score(session, tokens, n, choices, i % 2 + 1), DRLLM_OK);
        read_outcome(session, &got);
        assert_true(same_decisions(&got, &expected) && same_logits(&got, &expected));
        drllm_session_close(session);
    }
}

static void test_decisions_are_of_the_prompt_alone(void **state) {
    (void)state;
    static const size_t lengths[] = {1, 7, 8, 17, 33};
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_random_routers(&rig, 2);
    const struct drllm_depth routed = routed_depth(routers);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        int32_t tokens[CONTEXT];
        tiny_random_tokens(i, tokens, lengths[i], N_VOCAB);
        check_prompt_alone(&rig, &routed, tokens, lengths[i]);
    }
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

/* ---- Turns ---- */

/* Returns whether the second turn came to another program. */
static bool run_two_turns(const struct rig *rig, const struct drllm_depth *depth, uint64_t seed) {
    static struct seen seen, whole;
    int32_t tokens[27];
    tiny_random_tokens(seed, tokens, 27, N_VOCAB);
    struct outcome first, decoded, second;
    struct drllm_session *session = open_session(rig, 1, 6);
    set_depth(session, depth);
    prefill(session, tokens, 10);
    read_outcome(session, &first);
    decode(session, tokens + 10, 4);
    read_outcome(session, &decoded);
    assert_true(same_decisions(&first, &decoded));
    const struct drllm_depth given = static_depth(first.program);
    struct outcome expected;
    run_fresh(rig, &given, tokens, 14, &expected);
    assert_true(same_logits(&decoded, &expected));

    seen.n_logits = whole.n_logits = 0;
    assert_int_equal(drllm_session_prefill_logits(session, tokens + 14, 11, 0, see_logits, &seen), DRLLM_OK);
    check_as_fresh("second turn", rig, session, depth, tokens, 25);
    read_outcome(session, &second);
    struct drllm_session *other = open_session(rig, 1, 0);
    set_depth(other, depth);
    assert_int_equal(drllm_session_prefill_logits(other, tokens, 25, 0, see_logits, &whole), DRLLM_OK);
    assert_memory_equal(seen.logits, whole.logits + (size_t)14 * N_VOCAB, 11 * N_VOCAB * sizeof(float));
    drllm_session_close(other);
    decode(session, tokens + 25, 2);
    read_outcome(session, &decoded);
    assert_true(same_decisions(&second, &decoded));
    /* Less of it, and another end. */
    assert_int_equal(drllm_session_rewind(session, 7), DRLLM_OK);
    prefill(session, tokens + 7, 5);
    check_as_fresh("after a rewind", rig, session, depth, tokens, 12);
    drllm_session_close(session);
    return memcmp(first.program, second.program, N_LAYERS) != 0;
}

static void test_reroute_each_turn(void **state) {
    (void)state;
    enum { N_CONVERSATIONS = 24 };
    struct rig rig;
    set_up_exact(&rig);
    size_t n_changed = 0;
    struct drllm_routers *routers = open_random_routers(&rig, 4);
    const struct drllm_depth routed = routed_depth(routers);
    for (uint64_t seed = 0; seed < N_CONVERSATIONS; seed++) {
        n_changed += run_two_turns(&rig, &routed, seed);
    }
    assert_true(n_changed >= 3 && n_changed <= N_CONVERSATIONS - 3); /* both happen */
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

static void test_reroute_never(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_random_routers(&rig, 4);
    struct drllm_depth routed = routed_depth(routers);
    routed.reroute = DRLLM_REROUTE_NEVER;
    size_t n_kept = 0;
    for (uint64_t seed = 0; seed < 16; seed++) {
        int32_t tokens[30];
        tiny_random_tokens(seed, tokens, 30, N_VOCAB);
        struct outcome first, got, expected;
        struct drllm_session *session = open_session(&rig, 1, 6);
        set_depth(session, &routed);
        prefill(session, tokens, 10);
        check_as_fresh("first turn", &rig, session, &routed, tokens, 10);
        read_outcome(session, &first);
        decode(session, tokens + 10, 2);
        prefill(session, tokens + 12, 13);
        read_outcome(session, &got);
        const struct drllm_depth given = static_depth(first.program);
        run_fresh(&rig, &given, tokens, 25, &expected);
        assert_true(same_decisions(&got, &first) && same_logits(&got, &expected));
        run_fresh(&rig, &routed, tokens, 25, &expected);
        n_kept += memcmp(expected.program, first.program, N_LAYERS) != 0;
        /* A shorter context is not an empty one. */
        assert_int_equal(drllm_session_rewind(session, 2), DRLLM_OK);
        prefill(session, tokens + 2, 20);
        read_outcome(session, &got);
        assert_true(same_decisions(&got, &first));
        assert_int_equal(drllm_session_rewind(session, 0), DRLLM_OK);
        prefill(session, tokens + 5, 25);
        check_as_fresh("after rewind", &rig, session, &routed, tokens + 5, 25);
        drllm_session_reset(session);
        prefill(session, tokens + 3, 9);
        check_as_fresh("after reset", &rig, session, &routed, tokens + 3, 9);
        drllm_session_close(session);
    }
    assert_true(n_kept >= 2); /* where a new decision would have been another */
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

/* Between given programs and routers, in one context. */
static void test_static_and_routed_turns(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    int32_t tokens[40];
    tiny_random_tokens(21, tokens, 40, N_VOCAB);
    struct drllm_routers *routers = open_random_routers(&rig, 4), *others = open_random_routers(&rig, 5);
    const struct drllm_depth one = static_depth(one_program), routed = routed_depth(routers),
                             routed_by_others = routed_depth(others);
    struct drllm_session *session = open_session(&rig, 1, 6);
    decode(session, tokens, 1); /* full depth is the default */
    check_program(session, full_program);
    set_depth(session, &routed);
    prefill(session, tokens + 1, 9);
    check_as_fresh("routed", &rig, session, &routed, tokens, 10);
    set_depth(session, &one);
    prefill(session, tokens + 10, 5);
    check_as_fresh("given", &rig, session, &one, tokens, 15);
    set_depth(session, &routed_by_others);
    prefill(session, tokens + 15, 1);
    check_as_fresh("by others", &rig, session, &routed_by_others, tokens, 16);
    set_depth(session, &routed);
    decode(session, tokens + 16, 2);
    prefill(session, tokens + 18, 20);
    check_as_fresh("routed again", &rig, session, &routed, tokens, 38);
    drllm_session_reset(session);
    decode(session, tokens + 3, 1); /* a prompt of one token */
    check_as_fresh("one token", &rig, session, &routed, tokens + 3, 1);
    drllm_session_close(session);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    assert_int_equal(drllm_routers_close(others), DRLLM_OK);
    tear_down(&rig);
}

/* ---- Conversations of all kinds ---- */

enum { LONG_CONTEXT = 150, N_DEPTHS = 8 };

struct conversation {
    struct rig *rig;
    struct drllm_session *session;
    struct tiny_random random;
    struct drllm_depth depths[N_DEPTHS];
    size_t depth; /* that is set */
    bool keeps_depth;
    int32_t tokens[LONG_CONTEXT + 1];
    size_t n_tokens;
    struct outcome last; /* of the context, where it is not empty */
    size_t n_shortened;  /* turns that did not compute the whole context again, although they decided anew */
    size_t n_changed;    /* turns that came to another program than the context's */
};

static size_t below(struct conversation *conversation, size_t n) {
    return (size_t)(tiny_random_u64(&conversation->random) % n);
}

/* What followed the prompt, or the turn that kept its program. */
static void check_kept(struct conversation *conversation, const struct outcome *got) {
    const struct drllm_depth given = static_depth(conversation->last.program);
    struct outcome expected;
    run_fresh(conversation->rig, &given, conversation->tokens, conversation->n_tokens, &expected);
    assert_true(same_decisions(got, &conversation->last));
    assert_true(same_logits(got, &expected));
}

static void check_appended(struct conversation *conversation, size_t n_before, bool is_turn) {
    const struct drllm_depth *depth = &conversation->depths[conversation->depth];
    const bool frozen = !is_turn || (depth->kind == DRLLM_DEPTH_ROUTED && depth->reroute == DRLLM_REROUTE_NEVER);
    struct outcome got;
    read_outcome(conversation->session, &got);
    if (n_before > 0 && frozen) {
        check_kept(conversation, &got);
    } else {
        check_as_fresh("turn", conversation->rig, conversation->session, depth, conversation->tokens,
                       conversation->n_tokens);
        conversation->n_changed += n_before > 0 && memcmp(got.program, conversation->last.program, N_LAYERS) != 0;
    }
    conversation->last = got;
}

static void check_unchanged(const struct conversation *conversation) {
    assert_int_equal(drllm_session_n_tokens(conversation->session), conversation->n_tokens);
    assert_memory_equal(drllm_session_tokens(conversation->session), conversation->tokens,
                        conversation->n_tokens * sizeof *conversation->tokens);
    assert_null(drllm_session_logits(conversation->session));
    if (conversation->n_tokens > 0) {
        check_program(conversation->session, conversation->last.program);
    }
}

/* The logits after the turn's tokens from `first` on. */
static void check_seen(const struct conversation *conversation, const struct seen *seen, size_t n_before) {
    static struct seen whole;
    const size_t n = conversation->n_tokens;
    struct drllm_session *session = open_session_of(conversation->rig, n, 1, 0);
    set_depth(session, &conversation->depths[conversation->depth]);
    whole.n_logits = 0;
    whole.first = n_before + seen->first;
    assert_int_equal(drllm_session_prefill_logits(session, conversation->tokens, n, whole.first, see_logits, &whole),
                     DRLLM_OK);
    assert_int_equal(seen->n_logits, n - n_before - seen->first);
    assert_int_equal(whole.n_logits, seen->n_logits);
    assert_memory_equal(seen->logits, whole.logits, seen->n_logits * N_VOCAB * sizeof(float));
    drllm_session_close(session);
}

static void take_turn(struct conversation *conversation) {
    static struct seen seen;
    const size_t n_before = conversation->n_tokens, left = LONG_CONTEXT - n_before;
    size_t n = 1 + below(conversation, below(conversation, 2) == 0 ? 6 : 45);
    n = n < left ? n : left;
    tiny_random_tokens(tiny_random_u64(&conversation->random), conversation->tokens + n_before, n, N_VOCAB);
    const struct drllm_depth *depth = &conversation->depths[conversation->depth];
    const bool anew = depth->kind != DRLLM_DEPTH_ROUTED || depth->reroute == DRLLM_REROUTE_TURN;
    struct drllm_timings before, after;
    drllm_session_get_timings(conversation->session, &before);
    seen.n_logits = 0;
    seen.first = below(conversation, n);
    assert_int_equal(drllm_session_prefill_logits(conversation->session, conversation->tokens + n_before, n, seen.first,
                                                  see_logits, &seen),
                     DRLLM_OK);
    drllm_session_get_timings(conversation->session, &after);
    conversation->n_tokens += n;
    conversation->n_shortened += depth->kind == DRLLM_DEPTH_ROUTED && anew && n_before > 0 &&
                                 after.n_prefill - before.n_prefill < conversation->n_tokens;
    check_appended(conversation, n_before, true);
    if (anew && n_before % 3 == 0) {
        check_seen(conversation, &seen, n_before);
    }
}

static void decode_some(struct conversation *conversation) {
    const size_t n_before = conversation->n_tokens;
    for (size_t n = 1 + below(conversation, 20); n > 0 && conversation->n_tokens < LONG_CONTEXT; n--) {
        conversation->tokens[conversation->n_tokens] = (int32_t)below(conversation, N_VOCAB);
        decode(conversation->session, conversation->tokens + conversation->n_tokens, 1);
        conversation->n_tokens++;
        if (n_before == 0 && conversation->n_tokens == 1) {
            check_appended(conversation, 0, false); /* a prompt of one token */
        }
    }
    check_appended(conversation, n_before > 0 ? n_before : 1, false);
}

static void fail_a_turn(struct conversation *conversation) {
    int32_t tokens[30];
    const size_t left = LONG_CONTEXT - conversation->n_tokens, n = left < 30 ? left : 30;
    tiny_random_tokens(5, tokens, n, N_VOCAB);
    if (below(conversation, 2) == 0) {
        cancelled_prefill(conversation->session, below(conversation, N_LAYERS + 1), tokens, n);
    } else {
        struct tiny_counted *counted = &conversation->rig->counted;
        counted->fail_at = counted->n_calls + below(conversation, 6);
        const int status = drllm_session_prefill(conversation->session, tokens, n);
        counted->fail_at = SIZE_MAX;
        if (status == DRLLM_OK) { /* fewer allocations than that */
            memcpy(conversation->tokens + conversation->n_tokens, tokens, n * sizeof *tokens);
            conversation->n_tokens += n;
            check_appended(conversation, conversation->n_tokens - n, true);
            return;
        }
        assert_int_equal(status, DRLLM_ERR_MEMORY);
    }
    check_unchanged(conversation);
}

static void rewind_some(struct conversation *conversation) {
    conversation->n_tokens = below(conversation, conversation->n_tokens + 1);
    assert_int_equal(drllm_session_rewind(conversation->session, conversation->n_tokens), DRLLM_OK);
}

static void step(struct conversation *conversation) {
    const size_t what = below(conversation, 12);
    if (conversation->n_tokens == LONG_CONTEXT || what == 0) {
        rewind_some(conversation);
    } else if (what < 6) {
        take_turn(conversation);
    } else if (what < 8) {
        decode_some(conversation);
    } else if (what < 10) {
        fail_a_turn(conversation);
    } else if (!conversation->keeps_depth) {
        conversation->depth = below(conversation, N_DEPTHS);
        set_depth(conversation->session, &conversation->depths[conversation->depth]);
    }
}

/* Random weights, but prompts mostly decide for `program`, at least in the first n_calm blocks. */
static struct drllm_routers *open_calm_routers(const struct rig *rig, uint64_t seed, size_t n_windows, size_t n_calm,
                                               const uint8_t program[N_LAYERS]) {
    struct router_options options = router_options_of(rig, seed);
    options.n_windows = n_windows;
    struct router_builder builder;
    router_builder_make(&builder, &options);
    for (size_t i = 0; i < n_calm; i++) {
        char name[48];
        (void)snprintf(name, sizeof name, "blk.%zu.router.fc2.bias", i);
        ((float *)router_builder_find(&builder, name)->data)[program[i]] += 15.0f;
    }
    struct drllm_routers *routers = open_builder(rig, &builder);
    router_builder_free(&builder);
    return routers;
}

static void fill_in_depths(struct drllm_depth depths[N_DEPTHS], struct drllm_routers *const routers[3]) {
    depths[0] = drllm_depth_default();
    depths[1] = static_depth(one_program);
    depths[2] = static_depth(another_program);
    depths[3] = routed_depth(routers[0]);
    depths[4] = routed_depth(routers[1]);
    depths[5] = routed_depth(routers[2]);
    depths[6] = routed_depth(routers[1]);
    depths[6].router_p = -0.6f;
    depths[7] = routed_depth(routers[2]);
    depths[7].reroute = DRLLM_REROUTE_NEVER;
}

/* Few windows are wide, so that much of what they read was there before; many leave a long tail behind the last one.
 *
 * Turns, tokens behind them, other depths, rewinds and failures, in any order: what the session says is what one of its
 * own says that gets all tokens at once. */
static void test_conversations(void **state) {
    (void)state;
    enum { N_STEPS = 30 };
    const size_t n_conversations = drllm_test_is_fast() ? 6 : 60;
    static struct conversation conversation;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers[3] = {open_random_routers(&rig, 4),
                                        open_calm_routers(&rig, 5, 30, N_LAYERS - 1, one_program),
                                        open_calm_routers(&rig, 6, 2, N_LAYERS, full_program)};
    size_t n_shortened = 0, n_changed = 0;
    for (uint64_t i = 0; i < n_conversations; i++) {
        conversation = (struct conversation){.rig = &rig, .random = {i}, .keeps_depth = i % 3 != 0};
        conversation.session = open_session_of(&rig, LONG_CONTEXT, 1, 1 + below(&conversation, 60));
        fill_in_depths(conversation.depths, routers);
        conversation.depth = i % 3 == 0 ? 0 : 3 + i % 3;
        set_depth(conversation.session, &conversation.depths[conversation.depth]);
        for (size_t j = 0; j < N_STEPS; j++) {
            step(&conversation);
        }
        drllm_session_close(conversation.session);
        n_shortened += conversation.n_shortened;
        n_changed += conversation.n_changed;
    }
    assert_true(n_shortened >= 5 && n_changed >= 5);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(drllm_routers_close(routers[i]), DRLLM_OK);
    }
    tear_down(&rig);
}

/* What was kept of another program, or of other tokens, is not what a later turn reads. */
static void test_turns_read_what_is_there(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_calm_routers(&rig, 7, 1, N_LAYERS, one_program);
    const struct drllm_depth routed = routed_depth(routers), one = static_depth(one_program),
                             another = static_depth(another_program);
    int32_t tokens[120];
    tiny_random_tokens(31, tokens, 120, N_VOCAB);
    for (size_t what = 0; what < 4; what++) {
        struct drllm_session *session = open_session_of(&rig, 120, 1, 0);
        set_depth(session, &routed);
        prefill(session, tokens + 40, 40);
        check_program(session, one_program);
        if (what == 0) {
            drllm_session_reset(session);
            set_depth(session, &one);
            prefill(session, tokens, 50);
        } else if (what == 1) {
            assert_int_equal(drllm_session_rewind(session, 0), DRLLM_OK);
            prefill(session, tokens, 40);
            set_depth(session, &another);
            prefill(session, tokens + 40, 5);
            set_depth(session, &one);
            prefill(session, tokens + 45, 5);
        } else if (what == 2) {
            assert_int_equal(drllm_session_rewind(session, 0), DRLLM_OK);
            set_depth(session, &one);
            decode(session, tokens, 1);
            prefill(session, tokens + 1, 49);
        } else {
            assert_int_equal(drllm_session_rewind(session, 0), DRLLM_OK);
            prefill(session, tokens, 20);
            prefill(session, tokens + 70, 41);
            assert_int_equal(drllm_session_rewind(session, 20), DRLLM_OK);
            set_depth(session, &one);
            prefill(session, tokens + 20, 30);
        }
        set_depth(session, &routed);
        prefill(session, tokens + 50, 11);
        check_as_fresh("a turn", &rig, session, &routed, tokens, 61);
        check_program(session, one_program);
        decode(session, tokens + 61, 9);
        prefill(session, tokens + 70, 2);
        check_as_fresh("a turn after it", &rig, session, &routed, tokens, 72);
        drllm_session_close(session);
    }
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

/* A turn of one token, behind which the last window ends in the middle of what was there before. */
static void test_turn_behind_a_long_tail(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_calm_routers(&rig, 8, 5, N_LAYERS, one_program);
    const struct drllm_depth routed = routed_depth(routers);
    int32_t tokens[129];
    tiny_random_tokens(32, tokens, 129, N_VOCAB);
    struct drllm_session *session = open_session_of(&rig, 129, 1, 0);
    set_depth(session, &routed);
    prefill(session, tokens, 128);
    prefill(session, tokens + 128, 1);
    check_as_fresh("one token more", &rig, session, &routed, tokens, 129);
    drllm_session_close(session);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

/* A turn that failed, under the same program or on the way to another, leaves nothing that a later one reads. */
static void test_turn_after_a_failed_one(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_calm_routers(&rig, 7, 1, N_LAYERS, one_program);
    struct drllm_routers *others = open_calm_routers(&rig, 9, 1, N_LAYERS, another_program);
    const struct drllm_depth routed = routed_depth(routers), by_others = routed_depth(others);
    int32_t tokens[60], failed[20];
    tiny_random_tokens(33, tokens, 60, N_VOCAB);
    tiny_random_tokens(34, failed, 20, N_VOCAB);
    for (size_t i = 0; i < 2 * (N_LAYERS + 1); i++) {
        struct drllm_session *session = open_session_of(&rig, 60, 1, 0);
        set_depth(session, &routed);
        prefill(session, tokens, 40);
        set_depth(session, i % 2 == 0 ? &routed : &by_others);
        cancelled_prefill(session, i / 2, failed, 20);
        set_depth(session, &routed);
        decode(session, tokens + 40, 10);
        prefill(session, tokens + 50, 2);
        check_as_fresh("two tokens more", &rig, session, &routed, tokens, 52);
        drllm_session_close(session);
    }
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    assert_int_equal(drllm_routers_close(others), DRLLM_OK);
    tear_down(&rig);
}

/* Only the last block's router comes to another decision, when all else has been taken from what was there. */
static void test_late_change_of_mind(void **state) {
    (void)state;
    enum { N_ROUTERS = 32 };
    struct rig rig;
    set_up_exact(&rig);
    size_t n_changed = 0;
    for (uint64_t seed = 0; seed < N_ROUTERS; seed++) {
        struct drllm_routers *routers = open_calm_routers(&rig, seed, 1, N_LAYERS - 1, one_program);
        const struct drllm_depth routed = routed_depth(routers);
        int32_t tokens[50];
        tiny_random_tokens(seed, tokens, 50, N_VOCAB);
        uint8_t before[N_LAYERS], after[N_LAYERS];
        struct drllm_session *session = open_session_of(&rig, 50, 1, 0);
        set_depth(session, &routed);
        prefill(session, tokens, 34);
        assert_int_equal(drllm_session_get_program(session, before), DRLLM_OK);
        prefill(session, tokens + 34, 16);
        assert_int_equal(drllm_session_get_program(session, after), DRLLM_OK);
        check_as_fresh("second turn", &rig, session, &routed, tokens, 50);
        n_changed += memcmp(before, after, N_LAYERS - 1) == 0 && before[N_LAYERS - 1] != after[N_LAYERS - 1];
        drllm_session_close(session);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    assert_true(n_changed >= 1);
    tear_down(&rig);
}

/* ---- Budgets ---- */

struct budget {
    double p, skip_bias;
};

/* The probabilities after the budget, as the paper has them. */
static void spend(const struct budget *budget, const float logits[3], double q[3]) {
    const double skip[] = {1.0, 0.0, 0.0}, execute[] = {0.0, 1.0, 0.0}, repeat[] = {0.0, 0.0, 1.0};
    double total = 0.0, own[3];
    for (size_t i = 0; i < 3; i++) {
        own[i] = exp((double)logits[i] + (i == 0 ? budget->skip_bias : 0.0));
        total += own[i];
    }
    for (size_t i = 0; i < 3; i++) {
        own[i] /= total;
        if (budget->p <= -0.5) {
            const double t = (budget->p + 1.0) / 0.5;
            q[i] = (1.0 - t) * skip[i] + t * own[i];
        } else if (budget->p <= 0.5) {
            const double t = budget->p + 0.5;
            q[i] = (1.0 - t) * own[i] + t * execute[i];
        } else {
            const double t = (budget->p - 0.5) / 0.5;
            q[i] = (1.0 - t) * execute[i] + t * repeat[i];
        }
    }
}

static void check_budget_of_block(size_t layer, const struct budget *budget, const struct drllm_decision *decision) {
    double q[3], own[3], score[3], margin, own_margin;
    spend(budget, decision->logits, q);
    for (size_t i = 0; i < 3; i++) {
        score[i] = log(q[i]);
        own[i] = (double)decision->logits[i];
    }
    size_t best = best_of(score, &margin);
    const size_t own_best = best_of(own, &own_margin);
    if ((layer == 0 || layer == N_LAYERS - 1) && best == 0 && own_best != 0) {
        best = own_best;
        margin = own_margin;
    } else if (margin > 1e-3 && layer != 0 && layer != N_LAYERS - 1) {
        const double error = fabs((double)decision->margin - margin);
        if (isinf(margin) ? !isinf(decision->margin) : !(error <= 1e-3 * (1.0 + margin))) {
            fail_msg("p %g, bias %g, block %zu: margin %g, not %g", budget->p, budget->skip_bias, layer,
                     (double)decision->margin, margin);
        }
    }
    assert_true(decision->margin >= 0.0f); /* and not NaN */
    if (margin > 1e-3 && own_margin > 1e-3 && decision->count != best) {
        fail_msg("p %g, bias %g, block %zu: count %u, not %zu", budget->p, budget->skip_bias, layer, decision->count,
                 best);
    }
}

static void check_budget(struct drllm_session *session, const struct drllm_depth *depth, const struct budget *budget,
                         size_t counts[3]) {
    int32_t tokens[17];
    for (uint64_t seed = 0; seed < 3; seed++) {
        tiny_random_tokens(seed, tokens, 17, N_VOCAB);
        drllm_session_reset(session);
        set_depth(session, depth);
        prefill(session, tokens, 17);
        struct outcome outcome;
        read_outcome(session, &outcome);
        for (size_t i = 0; i < N_LAYERS; i++) {
            check_budget_of_block(i, budget, &outcome.decisions[i]);
            counts[outcome.program[i]]++;
        }
    }
}

static void test_router_p(void **state) {
    (void)state;
    static const float knobs[] = {-1.0f, -0.95f, -0.75f, -0.6f, -0.5f, -0.4f, 0.0f, 0.4f, 0.5f, 0.6f, 0.9f, 1.0f};
    struct rig rig;
    set_up_f32(&rig);
    size_t most_skips = 0;
    for (uint64_t seed = 10; seed < 14; seed++) {
        struct drllm_routers *routers = open_random_routers(&rig, seed);
        struct drllm_session *session = open_session(&rig, 1, 0);
        for (size_t i = 0; i < sizeof knobs / sizeof knobs[0]; i++) {
            struct drllm_depth depth = routed_depth(routers);
            depth.router_p = knobs[i];
            const struct budget budget = {.p = (double)knobs[i]};
            size_t counts[3] = {0};
            check_budget(session, &depth, &budget, counts);
            if (knobs[i] == -1.0f) {
                assert_true(counts[0] >= (size_t)3 * (N_LAYERS - 2));
                most_skips += counts[0] - (size_t)3 * (N_LAYERS - 2);
            } else if (knobs[i] >= 0.5f) {
                assert_int_equal(counts[knobs[i] > 0.75f ? 2 : 1], 3 * N_LAYERS);
            }
        }
        drllm_session_close(session);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    /* The ends of the network follow their routers, one way and the other. */
    assert_true(most_skips > 0 && most_skips < (size_t)4 * 3 * 2);
    tear_down(&rig);
}

static const float table_bias[] = {-2.0f, 0.5f, 5.0f}, table_saved[] = {0.5f, 1.5f, 4.0f};

static struct drllm_routers *open_calibrated(const struct rig *rig, uint64_t seed) {
    struct router_options options = router_options_of(rig, seed);
    options.bias = table_bias;
    options.saved = table_saved;
    options.n_bias = options.n_saved = 3;
    return open_routers(rig, &options);
}

static void test_save_layers(void **state) {
    (void)state;
    static const struct {
        float save_layers;
        double bias;
    } rows[] = {{0.0f, -2.0}, {0.25f, -2.0}, {0.5f, -2.0}, {0.75f, -1.375}, {1.0f, -0.75},
                {1.5f, 0.5},  {2.75f, 2.75}, {3.5f, 4.1},  {4.0f, 5.0}};
    struct rig rig;
    set_up_f32(&rig);
    size_t n_skips[sizeof rows / sizeof rows[0]] = {0};
    for (uint64_t seed = 20; seed < 23; seed++) {
        struct drllm_routers *routers = open_calibrated(&rig, seed);
        struct drllm_session *session = open_session(&rig, 1, 0);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            struct drllm_depth depth = routed_depth(routers);
            depth.save_layers = rows[i].save_layers;
            const struct budget budget = {.p = -0.5, .skip_bias = rows[i].bias};
            size_t counts[3] = {0};
            check_budget(session, &depth, &budget, counts);
            n_skips[i] += counts[0];
        }
        drllm_session_close(session);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    assert_true(n_skips[0] < n_skips[8]);
    tear_down(&rig);
}

/* Where a budget would skip every block, the ends are run as often as their routers run them. */
static void test_ends_are_protected(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    static const uint8_t skipped[N_LAYERS] = {0, 1, 2, 1, 0}, kept[N_LAYERS] = {1, 1, 2, 1, 2};
    static const uint8_t *const programs[] = {skipped, kept};
    int32_t tokens[12];
    tiny_random_tokens(1, tokens, 12, N_VOCAB);
    for (size_t i = 0; i < 2; i++) {
        struct router_options options = router_options_of(&rig, 1);
        options.program = programs[i];
        options.certainty = 1.0f;
        options.bias = table_bias;
        options.saved = table_saved;
        options.n_bias = options.n_saved = 3;
        struct drllm_routers *routers = open_routers(&rig, &options);
        const uint8_t expected[N_LAYERS] = {programs[i][0], 0, 0, 0, programs[i][N_LAYERS - 1]};
        struct outcome outcome;
        struct drllm_depth depth = routed_depth(routers);
        depth.router_p = -1.0f;
        run_fresh(&rig, &depth, tokens, 12, &outcome);
        assert_memory_equal(outcome.program, expected, N_LAYERS);
        for (size_t layer = 1; layer < N_LAYERS - 1; layer++) {
            assert_true(isinf(outcome.decisions[layer].margin) && outcome.decisions[layer].margin > 0.0f);
        }
        depth.router_p = -0.98f;
        run_fresh(&rig, &depth, tokens, 12, &outcome);
        assert_memory_equal(outcome.program, expected, N_LAYERS);
        assert_true(isfinite(outcome.decisions[2].margin));
        depth = routed_depth(routers);
        depth.save_layers = 4.0f;
        run_fresh(&rig, &depth, tokens, 12, &outcome);
        assert_memory_equal(outcome.program, expected, N_LAYERS);
        assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    }
    tear_down(&rig);
}

/* ---- Refusals ---- */

static void expect_refusal(struct drllm_session *session, const struct drllm_depth *depth, int status,
                           const char *word) {
    const int got = drllm_session_set_depth(session, depth);
    if (got != status || strlen(drllm_session_last_error(session)) == 0 ||
        strstr(drllm_session_last_error(session), word) == NULL) {
        fail_msg("status %d (%s), wanted %d with '%s'", got, drllm_session_last_error(session), status, word);
    }
}

static void check_refusals(struct drllm_session *session, const struct drllm_routers *routers,
                           const struct drllm_routers *calibrated, const struct drllm_routers *of_another) {
    static const uint8_t three[N_LAYERS] = {1, 1, 1, 1, 3};
    struct drllm_depth depth = static_depth(three);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "");
    depth = static_depth(NULL);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "");
    depth = routed_depth(NULL);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "routers");
    depth = routed_depth(of_another);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "model");
    static const float knobs[] = {-1.01f, 1.01f, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof knobs / sizeof knobs[0]; i++) {
        depth = routed_depth(calibrated);
        depth.router_p = knobs[i];
        expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "router_p");
    }
    static const float saves[] = {NAN, INFINITY, 4.01f, 1e30f};
    for (size_t i = 0; i < sizeof saves / sizeof saves[0]; i++) {
        depth = routed_depth(calibrated);
        depth.save_layers = saves[i];
        expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, saves[i] > 4.0f && saves[i] < 1e38f ? "4" : "");
    }
    depth = routed_depth(calibrated);
    depth.save_layers = 1.0f;
    depth.router_p = -0.25f;
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "save_layers");
    depth = routed_depth(routers);
    depth.save_layers = 1.0f;
    expect_refusal(session, &depth, DRLLM_ERR_STATE, "calibrat");
    depth.save_layers = 0.0f;
    expect_refusal(session, &depth, DRLLM_ERR_STATE, "calibrat");
    depth = drllm_depth_default();
    memset(&depth.kind, 7, sizeof depth.kind);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "");
    depth = routed_depth(routers);
    memset(&depth.reroute, 7, sizeof depth.reroute);
    expect_refusal(session, &depth, DRLLM_ERR_ARGUMENT, "");
    assert_int_equal(drllm_session_set_depth(session, NULL), DRLLM_ERR_ARGUMENT);
}

/* Whatever is refused, the depth is as before. */
static void test_refusals(void **state) {
    (void)state;
    struct rig rig, other;
    set_up_exact(&rig);
    set_up_exact(&other);
    struct drllm_routers *routers = open_random_routers(&rig, 4), *calibrated = open_calibrated(&rig, 5),
                         *of_another = open_random_routers(&other, 4);
    int32_t tokens[20];
    tiny_random_tokens(2, tokens, 20, N_VOCAB);
    const struct drllm_depth one = static_depth(one_program), routed = routed_depth(routers);
    const struct drllm_depth *const depths[] = {&one, &routed};
    for (size_t i = 0; i < 2; i++) {
        struct drllm_session *session = open_session(&rig, 1, 0);
        set_depth(session, depths[i]);
        check_refusals(session, routers, calibrated, of_another);
        prefill(session, tokens, 9);
        check_as_fresh("refused", &rig, session, depths[i], tokens, 9);
        check_refusals(session, routers, calibrated, of_another);
        prefill(session, tokens + 9, 9);
        check_as_fresh("refused", &rig, session, depths[i], tokens, 18);
        drllm_session_close(session);
    }
    assert_int_equal(drllm_session_set_depth(NULL, &one), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_routers_close(of_another), DRLLM_OK);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    assert_int_equal(drllm_routers_close(calibrated), DRLLM_OK);
    tear_down(&other);
    tear_down(&rig);
}

static void test_close_order(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_routers *routers = open_random_routers(&rig, 1), *others = open_random_routers(&rig, 2);
    assert_int_equal(drllm_model_close(rig.model), DRLLM_ERR_STATE);
    const struct drllm_depth routed = routed_depth(routers), by_others = routed_depth(others),
                             full = drllm_depth_default();
    struct drllm_session *first = open_session(&rig, 1, 0), *second = open_session(&rig, 1, 0);
    set_depth(first, &routed);
    set_depth(second, &routed);
    assert_int_equal(drllm_routers_close(routers), DRLLM_ERR_STATE);
    set_depth(first, &routed); /* twice is once */
    set_depth(first, &full);
    assert_int_equal(drllm_routers_close(routers), DRLLM_ERR_STATE);
    set_depth(second, &by_others);
    assert_int_equal(drllm_routers_close(others), DRLLM_ERR_STATE);
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    /* They still work, and a session lets go of them when it is closed. */
    static const int32_t tokens[] = {4, 5, 6};
    prefill(second, tokens, 3);
    prefill(first, tokens, 3);
    drllm_session_close(second);
    assert_int_equal(drllm_routers_close(others), DRLLM_OK);
    assert_int_equal(drllm_model_close(rig.model), DRLLM_ERR_STATE);
    drllm_session_close(first);
    tear_down(&rig);
}

/* ---- Shared routers ---- */

struct user {
    const struct rig *rig;
    const struct drllm_routers *routers;
    uint64_t seed;
    struct outcome outcome;
    bool ended;
};

static void *use_routers(void *argument) {
    struct user *user = argument;
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = CONTEXT;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    const struct drllm_depth depth = routed_depth(user->routers);
    int32_t tokens[30];
    tiny_random_tokens(user->seed, tokens, 30, N_VOCAB);
    int status = drllm_session_open(user->rig->model, &params, &session, NULL);
    status = status == DRLLM_OK ? drllm_session_set_depth(session, &depth) : status;
    for (size_t i = 0; i < 4 && status == DRLLM_OK; i++) {
        drllm_session_reset(session);
        status = drllm_session_prefill(session, tokens, 15);
        status = status == DRLLM_OK ? drllm_session_prefill(session, tokens + 15, 15) : status;
    }
    if (status == DRLLM_OK) {
        memcpy(user->outcome.logits, drllm_session_logits(session), sizeof user->outcome.logits);
        user->ended = drllm_session_get_program(session, user->outcome.program) == DRLLM_OK &&
                      drllm_session_get_decisions(session, user->outcome.decisions) == DRLLM_OK;
    }
    drllm_session_close(session);
    return NULL;
}

static void test_shared_routers(void **state) {
    (void)state;
    const struct tiny_options options = model_options(DRLLM_FORMAT_Q4_1);
    struct tiny_model tiny;
    tiny_model_make(&tiny, &options);
    struct rig rig = {.tiny = tiny}; /* with the allocator that threads may use at once */
    size_t size;
    rig.file = tiny_model_write(&tiny, NULL, 0, &size);
    assert_int_equal(drllm_model_open_memory(rig.file, size, NULL, &rig.model, NULL), DRLLM_OK);
    struct drllm_routers *routers = open_random_routers(&rig, 4);
    static struct user users[2], alone[2];
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++) {
        users[i] = alone[i] = (struct user){.rig = &rig, .routers = routers, .seed = 50 + i};
        (void)use_routers(&alone[i]);
        assert_true(alone[i].ended);
    }
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use_routers, &users[i]), 0);
    }
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(users[i].ended);
        assert_true(same_decisions(&users[i].outcome, &alone[i].outcome));
        assert_true(same_logits(&users[i].outcome, &alone[i].outcome));
    }
    assert_false(same_logits(&alone[0].outcome, &alone[1].outcome));
    assert_int_equal(drllm_routers_close(routers), DRLLM_OK);
    tear_down(&rig);
}

static void test_misuse(void **state) {
    (void)state;
    struct rig rig;
    set_up_exact(&rig);
    struct drllm_session *session = open_session(&rig, 1, 0);
    static const int32_t token = 3;
    decode(session, &token, 1);
    uint8_t counts[N_LAYERS];
    struct drllm_decision decisions[N_LAYERS];
    int saved;
    assert_int_equal(drllm_session_get_program(NULL, counts), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_get_program(session, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_get_decisions(NULL, decisions), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_get_decisions(session, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_get_layers_saved(NULL, &saved), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_get_layers_saved(session, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_session_extend_logits(NULL, &token, 1, 0, NULL, NULL), DRLLM_ERR_ARGUMENT);
    drllm_session_close(session);
    tear_down(&rig);
}

int drllm_test_routing(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_programs_are_the_reference),
        cmocka_unit_test(test_random_programs),
        cmocka_unit_test(test_depth_changes_at_the_next_prefill),
        cmocka_unit_test(test_logits_of_new_tokens),
        cmocka_unit_test(test_same_program_keeps_the_cache),
        cmocka_unit_test(test_scoring),
        cmocka_unit_test(test_generating),
        cmocka_unit_test(test_cancelled_turns),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_forced_routers),
        cmocka_unit_test(test_random_routers),
        cmocka_unit_test(test_random_routers_on_a_quantised_model),
        cmocka_unit_test(test_decisions_are_of_the_prompt_alone),
        cmocka_unit_test(test_reroute_each_turn),
        cmocka_unit_test(test_reroute_never),
        cmocka_unit_test(test_static_and_routed_turns),
        cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_turns_read_what_is_there),
        cmocka_unit_test(test_turn_behind_a_long_tail),
        cmocka_unit_test(test_turn_after_a_failed_one),
        cmocka_unit_test(test_late_change_of_mind),
        cmocka_unit_test(test_router_p),
        cmocka_unit_test(test_save_layers),
        cmocka_unit_test(test_ends_are_protected),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_close_order),
        cmocka_unit_test(test_shared_routers),
        cmocka_unit_test(test_misuse),
    };
    return drllm_run_group("routing", tests, NULL, NULL);
}
