#include "platform/firmware/unicode.h"

static const uint32_t starts[] = {
#include "platform/firmware/unicode_classes.inc"
};
enum { N_STARTS = sizeof starts / sizeof starts[0] };

enum drllm_unicode_class drllm_unicode_class_of(uint32_t value) {
    size_t low = 0, high = N_STARTS; /* the first start behind the value is in [low, high] */
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (starts[middle] >> 2 <= value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low == 0 ? DRLLM_UNICODE_OTHER : (enum drllm_unicode_class)(starts[low - 1] & 3);
}

size_t drllm_unicode_read(const uint8_t *text, size_t size, uint32_t *value) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const uint8_t first = text[0];
    const size_t n = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (n == 0 || n > size) {
        return 0;
    }
    uint32_t read = n == 1 ? first : first & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
        read = read << 6 | (text[i] & 0x3Fu);
    }
    if (read < least[n] || read > 0x10FFFF || (read >= 0xD800 && read < 0xE000)) {
        return 0;
    }
    *value = read;
    return n;
}
