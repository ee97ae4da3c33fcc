#include "tools/processors.h"

#include "platform/affinity.h"

#include <errno.h>
#include <string.h>

static int use_list(const struct command *command, const char *list) {
    struct drllm_processors set;
    if (!drllm_processors_parse(list, &set)) {
        return usage_error(command, "--cpu-list: '%s' is no list of processors such as 0-3,6", list);
    }
    const int error = drllm_processors_use(&set);
    if (error != 0) {
        report(command, "--cpu-list %s: %s", list,
               error == EINVAL ? "this machine has none of these processors, or they are not for us" : strerror(error));
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

/* What cannot be had is no error: nobody asked for it. */
static void prefer_fast(const struct model_options *options) {
    struct drllm_processors allowed, fast;
    if (drllm_processors_get(&allowed) == 0 && drllm_processors_fast("", &allowed, &fast) &&
        (size_t)options->threads <= drllm_processors_count(&fast)) {
        (void)drllm_processors_use(&fast);
    }
}

static void print_processors(void) {
    struct drllm_processors set;
    char text[256];
    if (drllm_processors_get(&set) == 0) {
        drllm_processors_format(&set, text, sizeof text);
        fprintf(stderr, "drllm: on processors %s\n", text);
    }
}

int use_processors(const struct command *command, const struct model_options *options) {
    const int error = options->priority != 0 ? drllm_priority_set((int)options->priority) : 0;
    if (error != 0) {
        report(command, "--prio %d: %s", (int)options->priority,
               error == EACCES || error == EPERM ? "going before others takes privileges" : strerror(error));
        return TOOL_FAILED;
    }
    const int exit_code = options->cpu_list != NULL ? use_list(command, options->cpu_list) : TOOL_OK;
    if (options->cpu_list == NULL) {
        prefer_fast(options);
    }
    if (exit_code == TOOL_OK && options->verbose) {
        print_processors();
    }
    return exit_code;
}
