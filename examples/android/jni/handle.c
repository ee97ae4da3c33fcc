#include "handle.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef __ANDROID__
#include <android/log.h>
#endif

struct handle_model {
    struct drllm_model *model;
    atomic_size_t n_users;
};

struct handle_routers {
    struct drllm_routers *routers;
    atomic_size_t n_users;
};

static int fail(struct drllm_error *error, int status, const char *detail) {
    error->status = status;
    (void)snprintf(error->detail, sizeof error->detail, "%s", detail);
    return status;
}

/* ---- Sharing ---- */

static void leave_model(struct handle_model *shared) {
    if (shared != NULL && atomic_fetch_sub(&shared->n_users, 1) == 1) {
        (void)drllm_model_close(shared->model); /* no session and no routers of it are left */
        free(shared);
    }
}

static void leave_routers(struct handle_routers *shared) {
    if (shared != NULL && atomic_fetch_sub(&shared->n_users, 1) == 1) {
        (void)drllm_routers_close(shared->routers);
        free(shared);
    }
}

static void use_full_depth(struct handle *handle) {
    const struct drllm_depth full = drllm_depth_default();
    /* Full depth takes no memory and has nothing to refuse. */
    (void)drllm_session_set_depth(handle->session, &full);
}

/* The session must let go of the routers before they are closed. */
static void set_routers(struct handle *handle, struct handle_routers *shared) {
    struct handle_routers *before = handle->shared_routers;
    use_full_depth(handle);
    handle->shared_routers = shared;
    handle->routers = shared != NULL ? shared->routers : NULL;
    leave_routers(before);
}

/* ---- Opening and closing ---- */

#ifdef __ANDROID__
static void write_log(void *user, enum drllm_log_level level, const char *line) {
    (void)user;
    (void)__android_log_write(level == DRLLM_LOG_WARNING ? ANDROID_LOG_WARN : ANDROID_LOG_INFO, "drllm", line);
}
#endif

static int open_model(const struct handle_file *file, struct drllm_model **model, struct drllm_error *error) {
    struct drllm_model_params params = drllm_model_default_params();
#ifdef __ANDROID__
    params.log.write = write_log;
#endif
    return file->path != NULL ? drllm_model_open_path(file->path, &params, model, error)
                              : drllm_model_open_fd(file->descriptor, file->offset, file->size, &params, model, error);
}

/* Takes one use of `shared`, also when it fails. */
static int open_session(struct handle_model *shared, const struct drllm_session_params *params, struct handle **handle,
                        struct drllm_error *error) {
    struct handle *opened = malloc(sizeof *opened);
    if (opened == NULL) {
        leave_model(shared);
        return fail(error, DRLLM_ERR_MEMORY, "not enough memory for a session");
    }
    *opened = (struct handle){.shared_model = shared, .model = shared->model, .params = *params};
    atomic_init(&opened->cancelled, false);
    const int status = drllm_session_open(shared->model, params, &opened->session, error);
    if (status != DRLLM_OK) {
        leave_model(shared);
        free(opened);
        return status;
    }
    *handle = opened;
    return DRLLM_OK;
}

int handle_open(const struct handle_file *file, const struct drllm_session_params *params, struct handle **handle,
                struct drllm_error *error) {
    struct handle_model *shared = malloc(sizeof *shared);
    if (shared == NULL) {
        return fail(error, DRLLM_ERR_MEMORY, "not enough memory for a model");
    }
    const int status = open_model(file, &shared->model, error);
    if (status != DRLLM_OK) {
        free(shared);
        return status;
    }
    atomic_init(&shared->n_users, 1);
    return open_session(shared, params, handle, error);
}

int handle_share(const struct handle *handle, struct handle **other, struct drllm_error *error) {
    atomic_fetch_add(&handle->shared_model->n_users, 1);
    const int status = open_session(handle->shared_model, &handle->params, other, error);
    if (status == DRLLM_OK && handle->shared_routers != NULL) {
        atomic_fetch_add(&handle->shared_routers->n_users, 1);
        set_routers(*other, handle->shared_routers);
    }
    return status;
}

int handle_open_routers(struct handle *handle, const struct handle_file *file, struct drllm_error *error) {
    struct handle_routers *shared = malloc(sizeof *shared);
    if (shared == NULL) {
        return fail(error, DRLLM_ERR_MEMORY, "not enough memory for routers");
    }
    struct drllm_model *model = handle->model;
    const int status = file == NULL         ? drllm_routers_open_packed(model, &shared->routers, error)
                       : file->path != NULL ? drllm_routers_open_path(model, file->path, &shared->routers, error)
                                            : drllm_routers_open_fd(model, file->descriptor, file->offset, file->size,
                                                                    &shared->routers, error);
    if (status != DRLLM_OK) {
        free(shared);
        return status;
    }
    atomic_init(&shared->n_users, 1);
    set_routers(handle, shared);
    return DRLLM_OK;
}

void handle_close_routers(struct handle *handle) {
    set_routers(handle, NULL);
}

void handle_close(struct handle *handle) {
    if (handle != NULL) {
        drllm_session_close(handle->session);
        leave_routers(handle->shared_routers);
        leave_model(handle->shared_model);
        free(handle);
    }
}

void handle_cancel(struct handle *handle) {
    /* In this order: who sees the session's cancel sees that it is meant. */
    atomic_store(&handle->cancelled, true);
    drllm_session_cancel(handle->session);
}

/* ---- Depth ---- */

float handle_save_layers(const struct handle *handle, float asked, const struct drllm_power *power) {
    const float needed = handle->routers != NULL ? drllm_power_save_layers(power, handle->routers) : -1.0f;
    return asked > needed ? asked : needed;
}

int handle_set_depth(struct handle *handle, float save_layers, struct drllm_error *error) {
    struct drllm_depth depth = drllm_depth_default();
    if (handle->routers == NULL) {
        return DRLLM_OK; /* full depth since the session was opened, or the routers closed */
    }
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = handle->routers;
    depth.save_layers = save_layers;
    const int status = drllm_session_set_depth(handle->session, &depth);
    return status == DRLLM_OK ? DRLLM_OK : fail(error, status, drllm_session_last_error(handle->session));
}
