/* Questions: reading them, matching answers, converting the formats of others, and sharing work on them. */
#include "tests/cli.h"
#include "tools/answers.h"
#include "tools/interrupt.h"
#include "tools/questions.h"
#include "tools/workers.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct command command = {.name = "test"};

static char tiny[CLI_PATH_BYTES];
static char data_path[CLI_PATH_BYTES];
static char out_path[CLI_PATH_BYTES];

/* ---- Messages ---- */

static int stderr_before;

static void keep_messages(void) {
    char path[CLI_PATH_BYTES];
    (void)fflush(stderr);
    stderr_before = dup(STDERR_FILENO);
    const int descriptor = open(cli_path("messages", path), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(stderr_before >= 0 && descriptor >= 0);
    assert_true(dup2(descriptor, STDERR_FILENO) >= 0);
    close(descriptor);
}

/* To be freed. */
static char *kept_messages(void) {
    char path[CLI_PATH_BYTES];
    size_t size = 0;
    (void)fflush(stderr);
    assert_true(dup2(stderr_before, STDERR_FILENO) >= 0);
    close(stderr_before);
    return cli_read(cli_path("messages", path), &size);
}

/* ---- Reading ---- */

static struct questions read_lines(const char *lines, bool prompt_only, char **messages) {
    struct questions questions = {NULL, 0, 0};
    cli_write(data_path, lines, strlen(lines));
    keep_messages();
    const int code = questions_read(&command, data_path, prompt_only, &questions);
    *messages = kept_messages();
    assert_int_equal(code, TOOL_OK);
    return questions;
}

static void test_read(void **state) {
    (void)state;
    char *messages;
    struct questions questions = read_lines(
        "{\"task\": \"a\", \"prompt\": \"P\", \"choices\": [\" x\", \" y\"], \"answer\": 1, \"else\": {}}\n"
        "{\"prompt\": \"Q\", \"choices\": [\" x\"], \"task\": null, \"answer\": null}\r\n"
        "{\"task\": \"b\", \"prompt\": \"R\", \"answer\": \"7\", \"match\": \"number\", \"max_tokens\": 5}\n"
        "{\"task\": \"a\", \"prompt\": \"\", \"answer\": \"B\", \"match\": \"letter\", \"program\": \"0-3,5\"}",
        false, &messages);
    assert_string_equal(messages, "");
    assert_int_equal(questions.count, 4);
    assert_int_equal(questions.n_bad, 0);
    const struct question *q = questions.items;
    assert_string_equal(q[0].task, "a");
    assert_string_equal(q[0].prompt, "P");
    assert_int_equal(q[0].n_choices, 2);
    assert_string_equal(q[0].choices[1], " y");
    assert_int_equal(q[0].answer, 1);
    assert_int_equal(q[0].match, MATCH_CHOICE);
    assert_int_equal(q[0].line, 1);
    assert_ptr_equal(q[0].file, data_path);
    assert_null(q[0].program);
    assert_string_equal(q[1].task, "");
    assert_true(q[1].answer == SIZE_MAX);
    assert_int_equal(q[2].match, MATCH_NUMBER);
    assert_string_equal(q[2].answer_text, "7");
    assert_int_equal(q[2].max_tokens, 5);
    assert_int_equal(q[2].n_choices, 0);
    assert_int_equal(q[3].line, 4);
    assert_int_equal(q[3].match, MATCH_LETTER);
    assert_true(q[3].max_tokens > 0);
    assert_string_equal(q[3].program, "0-3,5");

    const char **names;
    size_t *task_of;
    assert_int_equal(questions_tasks(&questions, &names, &task_of), 3);
    static const char *const expected[] = {"a", "", "b"};
    static const size_t expected_of[] = {0, 1, 2, 0};
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(names[i], expected[i]);
    }
    assert_memory_equal(task_of, expected_of, sizeof expected_of);
    free((void *)names);
    free(task_of);

    /* A second file goes behind the first. */
    char other[CLI_PATH_BYTES];
    cli_path("other", other);
    cli_write(other, "{\"prompt\": \"S\", \"choices\": [\"z\"]}\n", 34);
    assert_int_equal(questions_read(&command, other, false, &questions), TOOL_OK);
    assert_int_equal(questions.count, 5);
    assert_ptr_equal(questions.items[4].file, other);
    assert_int_equal(questions.items[4].line, 1);
    free(messages);
    questions_release(&questions);
    questions_release(&questions);
}

