#include "runtime/budget.h"

#include "runtime/math.h"

#include <math.h>
#include <string.h>

enum { SKIP, EXECUTE, REPEAT, CLASSES };

static const double plain_p = -0.5;

static void softmax(const float logits[CLASSES], double probability[CLASSES]) {
    double most = (double)logits[SKIP];
    double sum = 0.0;
    for (size_t i = 1; i < CLASSES; i++) {
        most = (double)logits[i] > most ? (double)logits[i] : most;
    }
    for (size_t i = 0; i < CLASSES; i++) {
        probability[i] = drllm_exp((double)logits[i] - most);
        sum += probability[i];
    }
    for (size_t i = 0; i < CLASSES; i++) {
        probability[i] /= sum;
    }
}

/* The stretches of the knob: always-skip .. the router .. always-execute .. always-repeat. */
static void interpolate(double p, double q[CLASSES]) {
    double t; /* the share of the stretch's upper end */
    if (p < plain_p) {
        t = (p + 1.0) / 0.5;
        for (size_t i = 0; i < CLASSES; i++) {
            q[i] = t * q[i] + (i == SKIP ? 1.0 - t : 0.0);
        }
    } else if (p <= 0.5) {
        t = p + 0.5;
        for (size_t i = 0; i < CLASSES; i++) {
            q[i] = (1.0 - t) * q[i] + (i == EXECUTE ? t : 0.0);
        }
    } else {
        t = (p - 0.5) / 0.5;
        q[SKIP] = 0.0;
        q[EXECUTE] = 1.0 - t;
        q[REPEAT] = t;
    }
}

static double log_or_never(double probability) {
    return probability > 1e-300 ? drllm_log(probability) : -(double)INFINITY;
}

void drllm_budget_decide(const struct drllm_budget *budget, bool is_end, const float logits[3],
                         struct drllm_decision *decision) {
    double p = (double)budget->router_p;
    double bias = (double)budget->skip_bias;
    double score[CLASSES]; /* ln of the probability, but for a constant */
    p = is_end && p < plain_p ? plain_p : p;
    bias = is_end && bias > 0.0 ? 0.0 : bias;
    if (p < plain_p || p > plain_p) {
        double q[CLASSES];
        softmax(logits, q);
        interpolate(p, q);
        for (size_t i = 0; i < CLASSES; i++) {
            score[i] = log_or_never(q[i]);
        }
    } else {
        for (size_t i = 0; i < CLASSES; i++) {
            score[i] = (double)logits[i] + (i == SKIP ? bias : 0.0);
        }
    }
    static const size_t by_preference[] = {EXECUTE, SKIP, REPEAT};
    size_t best = EXECUTE;
    for (size_t i = 1; i < CLASSES; i++) {
        best = score[by_preference[i]] > score[best] ? by_preference[i] : best;
    }
    double second = -(double)INFINITY;
    for (size_t i = 0; i < CLASSES; i++) {
        second = i != best && score[i] > second ? score[i] : second;
    }
    decision->count = (uint8_t)best;
    memcpy(decision->logits, logits, sizeof decision->logits);
    decision->margin = (float)(score[best] - second);
}
