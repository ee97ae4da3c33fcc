/* Attention over keys and values in F32: vec_ref.c's without the conversion. */
#include "quant/vec.h"

#include <string.h>

enum { LANES = 8 };

void drllm_attention_scores_f32(const float *q, size_t ldq, size_t n_rows, const float *k, size_t block_stride,
                                size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            float acc[LANES] = {0};
            for (size_t d = 0; d < head_dim; d++) {
                for (size_t lane = 0; lane < LANES; lane++) {
                    acc[lane] += q[r * ldq + d] * k[b * block_stride + d * LANES + lane];
                }
            }
            memcpy(s + r * lds + b * LANES, acc, sizeof acc);
        }
    }
}

void drllm_attention_values_f32(const float *p, size_t ldp, size_t n_rows, const float *v, size_t v_stride,
                                size_t n_keys, size_t head_dim, const float *inverse, float *o, size_t ldo) {
    for (size_t r = 0; r < n_rows; r++) {
        float *row = o + r * ldo;
        memset(row, 0, head_dim * sizeof *row);
        for (size_t j = 0; j < n_keys; j++) {
            for (size_t d = 0; d < head_dim; d++) {
                row[d] += p[r * ldp + j] * v[j * v_stride + d];
            }
        }
        for (size_t d = 0; d < head_dim; d++) {
            row[d] *= inverse[r];
        }
    }
}
