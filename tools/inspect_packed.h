/* drllm inspect of a packed model. */
#ifndef DRLLM_TOOLS_INSPECT_PACKED_H
#define DRLLM_TOOLS_INSPECT_PACKED_H

#include "tools/options.h"

/* By the file's beginning; false as well for what cannot be read. */
bool is_packed_model(const char *path);
/* Print the sections. verify: check every checksum first. Returns an exit code. */
int inspect_packed(const struct command *command, const char *path, bool verify, bool json);

#endif
