/* Models: opening, closing, and the text functions of the public header, which are the vocabulary's. */
#include "runtime/model.h"

#include "platform/cpu.h"
#include "platform/memory.h"
#include "quant/matmul_xnnpack.h"
#include "runtime/chat.h"
#include "runtime/error.h"
#include "runtime/internal.h"
#include "runtime/memory.h"
#include "runtime/packed_file.h"

#include <string.h>

static void *platform_allocate(void *user, size_t size, size_t alignment) {
    (void)user;
    return drllm_memory_allocate(size, alignment);
}

static void platform_release(void *user, void *memory, size_t size) {
    (void)user;
    (void)size;
    drllm_memory_release(memory);
}

struct drllm_model_params drllm_model_default_params(void) {
    return (struct drllm_model_params){.allocator = {platform_allocate, platform_release, NULL},
                                       .cpu_mask = UINT64_MAX};
}

/* ---- Opening ---- */

static int check_params(const struct drllm_model_params *params, struct drllm_error *error) {
    if (params->allocator.allocate == NULL || params->allocator.release == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                          "the allocator needs both functions; begin with the default parameters");
    }
    if ((int)params->compute < DRLLM_COMPUTE_EXACT || params->compute > DRLLM_COMPUTE_F32) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "there is no compute mode %d", (int)params->compute);
    }
    if ((int)params->head < DRLLM_HEAD_AUTO || params->head > DRLLM_HEAD_Q8C) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "there is no head mode %d", (int)params->head);
    }
    if (params->compute == DRLLM_COMPUTE_XNNPACK && !drllm_xnn_available()) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "this build has no XNNPACK");
    }
    return DRLLM_OK;
}

int drllm_model_set_name(struct drllm_model *model, struct drllm_string name, struct drllm_error *error) {
    model->name_bytes = name.size + 1;
    model->name = drllm_allocate_zeroed(&model->allocator, model->name_bytes, 1);
    if (model->name == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the model");
    }
    memcpy(model->name, name.data, name.size);
    return DRLLM_OK;
}

static void count_params(struct drllm_model *model, const struct drllm_gguf *gguf) {
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const struct drllm_gguf_tensor *tensor = &gguf->tensors[i];
        model->n_params += (uint64_t)tensor->dims[0] * tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
    }
}

static int load_gguf(struct drllm_model *model, const struct drllm_gguf *gguf, const struct drllm_model_params *params,
                     struct drllm_error *error) {
    struct drllm_string name = {"", 0};
    (void)drllm_gguf_get_string(gguf, "general.name", &name);
    int status = drllm_config_check_architecture(gguf, error);
    if (status == DRLLM_OK) {
        status = drllm_model_set_name(model, name, error);
    }
    if (status == DRLLM_OK) {
        status = drllm_tokenizer_open(gguf, &model->allocator, &model->tokenizer, error);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    (void)drllm_gguf_get_string(gguf, "tokenizer.chat_template", &model->chat_text);
    model->chat_template = drllm_chat_recognise(model->chat_text);
    model->config.n_vocab = drllm_tokenizer_n_vocab(model->tokenizer);
    count_params(model, gguf);
    if (model->vocab_only) {
        return DRLLM_OK;
    }
    const size_t n_vocab = model->config.n_vocab;
    status = drllm_config_read(gguf, &model->config, error);
    model->config.n_vocab = n_vocab;
    if (status == DRLLM_OK) {
        status = drllm_model_load_weights(
            model, gguf, params->load_threads == 0 ? drllm_cpu_default_threads() : params->load_threads, error);
    }
    return status;
}

static int load(struct drllm_model *model, const void *data, size_t size, const struct drllm_model_params *params,
                struct drllm_error *error) {
    if (drllm_packed_is(data, size)) {
        return drllm_packed_load(model, data, size, params->verify, error);
    }
    struct drllm_gguf gguf;
    int status = drllm_gguf_open(&gguf, data, size, &model->allocator, error);
    if (status == DRLLM_OK) {
        status = load_gguf(model, &gguf, params, error);
        drllm_gguf_close(&gguf);
    }
    return status;
}

static void destroy(struct drllm_model *model) {
    const struct drllm_allocator allocator = model->allocator;
    drllm_release_kept(&allocator, &model->kept);
    drllm_tokenizer_close(model->tokenizer);
    drllm_release(&allocator, model->name, model->name_bytes, 1);
    if (model->backing.close != NULL) {
        model->backing.close(&model->backing);
    }
    drllm_release(&allocator, model, 1, sizeof *model);
}

/* *model takes the backing over only when this succeeds. */
static int open_model(const struct drllm_backing *backing, const struct drllm_model_params *params,
                      struct drllm_model **model, struct drllm_error *error) {
    if (model == NULL || (backing->data == NULL && backing->size > 0)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "data and model must not be NULL");
    }
    if ((uintptr_t)backing->data % 4 != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "the model's data must begin at a multiple of 4 bytes");
    }
    const struct drllm_model_params checked = params == NULL ? drllm_model_default_params() : *params;
    int status = check_params(&checked, error);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_model *opened = drllm_allocate_zeroed(&checked.allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the model");
    }
    opened->allocator = checked.allocator;
    opened->log = checked.log;
    opened->compute = checked.compute;
    opened->head_choice = checked.head;
    opened->vocab_only = checked.vocab_only;
    opened->backing.forget = backing->forget;
    opened->cpu_features = drllm_cpu_detect() & checked.cpu_mask;
    opened->vec = drllm_vec_choose(opened->cpu_features);
    opened->quantization = "";
    status = load(opened, backing->data, backing->size, &checked, error);
    if (status != DRLLM_OK) {
        destroy(opened);
        return status;
    }
    opened->backing = *backing;
    *model = opened;
    return DRLLM_OK;
}

