#include "tools/serve_http.h"

#include "platform/clock.h"
#include "tools/serve_routes.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

struct serve_http {
    const struct serve_model *model;
    struct serve_queue *queue;
    struct serve_http_options options;
    struct MHD_Daemon *daemon;
    atomic_size_t n_open; /* exchanges */
};

/* One request. */
struct exchange {
    struct serve_http *http;
    const char *method;
    char path[128]; /* for the log, cut */
    struct text body;
    size_t n_received;
    uint64_t start_ns;
    int status;
    int socket;
    struct serve_job job;
    bool has_job; /* it entered the queue */
    struct serve_error error;
};

/* ---- Replies ---- */

static enum MHD_Result send_response(struct MHD_Connection *connection, struct exchange *exchange, int status,
                                     struct MHD_Response *response, const char *type) {
    if (response == NULL) {
        return MHD_NO;
    }
    exchange->status = status;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (status == MHD_HTTP_TOO_MANY_REQUESTS || status == MHD_HTTP_SERVICE_UNAVAILABLE) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    }
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, serve_route_methods(exchange->path));
    }
    const enum MHD_Result result = MHD_queue_response(connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

/* Frees the JSON. */
static enum MHD_Result send_json(struct MHD_Connection *connection, struct exchange *exchange, int status,
                                 cJSON *json) {
    char *printed = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    struct MHD_Response *response =
        MHD_create_response_from_buffer_with_free_callback(strlen(printed), printed, cJSON_free);
    if (response == NULL) {
        cJSON_free(printed);
    }
    return send_response(connection, exchange, status, response, "application/json");
}

static enum MHD_Result send_error(struct MHD_Connection *connection, struct exchange *exchange,
                                  const struct serve_error *error) {
    return send_json(connection, exchange, error->status, serve_error_json(error));
}

/* What a stream has; it waits in the connection's own thread. */
static ssize_t read_stream(void *user, uint64_t position, char *data, size_t capacity) {
    struct exchange *exchange = user;
    bool is_end;
    (void)position;
    if (serve_queue_wait(exchange->http->queue, &exchange->job, exchange->socket) == SERVE_GONE) {
        return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    const size_t size = serve_queue_take(exchange->http->queue, &exchange->job, data, capacity, &is_end);
    return is_end ? MHD_CONTENT_READER_END_OF_STREAM : (ssize_t)size;
}

static enum MHD_Result send_stream(struct MHD_Connection *connection, struct exchange *exchange) {
    enum { BLOCK = 4096 };
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, read_stream, exchange, NULL);
    return send_response(connection, exchange, MHD_HTTP_OK, response, "text/event-stream");
}

/* ---- Completions ---- */

static enum MHD_Result complete(struct MHD_Connection *connection, struct exchange *exchange, bool is_chat) {
    struct serve_http *http = exchange->http;
    struct serve_job *job = &exchange->job;
    if (!serve_request_read(http->model, is_chat, exchange->body.data, exchange->body.size, &job->request,
                            &job->error)) {
        return send_error(connection, exchange, &job->error);
    }
    text_release(&exchange->body); /* it may wait for long */
    job->reply = (struct serve_reply){.model = http->model, .request = &job->request, .created = time(NULL)};
    snprintf(job->reply.id, sizeof job->reply.id, "%s-%013" PRIx64, is_chat ? "chatcmpl" : "cmpl", choose_seed(-1));
    exchange->has_job = serve_queue_enter(http->queue, job);
    if (!exchange->has_job) {
        return send_error(connection, exchange, &job->error);
    }
    const enum serve_waited waited = serve_queue_wait(http->queue, job, exchange->socket);
    if (waited == SERVE_GONE) {
        exchange->status = 499; /* nginx's number for a client that went away; only the log sees it */
        return MHD_NO;
    }
    if (waited == SERVE_STREAMS) {
        return send_stream(connection, exchange);
    }
    if (job->error.status != 0) {
        return send_error(connection, exchange, &job->error);
    }
    return send_json(connection, exchange, MHD_HTTP_OK, serve_reply_json(&job->reply, job->choices));
}

static enum MHD_Result reply(struct MHD_Connection *connection, struct exchange *exchange, const char *path) {
    struct serve_http *http = exchange->http;
    const enum serve_route route = serve_route_find(path);
    if (route == SERVE_COMPLETIONS || route == SERVE_CHAT) {
        return complete(connection, exchange, route == SERVE_CHAT);
    }
    const struct serve_counts counts = serve_queue_counts(http->queue);
    cJSON *json = serve_route_reply(http->model, route, path, &counts, exchange->body.data, exchange->body.size,
                                    &exchange->error);
    return json != NULL ? send_json(connection, exchange, MHD_HTTP_OK, json)
                        : send_error(connection, exchange, &exchange->error);
}

/* ---- What comes in ---- */

/* A page of another site can make a browser send requests here, but none of type application/json without being asked
 * first, and none with our Host. */
static bool is_local_host(const char *host) {
    static const char *const names[] = {"localhost", "127.", "[::1]"};
    for (size_t i = 0; host != NULL && i < sizeof names / sizeof names[0]; i++) {
        const size_t size = strlen(names[i]);
        if (strncasecmp(host, names[i], size) == 0) {
            const char *rest = host + size;
            return i == 1 ? strspn(rest, "0123456789.:") == strlen(rest) : rest[0] == '\0' || rest[0] == ':';
        }
    }
    return host == NULL; /* HTTP/1.0, which no browser speaks */
}

static bool check_head(struct MHD_Connection *connection, struct exchange *exchange, const char *path,
                       const char *method) {
    struct serve_error *error = &exchange->error;
    const char *host = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_HOST);
    const char *type = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_TYPE);
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (exchange->http->options.is_local && !is_local_host(host)) {
        return serve_fail(error, 403, NULL, NULL, "this server listens on this machine only, under its own names");
    }
    if (!serve_route_check(path, method, error)) {
        return false;
    }
    const bool is_post = strcmp(method, MHD_HTTP_METHOD_POST) == 0;
    if (is_post && (type == NULL || strncasecmp(type, "application/json", 16) != 0 ||
                    (type[16] != '\0' && type[16] != ';' && type[16] != ' '))) {
        return serve_fail(error, 415, NULL, NULL, "the body must be JSON, with Content-Type: application/json");
    }
    if (length != NULL && strtoull(length, NULL, 10) > exchange->http->options.most_body) {
        return serve_fail(error, 413, NULL, NULL, "the body must not be larger than %zu bytes",
                          exchange->http->options.most_body);
    }
    return true;
}

