/* C99, the installed headers and nothing else: go on with a text, at full depth or routed.
 * usage: answer MODEL TEXT N_TOKENS [ROUTERS] */
#include <drllm/drllm_os.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool print(void *user, int32_t token, const char *text, size_t size) {
    (void)token;
    return fwrite(text, 1, size, (FILE *)user) == size;
}

/* 0, or 1 with a message. */
static int answer(const struct drllm_model *model, const char *text, size_t n_answer,
                  const struct drllm_routers *routers) {
    int32_t tokens[512];
    size_t n_tokens;
    struct drllm_error error = {0, ""};
    struct drllm_session *session = NULL;
    struct drllm_sampler sampler;
    struct drllm_sampler_params sampling = drllm_sampler_default_params();
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_generation result;
    struct drllm_depth depth = drllm_depth_default();
    int status, saved = 0;
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
    if (status == DRLLM_OK && routers != NULL) {
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = routers;
        status = drllm_session_set_depth(session, &depth);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(session, tokens, n_tokens);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_generate(session, &sampler, &params, &result);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_get_layers_saved(session, &saved);
    }
    if (status == DRLLM_OK) {
        fprintf(stderr, "layers saved: %d\n", saved);
    } else {
        fprintf(stderr, "answer: %s: %s\n", drllm_strerror(status), error.detail);
    }
    drllm_session_close(session);
    return status == DRLLM_OK ? 0 : 1;
}

int main(int argc, char **argv) {
    struct drllm_error error = {0, ""};
    struct drllm_model *model = NULL;
    struct drllm_routers *routers = NULL;
    int code = 1;
    if (argc != 4 && argc != 5) {
        fputs("usage: answer MODEL TEXT N_TOKENS [ROUTERS]\n", stderr);
        return 2;
    }
    if (drllm_model_open_path(argv[1], NULL, &model, &error) != DRLLM_OK ||
        (argc == 5 && drllm_routers_open_path(model, argv[4], &routers, &error) != DRLLM_OK)) {
        fprintf(stderr, "answer: %s\n", error.detail);
    } else {
        code = answer(model, argv[2], (size_t)strtoul(argv[3], NULL, 10), routers);
    }
    if (drllm_routers_close(routers) != DRLLM_OK || drllm_model_close(model) != DRLLM_OK) {
        fputs("answer: the model is still in use\n", stderr);
        code = 1;
    }
    putchar('\n');
    return fclose(stdout) != 0 ? 1 : code;
}
