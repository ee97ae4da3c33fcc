/* Router files in memory, as tests/tiny_model.h makes models: first the list of tensors, then the file, so that a test
 * can damage it in between. Allocation failures end the program. */
#ifndef DRLLM_TESTS_ROUTER_BUILDER_H
#define DRLLM_TESTS_ROUTER_BUILDER_H

#include "tests/tiny_model.h"

struct router_options {
    size_t n_layers, d_model, n_hidden, n_windows;
    bool int8; /* weights are I8 with scales; otherwise F32 */
    uint64_t seed;
    /* NULL: random weights. Otherwise zeros, with biases that make the decision, whatever the prompt. */
    const uint8_t *program;
    float certainty; /* logit of the decision in `program`; the others are -1 and 0 */
    /* Metadata, NULL where there is none. */
    const char *name, *model_name, *model_quantization, *training, *fingerprint;
    const float *bias, *saved; /* the calibration table */
    size_t n_bias, n_saved;
};

/* For a tiny model: 8 windows, 6 hidden values, F32, no metadata, seed 1, certainty 5. */
struct router_options router_default_options(const struct tiny_options *model);

struct router_builder {
    struct router_options options;
    struct tiny_tensor *tensors;
    size_t n_tensors;
};

void router_builder_make(struct router_builder *builder, const struct router_options *options);
void router_builder_free(struct router_builder *builder);
/* The end of the program if there is none. */
struct tiny_tensor *router_builder_find(const struct router_builder *builder, const char *name);
void router_builder_remove(struct router_builder *builder, const char *name);
/* The file, to be freed. */
uint8_t *router_builder_write(const struct router_builder *builder, const struct tiny_edit *edits, size_t n_edits,
                              size_t *size);
/* Both steps. */
uint8_t *router_builder_file(const struct router_options *options, size_t *size);

/* The logits of one router in double precision, with one product after the other as they are written down: inputs
 * [n_tokens][d_model]. */
void router_builder_reference(const struct router_builder *builder, size_t layer, const double *inputs, size_t n_tokens,
                              double logits[3]);

#endif
