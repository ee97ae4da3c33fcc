/* The matrix kernels: every row of the kernel table against the portable one, bit for bit, and the portable one against
 * sums in double; then products as a whole. */
#include "tests/tests.h"

#include "platform/cpu.h"
#include "platform/threads.h"
#include "quant/half.h"
#include "quant/matmul.h"
#include "quant/vec.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum { R = DRLLM_PANEL_ROWS, MAX_TOKENS = 33, MAX_PANELS = 5 };

static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C,
                                            DRLLM_FORMAT_F32,  DRLLM_FORMAT_F16,  DRLLM_FORMAT_BF16};

static bool is_float(enum drllm_format format) {
    return format == DRLLM_FORMAT_F32 || format == DRLLM_FORMAT_F16 || format == DRLLM_FORMAT_BF16;
}

static bool needs_whole_groups(enum drllm_format format) {
    return !is_float(format) && format != DRLLM_FORMAT_Q8C;
}

static size_t padded(size_t cols) {
    return (cols + DRLLM_GROUP - 1) / DRLLM_GROUP * DRLLM_GROUP;
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count != 0 ? count : 1, size);
    assert_non_null(memory);
    return memory;
}

static const struct drllm_kernel *find_kernel(enum drllm_format format, const char *backend) {
    size_t n;
    const struct drllm_kernel *kernels = drllm_kernels(&n);
    for (size_t i = 0; i < n; i++) {
        if (kernels[i].format == format && strcmp(kernels[i].backend, backend) == 0) {
            return &kernels[i];
        }
    }
    fail_msg("no kernel %d %s", (int)format, backend);
    return NULL;
}

/* ---- Weights ---- */

enum contents {
    ORDINARY,
    EXTREME,    /* largest and smallest values, zeros, negative scales: all finite */
    NOT_FINITE, /* with infinities and NaN */
    N_CONTENTS
};

static uint16_t random_f16(uint64_t *random, enum contents contents) {
    static const uint16_t extremes[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0xbc00};
    static const uint16_t others[] = {0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7c01};
    const uint32_t n = drllm_random(random);
    if (contents == EXTREME) {
        return extremes[n % LENGTH(extremes)];
    }
    if (contents == NOT_FINITE && n % 8 == 0) {
        return others[n / 8 % LENGTH(others)];
    }
    return drllm_f32_to_f16(drllm_random_float(random) * 0.25f);
}

static float random_f32(uint64_t *random, enum contents contents) {
    static const float extremes[] = {0.0f, -0.0f, 0x1p-149f, -0x1p-140f, FLT_MIN, 1.0f, -1.0f, 0x1p60f, -0x1p60f};
    static const float others[] = {INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX};
    const uint32_t n = drllm_random(random);
    if (contents == EXTREME) {
        return extremes[n % LENGTH(extremes)];
    }
    if (contents == NOT_FINITE && n % 8 == 0) {
        return others[n / 8 % LENGTH(others)];
    }
    return ldexpf(drllm_random_float(random), (int)(n % 16) - 8);
}

/* In [low, high], more often the ends for EXTREME. */
static int random_integer(uint64_t *random, enum contents contents, int low, int high) {
    const uint32_t n = drllm_random(random);
    if (contents == EXTREME && n % 4 != 0) {
        return n % 4 == 1 ? high : low;
    }
    return low + (int)((n >> 8) % (uint32_t)(high - low + 1));
}

/* Rows as a file has them, the same in double, and packed. */
struct weights {
    enum drllm_format format;
    size_t rows, cols;
    uint8_t *source;
    float *scales;     /* [rows], q8c alone */
    double *values;    /* [rows][cols] */
    double *magnitude; /* [rows][cols], what rounding errors are relative to: |d| * q + |m| for q4_1, else |value| */
    uint8_t *packed;
    size_t packed_bytes, panel_bytes;
};

static void fill_block(uint64_t *random, enum contents contents, enum drllm_format format, uint8_t *block) {
    const size_t n_fields = format == DRLLM_FORMAT_Q4_1 ? 2 : 1;
    for (size_t i = 0; i < n_fields; i++) {
        const uint16_t field = random_f16(random, contents);
        memcpy(block + 2 * i, &field, sizeof field);
    }
    uint8_t *q = block + 2 * n_fields;
    /* In every third extreme block all weights are the same, which makes the largest sums. */
    const bool all_same = contents == EXTREME && drllm_random(random) % 3 == 0;
    for (size_t i = 0; i < (format == DRLLM_FORMAT_Q8_0 ? 32u : 16u); i++) {
        if (all_same && i > 0) {
            q[i] = q[0];
        } else if (format == DRLLM_FORMAT_Q8_0) {
            q[i] = (uint8_t)random_integer(random, contents, -128, 127);
        } else {
            const int low = random_integer(random, contents, 0, 15);
            q[i] = (uint8_t)(low | random_integer(random, contents, 0, 15) << 4);
        }
    }
}

static void fill_source(struct weights *w, uint64_t *random, enum contents contents) {
    const size_t n = w->rows * w->cols;
    if (w->format == DRLLM_FORMAT_Q8C) {
        for (size_t i = 0; i < n; i++) {
            w->source[i] = (uint8_t)random_integer(random, contents, -128, 127);
        }
        for (size_t r = 0; r < w->rows; r++) {
            w->scales[r] = random_f32(random, contents);
        }
    } else if (is_float(w->format)) {
        for (size_t i = 0; i < n; i++) {
            const float value = random_f32(random, contents);
            const uint16_t half =
                w->format == DRLLM_FORMAT_F16 ? random_f16(random, contents) : drllm_f32_to_bf16(value);
            if (w->format == DRLLM_FORMAT_F32) {
                memcpy(w->source + i * sizeof value, &value, sizeof value);
            } else {
                memcpy(w->source + i * sizeof half, &half, sizeof half);
            }
        }
    } else {
        const size_t block_bytes = drllm_format_row_bytes(w->format, DRLLM_GROUP);
        for (size_t b = 0; b < n / DRLLM_GROUP; b++) {
            fill_block(random, contents, w->format, w->source + b * block_bytes);
        }
    }
}

