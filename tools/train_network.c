#include "tools/train_network.h"

#include "quant/vec.h"
#include "runtime/math.h"
#include "tools/common.h"
#include "tools/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PANEL = NETWORK_PANEL,
    TILE = 4,                            /* rows of a product, or inputs of a gradient, at once */
    MOST_ROWS = DRLLM_ROUTER_MAX_WINDOWS /* that go through the network at once: what they need stays in the cache */
};

/* ---- Networks ---- */

static size_t round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static float *allocate_floats(size_t count, float value) {
    float *values = allocate(count, sizeof *values);
    for (size_t i = 0; i < count; i++) {
        values[i] = value;
    }
    return values;
}

void network_init(struct network *network, size_t n_inputs, size_t n_hidden) {
    *network = (struct network){.n_inputs = n_inputs,
                                .n_hidden = n_hidden,
                                .n_cols = round_up(n_inputs, TILE),
                                .n_units = round_up(n_hidden, PANEL)};
    network->n_weights = network->n_units * (network->n_cols + NETWORK_CLASSES);
    network->n_params = network->n_weights + network->n_units + NETWORK_CLASSES;
    network->params = allocate_floats(network->n_params, 0.0f);
    network->mean = allocate_floats(n_inputs, 0.0f);
    network->scale = allocate_floats(n_inputs, 1.0f);
}

void network_release(struct network *network) {
    free(network->params);
    free(network->mean);
    free(network->scale);
    *network = (struct network){.n_inputs = 0};
}

void network_copy_params(struct network *to, const struct network *from) {
    memcpy(to->params, from->params, from->n_params * sizeof *from->params);
}

size_t network_fc1_index(const struct network *network, size_t unit, size_t input) {
    return (unit / PANEL * network->n_cols + input) * PANEL + unit % PANEL;
}

size_t network_fc2_index(const struct network *network, size_t class, size_t unit) {
    return network->n_units * (network->n_cols + class) + unit;
}

size_t network_bias1_index(const struct network *network, size_t unit) {
    return network->n_weights + unit;
}

size_t network_bias2_index(const struct network *network, size_t class) {
    return network->n_weights + network->n_units + class;
}

void network_randomise(struct network *network, uint64_t *random) {
    const double bound1 = 1.0 / sqrt((double)network->n_inputs);
    const double bound2 = 1.0 / sqrt((double)network->n_hidden);
    for (size_t i = 0; i < network->n_hidden; i++) {
        for (size_t j = 0; j < network->n_inputs; j++) {
            network->params[network_fc1_index(network, i, j)] = (float)((2.0 * random_uniform(random) - 1.0) * bound1);
        }
        network->params[network_bias1_index(network, i)] = (float)((2.0 * random_uniform(random) - 1.0) * bound1);
    }
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        for (size_t j = 0; j < network->n_hidden; j++) {
            network->params[network_fc2_index(network, i, j)] = (float)((2.0 * random_uniform(random) - 1.0) * bound2);
        }
        network->params[network_bias2_index(network, i)] = (float)((2.0 * random_uniform(random) - 1.0) * bound2);
    }
}

void network_rule_out(struct network *network, size_t class) {
    for (size_t i = 0; i < network->n_hidden; i++) {
        network->params[network_fc2_index(network, class, i)] = 0.0f;
    }
    /* Its probability, and so its gradient, is next to nothing. */
    network->params[network_bias2_index(network, class)] = -2.0f * NETWORK_CERTAIN;
}

void network_make_constant(struct network *network, size_t label) {
    memset(network->params, 0, network->n_params * sizeof *network->params);
    network->params[network_bias2_index(network, label)] = NETWORK_CERTAIN;
}

