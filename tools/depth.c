#include "tools/depth.h"

#include "runtime/drllm_os.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const reroute_names[] = {"turn", "never", NULL};

static const char static_prefix[] = "static:";

struct depth_options depth_options_default(void) {
    /* Most commands compute one prompt: what a further turn would need is not kept. */
    return (struct depth_options){.router_p = NAN, .save_layers = NAN, .reroute = DRLLM_REROUTE_NEVER};
}

/* ---- What is asked for ---- */

static bool is_static(const char *depth) {
    return strncmp(depth, static_prefix, strlen(static_prefix)) == 0;
}

static bool is_depth(const char *depth) {
    return strcmp(depth, "routed") == 0 || strcmp(depth, "full") == 0 || is_static(depth);
}

static enum drllm_depth_kind asked_kind(const struct depth_options *options) {
    if (options->program != NULL || (options->depth != NULL && is_static(options->depth))) {
        return DRLLM_DEPTH_STATIC;
    }
    const bool routed = options->depth != NULL ? strcmp(options->depth, "routed") == 0 : options->routers != NULL;
    return routed ? DRLLM_DEPTH_ROUTED : DRLLM_DEPTH_FULL;
}

int depth_check(const struct command *command, const struct depth_options *options) {
    if (options->depth != NULL && !is_depth(options->depth)) {
        return usage_error(command, "--depth: '%s' is none of routed, full, static:PROGRAM", options->depth);
    }
    if (options->program != NULL && options->depth != NULL) {
        return usage_error(command, "--program and --depth exclude each other");
    }
    if (options->program != NULL && options->routers != NULL) {
        return usage_error(command,
                           "--program and --routers exclude each other; --depth static:PROGRAM leaves the routers out");
    }
    const bool routed = asked_kind(options) == DRLLM_DEPTH_ROUTED;
    const bool has_p = !isnan(options->router_p);
    const bool has_saving = !isnan(options->save_layers);
    if (routed && options->routers == NULL) {
        return usage_error(command, "--depth routed needs routers: --routers FILE is missing");
    }
    if (!routed && (has_p || has_saving)) {
        return usage_error(command, "--%s is for routers, and none decide here", has_p ? "router-p" : "save-layers");
    }
    if (has_p && has_saving) {
        return usage_error(command, "--router-p and --save-layers exclude each other");
    }
    return TOOL_OK;
}

/* ---- For sessions ---- */

static int read_program(const struct command *command, const struct depth_options *options, struct depth *depth) {
    struct drllm_error error = {0};
    const bool is_option = options->program != NULL;
    const char *text = is_option ? options->program : options->depth + strlen(static_prefix);
    depth->program = allocate(depth->n_layers, sizeof *depth->program);
    depth->depth.program = depth->program;
    if (drllm_program_parse(text, depth->n_layers, depth->program, &error) != DRLLM_OK) {
        return usage_error(command, "--%s: %s", is_option ? "program" : "depth", error.detail);
    }
    return TOOL_OK;
}

static int open_routers(const struct command *command, const struct depth_options *options,
                        const struct drllm_model *model, struct depth *depth) {
    struct drllm_error error = {0};
    const int status = drllm_routers_open_path(model, options->routers, &depth->routers, &error);
    if (status != DRLLM_OK) {
        return report_status(command, "cannot open routers", status, error.detail);
    }
    depth->depth.routers = depth->routers;
    depth->depth.reroute = (enum drllm_reroute)options->reroute;
    if (!isnan(options->router_p)) {
        depth->depth.router_p = (float)options->router_p;
    }
    if (!isnan(options->save_layers)) {
        depth->depth.save_layers = (float)options->save_layers;
    }
    return TOOL_OK;
}

int depth_open(const struct command *command, const struct depth_options *options, const struct drllm_model *model,
               struct depth *depth) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    depth->n_layers = info.n_layers;
    depth->depth = drllm_depth_default();
    depth->depth.kind = asked_kind(options);
    switch (depth->depth.kind) {
    case DRLLM_DEPTH_STATIC:
        return read_program(command, options, depth);
    case DRLLM_DEPTH_ROUTED:
        return open_routers(command, options, model, depth);
    case DRLLM_DEPTH_FULL:
        break;
    }
    return TOOL_OK;
}

