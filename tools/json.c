#include "tools/json.h"

#include "runtime/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void json_init(void) {
    cJSON_Hooks hooks = {allocate_bytes, free};
    cJSON_InitHooks(&hooks);
}

static size_t escape(char c, char out[8]) {
    const unsigned char code = (unsigned char)c;
    if (c == '"' || c == '\\') {
        return (size_t)snprintf(out, 8, "\\%c", c);
    }
    if (c == '\n') {
        return (size_t)snprintf(out, 8, "\\n");
    }
    if (code < 0x20 || code == 0x7f) {
        return (size_t)snprintf(out, 8, "\\u%04x", code);
    }
    out[0] = c;
    return 1;
}

cJSON *json_text(const char *data, size_t size) {
    char *clean = allocate(3 * size + 1, 1);
    const size_t clean_size = drllm_utf8_sanitise(data, size, clean);
    struct text quoted = {NULL, 0, 0};
    text_append(&quoted, "\"", 1);
    for (size_t i = 0; i < clean_size; i++) {
        char piece[8];
        text_append(&quoted, piece, escape(clean[i], piece));
    }
    text_append(&quoted, "\"", 1);
    cJSON *json = cJSON_CreateRaw(quoted.data);
    text_release(&quoted);
    free(clean);
    return json;
}

cJSON *json_tokens(const int32_t *ids, size_t count) {
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < count; i++) {
        cJSON_AddItemToArray(array, cJSON_CreateNumber(ids[i]));
    }
    return array;
}

void json_add_number(cJSON *json, const char *key, double number) {
    cJSON_AddItemToObject(json, key, isfinite(number) ? cJSON_CreateNumber(number) : cJSON_CreateNull());
}

cJSON *json_u64(uint64_t number) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, number);
    return cJSON_CreateRaw(digits);
}

int json_print(const struct command *command, cJSON *json, bool one_line) {
    char *printed = one_line ? cJSON_PrintUnformatted(json) : cJSON_Print(json);
    cJSON_Delete(json);
    if (printed == NULL) { /* memory never ends it; nothing else should */
        report(command, "cannot write JSON");
        return TOOL_FAILED;
    }
    puts(printed);
    cJSON_free(printed);
    return flush_output(command);
}
