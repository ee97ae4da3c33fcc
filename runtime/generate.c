/* Generation: sample, report text, decode, until something stops it. */
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/session.h"
#include "runtime/utf8.h"

#include <string.h>

struct drllm_generate_params drllm_generate_default_params(void) {
    return (struct drllm_generate_params){.max_tokens = 128};
}

/* Text that is not yet reported: the beginning of a character, or of a stop string. */
struct pending {
    char *text;
    size_t size;
    size_t capacity;
};

struct generation {
    struct drllm_session *session;
    const struct drllm_generate_params *params;
    struct pending pending;
};

static bool append(struct generation *generation, int32_t token) {
    struct pending *pending = &generation->pending;
    const struct drllm_model *model = generation->session->model;
    size_t size = 0;
    char *end = pending->text == NULL ? NULL : pending->text + pending->size;
    int status = drllm_token_bytes(model, token, false, end, pending->capacity - pending->size, &size);
    if (status == DRLLM_ERR_BUFFER) {
        const struct drllm_allocator *allocator = &generation->session->allocator;
        const size_t capacity = 2 * (pending->size + size) + 64;
        char *larger = drllm_allocate(allocator, capacity, 1);
        if (larger == NULL) {
            return false;
        }
        if (pending->text != NULL) {
            memcpy(larger, pending->text, pending->size);
        }
        drllm_release(allocator, pending->text, pending->capacity, 1);
        pending->text = larger;
        pending->capacity = capacity;
        status = drllm_token_bytes(model, token, false, pending->text + pending->size, capacity - pending->size, &size);
    }
    pending->size += status == DRLLM_OK ? size : 0;
    return status == DRLLM_OK;
}

/* Where the first whole stop string begins in text[0..size), *complete; otherwise where an end begins that may
 * become one, or size. */
static size_t find_stop(const struct drllm_generate_params *params, const char *text, size_t size, bool *complete) {
    size_t partial_at = size;
    *complete = false;
    for (size_t at = 0; at < size; at++) {
        for (size_t i = 0; i < params->n_stop; i++) {
            const size_t length = strlen(params->stop[i]);
            const size_t left = size - at;
            if (length == 0 || memcmp(text + at, params->stop[i], left < length ? left : length) != 0) {
                continue;
            }
            if (length <= left) {
                *complete = true;
                return at;
            }
            partial_at = partial_at < at ? partial_at : at;
        }
    }
    return partial_at;
}

static bool report(struct generation *generation, int32_t token, const char *text, size_t size) {
    return generation->params->on_text == NULL ||
           generation->params->on_text(generation->params->user, token, text, size);
}

/* Report the first `size` bytes of the pending text, which hold whole characters, with anything invalid replaced. */
static bool flush(struct generation *generation, int32_t token, size_t size, bool *going_on) {
    struct pending *pending = &generation->pending;
    const struct drllm_allocator *allocator = &generation->session->allocator;
    if (size == 0 || pending->text == NULL) {
        *going_on = report(generation, token, "", 0);
        return true;
    }
    char *clean = drllm_allocate(allocator, size, 3);
    if (clean == NULL) {
        return false;
    }
    const size_t clean_size = drllm_utf8_sanitise(pending->text, size, clean);
    *going_on = report(generation, token, clean, clean_size);
    drllm_release(allocator, clean, size, 3);
    memmove(pending->text, pending->text + size, pending->size - size);
    pending->size -= size;
    return true;
}

static int out_of_memory(struct drllm_session *session) {
    return drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory for the text");
}

/* Report what token completed. *stopped is set, with the reason, when the generation is over. */
static int emit(struct generation *generation, int32_t token, bool *stopped, enum drllm_stop_reason *reason) {
    struct pending *pending = &generation->pending;
    if (!append(generation, token)) {
        return out_of_memory(generation->session);
    }
    bool complete;
    const size_t safe = find_stop(generation->params, pending->text, pending->size, &complete);
    const size_t shown = complete ? safe : drllm_utf8_complete(pending->text, safe);
    bool going_on;
    if (!flush(generation, token, shown, &going_on)) {
        return out_of_memory(generation->session);
    }
    if (complete) {
        pending->size = 0;
    }
    if (complete || !going_on) {
        *stopped = true;
        *reason = complete ? DRLLM_STOP_STRING : DRLLM_STOP_CALLBACK;
    }
    return DRLLM_OK;
}

/* Sample and decode until something stops it. */
static int run(struct generation *generation, struct drllm_sampler *sampler, struct drllm_generation *result) {
    struct drllm_session *session = generation->session;
    bool stopped = false;
    while (result->n_tokens < generation->params->max_tokens) {
        int status = drllm_session_check_cancel(session);
        if (status == DRLLM_OK) {
            status = drllm_session_sample(session, sampler, &result->token);
        }
        if (status != DRLLM_OK) {
            return status;
        }
        result->n_tokens++;
        if (!generation->params->ignore_end && drllm_token_is_end(session->model, result->token)) {
            result->reason = DRLLM_STOP_END;
            return DRLLM_OK;
        }
        status = emit(generation, result->token, &stopped, &result->reason);
        if (status != DRLLM_OK || stopped || result->n_tokens == generation->params->max_tokens) {
            return status;
        }
        if (session->n_tokens == session->n_context) {
            result->reason = DRLLM_STOP_CONTEXT;
            return DRLLM_OK;
        }
        status = drllm_session_decode(session, result->token);
        if (status != DRLLM_OK) {
            return status;
        }
    }
    return DRLLM_OK;
}

static int generate(struct generation *generation, struct drllm_sampler *sampler, struct drllm_generation *result) {
    int status = run(generation, sampler, result);
    if (status == DRLLM_OK) {
        status = drllm_session_check_cancel(generation->session);
    }
    /* What was held back turned out to be plain text, perhaps with a cut character at its end. */
    bool going_on;
    if (generation->pending.size > 0 && result->reason != DRLLM_STOP_CALLBACK &&
        !flush(generation, result->token, generation->pending.size, &going_on)) {
        return status != DRLLM_OK ? status : out_of_memory(generation->session);
    }
    return status;
}

int drllm_session_generate(struct drllm_session *session, struct drllm_sampler *sampler,
                           const struct drllm_generate_params *params, struct drllm_generation *result) {
    if (session == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    const struct drllm_generate_params defaults = drllm_generate_default_params();
    struct generation generation = {.session = session, .params = params == NULL ? &defaults : params};
    for (size_t i = 0; i < generation.params->n_stop; i++) {
        if (generation.params->stop == NULL || generation.params->stop[i] == NULL) {
            return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "stop string %zu is NULL", i);
        }
    }
    if (!session->has_logits) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "there are no logits; call prefill first");
    }
    struct drllm_generation made = {.reason = DRLLM_STOP_MAX_TOKENS, .token = -1};
    const int status = generate(&generation, sampler, &made);
    drllm_release(&session->allocator, generation.pending.text, generation.pending.capacity, 1);
    if (result != NULL) {
        *result = made;
    }
    return status;
}
