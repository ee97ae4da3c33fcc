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

#ifdef __cplusplus
}
#endif

#endif
