/* SmolLM2-135M-Instruct against llama.cpp in float32: the model of DRLLM_TEST_MODEL (Q4_1), references in
 * tests/data, and the full ones in DRLLM_TEST_SHARED/ref (see its README.md). Bounds are those that the project
 * promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "quant/matmul_xnnpack.h"
#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tests/tests.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 49152, N_LAYERS = 30, D_MODEL = 576, N_TOP = 10, MOST_TOKENS = 512, MOST_CHOICES = 16 };

/* Made by tests/make_golden.py from the reference of llama.cpp. */
static const struct golden {
    const char *prompt;
    size_t n_ids;
    int32_t ids[48];
    struct {
        int32_t token;
        float logit;
    } top[N_TOP];              /* the largest logits after the prompt */
    float norms[N_LAYERS + 1]; /* lengths of the last token's residual after each block, and after the final norm */
} goldens[] = {
#include "tests/data/smollm2.inc"
};
enum { N_PROMPTS = sizeof goldens / sizeof goldens[0] };

/* ---- The model, opened once for each way to compute ---- */

static struct drllm_model *models[3]; /* by enum drllm_compute */

static int close_models(void **state) {
    (void)state;
    int status = 0;
    for (size_t i = 0; i < 3; i++) {
        status |= drllm_model_close(models[i]);
        models[i] = NULL;
    }
    return status;
}

static void need_model(void) {
    const char *path = getenv("DRLLM_TEST_MODEL");
    if (path == NULL || path[0] == '\0' || drllm_test_is_fast()) {
        drllm_skip("needs DRLLM_TEST_MODEL, and not --fast");
    }
}

static const struct drllm_model *get_model(enum drllm_compute compute) {
    need_model();
    if (models[compute] == NULL) {
        struct drllm_model_params params = drllm_model_default_params();
        params.compute = compute;
        struct drllm_error error = {0};
        if (drllm_model_open_path(getenv("DRLLM_TEST_MODEL"), &params, &models[compute], &error) != DRLLM_OK) {
            fail_msg("%s", error.detail);
        }
        struct drllm_model_info info;
        drllm_model_get_info(models[compute], &info);
        assert_int_equal(info.n_vocab, N_VOCAB);
        assert_int_equal(info.n_layers, N_LAYERS);
        assert_int_equal(info.d_model, D_MODEL);
    }
    return models[compute];
}

static struct drllm_session *open_session(const struct drllm_model *model) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = MOST_TOKENS;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    return session;
}

/* ---- Files of the reference ---- */

/* The whole file with a zero behind it, to be freed; the test is skipped when there is no reference. */
static char *read_reference(const char *name, size_t *size) {
    const char *shared = getenv("DRLLM_TEST_SHARED");
    if (shared == NULL || shared[0] == '\0') {
        drllm_skip("needs DRLLM_TEST_SHARED");
    }
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/ref/%s", shared, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail_msg("cannot open %s", path);
    }
    size_t capacity = (size_t)1 << 20;
    char *text = malloc(capacity);
    assert_non_null(text);
    *size = 0;
    for (;;) {
        const size_t n = fread(text + *size, 1, capacity - 1 - *size, file);
        if (n == 0) {
            break;
        }
        *size += n;
        if (*size == capacity - 1) {
            capacity *= 2;
            text = realloc(text, capacity);
            assert_non_null(text);
        }
    }
    assert_int_equal(ferror(file), 0);
    (void)fclose(file);
    text[*size] = '\0';
    return text;
}

static float *read_reference_floats(const char *name, size_t count) {
    size_t size;
    char *text = read_reference(name, &size);
    assert_int_equal(size, count * sizeof(float));
    return (float *)(void *)text;
}

/* ---- Distances ---- */

static double log_sum(const float *logits) {
    double most = -INFINITY, total = 0.0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        most = (double)logits[i] > most ? (double)logits[i] : most; /* fmax here breaks gcc 12 for arm64 */
    }
    for (size_t i = 0; i < N_VOCAB; i++) {
        total += exp((double)logits[i] - most);
    }
    return most + log(total);
}

/* KL(reference || logits) in nats. */
static double divergence(const float *logits, const float *reference) {
    const double of_logits = log_sum(logits), of_reference = log_sum(reference);
    double sum = 0.0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        const double log_p = (double)reference[i] - of_reference;
        sum += exp(log_p) * (log_p - ((double)logits[i] - of_logits));
    }
    return sum;
}

