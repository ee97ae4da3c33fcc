/* The shortest useful program: answer one prompt. usage: simple MODEL.gguf PROMPT */
#include "runtime/drllm_os.h"

#include <stdio.h>
#include <stdlib.h>

static bool print(void *user, int32_t token, const char *text, size_t size) {
    (void)token;
    return fwrite(text, 1, size, user) == size && fflush(user) == 0;
}

static void check(int status, const char *detail) {
    if (status != DRLLM_OK) {
        fprintf(stderr, "simple: %s: %s\n", drllm_strerror(status), detail);
        exit(1);
    }
}

int main(int argc, char **argv) {
    struct drllm_error error = {0};
    struct drllm_model *model;
    struct drllm_session *session;
    struct drllm_sampler sampler;
    char chat[8192];
    int32_t tokens[2048];
    size_t size, n_tokens;
    if (argc != 3) {
        fprintf(stderr, "usage: simple MODEL.gguf PROMPT\n");
        return 2;
    }
    const struct drllm_chat_message message = {"user", argv[2]};
    check(drllm_model_open_path(argv[1], NULL, &model, &error), error.detail);
    check(drllm_chat_format(model, &message, 1, true, chat, sizeof chat, &size, &error), error.detail);
    check(
        drllm_tokenize(model, chat, size, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, tokens, 2048, &n_tokens, &error),
        error.detail);
    check(drllm_session_open(model, NULL, &session, &error), error.detail);
    check(drllm_session_prefill(session, tokens, n_tokens), drllm_session_last_error(session));
    check(drllm_sampler_init(&sampler, NULL, &error), error.detail);
    struct drllm_generate_params params = drllm_generate_default_params();
    params.on_text = print;
    params.user = stdout;
    check(drllm_session_generate(session, &sampler, &params, NULL), drllm_session_last_error(session));
    drllm_session_close(session);
    check(drllm_model_close(model), "");
    return putchar('\n') == EOF || fclose(stdout) != 0;
}
