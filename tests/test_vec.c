/* The vector functions: every backend against the portable one, bit for bit, and the portable one against double. */
#include "tests/tests.h"

#include "platform/cpu.h"
#include "quant/half.h"
#include "quant/vec.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum { MAX_BACKENDS = 8 };

static const struct drllm_vec_ops *portable(void) {
    return drllm_vec_choose(0);
}

static const enum drllm_fence_side sides[] = {DRLLM_FENCE_BEHIND, DRLLM_FENCE_BEFORE};

/* 0 .. 40, and lengths of models. */
static const size_t lengths[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,  15,
                                 16, 17, 18, 19, 23, 24, 25, 29, 31, 32, 33, 39, 40, 63, 576, 1001};

enum contents {
    ORDINARY,
    EXTREME,    /* from the smallest subnormal to the largest, zeros of both signs */
    NOT_FINITE, /* with infinities and NaN */
    N_CONTENTS
};

static float random_value(uint64_t *random, enum contents contents) {
    static const float others[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
    const uint32_t n = drllm_random(random);
    if (contents == NOT_FINITE && n % 4 == 0) {
        return others[n / 4 % LENGTH(others)];
    }
    if (contents == EXTREME) {
        const uint32_t bits = drllm_random(random);
        return n % 8 == 0 ? copysignf(0.0f, (float)n - 1e9f)
                          : drllm_bits_to_f32((bits & 0x7f800000u) == 0x7f800000u ? bits ^ 0x40000000u : bits);
    }
    return drllm_random_float(random) * 4.0f;
}

static float *random_values(uint64_t *random, enum contents contents, size_t n) {
    float *values = calloc(n + 1, sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < n; i++) {
        values[i] = random_value(random, contents);
    }
    return values;
}

static uint16_t *random_halves(uint64_t *random, enum contents contents, size_t n) {
    uint16_t *halves = calloc(n + 1, sizeof *halves);
    assert_non_null(halves);
    for (size_t i = 0; i < n; i++) {
        halves[i] =
            contents == ORDINARY ? drllm_f32_to_f16(drllm_random_float(random) * 2.0f) : (uint16_t)drllm_random(random);
        if (contents == EXTREME && (halves[i] & 0x7c00) == 0x7c00) {
            halves[i] ^= 0x4000;
        }
    }
    return halves;
}

/* Fails with the place of the first difference. */
static void check_same(const char *function, const float *y, const float *expected, size_t n, size_t size) {
    const size_t i = drllm_first_difference(y, expected, n);
    if (i != n) {
        fail_msg("%s of %zu: element %zu is %a, expected %a", function, size, i, (double)y[i], (double)expected[i]);
    }
}

static float *copy_floats(struct drllm_fence *fence, const float *values, size_t n, enum drllm_fence_side side) {
    float *copy = drllm_fence_place(fence, n * sizeof *copy, side);
    if (n != 0) {
        memcpy(copy, values, n * sizeof *copy);
    }
    return copy;
}

static const struct drllm_vec_ops *supported(void **state) {
    const struct drllm_vec_ops *vec = *state;
    if ((vec->cpu_features & ~drllm_cpu_detect()) != 0) {
        drllm_skip("not on this processor");
    }
    return vec;
}

/* ---- Element by element ---- */

static void check_rms_norm(const struct drllm_vec_ops *vec, size_t n, enum contents contents, struct drllm_fence *x,
                           struct drllm_fence *weight, struct drllm_fence *y) {
    uint64_t random = n * 3 + contents;
    float *values = random_values(&random, contents, n);
    float *weights = random_values(&random, ORDINARY, n);
    float *expected = random_values(&random, ORDINARY, n);
    const float eps = contents == EXTREME ? 0.0f : 1e-5f;
    portable()->rms_norm(expected, values, weights, n, eps);
    for (size_t s = 0; s < LENGTH(sides); s++) {
        const float *at_weight = drllm_fence_copy(weight, weights, n * sizeof *weights, sides[s]);
        const float *at_x = drllm_fence_copy(x, values, n * sizeof *values, sides[s]);
        float *at_y = drllm_fence_place(y, n * sizeof *at_y, sides[s]);
        vec->rms_norm(at_y, at_x, at_weight, n, eps);
        check_same("rms_norm", at_y, expected, n, n);
        at_y = copy_floats(y, values, n, sides[s]);
        vec->rms_norm(at_y, at_y, at_weight, n, eps);
        check_same("rms_norm in place", at_y, expected, n, n);
        drllm_fence_check(y);
    }
    free(values);
    free(weights);
    free(expected);
}

static void test_rms_norm(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence fences[3] = {DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT};
    for (size_t i = 1; i < LENGTH(lengths); i++) {
        for (enum contents contents = ORDINARY; contents < N_CONTENTS; contents++) {
            check_rms_norm(vec, lengths[i], contents, &fences[0], &fences[1], &fences[2]);
        }
    }
    for (size_t i = 0; i < LENGTH(fences); i++) {
        drllm_fence_free(&fences[i]);
    }
}

/* The functions that change their first argument by the second, both of n floats. */
static void add_n(const struct drllm_vec_ops *vec, float *y, const float *x, size_t n) {
    vec->add(y, x, n);
}
static void silu_mul_n(const struct drllm_vec_ops *vec, float *y, const float *x, size_t n) {
    vec->silu_mul(y, x, n);
}
static void rope_n(const struct drllm_vec_ops *vec, float *y, const float *x, size_t n) {
    vec->rope(y, x, n / 2);
}

static void check_changes(const char *name, const struct drllm_vec_ops *vec,
                          void (*change)(const struct drllm_vec_ops *, float *, const float *, size_t), size_t step) {
    struct drllm_fence at_x = DRLLM_FENCE_INIT;
    struct drllm_fence at_y = DRLLM_FENCE_INIT;
    for (size_t i = 0; i < LENGTH(lengths) * N_CONTENTS; i++) {
        const size_t n = lengths[i / N_CONTENTS] * step;
        const enum contents contents = (enum contents)(i % N_CONTENTS);
        uint64_t random = i;
        float *start = random_values(&random, contents, n);
        float *x = random_values(&random, contents, n);
        float *expected = random_values(&random, contents, n);
        memcpy(expected, start, n * sizeof *start);
        change(portable(), expected, x, n);
        for (size_t s = 0; s < LENGTH(sides); s++) {
            float *y = copy_floats(&at_y, start, n, sides[s]);
            change(vec, y, drllm_fence_copy(&at_x, x, n * sizeof *x, sides[s]), n);
            check_same(name, y, expected, n, n);
            drllm_fence_check(&at_y);
        }
        free(start);
        free(x);
        free(expected);
    }
    drllm_fence_free(&at_x);
    drllm_fence_free(&at_y);
}

static void test_add(void **state) {
    check_changes("add", supported(state), add_n, 1);
}

static void test_rope(void **state) {
    check_changes("rope", supported(state), rope_n, 2);
}

static void test_silu_mul(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    check_changes("silu_mul", vec, silu_mul_n, 1);
    /* Over the whole range of the exponential, and past its ends. */
    enum { N = 1024 };
    static float y[N], expected[N], up[N];
    const float step = drllm_test_is_fast() ? 0x1.01p-9f : 0x1.01p-12f;
    const int n_parts = (int)(220.0f / (step * N)) + 1;
    for (int part = 0; part < n_parts; part++) {
        for (int i = 0; i < N; i++) {
            y[i] = expected[i] = -110.0f + step * (float)(part * N + i);
            up[i] = 1.0f;
        }
        vec->silu_mul(y, up, N);
        portable()->silu_mul(expected, up, N);
        check_same("silu_mul", y, expected, N, N);
    }
}

/* Lengths around a vector and around a run; then against double. */
static void test_sum_exp(void **state) {
    static const size_t counts[] = {1, 7, 8, 9, 31, 1023, 1024, 1025, 2048, 2053, 5000};
    const struct drllm_vec_ops *vec = supported(state);
    uint64_t random = 17;
    for (size_t i = 0; i < LENGTH(counts); i++) {
        const size_t n = counts[i];
        float *x = random_values(&random, ORDINARY, n);
        x[n / 2] -= 200.0f;
        float max, expected_max;
        double exact = 0.0;
        const double sum = vec->sum_exp(x, n, &max);
        assert_true(sum == portable()->sum_exp(x, n, &expected_max));
        assert_true(max == expected_max);
        for (size_t j = 0; j < n; j++) {
            assert_true(x[j] <= max);
            exact += exp((double)x[j] - (double)max);
        }
        assert_true(fabs(sum - exact) <= exact * (1024.0 / 8.0 + 8.0) * 0x1p-24);
        free(x);
    }
}

static void test_to_f16(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence at_x = DRLLM_FENCE_INIT;
    struct drllm_fence at_y = DRLLM_FENCE_INIT;
    for (size_t i = 0; i < LENGTH(lengths) * LENGTH(sides); i++) {
        const size_t n = lengths[i / LENGTH(sides)];
        uint64_t random = i;
        float *x = random_values(&random, n % 2 == 0 ? ORDINARY : NOT_FINITE, n);
        uint16_t *y = drllm_fence_place(&at_y, n * sizeof *y, sides[i % LENGTH(sides)]);
        vec->to_f16(y, drllm_fence_copy(&at_x, x, n * sizeof *x, sides[i % LENGTH(sides)]), n);
        for (size_t j = 0; j < n; j++) {
            assert_int_equal(y[j], drllm_f32_to_f16(x[j]));
        }
        drllm_fence_check(&at_y);
        free(x);
    }
    drllm_fence_free(&at_x);
    drllm_fence_free(&at_y);
    /* Every half, the middles between neighbours, and what lies just beside them. */
    for (uint32_t half = 0; half <= 0xffff; half++) {
        const uint32_t bits = drllm_f32_to_bits(drllm_f16_to_f32((uint16_t)half));
        const uint32_t middle =
            (half & 0x7fff) < 0x400
                ? drllm_f32_to_bits(copysignf(((float)(half & 0x3ff) + 0.5f) * 0x1p-24f, drllm_bits_to_f32(bits)))
                : bits + 0x1000;
        float x[8] = {drllm_bits_to_f32(bits),     drllm_bits_to_f32(bits + 1),   drllm_bits_to_f32(bits - 1),
                      drllm_bits_to_f32(middle),   drllm_bits_to_f32(middle + 1), drllm_bits_to_f32(middle - 1),
                      drllm_bits_to_f32(bits ^ 3), drllm_bits_to_f32(half << 16)};
        uint16_t y[8];
        vec->to_f16(y, x, 8);
        for (size_t j = 0; j < 8; j++) {
            if (y[j] != drllm_f32_to_f16(x[j])) {
                fail_msg("to_f16 of %a: 0x%04x, expected 0x%04x", (double)x[j], y[j], drllm_f32_to_f16(x[j]));
            }
        }
    }
}

/* ---- Quantisation ---- */

/* Values that lie exactly between two integers, or on the edges of the definition. */
static void fill_group(float *x, size_t group, uint64_t *random, size_t kind) {
    static const float largest[] = {1.0f, 127.0f, 1e-30f, 1.0001e-30f, 1e-38f, 0x1p-149f, FLT_MAX, 0.0f, -0.0f};
    const float max = kind < LENGTH(largest) ? largest[kind] : 2.5f;
    for (size_t i = 0; i < group; i++) {
        x[i] = kind == 1 ? (float)(drllm_random(random) % 253) - 126.5f : drllm_random_float(random) * max;
    }
    x[drllm_random(random) % group] = drllm_random(random) % 2 == 0 ? max : -max;
}

struct quantised {
    struct drllm_fence q, scale, sum, ssum;
};

static void check_quantised(const struct quantised *got, const struct quantised *expected, size_t group,
                            const bool *unspecified) {
    const size_t n_groups = got->scale.size / sizeof(float);
    for (size_t g = 0; g < n_groups; g++) {
        if (unspecified != NULL && unspecified[g]) {
            continue;
        }
        assert_memory_equal(got->q.data + g * group, expected->q.data + g * group, group);
        assert_memory_equal(got->scale.data + g * 4, expected->scale.data + g * 4, 4);
        assert_memory_equal(got->sum.data + g * 4, expected->sum.data + g * 4, 4);
        assert_memory_equal(got->ssum.data + g * 4, expected->ssum.data + g * 4, 4);
    }
}

static void quantise(const struct drllm_vec_ops *vec, const float *x, size_t n, size_t group,
                     enum drllm_fence_side side, struct quantised *out) {
    int8_t *q = drllm_fence_place(&out->q, n, side);
    float *scale = drllm_fence_place(&out->scale, n / group * sizeof *scale, side);
    int32_t *sum = drllm_fence_place(&out->sum, n / group * sizeof *sum, side);
    float *ssum = drllm_fence_place(&out->ssum, n / group * sizeof *ssum, side);
    vec->quantize_q8(x, n, group, q, scale, sum, ssum);
    drllm_fence_check(&out->q);
    drllm_fence_check(&out->scale);
    drllm_fence_check(&out->sum);
    drllm_fence_check(&out->ssum);
}

static void free_quantised(struct quantised *q) {
    drllm_fence_free(&q->q);
    drllm_fence_free(&q->scale);
    drllm_fence_free(&q->sum);
    drllm_fence_free(&q->ssum);
}

/* The definition: within half a step, the sums of what was written. */
static void check_definition(const float *x, size_t n, size_t group, const struct quantised *got) {
    for (size_t g = 0; g < n / group; g++) {
        float scale;
        float ssum;
        int32_t sum;
        memcpy(&scale, got->scale.data + g * 4, 4);
        memcpy(&sum, got->sum.data + g * 4, 4);
        memcpy(&ssum, got->ssum.data + g * 4, 4);
        const int8_t *values = (const int8_t *)got->q.data;
        float max = 0.0f;
        int32_t total = 0;
        for (size_t i = g * group; i < (g + 1) * group; i++) {
            max = fmaxf(max, fabsf(x[i]));
            total += values[i];
        }
        const bool is_zero = max <= 1e-30f;
        assert_true(scale == (is_zero ? 0.0f : max / 127.0f));
        assert_int_equal(sum, total);
        assert_true(ssum == scale * (float)sum);
        for (size_t i = g * group; i < (g + 1) * group; i++) {
            const double q = values[i];
            assert_true(fabs(q) <= 127.0);
            if (is_zero) {
                assert_true(q == 0.0);
            } else {
                const double exact = (double)x[i] * (127.0 / (double)max);
                assert_true(fabs(exact - q) <= 0.5 + 0x1p-15);
            }
        }
    }
}

static void test_quantize(void **state) {
    static const size_t groups[] = {32, 64, 96, 576, 1536};
    static const size_t counts[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 48};
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence at_x = DRLLM_FENCE_INIT;
    struct quantised got = {.q = DRLLM_FENCE_INIT};
    struct quantised expected = {.q = DRLLM_FENCE_INIT};
    for (size_t i = 0; i < LENGTH(groups) * LENGTH(counts) * LENGTH(sides); i++) {
        const size_t group = groups[i % LENGTH(groups)];
        const size_t n = group * counts[i / LENGTH(groups) % LENGTH(counts)];
        const enum drllm_fence_side side = sides[i / LENGTH(groups) / LENGTH(counts)];
        uint64_t random = i;
        float *x = random_values(&random, ORDINARY, n);
        for (size_t g = 0; g < n / group; g++) {
            fill_group(x + g * group, group, &random, (g + i) % 12);
        }
        quantise(portable(), x, n, group, side, &expected);
        quantise(vec, drllm_fence_copy(&at_x, x, n * sizeof *x, side), n, group, side, &got);
        check_quantised(&got, &expected, group, NULL);
        check_definition(x, n, group, &got);
        free(x);
    }
    drllm_fence_free(&at_x);
    free_quantised(&got);
    free_quantised(&expected);
}

/* NaN and infinities spoil their own group alone. */
static void test_quantize_not_finite(void **state) {
    enum { GROUP = 32, N_GROUPS = 19 };
    const struct drllm_vec_ops *vec = supported(state);
    struct quantised got = {.q = DRLLM_FENCE_INIT};
    struct quantised expected = {.q = DRLLM_FENCE_INIT};
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t random = i;
        float *x = random_values(&random, ORDINARY, (size_t)GROUP * N_GROUPS);
        bool unspecified[N_GROUPS];
        for (size_t g = 0; g < N_GROUPS; g++) {
            unspecified[g] = drllm_random(&random) % 3 == 0;
            for (size_t k = 0; unspecified[g] && k < 3; k++) {
                static const float bad[] = {NAN, INFINITY, -INFINITY};
                x[g * GROUP + drllm_random(&random) % GROUP] = bad[drllm_random(&random) % LENGTH(bad)];
            }
        }
        quantise(portable(), x, (size_t)GROUP * N_GROUPS, GROUP, DRLLM_FENCE_BEHIND, &expected);
        quantise(vec, x, (size_t)GROUP * N_GROUPS, GROUP, DRLLM_FENCE_BEHIND, &got);
        check_quantised(&got, &expected, GROUP, unspecified);
        free(x);
    }
    free_quantised(&got);
    free_quantised(&expected);
}

