/* Helpers of kernels whose formats and sizes of tiles reach them as constants, so that their loops unroll and the arrays
 * live in registers. */
#ifndef DRLLM_QUANT_INLINE_H
#define DRLLM_QUANT_INLINE_H

#define INLINE static inline __attribute__((always_inline))

/* For the loops that a compiler finds too large to unroll by itself. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
