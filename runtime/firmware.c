/* A model, its routers and a session in one block of memory: drllm_fw.h. */
#include "runtime/firmware.h"

#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/session.h"

enum { DEFAULT_CONTEXT = 256, DEFAULT_CHUNK = 8, TEXT_PER_TOKEN = 4, MOST_CONTEXT = 1 << 20 };
#define MOST_TEXT ((size_t)1 << 26)

struct drllm_fw_params drllm_fw_default_params(void) {
    return (struct drllm_fw_params){
        .n_context = DEFAULT_CONTEXT, .n_chunk = DEFAULT_CHUNK, .reroute = DRLLM_REROUTE_NEVER, .cpu_mask = UINT64_MAX};
}

int drllm_fw_check(const void *model, size_t model_size, const struct drllm_fw_params *params,
                   struct drllm_fw_params *checked, struct drllm_error *error) {
    *checked = params != NULL ? *params : drllm_fw_default_params();
    if ((model == NULL && model_size > 0) || (checked->routers == NULL && checked->routers_size > 0)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model and routers must not be NULL");
    }
    if ((uintptr_t)model % 4 != 0 || (uintptr_t)checked->routers % 4 != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "the model's and the routers' data must begin at a multiple of 4");
    }
    if (checked->n_context == 0 || checked->n_context > MOST_CONTEXT || checked->n_chunk == 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "a context of %zu tokens in chunks of %zu; 1 to %d make sense",
                          checked->n_context, checked->n_chunk, MOST_CONTEXT);
    }
    checked->n_chunk = checked->n_chunk < checked->n_context ? checked->n_chunk : checked->n_context;
    checked->max_text = checked->max_text != 0 ? checked->max_text : TEXT_PER_TOKEN * checked->n_context;
    if (checked->max_text > MOST_TEXT) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "texts of %zu bytes are too long", checked->max_text);
    }
    if ((int)checked->reroute < DRLLM_REROUTE_TURN || checked->reroute > DRLLM_REROUTE_NEVER ||
        (int)checked->kv_type < DRLLM_KV_F16 || checked->kv_type > DRLLM_KV_Q8_0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "there is no reroute %d, or no type %d of keys and values",
                          (int)checked->reroute, (int)checked->kv_type);
    }
    return DRLLM_OK;
}

static int open_routers(const struct drllm_fw_params *params, struct drllm_fw *fw, struct drllm_error *error) {
    if (params->without_routers) {
        return DRLLM_OK;
    }
    if (params->routers != NULL) {
        return drllm_routers_open_memory(fw->model, params->routers, params->routers_size, &fw->routers, error);
    }
    return fw->model->brings_routers ? drllm_routers_open_packed(fw->model, &fw->routers, error) : DRLLM_OK;
}

static int open_session(const struct drllm_fw_params *params, struct drllm_fw *fw, struct drllm_error *error) {
    struct drllm_session_params session = drllm_session_default_params();
    session.n_context = params->n_context;
    session.n_threads = 1;
    session.kv_type = params->kv_type;
    session.n_chunk = params->n_chunk;
    session.n_slots = params->n_slots != 0 ? params->n_slots : fw->model->config.n_layers;
    int status = drllm_session_open(fw->model, &session, &fw->session, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (fw->routers != NULL) {
        struct drllm_depth depth = drllm_depth_default();
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = fw->routers;
        depth.reroute = params->reroute;
        status = drllm_session_set_depth(fw->session, &depth);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_reserve(fw->session, fw->routers != NULL && params->reroute == DRLLM_REROUTE_TURN);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_reserve_candidates(fw->session);
    }
    return status == DRLLM_OK ? status : drllm_fail(error, status, "%s", drllm_session_last_error(fw->session));
}

int drllm_fw_open(void *arena, size_t arena_bytes, const void *model, size_t model_size,
                  const struct drllm_fw_params *params, struct drllm_fw *fw, struct drllm_error *error) {
    struct drllm_fw_params checked;
    size_t needed = 0;
    if (arena == NULL || fw == NULL || (uintptr_t)arena % DRLLM_FW_ALIGNMENT != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                          "arena and fw must not be NULL, and the arena begin at a multiple of %d", DRLLM_FW_ALIGNMENT);
    }
    int status = drllm_fw_check(model, model_size, params, &checked, error);
    if (status == DRLLM_OK) {
        status = drllm_fw_arena_bytes(model, model_size, params, &needed, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    if (arena_bytes < needed) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "the arena has %zu bytes; %zu are needed", arena_bytes, needed);
    }
    const size_t front = drllm_round_up(sizeof(struct drllm_fw_front));
    struct drllm_fw_front *head = arena;
    drllm_arena_init(&head->arena, (unsigned char *)arena + front, arena_bytes - front);
    struct drllm_fw opened = {.arena = arena};
    struct drllm_model_params model_params = drllm_model_default_params();
    model_params.allocator = drllm_arena_allocator(&head->arena);
    model_params.log = checked.log;
    model_params.cpu_mask = checked.cpu_mask;
    model_params.verify = checked.verify;
    model_params.load_threads = 1;
    status = drllm_model_open_memory(model, model_size, &model_params, &opened.model, error);
    if (status != DRLLM_OK) {
        return status;
    }
    opened.model->data_stays = true;
    status = open_routers(&checked, &opened, error);
    if (status == DRLLM_OK) {
        status = open_session(&checked, &opened, error);
    }
    if (status == DRLLM_OK) {
        *fw = opened;
    }
    return status;
}

size_t drllm_fw_arena_used(const struct drllm_fw *fw) {
    const struct drllm_fw_front *front = fw->arena;
    return drllm_round_up(sizeof *front) + front->arena.most;
}
