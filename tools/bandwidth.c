#include "tools/bandwidth.h"

#include "platform/clock.h"
#include "platform/memory.h"
#include "platform/threads.h"

#include <stdint.h>
#include <string.h>

enum { BUFFER_WORDS = 1 << 25, PARTS = 64, PART_WORDS = BUFFER_WORDS / PARTS, PASSES = 7 }; /* 256 MiB */

struct reading {
    const uint64_t *words;
    uint64_t sums[PARTS];
};

/* Two places at once and eight sums that do not wait for each other, written out, take even plain -O2 code without
 * vectors to the limit of the memory. */
static uint64_t sum_words(const uint64_t *words, size_t n) {
    const uint64_t *x = words;
    const uint64_t *y = words + n / 2;
    uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (const uint64_t *end = y; x < end; x += 8, y += 8) {
        a += x[0] + x[4];
        b += x[1] + x[5];
        c += x[2] + x[6];
        d += x[3] + x[7];
        e += y[0] + y[4];
        f += y[1] + y[5];
        g += y[2] + y[6];
        h += y[3] + y[7];
    }
    return a + b + c + d + e + f + g + h;
}

static void read_part(void *context, size_t worker, size_t index) {
    (void)worker;
    struct reading *reading = context;
    reading->sums[index] = sum_words(reading->words + index * PART_WORDS, PART_WORDS);
}

double measure_bandwidth(unsigned n_threads) {
    uint64_t *words = drllm_memory_allocate(BUFFER_WORDS * sizeof *words, 64);
    struct drllm_threads *threads = drllm_threads_create(n_threads);
    double best = 0.0;
    if (words != NULL && threads != NULL) {
        /* Every page must be its own: what was never written is one page of zeros, which stays in the cache. */
        memset(words, 1, BUFFER_WORDS * sizeof *words);
        struct reading reading = {.words = words};
        uint64_t check = 0;
        for (int pass = 0; pass < PASSES; pass++) {
            const uint64_t start = drllm_clock_ns();
            drllm_threads_run(threads, read_part, &reading, PARTS);
            const uint64_t ns = drllm_clock_ns() - start;
            const double rate = ns == 0 ? 0.0 : (double)BUFFER_WORDS * sizeof *words * 1e9 / (double)ns;
            best = rate > best ? rate : best;
            check += reading.sums[pass % PARTS];
        }
        best = check == 0 ? 0.0 : best; /* the sums are used, so no compiler may leave them out */
    }
    drllm_threads_destroy(threads);
    drllm_memory_release(words);
    return best;
}
