/* How fast a processor multiplies and adds with everything in registers: what no kernel of the same instructions can
 * pass. One loop for each instruction set, for int8 and for floats; measured by drllm bench --kernels. */
#ifndef DRLLM_QUANT_PEAK_H
#define DRLLM_QUANT_PEAK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Runs n_rounds rounds. The value is there so that no compiler leaves them out. */
typedef int32_t (*drllm_peak_fn)(size_t n_rounds);

struct drllm_peak {
    const char *name;      /* "int8_avx2" */
    bool is_float;         /* the float formats' kernels multiply and add floats, without fusing them */
    uint64_t cpu_features; /* DRLLM_CPU_* bits that must be there */
    drllm_peak_fn run;
    size_t round_ops; /* operations of a round: a multiplication and an addition are two */
};

/* DRLLM_PEAK(type, backend, cpu features, operations a round): symbol drllm_peak_<type>_<backend>. Best first. */
#if defined(__x86_64__)
#define DRLLM_PEAKS(X)                                                     \
    X(int8, avx512vnni, DRLLM_CPU_AVX512 | DRLLM_CPU_AVX512VNNI, 16 * 128) \
    X(int8, avxvnni, DRLLM_CPU_AVX2 | DRLLM_CPU_AVXVNNI, 8 * 64)           \
    X(int8, avx2, DRLLM_CPU_AVX2, 8 * 64)                                  \
    X(float, avx2, DRLLM_CPU_AVX2, 8 * 16)                                 \
    X(int8, ref, 0, DRLLM_PEAK_REF_OPS)                                    \
    X(float, ref, 0, DRLLM_PEAK_REF_OPS)
#elif defined(__aarch64__)
#define DRLLM_PEAKS(X)                                                              \
    X(int8, neoni8mm, DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD | DRLLM_CPU_I8MM, 16 * 64) \
    X(int8, neondot, DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD, 16 * 32)                   \
    X(int8, neon, DRLLM_CPU_NEON, 8 * 32)                                           \
    X(float, neon, DRLLM_CPU_NEON, 8 * 8)                                           \
    X(int8, ref, 0, DRLLM_PEAK_REF_OPS)                                             \
    X(float, ref, 0, DRLLM_PEAK_REF_OPS)
#elif defined(__arm__) && __ARM_ARCH_PROFILE == 'A'
#define DRLLM_PEAKS(X)                    \
    X(int8, neon, DRLLM_CPU_NEON, 8 * 32) \
    X(float, neon, DRLLM_CPU_NEON, 8 * 8) \
    X(int8, ref, 0, DRLLM_PEAK_REF_OPS)   \
    X(float, ref, 0, DRLLM_PEAK_REF_OPS)
#else
#define DRLLM_PEAKS(X)                  \
    X(int8, ref, 0, DRLLM_PEAK_REF_OPS) \
    X(float, ref, 0, DRLLM_PEAK_REF_OPS)
#endif

enum { DRLLM_PEAK_REF_OPS = 2 * 1024 };

#define DRLLM_PEAK_DECLARE(type, backend, features, ops) int32_t drllm_peak_##type##_##backend(size_t n_rounds);
DRLLM_PEAKS(DRLLM_PEAK_DECLARE)
#undef DRLLM_PEAK_DECLARE

/* All that this build has for the architecture. */
const struct drllm_peak *drllm_peaks(size_t *n_peaks);
/* The best of those that need no more than these features. Never NULL: the portable one needs none. */
const struct drllm_peak *drllm_peak_choose(bool is_float, uint64_t cpu_features);

#endif
