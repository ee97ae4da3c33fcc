/* Fuzz targets: everything that reads bytes from outside, given any bytes. tests/fuzz_NAME.c each.
 *
 * They run in three ways: as tests (the group `fuzz`: a bounded number of inputs of a fixed seed), by build/drllm-fuzz
 * (tests/fuzz/driver.c: any number, or files), and by libFuzzer (`make fuzz LIBFUZZER=1`). */
#ifndef DRLLM_TESTS_FUZZ_H
#define DRLLM_TESTS_FUZZ_H

#include "runtime/drllm.h"
#include "tests/tiny_model.h"

#define DRLLM_FUZZ_TARGETS(X) \
    X(gguf)                   \
    X(packed)                 \
    X(routers)                \
    X(tokenizer)              \
    X(program)                \
    X(jsonl)

struct drllm_fuzz_target {
    const char *name;
    size_t n_tests; /* inputs that the test runs; a fortieth of them with --fast */
    /* A sound input, to be freed; NULL from some number on. The same each time. */
    uint8_t *(*sample)(size_t number, size_t *size);
    /* Lets a changed input pass what only chance would pass, checksums. NULL: nothing to do. */
    void (*repair)(uint8_t *data, size_t size);
    /* The input lies in a block of its size, at a multiple of 64. What is wrong ends the program. */
    void (*run)(const uint8_t *data, size_t size);
};

#define DRLLM_FUZZ_DECLARE(name) extern const struct drllm_fuzz_target drllm_fuzz_##name;
DRLLM_FUZZ_TARGETS(DRLLM_FUZZ_DECLARE)
#undef DRLLM_FUZZ_DECLARE

enum {
#define DRLLM_FUZZ_COUNT(name) DRLLM_FUZZ_NUMBER_##name,
    DRLLM_FUZZ_TARGETS(DRLLM_FUZZ_COUNT)
#undef DRLLM_FUZZ_COUNT
        DRLLM_FUZZ_N
};
extern const struct drllm_fuzz_target *const drllm_fuzz_targets[DRLLM_FUZZ_N];
/* NULL if there is none. */
const struct drllm_fuzz_target *drllm_fuzz_find(const char *name);

/* Input `number` of a seed, to be freed: a sample, changed in some places; it depends on nothing else. */
uint8_t *drllm_fuzz_input(const struct drllm_fuzz_target *target, uint64_t seed, uint64_t number, size_t *size);
/* Run the target on a copy in a block of just its size. */
void drllm_fuzz_run(const struct drllm_fuzz_target *target, const uint8_t *data, size_t size);

/* How many inputs the targets took as sound so far: were it none, the changes would test nothing but the first checks. */
extern size_t drllm_fuzz_n_accepted;

/* End the program, with a line on stderr, unless it holds. */
#define drllm_fuzz_check(holds) ((holds) ? (void)0 : drllm_fuzz_fail(#holds, __FILE__, __LINE__))
__attribute__((noreturn)) void drllm_fuzz_fail(const char *what, const char *file, int line);

/* Open it as a model with memory that is counted, and if that works, use it in every way: vocabulary, text, a prefill.
 * Checks that errors have texts and that all memory comes back. */
void drllm_fuzz_model(const uint8_t *data, size_t size);
/* Two blocks of 32 dimensions; number: which of the variants. False if there is no such. */
bool drllm_fuzz_model_options(size_t number, struct tiny_options *options);

#endif
