/* drllm convert: question sets in their public file formats into JSON lines (questions.h). */
#include "tools/answers.h"
#include "tools/commands.h"
#include "tools/convert_formats.h"
#include "tools/files.h"

#include "runtime/hash.h"
#include "runtime/utf8.h"
#include "tools/random.h"

#include <stdlib.h>
#include <string.h>

struct convert_options {
    const struct format *format;
    struct text_list files;
    const char *output;
    const char *task;
    const char *answers;
    int64_t limit;
    int64_t seed;
    bool letters;
};

struct converter {
    const struct command *command;
    const struct convert_options *options;
    const char *file; /* at hand */
    struct text answers;
    struct text_list labels; /* lines of the file of answers */
    struct text lines;       /* what is to be written */
    struct item item;
    size_t n_records, n_good, n_bad;
};

static bool is_full(const struct converter *converter) {
    const int64_t limit = converter->options->limit;
    return limit != 0 && converter->n_good == (size_t)limit;
}

static void report_bad(struct converter *converter, const struct record *record, const char *wrong) {
    converter->n_bad++;
    if (record->line != 0 && record->number != record->line) {
        report(converter->command, "%s, line %zu (record %zu): %s", converter->file, record->line, record->number,
               wrong);
    } else {
        report(converter->command, "%s, %s %zu: %s", converter->file, record->line != 0 ? "line" : "record",
               record->number, wrong);
    }
}

/* ---- Order of choices ---- */

/* By the seed and the question, so that it stays the same when other questions come and go. */
static void shuffle_choices(struct item *item, uint64_t seed) {
    uint64_t state = drllm_hash_bytes(DRLLM_HASH_START ^ seed, item->question.data, item->question.size);
    for (size_t i = item->n_choices; i > 1; i--) {
        const size_t last = i - 1;
        const size_t other = (size_t)(random_next(&state) % i);
        const struct text choice = item->choices[last];
        item->choices[last] = item->choices[other];
        item->choices[other] = choice;
        item->answer = item->answer == last ? other : item->answer == other ? last : item->answer;
    }
}

/* ---- JSON lines ---- */

static void append(struct text *text, const char *more) {
    text_append(text, more, strlen(more));
}

static void append_text(struct text *text, const struct text *more) {
    text_append(text, more->data, more->size);
}

static void write_prompt(struct text *prompt, const struct item *item, bool letters) {
    if (item->instruction != NULL) {
        append(prompt, item->instruction);
        append(prompt, "\n\n");
    }
    if (item->passage.size != 0) {
        append(prompt, "Passage: ");
        append_text(prompt, &item->passage);
        append(prompt, "\n");
    }
    append(prompt, "Question: ");
    append_text(prompt, &item->question);
    append(prompt, "\n");
    for (size_t i = 0; letters && i < item->n_choices; i++) {
        const char mark[] = {(char)('A' + i), '.', ' ', '\0'};
        append(prompt, mark);
        append_text(prompt, &item->choices[i]);
        append(prompt, "\n");
    }
    append(prompt, "Answer:");
}

static void add_choices(cJSON *json, const struct item *item, bool letters) {
    cJSON *choices = cJSON_AddArrayToObject(json, "choices");
    for (size_t i = 0; i < item->n_choices; i++) {
        const char letter[] = {' ', (char)('A' + i), '\0'};
        struct text choice = {NULL, 0, 0};
        append(&choice, letters ? letter : " ");
        text_append(&choice, item->choices[i].data, letters ? 0 : item->choices[i].size);
        cJSON_AddItemToArray(choices, json_text(choice.data, choice.size));
        text_release(&choice);
    }
    cJSON_AddNumberToObject(json, "answer", (double)item->answer);
}

static const char *task_of(const struct converter *converter) {
    const struct convert_options *options = converter->options;
    return options->task != NULL             ? options->task
           : converter->item.task[0] != '\0' ? converter->item.task
                                             : options->format->task;
}

static void add_line(struct converter *converter) {
    const struct item *item = &converter->item;
    const char *task = task_of(converter);
    struct text prompt = {NULL, 0, 0};
    cJSON *json = cJSON_CreateObject();
    write_prompt(&prompt, item, converter->options->letters);
    cJSON_AddItemToObject(json, "task", json_text(task, strlen(task)));
    cJSON_AddItemToObject(json, "prompt", json_text(prompt.data, prompt.size));
    if (item->n_choices != 0) {
        add_choices(json, item, converter->options->letters);
    } else {
        cJSON_AddItemToObject(json, "answer", json_text(item->answer_text.data, item->answer_text.size));
        cJSON_AddStringToObject(json, "match", match_names[item->match - MATCH_EXACT]);
        cJSON_AddNumberToObject(json, "max_tokens", (double)item->max_tokens);
    }
    char *line = cJSON_PrintUnformatted(json);
    append(&converter->lines, line);
    append(&converter->lines, "\n");
    cJSON_free(line);
    cJSON_Delete(json);
    text_release(&prompt);
}