static const struct {
    const char *line, *message;
    bool has_prompt;
} bad_lines[] = {
    {"", "no JSON", false},
    {"{\"prompt\": \"x\"", "no JSON", false},
    {"[1]", "no JSON object", false},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"]} {}", "something follows", false},
    {"{\"prompt\": \"x\\u0000y\", \"choices\": [\"a\"]}", "bad \\u escape", false},
    {"{\"prompt\": \"x\\uzzzz\", \"choices\": [\"a\"]}", "bad \\u escape", false},
    {"{\"choices\": [\"a\"]}", "no text \"prompt\"", false},
    {"{\"prompt\": 3, \"choices\": [\"a\"]}", "no text \"prompt\"", false},
    {"{\"prompt\": \"x\", \"task\": 1, \"choices\": [\"a\"]}", "\"task\" is no text", false},
    {"{\"prompt\": \"x\", \"program\": [], \"choices\": [\"a\"]}", "\"program\" is no text", false},
    {"{\"prompt\": \"x\"}", "neither \"choices\" nor \"match\"", true},
    {"{\"prompt\": \"x\", \"answer\": \"y\"}", "neither \"choices\" nor \"match\"", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"match\": \"exact\"}", "both \"choices\" and \"match\"", true},
    {"{\"prompt\": \"x\", \"choices\": []}", "no list of texts", true},
    {"{\"prompt\": \"x\", \"choices\": {\"a\": 1}}", "no list of texts", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\", 2]}", "a choice is no text", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\", \"\"]}", "or an empty one", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": 1}", "not the index", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": -1}", "not the index", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": 0.5}", "not the index", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": 1e99}", "not the index", true},
    {"{\"prompt\": \"x\", \"choices\": [\"a\"], \"answer\": \"0\"}", "not the index", true},
    {"{\"prompt\": \"x\", \"match\": \"fuzzy\", \"answer\": \"a\"}", "none of exact", true},
    {"{\"prompt\": \"x\", \"match\": 1, \"answer\": \"a\"}", "none of exact", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\"}", "no text \"answer\"", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\", \"answer\": 3}", "no text \"answer\"", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\", \"answer\": \" . \"}", "\"answer\" is empty", true},
    {"{\"prompt\": \"x\", \"match\": \"contains\", \"answer\": \" \"}", "\"answer\" is empty", true},
    {"{\"prompt\": \"x\", \"match\": \"letter\", \"answer\": \"two\"}", "no letter", true},
    {"{\"prompt\": \"x\", \"match\": \"number\", \"answer\": \"two\"}", "no number", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\", \"answer\": \"a\", \"max_tokens\": 0}", "max_tokens", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\", \"answer\": \"a\", \"max_tokens\": 1.5}", "max_tokens", true},
    {"{\"prompt\": \"x\", \"match\": \"exact\", \"answer\": \"a\", \"max_tokens\": 1048577}", "max_tokens", true},
};

static void test_bad_lines(void **state) {
    (void)state;
    static const char good[] = "{\"prompt\": \"p\", \"choices\": [\"a\"], \"answer\": 0}\n";
    for (size_t i = 0; i < sizeof bad_lines / sizeof bad_lines[0]; i++) {
        char lines[512];
        (void)snprintf(lines, sizeof lines, "%s%s\n%s", good, bad_lines[i].line, good);
        for (int prompt_only = 0; prompt_only <= 1; prompt_only++) {
            const bool is_good = prompt_only && bad_lines[i].has_prompt;
            char *messages;
            struct questions questions = read_lines(lines, prompt_only, &messages);
            assert_int_equal(questions.count, is_good ? 3 : 2);
            assert_int_equal(questions.n_bad, is_good ? 0 : 1);
            if (is_good) {
                assert_string_equal(messages, "");
                assert_string_equal(questions.items[1].prompt, "x");
                assert_int_equal(questions.items[1].n_choices, 0);
                assert_null(questions.items[1].answer_text);
            } else {
                cli_expect_text(messages, ", line 2: ");
                cli_expect_text(messages, bad_lines[i].message);
            }
            assert_int_equal(questions.items[0].n_choices, 1);
            free(messages);
            questions_release(&questions);
        }
    }
    struct questions questions = {NULL, 0, 0};
    keep_messages();
    cli_write(data_path, "{\"prompt\": \"a\0b\", \"choices\": [\"x\"]}", 36);
    assert_int_equal(questions_read(&command, data_path, false, &questions), TOOL_OK);
    assert_int_equal(questions.n_bad, 1);
    assert_int_equal(questions_read(&command, "/no/file", false, &questions), TOOL_FAILED);
    char *messages = kept_messages();
    cli_expect_text(messages, "line 1: it holds a zero byte");
    cli_expect_text(messages, "cannot open /no/file");
    free(messages);
    questions_release(&questions);
}

/* ---- Matches ---- */

