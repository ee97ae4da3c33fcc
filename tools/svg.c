#include "tools/svg.h"

#include "runtime/utf8.h"
#include "tools/common.h"

#include <stdlib.h>
#include <string.h>

static void put_character(FILE *stream, const char *text, size_t size) {
    static const char *const escapes[] = {"&&amp;", "<&lt;", ">&gt;", "\"&quot;"};
    for (size_t i = 0; i < sizeof escapes / sizeof escapes[0]; i++) {
        if (text[0] == escapes[i][0]) {
            fputs(escapes[i] + 1, stream);
            return;
        }
    }
    /* What XML does not allow in any form: controls, and the non-characters U+FFFE and U+FFFF. */
    const bool is_bad = (unsigned char)text[0] < 0x20 || text[0] == 0x7f ||
                        (size == 3 && (memcmp(text, "\xef\xbf\xbe", 3) == 0 || memcmp(text, "\xef\xbf\xbf", 3) == 0));
    fwrite(is_bad ? "?" : text, 1, is_bad ? 1 : size, stream);
}

void svg_put_text(FILE *stream, const char *text, size_t most) {
    char *clean = allocate(3 * strlen(text) + 1, 1);
    const size_t size = drllm_utf8_sanitise(text, strlen(text), clean);
    bool whole;
    size_t n = 0;
    for (size_t at = 0; at < size; n++) {
        const size_t step = drllm_utf8_character(clean + at, size - at, &whole);
        if (n + 1 == most && at + step < size) {
            fputs("…", stream);
            break;
        }
        put_character(stream, clean + at, step);
        at += step;
    }
    free(clean);
}
