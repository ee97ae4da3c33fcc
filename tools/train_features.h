/* What routers see: for every example and block the means of the hidden states there over the windows of the prompt, under
 * the example's own program (teacher forcing, Dr.LLM, arXiv 2510.12773, section 3), from the model as it will run.
 *
 * They do not fit into memory and take long, so they are kept in a file, block by block, and what is there is not computed
 * again. Floats, since some channels are a thousand times as large as what varies in them, which halves would lose.
 *
 *   struct feature_header, then uint8_t[n_examples]: windows of the example, 0 while it is not there; from a multiple of
 *   4096 on float[n_layers][n_examples][n_windows][d_model], as this machine has them. */
#ifndef DRLLM_TOOLS_TRAIN_FEATURES_H
#define DRLLM_TOOLS_TRAIN_FEATURES_H

#include "platform/file.h"
#include "tools/train_examples.h"
#include "tools/workers.h"

struct features {
    const struct command *command;
    char *path;
    int descriptor; /* -1: not open */
    size_t n_examples, n_layers, d_model, n_windows;
    uint64_t data_offset;
    uint8_t *windows; /* [n_examples] */
    struct drllm_file map;
};

/* Open the file, or make it; one of other examples or another model is begun anew, one that holds no features is refused.
 * The file stays locked against another process. Returns an exit code; close in any case. */
int features_open(const struct command *command, const struct drllm_model *model, const struct examples *examples,
                  size_t n_windows, const char *path, struct features *features);
/* Compute what is missing and map the file. After Ctrl-C, TOOL_INTERRUPTED, the file holds what was computed. */
int features_compute(struct features *features, const struct drllm_model *model, struct workers *workers,
                     const struct examples *examples);
/* [windows[example]][d_model] */
const float *features_rows(const struct features *features, size_t layer, size_t example);
/* A block's features will not be read again soon. */
void features_forget(const struct features *features, size_t layer);
/* remove: the file has done its work. Also after a failed open of a cleared struct. */
void features_close(struct features *features, bool remove);

#endif
