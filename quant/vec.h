/* The network's vector functions. One table of pointers per backend; vec_ref.c defines the values, and every other
 * backend gives the same bits: sums run over 8 lanes (element i in lane i % 8) and are folded
 * ((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7)); no fused multiply-add; exp is the one of vec_ref.c. */
#ifndef DRLLM_QUANT_VEC_H
#define DRLLM_QUANT_VEC_H

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

    /* Attention. Keys lie in blocks of 8 positions: k[(j/8) * block_stride + d*8 + j%8], F16.
     * s[r*lds + j] = sum over d, in order, of q[r*ldq + d] * k[j][d], for j < 8*n_blocks, r < n_rows. */
    void (*attention_scores)(const float *q, size_t ldq, size_t n_rows, const uint16_t *k, size_t block_stride,
                             size_t n_blocks, size_t head_dim, float *s, size_t lds);
    /* In place: s = exp(s*scale - max(s*scale)); returns the sum. -INFINITY gives exactly 0. n is a multiple of 8,
     * and at least one value is finite, none plus infinity. */
    float (*softmax_exp)(float *s, size_t n, float scale);
    /* o[r*ldo + d] = (sum over j, in order, of p[r*ldp + j] * v[j*v_stride + d]) * inverse[r]; v is F16, head_dim a
     * multiple of 8. */
    void (*attention_values)(const float *p, size_t ldp, size_t n_rows, const uint16_t *v, size_t v_stride,
                             size_t n_keys, size_t head_dim, const float *inverse, float *o, size_t ldo);
};

/* The best table for a processor with these features (DRLLM_CPU_*). Never NULL. */
const struct drllm_vec_ops *drllm_vec_choose(uint64_t cpu_features);
/* All tables of this build, the portable one last. */
const struct drllm_vec_ops *const *drllm_vec_backends(size_t *n);

/* The same two over keys and values in F32, for the F32 reference network; portable only. Strides are in floats. */
void drllm_attention_scores_f32(const float *q, size_t ldq, size_t n_rows, const float *k, size_t block_stride,
                                size_t n_blocks, size_t head_dim, float *s, size_t lds);
void drllm_attention_values_f32(const float *p, size_t ldp, size_t n_rows, const float *v, size_t v_stride,
                                size_t n_keys, size_t head_dim, const float *inverse, float *o, size_t ldo);

/* exp(x) within 2 units in the last place, one sequence of operations on every machine; 0 below -87.3, never
 * infinite: x is held at 88.3 above. NaN gives an unspecified value. */
float drllm_expf(float x);

#endif
