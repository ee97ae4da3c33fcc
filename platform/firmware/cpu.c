/* The processor that the library was compiled for is the one that it runs on. */
#include "platform/cpu.h"

uint64_t drllm_cpu_detect(void) {
    uint64_t features = 0;
#if defined(__aarch64__)
    features |= DRLLM_CPU_NEON;
#endif
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) != 0
    features |= DRLLM_CPU_MVE;
#elif defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
    features |= DRLLM_CPU_DSP;
#endif
    return features;
}

void drllm_cpu_restrict_cpuinfo(uint64_t mask) {
    (void)mask;
}

unsigned drllm_cpu_default_threads(void) {
    return 1;
}
