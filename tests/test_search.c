/* Layer search: the probe against sessions that run one program, bit for bit; the evaluator against a direct computation;
 * `drllm search` on questions whose best programs are known, however it is run. */
#include "tests/cli.h"
#include "tests/router_builder.h"

#include "runtime/internal.h"
#include "runtime/router.h"
#include "tools/search.h"
#include "tools/search_choose.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { N_LAYERS = 5, D_MODEL = 32, MOST_PROMPT = 40, MOST_CHOICES = 4, MOST_CHOICE = 5, CONTEXT = 64 };

/* ---- Models and sessions ---- */

struct rig {
    struct tiny_options options;
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
    options.n_vocab = CLI_N_VOCAB;
    options.blocks = options.down = format;
    options.embedding = format == DRLLM_FORMAT_F32 ? DRLLM_FORMAT_F32 : DRLLM_FORMAT_Q8_0;
    return options;
}

static void open_rig(struct rig *rig, enum drllm_format format, enum drllm_compute compute, bool counts) {
    *rig = (struct rig){.options = model_options(format), .counted = {.fail_at = SIZE_MAX}};
    size_t size = 0;
    rig->file = tiny_model_file(&rig->options, &size);
    struct drllm_model_params params = drllm_model_default_params();
    params.compute = compute;
    params.load_threads = 1;
    if (counts) {
        params.allocator = tiny_counted_allocator(&rig->counted);
    }
    struct drllm_error error = {0};
    if (drllm_model_open_memory(rig->file, size, &params, &rig->model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
}

/* The rig stays where it is: the model's allocator points into it. Sessions of several threads need open_rig, since what
 * they allocate at once is not counted right. */
static void set_up(struct rig *rig, enum drllm_format format, enum drllm_compute compute) {
    open_rig(rig, format, compute, true);
}

static void tear_down(struct rig *rig) {
    assert_int_equal(drllm_model_close(rig->model), DRLLM_OK);
    assert_true(rig->counted.n_live == 0 && !rig->counted.wrong);
    free(rig->file);
}

static struct drllm_session *open_session_of(const struct rig *rig, unsigned n_threads, size_t n_chunk) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = CONTEXT;
    params.n_threads = n_threads;
    params.n_chunk = n_chunk;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(rig->model, &params, &session, NULL), DRLLM_OK);
    return session;
}

static void set_program(struct drllm_session *session, const uint8_t *counts) {
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = counts;
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
}

/* ---- Made-up questions ---- */

struct made {
    int32_t prompt[MOST_PROMPT], tokens[MOST_CHOICES][MOST_CHOICE];
    size_t n_prompt, n_choices;
    struct drllm_choice choices[MOST_CHOICES];
};

static struct made *make_question(uint64_t *random) {
    struct made *made = calloc(1, sizeof *made);
    assert_non_null(made);
    made->n_prompt = 1 + drllm_random(random) % MOST_PROMPT;
    made->n_choices = 1 + drllm_random(random) % MOST_CHOICES;
    tiny_random_tokens(drllm_random(random), made->prompt, made->n_prompt, CLI_N_VOCAB);
    for (size_t i = 0; i < made->n_choices; i++) {
        const size_t n = 1 + drllm_random(random) % MOST_CHOICE;
        tiny_random_tokens(drllm_random(random), made->tokens[i], n, CLI_N_VOCAB);
        made->choices[i] = (struct drllm_choice){made->tokens[i], n, 0.0};
    }
    return made;
}

static void random_counts(uint64_t *random, uint8_t *counts, size_t first) {
    for (size_t i = first; i < N_LAYERS; i++) {
        counts[i] = (uint8_t)(drllm_random(random) % 3);
    }
}

static struct drllm_probe *open_probe(struct drllm_session *session, const struct made *made) {
    struct drllm_probe *probe = NULL;
    const int status = drllm_probe_open(session, made->prompt, made->n_prompt, made->choices, made->n_choices, &probe);
    if (status != DRLLM_OK) {
        fail_msg("%s", drllm_session_last_error(session));
    }
    return probe;
}

/* What a session that runs nothing but this program says of the choices. */
static void expect_scores(struct drllm_session *session, struct made *made, const uint8_t *counts,
                          const double *log_probs) {
    drllm_session_reset(session);
    set_program(session, counts);
    assert_int_equal(drllm_session_score(session, made->prompt, made->n_prompt, made->choices, made->n_choices),
                     DRLLM_OK);
    for (size_t i = 0; i < made->n_choices; i++) {
        if (log_probs[i] < made->choices[i].log_prob || log_probs[i] > made->choices[i].log_prob) {
            fail_msg("%.17g instead of %.17g", log_probs[i], made->choices[i].log_prob);
        }
    }
}

/* ---- The probe ---- */

/* Resumed in front of each block, under programs that differ from there on. */
static void check_resumed(struct drllm_probe *probe, struct drllm_session *other, struct made *made,
                          const uint8_t *counts, uint64_t *random) {
    double log_probs[MOST_CHOICES];
    uint8_t variant[N_LAYERS];
    for (size_t layer = 0; layer < N_LAYERS; layer++) {
        memcpy(variant, counts, sizeof variant);
        random_counts(random, variant, layer);
        assert_int_equal(drllm_probe_run(probe, variant, layer, false, log_probs), DRLLM_OK);
        expect_scores(other, made, variant, log_probs);
    }
}

