/* Rows out of packed matrices (matmul.h describes the layout): embeddings that share their bytes with the head. */
#ifndef DRLLM_QUANT_UNPACK_H
#define DRLLM_QUANT_UNPACK_H

#include "quant/formats.h"

struct drllm_matrix;

/* Row `row` of a matrix that our kernels run, as floats[cols]: bit for bit what drllm_dequantize_row makes of the row
 * that was packed (q8c: scale * q). */
void drllm_dequantize_packed_row(const struct drllm_matrix *matrix, size_t row, float *out);

#endif
