#include "runtime/program.h"

#include "runtime/error.h"

#include <string.h>

bool drllm_program_is_valid(const uint8_t *counts, size_t n_layers) {
    for (size_t i = 0; i < n_layers; i++) {
        if (counts[i] > DRLLM_MAX_COUNT) {
            return false;
        }
    }
    return true;
}

size_t drllm_program_executions(const uint8_t *counts, size_t n_layers) {
    size_t sum = 0;
    for (size_t i = 0; i < n_layers; i++) {
        sum += counts[i];
    }
    return sum;
}

static const char none[] = "none"; /* the text of a program that runs no block */

/* ---- From text ---- */

/* Blocks first .. last, all with one count. */
struct item {
    size_t first;
    size_t last;
    uint8_t count;
};

/* Decimal digits at *text, which moves behind them. False for none and for numbers that no model has blocks for. */
static bool read_number(const char **text, size_t *number) {
    enum { TOO_LARGE = 1 << 24 };
    const char *p = *text;
    *number = 0;
    while (*p >= '0' && *p <= '9' && *number < TOO_LARGE) {
        *number = *number * 10 + (size_t)(*p++ - '0');
    }
    const bool digits = p != *text;
    *text = p;
    return digits && *number < TOO_LARGE;
}

/* One item and what follows it, a comma or the end. */
static bool read_item(const char **text, struct item *item) {
    const char *p = *text;
    if (!read_number(&p, &item->first)) {
        return false;
    }
    item->last = item->first;
    item->count = 1;
    if (*p == '-') {
        p++;
        if (!read_number(&p, &item->last)) {
            return false;
        }
    }
    if (p[0] == 'x' && p[1] == '2') {
        p += 2;
        item->count = 2;
    }
    if (*p == ',' ? p[1] == '\0' : *p != '\0') {
        return false;
    }
    *text = p + (*p == ',');
    return true;
}

int drllm_program_parse(const char *text, size_t n_layers, uint8_t *counts, struct drllm_error *error) {
    if (text == NULL || counts == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "text and counts must not be NULL");
    }
    if (strcmp(text, none) == 0) {
        text = "";
    }
    /* Twice over the text: counts stay as they are unless all of it is good. */
    size_t next = 0;
    for (const char *p = text; *p != '\0';) {
        const char *start = p;
        struct item item;
        if (!read_item(&p, &item)) {
            return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                              "a program reads like 0-9,11-14,15x2,16-29, or none; this does not, from \"%s\" on",
                              start);
        }
        if (item.first < next || item.last < item.first) {
            return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                              "a program names its blocks in rising order, each once; \"%s\" does not go on after %zu",
                              start, next - (next > 0));
        }
        if (item.last >= n_layers) {
            return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                              "the program runs block %zu, but the model has blocks 0 to %zu", item.last,
                              n_layers - (n_layers > 0));
        }
        next = item.last + 1;
    }
    memset(counts, 0, n_layers);
    for (const char *p = text; *p != '\0';) {
        struct item item = {0};
        (void)read_item(&p, &item);
        memset(counts + item.first, item.count, item.last - item.first + 1);
    }
    return DRLLM_OK;
}

/* ---- To text ---- */

struct writer {
    char *text;  /* NULL: only count */
    size_t size; /* so far */
};

static void write_item(struct writer *writer, const struct item *item) {
    char text[64];
    size_t size = drllm_format_text(text, sizeof text, "%s%zu", writer->size > 0 ? "," : "", item->first);
    if (item->last > item->first) {
        size += drllm_format_text(text + size, sizeof text - size, "-%zu", item->last);
    }
    if (item->count == 2) {
        size += drllm_format_text(text + size, sizeof text - size, "x2");
    }
    if (writer->text != NULL) {
        memcpy(writer->text + writer->size, text, size);
    }
    writer->size += size;
}

static void write_program(struct writer *writer, const uint8_t *counts, size_t n_layers) {
    for (size_t first = 0, next; first < n_layers; first = next) {
        for (next = first + 1; next < n_layers && counts[next] == counts[first]; next++) {
        }
        if (counts[first] > 0) {
            write_item(writer, &(struct item){first, next - 1, counts[first]});
        }
    }
    if (writer->size == 0) {
        writer->size = sizeof none - 1;
        if (writer->text != NULL) {
            memcpy(writer->text, none, writer->size);
        }
    }
}

int drllm_program_format(const uint8_t *counts, size_t n_layers, char *text, size_t capacity, size_t *size) {
    if (counts == NULL || size == NULL || (text == NULL && capacity > 0) || !drllm_program_is_valid(counts, n_layers)) {
        return DRLLM_ERR_ARGUMENT;
    }
    struct writer writer = {.text = NULL};
    write_program(&writer, counts, n_layers);
    *size = writer.size + 1;
    if (text == NULL || *size > capacity) {
        return DRLLM_ERR_BUFFER;
    }
    writer = (struct writer){.text = text};
    write_program(&writer, counts, n_layers);
    text[writer.size] = '\0';
    return DRLLM_OK;
}
