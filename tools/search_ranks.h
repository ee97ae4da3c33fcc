/* A search that is spread over ranks: each is a shard with files of its own beside the output. */
#ifndef DRLLM_TOOLS_SEARCH_RANKS_H
#define DRLLM_TOOLS_SEARCH_RANKS_H

#include "tools/common.h"
#include "tools/mpi.h"

/* Where a rank's labels go until all are done, to be freed; the output itself where there is but one. */
char *search_rank_output(const struct ranks *ranks, size_t rank, const char *output);

/* All ranks, each with its exit code. If none failed the first puts their labels together, and their files are removed;
 * otherwise these stay, to go on from. Returns one exit code for all. */
int search_join_ranks(const struct command *command, const struct ranks *ranks, const char *output, int exit_code);

/* Default threads for a rank: the machine's are shared with the others on it. 0: all of them. */
int64_t search_rank_threads(const struct ranks *ranks);

#endif