void network_fold(const struct network *network, float *fc1, float *bias1, float *fc2, float *bias2) {
    for (size_t i = 0; i < network->n_hidden; i++) {
        double bias = (double)network->params[network_bias1_index(network, i)];
        for (size_t j = 0; j < network->n_inputs; j++) {
            const double weight = (double)network->params[network_fc1_index(network, i, j)] * (double)network->scale[j];
            bias -= weight * (double)network->mean[j];
            fc1[i * network->n_inputs + j] = (float)weight;
        }
        bias1[i] = (float)bias;
    }
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        for (size_t j = 0; j < network->n_hidden; j++) {
            fc2[i * network->n_hidden + j] = network->params[network_fc2_index(network, i, j)];
        }
        bias2[i] = network->params[network_bias2_index(network, i)];
    }
}

/* ---- Kernels ---- */

/* y [TILE][PANEL] = bias + a tile of rows x [n_cols][TILE] times one panel of fc1. */
static void multiply_tile(const float *restrict x, const float *restrict weights, const float *restrict bias,
                          size_t n_cols, float *restrict y) {
    float sums[TILE][PANEL];
    for (size_t i = 0; i < TILE; i++) {
        memcpy(sums[i], bias, sizeof sums[i]);
    }
    for (size_t k = 0; k < n_cols; k++) {
        for (size_t i = 0; i < TILE; i++) {
            const float value = x[k * TILE + i];
            for (size_t j = 0; j < PANEL; j++) {
                sums[i][j] += value * weights[k * PANEL + j];
            }
        }
    }
    memcpy(y, sums, sizeof sums);
}

/* TILE inputs of one panel's gradient: [TILE][PANEL] += the inputs' values in all rows, those of the first tile of rows at
 * x [TILE][TILE], times the slopes [n_rows][PANEL]. */
static void add_outer_tile(const float *restrict x, const float *restrict slopes, size_t n_rows, size_t n_cols,
                           float *restrict gradient) {
    float sums[TILE][PANEL];
    memcpy(sums, gradient, sizeof sums);
    for (size_t row = 0; row < n_rows; row++) {
        const float *values = x + row / TILE * TILE * n_cols + row % TILE;
        for (size_t i = 0; i < TILE; i++) {
            const float value = values[i * TILE];
            for (size_t j = 0; j < PANEL; j++) {
                sums[i][j] += value * slopes[row * PANEL + j];
            }
        }
    }
    memcpy(gradient, sums, sizeof sums);
}

/* x becomes gelu(x), in the tanh form x * sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3); slope: its derivative. */
static void gelu(float *restrict x, float *restrict slope, size_t n) {
    const float twice_root = 1.5957691216f; /* 2 sqrt(2/pi) */
    for (size_t i = 0; i < n; i++) {
        const float square = x[i] * x[i];
        const float share = 1.0f / (1.0f + drllm_expf(-twice_root * x[i] * (1.0f + 0.044715f * square)));
        slope[i] = share + x[i] * share * (1.0f - share) * twice_root * (1.0f + 0.134145f * square);
        x[i] = x[i] * share;
    }
}

/* ---- Forward and backward ---- */

struct network_room {
    float *x;      /* [MOST_ROWS / TILE][n_cols][TILE] */
    float *hidden; /* [n_units / PANEL][MOST_ROWS][PANEL]: fc1's output, then its GELU */
    float *slope;  /* the same: GELU's derivative there, then the loss's by fc1's output */
    float *mean;   /* [MOST_ROWS samples][n_units]: of a sample's windows */
};

struct network_room *network_room_open(size_t n_inputs, size_t n_hidden) {
    struct network_room *room = allocate(1, sizeof *room);
    const size_t n_units = round_up(n_hidden, PANEL);
    room->x = allocate_floats(MOST_ROWS * round_up(n_inputs, TILE), 0.0f);
    room->hidden = allocate_floats(MOST_ROWS * n_units, 0.0f);
    room->slope = allocate_floats(MOST_ROWS * n_units, 0.0f);
    room->mean = allocate_floats(MOST_ROWS * n_units, 0.0f);
    return room;
}

void network_room_close(struct network_room *room) {
    if (room != NULL) {
        free(room->x);
        free(room->hidden);
        free(room->slope);
        free(room->mean);
        free(room);
    }
}

/* Samples whose windows go through the network together. */
struct group {
    const struct sample *samples;
    size_t n_samples;
    size_t n_rows; /* with rows of zeros up to a multiple of TILE */
};

