/* Java's strings (UTF-16) and the library's texts (UTF-8). Java's own conversion is to another encoding than UTF-8, which
 * writes U+0000 and everything above U+FFFF differently. */
#ifndef DRLLM_ANDROID_TEXT_H
#define DRLLM_ANDROID_TEXT_H

#include <jni.h>
#include <stdbool.h>
#include <stddef.h>

struct jni_text {
    char *data; /* zero-terminated, to be freed; NULL: none yet */
    size_t size, capacity;
};
void jni_text_free(struct jni_text *text);
/* False when there is no memory; the text is then as it was. */
bool jni_text_append(struct jni_text *text, const char *bytes, size_t size);

/* A half of a surrogate pair becomes U+FFFD. False with a Java exception pending; *text is then empty. */
bool jni_text_from_string(JNIEnv *env, jstring string, struct jni_text *text);
/* Invalid UTF-8 becomes U+FFFD. A local reference, or NULL with a Java exception pending. */
jstring jni_string_from_text(JNIEnv *env, const char *bytes, size_t size);

#endif