static void test_matches(void **state) {
    (void)state;
    static const struct {
        enum match match;
        const char *answer, *text;
        bool matches;
    } cases[] = {
        {MATCH_EXACT, "Paris", " paris.\nIt is", true},
        {MATCH_EXACT, "Paris.", "PARIS", true},
        {MATCH_EXACT, "Paris", "Paris ,", false},
        {MATCH_EXACT, "Paris", "\nParis", false},
        {MATCH_EXACT, "Paris", "In Paris", false},
        {MATCH_EXACT, "Paris", "", false},
        {MATCH_EXACT, "Paris", "Paris\r\nx", true},
        {MATCH_EXACT, " Z\xc3\x9cRICH ", "z\xc3\xbcrich .", true},
        {MATCH_EXACT, "\xff", "\xff", true},
        {MATCH_EXACT, "\xff", "\xfe", false},
        {MATCH_EXACT, "U.S.", "U.S", true},
        {MATCH_EXACT, "U.S.", "U.S..", false},
        {MATCH_EXACT, "10.", "10", true},
        {MATCH_LETTER, "B", " B", true},
        {MATCH_LETTER, "B", "(b)", true},
        {MATCH_LETTER, "B", "B.", true},
        {MATCH_LETTER, "(B)", "The answer: **B**, not C", true},
        {MATCH_LETTER, "B", "\\boxed{B}", true},
        {MATCH_LETTER, "B",
         "\xe2\x80\x9c"
         "B\xe2\x80\x9d",
         true},
        {MATCH_LETTER, "B",
         "\xe7\xad\x94\xe6\xa1\x88\xe6\x98\xaf"
         "B",
         true},
        {MATCH_LETTER, "B", "Because", false},
        {MATCH_LETTER, "B", "Bob's B", true},
        {MATCH_LETTER, "S", "Bob's B", false},
        {MATCH_LETTER, "S", "Bob\xe2\x80\x99s B", false},
        {MATCH_LETTER, "B", "X-ray B", true},
        {MATCH_LETTER, "B", "B2 vitamins", false},
        {MATCH_LETTER, "B",
         "\xc3\xa9"
         "B",
         false},
        {MATCH_LETTER, "B", "C, then B", false},
        {MATCH_LETTER, "B", "", false},
        {MATCH_NUMBER, "72", "48 + 24 = 72.", true},
        {MATCH_NUMBER, "72", "72 and 73", false},
        {MATCH_NUMBER, "1234", "It costs $1,234.", true},
        {MATCH_NUMBER, "1,234,567", "1234567 in all", true},
        {MATCH_NUMBER, "$5", "5.00 dollars", true},
        {MATCH_NUMBER, "0.5", ".5", true},
        {MATCH_NUMBER, "025", "25", true},
        {MATCH_NUMBER, "-3", "x = -3", true},
        {MATCH_NUMBER, "-3",
         "\xe2\x88\x92"
         "3",
         true},
        {MATCH_NUMBER, "-3", "-$3", true},
        {MATCH_NUMBER, "5", "10-5", true},
        {MATCH_NUMBER, "-5", "10-5", false},
        {MATCH_NUMBER, "0", "-0.0", true},
        {MATCH_NUMBER, "3", "1,2,3", true},
        {MATCH_NUMBER, "2345", "1,2345", true},
        {MATCH_NUMBER, "1e3", "1000", true},
        {MATCH_NUMBER, "1500", "1.5E+3", true},
        {MATCH_NUMBER, "2", "2 eggs, x9", true},
        {MATCH_NUMBER, "2", "2e", true},
        {MATCH_NUMBER, "9007199254740993", "9007199254740992", false},
        {MATCH_NUMBER, "7", "seven", false},
        {MATCH_NUMBER, "7", "-", false},
        {MATCH_NUMBER, "5", "...5", true},
        {MATCH_NUMBER, "20", "20%", true},
        {MATCH_BOXED, "\\frac{1}{2}", "so $\\boxed{\\frac{1}{2}}$.", true},
        {MATCH_BOXED, "\\boxed{\\frac{1}{2}}", "\\boxed{ \\frac {1}{2} }", true},
        {MATCH_BOXED, "3", "\\boxed{2}, no, \\boxed{3}", true},
        {MATCH_BOXED, "2", "\\boxed{2}, no, \\boxed{3}", false},
        {MATCH_BOXED, "2", "\\boxed{2} and \\boxed{3", true},
        {MATCH_BOXED, "10000", "\\boxed{10,\\!000}", true},
        {MATCH_BOXED, "\\{1,2\\}", "\\boxed{\\{1, 2\\}}", true},
        {MATCH_BOXED, "\\}", "\\boxed{\\}}", true},
        {MATCH_BOXED, "5", "\\boxed 5$", true},
        {MATCH_BOXED, "5", "\\fbox{5}", true},
        {MATCH_BOXED, "5", "the answer is 5.", true},
        {MATCH_BOXED, "\\frac{1}{2}", "the answer is 2", false},
        {MATCH_BOXED, "x+1", "\\boxed{1+x}", false},
        {MATCH_BOXED, "5", "\\boxed{x} 5", false},
        {MATCH_BOXED, "5", "\\boxed", false},
        {MATCH_BOXED, "5", "\\boxed{", false},
        {MATCH_CONTAINS, "Paris", "It is in pARIS, I think", true},
        {MATCH_CONTAINS, "Paris", "Pari s", false},
        {MATCH_CONTAINS, "\xc3\x89t\xc3\xa9", "l'\xc3\xa9T\xc3\x89", true},
        {MATCH_CONTAINS, "x", "", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char answer[64];
        (void)snprintf(answer, sizeof answer, "%s", cases[i].answer);
        const struct question question = {.match = cases[i].match, .answer_text = answer};
        /* Right behind the end of a text there is something else than the text. */
        struct drllm_fence fence = DRLLM_FENCE_INIT;
        const size_t size = strlen(cases[i].text);
        const char *text = drllm_fence_copy(&fence, cases[i].text, size, DRLLM_FENCE_BEHIND);
        if (question_matches(&question, text, size) != cases[i].matches) {
            fail_msg("case %zu: '%s' for '%s'", i, cases[i].text, cases[i].answer);
        }
        assert_null(answer_wrong(cases[i].match, answer));
        drllm_fence_free(&fence);
    }
    const struct question choice = {.match = MATCH_CHOICE};
    assert_false(question_matches(&choice, "x", 1));
}

static void test_scores(void **state) {
    (void)state;
    double lengths[] = {2, 4, 1}, scores[3];
    const struct question question = {.n_choices = 3, .choice_lengths = lengths};
    assert_int_equal(question_scores(&question, (const double[]){-2, -2, -3}, scores), 1);
    assert_true(scores[0] == -1 && scores[1] == -0.5 && scores[2] == -3);
    assert_int_equal(question_scores(&question, (const double[]){-2, -4, -1}, scores), 0); /* of equals the first */
}

/* ---- Tokens ---- */

static struct drllm_model *open_tiny(void) {
    struct drllm_model *model = NULL;
    struct model_options options = model_options_default();
    options.path = tiny;
    assert_int_equal(open_model(&command, &options, &model), TOOL_OK);
    return model;
}

static void test_tokens(void **state) {
    (void)state;
    struct drllm_model *model = open_tiny();
    char *messages;
    struct questions questions =
        read_lines("{\"prompt\": \"abc\", \"choices\": [\"\xc3\xa9x\", \"y\"]}\n"
                   "{\"prompt\": \"\", \"choices\": [\"x\"]}\n"
                   "{\"prompt\": \"abcdefghijklmnopqrstuvwxyz\", \"choices\": [\"abcdefghijklmnopqrstuvwxyz\"]}\n"
                   "{\"prompt\": \"abc\", \"answer\": \"x\", \"match\": \"exact\", \"max_tokens\": 40}\n"
                   "{\"prompt\": \"abcd\", \"answer\": \"x\", \"match\": \"exact\", \"max_tokens\": 8}\n",
                   false, &messages);
    free(messages);
    keep_messages();
    const int code = questions_tokenize(&command, model, 40, &questions);
    messages = kept_messages();
    assert_int_equal(code, TOOL_OK);
    assert_int_equal(questions.count, 2);
    assert_int_equal(questions.n_bad, 3);
    cli_expect_text(messages, ", line 2: its \"prompt\" is empty");
    cli_expect_text(messages, ", line 3: it needs ");
    cli_expect_text(messages, ", line 4: it needs ");
    const struct question *question = &questions.items[0];
    assert_int_equal(question->choice_tokens[1].count, question->choice_tokens[0].count - 2);
    assert_true(question->choice_lengths[0] == 2 && question->choice_lengths[1] == 1);
    assert_int_equal(questions.items[1].line, 5);
    assert_int_equal(questions.items[1].prompt_tokens.count, question->prompt_tokens.count + 1);
    /* Again, for the context that the model was trained for. */
    assert_int_equal(questions_tokenize(&command, model, 0, &questions), TOOL_OK);
    assert_int_equal(questions.count, 2);
    free(messages);
    questions_release(&questions);
    drllm_model_close(model);
}

/* ---- Workers ---- */

enum { N_TASKS = 200, N_WORKERS = 3 };

struct job {
    atomic_int n_runs[N_TASKS];
    atomic_int n_busy[N_WORKERS];
    atomic_int n_all;
    size_t failing;
    bool interrupts;
    atomic_bool has_failed;
    struct workers *workers;
};

/* Tasks behind one that fails take their time, until its worker has had some to say so. */
static void wait_for_failure(struct job *job) {
    static const struct timespec moment = {.tv_nsec = 1000000};
    while (!atomic_load(&job->has_failed)) {
        sched_yield();
    }
    nanosleep(&moment, NULL);
}

static int count_task(void *user, size_t worker, struct drllm_session *session, size_t index) {
    struct job *job = user;
    const int32_t token = TINY_FIRST_BYTE + 'a';
    assert_true(worker < job->workers->count && index < N_TASKS);
    assert_ptr_equal(session, job->workers->sessions[worker]);
    assert_int_equal(atomic_fetch_add(&job->n_busy[worker], 1), 0);
    atomic_fetch_add(&job->n_runs[index], 1);
    atomic_fetch_add(&job->n_all, 1);
    if (job->interrupts && index == job->failing) {
        (void)kill(getpid(), SIGINT); /* to whichever thread takes it */
    }
    while (job->interrupts && index >= job->failing && !interrupt_seen()) {
    }
    if (!job->interrupts && index > job->failing) {
        wait_for_failure(job);
    }
    int status = drllm_session_rewind(session, 0);
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(session, &token, 1);
    }
    atomic_fetch_sub(&job->n_busy[worker], 1);
    if (index == job->failing) {
        atomic_store(&job->has_failed, true);
    }
    return index == job->failing && !job->interrupts ? DRLLM_ERR_STATE : status;
}

