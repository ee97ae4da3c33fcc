/* Vocabularies of any size that every reader of GGUF files takes: made-up tokens of up to three characters. */
#ifndef DRLLM_TOOLS_SYNTHETIC_VOCABULARY_H
#define DRLLM_TOOLS_SYNTHETIC_VOCABULARY_H

#include "tools/gguf_file.h"
#include "tools/synthetic.h"

/* The keys tokenizer.ggml.*, for shape->n_vocab tokens. */
void synthetic_add_vocabulary(struct drllm_gguf_changes *changes, const struct synthetic_shape *shape);

#endif
