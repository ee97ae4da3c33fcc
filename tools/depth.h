/* The options that say how deep a model runs, which all subcommands that compute share, and what they print of it. */
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
                 "routed, full or static:PROGRAM (default: what --routers and --program say)"),                  \
        OPT_REAL(0, "router-p", &(o)->router_p, "P", -1, 1,                                                      \
                 "-1 skips all, -0.5 is the routers alone, 0.5 executes all, 1 repeats all"),                    \
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

/* The following are about the tokens in the session's context, which must not be empty. */

/* "24 of 30 run, 6 saved; program 0-14,16,.."; at full depth only "30 of 30 run". To be freed. */
char *depth_text(const struct drllm_session *session, const struct depth *depth);
/* The same as a line on stderr: "layers: ...". */
void depth_print(const struct drllm_session *session, const struct depth *depth);

/* "program" (text) and "layers_saved". */
void depth_add_program_json(cJSON *json, const struct drllm_session *session, const struct depth *depth);
/* The same, "counts" and, where routers decided, "margins" (null for an infinite one) and "router_logits" (one list of
 * three a block). */
void depth_add_json(cJSON *json, const struct drllm_session *session, const struct depth *depth);

/* What many contexts saved; begin with {0}. */
struct depth_mean {
    int64_t saved; /* their layers, in sum */
    size_t count;
};
void depth_mean_add(struct depth_mean *mean, const struct drllm_session *session);
double depth_mean_saved(const struct depth_mean *mean);
/* One line on stderr; nothing at full depth and where there was no context. */
void depth_mean_print(const struct depth_mean *mean, const struct depth *depth);

#endif
