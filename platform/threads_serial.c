/* The calls of threads.c for machines without threads: all tasks run on the caller, in order. */
#include "platform/threads.h"

#include <stddef.h>

/* A pool without threads has no state, so one serves all callers. */
struct drllm_threads {
    unsigned count;
};
static struct drllm_threads serial = {1};

struct drllm_threads *drllm_threads_create(unsigned n_threads) {
    (void)n_threads;
    return &serial;
}

void drllm_threads_destroy(struct drllm_threads *threads) {
    (void)threads;
}

unsigned drllm_threads_count(const struct drllm_threads *threads) {
    (void)threads;
    return 1;
}

void drllm_threads_run(struct drllm_threads *threads, drllm_task_fn task, void *context, size_t n_tasks) {
    (void)threads;
    for (size_t i = 0; i < n_tasks; i++) {
        task(context, 0, i);
    }
}

void *drllm_threads_native(struct drllm_threads *threads) {
    (void)threads;
    return NULL;
}
