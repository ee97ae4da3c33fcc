/* Training: one network a block, each on its own, from the features of that block. */
#ifndef DRLLM_TOOLS_TRAIN_BLOCKS_H
#define DRLLM_TOOLS_TRAIN_BLOCKS_H

#include "platform/threads.h"
#include "tools/router_writer.h"
#include "tools/train_features.h"
#include "tools/train_network.h"

enum { TRAIN_BATCH = 64 /* examples a step */ };

struct train_params {
    size_t n_epochs, n_hidden;
    double rate, decay, gamma;
    double guard_weight; /* of a guard prompt's loss; the others have 1 */
    uint64_t seed;
};

struct trained_block {
    struct network network;
    bool is_constant;                /* all labels were of one class: nothing was learnt */
    size_t n_epochs, best_epoch;     /* from 1; 0 for a constant block */
    double *train_loss, *valid_loss; /* [n_epochs], a mean over examples; 0 without examples */
};

/* Samples [n_train + n_valid], with the weights of their examples, which are multiplied by those of their classes. The
 * inputs are standardised by the training windows' mean and deviation. The weights after the epoch of least loss on the
 * validation samples are kept, those of the last epoch where there are none. Where all training labels are one class, the
 * network decides for it by a margin that no budget overcomes: what no label ever skips is never skipped.
 * go_on (NULL: always): called after each epoch; false when it said so. The block must be released either way. */
bool block_train(const struct train_params *params, size_t layer, struct sample *samples, size_t n_train,
                 size_t n_valid, size_t n_inputs, bool (*go_on)(void *user), void *user, struct trained_block *block);
void trained_block_release(struct trained_block *block);

struct trained {
    size_t n_layers, n_examples, n_windows;
    struct trained_block *blocks; /* [n_layers] */
    float *logits;                /* [n_layers][n_examples][3], by the float networks under teacher forcing */
};

/* All blocks, shared by the threads; the result does not depend on their number. Returns an exit code; release in any
 * case. */
int trained_make(const struct train_params *params, const struct examples *examples, const struct features *features,
                 struct drllm_threads *threads, struct trained *trained);
void trained_release(struct trained *trained);

static inline const float *trained_logits(const struct trained *trained, size_t layer, size_t example) {
    return trained->logits + (layer * trained->n_examples + example) * NETWORK_CLASSES;
}

/* The class that a router of these logits decides for, without a budget. */
size_t decided_class(const float logits[NETWORK_CLASSES]);

/* Initialises the set. */
void trained_fold(const struct trained *trained, struct router_set *set);

#endif
