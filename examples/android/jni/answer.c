#include "answer.h"

#include "throw.h"

#include <stdlib.h>
#include <string.h>

struct tokens {
    int32_t *ids;
    size_t count;
};

static bool failed(JNIEnv *env, int status, const char *detail) {
    jni_throw(env, status, detail);
    return false;
}

static bool session_failed(JNIEnv *env, const struct handle *handle, int status) {
    return failed(env, status, drllm_session_last_error(handle->session));
}

static bool out_of_memory(JNIEnv *env) {
    jni_throw_memory(env);
    return false;
}

/* ---- To tokens ---- */

static bool format_chat(JNIEnv *env, const struct handle *handle, const struct answer_request *request,
                        struct jni_text *text) {
    struct drllm_error error = {0};
    size_t size = 0;
    int status = drllm_chat_format(handle->model, request->messages, request->n_messages, true, NULL, 0, &size, &error);
    if (status == DRLLM_ERR_BUFFER) {
        text->data = malloc(size + 1);
        if (text->data == NULL) {
            return out_of_memory(env);
        }
        text->capacity = size + 1;
        status = drllm_chat_format(handle->model, request->messages, request->n_messages, true, text->data, size,
                                   &text->size, &error);
    }
    return status == DRLLM_OK || failed(env, status, error.detail);
}

static bool tokenize(JNIEnv *env, const struct handle *handle, const struct jni_text *text, unsigned flags,
                     struct tokens *tokens) {
    struct drllm_error error = {0};
    size_t n = 0;
    int status = drllm_tokenize(handle->model, text->data, text->size, flags, NULL, 0, &n, &error);
    if (status == DRLLM_ERR_BUFFER) {
        tokens->ids = n <= SIZE_MAX / sizeof *tokens->ids ? malloc(n * sizeof *tokens->ids) : NULL;
        if (tokens->ids == NULL) {
            return out_of_memory(env);
        }
        status = drllm_tokenize(handle->model, text->data, text->size, flags, tokens->ids, n, &tokens->count, &error);
    }
    if (status != DRLLM_OK) {
        return failed(env, status, error.detail);
    }
    return tokens->count != 0 || failed(env, DRLLM_ERR_ARGUMENT, "the prompt is empty");
}

static bool read_request(JNIEnv *env, const struct handle *handle, const struct answer_request *request,
                         struct tokens *tokens) {
    if (request->messages == NULL) {
        return tokenize(env, handle, &request->prompt, DRLLM_TOKENIZE_BOS, tokens);
    }
    struct jni_text text = {NULL, 0, 0};
    const bool done = format_chat(env, handle, request, &text) &&
                      tokenize(env, handle, &text, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, tokens);
    jni_text_free(&text);
    return done;
}

/* ---- Through the model ---- */

/* Keeps what the context and the tokens begin with. */
static int prefill(struct handle *handle, const struct tokens *tokens) {
    const int32_t *kept = drllm_session_tokens(handle->session);
    const size_t n_kept = drllm_session_n_tokens(handle->session);
    size_t common = 0;
    /* The last token is computed in any case: its logits are needed. */
    while (common < n_kept && common + 1 < tokens->count && kept[common] == tokens->ids[common]) {
        common++;
    }
    int status = drllm_session_rewind(handle->session, common);
    /* A cancel may be left over from the last call, which it came too late for: then once more. */
    for (int attempt = 0; attempt < 2 && status == DRLLM_OK; attempt++) {
        status = drllm_session_prefill(handle->session, tokens->ids + common, tokens->count - common);
        if (status != DRLLM_ERR_CANCELLED || atomic_load(&handle->cancelled)) {
            break;
        }
        status = attempt == 0 ? DRLLM_OK : status;
    }
    return status;
}

struct receiver {
    JNIEnv *env;
    jobject listener;
    jmethodID on_text;
    struct jni_text *text;
    bool out_of_memory;
};

static bool receive(void *user, int32_t token, const char *text, size_t size) {
    struct receiver *receiver = user;
    JNIEnv *env = receiver->env;
    (void)token;
    if (size == 0) {
        return true;
    }
    if (!jni_text_append(receiver->text, text, size)) {
        receiver->out_of_memory = true;
        return false;
    }
    if (receiver->listener == NULL) {
        return true;
    }
    jstring piece = jni_string_from_text(env, text, size);
    if (piece == NULL) {
        return false;
    }
    const jboolean going_on = (*env)->CallBooleanMethod(env, receiver->listener, receiver->on_text, piece);
    const bool thrown = (*env)->ExceptionCheck(env);
    (*env)->DeleteLocalRef(env, piece);
    return !thrown && going_on == JNI_TRUE;
}

