/* Programs that leave as many blocks out for all questions: what routing is compared with. */
#ifndef DRLLM_TOOLS_EVAL_MASKS_H
#define DRLLM_TOOLS_EVAL_MASKS_H

#include "tools/search.h"

/* 1 - cos(hidden state ahead of a block, hidden state behind it), averaged over all tokens of the questions' prompts:
 * influence[n_layers]. Returns an exit code. */
int block_influence(const struct command *command, const struct drllm_model *model, struct workers *workers,
                    const struct question *const *questions, size_t n_questions, double *influence);

/* Without the n blocks that have the least influence; of equal ones the first. */
void influence_mask(const double *influence, size_t n_layers, size_t n_removed, uint8_t *counts);

/* Without n blocks, neither the first nor the last among them. The masks of a seed are nested. False where there are
 * not so many. */
bool random_mask(uint64_t seed, size_t n_layers, size_t n_removed, uint8_t *counts);

/* The best programs that save 0 .. most_saved executions, for all questions of a group together: a walk that takes one
 * execution away at a time, each time the one whose loss harms the mean reward least, and then looks whether another
 * execution, added, makes a better program of the length before. programs [most_saved + 1][n_layers]. Returns an exit
 * code. */
int static_search(const struct command *command, struct workers *workers, const struct group *group, size_t n_layers,
                  size_t most_saved, uint8_t *programs);

#endif
