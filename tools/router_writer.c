#include "tools/router_writer.h"

#include "quant/formats.h"
#include "runtime/internal.h"
#include "tools/gguf_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- The set ---- */

static float *allocate_zeros(size_t count) {
    float *values = allocate(count, sizeof *values);
    for (size_t i = 0; i < count; i++) {
        values[i] = 0.0f;
    }
    return values;
}

void router_set_init(struct router_set *set, size_t n_layers, size_t d_model, size_t n_windows, size_t n_hidden) {
    *set = (struct router_set){.n_layers = n_layers, .d_model = d_model, .n_windows = n_windows, .n_hidden = n_hidden};
    set->fc1 = allocate_zeros(n_layers * n_hidden * d_model);
    set->fc1_bias = allocate_zeros(n_layers * n_hidden);
    set->fc2 = allocate_zeros(n_layers * DRLLM_ROUTER_CLASSES * n_hidden);
    set->fc2_bias = allocate_zeros(n_layers * DRLLM_ROUTER_CLASSES);
}

/* NULL for an empty one, since the file then says nothing. */
static char *copy_nonempty(const char *data, size_t size) {
    if (size == 0) {
        return NULL;
    }
    char *copy = allocate_bytes(size + 1);
    memcpy(copy, data, size);
    copy[size] = '\0';
    return copy;
}

static char *copy_string(struct drllm_string string) {
    return copy_nonempty(string.data, string.size);
}

/* One matrix of one block, in the set's memory. */
struct matrix {
    float *weight; /* [rows][cols] */
    float *bias;   /* [rows] */
    size_t rows, cols;
};

static struct matrix find_matrix(const struct router_set *set, size_t layer, enum drllm_router_matrix which) {
    struct matrix matrix = {set->fc1, set->fc1_bias, set->n_hidden, set->d_model};
    if (which == DRLLM_ROUTER_FC2) {
        matrix = (struct matrix){set->fc2, set->fc2_bias, DRLLM_ROUTER_CLASSES, set->n_hidden};
    }
    matrix.weight += layer * matrix.rows * matrix.cols;
    matrix.bias += layer * matrix.rows;
    return matrix;
}

static void read_matrix(const struct router_set *set, const struct drllm_router_file *file, size_t layer,
                        enum drllm_router_matrix which) {
    const struct drllm_router_tensor *tensor = drllm_router_file_tensor(file, layer, which);
    const struct matrix matrix = find_matrix(set, layer, which);
    for (size_t row = 0; row < matrix.rows; row++) {
        drllm_router_file_row(tensor, row, matrix.weight + row * matrix.cols);
    }
    memcpy(matrix.bias, tensor->bias, matrix.rows * sizeof *matrix.bias);
}

void router_set_read(struct router_set *set, const struct drllm_router_file *file) {
    router_set_init(set, file->n_layers, file->d_model, file->n_windows, file->n_hidden);
    for (size_t layer = 0; layer < file->n_layers; layer++) {
        read_matrix(set, file, layer, DRLLM_ROUTER_FC1);
        read_matrix(set, file, layer, DRLLM_ROUTER_FC2);
    }
    set->name = copy_string(file->name);
    set->model_name = copy_string(file->model_name);
    set->model_quantization = copy_string(file->model_quantization);
    set->training = copy_string(file->training);
    set->has_fingerprint = file->has_fingerprint;
    set->fingerprint = file->fingerprint;
    set->n_calibration = file->n_calibration;
    set->bias = allocate_zeros(file->n_calibration);
    set->saved = allocate_zeros(file->n_calibration);
    for (size_t i = 0; i < file->n_calibration; i++) {
        drllm_router_file_calibration(file, i, &set->bias[i], &set->saved[i]);
    }
}

void router_set_stamp(struct router_set *set, const struct drllm_model *model) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    free(set->model_name);
    free(set->model_quantization);
    set->model_name = copy_nonempty(info.name, strlen(info.name));
    set->model_quantization = copy_nonempty(info.quantization, strlen(info.quantization));
    set->has_fingerprint = true;
    set->fingerprint = drllm_model_fingerprint(model);
}

void router_set_release(struct router_set *set) {
    void *const memory[] = {set->fc1,        set->fc1_bias,           set->fc2,      set->fc2_bias, set->name,
                            set->model_name, set->model_quantization, set->training, set->bias,     set->saved};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        free(memory[i]);
    }
    *set = (struct router_set){.n_layers = 0};
}

/* ---- Metadata ---- */

