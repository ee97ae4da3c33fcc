/* Router training: the network's arithmetic against hand-made numbers and against double precision, training on data
 * whose classes are known, and `drllm train` from labels to a file that decides as they say. */
#include "tests/cli.h"
#include "tools/random.h"
#include "tools/train_measure.h"
#include "tools/train_report.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void expect_near(double value, double expected, double bound) {
    if (!(fabs(value - expected) <= bound)) {
        fail_msg("%.9g instead of %.9g", value, expected);
    }
}

/* ---- A small network ---- */

/* Sizes that no panel and no tile divides; more windows than go through the network at once. */
enum { SMALL_INPUTS = 5, SMALL_HIDDEN = 11, SMALL_SAMPLES = 23, MOST_WINDOWS = 8 };

struct small {
    struct network network, gradient;
    struct network_room *room;
    float rows[SMALL_SAMPLES][MOST_WINDOWS][SMALL_INPUTS];
    struct sample samples[SMALL_SAMPLES];
};

static float uniform(uint64_t *random, double low, double high) {
    return (float)(low + (high - low) * random_uniform(random));
}

static struct small *small_open(void) {
    struct small *small = calloc(1, sizeof *small);
    assert_non_null(small);
    uint64_t random = 7;
    network_init(&small->network, SMALL_INPUTS, SMALL_HIDDEN);
    network_init(&small->gradient, SMALL_INPUTS, SMALL_HIDDEN);
    network_randomise(&small->network, &random);
    for (size_t i = 0; i < SMALL_INPUTS; i++) {
        small->network.mean[i] = uniform(&random, -50.0, 50.0);
        small->network.scale[i] = uniform(&random, 0.1, 4.0);
    }
    for (size_t i = 0; i < SMALL_SAMPLES; i++) {
        small->samples[i] = (struct sample){.rows = small->rows[i][0],
                                            .n_windows = 1 + i % MOST_WINDOWS,
                                            .label = i % NETWORK_CLASSES,
                                            .weight = random_uniform(&random) + 0.5};
        for (size_t j = 0; j < (size_t)MOST_WINDOWS * SMALL_INPUTS; j++) {
            const size_t input = j % SMALL_INPUTS;
            small->rows[i][j / SMALL_INPUTS][input] =
                small->network.mean[input] + uniform(&random, -2.0, 2.0) / small->network.scale[input];
        }
    }
    small->room = network_room_open(SMALL_INPUTS, SMALL_HIDDEN);
    return small;
}

static void small_close(struct small *small) {
    network_release(&small->network);
    network_release(&small->gradient);
    network_room_close(small->room);
    free(small);
}

/* The same network in double precision, one product after the other as they are written down. */
static void reference_logits(const struct network *network, const double *params, const struct sample *sample,
                             double logits[NETWORK_CLASSES]) {
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        logits[i] = params[network_bias2_index(network, i)];
    }
    for (size_t window = 0; window < sample->n_windows; window++) {
        for (size_t unit = 0; unit < network->n_hidden; unit++) {
            double x = params[network_bias1_index(network, unit)];
            for (size_t i = 0; i < network->n_inputs; i++) {
                const double input = (double)sample->rows[window * network->n_inputs + i] - (double)network->mean[i];
                x += params[network_fc1_index(network, unit, i)] * input * (double)network->scale[i];
            }
            const double gelu = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
            for (size_t i = 0; i < NETWORK_CLASSES; i++) {
                logits[i] += params[network_fc2_index(network, i, unit)] * gelu / (double)sample->n_windows;
            }
        }
    }
}

static double reference_loss(const struct small *small, const double *params, double gamma) {
    double loss = 0.0;
    for (size_t i = 0; i < SMALL_SAMPLES; i++) {
        const struct sample *sample = &small->samples[i];
        double logits[NETWORK_CLASSES], sum = 0.0;
        reference_logits(&small->network, params, sample, logits);
        for (size_t j = 0; j < NETWORK_CLASSES; j++) {
            sum += exp(logits[j]);
        }
        const double p = exp(logits[sample->label]) / sum;
        loss -= sample->weight * pow(1.0 - p, gamma) * log(p);
    }
    return loss;
}

static double *double_params(const struct network *network) {
    double *params = calloc(network->n_params, sizeof *params);
    assert_non_null(params);
    for (size_t i = 0; i < network->n_params; i++) {
        params[i] = (double)network->params[i];
    }
    return params;
}

static void test_logits(void **state) {
    (void)state;
    struct small *small = small_open();
    double *params = double_params(&small->network);
    double logits[SMALL_SAMPLES][NETWORK_CLASSES];
    network_logits(&small->network, small->room, small->samples, SMALL_SAMPLES, logits);
    for (size_t i = 0; i < SMALL_SAMPLES; i++) {
        double expected[NETWORK_CLASSES];
        reference_logits(&small->network, params, &small->samples[i], expected);
        for (size_t j = 0; j < NETWORK_CLASSES; j++) {
            expect_near(logits[i][j], expected[j], 2e-6);
        }
    }
    free(params);
    small_close(small);
}

