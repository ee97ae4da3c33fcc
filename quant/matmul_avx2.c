/* Kernels for AVX2 and F16C. The 8 rows of a panel are the 8 lanes; tiles of tokens share what they load.
 * See matmul_ref.c for the values, which these match bit for bit. */
#if defined(__x86_64__)

#include "quant/inline.h"
#include "quant/matmul_kernels.h"

#include <immintrin.h>
#include <string.h>

enum {
    ROWS = DRLLM_PANEL_ROWS,
    SCALE_BYTES = 2 * ROWS,
    Q4_GROUP_BYTES = ROWS * DRLLM_GROUP / 2,
    Q8_GROUP_BYTES = ROWS * DRLLM_GROUP,
    MAX_PANELS = 4, /* of a tile */
    MAX_TOKENS = 8,
    /* Far enough to cover the latency of memory at full bandwidth. One linear stream is what the processor follows
     * best, so that tiles of integer formats are one panel wide. */
    PREFETCH_BYTES = 8192
};

INLINE __m256i load256(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

INLINE __m256 load_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Keeps gcc from turning a chain of integer additions into a tree, whose leaves do not fit into the registers. */
INLINE __m256i in_order(__m256i v) {
    __asm__("" : "+x"(v));
    return v;
}

/* The four activations of a step, for every row. */
INLINE __m256i broadcast_step(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE void zero(__m256 *acc, size_t n) {
    for (size_t i = 0; i < n; i++) {
        acc[i] = _mm256_setzero_ps();
    }
}

/* One panel's outputs for n_tokens tokens. */
INLINE void store(const __m256 *acc, size_t n_tokens, float *y, size_t ldy) {
    for (size_t t = 0; t < n_tokens; t++) {
        _mm256_storeu_ps(y + t * ldy, acc[t]);
    }
}

/* acc + dot * (d * scale) */
INLINE __m256 add_scaled(__m256 acc, __m256i dot, __m256 d, float scale) {
    const __m256 factor = _mm256_mul_ps(d, _mm256_set1_ps(scale));
    return _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), factor));
}

/* Ask for n_bytes that a stream at p will reach soon. Past the end of the weights this has no effect. */
INLINE void prefetch(const uint8_t *p, size_t distance, size_t n_bytes) {
    const uintptr_t first = (uintptr_t)p + distance;
    for (size_t i = 0; i < n_bytes; i += 64) {
        _mm_prefetch((const char *)(first + i), _MM_HINT_T0);
    }
}

/* ---- int4 ---- */

/* A group's dot products. The 8 steps add up in int16: 8 * 2 * 15 * 128 < 2^15. */
INLINE void group_q4(const uint8_t *w, const struct drllm_q8_row *x, size_t n_tokens, size_t g,
                     __m256i dot[MAX_TOKENS]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (size_t t = 0; t < n_tokens; t++) {
        dot[t] = _mm256_setzero_si256();
    }
    for (size_t pair = 0; pair < 4; pair++) {
        const __m256i both = load256(w + pair * 32);
        const __m256i low = _mm256_and_si256(both, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
        for (size_t t = 0; t < n_tokens; t++) {
            const int8_t *q = x[t].q + g * DRLLM_GROUP + pair * 8;
            dot[t] = in_order(_mm256_add_epi16(dot[t], _mm256_maddubs_epi16(low, broadcast_step(q))));
            dot[t] = in_order(_mm256_add_epi16(dot[t], _mm256_maddubs_epi16(high, broadcast_step(q + 4))));
        }
    }
    for (size_t t = 0; t < n_tokens; t++) {
        dot[t] = _mm256_madd_epi16(dot[t], _mm256_set1_epi16(1));
    }
}

INLINE void tile_q4_0(const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                      size_t ldy) {
    __m256 acc[MAX_TOKENS];
    zero(acc, n_tokens);
    for (size_t g = 0; g < n_groups; g++, w += SCALE_BYTES + Q4_GROUP_BYTES) {
        __m256i dot[MAX_TOKENS];
        prefetch(w, PREFETCH_BYTES, SCALE_BYTES + Q4_GROUP_BYTES);
        group_q4(w + SCALE_BYTES, x, n_tokens, g, dot);
        const __m256 d = load_f16(w);
        for (size_t t = 0; t < n_tokens; t++) {
            const __m256i offset = _mm256_slli_epi32(_mm256_set1_epi32(x[t].sum[g]), 3);
            acc[t] = add_scaled(acc[t], _mm256_sub_epi32(dot[t], offset), d, x[t].scale[g]);
        }
    }
    store(acc, n_tokens, y, ldy);
}

INLINE void tile_q4_1(const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                      size_t ldy) {
    __m256 acc[MAX_TOKENS];
    zero(acc, n_tokens);
    for (size_t g = 0; g < n_groups; g++, w += 2 * SCALE_BYTES + Q4_GROUP_BYTES) {
        __m256i dot[MAX_TOKENS];
        prefetch(w, PREFETCH_BYTES, 2 * SCALE_BYTES + Q4_GROUP_BYTES);
        group_q4(w + 2 * SCALE_BYTES, x, n_tokens, g, dot);
        const __m256 d = load_f16(w);
        const __m256 m = load_f16(w + SCALE_BYTES);
        for (size_t t = 0; t < n_tokens; t++) {
            acc[t] = add_scaled(acc[t], dot[t], d, x[t].scale[g]);
            acc[t] = _mm256_add_ps(acc[t], _mm256_mul_ps(m, _mm256_set1_ps(x[t].ssum[g])));
        }
    }
    store(acc, n_tokens, y, ldy);
}

/* ---- int8 ---- */

/* Adds a group's dot products. |w| is the unsigned operand, the activations get w's sign: 2 * 128 * 127 < 2^15. */
INLINE void group_q8(const uint8_t *w, const struct drllm_q8_row *x, size_t n_tokens, size_t g,
                     __m256i dot[MAX_TOKENS]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t step = 0; step < DRLLM_GROUP / 4; step++) {
        const __m256i weights = load256(w + step * 32);
        const __m256i magnitude = _mm256_abs_epi8(weights);
        for (size_t t = 0; t < n_tokens; t++) {
            const __m256i four = broadcast_step(x[t].q + g * DRLLM_GROUP + step * 4);
            const __m256i products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four, weights));
            dot[t] = in_order(_mm256_add_epi32(dot[t], _mm256_madd_epi16(products, ones)));
        }
    }
}

