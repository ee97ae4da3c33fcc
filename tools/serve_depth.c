/* How deep a request runs. The fields are those of the command line: "depth" is "full", "routed" or "static:PROGRAM",
 * "program" is short for the latter, "save_layers" and "router_p" are the routers' budget. What a request leaves out is what
 * the server was started with. */
#include "tools/serve_request.h"

#include <math.h>
#include <string.h>

static const char static_prefix[] = "static:";

static bool read_program(const struct serve_model *model, struct serve_request *request, const char *text,
                         const char *param, struct serve_error *error) {
    struct drllm_error wrong = {0};
    request->program = allocate(model->info.n_layers, sizeof *request->program);
    if (drllm_program_parse(text, model->info.n_layers, request->program, &wrong) != DRLLM_OK) {
        return serve_fail(error, 400, NULL, param, "%s: %s", param, wrong.detail);
    }
    request->depth.kind = DRLLM_DEPTH_STATIC;
    request->depth.program = request->program;
    return true;
}

static bool read_kind(const struct serve_model *model, struct serve_request *request, const char *text,
                      struct serve_error *error) {
    if (strcmp(text, "full") == 0) {
        request->depth.kind = DRLLM_DEPTH_FULL;
        return true;
    }
    if (strcmp(text, "routed") == 0) {
        if (model->depth.routers == NULL) {
            return serve_fail(error, 400, NULL, "depth", "depth: this server was started without routers");
        }
        request->depth.kind = DRLLM_DEPTH_ROUTED;
        return true;
    }
    if (strncmp(text, static_prefix, strlen(static_prefix)) == 0) {
        return read_program(model, request, text + strlen(static_prefix), "depth", error);
    }
    return serve_fail(error, 400, NULL, "depth", "depth must be \"full\", \"routed\" or \"static:PROGRAM\"");
}

/* A budget alone asks for the routers. */
static bool read_budget(const struct serve_model *model, struct serve_request *request, bool is_given,
                        struct serve_error *error) {
    double router_p = NAN, save_layers = NAN;
    if (!serve_number(request->json, "router_p", -1.0, 1.0, false, &router_p, error) ||
        !serve_number(request->json, "save_layers", 0.0, 1e6, false, &save_layers, error)) {
        return false;
    }
    if (isnan(router_p) && isnan(save_layers)) {
        return true;
    }
    const char *param = isnan(router_p) ? "save_layers" : "router_p";
    if (!isnan(router_p) && !isnan(save_layers)) {
        return serve_fail(error, 400, NULL, param, "router_p and save_layers exclude each other");
    }
    if (is_given ? request->depth.kind != DRLLM_DEPTH_ROUTED : model->depth.routers == NULL) {
        return serve_fail(error, 400, NULL, param, "%s is for routers, and none decide here", param);
    }
    struct drllm_routers_info info;
    drllm_routers_get_info(model->depth.routers, &info);
    if (!isnan(save_layers) && info.n_calibration == 0) {
        return serve_fail(error, 400, NULL, param, "save_layers: this server's routers have no calibration table");
    }
    const struct drllm_depth defaults = drllm_depth_default();
    request->depth.kind = DRLLM_DEPTH_ROUTED;
    request->depth.program = NULL;
    request->depth.router_p = isnan(router_p) ? defaults.router_p : (float)router_p;
    request->depth.save_layers = isnan(save_layers) ? defaults.save_layers : (float)save_layers;
    return true;
}

bool serve_depth_read(const struct serve_model *model, struct serve_request *request, struct serve_error *error) {
    const char *kind = NULL, *program = NULL;
    request->depth = model->depth.depth;
    request->depth.routers = model->depth.routers;
    /* Each prompt is routed by all of it, also where its beginning is in the context already. */
    request->depth.reroute = DRLLM_REROUTE_TURN;
    if (!serve_text(request->json, "depth", &kind, error) || !serve_text(request->json, "program", &program, error)) {
        return false;
    }
    if (kind != NULL && program != NULL) {
        return serve_fail(error, 400, NULL, "program", "program and depth exclude each other");
    }
    if (kind != NULL && !read_kind(model, request, kind, error)) {
        return false;
    }
    if (program != NULL && !read_program(model, request, program, "program", error)) {
        return false;
    }
    return read_budget(model, request, kind != NULL || program != NULL, error);
}