static double largest_difference(const float *logits, const float *reference) {
    double most = 0.0;
    for (size_t i = 0; i < N_VOCAB; i++) {
        const double difference = fabs((double)logits[i] - (double)reference[i]);
        most = difference <= most ? most : difference; /* NaN stays */
    }
    return most;
}

static double length(const float *x) {
    double squares = 0.0;
    for (size_t i = 0; i < D_MODEL; i++) {
        squares += (double)x[i] * (double)x[i];
    }
    return sqrt(squares);
}

/* ---- Prompts ---- */

struct after_prompt {
    float logits[N_VOCAB];
    float hidden[N_LAYERS + 1][D_MODEL];
};

static void keep_hidden(void *user, size_t layer, const float *hidden) {
    struct after_prompt *after = user;
    assert_true(layer <= N_LAYERS);
    memcpy(after->hidden[layer], hidden, sizeof after->hidden[layer]);
}

static struct after_prompt *run_prompt(enum drllm_compute compute, const struct golden *golden) {
    struct drllm_session *session = open_session(get_model(compute));
    struct after_prompt *after = malloc(sizeof *after);
    assert_non_null(after);
    drllm_session_set_layer_hook(session, keep_hidden, after);
    assert_int_equal(drllm_session_prefill(session, golden->ids, golden->n_ids), DRLLM_OK);
    memcpy(after->logits, drllm_session_logits(session), sizeof after->logits);
    drllm_session_close(session);
    return after;
}

static void test_token_ids(void **state) {
    (void)state;
    const struct drllm_model *model = get_model(DRLLM_COMPUTE_EXACT);
    for (size_t i = 0; i < N_PROMPTS; i++) {
        int32_t ids[64];
        size_t n = 0;
        const struct golden *golden = &goldens[i];
        assert_int_equal(drllm_tokenize(model, golden->prompt, strlen(golden->prompt),
                                        DRLLM_TOKENIZE_SPECIAL | DRLLM_TOKENIZE_BOS, ids, 64, &n, NULL),
                         DRLLM_OK);
        assert_int_equal(n, golden->n_ids);
        assert_memory_equal(ids, golden->ids, n * sizeof *ids);
    }
}

static void check_top(enum drllm_compute compute, double bound) {
    for (size_t i = 0; i < N_PROMPTS; i++) {
        struct after_prompt *after = run_prompt(compute, &goldens[i]);
        for (size_t j = 0; j < N_TOP; j++) {
            const double logit = (double)after->logits[goldens[i].top[j].token];
            if (!(fabs(logit - (double)goldens[i].top[j].logit) <= bound)) {
                fail_msg("prompt %zu: the logit of token %d is %g, not %g", i, (int)goldens[i].top[j].token, logit,
                         (double)goldens[i].top[j].logit);
            }
        }
        free(after);
    }
}

static void test_golden_top_logits(void **state) {
    (void)state;
    check_top(DRLLM_COMPUTE_EXACT, 1.5);
}

static void test_golden_f32(void **state) {
    (void)state;
    check_top(DRLLM_COMPUTE_F32, 0.02);
    for (size_t i = 0; i < N_PROMPTS; i++) {
        struct after_prompt *after = run_prompt(DRLLM_COMPUTE_F32, &goldens[i]);
        for (size_t layer = 0; layer <= N_LAYERS; layer++) {
            const double expected = (double)goldens[i].norms[layer], norm = length(after->hidden[layer]);
            if (!(fabs(norm - expected) <= 1e-3 * expected)) {
                fail_msg("prompt %zu: the residual after block %zu is %g long, not %g", i, layer, norm, expected);
            }
        }
        free(after);
    }
}

static void check_logits(enum drllm_compute compute, double most_divergence, double most_difference) {
    for (size_t i = 0; i < N_PROMPTS; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "f32.kvf32.p%zu.logits.f32", i);
        float *reference = read_reference_floats(name, N_VOCAB);
        struct after_prompt *after = run_prompt(compute, &goldens[i]);
        const double kl = divergence(after->logits, reference);
        const double difference = largest_difference(after->logits, reference);
        print_message("             prompt %zu: KL %.5f, largest difference %.4f\n", i, kl, difference);
        assert_true(kl <= most_divergence && kl >= -1e-9);
        assert_true(difference <= most_difference);
        free(reference);
        free(after);
    }
}

