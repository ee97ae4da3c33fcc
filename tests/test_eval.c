/* Evaluation: intervals and tests against numbers worked out by hand, masks, block influence against a plain forward
 * pass in double precision, and `drllm eval` on tiny models against what `drllm score` says. */
#include "runtime/drllm_os.h"
#include "tests/cli.h"
#include "tests/router_builder.h"
#include "tools/eval_masks.h"
#include "tools/eval_report.h"
#include "tools/plot.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { N_LAYERS = 6 };

static const struct command command = {.name = "test"};

/* A model with random weights, of which each program makes another one, and one that speaks the alphabet. */
static char deep[CLI_PATH_BYTES], spoken[CLI_PATH_BYTES];
/* Routers that decide alike for all prompts: `forced` this program; `ones` full depth, with a table. */
static const uint8_t forced_counts[N_LAYERS] = {1, 0, 2, 1, 0, 0};
static const char forced_program[] = "0,2x2,3";
static char forced[CLI_PATH_BYTES], ones[CLI_PATH_BYTES];
static char task_a[CLI_PATH_BYTES], task_b[CLI_PATH_BYTES]; /* questions */
enum { N_A = 12, N_B = 9 };

static void expect_near(double value, double expected, double bound) {
    if (!(fabs(value - expected) <= bound)) {
        fail_msg("%.9g instead of %.9g", value, expected);
    }
}

/* ---- Statistics ---- */

static void test_wilson(void **state) {
    static const struct {
        double share;
        size_t n;
        double low, high;
    } cases[] = {{0.8, 10, 0.490162, 0.943318},  {0.0, 10, 0.0, 0.277533}, {1.0, 10, 0.722467, 1.0},
                 {0.5, 100, 0.403832, 0.596168}, {0.5, 0, 0.0, 1.0},       {1.0, 1, 0.206549, 1.0}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct interval interval = wilson_interval(cases[i].share, cases[i].n);
        expect_near(interval.low, cases[i].low, 1e-6);
        expect_near(interval.high, cases[i].high, 1e-6);
    }
}

static void test_mcnemar(void **state) {
    (void)state;
    expect_near(mcnemar(0, 0), 1.0, 0.0);
    expect_near(mcnemar(1, 0), 1.0, 1e-12);
    expect_near(mcnemar(0, 5), 2.0 / 32.0, 1e-12);
    expect_near(mcnemar(5, 0), 2.0 / 32.0, 1e-12);
    expect_near(mcnemar(2, 10), 2.0 * (1.0 + 12.0 + 66.0) / 4096.0, 1e-12);
    expect_near(mcnemar(5, 5), 1.0, 0.0);
    /* Where 2^-n is no number any more: near the normal distribution's with a correction, z = 29 / sqrt(2970). */
    expect_near(mcnemar(1470, 1500), erfc(29.0 / sqrt(2.0 * 2970.0)), 1e-3);
}

/* Two tasks, of 4 and 2 questions. */
static void test_numbers(void **state) {
    enum { N = 6 };
    static const char *const tasks[] = {"x", "y"};
    static const size_t task_of[N] = {0, 1, 0, 0, 1, 0};
    bool full_right[N] = {true, false, true, false, true, false};
    bool right[2 * N] = {true, true, false, true, true, true, false, false, false, false, false, true};
    int full_saved[N] = {0}, saved[2 * N] = {2, 4, 2, 2, 4, 2, 1, 1, 1, 1, 1, 1};
    double full_ms[N] = {10.0, 20.0, 10.0, NAN, 20.0, 30.0}, ms[N] = {9.0, 16.0, 9.0, NAN, 16.0, 27.0};
    double none_ms[N] = {5.0, 10.0, 5.0, NAN, 10.0, 15.0}, rows[N] = {10.0, 10.0, 10.0, 0.0, 10.0, 25.0};
    struct eval_run runs[] = {
        {.method = EVAL_FULL,
         .budget = NAN,
         .n_parts = 1,
         .right = full_right,
         .saved = full_saved,
         .ms = full_ms,
         .rows = rows},
        {.method = EVAL_ROUTED, .budget = 2.0, .n_parts = 1, .right = right, .saved = saved, .ms = ms, .rows = rows}};
    const struct eval_results results = {.n_layers = 10,
                                         .tasks = tasks,
                                         .n_tasks = 2,
                                         .task_of = task_of,
                                         .n_questions = N,
                                         .runs = runs,
                                         .n_runs = 2,
                                         .no_block_ms = none_ms};
    (void)state;

    const struct eval_row x = eval_row(&results, &runs[1], 0), y = eval_row(&results, &runs[1], 1);
    assert_int_equal(x.n, 4);
    expect_near(x.accuracy, 0.75, 1e-12);
    expect_near(x.interval.low, wilson_interval(0.75, 4).low, 1e-12);
    expect_near(x.layers_saved, 2.0, 1e-12);
    expect_near(x.ms, 9.0, 1e-12); /* of 9, 9, 27 */
    expect_near(x.tokens_per_second, 1000.0, 1e-9);
    assert_int_equal(y.n, 2);
    expect_near(y.accuracy, 1.0, 1e-12);

    const struct eval_row mean = eval_row(&results, &runs[1], eval_all);
    assert_int_equal(mean.n, N);
    expect_near(mean.accuracy, 0.875, 1e-12); /* of tasks, not of questions */
    expect_near(mean.layers_saved, 3.0, 1e-12);
    expect_near(mean.interval.low, 0.875 - 1.959964 * sqrt(0.75 * 0.25 / 4.0) / 2.0, 1e-6);
    expect_near(mean.interval.high, 1.0, 1e-12);

    struct eval_run seeds = runs[1];
    seeds.n_parts = 2;
    expect_near(eval_row(&results, &seeds, 0).accuracy, 0.5, 1e-12);
    expect_near(eval_row(&results, &seeds, 0).layers_saved, 1.5, 1e-12);

    const struct eval_test test = eval_compare(&results, &runs[0], &runs[1], eval_all);
    assert_int_equal(test.n, N);
    assert_int_equal(test.only_other, 1);
    assert_int_equal(test.only_run, 3);
    expect_near(test.gain, 2.0 / 6.0, 1e-12);
    expect_near(test.interval.high, 2.0 / 6.0 + 1.959964 * sqrt(4.0 - 4.0 / 6.0) / 6.0, 1e-6);
    expect_near(test.p, 0.625, 1e-12);

    /* x: 5 of 50 ms saved, where a fifth of 50 was to be expected, and a fifth of the blocks' 25. */
    const struct eval_latency latency = eval_latency(&results, &runs[0], &runs[1], 0);
    assert_int_equal(latency.n, 3);
    expect_near(latency.saved_time, 0.1, 1e-12);
    expect_near(latency.saved_layers, 0.2, 1e-12);
    expect_near(latency.reached, 0.5, 1e-12);
    expect_near(latency.of_blocks, 1.0, 1e-12);
    assert_true(isnan(eval_latency(&results, &runs[0], &runs[0], 0).reached));
}

