#include "tools/train_blocks.h"
#include "tools/random.h"

#include "runtime/budget.h"
#include "tools/interrupt.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---- Standardisation ---- */

static void set_scale(struct network *network, const double *squares, double n) {
    for (size_t i = 0; i < network->n_inputs; i++) {
        const double deviation = sqrt(squares[i] / n);
        /* A channel that does not vary but for rounding says nothing. */
        const bool varies = deviation > 1e-6 * fabs((double)network->mean[i]) && deviation > 1e-30;
        network->scale[i] = varies ? (float)(1.0 / deviation) : 0.0f;
    }
}

/* Over all windows of the samples, in two passes. */
static void measure_inputs(struct network *network, const struct sample *samples, size_t n_samples) {
    const size_t n_inputs = network->n_inputs;
    double *sums = allocate(2 * n_inputs, sizeof *sums);
    double *squares = sums + n_inputs;
    double n = 0.0;
    memset(sums, 0, 2 * n_inputs * sizeof *sums);
    for (size_t i = 0; i < n_samples; i++) {
        for (size_t j = 0; j < samples[i].n_windows * n_inputs; j++) {
            sums[j % n_inputs] += (double)samples[i].rows[j];
        }
        n += (double)samples[i].n_windows;
    }
    for (size_t i = 0; i < n_inputs; i++) {
        network->mean[i] = (float)(sums[i] / n);
    }
    for (size_t i = 0; i < n_samples; i++) {
        for (size_t j = 0; j < samples[i].n_windows * n_inputs; j++) {
            const double distance = (double)samples[i].rows[j] - (double)network->mean[j % n_inputs];
            squares[j % n_inputs] += distance * distance;
        }
    }
    set_scale(network, squares, n);
    free(sums);
}

/* ---- One block ---- */

struct trainer {
    const struct train_params *params;
    const struct sample *samples;
    size_t n_train, n_valid;
    struct trained_block *block;
    struct network gradient, best;
    struct adamw adamw;
    struct network_room *room;
    size_t *order;
    size_t step, n_steps;
    uint64_t random;
};

/* Returns how many classes there are; counts: their labels in the training. */
static size_t weigh_classes(struct sample *samples, size_t n_train, size_t n_all, size_t counts[NETWORK_CLASSES]) {
    double weights[NETWORK_CLASSES];
    size_t n_classes = 0;
    for (size_t i = 0; i < n_train; i++) {
        counts[samples[i].label]++;
    }
    class_weights(counts, weights);
    for (size_t i = 0; i < n_all; i++) {
        samples[i].weight *= weights[samples[i].label];
    }
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        n_classes += counts[i] != 0;
    }
    return n_classes;
}

static void start(struct network *network, const size_t counts[NETWORK_CLASSES], uint64_t *random) {
    network_randomise(network, random);
    for (size_t i = 0; i < NETWORK_CLASSES; i++) {
        if (counts[i] == 0) {
            network_rule_out(network, i);
        }
    }
}

static double run_epoch(struct trainer *trainer) {
    double loss = 0.0;
    random_shuffle(&trainer->random, trainer->order, trainer->n_train);
    for (size_t first = 0; first < trainer->n_train; first += TRAIN_BATCH) {
        const size_t left = trainer->n_train - first;
        const size_t n = left < TRAIN_BATCH ? left : TRAIN_BATCH;
        struct sample batch[TRAIN_BATCH];
        for (size_t i = 0; i < n; i++) {
            batch[i] = trainer->samples[trainer->order[first + i]];
        }
        loss += network_gradient(&trainer->block->network, trainer->room, batch, n, trainer->params->gamma,
                                 &trainer->gradient);
        adamw_step(&trainer->adamw, trainer->block->network.params, trainer->gradient.params,
                   learning_rate(trainer->params->rate, trainer->step++, trainer->n_steps));
    }
    return loss / (double)trainer->n_train;
}

