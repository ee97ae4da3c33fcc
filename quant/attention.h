/* The kernels of attention, part of each backend's table (vec.h). They run over a tile of keys at a time and carry each
 * row's largest score, sum of weights and weighted values from tile to tile; attention_ref.c defines the values, and
 * every backend gives the same bits. Blocks of keys and values are those of kv_block.h in F32 or F16, block_bytes apart;
 * F16 is exact in F32, so that a block and its expansion give the same bits, too. */
#ifndef DRLLM_QUANT_ATTENTION_H
#define DRLLM_QUANT_ATTENTION_H

#include "quant/kv_block.h"

struct drllm_attention_ops {
    /* s[r*lds + j] = sum over d, in order, of q[r*ldq + d] * k[j][d], for j < 8*n_blocks, r < n_rows. */
    void (*scores)(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const void *k,
                   size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds);
    /* The weights of rows s[r*lds + 0 .. n-1], to the base 2: max[r] becomes the largest of itself and the row's s,
     * factor[r] = exp2(old max - new max), s = exp2(s - max[r]), sum[r] = sum[r] * factor[r] + the sum of the row's s
     * (over 8 lanes, folded as in vec.h). -INFINITY gives exactly 0. n is a multiple of 8; a row begins with max
     * -INFINITY and sum 0, and one of its first tile's scores is finite, none plus infinity. */
    void (*softmax)(float *s, size_t lds, size_t n_rows, size_t n, float *max, float *sum, float *factor);
    /* o[r*ldo + d] = o[r*ldo + d] * factor[r], then plus p[r*ldp + j] * v[j][d] for each j < n_keys, in order. head_dim
     * is a multiple of 8. */
    void (*values)(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const void *v,
                   size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor, float *o, size_t ldo);
    /* For a Q8_0 cache, a row of weights as the activations of q8c: q[r*DRLLM_KV_TILE + j], scale[r] and sum[r] are
     * those of s[r*lds + j] * scales[j] under quantize_q8 of vec.h, j < n, with q of 0 behind n. Nothing is negative;
     * n is a multiple of 8, at most DRLLM_KV_TILE. */
    void (*quantize)(const float *s, size_t lds, size_t n_rows, size_t n, const float *scales, int8_t *q, float *scale,
                     int32_t *sum);
    /* o[r*ldo + d] = o[r*ldo + d] * factor[r] + added[r*ldo + d]; n, a multiple of 8, is a row's length. */
    void (*accumulate)(const float *added, size_t n_rows, size_t n, const float *factor, float *o, size_t ldo);
    /* Blocks of keys or values in F16 as blocks of F32 without gaps, which many rows then read faster. */
    void (*expand)(const void *blocks, size_t block_bytes, size_t n_blocks, size_t head_dim, float *out);
};

extern const struct drllm_attention_ops drllm_attention_ref;
#if defined(__x86_64__)
extern const struct drllm_attention_ops drllm_attention_avx2;
#elif defined(__aarch64__)
extern const struct drllm_attention_ops drllm_attention_neon;
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
extern const struct drllm_attention_ops drllm_attention_mve;
#endif

struct drllm_vec_ops;
/* The definition of `quantize`, by means of a table's quantize_q8. */
void drllm_attention_quantize(const struct drllm_vec_ops *vec, const float *s, size_t lds, size_t n_rows, size_t n,
                              const float *scales, int8_t *q, float *scale, int32_t *sum);
/* The definition of `accumulate`, for tables that have none of their own. */
void drllm_attention_accumulate(const float *added, size_t n_rows, size_t n, const float *factor, float *o, size_t ldo);

/* 2^x for x <= 0 within 2 units in the last place, one sequence of operations on every machine; 0 below -126.5 and for
 * NaN. Unspecified above 0. */
float drllm_exp2f(float x);

#endif
