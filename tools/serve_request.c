#include "tools/serve_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Prompts ---- */

enum { PROMPT_FLAGS = DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL };

static bool add_prompt(const struct serve_model *model, struct serve_request *request, const cJSON *prompt,
                       struct serve_error *error) {
    struct tokens *tokens = &request->prompts[request->n_prompts++];
    *tokens = (struct tokens){NULL, 0, 0};
    const bool is_read = cJSON_IsString(prompt)
                             ? serve_tokenize(model, prompt->valuestring, PROMPT_FLAGS, tokens, error)
                             : serve_token_ids(model, prompt, "prompt", tokens, error);
    if (!is_read) {
        return false;
    }
    if (tokens->count == 0) {
        return serve_fail(error, 400, NULL, "prompt", "the prompt is empty");
    }
    if (tokens->count > model->n_context) {
        return serve_fail(error, 400, "context_length_exceeded", "prompt",
                          "the prompt is %zu tokens, but the context holds %zu", tokens->count, model->n_context);
    }
    return true;
}

/* A text, a list of token ids, or a list of either. */
static bool read_prompts(const struct serve_model *model, struct serve_request *request, struct serve_error *error) {
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(request->json, "prompt");
    const bool is_list = cJSON_IsArray(prompt) && !cJSON_IsNumber(prompt->child);
    if (!cJSON_IsString(prompt) && !cJSON_IsArray(prompt)) {
        return serve_fail(error, 400, NULL, "prompt",
                          "prompt must be a text, a list of token ids, or a list of either");
    }
    const int count = is_list ? cJSON_GetArraySize(prompt) : 1;
    if (count < 1 || count > SERVE_MOST_PROMPTS) {
        return serve_fail(error, 400, NULL, "prompt", "there must be 1 to %d prompts, not %d", SERVE_MOST_PROMPTS,
                          count);
    }
    request->prompts = allocate((size_t)count, sizeof *request->prompts);
    if (!is_list) {
        return add_prompt(model, request, prompt, error);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, prompt) {
        if (!cJSON_IsString(item) && !cJSON_IsArray(item)) {
            return serve_fail(error, 400, NULL, "prompt", "each prompt must be a text or a list of token ids");
        }
        if (!add_prompt(model, request, item, error)) {
            return false;
        }
    }
    return true;
}

/* ---- Messages ---- */

/* A text, or parts of type text. */
static bool read_content(const cJSON *content, struct text *text, struct serve_error *error) {
    text_append(text, "", 0);
    if (cJSON_IsString(content)) {
        text_append(text, content->valuestring, strlen(content->valuestring));
        return true;
    }
    if (!cJSON_IsArray(content)) {
        return serve_fail(error, 400, NULL, "messages", "the content of a message must be a text");
    }
    const cJSON *part;
    cJSON_ArrayForEach(part, content) {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
        const cJSON *piece = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "text") != 0 || !cJSON_IsString(piece)) {
            return serve_fail(error, 400, NULL, "messages", "the parts of a message must be of the type \"text\"");
        }
        text_append(text, piece->valuestring, strlen(piece->valuestring));
    }
    return true;
}

static bool format_messages(const struct serve_model *model, const struct drllm_chat_message *messages, size_t n,
                            struct text *text, struct serve_error *error) {
    struct drllm_error wrong = {0};
    size_t size = 0;
    int status = drllm_chat_format(model->model, messages, n, true, NULL, 0, &size, &wrong);
    if (status == DRLLM_ERR_BUFFER) {
        *text = (struct text){allocate_bytes(size + 1), size, size + 1};
        status = drllm_chat_format(model->model, messages, n, true, text->data, size, &size, &wrong);
        text->data[size] = '\0';
    }
    return status == DRLLM_OK || serve_fail(error, status == DRLLM_ERR_MEMORY ? 500 : 400, NULL, "messages",
                                            "cannot write the messages as a chat: %s", wrong.detail);
}

static bool read_message(const cJSON *item, struct drllm_chat_message *message, struct text *content,
                         struct serve_error *error) {
    const char *role = NULL;
    if (!cJSON_IsObject(item) || !serve_text(item, "role", &role, error) || role == NULL) {
        return serve_fail(error, 400, NULL, "messages", "each message must have a role and content");
    }
    const bool is_system = strcmp(role, "developer") == 0 || strcmp(role, "system") == 0;
    if (!is_system && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0) {
        return serve_fail(error, 400, NULL, "messages", "the role must be system, user or assistant");
    }
    if (!read_content(cJSON_GetObjectItemCaseSensitive(item, "content"), content, error)) {
        return false;
    }
    *message = (struct drllm_chat_message){is_system ? "system" : role, content->data};
    return true;
}

