/* What the test groups share: the list of groups, counts, random numbers, memory that shows a wrong access.
 *
 * A group is a file tests/test_NAME.c with a function `int drllm_test_NAME(void)` that returns what drllm_run_group
 * returns. To add one, add its name to DRLLM_TEST_GROUPS. */
#ifndef DRLLM_TESTS_TESTS_H
#define DRLLM_TESTS_TESTS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* In the order in which they run. */
#define DRLLM_TEST_GROUPS(X) \
    X(formats)               \
    X(kernels)               \
    X(vec)                   \
    X(math)                  \
    X(platform)              \
    X(power)                 \
    X(affinity)              \
    X(xnnpack)               \
    X(gguf)                  \
    X(tokenizer)             \
    X(chat)                  \
    X(model)                 \
    X(packed)                \
    X(fuzz)                  \
    X(session)               \
    X(program)               \
    X(router_file)           \
    X(routing)               \
    X(sampler)               \
    X(generate)              \
    X(kjv)                   \
    X(parity)                \
    X(routed)                \
    X(firmware)              \
    X(questions)             \
    X(search)                \
    X(mpi)                   \
    X(train)                 \
    X(eval)                  \
    X(bench)                 \
    X(cli)                   \
    X(cli_depth)

#define DRLLM_TEST_DECLARE(name) int drllm_test_##name(void);
DRLLM_TEST_GROUPS(DRLLM_TEST_DECLARE)
#undef DRLLM_TEST_DECLARE

/* Whether --fast was given: only tests that need no big model, and seconds in all. */
bool drllm_test_is_fast(void);

/* ---- Counting ---- */

/* cmocka_run_group_tests_name, and the tests are added to the runner's counts. Returns the number of failures. */
#define drllm_run_group(name, tests, setup, teardown) \
    drllm_run_group_tests(name, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)
int drllm_run_group_tests(const char *name, const struct CMUnitTest *tests, size_t n_tests, CMFixtureFunction setup,
                          CMFixtureFunction teardown);

/* Leave a test (not a setup or teardown) that cannot run here; it counts as skipped. The reason is printed. */
#define drllm_skip(reason) drllm_skip_test(reason, __FILE__, __LINE__)
__attribute__((noreturn)) void drllm_skip_test(const char *reason, const char *file, int line);
/* cmocka does not tell how many tests were skipped: its own word has to count as well. */
#undef skip
#define skip() drllm_skip_test(NULL, __FILE__, __LINE__)

/* ---- Random numbers, the same on every machine ---- */

uint32_t drllm_random(uint64_t *state);
/* In [-1, 1), a multiple of 2^-23. */
float drllm_random_float(uint64_t *state);

/* ---- Memory ---- */

/* A buffer with an inaccessible page right behind its end (or right in front of it), and guard bytes on the other
 * side. */
struct drllm_fence {
    uint8_t *pages; /* the accessible ones */
    size_t pages_bytes;
    uint8_t *data;
    size_t size;
    bool sealed;
};
enum drllm_fence_side { DRLLM_FENCE_BEHIND, DRLLM_FENCE_BEFORE };
#define DRLLM_FENCE_INIT \
    { NULL, 0, NULL, 0, false }

/* `size` bytes, each 0xff, in the memory of `fence`, which is zeroed at first and grows as needed; what lay there is
 * lost. With the page behind, the buffer is aligned as far as its size is. */
void *drllm_fence_place(struct drllm_fence *fence, size_t size, enum drllm_fence_side side);
/* The same with a copy of `bytes`, read-only. */
const void *drllm_fence_copy(struct drllm_fence *fence, const void *bytes, size_t size, enum drllm_fence_side side);
/* Fails the running test if a guard byte was changed. */
void drllm_fence_check(const struct drllm_fence *fence);
void drllm_fence_free(struct drllm_fence *fence);

/* ---- Floats ---- */

/* The same bits, or NaN both. */
bool drllm_same_float(float a, float b);
/* The first index where they differ, n if they do not. */
size_t drllm_first_difference(const float *a, const float *b, size_t n);
/* A checksum of bytes (FNV-1a over the 4-byte little-endian words), started with DRLLM_CHECKSUM_START. */
#define DRLLM_CHECKSUM_START 0xcbf29ce484222325u
uint64_t drllm_checksum(uint64_t sum, const void *words, size_t n_words);

#endif