/* The rows' values by way of the reference conversion. */
static void fill_values(struct weights *w, size_t row_bytes) {
    float *row = allocate(w->cols, sizeof *row);
    for (size_t r = 0; r < w->rows; r++) {
        const uint8_t *source = w->source + r * row_bytes;
        if (w->format != DRLLM_FORMAT_Q8C) {
            drllm_dequantize_row(w->format, source, row, w->cols);
        }
        for (size_t c = 0; c < w->cols; c++) {
            const size_t i = r * w->cols + c;
            w->values[i] = w->format == DRLLM_FORMAT_Q8C ? (double)(int8_t)source[c] * (double)w->scales[r] : row[c];
            w->magnitude[i] = fabs(w->values[i]);
            if (w->format == DRLLM_FORMAT_Q4_1) {
                struct drllm_block_q4_1 block;
                memcpy(&block, source + c / DRLLM_GROUP * sizeof block, sizeof block);
                const double m = fabs((double)drllm_f16_to_f32(block.m));
                w->magnitude[i] = fabs(w->values[i] - (double)drllm_f16_to_f32(block.m)) + m;
            }
        }
    }
    free(row);
}

static struct weights make_weights(enum drllm_format format, size_t rows, size_t cols, uint64_t *random,
                                   enum contents contents) {
    const size_t row_bytes = format == DRLLM_FORMAT_Q8C ? cols : drllm_format_row_bytes(format, cols);
    struct weights w = {.format = format, .rows = rows, .cols = cols};
    w.source = allocate(rows * row_bytes, 1);
    w.scales = allocate(rows, sizeof *w.scales);
    w.values = allocate(rows * cols, sizeof *w.values);
    w.magnitude = allocate(rows * cols, sizeof *w.magnitude);
    fill_source(&w, random, contents);
    fill_values(&w, row_bytes);

    const size_t n_panels = (rows + R - 1) / R;
    w.packed_bytes = drllm_packed_bytes(format, rows, cols);
    w.panel_bytes = drllm_packed_bytes(format, R, cols);
    assert_int_not_equal(w.packed_bytes, 0);
    w.packed = allocate(1, w.packed_bytes);
    drllm_pack_panels(format, w.source, format == DRLLM_FORMAT_Q8C ? w.scales : NULL, rows, cols, w.packed, 0,
                      n_panels);
    return w;
}

static void free_weights(struct weights *w) {
    free(w->source);
    free(w->scales);
    free(w->values);
    free(w->magnitude);
    free(w->packed);
}

/* ---- Activations ---- */

/* Token rows for one kernel: floats, or quantised values with n_scales scales a row. */
struct inputs {
    size_t n_tokens, cols, n_scales;
    float *x;  /* [n_tokens][cols] */
    int8_t *q; /* [n_tokens][padded cols] */
    float *scale;
    int32_t *sum;
    float *ssum;
};

static struct inputs make_inputs(enum drllm_format format, size_t n_tokens, size_t cols, uint64_t *random,
                                 enum contents contents) {
    const size_t width = padded(cols);
    struct inputs in = {.n_tokens = n_tokens, .cols = cols};
    in.n_scales = format == DRLLM_FORMAT_Q8C ? 1 : width / DRLLM_GROUP;
    in.x = allocate(n_tokens * cols, sizeof *in.x);
    in.q = allocate(n_tokens, width);
    in.scale = allocate(n_tokens * in.n_scales, sizeof *in.scale);
    in.sum = allocate(n_tokens * in.n_scales, sizeof *in.sum);
    in.ssum = allocate(n_tokens * in.n_scales, sizeof *in.ssum);
    for (size_t i = 0; i < n_tokens * cols; i++) {
        in.x[i] = random_f32(random, contents);
    }
    const size_t group = width / in.n_scales;
    for (size_t g = 0; g < n_tokens * in.n_scales; g++) {
        const int same = contents == EXTREME && drllm_random(random) % 2 == 0 ? 127 : 0;
        const int sign = drllm_random(random) % 2 == 0 ? 1 : -1;
        for (size_t i = 0; i < group; i++) {
            int8_t *q = &in.q[g * group + i];
            *q = (int8_t)(same != 0 ? sign * same : random_integer(random, contents, -127, 127));
            if ((g * group + i) % width >= cols) {
                *q = 0;
            }
            in.sum[g] += *q;
        }
        in.scale[g] = fabsf(random_f32(random, contents));
        in.ssum[g] = in.scale[g] * (float)in.sum[g];
    }
    return in;
}

static void free_inputs(struct inputs *in) {
    free(in->x);
    free(in->q);
    free(in->scale);
    free(in->sum);
    free(in->ssum);
}

/* The value and the scale's part of the activation that a kernel sees. */
static double input_value(const struct inputs *in, enum drllm_format format, size_t token, size_t column) {
    if (is_float(format)) {
        return in->x[token * in->cols + column];
    }
    const size_t width = padded(in->cols);
    const size_t group = width / in->n_scales;
    return (double)in->q[token * width + column] * (double)in->scale[token * in->n_scales + column / group];
}

