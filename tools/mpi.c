#include "tools/mpi.h"

#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* mpirun passes Ctrl-C on as SIGTERM. To the process, since threads that compute take no SIGINT. */
static void on_terminate(int number) {
    (void)number;
    (void)kill(getpid(), SIGINT);
}

/* Ranks may wait for hours, and MPI_Wait alone would take the others' processor time meanwhile. */
static void sleep_until_done(MPI_Request *request) {
    const struct timespec moment = {.tv_nsec = 5000000};
    int done = 0;
    while (MPI_Test(request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done) {
        nanosleep(&moment, NULL);
    }
}

static size_t size_of(MPI_Comm group) {
    int size = 1;
    MPI_Comm_size(group, &size);
    return (size_t)size;
}

/* Errors end all ranks, with a message: MPI's default. */
struct ranks ranks_open(void) {
    int rank = 0, threads = 0;
    MPI_Comm machine;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    const struct ranks ranks = {(size_t)rank, size_of(MPI_COMM_WORLD), size_of(machine)};
    MPI_Comm_free(&machine);
    if (ranks.count > 1) {
        struct sigaction action = {.sa_handler = on_terminate, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        sigaction(SIGTERM, &action, NULL);
    }
    return ranks;
}

void ranks_close(void) {
    (void)fflush(NULL); /* mpirun ends the others when one exits with a failure */
    MPI_Finalize();
}

int ranks_worst(int exit_code) {
    int worst = exit_code;
    MPI_Request request;
    MPI_Iallreduce(&exit_code, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &request);
    sleep_until_done(&request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    return worst;
}

void ranks_sum(uint64_t *values, size_t n) {
    MPI_Request request;
    MPI_Iallreduce(MPI_IN_PLACE, values, (int)n, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &request);
    sleep_until_done(&request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
}