static void check_probe(const struct rig *rig, uint64_t random) {
    struct drllm_session *session = open_session_of(rig, 1, 0), *other = open_session_of(rig, 2, 7);
    for (size_t i = 0; i < 4; i++) {
        struct made *made = make_question(&random);
        struct drllm_probe *probe = open_probe(session, made);
        double log_probs[MOST_CHOICES];
        uint8_t counts[N_LAYERS];
        random_counts(&random, counts, 0);
        assert_int_equal(drllm_probe_run(probe, counts, 0, true, log_probs), DRLLM_OK);
        expect_scores(other, made, counts, log_probs);
        check_resumed(probe, other, made, counts, &random);
        /* A kept run that was itself resumed, without a head. */
        const size_t layer = drllm_random(&random) % N_LAYERS;
        random_counts(&random, counts, layer);
        assert_int_equal(drllm_probe_run(probe, counts, layer, true, NULL), DRLLM_OK);
        check_resumed(probe, other, made, counts, &random);
        assert_int_equal(drllm_session_n_tokens(session), 0);
        drllm_probe_close(probe);
        free(made);
    }
    drllm_session_close(session);
    drllm_session_close(other);
}

static void test_probe(void **state) {
    (void)state;
    static const struct {
        enum drllm_format format;
        enum drllm_compute compute;
    } kinds[] = {{DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT},
                 {DRLLM_FORMAT_Q8_0, DRLLM_COMPUTE_EXACT},
                 {DRLLM_FORMAT_F32, DRLLM_COMPUTE_F32}};
    for (size_t i = 0; i < COUNT(kinds); i++) {
        struct rig rig;
        set_up(&rig, kinds[i].format, kinds[i].compute);
        check_probe(&rig, 100 + i);
        tear_down(&rig);
    }
}

static void test_kept_states(void **state) {
    (void)state;
    struct rig rig;
    uint64_t random = 5;
    set_up(&rig, DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT);
    struct drllm_session *session = open_session_of(&rig, 1, 0), *other = open_session_of(&rig, 1, 0);
    struct made *made = make_question(&random);
    const size_t bytes = made->n_prompt * D_MODEL * sizeof(float);
    struct drllm_probe *resumed = open_probe(session, made), *whole = open_probe(other, made);
    double log_probs[MOST_CHOICES];
    uint8_t first[N_LAYERS] = {1, 1, 1, 1, 1};
    const uint8_t second[N_LAYERS] = {1, 1, 0, 2, 1};
    assert_null(drllm_probe_hidden(resumed, 0));
    assert_int_equal(drllm_probe_run(resumed, first, 0, false, log_probs), DRLLM_OK);
    assert_null(drllm_probe_hidden(resumed, 0)); /* nothing was kept */
    assert_int_equal(drllm_probe_run(resumed, first, 0, true, NULL), DRLLM_OK);
    float *kept = malloc(bytes);
    assert_non_null(kept);
    memcpy(kept, drllm_probe_hidden(resumed, 2), bytes);
    /* A run that is not kept changes nothing that was. */
    assert_int_equal(drllm_probe_run(resumed, second, 2, false, log_probs), DRLLM_OK);
    assert_memory_equal(drllm_probe_hidden(resumed, 2), kept, bytes);
    assert_int_equal(drllm_probe_run(resumed, second, 2, true, NULL), DRLLM_OK);
    assert_int_equal(drllm_probe_run(whole, second, 0, true, NULL), DRLLM_OK);
    for (size_t layer = 0; layer <= N_LAYERS; layer++) {
        assert_memory_equal(drllm_probe_hidden(resumed, layer), drllm_probe_hidden(whole, layer), bytes);
    }
    assert_memory_equal(drllm_probe_hidden(whole, 2), drllm_probe_hidden(whole, 3), bytes); /* a skipped block */
    assert_null(drllm_probe_hidden(whole, N_LAYERS + 1));
    free(kept);
    drllm_probe_close(resumed);
    drllm_probe_close(whole);
    free(made);
    drllm_session_close(session);
    drllm_session_close(other);
    tear_down(&rig);
}

static void expect_refused(struct drllm_session *session, int status, int expected, const char *part) {
    assert_int_equal(status, expected);
    cli_expect_text(drllm_session_last_error(session), part);
}

static void test_probe_errors(void **state) {
    (void)state;
    struct rig rig;
    set_up(&rig, DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT);
    struct drllm_session *session = open_session_of(&rig, 1, 0);
    const int32_t tokens[CONTEXT + 1] = {5, 6, 7};
    const int32_t wrong[] = {5, CLI_N_VOCAB};
    const uint8_t full[N_LAYERS] = {1, 1, 1, 1, 1};
    struct drllm_choice many[DRLLM_ROUTER_MAX_WINDOWS + 1];
    for (size_t i = 0; i < COUNT(many); i++) {
        many[i] = (struct drllm_choice){tokens, 1, 0.0};
    }
    struct drllm_choice empty = {tokens, 0, 0.0};
    struct drllm_probe *probe = NULL;
    assert_int_equal(drllm_probe_open(NULL, tokens, 3, many, 1, &probe), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_probe_open(session, tokens, 3, NULL, 1, &probe), DRLLM_ERR_ARGUMENT);
    expect_refused(session, drllm_probe_open(session, tokens, 3, many, COUNT(many), &probe), DRLLM_ERR_ARGUMENT,
                   "65 choices");
    assert_int_equal(drllm_probe_open(session, wrong, 2, many, 1, &probe), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_probe_open(session, tokens, 0, many, 1, &probe), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_probe_open(session, tokens, 3, &empty, 1, &probe), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_probe_open(session, tokens, CONTEXT + 1, many, 1, &probe), DRLLM_ERR_CONTEXT_FULL);
    assert_int_equal(drllm_session_prefill(session, tokens, 2), DRLLM_OK);
    expect_refused(session, drllm_probe_open(session, tokens, 3, many, 1, &probe), DRLLM_ERR_STATE, "empty context");
    assert_null(probe);
    drllm_session_reset(session);
    assert_int_equal(drllm_probe_open(session, tokens, 3, many, COUNT(many) - 1, &probe), DRLLM_OK);
    double log_probs[COUNT(many)];
    expect_refused(session, drllm_probe_run(probe, full, 1, false, log_probs), DRLLM_ERR_STATE, "block 1");
    assert_int_equal(drllm_probe_run(probe, full, 0, true, log_probs), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, tokens, 2), DRLLM_OK);
    assert_int_equal(drllm_probe_run(probe, full, 0, false, log_probs), DRLLM_ERR_STATE);
    drllm_session_reset(session);
    assert_int_equal(drllm_probe_run(probe, full, 1, false, log_probs), DRLLM_OK);
    drllm_probe_close(probe);
    drllm_probe_close(NULL);
    drllm_session_close(session);
    tear_down(&rig);
}