/* As many of the samples as there is room for. */
static struct group take_group(const struct sample *samples, size_t n_samples) {
    struct group group = {.samples = samples};
    while (group.n_samples < n_samples && group.n_rows + samples[group.n_samples].n_windows <= MOST_ROWS) {
        group.n_rows += samples[group.n_samples++].n_windows;
    }
    return group;
}

/* One row of a tile. */
static void standardise(const struct network *network, const float *restrict x, float *restrict y) {
    const float *restrict mean = network->mean;
    const float *restrict scale = network->scale;
    for (size_t i = 0; i < network->n_inputs; i++) {
        y[i * TILE] = (x[i] - mean[i]) * scale[i];
    }
}

static float *row_of(const struct network *network, struct network_room *room, size_t row) {
    return room->x + row / TILE * TILE * network->n_cols + row % TILE;
}

static void gather(const struct network *network, struct network_room *room, struct group *group) {
    size_t row = 0;
    for (size_t i = 0; i < group->n_samples; i++) {
        for (size_t j = 0; j < group->samples[i].n_windows; j++) {
            standardise(network, group->samples[i].rows + j * network->n_inputs, row_of(network, room, row++));
        }
    }
    for (; group->n_rows % TILE != 0; group->n_rows++) {
        float *zeros = row_of(network, room, row++);
        for (size_t i = 0; i < network->n_cols; i++) {
            zeros[i * TILE] = 0.0f;
        }
    }
}

static void run_fc1(const struct network *network, struct network_room *room, size_t n_rows) {
    const size_t n_panels = network->n_units / PANEL;
    for (size_t panel = 0; panel < n_panels; panel++) {
        const float *weights = network->params + panel * network->n_cols * PANEL;
        const float *bias = network->params + network->n_weights + panel * PANEL;
        float *hidden = room->hidden + panel * MOST_ROWS * PANEL;
        for (size_t row = 0; row < n_rows; row += TILE) {
            multiply_tile(room->x + row * network->n_cols, weights, bias, network->n_cols, hidden + row * PANEL);
        }
        gelu(hidden, room->slope + panel * MOST_ROWS * PANEL, n_rows * PANEL);
    }
}

static void average_windows(const struct network *network, struct network_room *room, const struct group *group) {
    size_t row = 0;
    for (size_t i = 0; i < group->n_samples; i++) {
        const size_t n_windows = group->samples[i].n_windows;
        for (size_t unit = 0; unit < network->n_units; unit++) {
            const float *hidden = room->hidden + (unit / PANEL * MOST_ROWS + row) * PANEL + unit % PANEL;
            float sum = 0.0f;
            for (size_t j = 0; j < n_windows; j++) {
                sum += hidden[j * PANEL];
            }
            room->mean[i * network->n_units + unit] = sum / (float)n_windows;
        }
        row += n_windows;
    }
}

static void run_fc2(const struct network *network, const float *mean, double logits[NETWORK_CLASSES]) {
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        const float *weights = network->params + network_fc2_index(network, i, 0);
        double sum = (double)network->params[network_bias2_index(network, i)];
        for (size_t j = 0; j < network->n_units; j++) {
            sum += (double)weights[j] * (double)mean[j];
        }
        logits[i] = sum;
    }
}

static void run_group(const struct network *network, struct network_room *room, struct group *group) {
    gather(network, room, group);
    run_fc1(network, room, group->n_rows);
    average_windows(network, room, group);
}

void network_logits(const struct network *network, struct network_room *room, const struct sample *samples,
                    size_t n_samples, double (*logits)[NETWORK_CLASSES]) {
    for (size_t done = 0; done < n_samples;) {
        struct group group = take_group(samples + done, n_samples - done);
        run_group(network, room, &group);
        for (size_t i = 0; i < group.n_samples; i++) {
            run_fc2(network, room->mean + i * network->n_units, logits[done + i]);
        }
        done += group.n_samples;
    }
}

/* One sample's slopes of its logits, as float: into the gradient of fc2 and into room->slope, whose rows of the sample
 * begin at `row`. */