INLINE void tile_q8_0(const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                      size_t ldy) {
    __m256 acc[MAX_TOKENS];
    zero(acc, n_tokens);
    for (size_t g = 0; g < n_groups; g++, w += SCALE_BYTES + Q8_GROUP_BYTES) {
        __m256i dot[MAX_TOKENS];
        for (size_t t = 0; t < n_tokens; t++) {
            dot[t] = _mm256_setzero_si256();
        }
        prefetch(w, PREFETCH_BYTES, SCALE_BYTES + Q8_GROUP_BYTES);
        group_q8(w + SCALE_BYTES, x, n_tokens, g, dot);
        const __m256 d = load_f16(w);
        for (size_t t = 0; t < n_tokens; t++) {
            acc[t] = add_scaled(acc[t], dot[t], d, x[t].scale[g]);
        }
    }
    store(acc, n_tokens, y, ldy);
}

INLINE void tile_q8c(const uint8_t *w, size_t n_groups, const struct drllm_q8_row *x, size_t n_tokens, float *y,
                     size_t ldy) {
    __m256i dot[MAX_TOKENS];
    for (size_t t = 0; t < n_tokens; t++) {
        dot[t] = _mm256_setzero_si256();
    }
    for (size_t g = 0; g < n_groups; g++, w += Q8_GROUP_BYTES) {
        prefetch(w, PREFETCH_BYTES, Q8_GROUP_BYTES);
        group_q8(w, x, n_tokens, g, dot);
    }
    const __m256 d = _mm256_loadu_ps((const float *)(const void *)w);
    for (size_t t = 0; t < n_tokens; t++) {
        const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(x[t].scale[0]));
        _mm256_storeu_ps(y + t * ldy, _mm256_mul_ps(_mm256_cvtepi32_ps(dot[t]), scale));
    }
}

/* A kernel from its tile: every panel stays in L1 while all tokens pass. A macro, because the number of tokens must be
 * a constant where the tile is inlined. */
#define Q8_KERNEL(format)                                                                                       \
    void drllm_matmul_##format##_avx2(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups, \
                                      const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {    \
        for (size_t p = 0; p < n_panels; p++) {                                                                 \
            const uint8_t *w = (const uint8_t *)panels + p * panel_bytes;                                       \
            size_t t = 0;                                                                                       \
            for (; t + 8 <= n_tokens; t += 8) {                                                                 \
                tile_##format(w, n_groups, x + t, 8, y + t * ldy + p * ROWS, ldy);                              \
            }                                                                                                   \
            if (t + 4 <= n_tokens) {                                                                            \
                tile_##format(w, n_groups, x + t, 4, y + t * ldy + p * ROWS, ldy);                              \
                t += 4;                                                                                         \
            }                                                                                                   \
            if (t + 2 <= n_tokens) {                                                                            \
                tile_##format(w, n_groups, x + t, 2, y + t * ldy + p * ROWS, ldy);                              \
                t += 2;                                                                                         \
            }                                                                                                   \
            if (t < n_tokens) {                                                                                 \
                tile_##format(w, n_groups, x + t, 1, y + t * ldy + p * ROWS, ldy);                              \
            }                                                                                                   \
        }                                                                                                       \
    }

