/* The socket that `drllm serve` listens on, and the service manager that waits for it. */
#ifndef DRLLM_TOOLS_SERVE_SOCKET_H
#define DRLLM_TOOLS_SERVE_SOCKET_H

#include "tools/common.h"

struct serve_socket {
    int descriptor;
    char address[80]; /* "127.0.0.1:8080", "[::1]:8080" */
    bool is_local;    /* a loopback address */
};

/* host: an address in numbers, or localhost; port 0: any that is free. Returns an exit code, after a message. */
int serve_socket_open(const struct command *command, const char *host, unsigned port, struct serve_socket *opened);

/* Tell systemd ("READY=1", "STOPPING=1"), where it asked for it: sd_notify(3). */
void serve_notify(const char *state);

#endif
