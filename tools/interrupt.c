#include "tools/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

/* A signal handler reaches only what is global; all threads look at it. */
static atomic_int seen;
static struct drllm_session *_Atomic watched;

static void on_interrupt(int number) {
    (void)number;
    atomic_store(&seen, 1);
    struct drllm_session *session = atomic_load(&watched);
    if (session != NULL) {
        drllm_session_cancel(session); /* its contract allows it here. NOLINT(bugprone-signal-handler,cert-sig30-c) */
    }
}

void interrupt_install(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

void interrupt_watch(struct drllm_session *session) {
    atomic_store(&watched, session);
    if (interrupt_seen() && session != NULL) {
        drllm_session_cancel(session);
    }
}

bool interrupt_seen(void) {
    return atomic_load(&seen) != 0;
}

void interrupt_forget(void) {
    atomic_store(&seen, 0);
}

bool interrupt_wait_readable(int descriptor) {
    /* SIGINT is let through only while ppoll waits, so that none can slip in between the look at `seen` and the
     * wait. The library's threads never take it: they are made with it blocked (open_session). */
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    struct pollfd poll_descriptor = {.fd = descriptor, .events = POLLIN};
    while (!interrupt_seen() && ppoll(&poll_descriptor, 1, NULL, &before) < 0) {
    }
    const bool readable = !interrupt_seen();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return readable;
}
