/* Fuzz target jsonl: questions and other JSON lines. */
#include "tests/fuzz.h"
#include "tools/jsonl.h"
#include "tools/questions.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Every line is an object or said to be none; an object is the same after being written and read again. */
static void walk_lines(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1); /* zero-terminated, as the reader wants it */
    drllm_fuzz_check(text != NULL);
    if (size != 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    struct json_lines lines = {.text = text, .size = size};
    cJSON *json = NULL;
    const char *wrong = NULL;
    size_t last = 0;
    while (json_lines_next(&lines, &json, &wrong)) {
        drllm_fuzz_check(lines.number == last + 1 && lines.position <= size + 1);
        last = lines.number;
        if (json == NULL) {
            drllm_fuzz_check(wrong != NULL && wrong[0] != '\0');
            continue;
        }
        drllm_fuzz_check(cJSON_IsObject(json));
        char *written = cJSON_PrintUnformatted(json);
        drllm_fuzz_check(written != NULL);
        cJSON *again = json_parse_object(written, strlen(written), &wrong);
        drllm_fuzz_check(again != NULL);
        char *rewritten = cJSON_PrintUnformatted(again);
        drllm_fuzz_check(rewritten != NULL && strcmp(written, rewritten) == 0);
        cJSON_free(written);
        cJSON_free(rewritten);
        cJSON_Delete(again);
        cJSON_Delete(json);
    }
    free(text);
}

/* The reader of questions takes a path, and says on stderr what is wrong with each line: not here, for thousands of
 * inputs. */
static void read_questions(const uint8_t *data, size_t size) {
    const struct command command = {.name = "fuzz"};
    const int file = memfd_create("fuzz", 0), quiet = open("/dev/null", O_WRONLY), errors = dup(STDERR_FILENO);
    drllm_fuzz_check(file >= 0 && quiet >= 0 && errors >= 0);
    drllm_fuzz_check(size == 0 || write(file, data, size) == (ssize_t)size);
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    for (int prompt_only = 0; prompt_only < 2; prompt_only++) {
        struct questions questions = {NULL, 0, 0};
        drllm_fuzz_check(dup2(quiet, STDERR_FILENO) >= 0);
        const int code = questions_read(&command, path, prompt_only != 0, &questions);
        drllm_fuzz_check(dup2(errors, STDERR_FILENO) >= 0);
        drllm_fuzz_check(code == TOOL_OK || questions.count == 0);
        drllm_fuzz_n_accepted += prompt_only == 0 && questions.count != 0;
        for (size_t i = 0; i < questions.count; i++) {
            const struct question *question = &questions.items[i];
            drllm_fuzz_check(question->prompt != NULL && question->task != NULL && question->line > 0);
            if (question->n_choices != 0) {
                drllm_fuzz_check(question->answer < question->n_choices || question->answer == SIZE_MAX);
            } else if (question->answer_text != NULL && question->match != MATCH_CHOICE) {
                (void)question_matches(question, question->prompt, strlen(question->prompt));
            }
        }
        questions_release(&questions);
    }
    (void)close(file);
    (void)close(quiet);
    (void)close(errors);
}

static void run(const uint8_t *data, size_t size) {
    walk_lines(data, size);
    read_questions(data, size);
}

static uint8_t *sample(size_t number, size_t *size) {
    static const char *const texts[] = {
        "{\"task\": \"arc\", \"prompt\": \"Which?\", \"choices\": [\"a\", \" b\", \"\\u00e9\\ud83d\\ude00\"], "
        "\"answer\": 1}\n"
        "{\"prompt\": \"x\", \"choices\": [\"1\", \"2\"], \"answer\": 0, \"program\": \"0-3,5\", \"more\": {\"a\": "
        "[1.5e3, null]}}\n",
        "{\"task\": \"t\", \"prompt\": \"How many?\", \"answer\": \"$1,234.50\", \"match\": \"number\", "
        "\"max_tokens\": 20}\r\n\n"
        "{\"prompt\": \"The answer is \\\\boxed{12}.\", \"answer\": \"12\", \"match\": \"boxed\"}\n"
        "{\"prompt\": \"(b) B.\", \"answer\": \"B\", \"match\": \"letter\"}\n{\"prompt\": \"Yes.\", \"answer\": "
        "\"yes\", "
        "\"match\": \"exact\"}\n{\"prompt\": \"abc\", \"answer\": \"B\", \"match\": \"contains\"}",
        "\n\n[]\n{}\n{\"prompt\": 1}\n{\"prompt\": \"\\u0000\"}\nnull\n{\"a\": true, \"a\": false} {\n",
        "",
    };
    if (number >= sizeof texts / sizeof texts[0]) {
        return NULL;
    }
    *size = strlen(texts[number]);
    uint8_t *copy = malloc(*size + 1);
    drllm_fuzz_check(copy != NULL);
    memcpy(copy, texts[number], *size);
    return copy;
}

const struct drllm_fuzz_target drllm_fuzz_jsonl = {"jsonl", 30000, sample, NULL, run};
