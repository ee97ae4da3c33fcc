/* How fast this machine reads memory. */
#ifndef DRLLM_TOOLS_BANDWIDTH_H
#define DRLLM_TOOLS_BANDWIDTH_H

#include <stdint.h>

/* Memory that no cache holds, and threads that read it. */
struct reader;

/* NULL for want of memory or threads. */
struct reader *reader_open(unsigned n_threads);
void reader_close(struct reader *reader); /* NULL: nothing */
/* The threads together read so many bytes, but for less than 128. Returns how many; *ns is the time. */
double reader_read(struct reader *reader, double bytes, uint64_t *ns);

/* Bytes a second, the best of several passes. */
double reader_bandwidth(struct reader *reader);

/* The same of a reader of its own; 0 when it could not be measured. */
double measure_bandwidth(unsigned n_threads);

#endif