/* Count a failure, which must be of memory, and call once more. */
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

/* Whether an allocation failed on the way. */
static bool run_with_failure(struct rig *rig, const struct made *made, size_t fail_at, double *log_probs) {
    const uint8_t counts[N_LAYERS] = {1, 0, 2, 1, 1}, variant[N_LAYERS] = {1, 0, 2, 2, 0};
    struct drllm_session *session = open_session_of(rig, 1, 0);
    struct drllm_probe *probe = NULL;
    size_t n_failures = 0;
    rig->counted.n_calls = 0;
    rig->counted.fail_at = fail_at;
    ONCE_MORE(n_failures,
              drllm_probe_open(session, made->prompt, made->n_prompt, made->choices, made->n_choices, &probe));
    ONCE_MORE(n_failures, drllm_probe_run(probe, counts, 0, true, log_probs));
    ONCE_MORE(n_failures, drllm_probe_run(probe, variant, 3, false, log_probs));
    rig->counted.fail_at = SIZE_MAX;
    drllm_probe_close(probe);
    drllm_session_close(session);
    return n_failures != 0;
}

static void test_probe_without_memory(void **state) {
    (void)state;
    struct rig rig;
    uint64_t random = 8;
    set_up(&rig, DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT);
    struct made *made = make_question(&random);
    double expected[MOST_CHOICES], log_probs[MOST_CHOICES];
    assert_false(run_with_failure(&rig, made, SIZE_MAX, expected));
    size_t n_failed = 0;
    while (run_with_failure(&rig, made, n_failed, log_probs)) {
        assert_memory_equal(log_probs, expected, made->n_choices * sizeof *expected);
        n_failed++;
    }
    assert_true(n_failed >= 4); /* the probe's own and the session's */
    free(made);
    tear_down(&rig);
}

/* Routers decide alike on the sums of a session's pass and on those of the states that a probe kept. */
static void check_windows(const struct rig *rig, const struct drllm_routers *routers, uint64_t *random) {
    struct drllm_session *session = open_session_of(rig, 1, 6);
    struct drllm_router_run run = {0};
    const struct drllm_budget plain = {.router_p = -0.5F};
    struct drllm_decision decisions[N_LAYERS], decision;
    uint8_t counts[N_LAYERS];
    float scratch[D_MODEL];
    struct made *made = make_question(random);
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = routers;
    assert_int_equal(drllm_router_run_open(&run, routers, &plain, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, made->prompt, made->n_prompt), DRLLM_OK);
    assert_int_equal(drllm_session_get_program(session, counts), DRLLM_OK);
    assert_int_equal(drllm_session_get_decisions(session, decisions), DRLLM_OK);
    drllm_session_reset(session);
    struct drllm_probe *probe = open_probe(session, made);
    assert_int_equal(drllm_probe_run(probe, counts, 0, true, NULL), DRLLM_OK);
    for (size_t layer = 0; layer < N_LAYERS; layer++) {
        const size_t n = drllm_router_window_sums(rig->model, drllm_probe_hidden(probe, layer), made->n_prompt,
                                                  routers->n_windows, run.pooled, scratch);
        assert_int_equal(n, drllm_router_windows(routers, made->n_prompt));
        assert_int_equal(drllm_router_decide(&run, layer, made->n_prompt, &decision, NULL), DRLLM_OK);
        assert_memory_equal(decision.logits, decisions[layer].logits, sizeof decision.logits);
    }
    drllm_probe_close(probe);
    drllm_router_run_close(&run);
    free(made);
    drllm_session_close(session);
}

static void test_window_sums(void **state) {
    (void)state;
    struct rig rig;
    uint64_t random = 3;
    set_up(&rig, DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT);
    const struct router_options options = router_default_options(&rig.options);
    size_t size = 0;
    uint8_t *file = router_builder_file(&options, &size);
    struct drllm_routers *routers = NULL;
    assert_int_equal(drllm_routers_open_memory(rig.model, file, size, &routers, NULL), DRLLM_OK);
    for (size_t i = 0; i < 6; i++) {
        check_windows(&rig, routers, &random);
    }
    drllm_routers_close(routers);
    free(file);
    tear_down(&rig);
}

/* ---- The evaluator ---- */

enum { N_ASKED = 12, N_PROGRAMS = 4 };

struct asked {
    struct made *made[N_ASKED];
    struct question questions[N_ASKED];
    struct tokens choice_tokens[N_ASKED][MOST_CHOICES];
    double lengths[N_ASKED][MOST_CHOICES];
    const struct question *order[N_ASKED];
    struct group group;
    size_t n_rows;
};

