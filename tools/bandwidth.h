/* How fast this machine reads memory. */
#ifndef DRLLM_TOOLS_BANDWIDTH_H
#define DRLLM_TOOLS_BANDWIDTH_H

/* Bytes a second that n_threads threads read together from memory that no cache holds, the best of several passes; 0
 * when it could not be measured for want of memory or threads. */
double measure_bandwidth(unsigned n_threads);

#endif
