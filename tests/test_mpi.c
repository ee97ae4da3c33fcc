/* `drllm search` over the ranks of mpirun: the same labels as from one process, whatever stops a rank on the way.
 *
 * Environment: DRLLM_TEST_MPI_PROGRAM is the program of a build with MPI=1, beside DRLLM_TEST_PROGRAM of one without. */
#include "tests/cli.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_TASKS = 4, N_QUESTIONS = 64 };

static char model[CLI_PATH_BYTES], data[CLI_PATH_BYTES], whole[CLI_PATH_BYTES], out[CLI_PATH_BYTES];

static int make_files(void **state) {
    (void)state;
    static const char *const pieces[] = {"\xe2\x96\x81"};
    static const char *const tasks[N_TASKS] = {"first", "second", "third", "fourth"};
    if (cli_make_folder() != 0) {
        return -1;
    }
    struct tiny_options options = tiny_default_options();
    options.n_layers = 4;
    options.d_model = options.d_ff = 32;
    options.n_heads = 2;
    options.n_kv_heads = 1;
    options.n_vocab = CLI_N_VOCAB;
    options.blocks = options.down = options.embedding = DRLLM_FORMAT_F32;
    options.pieces = pieces;
    cli_write_model(cli_path("model.gguf", model), &options, "tiny", false);
    FILE *file = fopen(cli_path("data.jsonl", data), "wb");
    uint64_t random = 3;
    assert_non_null(file);
    for (size_t i = 0; i < N_QUESTIONS; i++) {
        (void)fprintf(file, "{\"task\": \"%s\", \"prompt\": \"question %08x\", ", tasks[i % N_TASKS],
                      (unsigned)drllm_random(&random));
        (void)fprintf(file, "\"choices\": [\"k\", \"l\", \"m\"], \"answer\": %u}\n",
                      (unsigned)(drllm_random(&random) % 3));
    }
    cli_path("whole.jsonl", whole);
    cli_path("out.jsonl", out);
    return fclose(file);
}

static int remove_files(void **state) {
    (void)state;
    return cli_remove_folder();
}

static void require_mpi(void) {
    cli_require_program();
    if (getenv("DRLLM_TEST_MPI_PROGRAM") == NULL) {
        drllm_skip("DRLLM_TEST_MPI_PROGRAM names no program");
    }
}

#define OPTIONS_OF(path) "search", "-m", model, "-d", data, "-o", path, "--reward", "soft"
#define SPREAD(...) cli_finish(start_ranks(ARGUMENTS(__VA_ARGS__)), printed())

static const char *printed(void) {
    static char path[CLI_PATH_BYTES];
    return cli_path("printed", path);
}

static char *copy_of(const char *variable) {
    const char *value = getenv(variable);
    return strdup(value != NULL ? value : "");
}

/* Two ranks, as root and on one core, too. */
static pid_t start_ranks(const char *const *arguments) {
    static const char mpirun[] = "mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2";
    char *program = copy_of("DRLLM_TEST_PROGRAM"), *spread = copy_of("DRLLM_TEST_MPI_PROGRAM");
    char *emulator = copy_of("DRLLM_TEST_EMULATOR");
    assert_int_equal(setenv("DRLLM_TEST_PROGRAM", spread, 1), 0);
    assert_int_equal(setenv("DRLLM_TEST_EMULATOR", mpirun, 1), 0);
    const pid_t pid = cli_start(NULL, printed(), -1, arguments);
    assert_int_equal(setenv("DRLLM_TEST_PROGRAM", program, 1), 0);
    assert_int_equal(setenv("DRLLM_TEST_EMULATOR", emulator, 1), 0);
    free(program);
    free(spread);
    free(emulator);
    return pid;
}

/* And the ranks' files are gone. */
static void expect_whole(void) {
    size_t size_a = 0, size_b = 0;
    char *a = cli_read(whole, &size_a), *b = cli_read(out, &size_b);
    assert_true(size_a > 0);
    assert_string_equal(a, b);
    assert_int_equal(cli_count_files("out.jsonl"), 1);
    assert_int_equal(unlink(out), 0);
    free(a);
    free(b);
}

static void expect_no_text(const char *text, const char *part) {
    if (strstr(text, part) != NULL) {
        fail_msg("'%s' is in: %.600s", part, text);
    }
}

