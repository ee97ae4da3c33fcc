#include "tools/convert_formats.h"

#include "tools/answers.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void item_release(struct item *item) {
    text_release(&item->passage);
    text_release(&item->question);
    text_release(&item->answer_text);
    for (size_t i = 0; i < MOST_CHOICES; i++) {
        text_release(&item->choices[i]);
    }
    *item = (struct item){.n_choices = 0};
}

/* ---- Texts ---- */

static void put_part(struct text *to, struct part part) {
    part = part_trim(part);
    to->size = 0;
    text_append(to, part.text, part.size);
}

static void put(struct text *to, const char *text) {
    put_part(to, (struct part){text, strlen(text)});
}

/* NULL if there is no such text. */
static const char *json_string(const cJSON *json, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, key));
}

static const char *put_question(struct item *item, const char *text) {
    if (text == NULL) {
        return "it has no question";
    }
    put(&item->question, text);
    return item->question.size == 0 ? "its question is empty" : NULL;
}

static const char *put_choice(struct item *item, const char *text) {
    if (text == NULL) {
        return "a choice is no text";
    }
    if (item->n_choices == MOST_CHOICES) {
        return "it has more than 26 choices";
    }
    struct text *choice = &item->choices[item->n_choices++];
    put(choice, text);
    return choice->size == 0 ? "a choice is empty" : NULL;
}

/* "B" of A, B, C ... */
static const char *put_letter(struct item *item, const char *letter) {
    const struct part part =
        part_trim((struct part){letter != NULL ? letter : "", letter != NULL ? strlen(letter) : 0});
    if (part.size != 1 || part.text[0] < 'A' || (size_t)(part.text[0] - 'A') >= item->n_choices) {
        return "its answer is not the letter of a choice";
    }
    item->answer = (size_t)(part.text[0] - 'A');
    return NULL;
}

static void set_generative(struct item *item, enum match match, size_t max_tokens) {
    item->match = match;
    item->max_tokens = max_tokens;
}

/* ---- ARC, OpenBookQA: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"} ---- */

static const char *read_arc(const struct record *record, struct item *item) {
    const cJSON *question = cJSON_GetObjectItemCaseSensitive(record->json, "question");
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(question, "choices");
    const char *key = json_string(record->json, "answerKey");
    const char *wrong = put_question(item, json_string(question, "stem"));
    bool found = false;
    const cJSON *choice;
    if (wrong == NULL && !cJSON_IsArray(choices)) {
        wrong = "it has no choices";
    }
    cJSON_ArrayForEach(choice, choices) {
        const char *label = json_string(choice, "label");
        wrong = wrong != NULL ? wrong : put_choice(item, json_string(choice, "text"));
        if (wrong == NULL && !found && label != NULL && key != NULL && strcmp(label, key) == 0) {
            item->answer = item->n_choices - 1;
            found = true;
        }
    }
    return wrong == NULL && !found ? "its \"answerKey\" is not the label of a choice" : wrong;
}

/* ---- MMLU: question, A, B, C, D, letter ---- */

static const char *read_mmlu(const struct record *record, struct item *item) {
    const struct csv_row *row = record->row;
    if (row->count != 6) {
        return "it has not 6 fields";
    }
    const char *wrong = put_question(item, row->fields[0].data);
    for (size_t i = 1; i <= 4 && wrong == NULL; i++) {
        wrong = put_choice(item, row->fields[i].data);
    }
    return wrong != NULL ? wrong : put_letter(item, row->fields[5].data);
}

/* ---- PIQA: {"goal", "sol1", "sol2"}, and 0 or 1 in the file of answers ---- */

static const char *read_piqa(const struct record *record, struct item *item) {
    const char *wrong = put_question(item, json_string(record->json, "goal"));
    wrong = wrong != NULL ? wrong : put_choice(item, json_string(record->json, "sol1"));
    wrong = wrong != NULL ? wrong : put_choice(item, json_string(record->json, "sol2"));
    if (wrong != NULL) {
        return wrong;
    }
    if (record->label == NULL) {
        return "the file of answers has none for it";
    }
    if (strcmp(record->label, "0") != 0 && strcmp(record->label, "1") != 0) {
        return "its answer is neither 0 nor 1";
    }
    item->answer = record->label[0] == '1';
    return NULL;
}