/* ---- Attention ---- */

struct attention_case {
    size_t n_rows, n_keys, head_dim;
    size_t extra; /* between rows, and groups between blocks */
};

static const struct attention_case attention_cases[] = {
    {1, 8, 8, 0},   {1, 72, 64, 8},  {1, 16, 16, 0}, {1, 24, 32, 1},  {1, 64, 64, 0},  {1, 200, 128, 16},
    {2, 8, 64, 0},  {2, 32, 24, 3},  {2, 40, 64, 0}, {3, 8, 64, 1},   {3, 24, 64, 8},  {3, 56, 40, 0},
    {4, 16, 64, 0}, {4, 24, 96, 8},  {5, 8, 8, 0},   {5, 24, 160, 5}, {6, 16, 64, 8},  {6, 40, 136, 0},
    {7, 24, 64, 1}, {8, 32, 96, 0},  {9, 8, 8, 8},   {9, 24, 64, 0},  {9, 136, 64, 7}, {12, 24, 64, 0},
    {13, 8, 16, 1}, {17, 16, 32, 8},
};

static const enum drllm_format kv_formats[] = {DRLLM_FORMAT_F32, DRLLM_FORMAT_F16};

/* Rows of `width` floats, `stride` apart, without what would follow the last. */
static size_t spread(size_t n_rows, size_t stride, size_t width) {
    return (n_rows - 1) * stride + width;
}