static void backward_sample(const struct network *network, struct network_room *room, const float *mean, size_t row,
                            size_t n_windows, const float by_logits[NETWORK_CLASSES], struct network *gradient) {
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        float *fc2 = gradient->params + network_fc2_index(gradient, i, 0);
        for (size_t unit = 0; unit < network->n_units; unit++) {
            fc2[unit] += by_logits[i] * mean[unit];
        }
        gradient->params[network_bias2_index(gradient, i)] += by_logits[i];
    }
    const float *fc2 = network->params + network_fc2_index(network, 0, 0);
    for (size_t unit = 0; unit < network->n_units; unit++) {
        float *slope = room->slope + (unit / PANEL * MOST_ROWS + row) * PANEL + unit % PANEL;
        float by_mean = 0.0f;
        for (size_t i = 0; i < NETWORK_CLASSES; i++) {
            by_mean += by_logits[i] * fc2[i * network->n_units + unit];
        }
        by_mean /= (float)n_windows;
        for (size_t j = 0; j < n_windows; j++) {
            slope[j * PANEL] *= by_mean;
            gradient->params[network_bias1_index(gradient, unit)] += slope[j * PANEL];
        }
    }
}

static void backward_fc1(const struct network *network, const struct network_room *room, size_t n_rows,
                         struct network *gradient) {
    for (size_t panel = 0; panel < network->n_units / PANEL; panel++) {
        const float *slopes = room->slope + panel * MOST_ROWS * PANEL;
        float *sums = gradient->params + panel * network->n_cols * PANEL;
        for (size_t col = 0; col < network->n_cols; col += TILE) {
            add_outer_tile(room->x + col * TILE, slopes, n_rows, network->n_cols, sums + col * PANEL);
        }
    }
}

double network_gradient(const struct network *network, struct network_room *room, const struct sample *samples,
                        size_t n_samples, double gamma, struct network *gradient) {
    double loss = 0.0;
    memset(gradient->params, 0, gradient->n_params * sizeof *gradient->params);
    for (size_t done = 0; done < n_samples;) {
        struct group group = take_group(samples + done, n_samples - done);
        run_group(network, room, &group);
        size_t row = 0;
        for (size_t i = 0; i < group.n_samples; i++) {
            const struct sample *sample = &group.samples[i];
            const float *mean = room->mean + i * network->n_units;
            double logits[NETWORK_CLASSES], slopes[NETWORK_CLASSES];
            float by_logits[NETWORK_CLASSES];
            run_fc2(network, mean, logits);
            loss += sample->weight * focal_loss(logits, sample->label, gamma, slopes);
            for (size_t j = 0; j < NETWORK_CLASSES; j++) {
                by_logits[j] = (float)(sample->weight * slopes[j] / (double)n_samples);
            }
            backward_sample(network, room, mean, row, sample->n_windows, by_logits, gradient);
            row += sample->n_windows;
        }
        for (; row < group.n_rows; row++) { /* the rows of zeros */
            for (size_t panel = 0; panel < network->n_units / PANEL; panel++) {
                memset(room->slope + (panel * MOST_ROWS + row) * PANEL, 0, PANEL * sizeof *room->slope);
            }
        }
        backward_fc1(network, room, group.n_rows, gradient);
        done += group.n_samples;
    }
    return loss;
}

/* ---- Loss ---- */

double focal_loss(const double logits[NETWORK_CLASSES], size_t label, double gamma, double gradient[NETWORK_CLASSES]) {
    double p[NETWORK_CLASSES];
    double most = logits[0];
    for (size_t i = 1; i < NETWORK_CLASSES; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    double sum = 0.0, others = 0.0;
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        p[i] = drllm_exp(logits[i] - most);
        sum += p[i];
        others += i != label ? p[i] : 0.0;
    }
    const double missing = others / sum; /* 1 - p, also where p is next to 1 */
    const double log_p = logits[label] - most - drllm_log(sum);
    const bool is_certain = missing < 1e-300;
    const double power = is_certain ? 0.0 : drllm_exp(gamma * drllm_log(missing)); /* (1 - p)^gamma */
    const double by_label = is_certain ? 0.0 : gamma * power / missing * (p[label] / sum) * log_p - power;
    for (size_t i = 0; gradient != NULL && i < NETWORK_CLASSES; i++) {
        gradient[i] = by_label * ((i == label ? 1.0 : 0.0) - p[i] / sum);
    }
    return -power * log_p;
}

