/* Work on questions that is shared by all cores: sessions of one thread each, one a worker. */
#ifndef DRLLM_TOOLS_WORKERS_H
#define DRLLM_TOOLS_WORKERS_H

#include "platform/threads.h"
#include "tools/common.h"

struct workers {
    struct drllm_threads *threads;
    struct drllm_session **sessions; /* [count] */
    size_t count;
};

/* n_workers 0: one per free fast core. Sessions hold n_context tokens, with keys and values as kv says (enum
 * drllm_kv_type). Returns an exit code; release in any case. */
int workers_open(const struct command *command, const struct drllm_model *model, size_t n_workers, size_t n_context,
                 int kv, struct workers *workers);
void workers_release(struct workers *workers);

/* Call task(user, worker, session, index) for index 0 .. n_tasks-1, each once, one at a time on a worker; stops handing out
 * tasks after the first that does not return DRLLM_OK, or after Ctrl-C (interrupt.h). Returns that status (CANCELLED for
 * Ctrl-C). */
typedef int (*worker_task)(void *user, size_t worker, struct drllm_session *session, size_t index);
int workers_run(struct workers *workers, worker_task task, void *user, size_t n_tasks);

/* "\r"-free progress on stderr, at most one line a second: "what: 12 of 450, 31 s to go". Begin with {0}. */
struct progress {
    const char *what;
    size_t total;
    uint64_t start_ns;
    uint64_t last_ns;
};
void progress_show(struct progress *progress, size_t done);

#endif