static void check_rows(const char *function, const float *got, const float *expected, size_t n_rows, size_t stride,
                       size_t width) {
    for (size_t r = 0; r < n_rows; r++) {
        check_same(function, got + r * stride, expected + r * stride, width, r);
        for (size_t i = width; i < stride && r + 1 < n_rows; i++) {
            assert_int_equal(drllm_f32_to_bits(got[r * stride + i]), UINT32_MAX); /* between the rows */
        }
    }
}

/* Blocks of keys or values with a gap between them. */
struct blocks {
    enum drllm_format format;
    size_t stride, n_bytes; /* bytes */
    unsigned char *data;
};

static struct blocks random_blocks(uint64_t *random, enum drllm_format format, enum contents contents,
                                   const struct attention_case *size, size_t n_blocks) {
    const size_t bytes = drllm_kv_key_bytes(format, size->head_dim);
    struct blocks blocks = {.format = format, .stride = bytes + size->extra * 16};
    blocks.n_bytes = spread(n_blocks, blocks.stride, bytes);
    blocks.data = calloc(n_blocks, blocks.stride);
    assert_non_null(blocks.data);
    for (size_t b = 0; b < n_blocks; b++) {
        unsigned char *block = blocks.data + b * blocks.stride;
        const size_t n = size->head_dim * DRLLM_KV_BLOCK;
        if (format == DRLLM_FORMAT_F32) {
            float *values = random_values(random, contents, n);
            memcpy(block, values, bytes);
            free(values);
        } else {
            uint16_t *halves = random_halves(random, contents, n);
            memcpy(block, halves, bytes);
            free(halves);
        }
    }
    return blocks;
}