static int run_job(struct workers *workers, struct job *job, size_t failing, bool interrupts) {
    memset(job, 0, sizeof *job);
    job->failing = failing;
    job->interrupts = interrupts;
    job->workers = workers;
    return workers_run(workers, count_task, job, N_TASKS);
}

static void test_workers(void **state) {
    (void)state;
    static struct job job;
    struct drllm_model *model = open_tiny();
    for (size_t n = 1; n <= N_WORKERS; n++) {
        struct workers workers;
        assert_int_equal(workers_open(&command, model, n, 16, DRLLM_KV_F16, &workers), TOOL_OK);
        assert_true(workers.count >= 1 && workers.count <= n); /* one where there are no threads */
        assert_int_equal(workers_run(&workers, count_task, &job, 0), DRLLM_OK);
        for (int again = 0; again < 2; again++) {
            assert_int_equal(run_job(&workers, &job, SIZE_MAX, false), DRLLM_OK);
            for (size_t i = 0; i < N_TASKS; i++) {
                assert_int_equal(job.n_runs[i], 1);
            }
        }
        /* Tasks begin in order, so that few follow one that fails. */
        assert_int_equal(run_job(&workers, &job, 20, false), DRLLM_ERR_STATE);
        assert_true(job.n_all >= 21 && job.n_all < N_TASKS);
        for (int i = 0; i < 21; i++) {
            assert_int_equal(job.n_runs[i], 1);
        }
        interrupt_install();
        assert_int_equal(run_job(&workers, &job, 20, true), DRLLM_ERR_CANCELLED);
        assert_true(job.n_all >= 21 && job.n_all <= (int)(20 + 2 * n));
        assert_int_equal(run_job(&workers, &job, SIZE_MAX, false), DRLLM_ERR_CANCELLED);
        assert_int_equal(job.n_all, 0);
        (void)signal(SIGINT, SIG_DFL);
        interrupt_forget();
        assert_int_equal(run_job(&workers, &job, SIZE_MAX, false), DRLLM_OK);
        assert_int_equal(job.n_all, N_TASKS);
        workers_release(&workers);
        workers_release(&workers);
    }
    struct workers workers;
    assert_int_equal(workers_open(&command, model, 0, 16, DRLLM_KV_F16, &workers), TOOL_OK);
    assert_true(workers.count >= 1);
    workers_release(&workers);
    keep_messages();
    const int code =
        workers_open(&command, model, 1 << 20, 16, DRLLM_KV_F16, &workers); /* more threads than a pool takes */
    free(kept_messages());
    assert_int_equal(code, workers.threads != NULL ? TOOL_OK : TOOL_FAILED);
    workers_release(&workers);
    drllm_model_close(model);
}

