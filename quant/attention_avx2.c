/* The kernels of attention for AVX2 and F16C: the values of attention_ref.c, bit for bit. */
#if defined(__x86_64__)

#include "quant/attention.h"
#include "quant/lanes_avx2.h"

#include <immintrin.h>

enum { LANES = DRLLM_KV_BLOCK, MAX_VECTORS = 8 };

/* Eight or more sums side by side, which hides the latency of an addition, in 16 registers. */
#define MAX_ROWS 6
#define TILE_WIDTH(n_rows) ((n_rows) >= 4 ? 2 : (n_rows) >= 2 ? 4 : 8)

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

/* Elements i to i+7 of a block. */
INLINE __m256 load_elements(enum drllm_format format, const unsigned char *block, size_t i) {
    return format == DRLLM_FORMAT_F32 ? _mm256_loadu_ps((const float *)(const void *)block + i)
                                      : load_f16(block + i * sizeof(uint16_t));
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
    for (size_t d = 0; d < head_dim; d++) {
        __m256 keys[MAX_VECTORS];
        for (size_t b = 0; b < n_blocks; b++) {
            keys[b] = load_elements(format, k + b * block_bytes, d * LANES);
        }
        for (size_t r = 0; r < n_rows; r++) {
            const __m256 value = _mm256_set1_ps(q[r * ldq + d]);
            for (size_t b = 0; b < n_blocks; b++) {
                acc[r][b] = _mm256_add_ps(acc[r][b], _mm256_mul_ps(value, keys[b]));
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            _mm256_storeu_ps(s + r * lds + b * LANES, acc[r][b]);
        }
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
            for (size_t i = 0; i < n_vectors; i++) {
                values[i] = load_elements(format, v, lane * head_dim + d + i * LANES);
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

#include "quant/attention_tiles.inc"

/* ---- Expansion ---- */

static void expand(const void *blocks, size_t block_bytes, size_t n_blocks, size_t head_dim, float *out) {
    const unsigned char *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += block_bytes, out += head_dim * LANES) {
        for (size_t i = 0; i < head_dim * LANES; i += LANES) {
            _mm256_storeu_ps(out + i, load_f16(block + i * sizeof(uint16_t)));
        }
    }
}

const struct drllm_attention_ops drllm_attention_avx2 = {
    .scores = scores,
    .softmax = softmax,
    .values = values,
    .expand = expand,
};

#else
typedef int drllm_attention_avx2_unused;
#endif
