/* From a router's logits to how often its block runs, under a budget. */
#ifndef DRLLM_RUNTIME_BUDGET_H
#define DRLLM_RUNTIME_BUDGET_H

#include "runtime/drllm.h"

/* With router_p -0.5 and skip_bias 0 the likeliest class is chosen. */
struct drllm_budget {
    float router_p;  /* the paper's knob, in [-1, 1] (struct drllm_depth) */
    float skip_bias; /* added to the logit of skip; 0 where router_p is not -0.5 */
};

/* logits: skip, execute, repeat, all finite. Fills in the decision, whose logits are the given ones. is_end: of the first
 * or the last block, which no budget makes less likely to run. Ties go to execute, then to skip. */
void drllm_budget_decide(const struct drllm_budget *budget, bool is_end, const float logits[3],
                         struct drllm_decision *decision);

#endif
