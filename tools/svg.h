/* Texts in pictures. */
#ifndef DRLLM_TOOLS_SVG_H
#define DRLLM_TOOLS_SVG_H

#include <stddef.h>
#include <stdio.h>

/* At most `most` characters of a text of any bytes, with what XML must escape escaped, and '?' or U+FFFD for what it
 * cannot hold. */
void svg_put_text(FILE *stream, const char *text, size_t most);

#endif
