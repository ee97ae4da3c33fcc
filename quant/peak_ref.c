/* Plain C, as the compiler vectorises it: rows of 1024 values out of the first-level cache, since registers cannot be
 * asked for. */
#include "quant/peak.h"

enum { VALUES = DRLLM_PEAK_REF_OPS / 2, SHIFTS = 64 };

int32_t drllm_peak_int8_ref(size_t n_rounds) {
    int8_t x[VALUES + SHIFTS];
    int8_t w[VALUES];
    for (size_t i = 0; i < VALUES + SHIFTS; i++) {
        x[i] = (int8_t)(i % 251);
        w[i % VALUES] = (int8_t)(i % 127);
    }
    int32_t total = 0;
    for (size_t round = 0; round < n_rounds; round++) {
        const int8_t *shifted = x + round % SHIFTS; /* no two rounds alike, or one would do for all */
        int32_t sum = 0;
        for (size_t i = 0; i < VALUES; i++) {
            sum += (int32_t)shifted[i] * w[i];
        }
        total ^= sum;
    }
    return total;
}

int32_t drllm_peak_float_ref(size_t n_rounds) {
    enum { SUMS = 32 };
    float x[VALUES + SHIFTS];
    float w[VALUES];
    float sums[SUMS] = {0};
    for (size_t i = 0; i < VALUES + SHIFTS; i++) {
        x[i] = (float)(i % 251) * 0x1p-8f;
        w[i % VALUES] = (float)(i % 127) * 0x1p-8f - 0.25f;
    }
    for (size_t round = 0; round < n_rounds; round++) {
        const float *shifted = x + round % SHIFTS;
        for (size_t i = 0; i < VALUES; i += SUMS) {
            for (size_t k = 0; k < SUMS; k++) {
                sums[k] += shifted[i + k] * w[i + k];
            }
        }
        for (size_t k = 0; k < SUMS; k++) {
            sums[k] *= 0x1p-8f; /* bounded */
        }
    }
    float total = 0.0f;
    for (size_t k = 0; k < SUMS; k++) {
        total += sums[k];
    }
    return (int32_t)total;
}
