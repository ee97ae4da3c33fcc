/* Sampling. The order is that of llama.cpp's defaults: repeat penalty, top-k, top-p, min-p, temperature. All
 * arithmetic is our own, so that a seed gives the same tokens on every machine. */
#include "quant/half.h"
#include "runtime/error.h"
#include "runtime/math.h"
#include "runtime/memory.h"
#include "runtime/session.h"

#include <float.h>
#include <math.h>

struct drllm_sampler_params drllm_sampler_default_params(void) {
    return (struct drllm_sampler_params){
        .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.0f, .repeat_last_n = 64};
}

/* splitmix64, as the authors of xoshiro advise for seeding (prng.di.unimi.it). */
static uint64_t next_seed(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotate(uint64_t x, unsigned n) {
    return x << n | x >> (64 - n);
}

/* xoshiro256** */
static uint64_t next_random(uint64_t s[4]) {
    const uint64_t result = rotate(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

int drllm_sampler_init(struct drllm_sampler *sampler, const struct drllm_sampler_params *params,
                       struct drllm_error *error) {
    const struct drllm_sampler_params p = params == NULL ? drllm_sampler_default_params() : *params;
    if (sampler == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "sampler must not be NULL");
    }
    if (!(p.temperature >= 0.0f && p.temperature <= 100.0f)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "temperature must lie in 0 to 100");
    }
    if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "top_p must be above 0 and at most 1");
    }
    if (!(p.min_p >= 0.0f && p.min_p < 1.0f)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "min_p must be at least 0 and below 1");
    }
    if (!(p.repeat_penalty > 0.0f && p.repeat_penalty <= 100.0f)) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "repeat_penalty must be above 0 and at most 100");
    }
    sampler->params = p;
    uint64_t state = p.seed;
    for (size_t i = 0; i < 4; i++) {
        sampler->random[i] = next_seed(&state);
    }
    return DRLLM_OK;
}

/* ---- Candidates ---- */

/* The likelier comes first, then the lower id. */
static bool before(struct drllm_candidate a, struct drllm_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* Restore the heap order below `root` in a heap whose top is the candidate that comes last. */
static void sift_down(struct drllm_candidate *heap, size_t n, size_t root) {
    for (;;) {
        size_t last = root;
        for (size_t child = 2 * root + 1; child <= 2 * root + 2 && child < n; child++) {
            if (before(heap[last], heap[child])) {
                last = child;
            }
        }
        if (last == root) {
            return;
        }
        const struct drllm_candidate moved = heap[root];
        heap[root] = heap[last];
        heap[last] = moved;
        root = last;
    }
}

/* The k first of the n candidates, in order, to the front: a heap of the best so far, then heap sort. */
static void select_first(struct drllm_candidate *candidates, size_t n, size_t k) {
    for (size_t i = k / 2; i-- > 0;) {
        sift_down(candidates, k, i);
    }
    for (size_t i = k; i < n; i++) {
        if (before(candidates[i], candidates[0])) {
            candidates[0] = candidates[i];
            sift_down(candidates, k, 0);
        }
    }
    for (size_t end = k; end-- > 1;) {
        const struct drllm_candidate last = candidates[0];
        candidates[0] = candidates[end];
        candidates[end] = last;
        sift_down(candidates, end, 0);
    }
}

static void penalise(struct drllm_candidate *candidate, float penalty) {
    candidate->logit = candidate->logit > 0.0f ? candidate->logit / penalty : candidate->logit * penalty;
}

/* Each token once, however often it was said: one that is done carries the complement of its id meanwhile.
 * Candidates are still in the order of ids. */
static void penalise_repeats(const struct drllm_session *session, const struct drllm_sampler_params *params) {
    const size_t n = session->n_tokens;
    const size_t first = params->repeat_last_n < n ? n - params->repeat_last_n : 0;
    for (size_t i = first; i < n; i++) {
        struct drllm_candidate *candidate = &session->candidates[session->tokens[i]];
        if (candidate->token >= 0) {
            penalise(candidate, params->repeat_penalty);
            candidate->token = ~candidate->token;
        }
    }
    for (size_t i = first; i < n; i++) {
        session->candidates[session->tokens[i]].token = session->tokens[i];
    }
}

static double weight(const struct drllm_candidate *candidates, size_t i, double temperature) {
    return drllm_exp(((double)candidates[i].logit - (double)candidates[0].logit) / temperature);
}

/* How many of the sorted candidates top-p, then min-p leave; at least 1. */
static size_t truncate(const struct drllm_candidate *candidates, size_t n, const struct drllm_sampler_params *params) {
    if (params->top_p < 1.0f) {
        double total = 0.0;
        for (size_t i = 0; i < n; i++) {
            total += weight(candidates, i, 1.0);
        }
        double reached = 0.0;
        size_t kept = 0;
        while (kept < n && reached < (double)params->top_p * total) {
            reached += weight(candidates, kept, 1.0);
            kept++;
        }
        n = kept;
    }
    if (params->min_p > 0.0f) {
        size_t kept = 1;
        while (kept < n && weight(candidates, kept, 1.0) >= (double)params->min_p) {
            kept++;
        }
        n = kept;
    }
    return n < 1 ? 1 : n;
}

static int32_t draw(const struct drllm_candidate *candidates, size_t n, double temperature, uint64_t random) {
    double total = 0.0;
    for (size_t i = 0; i < n; i++) {
        total += weight(candidates, i, temperature);
    }
    double left = (double)(random >> 11) * 0x1p-53 * total;
    for (size_t i = 0; i + 1 < n; i++) {
        left -= weight(candidates, i, temperature);
        if (left < 0.0) {
            return candidates[i].token;
        }
    }
    return candidates[n - 1].token;
}

/* The largest of n logits by their bits: what is below 0 comes first, -0 and negative NaN with it, the rest is in the
 * order of its values, a positive NaN above them all. */
static int32_t largest_bits(const float *logits, size_t n) {
    int32_t most = INT32_MIN;
    for (size_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)drllm_f32_to_bits(logits[i]);
        most = bits > most ? bits : most;
    }
    return most;
}

