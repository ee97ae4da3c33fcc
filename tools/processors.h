/* --prio and --cpu-list: where and behind whom a command computes. */
#ifndef DRLLM_TOOLS_PROCESSORS_H
#define DRLLM_TOOLS_PROCESSORS_H

#include "tools/common.h"

/* Before any thread is made. Without a list, on systems with two kinds of cores, the command keeps to the fast ones if it takes
 * no more threads than there are. An exit code, after a message. */
int use_processors(const struct command *command, const struct model_options *options);

#endif
