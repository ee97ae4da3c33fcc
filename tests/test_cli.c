/* The program as a shell sees it: exit codes, what it prints and what it leaves behind. A tiny model whose text is
 * known is enough for most; DRLLM_TEST_MODEL adds the real one.
 *
 * Environment: DRLLM_TEST_PROGRAM is the program; without it these tests are skipped. DRLLM_TEST_EMULATOR: words to
 * put in front, such as "qemu-aarch64 -cpu max". */
#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ARGUMENTS = 40, PATH_BYTES = 512, TINY_VOCABULARY = TINY_FIRST_PIECE + 1 };

/* The program has no way to be told otherwise than by files, so the tests share one folder, made by the group's
 * set-up. */
static char folder[PATH_BYTES];
static char tiny[PATH_BYTES + 16];    /* the model of make_tiny_model */
static char no_chat[PATH_BYTES + 16]; /* the same without a chat template */

static const char *in_folder(const char *name, char path[PATH_BYTES + 64]) {
    (void)snprintf(path, PATH_BYTES + 64, "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* Zero-terminated, to be freed. */
static char *read_bytes(const char *path, size_t *size) {
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

/* ---- A model whose answers are known ---- */

/* a..y are followed by the next letter and z by the end; a line end is followed by ABC and the end. */
static void make_tiny_model(const char *path, bool has_chat_template) {
    struct tiny_options options = tiny_default_options();
    int32_t next[512];
    /* Without a token for the blank's sign SentencePiece texts would begin with its bytes. */
    static const char *const pieces[] = {"\xe2\x96\x81"};
    options.pieces = pieces;
    options.d_model = 288;
    options.n_heads = 4;
    options.head_dim = 72;
    options.n_vocab = TINY_VOCABULARY;
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
    struct tiny_model model;
    tiny_model_make(&model, &options);
    const struct tiny_edit edit = {.key = "tokenizer.chat_template",
                                   .kind = TINY_STRING,
                                   .string = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                                             "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"};
    size_t size = 0;
    uint8_t *file = tiny_model_write(&model, &edit, has_chat_template ? 1 : 0, &size);
    write_bytes(path, file, size);
    free(file);
    tiny_model_free(&model);
}

/* ---- Running the program ---- */

struct outcome {
    int code; /* exit code, or 128 + the number of the signal */
    char *out;
    size_t out_size;
    char *err;
};

static void outcome_free(struct outcome *outcome) {
    free(outcome->out);
    free(outcome->err);
}

static int exit_code(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Of so small a model threads do nothing but wait for each other, on a busy machine for long. */
static bool needs_one_thread(const char *const *arguments) {
    bool computes = false, has_tiny = false, has_threads = false;
    for (size_t i = 0; arguments[i] != NULL; i++) {
        computes =
            computes || (i == 0 && strcmp(arguments[0], "inspect") != 0 && strcmp(arguments[0], "tokenize") != 0);
        has_tiny = has_tiny || (strcmp(arguments[i], "-m") == 0 && arguments[i + 1] != NULL &&
                                strncmp(arguments[i + 1], folder, strlen(folder)) == 0);
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
        assert_true(n + 2 < MOST_ARGUMENTS);
        argv[n++] = *arguments;
    }
    if (one_thread) {
        argv[n++] = "-t";
        argv[n++] = "1";
    }
    argv[n] = NULL;
}

/* stdin from the text (NULL: empty), stdout to the path or descriptor, stderr to a file in the folder. */
static pid_t start(const char *input, const char *out_path, int out_descriptor, const char *const *arguments) {
    char in_path[PATH_BYTES + 64], err_path[PATH_BYTES + 64];
    in_folder("stdin", in_path);
    in_folder("stderr", err_path);
    write_bytes(in_path, input != NULL ? input : "", input != NULL ? strlen(input) : 0);

    const char *emulator_words = getenv("DRLLM_TEST_EMULATOR");
    char *emulator = strdup(emulator_words != NULL ? emulator_words : "");
    const char *argv[MOST_ARGUMENTS + 1];
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

static struct outcome finish(pid_t pid, const char *out_path) {
    char err_path[PATH_BYTES + 64];
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
    struct outcome outcome = {.code = exit_code(status)};
    size_t err_size = 0;
    outcome.err = read_bytes(in_folder("stderr", err_path), &err_size);
    outcome.out = out_path != NULL ? read_bytes(out_path, &outcome.out_size) : strdup("");
    return outcome;
}

static struct outcome run_with(const char *input, const char *const *arguments) {
    char out_path[PATH_BYTES + 64];
    in_folder("stdout", out_path);
    return finish(start(input, out_path, -1, arguments), out_path);
}

#define ARGUMENTS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define RUN(...) run_with(NULL, ARGUMENTS(__VA_ARGS__))
#define RUN_INPUT(input, ...) run_with(input, ARGUMENTS(__VA_ARGS__))

static void require_program(void) {
    if (getenv("DRLLM_TEST_PROGRAM") == NULL) {
        drllm_skip("DRLLM_TEST_PROGRAM names no program");
    }
}

static const char *require_model(void) {
    require_program();
    const char *model = getenv("DRLLM_TEST_MODEL");
    if (drllm_test_is_fast() || model == NULL || access(model, R_OK) != 0) {
        drllm_skip("needs the real model (DRLLM_TEST_MODEL, and not --fast)");
    }
    return model;
}

/* Says what came when it is not what should. */
static void expect_code(const struct outcome *outcome, int code) {
    if (outcome->code != code) {
        fail_msg("exit code %d instead of %d; stdout: %.300s; stderr: %.600s", outcome->code, code, outcome->out,
                 outcome->err);
    }
}

static void expect_text(const char *text, const char *part) {
    if (strstr(text, part) == NULL) {
        fail_msg("'%s' is not in: %.600s", part, text);
    }
}

/* Code and a part of stderr; nothing is printed on stdout. */
static void expect_failure(struct outcome outcome, int code, const char *part) {
    expect_code(&outcome, code);
    expect_text(outcome.err, part);
    assert_string_equal(outcome.out, "");
    outcome_free(&outcome);
}

static void expect_output(struct outcome outcome, const char *out) {
    expect_code(&outcome, 0);
    assert_string_equal(outcome.out, out);
    outcome_free(&outcome);
}

static void expect_success(struct outcome outcome) {
    expect_code(&outcome, 0);
    outcome_free(&outcome);
}

/* The JSON on stdout, to be deleted. */
static cJSON *expect_json(struct outcome outcome) {
    expect_code(&outcome, 0);
    cJSON *json = cJSON_Parse(outcome.out);
    if (json == NULL) {
        fail_msg("no JSON: %.600s", outcome.out);
    }
    outcome_free(&outcome);
    return json;
}

static double number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsNumber(item)) {
        fail_msg("no number %s", key);
    }
    return item->valuedouble;
}

static const char *string(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (!cJSON_IsString(item)) {
        fail_msg("no text %s", key);
    }
    return item->valuestring;
}

static const cJSON *list(const cJSON *json, const char *key, int size) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    assert_true(cJSON_IsArray(item));
    if (size >= 0) {
        assert_int_equal(cJSON_GetArraySize(item), size);
    }
    return item;
}

/* ---- Use ---- */

static const char *const commands[] = {"run",   "chat",    "score",    "perplexity", "logits",
                                       "bench", "inspect", "tokenize", "quantize"};

static void test_help(void **state) {
    (void)state;
    require_program();
    struct outcome overview = RUN("--help");
    expect_code(&overview, 0);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char usage[64];
        expect_text(overview.out, commands[i]);
        (void)snprintf(usage, sizeof usage, "usage: drllm %s ", commands[i]);
        struct outcome help = RUN(commands[i], "--help");
        expect_code(&help, 0);
        expect_text(help.out, usage);
        expect_text(help.out, "exit status: 0");
        assert_string_equal(help.err, "");
        struct outcome same = RUN("help", commands[i]);
        assert_string_equal(same.out, help.out);
        /* Anywhere, and without changing what is shown as default. */
        struct outcome late = RUN(commands[i], "--threads", "7", "-h");
        if (late.code == 0) {
            assert_string_equal(late.out, help.out);
        }
        outcome_free(&help);
        outcome_free(&same);
        outcome_free(&late);
    }
    outcome_free(&overview);
    expect_failure(run_with(NULL, ARGUMENTS(NULL)), 2, "usage: drllm COMMAND");
    expect_failure(RUN("frobnicate"), 2, "unknown command 'frobnicate'");
    expect_failure(RUN("help", "frobnicate"), 2, "unknown command 'frobnicate'");
}

static void test_wrong_use(void **state) {
    (void)state;
    require_program();
    static const struct {
        const char *arguments[8];
        const char *message;
    } cases[] = {
        {{"run", "--bogus"}, "drllm run: unknown option --bogus"},
        {{"run", "--bogus=3"}, "unknown option --bogus"},
        {{"run", "-x"}, "unknown option -x"},
        {{"run", "-n=3"}, "unknown option -n=3"},
        {{"run", "--raw=yes"}, "--raw takes no value"},
        {{"run", "-m"}, "-m needs a value"},
        {{"run", "-p", "x"}, "-m FILE is missing"},
        {{"run", "-m", "x"}, "-p TEXT or -f FILE is missing"},
        {{"run", "-m", "x", "-p", "y", "-f", "z"}, "exclude each other"},
        {{"run", "-m", "x", "-p", "y", "z"}, "unexpected argument 'z'"},
        {{"run", "-n", "x"}, "--predict: 'x' is not a whole number"},
        {{"run", "-n", ""}, "--predict: '' is not a whole number"},
        {{"run", "-n", "3.5"}, "--predict"},
        {{"run", "-n", " 3"}, "--predict"},
        {{"run", "-n", "0x10"}, "--predict"},
        {{"run", "-n", "99999999999999999999"}, "--predict"},
        {{"run", "-n", "-2"}, "--predict"},
        {{"run", "--temp", "nan"}, "--temp"},
        {{"run", "--temp=inf"}, "--temp"},
        {{"run", "--temp=-1"}, "--temp"},
        {{"run", "--temp=1e999"}, "--temp"},
        {{"run", "-t", "1025"}, "--threads"},
        {{"run", "--head", "q9"}, "'q9' is none of auto|file|q8c"},
        {{"run", "--compute=fast"}, "'fast' is none of exact|xnnpack|f32"},
        {{"run", "-m", "x", "-p", "y", "--cpu-mask", "mmx"}, "mmx"},
        {{"run", "-m", "x", "-p", "y", "--top-p", "0"}, "top_p"},
        {{"run", "-m", "x", "-p", "y", "--raw", "--system=s"}, "--system"},
        {{"chat"}, "-m FILE is missing"},
        {{"score", "-m", "x", "-p", "y"}, "--choice TEXT is missing"},
        {{"score", "-m", "x", "--choice", "y"}, "-p TEXT, -f FILE and -d FILE"},
        {{"score", "-m", "x", "-d", "y", "--choice", "z"}, "choices are in the file"},
        {{"score", "--normalize", "words"}, "'words' is none of characters|tokens|none"},
        {{"perplexity", "-m", "x"}, "-f FILE is missing"},
        {{"perplexity", "-c", "3"}, "--ctx-size"},
        {{"logits", "-m", "x"}, "--ids LIST must be given"},
        {{"bench"}, "-m FILE is missing"},
        {{"bench", "-p", "64,,2"}, "--n-prompt"},
        {{"bench", "-t", "1,x"}, "--threads"},
        {{"bench", "-t", "0"}, "--threads"},
        {{"bench", "-o", "xml"}, "'xml' is none of md|json|csv"},
        {{"inspect"}, "one file must be named"},
        {{"inspect", "a", "b"}, "one file must be named"},
        {{"tokenize", "-m", "x"}, "-p TEXT or -f FILE is missing"},
        {{"tokenize", "-m", "x", "-p", "y", "--lines"}, "--lines is for -f"},
        {{"quantize", "a", "b"}, "IN, OUT and TYPE"},
        {{"quantize", "a", "b", "q3_k"}, "'q3_k' is none of"},
        {{"quantize", "a", "b", "q4_k"}, "'q4_k' is none of"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct outcome outcome = run_with(NULL, cases[i].arguments);
        expect_text(outcome.err, "--help'.");
        expect_failure(outcome, 2, cases[i].message);
    }
}

static void test_missing_files(void **state) {
    (void)state;
    require_program();
    static const struct {
        const char *arguments[8];
    } cases[] = {
        {{"run", "-m", "/no/model", "-p", "x"}},
        {{"chat", "-m", "/no/model"}},
        {{"perplexity", "-m", "/no/m", "-f", "x"}},
        {{"score", "-m", "/no/m", "-p", "x", "--choice", "y"}},
        {{"logits", "-m", "/no/model", "-p", "x"}},
        {{"bench", "-m", "/no/model"}},
        {{"inspect", "/no/model"}},
        {{"tokenize", "-m", "/no/model", "-p", "x"}},
        {{"quantize", "/no/model", "/no/out", "f32"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct outcome outcome = run_with(NULL, cases[i].arguments);
        expect_text(outcome.err, cases[i].arguments[0]);
        expect_failure(outcome, 1, "No such file or directory");
    }
    expect_failure(RUN("run", "-m", tiny, "-f", "/no/file"), 1, "cannot open /no/file");
    expect_failure(RUN("run", "-m", tiny, "-f", "/"), 1, "cannot read /: Is a directory");
    expect_failure(RUN("perplexity", "-m", tiny, "-f", "/no/file"), 1, "cannot open /no/file");
    expect_failure(RUN("score", "-m", tiny, "-d", "/no/file"), 1, "cannot open /no/file");
    expect_failure(RUN("run", "-m", folder, "-p", "x"), 1, "drllm run: cannot open model: ");
}

static void test_damaged_models(void **state) {
    (void)state;
    require_program();
    char path[PATH_BYTES + 64];
    size_t size = 0;
    char *file = read_bytes(tiny, &size);
    in_folder("damaged.gguf", path);
    const size_t sizes[] = {0, 3, 4, 20, 24, 100, 1000, size / 2, size - 40, size - 33};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        write_bytes(path, file, sizes[i]);
        expect_failure(RUN("run", "-m", path, "--raw", "-p", "x"), 1, "drllm run: cannot open model: ");
        expect_failure(RUN("inspect", path), 1, "drllm inspect: cannot open ");
    }
    file[0] = 'g';
    write_bytes(path, file, size);
    expect_failure(RUN("run", "-m", path, "--raw", "-p", "x"), 1, "not a GGUF file");
    free(file);
}

/* ---- Output that cannot be written ---- */

static void test_full_disk(void **state) {
    (void)state;
    require_program();
    if (access("/dev/full", W_OK) != 0) {
        drllm_skip("there is no /dev/full");
    }
    static const struct {
        const char *arguments[12];
    } cases[] = {
        {{"--help"}},
        {{"run", "--help"}},
        {{"run", "-m", tiny, "--raw", "-p", "a", "--temp", "0"}},
        {{"run", "-m", tiny, "--raw", "-p", "a", "--json"}},
        {{"score", "-m", tiny, "-p", "a", "--choice", "b"}},
        {{"logits", "-m", tiny, "-p", "a"}},
        {{"logits", "-m", tiny, "-p", "a", "-o", "-"}},
        {{"inspect", tiny}},
        {{"inspect", tiny, "--json"}},
        {{"tokenize", "-m", tiny, "-p", "a"}},
        {{"bench", "-m", tiny, "-p", "4", "-n", "0", "-r", "1"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct outcome outcome = finish(start(NULL, "/dev/full", -1, cases[i].arguments), NULL);
        expect_failure(outcome, 1, "No space left on device");
    }
    expect_failure(finish(start("hello\n", "/dev/full", -1, ARGUMENTS("chat", "-m", tiny)), NULL), 1,
                   "No space left on device");
    struct outcome outcome = RUN("logits", "-m", tiny, "-p", "a", "-o", "/dev/full");
    expect_code(&outcome, 1);
    expect_text(outcome.err, "cannot write /dev/full: No space left on device");
    outcome_free(&outcome);
}

static void test_broken_pipe(void **state) {
    (void)state;
    require_program();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    expect_failure(finish(start(NULL, NULL, ends[1], ARGUMENTS("run", "-m", tiny, "--raw", "-p", "a")), NULL), 1,
                   "Broken pipe");
    expect_failure(finish(start(NULL, NULL, ends[1], ARGUMENTS("inspect", tiny)), NULL), 1, "Broken pipe");
    close(ends[1]);
}

static void test_output_files(void **state) {
    (void)state;
    require_program();
    char path[PATH_BYTES + 64], copy[PATH_BYTES + 64];
    size_t size = 0;
    in_folder("logits.f32", path);
    in_folder("link.f32", copy);
    expect_success(RUN("logits", "-m", tiny, "-p", "a", "-o", path));
    char *first = read_bytes(path, &size);
    assert_int_equal(size, (TINY_VOCABULARY)*4);
    free(first);

    /* A run that fails leaves an older file alone; one that succeeds keeps its mode and follows a link to it. */
    write_bytes(path, "old", 3);
    expect_failure(RUN("logits", "-m", "/no/model", "-p", "a", "-o", path), 1, "No such file");
    char *old = read_bytes(path, &size);
    assert_string_equal(old, "old");
    free(old);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(symlink("logits.f32", copy), 0);
    expect_success(RUN("logits", "-m", tiny, "-p", "a", "-o", copy));
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    assert_int_equal(info.st_size, (TINY_VOCABULARY)*4);
    assert_int_equal(lstat(copy, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    struct outcome outcome = RUN("logits", "-m", tiny, "-p", "a", "-o", "/no/folder/file");
    expect_code(&outcome, 1);
    expect_text(outcome.err, "cannot write /no/folder/file");
    outcome_free(&outcome);

    /* Nothing is left under another name. */
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        assert_true(strncmp(entry->d_name, "logits.f32", 10) != 0 || strlen(entry->d_name) == 10);
    }
    closedir(directory);
}

/* ---- What the subcommands do ---- */

static void test_run(void **state) {
    (void)state;
    require_program();
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0"), "bcdefghijklmnopqrstuvwxyz\n");
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3"), "bcd\n");
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp=0", "--predict=3"), "bcd\n");
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "0"), "");
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "--stop", "q", "--stop", "fg"), "bcde\n");
    expect_output(RUN_INPUT("a\n", "run", "-m", tiny, "--raw", "-f", "-", "--temp", "0", "-n", "2"), "bc\n");
    expect_output(RUN("run", "-m", tiny, "-p", "anything", "--temp", "0"), "ABC\n");
    expect_output(RUN("run", "-m", tiny, "-p", "-x", "--temp", "0", "--system", "s", "-s", "-1"), "ABC\n");
    expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3", "-q", "-t", "0", "-c", "0"),
                  "bcd\n");
    expect_failure(RUN("run", "-m", no_chat, "-p", "a"), 1, "--raw");
    expect_failure(RUN("run", "-m", tiny, "--raw", "-p", "aaaaaaaaaaaaaaaa", "-c", "8"), 1, "the context holds 8");
    expect_failure(RUN("run", "-m", tiny, "-p", "a", "-s", "-3"), 2, "--seed");

    struct outcome timed = RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3");
    expect_text(timed.err, "tokens/s");
    outcome_free(&timed);
    struct outcome quiet = RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3", "--quiet");
    assert_string_equal(quiet.err, "");
    outcome_free(&quiet);
}

static void test_run_json(void **state) {
    (void)state;
    require_program();
    cJSON *json = expect_json(
        RUN_INPUT("\"\\\t\x01 x", "run", "-m", tiny, "--raw", "-f", "-", "--temp", "0", "--json", "-s", "7"));
    assert_string_equal(string(json, "prompt"), "\"\\\t\x01 x");
    assert_string_equal(string(json, "text"), "yz");
    assert_string_equal(string(json, "stop_reason"), "end");
    assert_int_equal(number(json, "n_generated"), 3);
    assert_int_equal(number(json, "seed"), 7);
    assert_true(number(json, "n_prompt") > 5);
    const cJSON *tokens = list(json, "tokens", -1);
    assert_true(cJSON_GetArraySize(tokens) == 2 || cJSON_GetArraySize(tokens) == 3);
    assert_int_equal(cJSON_GetArrayItem(tokens, 0)->valueint, TINY_FIRST_BYTE + 'y');
    assert_true(number(cJSON_GetObjectItem(json, "timings"), "load_ms") > 0);
    cJSON_Delete(json);

    /* Held back because it may begin a stop string, and in the end is none. */
    json = expect_json(RUN("run", "-m", tiny, "--raw", "-p", "w", "--temp", "0", "--stop", "zz", "--json"));
    assert_string_equal(string(json, "text"), "xyz");
    assert_true(cJSON_GetArraySize(list(json, "tokens", -1)) <= 4);
    cJSON_Delete(json);
    json = expect_json(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "2", "--json"));
    assert_string_equal(string(json, "stop_reason"), "length");
    list(json, "tokens", 2);
    cJSON_Delete(json);
    json = expect_json(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-c", "8", "--json"));
    assert_string_equal(string(json, "stop_reason"), "context");
    cJSON_Delete(json);
}

static void test_chat(void **state) {
    (void)state;
    require_program();
    /* No prompt characters on a pipe, in neither stream. */
    struct outcome outcome = RUN_INPUT("hello\nhow are\\\nyou\n\n/reset\nagain", "chat", "-m", tiny, "--temp", "0");
    expect_text(outcome.err, "(the conversation is forgotten)");
    assert_null(strchr(outcome.err, '>'));
    assert_null(strchr(outcome.err, '\033'));
    expect_output(outcome, "ABC\nABC\nABC\n");

    outcome = RUN_INPUT("/help\n/nothing\n/quit\nhello\n", "chat", "-m", tiny);
    expect_text(outcome.err, "/reset ");
    expect_text(outcome.err, "unknown command /nothing");
    expect_output(outcome, "");
    expect_output(RUN_INPUT("", "chat", "-m", tiny), "");
    expect_failure(RUN_INPUT("hello\n", "chat", "-m", no_chat), 1, "run --raw");

    /* The second turn computes only what the first did not. */
    char system_message[201];
    memset(system_message, 's', 200);
    system_message[200] = '\0';
    outcome = RUN_INPUT("one\ntwo\n", "chat", "-m", tiny, "--temp", "0", "-v", "--system", system_message);
    long computed[2] = {0, 0};
    const char *line = strstr(outcome.err, "prompt: ");
    for (size_t i = 0; i < 2 && line != NULL; i++) {
        computed[i] = strtol(line + strlen("prompt: "), NULL, 10);
        line = strstr(line + 1, "prompt: ");
    }
    assert_in_range(computed[1], 1, computed[0] - 50);
    expect_output(outcome, "ABC\nABC\n");

    /* Old turns make room; a message that does not fit alone is refused, and the conversation goes on. */
    char input[1024];
    (void)snprintf(input, sizeof input, "one\ntwo\nthree\nfour\n%0600d\nfive\n", 0);
    outcome = RUN_INPUT(input, "chat", "-m", tiny, "--temp", "0", "-c", "280");
    expect_text(outcome.err, "oldest turns forgotten");
    expect_text(outcome.err, "too long for a context of 280 tokens");
    expect_output(outcome, "ABC\nABC\nABC\nABC\nABC\n");
}

static void test_score(void **state) {
    (void)state;
    require_program();
    cJSON *json = expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "ab", "--choice", "a", "--json"));
    const cJSON *choices = list(json, "choices", 2);
    assert_true(cJSON_GetArraySize(list(json, "prompt_tokens", -1)) > 1);
    const cJSON *choice;
    cJSON_ArrayForEach(choice, choices) {
        assert_true(number(choice, "log_prob") < 0.0);
        assert_true(
            fabs(number(choice, "score") - number(choice, "log_prob") / (double)strlen(string(choice, "text"))) < 1e-9);
    }
    cJSON_Delete(json);
    json = expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json", "--normalize", "none"));
    choice = cJSON_GetArrayItem(list(json, "choices", 1), 0);
    const double log_prob = number(choice, "log_prob");
    const int n_tokens = cJSON_GetArraySize(list(choice, "tokens", -1));
    assert_true(number(choice, "score") == log_prob);
    cJSON_Delete(json);
    json = expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json", "--normalize", "tokens"));
    choice = cJSON_GetArrayItem(list(json, "choices", 1), 0);
    assert_true(fabs(number(choice, "score") - log_prob / n_tokens) < 1e-9);
    cJSON_Delete(json);
    /* Two characters in three bytes. */
    json = expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json"));
    choice = cJSON_GetArrayItem(list(json, "choices", 1), 0);
    assert_true(fabs(number(choice, "score") - log_prob / 2) < 1e-9);
    cJSON_Delete(json);

    struct outcome outcome = RUN("score", "-m", tiny, "-p", "x", "--choice", "a", "--choice", "b");
    expect_text(outcome.out, "* ");
    expect_success(outcome);
    expect_failure(RUN("score", "-m", tiny, "-p", "x", "--choice", ""), 1, "choice 0 is empty");
    expect_failure(RUN("score", "-m", tiny, "-p", "xxxxxxxxxxx", "--choice", "y", "-c", "4"), 1, "cannot score");
}

