/* The HTTP side of `drllm serve`, on libmicrohttpd: one thread a connection, bodies of bounded size, JSON in and out. */
#ifndef DRLLM_TOOLS_SERVE_HTTP_H
#define DRLLM_TOOLS_SERVE_HTTP_H

#include "tools/serve_queue.h"

struct serve_http_options {
    size_t most_body;      /* bytes */
    unsigned most_seconds; /* that a body may take to come in, and that a connection may be idle */
    unsigned most_connections;
    bool is_local; /* bound to a loopback address: only names of this machine are taken as Host */
    bool quiet;
};

struct serve_http;

/* Serve on a listening socket, which is then the server's. NULL, after a message. */
struct serve_http *serve_http_start(const struct serve_model *model, struct serve_queue *queue, int listening,
                                    const struct serve_http_options *options);
/* Take no more connections, stop the queue, and end the connections, those first that have something to be told. */
void serve_http_stop(struct serve_http *http);

#endif
