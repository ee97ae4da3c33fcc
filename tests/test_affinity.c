/* Lists of processors, the fast ones of a system, priority; the options for them. */
#include "tests/cli.h"
#include "tests/tests.h"

#include "platform/affinity.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct drllm_processors set_of(const char *text) {
    struct drllm_processors set;
    assert_true(drllm_processors_parse(text, &set));
    return set;
}

static void test_lists(void **state) {
    (void)state;
    static const char *const same[] = {"0", "0-3", "0-3,6", "1,3,5", "63-64", "1000-1023", "0,2-1023"};
    static const char *const bad[] = {"",    ",",      "a",     "0-",  "-1",
                                      "3-1", "0,",     "1024",  "0 ",  "0--1",
                                      "0x1", "0-1024", "+1",    "1;2", "99999999999999999999",
                                      " 0",  "1,,2",   "0-1-2", "0.5", "0-3\n"};
    char text[64];
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        const struct drllm_processors set = set_of(same[i]);
        drllm_processors_format(&set, text, sizeof text);
        assert_string_equal(text, same[i]);
    }
    const struct drllm_processors merged = set_of("3,1,2,2-4");
    drllm_processors_format(&merged, text, sizeof text);
    assert_string_equal(text, "1-4");
    assert_int_equal(drllm_processors_count(&merged), 4);
    drllm_processors_format(&merged, text, 3);
    assert_string_equal(text, "1-");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct drllm_processors set = merged;
        if (drllm_processors_parse(bad[i], &set)) {
            fail_msg("'%s' was taken", bad[i]);
        }
        assert_memory_equal(&set, &merged, sizeof set);
    }
}

/* ---- Two kinds of cores ---- */

/* A folder with /sys files of n processors; capacity 0: no file. */
static void make_system(char root[64], const unsigned *capacities, size_t n) {
    char path[256];
    (void)snprintf(root, 64, "/tmp/drllm-sys-XXXXXX");
    assert_non_null(mkdtemp(root));
    static const char *const folders[] = {"sys", "sys/devices", "sys/devices/system", "sys/devices/system/cpu"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%zu", root, i);
        assert_int_equal(mkdir(path, 0700), 0);
        (void)snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%zu/cpu_capacity", root, i);
        if (capacities[i] != 0) {
            char text[16];
            (void)snprintf(text, sizeof text, "%u\n", capacities[i]);
            cli_write(path, text, strlen(text));
        }
    }
}

static void remove_system(const char *root, size_t n) {
    char path[256];
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%zu/cpu_capacity", root, i);
        unlink(path);
        *strrchr(path, '/') = '\0';
        assert_int_equal(rmdir(path), 0);
    }
    (void)snprintf(path, sizeof path, "%s/sys/devices/system/cpu", root);
    for (; strlen(path) >= strlen(root); *strrchr(path, '/') = '\0') {
        assert_int_equal(rmdir(path), 0);
    }
}

static void test_fast_processors(void **state) {
    (void)state;
    enum { N = 8 };
    static const struct {
        const char *what;
        unsigned capacities[N];
        const char *allowed;
        const char *fast; /* NULL: no preference */
    } systems[] = {
        {"RK3588: four and four", {530, 530, 530, 530, 1024, 1024, 1024, 1024}, "0-7", "4-7"},
        {"a phone of three kinds", {325, 325, 325, 325, 828, 828, 828, 1024}, "0-7", "4-7"},
        {"not so much slower", {700, 700, 700, 700, 1024, 1024, 1024, 1024}, "0-7", NULL},
        {"Raspberry Pi 5: one kind", {1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024}, "0-3", NULL},
        {"only small ones allowed", {325, 325, 325, 325, 1024, 1024, 1024, 1024}, "0-3", NULL},
        {"some of both allowed", {325, 325, 325, 325, 1024, 1024, 1024, 1024}, "2-5", "4-5"},
        {"one file is missing", {325, 325, 325, 325, 1024, 0, 1024, 1024}, "0-7", NULL},
        {"one file is missing, of one that is not ours", {325, 325, 325, 325, 1024, 0, 1024, 1024}, "0-4", "4"},
        {"no files, as on x86", {0, 0, 0, 0, 0, 0, 0, 0}, "0-7", NULL},
    };
    for (size_t i = 0; i < sizeof systems / sizeof systems[0]; i++) {
        char root[64], text[64];
        make_system(root, systems[i].capacities, N);
        const struct drllm_processors allowed = set_of(systems[i].allowed);
        struct drllm_processors fast = allowed;
        const bool prefers = drllm_processors_fast(root, &allowed, &fast);
        remove_system(root, N);
        drllm_processors_format(&fast, text, sizeof text);
        const char *expected = systems[i].fast != NULL ? systems[i].fast : systems[i].allowed;
        if (prefers != (systems[i].fast != NULL) || strcmp(text, expected) != 0) {
            fail_msg("%s: %s", systems[i].what, text);
        }
    }
    const struct drllm_processors all = set_of("0-7");
    struct drllm_processors fast = all;
    assert_false(drllm_processors_fast("/nonexistent", &all, &fast));
}

