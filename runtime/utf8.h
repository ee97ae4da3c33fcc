/* Whole characters out of a stream of bytes. */
#ifndef DRLLM_RUNTIME_UTF8_H
#define DRLLM_RUNTIME_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How many of the bytes belong to the character that text[0] begins, size >= 1; *whole tells if it is all there and
 * valid. At least 1. */
size_t drllm_utf8_character(const char *text, size_t size, bool *whole);
/* The character that its `size` bytes are, for a whole one. */
uint32_t drllm_utf8_value(const char *text, size_t size);

/* Bytes of text[0..size) up to which it can be shown: all but a trailing sequence that is the valid beginning of a
 * longer character. Invalid bytes elsewhere count as shown. */
size_t drllm_utf8_complete(const char *text, size_t size);

/* Copy with every invalid sequence replaced by U+FFFD; returns the size written, which is at most 3 * size. */
size_t drllm_utf8_sanitise(const char *text, size_t size, char *out);

#endif