enum { N_ATTENTION_FENCES = 6 };

static void check_scores(const struct drllm_vec_ops *vec, enum drllm_format format, const struct attention_case *size,
                         enum contents contents, struct drllm_fence fences[N_ATTENTION_FENCES]) {
    const size_t dim = size->head_dim;
    const size_t n_blocks = size->n_keys / 8;
    const size_t ldq = dim + size->extra;
    const size_t lds = size->n_keys + size->extra;
    const size_t n_q = spread(size->n_rows, ldq, dim);
    const size_t n_s = spread(size->n_rows, lds, size->n_keys);
    const size_t n_k = n_blocks * 8 * dim;
    uint64_t random = size->n_rows + size->n_keys + contents;
    float *q = random_values(&random, contents, n_q);
    const struct blocks k = random_blocks(&random, format, contents, size, n_blocks);
    float *expected = drllm_fence_place(&fences[3], n_s * sizeof *expected, DRLLM_FENCE_BEHIND);
    portable()->attention->scores(format, q, ldq, size->n_rows, k.data, k.stride, n_blocks, dim, expected, lds);
    for (size_t i = 0; i < LENGTH(sides); i++) {
        const float *at_q = drllm_fence_copy(&fences[0], q, n_q * sizeof *q, sides[i]);
        const void *at_k = drllm_fence_copy(&fences[1], k.data, k.n_bytes, sides[i]);
        float *s = drllm_fence_place(&fences[2], n_s * sizeof *s, sides[i]);
        vec->attention->scores(format, at_q, ldq, size->n_rows, at_k, k.stride, n_blocks, dim, s, lds);
        check_rows("scores", s, expected, size->n_rows, lds, size->n_keys);
        drllm_fence_check(&fences[2]);
        if (format == DRLLM_FORMAT_F32) {
            continue;
        }
        /* Expanded keys give the same scores. */
        float *expanded = drllm_fence_place(&fences[4], n_k * sizeof *expanded, sides[i]);
        vec->attention->expand(at_k, k.stride, n_blocks, dim, expanded);
        drllm_fence_check(&fences[4]);
        s = drllm_fence_place(&fences[2], n_s * sizeof *s, sides[i]);
        vec->attention->scores(DRLLM_FORMAT_F32, at_q, ldq, size->n_rows, expanded, dim * 8 * sizeof(float), n_blocks,
                               dim, s, lds);
        check_rows("scores of expanded keys", s, expected, size->n_rows, lds, size->n_keys);
    }
    free(q);
    free(k.data);
}

static void check_sums(const struct drllm_vec_ops *vec, enum drllm_format format, const struct attention_case *size,
                       size_t n_keys, enum contents contents, struct drllm_fence fences[N_ATTENTION_FENCES]) {
    const size_t dim = size->head_dim;
    const size_t n_blocks = (n_keys + 7) / 8;
    const size_t ldp = n_keys + size->extra;
    const size_t ldo = dim + size->extra;
    const size_t n_p = spread(size->n_rows, ldp, n_keys);
    const size_t n_o = spread(size->n_rows, ldo, dim);
    const size_t n_v = n_blocks * 8 * dim;
    uint64_t random = size->n_rows + n_keys + contents;
    float *p = random_values(&random, contents, n_p);
    const struct blocks v = random_blocks(&random, format, contents, size, n_blocks);
    float *factor = random_values(&random, ORDINARY, size->n_rows);
    float *start = random_values(&random, contents, n_o);
    for (size_t r = 0; r + 1 < size->n_rows; r++) {
        memset(start + r * ldo + dim, 0xFF, size->extra * sizeof *start);
    }
    float *expected = drllm_fence_place(&fences[4], n_o * sizeof *expected, DRLLM_FENCE_BEHIND);
    memcpy(expected, start, n_o * sizeof *start);
    portable()->attention->values(format, p, ldp, size->n_rows, v.data, v.stride, n_keys, dim, factor, expected, ldo);
    for (size_t i = 0; i < LENGTH(sides); i++) {
        const float *at_p = drllm_fence_copy(&fences[0], p, n_p * sizeof *p, sides[i]);
        const void *at_v = drllm_fence_copy(&fences[1], v.data, v.n_bytes, sides[i]);
        const float *at_factor = drllm_fence_copy(&fences[2], factor, size->n_rows * sizeof *factor, sides[i]);
        float *o = copy_floats(&fences[3], start, n_o, sides[i]);
        vec->attention->values(format, at_p, ldp, size->n_rows, at_v, v.stride, n_keys, dim, at_factor, o, ldo);
        check_rows("values", o, expected, size->n_rows, ldo, dim);
        drllm_fence_check(&fences[3]);
        if (format == DRLLM_FORMAT_F32) {
            continue;
        }
        float *expanded = drllm_fence_place(&fences[5], n_v * sizeof *expanded, sides[i]);
        vec->attention->expand(at_v, v.stride, n_blocks, dim, expanded);
        drllm_fence_check(&fences[5]);
        o = copy_floats(&fences[3], start, n_o, sides[i]);
        vec->attention->values(DRLLM_FORMAT_F32, at_p, ldp, size->n_rows, expanded, dim * 8 * sizeof(float), n_keys,
                               dim, at_factor, o, ldo);
        check_rows("sums of expanded values", o, expected, size->n_rows, ldo, dim);
    }
    free(p);
    free(v.data);
    free(factor);
    free(start);
}

static void free_fences(struct drllm_fence *fences, size_t n) {
    for (size_t i = 0; i < n; i++) {
        drllm_fence_free(&fences[i]);
    }
}

static void test_attention(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence fences[N_ATTENTION_FENCES] = {DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT,
                                                     DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT};
    for (size_t i = 0; i < LENGTH(attention_cases) * LENGTH(kv_formats); i++) {
        const struct attention_case *size = &attention_cases[i / LENGTH(kv_formats)];
        const enum drllm_format format = kv_formats[i % LENGTH(kv_formats)];
        for (enum contents contents = ORDINARY; contents < N_CONTENTS; contents++) {
            check_scores(vec, format, size, contents, fences);
            check_sums(vec, format, size, size->n_keys, contents, fences);
            check_sums(vec, format, size, size->n_keys - 5, contents, fences);
        }
    }
    free_fences(fences, LENGTH(fences));
}

