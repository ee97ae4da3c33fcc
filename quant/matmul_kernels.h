/* Declarations of every kernel, made from the table. For the kernels' own files and the dispatch. */
#ifndef DRLLM_QUANT_MATMUL_KERNELS_H
#define DRLLM_QUANT_MATMUL_KERNELS_H

#include "platform/cpu.h"
#include "quant/matmul.h"

#define DRLLM_DECLARE_Q8(format, backend)                                                                            \
    void drllm_matmul_##format##_##backend(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups, \
                                           const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy);
#define DRLLM_Q8_KERNEL(FORMAT, format, backend, features) DRLLM_DECLARE_Q8(format, backend)
#define DRLLM_FLOAT_KERNEL(FORMAT, format, backend, features)                                                    \
    void drllm_matmul_##format##_##backend(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, \
                                           const float *x, size_t ldx, size_t n_tokens, float *y, size_t ldy);
#include "quant/kernels.inc"
#undef DRLLM_Q8_KERNEL
#undef DRLLM_FLOAT_KERNEL

#endif
