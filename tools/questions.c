#include "tools/questions.h"

#include "tools/answers.h"
#include "tools/files.h"
#include "tools/jsonl.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 1 << 20 };

static void question_release(struct question *question) {
    for (size_t i = 0; i < question->n_choices; i++) {
        free(question->choices[i]);
        if (question->choice_tokens != NULL) {
            tokens_release(&question->choice_tokens[i]);
        }
    }
    free((void *)question->choices);
    free(question->choice_tokens);
    free(question->choice_lengths);
    tokens_release(&question->prompt_tokens);
    free(question->task);
    free(question->prompt);
    free(question->answer_text);
    free(question->program);
    *question = (struct question){.file = NULL};
}

void questions_release(struct questions *questions) {
    for (size_t i = 0; i < questions->count; i++) {
        question_release(&questions->items[i]);
    }
    free(questions->items);
    *questions = (struct questions){NULL, 0, 0};
}

/* ---- Lines ---- */

static void report_bad(const struct command *command, const char *file, size_t line, const char *wrong,
                       struct questions *questions) {
    questions->n_bad++;
    report(command, "%s, line %zu: %s", file, line, wrong);
}

/* NULL also for null. */
static const cJSON *find(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNull(item) ? NULL : item;
}

/* Whether it is a whole number below `end`. */
static bool read_index(const cJSON *item, size_t end, size_t *index) {
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble >= (double)end) {
        return false;
    }
    *index = (size_t)item->valuedouble;
    return (double)*index == item->valuedouble;
}

/* The readers return what is wrong with a line, or NULL. */

static const char *read_choices(const cJSON *json, struct question *question) {
    const cJSON *choices = find(json, "choices");
    const cJSON *answer = find(json, "answer");
    if (!cJSON_IsArray(choices) || cJSON_GetArraySize(choices) == 0) {
        return "its \"choices\" are no list of texts";
    }
    question->choices = allocate((size_t)cJSON_GetArraySize(choices), sizeof *question->choices);
    const cJSON *choice;
    cJSON_ArrayForEach(choice, choices) {
        if (!cJSON_IsString(choice) || choice->valuestring[0] == '\0') {
            return "a choice is no text, or an empty one";
        }
        question->choices[question->n_choices++] = copy_text(choice->valuestring);
    }
    question->match = MATCH_CHOICE;
    if (answer != NULL && !read_index(answer, question->n_choices, &question->answer)) {
        return "its \"answer\" is not the index of a choice";
    }
    return NULL;
}

static bool find_match(const char *name, enum match *match) {
    for (size_t i = 0; match_names[i] != NULL; i++) {
        if (strcmp(match_names[i], name) == 0) {
            *match = (enum match)(MATCH_EXACT + i);
            return true;
        }
    }
    return false;
}

/* Enough for what is asked: a word or two, or a number at the end of a calculation. */
static size_t default_tokens(enum match match) {
    return match == MATCH_LETTER ? 8 : match == MATCH_NUMBER || match == MATCH_BOXED ? 256 : 32;
}

static const char *read_generative(const cJSON *json, struct question *question) {
    const cJSON *match = find(json, "match");
    const cJSON *answer = find(json, "answer");
    const cJSON *max_tokens = find(json, "max_tokens");
    if (!cJSON_IsString(match) || !find_match(match->valuestring, &question->match)) {
        return "its \"match\" is none of exact, letter, number, boxed, contains";
    }
    if (!cJSON_IsString(answer)) {
        return "it has no text \"answer\"";
    }
    question->answer_text = copy_text(answer->valuestring);
    question->max_tokens = default_tokens(question->match);
    if (max_tokens != NULL &&
        (!read_index(max_tokens, MOST_TOKENS + 1, &question->max_tokens) || question->max_tokens == 0)) {
        return "its \"max_tokens\" is not a number from 1 to 1048576";
    }
    return answer_wrong(question->match, question->answer_text);
}

