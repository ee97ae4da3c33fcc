/* What a DrLlm of Java is: a session over a model and routers that several may share. */
#ifndef DRLLM_ANDROID_HANDLE_H
#define DRLLM_ANDROID_HANDLE_H

#include "runtime/drllm_os.h"

#include <stdatomic.h>

struct handle_model;
struct handle_routers;

struct handle {
    struct handle_model *shared_model;
    struct handle_routers *shared_routers; /* NULL: none */
    struct drllm_model *model;
    const struct drllm_routers *routers; /* NULL: full depth */
    struct drllm_session *session;
    struct drllm_session_params params;
    /* A cancel that came while a call ran. The session's own may be left over from one that came too late. */
    atomic_bool cancelled;
};

/* A file: a path, or if that is NULL a descriptor. */
struct handle_file {
    const char *path;
    int descriptor;
    uint64_t offset, size;
};

/* All return a status with its error filled in. What is opened belongs to the caller. */
int handle_open(const struct handle_file *file, const struct drllm_session_params *params, struct handle **handle,
                struct drllm_error *error);
/* Another session with the same model, routers and parameters; its context is empty. */
int handle_share(const struct handle *handle, struct handle **other, struct drllm_error *error);
/* file NULL: the routers in the packed model. They take the place of those before, from the next depth that is set. */
int handle_open_routers(struct handle *handle, const struct handle_file *file, struct drllm_error *error);
void handle_close_routers(struct handle *handle);
/* The model and the routers go with the last session that uses them. NULL is allowed. */
void handle_close(struct handle *handle);

/* Safe while another thread uses the session. */
void handle_cancel(struct handle *handle);

/* Layers that the routers are asked to save: the larger of what was asked for and what the power policy says; below 0:
 * none in particular. */
float handle_save_layers(const struct handle *handle, float asked, const struct drllm_power *power);
int handle_set_depth(struct handle *handle, float save_layers, struct drllm_error *error);

#endif
