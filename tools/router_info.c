#include "tools/router_info.h"

#include "runtime/utf8.h"
#include "tools/jsonl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool is_router_file(const struct mapped_gguf *mapped) {
    struct drllm_string architecture = {"", 0};
    drllm_gguf_get_string(&mapped->gguf, "general.architecture", &architecture);
    return drllm_string_equals(architecture, "drllm-routers");
}

int router_info_open(const struct command *command, const char *path, const struct mapped_gguf *mapped,
                     struct drllm_router_file *file) {
    struct drllm_error error = {0};
    const struct drllm_allocator allocator = drllm_model_default_params().allocator;
    const int status = drllm_router_file_open(file, mapped->file.data, mapped->file.size, &allocator, &error);
    if (status == DRLLM_OK) {
        return TOOL_OK;
    }
    report(command, "cannot open %s: %s (%s)", path, error.detail, drllm_strerror(status));
    return TOOL_FAILED;
}

/* Bytes of all matrices with their scales. */
static size_t weight_bytes(const struct drllm_router_file *file) {
    size_t bytes = 0;
    for (size_t layer = 0; layer < file->n_layers; layer++) {
        for (int which = DRLLM_ROUTER_FC1; which < DRLLM_ROUTER_MATRICES; which++) {
            const struct drllm_router_tensor *tensor =
                drllm_router_file_tensor(file, layer, (enum drllm_router_matrix)which);
            bytes += tensor->weight->size + (tensor->scales != NULL ? tensor->weight->dims[1] * sizeof(float) : 0);
        }
    }
    return bytes;
}

static const char *weight_format(const struct drllm_router_file *file) {
    return file->int8 ? "int8" : "float32";
}

/* The record of the training where it is JSON, otherwise NULL. */
static cJSON *parse_training(const struct drllm_router_file *file) {
    struct text text = {NULL, 0, 0};
    const char *wrong;
    text_append(&text, file->training.data, file->training.size);
    cJSON *json = json_parse_object(text.data, text.size, &wrong);
    text_release(&text);
    return json;
}

/* ---- Text ---- */

static void print_string(const char *label, struct drllm_string string) {
    char *clean = allocate(3 * string.size + 1, 1);
    printf("  %-13s ", label);
    print_plain(stdout, clean, drllm_utf8_sanitise(string.data, string.size, clean));
    printf("%s\n", string.size == 0 ? "(the file does not say)" : "");
    free(clean);
}

/* Indented JSON as cJSON prints it: a tab for each level, and one behind each key. */
static void print_indented(const char *json) {
    for (const char *line = json; *line != '\0';) {
        const size_t size = strcspn(line, "\n");
        const size_t level = strspn(line, "\t");
        printf("    %*s", (int)(2 * level), "");
        for (size_t i = level; i < size; i++) {
            if (line[i] == '\t') {
                putchar(' ');
            } else {
                print_plain(stdout, &line[i], 1);
            }
        }
        putchar('\n');
        line += size + (line[size] == '\n' ? 1 : 0);
    }
}

static void print_training(const struct drllm_router_file *file) {
    cJSON *json = file->training.size == 0 ? NULL : parse_training(file);
    if (json == NULL) {
        print_string("training", file->training);
        return;
    }
    char *printed = cJSON_Print(json);
    printf("  training\n");
    print_indented(printed);
    cJSON_free(printed);
    cJSON_Delete(json);
}

void router_info_print(const struct drllm_router_file *file) {
    char bytes[16];
    print_string("name", file->name);
    print_string("model", file->model_name);
    print_string("quantization", file->model_quantization);
    if (file->has_fingerprint) {
        printf("  fingerprint   %016" PRIx64 "\n", file->fingerprint);
    } else {
        print_string("fingerprint", (struct drllm_string){"", 0});
    }
    printf("  blocks        %zu, %zu wide\n", file->n_layers, file->d_model);
    printf("  windows       %zu\n", file->n_windows);
    printf("  hidden width  %zu\n", file->n_hidden);
    printf("  weights       %s, %s\n", weight_format(file), format_bytes((double)weight_bytes(file), bytes));
    if (file->n_calibration == 0) {
        printf("  calibration   none, so that --save-layers cannot be used\n");
    } else {
        printf("  calibration   bias, mean layers saved\n");
    }
    for (size_t i = 0; i < file->n_calibration; i++) {
        float bias, saved;
        drllm_router_file_calibration(file, i, &bias, &saved);
        printf("    %10.4f %8.3f\n", (double)bias, (double)saved);
    }
    print_training(file);
}

/* ---- JSON ---- */

static cJSON *string_json(struct drllm_string string) {
    return string.size == 0 ? cJSON_CreateNull() : json_text(string.data, string.size);
}

static cJSON *calibration_json(const struct drllm_router_file *file) {
    cJSON *table = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_calibration; i++) {
        float bias, saved;
        drllm_router_file_calibration(file, i, &bias, &saved);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddNumberToObject(row, "bias", (double)bias);
        cJSON_AddNumberToObject(row, "saved", (double)saved);
        cJSON_AddItemToArray(table, row);
    }
    return table;
}

cJSON *router_info_json(const struct drllm_router_file *file) {
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, file->fingerprint);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "name", string_json(file->name));
    cJSON_AddItemToObject(json, "model_name", string_json(file->model_name));
    cJSON_AddItemToObject(json, "model_quantization", string_json(file->model_quantization));
    cJSON_AddItemToObject(json, "model_fingerprint",
                          file->has_fingerprint ? cJSON_CreateString(fingerprint) : cJSON_CreateNull());
    cJSON_AddNumberToObject(json, "blocks", (double)file->n_layers);
    cJSON_AddNumberToObject(json, "width", (double)file->d_model);
    cJSON_AddNumberToObject(json, "windows", (double)file->n_windows);
    cJSON_AddNumberToObject(json, "hidden", (double)file->n_hidden);
    cJSON_AddStringToObject(json, "weight_format", weight_format(file));
    cJSON_AddItemToObject(json, "weight_bytes", json_u64(weight_bytes(file)));
    cJSON_AddItemToObject(json, "calibration", calibration_json(file));
    cJSON *training = file->training.size == 0 ? NULL : parse_training(file);
    cJSON_AddItemToObject(json, "training", training != NULL ? training : string_json(file->training));
    return json;
}
