/* JSON output by cJSON, with what it cannot hold itself. */
#ifndef DRLLM_TOOLS_JSON_H
#define DRLLM_TOOLS_JSON_H

#include "tools/common.h"

#include <cJSON.h>

/* Let cJSON use the memory functions of common.h, so that nothing is ever left out of an object for want of memory. */
void json_init(void);
/* A string of any bytes: zero bytes are kept, invalid UTF-8 becomes U+FFFD. */
cJSON *json_text(const char *data, size_t size);
cJSON *json_tokens(const int32_t *ids, size_t count);
cJSON *json_u64(uint64_t number);                                  /* all digits, also past 2^53 */
void json_add_number(cJSON *json, const char *key, double number); /* null where it is none, or infinite */
/* Write it to stdout, on one line or indented, and free it. Returns an exit code. */
int json_print(const struct command *command, cJSON *json, bool one_line);

#endif
