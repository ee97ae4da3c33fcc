/* How often this machine holds up a program that does nothing: what of late tokens is not the program's. */
#ifndef DRLLM_TOOLS_STALLS_H
#define DRLLM_TOOLS_STALLS_H

#include <stddef.h>

struct stalls {
    size_t n;       /* on all threads together */
    double seconds; /* measured; 0 when there were no threads to be had */
};

/* n_threads threads read the clock over and over for so many seconds; a stall is longer than longest_ms. */
struct stalls measure_stalls(unsigned n_threads, double seconds, double longest_ms);

#endif
