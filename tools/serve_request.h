/* What a client asks for: the bodies of /v1/completions and /v1/chat/completions, checked. */
#ifndef DRLLM_TOOLS_SERVE_REQUEST_H
#define DRLLM_TOOLS_SERVE_REQUEST_H

#include "tools/depth.h"
#include "tools/serve_error.h"

enum { SERVE_MOST_PROMPTS = 64, SERVE_MOST_STOPS = 16, SERVE_MOST_TOP = 20 };

/* What all requests share; it does not change once the server runs. */
struct serve_model {
    const struct command *command;
    const struct drllm_model *model;
    struct drllm_model_info info;
    const char *id;
    size_t n_context;
    size_t most_tokens;                   /* of an answer, whatever is asked for */
    struct drllm_sampler_params sampling; /* what a request leaves out */
    struct depth depth;                   /* the same; its routers are there for requests, too */
    int64_t created;                      /* seconds since 1970 */
};

struct serve_request {
    cJSON *json;  /* holds the texts */
    bool is_chat; /* otherwise a completion */
    bool stream;
    bool include_usage; /* of a stream, at its end */
    bool echo;
    bool ignore_end; /* "ignore_eos" */
    bool wants_log_probs;
    size_t n_top; /* likeliest tokens beside each */
    size_t max_tokens;
    struct tokens *prompts; /* [n_prompts] */
    size_t n_prompts;
    const char *stop[SERVE_MOST_STOPS];
    size_t n_stop;
    struct drllm_sampler sampler; /* seeded */
    struct drllm_depth depth;
    uint8_t *program; /* of depth, or NULL */
};

/* False with the error; release in any case. body is zero-terminated. */
bool serve_request_read(const struct serve_model *model, bool is_chat, const char *body, size_t size,
                        struct serve_request *request, struct serve_error *error);
void serve_request_release(struct serve_request *request);

/* Parse a body into an object; NULL with the error. */
cJSON *serve_parse(const char *body, size_t size, struct serve_error *error);
/* Text to tokens, ids from JSON to tokens; false with the error. */
bool serve_tokenize(const struct serve_model *model, const char *text, unsigned flags, struct tokens *tokens,
                    struct serve_error *error);
bool serve_token_ids(const struct serve_model *model, const cJSON *list, const char *param, struct tokens *tokens,
                     struct serve_error *error);

/* Fields; null is as if they were not there, and leaves *value as it is. */
bool serve_flag(const cJSON *json, const char *name, bool *value, struct serve_error *error);
bool serve_number(const cJSON *json, const char *name, double least, double most, bool whole, double *value,
                  struct serve_error *error);
bool serve_text(const cJSON *json, const char *name, const char **value, struct serve_error *error);

/* serve_depth.c: "depth", "program", "save_layers" and "router_p" into request->depth. */
bool serve_depth_read(const struct serve_model *model, struct serve_request *request, struct serve_error *error);

#endif
