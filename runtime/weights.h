/* Between finding a tensor (model_weights.c) and multiplying with it: conversion and packing (weights_pack.c). */
#ifndef DRLLM_RUNTIME_WEIGHTS_H
#define DRLLM_RUNTIME_WEIGHTS_H

#include "platform/threads.h"
#include "runtime/model.h"

/* How many tensors of one stored format run in another, for the log. */
struct drllm_conversion {
    enum drllm_format stored;
    enum drllm_format run;
    size_t count;
};

enum { DRLLM_MAX_CONVERSIONS = 16 };

struct drllm_loader {
    struct drllm_model *model;
    const struct drllm_gguf *gguf;
    const unsigned char *data; /* all tensors' */
    size_t data_size;
    struct drllm_threads *threads; /* NULL: inline */
    unsigned char *packed;         /* memory for the matrices that our kernels read, what is left of it */
    size_t packed_bytes;           /* of it; before it is there, what it must have */
    struct drllm_error *error;
    struct drllm_conversion conversions[DRLLM_MAX_CONVERSIONS];
    size_t n_conversions;
    uint64_t bytes_by_format[DRLLM_FORMAT_BF16 + 1]; /* of the blocks' matrices as stored; q8c as I8 */
};

/* A matrix as the file holds it. */
struct drllm_source {
    const char *name;
    enum drllm_format stored;
    const unsigned char *data;
    const float *scales; /* [rows], for q8c */
    size_t rows;
    size_t cols;
    size_t row_bytes;
    size_t bytes;
};

/* Memory that lives as long as the model; NULL on overflow or when there is none. */
void *drllm_weights_keep(struct drllm_loader *loader, size_t count, size_t size);
/* DRLLM_ERR_MEMORY, with the tensor's name. */
int drllm_weights_out_of_memory(const struct drllm_loader *loader, const char *name);

/* One row of the source as floats[cols]. */
void drllm_weights_dequantize_row(const struct drllm_source *source, size_t row, float *out);

/* Fill in `matrix`, whose format, rows and cols are set: interleaved for our kernels in
 * loader->packed, which has room for it, or packed by XNNPACK. Errors:
 * FORMAT (NaN or infinite weights), UNSUPPORTED, MEMORY, STATE, SYSTEM. */
int drllm_weights_pack(struct drllm_loader *loader, const struct drllm_source *source, struct drllm_matrix *matrix);
int drllm_weights_pack_for_xnn(struct drllm_loader *loader, const struct drllm_source *source,
                               struct drllm_matrix *matrix);

#endif
