/* The paths of `drllm serve`, and the replies that need no session. */
#ifndef DRLLM_TOOLS_SERVE_ROUTES_H
#define DRLLM_TOOLS_SERVE_ROUTES_H

#include "tools/serve_queue.h"

enum serve_route {
    SERVE_NOWHERE,
    SERVE_COMPLETIONS,
    SERVE_CHAT,
    SERVE_HEALTH,
    SERVE_MODELS,
    SERVE_MODEL, /* /v1/models/ID */
    SERVE_TOKENIZER_INFO,
    SERVE_TOKENIZE,
    SERVE_DETOKENIZE
};

enum serve_route serve_route_find(const char *path);
/* "GET, HEAD" or "POST" */
const char *serve_route_methods(const char *path);
/* False with an error of 404 or 405. */
bool serve_route_check(const char *path, const char *method, struct serve_error *error);

/* The reply of a route other than the completions, NULL with the error. body is zero-terminated. */
cJSON *serve_route_reply(const struct serve_model *model, enum serve_route route, const char *path,
                         const struct serve_counts *counts, const char *body, size_t size, struct serve_error *error);

#endif
