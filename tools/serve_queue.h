/* Requests wait their turn for the one session. One thread answers them in the order in which they came; each connection's
 * thread waits for its own. */
#ifndef DRLLM_TOOLS_SERVE_QUEUE_H
#define DRLLM_TOOLS_SERVE_QUEUE_H

#include "tools/serve_json.h"

struct serve_queue;

/* One request on its way. All but request and reply belongs to the queue until serve_queue_leave. */
struct serve_job {
    struct serve_request request;
    struct serve_reply reply;
    struct serve_choice *choices; /* [request.n_prompts] */
    struct serve_error error;     /* status 0: none */
    struct text stream;           /* of a stream, what is to be sent */
    size_t stream_taken;          /* bytes that were */
    bool is_done;
    bool is_cancelled;
    struct serve_job *next;
};
void serve_job_release(struct serve_job *job); /* outside the queue */

/* At most n_waiting jobs wait; the session is used by nobody else until the queue is closed. NULL if there can be no
 * thread. */
struct serve_queue *serve_queue_open(const struct serve_model *model, struct drllm_session *session, size_t n_waiting);
/* Cancel everything, and refuse what comes. Connections then see their jobs done. */
void serve_queue_stop(struct serve_queue *queue);
/* After serve_queue_stop, when no job is in it. */
void serve_queue_close(struct serve_queue *queue);

/* False, with an error of status 429 or 503, if it is full or stopping. */
bool serve_queue_enter(struct serve_queue *queue, struct serve_job *job);
/* Cancel the job if it is not done, and wait until the queue has let go of it. */
void serve_queue_leave(struct serve_queue *queue, struct serve_job *job);

enum serve_waited {
    SERVE_GONE,    /* the client at the socket, which cancels the job */
    SERVE_STREAMS, /* there is something to send */
    SERVE_DONE     /* without anything to send: the answer or the error is in the job */
};
/* Wait until the job is done or, of a stream, has something to send. */
enum serve_waited serve_queue_wait(struct serve_queue *queue, struct serve_job *job, int socket);
/* Take what a stream has to send, up to `capacity` bytes; *is_end when nothing more will come. */
size_t serve_queue_take(struct serve_queue *queue, struct serve_job *job, char *data, size_t capacity, bool *is_end);

struct serve_counts {
    size_t n_waiting, n_running;
    uint64_t n_answered, n_refused;
};
struct serve_counts serve_queue_counts(struct serve_queue *queue);

#endif
