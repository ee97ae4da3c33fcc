/* 7 kB of ranges, instead of the 300 kB of tables that a Unicode library adds to a program for the same answer. */
#include "runtime/unicode.h"

#include <stddef.h>

static const uint32_t ranges[] = {
#include "runtime/unicode_classes.inc"
};

enum drllm_unicode_class drllm_unicode_class(uint32_t character) {
    if (character > 0x10FFFF) {
        return DRLLM_UNICODE_OTHER;
    }
    /* The last range that begins at the character or ahead of it. */
    size_t low = 0, high = sizeof ranges / sizeof ranges[0];
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (ranges[middle] >> 2 <= character) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low == 0 ? DRLLM_UNICODE_OTHER : (enum drllm_unicode_class)(ranges[low - 1] & 3);
}