static struct asked *make_asked(uint64_t random) {
    struct asked *asked = calloc(1, sizeof *asked);
    assert_non_null(asked);
    for (size_t i = 0; i < N_ASKED; i++) {
        struct made *made = asked->made[i] = make_question(&random);
        asked->n_rows += made->n_prompt;
        for (size_t j = 0; j < made->n_choices; j++) {
            asked->choice_tokens[i][j] = (struct tokens){.ids = made->tokens[j], .count = made->choices[j].n_tokens};
            asked->lengths[i][j] = (double)(1 + drllm_random(&random) % 9);
            asked->n_rows += made->choices[j].n_tokens - 1;
        }
        asked->questions[i] = (struct question){.n_choices = made->n_choices,
                                                .answer = made->n_choices - 1,
                                                .match = MATCH_CHOICE,
                                                .prompt_tokens = {.ids = made->prompt, .count = made->n_prompt},
                                                .choice_tokens = asked->choice_tokens[i],
                                                .choice_lengths = asked->lengths[i]};
        asked->order[i] = &asked->questions[i];
    }
    asked->group = (struct group){.name = "asked", .questions = asked->order, .n_questions = N_ASKED, .n_search = 8};
    return asked;
}

static void free_asked(struct asked *asked) {
    for (size_t i = 0; i < N_ASKED; i++) {
        free(asked->made[i]);
    }
    free(asked);
}

/* From the definition: score = ln p / length; ln of the answer's share in softmax(8 scores). */
static void expect_outcome(struct drllm_session *session, struct asked *asked, size_t index, const struct memo *memo) {
    struct made *made = asked->made[index];
    const size_t answer = asked->questions[index].answer;
    double scores[MOST_CHOICES] = {0.0}, sum = 0.0;
    bool is_best = true;
    drllm_session_reset(session);
    set_program(session, memo->counts);
    assert_int_equal(drllm_session_score(session, made->prompt, made->n_prompt, made->choices, made->n_choices),
                     DRLLM_OK);
    for (size_t i = 0; i < made->n_choices; i++) {
        scores[i] = made->choices[i].log_prob / asked->lengths[index][i];
        sum += exp(8.0 * scores[i]);
    }
    for (size_t i = 0; i < made->n_choices; i++) {
        is_best = is_best && scores[i] <= scores[answer];
    }
    const struct outcome *outcome = &memo->outcomes[index];
    assert_true(fabs((double)outcome->soft - log(exp(8.0 * scores[answer]) / sum)) < 1e-5);
    assert_true(outcome->right == (is_best ? 1.0F : 0.0F));
}

/* The base, and what differs from it in the last block, the third, and the first. */
static const uint8_t programs[N_PROGRAMS][N_LAYERS] = {
    {1, 1, 1, 1, 1}, {1, 1, 1, 1, 0}, {1, 1, 2, 1, 1}, {0, 1, 1, 1, 1}};

static void get_memos(struct evaluator *evaluator, struct memo **memos) {
    for (size_t i = 0; i < N_PROGRAMS; i++) {
        memos[i] = evaluator_memo(evaluator, programs[i]);
        assert_ptr_equal(memos[i], evaluator_memo(evaluator, programs[i]));
        assert_true(isnan(memos[i]->outcomes[N_ASKED - 1].soft));
    }
}

/* Rows times blocks that the programs run: 5 + 4 + 6 + 4; of them 4, 4, 2 and 0 lie ahead of where they differ. */
static void check_cost(const struct evaluator *evaluator, size_t n_rows, bool reuse) {
    const struct search_cost *cost = &evaluator->cost;
    assert_int_equal(cost->evaluations, N_PROGRAMS * N_ASKED);
    assert_int_equal(cost->memo_hits, 0);
    assert_int_equal(cost->resumed, reuse ? 10 * n_rows : 0);
    assert_int_equal(cost->row_blocks, reuse ? (19 - 10 + 4) * n_rows : 19 * n_rows);
}

static void test_evaluator(void **state) {
    (void)state;
    const struct command command = {.name = "search"};
    struct rig rig;
    struct workers workers;
    struct evaluator *reusing = calloc(1, sizeof *reusing), *plain = calloc(1, sizeof *plain);
    struct memo *memos[N_PROGRAMS], *same[N_PROGRAMS];
    struct asked *asked = make_asked(4);
    assert_non_null(reusing);
    assert_non_null(plain);
    open_rig(&rig, DRLLM_FORMAT_Q4_1, DRLLM_COMPUTE_EXACT, false);
    assert_int_equal(workers_open(&command, rig.model, 3, CONTEXT, DRLLM_KV_F16, &workers), TOOL_OK);
    evaluator_open(reusing, &command, &workers, &asked->group, N_LAYERS);
    evaluator_open(plain, &command, &workers, &asked->group, N_LAYERS);
    plain->no_reuse = true;
    get_memos(reusing, memos);
    get_memos(plain, same);
    assert_int_equal(evaluate(reusing, programs[0], memos, N_PROGRAMS, 0, N_ASKED), TOOL_OK);
    assert_int_equal(evaluate(plain, programs[0], same, N_PROGRAMS, 0, N_ASKED), TOOL_OK);
    check_cost(reusing, asked->n_rows, true);
    check_cost(plain, asked->n_rows, false);
    struct drllm_session *session = open_session_of(&rig, 1, 0);
    for (size_t i = 0; i < N_PROGRAMS; i++) {
        assert_memory_equal(memos[i]->outcomes, same[i]->outcomes, N_ASKED * sizeof *memos[i]->outcomes);
        for (size_t j = 0; j < N_ASKED; j++) {
            expect_outcome(session, asked, j, memos[i]);
        }
    }
    /* All is remembered; a program alone needs no other. */
    assert_int_equal(evaluate(reusing, programs[0], memos, N_PROGRAMS, 2, 5), TOOL_OK);
    assert_int_equal(reusing->cost.memo_hits, N_PROGRAMS * 5);
    const uint64_t before = reusing->cost.row_blocks;
    const uint8_t alone[N_LAYERS] = {1, 1, 1, 0, 0};
    struct memo *memo = evaluator_memo(reusing, alone);
    assert_int_equal(evaluate(reusing, programs[0], &memo, 1, 0, N_ASKED), TOOL_OK);
    assert_int_equal(reusing->cost.row_blocks - before, 3 * asked->n_rows);
    assert_int_equal(reusing->cost.evaluations, (N_PROGRAMS + 1) * N_ASKED);
    assert_true(fabs(mean_reward(REWARD_EXACT, memo, 3, 1) - (double)memo->outcomes[3].right) < 1e-12);
    assert_true(fabs(mean_reward(REWARD_SOFT, memo, 3, 2) * 2.0 -
                     (double)(memo->outcomes[3].soft + memo->outcomes[4].soft)) < 1e-5);
    drllm_session_close(session);
    evaluator_close(reusing);
    evaluator_close(plain);
    workers_release(&workers);
    free(reusing);
    free(plain);
    free_asked(asked);
    tear_down(&rig);
}