/* ---- Records ---- */

static bool is_utf8(const struct text *text) {
    for (size_t at = 0; at < text->size;) {
        bool whole = false;
        at += drllm_utf8_character(text->data + at, text->size - at, &whole);
        if (!whole) {
            return false;
        }
    }
    return true;
}

/* What readers may have let through. */
static const char *check_item(const struct item *item) {
    bool is_text = is_utf8(&item->passage) && is_utf8(&item->question) && is_utf8(&item->answer_text);
    for (size_t i = 0; i < item->n_choices; i++) {
        is_text = is_text && is_utf8(&item->choices[i]);
    }
    if (!is_text) {
        return "it is no UTF-8";
    }
    if (item->match == MATCH_CHOICE) {
        return item->n_choices < 2 ? "it has fewer than 2 choices" : NULL;
    }
    return answer_wrong(item->match, item->answer_text.data);
}

static void reset_item(struct item *item) {
    item->task[0] = '\0';
    item->instruction = NULL;
    item->passage.size = item->question.size = item->answer_text.size = 0;
    item->n_choices = item->answer = item->max_tokens = 0;
    item->match = MATCH_CHOICE;
}

static void take_record(void *user, struct record *record) {
    struct converter *converter = user;
    const struct format *format = converter->options->format;
    if (is_full(converter)) {
        return;
    }
    if (record->number >= 1 && record->number <= converter->labels.count) {
        record->label = converter->labels.items[record->number - 1];
    }
    converter->n_records++;
    reset_item(&converter->item);
    const char *wrong = record->wrong;
    wrong = wrong != NULL ? wrong : format->read(record, &converter->item);
    wrong = wrong != NULL ? wrong : check_item(&converter->item);
    if (wrong != NULL) {
        report_bad(converter, record, wrong);
        return;
    }
    if (format->shuffles) {
        shuffle_choices(&converter->item, (uint64_t)converter->options->seed);
    }
    add_line(converter);
    converter->n_good++;
}

/* ---- Files ---- */

static void convert_table(struct converter *converter, const struct text *text, bool has_head) {
    struct csv csv = {.text = text->data, .size = text->size};
    struct csv_row head = {NULL, 0, 0};
    struct csv_row row = {NULL, 0, 0};
    const char *wrong;
    if (has_head && csv_next(&csv, &head, &wrong) && wrong != NULL) {
        report_bad(converter, &(struct record){.line = csv.line, .number = csv.number}, wrong);
    } else {
        while (!is_full(converter) && csv_next(&csv, &row, &wrong)) {
            struct record record = {.line = csv.line,
                                    .number = csv.number,
                                    .wrong = wrong,
                                    .row = &row,
                                    .columns = has_head ? &head : NULL};
            take_record(converter, &record);
        }
    }
    csv_row_release(&head);
    csv_row_release(&row);
}

static void convert_lines(struct converter *converter, const struct text *text) {
    struct json_lines lines = {.text = text->data, .size = text->size};
    cJSON *json;
    const char *wrong;
    while (!is_full(converter) && json_lines_next(&lines, &json, &wrong)) {
        struct record record = {.line = lines.number, .number = lines.number, .wrong = wrong, .json = json};
        take_record(converter, &record);
        cJSON_Delete(json);
    }
}

static void convert_list(struct converter *converter, const cJSON *list) {
    size_t number = 0;
    const cJSON *json;
    cJSON_ArrayForEach(json, list) {
        struct record record = {
            .number = ++number, .wrong = cJSON_IsObject(json) ? NULL : "it is no JSON object", .json = json};
        take_record(converter, &record);
    }
}

/* The one JSON that a whole file holds, or NULL. */
static cJSON *parse_whole(const struct text *text) {
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(text->data, text->size, &end, false);
    if (json != NULL &&
        (end + strspn(end, " \t\r\n") < text->data + text->size || json_cuts_text(text->data, text->size))) {
        cJSON_Delete(json);
        json = NULL;
    }
    return json;
}

static void bad_file(struct converter *converter, const char *wrong) {
    converter->n_bad++;
    report(converter->command, "%s: %s", converter->file, wrong);
}

static void convert_json(struct converter *converter, const struct text *text) {
    const bool is_nested = converter->options->format->source == SOURCE_JSON_NESTED;
    const bool is_list = text->data[strspn(text->data, " \t\r\n")] == '[';
    cJSON *json = parse_whole(text);
    if (json == NULL && (is_nested || is_list)) {
        bad_file(converter, "it is no JSON");
    } else if (is_nested) {
        const char *wrong = walk_squad(json, take_record, converter);
        if (wrong != NULL) {
            bad_file(converter, wrong);
        }
    } else if (cJSON_IsArray(json)) {
        convert_list(converter, json);
    } else if (cJSON_IsObject(json)) { /* also one that goes over several lines */
        take_record(converter, &(struct record){.line = 1, .number = 1, .json = json});
    } else {
        convert_lines(converter, text);
    }
    cJSON_Delete(json);
}