/* ---- Masks ---- */

static size_t count_removed(const uint8_t *counts, size_t n) {
    size_t removed = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(counts[i] <= 1);
        removed += counts[i] == 0;
    }
    return removed;
}

static void test_influence_mask(void **state) {
    static const double influence[] = {0.5, 0.1, 0.3, 0.1, 0.2};
    static const uint8_t expected[][5] = {{1, 1, 1, 1, 1}, {1, 0, 1, 1, 1}, {1, 0, 1, 0, 1},
                                          {1, 0, 1, 0, 0}, {1, 0, 0, 0, 0}, {0, 0, 0, 0, 0}};
    uint8_t counts[5];
    (void)state;
    for (size_t n = 0; n < COUNT(expected); n++) {
        influence_mask(influence, 5, n, counts);
        assert_memory_equal(counts, expected[n], 5);
    }
}

static void test_random_mask(void **state) {
    enum { N = 30 };
    uint8_t counts[N], before[N], others[N], removed_ever[N] = {0};
    size_t n_same = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        memset(before, 1, N);
        for (size_t n = 0; n <= N - 2; n++) {
            assert_true(random_mask(seed, N, n, counts));
            assert_int_equal(count_removed(counts, N), n);
            assert_true(counts[0] == 1 && counts[N - 1] == 1);
            for (size_t i = 0; i < N; i++) {
                assert_true(counts[i] <= before[i]);
                removed_ever[i] |= n == 5 && counts[i] == 0;
            }
            memcpy(before, counts, N);
        }
        assert_true(random_mask(seed, N, 5, counts) && random_mask(seed + 1, N, 5, others));
        n_same += memcmp(counts, others, N) == 0;
        assert_false(random_mask(seed, N, N - 1, counts));
    }
    assert_int_equal(n_same, 0);
    size_t n_ever = 0;
    for (size_t i = 0; i < N; i++) {
        n_ever += removed_ever[i];
    }
    assert_true(n_ever >= 24); /* of 28, in 100 draws */
    assert_true(random_mask(1, 1, 0, counts) && !random_mask(1, 1, 1, counts));
}

static double plain_influence(const double *ahead, const double *behind, size_t d_model) {
    double product = 0.0, a = 0.0, b = 0.0;
    for (size_t i = 0; i < d_model; i++) {
        product += ahead[i] * behind[i];
        a += ahead[i] * ahead[i];
        b += behind[i] * behind[i];
    }
    return 1.0 - product / sqrt(a * b);
}

/* Adds what a plain pass over the tokens gives for all blocks but the last; for the last one of the last token
 * alone. */
