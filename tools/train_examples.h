/* What routers are trained on and measured with: prompts and their programs, from files of JSON lines. */
#ifndef DRLLM_TOOLS_TRAIN_EXAMPLES_H
#define DRLLM_TOOLS_TRAIN_EXAMPLES_H

#include "tools/json.h"
#include "tools/questions.h"

enum example_role { ROLE_LABELS, ROLE_GUARD, ROLE_VALID, ROLE_VALID_GUARD, N_ROLES };
extern const char *const role_names[N_ROLES];

struct example {
    const struct question *question; /* its prompt, tokenised */
    const uint8_t *counts;           /* [n_layers]: the label */
    enum example_role role;
    size_t task; /* index into the set's tasks; guard prompts have tasks of their own */
};

struct example_task {
    const char *name;
    bool is_guard;
};

/* A file as the record of the training names it: by its base name. */
struct example_file {
    const char *path;
    enum example_role role;
    size_t n_examples;
    uint64_t checksum; /* of its bytes, 64-bit FNV-1a */
};

struct examples {
    struct questions questions[N_ROLES];
    uint8_t *counts; /* [count][n_layers] */
    size_t n_layers;
    struct example *items; /* by role, in the order of the files */
    size_t count;
    size_t n_train; /* the first ones: labels and guard */
    struct example_file *files;
    size_t n_files;
    struct example_task *tasks;
    size_t n_tasks;
    size_t n_bad;             /* lines that were reported and left out */
    uint64_t labels_checksum; /* of the examples to train on: tokens and programs */
};

static inline bool role_is_guard(enum example_role role) {
    return role == ROLE_GUARD || role == ROLE_VALID_GUARD;
}

static inline bool role_is_valid(enum example_role role) {
    return role == ROLE_VALID || role == ROLE_VALID_GUARD;
}

/* A hash (runtime/hash.h) of examples first .. first + n - 1: tokens and programs. */
uint64_t examples_checksum(const struct examples *examples, uint64_t sum, size_t first, size_t n);

/* Lines of guard files run at full depth, whatever program they name; other lines need one. Bad lines are reported and
 * counted. Returns an exit code; release in any case. */
int examples_read(const struct command *command, const struct drllm_model *model, size_t n_context,
                  const struct text_list files[N_ROLES], struct examples *examples);
void examples_release(struct examples *examples); /* also one that is all zeros */

/* A list of files for the record of the training. */
cJSON *examples_files_json(const struct examples *examples);
const char *base_name(const char *path);

#endif
