/* The program as a shell sees it: exit codes, what it prints and what it leaves behind. A tiny model whose text is
 * known is enough for most; DRLLM_TEST_MODEL adds the real one. */
#include "tests/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char tiny[CLI_PATH_BYTES];    /* a spoken model */
static char no_chat[CLI_PATH_BYTES]; /* the same without a chat template */

/* ---- Use ---- */

static const char *const commands[] = {"run",     "chat",     "score",      "perplexity", "logits", "bench",
                                       "inspect", "tokenize", "quantize",   "routers",    "route",  "convert",
                                       "train",   "eval",     "synthesize", "pack"};

static void test_help(void **state) {
    (void)state;
    cli_require_program();
    struct cli_outcome overview = RUN("--help");
    cli_expect_code(&overview, 0);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char usage[64];
        cli_expect_text(overview.out, commands[i]);
        (void)snprintf(usage, sizeof usage, "usage: drllm %s ", commands[i]);
        struct cli_outcome help = RUN(commands[i], "--help");
        cli_expect_code(&help, 0);
        cli_expect_text(help.out, usage);
        cli_expect_text(help.out, "exit status: 0");
        assert_string_equal(help.err, "");
        struct cli_outcome same = RUN("help", commands[i]);
        assert_string_equal(same.out, help.out);
        /* Anywhere, and without changing what is shown as default. */
        struct cli_outcome late = RUN(commands[i], "--threads", "7", "-h");
        if (late.code == 0) {
            assert_string_equal(late.out, help.out);
        }
        cli_outcome_free(&help);
        cli_outcome_free(&same);
        cli_outcome_free(&late);
    }
    cli_outcome_free(&overview);
    cli_expect_failure(cli_run(NULL, ARGUMENTS(NULL)), 2, "usage: drllm COMMAND");
    cli_expect_failure(RUN("frobnicate"), 2, "unknown command 'frobnicate'");
    cli_expect_failure(RUN("help", "frobnicate"), 2, "unknown command 'frobnicate'");
}

static void test_wrong_use(void **state) {
    (void)state;
    cli_require_program();
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
        {{"routers", "a", "b"}, "-m FILE is missing"},
        {{"routers", "-m", "x", "a"}, "IN and OUT must be given"},
        {{"routers", "-m", "x", "a", "b", "c"}, "IN and OUT must be given"},
        {{"route", "-f", "x"}, "-m FILE is missing"},
        {{"route", "-m", "x"}, "-f FILE is missing"},
        {{"route", "-m", "x", "-f", "y", "-o", "z", "--plot=z"}, "cannot both go to z"},
        {{"route", "-m", "x", "-f", "y", "--plot", "-"}, "cannot both go to -"},
        {{"convert", "arc"}, "FORMAT and IN must be given"},
        {{"convert", "parquet", "x"}, "'parquet' is none of arc, openbookqa, mmlu"},
        {{"convert", "gsm8k", "x", "--letters"}, "gsm8k has no choices"},
        {{"convert", "piqa", "x"}, "piqa needs --answers FILE"},
        {{"convert", "arc", "x", "--answers", "y"}, "arc holds its answers"},
        {{"convert", "piqa", "x", "y", "--answers", "z"}, "for one file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cli_outcome outcome = cli_run(NULL, cases[i].arguments);
        cli_expect_text(outcome.err, "--help'.");
        cli_expect_failure(outcome, 2, cases[i].message);
    }
}