/* y [n_tokens][8 * n_panels] against sums in double, to within the roundings that the format's order of operations
 * has. */
static void check_values(const struct weights *w, const struct inputs *in, const float *y, size_t n_tokens) {
    const size_t ldy = (w->rows + R - 1) / R * R;
    const double n_roundings = is_float(w->format) ? (double)w->cols + 4.0 : (double)w->cols / 16.0 + 8.0;
    for (size_t t = 0; t < n_tokens; t++) {
        for (size_t r = 0; r < w->rows; r++) {
            double sum = 0.0;
            double magnitude = 0.0;
            for (size_t c = 0; c < w->cols; c++) {
                const double x = input_value(in, w->format, t, c);
                sum += w->values[r * w->cols + c] * x;
                magnitude += w->magnitude[r * w->cols + c] * fabs(x);
            }
            if (magnitude > 1e37) {
                continue; /* the float sum may overflow on its way */
            }
            /* Besides, a product of two scales may be subnormal; a column weighs up to 2^14 of it. */
            const double bound = magnitude * n_roundings * 0x1p-24 + (double)(w->cols + DRLLM_GROUP) * 0x1p-134;
            const double error = fabs((double)y[t * ldy + r] - sum);
            if (!(error <= bound)) {
                fail_msg("format %d, %zu columns, token %zu, row %zu: %g, expected %g", (int)w->format, w->cols, t, r,
                         (double)y[t * ldy + r], sum);
            }
        }
    }
}

/* ---- One kernel ---- */

/* Where a kernel's operands lie. */
struct operands {
    struct drllm_fence packed, x, rows, q, scale, sum, ssum, y;
};

static void free_operands(struct operands *o) {
    struct drllm_fence *all[] = {&o->packed, &o->x, &o->rows, &o->q, &o->scale, &o->sum, &o->ssum, &o->y};
    for (size_t i = 0; i < LENGTH(all); i++) {
        drllm_fence_free(all[i]);
    }
}

/* Token `first` and the next ones. The rows behind the structs lie in falling order: what a row points to says
 * nothing about where the next one's is. */
static void place_rows(struct operands *o, const struct inputs *in, enum drllm_format format, size_t first,
                       size_t n_tokens, enum drllm_fence_side side) {
    const size_t width = padded(in->cols);
    const size_t n = in->n_scales;
    struct drllm_q8_row rows[MAX_TOKENS];
    const int8_t *q = drllm_fence_copy(&o->q, in->q + first * width, n_tokens * width, side);
    const float *scale = drllm_fence_copy(&o->scale, in->scale + first * n, n_tokens * n * sizeof *scale, side);
    const int32_t *sum = drllm_fence_copy(&o->sum, in->sum + first * n, n_tokens * n * sizeof *sum, side);
    const float *ssum = drllm_fence_copy(&o->ssum, in->ssum + first * n, n_tokens * n * sizeof *ssum, side);
    for (size_t t = 0; t < n_tokens; t++) {
        rows[n_tokens - 1 - t] = (struct drllm_q8_row){q + t * width, scale + t * n, sum + t * n,
                                                       format == DRLLM_FORMAT_Q8C ? NULL : ssum + t * n};
    }
    (void)drllm_fence_copy(&o->rows, rows, n_tokens * sizeof rows[0], side);
}

/* Tokens [first, first + n_tokens) of the kernel, in falling order for the integer formats, as place_rows has them. */
static float *run_kernel(const struct drllm_kernel *kernel, const struct weights *w, size_t n_panels,
                         const struct inputs *in, size_t first, size_t n_tokens, size_t ldy, enum drllm_fence_side side,
                         struct operands *o) {
    const void *packed = drllm_fence_copy(&o->packed, w->packed, n_panels * w->panel_bytes, side);
    float *y = drllm_fence_place(&o->y, ((n_tokens - 1) * ldy + n_panels * R) * sizeof *y, side);
    if (kernel->floating != NULL) {
        const size_t ldx = in->cols + 3;
        float *x = drllm_fence_place(&o->x, ((n_tokens - 1) * ldx + in->cols) * sizeof *x, side);
        for (size_t t = 0; t < n_tokens; t++) {
            memcpy(x + t * ldx, in->x + (first + n_tokens - 1 - t) * in->cols, in->cols * sizeof *x);
        }
        kernel->floating(packed, w->panel_bytes, n_panels, w->cols, x, ldx, n_tokens, y, ldy);
        drllm_fence_check(&o->x);
    } else {
        place_rows(o, in, kernel->format, first, n_tokens, side);
        kernel->q8(packed, w->panel_bytes, n_panels, padded(w->cols) / DRLLM_GROUP,
                   (const struct drllm_q8_row *)(const void *)o->rows.data, n_tokens, y, ldy);
    }
    drllm_fence_check(&o->y);
    return y;
}

/* The kernel on the first n_panels panels and n_tokens tokens against `expected`, [MAX_TOKENS][ld_expected]. */
static void check_kernel(const struct drllm_kernel *kernel, const struct weights *w, size_t n_panels,
                         const struct inputs *in, size_t n_tokens, enum drllm_fence_side side, const float *expected,
                         size_t ld_expected, struct operands *o) {
    const size_t ldy = n_panels * R + n_tokens % 4;
    const float *y = run_kernel(kernel, w, n_panels, in, 0, n_tokens, ldy, side, o);
    for (size_t t = 0; t < n_tokens; t++) {
        const float *row = y + t * ldy;
        const float *expected_row = expected + (n_tokens - 1 - t) * ld_expected;
        const size_t r = drllm_first_difference(row, expected_row, n_panels * R);
        if (r != n_panels * R) {
            fail_msg("%s, %zu panels, %zu columns, %zu tokens, page %s: row %zu of token %zu is %a, expected %a",
                     kernel->name, n_panels, w->cols, n_tokens, side == DRLLM_FENCE_BEHIND ? "behind" : "before", r, t,
                     (double)row[r], (double)expected_row[r]);
        }
        for (size_t i = n_panels * R; i < ldy && t + 1 < n_tokens; i++) {
            assert_int_equal(drllm_f32_to_bits(row[i]), UINT32_MAX); /* between the rows */
        }
    }
}