/* What is only there to fill up panels and tiles stays 0. */
static void expect_padding(const struct network *network, const float *values) {
    for (size_t unit = 0; unit < network->n_units; unit++) {
        for (size_t input = 0; input < network->n_cols; input++) {
            if (unit >= network->n_hidden || input >= network->n_inputs) {
                assert_true(values[network_fc1_index(network, unit, input)] == 0.0f);
            }
        }
        for (size_t i = 0; unit >= network->n_hidden && i < NETWORK_CLASSES; i++) {
            assert_true(values[network_fc2_index(network, i, unit)] == 0.0f);
        }
        assert_true(unit < network->n_hidden || values[network_bias1_index(network, unit)] == 0.0f);
    }
}

static bool is_padding(const struct network *network, size_t param) {
    for (size_t unit = 0; unit < network->n_hidden; unit++) {
        for (size_t input = 0; input < network->n_inputs; input++) {
            if (network_fc1_index(network, unit, input) == param) {
                return false;
            }
        }
        for (size_t i = 0; i < NETWORK_CLASSES; i++) {
            if (network_fc2_index(network, i, unit) == param) {
                return false;
            }
        }
        if (network_bias1_index(network, unit) == param) {
            return false;
        }
    }
    return param < network_bias2_index(network, 0);
}

static void check_gradient(double gamma) {
    const double step = 1e-5;
    struct small *small = small_open();
    double *params = double_params(&small->network);
    const double loss =
        network_gradient(&small->network, small->room, small->samples, SMALL_SAMPLES, gamma, &small->gradient);
    size_t n_checked = 0;
    expect_near(loss, reference_loss(small, params, gamma), 1e-5);
    expect_padding(&small->network, small->gradient.params);
    for (size_t i = 0; i < small->network.n_params; i++) {
        if (!is_padding(&small->network, i)) {
            const double value = params[i];
            params[i] = value + step;
            const double above = reference_loss(small, params, gamma);
            params[i] = value - step;
            const double below = reference_loss(small, params, gamma);
            params[i] = value;
            expect_near((double)small->gradient.params[i], (above - below) / (2.0 * step) / SMALL_SAMPLES, 1e-6);
            n_checked++;
        }
    }
    assert_int_equal(n_checked, SMALL_HIDDEN * (SMALL_INPUTS + NETWORK_CLASSES + 1) + NETWORK_CLASSES);
    free(params);
    small_close(small);
}

static void test_gradient(void **state) {
    (void)state;
    check_gradient(2.0);
    check_gradient(0.0);
    check_gradient(0.5);
}

/* Without a network: fold, then the products as the file's format says. */
static void test_folding(void **state) {
    (void)state;
    struct small *small = small_open();
    float fc1[SMALL_HIDDEN * SMALL_INPUTS], bias1[SMALL_HIDDEN], fc2[NETWORK_CLASSES * SMALL_HIDDEN];
    float bias2[NETWORK_CLASSES];
    struct network folded;
    double logits[SMALL_SAMPLES][NETWORK_CLASSES];
    network_fold(&small->network, fc1, bias1, fc2, bias2);
    network_logits(&small->network, small->room, small->samples, SMALL_SAMPLES, logits);
    network_init(&folded, SMALL_INPUTS, SMALL_HIDDEN); /* mean 0, scale 1 */
    double *params = calloc(folded.n_params, sizeof *params);
    assert_non_null(params);
    for (size_t i = 0; i < SMALL_HIDDEN; i++) {
        for (size_t j = 0; j < SMALL_INPUTS; j++) {
            params[network_fc1_index(&folded, i, j)] = (double)fc1[i * SMALL_INPUTS + j];
        }
        for (size_t j = 0; j < NETWORK_CLASSES; j++) {
            params[network_fc2_index(&folded, j, i)] = (double)fc2[j * SMALL_HIDDEN + i];
            params[network_bias2_index(&folded, j)] = (double)bias2[j];
        }
        params[network_bias1_index(&folded, i)] = (double)bias1[i];
    }
    for (size_t i = 0; i < SMALL_SAMPLES; i++) {
        double expected[NETWORK_CLASSES];
        reference_logits(&folded, params, &small->samples[i], expected);
        for (size_t j = 0; j < NETWORK_CLASSES; j++) {
            expect_near(logits[i][j], expected[j], 2e-5);
        }
    }
    free(params);
    network_release(&folded);
    small_close(small);
}

/* ---- Loss, weights, optimiser ---- */