static void test_missing_files(void **state) {
    (void)state;
    cli_require_program();
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
        {{"routers", "-m", "/no/model", "/no/in", "/no/out"}},
        {{"route", "-m", "/no/model", "-f", "x"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cli_outcome outcome = cli_run(NULL, cases[i].arguments);
        cli_expect_text(outcome.err, cases[i].arguments[0]);
        cli_expect_failure(outcome, 1, "No such file or directory");
    }
    cli_expect_failure(RUN("run", "-m", tiny, "-f", "/no/file"), 1, "cannot open /no/file");
    cli_expect_failure(RUN("run", "-m", tiny, "-f", "/"), 1, "cannot read /: Is a directory");
    cli_expect_failure(RUN("perplexity", "-m", tiny, "-f", "/no/file"), 1, "cannot open /no/file");
    cli_expect_failure(RUN("score", "-m", tiny, "-d", "/no/file"), 1, "cannot open /no/file");
    cli_expect_failure(RUN("route", "-m", tiny, "-f", "/no/file"), 1, "cannot open /no/file");
    cli_expect_failure(RUN("routers", "-m", tiny, "/no/file", "/no/out"), 1, "/no/file");
    cli_expect_failure(RUN("run", "-m", cli_folder, "-p", "x"), 1, "drllm run: cannot open model: ");
}

static void test_damaged_models(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES];
    size_t size = 0;
    char *file = cli_read(tiny, &size);
    cli_path("damaged.gguf", path);
    const size_t sizes[] = {0, 3, 4, 20, 24, 100, 1000, size / 2, size - 40, size - 33};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        cli_write(path, file, sizes[i]);
        cli_expect_failure(RUN("run", "-m", path, "--raw", "-p", "x"), 1, "drllm run: cannot open model: ");
        cli_expect_failure(RUN("inspect", path), 1, "drllm inspect: cannot open ");
    }
    file[0] = 'g';
    cli_write(path, file, size);
    cli_expect_failure(RUN("run", "-m", path, "--raw", "-p", "x"), 1, "not a GGUF file");
    free(file);
}

/* ---- Output that cannot be written ---- */

static void test_full_disk(void **state) {
    (void)state;
    cli_require_program();
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
        {{"route", "-m", tiny, "-f", "/dev/null"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cli_outcome outcome = cli_finish(cli_start(NULL, "/dev/full", -1, cases[i].arguments), NULL);
        cli_expect_failure(outcome, 1, "No space left on device");
    }
    cli_expect_failure(cli_finish(cli_start("hello\n", "/dev/full", -1, ARGUMENTS("chat", "-m", tiny)), NULL), 1,
                       "No space left on device");
    struct cli_outcome outcome = RUN("logits", "-m", tiny, "-p", "a", "-o", "/dev/full");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "cannot write /dev/full: No space left on device");
    cli_outcome_free(&outcome);
}

static void test_broken_pipe(void **state) {
    (void)state;
    cli_require_program();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    cli_expect_failure(
        cli_finish(cli_start(NULL, NULL, ends[1], ARGUMENTS("run", "-m", tiny, "--raw", "-p", "a")), NULL), 1,
        "Broken pipe");
    cli_expect_failure(cli_finish(cli_start(NULL, NULL, ends[1], ARGUMENTS("inspect", tiny)), NULL), 1, "Broken pipe");
    close(ends[1]);
}

static void test_output_files(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES], copy[CLI_PATH_BYTES];
    size_t size = 0;
    cli_path("logits.f32", path);
    cli_path("link.f32", copy);
    cli_expect_success(RUN("logits", "-m", tiny, "-p", "a", "-o", path));
    char *first = cli_read(path, &size);
    assert_int_equal(size, CLI_N_VOCAB * 4);
    free(first);

    /* A run that fails leaves an older file alone; one that succeeds keeps its mode and follows a link to it. */
    cli_write(path, "old", 3);
    cli_expect_failure(RUN("logits", "-m", "/no/model", "-p", "a", "-o", path), 1, "No such file");
    char *old = cli_read(path, &size);
    assert_string_equal(old, "old");
    free(old);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(symlink("logits.f32", copy), 0);
    cli_expect_success(RUN("logits", "-m", tiny, "-p", "a", "-o", copy));
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    assert_int_equal(info.st_size, CLI_N_VOCAB * 4);
    assert_int_equal(lstat(copy, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    struct cli_outcome outcome = RUN("logits", "-m", tiny, "-p", "a", "-o", "/no/folder/file");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "cannot write /no/folder/file");
    cli_outcome_free(&outcome);

    /* Nothing is left under another name. */
    assert_int_equal(cli_count_files("logits.f32"), 1);
}

