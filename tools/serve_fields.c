/* Single fields of a request. */
#include "tools/jsonl.h"
#include "tools/serve_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const cJSON *field(const cJSON *json, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    return cJSON_IsNull(item) ? NULL : item;
}

bool serve_flag(const cJSON *json, const char *name, bool *value, struct serve_error *error) {
    const cJSON *item = field(json, name);
    if (item == NULL) {
        return true;
    }
    if (!cJSON_IsBool(item)) {
        return serve_fail(error, 400, NULL, name, "%s must be true or false", name);
    }
    *value = cJSON_IsTrue(item) != 0;
    return true;
}

bool serve_number(const cJSON *json, const char *name, double least, double most, bool whole, double *value,
                  struct serve_error *error) {
    const cJSON *item = field(json, name);
    if (item == NULL) {
        return true;
    }
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= least && item->valuedouble <= most) ||
        (whole && floor(item->valuedouble) != item->valuedouble)) {
        return serve_fail(error, 400, NULL, name, "%s must be a %snumber from %.16g to %.16g", name,
                          whole ? "whole " : "", least, most);
    }
    *value = item->valuedouble;
    return true;
}

bool serve_text(const cJSON *json, const char *name, const char **value, struct serve_error *error) {
    const cJSON *item = field(json, name);
    if (item == NULL) {
        return true;
    }
    if (!cJSON_IsString(item)) {
        return serve_fail(error, 400, NULL, name, "%s must be a string", name);
    }
    *value = item->valuestring;
    return true;
}

cJSON *serve_parse(const char *body, size_t size, struct serve_error *error) {
    const char *wrong = NULL;
    cJSON *json = size != 0 ? json_parse_object(body, size, &wrong) : NULL;
    if (json == NULL) {
        serve_fail(error, 400, "invalid_json", NULL, "the body is wrong: %s", size != 0 ? wrong : "it is empty");
    }
    return json;
}

bool serve_tokenize(const struct serve_model *model, const char *text, unsigned flags, struct tokens *tokens,
                    struct serve_error *error) {
    struct drllm_error wrong = {0};
    const size_t size = strlen(text);
    size_t needed = size / 3 + 8;
    int status;
    do {
        tokens->capacity = needed;
        tokens->ids = reallocate(tokens->ids, tokens->capacity, sizeof *tokens->ids);
        status = drllm_tokenize(model->model, text, size, flags, tokens->ids, tokens->capacity, &needed, &wrong);
    } while (status == DRLLM_ERR_BUFFER && needed > tokens->capacity);
    if (status != DRLLM_OK) {
        return serve_fail(error, 500, NULL, NULL, "cannot tokenise: %s",
                          wrong.detail[0] != '\0' ? wrong.detail : drllm_strerror(status));
    }
    tokens->count = needed;
    return true;
}

bool serve_token_ids(const struct serve_model *model, const cJSON *list, const char *param, struct tokens *tokens,
                     struct serve_error *error) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        const double id = cJSON_IsNumber(item) ? item->valuedouble : -1.0;
        if (!(id >= 0.0 && id < (double)model->info.n_vocab) || floor(id) != id) {
            return serve_fail(error, 400, NULL, param, "%s: entry %zu is not a token id from 0 to %zu", param,
                              tokens->count, model->info.n_vocab - 1);
        }
        tokens_add(tokens, (int32_t)id);
    }
    return true;
}
