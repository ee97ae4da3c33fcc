/* The container of packed model files: header, table, checksums. Nothing here is believed before it is checked, so that
 * a damaged or hostile file is an error and never an access outside of its bytes. */
#include "runtime/packed_file.h"

#include "runtime/crc32.h"
#include "runtime/error.h"

#include <string.h>

#define PACK_AGAIN "make it again with 'drllm pack'"

const char *drllm_packed_kind_name(uint32_t kind) {
    static const char *const names[DRLLM_PACKED_KINDS] = {
        [0] = "unknown",
        [DRLLM_PACKED_CONFIG] = "config",
        [DRLLM_PACKED_NAME] = "name",
        [DRLLM_PACKED_CHAT_TEMPLATE] = "chat template",
        [DRLLM_PACKED_VOCABULARY] = "vocabulary",
        [DRLLM_PACKED_TOKENS] = "tokens",
        [DRLLM_PACKED_TOKEN_BYTES] = "token bytes",
        [DRLLM_PACKED_TOKEN_INDEX] = "token index",
        [DRLLM_PACKED_MERGES] = "merges",
        [DRLLM_PACKED_SCORES] = "scores",
        [DRLLM_PACKED_MATRICES] = "matrices",
        [DRLLM_PACKED_WEIGHTS] = "weights",
        [DRLLM_PACKED_VECTORS] = "vectors",
        [DRLLM_PACKED_VALUES] = "values",
        [DRLLM_PACKED_ROPE] = "rope",
        [DRLLM_PACKED_ROUTERS] = "routers",
    };
    return kind < DRLLM_PACKED_KINDS ? names[kind] : names[0];
}

bool drllm_packed_is(const void *data, size_t size) {
    return size >= sizeof DRLLM_PACKED_MAGIC - 1 &&
           memcmp(data, DRLLM_PACKED_MAGIC, sizeof DRLLM_PACKED_MAGIC - 1) == 0;
}

static bool is_little_endian(void) {
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 1;
}

static int check_header(const struct drllm_packed_header *header, size_t size, struct drllm_error *error) {
    if (!is_little_endian()) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "packed models are little-endian; open the GGUF file here");
    }
    if (header->version != DRLLM_PACKED_VERSION) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "the packed model has format version %u, and this drllm reads %d: " PACK_AGAIN
                          " of this version",
                          (unsigned)header->version, DRLLM_PACKED_VERSION);
    }
    if (header->layout != DRLLM_PACKED_LAYOUT_R8K4) {
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                          "the packed model's weights have layout %u, and this drllm runs %d (r8k4): " PACK_AGAIN
                          " of this version",
                          (unsigned)header->layout, DRLLM_PACKED_LAYOUT_R8K4);
    }
    if (header->file_size > size) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the packed model ends %llu bytes early: it has %zu of %llu; copy it again",
                          (unsigned long long)(header->file_size - size), size, (unsigned long long)header->file_size);
    }
    if (header->n_sections > DRLLM_PACKED_MAX_SECTIONS) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: it claims %u sections",
                          (unsigned)header->n_sections);
    }
    return DRLLM_OK;
}

static int place(struct drllm_packed_file *file, const uint8_t *data, const struct drllm_packed_section *section,
                 uint64_t *end, struct drllm_error *error) {
    const char *name = drllm_packed_kind_name(section->kind);
    if (section->offset % DRLLM_PACKED_ALIGNMENT != 0 || section->offset < *end || section->offset > file->file_size ||
        section->size > file->file_size - section->offset) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the packed model is damaged: its section '%s' (%llu bytes at %llu) overlaps another or "
                          "reaches past the end",
                          name, (unsigned long long)section->size, (unsigned long long)section->offset);
    }
    *end = section->offset + section->size;
    if (section->kind == 0 || section->kind >= DRLLM_PACKED_KINDS) {
        return DRLLM_OK; /* of a later version */
    }
    if (file->sections[section->kind].data != NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: its section '%s' is there twice",
                          name);
    }
    file->sections[section->kind].data = data + section->offset;
    file->sections[section->kind].size = (size_t)section->size;
    file->sections[section->kind].checksum = section->checksum;
    return DRLLM_OK;
}

int drllm_packed_open(struct drllm_packed_file *file, const void *data, size_t size, struct drllm_error *error) {
    struct drllm_packed_header header;
    if (!drllm_packed_is(data, size)) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "not a packed model");
    }
    if (size < sizeof header) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model ends inside its header; copy it again");
    }
    memcpy(&header, data, sizeof header);
    int status = check_header(&header, size, error);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_packed_file opened = {.file_size = (size_t)header.file_size,
                                       .version = header.version,
                                       .layout = header.layout,
                                       .n_sections = header.n_sections};
    const uint8_t *table = (const uint8_t *)data + sizeof header;
    const size_t table_bytes = header.n_sections * sizeof(struct drllm_packed_section);
    uint64_t end = sizeof header + table_bytes;
    if (end > header.file_size) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model is damaged: it ends inside its table");
    }
    const uint32_t checksum = header.checksum;
    header.checksum = 0;
    if (drllm_crc32(drllm_crc32(0, &header, sizeof header), table, table_bytes) != checksum) {
        return drllm_fail(
            error, DRLLM_ERR_FORMAT,
            "the packed model is damaged: its header has a wrong checksum; copy it again, or " PACK_AGAIN);
    }
    for (size_t i = 0; i < header.n_sections; i++) {
        struct drllm_packed_section section;
        memcpy(&section, table + i * sizeof section, sizeof section);
        status = place(&opened, data, &section, &end, error);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    *file = opened;
    return DRLLM_OK;
}

int drllm_packed_check(const struct drllm_packed_file *file, enum drllm_packed_kind kind, struct drllm_error *error) {
    const char *name = drllm_packed_kind_name((uint32_t)kind);
    if (file->sections[kind].data == NULL) {
        return drllm_fail(error, DRLLM_ERR_FORMAT, "the packed model has no section '%s'; " PACK_AGAIN, name);
    }
    if (drllm_crc32(0, file->sections[kind].data, file->sections[kind].size) != file->sections[kind].checksum) {
        return drllm_fail(error, DRLLM_ERR_FORMAT,
                          "the packed model is damaged: its section '%s' has a wrong checksum; copy it again, "
                          "or " PACK_AGAIN,
                          name);
    }
    return DRLLM_OK;
}

int drllm_packed_verify(const struct drllm_packed_file *file, struct drllm_error *error) {
    int status = DRLLM_OK;
    for (int kind = 1; kind < DRLLM_PACKED_KINDS && status == DRLLM_OK; kind++) {
        if (file->sections[kind].data != NULL) {
            status = drllm_packed_check(file, (enum drllm_packed_kind)kind, error);
        }
    }
    return status;
}
