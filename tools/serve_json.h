/* The replies to completions, whole and in pieces. */
#ifndef DRLLM_TOOLS_SERVE_JSON_H
#define DRLLM_TOOLS_SERVE_JSON_H

#include "tools/serve_answer.h"

/* What the pieces of one reply share. */
struct serve_reply {
    const struct serve_model *model;
    const struct serve_request *request;
    char id[40];
    int64_t created;
};

/* The whole reply to a request that was answered. */
cJSON *serve_reply_json(const struct serve_reply *reply, const struct serve_choice *choices);

/* What a stream has sent of a choice. */
struct serve_sent {
    size_t text;      /* bytes */
    size_t log_probs; /* tokens */
    bool has_begun;
};
/* A piece: what came since, and with `is_end` why it ended. */
cJSON *serve_piece_json(const struct serve_reply *reply, size_t index, const struct serve_choice *choice,
                        struct serve_sent *sent, bool is_end);
/* The last piece of a stream with include_usage. */
cJSON *serve_usage_piece_json(const struct serve_reply *reply, const struct serve_choice *choices);

/* "data: JSON\n\n"; frees the JSON. */
void serve_event(struct text *text, cJSON *json);

#endif
