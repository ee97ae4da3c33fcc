/* The options that say how deep a model runs, which all subcommands that compute share, and what they print about it. */
#ifndef DRLLM_TOOLS_DEPTH_H
#define DRLLM_TOOLS_DEPTH_H

#include "tools/common.h"
#include "tools/json.h"

struct depth_options {
    const char *routers; /* file */
    const char *program;
    const char *depth; /* routed, full or static:PROGRAM; NULL: routed with routers, full without */
    double router_p;   /* NAN: not given */
    double save_layers;
    int reroute; /* enum drllm_reroute */
};
struct depth_options depth_options_default(void);

extern const char *const reroute_names[]; /* turn, never */

#define DEPTH_OPTIONS(o)                                                                                         \
    OPT_TEXT('r', "routers", &(o)->routers, "FILE", "a router file: each prompt gets its own program"),          \
        OPT_TEXT(0, "program", &(o)->program, "LIST", "run these blocks: 0-9,11-14,15x2,16-29; none: no block"), \
        OPT_TEXT(0, "depth", &(o)->depth, "HOW",                                                                 \
                 "routed, full or static:PROGRAM (default: what -r and --program say)"),                         \
        OPT_REAL(0, "router-p", &(o)->router_p, "P", -1, 1,                                                      \
                 "from always-skip over the routers alone (-0.5) and always-execute (0.5) to always-repeat"),    \
        OPT_REAL(0, "save-layers", &(o)->save_layers, "K", 0, 1e6, "layers to save on average")

#define REROUTE_OPTION(o) \
    OPT_WORD(0, "reroute", &(o)->reroute, reroute_names, "when routers decide again in a conversation")

/* Contradictions that can be seen without a model: an exit code, after a message. */
int depth_check(const struct command *command, const struct depth_options *options);

/* The options made ready for sessions of one model. Begin with {0}. */
struct depth {
    struct drllm_depth depth;
    struct drllm_routers *routers;
    uint8_t *program;
    size_t n_layers;
};
int depth_open(const struct command *command, const struct depth_options *options, const struct drllm_model *model,
               struct depth *depth);
/* After the sessions and before the model. Also after a failed open. */
void depth_close(struct depth *depth);
/* drllm_session_set_depth, with a message when it fails. */
int depth_set(const struct command *command, struct drllm_session *session, const struct depth *depth);

/* A program as text, to be freed. */
char *program_text(const uint8_t *counts, size_t n_layers);

/* Of the tokens in the session's context, which must not be empty: "program" (text), "counts", "layers_saved" and, where
 * routers decided, "margins" (null for an infinite one) and "router_logits" (one list of three a block). */
void depth_add_json(cJSON *json, const struct drllm_session *session, const struct depth *depth);

/* One line on stderr: "layers: 24 of 30 run, 6 saved; program 0-14,16,..". */
void depth_print(const struct drllm_session *session, const struct depth *depth);

#endif