static void test_focal_loss(void **state) {
    (void)state;
    const double alike[] = {0.5, 0.5, 0.5};
    double gradient[NETWORK_CLASSES];
    /* p = 1/3: (2/3)^2 ln 3; by the label's logit (2 (2/3) (1/3) ln(1/3) - (2/3)^2) (2/3). */
    expect_near(focal_loss(alike, 1, 2.0, gradient), 0.488272128, 1e-8);
    expect_near(gradient[1], -0.621811049, 1e-8);
    expect_near(gradient[0], 0.310905524, 1e-8);
    expect_near(gradient[2], 0.310905524, 1e-8);
    /* Cross-entropy. */
    expect_near(focal_loss(alike, 1, 0.0, gradient), 1.098612289, 1e-8);
    expect_near(gradient[1], -2.0 / 3.0, 1e-12);
    expect_near(gradient[2], 1.0 / 3.0, 1e-12);
    /* p = 3/4 of logits ln 6, 0, 0: (1/4)^2 ln(4/3). */
    const double likely[] = {1.791759469228055, 0.0, 0.0};
    expect_near(focal_loss(likely, 0, 2.0, NULL), 0.017980130, 1e-8);
    /* Far out all is finite. */
    const double certain[] = {1000.0, 0.0, 0.0};
    expect_near(focal_loss(certain, 0, 2.0, gradient), 0.0, 0.0);
    expect_near(fabs(gradient[0]) + fabs(gradient[1]) + fabs(gradient[2]), 0.0, 0.0);
    expect_near(focal_loss(certain, 0, 0.5, gradient), 0.0, 0.0);
    expect_near(fabs(gradient[0]), 0.0, 0.0);
    expect_near(focal_loss(certain, 1, 2.0, gradient), 1000.0, 1e-9);
    expect_near(gradient[0], 1.0, 1e-12);
    expect_near(gradient[1], -1.0, 1e-12);
    expect_near(gradient[2], 0.0, 1e-12);
}

static void check_weights(size_t a, size_t b, size_t c, double x, double y, double z) {
    const size_t counts[] = {a, b, c};
    double weights[NETWORK_CLASSES];
    class_weights(counts, weights);
    expect_near(weights[0], x, 1e-6);
    expect_near(weights[1], y, 1e-6);
    expect_near(weights[2], z, 1e-6);
}

static void test_class_weights(void **state) {
    (void)state;
    check_weights(0, 0, 0, 0, 0, 0);
    check_weights(0, 7, 0, 0, 1, 0);
    check_weights(1, 0, 0, 1, 0, 0);
    check_weights(5, 5, 0, 1, 1, 0);
    check_weights(20, 20, 20, 1, 1, 1);
    /* N = 4, beta = 3/4: E(1) = 1, E(3) = 37/16; 1 and 16/37 times 4 / (1 + 3 * 16/37). */
    check_weights(1, 3, 0, 1.741176471, 0.752941176, 0);
    /* The cap: 10 to 1, and a mean of 1. */
    check_weights(1, 99999, 0, 10.0 * 100000.0 / 100009.0, 100000.0 / 100009.0, 0);
}

static void test_adamw(void **state) {
    (void)state;
    struct adamw adamw;
    float params[] = {1.0f, -2.0f};
    const float first[] = {0.5f, -0.25f}, second[] = {0.0f, 0.0f};
    adamw_init(&adamw, 2, 1, 0.01);
    /* The corrected moments are g and g^2: a step of the rate, after a decay of rate * 0.01 of the first one. */
    adamw_step(&adamw, params, first, 0.1);
    expect_near((double)params[0], 0.899, 1e-6);
    expect_near((double)params[1], -1.9, 1e-6);
    /* 0.09 g / 0.19 by sqrt(0.000999 g^2 / 0.001999): 0.670058. */
    adamw_step(&adamw, params, second, 0.1);
    expect_near((double)params[0], 0.8310952, 1e-6);
    expect_near((double)params[1], -1.8329942, 1e-6);
    adamw_release(&adamw);
}

static void test_learning_rate(void **state) {
    (void)state;
    expect_near(learning_rate(0.6, 0, 100), 0.1, 1e-12); /* five steps of warm-up */
    expect_near(learning_rate(0.6, 4, 100), 0.5, 1e-12);
    expect_near(learning_rate(0.6, 5, 100), 0.6, 1e-12);
    expect_near(learning_rate(0.6, 5 + 95 / 5, 100), 0.6 * 0.5 * (1.0 + cos(0.2 * 3.14159265358979)), 1e-9);
    assert_true(learning_rate(0.6, 99, 100) < 0.001 && learning_rate(0.6, 99, 100) > 0.0);
    expect_near(learning_rate(0.6, 0, 1), 0.6, 1e-12);
}

/* ---- Training ---- */

enum { TOY_INPUTS = 6, TOY_TRAIN = 150, TOY_VALID = 60, TOY_SAMPLES = TOY_TRAIN + TOY_VALID };

struct toy {
    float rows[TOY_SAMPLES][MOST_WINDOWS][TOY_INPUTS];
    struct sample samples[TOY_SAMPLES];
};