static double measure_loss(const struct trainer *trainer) {
    double loss = 0.0;
    for (size_t first = 0; first < trainer->n_valid; first += TRAIN_BATCH) {
        const struct sample *batch = trainer->samples + trainer->n_train + first;
        const size_t left = trainer->n_valid - first;
        const size_t n = left < TRAIN_BATCH ? left : TRAIN_BATCH;
        double logits[TRAIN_BATCH][NETWORK_CLASSES];
        network_logits(&trainer->block->network, trainer->room, batch, n, logits);
        for (size_t i = 0; i < n; i++) {
            loss += batch[i].weight * focal_loss(logits[i], batch[i].label, trainer->params->gamma, NULL);
        }
    }
    return trainer->n_valid != 0 ? loss / (double)trainer->n_valid : 0.0;
}

static void trainer_open(struct trainer *trainer, size_t layer) {
    const struct network *network = &trainer->block->network;
    const size_t steps_per_epoch = (trainer->n_train + TRAIN_BATCH - 1) / TRAIN_BATCH;
    network_init(&trainer->gradient, network->n_inputs, network->n_hidden);
    network_init(&trainer->best, network->n_inputs, network->n_hidden);
    adamw_init(&trainer->adamw, network->n_params, network->n_weights, trainer->params->decay);
    trainer->room = network_room_open(network->n_inputs, network->n_hidden);
    trainer->order = allocate(trainer->n_train, sizeof *trainer->order);
    for (size_t i = 0; i < trainer->n_train; i++) {
        trainer->order[i] = i;
    }
    trainer->n_steps = steps_per_epoch * trainer->params->n_epochs;
    trainer->random = trainer->params->seed;
    trainer->random = random_next(&trainer->random) + layer; /* a stream of its own for every block */
    trainer->random = random_next(&trainer->random);
}

static void trainer_close(struct trainer *trainer) {
    network_release(&trainer->gradient);
    network_release(&trainer->best);
    adamw_release(&trainer->adamw);
    network_room_close(trainer->room);
    free(trainer->order);
}

static bool run_epochs(struct trainer *trainer, bool (*go_on)(void *user), void *user) {
    struct trained_block *block = trainer->block;
    for (size_t epoch = 0; epoch < trainer->params->n_epochs; epoch++) {
        block->train_loss[epoch] = run_epoch(trainer);
        block->valid_loss[epoch] = measure_loss(trainer);
        block->n_epochs = epoch + 1;
        if (trainer->n_valid == 0 || epoch == 0 ||
            block->valid_loss[epoch] < block->valid_loss[block->best_epoch - 1]) {
            block->best_epoch = epoch + 1;
            network_copy_params(&trainer->best, &block->network);
        }
        if (go_on != NULL && !go_on(user)) {
            return false;
        }
    }
    network_copy_params(&block->network, &trainer->best);
    return true;
}

bool block_train(const struct train_params *params, size_t layer, struct sample *samples, size_t n_train,
                 size_t n_valid, size_t n_inputs, bool (*go_on)(void *user), void *user, struct trained_block *block) {
    *block = (struct trained_block){.train_loss = allocate(params->n_epochs, sizeof(double)),
                                    .valid_loss = allocate(params->n_epochs, sizeof(double))};
    network_init(&block->network, n_inputs, params->n_hidden);
    size_t counts[NETWORK_CLASSES] = {0};
    if (weigh_classes(samples, n_train, n_train + n_valid, counts) == 1) {
        block->is_constant = true;
        network_make_constant(&block->network, samples[0].label);
        return true;
    }
    measure_inputs(&block->network, samples, n_train);
    struct trainer trainer = {
        .params = params, .samples = samples, .n_train = n_train, .n_valid = n_valid, .block = block};
    trainer_open(&trainer, layer);
    start(&block->network, counts, &trainer.random);
    const bool finished = run_epochs(&trainer, go_on, user);
    trainer_close(&trainer);
    return finished;
}

void trained_block_release(struct trained_block *block) {
    network_release(&block->network);
    free(block->train_loss);
    free(block->valid_loss);
    *block = (struct trained_block){.is_constant = false};
}

/* ---- All blocks ---- */

struct work {
    const struct train_params *params;
    const struct examples *examples;
    const struct features *features;
    struct trained *trained;
    atomic_size_t n_epochs_done;
    struct progress progress;
};

static bool after_epoch(void *user) {
    struct work *work = user;
    progress_show(&work->progress, atomic_fetch_add(&work->n_epochs_done, 1) + 1);
    return !interrupt_seen();
}

