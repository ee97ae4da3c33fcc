/* What this processor can do. Detection is cpuinfo's; the answer is a set of bits, so that a caller can mask bits
 * out and run, test or measure the code paths of lesser processors on a better one. */
#ifndef DRLLM_PLATFORM_CPU_H
#define DRLLM_PLATFORM_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(NAME, bit, text): the text is what --cpu-mask and `drllm bench` use. The numbers are pinned: they are public
 * API. */
#define DRLLM_CPU_FEATURES(X)      \
    X(AVX2, 0, "avx2")             \
    X(FMA, 1, "fma")               \
    X(F16C, 2, "f16c")             \
    X(AVXVNNI, 3, "avxvnni")       \
    X(AVX512, 4, "avx512")         \
    X(AVX512VNNI, 5, "avx512vnni") \
    X(NEON, 16, "neon")            \
    X(DOTPROD, 17, "dotprod")      \
    X(I8MM, 18, "i8mm")            \
    X(FP16, 19, "fp16")            \
    X(MVE, 20, "mve")              \
    X(DSP, 21, "dsp")

enum {
#define DRLLM_CPU_BIT(name, bit, text) DRLLM_CPU_##name = 1 << (bit),
    DRLLM_CPU_FEATURES(DRLLM_CPU_BIT)
#undef DRLLM_CPU_BIT
};

/* The features of the running processor, 0 where none of the above is there (or where cpuinfo fails). AVX512 stands for
 * F, BW, DQ, VL and CD together; NEON of 32-bit systems for NEON that converts halves (VFPv4). Thread-safe. */
uint64_t drllm_cpu_detect(void);

/* Hide every feature outside `mask` from libraries that ask cpuinfo themselves (XNNPACK). Must run before the first of
 * them starts and is process-wide, because cpuinfo's answer is. */
void drllm_cpu_restrict_cpuinfo(uint64_t mask);

/* Parse a comma-separated list ("avx2,f16c"), "none", "all", or a level ("portable", "x86-avx2", "arm-neon",
 * "arm-dotprod", "arm-i8mm"). False on an unknown word, with the word copied (cut if need be) into `unknown`. */
bool drllm_cpu_parse_mask(const char *text, uint64_t *mask, char *unknown, size_t unknown_size);

/* Write the names of the set bits, separated by commas ("none" for 0), into `text`, cut to fit. */
void drllm_cpu_format(uint64_t features, char *text, size_t size);

/* The number of cores that a compute-bound program should use: physical, and the big cluster where there are two kinds;
 * never more than the scheduler allows this process. At least 1. */
unsigned drllm_cpu_default_threads(void);

#endif
