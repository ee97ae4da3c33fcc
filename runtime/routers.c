/* A router file made ready to run with one model: checked against it, its weights packed. */
#include "runtime/error.h"
#include "runtime/internal.h"
#include "runtime/packed_file.h"
#include "runtime/router.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct builder {
    struct drllm_routers *routers;
    const struct drllm_router_file *file;
    struct drllm_error *error;
    enum drllm_format format; /* that the weights run in */
    bool xnnpack;
};

static int out_of_memory(struct drllm_error *error) {
    return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
}

static const struct drllm_allocator *allocator_of(const struct builder *builder) {
    return &builder->routers->model->allocator;
}

/* ---- The model that the file is for ---- */

static int check_model(const struct builder *builder) {
    const struct drllm_router_file *file = builder->file;
    const struct drllm_model *model = builder->routers->model;
    const struct drllm_config *config = &model->config;
    const int name_size = (int)(file->model_name.size < 64 ? file->model_name.size : 64);
    if (file->n_layers != config->n_layers || file->d_model != config->d_model) {
        return drllm_fail(builder->error, DRLLM_ERR_ARGUMENT,
                          "the routers are for another model (%.*s): %zu blocks of width %zu; this model has %zu of "
                          "width %zu",
                          name_size, file->model_name.data, file->n_layers, file->d_model, config->n_layers,
                          config->d_model);
    }
    if (file->has_fingerprint && file->fingerprint != drllm_model_fingerprint(model)) {
        return drllm_fail(
            builder->error, DRLLM_ERR_ARGUMENT,
            "the routers are for another model (%.*s): its vocabulary or its norm weights differ from this "
            "one's",
            name_size, file->model_name.data);
    }
    return DRLLM_OK;
}

static void warn(const struct builder *builder) {
    const struct drllm_router_file *file = builder->file;
    const struct drllm_model *model = builder->routers->model;
    if (!file->has_fingerprint) {
        drllm_log_line(
            &model->log, DRLLM_LOG_WARNING,
            "the router file does not say which model it is for; its shapes fit ('drllm routers' stamps it)");
    }
    if (file->model_quantization.size > 0 && !drllm_string_equals(file->model_quantization, model->quantization)) {
        drllm_log_line(&model->log, DRLLM_LOG_WARNING,
                       "the routers were trained with %.*s weights; this model has %s, and some decisions may differ",
                       (int)(file->model_quantization.size < 32 ? file->model_quantization.size : 32),
                       file->model_quantization.data, model->quantization);
    }
}

/* ---- Weights ---- */

/* Whether XNNPACK runs the products. Where it cannot run, our kernels do. */
static bool use_xnnpack(const struct builder *builder) {
    const struct drllm_model *model = builder->routers->model;
    if (builder->format != DRLLM_FORMAT_Q8C || !drllm_xnn_available()) {
        return false;
    }
    const enum drllm_xnn_status status = drllm_xnn_start(model->cpu_features);
    if (status != DRLLM_XNN_OK) {
        drllm_log_line(&model->log, DRLLM_LOG_INFO, "routers run without XNNPACK: %s",
                       status == DRLLM_XNN_OTHER_MASK ? "it runs in this process with another CPU mask"
                                                      : "it does not run on this processor with this CPU mask");
    }
    return status == DRLLM_XNN_OK;
}

/* A matrix on its way into the format that it runs in. */
struct conversion {
    const struct drllm_router_tensor *tensor;
    size_t n_rows, n_cols;
    float *values;       /* [n_rows][n_cols] */
    float *input_scale;  /* [n_cols], the routers'; NULL for a matrix whose input is taken as it is */
    unsigned char *rows; /* [n_rows] rows of int8 or float32 */
    float *scales;       /* [n_rows] of int8 rows */
};