/* Few and many rows by few and many keys: every tile that a backend may have. */
static void test_attention_shapes(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence fences[N_ATTENTION_FENCES] = {DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT,
                                                     DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT};
    for (size_t i = 0; i < LENGTH(kv_formats); i++) {
        for (size_t n_rows = 1; n_rows <= 9; n_rows++) {
            for (size_t n_blocks = 1; n_blocks <= 10; n_blocks++) {
                const struct attention_case size = {n_rows, n_blocks * 8, n_blocks * 8, n_rows % 3};
                check_scores(vec, kv_formats[i], &size, ORDINARY, fences);
                check_sums(vec, kv_formats[i], &size, n_rows, ORDINARY, fences);
            }
        }
    }
    free_fences(fences, LENGTH(fences));
}

/* n_rows rows through two tiles, of n and of 8 scores, against the portable function. */
static void check_softmax(const struct drllm_vec_ops *vec, size_t n_rows, size_t n, float width, uint64_t seed,
                          enum drllm_fence_side side, struct drllm_fence *at_s) {
    enum { MAX_ROWS = 20 };
    const size_t lds = n + seed % 3;
    uint64_t random = seed;
    float max[2][MAX_ROWS], sum[2][MAX_ROWS] = {{0}}, factor[2][MAX_ROWS];
    double total[MAX_ROWS] = {0};
    for (size_t r = 0; r < n_rows; r++) {
        max[0][r] = max[1][r] = -INFINITY;
    }
    for (size_t tile = 0; tile < 2; tile++, n = 8) {
        const size_t n_s = spread(n_rows, lds, n);
        float *start = random_values(&random, ORDINARY, n_s);
        for (size_t j = 0; j < n_s; j++) {
            start[j] = seed % 4 == 0 && drllm_random(&random) % 3 == 0 ? -INFINITY : start[j] * width;
        }
        for (size_t r = 0; r < n_rows && tile == 0; r++) {
            start[r * lds + drllm_random(&random) % n] = -width / 3.0f; /* one is finite */
        }
        for (size_t j = 0; j < n && tile == 1; j++) {
            start[j] = -INFINITY; /* a row without keys in the second tile */
        }
        float *expected = random_values(&random, ORDINARY, n_s);
        memcpy(expected, start, n_s * sizeof *start);
        const float before = sum[0][0];
        portable()->attention->softmax(expected, lds, n_rows, n, max[0], sum[0], factor[0]);
        float *s = copy_floats(at_s, start, n_s, side);
        vec->attention->softmax(s, lds, n_rows, n, max[1], sum[1], factor[1]);
        drllm_fence_check(at_s);
        check_same("softmax", s, expected, n_s, n);
        check_same("sum", sum[1], sum[0], n_rows, n);
        check_same("factor", factor[1], factor[0], n_rows, n);
        assert_true(tile == 0 ? factor[0][0] == 0.0f : factor[0][0] == 1.0f && sum[0][0] == before);
        for (size_t r = 0; r < n_rows; r++) {
            assert_true(max[1][r] == max[0][r]); /* the sign of zero is open */
            total[r] *= (double)factor[1][r];
            for (size_t j = 0; j < n; j++) {
                const float weight = s[r * lds + j];
                total[r] += (double)weight;
                assert_true(weight >= 0.0f && weight <= 1.0f);
                assert_true(start[r * lds + j] != -INFINITY || drllm_f32_to_bits(weight) == 0);
            }
            assert_true(fabs(total[r] / (double)sum[1][r] - 1.0) <= (double)(lds + 16) * 0x1p-24);
        }
        free(start);
        free(expected);
    }
}

static void test_softmax(void **state) {
    static const float spreads[] = {0.0f, 1.0f, 10.0f, 90.0f, 1000.0f, 1e30f};
    static const size_t rows[] = {1, 3, 8, 19};
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence at_s = DRLLM_FENCE_INIT;
    for (size_t i = 0; i < 40 * LENGTH(spreads) * LENGTH(sides); i++) {
        check_softmax(vec, rows[i % LENGTH(rows)], 8 + i % 40 * 8, spreads[i / 40 % LENGTH(spreads)], i,
                      sides[i / 40 / LENGTH(spreads)], &at_s);
    }
    drllm_fence_free(&at_s);
}

/* ---- Weights of a Q8_0 cache ---- */

enum { N_QUANTISE_FENCES = 5, MOST_ROWS = 20 };

/* The portable function against what it shall be: within half a step, with the sum of what was rounded. */
static void check_row(const float *s, size_t lds, size_t n, const float *scales, const int8_t *q, float scale,
                      int32_t sum, size_t r) {
    int32_t total = 0;
    for (size_t j = 0; j < DRLLM_KV_TILE; j++) {
        const double weight = j < n ? (double)s[r * lds + j] * (double)scales[j] : 0.0;
        assert_true(fabs(q[j] * (double)scale - weight) <= (double)scale * 0.50002 + 1e-30);
        total += q[j];
    }
    assert_int_equal(sum, total);
}

static void check_quantize(const struct drllm_vec_ops *vec, size_t n_rows, size_t n, enum contents contents,
                           struct drllm_fence *fences) {
    const size_t lds = DRLLM_KV_TILE + n_rows % 3;
    const size_t n_s = spread(n_rows, lds, n);
    uint64_t random = n_rows * 100 + n;
    float *s = random_values(&random, ORDINARY, n_s);
    float *scales = random_values(&random, contents, n);
    for (size_t i = 0; i < n_s; i++) {
        s[i] = i % 7 == 3 || i / lds == 1 ? 0.0f : fminf(fabsf(s[i]), 1.0f); /* the second row has no weight at all */
    }
    for (size_t i = 0; i < n; i++) {
        scales[i] = fabsf(scales[i]);
    }
    int8_t expected[MOST_ROWS * DRLLM_KV_TILE];
    float scale[MOST_ROWS];
    int32_t sum[MOST_ROWS];
    portable()->attention->quantize(s, lds, n_rows, n, scales, expected, scale, sum);
    for (size_t r = 0; r < n_rows && contents != NOT_FINITE; r++) { /* which has no defined result */
        check_row(s, lds, n, scales, expected + r * DRLLM_KV_TILE, scale[r], sum[r], r);
    }
    for (size_t side = 0; side < LENGTH(sides); side++) {
        const float *at_s = copy_floats(&fences[0], s, n_s, sides[side]);
        const float *at_scales = copy_floats(&fences[1], scales, n, sides[side]);
        int8_t *q = drllm_fence_place(&fences[2], n_rows * DRLLM_KV_TILE, sides[side]);
        float *at_scale = drllm_fence_place(&fences[3], n_rows * sizeof *at_scale, sides[side]);
        int32_t *at_sum = drllm_fence_place(&fences[4], n_rows * sizeof *at_sum, sides[side]);
        vec->attention->quantize(at_s, lds, n_rows, n, at_scales, q, at_scale, at_sum);
        if (contents != NOT_FINITE) {
            assert_memory_equal(q, expected, n_rows * DRLLM_KV_TILE);
            check_same("quantize", at_scale, scale, n_rows, n);
            assert_memory_equal(at_sum, sum, n_rows * sizeof *sum);
        }
        for (size_t i = 0; i < N_QUANTISE_FENCES; i++) {
            drllm_fence_check(&fences[i]);
        }
    }
    free(s);
    free(scales);
}

