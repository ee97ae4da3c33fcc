/* The kernels of attention for AVX2 and F16C: the values of attention_ref.c, bit for bit. */
#if defined(__x86_64__)

#include "quant/attention.h"

#include <immintrin.h>
#include <string.h>

/* Formats and sizes of tiles reach the helpers as constants, so that their loops unroll and the arrays live in
 * registers. */
#define INLINE static inline __attribute__((always_inline))

enum { LANES = DRLLM_KV_BLOCK, MAX_ROWS = 6, MAX_VECTORS = 8 };

INLINE float fold(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The largest lane; none is NaN. */
INLINE float fold_max(__m256 lanes) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* drllm_exp2f in every lane; max keeps its second operand when the first is NaN, as the reference's ?: does. */
INLINE __m256 exp2_8(__m256 x) {
    const __m256 shift = _mm256_set1_ps(0x1.8p23f);
    const __m256 held = _mm256_max_ps(x, _mm256_set1_ps(-127.0f));
    const __m256 shifted = _mm256_add_ps(held, shift);
    const __m256 r = _mm256_sub_ps(held, _mm256_sub_ps(shifted, shift));
    __m256 p = _mm256_set1_ps(1.535336188319500e-4f);
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.339887440266574e-3f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(9.618437357674640e-3f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(5.550332471162809e-2f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(2.402264791363012e-1f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(6.931472028550421e-1f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

/* ---- Elements of blocks ---- */

INLINE __m256 load_f16(const unsigned char *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE __m256 load_int8(const unsigned char *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

/* Elements i to i+7 of a block, scale being theirs. */
INLINE __m256 load_elements(enum drllm_format format, const unsigned char *block, size_t i, __m256 scale) {
    return format == DRLLM_FORMAT_F32   ? _mm256_loadu_ps((const float *)(const void *)block + i)
           : format == DRLLM_FORMAT_F16 ? load_f16(block + i * sizeof(uint16_t))
                                        : _mm256_mul_ps(load_int8(block + i), scale);
}

/* The scales of a group of keys in a block's 8 positions. */
INLINE __m256 key_scales(enum drllm_format format, const unsigned char *block, size_t head_dim, size_t d) {
    return format != DRLLM_FORMAT_Q8_0
               ? _mm256_setzero_ps()
               : load_f16(block + drllm_kv_scales(head_dim) + d / DRLLM_GROUP * LANES * sizeof(uint16_t));
}

/* The scale of a group of values at one position of a block. */
INLINE __m256 value_scale(enum drllm_format format, const unsigned char *block, size_t head_dim, size_t lane,
                          size_t d) {
    if (format != DRLLM_FORMAT_Q8_0) {
        return _mm256_setzero_ps();
    }
    uint16_t half;
    memcpy(&half, block + drllm_kv_scales(head_dim) + (lane * (head_dim / DRLLM_GROUP) + d / DRLLM_GROUP) * sizeof half,
           sizeof half);
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

/* ---- Scores ---- */

/* n_rows x n_blocks vectors of scores. */
INLINE void tile_scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const unsigned char *k,
                        size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    __m256 acc[MAX_ROWS][MAX_VECTORS];
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            acc[r][b] = _mm256_setzero_ps();
        }
    }
    const size_t group = format == DRLLM_FORMAT_Q8_0 ? (size_t)DRLLM_GROUP : head_dim;
    for (size_t start = 0; start < head_dim; start += group) {
        __m256 scales[MAX_VECTORS];
        for (size_t b = 0; b < n_blocks; b++) {
            scales[b] = key_scales(format, k + b * block_bytes, head_dim, start);
        }
        for (size_t d = start; d < start + group; d++) {
            __m256 keys[MAX_VECTORS];
            for (size_t b = 0; b < n_blocks; b++) {
                keys[b] = load_elements(format, k + b * block_bytes, d * LANES, scales[b]);
            }
            for (size_t r = 0; r < n_rows; r++) {
                const __m256 value = _mm256_set1_ps(q[r * ldq + d]);
                for (size_t b = 0; b < n_blocks; b++) {
                    acc[r][b] = _mm256_add_ps(acc[r][b], _mm256_mul_ps(value, keys[b]));
                }
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            _mm256_storeu_ps(s + r * lds + b * LANES, acc[r][b]);
        }
    }
}

/* Scores of n_rows rows, `width` blocks at a time. */
INLINE void rows_scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, size_t width,
                        const unsigned char *k, size_t block_bytes, size_t n_blocks, size_t head_dim, float *s,
                        size_t lds) {
    size_t b = 0;
    for (; b + width <= n_blocks; b += width) {
        tile_scores(format, q, ldq, n_rows, k + b * block_bytes, block_bytes, width, head_dim, s + b * LANES, lds);
    }
    for (; b < n_blocks; b++) {
        tile_scores(format, q, ldq, n_rows, k + b * block_bytes, block_bytes, 1, head_dim, s + b * LANES, lds);
    }
}

/* The widths keep eight or more sums side by side, which hides the latency of an addition, in 16 registers. */
INLINE void scores_of(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const unsigned char *k,
                      size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    for (; n_rows >= 6; n_rows -= 6, q += 6 * ldq, s += 6 * lds) {
        rows_scores(format, q, ldq, 6, 2, k, block_bytes, n_blocks, head_dim, s, lds);
    }
    switch (n_rows) {
    case 5:
        rows_scores(format, q, ldq, 5, 2, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    case 4:
        rows_scores(format, q, ldq, 4, 2, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    case 3:
        rows_scores(format, q, ldq, 3, 4, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    case 2:
        rows_scores(format, q, ldq, 2, 4, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    case 1:
        rows_scores(format, q, ldq, 1, 8, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    default:
        break;
    }
}

static void scores(enum drllm_format format, const float *q, size_t ldq, size_t n_rows, const void *k,
                   size_t block_bytes, size_t n_blocks, size_t head_dim, float *s, size_t lds) {
    switch (format) {
    case DRLLM_FORMAT_F32:
        scores_of(DRLLM_FORMAT_F32, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    case DRLLM_FORMAT_F16:
        scores_of(DRLLM_FORMAT_F16, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    default:
        scores_of(DRLLM_FORMAT_Q8_0, q, ldq, n_rows, k, block_bytes, n_blocks, head_dim, s, lds);
        break;
    }
}

/* ---- Weights ---- */

/* The steps go over all rows one after the other, since a single row's would wait for each other. */
static void softmax(float *s, size_t lds, size_t n_rows, size_t n, float *max, float *sum, float *factor) {
    for (size_t r = 0; r < n_rows; r++) {
        __m256 lanes = _mm256_set1_ps(max[r]);
        for (size_t i = 0; i < n; i += LANES) {
            lanes = _mm256_max_ps(_mm256_loadu_ps(s + r * lds + i), lanes);
        }
        const float most = fold_max(lanes);
        factor[r] = max[r] - most;
        max[r] = most;
    }
    size_t row = 0;
    for (; row + LANES <= n_rows; row += LANES) {
        _mm256_storeu_ps(factor + row, exp2_8(_mm256_loadu_ps(factor + row)));
    }
    for (; row < n_rows; row++) {
        factor[row] = drllm_exp2f(factor[row]);
    }
    for (size_t r = 0; r < n_rows; r++) {
        const __m256 most = _mm256_set1_ps(max[r]);
        __m256 total = _mm256_setzero_ps();
        for (size_t i = 0; i < n; i += LANES) {
            const __m256 weight = exp2_8(_mm256_sub_ps(_mm256_loadu_ps(s + r * lds + i), most));
            _mm256_storeu_ps(s + r * lds + i, weight);
            total = _mm256_add_ps(total, weight);
        }
        sum[r] = sum[r] * factor[r] + fold(total);
    }
}

/* ---- Weighted values ---- */

/* n_rows x n_vectors vectors of outputs, from dimension d on. */
INLINE void tile_values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const unsigned char *v,
                        size_t block_bytes, size_t n_keys, size_t head_dim, size_t d, size_t n_vectors,
                        const float *factor, float *o, size_t ldo) {
    __m256 acc[MAX_ROWS][MAX_VECTORS];
    for (size_t r = 0; r < n_rows; r++) {
        const __m256 by = _mm256_set1_ps(factor[r]);
        for (size_t i = 0; i < n_vectors; i++) {
            acc[r][i] = _mm256_mul_ps(_mm256_loadu_ps(o + r * ldo + d + i * LANES), by);
        }
    }
    for (size_t j = 0; j < n_keys; j += LANES, v += block_bytes) {
        const size_t n_lanes = n_keys - j < LANES ? n_keys - j : (size_t)LANES;
        for (size_t lane = 0; lane < n_lanes; lane++) {
            __m256 values[MAX_VECTORS];
            __m256 scale = _mm256_setzero_ps();
            for (size_t i = 0; i < n_vectors; i++) {
                if (i % 4 == 0) { /* a tile of fewer vectors lies within a group */
                    scale = value_scale(format, v, head_dim, lane, d + i * LANES);
                }
                values[i] = load_elements(format, v, lane * head_dim + d + i * LANES, scale);
            }
            for (size_t r = 0; r < n_rows; r++) {
                const __m256 weight = _mm256_set1_ps(p[r * ldp + j + lane]);
                for (size_t i = 0; i < n_vectors; i++) {
                    acc[r][i] = _mm256_add_ps(acc[r][i], _mm256_mul_ps(weight, values[i]));
                }
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t i = 0; i < n_vectors; i++) {
            _mm256_storeu_ps(o + r * ldo + d + i * LANES, acc[r][i]);
        }
    }
}

/* Outputs of n_rows rows, `width` vectors at a time. */
INLINE void rows_values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, size_t width,
                        const unsigned char *v, size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor,
                        float *o, size_t ldo) {
    size_t d = 0;
    for (; d + width * LANES <= head_dim; d += width * LANES) {
        tile_values(format, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, d, width, factor, o, ldo);
    }
    for (; d < head_dim; d += LANES) {
        tile_values(format, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, d, 1, factor, o, ldo);
    }
}

INLINE void values_of(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const unsigned char *v,
                      size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor, float *o, size_t ldo) {
    for (; n_rows >= 6; n_rows -= 6, p += 6 * ldp, factor += 6, o += 6 * ldo) {
        rows_values(format, p, ldp, 6, 2, v, block_bytes, n_keys, head_dim, factor, o, ldo);
    }
    switch (n_rows) {
    case 5:
        rows_values(format, p, ldp, 5, 2, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    case 4:
        rows_values(format, p, ldp, 4, 2, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    case 3:
        rows_values(format, p, ldp, 3, 4, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    case 2:
        rows_values(format, p, ldp, 2, 4, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    case 1:
        rows_values(format, p, ldp, 1, 8, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    default:
        break;
    }
}

static void values(enum drllm_format format, const float *p, size_t ldp, size_t n_rows, const void *v,
                   size_t block_bytes, size_t n_keys, size_t head_dim, const float *factor, float *o, size_t ldo) {
    switch (format) {
    case DRLLM_FORMAT_F32:
        values_of(DRLLM_FORMAT_F32, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    case DRLLM_FORMAT_F16:
        values_of(DRLLM_FORMAT_F16, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    default:
        values_of(DRLLM_FORMAT_Q8_0, p, ldp, n_rows, v, block_bytes, n_keys, head_dim, factor, o, ldo);
        break;
    }
}

/* ---- Expansion ---- */

INLINE void expand_f16(const unsigned char *block, size_t n, float *out) {
    for (size_t i = 0; i < n; i += LANES) {
        _mm256_storeu_ps(out + i, load_f16(block + i * sizeof(uint16_t)));
    }
}

static void expand_keys(enum drllm_format format, const void *k, size_t block_bytes, size_t n_blocks, size_t head_dim,
                        float *out) {
    const unsigned char *block = k;
    for (size_t b = 0; b < n_blocks; b++, block += block_bytes, out += head_dim * LANES) {
        if (format == DRLLM_FORMAT_F16) {
            expand_f16(block, head_dim * LANES, out);
            continue;
        }
        for (size_t d = 0; d < head_dim; d++) {
            const __m256 scales = key_scales(DRLLM_FORMAT_Q8_0, block, head_dim, d);
            _mm256_storeu_ps(out + d * LANES, load_elements(DRLLM_FORMAT_Q8_0, block, d * LANES, scales));
        }
    }
}

static void expand_values(enum drllm_format format, const void *v, size_t block_bytes, size_t n_blocks, size_t head_dim,
                          float *out) {
    const unsigned char *block = v;
    for (size_t b = 0; b < n_blocks; b++, block += block_bytes, out += head_dim * LANES) {
        if (format == DRLLM_FORMAT_F16) {
            expand_f16(block, head_dim * LANES, out);
            continue;
        }
        for (size_t start = 0; start < head_dim * LANES; start += DRLLM_GROUP) {
            const __m256 scale = value_scale(DRLLM_FORMAT_Q8_0, block, head_dim, start / head_dim, start % head_dim);
            for (size_t i = start; i < start + DRLLM_GROUP; i += LANES) {
                _mm256_storeu_ps(out + i, load_elements(DRLLM_FORMAT_Q8_0, block, i, scale));
            }
        }
    }
}

const struct drllm_attention_ops drllm_attention_avx2 = {
    .scores = scores,
    .softmax = softmax,
    .values = values,
    .expand_keys = expand_keys,
    .expand_values = expand_values,
};

#else
typedef int drllm_attention_avx2_unused;
#endif