static void test_logits_exact(void **state) {
    (void)state;
    need_model();
    check_logits(DRLLM_COMPUTE_EXACT, 0.015, 1.5);
}

static void test_logits_f32(void **state) {
    (void)state;
    need_model();
    check_logits(DRLLM_COMPUTE_F32, 1e-5, 0.02);
}

static void test_logits_xnnpack(void **state) {
    (void)state;
    need_model();
    if (!drllm_xnn_available()) {
        drllm_skip("this build has no XNNPACK");
    }
    check_logits(DRLLM_COMPUTE_XNNPACK, 0.06, 4.0);
}

static void test_blocks_f32(void **state) {
    (void)state;
    need_model();
    for (size_t i = 0; i < N_PROMPTS; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "f32.kvf32.p%zu.layers.f32", i);
        float *reference = read_reference_floats(name, (size_t)(N_LAYERS + 1) * D_MODEL);
        struct after_prompt *after = run_prompt(DRLLM_COMPUTE_F32, &goldens[i]);
        for (size_t layer = 0; layer <= N_LAYERS; layer++) {
            const float *expected = reference + layer * D_MODEL;
            float difference[D_MODEL];
            for (size_t j = 0; j < D_MODEL; j++) {
                difference[j] = after->hidden[layer][j] - expected[j];
            }
            if (!(length(difference) <= 1e-3 * length(expected))) {
                fail_msg("prompt %zu, block %zu: %g of %g", i, layer, length(difference), length(expected));
            }
        }
        free(reference);
        free(after);
    }
}

/* ---- Choices ---- */

/* As much JSON as the reference needs: behind "key":, the numbers of a list, or of a list of lists, whose ends go to
 * `ends`. Returns how many numbers. */
static size_t read_numbers(const char *line, const char *key, double *numbers, size_t capacity, size_t *ends,
                           size_t *n_ends) {
    char quoted[32];
    (void)snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(line, quoted);
    if (at == NULL) {
        fail_msg("no %s in the reference", key);
        return 0;
    }
    at += strlen(quoted) + strspn(at + strlen(quoted), " ");
    assert_int_equal(*at, '[');
    size_t n = 0, depth = 0;
    do {
        if (*at == '[') {
            depth++;
            at++;
        } else if (*at == ']') {
            depth--;
            at++;
            if (ends != NULL && depth == 1) {
                ends[(*n_ends)++] = n;
            }
        } else if (*at == ' ' || *at == ',') {
            at++;
        } else {
            char *end;
            assert_true(n < capacity);
            numbers[n++] = strtod(at, &end);
            assert_true(end != at);
            at = end;
        }
    } while (depth > 0);
    return n;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void to_ids(const double *numbers, size_t n, int32_t *ids) {
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)numbers[i];
    }
}

/* Appends to `differences` how far the choices' log-probabilities are from the line's. */
static size_t score_line(struct drllm_session *session, const char *line, double *differences) {
    double numbers[MOST_TOKENS], expected[MOST_CHOICES];
    int32_t prompt[MOST_TOKENS], tokens[MOST_TOKENS];
    size_t ends[MOST_CHOICES], n_ends = 0;
    const size_t n_prompt = read_numbers(line, "prompt_ids", numbers, MOST_TOKENS, NULL, NULL);
    to_ids(numbers, n_prompt, prompt);
    to_ids(numbers, read_numbers(line, "choice_ids", numbers, MOST_TOKENS, ends, &n_ends), tokens);
    const size_t n_expected = read_numbers(line, "full_logprobs", expected, MOST_CHOICES, NULL, NULL);
    assert_int_equal(n_ends, n_expected);
    struct drllm_choice choices[MOST_CHOICES];
    for (size_t i = 0; i < n_ends; i++) {
        const size_t first = i == 0 ? 0 : ends[i - 1];
        choices[i] = (struct drllm_choice){tokens + first, ends[i] - first, 0.0};
    }
    drllm_session_reset(session);
    assert_int_equal(drllm_session_score(session, prompt, n_prompt, choices, n_ends), DRLLM_OK);
    for (size_t i = 0; i < n_ends; i++) {
        differences[i] = fabs(choices[i].log_prob - expected[i]);
    }
    return n_ends;
}

