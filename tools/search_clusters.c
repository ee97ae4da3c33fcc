#include "tools/search_clusters.h"

#include "runtime/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct features {
    const struct questions *questions;
    size_t n_layers, d_model;
    size_t layer;
    float *values; /* [questions][d_model] */
};

static int compute_feature(void *user, size_t worker, struct drllm_session *session, size_t index) {
    const struct features *features = user;
    const struct tokens *prompt = &features->questions->items[index].prompt_tokens;
    uint8_t *full = allocate(features->n_layers, 1);
    struct drllm_probe *probe = NULL;
    (void)worker;
    memset(full, 1, features->n_layers);
    memset(full + features->layer, 0, features->n_layers - features->layer); /* nothing behind is looked at */
    int status = drllm_probe_open(session, prompt->ids, prompt->count, NULL, 0, &probe);
    if (status == DRLLM_OK) {
        status = drllm_probe_run(probe, full, 0, true, NULL);
    }
    if (status == DRLLM_OK) {
        const float *hidden = drllm_probe_hidden(probe, features->layer);
        float *value = features->values + index * features->d_model;
        memset(value, 0, features->d_model * sizeof *value);
        for (size_t i = 0; i < prompt->count * features->d_model; i++) {
            value[i % features->d_model] += hidden[i] / (float)prompt->count;
        }
    }
    drllm_probe_close(probe);
    free(full);
    return status;
}

/* Every dimension to mean 0 and deviation 1, so that no outlier channel decides alone. */
static void standardise(const struct features *features) {
    const size_t n = features->questions->count;
    for (size_t j = 0; j < features->d_model; j++) {
        double sum = 0.0;
        double squares = 0.0;
        for (size_t i = 0; i < n; i++) {
            const double value = (double)features->values[i * features->d_model + j];
            sum += value;
            squares += value * value;
        }
        const double mean = sum / (double)n;
        const double deviation = sqrt(fmax(squares / (double)n - mean * mean, 1e-12));
        for (size_t i = 0; i < n; i++) {
            float *value = &features->values[i * features->d_model + j];
            *value = (float)(((double)*value - mean) / deviation);
        }
    }
}

/* ---- k-means, with the first centres chosen as in k-means++ (Arthur and Vassilvitskii 2007) ---- */

static double distance(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double difference = (double)a[i] - (double)b[i];
        sum += difference * difference;
    }
    return sum;
}

static double next_uniform(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return (double)(*state >> 11) * 0x1p-53;
}

static void choose_centres(const struct features *features, size_t k, uint64_t seed, float *centres) {
    const size_t n = features->questions->count;
    const size_t d = features->d_model;
    double *nearest = allocate(n, sizeof *nearest);
    uint64_t random = seed ^ 0x9e3779b97f4a7c15u;
    size_t chosen = (size_t)(next_uniform(&random) * (double)n);
    for (size_t c = 0; c < k; c++) {
        memcpy(centres + c * d, features->values + chosen * d, d * sizeof *centres);
        double total = 0.0;
        for (size_t i = 0; i < n; i++) {
            const double now = distance(features->values + i * d, centres + c * d, d);
            nearest[i] = c == 0 || now < nearest[i] ? now : nearest[i];
            total += nearest[i];
        }
        double left = next_uniform(&random) * total;
        for (chosen = 0; chosen + 1 < n && left >= nearest[chosen]; chosen++) {
            left -= nearest[chosen];
        }
    }
    free(nearest);
}

/* Whether a question changed its cluster. */
static bool assign(const struct features *features, size_t k, const float *centres, size_t *cluster_of) {
    const size_t d = features->d_model;
    bool changed = false;
    for (size_t i = 0; i < features->questions->count; i++) {
        size_t best = 0;
        double least = INFINITY;
        for (size_t c = 0; c < k; c++) {
            const double now = distance(features->values + i * d, centres + c * d, d);
            if (now < least) {
                least = now;
                best = c;
            }
        }
        changed = changed || cluster_of[i] != best;
        cluster_of[i] = best;
    }
    return changed;
}

static void move_centres(const struct features *features, size_t k, const size_t *cluster_of, float *centres) {
    const size_t d = features->d_model;
    size_t *sizes = allocate(k, sizeof *sizes);
    memset(sizes, 0, k * sizeof *sizes);
    for (size_t i = 0; i < features->questions->count; i++) {
        float *centre = centres + cluster_of[i] * d;
        const float weight = 1.0F / (float)++sizes[cluster_of[i]];
        for (size_t j = 0; j < d; j++) {
            /* A running mean, so that a cluster which loses all its questions keeps its centre. */
            const float value = features->values[i * d + j];
            centre[j] = sizes[cluster_of[i]] == 1 ? value : centre[j] + weight * (value - centre[j]);
        }
    }
    free(sizes);
}

int cluster_questions(const struct command *command, struct workers *workers, const struct drllm_model *model,
                      const struct questions *questions, size_t k, uint64_t seed, size_t *cluster_of) {
    enum { MOST_ROUNDS = 100 };
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    struct features features = {
        .questions = questions, .n_layers = info.n_layers, .d_model = info.d_model, .layer = info.n_layers / 3};
    features.values = allocate(questions->count * info.d_model, sizeof *features.values);
    const int status = workers_run(workers, compute_feature, &features, questions->count);
    if (status == DRLLM_OK) {
        float *centres = allocate(k * info.d_model, sizeof *centres);
        standardise(&features);
        choose_centres(&features, k, seed, centres);
        memset(cluster_of, 0xff, questions->count * sizeof *cluster_of);
        for (size_t i = 0; i < MOST_ROUNDS && assign(&features, k, centres, cluster_of); i++) {
            move_centres(&features, k, cluster_of, centres);
        }
        free(centres);
    }
    free(features.values);
    return status == DRLLM_OK              ? TOOL_OK
           : status == DRLLM_ERR_CANCELLED ? TOOL_INTERRUPTED
                                           : report_status(command, "cannot compute a prompt", status, NULL);
}
