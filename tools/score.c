/* drllm score: the likeliest of given answers. */
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/depth.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/jsonl.h"

#include <stdlib.h>
#include <string.h>

enum normalise { BY_CHARACTERS, BY_TOKENS, BY_NOTHING };
static const char *const normalise_names[] = {"characters", "tokens", "none", NULL};

struct score_options {
    struct model_options model;
    struct depth_options depth;
    const char *prompt;
    const char *file;
    const char *batch;
    struct text_list choices;
    int normalise;
    bool json;
};

struct scorer {
    const struct command *command;
    const struct score_options *options;
    struct drllm_model *model;
    struct depth depth;
    struct drllm_session *session;
};

/* A question, and what came out. */
struct question {
    const char *prompt;
    size_t prompt_size;
    const char **choices;
    size_t n_choices;
    struct tokens prompt_tokens;
    struct tokens *choice_tokens;   /* [n_choices] */
    struct drllm_choice *log_probs; /* [n_choices] */
    double *scores;                 /* [n_choices] */
    size_t best;
};

static void question_release(struct question *question) {
    for (size_t i = 0; question->choice_tokens != NULL && i < question->n_choices; i++) {
        tokens_release(&question->choice_tokens[i]);
    }
    free(question->choice_tokens);
    free(question->log_probs);
    free(question->scores);
    tokens_release(&question->prompt_tokens);
}

static double divisor(const struct scorer *scorer, const struct question *question, size_t choice) {
    switch (scorer->options->normalise) {
    case BY_CHARACTERS:
        return (double)count_characters(question->choices[choice]);
    case BY_TOKENS:
        return (double)question->choice_tokens[choice].count;
    default:
        return 1.0;
    }
}

static int tokenize_question(const struct scorer *scorer, struct question *question) {
    int exit_code = tokenize(scorer->command, scorer->model, question->prompt, question->prompt_size,
                             DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, &question->prompt_tokens);
    if (exit_code == TOOL_OK && question->prompt_tokens.count == 0) {
        report(scorer->command, "the prompt is empty");
        return TOOL_FAILED;
    }
    for (size_t i = 0; exit_code == TOOL_OK && i < question->n_choices; i++) {
        struct tokens *tokens = &question->choice_tokens[i];
        exit_code =
            tokenize(scorer->command, scorer->model, question->choices[i], strlen(question->choices[i]), 0, tokens);
        if (exit_code == TOOL_OK && tokens->count == 0) {
            report(scorer->command, "choice %zu is empty", i);
            return TOOL_FAILED;
        }
        question->log_probs[i] = (struct drllm_choice){tokens->ids, tokens->count, 0.0};
    }
    return exit_code;
}

/* Fill in everything but prompt and choices. Returns an exit code. */
static int score_question(const struct scorer *scorer, struct question *question) {
    question->choice_tokens = allocate(question->n_choices, sizeof *question->choice_tokens);
    memset(question->choice_tokens, 0, question->n_choices * sizeof *question->choice_tokens);
    question->log_probs = allocate(question->n_choices, sizeof *question->log_probs);
    question->scores = allocate(question->n_choices, sizeof *question->scores);
    const int exit_code = tokenize_question(scorer, question);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const int kept = drllm_session_rewind(scorer->session, 0);
    const int status =
        kept != DRLLM_OK ? kept
                         : drllm_session_score(scorer->session, question->prompt_tokens.ids,
                                               question->prompt_tokens.count, question->log_probs, question->n_choices);
    if (status != DRLLM_OK) {
        return session_error(scorer->command, scorer->session, "cannot score", status);
    }
    for (size_t i = 0; i < question->n_choices; i++) {
        question->scores[i] = question->log_probs[i].log_prob / divisor(scorer, question, i);
        if (question->scores[i] > question->scores[question->best]) {
            question->best = i;
        }
    }
    return TOOL_OK;
}

static void add_results(cJSON *json, const struct question *question) {
    cJSON_AddItemToObject(json, "prompt_tokens",
                          json_tokens(question->prompt_tokens.ids, question->prompt_tokens.count));
    cJSON *choices = cJSON_AddArrayToObject(json, "choices");
    for (size_t i = 0; i < question->n_choices; i++) {
        cJSON *choice = cJSON_CreateObject();
        cJSON_AddItemToObject(choice, "text", json_text(question->choices[i], strlen(question->choices[i])));
        cJSON_AddItemToObject(choice, "tokens",
                              json_tokens(question->choice_tokens[i].ids, question->choice_tokens[i].count));
        cJSON_AddNumberToObject(choice, "log_prob", question->log_probs[i].log_prob);
        cJSON_AddNumberToObject(choice, "score", question->scores[i]);
        cJSON_AddItemToArray(choices, choice);
    }
    cJSON_AddNumberToObject(json, "best", (double)question->best);
}