static void test_score_batch(void **state) {
    (void)state;
    require_program();
    static const char *const lines = "{\"prompt\": \"x\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n"
                                     "{\"prompt\": \"x\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\r\n"
                                     "{\"prompt\": \"x\", \"choices\": [\"a\"]}\n"
                                     "\n"
                                     "nonsense\n"
                                     "{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": 1}\n"
                                     "{\"prompt\": \"x\", \"choices\": [\"a\"]} {}\n"
                                     "{\"prompt\": \"x\", \"choices\": [3]}\n"
                                     "{\"prompt\": 1, \"choices\": [\"a\"]}\n"
                                     "{\"prompt\": \"x\", \"choices\": []}\n"
                                     "[]\n"
                                     "{\"prompt\": \"x\", \"choices\": [\"\"]}\n"
                                     "{\"prompt\": \"y\", \"choices\": [\"z\"], \"answer\": 0}";
    struct outcome outcome = RUN_INPUT(lines, "score", "-m", tiny, "-d", "-");
    expect_code(&outcome, 1);
    expect_text(outcome.err, "-, line 5: ");
    expect_text(outcome.err, "9 bad lines");
    expect_text(outcome.err, "accuracy: 2 of 3 (66.67 %)");
    const char *line = outcome.out;
    for (int i = 1; i <= 13; i++) { /* a line out for each line in */
        const char *end = NULL;
        cJSON *json = cJSON_ParseWithOpts(line, &end, false);
        assert_non_null(json);
        assert_int_equal(number(json, "line"), i);
        const bool good = i <= 3 || i == 13;
        assert_int_equal(cJSON_HasObjectItem(json, "error"), !good);
        assert_int_equal(cJSON_HasObjectItem(json, "best"), good);
        assert_int_equal(*end, '\n');
        line = end + 1;
        cJSON_Delete(json);
    }
    assert_string_equal(line, "");
    outcome_free(&outcome);
    expect_output(RUN_INPUT("", "score", "-m", tiny, "-d", "-"), "");
}

