// C++17, the installed headers and nothing else: what answer.c does, the way C++ would.
#include <drllm/drllm_os.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Close {
    void operator()(drllm_model *model) const {
        drllm_model_close(model);
    }
    void operator()(drllm_session *session) const {
        drllm_session_close(session);
    }
    void operator()(drllm_routers *routers) const {
        drllm_routers_close(routers);
    }
};
using Model = std::unique_ptr<drllm_model, Close>;
using Routers = std::unique_ptr<drllm_routers, Close>;
using Session = std::unique_ptr<drllm_session, Close>;

void check(int status, const char *detail) {
    if (status != DRLLM_OK) {
        throw std::runtime_error(std::string(drllm_strerror(status)) + ": " + detail);
    }
}

Model open_model(const char *path) {
    drllm_error error{};
    drllm_model *model = nullptr;
    check(drllm_model_open_path(path, nullptr, &model, &error), error.detail);
    return Model(model);
}

Routers open_routers(const drllm_model &model, const char *path) {
    drllm_error error{};
    drllm_routers *routers = nullptr;
    check(drllm_routers_open_path(&model, path, &routers, &error), error.detail);
    return Routers(routers);
}

Session open_session(const drllm_model &model) {
    drllm_error error{};
    drllm_session *session = nullptr;
    check(drllm_session_open(&model, nullptr, &session, &error), error.detail);
    return Session(session);
}

std::vector<int32_t> tokenize(const drllm_model &model, std::string_view text) {
    drllm_error error{};
    std::size_t needed = 0;
    const int status =
        drllm_tokenize(&model, text.data(), text.size(), DRLLM_TOKENIZE_BOS, nullptr, 0, &needed, &error);
    if (status != DRLLM_ERR_BUFFER) {
        check(status, error.detail);
    }
    std::vector<int32_t> tokens(needed);
    check(drllm_tokenize(&model, text.data(), text.size(), DRLLM_TOKENIZE_BOS, tokens.data(), tokens.size(), &needed,
                         &error),
          error.detail);
    return tokens;
}

std::string answer(const drllm_model &model, std::string_view text, std::size_t n_answer,
                   const drllm_routers *routers) {
    const Session session = open_session(model);
    if (routers != nullptr) {
        drllm_depth depth = drllm_depth_default();
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = routers;
        check(drllm_session_set_depth(session.get(), &depth), drllm_session_last_error(session.get()));
    }
    const std::vector<int32_t> tokens = tokenize(model, text);
    check(drllm_session_prefill(session.get(), tokens.data(), tokens.size()), drllm_session_last_error(session.get()));
    drllm_error error{};
    drllm_sampler sampler;
    drllm_sampler_params sampling = drllm_sampler_default_params();
    sampling.temperature = 0;
    check(drllm_sampler_init(&sampler, &sampling, &error), error.detail);
    std::string written;
    drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = n_answer;
    params.user = &written;
    params.on_text = [](void *user, int32_t, const char *piece, std::size_t size) {
        static_cast<std::string *>(user)->append(piece, size);
        return true;
    };
    check(drllm_session_generate(session.get(), &sampler, &params, nullptr), drllm_session_last_error(session.get()));
    int saved = 0;
    check(drllm_session_get_layers_saved(session.get(), &saved), drllm_session_last_error(session.get()));
    std::cerr << "layers saved: " << saved << '\n';
    return written;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4 && argc != 5) {
        std::cerr << "usage: answer MODEL TEXT N_TOKENS [ROUTERS]\n";
        return 2;
    }
    try {
        const Model model = open_model(argv[1]);
        const Routers routers = argc == 5 ? open_routers(*model, argv[4]) : nullptr;
        std::cout << answer(*model, argv[2], std::stoul(argv[3]), routers.get()) << '\n';
    } catch (const std::exception &exception) {
        std::cerr << "answer: " << exception.what() << '\n';
        return 1;
    }
    return 0;
}