/* ---- One question from the command line ---- */

static int print_result(const struct scorer *scorer, const struct question *question) {
    if (scorer->options->json) {
        cJSON *json = cJSON_CreateObject();
        add_results(json, question);
        depth_add_json(cJSON_AddObjectToObject(json, "routing"), scorer->session, &scorer->depth);
        return json_print(scorer->command, json, false);
    }
    printf("     log_prob       score  choice\n");
    for (size_t i = 0; i < question->n_choices; i++) {
        printf("%c %11.5f %11.5f  ", i == question->best ? '*' : ' ', question->log_probs[i].log_prob,
               question->scores[i]);
        print_quoted(stdout, question->choices[i], strlen(question->choices[i]));
        putchar('\n');
    }
    return flush_output(scorer->command);
}

static int score_one(const struct scorer *scorer) {
    struct text prompt = {NULL, 0, 0};
    int exit_code = TOOL_OK;
    if (scorer->options->prompt != NULL) {
        text_append(&prompt, scorer->options->prompt, strlen(scorer->options->prompt));
    } else {
        exit_code = read_text(scorer->command, scorer->options->file, &prompt);
        drop_last_newline(&prompt);
    }
    struct question question = {.prompt = prompt.data,
                                .prompt_size = prompt.size,
                                .choices = scorer->options->choices.items,
                                .n_choices = scorer->options->choices.count};
    if (exit_code == TOOL_OK) {
        exit_code = score_question(scorer, &question);
    }
    if (exit_code == TOOL_OK) {
        exit_code = print_result(scorer, &question);
    }
    question_release(&question);
    text_release(&prompt);
    return exit_code;
}

/* ---- Many from a file ---- */

struct tally {
    size_t bad;
    size_t answered; /* lines that hold an answer */
    size_t right;
    struct depth_mean depth;
};

/* What is wrong with a line, or NULL. The strings stay the JSON's. answer: -1 if there is none. */
static const char *read_question(const cJSON *json, struct question *question, int *answer) {
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(json, "prompt");
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(json, "choices");
    const cJSON *right = cJSON_GetObjectItemCaseSensitive(json, "answer");
    if (!cJSON_IsString(prompt)) {
        return "it has no text \"prompt\"";
    }
    if (!cJSON_IsArray(choices) || cJSON_GetArraySize(choices) == 0) {
        return "it has no list \"choices\"";
    }
    question->prompt = prompt->valuestring;
    question->prompt_size = strlen(prompt->valuestring);
    question->choices = allocate((size_t)cJSON_GetArraySize(choices), sizeof *question->choices);
    const cJSON *choice;
    cJSON_ArrayForEach(choice, choices) {
        if (!cJSON_IsString(choice)) {
            return "a choice is no text";
        }
        question->choices[question->n_choices++] = choice->valuestring;
    }
    *answer = -1;
    if (right != NULL && !cJSON_IsNull(right)) {
        if (!cJSON_IsNumber(right) || right->valuedouble < 0 || right->valuedouble != (double)right->valueint ||
            (size_t)right->valueint >= question->n_choices) {
            return "its \"answer\" is not the index of a choice";
        }
        *answer = right->valueint;
    }
    return NULL;
}

static int print_bad_line(const struct scorer *scorer, size_t number, const char *why, struct tally *tally) {
    tally->bad++;
    report(scorer->command, "%s, line %zu: %s", scorer->options->batch, number, why);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "line", (double)number);
    cJSON_AddStringToObject(json, "error", why);
    return json_print(scorer->command, json, true);
}

static int print_scored_line(const struct scorer *scorer, size_t number, const struct question *question, int answer,
                             struct tally *tally) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "line", (double)number);
    add_results(json, question);
    if (answer >= 0) {
        const bool right = (size_t)answer == question->best;
        tally->answered++;
        tally->right += right;
        cJSON_AddNumberToObject(json, "answer", answer);
        cJSON_AddBoolToObject(json, "correct", right);
    }
    depth_mean_add(&tally->depth, scorer->session);
    depth_add_program_json(cJSON_AddObjectToObject(json, "routing"), scorer->session, &scorer->depth);
    return json_print(scorer->command, json, true);
}

