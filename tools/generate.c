#include "tools/generate.h"

#include "tools/interrupt.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* So that an option nobody gave is the library's default to the last bit: 0.95f is shown and kept as 0.95. */
static double widen(float value) {
    char digits[32];
    double exact = 0;
    snprintf(digits, sizeof digits, "%.6g", (double)value);
    return parse_real(digits, &exact) ? exact : (double)value;
}

struct generate_options generate_options_default(void) {
    const struct drllm_sampler_params params = drllm_sampler_default_params();
    return (struct generate_options){.max_tokens = -1,
                                     .seed = (int64_t)params.seed,
                                     .temperature = widen(params.temperature),
                                     .top_k = (int64_t)params.top_k,
                                     .top_p = widen(params.top_p),
                                     .min_p = widen(params.min_p),
                                     .repeat_penalty = widen(params.repeat_penalty)};
}

int make_sampler(const struct command *command, const struct generate_options *options, uint64_t seed,
                 struct drllm_sampler *sampler) {
    struct drllm_error error = {0};
    struct drllm_sampler_params params = drllm_sampler_default_params();
    params.temperature = (float)options->temperature;
    params.top_k = (size_t)options->top_k;
    params.top_p = (float)options->top_p;
    params.min_p = (float)options->min_p;
    params.repeat_penalty = (float)options->repeat_penalty;
    params.seed = seed;
    if (drllm_sampler_init(sampler, &params, &error) != DRLLM_OK) {
        return usage_error(command, "%s", error.detail);
    }
    return TOOL_OK;
}

static bool take_text(void *user, int32_t token, const char *text, size_t size) {
    struct answer *answer = user;
    tokens_add(&answer->tokens, token);
    text_append(&answer->text, text, size);
    if (answer->print && size != 0 && (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0)) {
        answer->write_errno = errno;
        return false;
    }
    return true;
}

int generate_answer(const struct command *command, struct drllm_session *session, struct drllm_sampler *sampler,
                    const struct generate_options *options, struct answer *answer) {
    struct drllm_generate_params params = drllm_generate_default_params();
    params.max_tokens = options->max_tokens < 0 ? SIZE_MAX : (size_t)options->max_tokens;
    params.stop = options->stop.items;
    params.n_stop = options->stop.count;
    params.ignore_end = options->ignore_end;
    params.on_text = take_text;
    params.user = answer;
    const int status = drllm_session_generate(session, sampler, &params, &answer->result);
    /* Text that was held back to the end comes with the last token once more. */
    if (answer->tokens.count > answer->result.n_tokens) {
        answer->tokens.count = answer->result.n_tokens;
    }
    if (answer->write_errno != 0) {
        report(command, "cannot write to standard output: %s", strerror(answer->write_errno));
        return TOOL_FAILED;
    }
    answer->interrupted = status == DRLLM_ERR_CANCELLED;
    if (status != DRLLM_OK && status != DRLLM_ERR_CANCELLED) {
        return session_error(command, session, "cannot generate", status);
    }
    return TOOL_OK;
}

void answer_release(struct answer *answer) {
    text_release(&answer->text);
    tokens_release(&answer->tokens);
}

const char *answer_stop_reason(const struct answer *answer) {
    if (answer->interrupted) {
        return "interrupted";
    }
    switch (answer->result.reason) {
    case DRLLM_STOP_MAX_TOKENS:
        return "length";
    case DRLLM_STOP_END:
        return "end";
    case DRLLM_STOP_STRING:
        return "stop";
    case DRLLM_STOP_CALLBACK:
        return "callback";
    case DRLLM_STOP_CONTEXT:
        return "context";
    }
    return "unknown";
}

struct drllm_timings timings_since(const struct drllm_timings *before, const struct drllm_timings *now) {
    struct drllm_timings spent = *now;
    spent.n_prefill -= before->n_prefill;
    spent.n_decode -= before->n_decode;
    spent.prefill_ns -= before->prefill_ns;
    spent.decode_ns -= before->decode_ns;
    spent.router_ns -= before->router_ns;
    return spent;
}

void print_timings(const struct drllm_timings *timings, const struct answer *answer) {
    fprintf(stderr, "prompt: %" PRIu64 " tokens in %.1f ms, %.1f tokens/s\n", timings->n_prefill,
            milliseconds(timings->prefill_ns), per_second((double)timings->n_prefill, timings->prefill_ns));
    /* A prompt of one token counts among those of the answer, and so do its routers. */
    if (timings->router_ns != 0 && timings->prefill_ns != 0) {
        fprintf(stderr, "routers: %.2f ms, %.2f %% of the prompt's time\n", milliseconds(timings->router_ns),
                100.0 * (double)timings->router_ns / (double)timings->prefill_ns);
    }
    fprintf(stderr, "answer: %" PRIu64 " tokens in %.1f ms, %.1f tokens/s; stopped by: %s\n", timings->n_decode,
            milliseconds(timings->decode_ns), per_second((double)timings->n_decode, timings->decode_ns),
            answer_stop_reason(answer));
}