static bool read_messages(const struct serve_model *model, struct serve_request *request, struct serve_error *error) {
    enum { MOST_MESSAGES = 4096 };
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(request->json, "messages");
    const int count = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (count < 1 || count > MOST_MESSAGES) {
        return serve_fail(error, 400, NULL, "messages", "messages must be a list of 1 to %d messages", MOST_MESSAGES);
    }
    struct drllm_chat_message *messages = allocate((size_t)count, sizeof *messages);
    struct text *contents = allocate((size_t)count, sizeof *contents);
    struct text text = {NULL, 0, 0};
    size_t n = 0;
    bool is_read = true;
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        contents[n] = (struct text){NULL, 0, 0};
        is_read = is_read && read_message(item, &messages[n], &contents[n], error);
        n++;
    }
    is_read = is_read && format_messages(model, messages, n, &text, error);
    if (is_read) {
        request->prompts = allocate(1, sizeof *request->prompts);
        request->prompts[request->n_prompts++] = (struct tokens){NULL, 0, 0};
        is_read = serve_tokenize(model, text.data, PROMPT_FLAGS, &request->prompts[0], error);
    }
    for (size_t i = 0; i < n; i++) {
        text_release(&contents[i]);
    }
    free(contents);
    free(messages);
    text_release(&text);
    if (is_read && request->prompts[0].count > model->n_context) {
        return serve_fail(error, 400, "context_length_exceeded", "messages",
                          "the messages are %zu tokens, but the context holds %zu", request->prompts[0].count,
                          model->n_context);
    }
    return is_read;
}

/* ---- How to answer ---- */

/* What would change the answer and is not here is refused; what else clients send is ignored. */
static bool check_unsupported(const struct serve_request *request, struct serve_error *error) {
    static const char *const zeros[] = {"presence_penalty", "frequency_penalty"};
    static const char *const ones[] = {"n", "best_of"};
    static const char *const empties[] = {"logit_bias", "tools", "functions", "suffix"};
    for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(request->json, zeros[i]);
        if (item != NULL && !cJSON_IsNull(item) && !(cJSON_IsNumber(item) && item->valuedouble == 0.0)) {
            return serve_fail(error, 400, NULL, zeros[i], "%s is not supported; use repeat_penalty", zeros[i]);
        }
    }
    for (size_t i = 0; i < sizeof ones / sizeof ones[0]; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(request->json, ones[i]);
        if (item != NULL && !cJSON_IsNull(item) && !(cJSON_IsNumber(item) && item->valuedouble == 1.0)) {
            return serve_fail(error, 400, NULL, ones[i], "%s: only one answer a prompt is supported", ones[i]);
        }
    }
    for (size_t i = 0; i < sizeof empties / sizeof empties[0]; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(request->json, empties[i]);
        const bool is_empty = item == NULL || cJSON_IsNull(item) ||
                              (cJSON_IsString(item) && item->valuestring[0] == '\0') ||
                              ((cJSON_IsArray(item) || cJSON_IsObject(item)) && item->child == NULL);
        if (!is_empty) {
            return serve_fail(error, 400, NULL, empties[i], "%s is not supported", empties[i]);
        }
    }
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(request->json, "response_format");
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(format, "type");
    if (cJSON_IsObject(format) && !(cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0)) {
        return serve_fail(error, 400, NULL, "response_format", "response_format: only text is supported");
    }
    return true;
}

static bool read_stop(struct serve_request *request, struct serve_error *error) {
    const cJSON *stop = cJSON_GetObjectItemCaseSensitive(request->json, "stop");
    if (stop == NULL || cJSON_IsNull(stop)) {
        return true;
    }
    const cJSON *item = cJSON_IsArray(stop) ? stop->child : stop;
    for (; item != NULL; item = cJSON_IsArray(stop) ? item->next : NULL) {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0' || request->n_stop == SERVE_MOST_STOPS) {
            return serve_fail(error, 400, NULL, "stop", "stop must be a text or a list of up to %d, none of them empty",
                              SERVE_MOST_STOPS);
        }
        request->stop[request->n_stop++] = item->valuestring;
    }
    return true;
}

