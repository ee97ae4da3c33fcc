/* The generic timer of AArch64. */
#include "runtime/drllm_fw.h"

uint64_t drllm_fw_clock_ns(void) {
    uint64_t ticks, frequency;
    __asm__ volatile("isb\n\tmrs %0, cntvct_el0\n\tmrs %1, cntfrq_el0" : "=r"(ticks), "=r"(frequency));
    return ticks / frequency * 1000000000 + ticks % frequency * 1000000000 / frequency;
}
