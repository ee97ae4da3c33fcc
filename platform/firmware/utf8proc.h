/* utf8proc's names, in front of unicode.h: what runtime/tokenizer_*.c calls. Only firmware builds have this folder in their
 * search path. */
#ifndef DRLLM_PLATFORM_FIRMWARE_UTF8PROC_H
#define DRLLM_PLATFORM_FIRMWARE_UTF8PROC_H

#include "platform/firmware/unicode.h"

typedef int32_t utf8proc_int32_t;
typedef ptrdiff_t utf8proc_ssize_t;

/* One category for each class, in utf8proc's order. */
typedef enum {
    UTF8PROC_CATEGORY_CN,
    UTF8PROC_CATEGORY_LU,
    UTF8PROC_CATEGORY_LL,
    UTF8PROC_CATEGORY_LT,
    UTF8PROC_CATEGORY_LM,
    UTF8PROC_CATEGORY_LO,
    UTF8PROC_CATEGORY_ND,
    UTF8PROC_CATEGORY_NL,
    UTF8PROC_CATEGORY_NO,
    UTF8PROC_CATEGORY_PC,
    UTF8PROC_CATEGORY_PO
} utf8proc_category_t;

static inline utf8proc_category_t utf8proc_category(utf8proc_int32_t value) {
    switch (drllm_unicode_class_of((uint32_t)value)) {
    case DRLLM_UNICODE_LETTER:
        return UTF8PROC_CATEGORY_LO;
    case DRLLM_UNICODE_NUMBER:
        return UTF8PROC_CATEGORY_NO;
    case DRLLM_UNICODE_PUNCTUATION:
        return UTF8PROC_CATEGORY_PO;
    default:
        return UTF8PROC_CATEGORY_CN;
    }
}

static inline utf8proc_ssize_t utf8proc_iterate(const uint8_t *text, utf8proc_ssize_t size, utf8proc_int32_t *value) {
    uint32_t read = 0;
    const size_t n = size <= 0 ? 0 : drllm_unicode_read(text, (size_t)size, &read);
    *value = n == 0 ? -1 : (utf8proc_int32_t)read;
    return n == 0 ? -1 : (utf8proc_ssize_t)n;
}

#endif
