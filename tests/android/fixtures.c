/* Writes the small files that tests/android/DrLlmTest.java uses. usage: fixtures FOLDER */
#include "tests/router_builder.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = TINY_FIRST_PIECE, N_LAYERS = 8 };

static void write_file(const char *folder, const char *name, uint8_t *data, size_t size) {
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
    free(data);
}

/* After each byte of the text the next one is by far the likeliest; the last one goes on with the token `last`. */
static void chain(int32_t *next, const char *bytes, size_t size, int32_t last) {
    for (size_t i = 0; i < size; i++) {
        const int32_t follower = i + 1 < size ? TINY_FIRST_BYTE + (unsigned char)bytes[i + 1] : last;
        next[TINY_FIRST_BYTE + (unsigned char)bytes[i]] = follower;
    }
}

static int32_t byte_token(char byte) {
    return TINY_FIRST_BYTE + (unsigned char)byte;
}

/* Characters of two, three and four bytes for ever after "A"; after "N" a zero byte and the end; after "I" an invalid byte
 * and the end; after "\n" (an assistant's turn in ChatML) a short answer. No byte is in two of them. */
static struct tiny_options speaking_model(int32_t next[N_VOCAB]) {
    static const char loop[] = "A\xf0\x9f\x98\x80"
                               "B\xc3\xa9"
                               "D\xe4\xb8\xad"
                               "C";
    struct tiny_options options = tiny_default_options();
    for (size_t i = 0; i < N_VOCAB; i++) {
        next[i] = TINY_EOS;
    }
    chain(next, loop, sizeof loop - 1, byte_token('A'));
    chain(next, "N\0", 2, TINY_EOS);
    chain(next, "I\xff", 2, TINY_EOS);
    chain(next, "\nHi!", 4, TINY_EOS);
    options.n_layers = N_LAYERS;
    options.d_model = 288;
    options.d_ff = 32;
    options.n_vocab = N_VOCAB;
    options.n_context = 4096;
    options.next = next;
    return options;
}

int main(int argc, char **argv) {
    static const uint8_t program[N_LAYERS] = {1, 1, 0, 1, 1, 0, 1, 1};
    static const float bias[] = {-4.0f, 0.0f, 1.0f, 4.0f}, saved[] = {0.0f, 1.0f, 2.0f, 6.0f};
    static const struct tiny_edit with_template = {
        .key = "tokenizer.chat_template",
        .kind = TINY_STRING,
        .string = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' "
                  "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"};
    int32_t next[N_VOCAB];
    size_t size;
    if (argc != 2) {
        fprintf(stderr, "usage: fixtures FOLDER\n");
        return 2;
    }
    const struct tiny_options options = speaking_model(next);
    struct tiny_model model;
    tiny_model_make(&model, &options);
    uint8_t *file = tiny_model_write(&model, &with_template, 1, &size);
    write_file(argv[1], "tiny.gguf", file, size);
    file = tiny_model_write(&model, NULL, 0, &size);
    write_file(argv[1], "no-template.gguf", file, size);
    tiny_model_free(&model);

    struct router_options routers = router_default_options(&options);
    routers.program = program;
    file = router_builder_file(&routers, &size);
    write_file(argv[1], "no-table.gguf", file, size);
    routers.bias = bias;
    routers.saved = saved;
    routers.n_bias = routers.n_saved = sizeof bias / sizeof bias[0];
    file = router_builder_file(&routers, &size);
    write_file(argv[1], "routers.gguf", file, size);
    routers.d_model = 64;
    file = router_builder_file(&routers, &size);
    write_file(argv[1], "other-routers.gguf", file, size);
    return 0;
}