static bool find_listener(struct receiver *receiver) {
    JNIEnv *env = receiver->env;
    if (receiver->listener == NULL) {
        return true;
    }
    /* The interface's method: the object's own class may be hidden from us. */
    jclass type = (*env)->FindClass(env, "org/drllm/TextListener");
    receiver->on_text = type == NULL ? NULL : (*env)->GetMethodID(env, type, "onText", "(Ljava/lang/String;)Z");
    if (type != NULL) {
        (*env)->DeleteLocalRef(env, type);
    }
    return receiver->on_text != NULL;
}

static bool generate(JNIEnv *env, struct handle *handle, const struct answer_request *request, struct answer *answer) {
    struct drllm_error error = {0};
    struct drllm_sampler sampler;
    struct drllm_generation made = {.reason = DRLLM_STOP_MAX_TOKENS};
    struct receiver receiver = {.env = env, .listener = request->listener, .text = &answer->text};
    struct drllm_generate_params params = request->generate;
    int status = drllm_sampler_init(&sampler, &request->sampler, &error);
    if (status != DRLLM_OK) {
        return failed(env, status, error.detail);
    }
    if (!find_listener(&receiver)) {
        return false;
    }
    params.on_text = receive;
    params.user = &receiver;
    status = drllm_session_generate(handle->session, &sampler, &params, &made);
    answer->stop = status == DRLLM_ERR_CANCELLED ? ANSWER_CANCELLED : (int)made.reason;
    answer->n_tokens = made.n_tokens;
    if ((*env)->ExceptionCheck(env)) {
        return false;
    }
    if (receiver.out_of_memory) {
        return out_of_memory(env);
    }
    return status == DRLLM_OK || status == DRLLM_ERR_CANCELLED || session_failed(env, handle, status);
}

/* ---- What it took ---- */

static bool describe_program(JNIEnv *env, const struct handle *handle, struct answer *answer) {
    struct drllm_model_info info;
    drllm_model_get_info(handle->model, &info);
    const size_t capacity = 8 * info.n_layers + 8;
    uint8_t *counts = malloc(info.n_layers);
    char *text = malloc(capacity);
    size_t size = 0;
    bool done = counts != NULL && text != NULL;
    if (done && drllm_session_get_program(handle->session, counts) == DRLLM_OK &&
        drllm_program_format(counts, info.n_layers, text, capacity, &size) == DRLLM_OK) {
        done = jni_text_append(&answer->program, text, size - 1);
        (void)drllm_session_get_layers_saved(handle->session, &answer->layers_saved);
    }
    free(counts);
    free(text);
    return done || out_of_memory(env);
}

static bool compute(JNIEnv *env, struct handle *handle, const struct answer_request *request,
                    const struct tokens *tokens, struct answer *answer) {
    struct drllm_timings before, between, after;
    drllm_session_get_timings(handle->session, &before);
    const int status = prefill(handle, tokens);
    drllm_session_get_timings(handle->session, &between);
    answer->n_prompt = tokens->count;
    answer->n_computed = (size_t)(between.n_prefill - before.n_prefill) + (size_t)(between.n_decode - before.n_decode);
    answer->prompt_ns = (between.prefill_ns - before.prefill_ns) + (between.decode_ns - before.decode_ns);
    if (status == DRLLM_ERR_CANCELLED) {
        answer->stop = ANSWER_CANCELLED;
        return true; /* and the program is that of the context before */
    }
    if (status != DRLLM_OK) {
        return session_failed(env, handle, status);
    }
    const bool done = generate(env, handle, request, answer) && describe_program(env, handle, answer);
    drllm_session_get_timings(handle->session, &after);
    answer->answer_ns = (after.prefill_ns - between.prefill_ns) + (after.decode_ns - between.decode_ns);
    return done;
}

bool answer_make(JNIEnv *env, struct handle *handle, const struct answer_request *request, struct answer *answer) {
    struct tokens tokens = {NULL, 0};
    const bool done = read_request(env, handle, request, &tokens) && compute(env, handle, request, &tokens, answer);
    free(tokens.ids);
    return done;
}