static bool read_sampling(const struct serve_model *model, struct serve_request *request, struct serve_error *error) {
    struct drllm_sampler_params params = model->sampling;
    struct drllm_error wrong = {0};
    const cJSON *json = request->json;
    double temperature = (double)params.temperature, top_p = (double)params.top_p, min_p = (double)params.min_p;
    double penalty = (double)params.repeat_penalty, top_k = (double)params.top_k, seed = NAN;
    const double exact = 9007199254740992.0;
    if (!serve_number(json, "temperature", 0.0, 100.0, false, &temperature, error) ||
        !serve_number(json, "top_p", 0.0, 1.0, false, &top_p, error) ||
        !serve_number(json, "min_p", 0.0, 1.0, false, &min_p, error) ||
        !serve_number(json, "top_k", 0.0, 1 << 30, true, &top_k, error) ||
        !serve_number(json, "repeat_penalty", 0.0, 100.0, false, &penalty, error) ||
        !serve_number(json, "seed", -exact, exact, true, &seed, error)) {
        return false;
    }
    params.temperature = (float)temperature;
    params.top_p = (float)top_p;
    params.min_p = (float)min_p;
    params.repeat_penalty = (float)penalty;
    params.top_k = (size_t)top_k;
    params.seed = isnan(seed) ? choose_seed(-1) : (uint64_t)(int64_t)seed;
    return drllm_sampler_init(&request->sampler, &params, &wrong) == DRLLM_OK ||
           serve_fail(error, 400, NULL, NULL, "%s", wrong.detail);
}

static bool read_log_probs(struct serve_request *request, struct serve_error *error) {
    double n_top = -1.0;
    if (request->is_chat) {
        if (!serve_flag(request->json, "logprobs", &request->wants_log_probs, error) ||
            !serve_number(request->json, "top_logprobs", 0.0, SERVE_MOST_TOP, true, &n_top, error)) {
            return false;
        }
        if (n_top > 0.0 && !request->wants_log_probs) {
            return serve_fail(error, 400, NULL, "top_logprobs", "top_logprobs needs logprobs: true");
        }
    } else {
        if (!serve_number(request->json, "logprobs", 0.0, SERVE_MOST_TOP, true, &n_top, error)) {
            return false;
        }
        request->wants_log_probs = n_top >= 0.0;
    }
    request->n_top = n_top > 0.0 ? (size_t)n_top : 0;
    return true;
}

static bool read_length(const struct serve_model *model, struct serve_request *request, struct serve_error *error) {
    enum { COMPLETION_TOKENS = 16 }; /* as OpenAI has it */
    double most = request->is_chat ? (double)model->n_context : COMPLETION_TOKENS;
    if (!serve_number(request->json, "max_tokens", 0.0, 1 << 30, true, &most, error) ||
        (request->is_chat && !serve_number(request->json, "max_completion_tokens", 0.0, 1 << 30, true, &most, error))) {
        return false;
    }
    request->max_tokens = (size_t)most < model->most_tokens ? (size_t)most : model->most_tokens;
    return true;
}

static bool read_stream(struct serve_request *request, struct serve_error *error) {
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(request->json, "stream_options");
    return serve_flag(request->json, "stream", &request->stream, error) &&
           serve_flag(request->json, "ignore_eos", &request->ignore_end, error) &&
           (!cJSON_IsObject(options) || serve_flag(options, "include_usage", &request->include_usage, error)) &&
           (request->is_chat || serve_flag(request->json, "echo", &request->echo, error));
}

/* ---- */

bool serve_request_read(const struct serve_model *model, bool is_chat, const char *body, size_t size,
                        struct serve_request *request, struct serve_error *error) {
    const char *name = NULL; /* any model is this one */
    *request = (struct serve_request){.is_chat = is_chat};
    request->json = serve_parse(body, size, error);
    return request->json != NULL && serve_text(request->json, "model", &name, error) &&
           check_unsupported(request, error) && read_stop(request, error) && read_stream(request, error) &&
           read_log_probs(request, error) && read_length(model, request, error) &&
           read_sampling(model, request, error) && serve_depth_read(model, request, error) &&
           (is_chat ? read_messages(model, request, error) : read_prompts(model, request, error));
}

void serve_request_release(struct serve_request *request) {
    for (size_t i = 0; i < request->n_prompts; i++) {
        tokens_release(&request->prompts[i]);
    }
    free(request->prompts);
    free(request->program);
    cJSON_Delete(request->json);
    *request = (struct serve_request){.json = NULL};
}