/* ---- The command ---- */

enum { N_FIRST = 88, N_SECOND = 40, N_QUESTIONS = N_FIRST + N_SECOND, N_WORDS = 3 };

/* Programs that answer all questions of a task right. */
static const uint8_t first_best[N_LAYERS] = {1, 0, 1, 1, 1}, second_best[N_LAYERS] = {1, 1, 1, 2, 1},
                     full_depth[N_LAYERS] = {1, 1, 1, 1, 1};

static char model[CLI_PATH_BYTES], data[CLI_PATH_BYTES], labels[CLI_PATH_BYTES];
static char prompts[N_QUESTIONS][16];

static const char *const words[] = {"k", "l", "m"};

static size_t tokens_of(const struct drllm_model *model_of, const char *text, unsigned flags, int32_t tokens[32]) {
    size_t n = 0;
    assert_int_equal(drllm_tokenize(model_of, text, strlen(text), flags, tokens, 32, &n, NULL), DRLLM_OK);
    return n;
}

/* The word that a session which runs nothing but this program finds likeliest. */
static size_t answer_under(const struct rig *rig, struct drllm_session *session, const char *prompt,
                           const uint8_t *counts) {
    int32_t tokens[32], letters[N_WORDS][32];
    struct drllm_choice choices[N_WORDS];
    size_t best = 0;
    const size_t n = tokens_of(rig->model, prompt, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, tokens);
    for (size_t i = 0; i < N_WORDS; i++) {
        choices[i] = (struct drllm_choice){letters[i], tokens_of(rig->model, words[i], 0, letters[i]), 0.0};
    }
    drllm_session_reset(session);
    set_program(session, counts);
    assert_int_equal(drllm_session_score(session, tokens, n, choices, N_WORDS), DRLLM_OK);
    for (size_t i = 1; i < N_WORDS; i++) {
        best = choices[i].log_prob > choices[best].log_prob ? i : best;
    }
    return best;
}

static void write_question(FILE *file, const char *task, const char *prompt, size_t answer) {
    (void)fprintf(file, "{\"task\": \"%s\", \"prompt\": \"%s\", \"choices\": [\"k\", \"l\", \"m\"], \"answer\": %zu}\n",
                  task, prompt, answer);
}

static void write_data(const struct rig *rig, struct drllm_session *session) {
    FILE *file = fopen(cli_path("data.jsonl", data), "wb");
    uint64_t random = 6;
    size_t n_first = 0, n_second = 0;
    assert_non_null(file);
    for (size_t i = 0; i < N_QUESTIONS; i++) {
        const size_t size = 6 + drllm_random(&random) % 8;
        for (size_t j = 0; j < size; j++) {
            prompts[i][j] = (char)('a' + drllm_random(&random) % 26);
        }
        /* Tasks alternate, until there are no more of one. */
        const bool is_first = n_second == N_SECOND || (n_first < N_FIRST && i % 3 != 2);
        n_first += is_first;
        n_second += !is_first;
        write_question(file, is_first ? "first" : "second", prompts[i],
                       answer_under(rig, session, prompts[i], is_first ? first_best : second_best));
    }
    assert_int_equal(fclose(file), 0);
}

/* The model that `drllm search` reads, with random weights and a token for every byte. */
static struct tiny_options search_model(void) {
    static const char *const pieces[] = {"\xe2\x96\x81"};
    struct tiny_options options = model_options(DRLLM_FORMAT_F32);
    options.pieces = pieces;
    options.seed = 21;
    return options;
}

static int make_files(void **state) {
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    struct rig rig = {.options = search_model(), .counted = {.fail_at = SIZE_MAX}};
    cli_write_model(cli_path("model.gguf", model), &rig.options, "tiny", false);
    size_t size = 0;
    rig.file = (uint8_t *)cli_read(model, &size);
    struct drllm_error error = {0};
    if (drllm_model_open_memory(rig.file, size, NULL, &rig.model, &error) != DRLLM_OK) {
        return -1;
    }
    struct drllm_session *session = open_session_of(&rig, 1, 0);
    write_data(&rig, session);
    drllm_session_close(session);
    tear_down(&rig);
    cli_path("labels.jsonl", labels);
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    char folder[CLI_PATH_BYTES];
    (void)rmdir(cli_path("folder", folder));
    return cli_remove_folder();
}

#define SEARCH(out, ...) RUN("search", "-m", model, "-d", data, "-o", out, "--reward", "exact", __VA_ARGS__)

/* Labels are there in any order: the program of each question, by index; "" where there is none. */
static size_t read_programs(const char *path, char program[N_QUESTIONS][32]) {
    size_t size = 0, n = 0;
    char *text = cli_read(path, &size), *rest = NULL;
    memset(program, 0, (size_t)N_QUESTIONS * 32);
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        uint8_t counts[N_LAYERS];
        cJSON *json = cJSON_Parse(line);
        assert_non_null(json);
        const size_t index = (size_t)cli_number(json, "index");
        assert_true(index < N_QUESTIONS && program[index][0] == '\0');
        assert_string_equal(cli_string(json, "prompt"), prompts[index]);
        assert_int_equal(drllm_program_parse(cli_string(json, "program"), N_LAYERS, counts, NULL), DRLLM_OK);
        (void)snprintf(program[index], 32, "%s", cli_string(json, "program"));
        cJSON_Delete(json);
        n++;
    }
    free(text);
    return n;
}

