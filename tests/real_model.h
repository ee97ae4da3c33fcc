/* SmolLM2-135M-Instruct as the tests use it: the model of DRLLM_TEST_MODEL (Q4_1), references of llama.cpp in float32
 * from tests/data, and the full ones of DRLLM_TEST_SHARED/ref (see its README.md). Where the model or the reference
 * lacks, the running test is skipped, so call these from tests only. */
#ifndef DRLLM_TESTS_REAL_MODEL_H
#define DRLLM_TESTS_REAL_MODEL_H

#include "runtime/internal.h"

#include <cJSON.h>

enum {
    REAL_N_VOCAB = 49152,
    REAL_N_LAYERS = 30,
    REAL_D_MODEL = 576,
    REAL_N_PROMPTS = 3,
    REAL_N_TOP = 10,
    REAL_MOST_TOKENS = 512, /* that a session holds */
    REAL_MOST_CHOICES = 16
};

/* Programs with a reference. */
enum real_route { REAL_FULL, REAL_SKIP10_20, REAL_REP15, REAL_N_ROUTES };
void real_route_program(enum real_route route, uint8_t counts[REAL_N_LAYERS]);

/* Made by tests/make_golden.py from the reference. */
struct real_golden {
    const char *prompt;
    size_t n_ids;
    int32_t ids[48];
    float
        norms[REAL_N_LAYERS + 1]; /* lengths of the last token's residual after each block, and after the final norm */
    struct {
        int32_t token;
        float logit;
    } top[REAL_N_ROUTES][REAL_N_TOP]; /* the largest logits after the prompt */
};
extern const struct real_golden real_goldens[REAL_N_PROMPTS];

/* ---- The model, opened once for each way to compute ---- */

void real_need_model(void);
const struct drllm_model *real_model(enum drllm_compute compute);
/* A group's teardown. */
int real_close_models(void **state);

struct drllm_session *real_open_session(enum drllm_compute compute);
void real_set_program(struct drllm_session *session, const uint8_t *counts);

/* ---- Files of the reference ---- */

/* Ahead of what a test that is skipped would leave open. */
void real_need_reference(void);

/* The whole file with a zero behind it, to be freed; it is aligned as malloc does. */
char *real_read_reference(const char *name, size_t *size);
float *real_read_reference_floats(const char *name, size_t count);

/* A file of one JSON object a line, as an array; to be deleted. */
cJSON *real_read_reference_lines(const char *name, int n_lines);
/* The numbers in the list that `key` names. They return how many. */
size_t real_json_numbers(const cJSON *object, const char *key, double *numbers, size_t capacity);
size_t real_json_ids(const cJSON *list, int32_t *ids, size_t capacity);

/* ---- Distances ---- */

/* KL(reference || logits) in nats. */
double real_divergence(const float *logits, const float *reference);
/* NaN if any number is. */
double real_largest_difference(const float *logits, const float *reference);

/* How large numbers are; sorts them. */
struct real_spread {
    double mean, p95, most; /* 95 % are at most p95 */
};
struct real_spread real_spread_of(double *numbers, size_t n);

/* ---- Checks that hold for every program ---- */

struct real_after_prompt {
    float logits[REAL_N_VOCAB];
    float hidden[REAL_N_LAYERS + 1][REAL_D_MODEL];
};
/* To be freed. */
struct real_after_prompt *real_run_prompt(enum drllm_compute compute, enum real_route route, size_t prompt);

/* The goldens' largest logits. */
void real_check_top(enum drllm_compute compute, enum real_route route, double bound);
/* All logits, and prints how far they are. */
void real_check_logits(enum drllm_compute compute, enum real_route route, double most_divergence,
                       double most_difference);

/* The choices of a line of routed.jsonl under the session's depth: how far their log-probabilities are from those that
 * `key` names. Returns how many there are. */
size_t real_score_line(struct drllm_session *session, const cJSON *line, const char *key,
                       double differences[REAL_MOST_CHOICES]);

/* Of alice.txt under the session's depth by llama.cpp's definition: chunks of 512 in order, the second half of each is
 * scored. Prints it. */
double real_perplexity(struct drllm_session *session, size_t most_chunks);

#endif
