#include "tools/jsonl.h"

#include <string.h>

bool json_cuts_text(const char *text, size_t size) {
    if (memchr(text, '\0', size) != NULL) {
        return true;
    }
    for (size_t i = 0; i + 1 < size; i++) {
        if (text[i] != '\\') {
            continue;
        }
        i++;
        if (text[i] == 'u' && (size - i <= 4 || memcmp(text + i + 1, "0000", 4) == 0 ||
                               strspn(text + i + 1, "0123456789abcdefABCDEF") < 4)) {
            return true;
        }
    }
    return false;
}

cJSON *json_parse_object(const char *text, size_t size, const char **wrong) {
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(text, size, &end, false);
    *wrong = NULL;
    if (json == NULL) {
        *wrong = "it is no JSON";
    } else if (json_cuts_text(text, size)) {
        *wrong = "it holds a zero byte or a bad \\u escape";
    } else if (end + strspn(end, " \t\r\n") < text + size) { /* texts are zero-terminated */
        *wrong = "something follows the JSON object";
    } else if (!cJSON_IsObject(json)) {
        *wrong = "it is no JSON object";
    }
    if (*wrong != NULL) {
        cJSON_Delete(json);
        json = NULL;
    }
    return json;
}

bool json_lines_next(struct json_lines *lines, cJSON **json, const char **wrong) {
    if (lines->position >= lines->size) {
        return false;
    }
    const char *line = lines->text + lines->position;
    const char *end = memchr(line, '\n', lines->size - lines->position);
    const size_t size = end == NULL ? lines->size - lines->position : (size_t)(end - line);
    lines->position += size + 1;
    lines->number++;
    *json = json_parse_object(line, size, wrong);
    return true;
}
