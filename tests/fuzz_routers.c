/* Fuzz target routers: a router file for a model that is there. */
#include "tests/fuzz.h"
#include "tests/router_builder.h"

#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 9 };

/* Opened once, and kept until the program ends. */
static const struct drllm_model *the_model(void) {
    static struct drllm_model *model;
    if (model == NULL) {
        struct tiny_options options;
        size_t size = 0;
        drllm_fuzz_check(drllm_fuzz_model_options(0, &options));
        uint8_t *file = tiny_model_file(&options, &size); /* stays, as the model uses it */
        struct drllm_model_params params = drllm_model_default_params();
        params.load_threads = 1;
        drllm_fuzz_check(drllm_model_open_memory(file, size, &params, &model, NULL) == DRLLM_OK);
    }
    return model;
}

static void prefill(const struct drllm_model *model, const struct drllm_routers *routers, float save_layers) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = N_TOKENS;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    drllm_fuzz_check(drllm_session_open(model, &params, &session, NULL) == DRLLM_OK);
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = routers;
    depth.save_layers = save_layers;
    int32_t tokens[N_TOKENS];
    tiny_random_tokens(3, tokens, N_TOKENS, info.n_vocab);
    if (drllm_session_set_depth(session, &depth) == DRLLM_OK &&
        drllm_session_prefill(session, tokens, N_TOKENS) == DRLLM_OK) {
        uint8_t counts[8];
        int saved = 0;
        drllm_fuzz_check(info.n_layers <= sizeof counts);
        drllm_fuzz_check(drllm_session_get_program(session, counts) == DRLLM_OK);
        drllm_fuzz_check(drllm_session_get_layers_saved(session, &saved) == DRLLM_OK);
        int expected = (int)info.n_layers;
        for (size_t i = 0; i < info.n_layers; i++) {
            drllm_fuzz_check(counts[i] <= 2);
            expected -= counts[i];
        }
        drllm_fuzz_check(saved == expected);
    }
    drllm_session_close(session);
}

static void run(const uint8_t *data, size_t size) {
    const struct drllm_model *model = the_model();
    struct drllm_routers *routers = NULL;
    struct drllm_error error = {0};
    const int status = drllm_routers_open_memory(model, data, size, &routers, &error);
    if (status != DRLLM_OK) {
        drllm_fuzz_check(routers == NULL && error.status == status && error.detail[0] != '\0');
        return;
    }
    drllm_fuzz_n_accepted++;
    struct drllm_routers_info info;
    drllm_routers_get_info(routers, &info);
    drllm_fuzz_check(strlen(info.name) + strlen(info.model_name) + strlen(info.training) <= size);
    drllm_fuzz_check(info.n_windows >= 1 && info.n_hidden >= 1);
    prefill(model, routers, -1);
    if (info.n_calibration != 0) {
        drllm_fuzz_check(info.least_saved <= info.most_saved);
        prefill(model, routers, 1);
    }
    drllm_fuzz_check(drllm_routers_close(routers) == DRLLM_OK);
}

static uint8_t *sample(size_t number, size_t *size) {
    static const float bias[] = {-1, 0, 2.5f}, saved[] = {0, 0.5f, 1.25f};
    struct tiny_options options;
    if (number >= 3 || !drllm_fuzz_model_options(0, &options)) {
        return NULL;
    }
    struct router_options routers = router_default_options(&options);
    routers.int8 = number != 0;
    routers.seed = number + 1;
    if (number == 2) {
        routers.name = "routers";
        routers.model_name = "model";
        routers.model_quantization = "q4_1";
        routers.training = "{\"epochs\": 1}";
        routers.bias = bias;
        routers.saved = saved;
        routers.n_bias = routers.n_saved = 3;
    }
    return router_builder_file(&routers, size);
}

const struct drllm_fuzz_target drllm_fuzz_routers = {"routers", 20000, sample, NULL, run};
