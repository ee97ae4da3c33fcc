#include "tools/options.h"

#include "tools/common.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void text_list_add(struct text_list *list, const char *text) {
    list->items = reallocate((void *)list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = text;
}

void integer_list_add(struct integer_list *list, int64_t number) {
    list->items = reallocate(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = number;
}

void options_release(const struct option *options, size_t n_options) {
    for (size_t i = 0; i < n_options; i++) {
        if (options[i].type == OPTION_TEXTS) {
            free((void *)options[i].target.texts->items);
            *options[i].target.texts = (struct text_list){NULL, 0};
        } else if (options[i].type == OPTION_INTEGERS) {
            free(options[i].target.integers->items);
            *options[i].target.integers = (struct integer_list){NULL, 0};
        }
    }
}

/* ---- Numbers ---- */

static bool starts_number(const char *text) {
    /* strtoll and strtod skip blanks and take "inf" and hexadecimal; we do not. */
    const char *p = text[0] == '-' || text[0] == '+' ? text + 1 : text;
    return strspn(p, "0123456789.eE+-") == strlen(p) && *p != '\0';
}

bool parse_integer(const char *text, int64_t *number) {
    if (!starts_number(text)) {
        return false;
    }
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0') {
        return false;
    }
    *number = value;
    return true;
}

bool parse_real(const char *text, double *number) {
    if (!starts_number(text)) {
        return false;
    }
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) {
        return false;
    }
    *number = value;
    return true;
}

/* ---- Help ---- */

static void print_default(const struct option *option) {
    switch (option->type) {
    case OPTION_TEXT:
        if (*option->target.text != NULL) {
            printf(" (default %s)", *option->target.text);
        }
        break;
    case OPTION_INTEGER:
        printf(" (default %lld)", (long long)*option->target.integer);
        break;
    case OPTION_REAL:
        if (!isnan(*option->target.real)) { /* NAN: not given */
            printf(" (default %g)", *option->target.real);
        }
        break;
    case OPTION_WORD:
        printf(" (default %s)", option->words[*option->target.word]);
        break;
    case OPTION_FLAG:
    case OPTION_TEXTS:
    case OPTION_INTEGERS:
        break;
    }
}

/* "-n, --predict N", into text; returns its length. */
static size_t format_names(const struct option *option, char *text, size_t size) {
    const char short_name[] = {'-', option->short_name, ',', ' ', '\0'};
    int n = snprintf(text, size, "  %s--%s", option->short_name != 0 ? short_name : "    ", option->long_name);
    if (option->value != NULL) {
        n += snprintf(text + n, size - (size_t)n, " %s", option->value);
    }
    for (size_t i = 0; option->words != NULL && option->words[i] != NULL; i++) {
        n += snprintf(text + n, size - (size_t)n, "%s%s", i == 0 ? " " : "|", option->words[i]);
    }
    return (size_t)n;
}

static void print_help(const struct command *command, const struct option *options, size_t n_options) {
    enum { COLUMN = 30 };
    printf("usage: drllm %s %s\n\n%s\n\n", command->name, command->synopsis, command->summary);
    for (size_t i = 0; i < n_options; i++) {
        char names[256];
        const size_t width = format_names(&options[i], names, sizeof names);
        printf("%s", names);
        if (width + 2 > COLUMN) {
            printf("\n%*s", COLUMN, "");
        } else {
            printf("%*s", (int)(COLUMN - width), "");
        }
        printf("%s", options[i].help);
        print_default(&options[i]);
        printf("\n");
    }
    printf("  -h, --help%*sthis text\n", COLUMN - 12, "");
    if (command->notes != NULL) {
        printf("\n%s\n", command->notes);
    }
    printf("\nexit status: 0 done, 1 failed, 2 wrong use, 130 interrupted\n");
}

/* ---- Parsing ---- */

/* A walk over the arguments; each step is an option with its value, or an operand. */
struct walk {
    const struct command *command;
    const struct option *options;
    size_t n_options;
    int argc;
    char **argv;
    int position;
    bool only_operands; /* after "--" */
};

enum step { STEP_END, STEP_OPTION, STEP_OPERAND, STEP_HELP, STEP_ERROR };

static const struct option *find_option(const struct walk *walk, const char *name, size_t size) {
    for (size_t i = 0; i < walk->n_options; i++) {
        const struct option *option = &walk->options[i];
        const bool is_short = size == 2 && name[0] == '-' && name[1] == option->short_name && option->short_name != 0;
        const bool is_long = size > 2 && name[0] == '-' && name[1] == '-' && strlen(option->long_name) == size - 2 &&
                             memcmp(option->long_name, name + 2, size - 2) == 0;
        if (is_short || is_long) {
            return option;
        }
    }
    return NULL;
}