/* The class is in which of three channels is high, on top of means a thousand times as large; one channel is constant. */
static struct toy *toy_make(uint64_t random) {
    struct toy *toy = calloc(1, sizeof *toy);
    assert_non_null(toy);
    for (size_t i = 0; i < TOY_SAMPLES; i++) {
        const size_t label = i % NETWORK_CLASSES;
        toy->samples[i] =
            (struct sample){.rows = toy->rows[i][0], .n_windows = 1 + i % MOST_WINDOWS, .label = label, .weight = 1.0};
        for (size_t j = 0; j < (size_t)MOST_WINDOWS * TOY_INPUTS; j++) {
            const size_t input = j % TOY_INPUTS;
            const float mean = 1000.0f * (float)input;
            const float noise = input == TOY_INPUTS - 1 ? 0.0f : uniform(&random, -0.4, 0.4);
            toy->rows[i][j / TOY_INPUTS][input] = mean + noise + (input == label ? 1.0f : 0.0f);
        }
    }
    return toy;
}

static struct train_params toy_params(void) {
    return (struct train_params){
        .n_epochs = 40, .n_hidden = 10, .rate = 1e-2, .decay = 0.01, .gamma = 2.0, .guard_weight = 1.0, .seed = 3};
}

static size_t count_right(const struct network *network, const struct sample *samples, size_t n) {
    struct network_room *room = network_room_open(network->n_inputs, network->n_hidden);
    size_t n_right = 0;
    for (size_t i = 0; i < n; i++) {
        double logits[1][NETWORK_CLASSES];
        network_logits(network, room, &samples[i], 1, logits);
        const float as_float[] = {(float)logits[0][0], (float)logits[0][1], (float)logits[0][2]};
        n_right += decided_class(as_float) == samples[i].label;
    }
    network_room_close(room);
    return n_right;
}

static void test_separable(void **state) {
    (void)state;
    struct toy *toy = toy_make(11);
    const struct train_params params = toy_params();
    struct trained_block block;
    assert_true(block_train(&params, 0, toy->samples, TOY_TRAIN, TOY_VALID, TOY_INPUTS, NULL, NULL, &block));
    assert_int_equal(count_right(&block.network, toy->samples, TOY_SAMPLES), TOY_SAMPLES);
    assert_false(block.is_constant);
    assert_int_equal(block.n_epochs, params.n_epochs);
    assert_true(block.train_loss[params.n_epochs - 1] < 0.1 * block.train_loss[0]);
    for (size_t i = 0; i < params.n_epochs; i++) {
        assert_true(block.valid_loss[i] >= block.valid_loss[block.best_epoch - 1]);
    }
    assert_true(block.network.scale[TOY_INPUTS - 1] == 0.0f);
    expect_padding(&block.network, block.network.params);
    trained_block_release(&block);
    free(toy);
}

/* Validation labels that are the opposite of the training's get worse with every epoch. */
static void test_best_epoch(void **state) {
    (void)state;
    struct toy *toy = toy_make(12);
    const struct train_params params = toy_params();
    struct trained_block block;
    for (size_t i = TOY_TRAIN; i < TOY_SAMPLES; i++) {
        toy->samples[i].label = (toy->samples[i].label + 1) % NETWORK_CLASSES;
    }
    assert_true(block_train(&params, 0, toy->samples, TOY_TRAIN, TOY_VALID, TOY_INPUTS, NULL, NULL, &block));
    assert_true(block.best_epoch < params.n_epochs / 4);
    trained_block_release(&block);
    /* Without validation the last one is kept. */
    struct toy *again = toy_make(12);
    assert_true(block_train(&params, 0, again->samples, TOY_TRAIN, 0, TOY_INPUTS, NULL, NULL, &block));
    assert_int_equal(block.best_epoch, params.n_epochs);
    assert_int_equal(count_right(&block.network, again->samples, TOY_TRAIN), TOY_TRAIN);
    trained_block_release(&block);
    free(again);
    free(toy);
}

static bool never(void *user) {
    ++*(size_t *)user;
    return false;
}

static void test_constant_and_stopped(void **state) {
    (void)state;
    struct toy *toy = toy_make(13);
    const struct train_params params = toy_params();
    struct trained_block block;
    size_t n_calls = 0;
    assert_false(block_train(&params, 0, toy->samples, TOY_TRAIN, TOY_VALID, TOY_INPUTS, never, &n_calls, &block));
    assert_int_equal(n_calls, 1);
    assert_int_equal(block.n_epochs, 1);
    trained_block_release(&block);
    for (size_t label = 0; label < NETWORK_CLASSES; label++) {
        for (size_t i = 0; i < TOY_SAMPLES; i++) {
            toy->samples[i].label = label;
        }
        assert_true(block_train(&params, 0, toy->samples, TOY_TRAIN, TOY_VALID, TOY_INPUTS, NULL, NULL, &block));
        assert_true(block.is_constant);
        assert_int_equal(block.best_epoch, 0);
        assert_int_equal(count_right(&block.network, toy->samples, TOY_SAMPLES), TOY_SAMPLES);
        trained_block_release(&block);
    }
    free(toy);
}

/* ---- Several blocks on several threads ---- */