static void expect_same_labels(const char *a, const char *b) {
    size_t size_a = 0, size_b = 0;
    char *text_a = cli_read(a, &size_a), *text_b = cli_read(b, &size_b);
    assert_true(size_a > 0);
    assert_string_equal(text_a, text_b);
    free(text_a);
    free(text_b);
}

static void test_command(void **state) {
    (void)state;
    char program[N_QUESTIONS][32], again[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("again.jsonl", again);
    struct cli_outcome outcome = SEARCH(labels, "-t", "1");
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.out, "first: 66 questions searched on, 22 verify");
    cli_expect_text(outcome.out, "second: 30 questions searched on, 10 verify");
    cli_expect_text(outcome.out, "right 100.00 %  0,2-4\n");
    cli_expect_text(outcome.out, "right 100.00 %  0-2,3x2,4\n");
    cli_expect_text(outcome.err, "hidden states reused");
    cli_outcome_free(&outcome);
    assert_int_equal(read_programs(labels, program), N_QUESTIONS);
    for (size_t i = 0; i < N_QUESTIONS; i++) {
        assert_true(strcmp(program[i], "0,2-4") == 0 || strcmp(program[i], "0-2,3x2,4") == 0);
    }
    assert_int_equal(cli_count_files("labels.jsonl"), 1); /* the state is gone */
    cli_expect_success(SEARCH(again, "-t", "3"));
    expect_same_labels(labels, again);
    cli_expect_success(SEARCH(again, "--no-reuse"));
    expect_same_labels(labels, again);
    cli_expect_success(SEARCH(again, "--no-racing"));
    assert_int_equal(read_programs(again, program), N_QUESTIONS);
    cli_expect_success(SEARCH(again, "--reward", "soft", "--seed", "5", "--no-repeats", "--from", "0,2-4"));
    assert_int_equal(read_programs(again, program), N_QUESTIONS);
    for (size_t i = 0; i < N_QUESTIONS; i++) {
        assert_null(strchr(program[i], 'x'));
    }
}

static void test_shards(void **state) {
    (void)state;
    char one[CLI_PATH_BYTES], two[CLI_PATH_BYTES], merged[CLI_PATH_BYTES], whole[CLI_PATH_BYTES];
    char a[N_QUESTIONS][32], b[N_QUESTIONS][32];
    cli_require_program();
    cli_path("one.jsonl", one);
    cli_path("two.jsonl", two);
    cli_path("merged.jsonl", merged);
    cli_path("whole.jsonl", whole);
    cli_expect_success(SEARCH(whole, "--max-steps", "3"));
    cli_expect_success(SEARCH(one, "--max-steps", "3", "--shard", "1/2"));
    cli_expect_success(SEARCH(two, "--max-steps", "3", "--shard", "2/2"));
    cli_expect_output(RUN("search", "--merge", two, "--merge", one, "-o", merged), "");
    assert_int_equal(read_programs(whole, a), N_QUESTIONS);
    assert_int_equal(read_programs(merged, b), N_QUESTIONS);
    assert_memory_equal(a, b, sizeof a);
    /* One file is put in order by the same. */
    cli_expect_success(RUN("search", "--merge", whole, "-o", two));
    expect_same_labels(merged, two);
    cli_expect_failure(RUN("search", "--merge", one, "-o", two), 1, "has no label");
    cli_expect_failure(RUN("search", "--merge", one, "--merge", whole, "-o", two), 1, "has two labels");
    cli_expect_failure(RUN("search", "--merge", data, "-o", two), 1, "data.jsonl, line 1: it is no label");
    cli_expect_failure(RUN("search", "--merge", one), 2, "--merge goes with -o FILE");
    cli_expect_failure(RUN("search", "--merge", one, "-d", data, "-o", two), 2, "without -d");
    expect_same_labels(merged, two); /* what was there stays */
    cli_expect_failure(SEARCH(two, "--shard", "3/2"), 2, "--shard");
    cli_expect_failure(SEARCH(two, "--shard", "0/2"), 2, "--shard");
}

static void expect_chosen(struct path *paths, double mean_saved, bool found, size_t first, size_t second) {
    assert_int_equal(choose_together(paths, 2, mean_saved), found);
    assert_int_equal(paths[0].chosen, first);
    assert_int_equal(paths[1].chosen, second);
}

static void test_choice(void **state) {
    (void)state;
    struct found a[] = {{.saved = 0, .right = 0.50, .verify_reward = -2.0, .search_reward = -2.0},
                        {.saved = 2, .right = 0.60, .verify_reward = -1.5, .search_reward = -1.5},
                        {.saved = 5, .right = 0.58, .verify_reward = -1.6, .search_reward = -1.4}};
    struct found b[] = {{.saved = 0, .right = 0.80}, {.saved = -1, .right = 0.85}, {.saved = 6, .right = 0.40}};
    struct path paths[] = {{.points = a, .count = 3}, {.points = b, .count = 3}};
    expect_chosen(paths, 0.5, true, 1, 1); /* one path's extra work is paid by the other */
    expect_chosen(paths, 1.0, true, 2, 1);
    expect_chosen(paths, 2.5, true, 2, 0);
    expect_chosen(paths, 4.0, true, 1, 2); /* nothing saved for nothing */
    expect_chosen(paths, 5.5, true, 2, 2);
    expect_chosen(paths, 5.6, false, 2, 2);
    struct search_options options = {.reward = REWARD_SOFT};
    choose_alone(&options, true, &paths[0]);
    assert_int_equal(paths[0].chosen, 1);
    choose_alone(&options, false, &paths[0]);
    assert_int_equal(paths[0].chosen, 2);
    options.layer_value = 0.05;
    choose_alone(&options, true, &paths[0]);
    assert_int_equal(paths[0].chosen, 2);
    options = (struct search_options){.reward = REWARD_SOFT, .min_saved = 9.0};
    choose_alone(&options, true, &paths[0]); /* none saves so many: the last */
    assert_int_equal(paths[0].chosen, 2);
}