/* value: of the option, NULL for a flag; or the operand. Errors are reported only if `report`. */
static enum step next_step(struct walk *walk, bool report, const struct option **option, const char **value) {
    if (walk->position == walk->argc) {
        return STEP_END;
    }
    const char *argument = walk->argv[walk->position++];
    *value = argument;
    if (walk->only_operands || argument[0] != '-' || argument[1] == '\0') {
        return STEP_OPERAND;
    }
    if (strcmp(argument, "--") == 0) {
        walk->only_operands = true;
        return next_step(walk, report, option, value);
    }
    if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
        return STEP_HELP;
    }
    const char *equals = argument[1] == '-' ? strchr(argument, '=') : NULL;
    const size_t size = equals != NULL ? (size_t)(equals - argument) : strlen(argument);
    *option = find_option(walk, argument, size);
    if (*option == NULL) {
        if (report) {
            usage_error(walk->command, "unknown option %.*s", (int)size, argument);
        }
        return STEP_ERROR;
    }
    if ((*option)->type == OPTION_FLAG) {
        *value = NULL;
        if (equals != NULL && report) {
            usage_error(walk->command, "%.*s takes no value", (int)size, argument);
        }
        return equals != NULL ? STEP_ERROR : STEP_OPTION;
    }
    if (equals != NULL) {
        *value = equals + 1;
        return STEP_OPTION;
    }
    if (walk->position == walk->argc) {
        if (report) {
            usage_error(walk->command, "%s needs a value", argument);
        }
        return STEP_ERROR;
    }
    *value = walk->argv[walk->position++];
    return STEP_OPTION;
}

/* Asked for anywhere, the help is shown before a value changes a default that it prints. */
static bool wants_help(struct walk walk) {
    const struct option *option;
    const char *value;
    for (;;) {
        const enum step step = next_step(&walk, false, &option, &value);
        if (step == STEP_END || step == STEP_HELP) {
            return step == STEP_HELP;
        }
    }
}

static int bad_range(const struct command *command, const struct option *option, const char *value) {
    return usage_error(command, "--%s: '%s' is not %s from %.16g to %.16g", option->long_name, value,
                       option->type == OPTION_REAL ? "a number" : "a whole number", option->least, option->most);
}

static bool integer_in_range(const struct option *option, const char *value, int64_t *number) {
    return parse_integer(value, number) && *number >= (int64_t)option->least && *number <= (int64_t)option->most;
}

static int store_integers(const struct command *command, const struct option *option, const char *value) {
    const char *p = value;
    for (;;) {
        const size_t size = strcspn(p, ",");
        char item[32];
        int64_t number;
        if (size >= sizeof item) {
            return bad_range(command, option, value);
        }
        memcpy(item, p, size);
        item[size] = '\0';
        if (!integer_in_range(option, item, &number)) {
            return usage_error(command, "--%s: '%s' is not a list of whole numbers from %.16g to %.16g such as 64,512",
                               option->long_name, value, option->least, option->most);
        }
        integer_list_add(option->target.integers, number);
        if (p[size] == '\0') {
            return TOOL_OK;
        }
        p += size + 1;
    }
}

static int store_word(const struct command *command, const struct option *option, const char *value) {
    for (int i = 0; option->words[i] != NULL; i++) {
        if (strcmp(option->words[i], value) == 0) {
            *option->target.word = i;
            return TOOL_OK;
        }
    }
    char names[256];
    format_names(option, names, sizeof names);
    return usage_error(command, "--%s: '%s' is none of%s", option->long_name, value, strrchr(names, ' '));
}

static int store(const struct command *command, const struct option *option, const char *value) {
    int64_t integer;
    double real;
    switch (option->type) {
    case OPTION_FLAG:
        *option->target.flag = true;
        return TOOL_OK;
    case OPTION_TEXT:
        *option->target.text = value;
        return TOOL_OK;
    case OPTION_TEXTS:
        text_list_add(option->target.texts, value);
        return TOOL_OK;
    case OPTION_INTEGER:
        if (!integer_in_range(option, value, &integer)) {
            return bad_range(command, option, value);
        }
        *option->target.integer = integer;
        return TOOL_OK;
    case OPTION_REAL:
        if (!parse_real(value, &real) || real < option->least || real > option->most) {
            return bad_range(command, option, value);
        }
        *option->target.real = real;
        return TOOL_OK;
    case OPTION_INTEGERS:
        return store_integers(command, option, value);
    case OPTION_WORD:
        return store_word(command, option, value);
    }
    return TOOL_FAILED;
}

bool options_parse(const struct command *command, const struct option *options, size_t n_options, int argc, char **argv,
                   struct text_list *operands, int *exit_code) {
    struct walk walk = {command, options, n_options, argc, argv, 0, false};
    if (wants_help(walk)) {
        print_help(command, options, n_options);
        *exit_code = TOOL_OK;
        return false;
    }
    for (;;) {
        const struct option *option = NULL;
        const char *value = NULL;
        switch (next_step(&walk, true, &option, &value)) {
        case STEP_END:
            return true;
        case STEP_OPERAND:
            if (operands == NULL) {
                *exit_code = usage_error(command, "unexpected argument '%s'", value);
                return false;
            }
            text_list_add(operands, value);
            break;
        case STEP_OPTION:
            *exit_code = store(command, option, value);
            if (*exit_code != TOOL_OK) {
                return false;
            }
            break;
        case STEP_HELP:
        case STEP_ERROR:
            *exit_code = TOOL_USAGE;
            return false;
        }
    }
}
