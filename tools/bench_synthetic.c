#include "tools/bench_synthetic.h"

#include "tools/synthetic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char file_name[] = "/model.gguf";

int bench_synthetic_check(const struct command *command, const char *shape, const char *format) {
    struct synthetic synthetic = {.seed = 0};
    const int exit_code = synthetic_parse_shape(command, shape, &synthetic.shape);
    return exit_code == TOOL_OK ? synthetic_parse_format(command, format, &synthetic.format) : exit_code;
}

static void remove_folder(char *path) {
    path[strlen(path) - strlen(file_name)] = '\0';
    (void)rmdir(path);
}

void bench_synthetic_remove(const char *path) {
    char *folder = copy_text(path);
    (void)unlink(path);
    remove_folder(folder);
    free(folder);
}

int bench_synthetic_make(const struct command *command, const char *shape, const char *format, char **path) {
    struct synthetic synthetic = {.seed = 0};
    int exit_code = synthetic_parse_shape(command, shape, &synthetic.shape);
    if (exit_code == TOOL_OK) {
        exit_code = synthetic_parse_format(command, format, &synthetic.format);
    }
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const char *under = getenv("TMPDIR");
    under = under != NULL && under[0] != '\0' ? under : "/tmp";
    const size_t size = strlen(under) + 64;
    char *made = allocate_bytes(size);
    snprintf(made, size, "%s/drllm-bench-XXXXXX", under);
    if (mkdtemp(made) == NULL) {
        report(command, "cannot make a folder under %s: %s; TMPDIR names another place", under, strerror(errno));
        free(made);
        return TOOL_FAILED;
    }
    memcpy(made + strlen(made), file_name, sizeof file_name);
    uint64_t written = 0;
    exit_code = synthetic_write(command, &synthetic, made, &written);
    if (exit_code == TOOL_OK) {
        *path = made;
        return TOOL_OK;
    }
    remove_folder(made);
    free(made);
    return exit_code;
}