static void check_scores(enum drllm_compute compute, double most_mean, double most_p95, double most) {
    enum { MOST_SCORES = 1024 };
    size_t size;
    char *text = read_reference("routed.jsonl", &size);
    struct drllm_session *session = open_session(get_model(compute));
    double differences[MOST_SCORES];
    size_t n = 0, n_lines = 0;
    for (char *line = text; *line != '\0'; n_lines++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        *end = '\0';
        assert_true(n + MOST_CHOICES <= MOST_SCORES);
        n += score_line(session, line, differences + n);
        line = end + 1;
    }
    drllm_session_close(session);
    free(text);
    assert_int_equal(n_lines, 40);
    qsort(differences, n, sizeof *differences, compare_doubles);
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += differences[i];
    }
    const double mean = sum / (double)n, p95 = differences[(n * 95 + 99) / 100 - 1];
    print_message("             %zu choices: mean %.5f, 95 %% below %.5f, largest %.5f\n", n, mean, p95,
                  differences[n - 1]);
    assert_true(mean <= most_mean && p95 <= most_p95 && differences[n - 1] <= most);
}

static void test_scores_exact(void **state) {
    (void)state;
    need_model();
    check_scores(DRLLM_COMPUTE_EXACT, 0.25, 0.6, 1.5);
}

static void test_scores_f32(void **state) {
    (void)state;
    need_model();
    check_scores(DRLLM_COMPUTE_F32, 0.01, 0.01, 0.01);
}

/* ---- Perplexity ---- */

struct losses {
    const int32_t *chunk;
    double sum;
    size_t n;
};

static int add_loss(void *user, size_t position, const float *logits) {
    struct losses *losses = user;
    if (position + 1 < MOST_TOKENS) {
        losses->sum += log_sum(logits) - (double)logits[losses->chunk[position + 1]];
        losses->n++;
    }
    return 0;
}

/* llama.cpp's definition: chunks of 512 in order, the second half of each is scored. */
static void test_perplexity(void **state) {
    (void)state;
    need_model();
    size_t size, n_tokens = 0;
    char *text = read_reference("alice.txt", &size);
    const struct drllm_model *model = get_model(DRLLM_COMPUTE_EXACT);
    int32_t *tokens = malloc((size + 1) * sizeof *tokens);
    assert_non_null(tokens);
    assert_int_equal(drllm_tokenize(model, text, size, 0, tokens, size, &n_tokens, NULL), DRLLM_OK);
    struct drllm_session *session = open_session(model);
    struct losses losses = {.n = 0};
    for (size_t first = 0; first + MOST_TOKENS <= n_tokens; first += MOST_TOKENS) {
        losses.chunk = tokens + first;
        drllm_session_reset(session);
        assert_int_equal(
            drllm_session_prefill_logits(session, losses.chunk, MOST_TOKENS, MOST_TOKENS / 2, add_loss, &losses),
            DRLLM_OK);
    }
    const double perplexity = exp(losses.sum / (double)losses.n);
    print_message("             %zu tokens scored, perplexity %.3f\n", losses.n, perplexity);
    assert_int_equal(losses.n, n_tokens / MOST_TOKENS * (MOST_TOKENS / 2 - 1));
    assert_true(perplexity <= 18.75);
    /* llama.cpp of Debian forky gets 17.517 on this machine's kind; ours is the same on every one. */
    assert_true(fabs(perplexity - 17.506) <= 0.02);
    drllm_session_close(session);
    free(tokens);
    free(text);
}

int drllm_test_parity(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_ids),  cmocka_unit_test(test_golden_top_logits),
        cmocka_unit_test(test_golden_f32), cmocka_unit_test(test_logits_exact),
        cmocka_unit_test(test_logits_f32), cmocka_unit_test(test_logits_xnnpack),
        cmocka_unit_test(test_blocks_f32), cmocka_unit_test(test_scores_exact),
        cmocka_unit_test(test_scores_f32), cmocka_unit_test(test_perplexity),
    };
    return drllm_run_group("parity", tests, NULL, close_models);
}