/* False: the connection is to be closed. Of a body without a length, what is too much is thrown away for a while, so that
 * the client comes to read why. */
static bool take_body(struct exchange *exchange, const char *data, size_t size) {
    const struct serve_http_options *options = &exchange->http->options;
    const uint64_t age = drllm_clock_ns() - exchange->start_ns;
    exchange->n_received += size;
    if (age > (uint64_t)options->most_seconds * 1000000000u || exchange->n_received / 4 > options->most_body) {
        return false;
    }
    if (exchange->n_received > options->most_body) {
        text_release(&exchange->body);
        serve_fail(&exchange->error, 413, NULL, NULL, "the body must not be larger than %zu bytes", options->most_body);
    } else {
        text_append(&exchange->body, data, size);
    }
    return true;
}

static enum MHD_Result begin(struct MHD_Connection *connection, struct serve_http *http, const char *path,
                             const char *method, void **state) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct exchange *exchange = allocate(1, sizeof *exchange);
    *exchange = (struct exchange){.http = http, .start_ns = drllm_clock_ns(), .socket = info->connect_fd};
    exchange->method = strcmp(method, MHD_HTTP_METHOD_POST) == 0  ? "POST"
                       : strcmp(method, MHD_HTTP_METHOD_GET) == 0 ? "GET"
                                                                  : "?";
    snprintf(exchange->path, sizeof exchange->path, "%s", path);
    text_append(&exchange->body, "", 0);
    *state = exchange;
    atomic_fetch_add(&http->n_open, 1);
    return check_head(connection, exchange, path, method) ? MHD_YES
                                                          : send_error(connection, exchange, &exchange->error);
}

