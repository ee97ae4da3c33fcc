/* A synthetic model for as long as it takes to open it. */
#ifndef DRLLM_TOOLS_BENCH_SYNTHETIC_H
#define DRLLM_TOOLS_BENCH_SYNTHETIC_H

#include "tools/common.h"

/* The names alone: whether they could be made. Returns an exit code. */
int bench_synthetic_check(const struct command *command, const char *shape, const char *format);
/* Write it to a folder of its own under $TMPDIR or /tmp. *path is to be freed. Returns an exit code. */
int bench_synthetic_make(const struct command *command, const char *shape, const char *format, char **path);
/* The file and its folder. A model that is open keeps what it has mapped. */
void bench_synthetic_remove(const char *path);

#endif