static void test_progress(void **state) {
    (void)state;
    struct progress progress = {.what = "work", .total = 10};
    keep_messages();
    progress_show(&progress, 0);
    progress_show(&progress, 1);
    progress.start_ns -= 36000000000u; /* so much that a slow machine's moments do not count */
    progress.last_ns -= 1000000000u;
    progress_show(&progress, 9);
    progress_show(&progress, 9);
    char *messages = kept_messages();
    assert_string_equal(messages, "work: 9 of 10, 4 s to go\n");
    free(messages);
}

/* ---- Conversion ---- */

#define CONVERT(text, format, ...) \
    convert_text(text, ARGUMENTS("convert", format, data_path, "-o", out_path, __VA_ARGS__))
#define CONVERT_PLAIN(text, format) convert_text(text, ARGUMENTS("convert", format, data_path, "-o", out_path))

static struct cli_outcome convert_text(const char *text, const char *const *arguments) {
    cli_write(data_path, text, strlen(text));
    unlink(out_path);
    return cli_run(NULL, arguments);
}

/* The lines that were written are these. */
static void expect_lines(struct cli_outcome outcome, const char *lines) {
    size_t size = 0;
    cli_expect_code(&outcome, 0);
    assert_string_equal(outcome.err, "");
    cli_outcome_free(&outcome);
    char *written = cli_read(out_path, &size);
    assert_string_equal(written, lines);
    free(written);
    /* The reader takes them. */
    struct questions questions = {NULL, 0, 0};
    assert_int_equal(questions_read(&command, out_path, false, &questions), TOOL_OK);
    assert_int_equal(questions.n_bad, 0);
    assert_true(questions.count > 0);
    questions_release(&questions);
}

/* These are left out, with a message each, and so many others are written. */
static void expect_bad(struct cli_outcome outcome, const char *const *messages, size_t n_good) {
    size_t size = 0, n_lines = 0;
    cli_expect_code(&outcome, 1);
    for (; *messages != NULL; messages++) {
        cli_expect_text(outcome.err, *messages);
    }
    cli_outcome_free(&outcome);
    if (n_good == 0) {
        assert_int_equal(access(out_path, F_OK), -1);
        return;
    }
    char *written = cli_read(out_path, &size);
    for (size_t i = 0; i < size; i++) {
        n_lines += written[i] == '\n';
    }
    assert_int_equal(n_lines, n_good);
    free(written);
}

#define MESSAGES(...) ((const char *const[]){__VA_ARGS__, NULL})

static const char arc[] =
    "{\"id\":\"M1\",\"question\":{\"stem\":\"Which is hot?\",\"choices\":[{\"text\":\"ice\",\"label\":\"A\"},"
    "{\"text\":\" fire \",\"label\":\"B\"},{\"text\":\"snow\",\"label\":\"C\"}]},\"answerKey\":\"B\"}\n"
    "{\"id\":\"M2\",\"question\":{\"stem\":\"1 + 1?\",\"choices\":[{\"text\":\"2\",\"label\":\"1\"},"
    "{\"text\":\"3\",\"label\":\"2\"}]},\"answerKey\":\"1\"}\n";

static void test_convert_arc(void **state) {
    (void)state;
    cli_require_program();
    expect_lines(CONVERT(arc, "arc", "--task", "arc_easy"),
                 "{\"task\":\"arc_easy\",\"prompt\":\"Question: Which is hot?\\nAnswer:\","
                 "\"choices\":[\" ice\",\" fire\",\" snow\"],\"answer\":1}\n"
                 "{\"task\":\"arc_easy\",\"prompt\":\"Question: 1 + 1?\\nAnswer:\",\"choices\":[\" 2\",\" 3\"],"
                 "\"answer\":0}\n");
    expect_lines(CONVERT(arc, "openbookqa", "--letters", "--limit", "1"),
                 "{\"task\":\"openbookqa\",\"prompt\":\"Question: Which is hot?\\nA. ice\\nB. fire\\nC. snow\\n"
                 "Answer:\",\"choices\":[\" A\",\" B\",\" C\"],\"answer\":1}\n");
    char bad[2048];
    (void)snprintf(
        bad, sizeof bad, "%s%s", arc,
        "no JSON\n"
        "{\"question\":{\"choices\":[]},\"answerKey\":\"A\"}\n"
        "{\"question\":{\"stem\":\"x\"},\"answerKey\":\"A\"}\n"
        "{\"question\":{\"stem\":\"x\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"}]},\"answerKey\":\"B\"}\n"
        "{\"question\":{\"stem\":\"x\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"}]},\"answerKey\":\"A\"}\n"
        "{\"question\":{\"stem\":\"x\",\"choices\":[{\"text\":1,\"label\":\"A\"}]},\"answerKey\":\"A\"}\n"
        "{\"question\":{\"stem\":\"\xff\",\"choices\":[{\"text\":\"a\",\"label\":\"A\"},"
        "{\"text\":\"b\",\"label\":\"B\"}]},\"answerKey\":\"A\"}\n");
    expect_bad(CONVERT_PLAIN(bad, "arc"),
               MESSAGES("line 3: it is no JSON", "line 4: it has no question", "line 5: it has no choices",
                        "line 6: its \"answerKey\"", "line 7: it has fewer than 2", "line 8: a choice is no text",
                        "line 9: it is no UTF-8", "7 bad records"),
               2);
    expect_bad(CONVERT_PLAIN("{}\n", "arc"), MESSAGES("line 1: it has no question", "nothing is written"), 0);
    expect_bad(CONVERT_PLAIN("", "arc"), MESSAGES("nothing is written"), 0);
    /* Standard input to standard output, and files that are not there. */
    struct cli_outcome outcome = RUN_INPUT(arc, "convert", "arc", "-");
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.out, "Which is hot?");
    cli_outcome_free(&outcome);
    cli_expect_failure(RUN("convert", "arc", "/no/file"), 1, "cannot open /no/file");
}

