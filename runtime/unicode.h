/* What pre-tokenisers ask about characters. */
#ifndef DRLLM_RUNTIME_UNICODE_H
#define DRLLM_RUNTIME_UNICODE_H

#include <stdint.h>

/* By general category: \p{L}, \p{N}, \p{P}. */
enum drllm_unicode_class {
    DRLLM_UNICODE_OTHER = 0,
    DRLLM_UNICODE_LETTER = 1,
    DRLLM_UNICODE_NUMBER = 2,
    DRLLM_UNICODE_PUNCTUATION = 3
};

/* Of Unicode 15.1. What is no character is OTHER. */
enum drllm_unicode_class drllm_unicode_class(uint32_t character);

#endif