enum { N_BLOCKS = 5 };

struct blocks {
    uint8_t windows[TOY_SAMPLES], counts[TOY_SAMPLES][N_BLOCKS];
    struct example items[TOY_SAMPLES];
    struct examples examples;
    struct features file;
};

/* Block 2 has one class, the others have three, each in an order of its own. */
static struct blocks *blocks_make(void) {
    struct blocks *blocks = calloc(1, sizeof *blocks);
    assert_non_null(blocks);
    /* A file, since pages of a mapping are given back behind each block. */
    char path[CLI_PATH_BYTES];
    FILE *file = fopen(cli_path("blocks", path), "wb");
    assert_non_null(file);
    for (size_t i = 0; i < N_BLOCKS; i++) {
        struct toy *toy = toy_make(20 + i);
        assert_int_equal(fwrite(toy->rows, sizeof toy->rows, 1, file), 1);
        free(toy);
    }
    assert_int_equal(fclose(file), 0);
    for (size_t i = 0; i < TOY_SAMPLES; i++) {
        blocks->windows[i] = (uint8_t)(1 + i % MOST_WINDOWS);
        for (size_t j = 0; j < N_BLOCKS; j++) {
            blocks->counts[i][j] = j == 2 ? 1 : (uint8_t)((i + j) % NETWORK_CLASSES);
        }
        blocks->items[i] =
            (struct example){.counts = blocks->counts[i], .role = i < TOY_TRAIN ? ROLE_LABELS : ROLE_VALID};
    }
    blocks->examples =
        (struct examples){.n_layers = N_BLOCKS, .items = blocks->items, .count = TOY_SAMPLES, .n_train = TOY_TRAIN};
    blocks->file = (struct features){.n_examples = TOY_SAMPLES,
                                     .n_layers = N_BLOCKS,
                                     .d_model = TOY_INPUTS,
                                     .n_windows = MOST_WINDOWS,
                                     .windows = blocks->windows};
    assert_int_equal(drllm_file_map_path(path, &blocks->file.map), 0);
    return blocks;
}

static void blocks_free(struct blocks *blocks) {
    drllm_file_unmap(&blocks->file.map);
    free(blocks);
}

static struct router_set train_blocks(const struct blocks *blocks, unsigned n_threads, uint64_t seed,
                                      struct trained *trained) {
    struct train_params params = toy_params();
    struct drllm_threads *threads = drllm_threads_create(n_threads);
    struct router_set set;
    params.seed = seed;
    params.n_epochs = 5;
    assert_non_null(threads);
    assert_int_equal(trained_make(&params, &blocks->examples, &blocks->file, threads, trained), TOOL_OK);
    trained_fold(trained, &set);
    drllm_threads_destroy(threads);
    return set;
}

static bool same_weights(const struct router_set *a, const struct router_set *b, size_t layer) {
    const size_t n = a->n_hidden * a->d_model;
    return memcmp(a->fc1 + layer * n, b->fc1 + layer * n, n * sizeof *a->fc1) == 0 &&
           memcmp(a->fc2 + layer * 3 * a->n_hidden, b->fc2 + layer * 3 * a->n_hidden,
                  3 * a->n_hidden * sizeof *a->fc2) == 0;
}

static void test_determinism(void **state) {
    (void)state;
    struct blocks *blocks = blocks_make();
    struct trained trained[4];
    struct router_set sets[4];
    for (size_t i = 0; i < COUNT(sets); i++) {
        sets[i] = train_blocks(blocks, i == 1 ? 3 : i == 2 ? 8 : 1, i == 3 ? 6 : 5, &trained[i]);
    }
    for (size_t layer = 0; layer < N_BLOCKS; layer++) {
        assert_true(same_weights(&sets[0], &sets[1], layer));
        assert_true(same_weights(&sets[0], &sets[2], layer));
        assert_int_equal(same_weights(&sets[0], &sets[3], layer), layer == 2);
    }
    const size_t n_logits = (size_t)N_BLOCKS * TOY_SAMPLES * NETWORK_CLASSES;
    assert_memory_equal(trained[0].logits, trained[1].logits, n_logits * sizeof(float));
    assert_true(trained[0].blocks[2].is_constant);
    for (size_t i = 0; i < COUNT(sets); i++) {
        router_set_release(&sets[i]);
        trained_release(&trained[i]);
    }
    blocks_free(blocks);
}

static void test_biases(void **state) {
    (void)state;
    struct blocks *blocks = blocks_make();
    struct trained trained;
    struct router_set set = train_blocks(blocks, 1, 1, &trained);
    size_t items[TOY_VALID];
    for (size_t i = 0; i < TOY_VALID; i++) {
        items[i] = TOY_TRAIN + i;
    }
    float *biases;
    const size_t n = calibration_biases(&trained, items, TOY_VALID, &biases);
    bool has_zero = false;
    assert_true(n >= 15 && n <= 25);
    for (size_t i = 0; i < n; i++) {
        assert_true(i == 0 || biases[i] > biases[i - 1]);
        assert_true(biases[i] * 64.0f == roundf(biases[i] * 64.0f) && fabsf(biases[i]) <= NETWORK_CERTAIN);
        has_zero = has_zero || biases[i] == 0.0f;
    }
    assert_true(has_zero);
    free(biases);
    router_set_release(&set);
    trained_release(&trained);
    blocks_free(blocks);
}