static void test_convert_mmlu(void **state) {
    (void)state;
    cli_require_program();
    expect_lines(CONVERT_PLAIN("\xef\xbb\xbfWho?,a,b,c,d,C\r\n\"Say \"\"x, y\"\"\nnow\",1,\"2\",3,\" 4\",A", "mmlu"),
                 "{\"task\":\"mmlu\",\"prompt\":\"Question: Who?\\nAnswer:\",\"choices\":[\" a\",\" b\",\" c\",\" d\"],"
                 "\"answer\":2}\n"
                 "{\"task\":\"mmlu\",\"prompt\":\"Question: Say \\\"x, y\\\"\\nnow\\nAnswer:\","
                 "\"choices\":[\" 1\",\" 2\",\" 3\",\" 4\"],\"answer\":0}\n");
    expect_bad(CONVERT_PLAIN("\"two\nlines\",a,b,c,d,A\n"
                             "q,a,b,c,A\n"
                             "\n"
                             "q,a,b,c,d,E\n"
                             "q,a,b,,d,A\n"
                             "q\"r\",a,b,c,d,A\n"
                             "\"q\"r,a,b,c,d,A\n"
                             "q,a,b\rc,c,d,A\n"
                             ",a,b,c,d,A\n"
                             "q,a,b,c,d,B\n"
                             "\"q,a,b,c,d,A\nq,a,b,c,d,A\n",
                             "mmlu"),
               MESSAGES("line 3 (record 2): it has not 6", "line 4 (record 3): it has not 6",
                        "line 5 (record 4): its answer", "line 6 (record 5): a choice is empty",
                        "line 7 (record 6): a quote stands", "line 8 (record 7): something follows",
                        "line 9 (record 8): a carriage return", "line 10 (record 9): its question is empty",
                        "line 12 (record 11): a quote is not closed", "9 bad records"),
               2);
}

static void test_convert_piqa(void **state) {
    (void)state;
    cli_require_program();
    static const char text[] = "{\"goal\":\"Cut.\",\"sol1\":\"With a spoon.\",\"sol2\":\"With a knife.\"}\n"
                               "{\"goal\":\"Eat.\",\"sol1\":\"Chew.\",\"sol2\":\"Sing.\"}\n";
    char labels[CLI_PATH_BYTES];
    cli_path("labels", labels);
    cli_write(labels, "1\n0\n", 4);
    expect_lines(CONVERT(text, "piqa", "--answers", labels),
                 "{\"task\":\"piqa\",\"prompt\":\"Question: Cut.\\nAnswer:\",\"choices\":[\" With a spoon.\","
                 "\" With a knife.\"],\"answer\":1}\n"
                 "{\"task\":\"piqa\",\"prompt\":\"Question: Eat.\\nAnswer:\",\"choices\":[\" Chew.\",\" Sing.\"],"
                 "\"answer\":0}\n");
    cli_write(labels, "1\r\n", 3);
    expect_bad(CONVERT(text, "piqa", "--answers", labels), MESSAGES("line 2: the file of answers has none"), 1);
    cli_write(labels, "\n0\n", 3); /* an empty line moves no answer */
    expect_bad(CONVERT(text, "piqa", "--answers", labels), MESSAGES("line 1: its answer is neither"), 1);
    cli_write(labels, "1\n0\n0", 5);
    expect_bad(CONVERT(text, "piqa", "--answers", labels), MESSAGES("labels: it holds more answers"), 2);
    expect_bad(CONVERT(text, "piqa", "--answers", "/no/labels"), MESSAGES("cannot open /no/labels"), 0);
}

static size_t count_text(const char *text, const char *part) {
    size_t n = 0;
    for (; (text = strstr(text, part)) != NULL; text++) {
        n++;
    }
    return n;
}

