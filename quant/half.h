/* 16-bit floats in portable C, bit for bit what F16C and NEON do (round to nearest even). NaN stays NaN. */
#ifndef DRLLM_QUANT_HALF_H
#define DRLLM_QUANT_HALF_H

#include <stdint.h>
#include <string.h>

static inline float drllm_bits_to_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t drllm_f32_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float drllm_f16_to_f32(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) { /* infinity, NaN */
        const uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0;
        return drllm_bits_to_f32(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | quiet);
    }
    if (magnitude < 0x400u) { /* zero, subnormal: magnitude * 2^-24 is exact */
        return drllm_bits_to_f32(sign | drllm_f32_to_bits((float)magnitude * 0x1p-24f));
    }
    return drllm_bits_to_f32(sign | ((magnitude << 13) + 0x38000000u));
}

static inline uint16_t drllm_f32_to_f16(float value) {
    const uint32_t bits = drllm_f32_to_bits(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { /* NaN: quiet, payload cut */
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits */
        const float shifted = drllm_bits_to_f32(magnitude) + 0.5f;
        return (uint16_t)(sign | (drllm_f32_to_bits(shifted) - 0x3f000000u));
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float drllm_bf16_to_f32(uint16_t half) {
    return drllm_bits_to_f32((uint32_t)half << 16);
}

static inline uint16_t drllm_f32_to_bf16(float value) {
    const uint32_t bits = drllm_f32_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