/* Returns an exit code other than TOOL_OK only if the following lines are not worth trying. */
static int score_line(const struct scorer *scorer, size_t number, const cJSON *json, const char *wrong,
                      struct tally *tally) {
    struct question question = {.prompt = NULL};
    int answer = -1;
    wrong = wrong != NULL ? wrong : read_question(json, &question, &answer);
    int exit_code;
    if (wrong != NULL) {
        exit_code = print_bad_line(scorer, number, wrong, tally);
    } else {
        exit_code = score_question(scorer, &question);
        if (exit_code == TOOL_OK) {
            exit_code = print_scored_line(scorer, number, &question, answer, tally);
        } else if (exit_code == TOOL_FAILED) {
            exit_code = print_bad_line(scorer, number, "it cannot be scored", tally);
        }
    }
    question_release(&question);
    free((void *)question.choices);
    return exit_code;
}

static int score_lines(const struct scorer *scorer, const struct text *text, struct tally *tally) {
    struct json_lines lines = {.text = text->data, .size = text->size};
    cJSON *json;
    const char *wrong;
    int exit_code = TOOL_OK;
    while (exit_code == TOOL_OK && json_lines_next(&lines, &json, &wrong)) {
        exit_code = score_line(scorer, lines.number, json, wrong, tally);
        cJSON_Delete(json);
    }
    return exit_code;
}

static int score_batch(const struct scorer *scorer) {
    struct text text = {NULL, 0, 0};
    struct tally tally = {.bad = 0};
    int exit_code = read_text(scorer->command, scorer->options->batch, &text);
    if (exit_code == TOOL_OK) {
        exit_code = score_lines(scorer, &text, &tally);
        if (tally.answered != 0) {
            fprintf(stderr, "accuracy: %zu of %zu (%.2f %%)\n", tally.right, tally.answered,
                    100.0 * (double)tally.right / (double)tally.answered);
        }
        depth_mean_print(&tally.depth, &scorer->depth);
        if (tally.bad != 0) {
            report(scorer->command, "%zu bad lines in %s", tally.bad, scorer->options->batch);
        }
    }
    text_release(&text);
    return exit_code != TOOL_OK ? exit_code : tally.bad != 0 ? TOOL_FAILED : TOOL_OK;
}

/* ---- */

static int check(const struct command *command, const struct score_options *options) {
    const int sources = (options->prompt != NULL) + (options->file != NULL) + (options->batch != NULL);
    if (options->model.path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    if (sources != 1) {
        return usage_error(command, "one of -p TEXT, -f FILE and -d FILE must be given");
    }
    if ((options->choices.count == 0) != (options->batch != NULL)) {
        return usage_error(command, "%s",
                           options->batch != NULL ? "with -d the choices are in the file"
                                                  : "no choices: --choice TEXT is missing");
    }
    return depth_check(command, &options->depth);
}

static int run(struct scorer *scorer) {
    const struct model_options *model = &scorer->options->model;
    int exit_code = open_model(scorer->command, model, &scorer->model);
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(scorer->command, &scorer->options->depth, scorer->model, &scorer->depth);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_session(scorer->command, scorer->model, (size_t)model->context, (unsigned)model->threads,
                                 model->kv, &scorer->session);
    }
    if (exit_code == TOOL_OK) {
        exit_code = depth_set(scorer->command, scorer->session, &scorer->depth);
    }
    if (exit_code == TOOL_OK) {
        interrupt_install();
        interrupt_watch(scorer->session);
        exit_code = scorer->options->batch != NULL ? score_batch(scorer) : score_one(scorer);
    }
    interrupt_watch(NULL);
    drllm_session_close(scorer->session);
    depth_close(&scorer->depth);
    drllm_model_close(scorer->model);
    return exit_code;
}

int score_main(const struct command *command, int argc, char **argv) {
    struct score_options options = {
        .model = model_options_default(), .depth = depth_options_default(), .normalise = BY_CHARACTERS};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT('p', "prompt", &options.prompt, "TEXT", "the prompt, taken as it is"),
        OPT_TEXT('f', "file", &options.file, "FILE", "a file that holds the prompt; -: standard input"),
        OPT_TEXTS(0, "choice", &options.choices, "TEXT", "an answer to score; may be repeated"),
        OPT_TEXT('d', "data", &options.batch, "FILE", "many questions, one JSON object a line; -: standard input"),
        OPT_WORD(0, "normalize", &options.normalise, normalise_names, "length that a log-probability is divided by"),
        DEPTH_OPTIONS(&options.depth),
        OPT_FLAG(0, "json", &options.json, "print one JSON object"),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct scorer scorer = {.command = command, .options = &options};
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK) {
            exit_code = run(&scorer);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
