/* Whole characters out of a stream of bytes. The ranges of second bytes are those of the Unicode Standard's table
 * 3-7. */
#include "runtime/utf8.h"

#include <stdint.h>
#include <string.h>

/* Bytes of the character that begins with this one; 0 if none does. */
static size_t character_size(uint8_t first) {
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) {
        return 0;
    }
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

static bool goes_on(uint8_t first, size_t at, uint8_t byte) {
    uint8_t low = 0x80, high = 0xBF;
    if (at == 1) {
        low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    }
    return byte >= low && byte <= high;
}

size_t drllm_utf8_character(const char *text, size_t size, bool *whole) {
    const uint8_t *bytes = (const uint8_t *)text;
    const size_t wanted = character_size(bytes[0]);
    size_t n = 1;
    while (n < wanted && n < size && goes_on(bytes[0], n, bytes[n])) {
        n++;
    }
    *whole = n == wanted;
    return n;
}

uint32_t drllm_utf8_value(const char *text, size_t size) {
    static const uint8_t first_bits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t value = (uint8_t)text[0] & first_bits[size];
    for (size_t i = 1; i < size; i++) {
        value = value << 6 | ((uint8_t)text[i] & 0x3F);
    }
    return value;
}

size_t drllm_utf8_complete(const char *text, size_t size) {
    /* The last three bytes may be the beginning of one of four. */
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        const char *last = text + size - back;
        if (character_size((uint8_t)*last) > 1) {
            bool whole = false;
            const size_t n = drllm_utf8_character(last, back, &whole);
            return !whole && n == back ? size - back : size;
        }
    }
    return size;
}

size_t drllm_utf8_sanitise(const char *text, size_t size, char *out) {
    size_t written = 0;
    for (size_t at = 0; at < size;) {
        bool whole = false;
        const size_t n = drllm_utf8_character(text + at, size - at, &whole);
        const size_t n_written = whole ? n : 3;
        memcpy(out + written, whole ? text + at : "\xEF\xBF\xBD", n_written);
        at += n;
        written += n_written;
    }
    return written;
}