/* ---- TruthfulQA: {"question", "mc1_targets": {TEXT: 0 or 1}} ---- */

static const char *read_truthfulqa(const struct record *record, struct item *item) {
    const cJSON *targets = cJSON_GetObjectItemCaseSensitive(record->json, "mc1_targets");
    const char *wrong = put_question(item, json_string(record->json, "question"));
    size_t n_right = 0;
    const cJSON *target;
    if (wrong == NULL && !cJSON_IsObject(targets)) {
        wrong = "it has no object \"mc1_targets\"";
    }
    cJSON_ArrayForEach(target, targets) {
        wrong = wrong != NULL ? wrong : put_choice(item, target->string);
        const bool is_right = cJSON_IsNumber(target) && target->valuedouble == 1.0;
        if (wrong == NULL && !is_right && !(cJSON_IsNumber(target) && target->valuedouble == 0.0)) {
            wrong = "a target is neither 0 nor 1";
        }
        if (wrong == NULL && is_right) {
            item->answer = item->n_choices - 1;
            n_right++;
        }
    }
    return wrong == NULL && n_right != 1 ? "not one of its targets is 1" : wrong;
}

/* ---- AGIEval: {"passage", "question", "options": ["(A)...", ...], "label"}; {"options": null, "answer"} ---- */

static const char *read_agieval_choices(const cJSON *json, const cJSON *options, struct item *item) {
    const char *wrong = NULL;
    const cJSON *option;
    cJSON_ArrayForEach(option, options) {
        const char mark[] = {'(', (char)('A' + item->n_choices), ')', '\0'};
        const char *text = cJSON_GetStringValue(option);
        const bool is_marked = text != NULL && strncmp(text, mark, 3) == 0;
        wrong = wrong != NULL ? wrong : put_choice(item, is_marked ? text + 3 : text);
    }
    return wrong != NULL ? wrong : put_letter(item, json_string(json, "label"));
}

static const char *const boxed_instruction = "Put the final answer into \\boxed{}.";

static const char *read_agieval(const struct record *record, struct item *item) {
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(record->json, "options");
    const char *passage = json_string(record->json, "passage");
    const char *answer = json_string(record->json, "answer");
    const char *wrong = put_question(item, json_string(record->json, "question"));
    if (passage != NULL) {
        put(&item->passage, passage);
    }
    if (wrong != NULL || cJSON_IsArray(options)) {
        return wrong != NULL ? wrong : read_agieval_choices(record->json, options, item);
    }
    if (answer == NULL) {
        return "it has neither \"options\" nor a text \"answer\"";
    }
    put(&item->answer_text, answer);
    item->instruction = boxed_instruction;
    set_generative(item, MATCH_BOXED, 512);
    return NULL;
}

/* ---- Tables with a head ---- */

/* The first column of one of the names, letter case aside; NULL without one. */
static const char *find_field(const struct record *record, const char *const *names) {
    for (; *names != NULL; names++) {
        for (size_t i = 0; i < record->columns->count && i < record->row->count; i++) {
            if (strcasecmp(record->columns->fields[i].data, *names) == 0) {
                return record->row->fields[i].data;
            }
        }
    }
    return NULL;
}

static const char *check_row(const struct record *record) {
    return record->row->count != record->columns->count ? "it has not as many fields as the first row" : NULL;
}

/* ---- GPQA: Question, Correct Answer, Incorrect Answer 1, 2, 3 ---- */

static const char *read_gpqa(const struct record *record, struct item *item) {
    static const char *const columns[][2] = {
        {"Correct Answer"}, {"Incorrect Answer 1"}, {"Incorrect Answer 2"}, {"Incorrect Answer 3"}};
    static const char *const question[] = {"Question", NULL};
    const char *wrong = check_row(record);
    wrong = wrong != NULL ? wrong : put_question(item, find_field(record, question));
    for (size_t i = 0; i < sizeof columns / sizeof columns[0] && wrong == NULL; i++) {
        const char *choice = find_field(record, columns[i]);
        wrong = choice == NULL ? "there are no columns of its answers" : put_choice(item, choice);
    }
    item->answer = 0;
    return wrong;
}

/* ---- GSM8K: {"question", "answer": "... #### NUMBER"} ---- */