static const char *read_answer(const cJSON *json, struct question *question) {
    const bool has_choices = find(json, "choices") != NULL;
    const bool has_match = find(json, "match") != NULL;
    if (has_choices == has_match) {
        return has_match ? "it has both \"choices\" and \"match\"" : "it has neither \"choices\" nor \"match\"";
    }
    return has_choices ? read_choices(json, question) : read_generative(json, question);
}

static const char *read_prompt(const cJSON *json, struct question *question) {
    const cJSON *task = find(json, "task");
    const cJSON *prompt = find(json, "prompt");
    const cJSON *program = find(json, "program");
    if (!cJSON_IsString(prompt)) {
        return "it has no text \"prompt\"";
    }
    if (task != NULL && !cJSON_IsString(task)) {
        return "its \"task\" is no text";
    }
    if (program != NULL && !cJSON_IsString(program)) {
        return "its \"program\" is no text";
    }
    question->prompt = copy_text(prompt->valuestring);
    question->task = copy_text(task != NULL ? task->valuestring : "");
    question->program = program != NULL ? copy_text(program->valuestring) : NULL;
    return NULL;
}

static const char *read_question(const cJSON *json, bool prompt_only, struct question *question) {
    const char *wrong = read_prompt(json, question);
    if (wrong != NULL) {
        return wrong;
    }
    struct question answer = {.answer = SIZE_MAX};
    wrong = read_answer(json, &answer);
    if (wrong != NULL) {
        question_release(&answer);
        return prompt_only ? NULL : wrong;
    }
    question->choices = answer.choices;
    question->n_choices = answer.n_choices;
    question->answer = answer.answer;
    question->answer_text = answer.answer_text;
    question->match = answer.match;
    question->max_tokens = answer.max_tokens;
    return NULL;
}

static void add_question(struct questions *questions, const struct question *question) {
    const size_t n = questions->count;
    if ((n & (n - 1)) == 0) { /* the array holds the next power of two */
        questions->items = reallocate(questions->items, n == 0 ? 1 : 2 * n, sizeof *questions->items);
    }
    questions->items[questions->count++] = *question;
}

int questions_read(const struct command *command, const char *path, bool prompt_only, struct questions *questions) {
    struct text text = {NULL, 0, 0};
    const int exit_code = read_text(command, path, &text);
    struct json_lines lines = {.text = text.data, .size = text.size};
    cJSON *json;
    const char *wrong;
    while (exit_code == TOOL_OK && json_lines_next(&lines, &json, &wrong)) {
        struct question question = {.file = path, .line = lines.number, .answer = SIZE_MAX};
        wrong = wrong != NULL ? wrong : read_question(json, prompt_only, &question);
        if (wrong == NULL) {
            add_question(questions, &question);
        } else {
            report_bad(command, path, lines.number, wrong, questions);
            question_release(&question);
        }
        cJSON_Delete(json);
    }
    text_release(&text);
    return exit_code;
}

/* ---- Tokens ---- */

static size_t tokens_needed(const struct question *question) {
    size_t most = question->max_tokens;
    for (size_t i = 0; i < question->n_choices; i++) {
        const size_t n = question->choice_tokens[i].count;
        most = n > most ? n : most;
    }
    return question->prompt_tokens.count + most;
}

static int tokenize_question(const struct command *command, const struct drllm_model *model,
                             struct question *question) {
    int exit_code = tokenize(command, model, question->prompt, strlen(question->prompt),
                             DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, &question->prompt_tokens);
    if (question->choice_tokens == NULL && question->n_choices != 0) {
        question->choice_tokens = allocate(question->n_choices, sizeof *question->choice_tokens);
        memset(question->choice_tokens, 0, question->n_choices * sizeof *question->choice_tokens);
        question->choice_lengths = allocate(question->n_choices, sizeof *question->choice_lengths);
    }
    for (size_t i = 0; i < question->n_choices && exit_code == TOOL_OK; i++) {
        const char *choice = question->choices[i];
        const size_t length = count_characters(choice);
        question->choice_lengths[i] = length != 0 ? (double)length : 1.0;
        exit_code = tokenize(command, model, choice, strlen(choice), 0, &question->choice_tokens[i]);
    }
    return exit_code;
}

