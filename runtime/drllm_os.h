/* drllm on an operating system: models from files, the machine's cores. */
#ifndef DRLLM_OS_H
#define DRLLM_OS_H

#include "drllm.h" /* beside this file, here and where it is installed */

#ifdef __cplusplus
extern "C" {
#endif

/* Map a GGUF file or a packed model read-only and open it. Processes that open the same packed model share its memory. Besides the errors of drllm_model_open_memory: IO. A file that is truncated
 * while it is mapped ends the process (SIGBUS), as with any mapping. */
int drllm_model_open_path(const char *path, const struct drllm_model_params *params, struct drllm_model **model,
                          struct drllm_error *error);

/* The same for the `size` bytes (0: all that follow) at `offset` of a descriptor of a plain file, such as an
 * uncompressed asset of an Android package. The descriptor stays the caller's and may be closed afterwards. */
int drllm_model_open_fd(int descriptor, uint64_t offset, uint64_t size, const struct drllm_model_params *params,
                        struct drllm_model **model, struct drllm_error *error);

/* Read a router file, or a packed model that brings routers along; it is closed again before this returns. Besides the errors of drllm_routers_open_memory: IO. */
int drllm_routers_open_path(const struct drllm_model *model, const char *path, struct drllm_routers **routers,
                            struct drllm_error *error);
int drllm_routers_open_fd(const struct drllm_model *model, int descriptor, uint64_t offset, uint64_t size,
                          struct drllm_routers **routers, struct drllm_error *error);

/* Threads that a session takes by default: one per fast core that this process may use. */
unsigned drllm_default_threads(void);

/* The CPU feature bits (platform/cpu.h) of this machine. */
uint64_t drllm_cpu_features(void);
/* Parse "all", "none", "avx2,f16c", a level such as "x86-avx2"; ARGUMENT names the unknown word. */
int drllm_cpu_mask_parse(const char *text, uint64_t *mask, struct drllm_error *error);

/* ---- Battery and temperature ------------------------------------------------------------------------------------- */

/* How hot the device is. The numbers are pinned, and those of Android's PowerManager.THERMAL_STATUS_*. */
enum drllm_thermal {
    DRLLM_THERMAL_UNKNOWN = -1,
    DRLLM_THERMAL_NONE = 0,     /* nothing is throttled, and nothing soon will be */
    DRLLM_THERMAL_LIGHT = 1,    /* near the point where throttling begins */
    DRLLM_THERMAL_MODERATE = 2, /* throttling */
    DRLLM_THERMAL_SEVERE = 3,
    DRLLM_THERMAL_CRITICAL = 4,
    DRLLM_THERMAL_EMERGENCY = 5,
    DRLLM_THERMAL_SHUTDOWN = 6
};

/* What is not known is -1, or NaN, and never 0. */
struct drllm_power {
    int battery_percent;       /* 0 to 100; -1: unknown, or no battery */
    int charging;              /* 1: power comes in; 0: the battery is being emptied; -1: unknown */
    int thermal;               /* enum drllm_thermal */
    float temperature_celsius; /* of the hottest zone; NaN: unknown */
};
struct drllm_power drllm_power_unknown(void);

/* Ask Linux's sysfs (platform/power.h says how its files are read), below `root`; NULL is the machine's own, "". IO, with
 * everything unknown, where neither batteries, supplies nor thermal zones can be read: virtual machines, and apps on
 * Android, which asks BatteryManager and PowerManager instead. */
int drllm_power_read(const char *root, struct drllm_power *power, struct drllm_error *error);

/* The policy: how many layers these routers should save on average (drllm_depth.save_layers) in this state.
 *
 *     saving   battery, not charging   thermal status
 *     none     51 % and more           none
 *     1/4      31 to 50 %              light
 *     1/2      21 to 30 %              moderate
 *     3/4      11 to 20 %              severe
 *     all      10 % and less           critical and above
 *
 * The larger of the two holds; what is unknown asks for nothing, and a battery whose charging is unknown counts as not
 * charging. None is -1: the routers alone. All is a quarter of the model's layers beyond what the routers save by
 * themselves, or the end of their calibration table if that comes first; between them it goes in proportion. In steps, so
 * that a conversation does not change its program, and is computed anew, with every percent. -1 as well for routers
 * without a table. Pure: no state, any thread. */
float drllm_power_save_layers(const struct drllm_power *power, const struct drllm_routers *routers);

#ifdef __cplusplus
}
#endif

#endif
