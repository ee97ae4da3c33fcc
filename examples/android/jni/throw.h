/* Failures as Java exceptions. Each of these leaves one pending; the caller then returns to Java. */
#ifndef DRLLM_ANDROID_THROW_H
#define DRLLM_ANDROID_THROW_H

#include <jni.h>

/* ARGUMENT: IllegalArgumentException; STATE: IllegalStateException; anything else: DrLlmException. detail: UTF-8; ""
 * stands for the status's own name. */
void jni_throw(JNIEnv *env, int status, const char *detail);
void jni_throw_memory(JNIEnv *env);

#endif