static void add_plain_influences(const struct tiny_model *model, const int32_t *tokens, size_t n_tokens,
                                 double sums[N_LAYERS]) {
    const size_t d_model = model->options.d_model;
    double *inputs = calloc(N_LAYERS * n_tokens * d_model, sizeof *inputs);
    double *hidden = calloc((N_LAYERS + 1) * d_model, sizeof *hidden);
    double *logits = calloc(n_tokens * model->options.n_vocab, sizeof *logits);
    assert_true(inputs != NULL && hidden != NULL && logits != NULL);
    const struct tiny_pass pass = {
        .model = model, .tokens = tokens, .n_tokens = n_tokens, .logits = logits, .hidden = hidden, .inputs = inputs};
    tiny_pass_run(&pass);
    for (size_t layer = 0; layer < N_LAYERS; layer++) {
        const double *ahead = inputs + layer * n_tokens * d_model;
        for (size_t i = layer + 1 < N_LAYERS ? 0 : n_tokens - 1; i < n_tokens; i++) {
            const double *behind = layer + 1 < N_LAYERS ? ahead + (n_tokens + i) * d_model : hidden + layer * d_model;
            sums[layer] += plain_influence(ahead + i * d_model, behind, d_model);
        }
    }
    free(logits);
    free(hidden);
    free(inputs);
}

static void measure_influence(struct workers *workers, const struct drllm_model *model, const int32_t *tokens,
                              const size_t *sizes, size_t n_prompts, double influence[N_LAYERS]) {
    enum { MOST = 4 };
    struct question questions[MOST];
    const struct question *list[MOST];
    assert_true(n_prompts <= MOST);
    memset(questions, 0, sizeof questions);
    for (size_t i = 0; i < n_prompts; i++) {
        questions[i].prompt_tokens = (struct tokens){.ids = (int32_t *)(uintptr_t)tokens, .count = sizes[i]};
        list[i] = &questions[i];
        tokens += sizes[i];
    }
    assert_int_equal(block_influence(&command, model, workers, list, n_prompts, influence), TOOL_OK);
}

static void test_block_influence(void **state) {
    static const size_t sizes[] = {5, 1, 9}, one[] = {1};
    int32_t tokens[15];
    double plain[N_LAYERS] = {0.0}, influence[N_LAYERS], plain_one[N_LAYERS] = {0.0};
    struct tiny_options options = tiny_default_options();
    struct tiny_model reference;
    struct drllm_model *model = NULL;
    struct drllm_model_params params = drllm_model_default_params();
    struct workers workers;
    (void)state;
    options.n_layers = N_LAYERS;
    params.compute = DRLLM_COMPUTE_F32;
    tiny_model_make(&reference, &options);
    assert_int_equal(drllm_model_open_path(deep, &params, &model, NULL), DRLLM_OK);
    assert_int_equal(workers_open(&command, model, 1, 64, DRLLM_KV_F16, &workers), TOOL_OK);
    tiny_random_tokens(3, tokens, COUNT(tokens), options.n_vocab);
    add_plain_influences(&reference, tokens, 5, plain);
    add_plain_influences(&reference, tokens + 5, 1, plain);
    add_plain_influences(&reference, tokens + 6, 9, plain);
    measure_influence(&workers, model, tokens, sizes, COUNT(sizes), influence);
    for (size_t layer = 0; layer + 1 < N_LAYERS; layer++) {
        expect_near(influence[layer], plain[layer] / 15.0, 1e-4);
    }
    add_plain_influences(&reference, tokens + 5, 1, plain_one);
    measure_influence(&workers, model, tokens + 5, one, 1, influence);
    for (size_t layer = 0; layer < N_LAYERS; layer++) {
        assert_true(plain_one[layer] > 1e-3); /* there is something to measure */
        expect_near(influence[layer], plain_one[layer], 1e-4);
    }
    workers_release(&workers);
    drllm_model_close(model);
    tiny_model_free(&reference);
}

/* ---- Static search ---- */

/* Questions of a file, tokenised. */
static void read_questions(const struct drllm_model *model, const char *path, struct questions *questions) {
    assert_int_equal(questions_read(&command, path, false, questions), TOOL_OK);
    assert_int_equal(questions_tokenize(&command, model, 512, questions), TOOL_OK);
    assert_int_equal(questions->n_bad, 0);
}

static double static_reward(struct evaluator *evaluator, const uint8_t *counts) {
    struct memo *memo = evaluator_memo(evaluator, counts);
    const size_t n = evaluator->group->n_questions;
    assert_int_equal(evaluate(evaluator, counts, &memo, 1, 0, n), TOOL_OK);
    return mean_reward(REWARD_SOFT, memo, 0, n);
}

/* Each program has its length, and the first removal is the best of all; where adding back helps, no later one is worse
 * than it. */