static int convert_file(struct converter *converter, const char *path) {
    struct text text = {NULL, 0, 0};
    const int exit_code = read_text(converter->command, path, &text);
    const enum source source = converter->options->format->source;
    converter->file = path;
    if (exit_code == TOOL_OK) {
        const char first = text.data[strspn(text.data, " \t\r\n")];
        const bool may_be_json = source == SOURCE_JSON_OR_TABLE && (first == '{' || first == '[');
        if (source == SOURCE_JSON || source == SOURCE_JSON_NESTED || may_be_json) {
            convert_json(converter, &text);
        } else {
            convert_table(converter, &text, source != SOURCE_TABLE);
        }
    }
    text_release(&text);
    return exit_code;
}

/* Lines, which stay in the text. */
static int read_answers(struct converter *converter) {
    const char *path = converter->options->answers;
    if (path == NULL) {
        return TOOL_OK;
    }
    const int exit_code = read_text(converter->command, path, &converter->answers);
    for (char *line = converter->answers.data; exit_code == TOOL_OK && *line != '\0';) {
        const size_t size = strcspn(line, "\n");
        char *next = line + size + (line[size] == '\n');
        line[size] = '\0';
        line[strcspn(line, "\r")] = '\0';
        text_list_add(&converter->labels, line);
        line = next;
    }
    return exit_code;
}

static int write_lines(struct converter *converter) {
    int exit_code = TOOL_OK;
    if (converter->n_good == 0) {
        report(converter->command, "no questions; nothing is written");
        exit_code = TOOL_FAILED;
    } else {
        exit_code =
            write_file(converter->command, converter->options->output, converter->lines.data, converter->lines.size);
    }
    if (converter->n_bad != 0) {
        report(converter->command, "%zu bad records", converter->n_bad);
        exit_code = TOOL_FAILED;
    }
    return exit_code;
}

static int convert(const struct command *command, const struct convert_options *options) {
    struct converter converter = {.command = command, .options = options};
    int exit_code = read_answers(&converter);
    for (size_t i = 0; i < options->files.count && exit_code == TOOL_OK && !is_full(&converter); i++) {
        exit_code = convert_file(&converter, options->files.items[i]);
    }
    if (exit_code == TOOL_OK && converter.labels.count > converter.n_records && !is_full(&converter)) {
        converter.file = options->answers;
        bad_file(&converter, "it holds more answers than there are questions");
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_lines(&converter);
    }
    item_release(&converter.item);
    text_release(&converter.answers);
    text_release(&converter.lines);
    free((void *)converter.labels.items);
    return exit_code;
}

/* ---- */

static int unknown_format(const struct command *command, const char *name) {
    struct text names = {NULL, 0, 0};
    for (size_t i = 0; i < n_convert_formats; i++) {
        append(&names, i != 0 ? ", " : "");
        append(&names, convert_formats[i].name);
    }
    const int exit_code = usage_error(command, "'%s' is none of %s", name, names.data);
    text_release(&names);
    return exit_code;
}

/* The first operand is the format, the others are the files. */
static int check(const struct command *command, const struct text_list *operands, struct convert_options *options) {
    if (operands->count < 2) {
        return usage_error(command, "FORMAT and IN must be given");
    }
    options->format = convert_find_format(operands->items[0]);
    options->files = (struct text_list){operands->items + 1, operands->count - 1};
    if (options->format == NULL) {
        return unknown_format(command, operands->items[0]);
    }
    if (options->letters && !options->format->has_choices) {
        return usage_error(command, "%s has no choices for --letters", options->format->name);
    }
    if (options->format->needs_answers != (options->answers != NULL)) {
        return usage_error(command, "%s %s", options->format->name,
                           options->answers != NULL ? "holds its answers, without --answers" : "needs --answers FILE");
    }
    if (options->answers != NULL && options->files.count != 1) {
        return usage_error(command, "--answers is for one file of questions");
    }
    return TOOL_OK;
}

int convert_main(const struct command *command, int argc, char **argv) {
    struct convert_options options = {.output = "-"};
    const struct option table[] = {
        OPT_TEXT('o', "output", &options.output, "FILE", "where the lines go; -: standard output"),
        OPT_TEXT(0, "task", &options.task, "NAME", "name of the task; without it the format's"),
        OPT_FLAG(0, "letters", &options.letters, "list the choices in the prompt; letters are the choices"),
        OPT_TEXT(0, "answers", &options.answers, "FILE", "the answers of piqa, one a line"),
        OPT_INTEGER(0, "limit", &options.limit, "N", 0, 1 << 30, "most questions; 0: all"),
        OPT_INTEGER('s', "seed", &options.seed, "N", 0, 9007199254740992.0, "of the order of shuffled choices"),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        exit_code = check(command, &operands, &options);
        if (exit_code == TOOL_OK) {
            exit_code = convert(command, &options);
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
