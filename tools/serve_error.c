#include "tools/serve_error.h"

#include <stdarg.h>
#include <string.h>

bool serve_fail(struct serve_error *error, int status, const char *code, const char *param, const char *format, ...) {
    va_list arguments;
    error->status = status;
    error->code = code;
    error->param = param;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return false;
}

static const char *type_of(int status) {
    return status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
}

static void add_text_or_null(cJSON *object, const char *key, const char *text) {
    cJSON_AddItemToObject(object, key, text != NULL ? cJSON_CreateString(text) : cJSON_CreateNull());
}

cJSON *serve_error_json(const struct serve_error *error) {
    cJSON *json = cJSON_CreateObject();
    cJSON *object = cJSON_AddObjectToObject(json, "error");
    cJSON_AddItemToObject(object, "message", json_text(error->message, strlen(error->message)));
    cJSON_AddStringToObject(object, "type", type_of(error->status));
    add_text_or_null(object, "param", error->param);
    add_text_or_null(object, "code", error->code);
    return json;
}
