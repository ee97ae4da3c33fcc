/* The ranks that `drllm search` is spread over: those of mpirun in a build with MPI=1 (mpi.c), otherwise one (mpi_none.c).
 * What says that all ranks call it does not return before they do; ranks_open comes first. */
#ifndef DRLLM_TOOLS_MPI_H
#define DRLLM_TOOLS_MPI_H

#include <stddef.h>
#include <stdint.h>

struct ranks {
    size_t rank; /* this one, from 0 on */
    size_t count;
    size_t here; /* on this machine */
};

/* All ranks. */
struct ranks ranks_open(void);
void ranks_close(void);
/* The greatest exit code of all ranks. */
int ranks_worst(int exit_code);
/* Make each value its sum over all ranks. */
void ranks_sum(uint64_t *values, size_t n);

#endif