int drllm_model_open_memory(const void *data, size_t size, const struct drllm_model_params *params,
                            struct drllm_model **model, struct drllm_error *error) {
    const struct drllm_backing backing = {.data = data, .size = size};
    return open_model(&backing, params, model, error);
}

int drllm_model_open_backing(const struct drllm_backing *backing, const struct drllm_model_params *params,
                             struct drllm_model **model, struct drllm_error *error) {
    const int status = open_model(backing, params, model, error);
    if (status != DRLLM_OK) {
        backing->close(backing);
    }
    return status;
}

int drllm_model_close(struct drllm_model *model) {
    if (model == NULL) {
        return DRLLM_OK;
    }
    if (atomic_load(&model->n_users) != 0) {
        return DRLLM_ERR_STATE;
    }
    destroy(model);
    return DRLLM_OK;
}

/* ---- Information ---- */

static size_t matrix_bytes(const struct drllm_matrix *matrix) {
    return matrix->xnn != NULL ? drllm_xnn_weights_bytes(matrix->xnn)
                               : drllm_packed_bytes(matrix->format, matrix->rows, matrix->cols);
}

static const char *matrix_backend(const struct drllm_matrix *matrix) {
    return matrix->xnn != NULL ? "xnnpack" : matrix->kernel == NULL ? "" : matrix->kernel->backend;
}

void drllm_model_get_info(const struct drllm_model *model, struct drllm_model_info *info) {
    const struct drllm_config *config = &model->config;
    *info = (struct drllm_model_info){.name = model->name,
                                      .quantization = model->quantization,
                                      .n_layers = config->n_layers,
                                      .d_model = config->d_model,
                                      .n_heads = config->n_heads,
                                      .n_kv_heads = config->n_kv_heads,
                                      .head_dim = config->head_dim,
                                      .d_ff = config->d_ff,
                                      .n_vocab = config->n_vocab,
                                      .n_context_trained = config->n_context_trained,
                                      .n_params = model->n_params,
                                      .weight_bytes = model->weight_bytes,
                                      .bos_token = drllm_tokenizer_bos(model->tokenizer),
                                      .eos_token = drllm_tokenizer_eos(model->tokenizer),
                                      .add_bos = drllm_tokenizer_add_bos(model->tokenizer),
                                      .chat_template = model->chat_template,
                                      .cpu_features = model->cpu_features,
                                      .backend = "",
                                      .head_format = "",
                                      .head_backend = ""};
    if (!model->vocab_only) {
        info->backend = matrix_backend(&model->blocks[0].matrix[0]);
        info->head_bytes = matrix_bytes(&model->head);
        info->head_format = drllm_format_name((uint32_t)model->head.format);
        info->head_backend = matrix_backend(&model->head);
    }
}

/* ---- Text ---- */

int drllm_tokenize(const struct drllm_model *model, const char *text, size_t size, unsigned flags, int32_t *tokens,
                   size_t capacity, size_t *n_tokens, struct drllm_error *error) {
    if (model == NULL || n_tokens == NULL || (text == NULL && size > 0) || (tokens == NULL && capacity > 0)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model, text, tokens and n_tokens must not be NULL");
    }
    return drllm_tokenizer_encode(model->tokenizer, text, size, flags, tokens, capacity, n_tokens, error);
}

int drllm_token_bytes(const struct drllm_model *model, int32_t token, bool special, char *bytes, size_t capacity,
                      size_t *size) {
    if (model == NULL || size == NULL || (bytes == NULL && capacity > 0)) {
        return DRLLM_ERR_ARGUMENT;
    }
    return drllm_tokenizer_token_bytes(model->tokenizer, token, special, bytes, capacity, size);
}

int drllm_detokenize(const struct drllm_model *model, const int32_t *tokens, size_t n_tokens, bool special, char *text,
                     size_t capacity, size_t *size) {
    if (model == NULL || size == NULL || (tokens == NULL && n_tokens > 0) || (text == NULL && capacity > 0)) {
        return DRLLM_ERR_ARGUMENT;
    }
    return drllm_tokenizer_decode(model->tokenizer, tokens, n_tokens, special, text, capacity, size);
}

bool drllm_token_is_end(const struct drllm_model *model, int32_t token) {
    return drllm_tokenizer_is_end(model->tokenizer, token);
}

int drllm_chat_format(const struct drllm_model *model, const struct drllm_chat_message *messages, size_t n_messages,
                      bool add_assistant, char *text, size_t capacity, size_t *size, struct drllm_error *error) {
    if (model == NULL || size == NULL || (messages == NULL && n_messages > 0) || (text == NULL && capacity > 0)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model, messages, text and size must not be NULL");
    }
    return drllm_chat_write(model->chat_template, model->chat_text, messages, n_messages, add_assistant, text, capacity,
                            size, error);
}