static void test_static_search(void **state) {
    enum { MOST = 3 };
    uint8_t programs[(MOST + 1) * N_LAYERS], counts[N_LAYERS];
    struct drllm_model *model = NULL;
    struct questions questions = {NULL, 0, 0};
    struct workers workers;
    (void)state;
    assert_int_equal(drllm_model_open_path(deep, NULL, &model, NULL), DRLLM_OK);
    assert_int_equal(workers_open(&command, model, 1, 512, DRLLM_KV_F16, &workers), TOOL_OK);
    read_questions(model, task_a, &questions);
    const struct question *list[N_A];
    for (size_t i = 0; i < N_A; i++) {
        list[i] = &questions.items[i];
    }
    const struct group group = {.name = "all", .questions = list, .n_questions = N_A, .n_search = N_A};
    assert_int_equal(static_search(&command, &workers, &group, N_LAYERS, MOST, programs), TOOL_OK);
    struct evaluator *evaluator = calloc(1, sizeof *evaluator);
    assert_non_null(evaluator);
    evaluator_open(evaluator, &command, &workers, &group, N_LAYERS);
    for (size_t saved = 0; saved <= MOST; saved++) {
        int sum = 0;
        for (size_t i = 0; i < N_LAYERS; i++) {
            sum += programs[saved * N_LAYERS + i];
        }
        assert_int_equal(sum, N_LAYERS - (int)saved);
    }
    memset(counts, 1, N_LAYERS);
    assert_true(static_reward(evaluator, programs) >= static_reward(evaluator, counts));
    for (size_t i = 0; i < N_LAYERS; i++) { /* all questions are in the first heat, so that nothing is left to chance */
        memset(counts, 1, N_LAYERS);
        counts[i] = 0;
        assert_true(static_reward(evaluator, programs + N_LAYERS) >= static_reward(evaluator, counts));
    }
    evaluator_close(evaluator);
    free(evaluator);
    questions_release(&questions);
    workers_release(&workers);
    drllm_model_close(model);
}

/* ---- Pictures ---- */

/* Elements are closed in the order in which they were opened, texts hold no bare sign, attributes have their quotes. */
static void check_xml(const char *text) {
    enum { MOST_OPEN = 16, MOST_NAME = 16 };
    char open[MOST_OPEN][MOST_NAME];
    size_t n_open = 0, n_closed = 0;
    for (const char *at = strchr(text, '<'); at != NULL; at = strchr(at, '<')) {
        const char *end = strchr(at, '>');
        char name[MOST_NAME] = "";
        size_t n_quotes = 0;
        assert_non_null(end);
        for (const char *c = at + 1; c < end; c++) {
            assert_true(*c != '<');
            n_quotes += *c == '"';
        }
        assert_int_equal(n_quotes % 2, 0);
        if (at[1] == '/') {
            assert_true(n_open > 0);
            const size_t size = strlen(open[--n_open]);
            assert_int_equal(strncmp(at + 2, open[n_open], size), 0);
            assert_ptr_equal(at + 2 + size, end);
            n_closed++;
        } else if (at[1] != '?' && end[-1] != '/') {
            assert_true(n_open < MOST_OPEN && sscanf(at + 1, "%15[a-z]", name) == 1);
            memcpy(open[n_open++], name, MOST_NAME);
        }
        const char *next = strchr(end, '<');
        for (const char *c = end; next != NULL && c < next; c++) {
            assert_true(*c != '&' || strncmp(c, "&amp;", 5) == 0 || strncmp(c, "&lt;", 4) == 0 ||
                        strncmp(c, "&gt;", 4) == 0 || strncmp(c, "&quot;", 6) == 0);
        }
        at = end;
    }
    assert_int_equal(n_open, 0);
    assert_true(n_closed > 3);
}

static char *draw(const struct plot *plot) {
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    assert_non_null(stream);
    plot_write(stream, plot);
    assert_int_equal(fclose(stream), 0);
    return text;
}

static size_t count_of(const char *text, const char *part) {
    size_t n = 0;
    for (const char *at = strstr(text, part); at != NULL; at = strstr(at + 1, part)) {
        n++;
    }
    return n;
}

static void test_plot(void **state) {
    static const struct plot_point a[] = {{0.0, 50.0, 45.0, 55.0}, {5.0, 60.0, NAN, NAN}},
                                   b[] = {{-1.0, 40.0, 30.0, 50.0}};
    const struct plot_line lines[] = {{"a <&> \"b\"", a, 2}, {"second", b, 1}, {"third", NULL, 0}};
    const struct plot plot = {
        .title = "T & U", .subtitle = "s\001", .x_label = "x", .y_label = "y", .lines = lines, .n_lines = COUNT(lines)};
    (void)state;
    char *svg = draw(&plot);
    check_xml(svg);
    cli_expect_text(svg, "<title>T &amp; U</title>");
    cli_expect_text(svg, "<desc>s?</desc>");
    cli_expect_text(svg, ">a &lt;&amp;&gt; &quot;b&quot;</text>");
    cli_expect_text(svg, "<title>a &lt;&amp;&gt; &quot;b&quot;: 5.00, 60.00</title>");
    cli_expect_text(svg, "<title>second: -1.00, 40.00 (30.00 to 50.00)</title>");
    assert_int_equal(count_of(svg, "class=\"bar\""), 2);
    assert_int_equal(count_of(svg, "class=\"line\""), 1 + COUNT(lines)); /* one joins points, the others explain */
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, ">-0<"));
    free(svg);

    static const struct plot_point powers[] = {{0.5, 3.0, NAN, NAN}, {400.0, 900.0, NAN, NAN}};
    const struct plot_line wide[] = {{"wide", powers, 2}};
    const struct plot logarithmic = {
        .title = "", .subtitle = "", .x_label = "", .y_label = "", .lines = wide, .n_lines = 1, .logarithmic = true};
    svg = draw(&logarithmic);
    check_xml(svg);
    cli_expect_text(svg, ">0.1</text>"); /* whole powers of ten around */
    cli_expect_text(svg, ">0.5</text>");
    cli_expect_text(svg, ">1000</text>");
    assert_null(strstr(svg, "nan"));
    free(svg);

    const struct plot empty = {.title = "", .subtitle = "", .x_label = "", .y_label = ""};
    svg = draw(&empty);
    check_xml(svg);
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, "inf"));
    free(svg);
}

