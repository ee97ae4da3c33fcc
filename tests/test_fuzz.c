/* The fuzz targets of tests/fuzz.h, each on a bounded number of inputs of one seed, in a process of its own. */
#include "tests/fuzz.h"
#include "tests/tests.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SEED = 1, SECONDS = 600 };

static void run_inputs(const struct drllm_fuzz_target *target, uint64_t n, volatile uint64_t *number) {
    (void)alarm(SECONDS); /* an input that never ends */
    for (uint64_t i = 0; i < n; i++) {
        *number = i;
        size_t size = 0;
        uint8_t *data = drllm_fuzz_input(target, SEED, i, &size);
        drllm_fuzz_run(target, data, size);
        free(data);
    }
    /* Both kinds have to come. */
    drllm_fuzz_check(drllm_fuzz_n_accepted >= n / 50);
}

static void test_target(const struct drllm_fuzz_target *target) {
    const uint64_t n = (uint64_t)target->n_tests / (drllm_test_is_fast() ? 40 : 1);
    volatile uint64_t *number = mmap(NULL, sizeof *number, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(number != MAP_FAILED);
    (void)fflush(stdout);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        /* cmocka would call a crash a failure of this test, here in the child. */
        static const int signals[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
        for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
            (void)signal(signals[i], SIG_DFL);
        }
        run_inputs(target, n, number);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    const uint64_t last = *number;
    (void)munmap((void *)number, sizeof *number);
    if (status != 0) {
        fail_msg("%s %d on input %llu; again, by itself: build/drllm-fuzz --seed %d --input %llu %s",
                 WIFSIGNALED(status) ? "signal" : "exit status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), (unsigned long long)last, SEED,
                 (unsigned long long)last, target->name);
    }
    assert_int_equal(last, n - 1);
}

#define DRLLM_FUZZ_TEST(name)               \
    static void test_##name(void **state) { \
        (void)state;                        \
        test_target(&drllm_fuzz_##name);    \
    }
DRLLM_FUZZ_TARGETS(DRLLM_FUZZ_TEST)
#undef DRLLM_FUZZ_TEST

/* An input is known by seed and number alone, and they differ. */
static void test_inputs(void **state) {
    (void)state;
    size_t n_same = 0;
    for (size_t i = 0; i < DRLLM_FUZZ_N; i++) {
        const struct drllm_fuzz_target *target = drllm_fuzz_targets[i];
        assert_ptr_equal(drllm_fuzz_find(target->name), target);
        for (uint64_t number = 100; number < 130; number++) {
            size_t sizes[3];
            uint8_t *inputs[3];
            inputs[0] = drllm_fuzz_input(target, 5, number, &sizes[0]);
            inputs[1] = drllm_fuzz_input(target, 5, number + 1, &sizes[1]);
            inputs[2] = drllm_fuzz_input(target, 5, number, &sizes[2]);
            assert_int_equal(sizes[0], sizes[2]);
            assert_memory_equal(inputs[0], inputs[2], sizes[0]);
            n_same += sizes[0] == sizes[1] && memcmp(inputs[0], inputs[1], sizes[0]) == 0;
            for (size_t k = 0; k < 3; k++) {
                free(inputs[k]);
            }
        }
    }
    assert_in_range(n_same, 0, 30);
}

int drllm_test_fuzz(void) {
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_inputs),
#define DRLLM_FUZZ_UNIT(name) cmocka_unit_test(test_##name),
                                              DRLLM_FUZZ_TARGETS(DRLLM_FUZZ_UNIT)
#undef DRLLM_FUZZ_UNIT
    };
    return drllm_run_group("fuzz", tests, NULL, NULL);
}