void class_weights(const size_t counts[NETWORK_CLASSES], double weights[NETWORK_CLASSES]) {
    double n = 0.0, least = 0.0, sum = 0.0;
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        n += (double)counts[i];
    }
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        /* E / N = 1 - (1 - 1/N)^count; the factor does not matter. */
        const double log_beta = n > 1.0 ? drllm_log(1.0 - 1.0 / n) : -700.0;
        weights[i] = counts[i] == 0 ? 0.0 : 1.0 / (1.0 - drllm_exp((double)counts[i] * log_beta));
        least = counts[i] != 0 && (least == 0.0 || weights[i] < least) ? weights[i] : least;
    }
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        weights[i] = weights[i] > CLASS_WEIGHT_CAP * least ? CLASS_WEIGHT_CAP * least : weights[i];
        sum += weights[i] * (double)counts[i];
    }
    for (size_t i = 0; i < NETWORK_CLASSES && n > 0.0; i++) {
        weights[i] *= n / sum;
    }
}

/* ---- AdamW ---- */

static const double beta_first = 0.9, beta_second = 0.999, epsilon = 1e-8;

void adamw_init(struct adamw *adamw, size_t n_params, size_t n_decayed, double decay) {
    *adamw = (struct adamw){.n_params = n_params,
                            .n_decayed = n_decayed,
                            .first = allocate_floats(n_params, 0.0f),
                            .second = allocate_floats(n_params, 0.0f),
                            .power_first = 1.0,
                            .power_second = 1.0,
                            .decay = decay};
}

void adamw_release(struct adamw *adamw) {
    free(adamw->first);
    free(adamw->second);
    *adamw = (struct adamw){.n_params = 0};
}

struct step {
    float rate, root_correction, decay;
};

static void step_range(const struct step *step, float *restrict params, const float *restrict gradient,
                       float *restrict first, float *restrict second, size_t n) {
    const float keep1 = (float)beta_first, keep2 = (float)beta_second;
    const float add1 = (float)(1.0 - beta_first), add2 = (float)(1.0 - beta_second);
    const float rate = step->rate, root = step->root_correction, kept = 1.0f - step->decay;
    for (size_t i = 0; i < n; i++) {
        first[i] = keep1 * first[i] + add1 * gradient[i];
        second[i] = keep2 * second[i] + add2 * (gradient[i] * gradient[i]);
        params[i] = kept * params[i] - rate * first[i] / (sqrtf(second[i]) * root + (float)epsilon);
    }
}

void adamw_step(struct adamw *adamw, float *params, const float *gradient, double rate) {
    adamw->power_first *= beta_first;
    adamw->power_second *= beta_second;
    struct step step = {.rate = (float)(rate / (1.0 - adamw->power_first)),
                        .root_correction = (float)(1.0 / sqrt(1.0 - adamw->power_second)),
                        .decay = (float)(rate * adamw->decay)};
    const size_t n = adamw->n_decayed;
    step_range(&step, params, gradient, adamw->first, adamw->second, n);
    step.decay = 0.0f;
    step_range(&step, params + n, gradient + n, adamw->first + n, adamw->second + n, adamw->n_params - n);
}

double learning_rate(double peak, size_t step, size_t n_steps) {
    const double pi = 3.14159265358979323846;
    const size_t warm = n_steps / 20;
    if (step < warm) {
        return peak * (double)(step + 1) / (double)(warm + 1);
    }
    double sine, cosine;
    drllm_sin_cos(pi * (double)(step - warm) / (double)(n_steps - warm), &sine, &cosine);
    return peak * 0.5 * (1.0 + cosine);
}
