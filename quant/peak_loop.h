/* The loop around a peak's multiplication: chains of sums side by side, so that no addition waits for the one before. */
#ifndef DRLLM_QUANT_PEAK_LOOP_H
#define DRLLM_QUANT_PEAK_LOOP_H

#include "quant/peak.h"

#if defined(__aarch64__) || defined(__arm__)
#define PEAK_REGISTER "+w"
#else
#define PEAK_REGISTER "+v"
#endif

/* As if the register had changed: what is computed from it is computed anew, and a sum stays in its register, which gcc
 * copies about otherwise. */
#define PEAK_RENEW(v) __asm__ volatile("" : PEAK_REGISTER(v))

/* drllm_peak_<name>: n_chains sums of type `vector`, zero at first; STEP(sum, x, w) adds the products of x and w to one,
 * JOIN(a, b) makes one of two, LANE(sum) is the number in it that is returned. */
#define PEAK_LOOP(name, n_chains, vector, zero, input, x_value, w_value, STEP, JOIN, LANE) \
    int32_t drllm_peak_##name(size_t n_rounds) {                                           \
        const input w = w_value;                                                           \
        input x = x_value;                                                                 \
        vector sums[n_chains];                                                             \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (n_chains); i++) {                 \
            sums[i] = zero;                                                                \
        }                                                                                  \
        for (size_t round = 0; round < n_rounds; round++) {                                \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < (n_chains); i++) {             \
                PEAK_RENEW(x);                                                             \
                sums[i] = STEP(sums[i], x, w);                                             \
                PEAK_RENEW(sums[i]);                                                       \
            }                                                                              \
        }                                                                                  \
        vector total = zero;                                                               \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (n_chains); i++) {                 \
            total = JOIN(total, sums[i]);                                                  \
        }                                                                                  \
        return LANE(total);                                                                \
    }

#endif
