/* Integer products with AVX512-VNNI: two panels side by side in a register, one for few tokens. */
#if defined(__x86_64__)
#include "quant/matmul_vnni.h"

enum { PANELS = 2, TILE_TOKENS = 16 };

typedef int32_t ints __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));

INLINE ints load_weights(const uint8_t *q, size_t next) {
    const __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)q);
    const __m256i second = _mm256_loadu_si256((const __m256i *)(const void *)(q + next));
    return (ints)_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

INLINE floats load_f16(const uint8_t *p, size_t next) {
    const __m128i first = _mm_loadu_si128((const __m128i *)(const void *)p);
    const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)(p + next));
    return (floats)_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
}

INLINE floats load_f32(const uint8_t *p, size_t next) {
    return (floats)load_weights(p, next);
}

INLINE ints repeat_i32(const int32_t *p) {
    return (ints)_mm512_set1_epi32(*p);
}

INLINE floats repeat_f32(const float *p) {
    return (floats)_mm512_set1_ps(*p);
}

INLINE ints dpbusd(ints dot, ints weights, const int8_t *q) {
    return (ints)_mm512_dpbusd_epi32((__m512i)dot, (__m512i)weights, _mm512_set1_epi32(four(q)));
}

INLINE void store(float *y, size_t n_panels, floats values) {
    _mm512_mask_storeu_ps(y, n_panels == 2 ? 0xffff : 0xff, (__m512)values);
}

#include "quant/matmul_vnni_tiles.inc"

#define AVX512_KERNEL(FORMAT, format)                                                                                 \
    void drllm_matmul_##format##_avx512vnni(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups, \
                                            const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {    \
        if (n_tokens < BLOCK) {                                                                                       \
            drllm_matmul_##format##_few_avx512vnni(panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);     \
        } else {                                                                                                      \
            run_kernel(DRLLM_FORMAT_##FORMAT, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);          \
        }                                                                                                             \
    }

AVX512_KERNEL(Q4_0, q4_0)
AVX512_KERNEL(Q4_1, q4_1)
AVX512_KERNEL(Q8_0, q8_0)
AVX512_KERNEL(Q8C, q8c)

#else
typedef int drllm_matmul_avx512vnni_is_empty;
#endif