static void test_convert_shuffled(void **state) {
    (void)state;
    cli_require_program();
    char gpqa[4096] = "Record,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n";
    for (int i = 0; i < 40; i++) {
        const size_t size = strlen(gpqa);
        (void)snprintf(gpqa + size, sizeof gpqa - size, "%d,\"How many, %d?\",right,w1,w2,\"w3\n\"\n", i, i);
    }
    struct cli_outcome outcome = CONVERT_PLAIN(gpqa, "gpqa");
    cli_expect_success(outcome);
    struct questions questions = {NULL, 0, 0};
    assert_int_equal(questions_read(&command, out_path, false, &questions), TOOL_OK);
    assert_int_equal(questions.count, 40);
    size_t n_at[4] = {0};
    for (size_t i = 0; i < 40; i++) {
        assert_int_equal(questions.items[i].n_choices, 4);
        assert_string_equal(questions.items[i].choices[questions.items[i].answer], " right");
        n_at[questions.items[i].answer]++;
    }
    for (size_t i = 0; i < 4; i++) {
        assert_true(n_at[i] >= 3);
    }
    questions_release(&questions);
    size_t size = 0;
    char *first = cli_read(out_path, &size);
    assert_int_equal(count_text(first, "\" w3\""), 40);
    cli_expect_success(CONVERT(gpqa, "gpqa", "--seed", "0"));
    char *same = cli_read(out_path, &size);
    cli_expect_success(CONVERT(gpqa, "gpqa", "--seed", "1"));
    char *other = cli_read(out_path, &size);
    assert_string_equal(first, same);
    assert_string_not_equal(first, other);
    free(first);
    free(same);
    free(other);
    expect_bad(CONVERT_PLAIN("Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
                             "q,a,b,c\nq,a,b,c,d\n",
                             "gpqa"),
               MESSAGES("line 2: it has not as many fields"), 1);
    expect_bad(CONVERT_PLAIN("Question,Correct Answer\nq,a\n", "gpqa"), MESSAGES("line 2: there are no columns"), 0);
    expect_bad(CONVERT_PLAIN("Q\"uestion\nq,a\n", "gpqa"), MESSAGES("line 1: a quote stands"), 0);

    expect_lines(CONVERT("[{\"question\":\"Is it?\",\"mc1_targets\":{\"Yes.\":1,\"No.\":0},\"mc2_targets\":{}}]",
                         "truthfulqa", "--seed", "2"),
                 "{\"task\":\"truthfulqa\",\"prompt\":\"Question: Is it?\\nAnswer:\","
                 "\"choices\":[\" No.\",\" Yes.\"],\"answer\":1}\n");
    expect_bad(CONVERT_PLAIN("[{\"question\":\"a\",\"mc1_targets\":{\"x\":1,\"y\":0}},\n"
                             "{\"question\":\"a\",\"mc1_targets\":{\"x\":1,\"y\":1}},\n"
                             "{\"question\":\"a\",\"mc1_targets\":{\"x\":1,\"y\":2}},\n"
                             "{\"question\":\"a\"}, 4]",
                             "truthfulqa"),
               MESSAGES("record 2: not one of its targets", "record 3: a target is neither",
                        "record 4: it has no object", "record 5: it is no JSON object"),
               1);
    expect_bad(CONVERT_PLAIN("[{\"question\":\"a\"", "truthfulqa"), MESSAGES("data: it is no JSON"), 0);
}

static void test_convert_agieval(void **state) {
    (void)state;
    cli_require_program();
    expect_lines(
        CONVERT_PLAIN("{\"passage\":\"Tom is tall.\",\"question\":\"Who?\",\"options\":[\"(A)Ann\",\"(B) Tom\",\"Jo\"],"
                      "\"label\":\"B\",\"answer\":null}\n"
                      "{\"passage\":null,\"question\":\"$1/2$?\",\"options\":null,\"label\":null,"
                      "\"answer\":\"\\\\frac{1}{2}\"}\n",
                      "agieval"),
        "{\"task\":\"agieval\",\"prompt\":\"Passage: Tom is tall.\\nQuestion: Who?\\nAnswer:\","
        "\"choices\":[\" Ann\",\" Tom\",\" Jo\"],\"answer\":1}\n"
        "{\"task\":\"agieval\",\"prompt\":\"Put the final answer into \\\\boxed{}.\\n\\nQuestion: $1/2$?\\nAnswer:\","
        "\"answer\":\"\\\\frac{1}{2}\",\"match\":\"boxed\",\"max_tokens\":512}\n");
    expect_bad(CONVERT_PLAIN("{\"question\":\"q\",\"options\":[\"(A)a\",\"(B)b\"],\"label\":\"A\"}\n"
                             "{\"question\":\"q\",\"options\":[\"(A)a\",\"(B)b\"],\"label\":[\"A\"]}\n"
                             "{\"question\":\"q\",\"options\":[\"(A)a\",\"(B)b\"],\"label\":\"AB\"}\n"
                             "{\"question\":\"q\",\"options\":null}\n",
                             "agieval"),
               MESSAGES("line 2: its answer is not the letter", "line 3: its answer is not the letter",
                        "line 4: it has neither"),
               1);
}

static void test_convert_numbers(void **state) {
    (void)state;
    cli_require_program();
    static const char seven[] = "{\"task\":\"aime\",\"prompt\":\"Question: 3+4?\\nAnswer:\",\"answer\":\"007\","
                                "\"match\":\"number\",\"max_tokens\":512}\n";
    expect_lines(CONVERT_PLAIN("{\"question\":\"2+2?\",\"answer\":\"2+2=<<2+2=4>>4\\n#### 4\"}\n", "gsm8k"),
                 "{\"task\":\"gsm8k\",\"prompt\":\"Question: 2+2?\\nAnswer:\",\"answer\":\"4\",\"match\":\"number\","
                 "\"max_tokens\":256}\n");
    expect_bad(CONVERT_PLAIN("{\"question\":\"q\",\"answer\":\"#### 1,000\"}\n"
                             "{\"question\":\"q\",\"answer\":\"4\"}\n"
                             "{\"question\":\"q\",\"answer\":\"#### four\"}\n"
                             "{\"question\":\"q\"}\n",
                             "gsm8k"),
               MESSAGES("line 2: it has no answer behind", "line 3: its \"answer\" holds no number",
                        "line 4: it has no answer behind"),
               1);
    expect_lines(CONVERT_PLAIN("ID,Year,Question,Answer\n1983-1,1983,3+4?,007\n", "aime"), seven);
    expect_lines(CONVERT_PLAIN("{\"problem\":\"3+4?\",\"answer\":\"007\",\"solution\":\"\"}\n", "aime"), seven);
    struct cli_outcome outcome = CONVERT_PLAIN("{\"problem\":\"3+4?\",\"answer\":7}\n", "aime");
    cli_expect_success(outcome);
    expect_bad(CONVERT_PLAIN("problem,answer\nx,1\ny\nz,none\n", "aime"),
               MESSAGES("line 3: it has not as many", "line 4: its \"answer\" holds no number"), 1);
    expect_bad(CONVERT_PLAIN("problem,solution\nx,1\n", "aime"), MESSAGES("line 2: it has no answer"), 0);
}

