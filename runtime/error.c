#include "runtime/error.h"

#include "runtime/utf8.h"

#include <string.h>

/* ---- Formatting ---- */

struct writer {
    char *text;
    size_t size, length; /* length < size: the last byte is kept for the terminator */
};

static void put_bytes(struct writer *writer, const char *bytes, size_t n) {
    const size_t room = writer->size - 1 - writer->length;
    const size_t taken = n < room ? n : room;
    memcpy(writer->text + writer->length, bytes, taken);
    writer->length += taken;
}

static void put_number(struct writer *writer, unsigned long long number, unsigned base, bool negative) {
    char digits[24];
    size_t first = sizeof digits;
    do {
        digits[--first] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number != 0);
    if (negative) {
        digits[--first] = '-';
    }
    put_bytes(writer, digits + first, sizeof digits - first);
}

static void put_signed(struct writer *writer, long long number) {
    /* Negated as unsigned: the least number has no positive counterpart. */
    const unsigned long long bits = (unsigned long long)number;
    put_number(writer, number < 0 ? 0 - bits : bits, 10, number < 0);
}

size_t drllm_format_text_v(char *text, size_t size, const char *format, va_list arguments) {
    struct writer writer = {text, size, 0};
    while (*format != '\0') {
        const size_t plain = strcspn(format, "%");
        put_bytes(&writer, format, plain);
        format += plain;
        if (*format == '\0' || *++format == '\0') {
            break;
        }
        if (strncmp(format, ".*s", 3) == 0) {
            const int most = va_arg(arguments, int);
            const char *string = va_arg(arguments, const char *);
            /* Bytes of files need not be terminated, so nothing past `most` is read. */
            const size_t limit = most < 0 ? 0 : (size_t)most;
            const char *end = string != NULL && limit != 0 ? memchr(string, '\0', limit) : NULL;
            if (string != NULL && limit != 0) {
                put_bytes(&writer, string, end != NULL ? (size_t)(end - string) : limit);
            }
            format += 3;
        } else if (strncmp(format, "zu", 2) == 0) {
            put_number(&writer, va_arg(arguments, size_t), 10, false);
            format += 2;
        } else if (strncmp(format, "llu", 3) == 0) {
            put_number(&writer, va_arg(arguments, unsigned long long), 10, false);
            format += 3;
        } else if (strncmp(format, "lld", 3) == 0) {
            put_signed(&writer, va_arg(arguments, long long));
            format += 3;
        } else if (*format == 's') {
            const char *string = va_arg(arguments, const char *);
            string = string != NULL ? string : "(null)";
            put_bytes(&writer, string, strlen(string));
            format++;
        } else if (*format == 'c') {
            const char c = (char)va_arg(arguments, int);
            put_bytes(&writer, &c, 1);
            format++;
        } else if (*format == 'd') {
            put_signed(&writer, va_arg(arguments, int));
            format++;
        } else if (*format == 'u' || *format == 'x') {
            put_number(&writer, va_arg(arguments, unsigned), *format == 'u' ? 10 : 16, false);
            format++;
        } else { /* %% */
            put_bytes(&writer, format, 1);
            format++;
        }
    }
    text[writer.length] = '\0';
    return writer.length;
}

size_t drllm_format_text(char *text, size_t size, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const size_t length = drllm_format_text_v(text, size, format, arguments);
    va_end(arguments);
    return length;
}

/* ---- What may be shown ---- */

/* Control characters, the two-byte ones included, could steer the terminal that shows the message. */
static void make_printable(char *text, size_t length, bool cut) {
    size_t i = 0;
    while (i < length) {
        const uint8_t *at = (const uint8_t *)text + i;
        bool whole;
        const size_t read = drllm_utf8_character(text + i, length - i, &whole);
        const size_t n = whole ? read : 0;
        if (n == 0 && cut && at[0] >= 0xC0 && length - i < 4) {
            text[i] = '\0'; /* a character that was cut with the rest */
            return;
        }
        const bool control = n == 1 ? at[0] < 0x20 || at[0] == 0x7F : n == 2 && at[0] == 0xC2 && at[1] < 0xA0;
        if (n == 0 || control) {
            memset(text + i, '?', n == 0 ? 1 : n);
        }
        i += n == 0 ? 1 : n;
    }
}

struct drllm_error *drllm_error_set(struct drllm_error *error, int status, const char *format, ...) {
    if (error == NULL) {
        return NULL;
    }
    /* The arguments may point into the error that is replaced. */
    char detail[sizeof error->detail];
    va_list arguments;
    va_start(arguments, format);
    const size_t length = drllm_format_text_v(detail, sizeof detail, format, arguments);
    va_end(arguments);
    make_printable(detail, length, length == sizeof detail - 1);
    error->status = status;
    memcpy(error->detail, detail, length + 1);
    return error;
}

void drllm_log_line(const struct drllm_log *log, enum drllm_log_level level, const char *format, ...) {
    if (log == NULL || log->write == NULL) {
        return;
    }
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    const size_t length = drllm_format_text_v(line, sizeof line, format, arguments);
    va_end(arguments);
    make_printable(line, length, length == sizeof line - 1);
    log->write(log->user, level, line);
}

const char *drllm_strerror(int status) {
    switch (status) {
    case DRLLM_OK:
        return "no error";
    case DRLLM_ERR_ARGUMENT:
        return "invalid argument";
    case DRLLM_ERR_MEMORY:
        return "out of memory";
    case DRLLM_ERR_IO:
        return "input/output error";
    case DRLLM_ERR_FORMAT:
        return "not a valid file";
    case DRLLM_ERR_UNSUPPORTED:
        return "not supported";
    case DRLLM_ERR_CONTEXT_FULL:
        return "context is full";
    case DRLLM_ERR_CANCELLED:
        return "cancelled";
    case DRLLM_ERR_STATE:
        return "call out of order";
    case DRLLM_ERR_BUFFER:
        return "buffer too small";
    case DRLLM_ERR_SYSTEM:
        return "system error";
    default:
        return "unknown status";
    }
}
