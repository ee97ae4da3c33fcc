#include "tools/train_examples.h"

#include "runtime/hash.h"
#include "tools/files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *const role_names[N_ROLES] = {"labels", "guard", "validation", "validation guard"};

uint64_t examples_checksum(const struct examples *examples, uint64_t sum, size_t first, size_t n) {
    for (size_t i = first; i < first + n; i++) {
        const struct tokens *tokens = &examples->items[i].question->prompt_tokens;
        sum = drllm_hash_bytes(sum, &tokens->count, sizeof tokens->count);
        sum = drllm_hash_bytes(sum, tokens->ids, tokens->count * sizeof *tokens->ids);
        sum = drllm_hash_bytes(sum, examples->items[i].counts, examples->n_layers);
    }
    return sum;
}

const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* ---- Reading ---- */

static int read_file(const struct command *command, const char *path, enum example_role role,
                     struct examples *examples) {
    struct text text = {NULL, 0, 0};
    int exit_code = read_text(command, path, &text);
    if (exit_code == TOOL_OK) {
        examples->files = reallocate(examples->files, examples->n_files + 1, sizeof *examples->files);
        examples->files[examples->n_files++] = (struct example_file){
            .path = path, .role = role, .checksum = drllm_hash_bytes(DRLLM_HASH_START, text.data, text.size)};
        exit_code = questions_read(command, path, true, &examples->questions[role]);
    }
    text_release(&text);
    return exit_code;
}

static int read_files(const struct command *command, const struct drllm_model *model, size_t n_context,
                      const struct text_list files[N_ROLES], struct examples *examples) {
    int exit_code = TOOL_OK;
    for (size_t role = 0; role < N_ROLES && exit_code == TOOL_OK; role++) {
        for (size_t i = 0; i < files[role].count && exit_code == TOOL_OK; i++) {
            exit_code = read_file(command, files[role].items[i], (enum example_role)role, examples);
        }
        if (exit_code == TOOL_OK) {
            exit_code = questions_tokenize(command, model, n_context, &examples->questions[role]);
        }
        examples->n_bad += examples->questions[role].n_bad;
    }
    return exit_code;
}

/* What is wrong with a question's program, in error->detail or as a text; NULL when it is in counts. */
static const char *read_program(const struct question *question, bool is_guard, size_t n_layers, uint8_t *counts,
                                struct drllm_error *error) {
    if (is_guard) {
        memset(counts, 1, n_layers);
        return NULL;
    }
    if (question->program == NULL) {
        return "it has no \"program\"";
    }
    return drllm_program_parse(question->program, n_layers, counts, error) == DRLLM_OK ? NULL : error->detail;
}

static size_t find_task(struct examples *examples, const char *name, bool is_guard) {
    for (size_t i = 0; i < examples->n_tasks; i++) {
        if (examples->tasks[i].is_guard == is_guard && strcmp(examples->tasks[i].name, name) == 0) {
            return i;
        }
    }
    examples->tasks = reallocate(examples->tasks, examples->n_tasks + 1, sizeof *examples->tasks);
    examples->tasks[examples->n_tasks] = (struct example_task){name, is_guard};
    return examples->n_tasks++;
}

static void count_in_file(struct examples *examples, const struct example *example) {
    for (size_t i = 0; i < examples->n_files; i++) {
        if (examples->files[i].role == example->role && examples->files[i].path == example->question->file) {
            examples->files[i].n_examples++;
            return;
        }
    }
}

static void add_question(const struct command *command, const struct question *question, enum example_role role,
                         struct examples *examples) {
    struct drllm_error error = {0};
    uint8_t *counts = examples->counts + examples->count * examples->n_layers;
    const char *wrong = read_program(question, role_is_guard(role), examples->n_layers, counts, &error);
    if (wrong != NULL) {
        examples->n_bad++;
        report(command, "%s, line %zu: %s", question->file, question->line, wrong);
        return;
    }
    struct example *example = &examples->items[examples->count++];
    *example = (struct example){.question = question,
                                .counts = counts,
                                .role = role,
                                .task = find_task(examples, question->task, role_is_guard(role))};
    examples->n_train += role_is_valid(role) ? 0 : 1;
    count_in_file(examples, example);
}

int examples_read(const struct command *command, const struct drllm_model *model, size_t n_context,
                  const struct text_list files[N_ROLES], struct examples *examples) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    *examples = (struct examples){.n_layers = info.n_layers};
    const int exit_code = read_files(command, model, n_context, files, examples);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    size_t most = 0;
    for (size_t role = 0; role < N_ROLES; role++) {
        most += examples->questions[role].count;
    }
    examples->items = allocate(most, sizeof *examples->items);
    examples->counts = allocate(most, examples->n_layers);
    for (size_t role = 0; role < N_ROLES; role++) {
        for (size_t i = 0; i < examples->questions[role].count; i++) {
            add_question(command, &examples->questions[role].items[i], (enum example_role)role, examples);
        }
    }
    examples->labels_checksum = examples_checksum(examples, DRLLM_HASH_START, 0, examples->n_train);
    if (examples->n_train == 0) {
        report(command, "there is nothing to train on");
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

void examples_release(struct examples *examples) {
    for (size_t role = 0; role < N_ROLES; role++) {
        questions_release(&examples->questions[role]);
    }
    free(examples->counts);
    free(examples->items);
    free(examples->files);
    free(examples->tasks);
    *examples = (struct examples){.count = 0};
}

cJSON *examples_files_json(const struct examples *examples) {
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < examples->n_files; i++) {
        const struct example_file *file = &examples->files[i];
        const char *name = base_name(file->path);
        char digits[17];
        (void)snprintf(digits, sizeof digits, "%016" PRIx64, file->checksum);
        cJSON *json = cJSON_CreateObject();
        cJSON_AddItemToObject(json, "name", json_text(name, strlen(name)));
        cJSON_AddStringToObject(json, "use", role_names[file->role]);
        cJSON_AddNumberToObject(json, "examples", (double)file->n_examples);
        cJSON_AddStringToObject(json, "fnv1a", digits);
        cJSON_AddItemToArray(list, json);
    }
    return list;
}
