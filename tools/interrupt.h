/* Ctrl-C: stop what runs, keep what is there. */
#ifndef DRLLM_TOOLS_INTERRUPT_H
#define DRLLM_TOOLS_INTERRUPT_H

#include "runtime/drllm.h"

/* From now on Ctrl-C no longer ends the program but is noted. */
void interrupt_install(void);
/* From now on Ctrl-C also cancels what this session runs; one that is already noted does so at once. NULL: none. */
void interrupt_watch(struct drllm_session *session);
bool interrupt_seen(void);
void interrupt_forget(void);
/* Wait until a read from the descriptor would not block; false when Ctrl-C came first. */
bool interrupt_wait_readable(int descriptor);

#endif
