#include "runtime/router_file.h"

#include "quant/formats.h"
#include "runtime/error.h"
#include "runtime/memory.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { VERSION = 1, NAME_BYTES = 80, FINGERPRINT_DIGITS = 16 };

/* ---- Metadata ---- */

static int read_number(const struct drllm_gguf *gguf, const char *key, uint64_t most, size_t *number,
                       struct drllm_error *error) {
    uint64_t value = 0;
    if (!drllm_gguf_get_u64(gguf, key, &value) || value == 0 || value > most) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the router file's %s is missing or not between 1 and %llu", key,
                          (unsigned long long)most);
    }
    *number = (size_t)value;
    return DRLLM_OK;
}

static int check_kind(const struct drllm_gguf *gguf, struct drllm_error *error) {
    struct drllm_string architecture = {"", 0};
    (void)drllm_gguf_get_string(gguf, "general.architecture", &architecture);
    if (!drllm_string_equals(architecture, "drllm-routers")) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "this is no router file: its architecture is \"%.*s\", not \"drllm-routers\"",
                          (int)(architecture.size < 64 ? architecture.size : 64), architecture.data);
    }
    uint64_t version = VERSION;
    const bool is_number = drllm_gguf_get_u64(gguf, "drllm.router.version", &version);
    if ((!is_number && drllm_gguf_find(gguf, "drllm.router.version") != NULL) || version != VERSION) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "the router file's version (drllm.router.version) is not %d, the one that this library reads",
                          VERSION);
    }
    return DRLLM_OK;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int read_fingerprint(struct drllm_router_file *file, struct drllm_error *error) {
    static const char key[] = "drllm.router.model.fingerprint";
    struct drllm_string text;
    if (drllm_gguf_find(&file->gguf, key) == NULL) {
        return DRLLM_OK;
    }
    bool good = drllm_gguf_get_string(&file->gguf, key, &text) && text.size == FINGERPRINT_DIGITS;
    for (size_t i = 0; good && i < text.size; i++) {
        const int digit = hex_digit(text.data[i]);
        good = digit >= 0;
        file->fingerprint = file->fingerprint << 4 | (uint64_t)(digit & 15);
    }
    file->has_fingerprint = good;
    return good ? DRLLM_OK
                : drllm_fail(error, DRLLM_ERR_FORMAT, "the router file's %s is not %d hexadecimal digits", key,
                             FINGERPRINT_DIGITS);
}

static float float_at(const struct drllm_gguf_entry *array, size_t i) {
    float value;
    memcpy(&value, array->data + i * sizeof value, sizeof value);
    return value;
}

void drllm_router_file_calibration(const struct drllm_router_file *file, size_t i, float *bias, float *saved) {
    *bias = float_at(file->bias, i);
    *saved = float_at(file->saved, i);
}

static bool is_float_array(const struct drllm_gguf_entry *entry) {
    return entry != NULL && entry->type == DRLLM_GGUF_ARRAY && entry->item_type == DRLLM_GGUF_F32 && entry->count > 0;
}

static int read_calibration(struct drllm_router_file *file, struct drllm_error *error) {
    file->bias = drllm_gguf_find(&file->gguf, "drllm.router.calibration.bias");
    file->saved = drllm_gguf_find(&file->gguf, "drllm.router.calibration.saved");
    if (file->bias == NULL && file->saved == NULL) {
        return DRLLM_OK;
    }
    if (!is_float_array(file->bias) || !is_float_array(file->saved) || file->bias->count != file->saved->count) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the router file's calibration table is not two lists of float32s of equal length");
    }
    for (size_t i = 0; i < file->bias->count; i++) {
        float bias, saved, bias_before, saved_before;
        drllm_router_file_calibration(file, i, &bias, &saved);
        drllm_router_file_calibration(file, i > 0 ? i - 1 : 0, &bias_before, &saved_before);
        if (!isfinite(bias) || !(fabsf(saved) <= (float)file->n_layers) ||
            (i > 0 && (bias <= bias_before || saved < saved_before))) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "row %zu of the router file's calibration table is out of range or does not rise", i);
        }
    }
    file->n_calibration = file->bias->count;
    return DRLLM_OK;
}

