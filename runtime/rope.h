/* Rotary position embedding. Source: RoFormer (arXiv 2104.09864); rope_freqs as Llama 3.1 publishes them. */
#ifndef DRLLM_RUNTIME_ROPE_H
#define DRLLM_RUNTIME_ROPE_H

#include <stddef.h>

/* frequency[i] = theta^(-2i/n_rot) / (linear_factor * factors[i]), i < n_rot / 2. factors may be NULL. */
void drllm_rope_frequencies(double *frequency, size_t n_rot, double theta, double linear_factor, const float *factors);

/* cos_sin[2i], cos_sin[2i+1]: cosine and sine of position * frequency[i], for n_pairs pairs. */
void drllm_rope_angles(float *cos_sin, const double *frequency, size_t n_pairs, size_t position);

#endif
