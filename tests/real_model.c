#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/real_model.h"

#include "runtime/drllm_os.h"
#include "tests/tests.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct real_golden real_goldens[REAL_N_PROMPTS] = {
#include "tests/data/smollm2.inc"
};

/* As the files are called. */
static const char *const route_names[REAL_N_ROUTES] = {"f32.kvf32", "route-skip10_20.f32", "route-rep15.f32"};

void real_route_program(enum real_route route, uint8_t counts[REAL_N_LAYERS]) {
    memset(counts, 1, REAL_N_LAYERS);
    if (route == REAL_SKIP10_20) {
        counts[10] = counts[20] = 0;
    } else if (route == REAL_REP15) {
        counts[15] = 2;
    }
}

/* ---- The model, opened once for each way to compute ---- */

static struct drllm_model *models[3]; /* by enum drllm_compute */

int real_close_models(void **state) {
    (void)state;
    int status = 0;
    for (size_t i = 0; i < 3; i++) {
        status |= drllm_model_close(models[i]);
        models[i] = NULL;
    }
    return status;
}

void real_need_model(void) {
    const char *path = getenv("DRLLM_TEST_MODEL");
    if (path == NULL || path[0] == '\0' || drllm_test_is_fast()) {
        drllm_skip("needs DRLLM_TEST_MODEL, and not --fast");
    }
}

const struct drllm_model *real_model(enum drllm_compute compute) {
    real_need_model();
    if (models[compute] == NULL) {
        struct drllm_model_params params = drllm_model_default_params();
        params.compute = compute;
        struct drllm_error error = {0};
        if (drllm_model_open_path(getenv("DRLLM_TEST_MODEL"), &params, &models[compute], &error) != DRLLM_OK) {
            fail_msg("%s", error.detail);
        }
        struct drllm_model_info info;
        drllm_model_get_info(models[compute], &info);
        assert_int_equal(info.n_vocab, REAL_N_VOCAB);
        assert_int_equal(info.n_layers, REAL_N_LAYERS);
        assert_int_equal(info.d_model, REAL_D_MODEL);
    }
    return models[compute];
}

struct drllm_session *real_open_session(enum drllm_compute compute) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = REAL_MOST_TOKENS;
    struct drllm_session *session = NULL;
    assert_int_equal(drllm_session_open(real_model(compute), &params, &session, NULL), DRLLM_OK);
    return session;
}

void real_set_program(struct drllm_session *session, const uint8_t *counts) {
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = counts;
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
}

/* ---- Files of the reference ---- */

void real_need_reference(void) {
    const char *shared = getenv("DRLLM_TEST_SHARED");
    real_need_model();
    if (shared == NULL || shared[0] == '\0') {
        drllm_skip("needs DRLLM_TEST_SHARED");
    }
}

char *real_read_reference(const char *name, size_t *size) {
    real_need_reference();
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/ref/%s", getenv("DRLLM_TEST_SHARED"), name);
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

float *real_read_reference_floats(const char *name, size_t count) {
    size_t size;
    char *text = real_read_reference(name, &size);
    assert_int_equal(size, count * sizeof(float));
    return (float *)(void *)text;
}

cJSON *real_read_reference_lines(const char *name, int n_lines) {
    size_t size;
    char *text = real_read_reference(name, &size);
    cJSON *lines = cJSON_CreateArray();
    assert_non_null(lines);
    for (char *line = text; *line != '\0';) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        *end = '\0';
        cJSON *object = cJSON_Parse(line);
        assert_true(cJSON_AddItemToArray(lines, object));
        line = end + 1;
    }
    free(text);
    assert_int_equal(cJSON_GetArraySize(lines), n_lines);
    return lines;
}

size_t real_json_numbers(const cJSON *object, const char *key, double *numbers, size_t capacity) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(object, key);
    assert_true(cJSON_IsArray(list));
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        assert_true(cJSON_IsNumber(item) && n < capacity);
        numbers[n++] = item->valuedouble;
    }
    return n;
}