static const char *read_gsm8k(const struct record *record, struct item *item) {
    static const char mark[] = "####";
    const char *answer = json_string(record->json, "answer");
    const char *last = NULL;
    const char *wrong = put_question(item, json_string(record->json, "question"));
    if (wrong != NULL) {
        return wrong;
    }
    for (const char *at = answer != NULL ? strstr(answer, mark) : NULL; at != NULL; at = strstr(last, mark)) {
        last = at + strlen(mark);
    }
    if (last == NULL) {
        return "it has no answer behind \"####\"";
    }
    put(&item->answer_text, last);
    set_generative(item, MATCH_NUMBER, 256);
    return NULL;
}

/* ---- AIME: problem, answer ---- */

static const char *const problem_names[] = {"problem", "question", "query", NULL};

/* The first field of one of the names, letter case aside. */
static const cJSON *find_json(const cJSON *json, const char *const *names) {
    const cJSON *item = NULL;
    for (; *names != NULL && item == NULL; names++) {
        item = cJSON_GetObjectItem(json, *names);
    }
    return item;
}

static const char *put_answer(struct item *item, const cJSON *answer) {
    if (cJSON_IsString(answer)) {
        put(&item->answer_text, answer->valuestring);
        return NULL;
    }
    if (cJSON_IsNumber(answer)) {
        char digits[40];
        (void)snprintf(digits, sizeof digits, "%.15g", answer->valuedouble);
        put(&item->answer_text, digits);
        return NULL;
    }
    return "it has no answer";
}

static const char *read_aime(const struct record *record, struct item *item) {
    static const char *const answer_names[] = {"answer", NULL};
    const char *wrong;
    set_generative(item, MATCH_NUMBER, 512);
    if (record->row == NULL) {
        wrong = put_question(item, cJSON_GetStringValue(find_json(record->json, problem_names)));
        return wrong != NULL ? wrong : put_answer(item, find_json(record->json, answer_names));
    }
    wrong = check_row(record);
    wrong = wrong != NULL ? wrong : put_question(item, find_field(record, problem_names));
    const char *answer = wrong == NULL ? find_field(record, answer_names) : NULL;
    if (answer != NULL) {
        put(&item->answer_text, answer);
    }
    return wrong == NULL && answer == NULL ? "it has no answer" : wrong;
}

/* ---- MATH, DART-Math: {"problem" or "query", "solution" or "response", "level"} ---- */

/* "Level 3", "3" or 3; others, "Level ?" among them, have no task of their own. */
static void set_level(struct item *item, const cJSON *level) {
    const char *text = cJSON_GetStringValue(level);
    int64_t number = cJSON_IsNumber(level) && level->valuedouble == level->valueint ? level->valueint : -1;
    if (text != NULL && !parse_integer(strncmp(text, "Level ", 6) == 0 ? text + 6 : text, &number)) {
        number = -1;
    }
    if (number >= 0) {
        (void)snprintf(item->task, sizeof item->task, "math_level_%lld", (long long)number);
    }
}

static const char *read_math(const struct record *record, struct item *item) {
    static const char *const solution_names[] = {"solution", "response", NULL};
    const char *solution = cJSON_GetStringValue(find_json(record->json, solution_names));
    const cJSON *answer = cJSON_GetObjectItemCaseSensitive(record->json, "answer");
    const char *wrong = put_question(item, cJSON_GetStringValue(find_json(record->json, problem_names)));
    struct part boxed;
    item->instruction = boxed_instruction;
    set_generative(item, MATCH_BOXED, 512);
    set_level(item, cJSON_GetObjectItemCaseSensitive(record->json, "level"));
    if (wrong != NULL) {
        return wrong;
    }
    if (solution != NULL && find_boxed((struct part){solution, strlen(solution)}, &boxed)) {
        put_part(&item->answer_text, boxed);
        return NULL;
    }
    return answer != NULL ? put_answer(item, answer) : "its solution has no \\boxed{}";
}

/* ---- SQuAD 2: {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers", "is_impossible"}]}]}]} ---- */