/* ---- What the subcommands do ---- */

static void test_run(void **state) {
    (void)state;
    cli_require_program();
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0"), "bcdefghijklmnopqrstuvwxyz\n");
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3"), "bcd\n");
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp=0", "--predict=3"), "bcd\n");
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "0"), "");
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "--stop", "q", "--stop", "fg"),
                      "bcde\n");
    cli_expect_output(RUN_INPUT("a\n", "run", "-m", tiny, "--raw", "-f", "-", "--temp", "0", "-n", "2"), "bc\n");
    cli_expect_output(RUN("run", "-m", tiny, "-p", "anything", "--temp", "0"), "ABC\n");
    cli_expect_output(RUN("run", "-m", tiny, "-p", "-x", "--temp", "0", "--system", "s", "-s", "-1"), "ABC\n");
    cli_expect_output(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3", "-q", "-t", "0", "-c", "0"),
                      "bcd\n");
    cli_expect_failure(RUN("run", "-m", no_chat, "-p", "a"), 1, "--raw");
    cli_expect_failure(RUN("run", "-m", tiny, "--raw", "-p", "aaaaaaaaaaaaaaaa", "-c", "8"), 1, "the context holds 8");
    cli_expect_failure(RUN("run", "-m", tiny, "-p", "a", "-s", "-3"), 2, "--seed");

    struct cli_outcome timed = RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3");
    cli_expect_text(timed.err, "tokens/s");
    cli_outcome_free(&timed);
    struct cli_outcome quiet = RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "3", "--quiet");
    assert_string_equal(quiet.err, "");
    cli_outcome_free(&quiet);
}

static void test_run_json(void **state) {
    (void)state;
    cli_require_program();
    cJSON *json = cli_expect_json(
        RUN_INPUT("\"\\\t\x01 x", "run", "-m", tiny, "--raw", "-f", "-", "--temp", "0", "--json", "-s", "7"));
    assert_string_equal(cli_string(json, "prompt"), "\"\\\t\x01 x");
    assert_string_equal(cli_string(json, "text"), "yz");
    assert_string_equal(cli_string(json, "stop_reason"), "end");
    assert_int_equal(cli_number(json, "n_generated"), 3);
    assert_int_equal(cli_number(json, "seed"), 7);
    assert_true(cli_number(json, "n_prompt") > 5);
    const cJSON *tokens = cli_list(json, "tokens", -1);
    assert_true(cJSON_GetArraySize(tokens) == 2 || cJSON_GetArraySize(tokens) == 3);
    assert_int_equal(cJSON_GetArrayItem(tokens, 0)->valueint, TINY_FIRST_BYTE + 'y');
    assert_true(cli_number(cJSON_GetObjectItem(json, "timings"), "load_ms") > 0);
    cJSON_Delete(json);

    /* Held back because it may begin a stop string, and in the end is none. */
    json = cli_expect_json(RUN("run", "-m", tiny, "--raw", "-p", "w", "--temp", "0", "--stop", "zz", "--json"));
    assert_string_equal(cli_string(json, "text"), "xyz");
    assert_true(cJSON_GetArraySize(cli_list(json, "tokens", -1)) <= 4);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-n", "2", "--json"));
    assert_string_equal(cli_string(json, "stop_reason"), "length");
    cli_list(json, "tokens", 2);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("run", "-m", tiny, "--raw", "-p", "a", "--temp", "0", "-c", "8", "--json"));
    assert_string_equal(cli_string(json, "stop_reason"), "context");
    cJSON_Delete(json);
}