/* Float32 weights to int8, with the columns brought to one size first. */
static bool quantize(struct conversion *to) {
    if (to->input_scale != NULL) {
        drllm_router_input_scale(to->values, to->n_rows, to->n_cols, to->input_scale);
    }
    bool good = true;
    for (size_t row = 0; row < to->n_rows; row++) {
        float *values = to->values + row * to->n_cols;
        for (size_t i = 0; i < to->n_cols && to->input_scale != NULL; i++) {
            values[i] /= to->input_scale[i];
        }
        good =
            drllm_quantize_row_q8c(values, (int8_t *)to->rows + row * to->n_cols, &to->scales[row], to->n_cols) && good;
    }
    return good;
}

static bool convert(const struct builder *builder, struct conversion *to) {
    const struct drllm_router_tensor *tensor = to->tensor;
    const size_t n_weights = to->n_rows * to->n_cols;
    if (builder->format == DRLLM_FORMAT_Q8C && tensor->scales != NULL) {
        memcpy(to->rows, tensor->weight->data, n_weights);
        memcpy(to->scales, tensor->scales, to->n_rows * sizeof *to->scales);
        for (size_t i = 0; i < to->n_cols && to->input_scale != NULL; i++) {
            to->input_scale[i] = tensor->input_scale != NULL ? tensor->input_scale[i] : 1.0f;
        }
        return true;
    }
    for (size_t row = 0; row < to->n_rows; row++) {
        drllm_router_file_row(tensor, row, to->values + row * to->n_cols);
    }
    if (builder->format == DRLLM_FORMAT_F32) {
        memcpy(to->rows, to->values, n_weights * sizeof *to->values);
        return true;
    }
    return quantize(to);
}

static void *keep_for_xnn(void *user, size_t size, size_t alignment) {
    struct drllm_routers *routers = user;
    (void)alignment; /* 64, which all memory here has */
    return drllm_keep(&routers->model->allocator, &routers->kept, size, 1);
}

static int pack_for_xnnpack(const struct builder *builder, const unsigned char *rows, const float *scales,
                            struct drllm_matrix *matrix) {
    struct drllm_xnn_weights *weights = NULL;
    const enum drllm_xnn_status status = drllm_xnn_pack_q8c((const int8_t *)rows, scales, matrix->rows, matrix->cols,
                                                            keep_for_xnn, builder->routers, &weights);
    if (status != DRLLM_XNN_OK) {
        return status == DRLLM_XNN_MEMORY ? out_of_memory(builder->error)
                                          : drllm_fail(builder->error, DRLLM_ERR_SYSTEM,
                                                       "XNNPACK refused the routers' weights (status %d)", (int)status);
    }
    matrix->xnn = weights;
    builder->routers->weight_bytes += drllm_xnn_weights_bytes(weights);
    return DRLLM_OK;
}

static int pack(const struct builder *builder, const unsigned char *rows, const float *scales,
                struct drllm_matrix *matrix) {
    if (builder->xnnpack) {
        return pack_for_xnnpack(builder, rows, scales, matrix);
    }
    const size_t bytes = drllm_packed_bytes(matrix->format, matrix->rows, matrix->cols);
    void *packed = drllm_keep(allocator_of(builder), &builder->routers->kept, bytes, 1);
    if (packed == NULL) {
        return out_of_memory(builder->error);
    }
    matrix->kernel = drllm_kernel_choose(matrix->format, builder->routers->model->cpu_features);
    matrix->data = packed;
    matrix->panel_bytes = drllm_packed_bytes(matrix->format, DRLLM_PANEL_ROWS, matrix->cols);
    drllm_pack_panels(matrix->format, rows, matrix->format == DRLLM_FORMAT_Q8C ? scales : NULL, matrix->rows,
                      matrix->cols, packed, 0, (matrix->rows + DRLLM_PANEL_ROWS - 1) / DRLLM_PANEL_ROWS);
    builder->routers->weight_bytes += bytes;
    return DRLLM_OK;
}

