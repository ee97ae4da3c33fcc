/* What a search found so far, in a file beside its output, so that an interrupted one goes on: a line of JSON for each
 * program that was accepted and for each group that is finished. */
#ifndef DRLLM_TOOLS_SEARCH_STATE_H
#define DRLLM_TOOLS_SEARCH_STATE_H

#include "tools/search.h"

struct state_entry {
    char *group;
    uint8_t *counts; /* NULL: the group is finished */
    size_t step;     /* as in struct found */
    double layer_value;
    bool repeats;
};

struct search_state {
    const struct command *command;
    char *path;
    FILE *stream;
    struct state_entry *entries;
    size_t n_entries;
    size_t n_layers;
};

/* Read OUTPUT.state if it is there, and open it for more. One of another search (fingerprint) is refused, or replaced if
 * restart. Returns an exit code; close in any case. */
int search_state_open(const struct command *command, const char *output, uint64_t fingerprint, bool restart,
                      size_t n_layers, struct search_state *state);
/* finished: the file is removed, since the output is there. */
void search_state_close(struct search_state *state, bool finished);

/* Program number i of a group, NULL behind the last. */
const struct state_entry *search_state_get(const struct search_state *state, const char *group, size_t i);
bool search_state_is_done(const struct search_state *state, const char *group);

/* False, after a message, when nothing can be written any more. */
bool search_state_add(struct search_state *state, const char *group, const struct found *point, size_t n_layers);
bool search_state_finish(struct search_state *state, const char *group);

#endif
