/* Groups of questions that look alike to the model, for data without task names. */
#ifndef DRLLM_TOOLS_SEARCH_CLUSTERS_H
#define DRLLM_TOOLS_SEARCH_CLUSTERS_H

#include "tools/questions.h"
#include "tools/workers.h"

/* k-means over the mean hidden state of each prompt ahead of the block a third of the way up. cluster_of
 * [questions->count]. The same seed gives the same clusters. Returns an exit code. */
int cluster_questions(const struct command *command, struct workers *workers, const struct drllm_model *model,
                      const struct questions *questions, size_t k, uint64_t seed, size_t *cluster_of);

#endif
