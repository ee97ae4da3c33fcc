/* A drawing of what each block did for a prompt. */
#ifndef DRLLM_TOOLS_TRACE_H
#define DRLLM_TOOLS_TRACE_H

#include "tools/depth.h"

#define TRACE_OPTION(o) \
    OPT_FLAG(0, "trace", &(o)->trace, "draw on stderr which blocks run for the prompt, and how clear that was")

/* One line about the program and one for each block: skip, run or repeat, and where a router decided its margin as a
 * number and as a bar. The session's context must not be empty. */
void trace_print(FILE *stream, const struct drllm_session *session, const struct depth *depth);

#endif
