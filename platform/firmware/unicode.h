/* The little of utf8proc that pre-tokenising needs, in 9 KB instead of 300: firmware builds find it behind utf8proc's own
 * header (utf8proc.h here). The hosted library uses utf8proc itself. */
#ifndef DRLLM_PLATFORM_FIRMWARE_UNICODE_H
#define DRLLM_PLATFORM_FIRMWARE_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum drllm_unicode_class {
    DRLLM_UNICODE_OTHER = 0,
    DRLLM_UNICODE_LETTER = 1,     /* L* */
    DRLLM_UNICODE_NUMBER = 2,     /* N* */
    DRLLM_UNICODE_PUNCTUATION = 3 /* P* */
};

/* Of any number; OTHER for what is no code point. */
enum drllm_unicode_class drllm_unicode_class_of(uint32_t value);

/* The first character of size >= 1 bytes of UTF-8: how many bytes it has, and *value; 0 if they begin with none. */
size_t drllm_unicode_read(const uint8_t *text, size_t size, uint32_t *value);

#endif