/* Nothing is copied: the file's bytes stay, as its caller promised. */
static void use_in_place(const struct builder *builder, const struct drllm_router_tensor *tensor,
                         struct drllm_router *router, enum drllm_router_matrix which) {
    struct drllm_matrix *matrix = &router->matrix[which];
    matrix->kernel = drllm_kernel_choose(matrix->format, builder->routers->model->cpu_features);
    matrix->panel_bytes = drllm_packed_bytes(matrix->format, DRLLM_PANEL_ROWS, matrix->cols);
    router->rows[which] = tensor->weight->data;
    router->scales[which] = tensor->scales;
    router->bias[which] = tensor->bias;
    if (which == DRLLM_ROUTER_FC1) {
        router->input_scale = tensor->input_scale;
    }
    builder->routers->weight_bytes += tensor->weight->size;
}

static int load_matrix(const struct builder *builder, size_t layer, enum drllm_router_matrix which) {
    const struct drllm_allocator *allocator = allocator_of(builder);
    const struct drllm_router_tensor *tensor = drllm_router_file_tensor(builder->file, layer, which);
    struct drllm_router *router = &builder->routers->blocks[layer];
    struct drllm_matrix *matrix = &router->matrix[which];
    *matrix = (struct drllm_matrix){
        .format = builder->format, .rows = tensor->weight->dims[1], .cols = tensor->weight->dims[0]};
    if (builder->routers->model->data_stays) {
        use_in_place(builder, tensor, router, which);
        return DRLLM_OK;
    }
    const size_t row_bytes = matrix->cols * sizeof(float);
    const bool scales_input = which == DRLLM_ROUTER_FC1 && builder->format == DRLLM_FORMAT_Q8C;
    float *bias = drllm_keep(allocator, &builder->routers->kept, matrix->rows, sizeof *bias);
    struct conversion to = {.tensor = tensor,
                            .n_rows = matrix->rows,
                            .n_cols = matrix->cols,
                            .values = drllm_allocate(allocator, matrix->rows, row_bytes),
                            .rows = drllm_allocate(allocator, matrix->rows, row_bytes),
                            .scales = drllm_allocate(allocator, matrix->rows, sizeof(float))};
    if (scales_input) {
        to.input_scale = drllm_keep(allocator, &builder->routers->kept, matrix->cols, sizeof *to.input_scale);
        router->input_scale = to.input_scale;
    }
    int status;
    if (bias == NULL || to.values == NULL || to.rows == NULL || to.scales == NULL ||
        (scales_input && to.input_scale == NULL)) {
        status = out_of_memory(builder->error);
    } else if (!convert(builder, &to)) {
        status =
            drllm_fail(builder->error, DRLLM_ERR_FORMAT, "the weights of the router of block %zu are too large", layer);
    } else {
        memcpy(bias, tensor->bias, matrix->rows * sizeof *bias);
        router->bias[which] = bias;
        status = pack(builder, to.rows, to.scales, matrix);
    }
    drllm_release(allocator, to.values, matrix->rows, row_bytes);
    drllm_release(allocator, to.rows, matrix->rows, row_bytes);
    drllm_release(allocator, to.scales, matrix->rows, sizeof(float));
    return status;
}

/* ---- Texts and the calibration table ---- */

/* Zero-terminated; NULL when there is no memory. */
static const char *keep_text(const struct builder *builder, struct drllm_string text) {
    char *copy = drllm_keep(allocator_of(builder), &builder->routers->kept, text.size + 1, 1);
    if (copy != NULL) {
        memcpy(copy, text.data, text.size);
        copy[text.size] = '\0';
    }
    return copy;
}

static int keep_metadata(const struct builder *builder) {
    struct drllm_routers *routers = builder->routers;
    const struct drllm_router_file *file = builder->file;
    routers->name = keep_text(builder, file->name);
    routers->model_name = keep_text(builder, file->model_name);
    routers->model_quantization = keep_text(builder, file->model_quantization);
    routers->training = keep_text(builder, file->training);
    if (routers->name == NULL || routers->model_name == NULL || routers->model_quantization == NULL ||
        routers->training == NULL) {
        return out_of_memory(builder->error);
    }
    if (file->n_calibration > 0) {
        routers->bias = drllm_keep(allocator_of(builder), &routers->kept, file->n_calibration, sizeof *routers->bias);
        routers->saved = drllm_keep(allocator_of(builder), &routers->kept, file->n_calibration, sizeof *routers->saved);
        if (routers->bias == NULL || routers->saved == NULL) {
            return out_of_memory(builder->error);
        }
    }
    for (size_t i = 0; i < file->n_calibration; i++) {
        drllm_router_file_calibration(file, i, &routers->bias[i], &routers->saved[i]);
    }
    routers->n_calibration = file->n_calibration;
    return DRLLM_OK;
}

