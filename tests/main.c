/* The test runner, and what the groups share. The groups are listed in tests.h. */
#include "tests/tests.h"

#include "quant/half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct {
    const char *name;
    int (*run)(void);
} groups[] = {
#define DRLLM_TEST_ROW(name) {#name, drllm_test_##name},
    DRLLM_TEST_GROUPS(DRLLM_TEST_ROW)
#undef DRLLM_TEST_ROW
};
enum { N_GROUPS = sizeof groups / sizeof groups[0] };

static const char fast_variable[] = "DRLLM_TEST_FAST";

bool drllm_test_is_fast(void) {
    const char *value = getenv(fast_variable);
    return value != NULL && *value != '\0';
}

/* ---- Counting ---- */

static struct { size_t passed, failed, skipped; } counts;

/* The running group's fixtures, and how they went: cmocka counts neither the tests that a failed setup keeps from
 * running nor a failed teardown. */
static struct {
    CMFixtureFunction setup, teardown;
    bool is_set_up, is_torn_down;
} running;

static int set_up(void **state) {
    const int result = running.setup == NULL ? 0 : running.setup(state);
    running.is_set_up = result == 0;
    return result;
}

static int tear_down(void **state) {
    const int result = running.teardown == NULL ? 0 : running.teardown(state);
    running.is_torn_down = result == 0;
    return result;
}

int drllm_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n_tests, CMFixtureFunction setup,
                          CMFixtureFunction teardown) {
    const size_t skipped_before = counts.skipped;
    running.setup = setup;
    running.teardown = teardown;
    running.is_set_up = running.is_torn_down = false;
    const int result = _cmocka_run_group_tests(name, tests, n_tests, set_up, tear_down);
    const size_t n_failed = result >= 0 && running.is_set_up ? (size_t)result : n_tests;
    const size_t n_not_passed = n_failed + (counts.skipped - skipped_before);
    const size_t n_all_failed = n_failed + (running.is_torn_down ? 0 : 1);
    counts.passed += n_not_passed < n_tests ? n_tests - n_not_passed : 0;
    counts.failed += n_all_failed;
    return (int)n_all_failed;
}

void drllm_skip_test(const char *reason, const char *file, int line) {
    counts.skipped++;
    if (reason != NULL) {
        print_message("             %s\n", reason);
    }
    _skip(file, line);
}

/* ---- Random numbers ---- */

/* splitmix64 */
uint32_t drllm_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

float drllm_random_float(uint64_t *state) {
    return (float)((int32_t)(drllm_random(state) >> 8) - (1 << 23)) * 0x1p-23f;
}

/* ---- Memory ---- */

enum { GUARD_BYTES = 256, GUARD = 0xa5 };

static size_t page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

void drllm_fence_free(struct drllm_fence *fence) {
    if (fence->pages != NULL) {
        assert_int_equal(munmap(fence->pages - page_bytes(), fence->pages_bytes + 2 * page_bytes()), 0);
    }
    *fence = (struct drllm_fence)DRLLM_FENCE_INIT;
}

static void protect(struct drllm_fence *fence, bool sealed) {
    if (fence->sealed != sealed) {
        const int protection = sealed ? PROT_READ : PROT_READ | PROT_WRITE;
        assert_int_equal(mprotect(fence->pages, fence->pages_bytes, protection), 0);
        fence->sealed = sealed;
    }
}

void *drllm_fence_place(struct drllm_fence *fence, size_t size, enum drllm_fence_side side) {
    const size_t page = page_bytes();
    const size_t needed = (size + GUARD_BYTES + page - 1) / page * page;
    if (needed > fence->pages_bytes) {
        drllm_fence_free(fence);
        const size_t total = 2 * needed + 2 * page;
        uint8_t *map = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(map != MAP_FAILED);
        fence->pages = map + page;
        fence->pages_bytes = total - 2 * page;
        fence->sealed = true;
    }
    protect(fence, false);
    uint8_t *end = fence->pages + fence->pages_bytes;
    fence->data = side == DRLLM_FENCE_BEHIND ? end - size : fence->pages;
    fence->size = size;
    memset(side == DRLLM_FENCE_BEHIND ? fence->data - GUARD_BYTES : fence->data + size, GUARD, GUARD_BYTES);
    memset(fence->data, 0xff, size);
    return fence->data;
}