/* The token that comes first, without a list of candidates. */
static int32_t likeliest(const float *logits, size_t n) {
    enum { BLOCK = 256 };
    float most = -INFINITY;
    size_t token = 0;
    for (size_t first = 0; first < n; first += BLOCK) {
        const size_t end = n - first < BLOCK ? n : first + BLOCK;
        /* Nothing larger in the block, which is what all but a few have; a NaN has it looked through. */
        if (most >= 0.0f && largest_bits(logits + first, end - first) <= (int32_t)drllm_f32_to_bits(most)) {
            continue;
        }
        for (size_t i = first; i < end; i++) {
            if (logits[i] >= FLT_MAX) { /* as large as what overflowed is taken for */
                return (int32_t)i;
            }
            if (logits[i] > most) {
                most = logits[i];
                token = i;
            }
        }
    }
    return (int32_t)token;
}

int drllm_session_reserve_candidates(struct drllm_session *session) {
    const size_t n_vocab = session->model->config.n_vocab;
    if (session->candidates == NULL) {
        session->candidates = drllm_allocate(&session->allocator, n_vocab, sizeof *session->candidates);
    }
    return session->candidates != NULL ? DRLLM_OK
                                       : drllm_session_fail(session, DRLLM_ERR_MEMORY, "not enough memory to sample");
}

int drllm_session_sample(struct drllm_session *session, struct drllm_sampler *sampler, int32_t *token) {
    if (session == NULL) {
        return DRLLM_ERR_ARGUMENT;
    }
    if (sampler == NULL || token == NULL) {
        return drllm_session_fail(session, DRLLM_ERR_ARGUMENT, "sampler and token must not be NULL");
    }
    if (!session->has_logits) {
        return drllm_session_fail(session, DRLLM_ERR_STATE, "there are no logits; call prefill first");
    }
    const struct drllm_sampler_params *params = &sampler->params;
    const size_t n_vocab = session->model->config.n_vocab;
    if (params->temperature == 0.0f && params->repeat_penalty == 1.0f) {
        *token = likeliest(session->logits, n_vocab);
        return DRLLM_OK;
    }
    const int status = drllm_session_reserve_candidates(session);
    if (status != DRLLM_OK) {
        return status;
    }
    struct drllm_candidate *candidates = session->candidates;
    for (size_t i = 0; i < n_vocab; i++) {
        /* What is no number is never drawn, what overflowed is the likeliest. */
        float logit = session->logits[i];
        logit = isnan(logit) ? -INFINITY : logit > FLT_MAX ? FLT_MAX : logit;
        candidates[i] = (struct drllm_candidate){logit, (int32_t)i};
    }
    if (params->repeat_penalty != 1.0f) {
        penalise_repeats(session, params);
    }
    if (params->temperature == 0.0f) {
        select_first(candidates, n_vocab, 1);
        *token = candidates[0].token;
        return DRLLM_OK;
    }
    const size_t k = params->top_k == 0 || params->top_k > n_vocab ? n_vocab : params->top_k;
    select_first(candidates, n_vocab, k);
    const size_t n = truncate(candidates, k, params);
    *token = draw(candidates, n, (double)params->temperature, next_random(sampler->random));
    return DRLLM_OK;
}
