#include "tools/serve_json.h"

#include "runtime/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Tokens ---- */

static struct text token_bytes(const struct serve_reply *reply, int32_t token) {
    struct text text = {NULL, 0, 0};
    text_append(&text, "", 0);
    append_token_text(reply->model->model, token, &text);
    return text;
}

/* A part of a character has no text of its own: OpenAI's "bytes:\xe2\x80". */
static struct text readable(const struct text *bytes) {
    struct text text = {NULL, 0, 0};
    char *clean = allocate(3 * bytes->size + 1, 1);
    const size_t size = drllm_utf8_sanitise(bytes->data, bytes->size, clean);
    if (size == bytes->size && memcmp(clean, bytes->data, size) == 0) {
        text_append(&text, bytes->data, bytes->size);
    } else {
        text_append(&text, "bytes:", 6);
        for (size_t i = 0; i < bytes->size; i++) {
            char hex[8];
            snprintf(hex, sizeof hex, "\\x%02x", (unsigned)(unsigned char)bytes->data[i]);
            text_append(&text, hex, 4);
        }
    }
    free(clean);
    return text;
}

static struct text token_text(const struct serve_reply *reply, int32_t token) {
    struct text bytes = token_bytes(reply, token);
    struct text text = readable(&bytes);
    text_release(&bytes);
    return text;
}

static cJSON *token_json(const struct serve_reply *reply, int32_t token) {
    struct text text = token_text(reply, token);
    cJSON *json = json_text(text.data, text.size);
    text_release(&text);
    return json;
}

static cJSON *log_prob_json(double log_prob) {
    /* JSON has no infinity. */
    return isnan(log_prob) ? cJSON_CreateNull() : cJSON_CreateNumber(fmax(log_prob, -9999.0));
}

/* ---- Log-probabilities of a completion ---- */

/* The likeliest and the one that was taken. */
static cJSON *top_json(const struct serve_reply *reply, const struct serve_log_probs *list, size_t at) {
    if (list->n_top == 0 || isnan(list->tokens[at].log_prob)) {
        return cJSON_CreateNull();
    }
    cJSON *json = cJSON_CreateObject();
    for (size_t i = 0; i <= list->n_top; i++) {
        const struct serve_top *top = i < list->n_top ? &list->top[at * list->n_top + i] : &list->tokens[at];
        struct text text = token_text(reply, top->token);
        if (top->token >= 0 && cJSON_GetObjectItemCaseSensitive(json, text.data) == NULL) {
            cJSON_AddItemToObject(json, text.data, log_prob_json(top->log_prob));
        }
        text_release(&text);
    }
    return json;
}

static size_t count_bytes_that_begin(const struct text *bytes) {
    size_t n = 0;
    for (size_t i = 0; i < bytes->size; i++) {
        n += ((unsigned char)bytes->data[i] & 0xc0) != 0x80;
    }
    return n;
}

/* Tokens first .. count-1; offsets are in characters of the whole text. */
static cJSON *completion_log_probs(const struct serve_reply *reply, const struct serve_log_probs *list, size_t first) {
    cJSON *json = cJSON_CreateObject();
    cJSON *tokens = cJSON_AddArrayToObject(json, "tokens");
    cJSON *log_probs = cJSON_AddArrayToObject(json, "token_logprobs");
    cJSON *tops = cJSON_AddArrayToObject(json, "top_logprobs");
    cJSON *offsets = cJSON_AddArrayToObject(json, "text_offset");
    size_t offset = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct text bytes = token_bytes(reply, list->tokens[i].token);
        if (i >= first) {
            cJSON_AddItemToArray(tokens, token_json(reply, list->tokens[i].token));
            cJSON_AddItemToArray(log_probs, log_prob_json(list->tokens[i].log_prob));
            cJSON_AddItemToArray(tops, top_json(reply, list, i));
            cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)offset));
        }
        offset += count_bytes_that_begin(&bytes);
        text_release(&bytes);
    }
    return json;
}

/* ---- Log-probabilities of a chat ---- */

static cJSON *chat_token(const struct serve_reply *reply, const struct serve_top *top) {
    cJSON *json = cJSON_CreateObject();
    struct text bytes = token_bytes(reply, top->token);
    cJSON_AddItemToObject(json, "token", token_json(reply, top->token));
    cJSON_AddItemToObject(json, "logprob", log_prob_json(top->log_prob));
    cJSON *list = cJSON_AddArrayToObject(json, "bytes");
    for (size_t i = 0; i < bytes.size; i++) {
        cJSON_AddItemToArray(list, cJSON_CreateNumber((unsigned char)bytes.data[i]));
    }
    text_release(&bytes);
    return json;
}

static cJSON *chat_log_probs(const struct serve_reply *reply, const struct serve_log_probs *list, size_t first) {
    cJSON *json = cJSON_CreateObject();
    cJSON *content = cJSON_AddArrayToObject(json, "content");
    for (size_t i = first; i < list->count; i++) {
        cJSON *token = chat_token(reply, &list->tokens[i]);
        cJSON *tops = cJSON_AddArrayToObject(token, "top_logprobs");
        for (size_t k = 0; k < list->n_top; k++) {
            cJSON_AddItemToArray(tops, chat_token(reply, &list->top[i * list->n_top + k]));
        }
        cJSON_AddItemToArray(content, token);
    }
    return json;
}

/* ---- Replies ---- */