static void set_text(struct drllm_gguf_changes *changes, const char *key, const char *text) {
    if (text != NULL) {
        drllm_gguf_set_string(changes, key, text, strlen(text));
    }
}

static void set_metadata(struct drllm_gguf_changes *changes, const struct router_set *set) {
    char fingerprint[17];
    set_text(changes, "general.architecture", "drllm-routers");
    set_text(changes, "general.type", "drllm-routers");
    set_text(changes, "general.name", set->name);
    drllm_gguf_set_u32(changes, "drllm.router.version", 1);
    drllm_gguf_set_u32(changes, "drllm.router.blocks", (uint32_t)set->n_layers);
    drllm_gguf_set_u32(changes, "drllm.router.windows", (uint32_t)set->n_windows);
    drllm_gguf_set_u32(changes, "drllm.router.hidden", (uint32_t)set->n_hidden);
    if (set->has_fingerprint) {
        snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, set->fingerprint);
        set_text(changes, "drllm.router.model.fingerprint", fingerprint);
    }
    set_text(changes, "drllm.router.model.name", set->model_name);
    set_text(changes, "drllm.router.model.quantization", set->model_quantization);
    if (set->n_calibration != 0) {
        drllm_gguf_set_f32s(changes, "drllm.router.calibration.bias", set->bias, set->n_calibration);
        drllm_gguf_set_f32s(changes, "drllm.router.calibration.saved", set->saved, set->n_calibration);
    }
    set_text(changes, "drllm.router.training", set->training);
}

/* ---- Tensors ---- */

enum kind { KIND_WEIGHT, KIND_SCALE, KIND_INPUT_SCALE, KIND_BIAS };

struct part {
    size_t layer;
    enum drllm_router_matrix which;
    enum kind kind;
};

enum { NAME_BYTES = 64 };

struct plan {
    const struct router_set *set; /* for int8: with columns of fc1 divided by their input scale */
    float *fc1;                   /* of that set, [n_layers][n_hidden][d_model], or NULL */
    float *input_scale;           /* [n_layers][d_model], or NULL */
    struct part *parts;
    struct drllm_gguf_file_tensor *tensors; /* beside the parts */
    char (*names)[NAME_BYTES];
    size_t count;
    bool int8;
};

static void plan_add(struct plan *plan, struct part part) {
    static const char *const suffixes[] = {"weight", "weight_scale", "input_scale", "bias"};
    const struct matrix matrix = find_matrix(plan->set, part.layer, part.which);
    char *name = plan->names[plan->count];
    snprintf(name, NAME_BYTES, "blk.%zu.router.fc%d.%s", part.layer, part.which == DRLLM_ROUTER_FC1 ? 1 : 2,
             suffixes[part.kind]);
    const bool is_weight = part.kind == KIND_WEIGHT;
    const bool has_columns = is_weight || part.kind == KIND_INPUT_SCALE;
    plan->tensors[plan->count] = (struct drllm_gguf_file_tensor){
        .name = {name, strlen(name)},
        .n_dims = is_weight ? 2 : 1,
        .dims = {has_columns ? matrix.cols : matrix.rows, is_weight ? matrix.rows : 1, 1, 1},
        .type = is_weight && plan->int8 ? DRLLM_FORMAT_I8 : DRLLM_FORMAT_F32,
    };
    plan->parts[plan->count++] = part;
}

static void make_plan(struct plan *plan) {
    const size_t most = plan->set->n_layers * DRLLM_ROUTER_MATRICES * (KIND_BIAS + 1);
    plan->parts = allocate(most, sizeof *plan->parts);
    plan->tensors = allocate(most, sizeof *plan->tensors);
    plan->names = allocate(most, sizeof *plan->names);
    for (size_t i = 0; i < most; i++) {
        const struct part part = {.layer = i / (DRLLM_ROUTER_MATRICES * (KIND_BIAS + 1)),
                                  .which = (enum drllm_router_matrix)(i / (KIND_BIAS + 1) % DRLLM_ROUTER_MATRICES),
                                  .kind = (enum kind)(i % (KIND_BIAS + 1))};
        const bool only_int8 = part.kind == KIND_SCALE || part.kind == KIND_INPUT_SCALE;
        const bool only_fc1 = part.kind == KIND_INPUT_SCALE;
        if ((plan->int8 || !only_int8) && (part.which == DRLLM_ROUTER_FC1 || !only_fc1)) {
            plan_add(plan, part);
        }
    }
}