/* ---- This process ---- */

static int use_one(void) {
    struct drllm_processors all, now;
    const struct drllm_processors none = set_of("1023");
    if (drllm_processors_get(&all) != 0 || drllm_processors_count(&all) == 0) {
        return 1;
    }
    size_t first = 0;
    while ((all.bits[first / 64] >> first % 64 & 1) == 0) {
        first++;
    }
    char text[16];
    (void)snprintf(text, sizeof text, "%zu", first);
    const struct drllm_processors one = set_of(text);
    if (drllm_processors_use(&one) != 0 || drllm_processors_get(&now) != 0 || memcmp(&now, &one, sizeof now) != 0) {
        return 2;
    }
    if ((all.bits[15] >> 63 & 1) == 0 && drllm_processors_use(&none) != EINVAL) {
        return 3;
    }
    errno = 0;
    return drllm_priority_set(17) != 0 || getpriority(PRIO_PROCESS, 0) != 17 || errno != 0 ? 4 : 0;
}

static void test_use(void **state) {
    (void)state;
    (void)fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        _exit(use_one());
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* ---- Options ---- */

static void test_options(void **state) {
    (void)state;
    char model[CLI_PATH_BYTES], expected[64], text[32];
    cli_require_program();
    cli_write_spoken_model(cli_path("spoken.gguf", model), 2, false);
    struct drllm_processors all;
    assert_int_equal(drllm_processors_get(&all), 0);
    size_t last = DRLLM_MOST_PROCESSORS - 1;
    while ((all.bits[last / 64] >> last % 64 & 1) == 0) {
        last--;
    }
    (void)snprintf(text, sizeof text, "%zu", last);
    (void)snprintf(expected, sizeof expected, "on processors %zu\n", last);
    struct cli_outcome outcome =
        RUN("run", "-m", model, "--raw", "-p", "a", "-n", "3", "--temp", "0", "-v", "--cpu-list", text, "--prio", "19");
    cli_expect_code(&outcome, 0);
    cli_expect_text(outcome.err, expected);
    cli_expect_text(outcome.err, "; kernels ");
    cli_expect_output(outcome, "bcd\n");
    cli_expect_failure(RUN("run", "-m", model, "-p", "a", "--cpu-list", "3-1"), 2, "is no list of processors");
    cli_expect_failure(RUN("score", "-m", model, "-p", "a", "--choice", "b", "--prio", "20"), 2, "--prio");
    if ((all.bits[15] >> 63 & 1) == 0) {
        cli_expect_failure(RUN("logits", "-m", model, "-p", "a", "--cpu-list", "1023"), 1,
                           "this machine has none of these processors");
    }
}

static int set_up(void **state) {
    (void)state;
    return cli_make_folder();
}

static int tear_down(void **state) {
    (void)state;
    return cli_remove_folder();
}

int drllm_test_affinity(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_fast_processors),
        cmocka_unit_test(test_use),
        cmocka_unit_test(test_options),
    };
    return drllm_run_group("affinity", tests, set_up, tear_down);
}
