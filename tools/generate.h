/* Options and output that run and chat share. */
#ifndef DRLLM_TOOLS_GENERATE_H
#define DRLLM_TOOLS_GENERATE_H

#include "tools/common.h"

struct generate_options {
    int64_t max_tokens; /* -1: until the end */
    int64_t seed;
    double temperature;
    int64_t top_k;
    double top_p;
    double min_p;
    double repeat_penalty;
    struct text_list stop;
    bool ignore_end;
    bool quiet;
};
struct generate_options generate_options_default(void);

#define GENERATE_OPTIONS(o)                                                                                        \
    OPT_INTEGER('n', "predict", &(o)->max_tokens, "N", -1, 1 << 30, "most tokens to generate; -1: until the end"), \
        OPT_INTEGER('s', "seed", &(o)->seed, "N", -1, 9007199254740992.0,                                          \
                    "of the random choice; -1: another each time"),                                                \
        OPT_REAL(0, "temp", &(o)->temperature, "X", 0, 100, "temperature; 0: always the likeliest token"),         \
        OPT_INTEGER(0, "top-k", &(o)->top_k, "N", 0, 1 << 30, "choose among the N likeliest; 0: off"),             \
        OPT_REAL(0, "top-p", &(o)->top_p, "X", 0, 1, "choose among the likeliest that sum up to X; 1: off"),       \
        OPT_REAL(0, "min-p", &(o)->min_p, "X", 0, 1, "leave out what is less likely than X times the likeliest"),  \
        OPT_REAL(0, "repeat-penalty", &(o)->repeat_penalty, "X", 0, 100,                                           \
                 "make the last 64 tokens less likely; 1: off"),                                                   \
        OPT_TEXTS(0, "stop", &(o)->stop, "TEXT", "end the answer in front of this text; may be repeated"),         \
        OPT_FLAG(0, "ignore-eos", &(o)->ignore_end, "go on after the model's end token"),                          \
        OPT_FLAG('q', "quiet", &(o)->quiet, "no timings on stderr")

/* Returns an exit code; a parameter out of range is wrong use. */
int make_sampler(const struct command *command, const struct generate_options *options, uint64_t seed,
                 struct drllm_sampler *sampler);

/* One answer. */
struct answer {
    struct text text;
    struct tokens tokens;
    bool print;       /* to stdout, as it comes */
    int write_errno;  /* why printing failed; 0: it did not */
    bool interrupted; /* by Ctrl-C */
    struct drllm_generation result;
};
/* Generate after a prefill into an answer that is empty but for `print`. Returns an exit code: TOOL_OK also for an
 * interrupted answer. */
int generate_answer(const struct command *command, struct drllm_session *session, struct drllm_sampler *sampler,
                    const struct generate_options *options, struct answer *answer);
void answer_release(struct answer *answer);
/* "end", "length", ... */
const char *answer_stop_reason(const struct answer *answer);
/* One line about the prompt, one about routers that decided for it and one about the answer, on stderr. The timings are
 * of what was computed for this answer, see timings_since. */
void print_timings(const struct drllm_timings *timings, const struct answer *answer);
/* What was spent between two moments. */
struct drllm_timings timings_since(const struct drllm_timings *before, const struct drllm_timings *now);

#endif