static cJSON *head_json(const struct serve_reply *reply, bool is_piece) {
    cJSON *json = cJSON_CreateObject();
    const char *chat = is_piece ? "chat.completion.chunk" : "chat.completion";
    cJSON_AddStringToObject(json, "id", reply->id);
    cJSON_AddStringToObject(json, "object", reply->request->is_chat ? chat : "text_completion");
    cJSON_AddNumberToObject(json, "created", (double)reply->created);
    cJSON_AddItemToObject(json, "model", json_text(reply->model->id, strlen(reply->model->id)));
    return json;
}

static void add_usage(const struct serve_reply *reply, cJSON *json, const struct serve_choice *choices) {
    size_t n_prompt = 0, n_cached = 0, n_generated = 0;
    for (size_t i = 0; i < reply->request->n_prompts; i++) {
        n_prompt += choices[i].n_prompt;
        n_cached += choices[i].n_cached;
        n_generated += choices[i].n_generated;
    }
    cJSON *usage = cJSON_AddObjectToObject(json, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", (double)n_prompt);
    cJSON_AddNumberToObject(usage, "completion_tokens", (double)n_generated);
    cJSON_AddNumberToObject(usage, "total_tokens", (double)(n_prompt + n_generated));
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(usage, "prompt_tokens_details"), "cached_tokens", (double)n_cached);
}

/* "drllm": the layers that ran, and times. */
static void add_own(cJSON *json, const struct serve_choice *choice) {
    cJSON *own = cJSON_AddObjectToObject(json, "drllm");
    if (choice->program != NULL) {
        cJSON_AddStringToObject(own, "program", choice->program);
        cJSON_AddNumberToObject(own, "layers_saved", choice->layers_saved);
    }
    cJSON_AddNumberToObject(own, "prompt_ms", milliseconds(choice->prompt_ns));
    cJSON_AddNumberToObject(own, "generate_ms", milliseconds(choice->generate_ns));
}

static cJSON *log_probs_json(const struct serve_reply *reply, const struct serve_choice *choice, size_t first) {
    if (!reply->request->wants_log_probs) {
        return cJSON_CreateNull();
    }
    return reply->request->is_chat ? chat_log_probs(reply, &choice->log_probs, first)
                                   : completion_log_probs(reply, &choice->log_probs, first);
}

static void add_reason(cJSON *json, const char *reason) {
    cJSON_AddItemToObject(json, "finish_reason", reason != NULL ? cJSON_CreateString(reason) : cJSON_CreateNull());
}

static cJSON *choice_json(const struct serve_reply *reply, size_t index, const struct serve_choice *choice) {
    cJSON *json = cJSON_CreateObject();
    cJSON *text = json_text(choice->text.size != 0 ? choice->text.data : "", choice->text.size);
    cJSON_AddNumberToObject(json, "index", (double)index);
    if (reply->request->is_chat) {
        cJSON *message = cJSON_AddObjectToObject(json, "message");
        cJSON_AddStringToObject(message, "role", "assistant");
        cJSON_AddItemToObject(message, "content", text);
    } else {
        cJSON_AddItemToObject(json, "text", text);
    }
    cJSON_AddItemToObject(json, "logprobs", log_probs_json(reply, choice, 0));
    add_reason(json, choice->finish_reason);
    add_own(json, choice);
    return json;
}

cJSON *serve_reply_json(const struct serve_reply *reply, const struct serve_choice *choices) {
    cJSON *json = head_json(reply, false);
    cJSON *list = cJSON_AddArrayToObject(json, "choices");
    for (size_t i = 0; i < reply->request->n_prompts; i++) {
        cJSON_AddItemToArray(list, choice_json(reply, i, &choices[i]));
    }
    add_usage(reply, json, choices);
    return json;
}

/* ---- Pieces ---- */

cJSON *serve_piece_json(const struct serve_reply *reply, size_t index, const struct serve_choice *choice,
                        struct serve_sent *sent, bool is_end) {
    cJSON *json = head_json(reply, true);
    cJSON *piece = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "choices"), piece);
    cJSON_AddNumberToObject(piece, "index", (double)index);
    const size_t size = choice->text.size - sent->text;
    cJSON *text = json_text(size != 0 ? choice->text.data + sent->text : "", size);
    if (reply->request->is_chat) {
        cJSON *delta = cJSON_AddObjectToObject(piece, "delta");
        if (!sent->has_begun) {
            cJSON_AddStringToObject(delta, "role", "assistant");
        }
        if (size != 0 || !sent->has_begun) {
            cJSON_AddItemToObject(delta, "content", text);
        } else {
            cJSON_Delete(text);
        }
    } else {
        cJSON_AddItemToObject(piece, "text", text);
    }
    const bool has_log_probs = sent->log_probs < choice->log_probs.count;
    cJSON_AddItemToObject(piece, "logprobs",
                          has_log_probs ? log_probs_json(reply, choice, sent->log_probs) : cJSON_CreateNull());
    add_reason(piece, is_end ? choice->finish_reason : NULL);
    if (is_end) {
        add_own(piece, choice);
    }
    *sent = (struct serve_sent){choice->text.size, choice->log_probs.count, true};
    return json;
}

cJSON *serve_usage_piece_json(const struct serve_reply *reply, const struct serve_choice *choices) {
    cJSON *json = head_json(reply, true);
    cJSON_AddArrayToObject(json, "choices");
    add_usage(reply, json, choices);
    return json;
}

void serve_event(struct text *text, cJSON *json) {
    char *printed = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    text_append(text, "data: ", 6);
    text_append(text, printed, strlen(printed));
    text_append(text, "\n\n", 2);
    cJSON_free(printed);
}
