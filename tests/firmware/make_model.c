/* A small random model and routers for it, as files, for the boards whose memory is small.
 *
 * usage: make_model FORMAT bpe|spm MODEL.gguf ROUTERS.gguf */
#include "tests/router_builder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int write_file(const char *path, uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    const size_t written = file == NULL ? 0 : fwrite(data, 1, size, file);
    free(data);
    if (file == NULL || fclose(file) != 0 || written != size) {
        (void)fprintf(stderr, "make_model: cannot write %s\n", path);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        (void)fprintf(stderr, "usage: make_model FORMAT bpe|spm MODEL.gguf ROUTERS.gguf\n");
        return 2;
    }
    const struct drllm_format_traits *format = drllm_format_find_name(argv[1]);
    if (format == NULL) {
        (void)fprintf(stderr, "make_model: unknown format %s\n", argv[1]);
        return 2;
    }
    struct tiny_options options = tiny_default_options();
    options.n_layers = 6;
    options.d_model = 128;
    options.d_ff = 320;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    options.head_dim = 32;
    options.n_vocab = 600;
    options.n_context = 256;
    options.blocks = options.down = options.embedding = options.head = format->format;
    options.bpe = strcmp(argv[2], "bpe") == 0;
    struct router_options routers = router_default_options(&options);
    routers.n_hidden = 128;
    routers.int8 = true;
    size_t size = 0;
    uint8_t *data = tiny_model_file(&options, &size);
    if (write_file(argv[3], data, size) != 0) {
        return 1;
    }
    data = router_builder_file(&routers, &size);
    return write_file(argv[4], data, size);
}
