/* One answer: the conversation to tokens, what of them is new through the model, and text back. */
#ifndef DRLLM_ANDROID_ANSWER_H
#define DRLLM_ANDROID_ANSWER_H

#include "handle.h"
#include "text.h"

#include <jni.h>

struct answer_request {
    const struct drllm_chat_message *messages; /* NULL: no conversation but the text `prompt` */
    size_t n_messages;
    struct jni_text prompt;
    struct drllm_sampler_params sampler;
    struct drllm_generate_params generate; /* without on_text */
    jobject listener;                      /* a TextListener, or NULL */
};

enum { ANSWER_CANCELLED = DRLLM_STOP_CONTEXT + 1 };

struct answer {
    int stop; /* an enum drllm_stop_reason, or ANSWER_CANCELLED */
    size_t n_prompt, n_computed, n_tokens;
    uint64_t prompt_ns, answer_ns;
    struct jni_text text;    /* to be freed, on failure as well */
    struct jni_text program; /* likewise; empty if there is none */
    int layers_saved;
};

/* False with a Java exception pending: a failure's, or what the listener threw. */
bool answer_make(JNIEnv *env, struct handle *handle, const struct answer_request *request, struct answer *answer);

#endif