int drllm_routers_skip_bias(const struct drllm_routers *routers, float save_layers, float *bias,
                            struct drllm_error *error) {
    const size_t n = routers->n_calibration;
    if (n == 0) {
        return drllm_fail(error, DRLLM_ERR_STATE,
                          "the router file has no calibration table, which saving a given number of layers needs; "
                          "set router_p instead, or calibrate the routers");
    }
    const float *saved = routers->saved;
    if (save_layers > saved[n - 1]) {
        const long hundredths = lroundf(saved[n - 1] * 100.0f);
        const size_t size = (size_t)labs(hundredths);
        return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                          "so many layers cannot be saved: the routers' calibration table ends at %s%zu.%zu%zu",
                          hundredths < 0 ? "-" : "", size / 100, size / 10 % 10, size % 10);
    }
    size_t i = 0;
    while (saved[i] < save_layers) {
        i++;
    }
    *bias = routers->bias[i];
    if (i > 0) {
        const float share = (save_layers - saved[i - 1]) / (saved[i] - saved[i - 1]);
        *bias = routers->bias[i - 1] + share * (routers->bias[i] - routers->bias[i - 1]);
    }
    return DRLLM_OK;
}

/* ---- Opening and closing ---- */

static int build(struct builder *builder) {
    struct drllm_routers *routers = builder->routers;
    routers->n_windows = builder->file->n_windows;
    routers->n_hidden = builder->file->n_hidden;
    routers->names_model = builder->file->has_fingerprint;
    int status = check_model(builder);
    if (status == DRLLM_OK) {
        status = keep_metadata(builder);
    }
    if (status != DRLLM_OK) {
        return status;
    }
    const size_t n_layers = routers->model->config.n_layers;
    if (routers->model->data_stays && !builder->file->int8) {
        return drllm_fail(
            builder->error, DRLLM_ERR_UNSUPPORTED,
            "the routers are float32; make them int8 with 'drllm routers', so that they can be used in place");
    }
    builder->format = routers->model->compute == DRLLM_COMPUTE_F32 ? DRLLM_FORMAT_F32 : DRLLM_FORMAT_Q8C;
    builder->xnnpack = !routers->model->data_stays && use_xnnpack(builder);
    routers->blocks = drllm_keep(allocator_of(builder), &routers->kept, n_layers, sizeof *routers->blocks);
    if (routers->blocks == NULL) {
        return out_of_memory(builder->error);
    }
    memset(routers->blocks, 0, n_layers * sizeof *routers->blocks);
    for (size_t layer = 0; layer < n_layers && status == DRLLM_OK; layer++) {
        status = load_matrix(builder, layer, DRLLM_ROUTER_FC1);
        if (status == DRLLM_OK) {
            status = load_matrix(builder, layer, DRLLM_ROUTER_FC2);
        }
    }
    return status;
}

static void destroy(struct drllm_routers *routers) {
    struct drllm_model *model = routers->model;
    drllm_release_kept(&model->allocator, &routers->kept);
    drllm_release(&model->allocator, routers, 1, sizeof *routers);
    atomic_fetch_sub(&model->n_users, 1);
}

static int open_routers(const struct drllm_model *model, const struct drllm_router_file *file,
                        struct drllm_routers **routers, struct drllm_error *error) {
    struct drllm_routers *opened = drllm_allocate_zeroed(&model->allocator, 1, sizeof *opened);
    if (opened == NULL) {
        return out_of_memory(error);
    }
    opened->model = (struct drllm_model *)model;
    atomic_fetch_add(&opened->model->n_users, 1);
    struct builder builder = {.routers = opened, .file = file, .error = error};
    const int status = build(&builder);
    if (status != DRLLM_OK) {
        destroy(opened);
        return status;
    }
    warn(&builder);
    *routers = opened;
    return DRLLM_OK;
}

