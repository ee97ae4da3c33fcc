/* What the routers' file does when the runtime reads it, and how many layers a bias on skipping saves then. */
#ifndef DRLLM_TOOLS_TRAIN_MEASURE_H
#define DRLLM_TOOLS_TRAIN_MEASURE_H

#include "tools/train_blocks.h"

struct measured {
    size_t n_items;
    size_t *items;       /* examples: of the validation, or, without one, some that were trained on */
    uint8_t *counts;     /* [n_items][n_layers]: what the routers decided, without a budget */
    size_t n_calibrated; /* items that the table was measured on */
    size_t n_biases;
    float *biases; /* rising */
    double *saved; /* [n_biases]: layers saved in the mean, as they came */
};

/* Run prompts through the routers as they come out of a file with int8 weights, at no budget and, n_calibrate of them, at
 * a grid of biases on the skip logit. Puts the calibration table into the set. A file beside `path` is there for a moment.
 * Returns an exit code; release in any case. */
int measure_routed(const struct command *command, const struct drllm_model *model, struct workers *workers,
                   const struct examples *examples, const struct trained *trained, const char *path, size_t n_calibrate,
                   struct router_set *set, struct measured *measured);
void measured_release(struct measured *measured);

/* Rising biases at which the decisions change, evenly over the decisions: for each decision of the items by the float
 * networks there is one bias at which it flips. They are multiples of 1/64, which sums keep exactly; 0 is one of them. To
 * be freed. */
size_t calibration_biases(const struct trained *trained, const size_t *items, size_t n_items, float **biases);

/* The nearest values that never fall, in the least squares: neighbours that fall are averaged. */
void make_rising(double *values, size_t n);

#endif