/* ---- The command ---- */

/* right[n]: of the questions of a file, by `drllm score`. */
static void score(const char *path, const char *option, const char *value, bool *right, size_t n) {
    struct cli_outcome outcome = option != NULL && strcmp(option, "--save-layers") == 0
                                     ? RUN("score", "-m", deep, "-d", path, "-r", ones, option, value)
                                 : option != NULL ? RUN("score", "-m", deep, "-d", path, option, value)
                                                  : RUN("score", "-m", deep, "-d", path);
    cli_expect_code(&outcome, 0);
    const char *line = outcome.out;
    for (size_t i = 0; i < n; i++) {
        cJSON *json = cJSON_Parse(line);
        right[i] = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "correct"));
        assert_non_null(json);
        cJSON_Delete(json);
        line = strchr(line, '\n');
        assert_non_null(line);
        line++;
    }
    assert_string_equal(line, "");
    cli_outcome_free(&outcome);
}

static double share(const bool *right, size_t n) {
    size_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += right[i];
    }
    return (double)sum / (double)n;
}

/* budget NAN: null */
static const cJSON *find_entry(const cJSON *json, const char *list, const char *task, const char *method, double budget,
                               const char *against) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, cli_list(json, list, -1)) {
        const cJSON *number = cJSON_GetObjectItemCaseSensitive(entry, "budget");
        const bool is_budget =
            isnan(budget) ? cJSON_IsNull(number) : cJSON_IsNumber(number) && number->valuedouble == budget;
        if (is_budget && strcmp(cli_string(entry, "task"), task) == 0 &&
            strcmp(cli_string(entry, "method"), method) == 0 &&
            (against == NULL || strcmp(cli_string(entry, "against"), against) == 0)) {
            return entry;
        }
    }
    fail_msg("no %s of %s, %s", list, task, method);
    return NULL;
}

static void expect_row(const cJSON *json, const char *task, const char *method, double budget, const bool *right,
                       size_t n, double saved) {
    const cJSON *row = find_entry(json, "rows", task, method, budget, NULL);
    const struct interval interval = wilson_interval(share(right, n), n);
    expect_near(cli_number(row, "n"), (double)n, 0.0);
    expect_near(cli_number(row, "accuracy"), share(right, n), 1e-12);
    expect_near(cli_number(row, "ci_low"), interval.low, 1e-12);
    expect_near(cli_number(row, "ci_high"), interval.high, 1e-12);
    expect_near(cli_number(row, "layers_saved"), saved, 0.0);
    assert_true(cli_number(row, "ms_per_example") > 0.0);
    assert_true(cli_number(row, "tokens_per_second") > 0.0);
}

static void expect_test(const cJSON *json, const char *task, double budget, const bool *full, const bool *right,
                        size_t n) {
    const cJSON *test = find_entry(json, "tests", task, "routed", budget, "full");
    size_t lost = 0, won = 0;
    for (size_t i = 0; i < n; i++) {
        lost += full[i] && !right[i];
        won += right[i] && !full[i];
    }
    expect_near(cli_number(test, "lost"), (double)lost, 0.0);
    expect_near(cli_number(test, "won"), (double)won, 0.0);
    expect_near(cli_number(test, "p"), mcnemar(lost, won), 1e-12);
    expect_near(cli_number(test, "gain"), share(right, n) - share(full, n), 1e-12);
}

static cJSON *read_json(const char *path) {
    size_t size = 0;
    char *text = cli_read(path, &size);
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    free(text);
    return json;
}

