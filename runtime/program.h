/* Layer programs: how often each block runs. The text form is described in drllm.h. */
#ifndef DRLLM_RUNTIME_PROGRAM_H
#define DRLLM_RUNTIME_PROGRAM_H

#include "runtime/drllm.h"

enum { DRLLM_MAX_COUNT = 2 }; /* executions of a block in a row */

/* Whether every count is 0, 1 or 2. */
bool drllm_program_is_valid(const uint8_t *counts, size_t n_layers);

/* The sum of the counts. */
size_t drllm_program_executions(const uint8_t *counts, size_t n_layers);

#endif
