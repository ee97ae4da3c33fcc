/* The network's vector functions. One table of pointers per backend; vec_ref.c defines the values, and every other
 * backend gives the same bits: sums run over 8 lanes (element i in lane i % 8) and are folded
 * ((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7)); no fused multiply-add; exp is the one of vec_ref.c. */
#ifndef DRLLM_QUANT_VEC_H
#define DRLLM_QUANT_VEC_H

#include "quant/attention.h"

#include <stddef.h>
#include <stdint.h>

struct drllm_vec_ops {
    const char *backend;
    uint64_t cpu_features;

    /* y = x / sqrt(mean(x^2) + eps) * weight. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *weight, size_t n, float eps);
    /* y += x */
    void (*add)(float *y, const float *x, size_t n);
    /* y = y / (1 + exp(-y)) * up */
    void (*silu_mul)(float *y, const float *up, size_t n);
    /* Rotate neighbouring pairs: (x[2i], x[2i+1]) by the angle whose cos and sin are cos_sin[2i], cos_sin[2i+1]. */
    void (*rope)(float *x, const float *cos_sin, size_t n_pairs);
    /* Round to nearest even. */
    void (*to_f16)(uint16_t *y, const float *x, size_t n);

    /* Quantise groups of `group` values (a multiple of 32 but for vec_ref, dividing n): scale = max|x| / 127,
     * q = nearest-even(x * (127 / max|x|)); a group of zeros gets scale 0. sum and ssum as in struct drllm_q8_row.
     * NaN gives an unspecified q in [-128,127], never undefined behaviour. */
    void (*quantize_q8)(const float *x, size_t n, size_t group, int8_t *q, float *scale, int32_t *sum, float *ssum);
    /* *max = max(x), and the sum over i of exp(x[i] - *max): in F32 over runs of 1024, in double over the runs. n > 0, no x
     * is NaN. */
    double (*sum_exp)(const float *x, size_t n, float *max);

    const struct drllm_attention_ops *attention;
};

/* The best table for a processor with these features (DRLLM_CPU_*). Never NULL. */
const struct drllm_vec_ops *drllm_vec_choose(uint64_t cpu_features);
/* All tables of this build, the portable one last. */
const struct drllm_vec_ops *const *drllm_vec_backends(size_t *n);

/* exp(x) within 2 units in the last place, one sequence of operations on every machine; 0 below -87.3, never
 * infinite: x is held at 88.3 above. NaN gives an unspecified value. */
float drllm_expf(float x);

#endif
