/* Helpers of kernels whose formats and sizes of tiles reach them as constants, so that their loops unroll and the arrays
 * live in registers. */
#ifndef DRLLM_QUANT_INLINE_H
#define DRLLM_QUANT_INLINE_H

#define INLINE static inline __attribute__((always_inline))

#endif
