#include "tools/serve_routes.h"

#include <string.h>

static const struct {
    const char *path;
    enum serve_route route;
    bool is_post;
} routes[] = {
    {"/v1/completions", SERVE_COMPLETIONS, true},
    {"/v1/chat/completions", SERVE_CHAT, true},
    {"/v1/models", SERVE_MODELS, false},
    {"/health", SERVE_HEALTH, false},
    /* As vLLM has them, for lm-eval. */
    {"/tokenizer_info", SERVE_TOKENIZER_INFO, false},
    {"/tokenize", SERVE_TOKENIZE, true},
    {"/detokenize", SERVE_DETOKENIZE, true},
};

static const char model_prefix[] = "/v1/models/";

enum serve_route serve_route_find(const char *path) {
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (strcmp(routes[i].path, path) == 0) {
            return routes[i].route;
        }
    }
    return strncmp(path, model_prefix, strlen(model_prefix)) == 0 ? SERVE_MODEL : SERVE_NOWHERE;
}

static bool is_post(enum serve_route route) {
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (routes[i].route == route) {
            return routes[i].is_post;
        }
    }
    return false;
}

const char *serve_route_methods(const char *path) {
    return is_post(serve_route_find(path)) ? "POST" : "GET, HEAD";
}

bool serve_route_check(const char *path, const char *method, struct serve_error *error) {
    const enum serve_route route = serve_route_find(path);
    if (route == SERVE_NOWHERE) {
        return serve_fail(error, 404, NULL, NULL, "there is nothing at this address");
    }
    const bool is_right =
        is_post(route) ? strcmp(method, "POST") == 0 : strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    return is_right || serve_fail(error, 405, NULL, NULL, "use %s here", serve_route_methods(path));
}

/* ---- Replies ---- */

static cJSON *id_json(const struct serve_model *model) {
    return json_text(model->id, strlen(model->id));
}

static cJSON *health(const struct serve_model *model, const struct serve_counts *counts) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "status", "ok");
    cJSON_AddItemToObject(json, "model", id_json(model));
    cJSON_AddNumberToObject(json, "running", (double)counts->n_running);
    cJSON_AddNumberToObject(json, "waiting", (double)counts->n_waiting);
    cJSON_AddNumberToObject(json, "answered", (double)counts->n_answered);
    cJSON_AddNumberToObject(json, "refused", (double)counts->n_refused);
    return json;
}

static cJSON *model_json(const struct serve_model *model) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "id", id_json(model));
    cJSON_AddStringToObject(json, "object", "model");
    cJSON_AddNumberToObject(json, "created", (double)model->created);
    cJSON_AddStringToObject(json, "owned_by", "drllm");
    cJSON_AddNumberToObject(json, "max_model_len", (double)model->n_context);
    cJSON_AddNumberToObject(json, "n_layers", (double)model->info.n_layers);
    cJSON_AddBoolToObject(json, "has_routers", model->depth.routers != NULL);
    return json;
}

static cJSON *models(const struct serve_model *model) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "object", "list");
    cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "data"), model_json(model));
    return json;
}

static cJSON *one_model(const struct serve_model *model, const char *path, struct serve_error *error) {
    if (strcmp(path + strlen(model_prefix), model->id) == 0) {
        return model_json(model);
    }
    serve_fail(error, 404, "model_not_found", "model", "the model here is %s", model->id);
    return NULL;
}

static void add_special(const struct serve_model *model, cJSON *json, const char *key, int32_t token) {
    struct text text = {NULL, 0, 0};
    text_append(&text, "", 0);
    if (token >= 0) {
        append_token_text(model->model, token, &text);
    }
    cJSON_AddItemToObject(json, key, token >= 0 ? json_text(text.data, text.size) : cJSON_CreateNull());
    text_release(&text);
}

static cJSON *tokenizer_info(const struct serve_model *model) {
    cJSON *json = cJSON_CreateObject();
    add_special(model, json, "bos_token", model->info.bos_token);
    add_special(model, json, "eos_token", model->info.eos_token);
    cJSON_AddItemToObject(json, "pad_token", cJSON_CreateNull());
    cJSON_AddNumberToObject(json, "n_vocab", (double)model->info.n_vocab);
    cJSON_AddBoolToObject(json, "add_bos_token", model->info.add_bos);
    return json;
}

static cJSON *tokenize_json(const struct serve_model *model, const cJSON *body, struct serve_error *error) {
    const char *prompt = NULL;
    bool special = true;
    struct tokens tokens = {NULL, 0, 0};
    cJSON *json = NULL;
    if (!serve_text(body, "prompt", &prompt, error) || !serve_flag(body, "add_special_tokens", &special, error)) {
        return NULL;
    }
    if (prompt == NULL) {
        serve_fail(error, 400, NULL, "prompt", "prompt must be a text");
        return NULL;
    }
    const unsigned flags = DRLLM_TOKENIZE_SPECIAL | (special ? DRLLM_TOKENIZE_BOS : 0u);
    if (serve_tokenize(model, prompt, flags, &tokens, error)) {
        json = cJSON_CreateObject();
        cJSON_AddNumberToObject(json, "count", (double)tokens.count);
        cJSON_AddNumberToObject(json, "max_model_len", (double)model->n_context);
        cJSON_AddItemToObject(json, "tokens", json_tokens(tokens.ids, tokens.count));
    }
    tokens_release(&tokens);
    return json;
}

static cJSON *detokenize_json(const struct serve_model *model, const cJSON *body, struct serve_error *error) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(body, "tokens");
    struct tokens tokens = {NULL, 0, 0};
    cJSON *json = NULL;
    if (!cJSON_IsArray(list)) {
        serve_fail(error, 400, NULL, "tokens", "tokens must be a list of token ids");
        return NULL;
    }
    if (serve_token_ids(model, list, "tokens", &tokens, error)) {
        struct text text = {NULL, 0, 0};
        text_append(&text, "", 0);
        for (size_t i = 0; i < tokens.count; i++) {
            append_token_text(model->model, tokens.ids[i], &text);
        }
        json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "prompt", json_text(text.data, text.size));
        text_release(&text);
    }
    tokens_release(&tokens);
    return json;
}

static cJSON *reply_to_body(const struct serve_model *model, enum serve_route route, const char *body, size_t size,
                            struct serve_error *error) {
    cJSON *json = serve_parse(body, size, error);
    cJSON *made = NULL;
    if (json != NULL) {
        made = route == SERVE_TOKENIZE ? tokenize_json(model, json, error) : detokenize_json(model, json, error);
    }
    cJSON_Delete(json);
    return made;
}

cJSON *serve_route_reply(const struct serve_model *model, enum serve_route route, const char *path,
                         const struct serve_counts *counts, const char *body, size_t size, struct serve_error *error) {
    switch (route) {
    case SERVE_HEALTH:
        return health(model, counts);
    case SERVE_MODELS:
        return models(model);
    case SERVE_MODEL:
        return one_model(model, path, error);
    case SERVE_TOKENIZER_INFO:
        return tokenizer_info(model);
    case SERVE_TOKENIZE:
    case SERVE_DETOKENIZE:
        return reply_to_body(model, route, body, size, error);
    default:
        serve_fail(error, 404, NULL, NULL, "there is nothing at this address");
        return NULL;
    }
}
