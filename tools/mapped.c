#include "tools/mapped.h"

int mapped_open(const struct command *command, const char *path, struct mapped_gguf *mapped) {
    const int problem = drllm_file_map_path(path, &mapped->file);
    if (problem != 0) {
        char text[128];
        drllm_file_error_text(problem, text, sizeof text);
        report(command, "cannot open %s: %s", path, text);
        return TOOL_FAILED;
    }
    struct drllm_error error = {0};
    const struct drllm_allocator allocator = drllm_model_default_params().allocator;
    const int status = drllm_gguf_open(&mapped->gguf, mapped->file.data, mapped->file.size, &allocator, &error);
    if (status != DRLLM_OK) {
        report(command, "cannot open %s: %s (%s)", path, error.detail, drllm_strerror(status));
        drllm_file_unmap(&mapped->file);
        *mapped = (struct mapped_gguf){0};
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

void mapped_close(struct mapped_gguf *mapped) {
    if (mapped->file.data != NULL) {
        drllm_gguf_close(&mapped->gguf);
        drllm_file_unmap(&mapped->file);
    }
    *mapped = (struct mapped_gguf){0};
}

size_t tensor_rows(const struct drllm_gguf_tensor *tensor) {
    return tensor->dims[1] * tensor->dims[2] * tensor->dims[3]; /* the reader has checked that it does not overflow */
}