/* What keeps a question from being computed, in `wrong` if it takes numbers, or NULL. */
static const char *check_tokens(const struct question *question, size_t n_context, char wrong[128]) {
    const size_t needed = tokens_needed(question);
    if (question->prompt_tokens.count == 0 || question->prompt[0] == '\0') {
        return "its \"prompt\" is empty";
    }
    for (size_t i = 0; i < question->n_choices; i++) {
        if (question->choice_tokens[i].count == 0) {
            return "a choice is empty";
        }
    }
    if (needed > n_context) {
        (void)snprintf(wrong, 128, "it needs %zu tokens, and the context holds %zu", needed, n_context);
        return wrong;
    }
    return NULL;
}

int questions_tokenize(const struct command *command, const struct drllm_model *model, size_t n_context,
                       struct questions *questions) {
    struct drllm_model_info info;
    size_t n_kept = 0;
    drllm_model_get_info(model, &info);
    n_context = n_context != 0 ? n_context : info.n_context_trained;
    for (size_t i = 0; i < questions->count; i++) {
        struct question *question = &questions->items[i];
        char message[128];
        const char *wrong = tokenize_question(command, model, question) != TOOL_OK
                                ? "it cannot be tokenised"
                                : check_tokens(question, n_context, message);
        if (wrong == NULL) {
            questions->items[n_kept++] = *question;
        } else {
            report_bad(command, question->file, question->line, wrong, questions);
            question_release(question);
        }
    }
    questions->count = n_kept;
    return TOOL_OK;
}

/* ---- Tasks, answers ---- */

size_t questions_tasks(const struct questions *questions, const char ***names, size_t **task_of) {
    size_t n = 0;
    *names = allocate(questions->count, sizeof **names);
    *task_of = allocate(questions->count, sizeof **task_of);
    for (size_t i = 0; i < questions->count; i++) {
        const char *task = questions->items[i].task;
        size_t k = 0;
        while (k < n && strcmp((*names)[k], task) != 0) {
            k++;
        }
        if (k == n) {
            (*names)[n++] = task;
        }
        (*task_of)[i] = k;
    }
    return n;
}

bool question_matches(const struct question *question, const char *text, size_t size) {
    return question->match != MATCH_CHOICE && answer_matches(question->match, question->answer_text, text, size);
}

size_t question_scores(const struct question *question, const double *log_probs, double *scores) {
    size_t best = 0;
    for (size_t i = 0; i < question->n_choices; i++) {
        scores[i] = log_probs[i] / question->choice_lengths[i];
        best = scores[i] > scores[best] ? i : best;
    }
    return best;
}

struct drllm_choice *question_choices(const struct question *question) {
    struct drllm_choice *choices = allocate(question->n_choices, sizeof *choices);
    for (size_t i = 0; i < question->n_choices; i++) {
        choices[i] = (struct drllm_choice){question->choice_tokens[i].ids, question->choice_tokens[i].count, 0.0};
    }
    return choices;
}

static bool take_text(void *user, int32_t token, const char *text, size_t size) {
    (void)token;
    text_append(user, text, size);
    return true;
}

int question_generate(struct drllm_session *session, const struct question *question, bool *right) {
    struct drllm_sampler_params greedy = drllm_sampler_default_params();
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_sampler sampler;
    struct text text = {NULL, 0, 0};
    greedy.temperature = 0.0F;
    params.max_tokens = question->max_tokens;
    params.on_text = take_text;
    params.user = &text;
    int status = drllm_session_prefill(session, question->prompt_tokens.ids, question->prompt_tokens.count);
    if (status == DRLLM_OK) {
        status = drllm_sampler_init(&sampler, &greedy, NULL);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_generate(session, &sampler, &params, NULL);
    }
    *right = status == DRLLM_OK && question_matches(question, text.data, text.size);
    text_release(&text);
    return status;
}
