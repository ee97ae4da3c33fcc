/* Why a request was not answered, in the form that OpenAI's clients know. */
#ifndef DRLLM_TOOLS_SERVE_ERROR_H
#define DRLLM_TOOLS_SERVE_ERROR_H

#include "tools/json.h"

struct serve_error {
    int status;        /* of HTTP; 0: no error */
    const char *code;  /* static, or NULL */
    const char *param; /* the field, static, or NULL */
    char message[512];
};

/* Fill it in; code and param may be NULL. Always returns false. */
bool serve_fail(struct serve_error *error, int status, const char *code, const char *param, const char *format, ...)
    PRINTF_LIKE(5, 6);

/* {"error": {"message", "type", "param", "code"}} */
cJSON *serve_error_json(const struct serve_error *error);

#endif
