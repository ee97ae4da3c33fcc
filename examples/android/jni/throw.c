#include "throw.h"

#include "text.h"

#include "runtime/drllm.h"

#include <string.h>

static const char *class_of(int status) {
    switch (status) {
    case DRLLM_ERR_ARGUMENT:
        return "java/lang/IllegalArgumentException";
    case DRLLM_ERR_STATE:
        return "java/lang/IllegalStateException";
    default:
        return "org/drllm/DrLlmException";
    }
}

void jni_throw(JNIEnv *env, int status, const char *detail) {
    const char *message = detail[0] != '\0' ? detail : drllm_strerror(status);
    const bool is_ours = status != DRLLM_ERR_ARGUMENT && status != DRLLM_ERR_STATE;
    /* Whatever fails here leaves an exception of its own. */
    jclass type = (*env)->FindClass(env, class_of(status));
    if (type == NULL) {
        return;
    }
    jmethodID make =
        (*env)->GetMethodID(env, type, "<init>", is_ours ? "(Ljava/lang/String;I)V" : "(Ljava/lang/String;)V");
    /* ThrowNew would read the message as Java's own UTF-8. */
    jstring text = make != NULL ? jni_string_from_text(env, message, strlen(message)) : NULL;
    if (text == NULL) {
        return;
    }
    jobject exception =
        is_ours ? (*env)->NewObject(env, type, make, text, (jint)status) : (*env)->NewObject(env, type, make, text);
    if (exception != NULL) {
        (void)(*env)->Throw(env, exception);
    }
}

void jni_throw_memory(JNIEnv *env) {
    /* Java's own error: even a small message needs memory. */
    jclass type = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
    if (type != NULL) {
        (void)(*env)->ThrowNew(env, type, "not enough native memory");
    }
}
