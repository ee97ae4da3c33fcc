/* Files of one JSON object a line. */
#ifndef DRLLM_TOOLS_JSONL_H
#define DRLLM_TOOLS_JSONL_H

#include "tools/json.h"

/* Whether a JSON text holds a zero byte, \u0000, or \u without a number, where cJSON would end a string without a word.
 * The text is zero-terminated. */
bool json_cuts_text(const char *text, size_t size);

/* The one object that a text holds. NULL where it does not hold exactly that, and *wrong says why. */
cJSON *json_parse_object(const char *text, size_t size, const char **wrong);

/* A walk over lines; begin with number and position 0. */
struct json_lines {
    const char *text;
    size_t size;
    size_t position;
    size_t number; /* of the line that was read last, from 1 */
};

/* The next line, for the caller to free, or NULL with *wrong set as above. False at the end. */
bool json_lines_next(struct json_lines *lines, cJSON **json, const char **wrong);

#endif