static void check_csv(const char *path, const cJSON *json) {
    size_t size = 0;
    char *csv = cli_read(path, &size);
    static const char head[] =
        "task,method,budget,n,accuracy,ci_low,ci_high,layers_saved,ms_per_example,tokens_per_second\n";
    assert_int_equal(strncmp(csv, head, strlen(head)), 0);
    const char *line = csv + strlen(head);
    const cJSON *row;
    cJSON_ArrayForEach(row, cli_list(json, "rows", -1)) {
        char begin[128], budget[32] = "";
        const cJSON *number = cJSON_GetObjectItemCaseSensitive(row, "budget");
        if (cJSON_IsNumber(number)) {
            (void)snprintf(budget, sizeof budget, "%g", number->valuedouble);
        }
        (void)snprintf(begin, sizeof begin, "%s,%s,%s,%g,%.9g,", cli_string(row, "task"), cli_string(row, "method"),
                       budget, cli_number(row, "n"), cli_number(row, "accuracy"));
        assert_int_equal(strncmp(line, begin, strlen(begin)), 0);
        const char *end = strchr(line, '\n');
        assert_non_null(end);
        size_t n_commas = 0;
        for (; line < end; line++) {
            n_commas += *line == ',';
        }
        assert_int_equal(n_commas, 9);
        line++;
    }
    assert_string_equal(line, "");
    free(csv);
}

/* Routers that decide alike for all prompts make known programs, and what those answer `drllm score` says. */
static void test_eval(void **state) {
    bool full_a[N_A], full_b[N_B], right_a[N_A], right_b[N_B];
    char json_path[CLI_PATH_BYTES], csv_path[CLI_PATH_BYTES], svg_path[CLI_PATH_BYTES];
    (void)state;
    cli_require_program();
    cli_path("eval.json", json_path);
    cli_path("eval.csv", csv_path);
    cli_path("eval.svg", svg_path);
    struct cli_outcome outcome = RUN("eval", "-m", deep, "-r", ones, "-d", task_a, "-d", task_b, "--train", task_a,
                                     "--train", task_b, "--budgets", "0,4,9", "--seeds", "2", "--timed", "3", "--json",
                                     json_path, "--csv", csv_path, "--plot", svg_path);
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.err, "budget 9 is left out: so many layers cannot be saved");
    cli_expect_text(outcome.err, "no program of equal length for all questions at budget 0: 0.00 layers are saved");
    cli_expect_text(outcome.out, "McNemar");
    cli_expect_text(outcome.out, "Time saved");
    cli_outcome_free(&outcome);

    cJSON *json = read_json(json_path);
    assert_int_equal(cJSON_GetArraySize(cli_list(json, "rows", -1)), 3 * 7);
    expect_near(cli_number(json, "n_layers"), N_LAYERS, 0.0);
    score(task_a, NULL, NULL, full_a, N_A);
    score(task_b, NULL, NULL, full_b, N_B);
    expect_row(json, "a", "full", NAN, full_a, N_A, 0.0);
    expect_row(json, "b", "full", NAN, full_b, N_B, 0.0);
    expect_row(json, "a", "routed", NAN, full_a, N_A, 0.0);
    expect_row(json, "b", "routed", 0.0, full_b, N_B, 0.0);
    score(task_a, "--save-layers", "4", right_a, N_A);
    score(task_b, "--save-layers", "4", right_b, N_B);
    assert_true(memcmp(right_a, full_a, N_A) != 0 || memcmp(right_b, full_b, N_B) != 0); /* it matters */
    expect_row(json, "a", "routed", 4.0, right_a, N_A, 4.0);
    expect_row(json, "b", "routed", 4.0, right_b, N_B, 4.0);
    /* Four of four: each mask is what the routers skip. */
    expect_row(json, "a", "random", 4.0, right_a, N_A, 4.0);
    expect_near(cli_number(find_entry(json, "rows", "b", "static", 4.0, NULL), "layers_saved"), 4.0, 0.0);
    expect_near(cli_number(find_entry(json, "rows", "b", "shortgpt", 4.0, NULL), "layers_saved"), 4.0, 0.0);
    const cJSON *mean = find_entry(json, "rows", "mean", "routed", 4.0, NULL);
    expect_near(cli_number(mean, "accuracy"), (share(right_a, N_A) + share(right_b, N_B)) / 2.0, 1e-12);
    expect_near(cli_number(mean, "n"), N_A + N_B, 0.0);
    expect_test(json, "a", 4.0, full_a, right_a, N_A);
    expect_test(json, "b", 4.0, full_b, right_b, N_B);
    find_entry(json, "tests", "all", "routed", 4.0, "static");
    expect_near(cli_number(find_entry(json, "latency", "all", "routed", 4.0, NULL), "n"), 6.0, 0.0);
    expect_near(cli_number(find_entry(json, "latency", "all", "routed", 4.0, NULL), "layers_saved"), 4.0 / 6.0, 1e-9);
    cli_list(json, "influence", N_LAYERS);
    cli_list(json, "programs", 1 + 2 * 1 + 2); /* full, static, shortgpt, two masks */
    check_csv(csv_path, json);
    cJSON_Delete(json);

    size_t size = 0;
    char *svg = cli_read(svg_path, &size);
    check_xml(svg);
    cli_expect_text(svg, ">shortgpt</text>");
    cli_expect_text(svg, "mean over 2 tasks, 21 questions");
    free(svg);
}

