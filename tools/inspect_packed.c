#include "tools/inspect_packed.h"

#include "platform/file.h"
#include "quant/formats.h"
#include "runtime/packed_file.h"
#include "tools/common.h"
#include "tools/json.h"

#include <inttypes.h>
#include <string.h>

bool is_packed_model(const char *path) {
    struct drllm_file file;
    if (drllm_file_map_path(path, &file) != 0) {
        return false;
    }
    const bool packed = drllm_packed_is(file.data, file.size);
    drllm_file_unmap(&file);
    return packed;
}

/* All zero unless the section is there and sound. */
static struct drllm_packed_config read_config(const struct drllm_packed_file *packed) {
    struct drllm_packed_config config = {0};
    if (packed->sections[DRLLM_PACKED_CONFIG].size == sizeof config &&
        drllm_packed_check(packed, DRLLM_PACKED_CONFIG, NULL) == DRLLM_OK) {
        memcpy(&config, packed->sections[DRLLM_PACKED_CONFIG].data, sizeof config);
    }
    return config;
}

static int print_text(const struct command *command, const char *path, const struct drllm_packed_file *packed,
                      bool verified) {
    const struct drllm_packed_config config = read_config(packed);
    char bytes[16];
    printf("%s: packed model, format version %" PRIu32 ", layout r8k4, little-endian, %s%s\n", path, packed->version,
           format_bytes((double)packed->file_size, bytes), verified ? "; all checksums are right" : "");
    printf("\nmodel\n  name: ");
    print_quoted(stdout, (const char *)packed->sections[DRLLM_PACKED_NAME].data,
                 packed->sections[DRLLM_PACKED_NAME].size);
    printf("\n  %s, %" PRIu64 " weights, %" PRIu64 " blocks of width %" PRIu64 ", %" PRIu64 " tokens, context %" PRIu64
           "\n  fingerprint: %016" PRIx64 "\n",
           drllm_format_name(config.quantization), config.n_params, config.n_layers, config.d_model, config.n_vocab,
           config.n_context_trained, config.fingerprint);
    printf("\nsections\n");
    for (uint32_t kind = 1; kind < DRLLM_PACKED_KINDS; kind++) {
        if (packed->sections[kind].data != NULL) {
            printf("  %-14s %10s  crc32 %08" PRIx32 "\n", drllm_packed_kind_name(kind),
                   format_bytes((double)packed->sections[kind].size, bytes), packed->sections[kind].checksum);
        }
    }
    return flush_output(command);
}

static int print_json(const struct command *command, const char *path, const struct drllm_packed_file *packed,
                      bool verified) {
    const struct drllm_packed_config config = read_config(packed);
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, config.fingerprint);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "file", json_text(path, strlen(path)));
    cJSON_AddItemToObject(json, "size", json_u64(packed->file_size));
    cJSON_AddStringToObject(json, "kind", "packed");
    cJSON_AddNumberToObject(json, "version", packed->version);
    cJSON_AddStringToObject(json, "layout", "r8k4");
    cJSON_AddBoolToObject(json, "verified", verified);
    cJSON_AddItemToObject(
        json, "name",
        json_text((const char *)packed->sections[DRLLM_PACKED_NAME].data, packed->sections[DRLLM_PACKED_NAME].size));
    cJSON_AddStringToObject(json, "quantization", drllm_format_name(config.quantization));
    cJSON_AddItemToObject(json, "n_layers", json_u64(config.n_layers));
    cJSON_AddItemToObject(json, "d_model", json_u64(config.d_model));
    cJSON_AddItemToObject(json, "n_vocab", json_u64(config.n_vocab));
    cJSON_AddItemToObject(json, "n_params", json_u64(config.n_params));
    cJSON_AddStringToObject(json, "fingerprint", fingerprint);
    cJSON *sections = cJSON_AddArrayToObject(json, "sections");
    for (uint32_t kind = 1; kind < DRLLM_PACKED_KINDS; kind++) {
        if (packed->sections[kind].data != NULL) {
            cJSON *section = cJSON_CreateObject();
            cJSON_AddStringToObject(section, "kind", drllm_packed_kind_name(kind));
            cJSON_AddItemToObject(section, "bytes", json_u64(packed->sections[kind].size));
            cJSON_AddNumberToObject(section, "crc32", packed->sections[kind].checksum);
            cJSON_AddItemToArray(sections, section);
        }
    }
    return json_print(command, json, false);
}

int inspect_packed(const struct command *command, const char *path, bool verify, bool json) {
    struct drllm_error error = {0};
    struct drllm_packed_file packed;
    struct drllm_file file;
    const int problem = drllm_file_map_path(path, &file);
    if (problem != 0) {
        char text[128];
        drllm_file_error_text(problem, text, sizeof text);
        report(command, "cannot open %s: %s", path, text);
        return TOOL_FAILED;
    }
    int status = drllm_packed_open(&packed, file.data, file.size, &error);
    if (status == DRLLM_OK && verify) {
        status = drllm_packed_verify(&packed, &error);
    }
    const int exit_code = status != DRLLM_OK ? report_status(command, path, status, error.detail)
                          : json             ? print_json(command, path, &packed, verify)
                                             : print_text(command, path, &packed, verify);
    drllm_file_unmap(&file);
    return exit_code;
}
