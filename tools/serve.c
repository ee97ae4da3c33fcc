/* drllm serve: a small HTTP service for this machine, with OpenAI's interface. */
#include "runtime/drllm_os.h"
#include "tools/commands.h"
#include "tools/serve_http.h"
#include "tools/serve_socket.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct serve_options {
    struct model_options model;
    struct depth_options depth;
    const char *host;
    int64_t port;
    const char *alias;
    int64_t most_tokens;
    int64_t n_waiting;
    int64_t most_body;
    int64_t most_seconds;
    double temperature, top_p, min_p, repeat_penalty;
    int64_t top_k;
    bool quiet;
};

struct server {
    const struct command *command;
    const struct serve_options *options;
    struct drllm_model *model;
    struct drllm_session *session;
    struct serve_model shared;
    char *id;
};

/* The file's name without its end, unless there is an alias. */
static char *model_id(const struct serve_options *options) {
    if (options->alias != NULL) {
        return copy_text(options->alias);
    }
    const char *slash = strrchr(options->model.path, '/');
    char *id = copy_text(slash != NULL ? slash + 1 : options->model.path);
    char *dot = strrchr(id, '.');
    if (dot != NULL && dot != id) {
        *dot = '\0';
    }
    return id;
}

static bool read_sampling(const struct serve_options *options, struct drllm_sampler_params *params,
                          struct drllm_error *error) {
    struct drllm_sampler sampler;
    *params = drllm_sampler_default_params();
    params->temperature = (float)options->temperature;
    params->top_p = (float)options->top_p;
    params->min_p = (float)options->min_p;
    params->top_k = (size_t)options->top_k;
    params->repeat_penalty = (float)options->repeat_penalty;
    return drllm_sampler_init(&sampler, params, error) == DRLLM_OK;
}

/* Routers are there for requests also where the server itself was told another depth. */
static int open_depth(struct server *server) {
    struct depth *depth = &server->shared.depth;
    const char *routers = server->options->depth.routers;
    const int exit_code = depth_open(server->command, &server->options->depth, server->model, depth);
    if (exit_code != TOOL_OK || routers == NULL || depth->routers != NULL) {
        return exit_code;
    }
    struct drllm_error error = {0};
    const int status = drllm_routers_open_path(server->model, routers, &depth->routers, &error);
    return status == DRLLM_OK ? TOOL_OK : report_status(server->command, "cannot open routers", status, error.detail);
}

static int open_server(struct server *server) {
    const struct model_options *options = &server->options->model;
    struct serve_model *shared = &server->shared;
    struct drllm_error error = {0};
    if (!read_sampling(server->options, &shared->sampling, &error)) {
        return usage_error(server->command, "%s", error.detail);
    }
    int exit_code = open_model(server->command, options, &server->model);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    shared->command = server->command;
    shared->model = server->model;
    drllm_model_get_info(server->model, &shared->info);
    shared->id = server->id = model_id(server->options);
    shared->n_context = options->context == 0 ? shared->info.n_context_trained : (size_t)options->context;
    shared->most_tokens = server->options->most_tokens < 0 ? SIZE_MAX : (size_t)server->options->most_tokens;
    shared->created = time(NULL);
    exit_code = open_depth(server);
    return exit_code != TOOL_OK ? exit_code
                                : open_session(server->command, server->model, shared->n_context,
                                               (unsigned)options->threads, options->kv, &server->session);
}

static void close_server(struct server *server) {
    drllm_session_close(server->session);
    depth_close(&server->shared.depth);
    drllm_model_close(server->model);
    free(server->id);
}

/* ---- Until a signal comes ---- */

/* They wait until sigwait takes them, in this thread and in those that it makes. */
static void block_signals(sigset_t *stops) {
    sigemptyset(stops);
    sigaddset(stops, SIGTERM);
    sigaddset(stops, SIGINT);
    pthread_sigmask(SIG_BLOCK, stops, NULL);
}

