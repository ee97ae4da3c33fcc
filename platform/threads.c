#include "platform/threads.h"

#include "platform/clock.h"

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

/* Where other programs want the cores, a worker that is put aside in the middle of a task holds up the region for a
 * whole time slice. So the pool watches how long its caller waits for the others, and works with half as many threads
 * for a while where that is much of the time, down to the caller alone. */
enum {
    MAX_THREADS = 1024,
    MAX_LEVELS = 10,              /* of 1024, 512 .. 2 threads */
    WINDOW_NS = 10 * 1000 * 1000, /* of work, that the waiting is a share of */
    TOLERATED_NS = 100 * 1000,    /* of waiting a region, which a wake-up may take */
    SHORTEST_HOLD_NS = 500 * 1000 * 1000,
    LONGEST_NS = 500 * 1000 * 1000, /* of a region that is judged */
};
static const uint64_t longest_hold_ns = 4000u * 1000 * 1000;

struct drllm_threads {
    pthreadpool_t pools[MAX_LEVELS]; /* of count, count / 2 .. threads; past the last one the caller is alone */
    size_t n_levels;
    unsigned count;
    size_t level;                  /* of the pool in use */
    uint64_t window_ns, waited_ns; /* time in regions, and the part of it in which the caller waited */
    uint64_t lost_ns;              /* the waiting that is somebody's fault */
    uint64_t retry_ns, hold_ns;    /* when to try the larger pool again, and how long after the next failure */
    bool suspected;                /* the last window was a bad one; a machine may hold up anybody once */
    bool rising;                   /* the pool in use is one that is tried again, not judged yet */
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

static bool make_pools(struct drllm_threads *threads) {
    size_t n_workers = 0;
    for (unsigned n = threads->count; n > 1; n /= 2) {
        n_workers += n - 1;
    }
    if (n_workers != 0 && !can_make_threads(n_workers)) {
        return false;
    }
    for (unsigned n = threads->count; n > 1; n /= 2) {
        pthreadpool_t pool = pthreadpool_create(n);
        if (pool == NULL) {
            return false;
        }
        threads->pools[threads->n_levels++] = pool;
    }
    return true;
}

struct drllm_threads *drllm_threads_create(unsigned n_threads) {
    if (n_threads > MAX_THREADS) {
        return NULL;
    }
    struct drllm_threads *threads = malloc(sizeof *threads);
    if (threads == NULL) {
        return NULL;
    }
    *threads = (struct drllm_threads){.count = n_threads > 1 ? n_threads : 1, .hold_ns = SHORTEST_HOLD_NS};
    if (!make_pools(threads)) {
        drllm_threads_destroy(threads);
        return NULL;
    }
    return threads;
}

void drllm_threads_destroy(struct drllm_threads *threads) {
    for (size_t i = 0; threads != NULL && i < threads->n_levels; i++) {
        pthreadpool_destroy(threads->pools[i]);
    }
    free(threads);
}

unsigned drllm_threads_count(const struct drllm_threads *threads) {
    return threads != NULL ? threads->count : 1;
}

/* ---- Regions ---- */

#ifdef THREAD_SANITIZER
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#endif

struct watched {
    drllm_task_fn task;
    void *context;
    uint64_t end_ns, longest_ns; /* of the caller's own tasks */
};

static void run_watched(void *context, size_t worker, size_t index) {
    struct watched *watched = context;
#ifdef THREAD_SANITIZER
    __tsan_acquire(watched);
#endif
    watched->task(watched->context, worker, index);
#ifdef THREAD_SANITIZER
    __tsan_release(watched);
#endif
    if (worker == 0) {
        const uint64_t now = drllm_clock_ns();
        const uint64_t took = now - watched->end_ns;
        watched->longest_ns = took > watched->longest_ns ? took : watched->longest_ns;
        watched->end_ns = now;
    }
}

static void start_window(struct drllm_threads *threads, size_t level) {
    threads->level = level;
    threads->window_ns = 0;
    threads->waited_ns = 0;
    threads->lost_ns = 0;
}

/* A region that began at start_ns is over. Waiting twice as long as the caller's longest task, and as a wake-up takes, is
 * nobody's fault; nor is what long and unequal tasks bring with them. But a caller that waits for longer than it works would be
 * as quick with half as many threads, whatever the reason: others may take a while to come each time. */
static void look_back(struct drllm_threads *threads, const struct watched *watched, uint64_t start_ns) {
    const uint64_t now = drllm_clock_ns();
    const uint64_t waited = now - watched->end_ns;
    if (now - start_ns > LONGEST_NS) {
        return;
    }
    const uint64_t tolerated = TOLERATED_NS + 2 * watched->longest_ns;
    threads->window_ns += now - start_ns;
    threads->waited_ns += waited;
    threads->lost_ns += waited > tolerated ? waited : 0;
    if (threads->window_ns < WINDOW_NS) {
        return;
    }
    const bool is_bad = threads->lost_ns * 4 > threads->window_ns || threads->waited_ns * 2 > threads->window_ns;
    const bool falls = is_bad && (threads->suspected || threads->rising);
    threads->suspected = is_bad && !falls;
    if (falls) {
        threads->retry_ns = now + threads->hold_ns;
        threads->hold_ns = threads->hold_ns * 2 < longest_hold_ns ? threads->hold_ns * 2 : longest_hold_ns;
        threads->rising = false;
        start_window(threads, threads->level + 1);
        return;
    }
    if (threads->rising) { /* it is good again: on to the next larger one */
        threads->rising = false;
        threads->hold_ns = threads->hold_ns / 2 > SHORTEST_HOLD_NS ? threads->hold_ns / 2 : (uint64_t)SHORTEST_HOLD_NS;
        threads->retry_ns = now;
    }
    start_window(threads, threads->level);
}

void drllm_threads_run(struct drllm_threads *threads, drllm_task_fn task, void *context, size_t n_tasks) {
    const uint64_t start_ns = threads != NULL && threads->n_levels != 0 && n_tasks > 1 ? drllm_clock_ns() : 0;
    if (start_ns != 0 && threads->level != 0 && start_ns >= threads->retry_ns) {
        threads->rising = true;
        threads->retry_ns = UINT64_MAX; /* until this one is judged */
        start_window(threads, threads->level - 1);
    }
    if (start_ns == 0 || threads->level == threads->n_levels) {
        for (size_t i = 0; i < n_tasks; i++) {
            task(context, 0, i);
        }
        return;
    }
    struct watched watched = {task, context, start_ns, 0};
#ifdef THREAD_SANITIZER
    __tsan_release(&watched);
#endif
    /* No flags: with denormals off, values would depend on the thread that computes them. */
    pthreadpool_parallelize_1d_with_thread(threads->pools[threads->level], run_watched, &watched, n_tasks, 0);
#ifdef THREAD_SANITIZER
    __tsan_acquire(&watched);
#endif
    look_back(threads, &watched, start_ns);
}

void *drllm_threads_native(struct drllm_threads *threads) {
    return threads != NULL && threads->n_levels != 0 ? threads->pools[0] : NULL;
}