static void check_accumulate(const struct drllm_vec_ops *vec, size_t n_rows, size_t n, enum contents contents,
                             struct drllm_fence *fences) {
    const size_t ldo = n + n_rows % 3;
    const size_t n_o = spread(n_rows, ldo, n);
    uint64_t random = n_rows * 100 + n;
    float *added = random_values(&random, contents, n_o);
    float *start = random_values(&random, contents, n_o);
    float *factor = random_values(&random, ORDINARY, n_rows);
    float *expected = random_values(&random, ORDINARY, n_o);
    memcpy(expected, start, n_o * sizeof *start);
    portable()->attention->accumulate(added, n_rows, n, factor, expected, ldo);
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t d = 0; d < n; d++) {
            const float value = start[r * ldo + d] * factor[r] + added[r * ldo + d];
            check_same("portable accumulate", &expected[r * ldo + d], &value, 1, n);
        }
    }
    for (size_t side = 0; side < LENGTH(sides); side++) {
        const float *at_added = copy_floats(&fences[0], added, n_o, sides[side]);
        const float *at_factor = copy_floats(&fences[1], factor, n_rows, sides[side]);
        float *o = copy_floats(&fences[2], start, n_o, sides[side]);
        vec->attention->accumulate(at_added, n_rows, n, at_factor, o, ldo);
        check_same("accumulate", o, expected, n_o, n);
        drllm_fence_check(&fences[2]);
    }
    free(added);
    free(start);
    free(factor);
    free(expected);
}

static void test_quantised_attention(void **state) {
    const struct drllm_vec_ops *vec = supported(state);
    struct drllm_fence fences[N_QUANTISE_FENCES] = {DRLLM_FENCE_INIT, DRLLM_FENCE_INIT, DRLLM_FENCE_INIT,
                                                    DRLLM_FENCE_INIT, DRLLM_FENCE_INIT};
    for (size_t n_rows = 1; n_rows <= MOST_ROWS; n_rows += n_rows < 9 ? 1 : 11) {
        for (size_t n = 8; n <= DRLLM_KV_TILE; n += 8) {
            for (enum contents contents = ORDINARY; contents < N_CONTENTS; contents++) {
                check_accumulate(vec, n_rows, n, contents, fences);
                check_quantize(vec, n_rows, n, contents, fences);
            }
        }
    }
    free_fences(fences, LENGTH(fences));
}

/* Every lane's weight is drllm_exp2f, and so is every row's factor. */
static void test_exp2_lanes(void **state) {
    enum { N = 1024 };
    const struct drllm_vec_ops *vec = supported(state);
    static float s[N], expected[N];
    static const float edges[] = {0.0f,    -0.0f,   -126.5f,   -126.49999f, -126.50001f,
                                  -126.0f, -127.0f, -INFINITY, -0x1p-149f,  -FLT_MAX};
    const float step = drllm_test_is_fast() ? 0x1.01p-9f : 0x1.01p-12f;
    const int n_parts = (int)(140.0f / (step * N)) + 1;
    for (int part = 0; part < n_parts; part++) {
        for (size_t i = 0; i < N; i++) {
            const float x = -140.0f + step * (float)((size_t)part * N + i);
            const size_t edge = i - (N - LENGTH(edges)); /* in the last places */
            s[i] = edge < LENGTH(edges) ? edges[edge] : fminf(x, 0.0f);
            expected[i] = drllm_exp2f(s[i]);
        }
        float max[9], sum[9] = {0}, factor[9];
        float zeros[9 * 8] = {0};
        for (size_t r = 0; r < 9; r++) {
            max[r] = s[r * 8 + (size_t)part % 8];
        }
        vec->attention->softmax(zeros, 8, 9, 8, max, sum, factor);
        for (size_t r = 0; r < 9; r++) {
            check_same("factor", &factor[r], &expected[r * 8 + (size_t)part % 8], 1, r);
        }
        float zero = 0.0f, sum_of_all = 0.0f;
        vec->attention->softmax(s, N, 1, N, &zero, &sum_of_all, factor);
        check_same("softmax", s, expected, N, N);
    }
}

/* ---- The portable functions against double ---- */

static void check_exp(float x) {
    const double exact = exp((double)x);
    const float y = drllm_expf(x);
    int exponent;
    (void)frexp(exact, &exponent); /* exact = m * 2^exponent, m in [0.5, 1): a unit is 2^(exponent - 24) */
    const double error = fabs((double)y - exact) / ldexp(1.0, exponent - 24);
    if (!(error <= 2.0)) {
        fail_msg("exp(%a) is %a, off by %g units", (double)x, (double)y, error);
    }
}

static void test_expf(void **state) {
    (void)state;
    const uint32_t step = drllm_test_is_fast() ? 9973 : 997;
    for (uint32_t bits = 0; drllm_bits_to_f32(bits) <= 88.3f; bits += step) {
        check_exp(drllm_bits_to_f32(bits));
    }
    for (uint32_t bits = 0x80000000u; drllm_bits_to_f32(bits) > -87.3f; bits += step) {
        check_exp(drllm_bits_to_f32(bits));
    }
    assert_true(drllm_expf(0.0f) == 1.0f && drllm_expf(-0.0f) == 1.0f);
    static const float below[] = {-87.3f, -87.4f, -88.0f, -1e4f, -FLT_MAX, -INFINITY};
    for (size_t i = 0; i < LENGTH(below); i++) {
        assert_int_equal(drllm_f32_to_bits(drllm_expf(below[i])), 0);
    }
    static const float above[] = {88.3f, 88.4f, 89.0f, 1e4f, FLT_MAX, INFINITY};
    const float most = drllm_expf(88.3f);
    assert_true(isfinite(most));
    for (size_t i = 0; i < LENGTH(above); i++) {
        assert_true(drllm_expf(above[i]) == most);
    }
}