static int listen_and_serve(struct server *server, const sigset_t *stops) {
    const struct serve_options *options = server->options;
    struct serve_socket opened;
    int exit_code = serve_socket_open(server->command, options->host, (unsigned)options->port, &opened);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const struct serve_http_options http_options = {.most_body = (size_t)options->most_body,
                                                    .most_seconds = (unsigned)options->most_seconds,
                                                    .most_connections = (unsigned)options->n_waiting + 16,
                                                    .is_local = opened.is_local,
                                                    .quiet = options->quiet};
    struct serve_queue *queue = serve_queue_open(&server->shared, server->session, (size_t)options->n_waiting);
    struct serve_http *http =
        queue != NULL ? serve_http_start(&server->shared, queue, opened.descriptor, &http_options) : NULL;
    if (http == NULL) {
        close(opened.descriptor);
        exit_code = TOOL_FAILED;
    } else {
        int number = 0;
        if (!opened.is_local) {
            report(server->command, "warning: whoever reaches %s can use this service", opened.address);
        }
        fprintf(stderr, "drllm serve: %s on http://%s\n", server->id, opened.address);
        serve_notify("READY=1");
        sigwait(stops, &number);
        serve_notify("STOPPING=1");
        fprintf(stderr, "drllm serve: stopping\n");
    }
    if (http != NULL) {
        serve_http_stop(http);
    }
    if (queue != NULL) {
        serve_queue_stop(queue);
        serve_queue_close(queue);
    }
    return exit_code;
}

static int check(const struct command *command, const struct serve_options *options) {
    if (options->model.path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    return depth_check(command, &options->depth);
}

int serve_main(const struct command *command, int argc, char **argv) {
    /* What OpenAI's service does where a request says nothing. */
    struct serve_options options = {.model = model_options_default(),
                                    .depth = depth_options_default(),
                                    .host = "127.0.0.1",
                                    .port = 8080,
                                    .most_tokens = -1,
                                    .n_waiting = 8,
                                    .most_body = 1 << 20,
                                    .most_seconds = 30,
                                    .temperature = 1.0,
                                    .top_p = 1.0,
                                    .repeat_penalty = 1.0};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT(0, "host", &options.host, "ADDRESS", "where to listen: localhost or an address in numbers"),
        OPT_INTEGER('p', "port", &options.port, "N", 0, 65535, "0: any that is free, which stderr then names"),
        OPT_TEXT(0, "alias", &options.alias, "NAME", "the model's name for clients; else that of the file"),
        OPT_INTEGER('n', "predict", &options.most_tokens, "N", -1, 1 << 30,
                    "most tokens of an answer, whatever is asked for; -1: the context"),
        OPT_INTEGER(0, "queue", &options.n_waiting, "N", 0, 1000, "requests that may wait while one is answered"),
        OPT_INTEGER(0, "max-body", &options.most_body, "BYTES", 1024, 1 << 30, "largest request"),
        OPT_INTEGER(0, "timeout", &options.most_seconds, "S", 1, 3600,
                    "seconds that a body may take to come in, and a connection be idle"),
        OPT_REAL(0, "temp", &options.temperature, "X", 0, 100, "temperature where a request has none"),
        OPT_INTEGER(0, "top-k", &options.top_k, "N", 0, 1 << 30, "the same for top_k; 0: off"),
        OPT_REAL(0, "top-p", &options.top_p, "X", 0, 1, "the same for top_p; 1: off"),
        OPT_REAL(0, "min-p", &options.min_p, "X", 0, 1, "the same for min_p; 0: off"),
        OPT_REAL(0, "repeat-penalty", &options.repeat_penalty, "X", 0, 100, "the same for repeat_penalty; 1: off"),
        DEPTH_OPTIONS(&options.depth),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
        OPT_FLAG('q', "quiet", &options.quiet, "no line on stderr for each request"),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK) {
            struct server server = {.command = command, .options = &options};
            sigset_t stops;
            block_signals(&stops);
            exit_code = open_server(&server);
            if (exit_code == TOOL_OK) {
                exit_code = listen_and_serve(&server, &stops);
            }
            close_server(&server);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