/* One size with contents of one kind: all numbers of panels and tokens. */
static void check_size(const struct drllm_kernel *kernel, size_t cols, enum contents contents, bool all_sizes,
                       struct operands *o) {
    static const size_t some_tokens[] = {1, 2, 3, 4, 6, 9};
    static const size_t all_tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, MAX_TOKENS};
    const size_t *n_tokens = all_sizes ? all_tokens : some_tokens;
    const size_t n_batches = all_sizes ? LENGTH(all_tokens) : LENGTH(some_tokens);
    const size_t most = n_tokens[n_batches - 1];
    const struct drllm_kernel *ref = find_kernel(kernel->format, "ref");
    uint64_t random = cols * 16 + (uint64_t)contents;
    struct weights w = make_weights(kernel->format, MAX_PANELS * R - 3, cols, &random, contents);
    struct inputs in = make_inputs(kernel->format, most, cols, &random, contents);

    /* Token by token, so that nothing can depend on the others. */
    float *expected = allocate(MAX_TOKENS * MAX_PANELS * R, sizeof *expected);
    for (size_t t = 0; t < most; t++) {
        const float *y = run_kernel(ref, &w, MAX_PANELS, &in, t, 1, MAX_PANELS * R, DRLLM_FENCE_BEHIND, o);
        memcpy(expected + t * MAX_PANELS * R, y, MAX_PANELS * R * sizeof *y);
    }
    if (kernel == ref && contents != NOT_FINITE) {
        check_values(&w, &in, expected, most);
    }
    for (size_t n_panels = 1; n_panels <= MAX_PANELS; n_panels += all_sizes ? 1 : 2) {
        for (size_t i = 0; i < n_batches; i++) {
            check_kernel(kernel, &w, n_panels, &in, n_tokens[i], DRLLM_FENCE_BEHIND, expected, MAX_PANELS * R, o);
            check_kernel(kernel, &w, n_panels, &in, n_tokens[i], DRLLM_FENCE_BEFORE, expected, MAX_PANELS * R, o);
        }
    }
    free(expected);
    free_inputs(&in);
    free_weights(&w);
}

static void test_kernel(void **state) {
    /* 67 groups are more than matmul_few_neondot.c takes at a time. */
    static const size_t group_cols[] = {32, 64, 96, 128, 160, 576, 1536, 67 * DRLLM_GROUP};
    static const size_t q8c_cols[] = {1, 4, 31, 32, 33, 64, 95, 96, 128, 157, 576, 1601};
    static const size_t float_cols[] = {1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 100, 576};
    const struct drllm_kernel *kernel = *state;
    if ((kernel->cpu_features & ~drllm_cpu_detect()) != 0) {
        drllm_skip("not on this processor");
    }
    const size_t *cols = needs_whole_groups(kernel->format) ? group_cols : float_cols;
    size_t n_cols = needs_whole_groups(kernel->format) ? LENGTH(group_cols) : LENGTH(float_cols);
    if (kernel->format == DRLLM_FORMAT_Q8C) {
        cols = q8c_cols;
        n_cols = LENGTH(q8c_cols);
    }
    struct operands o = {.packed = DRLLM_FENCE_INIT};
    for (size_t i = 0; i < n_cols; i++) {
        for (enum contents contents = ORDINARY; contents < N_CONTENTS; contents++) {
            check_size(kernel, cols[i], contents, cols[i] < 200 || (contents == ORDINARY && !drllm_test_is_fast()), &o);
        }
    }
    free_operands(&o);
}

/* The same bits with every compiler and on every machine: checksums that were recorded once. */
static void test_golden(void **state) {
    (void)state;
    static const uint64_t golden[LENGTH(formats)] = {0x2da45b2d3a53ba01, 0x65625783a936b1ef, 0xb2f3a27a95a961c0,
                                                     0xc2dc770b2017f24f, 0x055067dafa91f43a, 0xdb768b64bea5f4c8,
                                                     0x088c162399e3bf18};
    struct operands o = {.packed = DRLLM_FENCE_INIT};
    size_t n_kernels;
    const struct drllm_kernel *kernels = drllm_kernels(&n_kernels);
    for (size_t f = 0; f < LENGTH(formats); f++) {
        uint64_t random = 1234;
        struct weights w = make_weights(formats[f], 2 * R, 160, &random, ORDINARY);
        struct inputs in = make_inputs(formats[f], 7, 160, &random, ORDINARY);
        for (size_t k = 0; k < n_kernels; k++) {
            if (kernels[k].format != formats[f] || (kernels[k].cpu_features & ~drllm_cpu_detect()) != 0) {
                continue;
            }
            const float *y = run_kernel(&kernels[k], &w, 2, &in, 0, 7, 2 * R, DRLLM_FENCE_BEHIND, &o);
            const uint64_t sum = drllm_checksum(DRLLM_CHECKSUM_START, y, (size_t)7 * 2 * R);
            if (sum != golden[f]) {
                fail_msg("%s: checksum 0x%016llx", kernels[k].name, (unsigned long long)sum);
            }
        }
        free_inputs(&in);
        free_weights(&w);
    }
    free_operands(&o);
}