static void test_perplexity(void **state) {
    (void)state;
    require_program();
    char text[600];
    memset(text, 'q', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    cJSON *json =
        expect_json(RUN_INPUT(text, "perplexity", "-m", tiny, "-f", "-", "-c", "64", "--chunks", "3", "--json"));
    assert_int_equal(number(json, "n_chunks"), 3);
    assert_int_equal(number(json, "n_predictions"), 3 * 31);
    assert_true(number(json, "perplexity") > 1.0);
    cJSON_Delete(json);
    struct outcome outcome = RUN_INPUT(text, "perplexity", "-m", tiny, "-f", "-", "-c", "64");
    expect_text(outcome.out, "PPL = ");
    expect_text(outcome.out, " +- ");
    expect_text(outcome.err, "chunk 9 of 9");
    expect_success(outcome);
    expect_failure(RUN_INPUT("short", "perplexity", "-m", tiny, "-f", "-"), 1, "fewer than a chunk of 512");
}

static void test_logits(void **state) {
    (void)state;
    require_program();
    char path[PATH_BYTES + 64], layers[PATH_BYTES + 64];
    size_t size = 0;
    in_folder("l.f32", path);
    in_folder("layers.f32", layers);
    struct outcome outcome =
        RUN("logits", "-m", tiny, "--ids", "1,100,101", "-o", path, "--layers", layers, "--print-ids");
    expect_text(outcome.out, "tokens: 1,100,101\n");
    expect_success(outcome);
    char *data = read_bytes(layers, &size);
    assert_int_equal(size, 4 * 288 * 4);
    free(data);
    data = read_bytes(path, &size);
    outcome = RUN("logits", "-m", tiny, "--ids", "[1, 100, 101]", "-o", "-");
    expect_code(&outcome, 0);
    assert_int_equal(outcome.out_size, size);
    assert_memory_equal(outcome.out, data, size);
    expect_text(outcome.err, "probability");
    outcome_free(&outcome);
    free(data);
    expect_failure(RUN("logits", "-m", tiny, "--ids", "1,260"), 1, "'260' is not a token id from 0 to 259");
    expect_failure(RUN("logits", "-m", tiny, "--ids", "1,-1"), 1, "'-1' is not a token id");
    expect_failure(RUN("logits", "-m", tiny, "--ids", " "), 1, "there are no tokens");
    expect_failure(RUN("logits", "-m", tiny, "--ids", "1,2,3,4,5", "-c", "4"), 1, "context");
}

static void test_bench(void **state) {
    (void)state;
    require_program();
    cJSON *json = expect_json(RUN("bench", "-m", tiny, "-p", "16,8", "-n", "4", "-t", "1", "-r", "2", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 3);
    for (int i = 0; i < 3; i++) {
        const cJSON *row = cJSON_GetArrayItem(json, i);
        assert_int_equal(number(row, "n_prompt"), i == 0 ? 16 : i == 1 ? 8 : 0);
        assert_int_equal(number(row, "n_gen"), i == 2 ? 4 : 0);
        assert_int_equal(number(row, "n_threads"), 1);
        assert_true(number(row, "avg_ts") > 0 && number(row, "stddev_ts") >= 0 && number(row, "median_ts") > 0);
        assert_true(number(row, "peak_memory") > 0 && number(row, "load_ms") > 0 && number(row, "bandwidth") > 0);
        list(row, "samples_ts", 2);
        list(row, "samples_ns", 2);
        assert_string_equal(string(row, "model_filename"), tiny);
        assert_non_null(string(row, "model_type"));
        assert_int_equal(cJSON_IsNumber(cJSON_GetObjectItem(row, "share_of_bandwidth")), i == 2);
    }
    cJSON_Delete(json);
    struct outcome outcome = RUN("bench", "-m", tiny, "-m", no_chat, "-p", "4", "-n", "2", "-r", "1", "-t", "1");
    expect_text(outcome.out, "| pp4 |");
    expect_text(outcome.out, "| tg2 |");
    expect_text(outcome.out, "Peak memory: ");
    expect_success(outcome);
    outcome = RUN("bench", "-m", tiny, "-p", "4", "-n", "0", "-r", "1", "-o", "csv", "-t", "1");
    assert_ptr_equal(strstr(outcome.out, "model_filename,"), outcome.out);
    expect_success(outcome);
    expect_failure(RUN("bench", "-m", tiny, "-p", "0", "-n", "0"), 2, "nothing to measure");
}

static void test_inspect(void **state) {
    (void)state;
    require_program();
    struct outcome outcome = RUN("inspect", tiny);
    expect_text(outcome.out, "general.architecture: string = \"llama\"");
    expect_text(outcome.out, "token_embd.weight");
    expect_text(outcome.out, "\nmemory at a context of 2048: ");
    expect_success(outcome);
    cJSON *json = expect_json(RUN("inspect", "-m", tiny, "--json"));
    bool found = false;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, list(json, "metadata", -1)) {
        if (strcmp(string(entry, "key"), "tokenizer.ggml.tokens") == 0) {
            assert_int_equal(number(entry, "count"), TINY_VOCABULARY);
            list(entry, "value", 4);
            found = true;
        }
    }
    assert_true(found);
    assert_true(cJSON_GetArraySize(list(json, "tensors", -1)) > 10);
    cJSON_Delete(json);
    json = expect_json(RUN("inspect", tiny, "--json", "--all"));
    cJSON_ArrayForEach(entry, list(json, "metadata", -1)) {
        if (strcmp(string(entry, "key"), "tokenizer.ggml.tokens") == 0) {
            list(entry, "value", TINY_VOCABULARY);
        }
    }
    cJSON_Delete(json);
}

static void test_tokenize(void **state) {
    (void)state;
    require_program();
    struct outcome ids = RUN("tokenize", "-m", tiny, "-p", "az\xe2\x82\xac", "-p", "b");
    expect_code(&ids, 0);
    assert_non_null(strchr(ids.out, '\n'));
    expect_output(RUN_INPUT(ids.out, "tokenize", "-m", tiny, "--decode", "-f", "-", "--lines"), "az\xe2\x82\xac\nb\n");
    outcome_free(&ids);
    ids = RUN_INPUT("a\nb\n", "tokenize", "-m", tiny, "-f", "-");
    expect_code(&ids, 0);
    expect_output(RUN_INPUT(ids.out, "tokenize", "-m", tiny, "--decode", "-f", "-"), "a\nb\n"); /* nothing added */
    outcome_free(&ids);
    struct outcome lines = RUN_INPUT("a\n\nb", "tokenize", "-m", tiny, "-f", "-", "--lines");
    expect_code(&lines, 0);
    size_t n = 0;
    for (const char *p = lines.out; *p != '\0'; p++) {
        n += *p == '\n';
    }
    assert_int_equal(n, 3);
    outcome_free(&lines);
    struct outcome bos = RUN("tokenize", "-m", tiny, "-p", "</s>", "--special", "--bos");
    expect_code(&bos, 0);
    assert_ptr_equal(strstr(bos.out, "1 "), bos.out);
    expect_text(bos.out, " 2\n");
    outcome_free(&bos);
    expect_failure(RUN("tokenize", "-m", tiny, "--decode", "-p", "9999"), 1, "'9999' is not a token id");
    expect_failure(RUN("tokenize", "-m", tiny, "--decode", "-p", "1 x"), 1, "'x' is not a token id");
}

static void test_quantize(void **state) {
    (void)state;
    require_program();
    static const char *const types[] = {"f32", "f16", "bf16", "q4_0", "q4_1", "q8_0", "q8c"};
    char path[PATH_BYTES + 64], again[PATH_BYTES + 64];
    size_t before = 0, after = 0;
    char *input = read_bytes(tiny, &before);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        for (int pure = 0; pure < 2; pure++) {
            (void)snprintf(path, sizeof path, "%s/%s%d.gguf", folder, types[i], pure);
            (void)snprintf(again, sizeof again, "%s/again-%s%d.gguf", folder, types[i], pure);
            expect_success(RUN("quantize", tiny, path, types[i], pure ? "--pure" : "--force"));
            /* What was written is a model, and can be quantised again. */
            expect_success(RUN("run", "-m", path, "--raw", "-p", "a", "-n", "2"));
            expect_success(RUN("quantize", path, again, "q8_0", "-t", "1", "-q"));
            expect_success(RUN("run", "-m", again, "--raw", "-p", "a", "-n", "2"));
        }
    }
    struct outcome outcome = RUN("inspect", in_folder("q8c0.gguf", path));
    expect_text(outcome.out, "drllm.quantization: string = \"q8c\"");
    expect_text(outcome.out, "blk.0.attn_q.weight_scale");
    expect_text(outcome.out, "general.quantization_version: u32 = 2");
    assert_null(strstr(outcome.out, "token_embd.weight_scale"));
    expect_success(outcome);
    outcome = RUN("inspect", in_folder("again-q8c0.gguf", path));
    assert_null(strstr(outcome.out, "_scale"));
    assert_null(strstr(outcome.out, "drllm.quantization"));
    expect_text(outcome.out, "general.file_type: u32 = 7");
    expect_success(outcome);
    /* The same format is the same weights. */
    expect_output(RUN("run", "-m", in_folder("f320.gguf", path), "--raw", "-p", "a", "--temp", "0"),
                  "bcdefghijklmnopqrstuvwxyz\n");

    expect_failure(RUN("quantize", tiny, path, "q8_0"), 1, "--force");
    expect_failure(RUN("quantize", tiny, tiny, "q8_0", "--force"), 1, "is the input");
    expect_failure(RUN("quantize", tiny, "/no/folder/out", "q8_0"), 1, "cannot write the model");
    char *output = read_bytes(tiny, &after);
    assert_int_equal(after, before);
    assert_memory_equal(output, input, before);
    free(input);
    free(output);
}

