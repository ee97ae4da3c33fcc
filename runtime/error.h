/* Filling in struct drllm_error, without stdio. */
#ifndef DRLLM_RUNTIME_ERROR_H
#define DRLLM_RUNTIME_ERROR_H

#include "runtime/drllm.h"

#include <stdarg.h>

#if defined(__GNUC__)
#define DRLLM_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define DRLLM_PRINTF(format_index, first)
#endif

/* A small printf: %s %.*s %c %d %u %x %zu %llu %lld %%, no widths. Cuts to fit, always terminates, returns the length
 * written. size >= 1. A NULL string prints as "(null)". */
size_t drllm_format_text(char *text, size_t size, const char *format, ...) DRLLM_PRINTF(3, 4);
size_t drllm_format_text_v(char *text, size_t size, const char *format, va_list arguments);

/* Set the error (may be NULL; returned as it is). Bytes of the detail that are not printable ASCII or valid UTF-8
 * become '?', since names come from files. */
struct drllm_error *drllm_error_set(struct drllm_error *error, int status, const char *format, ...) DRLLM_PRINTF(3, 4);

static inline int drllm_error_status(const struct drllm_error *error, int status) {
    (void)error;
    return status;
}

/* Set the error and return the status, so that a caller writes `return drllm_fail(...)`. A macro, because compilers and
 * analysers then see that the status is not DRLLM_OK. */
#define drllm_fail(error, status, ...) drllm_error_status(drllm_error_set(error, status, __VA_ARGS__), status)

/* Write a line to the log, if there is one. */
void drllm_log_line(const struct drllm_log *log, enum drllm_log_level level, const char *format, ...)
    DRLLM_PRINTF(3, 4);

#endif
