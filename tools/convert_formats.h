/* The public file formats of question sets, record by record. */
#ifndef DRLLM_TOOLS_CONVERT_FORMATS_H
#define DRLLM_TOOLS_CONVERT_FORMATS_H

#include "tools/csv.h"
#include "tools/jsonl.h"
#include "tools/questions.h"

enum { MOST_CHOICES = 26 };

/* A question as a format reads it, before it becomes a prompt. Texts are without blanks around them. */
struct item {
    char task[32];           /* "": the format's */
    const char *instruction; /* NULL: none */
    struct text passage, question;
    struct text choices[MOST_CHOICES];
    size_t n_choices;
    size_t answer;           /* of a question with choices */
    struct text answer_text; /* of one without */
    enum match match;
    size_t max_tokens;
};
void item_release(struct item *item);

/* What a file holds for one question. */
struct record {
    size_t line;                   /* in which it begins; 0: not known */
    size_t number;                 /* from 1 */
    const char *wrong;             /* why it could not be read, or NULL */
    const cJSON *json;             /* one of these is there */
    const struct csv_row *row;     /* of the table under */
    const struct csv_row *columns; /* NULL where the first row is no head */
    const char *passage;           /* NULL: none apart */
    const char *label;             /* from the file of answers; NULL: none */
};

enum source { SOURCE_JSON, SOURCE_JSON_NESTED, SOURCE_TABLE, SOURCE_TABLE_WITH_HEAD, SOURCE_JSON_OR_TABLE };

struct format {
    const char *name;
    const char *task;
    enum source source;
    bool has_choices, needs_answers;
    bool shuffles; /* the right choice has its own place in the files */
    /* Returns what is wrong with a record, or NULL. */
    const char *(*read)(const struct record *record, struct item *item);
};

extern const struct format convert_formats[];
extern const size_t n_convert_formats;
const struct format *convert_find_format(const char *name);

/* Call take for each question of a SQuAD file. Returns what is wrong with the whole, or NULL. */
const char *walk_squad(const cJSON *json, void (*take)(void *user, struct record *record), void *user);

#endif
