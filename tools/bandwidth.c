#include "tools/bandwidth.h"

#include "platform/clock.h"
#include "platform/memory.h"
#include "platform/threads.h"

#include <stdlib.h>
#include <string.h>

enum {
    BUFFER_WORDS = 1 << 25, /* 256 MiB */
    PARTS = 64,
    PART_WORDS = BUFFER_WORDS / PARTS,
    STEP_WORDS = 16, /* of sum_words */
    PASSES = 7
};

struct reader {
    uint64_t *words;
    struct drllm_threads *threads;
    size_t first;   /* part that the next pass begins with, so that it finds nothing of the last one in a cache */
    size_t n_words; /* of the pass */
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
    struct reader *reader = context;
    const size_t part = (reader->first + index) % PARTS;
    const size_t left = reader->n_words - index * PART_WORDS;
    reader->sums[part] = sum_words(reader->words + part * PART_WORDS, left < PART_WORDS ? left : (size_t)PART_WORDS);
}

struct reader *reader_open(unsigned n_threads) {
    struct reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) {
        return NULL;
    }
    reader->words = drllm_memory_allocate(BUFFER_WORDS * sizeof *reader->words, 64);
    reader->threads = drllm_threads_create(n_threads);
    if (reader->words == NULL || reader->threads == NULL) {
        reader_close(reader);
        return NULL;
    }
    /* Every page must be its own: what was never written is one page of zeros, which stays in the cache. */
    memset(reader->words, 1, BUFFER_WORDS * sizeof *reader->words);
    return reader;
}

void reader_close(struct reader *reader) {
    if (reader != NULL) {
        drllm_threads_destroy(reader->threads);
        drllm_memory_release(reader->words);
        free(reader);
    }
}

double reader_read(struct reader *reader, double bytes, uint64_t *ns) {
    size_t words = (size_t)(bytes / sizeof *reader->words) / STEP_WORDS * STEP_WORDS;
    words = words < STEP_WORDS ? (size_t)STEP_WORDS : words;
    const uint64_t start = drllm_clock_ns();
    for (size_t done = 0; done < words; done += reader->n_words) { /* no two threads at one part */
        reader->n_words = words - done < BUFFER_WORDS ? words - done : (size_t)BUFFER_WORDS;
        const size_t n_parts = (reader->n_words + PART_WORDS - 1) / PART_WORDS;
        drllm_threads_run(reader->threads, read_part, reader, n_parts);
        reader->first = (reader->first + n_parts) % PARTS;
    }
    *ns = drllm_clock_ns() - start;
    return (double)words * sizeof *reader->words;
}

double reader_bandwidth(struct reader *reader) {
    double best = 0.0;
    uint64_t check = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        uint64_t ns;
        const double bytes = reader_read(reader, BUFFER_WORDS * sizeof *reader->words, &ns);
        const double rate = ns == 0 ? 0.0 : bytes * 1e9 / (double)ns;
        best = rate > best ? rate : best;
        check += reader->sums[pass];
    }
    return check == 0 ? 0.0 : best; /* the sums are used, so no compiler may leave them out */
}

double measure_bandwidth(unsigned n_threads) {
    struct reader *reader = reader_open(n_threads);
    const double bandwidth = reader != NULL ? reader_bandwidth(reader) : 0.0;
    reader_close(reader);
    return bandwidth;
}