static void check_rising(const double *values, const double *expected, size_t n) {
    double copy[8];
    memcpy(copy, values, n * sizeof *values);
    make_rising(copy, n);
    for (size_t i = 0; i < n; i++) {
        expect_near(copy[i], expected[i], 1e-12);
    }
}

static void test_rising(void **state) {
    (void)state;
    check_rising((const double[]){5}, (const double[]){5}, 1);
    check_rising((const double[]){1, 2, 2, 3}, (const double[]){1, 2, 2, 3}, 4);
    check_rising((const double[]){1, 3, 2, 4}, (const double[]){1, 2.5, 2.5, 4}, 4);
    check_rising((const double[]){3, 2, 1}, (const double[]){2, 2, 2}, 3);
    check_rising((const double[]){1, 5, 4, 0, 6}, (const double[]){1, 3, 3, 3, 6}, 5);
}

/* ---- Scores ---- */

static void test_scores(void **state) {
    (void)state;
    const uint8_t label[] = {0, 1, 1, 0}, full[] = {1, 1, 1, 1};
    const uint8_t once[] = {0, 1, 0, 1}, never_skips[] = {1, 1, 1, 1};
    const struct example example = {.counts = label, .role = ROLE_LABELS};
    const struct example guard = {.counts = full, .role = ROLE_GUARD};
    struct scores scores = {.n_examples = 0};
    assert_true(isnan(scores_macro_f1(&scores)) && isnan(scores_share_of_decisions(&scores)));
    scores_add(&scores, &example, label, 4);
    scores_add(&scores, &example, once, 4);
    scores_add(&scores, &guard, never_skips, 4);
    /* Of 4 labels to skip 3 were found, and there was 1 more; of 8 to execute 7 were found, and there was 1 more. */
    const struct class_scores skip_scores = scores_of_class(&scores, 0), execute = scores_of_class(&scores, 1);
    expect_near(skip_scores.precision, 0.75, 1e-12);
    expect_near(skip_scores.recall, 0.75, 1e-12);
    expect_near(execute.precision, 7.0 / 8.0, 1e-12);
    expect_near(execute.f1, 7.0 / 8.0, 1e-12);
    assert_true(isnan(scores_of_class(&scores, 2).f1));
    expect_near(scores_macro_f1(&scores), (0.75 + 0.875) / 2.0, 1e-12);
    expect_near(scores_share_of_decisions(&scores), 10.0 / 12.0, 1e-12);
    assert_int_equal(scores.n_examples, 3);
    assert_int_equal(scores.n_programs, 2);
    assert_int_equal(scores.n_guard, 1);
    assert_int_equal(scores.n_guard_full, 1);
}

/* ---- The command ---- */

enum { N_LAYERS = 6 };

static char model[CLI_PATH_BYTES], labels[CLI_PATH_BYTES], guard_file[CLI_PATH_BYTES], valid[CLI_PATH_BYTES],
    valid_guard[CLI_PATH_BYTES];

/* Three kinds of prompts, told by the letters that they are made of. */
static const struct {
    const char *letters, *program;
} kinds[] = {{"qwerty", "0-1,4-5"}, {"asdfgh", "0-2,3x2,5"}, {"zxcvbn", "0-5"}};

static void write_prompts(const char *path, const size_t *of, size_t n_of, size_t n, uint64_t random, bool programs) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++) {
        const size_t kind = of[i % n_of];
        char prompt[32];
        const size_t size = 8 + (size_t)(random_uniform(&random) * 20.0);
        for (size_t j = 0; j < size; j++) {
            prompt[j] = kinds[kind].letters[(size_t)(random_uniform(&random) * 6.0)];
        }
        prompt[size] = '\0';
        (void)fprintf(file, "{\"task\": \"%c\", \"prompt\": \"%s\"", kinds[kind].letters[0], prompt);
        (void)fprintf(file, programs ? ", \"program\": \"%s\"}\n" : "}\n", kinds[kind].program);
    }
    assert_int_equal(fclose(file), 0);
}

static int make_files(void **state) {
    static const size_t trained[] = {0, 1}, guarded[] = {2};
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    if (setenv("SOURCE_DATE_EPOCH", "86400", 1) != 0) {
        return -1;
    }
    cli_write_spoken_model(cli_path("model.gguf", model), N_LAYERS, false);
    write_prompts(cli_path("labels.jsonl", labels), trained, 2, 60, 1, true);
    write_prompts(cli_path("guard.jsonl", guard_file), guarded, 1, 20, 2, false);
    write_prompts(cli_path("valid.jsonl", valid), trained, 2, 20, 3, true);
    write_prompts(cli_path("valid_guard.jsonl", valid_guard), guarded, 1, 10, 4, false);
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    return cli_remove_folder();
}