/* A copy of fc1 whose columns are of one size, and what the input is multiplied by instead. */
static void scale_columns(struct plan *plan, const struct router_set *set) {
    const size_t n_weights = set->n_hidden * set->d_model;
    plan->fc1 = allocate(set->n_layers * n_weights, sizeof *plan->fc1);
    plan->input_scale = allocate(set->n_layers * set->d_model, sizeof *plan->input_scale);
    for (size_t layer = 0; layer < set->n_layers; layer++) {
        float *scale = plan->input_scale + layer * set->d_model;
        drllm_router_input_scale(set->fc1 + layer * n_weights, set->n_hidden, set->d_model, scale);
        for (size_t i = 0; i < n_weights; i++) {
            plan->fc1[layer * n_weights + i] = set->fc1[layer * n_weights + i] / scale[i % set->d_model];
        }
    }
}

static void plan_release(struct plan *plan) {
    free(plan->fc1);
    free(plan->input_scale);
    free(plan->parts);
    free(plan->tensors);
    free(plan->names);
}

/* The values of some rows, or (values NULL) the scales of all. The weights are finite. */
static void quantize_rows(const struct matrix *matrix, size_t first_row, size_t n_rows, int8_t *values, float *scales) {
    int8_t *discard = allocate(matrix->cols, 1);
    for (size_t i = 0; i < n_rows; i++) {
        float scale;
        (void)drllm_quantize_row_q8c(matrix->weight + (first_row + i) * matrix->cols,
                                     values != NULL ? values + i * matrix->cols : discard, &scale, matrix->cols);
        if (scales != NULL) {
            scales[i] = scale;
        }
    }
    free(discard);
}

static int produce(void *user, size_t tensor, size_t first_row, size_t n_rows, void *bytes, struct drllm_error *error) {
    (void)error;
    const struct plan *plan = user;
    const struct part *part = &plan->parts[tensor];
    const struct matrix matrix = find_matrix(plan->set, part->layer, part->which);
    if (part->kind == KIND_BIAS) {
        memcpy(bytes, matrix.bias, matrix.rows * sizeof *matrix.bias);
    } else if (part->kind == KIND_INPUT_SCALE) {
        memcpy(bytes, plan->input_scale + part->layer * matrix.cols, matrix.cols * sizeof *plan->input_scale);
    } else if (part->kind == KIND_SCALE) {
        quantize_rows(&matrix, 0, matrix.rows, NULL, bytes);
    } else if (plan->int8) {
        quantize_rows(&matrix, first_row, n_rows, bytes, NULL);
    } else {
        memcpy(bytes, matrix.weight + first_row * matrix.cols, n_rows * matrix.cols * sizeof *matrix.weight);
    }
    return DRLLM_OK;
}

static int check_finite(const struct command *command, const struct router_set *set) {
    for (size_t layer = 0; layer < set->n_layers; layer++) {
        for (int which = DRLLM_ROUTER_FC1; which < DRLLM_ROUTER_MATRICES; which++) {
            const struct matrix matrix = find_matrix(set, layer, (enum drllm_router_matrix)which);
            if (!drllm_row_is_finite(DRLLM_FORMAT_F32, matrix.weight, matrix.rows * matrix.cols) ||
                !drllm_row_is_finite(DRLLM_FORMAT_F32, matrix.bias, matrix.rows)) {
                report(command, "the router of block %zu has weights that are NaN or infinite", layer);
                return TOOL_FAILED;
            }
        }
    }
    return TOOL_OK;
}

int router_set_write(const struct command *command, const char *path, const struct router_set *set, bool int8) {
    struct drllm_error error = {0};
    struct drllm_gguf_changes metadata = {0};
    struct plan plan = {.int8 = int8};
    if (check_finite(command, set) != TOOL_OK) {
        return TOOL_FAILED;
    }
    set_metadata(&metadata, set);
    struct router_set scaled = *set;
    if (int8) {
        scale_columns(&plan, set);
        scaled.fc1 = plan.fc1;
    }
    plan.set = &scaled;
    make_plan(&plan);
    const struct drllm_gguf_file file = {
        .changes = &metadata, .tensors = plan.tensors, .n_tensors = plan.count, .produce = produce, .user = &plan};
    const int status = drllm_gguf_file_write(path, &file, NULL, &error);
    plan_release(&plan);
    drllm_gguf_changes_release(&metadata);
    return status == DRLLM_OK ? TOOL_OK : report_status(command, "cannot write the routers", status, error.detail);
}