static struct sample *make_samples(const struct work *work, size_t layer) {
    const struct examples *examples = work->examples;
    struct sample *samples = allocate(examples->count, sizeof *samples);
    for (size_t i = 0; i < examples->count; i++) {
        const bool is_guard = role_is_guard(examples->items[i].role);
        samples[i] = (struct sample){.rows = features_rows(work->features, layer, i),
                                     .n_windows = work->features->windows[i],
                                     .label = examples->items[i].counts[layer],
                                     .weight = is_guard ? work->params->guard_weight : 1.0};
    }
    return samples;
}

static void predict(const struct trained *trained, size_t layer, const struct sample *samples) {
    const struct network *network = &trained->blocks[layer].network;
    struct network_room *room = network_room_open(network->n_inputs, network->n_hidden);
    float *to = trained->logits + layer * trained->n_examples * NETWORK_CLASSES;
    for (size_t first = 0; first < trained->n_examples; first += TRAIN_BATCH) {
        const size_t left = trained->n_examples - first;
        const size_t n = left < TRAIN_BATCH ? left : TRAIN_BATCH;
        double logits[TRAIN_BATCH][NETWORK_CLASSES];
        network_logits(network, room, samples + first, n, logits);
        for (size_t i = 0; i < n * NETWORK_CLASSES; i++) {
            *to++ = (float)logits[i / NETWORK_CLASSES][i % NETWORK_CLASSES];
        }
    }
    network_room_close(room);
}

static void train_block(void *context, size_t worker, size_t layer) {
    struct work *work = context;
    const struct examples *examples = work->examples;
    (void)worker;
    if (interrupt_seen()) {
        return;
    }
    struct trained_block *block = &work->trained->blocks[layer];
    struct sample *samples = make_samples(work, layer);
    if (block_train(work->params, layer, samples, examples->n_train, examples->count - examples->n_train,
                    work->features->d_model, after_epoch, work, block)) {
        predict(work->trained, layer, samples);
    }
    if (block->is_constant) { /* which takes no time */
        progress_show(&work->progress, atomic_fetch_add(&work->n_epochs_done, work->params->n_epochs));
    }
    features_forget(work->features, layer);
    free(samples);
}

int trained_make(const struct train_params *params, const struct examples *examples, const struct features *features,
                 struct drllm_threads *threads, struct trained *trained) {
    const size_t n_layers = examples->n_layers;
    *trained = (struct trained){.n_layers = n_layers,
                                .n_examples = examples->count,
                                .n_windows = features->n_windows,
                                .blocks = allocate(n_layers, sizeof *trained->blocks),
                                .logits = allocate(n_layers * examples->count * NETWORK_CLASSES, sizeof(float))};
    memset(trained->blocks, 0, n_layers * sizeof *trained->blocks);
    struct work work = {.params = params,
                        .examples = examples,
                        .features = features,
                        .trained = trained,
                        .progress = {.what = "epochs", .total = n_layers * params->n_epochs}};
    progress_show(&work.progress, 0);
    drllm_threads_run(threads, train_block, &work, n_layers);
    return interrupt_seen() ? TOOL_INTERRUPTED : TOOL_OK;
}

void trained_release(struct trained *trained) {
    for (size_t i = 0; i < trained->n_layers; i++) {
        trained_block_release(&trained->blocks[i]);
    }
    free(trained->blocks);
    free(trained->logits);
    *trained = (struct trained){.n_layers = 0};
}

size_t decided_class(const float logits[NETWORK_CLASSES]) {
    const struct drllm_budget budget = {.router_p = -0.5f, .skip_bias = 0.0f};
    struct drllm_decision decision;
    drllm_budget_decide(&budget, false, logits, &decision);
    return decision.count;
}

void trained_fold(const struct trained *trained, struct router_set *set) {
    const size_t n_inputs = trained->blocks[0].network.n_inputs;
    const size_t n_hidden = trained->blocks[0].network.n_hidden;
    router_set_init(set, trained->n_layers, n_inputs, trained->n_windows, n_hidden);
    for (size_t i = 0; i < trained->n_layers; i++) {
        network_fold(&trained->blocks[i].network, set->fc1 + i * n_hidden * n_inputs, set->fc1_bias + i * n_hidden,
                     set->fc2 + i * NETWORK_CLASSES * n_hidden, set->fc2_bias + i * NETWORK_CLASSES);
    }
}
