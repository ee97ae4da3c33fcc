/* Writing router files (the format is described in runtime/router_file.h). */
#ifndef DRLLM_TOOLS_ROUTER_WRITER_H
#define DRLLM_TOOLS_ROUTER_WRITER_H

#include "runtime/router_file.h"
#include "tools/common.h"

/* A set of routers in float32. All memory is the set's, from allocate() of tools/common.h. */
struct router_set {
    size_t n_layers, d_model, n_windows, n_hidden;
    float *fc1;                                              /* [n_layers][n_hidden][d_model] */
    float *fc1_bias;                                         /* [n_layers][n_hidden] */
    float *fc2;                                              /* [n_layers][3][n_hidden] */
    float *fc2_bias;                                         /* [n_layers][3] */
    char *name, *model_name, *model_quantization, *training; /* zero-terminated or NULL */
    bool has_fingerprint;
    uint64_t fingerprint;
    size_t n_calibration;
    float *bias, *saved; /* [n_calibration] */
};

/* Zeros; texts are NULL, there is no calibration and no fingerprint. */
void router_set_init(struct router_set *set, size_t n_layers, size_t d_model, size_t n_windows, size_t n_hidden);
/* A copy of what an open file holds. */
void router_set_read(struct router_set *set, const struct drllm_router_file *file);
/* Set fingerprint, model_name and model_quantization (copies). */
void router_set_stamp(struct router_set *set, const struct drllm_model *model);
void router_set_release(struct router_set *set); /* also one that is all zeros */

/* Write it, with int8 weights or as float32, so that it appears at `path` whole or not at all. Returns an exit code,
 * after a message; weights that are NaN or infinite are refused. */
int router_set_write(const struct command *command, const char *path, const struct router_set *set, bool int8);

#endif
