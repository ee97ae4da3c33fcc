/* The kernels of attention for AVX2 and F16C: the values of attention_ref.c, bit for bit. */
#if defined(__x86_64__)

#include "quant/attention.h"
#include "quant/lanes_avx2.h"

#include <immintrin.h>

enum { LANES = DRLLM_KV_BLOCK, MAX_VECTORS = 8 };

/* Six or more sums side by side, which hides the latency of an addition, and what is added to them in 16 registers. */
#define MAX_ROWS 6
#define TILE_WIDTH(n_rows) ((n_rows) >= 3 ? 2 : (n_rows) >= 2 ? 4 : 8)

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
    const size_t step = LANES * (format == DRLLM_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t));
    for (size_t d = 0; d < head_dim; d++) {
        __m256 keys[MAX_VECTORS];
        for (size_t b = 0; b < n_blocks; b++) {
            /* The few rows of a decoded token read keys from memory, in streams too short to be foreseen: two turns
             * ahead. The hint leaves the first cache's few misses to what is needed now. */
            if (n_rows < MAX_ROWS && d * step % 64 == 0) {
                const uintptr_t ahead = (uintptr_t)k + (b + 2 * n_blocks) * block_bytes + d * step;
                _mm_prefetch((const char *)ahead, _MM_HINT_T1);
            }
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

/* ---- Weights of a Q8_0 cache ---- */

/* A row of the weights is eight vectors, of which the last may be missing. */
INLINE void quantize_row(const float *s, size_t n, const float *scales, int8_t *q, float *scale, int32_t *sum) {
    enum { VECTORS = DRLLM_KV_TILE / LANES };
    __m256 weights[VECTORS];
    __m256 lanes = _mm256_setzero_ps();
    for (size_t i = 0; i < VECTORS; i++) {
        weights[i] = i * LANES < n ? _mm256_mul_ps(_mm256_loadu_ps(s + i * LANES), _mm256_loadu_ps(scales + i * LANES))
                                   : _mm256_setzero_ps();
        lanes = _mm256_max_ps(weights[i], lanes); /* max_ps(NaN, old) is old, as in the reference */
    }
    const float max = fold_max(lanes);
    const __m256 inverse = _mm256_set1_ps(max > 1e-30f ? 127.0f / max : 0.0f);
    const __m256i low = quantize32(weights, inverse);
    const __m256i high = quantize32(weights + 4, inverse);
    _mm256_storeu_si256((__m256i *)(void *)q, low);
    _mm256_storeu_si256((__m256i *)(void *)(q + 32), high);
    *scale = max > 1e-30f ? max / 127.0f : 0.0f;
    *sum = sum_lanes(_mm256_add_epi32(sum_bytes(low), sum_bytes(high)));
}

static void quantize(const float *s, size_t lds, size_t n_rows, size_t n, const float *scales, int8_t *q, float *scale,
                     int32_t *sum) {
    for (size_t r = 0; r < n_rows; r++, s += lds, q += DRLLM_KV_TILE) {
        if (n == DRLLM_KV_TILE) { /* nothing to ask */
            quantize_row(s, DRLLM_KV_TILE, scales, q, scale + r, sum + r);
        } else {
            quantize_row(s, n, scales, q, scale + r, sum + r);
        }
    }
}

static void accumulate(const float *added, size_t n_rows, size_t n, const float *factor, float *o, size_t ldo) {
    for (size_t r = 0; r < n_rows; r++, added += ldo, o += ldo) {
        const __m256 by = _mm256_set1_ps(factor[r]);
        for (size_t d = 0; d < n; d += LANES) {
            const __m256 output = _mm256_mul_ps(_mm256_loadu_ps(o + d), by);
            _mm256_storeu_ps(o + d, _mm256_add_ps(output, _mm256_loadu_ps(added + d)));
        }
    }
}

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
    .quantize = quantize,
    .accumulate = accumulate,
    .expand = expand,
};

#else
typedef int drllm_attention_avx2_unused;
#endif