static enum MHD_Result handle(void *user, struct MHD_Connection *connection, const char *path, const char *method,
                              const char *version, const char *data, size_t *size, void **state) {
    (void)version;
    if (*state == NULL) {
        return begin(connection, user, path, method, state);
    }
    struct exchange *exchange = *state;
    if (*size != 0) {
        const bool goes_on = take_body(exchange, data, *size);
        *size = 0;
        return goes_on ? MHD_YES : MHD_NO;
    }
    return exchange->error.status != 0 ? send_error(connection, exchange, &exchange->error)
                                       : reply(connection, exchange, path);
}

static void log_exchange(const struct exchange *exchange) {
    const double ms = milliseconds(drllm_clock_ns() - exchange->start_ns);
    size_t n_prompt = 0, n_generated = 0;
    for (size_t i = 0; exchange->has_job && i < exchange->job.request.n_prompts; i++) {
        n_prompt += exchange->job.choices[i].n_prompt;
        n_generated += exchange->job.choices[i].n_generated;
    }
    flockfile(stderr); /* one line, whoever else writes */
    fprintf(stderr, "%s ", exchange->method);
    print_plain(stderr, exchange->path, strlen(exchange->path));
    fprintf(stderr, " %d %.1f ms, %zu + %zu tokens\n", exchange->status, ms, n_prompt, n_generated);
    funlockfile(stderr);
}

/* Also when the client went away in the middle. */
static void finish(void *user, struct MHD_Connection *connection, void **state, enum MHD_RequestTerminationCode code) {
    struct serve_http *http = user;
    struct exchange *exchange = *state;
    (void)connection;
    if (exchange == NULL) {
        return;
    }
    if (exchange->has_job) {
        serve_queue_leave(http->queue, &exchange->job);
    }
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK && exchange->status == MHD_HTTP_OK) {
        exchange->status = 499;
    }
    if (!http->options.quiet) {
        log_exchange(exchange);
    }
    serve_job_release(&exchange->job);
    text_release(&exchange->body);
    free(exchange);
    *state = NULL;
    atomic_fetch_sub(&http->n_open, 1);
}

/* ---- */

struct serve_http *serve_http_start(const struct serve_model *model, struct serve_queue *queue, int listening,
                                    const struct serve_http_options *options) {
    enum { HEAD_BYTES = 32 << 10, STACK_BYTES = 1 << 20 };
    struct serve_http *http = allocate(1, sizeof *http);
    *http = (struct serve_http){.model = model, .queue = queue, .options = *options, .n_open = 0};
    http->daemon =
        MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC,
                         0, NULL, NULL, handle, http, MHD_OPTION_LISTEN_SOCKET, listening, MHD_OPTION_NOTIFY_COMPLETED,
                         finish, http, MHD_OPTION_CONNECTION_TIMEOUT, options->most_seconds,
                         MHD_OPTION_CONNECTION_LIMIT, options->most_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                         (size_t)HEAD_BYTES, MHD_OPTION_THREAD_STACK_SIZE, (size_t)STACK_BYTES, MHD_OPTION_END);
    if (http->daemon == NULL) {
        report(model->command, "cannot start the HTTP server");
        free(http);
        return NULL;
    }
    return http;
}

void serve_http_stop(struct serve_http *http) {
    enum { STEP_NS = 10 * 1000 * 1000, MOST_STEPS = 300 };
    const struct timespec step = {.tv_nsec = STEP_NS};
    const int listening = MHD_quiesce_daemon(http->daemon);
    serve_queue_stop(http->queue);
    /* Those who wait are told why nothing comes. */
    for (int i = 0; i < MOST_STEPS && atomic_load(&http->n_open) != 0; i++) {
        nanosleep(&step, NULL);
    }
    MHD_stop_daemon(http->daemon);
    if (listening >= 0) {
        close(listening);
    }
    free(http);
}
