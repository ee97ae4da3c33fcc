/* The tables of vector functions, one a backend, for their own files and the dispatch. */
#ifndef DRLLM_QUANT_VEC_KERNELS_H
#define DRLLM_QUANT_VEC_KERNELS_H

#include "quant/vec.h"

enum { DRLLM_SUM_RUN = 1024 }; /* of sum_exp, a multiple of 8 */

extern const struct drllm_vec_ops drllm_vec_ref;
#if defined(__x86_64__)
extern const struct drllm_vec_ops drllm_vec_avx2;
#elif defined(__aarch64__)
extern const struct drllm_vec_ops drllm_vec_neon;
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
extern const struct drllm_vec_ops drllm_vec_mve;
#endif

#endif