static void read_texts(struct drllm_router_file *file) {
    const struct drllm_gguf *gguf = &file->gguf;
    (void)drllm_gguf_get_string(gguf, "general.name", &file->name);
    (void)drllm_gguf_get_string(gguf, "drllm.router.model.name", &file->model_name);
    (void)drllm_gguf_get_string(gguf, "drllm.router.model.quantization", &file->model_quantization);
    (void)drllm_gguf_get_string(gguf, "drllm.router.training", &file->training);
}

/* ---- Tensors ---- */

static int check_finite(const char *name, const float *values, size_t n, float least, struct drllm_error *error) {
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(values[i]) || values[i] < least) {
            return drllm_fail(error, DRLLM_ERR_FORMAT,
                              "tensor %s of the router file holds NaN, infinite or negative %s", name,
                              least >= 0.0f ? "scales" : "values");
        }
    }
    return DRLLM_OK;
}

/* A tensor of floats or, where `int8` is allowed, of bytes; cols 0: any that is not too large. */
static int find_tensor(const struct drllm_gguf *gguf, const char *name, size_t cols, size_t rows, bool int8,
                       const struct drllm_gguf_tensor **tensor, struct drllm_error *error) {
    enum { MOST_COLUMNS = 65536 }; /* that int32 sums have room for */
    *tensor = drllm_gguf_find_tensor(gguf, name);
    if (*tensor == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the router file has no tensor %s; it is damaged", name);
    }
    if ((*tensor)->type != DRLLM_FORMAT_F32 && (!int8 || (*tensor)->type != DRLLM_FORMAT_I8)) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "tensor %s of the router file has type %s; it must be %s", name,
                          drllm_format_name((*tensor)->type), int8 ? "f32 or i8" : "f32");
    }
    const size_t *dims = (*tensor)->dims;
    const bool fits = cols == 0 ? dims[0] >= 1 && dims[0] <= MOST_COLUMNS : dims[0] == cols;
    if (!fits || dims[1] != rows || dims[2] != 1 || dims[3] != 1) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "tensor %s of the router file is %zu x %zu; it must be %zu x %zu",
                          name, dims[0], dims[1], cols == 0 ? dims[0] : cols, rows);
    }
    return DRLLM_OK;
}

static int find_vector(const struct drllm_gguf *gguf, const char *name, size_t n, float least, const float **values,
                       struct drllm_error *error) {
    const struct drllm_gguf_tensor *tensor;
    const int status = find_tensor(gguf, name, n, 1, false, &tensor, error);
    if (status != DRLLM_OK) {
        return status;
    }
    *values = tensor->data;
    return check_finite(name, *values, n, least, error);
}

static int find_matrix(struct drllm_router_file *file, size_t layer, enum drllm_router_matrix which, size_t cols,
                       size_t rows, struct drllm_error *error) {
    struct drllm_router_tensor *tensor = &file->tensors[layer * DRLLM_ROUTER_MATRICES + which];
    char name[NAME_BYTES];
    char other[NAME_BYTES];
    drllm_format_text(name, sizeof name, "blk.%zu.router.fc%d.weight", layer, which == DRLLM_ROUTER_FC1 ? 1 : 2);
    int status = find_tensor(&file->gguf, name, cols, rows, true, &tensor->weight, error);
    if (status == DRLLM_OK && tensor->weight->type == DRLLM_FORMAT_F32) {
        status = check_finite(name, tensor->weight->data, tensor->weight->dims[0] * rows, -INFINITY, error);
        file->int8 = false;
    } else if (status == DRLLM_OK) {
        /* The kernels' exact sums need |q| <= 127. */
        if (memchr(tensor->weight->data, 0x80, tensor->weight->size) != NULL) {
            return drllm_fail(error, DRLLM_ERR_FORMAT, "tensor %s of the router file holds -128", name);
        }
        drllm_format_text(other, sizeof other, "%s_scale", name);
        status = find_vector(&file->gguf, other, rows, 0.0f, &tensor->scales, error);
        drllm_format_text(other, sizeof other, "blk.%zu.router.fc1.input_scale", layer);
        if (status == DRLLM_OK && which == DRLLM_ROUTER_FC1 && drllm_gguf_find_tensor(&file->gguf, other) != NULL) {
            status = find_vector(&file->gguf, other, tensor->weight->dims[0], FLT_MIN, &tensor->input_scale, error);
        }
    }
    if (status == DRLLM_OK) {
        drllm_format_text(other, sizeof other, "blk.%zu.router.fc%d.bias", layer, which == DRLLM_ROUTER_FC1 ? 1 : 2);
        status = find_vector(&file->gguf, other, rows, -INFINITY, &tensor->bias, error);
    }
    return status;
}

