/* Choice of the vector functions. */
#include "quant/vec_kernels.h"

static const struct drllm_vec_ops *const backends[] = {
#if defined(__x86_64__)
    &drllm_vec_avx2,
#elif defined(__aarch64__)
    &drllm_vec_neon,
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
    &drllm_vec_mve,
#endif
    &drllm_vec_ref,
};

const struct drllm_vec_ops *const *drllm_vec_backends(size_t *n) {
    *n = sizeof backends / sizeof backends[0];
    return backends;
}

const struct drllm_vec_ops *drllm_vec_choose(uint64_t cpu_features) {
    size_t n;
    const struct drllm_vec_ops *const *all = drllm_vec_backends(&n);
    for (size_t i = 0; i + 1 < n; i++) {
        if ((all[i]->cpu_features & ~cpu_features) == 0) {
            return all[i];
        }
    }
    return all[n - 1];
}
