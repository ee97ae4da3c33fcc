#include "tools/serve_queue.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct serve_queue {
    const struct serve_model *model;
    struct drllm_session *session;
    pthread_t thread;
    pthread_mutex_t lock; /* of all that follows and of the jobs in the queue */
    pthread_cond_t changed;
    struct serve_job *first;
    struct serve_job *last;
    struct serve_job *running;
    size_t most_waiting;
    struct serve_counts counts;
    bool session_cancelled; /* while `running` ran */
    bool is_stopping;
};

/* Of what a stream sends. */
struct streaming {
    struct serve_queue *queue;
    struct serve_job *job;
    size_t index;
    struct serve_sent sent;
};

void serve_job_release(struct serve_job *job) {
    for (size_t i = 0; job->choices != NULL && i < job->request.n_prompts; i++) {
        serve_choice_release(&job->choices[i]);
    }
    free(job->choices);
    text_release(&job->stream);
    serve_request_release(&job->request);
}

/* ---- The thread that answers ---- */

static void append_stream(struct serve_queue *queue, struct serve_job *job, const struct text *text) {
    pthread_mutex_lock(&queue->lock);
    text_append(&job->stream, text->data, text->size);
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

static void send_event(struct serve_queue *queue, struct serve_job *job, cJSON *json) {
    struct text text = {NULL, 0, 0};
    serve_event(&text, json);
    append_stream(queue, job, &text);
    text_release(&text);
}

static void send_progress(void *user, const struct serve_choice *choice) {
    struct streaming *streaming = user;
    const bool is_new = choice->text.size != streaming->sent.text ||
                        choice->log_probs.count != streaming->sent.log_probs || !streaming->sent.has_begun;
    if (streaming->job->request.stream && is_new) {
        send_event(streaming->queue, streaming->job,
                   serve_piece_json(&streaming->job->reply, streaming->index, choice, &streaming->sent, false));
    }
}

static void fail_job(struct serve_queue *queue, struct serve_job *job, int status) {
    if (status == DRLLM_ERR_CANCELLED) {
        serve_fail(&job->error, 503, "stopping", NULL, "the request was cancelled: the server stops");
    } else {
        const int http = status == DRLLM_ERR_CONTEXT_FULL || status == DRLLM_ERR_ARGUMENT ? 400 : 500;
        const char *detail = drllm_session_last_error(queue->session);
        serve_fail(&job->error, http, NULL, NULL, "%s", detail[0] != '\0' ? detail : drllm_strerror(status));
    }
}

static bool is_cancelled(struct serve_queue *queue, const struct serve_job *job) {
    pthread_mutex_lock(&queue->lock);
    const bool cancelled = job->is_cancelled;
    pthread_mutex_unlock(&queue->lock);
    return cancelled;
}

static int answer_prompts(struct serve_queue *queue, struct serve_job *job) {
    for (size_t i = 0; i < job->request.n_prompts; i++) {
        struct streaming streaming = {.queue = queue, .job = job, .index = i};
        const int status = is_cancelled(queue, job) ? DRLLM_ERR_CANCELLED
                                                    : serve_answer(queue->model, queue->session, &job->request, i,
                                                                   &job->choices[i], send_progress, &streaming);
        if (status != DRLLM_OK) {
            return status;
        }
        if (job->request.stream) {
            send_event(queue, job, serve_piece_json(&job->reply, i, &job->choices[i], &streaming.sent, true));
        }
    }
    return DRLLM_OK;
}

static void answer_job(struct serve_queue *queue, struct serve_job *job) {
    static const struct text done = {"data: [DONE]\n\n", 14, 0};
    const int status = answer_prompts(queue, job);
    if (status != DRLLM_OK) {
        fail_job(queue, job, status);
    }
    if (job->request.stream && status != DRLLM_OK && job->stream.size != 0) {
        send_event(queue, job, serve_error_json(&job->error)); /* too late for a status */
    } else if (job->request.stream && status == DRLLM_OK) {
        if (job->request.include_usage) {
            send_event(queue, job, serve_usage_piece_json(&job->reply, job->choices));
        }
        append_stream(queue, job, &done);
    }
}

static struct serve_job *next_job(struct serve_queue *queue) {
    struct serve_job *job = queue->first;
    queue->first = job->next;
    queue->last = queue->first == NULL ? NULL : queue->last;
    queue->counts.n_waiting--;
    queue->counts.n_running = 1;
    queue->running = job;
    queue->session_cancelled = false;
    return job;
}

static void *answer_all(void *user) {
    struct serve_queue *queue = user;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        while (queue->first == NULL && !queue->is_stopping) {
            pthread_cond_wait(&queue->changed, &queue->lock);
        }
        if (queue->first == NULL) {
            break;
        }
        struct serve_job *job = next_job(queue);
        pthread_mutex_unlock(&queue->lock);
        answer_job(queue, job);
        pthread_mutex_lock(&queue->lock);
        if (queue->session_cancelled) {
            drllm_session_reset(queue->session); /* a cancel that met no call would end the next one */
        }
        queue->running = NULL;
        queue->counts.n_running = 0;
        queue->counts.n_answered++;
        job->is_done = true;
        pthread_cond_broadcast(&queue->changed);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

/* ---- Connections ---- */

/* Locked. */
static void cancel(struct serve_queue *queue, struct serve_job *job) {
    job->is_cancelled = true;
    if (job == queue->running) {
        queue->session_cancelled = true;
        drllm_session_cancel(queue->session);
    }
}

struct serve_queue *serve_queue_open(const struct serve_model *model, struct drllm_session *session, size_t n_waiting) {
    struct serve_queue *queue = allocate(1, sizeof *queue);
    pthread_condattr_t monotonic;
    *queue = (struct serve_queue){.model = model, .session = session, .most_waiting = n_waiting};
    pthread_mutex_init(&queue->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&queue->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&queue->thread, NULL, answer_all, queue) != 0) {
        report(model->command, "cannot start a thread");
        free(queue);
        return NULL;
    }
    return queue;
}

void serve_queue_stop(struct serve_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    queue->is_stopping = true;
    for (struct serve_job *job = queue->first; job != NULL; job = job->next) {
        cancel(queue, job);
    }
    if (queue->running != NULL) {
        cancel(queue, queue->running);
    }
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

void serve_queue_close(struct serve_queue *queue) {
    pthread_join(queue->thread, NULL);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

bool serve_queue_enter(struct serve_queue *queue, struct serve_job *job) {
    pthread_mutex_lock(&queue->lock);
    const bool is_full = queue->counts.n_waiting + queue->counts.n_running > queue->most_waiting;
    if (queue->is_stopping) {
        serve_fail(&job->error, 503, "stopping", NULL, "the server stops");
    } else if (is_full) {
        serve_fail(&job->error, 429, "queue_full", NULL, "%zu requests are here already: try again later",
                   queue->counts.n_waiting + queue->counts.n_running);
    }
    const bool enters = job->error.status == 0;
    if (enters) {
        job->choices = allocate(job->request.n_prompts, sizeof *job->choices);
        for (size_t i = 0; i < job->request.n_prompts; i++) {
            job->choices[i] = (struct serve_choice){.program = NULL};
        }
        *(queue->last != NULL ? &queue->last->next : &queue->first) = job;
        queue->last = job;
        queue->counts.n_waiting++;
        pthread_cond_broadcast(&queue->changed);
    } else {
        queue->counts.n_refused++;
    }
    pthread_mutex_unlock(&queue->lock);
    return enters;
}

/* Locked. True if it was waiting. */
static bool remove_waiting(struct serve_queue *queue, struct serve_job *job) {
    struct serve_job *before = NULL;
    for (struct serve_job *at = queue->first; at != NULL; before = at, at = at->next) {
        if (at == job) {
            *(before != NULL ? &before->next : &queue->first) = job->next;
            queue->last = queue->last == job ? before : queue->last;
            queue->counts.n_waiting--;
            return true;
        }
    }
    return false;
}

void serve_queue_leave(struct serve_queue *queue, struct serve_job *job) {
    pthread_mutex_lock(&queue->lock);
    if (!job->is_done && !remove_waiting(queue, job)) {
        cancel(queue, job);
        while (!job->is_done) {
            pthread_cond_wait(&queue->changed, &queue->lock);
        }
    }
    pthread_mutex_unlock(&queue->lock);
}

static bool is_gone(int socket) {
    struct pollfd watched = {.fd = socket, .events = POLLRDHUP};
    return poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

static void wait_a_little(struct serve_queue *queue) {
    enum { WAIT_NS = 50 * 1000 * 1000, SECOND_NS = 1000 * 1000 * 1000 };
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += WAIT_NS;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_nsec -= SECOND_NS;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&queue->changed, &queue->lock, &until);
}

enum serve_waited serve_queue_wait(struct serve_queue *queue, struct serve_job *job, int socket) {
    pthread_mutex_lock(&queue->lock);
    bool gone = false;
    while (!job->is_done && job->stream_taken == job->stream.size && !gone) {
        gone = is_gone(socket);
        if (!gone) {
            wait_a_little(queue);
        }
    }
    if (gone && !job->is_done) {
        cancel(queue, job);
    }
    const bool has_more = job->stream_taken != job->stream.size;
    pthread_mutex_unlock(&queue->lock);
    return gone ? SERVE_GONE : has_more ? SERVE_STREAMS : SERVE_DONE;
}

size_t serve_queue_take(struct serve_queue *queue, struct serve_job *job, char *data, size_t capacity, bool *is_end) {
    pthread_mutex_lock(&queue->lock);
    const size_t left = job->stream.size - job->stream_taken;
    const size_t size = left < capacity ? left : capacity;
    if (size != 0) {
        memcpy(data, job->stream.data + job->stream_taken, size);
    }
    job->stream_taken += size;
    *is_end = size == 0 && job->is_done;
    pthread_mutex_unlock(&queue->lock);
    return size;
}

struct serve_counts serve_queue_counts(struct serve_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    const struct serve_counts counts = queue->counts;
    pthread_mutex_unlock(&queue->lock);
    return counts;
}