const void *drllm_fence_copy(struct drllm_fence *fence, const void *bytes, size_t size, enum drllm_fence_side side) {
    void *data = drllm_fence_place(fence, size, side);
    if (size != 0) {
        memcpy(data, bytes, size);
    }
    protect(fence, true);
    return data;
}

void drllm_fence_check(const struct drllm_fence *fence) {
    const bool is_before = fence->data == fence->pages;
    const uint8_t *guards = is_before ? fence->data + fence->size : fence->data - GUARD_BYTES;
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (guards[i] != GUARD) {
            fail_msg("%zu bytes %s a buffer of %zu bytes: written", is_before ? i : GUARD_BYTES - i,
                     is_before ? "past the end of" : "in front of", fence->size);
        }
    }
}

/* ---- Floats ---- */

bool drllm_same_float(float a, float b) {
    return drllm_f32_to_bits(a) == drllm_f32_to_bits(b) || (isnan(a) && isnan(b));
}

size_t drllm_first_difference(const float *a, const float *b, size_t n) {
    size_t i = 0;
    while (i < n && drllm_same_float(a[i], b[i])) {
        i++;
    }
    return i;
}

uint64_t drllm_checksum(uint64_t sum, const void *words, size_t n_words) {
    for (size_t i = 0; i < n_words; i++) {
        uint32_t word;
        memcpy(&word, (const uint8_t *)words + i * sizeof word, sizeof word);
        sum = (sum ^ word) * 0x100000001b3u;
    }
    return sum;
}

/* ---- The program ---- */

static pid_t runner; /* children of tests are not it */
static bool is_finished;

/* A test that calls exit(0) is no success. */
static void check_finished(void) {
    if (!is_finished && getpid() == runner) {
        (void)fputs("drllm-tests: a test ended the program\n", stderr);
        _exit(1);
    }
}

static int usage(int status) {
    (void)fprintf(status == 0 ? stdout : stderr, "usage: drllm-tests [--fast] [--list] [GROUP]...\n"
                                                 "  --fast   no test that needs a big model or takes long\n"
                                                 "  --list   print the groups\n");
    return status;
}

static void list(void) {
    for (size_t i = 0; i < N_GROUPS; i++) {
        puts(groups[i].name);
    }
}

/* False if no group has this name. */
static bool choose(const char *name, bool chosen[N_GROUPS]) {
    for (size_t i = 0; i < N_GROUPS; i++) {
        if (strcmp(groups[i].name, name) == 0) {
            chosen[i] = true;
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv) {
    bool chosen[N_GROUPS] = {false};
    bool all = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--fast") == 0) {
            if (setenv(fast_variable, "1", 1) != 0) {
                return 2;
            }
        } else if (strcmp(argv[i], "--list") == 0) {
            list();
            return 0;
        } else if (strcmp(argv[i], "--help") == 0) {
            return usage(0);
        } else if (choose(argv[i], chosen)) {
            all = false;
        } else {
            (void)fprintf(stderr, "drllm-tests: no group or option '%s'\n", argv[i]);
            return usage(2);
        }
    }
    (void)setvbuf(stdout, NULL, _IOLBF, 0); /* in step with stderr */
    runner = getpid();
    if (atexit(check_finished) != 0) {
        return 2;
    }
    for (size_t i = 0; i < N_GROUPS; i++) {
        if ((all || chosen[i]) && groups[i].run() != 0 && counts.failed == 0) {
            counts.failed++; /* a group that does not count, see drllm_run_group */
        }
    }
    printf("\n%zu passed, %zu failed", counts.passed, counts.failed);
    if (counts.skipped != 0) {
        printf(", %zu skipped", counts.skipped);
    }
    puts("");
    is_finished = true;
    return counts.failed == 0 && counts.passed != 0 ? 0 : 1;
}