void depth_close(struct depth *depth) {
    drllm_routers_close(depth->routers);
    free(depth->program);
    *depth = (struct depth){.routers = NULL};
}

int depth_set(const struct command *command, struct drllm_session *session, const struct depth *depth) {
    const int status = drllm_session_set_depth(session, &depth->depth);
    return status == DRLLM_OK ? TOOL_OK : session_error(command, session, "cannot set the depth", status);
}

/* ---- What came out ---- */

char *program_text(const uint8_t *counts, size_t n_layers) {
    size_t size = 0;
    drllm_program_format(counts, n_layers, NULL, 0, &size);
    char *text = allocate(size, 1);
    drllm_program_format(counts, n_layers, text, size, &size);
    return text;
}

static uint8_t *get_program(const struct drllm_session *session, const struct depth *depth) {
    uint8_t *counts = allocate(depth->n_layers, sizeof *counts);
    drllm_session_get_program(session, counts);
    return counts;
}

static int layers_saved(const struct drllm_session *session) {
    int saved = 0;
    drllm_session_get_layers_saved(session, &saved);
    return saved;
}

static bool is_full(const uint8_t *counts, size_t n_layers) {
    for (size_t i = 0; i < n_layers; i++) {
        if (counts[i] != 1) {
            return false;
        }
    }
    return true;
}

char *depth_text(const struct drllm_session *session, const struct depth *depth) {
    const int saved = layers_saved(session);
    uint8_t *counts = get_program(session, depth);
    char *program = program_text(counts, depth->n_layers);
    const size_t size = strlen(program) + 96;
    char *text = allocate(size, 1);
    const int n = snprintf(text, size, "%lld of %zu run", (long long)depth->n_layers - saved, depth->n_layers);
    if (!is_full(counts, depth->n_layers)) {
        snprintf(text + n, size - (size_t)n, ", %d %s; program %s", abs(saved), saved < 0 ? "added" : "saved", program);
    }
    free(program);
    free(counts);
    return text;
}

void depth_print(const struct drllm_session *session, const struct depth *depth) {
    char *text = depth_text(session, depth);
    fprintf(stderr, "layers: %s\n", text);
    free(text);
}

void depth_add_program_json(cJSON *json, const struct drllm_session *session, const struct depth *depth) {
    uint8_t *counts = get_program(session, depth);
    char *program = program_text(counts, depth->n_layers);
    cJSON_AddStringToObject(json, "program", program);
    cJSON_AddNumberToObject(json, "layers_saved", layers_saved(session));
    free(program);
    free(counts);
}

static cJSON *margin_json(float margin) {
    return isinf(margin) ? cJSON_CreateNull() : cJSON_CreateNumber((double)margin);
}

void depth_add_json(cJSON *json, const struct drllm_session *session, const struct depth *depth) {
    struct drllm_decision *decisions = allocate(depth->n_layers, sizeof *decisions);
    drllm_session_get_decisions(session, decisions);
    depth_add_program_json(json, session, depth);
    cJSON *counts = cJSON_AddArrayToObject(json, "counts");
    for (size_t i = 0; i < depth->n_layers; i++) {
        cJSON_AddItemToArray(counts, cJSON_CreateNumber(decisions[i].count));
    }
    if (depth->depth.kind == DRLLM_DEPTH_ROUTED) {
        cJSON *margins = cJSON_AddArrayToObject(json, "margins");
        cJSON *logits = cJSON_AddArrayToObject(json, "router_logits");
        for (size_t i = 0; i < depth->n_layers; i++) {
            cJSON_AddItemToArray(margins, margin_json(decisions[i].margin));
            cJSON_AddItemToArray(logits, cJSON_CreateFloatArray(decisions[i].logits, 3));
        }
    }
    free(decisions);
}

void depth_mean_add(struct depth_mean *mean, const struct drllm_session *session) {
    mean->saved += layers_saved(session);
    mean->count++;
}

double depth_mean_saved(const struct depth_mean *mean) {
    return mean->count == 0 ? 0.0 : (double)mean->saved / (double)mean->count;
}

void depth_mean_print(const struct depth_mean *mean, const struct depth *depth) {
    if (depth->depth.kind != DRLLM_DEPTH_FULL && mean->count != 0) {
        fprintf(stderr, "layers saved: %.2f of %zu in the mean\n", depth_mean_saved(mean), depth->n_layers);
    }
}