/* Without --train and for a limit; programs of labels, and the oracle among them. */
static void test_eval_within(void **state) {
    enum { LIMIT = 7 };
    bool full[N_A], own[N_A], oracle[N_A];
    char labels[CLI_PATH_BYTES], json_path[CLI_PATH_BYTES], text[512];
    (void)state;
    cli_require_program();
    cli_path("within.json", json_path);
    (void)snprintf(text, sizeof text,
                   "{\"task\": \"a\", \"prompt\": \"x\", \"program\": \"%s\"}\n"
                   "{\"task\": \"b\", \"prompt\": \"x\", \"program\": \"0-5\"}\n",
                   forced_program);
    cli_write(cli_path("labels.jsonl", labels), text, strlen(text));
    struct cli_outcome outcome = RUN("eval", "-m", deep, "-r", forced, "-d", task_a, "--limit", "7", "--within", labels,
                                     "--timed", "0", "--seeds", "1", "--json", json_path);
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.err, "static is left out");
    cli_outcome_free(&outcome);

    cJSON *json = read_json(json_path);
    score(task_a, NULL, NULL, full, N_A);
    score(task_a, "--program", forced_program, own, N_A);
    for (size_t i = 0; i < LIMIT; i++) {
        oracle[i] = full[i] || own[i];
    }
    const cJSON *within = cJSON_GetArrayItem(cli_list(json, "within", 1), 0);
    expect_near(cli_number(within, "n"), LIMIT, 0.0);
    expect_near(cli_number(within, "n_programs"), 2.0, 0.0);
    expect_near(cli_number(within, "full"), share(full, LIMIT), 1e-12);
    expect_near(cli_number(within, "own"), share(own, LIMIT), 1e-12);
    expect_near(cli_number(within, "routed"), share(own, LIMIT), 1e-12);
    expect_near(cli_number(within, "best"), fmax(share(full, LIMIT), share(own, LIMIT)), 1e-12);
    expect_near(cli_number(within, "oracle"), share(oracle, LIMIT), 1e-12);
    const cJSON *row = find_entry(json, "rows", "a", "routed", NAN, NULL);
    int executions = 0;
    for (size_t i = 0; i < N_LAYERS; i++) {
        executions += forced_counts[i];
    }
    expect_near(cli_number(row, "layers_saved"), N_LAYERS - executions, 0.0);
    expect_near(cli_number(row, "accuracy"), share(own, LIMIT), 1e-12);
    assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(row, "ms_per_example"))); /* nothing was timed */
    cli_list(json, "latency", 0);
    cJSON_Delete(json);
}

static void test_generative(void **state) {
    static const char questions[] =
        "{\"prompt\": \"abc\", \"answer\": \"defgh\", \"match\": \"contains\", \"max_tokens\": 8}\n"
        "{\"prompt\": \"abc\", \"answer\": \"nothing\", \"match\": \"contains\", \"max_tokens\": 8}\n"
        "{\"prompt\": \"abc\", \"choices\": [\"d\", \"x\"], \"answer\": 0}\n";
    (void)state;
    cli_require_program();
    cJSON *json = NULL;
    struct cli_outcome outcome =
        RUN_INPUT(questions, "eval", "-m", spoken, "-d", "-", "--methods", "full", "--json", "-");
    cli_expect_code(&outcome, 0);
    json = cJSON_Parse(outcome.out); /* the table gives way */
    cli_expect_text(outcome.err, "(no task)");
    cli_outcome_free(&outcome);
    const cJSON *row = find_entry(json, "rows", "", "full", NAN, NULL);
    expect_near(cli_number(row, "accuracy"), 2.0 / 3.0, 1e-12);
    expect_near(cli_number(row, "n"), 3.0, 0.0);
    cJSON_Delete(json);
}

static void test_bad_lines(void **state) {
    static const char questions[] =
        "{\"task\": \"t\", \"prompt\": \"abc\", \"choices\": [\"d\", \"x\"], \"answer\": 0}\n"
        "no json\n"
        "{\"task\": \"t\", \"prompt\": \"abc\", \"choices\": [\"d\", \"x\"]}\n";
    (void)state;
    cli_require_program();
    struct cli_outcome outcome = RUN_INPUT(questions, "eval", "-m", spoken, "-d", "-", "--budgets", "1,2.4", "--timed",
                                           "1", "--methods", "random,shortgpt", "--csv", "-");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "-, line 2: ");
    cli_expect_text(outcome.err, "-, line 3: it has no \"answer\"");
    cli_expect_text(outcome.err, "2 bad lines");
    cli_expect_text(outcome.out, "\nt,full,,1,1,"); /* the others are answered */
    cli_expect_text(outcome.out, "\nt,random,2.4,1,1,");
    cli_outcome_free(&outcome);
    cli_expect_failure(RUN_INPUT("", "eval", "-m", spoken, "-d", "-"), 1, "there are no questions to ask");
}