static void test_exp2f(void **state) {
    (void)state;
    const uint32_t step = drllm_test_is_fast() ? 9973 : 997;
    for (uint32_t bits = 0x80000000u; drllm_bits_to_f32(bits) > -125.4f; bits += step) {
        const float x = drllm_bits_to_f32(bits);
        const double exact = exp2((double)x);
        int exponent;
        (void)frexp(exact, &exponent);
        const double error = fabs((double)drllm_exp2f(x) - exact) / ldexp(1.0, exponent - 24);
        if (!(error <= 2.0)) {
            fail_msg("exp2(%a) is off by %g units", (double)x, error);
        }
    }
    assert_true(drllm_exp2f(0.0f) == 1.0f && drllm_exp2f(-0.0f) == 1.0f && drllm_exp2f(-126.0f) == 0x1p-126f);
    static const float below[] = {-126.6f, -127.0f, -128.0f, -1e4f, -FLT_MAX, -INFINITY, NAN};
    for (size_t i = 0; i < LENGTH(below); i++) {
        assert_int_equal(drllm_f32_to_bits(drllm_exp2f(below[i])), 0);
    }
}

static void assert_close(const char *function, double value, double exact, double bound) {
    if (!(fabs(value - exact) <= bound)) {
        fail_msg("%s: %.9g, expected %.9g to within %g", function, value, exact, bound);
    }
}

static void test_portable_rows(void **state) {
    (void)state;
    enum { N = 577 };
    uint64_t random = 5;
    float *x = random_values(&random, ORDINARY, N);
    float *weight = random_values(&random, ORDINARY, N);
    float y[N];
    const float eps = 1e-5f;
    double square = 0.0;
    for (size_t i = 0; i < N; i++) {
        square += (double)x[i] * (double)x[i];
    }
    portable()->rms_norm(y, x, weight, N, eps);
    for (size_t i = 0; i < N; i++) {
        const double exact = (double)x[i] / sqrt(square / N + (double)eps) * (double)weight[i];
        assert_close("rms_norm", y[i], exact, fabs(exact) * (N / 8.0 + 8.0) * 0x1p-24);
    }
    memcpy(y, x, sizeof y);
    portable()->add(y, weight, N);
    for (size_t i = 0; i < N; i++) {
        assert_true(y[i] == x[i] + weight[i]);
    }
    memcpy(y, x, sizeof y);
    portable()->silu_mul(y, weight, N);
    for (size_t i = 0; i < N; i++) {
        const double exact = (double)x[i] / (1.0 + exp(-(double)x[i])) * (double)weight[i];
        assert_close("silu_mul", y[i], exact, fabs(exact) * 8.0 * 0x1p-24);
    }
    memcpy(y, x, sizeof y);
    portable()->rope(y, weight, N / 2);
    for (size_t i = 0; i < N / 2; i++) {
        const double a = x[2 * i];
        const double b = x[2 * i + 1];
        const double c = weight[2 * i];
        const double s = weight[2 * i + 1];
        const double bound = (fabs(a) + fabs(b)) * (fabs(c) + fabs(s)) * 0x1p-23;
        assert_close("rope", y[2 * i], a * c - b * s, bound);
        assert_close("rope", y[2 * i + 1], b * c + a * s, bound);
    }
    assert_true(y[N - 1] == x[N - 1]);
    free(x);
    free(weight);
}

static void test_portable_softmax(void **state) {
    (void)state;
    enum { N = 96, TILE = 24 };
    uint64_t random = 6;
    float *x = random_values(&random, ORDINARY, N);
    float max = -INFINITY, sum = 0.0f, factor;
    double exact_max = -INFINITY, total = 0.0;
    for (size_t i = 0; i < N; i++) {
        exact_max = x[i] > (float)exact_max ? (double)x[i] : exact_max;
    }
    for (size_t i = 0; i < N; i++) {
        total += exp2((double)x[i] - exact_max);
    }
    for (size_t i = 0; i < N; i += TILE) {
        float s[TILE];
        memcpy(s, x + i, sizeof s);
        portable()->attention->softmax(s, TILE, 1, TILE, &max, &sum, &factor);
        for (size_t j = 0; j < TILE; j++) {
            const double exact = exp2((double)x[i + j] - (double)max);
            assert_close("softmax", s[j], exact, exact * 16.0 * 0x1p-24);
        }
    }
    assert_true(max == (float)exact_max);
    assert_close("softmax", sum, total, total * 40.0 * 0x1p-24);
    free(x);
}

static float stored_f16(const unsigned char *data, size_t i) {
    uint16_t half;
    memcpy(&half, data + i * sizeof half, sizeof half);
    return drllm_f16_to_f32(half);
}

/* Element (position j, dimension d) of blocks of keys or values, by the definition in kv_block.h. */
static double stored(const struct blocks *blocks, bool is_key, size_t head_dim, size_t j, size_t d) {
    const unsigned char *block = blocks->data + j / 8 * blocks->stride;
    const size_t i = is_key ? d * 8 + j % 8 : j % 8 * head_dim + d;
    float value;
    if (blocks->format == DRLLM_FORMAT_F32) {
        memcpy(&value, block + i * sizeof value, sizeof value);
        return (double)value;
    }
    return (double)stored_f16(block, i);
}

static void check_attention_values(const struct attention_case *size, enum drllm_format format) {
    const size_t dim = size->head_dim;
    const size_t n_keys = size->n_keys;
    uint64_t random = n_keys + dim;
    float *q = random_values(&random, ORDINARY, size->n_rows * dim);
    float *p = random_values(&random, ORDINARY, size->n_rows * n_keys);
    float *factor = random_values(&random, ORDINARY, size->n_rows);
    const struct blocks kv = random_blocks(&random, format, ORDINARY, size, n_keys / 8);
    float *s = random_values(&random, ORDINARY, size->n_rows * n_keys);
    float *start = random_values(&random, ORDINARY, size->n_rows * dim);
    float *o = random_values(&random, ORDINARY, size->n_rows * dim);
    memcpy(o, start, size->n_rows * dim * sizeof *o);
    portable()->attention->scores(format, q, dim, size->n_rows, kv.data, kv.stride, n_keys / 8, dim, s, n_keys);
    portable()->attention->values(format, p, n_keys, size->n_rows, kv.data, kv.stride, n_keys, dim, factor, o, dim);
    for (size_t r = 0; r < size->n_rows; r++) {
        for (size_t j = 0; j < n_keys; j++) {
            double sum = 0.0;
            double magnitude = 0.0;
            for (size_t d = 0; d < dim; d++) {
                const double term = (double)q[r * dim + d] * stored(&kv, true, dim, j, d);
                sum += term;
                magnitude += fabs(term);
            }
            assert_close("scores", s[r * n_keys + j], sum, magnitude * ((double)dim + 2.0) * 0x1p-24);
        }
        for (size_t d = 0; d < dim; d++) {
            double sum = (double)start[r * dim + d] * (double)factor[r];
            double magnitude = fabs(sum);
            for (size_t j = 0; j < n_keys; j++) {
                const double term = (double)p[r * n_keys + j] * stored(&kv, false, dim, j, d);
                sum += term;
                magnitude += fabs(term);
            }
            assert_close("values", o[r * dim + d], sum, magnitude * ((double)n_keys + 4.0) * 0x1p-24);
        }
    }
    free(q);
    free(p);
    free(factor);
    free(kv.data);
    free(s);
    free(start);
    free(o);
}