static void test_same_labels(void **state) {
    (void)state;
    require_mpi();
    cli_expect_success(RUN(OPTIONS_OF(whole)));
    struct cli_outcome outcome = SPREAD(OPTIONS_OF(out));
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.out, "first: 12 questions searched on, 4 verify");
    cli_expect_text(outcome.out, "fourth: 12 questions searched on, 4 verify");
    const char *sum = strstr(outcome.err, "hidden states reused");
    assert_non_null(sum);
    expect_no_text(sum + 1, "hidden states reused"); /* said once */
    cli_outcome_free(&outcome);
    expect_whole();
    /* Without a word of how many threads, and with fewer groups than ranks. */
    cli_expect_success(SPREAD(OPTIONS_OF(out), "-t", "0"));
    expect_whole();
    cli_expect_success(RUN(OPTIONS_OF(whole), "--per", "cluster", "--clusters", "1"));
    cli_expect_success(SPREAD(OPTIONS_OF(out), "--per", "cluster", "--clusters", "1"));
    expect_whole();
}

/* The second rank cannot write; the first keeps what it found and does not search again. */
static void test_failing_rank(void **state) {
    (void)state;
    char folder[CLI_PATH_BYTES];
    require_mpi();
    cli_expect_success(RUN(OPTIONS_OF(whole)));
    assert_int_equal(mkdir(cli_path("out.jsonl.rank-2-of-2.state", folder), 0700), 0);
    struct cli_outcome outcome = SPREAD(OPTIONS_OF(out));
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "rank-2-of-2.state");
    cli_expect_text(outcome.err, "the same command with 2 ranks goes on from");
    cli_expect_text(outcome.err, "first: ");
    cli_outcome_free(&outcome);
    assert_true(access(out, F_OK) != 0);
    assert_int_equal(cli_count_files("out.jsonl.rank-1-of-2"), 2);
    assert_int_equal(rmdir(folder), 0);
    outcome = SPREAD(OPTIONS_OF(out));
    cli_expect_code(&outcome, 0);
    expect_no_text(outcome.err, "first: ");
    cli_expect_text(outcome.err, "second: ");
    cli_outcome_free(&outcome);
    expect_whole();
}

static void test_stopped(void **state) {
    (void)state;
    char path[CLI_PATH_BYTES];
    require_mpi();
    const char *const *arguments =
        ARGUMENTS(OPTIONS_OF(out), "--per", "example", "--method", "tree", "--simulations", "1000000", "-t", "1");
    cli_path("out.jsonl.rank-2-of-2.state", path);
    const pid_t pid = start_ranks(arguments);
    cli_wait_for_file(path, 60);
    kill(pid, SIGINT);
    struct cli_outcome outcome = cli_finish(pid, printed());
    assert_int_not_equal(outcome.code, 0);
    cli_outcome_free(&outcome);
    assert_true(access(out, F_OK) != 0);
    cli_expect_success(RUN(OPTIONS_OF(whole)));
    cli_expect_success(SPREAD(OPTIONS_OF(out), "--restart"));
    expect_whole();
}

/* Labels are written, and the exit says that lines were left out. */
static void test_wrong_use(void **state) {
    (void)state;
    require_mpi();
    struct cli_outcome outcome = SPREAD(OPTIONS_OF(out), "--shard", "1/2");
    cli_expect_code(&outcome, 2);
    cli_expect_text(outcome.err, "--shard goes without mpirun");
    cli_outcome_free(&outcome);
    FILE *file = fopen(data, "ab");
    assert_non_null(file);
    (void)fputs("nonsense\n", file);
    assert_int_equal(fclose(file), 0);
    outcome = RUN(OPTIONS_OF(whole));
    cli_expect_code(&outcome, 1);
    cli_outcome_free(&outcome);
    outcome = SPREAD(OPTIONS_OF(out));
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "data.jsonl, line 65: ");
    cli_outcome_free(&outcome);
    expect_whole();
}

int drllm_test_mpi(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_labels),
        cmocka_unit_test(test_failing_rank),
        cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_wrong_use),
    };
    return drllm_run_group("mpi", tests, make_files, remove_files);
}