#define TRAIN(...)                                                                                                 \
    RUN("train", "-m", model, "-l", labels, "--guard", guard_file, "--valid", valid, "--valid-guard", valid_guard, \
        "--hidden", "16", __VA_ARGS__)

static void expect_scores(const cJSON *json, const char *key, double n_examples) {
    const cJSON *scores = cJSON_GetObjectItemCaseSensitive(json, key);
    assert_non_null(scores);
    expect_near(cli_number(scores, "examples"), n_examples, 0.0);
    expect_near(cli_number(scores, "macro_f1"), 1.0, 0.0);
    expect_near(cli_number(scores, "programs_equal"), 1.0, 0.0);
    expect_near(cli_number(scores, "guard_full"), cli_number(scores, "guard"), 0.0);
}

/* Each line's program is that of its kind. */
static void expect_routes(const char *routers) {
    char csv[CLI_PATH_BYTES];
    cli_expect_success(
        RUN("route", "-m", model, "-r", routers, "-f", valid, "-f", valid_guard, "-o", cli_path("routes.csv", csv)));
    size_t size = 0, n_found = 0;
    char *text = cli_read(csv, &size), *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        for (size_t i = 0; i < COUNT(kinds); i++) {
            char task[8], program[32];
            (void)snprintf(task, sizeof task, ",%c,", kinds[i].letters[0]);
            const bool is_list = strchr(kinds[i].program, ',') != NULL;
            (void)snprintf(program, sizeof program, is_list ? ",\"%s\"," : ",%s,", kinds[i].program);
            if (strstr(line, task) != NULL) {
                cli_expect_text(line, program);
                n_found++;
            }
        }
    }
    free(text);
    assert_int_equal(n_found, 30);
}

static void expect_calibration(const cJSON *json, size_t least) {
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(json, "calibration");
    double bias = -INFINITY, saved = -INFINITY;
    size_t n = 0;
    const cJSON *row;
    cJSON_ArrayForEach(row, rows) {
        assert_true(cli_number(row, "bias") > bias && cli_number(row, "saved") >= saved);
        bias = cli_number(row, "bias");
        saved = cli_number(row, "saved");
        n++;
    }
    assert_true(n >= least);
}

