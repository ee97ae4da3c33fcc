#include "platform/threads.h"

#include <pthreadpool.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

/* The pool's library is built without the thread sanitizer, which would not see that it orders memory. */
#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif

enum { MAX_THREADS = 1024 };

struct drllm_threads {
    pthreadpool_t pool; /* NULL for one thread */
    unsigned count;
};

static void *wait_for_gate(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* pthreadpool does not look at what pthread_create returns, and waits for ever for a thread that was not made. So
 * see first whether there can be so many at once. */
static bool can_make_threads(size_t n) {
    pthread_t *made = malloc(n * sizeof *made);
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    size_t n_made = 0;
    if (made == NULL) {
        return false;
    }
    pthread_mutex_lock(&gate);
    while (n_made < n && pthread_create(&made[n_made], NULL, wait_for_gate, &gate) == 0) {
        n_made++;
    }
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < n_made; i++) {
        pthread_join(made[i], NULL);
    }
    pthread_mutex_destroy(&gate);
    free(made);
    return n_made == n;
}

struct drllm_threads *drllm_threads_create(unsigned n_threads) {
    if (n_threads > MAX_THREADS) {
        return NULL;
    }
    struct drllm_threads *threads = malloc(sizeof *threads);
    if (threads == NULL) {
        return NULL;
    }
    *threads = (struct drllm_threads){NULL, n_threads > 1 ? n_threads : 1};
    if (n_threads > 1) {
        threads->pool = can_make_threads(n_threads - 1) ? pthreadpool_create(n_threads) : NULL;
        if (threads->pool == NULL) {
            free(threads);
            return NULL;
        }
    }
    return threads;
}

void drllm_threads_destroy(struct drllm_threads *threads) {
    if (threads != NULL) {
        pthreadpool_destroy(threads->pool);
        free(threads);
    }
}

unsigned drllm_threads_count(const struct drllm_threads *threads) {
    return threads != NULL ? threads->count : 1;
}

#ifdef THREAD_SANITIZER
void __tsan_acquire(void *address);
void __tsan_release(void *address);

struct watched {
    drllm_task_fn task;
    void *context;
};

static void run_watched(void *context, size_t worker, size_t index) {
    struct watched *watched = context;
    __tsan_acquire(watched);
    watched->task(watched->context, worker, index);
    __tsan_release(watched);
}
#endif

/* No flags: with denormals off, values would depend on the thread that computes them. */
void drllm_threads_run(struct drllm_threads *threads, drllm_task_fn task, void *context, size_t n_tasks) {
    if (threads == NULL || threads->pool == NULL || n_tasks <= 1) {
        for (size_t i = 0; i < n_tasks; i++) {
            task(context, 0, i);
        }
        return;
    }
#ifdef THREAD_SANITIZER
    struct watched watched = {task, context};
    __tsan_release(&watched);
    pthreadpool_parallelize_1d_with_thread(threads->pool, run_watched, &watched, n_tasks, 0);
    __tsan_acquire(&watched);
#else
    pthreadpool_parallelize_1d_with_thread(threads->pool, task, context, n_tasks, 0);
#endif
}

void *drllm_threads_native(struct drllm_threads *threads) {
    return threads != NULL ? threads->pool : NULL;
}
