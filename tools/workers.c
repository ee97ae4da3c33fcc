#include "tools/workers.h"

#include "platform/clock.h"
#include "runtime/drllm_os.h"
#include "tools/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

/* ---- Threads and sessions ---- */

/* Without SIGINT, as the sessions' threads: the caller's thread takes it, which wakes what waits there. */
static struct drllm_threads *create_threads(unsigned n) {
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupt, &before);
    struct drllm_threads *threads = drllm_threads_create(n);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads;
}

int workers_open(const struct command *command, const struct drllm_model *model, size_t n_workers, size_t n_context,
                 int kv, struct workers *workers) {
    *workers = (struct workers){NULL, NULL, 0};
    workers->threads = create_threads(n_workers != 0 ? (unsigned)n_workers : drllm_default_threads());
    if (workers->threads == NULL) {
        report(command, "cannot make threads");
        return TOOL_FAILED;
    }
    const size_t count = drllm_threads_count(workers->threads);
    workers->sessions = allocate(count, sizeof(struct drllm_session *));
    for (; workers->count < count; workers->count++) {
        const int exit_code = open_session(command, model, n_context, 1, kv, &workers->sessions[workers->count]);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    return TOOL_OK;
}

void workers_release(struct workers *workers) {
    for (size_t i = 0; i < workers->count; i++) {
        drllm_session_close(workers->sessions[i]);
    }
    free((void *)workers->sessions);
    if (workers->threads != NULL) {
        drllm_threads_destroy(workers->threads);
    }
    *workers = (struct workers){NULL, NULL, 0};
}

/* ---- Tasks ---- */

struct work {
    struct workers *workers;
    worker_task task;
    void *user;
    atomic_size_t next;
    atomic_int status; /* of the first task that failed */
    atomic_bool cancelled_all;
};

static void stop(struct work *work, int status) {
    int expected = DRLLM_OK;
    atomic_compare_exchange_strong(&work->status, &expected, status);
}

/* The handler of Ctrl-C reaches one session only, the first, whose task then ends at once and comes here. */
static void cancel_all(struct work *work) {
    stop(work, DRLLM_ERR_CANCELLED);
    if (!atomic_exchange(&work->cancelled_all, true)) {
        for (size_t i = 0; i < work->workers->count; i++) {
            drllm_session_cancel(work->workers->sessions[i]);
        }
    }
}

/* The pool's own index is not used: counted here, tasks begin in order on all workers together. */
static void run_next(void *context, size_t worker, size_t unused) {
    struct work *work = context;
    (void)unused;
    if (interrupt_seen()) {
        cancel_all(work);
    }
    if (atomic_load(&work->status) != DRLLM_OK) {
        return;
    }
    const size_t index = atomic_fetch_add(&work->next, 1);
    const int status = work->task(work->user, worker, work->workers->sessions[worker], index);
    if (interrupt_seen()) {
        cancel_all(work);
    } else if (status != DRLLM_OK) {
        stop(work, status);
    }
}

int workers_run(struct workers *workers, worker_task task, void *user, size_t n_tasks) {
    struct work work = {.workers = workers, .task = task, .user = user};
    interrupt_watch(workers->sessions[0]);
    drllm_threads_run(workers->threads, run_next, &work, n_tasks);
    interrupt_watch(NULL);
    const int status = atomic_load(&work.status);
    if (atomic_load(&work.cancelled_all)) {
        for (size_t i = 0; i < workers->count; i++) {
            drllm_session_reset(workers->sessions[i]); /* a cancel that met no call would end the next one */
        }
    }
    return status;
}

/* ---- Progress ---- */

void progress_show(struct progress *progress, size_t done) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    const uint64_t now = drllm_clock_ns();
    pthread_mutex_lock(&one_at_a_time);
    if (progress->start_ns == 0) {
        progress->start_ns = progress->last_ns = now;
    }
    /* Another thread may have taken the time later and come first. */
    if (now > progress->last_ns && now - progress->last_ns >= 1000000000) {
        const double seconds = (double)(now - progress->start_ns) / 1e9;
        progress->last_ns = now;
        if (done != 0 && done <= progress->total) {
            fprintf(stderr, "%s: %zu of %zu, %.0f s to go\n", progress->what, done, progress->total,
                    seconds / (double)done * (double)(progress->total - done));
        } else {
            fprintf(stderr, "%s: %zu of %zu\n", progress->what, done, progress->total);
        }
    }
    pthread_mutex_unlock(&one_at_a_time);
}