/* Questions without sense, on whose answers a search takes many steps. */
static void write_noise(const char *path) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (size_t i = 0; i < 48; i++) {
        write_question(file, "noise", prompts[i], (i * i + i / 3) % N_WORDS);
    }
    assert_int_equal(fclose(file), 0);
}

struct stepping {
    const char *data, *layer_value, *max_steps;
};

static struct cli_outcome search_steps(const struct stepping *steps, const char *out) {
    return RUN("search", "-m", model, "-d", steps->data, "-o", out, "--reward", "exact", "--layer-value",
               steps->layer_value, "--max-steps", steps->max_steps, "-t", "1");
}

/* The state of a whole search, which stays since the labels cannot be written, and what the search shows. */
static char *make_state(const struct stepping *steps, size_t *size, char **shown) {
    char folder[CLI_PATH_BYTES], path[CLI_PATH_BYTES];
    (void)mkdir(cli_path("folder", folder), 0700);
    struct cli_outcome outcome = search_steps(steps, folder);
    cli_expect_code(&outcome, 1);
    *shown = strdup(outcome.out);
    cli_outcome_free(&outcome);
    char *text = cli_read(cli_path("folder.state", path), size);
    assert_int_equal(unlink(path), 0);
    return text;
}

/* Cut behind each line, or in the middle of one, the search comes to the same. Returns the number of lines. */
static size_t check_resumed_search(const struct stepping *steps, const char *out) {
    char path[CLI_PATH_BYTES], *shown = NULL;
    size_t size = 0, n_lines = 0;
    (void)snprintf(path, sizeof path, "%s.state", out);
    char *text = make_state(steps, &size, &shown);
    for (const char *end = strchr(text, '\n'); end != NULL; end = strchr(end + 1, '\n')) {
        const size_t kept = (size_t)(end - text) + 1;
        cli_write(path, text, kept);
        cli_expect_output(search_steps(steps, out), shown);
        n_lines++;
        if (n_lines == 2) {
            cli_write(path, text, kept - 3);
            cli_expect_output(search_steps(steps, out), shown);
        }
    }
    free(shown);
    free(text);
    return n_lines;
}

static void test_resumed(void **state) {
    (void)state;
    char noise[CLI_PATH_BYTES], out[CLI_PATH_BYTES], path[CLI_PATH_BYTES], *shown = NULL;
    cli_require_program();
    write_noise(cli_path("noise.jsonl", noise));
    cli_path("resumed.jsonl", out);
    cli_path("resumed.jsonl.state", path);
    /* The steps that failed count as well, and blocks may be repeated from where they might be. */
    assert_true(check_resumed_search(&(struct stepping){noise, "0", "3"}, out) >= 3);
    assert_true(check_resumed_search(&(struct stepping){noise, "0.01", "4"}, out) >= 3);
    const struct stepping steps = {data, "0.005", "24"};
    size_t size = 0;
    char *text = make_state(&steps, &size, &shown);
    /* Of another search, or none. */
    cli_write(path, text, size);
    cli_expect_failure(SEARCH(out, "--seed", "1"), 1, "is of another search");
    cli_expect_failure(SEARCH(out, "--max-steps", "2"), 1, "is of another search");
    cli_expect_success(SEARCH(out, "--seed", "1", "--restart"));
    assert_true(access(path, F_OK) != 0);
    cli_write(path, "nonsense\n", 9);
    cli_expect_output(search_steps(&steps, out), shown);
    /* The labels of a search whose groups were all finished. */
    cli_write(path, text, size);
    cli_expect_output(search_steps(&steps, out), shown);
    cli_expect_success(SEARCH(noise, "-t", "1"));
    expect_same_labels(noise, out);
    free(shown);
    free(text);
}

