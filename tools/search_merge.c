/* The labels of shards, put together. */
#include "tools/files.h"
#include "tools/jsonl.h"
#include "tools/search.h"

#include <math.h>
#include <stdlib.h>

struct label {
    size_t index; /* of its question */
    const char *file;
    size_t line; /* in the file */
    const char *text;
    size_t size;
};

struct labels {
    const struct command *command;
    struct label *items;
    size_t count;
};

/* The question that a line is about; SIZE_MAX where it says none. */
static size_t index_of(const cJSON *json) {
    const cJSON *index = cJSON_GetObjectItemCaseSensitive(json, "index");
    const bool good = cJSON_IsNumber(index) && index->valuedouble >= 0.0 && index->valuedouble < 1e9 &&
                      index->valuedouble == floor(index->valuedouble) &&
                      cJSON_IsString(cJSON_GetObjectItemCaseSensitive(json, "program"));
    return good ? (size_t)index->valuedouble : SIZE_MAX;
}

static int read_labels(struct labels *labels, const char *path, struct text *text) {
    int exit_code = read_text(labels->command, path, text);
    struct json_lines lines = {.text = text->data, .size = text->size};
    cJSON *json = NULL;
    const char *wrong = NULL;
    for (size_t begin = 0; exit_code == TOOL_OK && json_lines_next(&lines, &json, &wrong); begin = lines.position) {
        const size_t index = json != NULL ? index_of(json) : SIZE_MAX;
        cJSON_Delete(json);
        if (index == SIZE_MAX) {
            report(labels->command, "%s, line %zu: %s", path, lines.number,
                   wrong != NULL ? wrong : "it is no label: \"index\" and \"program\" are missing");
            exit_code = TOOL_FAILED;
        }
        labels->items = reallocate(labels->items, labels->count + 1, sizeof *labels->items);
        labels->items[labels->count++] =
            (struct label){index, path, lines.number, text->data + begin, lines.position - 1 - begin};
    }
    return exit_code;
}

static int by_index(const void *a, const void *b) {
    const struct label *x = a;
    const struct label *y = b;
    return x->index < y->index ? -1 : x->index > y->index ? 1 : 0;
}

/* Each question once, from 0 on. */
static int check_labels(const struct labels *labels) {
    for (size_t i = 0; i < labels->count; i++) {
        const struct label *label = &labels->items[i];
        if (label->index > i) {
            report(labels->command, "question %zu has no label; the labels of a shard are missing", i);
            return TOOL_FAILED;
        }
        if (label->index < i) { /* those before are in order */
            report(labels->command, "question %zu has two labels: %s, line %zu, and %s, line %zu", label->index,
                   label[-1].file, label[-1].line, label->file, label->line);
            return TOOL_FAILED;
        }
    }
    return TOOL_OK;
}

int search_merge(const struct command *command, const struct text_list *files, const char *output) {
    struct labels labels = {.command = command};
    struct text *texts = allocate(files->count, sizeof *texts);
    struct text merged = {NULL, 0, 0};
    int exit_code = TOOL_OK;
    for (size_t i = 0; i < files->count; i++) {
        texts[i] = (struct text){NULL, 0, 0};
        exit_code = exit_code == TOOL_OK ? read_labels(&labels, files->items[i], &texts[i]) : exit_code;
    }
    if (exit_code == TOOL_OK && labels.count > 0) {
        qsort(labels.items, labels.count, sizeof *labels.items, by_index);
        exit_code = check_labels(&labels);
    }
    for (size_t i = 0; exit_code == TOOL_OK && i < labels.count; i++) {
        text_append(&merged, labels.items[i].text, labels.items[i].size);
        text_append(&merged, "\n", 1);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_file(command, output, merged.data, merged.size);
    }
    for (size_t i = 0; i < files->count; i++) {
        text_release(&texts[i]);
    }
    text_release(&merged);
    free(texts);
    free(labels.items);
    return exit_code;
}
