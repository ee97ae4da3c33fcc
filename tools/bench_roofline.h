/* The roofline (Williams, Waterman and Patterson, Communications of the ACM 52, 2009): operations a second over operations
 * per byte of weights, below what memory and registers allow. */
#ifndef DRLLM_TOOLS_BENCH_ROOFLINE_H
#define DRLLM_TOOLS_BENCH_ROOFLINE_H

#include "tools/bench.h"
#include "tools/bench_kernels.h"

/* Draw the fastest of our kernels of each int4 and int8 format on the widest block matrix, and the models, with the first
 * number of threads, as SVG. `models` may be without rows. Returns an exit code. */
int bench_roofline_write(const char *path, const struct kernel_bench *kernels, const struct bench *models);

#endif