static void test_chat(void **state) {
    (void)state;
    cli_require_program();
    /* No prompt characters on a pipe, in neither stream. */
    struct cli_outcome outcome = RUN_INPUT("hello\nhow are\\\nyou\n\n/reset\nagain", "chat", "-m", tiny, "--temp", "0");
    cli_expect_text(outcome.err, "(the conversation is forgotten)");
    assert_null(strchr(outcome.err, '>'));
    assert_null(strchr(outcome.err, '\033'));
    cli_expect_output(outcome, "ABC\nABC\nABC\n");

    outcome = RUN_INPUT("/help\n/nothing\n/quit\nhello\n", "chat", "-m", tiny);
    cli_expect_text(outcome.err, "/reset ");
    cli_expect_text(outcome.err, "unknown command /nothing");
    cli_expect_output(outcome, "");
    cli_expect_output(RUN_INPUT("", "chat", "-m", tiny), "");
    cli_expect_failure(RUN_INPUT("hello\n", "chat", "-m", no_chat), 1, "run --raw");

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
    cli_expect_output(outcome, "ABC\nABC\n");

    /* Old turns make room; a message that does not fit alone is refused, and the conversation goes on. */
    char input[1024];
    (void)snprintf(input, sizeof input, "one\ntwo\nthree\nfour\n%0600d\nfive\n", 0);
    outcome = RUN_INPUT(input, "chat", "-m", tiny, "--temp", "0", "-c", "280");
    cli_expect_text(outcome.err, "oldest turns forgotten");
    cli_expect_text(outcome.err, "too long for a context of 280 tokens");
    cli_expect_output(outcome, "ABC\nABC\nABC\nABC\nABC\n");
}

static void test_score(void **state) {
    (void)state;
    cli_require_program();
    cJSON *json = cli_expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "ab", "--choice", "a", "--json"));
    const cJSON *choices = cli_list(json, "choices", 2);
    assert_true(cJSON_GetArraySize(cli_list(json, "prompt_tokens", -1)) > 1);
    const cJSON *choice;
    cJSON_ArrayForEach(choice, choices) {
        assert_true(cli_number(choice, "log_prob") < 0.0);
        assert_true(fabs(cli_number(choice, "score") -
                         cli_number(choice, "log_prob") / (double)strlen(cli_string(choice, "text"))) < 1e-9);
    }
    cJSON_Delete(json);
    json =
        cli_expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json", "--normalize", "none"));
    choice = cJSON_GetArrayItem(cli_list(json, "choices", 1), 0);
    const double log_prob = cli_number(choice, "log_prob");
    const int n_tokens = cJSON_GetArraySize(cli_list(choice, "tokens", -1));
    assert_true(cli_number(choice, "score") == log_prob);
    cJSON_Delete(json);
    json = cli_expect_json(
        RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json", "--normalize", "tokens"));
    choice = cJSON_GetArrayItem(cli_list(json, "choices", 1), 0);
    assert_true(fabs(cli_number(choice, "score") - log_prob / n_tokens) < 1e-9);
    cJSON_Delete(json);
    /* Two characters in three bytes. */
    json = cli_expect_json(RUN("score", "-m", tiny, "-p", "x", "--choice", "\xc3\xa4z", "--json"));
    choice = cJSON_GetArrayItem(cli_list(json, "choices", 1), 0);
    assert_true(fabs(cli_number(choice, "score") - log_prob / 2) < 1e-9);
    cJSON_Delete(json);

    struct cli_outcome outcome = RUN("score", "-m", tiny, "-p", "x", "--choice", "a", "--choice", "b");
    cli_expect_text(outcome.out, "* ");
    cli_expect_success(outcome);
    cli_expect_failure(RUN("score", "-m", tiny, "-p", "x", "--choice", ""), 1, "choice 0 is empty");
    cli_expect_failure(RUN("score", "-m", tiny, "-p", "xxxxxxxxxxx", "--choice", "y", "-c", "4"), 1, "cannot score");
}

