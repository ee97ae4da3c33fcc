/* C99, the installed headers and nothing else: go on with a text. usage: answer MODEL TEXT N_TOKENS */
#include <drllm/drllm_os.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool print(void *user, int32_t token, const char *text, size_t size) {
    (void)token;
    return fwrite(text, 1, size, (FILE *)user) == size;
}

/* 0, or 1 with a message. */
static int answer(const struct drllm_model *model, const char *text, size_t n_answer) {
    int32_t tokens[512];
    size_t n_tokens;
    struct drllm_error error = {0, ""};
    struct drllm_session *session = NULL;
    struct drllm_sampler sampler;
    struct drllm_sampler_params sampling = drllm_sampler_default_params();
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_generation result;
    int status;
    sampling.temperature = 0;
    params.max_tokens = n_answer;
    params.on_text = print;
    params.user = stdout;
    status = drllm_tokenize(model, text, strlen(text), DRLLM_TOKENIZE_BOS, tokens, 512, &n_tokens, &error);
    if (status == DRLLM_OK) {
        status = drllm_sampler_init(&sampler, &sampling, &error);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_open(model, NULL, &session, &error);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(session, tokens, n_tokens);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_generate(session, &sampler, &params, &result);
    }
    if (status != DRLLM_OK) {
        fprintf(stderr, "answer: %s: %s\n", drllm_strerror(status), error.detail);
    }
    drllm_session_close(session);
    return status == DRLLM_OK ? 0 : 1;
}

int main(int argc, char **argv) {
    struct drllm_error error = {0, ""};
    struct drllm_model *model;
    int code;
    if (argc != 4) {
        fputs("usage: answer MODEL TEXT N_TOKENS\n", stderr);
        return 2;
    }
    if (drllm_model_open_path(argv[1], NULL, &model, &error) != DRLLM_OK) {
        fprintf(stderr, "answer: %s\n", error.detail);
        return 1;
    }
    code = answer(model, argv[2], (size_t)strtoul(argv[3], NULL, 10));
    if (drllm_model_close(model) != DRLLM_OK) {
        fputs("answer: the model is still in use\n", stderr);
        code = 1;
    }
    putchar('\n');
    return fclose(stdout) != 0 ? 1 : code;
}
