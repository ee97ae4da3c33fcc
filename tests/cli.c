#include "tests/cli.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- Files ---- */

char cli_folder[CLI_PATH_BYTES / 2];

int cli_make_folder(void) {
    const char *base = getenv("TMPDIR");
    (void)snprintf(cli_folder, sizeof cli_folder, "%s/drllm-cli-XXXXXX",
                   base != NULL && strlen(base) < sizeof cli_folder - 32 ? base : "/tmp");
    return mkdtemp(cli_folder) == NULL ? -1 : 0;
}

int cli_remove_folder(void) {
    DIR *directory = opendir(cli_folder);
    for (const struct dirent *entry = directory != NULL ? readdir(directory) : NULL; entry != NULL;
         entry = readdir(directory)) {
        char path[CLI_PATH_BYTES];
        unlink(cli_path(entry->d_name, path));
    }
    if (directory != NULL) {
        closedir(directory);
    }
    return rmdir(cli_folder);
}

const char *cli_path(const char *name, char path[CLI_PATH_BYTES]) {
    (void)snprintf(path, CLI_PATH_BYTES, "%s/%s", cli_folder, name);
    return path;
}

void cli_write(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

char *cli_read(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const long end = ftell(file);
    assert_true(end >= 0);
    rewind(file);
    char *data = malloc((size_t)end + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)end, file), (size_t)end);
    data[end] = '\0';
    (void)fclose(file);
    *size = (size_t)end;
    return data;
}

size_t cli_count_files(const char *name_begin) {
    size_t n = 0;
    DIR *directory = opendir(cli_folder);
    assert_non_null(directory);
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        n += strncmp(entry->d_name, name_begin, strlen(name_begin)) == 0;
    }
    closedir(directory);
    return n;
}

void cli_wait_for_file(const char *path, unsigned seconds) {
    const struct timespec moment = {.tv_nsec = 1000000};
    for (size_t i = 0; access(path, F_OK) != 0 && i < 1000 * (size_t)seconds; i++) {
        nanosleep(&moment, NULL);
    }
}

void cli_write_model(const char *path, const struct tiny_options *options, const char *name, bool has_chat_template) {
    const struct tiny_edit edits[] = {
        {.key = "general.name", .kind = TINY_STRING, .string = name},
        {.key = "tokenizer.chat_template",
         .kind = TINY_STRING,
         .string = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                   "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"},
    };
    struct tiny_model model;
    tiny_model_make(&model, options);
    size_t size = 0;
    uint8_t *file = tiny_model_write(&model, edits, has_chat_template ? 2 : 1, &size);
    cli_write(path, file, size);
    free(file);
    tiny_model_free(&model);
}

void cli_write_spoken_model(const char *path, size_t n_layers, bool has_chat_template) {
    struct tiny_options options = tiny_default_options();
    int32_t next[CLI_N_VOCAB];
    /* Without a token for the blank's sign SentencePiece texts would begin with its bytes. */
    static const char *const pieces[] = {"\xe2\x96\x81"};
    options.pieces = pieces;
    options.n_layers = n_layers;
    options.d_model = 288;
    options.d_ff = 32;
    options.n_heads = options.n_kv_heads = 1;
    options.head_dim = 32;
    options.n_vocab = CLI_N_VOCAB;
    for (size_t i = 0; i < options.n_vocab; i++) {
        next[i] = TINY_EOS;
    }
    for (int c = 'a'; c < 'z'; c++) {
        next[TINY_FIRST_BYTE + c] = TINY_FIRST_BYTE + c + 1;
    }
    next[TINY_FIRST_BYTE + '\n'] = TINY_FIRST_BYTE + 'A';
    next[TINY_FIRST_BYTE + 'A'] = TINY_FIRST_BYTE + 'B';
    next[TINY_FIRST_BYTE + 'B'] = TINY_FIRST_BYTE + 'C';
    options.next = next;
    cli_write_model(path, &options, "tiny", has_chat_template);
}

/* ---- Running the program ---- */

void cli_outcome_free(struct cli_outcome *outcome) {
    free(outcome->out);
    free(outcome->err);
}

