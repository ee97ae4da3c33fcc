#include "runtime/rope.h"

#include "runtime/math.h"

void drllm_rope_frequencies(double *frequency, size_t n_rot, double theta, double linear_factor, const float *factors) {
    const double log_theta = drllm_log(theta);
    for (size_t i = 0; i < n_rot / 2; i++) {
        const double factor = factors == NULL ? 1.0 : (double)factors[i];
        frequency[i] = drllm_exp(-log_theta * (double)(2 * i) / (double)n_rot) / (linear_factor * factor);
    }
}

void drllm_rope_angles(float *cos_sin, const double *frequency, size_t n_pairs, size_t position) {
    for (size_t i = 0; i < n_pairs; i++) {
        double sine;
        double cosine;
        drllm_sin_cos((double)position * frequency[i], &sine, &cosine);
        cos_sin[2 * i] = (float)cosine;
        cos_sin[2 * i + 1] = (float)sine;
    }
}