static void test_score_batch(void **state) {
    (void)state;
    cli_require_program();
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
    struct cli_outcome outcome = RUN_INPUT(lines, "score", "-m", tiny, "-d", "-");
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "-, line 5: ");
    cli_expect_text(outcome.err, "9 bad lines");
    cli_expect_text(outcome.err, "accuracy: 2 of 3 (66.67 %)");
    const char *line = outcome.out;
    for (int i = 1; i <= 13; i++) { /* a line out for each line in */
        const char *end = NULL;
        cJSON *json = cJSON_ParseWithOpts(line, &end, false);
        assert_non_null(json);
        assert_int_equal(cli_number(json, "line"), i);
        const bool good = i <= 3 || i == 13;
        assert_int_equal(cJSON_HasObjectItem(json, "error"), !good);
        assert_int_equal(cJSON_HasObjectItem(json, "best"), good);
        assert_int_equal(*end, '\n');
        line = end + 1;
        cJSON_Delete(json);
    }
    assert_string_equal(line, "");
    cli_outcome_free(&outcome);
    cli_expect_output(RUN_INPUT("", "score", "-m", tiny, "-d", "-"), "");
}

static void test_perplexity(void **state) {
    (void)state;
    cli_require_program();
    char text[600];
    memset(text, 'q', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    cJSON *json =
        cli_expect_json(RUN_INPUT(text, "perplexity", "-m", tiny, "-f", "-", "-c", "64", "--chunks", "3", "--json"));
    assert_int_equal(cli_number(json, "n_chunks"), 3);
    assert_int_equal(cli_number(json, "n_predictions"), 3 * 31);
    assert_true(cli_number(json, "perplexity") > 1.0);
    cJSON_Delete(json);
    struct cli_outcome outcome = RUN_INPUT(text, "perplexity", "-m", tiny, "-f", "-", "-c", "64");
    cli_expect_text(outcome.out, "PPL = ");
    cli_expect_text(outcome.out, " +- ");
    cli_expect_text(outcome.err, "chunk 9 of 9");
    cli_expect_success(outcome);
    cli_expect_failure(RUN_INPUT("short", "perplexity", "-m", tiny, "-f", "-"), 1, "fewer than a chunk of 512");
}

static void test_logits(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES], layers[CLI_PATH_BYTES];
    size_t size = 0;
    cli_path("l.f32", path);
    cli_path("layers.f32", layers);
    struct cli_outcome outcome =
        RUN("logits", "-m", tiny, "--ids", "1,100,101", "-o", path, "--layers", layers, "--print-ids");
    cli_expect_text(outcome.out, "tokens: 1,100,101\n");
    cli_expect_success(outcome);
    char *data = cli_read(layers, &size);
    assert_int_equal(size, 4 * 288 * 4);
    free(data);
    data = cli_read(path, &size);
    outcome = RUN("logits", "-m", tiny, "--ids", "[1, 100, 101]", "-o", "-");
    cli_expect_code(&outcome, 0);
    assert_int_equal(outcome.out_size, size);
    assert_memory_equal(outcome.out, data, size);
    cli_expect_text(outcome.err, "probability");
    cli_outcome_free(&outcome);
    free(data);
    cli_expect_failure(RUN("logits", "-m", tiny, "--ids", "1,260"), 1, "'260' is not a token id from 0 to 259");
    cli_expect_failure(RUN("logits", "-m", tiny, "--ids", "1,-1"), 1, "'-1' is not a token id");
    cli_expect_failure(RUN("logits", "-m", tiny, "--ids", " "), 1, "there are no tokens");
    cli_expect_failure(RUN("logits", "-m", tiny, "--ids", "1,2,3,4,5", "-c", "4"), 1, "context");
}

/* Of the first line, outside of quotes. */
static size_t count_commas(const char *text) {
    size_t n = 0;
    for (bool quoted = false; *text != '\n' && *text != '\0'; text++) {
        quoted = (*text == '"') != quoted;
        n += *text == ',' && !quoted;
    }
    return n;
}

