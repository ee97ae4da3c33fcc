#include "tools/stalls.h"

#include "platform/clock.h"
#include "platform/threads.h"

#include <stdatomic.h>
#include <stdint.h>

struct watch {
    uint64_t duration_ns;
    uint64_t longest_ns;
    atomic_size_t n;
};

static void watch_clock(void *context, size_t worker, size_t index) {
    (void)worker;
    (void)index;
    struct watch *watch = context;
    const uint64_t start = drllm_clock_ns();
    uint64_t before = start;
    while (before - start < watch->duration_ns) {
        const uint64_t now = drllm_clock_ns();
        if (now - before > watch->longest_ns) {
            atomic_fetch_add_explicit(&watch->n, 1, memory_order_relaxed);
        }
        before = now;
    }
}

struct stalls measure_stalls(unsigned n_threads, double seconds, double longest_ms) {
    struct drllm_threads *threads = drllm_threads_create(n_threads);
    if (threads == NULL) {
        return (struct stalls){0};
    }
    struct watch watch = {.duration_ns = (uint64_t)(seconds * 1e9), .longest_ns = (uint64_t)(longest_ms * 1e6)};
    drllm_threads_run(threads, watch_clock, &watch, n_threads);
    drllm_threads_destroy(threads);
    return (struct stalls){atomic_load_explicit(&watch.n, memory_order_relaxed), seconds};
}
