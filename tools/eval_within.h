/* What choosing among a few programs could add: the programs of a labels file, each on all questions. */
#ifndef DRLLM_TOOLS_EVAL_WITHIN_H
#define DRLLM_TOOLS_EVAL_WITHIN_H

#include "tools/eval_report.h"

enum { WITHIN_MOST_PROGRAMS = 16 };

/* The different programs that labels name, the most frequent first, and full depth: programs [returned][n_layers],
 * to be freed. At most WITHIN_MOST_PROGRAMS. n_bad counts those that are none. */
size_t within_programs(const struct command *command, const struct questions *labels, size_t n_layers,
                       uint8_t **programs, size_t *n_bad);

/* A list, an object a task: accuracies of "full" depth, the task's "own" program (its labels' most frequent one, or
 * full depth), the "best" single one and the "oracle", which answers what any of them answers; the last two are
 * picked with the answers known. "routed" is what the first run of routers reaches, null without one. */
cJSON *within_json(const struct eval_results *results, const struct questions *labels, const struct eval_run *run);

void within_print(FILE *stream, const cJSON *within);

#endif
