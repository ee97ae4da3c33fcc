/* What the firmware's size function and its open share. */
#ifndef DRLLM_RUNTIME_FIRMWARE_H
#define DRLLM_RUNTIME_FIRMWARE_H

#include "runtime/arena.h"
#include "runtime/drllm_fw.h"

/* The front of the arena; the allocator hands out what follows. */
struct drllm_fw_front {
    struct drllm_arena arena;
};

/* Defaults filled in and checked: what does not need the model. Errors: ARGUMENT. */
int drllm_fw_check(const void *model, size_t model_size, const struct drllm_fw_params *params,
                   struct drllm_fw_params *checked, struct drllm_error *error);

#endif
