/* Data sets: questions in JSON lines, for layer search, training and evaluation.
 *
 *   {"task": TEXT, "prompt": TEXT, "choices": [TEXT, ...], "answer": INDEX}
 *   {"task": TEXT, "prompt": TEXT, "answer": TEXT, "match": "exact|letter|number|boxed|contains", "max_tokens": N}
 *
 * task may be missing (""). A line may carry more fields, which are ignored: "program" (labels, see questions_read) is
 * read where it is there. A choice is tokenised apart from the prompt and appended; its score is its log-probability
 * divided by its length in characters. A generative question is answered greedily. */
#ifndef DRLLM_TOOLS_QUESTIONS_H
#define DRLLM_TOOLS_QUESTIONS_H

#include "tools/common.h"

enum match {
    MATCH_CHOICE,  /* the likeliest choice is the answer */
    MATCH_EXACT,   /* the text up to the first line end, without blanks around it, letter case and final '.' aside */
    MATCH_LETTER,  /* the first letter that stands alone: "B", "(b)", "B." */
    MATCH_NUMBER,  /* the last number in the text (commas and a leading $ aside) equals the answer's */
    MATCH_BOXED,   /* what the last \boxed{...} holds, blanks aside; without one, as number */
    MATCH_CONTAINS /* the answer occurs in the text, letter case aside */
};

struct question {
    const char *file; /* the caller's path, and the line in it, from 1 */
    size_t line;
    char *task;
    char *prompt;
    char **choices; /* [n_choices]; none for a generative question */
    size_t n_choices;
    size_t answer;     /* MATCH_CHOICE: index of the right choice; SIZE_MAX: the line has none */
    char *answer_text; /* otherwise */
    enum match match;
    size_t max_tokens;
    char *program; /* NULL where the line has none */

    /* By questions_tokenize: */
    struct tokens prompt_tokens;
    struct tokens *choice_tokens; /* [n_choices] */
    double *choice_lengths;       /* [n_choices], in characters */
};

struct questions {
    struct question *items;
    size_t count;
    size_t n_bad; /* lines that were reported and left out */
};

/* Read files ("-": standard input) behind what is there. Each bad line is reported with file and number, and counted; the
 * exit code is TOOL_OK then, too. A question without choices and without match is bad unless prompt_only, which takes any
 * line with a prompt. */
int questions_read(const struct command *command, const char *path, bool prompt_only, struct questions *questions);
void questions_release(struct questions *questions);

/* Prompts with BOS if the model wants one and special tokens parsed, choices as plain text. Questions that are too long for
 * a context of n_context tokens, or empty, are reported, counted as bad and removed. */
int questions_tokenize(const struct command *command, const struct drllm_model *model, size_t n_context,
                       struct questions *questions);

/* Names of tasks in the order of their first question: an array to be freed (the names are the questions'). task_of
 * [questions->count], to be freed: the index of each question's task. */
size_t questions_tasks(const struct questions *questions, const char ***names, size_t **task_of);

/* Whether a generated text answers the question (not MATCH_CHOICE). */
bool question_matches(const struct question *question, const char *text, size_t size);

/* scores[i] = log_probs[i] / length; returns the index of the best. */
size_t question_scores(const struct question *question, const double *log_probs, double *scores);

/* The choices as drllm_session_score takes them, to be freed; their tokens stay the question's. */
struct drllm_choice *question_choices(const struct question *question);

/* Answer a generative question greedily, in an empty context and at the session's depth. Returns a drllm_status. */
int question_generate(struct drllm_session *session, const struct question *question, bool *right);

#endif
