/* One router as it is trained: the network of runtime/router_file.h in floats, its loss, its gradient and its optimiser.
 *
 * logits = mean over windows of fc2 * gelu(fc1 * (x - mean) * scale + bias1) + bias2
 *
 * The weights lie in an order of the kernels' own: hidden units in panels of NETWORK_PANEL, whose weights for one input
 * are neighbours. Units and inputs are filled up with zeros, which training leaves zeros. Sums have one order, so that a
 * seed gives the same bits on every machine. */
#ifndef DRLLM_TOOLS_TRAIN_NETWORK_H
#define DRLLM_TOOLS_TRAIN_NETWORK_H

#include "runtime/router_file.h"

enum { NETWORK_PANEL = 8, NETWORK_CLASSES = DRLLM_ROUTER_CLASSES };

struct network {
    size_t n_inputs, n_hidden;
    size_t n_cols, n_units;     /* the same, filled up */
    size_t n_params, n_weights; /* the first n_weights are weights, biases follow */
    float *params;              /* fc1 [n_units / PANEL][n_cols][PANEL], fc2 [3][n_units], bias1 [n_units], bias2 [3] */
    float *mean, *scale;        /* [n_inputs] */
};

/* All parameters 0, mean 0 and scale 1. */
void network_init(struct network *network, size_t n_inputs, size_t n_hidden);
void network_release(struct network *network); /* also one that is all zeros */
void network_copy_params(struct network *to, const struct network *from);
/* Weights and biases uniform in +-1/sqrt(inputs of their matrix). */
void network_randomise(struct network *network, uint64_t *random);
/* Let a class that no label has begin, and stay, far below the others, so that a budget that rules out the likeliest class
 * does not bring it up. */
void network_rule_out(struct network *network, size_t class);
/* A network that decides for `label` whatever it sees, by a margin of NETWORK_CERTAIN. */
#define NETWORK_CERTAIN 16.0f
void network_make_constant(struct network *network, size_t label);

/* Where a parameter lies in params. */
size_t network_fc1_index(const struct network *network, size_t unit, size_t input);
size_t network_fc2_index(const struct network *network, size_t class, size_t unit);
size_t network_bias1_index(const struct network *network, size_t unit);
size_t network_bias2_index(const struct network *network, size_t class);

/* ---- Forward and backward ---- */

struct sample {
    const float *rows; /* [n_windows][n_inputs] */
    size_t n_windows;  /* 1 to DRLLM_ROUTER_MAX_WINDOWS */
    size_t label;
    double weight;
};

/* Room for one network of this shape at a time. */
struct network_room;
struct network_room *network_room_open(size_t n_inputs, size_t n_hidden);
void network_room_close(struct network_room *room); /* NULL is allowed */

void network_logits(const struct network *network, struct network_room *room, const struct sample *samples,
                    size_t n_samples, double (*logits)[NETWORK_CLASSES]);
/* The sum over samples of weight * focal loss. The gradient of the sum divided by n_samples goes into gradient->params. */
double network_gradient(const struct network *network, struct network_room *room, const struct sample *samples,
                        size_t n_samples, double gamma, struct network *gradient);

/* Focal loss, arXiv 1708.02002: -(1 - p)^gamma ln p for the probability p of the label; gamma 0 is cross-entropy.
 * gradient (NULL: not asked for): by the logits. */
double focal_loss(const double logits[NETWORK_CLASSES], size_t label, double gamma, double gradient[NETWORK_CLASSES]);

/* Weights of classes by effective number, arXiv 1901.05555: 1 / E with E(c) = (1 - beta^c) / (1 - beta) for a class of c
 * examples. A beta of 0.999 would saturate at a thousand examples; there, beta = 1 - 1/N means N distinct examples to
 * draw from, and N is what there are: the sum of the counts. No weight is above CLASS_WEIGHT_CAP times the least one, so
 * that a handful of labels do not rule a block; a class without examples has weight 0. The weights' mean over the
 * examples is 1. */
#define CLASS_WEIGHT_CAP 10.0
void class_weights(const size_t counts[NETWORK_CLASSES], double weights[NETWORK_CLASSES]);

/* ---- AdamW, arXiv 1711.05101 (beta 0.9 and 0.999, epsilon 1e-8) ---- */

struct adamw {
    size_t n_params, n_decayed;       /* the first n_decayed parameters decay */
    float *first, *second;            /* the moments */
    double power_first, power_second; /* beta^t */
    double decay;
};
void adamw_init(struct adamw *adamw, size_t n_params, size_t n_decayed, double decay);
void adamw_release(struct adamw *adamw);
/* params -= rate * (first / (sqrt(second) + epsilon) + decay * params), with the moments corrected for their start. */
void adamw_step(struct adamw *adamw, float *params, const float *gradient, double rate);
/* Linear over the first 5 % of the steps, then a cosine down to 0. step: from 0. */
double learning_rate(double peak, size_t step, size_t n_steps);

/* ---- The network for the file ---- */

/* With mean and scale folded into fc1, in double: fc1 [n_hidden][n_inputs], bias1 [n_hidden], fc2 [3][n_hidden], bias2
 * [3]. */
void network_fold(const struct network *network, float *fc1, float *bias1, float *fc2, float *bias2);

#endif
