#include "tools/serve_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Numbers only: a static program has no resolver. */
static bool parse_address(const char *host, unsigned port, struct sockaddr_storage *address, socklen_t *size) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &v4.sin_addr) == 1) {
        memcpy(address, &v4, sizeof v4);
        *size = sizeof v4;
        return true;
    }
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
        memcpy(address, &v6, sizeof v6);
        *size = sizeof v6;
        return true;
    }
    return false;
}

static void describe(struct serve_socket *opened) {
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    socklen_t size = sizeof address;
    char host[INET6_ADDRSTRLEN] = "";
    if (getsockname(opened->descriptor, (struct sockaddr *)&address, &size) != 0) {
        return;
    }
    if (address.ss_family == AF_INET) {
        memcpy(&v4, &address, sizeof v4);
        opened->is_local = ntohl(v4.sin_addr.s_addr) >> 24 == 127;
        inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
        snprintf(opened->address, sizeof opened->address, "%s:%u", host, (unsigned)ntohs(v4.sin_port));
    } else {
        memcpy(&v6, &address, sizeof v6);
        opened->is_local = IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) != 0;
        inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof host);
        snprintf(opened->address, sizeof opened->address, "[%s]:%u", host, (unsigned)ntohs(v6.sin6_port));
    }
}

int serve_socket_open(const struct command *command, const char *host, unsigned port, struct serve_socket *opened) {
    enum { BACKLOG = 64 };
    struct sockaddr_storage address;
    socklen_t size;
    const int on = 1;
    *opened = (struct serve_socket){.descriptor = -1};
    if (!parse_address(host, port, &address, &size)) {
        return usage_error(command, "--host: '%s' is neither localhost nor an address in numbers", host);
    }
    opened->descriptor = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (opened->descriptor < 0 || setsockopt(opened->descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(opened->descriptor, (const struct sockaddr *)&address, size) != 0 ||
        listen(opened->descriptor, BACKLOG) != 0) {
        report(command, "cannot listen on %s, port %u: %s", host, port, strerror(errno));
        if (opened->descriptor >= 0) {
            close(opened->descriptor);
        }
        return TOOL_FAILED;
    }
    describe(opened);
    return TOOL_OK;
}

void serve_notify(const char *state) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t size = path != NULL ? strlen(path) : 0;
    if (size < 2 || size >= sizeof address.sun_path || (path[0] != '/' && path[0] != '@')) {
        return;
    }
    memcpy(address.sun_path, path, size);
    if (path[0] == '@') {
        address.sun_path[0] = '\0'; /* of the abstract kind */
    }
    const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor >= 0) {
        (void)sendto(descriptor, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&address,
                     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size));
        close(descriptor);
    }
}
