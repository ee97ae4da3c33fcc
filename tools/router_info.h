/* Router files as they are looked at: opened with a message, and described. */
#ifndef DRLLM_TOOLS_ROUTER_INFO_H
#define DRLLM_TOOLS_ROUTER_INFO_H

#include "runtime/router_file.h"
#include "tools/json.h"
#include "tools/mapped.h"

/* Whether the file says that it holds routers, sound or not. */
bool is_router_file(const struct mapped_gguf *mapped);
/* Read it anew and check all of it. Returns an exit code. The mapping must stay until the file is closed. */
int router_info_open(const struct command *command, const char *path, const struct mapped_gguf *mapped,
                     struct drllm_router_file *file);

/* Some lines on stdout. */
void router_info_print(const struct drllm_router_file *file);
cJSON *router_info_json(const struct drllm_router_file *file);

#endif
