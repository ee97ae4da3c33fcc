/* Which format a tensor runs in: the one table behind "converted at load" and behind the use of XNNPACK. */
#ifndef DRLLM_RUNTIME_CHOICE_H
#define DRLLM_RUNTIME_CHOICE_H

#include "quant/formats.h"
#include "runtime/drllm.h"

struct drllm_choice_of_format {
    enum drllm_format format;
    bool xnnpack; /* run by XNNPACK rather than by our kernels */
};

/* `stored` is the tensor's format in the file (DRLLM_FORMAT_Q8C for int8 with scales), cols its row length, is_head
 * whether it is the output head. cpu_features: detected and not masked. False when nothing runs the format. */
bool drllm_choose_format(enum drllm_format stored, size_t cols, bool is_head, enum drllm_compute compute,
                         enum drllm_head head, uint64_t cpu_features, struct drllm_choice_of_format *choice);

#endif