static void test_convert_math(void **state) {
    (void)state;
    cli_require_program();
    expect_lines(
        CONVERT_PLAIN("{\"problem\":\"P\",\"level\":\"Level 5\",\"type\":\"Algebra\","
                      "\"solution\":\"$\\\\boxed{1}$ so $\\\\boxed{\\\\frac{1}{2}}$\"}\n"
                      "{\"problem\":\"P\",\"level\":\"Level ?\",\"solution\":\"\\\\boxed 3$\"}\n"
                      "{\"problem\":\"P\",\"level\":2,\"answer\":\"4\"}\n",
                      "math"),
        "{\"task\":\"math_level_5\",\"prompt\":\"Put the final answer into \\\\boxed{}.\\n\\nQuestion: P\\nAnswer:\","
        "\"answer\":\"\\\\frac{1}{2}\",\"match\":\"boxed\",\"max_tokens\":512}\n"
        "{\"task\":\"math\",\"prompt\":\"Put the final answer into \\\\boxed{}.\\n\\nQuestion: P\\nAnswer:\","
        "\"answer\":\"3\",\"match\":\"boxed\",\"max_tokens\":512}\n"
        "{\"task\":\"math_level_2\",\"prompt\":\"Put the final answer into \\\\boxed{}.\\n\\nQuestion: P\\nAnswer:\","
        "\"answer\":\"4\",\"match\":\"boxed\",\"max_tokens\":512}\n");
    /* MATH itself has a file a problem, over several lines. */
    expect_lines(
        CONVERT("{\n  \"problem\": \"P\",\n  \"level\": \"Level 1\",\n  \"solution\": \"\\\\boxed{x}\"\n}\n", "math",
                "--task", "algebra"),
        "{\"task\":\"algebra\",\"prompt\":\"Put the final answer into \\\\boxed{}.\\n\\nQuestion: P\\nAnswer:\","
        "\"answer\":\"x\",\"match\":\"boxed\",\"max_tokens\":512}\n");
    expect_bad(CONVERT_PLAIN("{\"query\":\"Q\",\"response\":\"\\\\boxed{2}\"}\n"
                             "{\"query\":\"Q\",\"response\":\"two\"}\n",
                             "dart-math"),
               MESSAGES("line 2: its solution has no \\boxed{}"), 1);
}

static void test_convert_squad(void **state) {
    (void)state;
    cli_require_program();
#define SQUAD_PROMPT(question)                                                                    \
    "\"prompt\":\"Answer with words of the passage, or with \\\"unanswerable\\\".\\n\\nPassage: " \
    "C\\nQuestion: " question "\\nAnswer:\""
    expect_lines(CONVERT_PLAIN("{\"version\":\"v2.0\",\"data\":[{\"title\":\"T\",\"paragraphs\":[{\"context\":\"C\","
                               "\"qas\":[{\"question\":\"Q1\",\"is_impossible\":false,\"answers\":[{\"text\":\"a\"},"
                               "{\"text\":\"b c\"},{\"text\":\"b c\"}]},"
                               "{\"question\":\"Q2\",\"is_impossible\":true,\"answers\":[],"
                               "\"plausible_answers\":[{\"text\":\"p\"}]}]}]}]}",
                               "squad"),
                 "{\"task\":\"squad\"," SQUAD_PROMPT(
                     "Q1") ",\"answer\":\"b c\",\"match\":\"exact\",\"max_tokens\":32}\n"
                           "{\"task\":\"squad\"," SQUAD_PROMPT("Q2") ",\"answer\":\"unanswerable\",\"match\":\"exact\","
                                                                     "\"max_tokens\":32}\n");
    expect_bad(CONVERT_PLAIN("{\"data\":[{},{\"paragraphs\":[{\"context\":\"C\"},"
                             "{\"qas\":[{\"question\":\"q\",\"is_impossible\":true}]},"
                             "{\"context\":\"C\",\"qas\":[{\"question\":\"q\",\"answers\":[]},"
                             "{\"question\":\"q\",\"answers\":[{\"text\":\"a\"}]}]}]}]}",
                             "squad"),
               MESSAGES("record 1: its article has no", "record 2: its paragraph has no list",
                        "record 3: its paragraph has no text", "record 4: it has no answer"),
               1);
    expect_bad(CONVERT_PLAIN("{}", "squad"), MESSAGES("it has no list \"data\""), 0);
    expect_bad(CONVERT_PLAIN("{\"data\":[", "squad"), MESSAGES("it is no JSON"), 0);
}

/* ---- */

static int set_up(void **state) {
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    cli_path("data", data_path);
    cli_path("out.jsonl", out_path);
    cli_write_spoken_model(cli_path("tiny.gguf", tiny), 1, false);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    return cli_remove_folder();
}

int drllm_test_questions(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_matches),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_workers),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_convert_arc),
        cmocka_unit_test(test_convert_mmlu),
        cmocka_unit_test(test_convert_piqa),
        cmocka_unit_test(test_convert_shuffled),
        cmocka_unit_test(test_convert_agieval),
        cmocka_unit_test(test_convert_numbers),
        cmocka_unit_test(test_convert_math),
        cmocka_unit_test(test_convert_squad),
    };
    return drllm_run_group("questions", tests, set_up, tear_down);
}
