/* What the kernels for Helium (Cortex-M55) share.
 *
 * Its vector instructions take and give zero for subnormal floats, whatever the FPSCR says, and the portable kernels do not.
 * So vectors of floats only run where no subnormal number can come up: products of numbers from 2^-76 and 2^-24 upwards
 * are at least 2^-100 large, hence multiples of 2^-123, and so are all their sums, none of which is then below 2^-123 without
 * being zero. Anything else goes to the portable kernel: it is a few comparisons, and never happens in a sound network. */
#ifndef DRLLM_QUANT_LANES_MVE_H
#define DRLLM_QUANT_LANES_MVE_H

#include "quant/half.h"
#include "quant/inline.h"

#include <arm_mve.h>
#include <stdbool.h>
#include <stddef.h>

enum {
    LEAST_BITS_76 = (127 - 76) << 23,  /* of 2^-76 */
    LEAST_BITS_24 = (127 - 24) << 23,  /* of 2^-24, the least F16 */
    LEAST_BITS_100 = (127 - 100) << 23 /* of 2^-100 */
};

/* Whether all |x| are 0 or have at least these bits. */
INLINE bool all_reach(const float *x, size_t n, uint32_t least_bits) {
    uint32x4_t below = vdupq_n_u32(UINT32_MAX); /* the least of |x| less 1 as bits, which makes 0 the largest */
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const uint32x4_t bits = vbicq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x80000000u));
        below = vminq_u32(below, vsubq_n_u32(bits, 1));
    }
    uint32_t least = vminvq_u32(UINT32_MAX, below);
    for (; i < n; i++) {
        const uint32_t bits = (drllm_f32_to_bits(x[i]) & 0x7fffffffu) - 1;
        least = bits < least ? bits : least;
    }
    return least >= least_bits - 1;
}

/* a * b + c, rounded twice. */
INLINE float32x4_t mul_add(float32x4_t a, float32x4_t b, float32x4_t c) {
    return vaddq_f32(vmulq_f32(a, b), c);
}

/* Four halves as floats. The vector is q0, because binutils 2.40 encodes any other as twice its number here. */
INLINE float32x4_t load_f16x4(const uint16_t *p) {
    register uint32x4_t halves __asm__("q0") = vldrhq_u32(p);
    __asm__("vcvtb.f32.f16 q0, q0" : "+w"(halves));
    return vreinterpretq_f32_u32(halves);
}

#endif