size_t real_json_ids(const cJSON *list, int32_t *ids, size_t capacity) {
    assert_true(cJSON_IsArray(list));
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        assert_true(cJSON_IsNumber(item) && n < capacity);
        ids[n++] = item->valueint;
    }
    return n;
}

/* ---- Distances ---- */

static double log_sum(const float *logits) {
    double most = -INFINITY, total = 0.0;
    for (size_t i = 0; i < REAL_N_VOCAB; i++) {
        most = (double)logits[i] > most ? (double)logits[i] : most; /* fmax here breaks gcc 12 for arm64 */
    }
    for (size_t i = 0; i < REAL_N_VOCAB; i++) {
        total += exp((double)logits[i] - most);
    }
    return most + log(total);
}

double real_divergence(const float *logits, const float *reference) {
    const double of_logits = log_sum(logits), of_reference = log_sum(reference);
    double sum = 0.0;
    for (size_t i = 0; i < REAL_N_VOCAB; i++) {
        const double log_p = (double)reference[i] - of_reference;
        sum += exp(log_p) * (log_p - ((double)logits[i] - of_logits));
    }
    return sum;
}

double real_largest_difference(const float *logits, const float *reference) {
    double most = 0.0;
    for (size_t i = 0; i < REAL_N_VOCAB; i++) {
        const double difference = fabs((double)logits[i] - (double)reference[i]);
        most = difference <= most ? most : difference; /* NaN stays */
    }
    return most;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct real_spread real_spread_of(double *numbers, size_t n) {
    assert_true(n > 0);
    qsort(numbers, n, sizeof *numbers, compare_doubles);
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += numbers[i];
    }
    return (struct real_spread){sum / (double)n, numbers[(n * 95 + 99) / 100 - 1], numbers[n - 1]};
}

/* ---- Prompts ---- */

static void keep_hidden(void *user, size_t layer, const float *hidden) {
    struct real_after_prompt *after = user;
    assert_true(layer <= REAL_N_LAYERS);
    memcpy(after->hidden[layer], hidden, sizeof after->hidden[layer]);
}

struct real_after_prompt *real_run_prompt(enum drllm_compute compute, enum real_route route, size_t prompt) {
    struct drllm_session *session = real_open_session(compute);
    struct real_after_prompt *after = malloc(sizeof *after);
    assert_non_null(after);
    if (route != REAL_FULL) {
        uint8_t counts[REAL_N_LAYERS];
        real_route_program(route, counts);
        real_set_program(session, counts);
    }
    drllm_session_set_layer_hook(session, keep_hidden, after);
    const struct real_golden *golden = &real_goldens[prompt];
    assert_int_equal(drllm_session_prefill(session, golden->ids, golden->n_ids), DRLLM_OK);
    memcpy(after->logits, drllm_session_logits(session), sizeof after->logits);
    drllm_session_close(session);
    return after;
}

void real_check_top(enum drllm_compute compute, enum real_route route, double bound) {
    for (size_t i = 0; i < REAL_N_PROMPTS; i++) {
        struct real_after_prompt *after = real_run_prompt(compute, route, i);
        for (size_t j = 0; j < REAL_N_TOP; j++) {
            const int32_t token = real_goldens[i].top[route][j].token;
            const double expected = (double)real_goldens[i].top[route][j].logit, logit = (double)after->logits[token];
            if (!(fabs(logit - expected) <= bound)) {
                fail_msg("%s, prompt %zu: the logit of token %d is %g, not %g", route_names[route], i, (int)token,
                         logit, expected);
            }
        }
        free(after);
    }
}

