/* Whether a generated text answers a question: the ways in which texts are compared (enum match). */
#ifndef DRLLM_TOOLS_ANSWERS_H
#define DRLLM_TOOLS_ANSWERS_H

#include "tools/questions.h"

/* exact, letter, number, boxed, contains: of MATCH_EXACT and those that follow. */
extern const char *const match_names[];

/* What keeps any text from matching this answer, or NULL. */
const char *answer_wrong(enum match match, const char *answer);
bool answer_matches(enum match match, const char *answer, const char *text, size_t size);

/* A part of a text. */
struct part {
    const char *text;
    size_t size;
};
struct part part_trim(struct part part);
/* What the last complete \boxed{...} or \fbox{...} of a text holds; false without one. */
bool find_boxed(struct part text, struct part *content);

#endif