Q8_KERNEL(q4_0)
Q8_KERNEL(q4_1)
Q8_KERNEL(q8_0)
Q8_KERNEL(q8c)

/* ---- floats ---- */

enum width { WIDTH_F32, WIDTH_F16, WIDTH_BF16 };

INLINE __m256 load_weights(const uint8_t *p, enum width width) {
    switch (width) {
    case WIDTH_F16:
        return load_f16(p);
    case WIDTH_BF16: {
        const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    case WIDTH_F32:
        break;
    }
    return _mm256_loadu_ps((const float *)(const void *)p);
}

/* n_panels x n_tokens outputs. Each sum runs over the columns in order, so that only its neighbours can hide the
 * latency of an addition: at least four, better eight, must run side by side. */
INLINE void tile_float(const uint8_t *w, size_t panel_bytes, size_t n_panels, size_t cols, const float *x, size_t ldx,
                       size_t n_tokens, float *y, size_t ldy, enum width width) {
    const size_t column_bytes = ROWS * (width == WIDTH_F32 ? 4 : 2);
    __m256 acc[MAX_PANELS][MAX_TOKENS];
    for (size_t p = 0; p < n_panels; p++) {
        zero(acc[p], n_tokens);
    }
    for (size_t c = 0; c < cols; c++, w += column_bytes) {
        __m256 weights[MAX_PANELS];
        for (size_t p = 0; p < n_panels; p++) {
            weights[p] = load_weights(w + p * panel_bytes, width);
            if (n_tokens <= 2) {
                prefetch(w + p * panel_bytes, n_panels * panel_bytes, column_bytes);
            }
        }
        for (size_t t = 0; t < n_tokens; t++) {
            const __m256 value = _mm256_set1_ps(x[t * ldx + c]);
            for (size_t p = 0; p < n_panels; p++) {
                acc[p][t] = _mm256_add_ps(acc[p][t], _mm256_mul_ps(weights[p], value));
            }
        }
    }
    for (size_t p = 0; p < n_panels; p++) {
        store(acc[p], n_tokens, y + p * ROWS, ldy);
    }
}

/* All tokens of n_panels panels. */
INLINE void tokens_float(const uint8_t *w, size_t panel_bytes, size_t n_panels, size_t cols, const float *x, size_t ldx,
                         size_t n_tokens, float *y, size_t ldy, enum width width) {
    size_t t = 0;
    if (n_panels <= 2) {
        for (; t + 4 <= n_tokens; t += 4) {
            tile_float(w, panel_bytes, n_panels, cols, x + t * ldx, ldx, 4, y + t * ldy, ldy, width);
        }
    }
    for (; t + 2 <= n_tokens; t += 2) {
        tile_float(w, panel_bytes, n_panels, cols, x + t * ldx, ldx, 2, y + t * ldy, ldy, width);
    }
    if (t < n_tokens) {
        tile_float(w, panel_bytes, n_panels, cols, x + t * ldx, ldx, 1, y + t * ldy, ldy, width);
    }
}

INLINE void matmul_float(const uint8_t *w, size_t panel_bytes, size_t n_panels, size_t cols, const float *x, size_t ldx,
                         size_t n_tokens, float *y, size_t ldy, enum width width) {
    size_t p = 0;
    if (n_tokens < 4) {
        for (; p + 4 <= n_panels; p += 4) {
            tokens_float(w + p * panel_bytes, panel_bytes, 4, cols, x, ldx, n_tokens, y + p * ROWS, ldy, width);
        }
    }
    for (; p + 2 <= n_panels; p += 2) {
        tokens_float(w + p * panel_bytes, panel_bytes, 2, cols, x, ldx, n_tokens, y + p * ROWS, ldy, width);
    }
    if (p < n_panels) {
        tokens_float(w + p * panel_bytes, panel_bytes, 1, cols, x, ldx, n_tokens, y + p * ROWS, ldy, width);
    }
}

#define FLOAT_KERNEL(format, width)                                                                         \
    void drllm_matmul_##format##_avx2(const void *panels, size_t panel_bytes, size_t n_panels, size_t cols, \
                                      const float *x, size_t ldx, size_t n_tokens, float *y, size_t ldy) {  \
        matmul_float(panels, panel_bytes, n_panels, cols, x, ldx, n_tokens, y, ldy, width);                 \
    }

FLOAT_KERNEL(f32, WIDTH_F32)
FLOAT_KERNEL(f16, WIDTH_F16)
FLOAT_KERNEL(bf16, WIDTH_BF16)

#else
typedef int drllm_matmul_avx2_unused;
#endif