static void test_wrong_use(void **state) {
    static const struct {
        const char *arguments[10];
        const char *message;
    } cases[] = {
        {{"eval", "-d", "x"}, "-m FILE is missing"},
        {{"eval", "-m", "x"}, "-d FILE is missing"},
        {{"eval", "-m", "x", "-d", "y", "--methods", "full,best"}, "--methods: 'best' is none of"},
        {{"eval", "-m", "x", "-d", "y", "--budgets", "1,,2"}, "--budgets: '' is no number"},
        {{"eval", "-m", "x", "-d", "y", "--budgets", "-1"}, "--budgets: '-1' is no number"},
        {{"eval", "-m", "x", "-d", "y", "--json", "z", "--csv", "z"}, "cannot both go to z"},
        {{"eval", "-m", "x", "-d", "y", "--seeds", "0"}, "--seeds"},
    };
    (void)state;
    cli_require_program();
    for (size_t i = 0; i < COUNT(cases); i++) {
        cli_expect_failure(cli_run(NULL, cases[i].arguments), 2, cases[i].message);
    }
    cli_expect_failure(RUN("eval", "-m", deep, "-d", "/nowhere"), 1, "/nowhere");
}

static void test_interrupt(void **state) {
    static const struct timespec moment = {.tv_nsec = 10000000};
    char json_path[CLI_PATH_BYTES], printed[CLI_PATH_BYTES];
    (void)state;
    cli_require_program();
    cli_path("stopped.json", json_path);
    cli_path("printed", printed);
    const pid_t pid = cli_start(NULL, printed, -1,
                                ARGUMENTS("eval", "-m", deep, "-d", task_a, "--budgets", "3", "--methods", "random",
                                          "--seeds", "65536", "--json", json_path, "-t", "1"));
    for (size_t i = 0; cli_count_files("stopped.json") == 0 && i < 12000; i++) { /* beside which it is written */
        nanosleep(&moment, NULL);
    }
    kill(pid, SIGINT);
    struct cli_outcome outcome = cli_finish(pid, printed);
    cli_expect_code(&outcome, 130);
    cli_expect_text(outcome.err, "interrupted; nothing was written");
    cli_outcome_free(&outcome);
    assert_int_equal(cli_count_files("stopped.json"), 0);
}

/* ---- Set-up ---- */

static void write_questions(const char *path, const char *task, size_t n, uint64_t seed) {
    struct text lines = {NULL, 0, 0};
    uint64_t random = seed;
    for (size_t i = 0; i < n; i++) {
        char line[256];
        (void)snprintf(
            line, sizeof line,
            "{\"task\": \"%s\", \"prompt\": \"%c%c question %u\", \"choices\": [\"%c%c\", \"x%c\", \"%cy\"], "
            "\"answer\": %u}\n",
            task, 'a' + (int)(drllm_random(&random) % 26), 'a' + (int)(drllm_random(&random) % 26),
            drllm_random(&random) % 1000, 'a' + (int)(drllm_random(&random) % 26),
            'a' + (int)(drllm_random(&random) % 26), 'a' + (int)(drllm_random(&random) % 26),
            'a' + (int)(drllm_random(&random) % 26), drllm_random(&random) % 3);
        text_append(&lines, line, strlen(line));
    }
    cli_write(path, lines.data, lines.size);
    text_release(&lines);
}

static void write_routers(const char *path, const struct router_options *options) {
    size_t size = 0;
    uint8_t *file = router_builder_file(options, &size);
    cli_write(path, file, size);
    free(file);
}

static int set_up(void **state) {
    static const uint8_t all_ones[N_LAYERS] = {1, 1, 1, 1, 1, 1};
    static const float bias[] = {-1.0f, 0.0f, 20.0f}, saved[] = {0.0f, 2.0f, 4.0f};
    struct tiny_options model = tiny_default_options();
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    model.n_layers = N_LAYERS;
    cli_write_model(cli_path("deep.gguf", deep), &model, "deep", true);
    cli_write_spoken_model(cli_path("spoken.gguf", spoken), N_LAYERS, true);
    struct router_options options = router_default_options(&model);
    options.program = forced_counts;
    write_routers(cli_path("forced.gguf", forced), &options);
    options.program = all_ones;
    options.certainty = 5.1f;
    options.bias = bias;
    options.saved = saved;
    options.n_bias = options.n_saved = COUNT(bias);
    write_routers(cli_path("ones.gguf", ones), &options);
    write_questions(cli_path("a.jsonl", task_a), "a", N_A, 1);
    write_questions(cli_path("b.jsonl", task_b), "b", N_B, 2);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    return cli_remove_folder();
}

int drllm_test_eval(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wilson),        cmocka_unit_test(test_mcnemar),
        cmocka_unit_test(test_numbers),       cmocka_unit_test(test_influence_mask),
        cmocka_unit_test(test_random_mask),   cmocka_unit_test(test_block_influence),
        cmocka_unit_test(test_static_search), cmocka_unit_test(test_plot),
        cmocka_unit_test(test_eval),          cmocka_unit_test(test_eval_within),
        cmocka_unit_test(test_generative),    cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_wrong_use),     cmocka_unit_test(test_interrupt),
    };
    return drllm_run_group("eval", tests, set_up, tear_down);
}
