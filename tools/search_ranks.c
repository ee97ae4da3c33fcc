#include "tools/search_ranks.h"

#include "runtime/drllm_os.h"
#include "tools/search.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *search_rank_output(const struct ranks *ranks, size_t rank, const char *output) {
    if (ranks->count == 1) {
        return copy_text(output);
    }
    const size_t size = strlen(output) + 64;
    char *path = allocate_bytes(size);
    snprintf(path, size, "%s.rank-%zu-of-%zu", output, rank + 1, ranks->count);
    return path;
}

static int merge(const struct command *command, const struct ranks *ranks, const char *output) {
    char **paths = allocate(ranks->count, sizeof *paths);
    for (size_t i = 0; i < ranks->count; i++) {
        paths[i] = search_rank_output(ranks, i, output);
    }
    const struct text_list files = {(const char **)paths, ranks->count};
    const int exit_code = search_merge(command, &files, output);
    for (size_t i = 0; i < ranks->count; i++) {
        free(paths[i]);
    }
    free((void *)paths);
    return exit_code;
}

int search_join_ranks(const struct command *command, const struct ranks *ranks, const char *output, int exit_code) {
    const bool is_first = ranks->rank == 0;
    exit_code = ranks_worst(exit_code);
    if (ranks->count == 1) {
        return exit_code;
    }
    if (exit_code == TOOL_OK) {
        exit_code = ranks_worst(is_first ? merge(command, ranks, output) : TOOL_OK);
    }
    if (exit_code == TOOL_OK) {
        char *path = search_rank_output(ranks, ranks->rank, output);
        (void)unlink(path);
        free(path);
    } else if (is_first && exit_code != TOOL_USAGE) {
        report(command, "the labels are not put together; the same command with %zu ranks goes on from %s.rank-*",
               ranks->count, output);
    }
    return exit_code;
}

int64_t search_rank_threads(const struct ranks *ranks) {
    const size_t share = drllm_default_threads() / ranks->here;
    return ranks->here == 1 ? 0 : share != 0 ? (int64_t)share : 1;
}
