/* Tables in CSV, strictly as RFC 4180 has them; line ends may be LF alone. */
#ifndef DRLLM_TOOLS_CSV_H
#define DRLLM_TOOLS_CSV_H

#include "tools/common.h"

struct csv_row {
    struct text *fields; /* [capacity], of them the first `count` are the row's */
    size_t count, capacity;
};
void csv_row_release(struct csv_row *row);

/* A walk over records; begin with position, line and number 0. */
struct csv {
    const char *text;
    size_t size;
    size_t position;
    size_t line;   /* in which the record that was read last begins, from 1 */
    size_t number; /* of that record, from 1 */
    size_t n_lines;
};

/* The next record, with *wrong NULL or what is wrong with it; the walk goes on behind the line. False at the end. */
bool csv_next(struct csv *csv, struct csv_row *row, const char **wrong);

/* Write a field: quoted where need be, with quotes inside doubled. */
void csv_put_text(FILE *stream, const char *text);

#endif