static void test_command(void **state) {
    (void)state;
    char routers[CLI_PATH_BYTES], as_float[CLI_PATH_BYTES], features[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("routers.gguf", routers);
    cli_path("float.gguf", as_float);
    cJSON *json = cli_expect_json(
        TRAIN("-o", routers, "--float", as_float, "--epochs", "30", "--lr", "0.005", "--name", "letters", "--json"));
    expect_scores(json, "training", 80);
    expect_scores(json, "validation", 30);
    expect_scores(json, "routed_int8", 30);
    expect_near(cli_number(json, "constant_blocks"), 3, 0.0); /* 0, 1 and 5 */
    expect_calibration(json, 15);
    /* 2, 1 - 1 and 0 layers saved in 10, 10 and 10 prompts; that is what the file says without a bias. */
    const cJSON *tasks = cli_list(json, "tasks", 3);
    expect_near(cli_number(cJSON_GetArrayItem(tasks, 0), "layers_saved"), 2.0, 0.0);
    expect_near(cli_number(cJSON_GetArrayItem(tasks, 1), "layers_saved"), 0.0, 0.0);
    cJSON_Delete(json);
    expect_routes(routers);
    expect_routes(as_float);
    assert_true(access(cli_path("routers.gguf.features", features), F_OK) != 0);
    assert_int_equal(cli_count_files("routers.gguf"), 1);
    /* The record. */
    struct cli_outcome inspected = RUN("inspect", routers, "--json");
    cli_expect_text(inspected.out, "labels.jsonl");
    cli_expect_text(inspected.out, "1970-01-02");
    cli_expect_text(inspected.out, "letters");
    cli_expect_success(inspected);
    size_t size = 0;
    char *file = cli_read(routers, &size);
    assert_null(memmem(file, size, cli_folder, strlen(cli_folder))); /* no paths */
    free(file);
}

static void expect_same_file(const char *a, const char *b, bool same) {
    size_t size_a = 0, size_b = 0;
    char *data_a = cli_read(a, &size_a), *data_b = cli_read(b, &size_b);
    assert_int_equal(size_a == size_b && memcmp(data_a, data_b, size_a) == 0, same);
    free(data_a);
    free(data_b);
}

static void test_features_are_kept(void **state) {
    (void)state;
    char first[CLI_PATH_BYTES], second[CLI_PATH_BYTES], features[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("first.gguf", first);
    cli_path("second.gguf", second);
    cli_path("kept.features", features);
    struct cli_outcome outcome = TRAIN("-o", first, "--features", features, "--epochs", "2", "-t", "1");
    cli_expect_text(outcome.err, "features: 110 of 110 examples");
    cli_expect_text(outcome.out, "macro-F1");
    cli_expect_text(outcome.out, "z (guard)");
    cli_expect_success(outcome);
    outcome = TRAIN("-o", second, "--features", features, "--epochs", "2", "-t", "3");
    cli_expect_text(outcome.err, "features: 0 of 110 examples");
    cli_expect_success(outcome);
    expect_same_file(first, second, true);
    cli_expect_success(TRAIN("-o", second, "--features", features, "--epochs", "2", "-t", "1", "--seed", "2"));
    expect_same_file(first, second, false);
    /* Other examples begin anew, other files are left alone. */
    outcome = RUN("train", "-m", model, "-l", valid, "-o", second, "--features", features, "--epochs", "1");
    cli_expect_text(outcome.err, "begun anew");
    cli_expect_text(outcome.err, "features: 20 of 20 examples");
    cli_expect_success(outcome);
    cli_expect_failure(RUN("train", "-m", model, "-l", valid, "-o", second, "--features", labels), 1,
                       "holds something else than features");
}

static void test_bad_lines(void **state) {
    (void)state;
    static const char lines[] = "{\"prompt\": \"qqqq\", \"program\": \"0-4\"}\n"
                                "{\"prompt\": \"qqqq\"}\n"
                                "{\"prompt\": \"rrrr\", \"program\": \"0-9\"}\n"
                                "{\"prompt\": \"aaaa\", \"program\": \"0-5\"}\n"
                                "nonsense\n";
    char bad[CLI_PATH_BYTES], out[CLI_PATH_BYTES];
    cli_require_program();
    cli_path("bad.gguf", out);
    cli_write(cli_path("bad.jsonl", bad), lines, sizeof lines - 1);
    struct cli_outcome outcome = RUN("train", "-m", model, "-l", bad, "-o", out, "--epochs", "1", "--calibrate", "0");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "bad.jsonl, line 2: it has no \"program\"");
    cli_expect_text(outcome.err, "bad.jsonl, line 3: ");
    cli_expect_text(outcome.err, "bad.jsonl, line 5: it is no JSON");
    cli_expect_text(outcome.err, "3 bad lines were left out");
    assert_true(access(out, R_OK) == 0);
    cli_outcome_free(&outcome);
    cli_expect_failure(RUN("run", "-m", model, "--raw", "-p", "q", "-r", out, "--save-layers", "1"), 1,
                       "no calibration table");
    cli_expect_failure(RUN("train", "-m", model, "-l", bad, "-o", "/no/where"), 1, "cannot write /no/where");
    cli_expect_failure(RUN("train", "-m", model, "-o", out), 2, "-l FILE is missing");
    cli_expect_failure(RUN("train", "-l", bad, "-o", out), 2, "-m FILE is missing");
    cli_expect_failure(RUN("train", "-m", model, "-l", bad), 2, "-o FILE is missing");
    cli_expect_failure(RUN("train", "-m", model, "-l", "-", "-o", out), 2, "standard input");
}

static void test_interrupted(void **state) {
    (void)state;
    char out[CLI_PATH_BYTES], features[CLI_PATH_BYTES], printed[CLI_PATH_BYTES];
    const struct timespec into_training = {.tv_nsec = 200000000};
    cli_require_program();
    cli_path("stopped.gguf", out);
    cli_path("stopped.gguf.features", features);
    cli_path("printed", printed);
    const pid_t pid = cli_start(
        NULL, printed, -1, ARGUMENTS("train", "-m", model, "-l", labels, "-o", out, "--epochs", "10000", "-t", "1"));
    cli_wait_for_file(features, 120);
    nanosleep(&into_training, NULL);
    kill(pid, SIGINT);
    struct cli_outcome outcome = cli_finish(pid, printed);
    cli_expect_code(&outcome, 130);
    cli_expect_text(outcome.err, "interrupted; the same command goes on");
    cli_outcome_free(&outcome);
    assert_true(access(out, F_OK) != 0 && access(features, F_OK) == 0);
    cli_expect_success(RUN("train", "-m", model, "-l", labels, "-o", out, "--epochs", "1", "-t", "1"));
    assert_true(access(out, F_OK) == 0 && access(features, F_OK) != 0);
}

int drllm_test_train(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),        cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_folding),       cmocka_unit_test(test_focal_loss),
        cmocka_unit_test(test_class_weights), cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_learning_rate), cmocka_unit_test(test_separable),
        cmocka_unit_test(test_best_epoch),    cmocka_unit_test(test_constant_and_stopped),
        cmocka_unit_test(test_determinism),   cmocka_unit_test(test_biases),
        cmocka_unit_test(test_rising),        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_command),       cmocka_unit_test(test_features_are_kept),
        cmocka_unit_test(test_bad_lines),     cmocka_unit_test(test_interrupted),
    };
    return drllm_run_group("train", tests, make_files, remove_files);
}
