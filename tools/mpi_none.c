/* A build without MPI. */
#include "tools/mpi.h"

struct ranks ranks_open(void) {
    return (struct ranks){.rank = 0, .count = 1, .here = 1};
}

void ranks_close(void) {}

int ranks_worst(int exit_code) {
    return exit_code;
}

void ranks_sum(uint64_t *values, size_t n) {
    (void)values;
    (void)n;
}