static void test_bench(void **state) {
    (void)state;
    cli_require_program();
    cJSON *json =
        cli_expect_json(RUN("bench", "-m", tiny, "-p", "16,8", "-n", "4", "-t", "1", "-r", "2", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 3);
    for (int i = 0; i < 3; i++) {
        const cJSON *row = cJSON_GetArrayItem(json, i);
        assert_int_equal(cli_number(row, "n_prompt"), i == 0 ? 16 : i == 1 ? 8 : 0);
        assert_int_equal(cli_number(row, "n_gen"), i == 2 ? 4 : 0);
        assert_int_equal(cli_number(row, "n_threads"), 1);
        assert_true(cli_number(row, "avg_ts") > 0 && cli_number(row, "stddev_ts") >= 0 &&
                    cli_number(row, "median_ts") > 0);
        assert_true(cli_number(row, "peak_memory") > 0 && cli_number(row, "load_ms") > 0 &&
                    cli_number(row, "bandwidth") > 0);
        cli_list(row, "samples_ts", 2);
        cli_list(row, "samples_ns", 2);
        assert_string_equal(cli_string(row, "model_filename"), tiny);
        assert_non_null(cli_string(row, "model_type"));
        static const char *const of_tokens[] = {"share_of_bandwidth", "token_ms_median",   "token_ms_p99",
                                                "token_ms_max",       "reading_ms_median", "reading_ms_p99",
                                                "reading_ms_max"};
        for (size_t k = 0; k < sizeof of_tokens / sizeof of_tokens[0]; k++) {
            const cJSON *number = cJSON_GetObjectItem(row, of_tokens[k]);
            assert_true(i == 2 ? cJSON_IsNumber(number) : cJSON_IsNull(number));
        }
        cli_list(row, "token_lateness", i == 2 ? 8 : 0);
        cli_list(row, "reading_lateness", i == 2 ? 8 : 0);
    }
    cJSON_Delete(json);
    struct cli_outcome outcome = RUN("bench", "-m", tiny, "-m", no_chat, "-p", "4", "-n", "2", "-r", "1", "-t", "1");
    cli_expect_text(outcome.out, "| pp4 |");
    cli_expect_text(outcome.out, "| tg2 |");
    cli_expect_text(outcome.out, "| only reading ");
    cli_expect_text(outcome.out, "Peak memory: ");
    cli_expect_success(outcome);
    outcome = RUN("bench", "-m", tiny, "-p", "4", "-n", "2", "-r", "1", "-o", "csv", "-t", "1");
    assert_ptr_equal(strstr(outcome.out, "model_filename,"), outcome.out);
    const size_t n_columns = count_commas(outcome.out); /* of the head, of a prompt and of a generation */
    assert_true(n_columns > 20);
    const char *line = outcome.out;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(count_commas(line), n_columns);
        line = strchr(line, '\n') + 1;
    }
    cli_expect_success(outcome);
    cli_expect_failure(RUN("bench", "-m", tiny, "-p", "0", "-n", "0"), 2, "nothing to measure");
}

static void test_inspect(void **state) {
    (void)state;
    cli_require_program();
    struct cli_outcome outcome = RUN("inspect", tiny);
    cli_expect_text(outcome.out, "general.architecture: string = \"llama\"");
    cli_expect_text(outcome.out, "token_embd.weight");
    cli_expect_text(outcome.out, "\nmemory at a context of 2048: ");
    cli_expect_success(outcome);
    cJSON *json = cli_expect_json(RUN("inspect", "-m", tiny, "--json"));
    bool found = false;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, cli_list(json, "metadata", -1)) {
        if (strcmp(cli_string(entry, "key"), "tokenizer.ggml.tokens") == 0) {
            assert_int_equal(cli_number(entry, "count"), CLI_N_VOCAB);
            cli_list(entry, "value", 4);
            found = true;
        }
    }
    assert_true(found);
    assert_true(cJSON_GetArraySize(cli_list(json, "tensors", -1)) > 10);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("inspect", tiny, "--json", "--all"));
    cJSON_ArrayForEach(entry, cli_list(json, "metadata", -1)) {
        if (strcmp(cli_string(entry, "key"), "tokenizer.ggml.tokens") == 0) {
            cli_list(entry, "value", CLI_N_VOCAB);
        }
    }
    cJSON_Delete(json);
}