static int open_file(const struct drllm_model *model, const void *data, size_t size, struct drllm_routers **routers,
                     struct drllm_error *error) {
    struct drllm_router_file file;
    int status = drllm_router_file_open(&file, data, size, &model->allocator, error);
    if (status == DRLLM_OK) {
        status = open_routers(model, &file, routers, error);
        drllm_router_file_close(&file);
    }
    return status;
}

static int check_whole(const struct drllm_model *model, struct drllm_error *error) {
    return model->vocab_only ? drllm_fail(error, DRLLM_ERR_STATE,
                                          "the model was opened for its vocabulary only; open it whole for routers")
                             : DRLLM_OK;
}

int drllm_routers_open_memory(const struct drllm_model *model, const void *data, size_t size,
                              struct drllm_routers **routers, struct drllm_error *error) {
    if (model == NULL || routers == NULL || (data == NULL && size > 0)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model, data and routers must not be NULL");
    }
    if ((uintptr_t)data % 4 != 0) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "the routers' data must begin at a multiple of 4 bytes");
    }
    int status = check_whole(model, error);
    if (status != DRLLM_OK || !drllm_packed_is(data, size)) {
        return status != DRLLM_OK ? status : open_file(model, data, size, routers, error);
    }
    struct drllm_packed_file packed;
    status = drllm_packed_open(&packed, data, size, error);
    if (status == DRLLM_OK && packed.sections[DRLLM_PACKED_ROUTERS].data == NULL) {
        status = drllm_fail(error, DRLLM_ERR_FORMAT,
                            "this packed model brings no routers along; pack it again with --routers");
    }
    if (status == DRLLM_OK) {
        status = drllm_packed_check(&packed, DRLLM_PACKED_ROUTERS, error);
    }
    return status != DRLLM_OK ? status
                              : open_file(model, packed.sections[DRLLM_PACKED_ROUTERS].data,
                                          packed.sections[DRLLM_PACKED_ROUTERS].size, routers, error);
}

int drllm_routers_open_packed(const struct drllm_model *model, struct drllm_routers **routers,
                              struct drllm_error *error) {
    if (model == NULL || routers == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "model and routers must not be NULL");
    }
    const int status = check_whole(model, error);
    if (status != DRLLM_OK) {
        return status;
    }
    if (!model->brings_routers) {
        return drllm_fail(error, DRLLM_ERR_STATE,
                          "the model brings no routers along; make a packed model with 'drllm pack --routers'");
    }
    return drllm_routers_open_memory(model, model->backing.data, model->backing.size, routers, error);
}

int drllm_routers_close(struct drllm_routers *routers) {
    if (routers == NULL) {
        return DRLLM_OK;
    }
    if (atomic_load(&routers->n_users) != 0) {
        return DRLLM_ERR_STATE;
    }
    destroy(routers);
    return DRLLM_OK;
}

void drllm_routers_get_info(const struct drllm_routers *routers, struct drllm_routers_info *info) {
    const struct drllm_matrix *matrix = &routers->blocks[0].matrix[0];
    const size_t n = routers->n_calibration;
    *info = (struct drllm_routers_info){.name = routers->name,
                                        .model_name = routers->model_name,
                                        .model_quantization = routers->model_quantization,
                                        .training = routers->training,
                                        .backend = matrix->xnn != NULL ? "xnnpack" : matrix->kernel->backend,
                                        .n_windows = routers->n_windows,
                                        .n_hidden = routers->n_hidden,
                                        .weight_bytes = routers->weight_bytes,
                                        .names_model = routers->names_model,
                                        .n_calibration = n};
    if (n > 0) {
        info->least_saved = routers->saved[0];
        info->most_saved = routers->saved[n - 1];
    }
}
