/* Which of the programs that a search came by a group takes. */
#ifndef DRLLM_TOOLS_SEARCH_CHOOSE_H
#define DRLLM_TOOLS_SEARCH_CHOOSE_H

#include "tools/search.h"

/* The path's best reward, with what saved layers are worth, among the points that save options->min_saved (its last point,
 * if none does). verified: on the questions that were not searched on, so that full depth stays where nothing holds there. */
void choose_alone(const struct search_options *options, bool verified, struct path *path);

/* The points of all paths together that have the most right answers on the verifying questions, in the mean over paths,
 * among those that save mean_saved layers in the mean. False where the paths do not save so many: then what saves most. */
bool choose_together(struct path *paths, size_t n_paths, double mean_saved);

#endif