/* ---- The table and the choice ---- */

static void test_table(void **state) {
    (void)state;
    size_t n;
    const struct drllm_kernel *kernels = drllm_kernels(&n);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        const struct drllm_format_traits *traits = drllm_format_find((uint32_t)kernels[i].format);
        const char *format = kernels[i].format == DRLLM_FORMAT_Q8C ? "q8c" : traits->name;
        (void)snprintf(name, sizeof name, "%s_%s", format, kernels[i].backend);
        assert_string_equal(kernels[i].name, name);
        assert_true((kernels[i].q8 != NULL) != (kernels[i].floating != NULL));
        assert_int_equal(is_float(kernels[i].format), kernels[i].floating != NULL);
        assert_int_equal(strcmp(kernels[i].backend, "ref") == 0, kernels[i].cpu_features == 0);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(kernels[j].name, name);
            /* A row behind one that asks for no more is never chosen. */
            assert_true(kernels[j].format != kernels[i].format ||
                        (kernels[j].cpu_features & ~kernels[i].cpu_features) != 0);
        }
    }
    for (size_t f = 0; f < LENGTH(formats); f++) {
        assert_non_null(find_kernel(formats[f], "ref"));
    }
}

static void test_choose(void **state) {
    (void)state;
    static const struct {
        const char *mask;
        const char *x86[2]; /* integer formats, float formats */
        const char *arm[2];
    } levels[] = {
        {"none", {"ref", "ref"}, {"ref", "ref"}},
        {"portable", {"ref", "ref"}, {"ref", "ref"}},
        {"x86-avx2", {"avx2", "avx2"}, {"ref", "ref"}},
        {"avx2,f16c", {"avx2", "avx2"}, {"ref", "ref"}},
        {"avx2", {"ref", "ref"}, {"ref", "ref"}},
        {"f16c,avx512", {"ref", "ref"}, {"ref", "ref"}},
        {"arm-neon", {"ref", "ref"}, {"neon", "neon"}},
        {"arm-dotprod", {"ref", "ref"}, {"neondot", "neon"}},
        {"arm-i8mm", {"ref", "ref"}, {"neoni8mm", "neon"}},
        {"arm-neon,i8mm", {"ref", "ref"}, {"neon", "neon"}},
        {"dotprod", {"ref", "ref"}, {"ref", "ref"}},
        {"all", {"avx512vnni", "avx2"}, {"neoni8mm", "neon"}},
        {"x86-avx2,avxvnni", {"avxvnni", "avx2"}, {"ref", "ref"}},
        {"x86-avx2,avx512", {"avx2", "avx2"}, {"ref", "ref"}},
        {"x86-avx2,avx512vnni", {"avx2", "avx2"}, {"ref", "ref"}},
        {"x86-avx2,avxvnni,avx512,avx512vnni", {"avx512vnni", "avx2"}, {"ref", "ref"}},
        {"avxvnni,avx512,avx512vnni", {"ref", "ref"}, {"ref", "ref"}},
    };
    static const enum drllm_format none[] = {DRLLM_FORMAT_Q5_0, DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q5_K,
                                             DRLLM_FORMAT_Q6_K, DRLLM_FORMAT_I8,   DRLLM_FORMAT_QB4W};
    for (size_t i = 0; i < LENGTH(levels); i++) {
        uint64_t mask;
        assert_true(drllm_cpu_parse_mask(levels[i].mask, &mask, NULL, 0));
        for (size_t f = 0; f < LENGTH(formats); f++) {
            const struct drllm_kernel *kernel = drllm_kernel_choose(formats[f], mask);
            assert_non_null(kernel);
            assert_int_equal(kernel->format, formats[f]);
            assert_int_equal(kernel->cpu_features & ~mask, 0);
            const char *backend = "ref";
#if defined(__x86_64__)
            backend = levels[i].x86[is_float(formats[f])];
#elif defined(__aarch64__)
            backend = levels[i].arm[is_float(formats[f])];
#endif
            assert_string_equal(kernel->backend, backend);
        }
        for (size_t f = 0; f < LENGTH(none); f++) {
            assert_null(drllm_kernel_choose(none[f], mask));
        }
    }
}

/* ---- Quantised activations ---- */

/* One array inside `memory`, and nothing else in its place. */
static void mark(uint8_t *taken, const void *memory, size_t size, const void *array, size_t bytes, size_t alignment) {
    const size_t offset = (size_t)((const uint8_t *)array - (const uint8_t *)memory);
    assert_true(offset <= size && bytes <= size - offset);
    assert_int_equal(offset % alignment, 0);
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(taken[offset + i], 0);
        taken[offset + i] = 1;
    }
}

static void mark_rows(uint8_t *taken, const void *memory, size_t size, const struct drllm_q8_row *rows, size_t n_tokens,
                      size_t cols, size_t n_scales) {
    mark(taken, memory, size, rows, n_tokens * sizeof *rows, _Alignof(struct drllm_q8_row));
    for (size_t t = 0; t < n_tokens; t++) {
        mark(taken, memory, size, rows[t].q, padded(cols), 1);
        mark(taken, memory, size, rows[t].scale, n_scales * sizeof(float), sizeof(float));
        mark(taken, memory, size, rows[t].sum, n_scales * sizeof(int32_t), sizeof(int32_t));
        mark(taken, memory, size, rows[t].ssum, n_scales * sizeof(float), sizeof(float));
    }
}