/* ---- The real model ---- */

static void test_real_answers(void **state) {
    (void)state;
    const char *model = require_model();
    expect_output(RUN("run", "-m", model, "--raw", "-p", "The capital of France is", "-n", "1", "--temp", "0"),
                  " Paris\n");
    cJSON *json = expect_json(RUN("score", "-m", model, "-p", "The capital of France is", "--choice", " London",
                                  "--choice", " Paris", "--json"));
    assert_int_equal(number(json, "best"), 1);
    cJSON_Delete(json);
    expect_output(RUN("tokenize", "-m", model, "-p", "Hello world", "-p", "<|im_start|>", "--special"),
                  "19556 905\n1\n");
    struct outcome outcome = RUN("inspect", model);
    expect_text(outcome.out, "q4_1");
    expect_success(outcome);
    json = expect_json(RUN("bench", "-m", model, "-p", "16", "-n", "4", "-r", "1", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 2);
    cJSON_Delete(json);
}

static void test_real_seeds(void **state) {
    (void)state;
    const char *model = require_model();
    struct outcome first = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "5", "-t", "1");
    struct outcome second = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "5", "-t", "2");
    struct outcome third = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "6");
    expect_code(&first, 0);
    assert_string_equal(first.out, second.out);
    assert_string_not_equal(first.out, third.out);
    outcome_free(&first);
    outcome_free(&second);
    outcome_free(&third);
}

