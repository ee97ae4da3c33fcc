#include "tools/search_state.h"

#include "tools/depth.h"
#include "tools/files.h"
#include "tools/jsonl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Reading ---- */

/* False for a line that is none of ours: the file was cut while it was written. */
static bool read_entry(struct search_state *state, const cJSON *json) {
    const cJSON *group = cJSON_GetObjectItemCaseSensitive(json, "group");
    const cJSON *program = cJSON_GetObjectItemCaseSensitive(json, "program");
    if (!cJSON_IsString(group)) {
        return false;
    }
    uint8_t *counts = NULL;
    if (cJSON_IsString(program)) {
        counts = allocate(state->n_layers, 1);
        if (drllm_program_parse(program->valuestring, state->n_layers, counts, NULL) != DRLLM_OK) {
            free(counts);
            return false;
        }
    }
    state->entries = reallocate(state->entries, state->n_entries + 1, sizeof *state->entries);
    struct state_entry *entry = &state->entries[state->n_entries++];
    const size_t size = strlen(group->valuestring) + 1;
    *entry = (struct state_entry){.group = allocate(size, 1), .counts = counts};
    memcpy(entry->group, group->valuestring, size);
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    entry->step = cJSON_IsNumber(step) && step->valuedouble > 0.0 ? (size_t)step->valuedouble : 0;
    entry->repeats = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "repeats"));
    const cJSON *layer_value = cJSON_GetObjectItemCaseSensitive(json, "layer_value");
    entry->layer_value = cJSON_IsNumber(layer_value) ? layer_value->valuedouble : 0.0;
    return true;
}

static bool is_ours(const cJSON *json, const char *fingerprint) {
    const cJSON *search = cJSON_GetObjectItemCaseSensitive(json, "search");
    return cJSON_IsString(search) && strcmp(search->valuestring, fingerprint) == 0;
}

/* *size: of the lines that are whole; what follows was cut. */
static int read_state(struct search_state *state, const char *fingerprint, size_t *size) {
    struct text text = {NULL, 0, 0};
    int exit_code = read_text(state->command, state->path, &text);
    struct json_lines lines = {.text = text.data, .size = text.size};
    cJSON *json = NULL;
    const char *wrong = NULL;
    *size = 0;
    while (exit_code == TOOL_OK && json_lines_next(&lines, &json, &wrong)) {
        bool good = wrong == NULL && lines.position <= lines.size;
        if (good && lines.number == 1 && !is_ours(json, fingerprint)) {
            report(state->command, "%s is of another search; remove it, or begin anew with --restart", state->path);
            exit_code = TOOL_FAILED;
        }
        good = good && (lines.number == 1 || read_entry(state, json));
        cJSON_Delete(json);
        if (!good) {
            break;
        }
        *size = lines.position;
    }
    text_release(&text);
    return exit_code;
}

/* ---- Writing ---- */

static bool write_line(struct search_state *state, cJSON *json) {
    char *line = cJSON_PrintUnformatted(json);
    const bool good =
        fprintf(state->stream, "%s\n", line) > 0 && fflush(state->stream) == 0 && fsync(fileno(state->stream)) == 0;
    if (!good) {
        report(state->command, "cannot write %s: %s", state->path, strerror(errno));
    }
    cJSON_free(line);
    cJSON_Delete(json);
    return good;
}

static int open_stream(struct search_state *state, const char *fingerprint, bool fresh, size_t size) {
    state->stream = fopen(state->path, fresh ? "w" : "r+");
    if (state->stream == NULL ||
        (!fresh && (ftruncate(fileno(state->stream), (off_t)size) != 0 || fseek(state->stream, 0, SEEK_END) != 0))) {
        report(state->command, "cannot write %s: %s", state->path, strerror(errno));
        return TOOL_FAILED;
    }
    if (!fresh) {
        return TOOL_OK;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "search", fingerprint);
    return write_line(state, json) ? TOOL_OK : TOOL_FAILED;
}

int search_state_open(const struct command *command, const char *output, uint64_t fingerprint, bool restart,
                      size_t n_layers, struct search_state *state) {
    static const char suffix[] = ".state";
    char text[24];
    *state = (struct search_state){.command = command, .n_layers = n_layers};
    state->path = allocate(strlen(output) + sizeof suffix, 1);
    memcpy(state->path, output, strlen(output));
    memcpy(state->path + strlen(output), suffix, sizeof suffix);
    snprintf(text, sizeof text, "%016" PRIx64, fingerprint);
    size_t size = 0;
    int exit_code = TOOL_OK;
    if (!restart && access(state->path, F_OK) == 0) {
        exit_code = read_state(state, text, &size);
    }
    return exit_code == TOOL_OK ? open_stream(state, text, size == 0, size) : exit_code;
}

void search_state_close(struct search_state *state, bool finished) {
    if (state->stream != NULL) {
        (void)fclose(state->stream); /* every line was flushed */
        if (finished) {
            (void)unlink(state->path);
        }
    }
    for (size_t i = 0; i < state->n_entries; i++) {
        free(state->entries[i].group);
        free(state->entries[i].counts);
    }
    free(state->entries);
    free(state->path);
    *state = (struct search_state){.command = NULL};
}

const struct state_entry *search_state_get(const struct search_state *state, const char *group, size_t i) {
    for (size_t j = 0; j < state->n_entries; j++) {
        const struct state_entry *entry = &state->entries[j];
        if (entry->counts != NULL && strcmp(entry->group, group) == 0 && i-- == 0) {
            return entry;
        }
    }
    return NULL;
}

bool search_state_is_done(const struct search_state *state, const char *group) {
    for (size_t i = 0; i < state->n_entries; i++) {
        if (state->entries[i].counts == NULL && strcmp(state->entries[i].group, group) == 0) {
            return true;
        }
    }
    return false;
}

bool search_state_add(struct search_state *state, const char *group, const struct found *point, size_t n_layers) {
    char *program = program_text(point->counts, n_layers);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "group", group);
    cJSON_AddStringToObject(json, "program", program);
    cJSON_AddNumberToObject(json, "step", (double)point->step);
    cJSON_AddBoolToObject(json, "repeats", point->repeats);
    cJSON_AddNumberToObject(json, "layer_value", point->layer_value);
    cJSON_AddNumberToObject(json, "saved", point->saved);
    cJSON_AddNumberToObject(json, "search_reward", point->search_reward);
    cJSON_AddNumberToObject(json, "verified_reward", point->verify_reward);
    cJSON_AddNumberToObject(json, "verified_right", point->right);
    free(program);
    return write_line(state, json);
}

bool search_state_finish(struct search_state *state, const char *group) {
    if (search_state_is_done(state, group)) {
        return true;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "group", group);
    cJSON_AddTrueToObject(json, "done");
    return write_line(state, json);
}
