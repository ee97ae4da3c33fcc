/* Running the program as a shell does, for the groups that test its subcommands.
 *
 * Environment: DRLLM_TEST_PROGRAM is the program; without it these tests are skipped. DRLLM_TEST_EMULATOR: words to
 * put in front, such as "qemu-aarch64 -cpu max". DRLLM_TEST_MODEL adds the real model. */
#ifndef DRLLM_TESTS_CLI_H
#define DRLLM_TESTS_CLI_H

#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <cJSON.h>
#include <sys/types.h>

enum { CLI_MOST_ARGUMENTS = 40, CLI_PATH_BYTES = 576, CLI_N_VOCAB = TINY_FIRST_PIECE + 1 /* of a spoken model */ };

/* ---- Files ---- */

/* The program has no way to be told otherwise than by files, so the tests of a group share one folder, made by the
 * group's set-up. */
extern char cli_folder[CLI_PATH_BYTES / 2];
int cli_make_folder(void);
int cli_remove_folder(void);

/* Returns path. */
const char *cli_path(const char *name, char path[CLI_PATH_BYTES]);
void cli_write(const char *path, const void *data, size_t size);
/* Zero-terminated, to be freed. */
char *cli_read(const char *path, size_t *size);
/* Files in the folder whose names begin so. */
size_t cli_count_files(const char *name_begin);
/* Until it is there; gives up after so many seconds, since what should write it may have failed. */
void cli_wait_for_file(const char *path, unsigned seconds);

void cli_write_model(const char *path, const struct tiny_options *options, const char *name, bool has_chat_template);
/* A model whose answers are known: a..y are followed by the next letter and z by the end; a line end is followed by ABC
 * and the end. Its blocks do nothing, and embedding t is the unit vector t. */
void cli_write_spoken_model(const char *path, size_t n_layers, bool has_chat_template);

/* ---- Running the program ---- */

struct cli_outcome {
    int code; /* exit code, or 128 + the number of the signal */
    char *out;
    size_t out_size;
    char *err;
};
void cli_outcome_free(struct cli_outcome *outcome);

/* stdin from the text (NULL: empty), stdout to the path or descriptor, stderr to a file in the folder. */
pid_t cli_start(const char *input, const char *out_path, int out_descriptor, const char *const *arguments);
struct cli_outcome cli_finish(pid_t pid, const char *out_path);
struct cli_outcome cli_run(const char *input, const char *const *arguments);

#define ARGUMENTS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define RUN(...) cli_run(NULL, ARGUMENTS(__VA_ARGS__))
#define RUN_INPUT(input, ...) cli_run(input, ARGUMENTS(__VA_ARGS__))

/* The running test is skipped where they are not there. */
void cli_require_program(void);
const char *cli_require_model(void);

/* ---- What came; each says so when it is not what should ---- */

void cli_expect_code(const struct cli_outcome *outcome, int code);
void cli_expect_text(const char *text, const char *part);
/* The following free the outcome. */

/* Code and a part of stderr; nothing is printed on stdout. */
void cli_expect_failure(struct cli_outcome outcome, int code, const char *part);
void cli_expect_output(struct cli_outcome outcome, const char *out);
void cli_expect_success(struct cli_outcome outcome);
/* The JSON on stdout, to be deleted. */
cJSON *cli_expect_json(struct cli_outcome outcome);

double cli_number(const cJSON *json, const char *key);
const char *cli_string(const cJSON *json, const char *key);
/* size -1: any */
const cJSON *cli_list(const cJSON *json, const char *key, int size);

#endif
