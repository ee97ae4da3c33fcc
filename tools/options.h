/* Command lines from a table: one row per option gives parsing, checks and the help text. */
#ifndef DRLLM_TOOLS_OPTIONS_H
#define DRLLM_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the program returns to the shell. */
enum exit_code {
    TOOL_OK = 0,
    TOOL_FAILED = 1,       /* something could not be read, computed or written */
    TOOL_USAGE = 2,        /* the command line is wrong; nothing was done */
    TOOL_INTERRUPTED = 130 /* Ctrl-C; what was there by then has been printed */
};

/* One subcommand. */
struct command {
    const char *name;
    const char *synopsis;                                             /* what follows the name in the usage line */
    const char *summary;                                              /* one line for `drllm --help` */
    const char *notes;                                                /* lines under the options, or NULL */
    int (*run)(const struct command *command, int argc, char **argv); /* argv[0] is the first argument */
};

struct text_list {
    const char **items; /* the texts are the command line's */
    size_t count;
};

struct integer_list {
    int64_t *items;
    size_t count;
};

enum option_type {
    OPTION_FLAG,
    OPTION_TEXT,
    OPTION_TEXTS, /* may be repeated */
    OPTION_INTEGER,
    OPTION_INTEGERS, /* 64,512; may be repeated */
    OPTION_REAL,
    OPTION_WORD /* one of `words`; the value is its index */
};

struct option {
    const char *long_name;
    union {
        bool *flag;
        const char **text;
        struct text_list *texts;
        int64_t *integer;
        struct integer_list *integers;
        double *real;
        int *word;
    } target;          /* holds the default before parsing, which the help shows */
    const char *value; /* the value's name in the help */
    const char *help;
    double least, most;       /* bounds of numbers, both allowed; integers are exact up to 2^53 */
    const char *const *words; /* ends with NULL */
    enum option_type type;
    char short_name; /* 0: none */
};

/* One row; each macro checks the type of its target. */
#define OPT_FLAG(s, l, to, about) \
    { .short_name = (s), .long_name = (l), .type = OPTION_FLAG, .target.flag = (to), .help = (about) }
#define OPT_TEXT(s, l, to, v, about) \
    { .short_name = (s), .long_name = (l), .type = OPTION_TEXT, .target.text = (to), .value = (v), .help = (about) }
#define OPT_TEXTS(s, l, to, v, about) \
    { .short_name = (s), .long_name = (l), .type = OPTION_TEXTS, .target.texts = (to), .value = (v), .help = (about) }
#define OPT_INTEGER(s, l, to, v, low, high, about)                                                         \
    {                                                                                                      \
        .short_name = (s), .long_name = (l), .type = OPTION_INTEGER, .target.integer = (to), .value = (v), \
        .help = (about), .least = (low), .most = (high)                                                    \
    }
#define OPT_INTEGERS(s, l, to, v, low, high, about)                                                          \
    {                                                                                                        \
        .short_name = (s), .long_name = (l), .type = OPTION_INTEGERS, .target.integers = (to), .value = (v), \
        .help = (about), .least = (low), .most = (high)                                                      \
    }
#define OPT_REAL(s, l, to, v, low, high, about)                                                                       \
    {                                                                                                                 \
        .short_name = (s), .long_name = (l), .type = OPTION_REAL, .target.real = (to), .value = (v), .help = (about), \
        .least = (low), .most = (high)                                                                                \
    }
#define OPT_WORD(s, l, to, choices, about)                                                                 \
    {                                                                                                      \
        .short_name = (s), .long_name = (l), .type = OPTION_WORD, .target.word = (to), .words = (choices), \
        .help = (about)                                                                                    \
    }

#define OPTION_COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* Parse argv[0 .. argc). Arguments that are no options go to `operands`; where it is NULL they are an error. True:
 * go on. False: return *exit_code; the help was shown, or a message. Lists must be released either way. */
bool options_parse(const struct command *command, const struct option *options, size_t n_options, int argc, char **argv,
                   struct text_list *operands, int *exit_code);

/* Free what the lists of the table hold. */
void options_release(const struct option *options, size_t n_options);

void text_list_add(struct text_list *list, const char *text);
void integer_list_add(struct integer_list *list, int64_t number);

/* The whole text as a decimal number without blanks around it; false for anything else and for what does not fit. */
bool parse_integer(const char *text, int64_t *number);
bool parse_real(const char *text, double *number);

#endif