/* A quantised row against the definition. */
static void check_row(const struct drllm_q8_row *row, const float *x, size_t cols, size_t group) {
    for (size_t begin = 0, g = 0; begin < cols; begin += group, g++) {
        const size_t end = begin + group < cols ? begin + group : cols;
        double max = 0.0;
        int32_t sum = 0;
        for (size_t i = begin; i < end; i++) {
            max = fmax(max, fabs((double)x[i]));
            sum += row->q[i];
        }
        assert_true(row->scale[g] == (float)max / 127.0f);
        for (size_t i = begin; i < end; i++) {
            const double error = fabs((double)x[i] - (double)row->scale[g] * (double)row->q[i]);
            assert_true(error <= max / 254.0 * (1.0 + 0x1p-15));
        }
        assert_int_equal(row->sum[g], sum);
        assert_true(row->ssum[g] == row->scale[g] * (float)sum);
    }
    for (size_t i = cols; i < padded(cols); i++) {
        assert_int_equal(row->q[i], 0);
    }
}

static void test_activations(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 5, 31, 32, 33, 64, 100, 160, 576};
    static const size_t batches[] = {1, 2, 3, 5, 9};
    struct drllm_fence memory = DRLLM_FENCE_INIT;
    struct drllm_fence input = DRLLM_FENCE_INIT;
    size_t n_backends;
    const struct drllm_vec_ops *const *backends = drllm_vec_backends(&n_backends);
    assert_int_equal(drllm_activations_bytes(5, 64, DRLLM_QUANT_NONE), 0);
    for (size_t i = 0; i < LENGTH(sizes) * LENGTH(batches) * 3 * 2; i++) {
        const size_t cols = sizes[i % LENGTH(sizes)];
        const size_t n_tokens = batches[i / LENGTH(sizes) % LENGTH(batches)];
        const unsigned how = 1 + (unsigned)(i / LENGTH(sizes) / LENGTH(batches) % 3);
        const enum drllm_fence_side side = i % 2 == 0 ? DRLLM_FENCE_BEHIND : DRLLM_FENCE_BEFORE;
        if ((how & DRLLM_QUANT_GROUP) != 0 && cols % DRLLM_GROUP != 0) {
            continue;
        }
        const size_t size = drllm_activations_bytes(n_tokens, cols, how);
        const size_t ldx = cols + 1;
        uint64_t random = i;
        for (size_t b = 0; b < n_backends; b++) {
            if ((backends[b]->cpu_features & ~drllm_cpu_detect()) != 0) {
                continue;
            }
            struct drllm_activations activations;
            uint8_t *at = drllm_fence_place(&memory, size, side);
            drllm_activations_init(&activations, at, n_tokens, cols, how);
            assert_int_equal(activations.n_tokens, n_tokens);
            assert_int_equal(activations.cols, cols);
            assert_int_equal(activations.group != NULL, (how & DRLLM_QUANT_GROUP) != 0);
            assert_int_equal(activations.row != NULL, (how & DRLLM_QUANT_ROW) != 0);
            uint8_t *taken = allocate(size, 1);
            if (activations.group != NULL) {
                mark_rows(taken, at, size, activations.group, n_tokens, cols, cols / DRLLM_GROUP);
            }
            if (activations.row != NULL) {
                mark_rows(taken, at, size, activations.row, n_tokens, cols, 1);
            }
            free(taken);

            float *x = drllm_fence_place(&input, ((n_tokens - 1) * ldx + cols) * sizeof *x, side);
            for (size_t k = 0; k < (n_tokens - 1) * ldx + cols; k++) {
                x[k] = k % ldx < cols ? drllm_random_float(&random) : 1e9f; /* what lies between rows is nobody's */
            }
            activations.x = x;
            activations.ldx = ldx;
            const size_t half = n_tokens / 2; /* in two parts, the later one first */
            drllm_activations_quantize(&activations, backends[b], half, n_tokens - half);
            drllm_activations_quantize(&activations, backends[b], 0, half);
            for (size_t t = 0; t < n_tokens; t++) {
                if (activations.group != NULL) {
                    check_row(&activations.group[t], x + t * ldx, cols, DRLLM_GROUP);
                }
                if (activations.row != NULL) {
                    check_row(&activations.row[t], x + t * ldx, cols, cols);
                }
            }
            drllm_fence_check(&memory);
            drllm_fence_check(&input);
        }
    }
    drllm_fence_free(&memory);
    drllm_fence_free(&input);
}

static void test_activations_overflow(void **state) {
    (void)state;
    /* No size that is too small for what was asked. */
    assert_int_equal(drllm_activations_bytes(SIZE_MAX / 2, 64, DRLLM_QUANT_GROUP), SIZE_MAX);
    assert_int_equal(drllm_activations_bytes(1, SIZE_MAX, DRLLM_QUANT_ROW), SIZE_MAX);
    assert_int_equal(drllm_activations_bytes(SIZE_MAX / 64, SIZE_MAX / 64, DRLLM_QUANT_ROW), SIZE_MAX);
}

/* ---- Whole products ---- */

struct product_case {
    size_t cols, n_tokens, n_products;
    size_t rows[DRLLM_MAX_PRODUCTS];
    enum drllm_format formats[DRLLM_MAX_PRODUCTS];
};