/* The answer that most people gave, the first among equals. */
static const char *commonest_answer(const cJSON *answers) {
    const char *best = NULL;
    size_t most = 0;
    const cJSON *answer, *other;
    cJSON_ArrayForEach(answer, answers) {
        const char *text = json_string(answer, "text");
        size_t n = 0;
        cJSON_ArrayForEach(other, answers) {
            const char *same = json_string(other, "text");
            n += text != NULL && same != NULL && strcmp(text, same) == 0;
        }
        if (n > most) {
            most = n;
            best = text;
        }
    }
    return best;
}

static const char *read_squad(const struct record *record, struct item *item) {
    const bool is_impossible = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(record->json, "is_impossible"));
    const char *answer =
        is_impossible ? "unanswerable" : commonest_answer(cJSON_GetObjectItemCaseSensitive(record->json, "answers"));
    const char *wrong = put_question(item, json_string(record->json, "question"));
    if (record->passage == NULL) {
        return "its paragraph has no text \"context\"";
    }
    if (wrong == NULL && answer == NULL) {
        return "it has no answer";
    }
    if (wrong == NULL) {
        put(&item->passage, record->passage);
        put(&item->answer_text, answer);
        item->instruction = "Answer with words of the passage, or with \"unanswerable\".";
        set_generative(item, MATCH_EXACT, 32);
    }
    return wrong;
}

/* Lists that are missing come as records that are wrong. */
static bool check_list(const cJSON *list, const char *wrong, void (*take)(void *user, struct record *record),
                       void *user, size_t *number) {
    if (!cJSON_IsArray(list)) {
        take(user, &(struct record){.number = ++*number, .wrong = wrong});
        return false;
    }
    return true;
}

static void walk_article(const cJSON *article, void (*take)(void *user, struct record *record), void *user,
                         size_t *number) {
    const cJSON *paragraphs = cJSON_GetObjectItemCaseSensitive(article, "paragraphs");
    const cJSON *paragraph, *question;
    if (!check_list(paragraphs, "its article has no list \"paragraphs\"", take, user, number)) {
        return;
    }
    cJSON_ArrayForEach(paragraph, paragraphs) {
        const cJSON *questions = cJSON_GetObjectItemCaseSensitive(paragraph, "qas");
        if (!check_list(questions, "its paragraph has no list \"qas\"", take, user, number)) {
            continue;
        }
        cJSON_ArrayForEach(question, questions) {
            take(user,
                 &(struct record){.number = ++*number, .json = question, .passage = json_string(paragraph, "context")});
        }
    }
}

const char *walk_squad(const cJSON *json, void (*take)(void *user, struct record *record), void *user) {
    const cJSON *data = cJSON_GetObjectItemCaseSensitive(json, "data");
    size_t number = 0;
    const cJSON *article;
    if (!cJSON_IsArray(data)) {
        return "it has no list \"data\"";
    }
    cJSON_ArrayForEach(article, data) {
        walk_article(article, take, user, &number);
    }
    return NULL;
}

/* ---- */

const struct format convert_formats[] = {
    {"arc", "arc", SOURCE_JSON, true, false, false, read_arc},
    {"openbookqa", "openbookqa", SOURCE_JSON, true, false, false, read_arc},
    {"mmlu", "mmlu", SOURCE_TABLE, true, false, false, read_mmlu},
    {"piqa", "piqa", SOURCE_JSON, true, true, false, read_piqa},
    {"truthfulqa", "truthfulqa", SOURCE_JSON, true, false, true, read_truthfulqa},
    {"agieval", "agieval", SOURCE_JSON, true, false, false, read_agieval},
    {"gpqa", "gpqa", SOURCE_TABLE_WITH_HEAD, true, false, true, read_gpqa},
    {"gsm8k", "gsm8k", SOURCE_JSON, false, false, false, read_gsm8k},
    {"aime", "aime", SOURCE_JSON_OR_TABLE, false, false, false, read_aime},
    {"math", "math", SOURCE_JSON, false, false, false, read_math},
    {"dart-math", "math", SOURCE_JSON, false, false, false, read_math},
    {"squad", "squad", SOURCE_JSON_NESTED, false, false, false, read_squad},
};
const size_t n_convert_formats = sizeof convert_formats / sizeof convert_formats[0];

const struct format *convert_find_format(const char *name) {
    for (size_t i = 0; i < n_convert_formats; i++) {
        if (strcmp(convert_formats[i].name, name) == 0) {
            return &convert_formats[i];
        }
    }
    return NULL;
}