static void test_interrupted(void **state) {
    (void)state;
    char out[CLI_PATH_BYTES], path[CLI_PATH_BYTES], printed[CLI_PATH_BYTES], whole[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("stopped.jsonl", out);
    cli_path("stopped.jsonl.state", path);
    cli_path("printed", printed);
    const pid_t pid = cli_start(NULL, printed, -1,
                                ARGUMENTS("search", "-m", model, "-d", data, "-o", out, "--per", "example", "--method",
                                          "tree", "--simulations", "1000000", "-t", "1"));
    cli_wait_for_file(path, 120);
    kill(pid, SIGINT);
    struct cli_outcome outcome = cli_finish(pid, printed);
    cli_expect_code(&outcome, 130);
    cli_expect_text(outcome.err, "interrupted; the same command goes on");
    cli_outcome_free(&outcome);
    assert_true(access(out, F_OK) != 0 && access(path, F_OK) == 0);
    cli_expect_failure(SEARCH(out, "--per", "task"), 1, "is of another search");
    cli_expect_success(SEARCH(out, "--restart", "-t", "1"));
    cli_expect_success(SEARCH(cli_path("whole.jsonl", whole), "-t", "1"));
    expect_same_labels(whole, out);
}

/* The first questions alone, for groups whose number grows with them. */
static void write_few(const char *path, size_t n) {
    size_t size = 0;
    char *text = cli_read(data, &size), *end = text;
    for (size_t i = 0; i < n; i++) {
        end = strchr(end, '\n') + 1;
    }
    cli_write(path, text, (size_t)(end - text));
    free(text);
}

#define SEARCH_FEW(out, ...) RUN("search", "-m", model, "-d", few, "-o", out, "--per", __VA_ARGS__)

static void test_other_groups(void **state) {
    enum { N_FEW = 20 };
    (void)state;
    char few[CLI_PATH_BYTES];
    char one[CLI_PATH_BYTES], two[CLI_PATH_BYTES], program[N_QUESTIONS][32];
    cli_require_program();
    cli_path("groups1.jsonl", one);
    cli_path("groups2.jsonl", two);
    write_few(cli_path("few.jsonl", few), N_FEW);
    cli_expect_success(SEARCH_FEW(one, "example", "--method", "tree", "--simulations", "20", "-t", "1"));
    cli_expect_success(SEARCH_FEW(two, "example", "--method", "tree", "--simulations", "20", "-t", "2"));
    expect_same_labels(one, two);
    assert_int_equal(read_programs(one, program), N_FEW);
    cli_expect_success(SEARCH_FEW(one, "cluster", "--clusters", "3", "--max-steps", "2", "-t", "1"));
    cli_expect_success(SEARCH_FEW(two, "cluster", "--clusters", "3", "--max-steps", "2", "-t", "2"));
    expect_same_labels(one, two);
    assert_int_equal(read_programs(one, program), N_FEW);
    /* More clusters than questions: some are empty. */
    cli_expect_success(SEARCH_FEW(one, "cluster", "--clusters", "30", "--max-steps", "1"));
    assert_int_equal(read_programs(one, program), N_FEW);
}

static void test_bad_lines(void **state) {
    (void)state;
    char bad[CLI_PATH_BYTES], out[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("bad.out.jsonl", out);
    FILE *file = fopen(cli_path("bad.jsonl", bad), "wb");
    assert_non_null(file);
    for (size_t i = 0; i < 8; i++) {
        write_question(file, "first", prompts[i], i % N_WORDS);
    }
    (void)fputs("nonsense\n{\"prompt\": \"q\", \"choices\": [\"k\", \"l\"], \"answer\": 2}\n", file);
    assert_int_equal(fclose(file), 0);
    struct cli_outcome outcome = RUN("search", "-m", model, "-d", bad, "-o", out, "--max-steps", "1");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "bad.jsonl, line 9: ");
    cli_expect_text(outcome.err, "bad.jsonl, line 10: ");
    cli_outcome_free(&outcome);
    size_t size = 0;
    char *text = cli_read(out, &size);
    cli_expect_text(text, "\"index\":7");
    free(text);
    cli_write(bad, "", 0);
    cli_expect_failure(RUN("search", "-m", model, "-d", bad, "-o", out), 1, "no questions");
    cli_expect_failure(RUN("search", "-m", model, "-d", data), 2, "-o FILE");
    cli_expect_failure(RUN("search", "-m", model, "-d", data, "-o", "-"), 2, "standard output");
    cli_expect_failure(SEARCH(out, "--from", "0-9"), 2, "--from");
}

/* ---- Verification ---- */

/* The order in which a group's questions are searched on: a seed from FNV-1a of the name, steps of Knuth's MMIX. */
static void search_order(const char *name, size_t *order, size_t n) {
    uint64_t random = 0xcbf29ce484222325u;
    for (; *name != '\0'; name++) {
        random = (random ^ (unsigned char)*name) * 0x100000001b3u;
    }
    for (size_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (size_t i = n; i > 1; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const size_t j = (size_t)((random >> 33) % i), swapped = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swapped;
    }
}

/* Without block 1 the questions that are searched on are answered right, at full depth the others. */
static void write_deceiving(const char *path) {
    enum { N = 60, N_SEARCH = 45 };
    struct rig rig = {.options = search_model(), .counted = {.fail_at = SIZE_MAX}};
    size_t size = 0, order[N], answers[N];
    rig.file = (uint8_t *)cli_read(model, &size);
    assert_int_equal(drllm_model_open_memory(rig.file, size, NULL, &rig.model, NULL), DRLLM_OK);
    struct drllm_session *session = open_session_of(&rig, 1, 0);
    search_order("deceiving", order, N);
    for (size_t i = 0; i < N; i++) {
        answers[order[i]] = answer_under(&rig, session, prompts[order[i]], i < N_SEARCH ? first_best : full_depth);
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (size_t i = 0; i < N; i++) {
        write_question(file, "deceiving", prompts[i], answers[i]);
    }
    assert_int_equal(fclose(file), 0);
    drllm_session_close(session);
    tear_down(&rig);
}

static void test_verification(void **state) {
    (void)state;
    char deceiving[CLI_PATH_BYTES], out[CLI_PATH_BYTES], program[N_QUESTIONS][32];
    cli_require_program();
    write_deceiving(cli_path("deceiving.jsonl", deceiving));
    struct cli_outcome outcome =
        RUN("search", "-m", model, "-d", deceiving, "-o", cli_path("deceived.jsonl", out), "--reward", "exact");
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.out, "45 questions searched on, 15 verify\n*   0 saved");
    cli_expect_text(outcome.out, "  1 saved  reward   1.0000");
    cli_outcome_free(&outcome);
    assert_int_equal(read_programs(out, program), 60);
    for (size_t i = 0; i < 60; i++) {
        assert_string_equal(program[i], "0-4");
    }
}

int drllm_test_search(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe),        cmocka_unit_test(test_kept_states),
        cmocka_unit_test(test_probe_errors), cmocka_unit_test(test_probe_without_memory),
        cmocka_unit_test(test_window_sums),  cmocka_unit_test(test_evaluator),
        cmocka_unit_test(test_command),      cmocka_unit_test(test_shards),
        cmocka_unit_test(test_resumed),      cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_other_groups), cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_verification), cmocka_unit_test(test_choice),
    };
    return drllm_run_group("search", tests, make_files, remove_files);
}