static const struct product_case product_cases[] = {
    {96, 1, 1, {7}, {DRLLM_FORMAT_Q4_0}},
    {96, 33, 4, {43, 1, 64, 129}, {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C}},
    {96, 5, 4, {9, 17, 8, 7}, {DRLLM_FORMAT_F32, DRLLM_FORMAT_F16, DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q4_1}},
    {100, 7, 3, {12, 801, 5}, {DRLLM_FORMAT_BF16, DRLLM_FORMAT_F32, DRLLM_FORMAT_F16}},
    {100, 6, 2, {33, 10}, {DRLLM_FORMAT_Q8C, DRLLM_FORMAT_F32}},
    {64, 131, 1, {27}, {DRLLM_FORMAT_Q8C}}, /* more tokens than a kernel takes at once */
    /* Several tiles of rows and of tokens. */
    {1024, 3, 3, {1030, 515, 1}, {DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0}},
    {16384, 37, 2, {11, 25}, {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q8_0}},
};

struct whole {
    const struct product_case *size;
    struct weights weights[DRLLM_MAX_PRODUCTS];
    struct drllm_matrix matrices[DRLLM_MAX_PRODUCTS];
    float *x; /* [n_tokens][cols] */
    struct drllm_fence packed[DRLLM_MAX_PRODUCTS], y[DRLLM_MAX_PRODUCTS], tail, memory, input;
};

static size_t whole_ldy(const struct whole *whole, size_t p) {
    return whole->size->rows[p] + 5 * p;
}

/* All products of tokens [first, first + n_tokens), their results placed anew. */
static void run_whole(struct whole *whole, const struct drllm_vec_ops *vec, size_t first, size_t n_tokens,
                      struct drllm_threads *threads, enum drllm_fence_side side) {
    const size_t cols = whole->size->cols;
    const size_t n_products = whole->size->n_products;
    struct drllm_product products[DRLLM_MAX_PRODUCTS] = {{NULL, NULL, 0, NULL}};
    unsigned how = 0;
    for (size_t p = 0; p < n_products; p++) {
        const size_t ldy = whole_ldy(whole, p);
        float *y = drllm_fence_place(&whole->y[p], ((n_tokens - 1) * ldy + whole->size->rows[p]) * sizeof *y, side);
        products[p] = (struct drllm_product){.matrix = &whole->matrices[p], .y = y, .ldy = ldy};
        how |= (unsigned)drllm_matrix_quantisation(&whole->matrices[p]);
    }
    struct drllm_activations activations;
    void *memory = drllm_fence_place(&whole->memory, drllm_activations_bytes(n_tokens, cols, how), side);
    drllm_activations_init(&activations, memory, n_tokens, cols, how);
    activations.x = drllm_fence_copy(&whole->input, whole->x + first * cols, n_tokens * cols * sizeof(float), side);
    activations.ldx = cols;
    drllm_activations_quantize(&activations, vec, 0, n_tokens);
    float *tail = drllm_fence_place(&whole->tail, n_products * n_tokens * R * sizeof *tail, side);
    assert_true(drllm_matmul(products, n_products, &activations, threads, tail));
    drllm_fence_check(&whole->tail);
    drllm_fence_check(&whole->memory);
    for (size_t p = 0; p < n_products; p++) {
        drllm_fence_check(&whole->y[p]);
    }
}

/* The results of run_whole against `expected`, all tokens' results of product after product, or copied there. */
static void take_whole(const struct whole *whole, size_t first, size_t n_tokens, float *expected, bool is_new) {
    for (size_t p = 0; p < whole->size->n_products; p++) {
        const size_t rows = whole->size->rows[p];
        const size_t ldy = whole_ldy(whole, p);
        for (size_t t = 0; t < n_tokens; t++) {
            const float *y = (const float *)(const void *)whole->y[p].data + t * ldy;
            float *to = expected + (first + t) * rows;
            if (is_new) {
                memcpy(to, y, rows * sizeof *y);
            }
            const size_t r = drllm_first_difference(y, to, rows);
            if (r != rows) {
                fail_msg("product %zu of %zu columns, tokens %zu + %zu: row %zu is %a, expected %a", p,
                         whole->size->cols, first, t, r, (double)y[r], (double)to[r]);
            }
            for (size_t i = rows; i < ldy && t + 1 < n_tokens; i++) {
                assert_int_equal(drllm_f32_to_bits(y[i]), UINT32_MAX); /* between the rows */
            }
        }
        expected += whole->size->n_tokens * rows;
    }
}

/* Against sums in double over the weights' and the activations' values. */
static void check_whole(const struct whole *whole, const float *results) {
    const size_t cols = whole->size->cols;
    for (size_t p = 0; p < whole->size->n_products; p++) {
        const struct weights *w = &whole->weights[p];
        const size_t group = w->format == DRLLM_FORMAT_Q8C ? cols : DRLLM_GROUP;
        double *x = allocate(cols, sizeof *x);
        for (size_t t = 0; t < whole->size->n_tokens; t++) {
            const float *from = whole->x + t * cols;
            double max = 0.0;
            for (size_t c = 0; c < cols; c++) {
                if (c % group == 0) {
                    max = 0.0;
                    for (size_t i = c; i < c + group && i < cols; i++) {
                        max = fmax(max, fabs((double)from[i]));
                    }
                }
                x[c] = is_float(w->format) || max == 0.0 ? from[c] : rint((double)from[c] / max * 127.0) * max / 127.0;
            }
            for (size_t r = 0; r < w->rows; r++) {
                double sum = 0.0;
                double magnitude = 0.0;
                double step = 0.0; /* one value may round the other way in float */
                for (size_t c = 0; c < cols; c++) {
                    const double weight = w->values[r * cols + c];
                    sum += weight * x[c];
                    magnitude += w->magnitude[r * cols + c] * fabs(x[c]);
                    step = fmax(step, fabs(weight));
                }
                const double n_roundings = is_float(w->format) ? (double)cols : (double)cols / 16.0;
                const double y = results[t * w->rows + r];
                const double bound =
                    magnitude * (n_roundings + 8.0) * 0x1p-24 + (is_float(w->format) ? 0.0 : step / 64.0);
                if (!(fabs(y - sum) <= bound)) {
                    fail_msg("product %zu of %zu columns, token %zu, row %zu: %g, expected %g", p, cols, t, r, y, sum);
                }
            }
        }
        free(x);
        results += whole->size->n_tokens * w->rows;
    }
}

