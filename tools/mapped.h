/* A GGUF file that is only looked at: mapped and parsed, whatever architecture it is of. */
#ifndef DRLLM_TOOLS_MAPPED_H
#define DRLLM_TOOLS_MAPPED_H

#include "platform/file.h"
#include "quant/formats.h"
#include "runtime/gguf.h"
#include "tools/common.h"

struct mapped_gguf {
    struct drllm_file file;
    struct drllm_gguf gguf;
};

/* Returns an exit code. */
int mapped_open(const struct command *command, const char *path, struct mapped_gguf *mapped);
void mapped_close(struct mapped_gguf *mapped); /* also after a failed open of a cleared struct */

/* Rows of a tensor: the product of all dimensions but the first. */
size_t tensor_rows(const struct drllm_gguf_tensor *tensor);

#endif
