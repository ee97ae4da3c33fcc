#include "tools/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct look {
    FILE *stream;
    bool routed;
    bool utf8;
    bool colour;
};

/* Whether the environment's locale says UTF-8. Its own variables are asked: setlocale would change how numbers are
 * written. */
static bool locale_is_utf8(void) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    const char *locale = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && (locale == NULL || locale[0] == '\0'); i++) {
        locale = getenv(names[i]);
    }
    const char *dot = locale == NULL ? NULL : strchr(locale, '.');
    if (dot == NULL) {
        return false;
    }
    const char *codeset = dot + 1;
    const size_t size = strcspn(codeset, "@");
    return (size == 5 && strncasecmp(codeset, "utf-8", size) == 0) ||
           (size == 4 && strncasecmp(codeset, "utf8", size) == 0);
}

static void print_bar(const struct look *look, float margin) {
    enum { WIDTH = 24, EIGHTHS = 8 * WIDTH };
    const float full = 8.0F; /* the choice is some 3000 times as likely as the next */
    const float share = fminf(fmaxf(margin / full, 0.0F), 1.0F);
    const unsigned eighths = (unsigned)lrintf(share * (float)EIGHTHS);
    if (!look->utf8) {
        for (unsigned i = 0; i < (eighths + 4) / 8; i++) {
            fputc('#', look->stream);
        }
        return;
    }
    for (unsigned i = 0; i < eighths / 8; i++) {
        fputs("\xe2\x96\x88", look->stream);
    }
    if (eighths % 8 != 0) {
        fprintf(look->stream, "\xe2\x96%c", (int)(0x90 - eighths % 8)); /* U+258F, an eighth, to U+2589, seven */
    }
}

static void print_block(const struct look *look, size_t block, const struct drllm_decision *decision) {
    static const char *const words[] = {"skip", "run", "repeat"};
    static const char *const colours[] = {"\033[31m", "\033[32m", "\033[33m"};
    const char *word = words[decision->count];
    const char *paint = look->colour ? colours[decision->count] : "";
    const char *plain = look->colour ? "\033[0m" : "";
    fprintf(look->stream, "%4zu  %s%s%s", block, paint, word, plain);
    if (look->routed) {
        fprintf(look->stream, "%*s", (int)(8 - strlen(word)), "");
        if (isinf(decision->margin)) {
            fputs("forced", look->stream);
        } else {
            fprintf(look->stream, "%6.2f", (double)decision->margin);
        }
        fprintf(look->stream, "  %s", paint);
        print_bar(look, decision->margin);
        fputs(plain, look->stream);
    }
    fputc('\n', look->stream);
}

void trace_print(FILE *stream, const struct drllm_session *session, const struct depth *depth) {
    const struct look look = {.stream = stream,
                              .routed = depth->depth.kind == DRLLM_DEPTH_ROUTED,
                              .utf8 = locale_is_utf8(),
                              .colour = wants_colour(stream)};
    struct drllm_decision *decisions = allocate(depth->n_layers, sizeof *decisions);
    drllm_session_get_decisions(session, decisions);
    char *text = depth_text(session, depth);
    fprintf(stream, "layers: %s\n", text);
    for (size_t i = 0; i < depth->n_layers; i++) {
        print_block(&look, i, &decisions[i]);
    }
    free(text);
    free(decisions);
}
