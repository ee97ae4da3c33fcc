#ifndef DRLLM_PLATFORM_CLOCK_H
#define DRLLM_PLATFORM_CLOCK_H

#include <stdint.h>

/* Nanoseconds of a clock that never goes backwards; its zero is arbitrary. */
uint64_t drllm_clock_ns(void);

#endif
