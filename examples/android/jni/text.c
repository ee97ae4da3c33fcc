#include "text.h"

#include "throw.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { REPLACEMENT = 0xfffd };

void jni_text_free(struct jni_text *text) {
    free(text->data);
    *text = (struct jni_text){NULL, 0, 0};
}

bool jni_text_append(struct jni_text *text, const char *bytes, size_t size) {
    if (size >= SIZE_MAX / 2 - text->size) {
        return false;
    }
    if (text->data == NULL || text->size + size + 1 > text->capacity) {
        const size_t capacity = (text->size + size + 1) * 2;
        char *larger = realloc(text->data, capacity);
        if (larger == NULL) {
            return false;
        }
        text->data = larger;
        text->capacity = capacity;
    }
    if (size != 0) {
        memcpy(text->data + text->size, bytes, size);
    }
    text->size += size;
    text->data[text->size] = '\0';
    return true;
}

/* ---- To UTF-8 ---- */

static size_t encode(uint32_t c, char *to) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xc0 | c >> 6);
        to[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xe0 | c >> 12);
        to[1] = (char)(0x80 | (c >> 6 & 0x3f));
        to[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    to[0] = (char)(0xf0 | c >> 18);
    to[1] = (char)(0x80 | (c >> 12 & 0x3f));
    to[2] = (char)(0x80 | (c >> 6 & 0x3f));
    to[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

static size_t encode_all(const jchar *from, size_t n, char *to) {
    size_t size = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = from[i];
        if (c >= 0xd800 && c < 0xdc00 && i + 1 < n && from[i + 1] >= 0xdc00 && from[i + 1] < 0xe000) {
            c = 0x10000 + ((c - 0xd800) << 10) + (from[++i] - 0xdc00u);
        } else if (c >= 0xd800 && c < 0xe000) {
            c = REPLACEMENT;
        }
        size += encode(c, to + size);
    }
    return size;
}

bool jni_text_from_string(JNIEnv *env, jstring string, struct jni_text *text) {
    *text = (struct jni_text){NULL, 0, 0};
    const size_t n = (size_t)(*env)->GetStringLength(env, string);
    const jchar *chars = (*env)->GetStringChars(env, string, NULL);
    if (chars == NULL) {
        return false;
    }
    /* A unit of UTF-16 takes three bytes at most, and two of them four. */
    const size_t capacity = n < (SIZE_MAX - 1) / 3 ? 3 * n + 1 : 0;
    text->data = capacity != 0 ? malloc(capacity) : NULL;
    if (text->data != NULL) {
        text->capacity = capacity;
        text->size = encode_all(chars, n, text->data);
        text->data[text->size] = '\0';
    }
    (*env)->ReleaseStringChars(env, string, chars);
    if (text->data == NULL) {
        jni_throw_memory(env);
        return false;
    }
    return true;
}

/* ---- From UTF-8 ---- */

/* The character at bytes[0 .. size), size >= 1, and in *used its length; U+FFFD of one byte where there is none. */
static uint32_t decode(const unsigned char *bytes, size_t size, size_t *used) {
    static const struct {
        unsigned char mask, lead;
        uint32_t least;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    *used = 1;
    for (size_t n = 0; n < sizeof forms / sizeof forms[0]; n++) {
        if ((bytes[0] & forms[n].mask) != forms[n].lead) {
            continue;
        }
        uint32_t c = bytes[0] & (unsigned char)~forms[n].mask;
        if (n >= size) {
            return REPLACEMENT;
        }
        for (size_t i = 1; i <= n; i++) {
            if ((bytes[i] & 0xc0) != 0x80) {
                return REPLACEMENT;
            }
            c = c << 6 | (bytes[i] & 0x3f);
        }
        if (c < forms[n].least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
            return REPLACEMENT;
        }
        *used = n + 1;
        return c;
    }
    return REPLACEMENT;
}

jstring jni_string_from_text(JNIEnv *env, const char *bytes, size_t size) {
    enum { FEW = 256 };
    jchar few[FEW] = {0};
    /* A byte makes one unit at most, four bytes two. */
    jchar *units = size <= FEW ? few : size <= INT32_MAX ? malloc(size * sizeof *units) : NULL;
    if (units == NULL) {
        jni_throw_memory(env);
        return NULL;
    }
    size_t n = 0;
    for (size_t at = 0, used; at < size; at += used) {
        const uint32_t c = decode((const unsigned char *)bytes + at, size - at, &used);
        if (c < 0x10000) {
            units[n++] = (jchar)c;
        } else {
            units[n++] = (jchar)(0xd800 + ((c - 0x10000) >> 10));
            units[n++] = (jchar)(0xdc00 + ((c - 0x10000) & 0x3ff));
        }
    }
    jstring string = (*env)->NewString(env, units, (jsize)n);
    if (units != few) {
        free(units);
    }
    return string;
}