static void test_tokenize(void **state) {
    (void)state;
    cli_require_program();
    struct cli_outcome ids = RUN("tokenize", "-m", tiny, "-p", "az\xe2\x82\xac", "-p", "b");
    cli_expect_code(&ids, 0);
    assert_non_null(strchr(ids.out, '\n'));
    cli_expect_output(RUN_INPUT(ids.out, "tokenize", "-m", tiny, "--decode", "-f", "-", "--lines"),
                      "az\xe2\x82\xac\nb\n");
    cli_outcome_free(&ids);
    ids = RUN_INPUT("a\nb\n", "tokenize", "-m", tiny, "-f", "-");
    cli_expect_code(&ids, 0);
    cli_expect_output(RUN_INPUT(ids.out, "tokenize", "-m", tiny, "--decode", "-f", "-"), "a\nb\n"); /* nothing added */
    cli_outcome_free(&ids);
    struct cli_outcome lines = RUN_INPUT("a\n\nb", "tokenize", "-m", tiny, "-f", "-", "--lines");
    cli_expect_code(&lines, 0);
    size_t n = 0;
    for (const char *p = lines.out; *p != '\0'; p++) {
        n += *p == '\n';
    }
    assert_int_equal(n, 3);
    cli_outcome_free(&lines);
    struct cli_outcome bos = RUN("tokenize", "-m", tiny, "-p", "</s>", "--special", "--bos");
    cli_expect_code(&bos, 0);
    assert_ptr_equal(strstr(bos.out, "1 "), bos.out);
    cli_expect_text(bos.out, " 2\n");
    cli_outcome_free(&bos);
    cli_expect_failure(RUN("tokenize", "-m", tiny, "--decode", "-p", "9999"), 1, "'9999' is not a token id");
    cli_expect_failure(RUN("tokenize", "-m", tiny, "--decode", "-p", "1 x"), 1, "'x' is not a token id");
}

static void test_quantize(void **state) {
    (void)state;
    cli_require_program();
    static const char *const types[] = {"f32", "f16", "bf16", "q4_0", "q4_1", "q8_0", "q8c"};
    char path[CLI_PATH_BYTES], again[CLI_PATH_BYTES];
    size_t before = 0, after = 0;
    char *input = cli_read(tiny, &before);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        for (int pure = 0; pure < 2; pure++) {
            (void)snprintf(path, sizeof path, "%s/%s%d.gguf", cli_folder, types[i], pure);
            (void)snprintf(again, sizeof again, "%s/again-%s%d.gguf", cli_folder, types[i], pure);
            cli_expect_success(RUN("quantize", tiny, path, types[i], pure ? "--pure" : "--force"));
            /* What was written is a model, and can be quantised again. */
            cli_expect_success(RUN("run", "-m", path, "--raw", "-p", "a", "-n", "2"));
            cli_expect_success(RUN("quantize", path, again, "q8_0", "-t", "1", "-q"));
            cli_expect_success(RUN("run", "-m", again, "--raw", "-p", "a", "-n", "2"));
        }
    }
    struct cli_outcome outcome = RUN("inspect", cli_path("q8c0.gguf", path));
    cli_expect_text(outcome.out, "drllm.quantization: string = \"q8c\"");
    cli_expect_text(outcome.out, "blk.0.attn_q.weight_scale");
    cli_expect_text(outcome.out, "general.quantization_version: u32 = 2");
    assert_null(strstr(outcome.out, "token_embd.weight_scale"));
    cli_expect_success(outcome);
    outcome = RUN("inspect", cli_path("again-q8c0.gguf", path));
    assert_null(strstr(outcome.out, "_scale"));
    assert_null(strstr(outcome.out, "drllm.quantization"));
    cli_expect_text(outcome.out, "general.file_type: u32 = 7");
    cli_expect_success(outcome);
    /* The same format is the same weights. */
    cli_expect_output(RUN("run", "-m", cli_path("f320.gguf", path), "--raw", "-p", "a", "--temp", "0"),
                      "bcdefghijklmnopqrstuvwxyz\n");

    cli_expect_failure(RUN("quantize", tiny, path, "q8_0"), 1, "--force");
    cli_expect_failure(RUN("quantize", tiny, tiny, "q8_0", "--force"), 1, "is the input");
    cli_expect_failure(RUN("quantize", tiny, "/no/folder/out", "q8_0"), 1, "cannot write the model");
    char *output = cli_read(tiny, &after);
    assert_int_equal(after, before);
    assert_memory_equal(output, input, before);
    free(input);
    free(output);
}