static void run_product_case(const struct product_case *size, uint64_t features) {
    struct whole *whole = allocate(1, sizeof *whole);
    const struct drllm_vec_ops *vec = drllm_vec_choose(features);
    uint64_t random = size->cols + size->n_tokens;
    size_t n_results = 0;
    whole->size = size;
    for (size_t p = 0; p < size->n_products; p++) {
        struct weights *w = &whole->weights[p];
        *w = make_weights(size->formats[p], size->rows[p], size->cols, &random, ORDINARY);
        const void *packed = drllm_fence_copy(&whole->packed[p], w->packed, w->packed_bytes, DRLLM_FENCE_BEHIND);
        whole->matrices[p] = (struct drllm_matrix){.format = size->formats[p],
                                                   .rows = size->rows[p],
                                                   .cols = size->cols,
                                                   .kernel = drllm_kernel_choose(size->formats[p], features),
                                                   .data = packed,
                                                   .panel_bytes = w->panel_bytes};
        n_results += size->rows[p] * size->n_tokens;
    }
    whole->x = allocate(size->n_tokens * size->cols, sizeof *whole->x);
    for (size_t i = 0; i < size->n_tokens * size->cols; i++) {
        whole->x[i] = drllm_random_float(&random);
    }

    float *expected = allocate(n_results, sizeof *expected);
    run_whole(whole, vec, 0, size->n_tokens, NULL, DRLLM_FENCE_BEHIND);
    take_whole(whole, 0, size->n_tokens, expected, true);
    check_whole(whole, expected);
    for (unsigned n_threads = 1; n_threads <= 3; n_threads++) {
        struct drllm_threads *threads = drllm_threads_create(n_threads);
        assert_non_null(threads);
        const enum drllm_fence_side side = n_threads == 2 ? DRLLM_FENCE_BEFORE : DRLLM_FENCE_BEHIND;
        run_whole(whole, vec, 0, size->n_tokens, threads, side);
        take_whole(whole, 0, size->n_tokens, expected, false);
        /* A batch in parts: one token, some, the rest. */
        const size_t cuts[] = {0, 1, 1 + size->n_tokens / 3, size->n_tokens};
        for (size_t i = 0; i + 1 < LENGTH(cuts) && n_threads == 2; i++) {
            if (cuts[i] < cuts[i + 1]) {
                run_whole(whole, vec, cuts[i], cuts[i + 1] - cuts[i], threads, side);
                take_whole(whole, cuts[i], cuts[i + 1] - cuts[i], expected, false);
            }
        }
        drllm_threads_destroy(threads);
    }
    free(expected);
    free(whole->x);
    for (size_t p = 0; p < size->n_products; p++) {
        free_weights(&whole->weights[p]);
        drllm_fence_free(&whole->packed[p]);
        drllm_fence_free(&whole->y[p]);
    }
    drllm_fence_free(&whole->tail);
    drllm_fence_free(&whole->memory);
    drllm_fence_free(&whole->input);
    free(whole);
}

static void test_matmul(void **state) {
    const char *level = *state;
    uint64_t mask;
    assert_true(drllm_cpu_parse_mask(level, &mask, NULL, 0));
    for (size_t i = 0; i < LENGTH(product_cases); i++) {
        run_product_case(&product_cases[i], mask & drllm_cpu_detect());
    }
}

static void test_quantisation(void **state) {
    (void)state;
    for (size_t f = 0; f < LENGTH(formats); f++) {
        const struct drllm_matrix matrix = {.format = formats[f], .kernel = drllm_kernel_choose(formats[f], 0)};
        const enum drllm_quantisation expected = is_float(formats[f])             ? DRLLM_QUANT_NONE
                                                 : formats[f] == DRLLM_FORMAT_Q8C ? DRLLM_QUANT_ROW
                                                                                  : DRLLM_QUANT_GROUP;
        assert_int_equal(drllm_matrix_quantisation(&matrix), expected);
    }
}

int drllm_test_kernels(void) {
    static char none[] = "none";
    static char all[] = "all";
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_choose),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_activations_overflow),
        cmocka_unit_test(test_quantisation),
        {"test_matmul none", test_matmul, NULL, NULL, none},
        {"test_matmul all", test_matmul, NULL, NULL, all},
    };
    size_t n_kernels;
    const struct drllm_kernel *kernels = drllm_kernels(&n_kernels);
    const size_t n_tests = n_kernels + LENGTH(fixed);
    struct CMUnitTest *tests = calloc(n_tests, sizeof *tests);
    if (tests == NULL) {
        return -1;
    }
    for (size_t i = 0; i < n_kernels; i++) { /* *state is not const */
        tests[i] = (struct CMUnitTest){kernels[i].name, test_kernel, NULL, NULL, (void *)&kernels[i]};
    }
    memcpy(tests + n_kernels, fixed, sizeof fixed);
    const int result = drllm_run_group_tests("kernels", tests, n_tests, NULL, NULL);
    free(tests);
    return result;
}
