/* Models with the shapes of well-known ones and random weights: to measure speed at their sizes without having them. */
#ifndef DRLLM_TOOLS_SYNTHETIC_H
#define DRLLM_TOOLS_SYNTHETIC_H

#include "quant/formats.h"
#include "tools/common.h"

enum synthetic_vocabulary { SYNTHETIC_SMOLLM, SYNTHETIC_LLAMA3, SYNTHETIC_SPM };

struct synthetic_shape {
    const char *name;
    size_t n_layers, d_model, d_ff, n_heads, n_kv_heads, n_vocab, n_context;
    double rope_theta;
    bool tied; /* the embedding is the head */
    enum synthetic_vocabulary vocabulary;
};

struct synthetic {
    struct synthetic_shape shape;
    enum drllm_format format; /* of the blocks' matrices */
    bool pure;                /* also of the embedding and the head, which are q8_0 otherwise, as quantize does it */
    uint64_t seed;
};

extern const struct synthetic_shape synthetic_shapes[];
extern const size_t n_synthetic_shapes;

/* "NAME" or "NAME:LAYERS", with other than the shape's number of layers. Returns an exit code: TOOL_USAGE, after a
 * message, for anything else. */
int synthetic_parse_shape(const struct command *command, const char *text, struct synthetic_shape *shape);
/* q4_0, q4_1 or q8_0; likewise. */
int synthetic_parse_format(const struct command *command, const char *text, enum drllm_format *format);

/* Write the model as a GGUF file, row by row; equal arguments give equal bytes. size: bytes written. Returns an exit
 * code. Ctrl-C, where it is watched for (interrupt.h), ends it and leaves nothing. */
int synthetic_write(const struct command *command, const struct synthetic *synthetic, const char *path, uint64_t *size);

#endif