static void test_portable_attention(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTH(attention_cases) * LENGTH(kv_formats); i++) {
        const struct attention_case *size = &attention_cases[i / LENGTH(kv_formats)];
        const enum drllm_format format = kv_formats[i % LENGTH(kv_formats)];
        check_attention_values(size, format);
    }
}

/* The same bits with every compiler and on every machine: a checksum over each function that was recorded once. */
static void test_golden(void **state) {
    (void)state;
    static const uint64_t golden[9] = {0x65285c7b37eb17f7, 0x2738ad5e0813e642, 0x9d5781084a2e470c,
                                       0xa5bd6e83900dc5a9, 0x362204aa6e2e172e, 0x8aa3bb386a680515,
                                       0xb4efaec7961cd3b8, 0x480f8fddb61168c7, 0x56530cf03d9759ea};
    enum { N = 448 };
    uint64_t random = 99;
    uint64_t sums[LENGTH(golden)];
    float *a = random_values(&random, ORDINARY, N);
    float *b = random_values(&random, ORDINARY, N);
    uint16_t *halves = random_halves(&random, ORDINARY, N);
    float y[N];
    union {
        uint16_t halves[N];
        int8_t q[N];
    } narrow;
    float scale[N / 32], ssum[N / 32];
    int32_t sum[N / 32];
    size_t n = 0;
    portable()->rms_norm(y, a, b, N, 1e-5f);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, y, N);
    memcpy(y, a, sizeof y);
    portable()->silu_mul(y, b, N);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, y, N);
    memcpy(y, a, sizeof y);
    portable()->rope(y, b, N / 2);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, y, N);
    portable()->to_f16(narrow.halves, a, N);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, narrow.halves, N / 2);
    portable()->quantize_q8(a, N, 32, narrow.q, scale, sum, ssum);
    sums[n] = drllm_checksum(DRLLM_CHECKSUM_START, narrow.q, N / 4);
    sums[n] = drllm_checksum(sums[n], scale, N / 32);
    sums[n] = drllm_checksum(sums[n], sum, N / 32);
    sums[n] = drllm_checksum(sums[n], ssum, N / 32);
    n++;
    portable()->attention->scores(DRLLM_FORMAT_F16, a, 28, 8, halves, 448, 2, 28, y, 16);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, y, (size_t)8 * 16);
    memcpy(y, a, sizeof y);
    float max[8], row_sum[8] = {0}, factor[8];
    memcpy(max, b, sizeof max);
    portable()->attention->softmax(y, N / 8, 8, N / 8, max, row_sum, factor);
    sums[n] = drllm_checksum(DRLLM_CHECKSUM_START, y, N);
    sums[n] = drllm_checksum(sums[n], row_sum, 8);
    n++;
    portable()->attention->values(DRLLM_FORMAT_F16, a, 24, 8, halves, 256, 24, 16, factor, y, 16);
    sums[n++] = drllm_checksum(DRLLM_CHECKSUM_START, y, (size_t)8 * 16);
    uint64_t exps = DRLLM_CHECKSUM_START;
    for (int i = -90 * 16; i < 90 * 16; i++) {
        const float value = drllm_expf((float)i / 16.0f);
        exps = drllm_checksum(exps, &value, 1);
    }
    sums[n++] = exps;
    assert_int_equal(n, LENGTH(golden));
    for (size_t i = 0; i < n; i++) {
        if (sums[i] != golden[i]) {
            fail_msg("checksum %zu is 0x%016llx", i, (unsigned long long)sums[i]);
        }
    }
    free(a);
    free(b);
    free(halves);
}

static void test_choose(void **state) {
    (void)state;
    size_t n;
    const struct drllm_vec_ops *const *backends = drllm_vec_backends(&n);
    assert_in_range(n, 1, MAX_BACKENDS);
    assert_string_equal(backends[n - 1]->backend, "ref");
    for (size_t i = 0; i < n; i++) {
        assert_ptr_equal(drllm_vec_choose(backends[i]->cpu_features), backends[i]);
        assert_int_equal(backends[i]->cpu_features == 0, i == n - 1);
    }
    static const struct {
        const char *mask, *x86, *arm;
    } levels[] = {
        {"none", "ref", "ref"},  {"portable", "ref", "ref"},  {"x86-avx2", "avx2", "ref"},
        {"avx2", "ref", "ref"},  {"arm-neon", "ref", "neon"}, {"arm-dotprod", "ref", "neon"},
        {"all", "avx2", "neon"},
    };
    for (size_t i = 0; i < LENGTH(levels); i++) {
        uint64_t mask;
        assert_true(drllm_cpu_parse_mask(levels[i].mask, &mask, NULL, 0));
        const char *backend = "ref";
#if defined(__x86_64__)
        backend = levels[i].x86;
#elif defined(__aarch64__)
        backend = levels[i].arm;
#endif
        assert_string_equal(drllm_vec_choose(mask)->backend, backend);
    }
}

int drllm_test_vec(void) {
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test(test_choose),        cmocka_unit_test(test_expf),
        cmocka_unit_test(test_portable_rows), cmocka_unit_test(test_portable_softmax),
        cmocka_unit_test(test_exp2f),         cmocka_unit_test(test_portable_attention),
        cmocka_unit_test(test_golden),
    };
    static const struct CMUnitTest for_each[] = {
        cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_silu_mul),
        cmocka_unit_test(test_sum_exp),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_to_f16),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_quantize_not_finite),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_shapes),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_exp2_lanes),
        cmocka_unit_test(test_quantised_attention),
    };
    static struct CMUnitTest tests[LENGTH(fixed) + MAX_BACKENDS * LENGTH(for_each)];
    static char names[MAX_BACKENDS * LENGTH(for_each)][48];
    size_t n_backends;
    const struct drllm_vec_ops *const *backends = drllm_vec_backends(&n_backends);
    memcpy(tests, fixed, sizeof fixed);
    size_t n = 0;
    for (size_t b = 0; b < n_backends && b < MAX_BACKENDS; b++) {
        for (size_t i = 0; i < LENGTH(for_each); i++, n++) {
            (void)snprintf(names[n], sizeof names[n], "%s %s", for_each[i].name, backends[b]->backend);
            /* *state is not const */
            tests[LENGTH(fixed) + n] =
                (struct CMUnitTest){names[n], for_each[i].test_func, NULL, NULL, (void *)backends[b]};
        }
    }
    return drllm_run_group_tests("vec", tests, LENGTH(fixed) + n, NULL, NULL);
}