static int exit_code(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Of so small a model threads do nothing but wait for each other, on a busy machine for long. */
static bool needs_one_thread(const char *const *arguments) {
    static const char *const without[] = {"inspect", "tokenize", "routers"};
    bool computes = arguments[0] != NULL, has_tiny = false, has_threads = false;
    for (size_t i = 0; computes && i < sizeof without / sizeof without[0]; i++) {
        computes = strcmp(arguments[0], without[i]) != 0;
    }
    for (size_t i = 0; arguments[i] != NULL; i++) {
        has_tiny = has_tiny || (strcmp(arguments[i], "-m") == 0 && arguments[i + 1] != NULL &&
                                strncmp(arguments[i + 1], cli_folder, strlen(cli_folder)) == 0);
        has_threads = has_threads || strcmp(arguments[i], "-t") == 0;
    }
    return computes && has_tiny && !has_threads;
}

/* DRLLM_TEST_EMULATOR's words, the program, the arguments. */
static void make_command_line(char *emulator, const char *const *arguments, const char **argv) {
    const bool one_thread = needs_one_thread(arguments);
    size_t n = 0;
    char *rest = NULL;
    for (char *word = strtok_r(emulator, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest)) {
        argv[n++] = word;
    }
    argv[n++] = getenv("DRLLM_TEST_PROGRAM");
    for (; *arguments != NULL; arguments++) {
        assert_true(n + 2 < CLI_MOST_ARGUMENTS);
        argv[n++] = *arguments;
    }
    if (one_thread) {
        argv[n++] = "-t";
        argv[n++] = "1";
    }
    argv[n] = NULL;
}

pid_t cli_start(const char *input, const char *out_path, int out_descriptor, const char *const *arguments) {
    char in_path[CLI_PATH_BYTES], err_path[CLI_PATH_BYTES];
    cli_path("stdin", in_path);
    cli_path("stderr", err_path);
    cli_write(in_path, input != NULL ? input : "", input != NULL ? strlen(input) : 0);

    const char *emulator_words = getenv("DRLLM_TEST_EMULATOR");
    char *emulator = strdup(emulator_words != NULL ? emulator_words : "");
    const char *argv[CLI_MOST_ARGUMENTS + 1];
    assert_non_null(emulator);
    make_command_line(emulator, arguments, argv);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, in_path, O_RDONLY, 0);
    if (out_path != NULL) {
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    } else {
        posix_spawn_file_actions_adddup2(&actions, out_descriptor, STDOUT_FILENO);
    }
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t pid = -1;
    /* posix_spawnp's array is not const for history's sake. */
    const int failed = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    free(emulator);
    assert_int_equal(failed, 0);
    return pid;
}

struct cli_outcome cli_finish(pid_t pid, const char *out_path) {
    char err_path[CLI_PATH_BYTES];
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
    struct cli_outcome outcome = {.code = exit_code(status)};
    size_t err_size = 0;
    outcome.err = cli_read(cli_path("stderr", err_path), &err_size);
    outcome.out = out_path != NULL ? cli_read(out_path, &outcome.out_size) : strdup("");
    return outcome;
}

struct cli_outcome cli_run(const char *input, const char *const *arguments) {
    char out_path[CLI_PATH_BYTES];
    cli_path("stdout", out_path);
    return cli_finish(cli_start(input, out_path, -1, arguments), out_path);
}

void cli_require_program(void) {
    if (getenv("DRLLM_TEST_PROGRAM") == NULL) {
        drllm_skip("DRLLM_TEST_PROGRAM names no program");
    }
}

const char *cli_require_model(void) {
    cli_require_program();
    const char *model = getenv("DRLLM_TEST_MODEL");
    if (drllm_test_is_fast() || model == NULL || access(model, R_OK) != 0) {
        drllm_skip("needs the real model (DRLLM_TEST_MODEL, and not --fast)");
    }
    return model;
}

void cli_expect_code(const struct cli_outcome *outcome, int code) {
    if (outcome->code != code) {
        fail_msg("exit code %d instead of %d; stdout: %.300s; stderr: %.600s", outcome->code, code, outcome->out,
                 outcome->err);
    }
}

void cli_expect_text(const char *text, const char *part) {
    if (strstr(text, part) == NULL) {
        fail_msg("'%s' is not in: %.600s", part, text);
    }
}

void cli_expect_failure(struct cli_outcome outcome, int code, const char *part) {
    cli_expect_code(&outcome, code);
    cli_expect_text(outcome.err, part);
    assert_string_equal(outcome.out, "");
    cli_outcome_free(&outcome);
}

void cli_expect_output(struct cli_outcome outcome, const char *out) {
    cli_expect_code(&outcome, 0);
    assert_string_equal(outcome.out, out);
    cli_outcome_free(&outcome);
}

void cli_expect_success(struct cli_outcome outcome) {
    cli_expect_code(&outcome, 0);
    cli_outcome_free(&outcome);
}

cJSON *cli_expect_json(struct cli_outcome outcome) {
    cli_expect_code(&outcome, 0);
    cJSON *json = cJSON_Parse(outcome.out);
    if (json == NULL) {
        fail_msg("no JSON: %.600s", outcome.out);
    }
    cli_outcome_free(&outcome);
    return json;
}

double cli_number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item)) {
        fail_msg("no number %s", key);
    }
    return item->valuedouble;
}

const char *cli_string(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsString(item)) {
        fail_msg("no text %s", key);
    }
    return item->valuestring;
}

const cJSON *cli_list(const cJSON *json, const char *key, int size) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    assert_true(cJSON_IsArray(item));
    if (size >= 0) {
        assert_int_equal(cJSON_GetArraySize(item), size);
    }
    return item;
}
