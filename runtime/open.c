/* Models from files, and questions about the machine: drllm_os.h. */
#include "platform/cpu.h"
#include "platform/file.h"
#include "platform/power.h"
#include "runtime/drllm_os.h"
#include "runtime/error.h"
#include "runtime/model.h"

static int map_failed(int errno_value, const char *what, struct drllm_error *error) {
    char reason[128];
    drllm_file_error_text(errno_value, reason, sizeof reason);
    return drllm_fail(error, DRLLM_ERR_IO, "cannot open %s: %s", what, reason);
}

static void close_mapping(const struct drllm_backing *backing) {
    struct drllm_file file = {backing->data, backing->size, backing->map, backing->map_size};
    drllm_file_unmap(&file);
}

static int open_mapped(const struct drllm_file *file, const struct drllm_model_params *params,
                       struct drllm_model **model, struct drllm_error *error) {
    const struct drllm_backing backing = {.data = file->data,
                                          .size = file->size,
                                          .map = file->map,
                                          .map_size = file->map_size,
                                          .close = close_mapping,
                                          .forget = drllm_file_forget};
    return drllm_model_open_backing(&backing, params, model, error);
}

int drllm_model_open_path(const char *path, const struct drllm_model_params *params, struct drllm_model **model,
                          struct drllm_error *error) {
    struct drllm_file file;
    if (path == NULL || model == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "path and model must not be NULL");
    }
    const int failed = drllm_file_map_path(path, &file);
    return failed != 0 ? map_failed(failed, path, error) : open_mapped(&file, params, model, error);
}

int drllm_model_open_fd(int descriptor, uint64_t offset, uint64_t size, const struct drllm_model_params *params,
                        struct drllm_model **model, struct drllm_error *error) {
    struct drllm_file file;
    if (model == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model must not be NULL");
    }
    const int failed = drllm_file_map_fd(descriptor, offset, size, &file);
    return failed != 0 ? map_failed(failed, "the descriptor", error) : open_mapped(&file, params, model, error);
}

static int open_mapped_routers(const struct drllm_model *model, struct drllm_file *file, struct drllm_routers **routers,
                               struct drllm_error *error) {
    const int status = drllm_routers_open_memory(model, file->data, file->size, routers, error);
    drllm_file_unmap(file); /* nothing of it is used any more */
    return status;
}

int drllm_routers_open_path(const struct drllm_model *model, const char *path, struct drllm_routers **routers,
                            struct drllm_error *error) {
    struct drllm_file file;
    if (model == NULL || path == NULL || routers == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model, path and routers must not be NULL");
    }
    const int failed = drllm_file_map_path(path, &file);
    return failed != 0 ? map_failed(failed, path, error) : open_mapped_routers(model, &file, routers, error);
}

int drllm_routers_open_fd(const struct drllm_model *model, int descriptor, uint64_t offset, uint64_t size,
                          struct drllm_routers **routers, struct drllm_error *error) {
    struct drllm_file file;
    if (model == NULL || routers == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model and routers must not be NULL");
    }
    const int failed = drllm_file_map_fd(descriptor, offset, size, &file);
    return failed != 0 ? map_failed(failed, "the descriptor", error)
                       : open_mapped_routers(model, &file, routers, error);
}

unsigned drllm_default_threads(void) {
    return drllm_cpu_default_threads();
}

uint64_t drllm_cpu_features(void) {
    return drllm_cpu_detect();
}

int drllm_cpu_mask_parse(const char *text, uint64_t *mask, struct drllm_error *error) {
    char unknown[64];
    if (text == NULL || mask == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "text and mask must not be NULL");
    }
    if (!drllm_cpu_parse_mask(text, mask, unknown, sizeof unknown)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "unknown CPU feature \"%s\"", unknown);
    }
    return DRLLM_OK;
}

int drllm_power_read(const char *root, struct drllm_power *power, struct drllm_error *error) {
    if (power == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "power must not be NULL");
    }
    struct drllm_power_supply supply;
    struct drllm_heat heat;
    const bool has_supply = drllm_power_read_supply(root != NULL ? root : "", &supply);
    const bool has_heat = drllm_power_read_heat(root != NULL ? root : "", &heat);
    *power = (struct drllm_power){supply.battery_percent, supply.charging, heat.level, heat.celsius};
    return has_supply || has_heat
               ? DRLLM_OK
               : drllm_fail(error, DRLLM_ERR_IO,
                            "this system shows neither power supplies nor temperatures below /sys/class");
}
