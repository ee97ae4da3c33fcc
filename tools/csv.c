#include "tools/csv.h"

#include <stdlib.h>
#include <string.h>

void csv_row_release(struct csv_row *row) {
    for (size_t i = 0; i < row->capacity; i++) {
        text_release(&row->fields[i]);
    }
    free(row->fields);
    *row = (struct csv_row){NULL, 0, 0};
}

static struct text *add_field(struct csv_row *row) {
    if (row->count == row->capacity) {
        row->fields = reallocate(row->fields, row->capacity + 1, sizeof *row->fields);
        row->fields[row->capacity++] = (struct text){NULL, 0, 0};
    }
    struct text *field = &row->fields[row->count++];
    field->size = 0;
    text_append(field, "", 0);
    return field;
}

/* The byte `ahead`, or -1 at the end. */
static int peek(const struct csv *csv, size_t ahead) {
    return csv->position + ahead < csv->size ? (unsigned char)csv->text[csv->position + ahead] : -1;
}

static bool at_line_end(const struct csv *csv) {
    return peek(csv, 0) < 0 || peek(csv, 0) == '\n' || (peek(csv, 0) == '\r' && peek(csv, 1) == '\n');
}

static void take(struct csv *csv, struct text *field) {
    csv->n_lines += csv->text[csv->position] == '\n';
    text_append(field, csv->text + csv->position, 1);
    csv->position++;
}

/* Behind the opening quote. */
static const char *take_quoted(struct csv *csv, struct text *field) {
    while (peek(csv, 0) >= 0) {
        if (peek(csv, 0) == '"' && peek(csv, 1) != '"') {
            csv->position++;
            return NULL;
        }
        csv->position += peek(csv, 0) == '"';
        take(csv, field);
    }
    return "a quote is not closed";
}

static const char *take_plain(struct csv *csv, struct text *field) {
    while (!at_line_end(csv) && peek(csv, 0) != ',') {
        if (peek(csv, 0) == '"') {
            return "a quote stands in a field without quotes";
        }
        if (peek(csv, 0) == '\r') {
            return "a carriage return stands outside quotes";
        }
        take(csv, field);
    }
    return NULL;
}

static const char *take_field(struct csv *csv, struct text *field) {
    const bool is_quoted = peek(csv, 0) == '"';
    csv->position += is_quoted;
    const char *wrong = is_quoted ? take_quoted(csv, field) : take_plain(csv, field);
    if (wrong == NULL && !at_line_end(csv) && peek(csv, 0) != ',') {
        return "something follows a closing quote";
    }
    if (wrong == NULL && memchr(field->data, '\0', field->size) != NULL) {
        return "it holds a zero byte";
    }
    return wrong;
}

static void end_line(struct csv *csv) {
    while (peek(csv, 0) >= 0 && peek(csv, 0) != '\n') {
        csv->position++;
    }
    csv->position += peek(csv, 0) == '\n';
    csv->n_lines++;
}

bool csv_next(struct csv *csv, struct csv_row *row, const char **wrong) {
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    if (csv->position == 0 && csv->size >= 3 && memcmp(csv->text, byte_order_mark, 3) == 0) {
        csv->position = 3;
    }
    if (csv->position >= csv->size) {
        return false;
    }
    csv->line = csv->n_lines + 1;
    csv->number++;
    row->count = 0;
    *wrong = take_field(csv, add_field(row));
    while (*wrong == NULL && peek(csv, 0) == ',') {
        csv->position++;
        *wrong = take_field(csv, add_field(row));
    }
    end_line(csv);
    return true;
}

void csv_put_text(FILE *stream, const char *text) {
    if (strpbrk(text, ",\"\r\n") == NULL) {
        fputs(text, stream);
        return;
    }
    fputc('"', stream);
    for (; *text != '\0'; text++) {
        fputs(*text == '"' ? "\"" : "", stream);
        fputc(*text, stream);
    }
    fputc('"', stream);
}