static int find_matrices(struct drllm_router_file *file, struct drllm_error *error) {
    file->tensors =
        drllm_allocate_zeroed(&file->gguf.allocator, file->n_layers, DRLLM_ROUTER_MATRICES * sizeof *file->tensors);
    if (file->tensors == NULL) {
        return drllm_fail(error, DRLLM_ERR_MEMORY, "not enough memory for the routers");
    }
    int status = DRLLM_OK;
    file->int8 = true;
    for (size_t layer = 0; layer < file->n_layers && status == DRLLM_OK; layer++) {
        /* The first router says how wide the model is, the others must agree. */
        status = find_matrix(file, layer, DRLLM_ROUTER_FC1, file->d_model, file->n_hidden, error);
        if (status == DRLLM_OK) {
            file->d_model = file->tensors[layer * DRLLM_ROUTER_MATRICES].weight->dims[0];
            status = find_matrix(file, layer, DRLLM_ROUTER_FC2, file->n_hidden, DRLLM_ROUTER_CLASSES, error);
        }
    }
    return status;
}

/* ---- */

static int read_file(struct drllm_router_file *file, struct drllm_error *error) {
    const struct drllm_gguf *gguf = &file->gguf;
    int status = check_kind(gguf, error);
    if (status == DRLLM_OK) {
        /* Every block has tensors, so that no more blocks than tensors can be true. */
        status = read_number(gguf, "drllm.router.blocks", gguf->n_tensors, &file->n_layers, error);
    }
    if (status == DRLLM_OK) {
        status = read_number(gguf, "drllm.router.windows", DRLLM_ROUTER_MAX_WINDOWS, &file->n_windows, error);
    }
    if (status == DRLLM_OK) {
        status = read_number(gguf, "drllm.router.hidden", DRLLM_ROUTER_MAX_HIDDEN, &file->n_hidden, error);
    }
    if (status == DRLLM_OK) {
        status = read_fingerprint(file, error);
    }
    if (status == DRLLM_OK) {
        status = read_calibration(file, error);
    }
    if (status == DRLLM_OK) {
        read_texts(file);
        status = find_matrices(file, error);
    }
    return status;
}

int drllm_router_file_open(struct drllm_router_file *file, const void *data, size_t size,
                           const struct drllm_allocator *allocator, struct drllm_error *error) {
    *file = (struct drllm_router_file){
        .name = {"", 0}, .model_name = {"", 0}, .model_quantization = {"", 0}, .training = {"", 0}};
    int status = drllm_gguf_open(&file->gguf, data, size, allocator, error);
    if (status != DRLLM_OK) {
        return status;
    }
    status = read_file(file, error);
    if (status != DRLLM_OK) {
        drllm_router_file_close(file);
    }
    return status;
}

void drllm_router_file_close(struct drllm_router_file *file) {
    drllm_release(&file->gguf.allocator, file->tensors, file->n_layers, DRLLM_ROUTER_MATRICES * sizeof *file->tensors);
    file->tensors = NULL;
    drllm_gguf_close(&file->gguf);
}

const struct drllm_router_tensor *drllm_router_file_tensor(const struct drllm_router_file *file, size_t layer,
                                                           enum drllm_router_matrix which) {
    return &file->tensors[layer * DRLLM_ROUTER_MATRICES + which];
}

void drllm_router_file_row(const struct drllm_router_tensor *tensor, size_t row, float *values) {
    const size_t cols = tensor->weight->dims[0];
    if (tensor->scales == NULL) {
        memcpy(values, (const float *)tensor->weight->data + row * cols, cols * sizeof *values);
        return;
    }
    const int8_t *q = (const int8_t *)tensor->weight->data + row * cols;
    for (size_t i = 0; i < cols; i++) {
        values[i] = tensor->scales[row] * (float)q[i] * (tensor->input_scale != NULL ? tensor->input_scale[i] : 1.0f);
    }
}

void drllm_router_input_scale(const float *weights, size_t n_rows, size_t n_cols, float *input_scale) {
    for (size_t j = 0; j < n_cols; j++) {
        float most = 0.0f;
        for (size_t i = 0; i < n_rows; i++) {
            const float size = fabsf(weights[i * n_cols + j]);
            most = size > most ? size : most;
        }
        input_scale[j] = most >= FLT_MIN ? most : 1.0f;
    }
}