static void test_real_chat(void **state) {
    (void)state;
    const char *model = require_model();
    /* After /reset the same question gets the same answer: nothing is left of the turns before. */
    struct outcome outcome = RUN_INPUT("Say hello.\n/reset\nThe sky is blue.\n/reset\nSay hello.\n/quit\n", "chat",
                                       "-m", model, "--temp", "0", "-n", "12");
    expect_code(&outcome, 0);
    struct outcome once = RUN_INPUT("Say hello.\n", "chat", "-m", model, "--temp", "0", "-n", "12");
    const size_t size = strlen(once.out);
    assert_true(size > 1 && outcome.out_size >= 2 * size);
    assert_memory_equal(outcome.out, once.out, size);
    assert_memory_equal(outcome.out + outcome.out_size - size, once.out, size);
    outcome_free(&outcome);
    outcome_free(&once);
}

static void sleep_ms(long ms) {
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static off_t file_size(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? info.st_size : 0;
}

static void test_real_interrupt(void **state) {
    (void)state;
    const char *model = require_model();
    char out_path[PATH_BYTES + 64];
    in_folder("stdout", out_path);
    write_bytes(out_path, "", 0);
    const pid_t pid =
        start(NULL, out_path, -1, ARGUMENTS("run", "-m", model, "-p", "Tell a long story.", "--ignore-eos", "-c", "0"));
    for (int i = 0; i < 6000 && file_size(out_path) == 0; i++) {
        sleep_ms(10);
    }
    kill(pid, SIGINT);
    struct outcome outcome = finish(pid, out_path);
    expect_code(&outcome, 130);
    assert_true(outcome.out_size > 0);
    expect_text(outcome.err, "stopped by: interrupted");
    outcome_free(&outcome);
}

/* ---- */

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    (void)snprintf(folder, sizeof folder, "%s/drllm-cli-XXXXXX", base != NULL && strlen(base) < 400 ? base : "/tmp");
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    (void)snprintf(tiny, sizeof tiny, "%s/tiny.gguf", folder);
    (void)snprintf(no_chat, sizeof no_chat, "%s/no-chat.gguf", folder);
    make_tiny_model(tiny, true);
    make_tiny_model(no_chat, false);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    DIR *directory = opendir(folder);
    for (const struct dirent *entry = directory != NULL ? readdir(directory) : NULL; entry != NULL;
         entry = readdir(directory)) {
        char path[PATH_BYTES + 300];
        (void)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    if (directory != NULL) {
        closedir(directory);
    }
    return rmdir(folder);
}

int drllm_test_cli(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),           cmocka_unit_test(test_wrong_use),  cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_damaged_models), cmocka_unit_test(test_full_disk),  cmocka_unit_test(test_broken_pipe),
        cmocka_unit_test(test_output_files),   cmocka_unit_test(test_run),        cmocka_unit_test(test_run_json),
        cmocka_unit_test(test_chat),           cmocka_unit_test(test_score),      cmocka_unit_test(test_score_batch),
        cmocka_unit_test(test_perplexity),     cmocka_unit_test(test_logits),     cmocka_unit_test(test_bench),
        cmocka_unit_test(test_inspect),        cmocka_unit_test(test_tokenize),   cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_real_answers),   cmocka_unit_test(test_real_seeds), cmocka_unit_test(test_real_chat),
        cmocka_unit_test(test_real_interrupt),
    };
    return drllm_run_group("cli", tests, set_up, tear_down);
}