/* ---- The real model ---- */

static void test_real_answers(void **state) {
    (void)state;
    const char *model = cli_require_model();
    cli_expect_output(RUN("run", "-m", model, "--raw", "-p", "The capital of France is", "-n", "1", "--temp", "0"),
                      " Paris\n");
    cJSON *json = cli_expect_json(RUN("score", "-m", model, "-p", "The capital of France is", "--choice", " London",
                                      "--choice", " Paris", "--json"));
    assert_int_equal(cli_number(json, "best"), 1);
    cJSON_Delete(json);
    cli_expect_output(RUN("tokenize", "-m", model, "-p", "Hello world", "-p", "<|im_start|>", "--special"),
                      "19556 905\n1\n");
    struct cli_outcome outcome = RUN("inspect", model);
    cli_expect_text(outcome.out, "q4_1");
    cli_expect_success(outcome);
    json = cli_expect_json(RUN("bench", "-m", model, "-p", "16", "-n", "4", "-r", "1", "-o", "json"));
    assert_int_equal(cJSON_GetArraySize(json), 2);
    cJSON_Delete(json);
}

static void test_real_seeds(void **state) {
    (void)state;
    const char *model = cli_require_model();
    struct cli_outcome first = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "5", "-t", "1");
    struct cli_outcome second = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "5", "-t", "2");
    struct cli_outcome third = RUN("run", "-m", model, "-p", "Tell a story.", "-n", "16", "-s", "6");
    cli_expect_code(&first, 0);
    assert_string_equal(first.out, second.out);
    assert_string_not_equal(first.out, third.out);
    cli_outcome_free(&first);
    cli_outcome_free(&second);
    cli_outcome_free(&third);
}

static void test_real_chat(void **state) {
    (void)state;
    const char *model = cli_require_model();
    /* After /reset the same question gets the same answer: nothing is left of the turns before. */
    struct cli_outcome outcome = RUN_INPUT("Say hello.\n/reset\nThe sky is blue.\n/reset\nSay hello.\n/quit\n", "chat",
                                           "-m", model, "--temp", "0", "-n", "12");
    cli_expect_code(&outcome, 0);
    struct cli_outcome once = RUN_INPUT("Say hello.\n", "chat", "-m", model, "--temp", "0", "-n", "12");
    const size_t size = strlen(once.out);
    assert_true(size > 1 && outcome.out_size >= 2 * size);
    assert_memory_equal(outcome.out, once.out, size);
    assert_memory_equal(outcome.out + outcome.out_size - size, once.out, size);
    cli_outcome_free(&outcome);
    cli_outcome_free(&once);
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
    const char *model = cli_require_model();
    char out_path[CLI_PATH_BYTES];
    cli_path("stdout", out_path);
    cli_write(out_path, "", 0);
    const pid_t pid = cli_start(NULL, out_path, -1,
                                ARGUMENTS("run", "-m", model, "-p", "Tell a long story.", "--ignore-eos", "-c", "0"));
    for (int i = 0; i < 6000 && file_size(out_path) == 0; i++) {
        sleep_ms(10);
    }
    kill(pid, SIGINT);
    struct cli_outcome outcome = cli_finish(pid, out_path);
    cli_expect_code(&outcome, 130);
    assert_true(outcome.out_size > 0);
    cli_expect_text(outcome.err, "stopped by: interrupted");
    cli_outcome_free(&outcome);
}

/* ---- */

static int set_up(void **state) {
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    cli_write_spoken_model(cli_path("tiny.gguf", tiny), 3, true);
    cli_write_spoken_model(cli_path("no-chat.gguf", no_chat), 3, false);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    return cli_remove_folder();
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
