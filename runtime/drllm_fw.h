/* drllm where there is no operating system: a model in flash, and one block of the caller's memory for everything else.
 *
 *   size_t bytes;
 *   drllm_fw_arena_bytes(model, model_size, NULL, &bytes, &error);           // how much; calls nothing, allocates nothing
 *   drllm_fw_open(arena, bytes, model, model_size, NULL, &fw, &error);       // 64-byte aligned, yours
 *   drllm_tokenize(fw.model, ...); drllm_session_prefill(fw.session, ...);   // and all else of drllm.h
 *
 * Everything that a session will ever need is allocated by drllm_fw_open, so that later calls do not fail for want of
 * memory as long as they stay within the parameters. There is nothing to close: the arena may be used for something else,
 * or opened again, at any time. libdrllm-fw.a has neither threads nor recursion; the C library functions that it needs are
 * listed in examples/firmware/undefined.txt. The header is part of the hosted library, too, so that sizes can be
 * asked for, and runs be compared, on a PC. */
#ifndef DRLLM_FW_H
#define DRLLM_FW_H

#include "runtime/drllm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DRLLM_FW_ALIGNMENT = 64 };

struct drllm_fw_params {
    size_t n_context; /* most tokens; default 256 */
    /* Most executions of blocks that have keys and values, at least n_layers; default 0: n_layers. Where they are used up
     * a repeat becomes an execution (struct drllm_session_params). */
    size_t n_slots;
    size_t n_chunk;             /* tokens that go through a block at once; default 8. Fewer need less memory */
    size_t max_text;            /* longest text, in bytes, for drllm_tokenize; default 0: 4 * n_context */
    enum drllm_kv_type kv_type; /* default DRLLM_KV_F16 */
    enum drllm_reroute
        reroute; /* default DRLLM_REROUTE_NEVER; TURN needs n_layers * n_context / 16 more rows of d_model floats */
    const void *routers; /* int8 routers in a file of their own, used where they lie, or NULL ... */
    size_t routers_size;
    bool without_routers; /* ... for those in the packed model; default false: if there are any, they decide */
    bool verify;          /* check the weights against their checksum, which reads all of them */
    uint64_t cpu_mask;    /* default: all; 0: the portable kernels */
    struct drllm_log log;
    uint64_t reserved[8];
};
struct drllm_fw_params drllm_fw_default_params(void);

/* What was opened; all of it lies in the arena. */
struct drllm_fw {
    struct drllm_model *model;
    struct drllm_routers *routers; /* NULL: none */
    struct drllm_session *session; /* its depth is routed if there are routers; drllm_session_set_depth changes it */
    void *arena;
    uint64_t reserved[4];
};

/* The bytes of arena that drllm_fw_open needs for this model (a GGUF file or a packed model, const, a multiple of 4) and
 * these parameters (NULL: the defaults). Weights, vocabulary and routers of a packed model are used where they lie and count
 * for nothing; those of a GGUF file are interleaved into the arena. Takes a walk over the vocabulary, and less than 8 KiB of
 * stack. Errors: ARGUMENT, FORMAT, UNSUPPORTED. */
int drllm_fw_arena_bytes(const void *model, size_t model_size, const struct drllm_fw_params *params, size_t *bytes,
                         struct drllm_error *error);

/* Open the model, its routers and a session in arena[0 .. arena_bytes), which is a multiple of DRLLM_FW_ALIGNMENT in
 * memory. model, routers and arena stay the caller's, and stay in place and unchanged while fw is used. Errors: as above,
 * and MEMORY (the arena is too small; the detail says how much is needed). */
int drllm_fw_open(void *arena, size_t arena_bytes, const void *model, size_t model_size,
                  const struct drllm_fw_params *params, struct drllm_fw *fw, struct drllm_error *error);

/* The most bytes of the arena that were in use at once so far. */
size_t drllm_fw_arena_used(const struct drllm_fw *fw);

/* Nanoseconds of a clock that never goes backwards, for drllm_session_get_timings. libdrllm-fw.a has a weak one that stands
 * still; a program that defines this function gives its own. */
uint64_t drllm_fw_clock_ns(void);

#ifdef __cplusplus
}
#endif

#endif