void real_check_logits(enum drllm_compute compute, enum real_route route, double most_divergence,
                       double most_difference) {
    for (size_t i = 0; i < REAL_N_PROMPTS; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s.p%zu.logits.f32", route_names[route], i);
        float *reference = real_read_reference_floats(name, REAL_N_VOCAB);
        struct real_after_prompt *after = real_run_prompt(compute, route, i);
        const double kl = real_divergence(after->logits, reference);
        const double difference = real_largest_difference(after->logits, reference);
        print_message("             %s, prompt %zu: KL %.5f, largest difference %.4f\n", route_names[route], i, kl,
                      difference);
        assert_true(kl <= most_divergence && kl >= -1e-9);
        assert_true(difference <= most_difference);
        free(reference);
        free(after);
    }
}

/* ---- Choices ---- */

size_t real_score_line(struct drllm_session *session, const cJSON *line, const char *key,
                       double differences[REAL_MOST_CHOICES]) {
    int32_t prompt[REAL_MOST_TOKENS], tokens[REAL_MOST_TOKENS];
    struct drllm_choice choices[REAL_MOST_CHOICES];
    double expected[REAL_MOST_CHOICES] = {0};
    const size_t n_prompt =
        real_json_ids(cJSON_GetObjectItemCaseSensitive(line, "prompt_ids"), prompt, REAL_MOST_TOKENS);
    const size_t n_expected = real_json_numbers(line, key, expected, REAL_MOST_CHOICES);
    size_t n = 0, n_tokens = 0;
    const cJSON *ids;
    cJSON_ArrayForEach(ids, cJSON_GetObjectItemCaseSensitive(line, "choice_ids")) {
        assert_true(n < n_expected);
        const size_t size = real_json_ids(ids, tokens + n_tokens, REAL_MOST_TOKENS - n_tokens);
        choices[n++] = (struct drllm_choice){tokens + n_tokens, size, 0.0};
        n_tokens += size;
    }
    assert_int_equal(n, n_expected);
    drllm_session_reset(session);
    assert_int_equal(drllm_session_score(session, prompt, n_prompt, choices, n), DRLLM_OK);
    for (size_t i = 0; i < n; i++) {
        differences[i] = fabs(choices[i].log_prob - expected[i]);
    }
    return n;
}

/* ---- Perplexity ---- */

struct losses {
    const int32_t *chunk;
    double sum;
    size_t n;
};

static int add_loss(void *user, size_t position, const float *logits) {
    struct losses *losses = user;
    if (position + 1 < REAL_MOST_TOKENS) {
        losses->sum += log_sum(logits) - (double)logits[losses->chunk[position + 1]];
        losses->n++;
    }
    return 0;
}

double real_perplexity(struct drllm_session *session, size_t most_chunks) {
    size_t size, n_tokens = 0;
    char *text = real_read_reference("alice.txt", &size);
    int32_t *tokens = malloc((size + 1) * sizeof *tokens);
    assert_non_null(tokens);
    /* The vocabulary is the same for every way to compute. */
    assert_int_equal(drllm_tokenize(real_model(DRLLM_COMPUTE_EXACT), text, size, 0, tokens, size, &n_tokens, NULL),
                     DRLLM_OK);
    struct losses losses = {.n = 0};
    const size_t n_whole = n_tokens / REAL_MOST_TOKENS, n_chunks = most_chunks < n_whole ? most_chunks : n_whole;
    for (size_t i = 0; i < n_chunks; i++) {
        losses.chunk = tokens + i * REAL_MOST_TOKENS;
        drllm_session_reset(session);
        assert_int_equal(drllm_session_prefill_logits(session, losses.chunk, REAL_MOST_TOKENS, REAL_MOST_TOKENS / 2,
                                                      add_loss, &losses),
                         DRLLM_OK);
    }
    const double perplexity = exp(losses.sum / (double)losses.n);
    print_message("             %zu tokens scored, perplexity %.3f\n", losses.n, perplexity);
    assert_int_equal(losses.n, n_chunks * (REAL_MOST_TOKENS / 2 - 1));
    free(tokens);
    free(text);
    return perplexity;
}
