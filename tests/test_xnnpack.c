/* Products by XNNPACK against plain C: what is computed, what is shared, and what a result may depend on. */
#include "tests/tests.h"

#include "platform/cpu.h"
#include "platform/threads.h"
#include "quant/half.h"
#include "quant/matmul_xnnpack.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Random data ---- */

static uint32_t random_state;

static uint32_t random_bits(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static float random_float(float low, float high) {
    return low + (high - low) * (float)random_bits() / 16777216.0F;
}

static void *get_memory(size_t size) {
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    assert_non_null(memory);
    return memory;
}

/* ---- The callback's memory ---- */

enum { MAX_KEPT = 4 };

struct keeper {
    void *kept[MAX_KEPT];
    size_t n_kept;
    size_t fail_at; /* the call that returns NULL; MAX_KEPT: none */
};

static void *keep(void *user, size_t size, size_t alignment) {
    struct keeper *keeper = user;
    assert_int_equal(alignment, 64);
    if (keeper->n_kept == keeper->fail_at || keeper->n_kept == MAX_KEPT) {
        return NULL;
    }
    keeper->kept[keeper->n_kept] = get_memory(size);
    return keeper->kept[keeper->n_kept++];
}

static void release(struct keeper *keeper) {
    for (size_t i = 0; i < keeper->n_kept; i++) {
        free(keeper->kept[i]);
    }
    keeper->n_kept = 0;
}

/* ---- The same in plain C ---- */

struct reference_row {
    int8_t *q;
    int32_t zero_point;
    float scale;
};

/* As XNNPACK's f32 -> qd8 conversion: the range always holds 0, and the end with the lesser error fixes the zero
 * point. */
static void reference_quantize(const float *x, size_t cols, struct reference_row *row) {
    float least = 0.0F;
    float most = 0.0F;
    for (size_t i = 0; i < cols; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    const float inverse = least == most ? 1.0F : 255.0F / (most - least);
    const float low = least * inverse;
    const float high = most * inverse;
    float zero_point = (-128.0F + low) + (127.0F + high) > 0.0F ? -128.0F - low : 127.0F - high;
    zero_point = zero_point < -128.0F ? -128.0F : zero_point;
    zero_point = zero_point > 127.0F ? 127.0F : zero_point;
    row->zero_point = (int32_t)lrintf(zero_point);
    row->scale = 1.0F / inverse;
    for (size_t i = 0; i < cols; i++) {
        const long q = lrintf(x[i] * (1.0F / row->scale)) + row->zero_point;
        row->q[i] = (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
    }
}

/* A matrix with what a test needs to know about it. */
struct matrix {
    enum drllm_format format;
    size_t rows;
    size_t cols;
    int8_t *q; /* [rows][cols], also for qb4w */
    float *scales;
    struct keeper keeper;
    struct drllm_xnn_weights *weights;
};

static struct matrix make_matrix(enum drllm_format format, size_t rows, size_t cols) {
    struct matrix matrix = {.format = format, .rows = rows, .cols = cols, .keeper = {.fail_at = MAX_KEPT}};
    const size_t n_scales = format == DRLLM_FORMAT_Q8C ? rows : rows * cols / DRLLM_GROUP;
    matrix.q = get_memory(rows * cols);
    matrix.scales = get_memory(n_scales * sizeof(float));
    uint16_t *half_scales = get_memory(n_scales * sizeof(uint16_t));
    uint8_t *nibbles = get_memory(rows * cols / 2 + 1);
    for (size_t i = 0; i < rows * cols; i++) {
        matrix.q[i] =
            (int8_t)(format == DRLLM_FORMAT_Q8C ? (int)(random_bits() % 255) - 127 : (int)(random_bits() % 16) - 8);
    }
    for (size_t i = 0; i < n_scales; i++) {
        half_scales[i] = drllm_f32_to_bf16(random_float(0.001F, 0.02F));
        matrix.scales[i] =
            format == DRLLM_FORMAT_Q8C ? random_float(0.0001F, 0.002F) : drllm_bf16_to_f32(half_scales[i]);
    }
    enum drllm_xnn_status status;
    if (format == DRLLM_FORMAT_Q8C) {
        matrix.scales[rows / 2] = 0.0F;
        status = drllm_xnn_pack_q8c(matrix.q, matrix.scales, rows, cols, keep, &matrix.keeper, &matrix.weights);
    } else {
        for (size_t i = 0; i < rows * cols / 2; i++) {
            nibbles[i] = (uint8_t)((matrix.q[2 * i] + 8) | (matrix.q[2 * i + 1] + 8) << 4);
        }
        status = drllm_xnn_pack_qb4w(nibbles, half_scales, rows, cols, keep, &matrix.keeper, &matrix.weights);
    }
    assert_int_equal(status, DRLLM_XNN_OK);
    assert_int_equal(matrix.keeper.n_kept, 2);
    assert_true(drllm_xnn_weights_bytes(matrix.weights) >=
                (format == DRLLM_FORMAT_Q8C ? rows * cols : rows * cols / 2));
    free(half_scales);
    free(nibbles);
    return matrix;
}

static void free_matrix(struct matrix *matrix) {
    free(matrix->q);
    free(matrix->scales);
    release(&matrix->keeper);
}

static void make_op(struct drllm_xnn_op *op, const struct matrix *matrix, size_t ldy) {
    void *scratch = get_memory(drllm_xnn_op_scratch_bytes(matrix->weights) + 1);
    assert_int_equal(drllm_xnn_op_create(op, matrix->weights, ldy, scratch), DRLLM_XNN_OK);
    free(scratch);
}

static void make_input(struct drllm_xnn_input *input, void **memory, size_t max_tokens, size_t max_cols) {
    *memory = get_memory(drllm_xnn_input_bytes(max_tokens, max_cols));
    assert_int_equal(drllm_xnn_input_create(input, *memory, max_tokens, max_cols), DRLLM_XNN_OK);
}

/* Rows of different kinds: positive ones, negative ones, all zeros, one far value. */
static float *make_x(size_t n_tokens, size_t cols, size_t ldx) {
    float *x = get_memory(n_tokens * ldx * sizeof(float) + DRLLM_XNN_EXTRA_BYTES);
    for (size_t t = 0; t < n_tokens; t++) {
        const float low = t % 5 == 1 ? 0.5F : -2.0F;
        const float high = t % 5 == 2 ? -0.25F : 3.0F;
        for (size_t i = 0; i < ldx; i++) {
            x[t * ldx + i] = i >= cols ? NAN : t % 5 == 3 ? 0.0F : random_float(low, high);
        }
        x[t * ldx + cols / 2] = t % 5 == 4 ? 50.0F : x[t * ldx + cols / 2];
    }
    return x;
}

static void check_row(const struct matrix *matrix, const struct reference_row *x, const float *y) {
    for (size_t r = 0; r < matrix->rows; r++) {
        const int8_t *w = matrix->q + r * matrix->cols;
        if (matrix->format == DRLLM_FORMAT_Q8C) {
            int32_t sum = 0;
            for (size_t i = 0; i < matrix->cols; i++) {
                sum += w[i] * (x->q[i] - x->zero_point);
            }
            assert_true(y[r] == (float)sum * x->scale * matrix->scales[r]);
            continue;
        }
        double expected = 0.0;
        double size = 0.0;
        for (size_t i = 0; i < matrix->cols; i++) {
            const double scale = (double)x->scale * (double)matrix->scales[(r * matrix->cols + i) / DRLLM_GROUP];
            expected += scale * (double)(w[i] * (x->q[i] - x->zero_point));
            size += scale * (double)(abs(w[i]) * (abs(x->q[i]) + abs(x->zero_point)));
        }
        /* Kernels add the zero point's share apart, so the error goes with the size of the parts. */
        assert_true(fabs((double)y[r] - expected) <= 1e-6 * size);
    }
}

static const float untouched = 12345.0F;

static void check_product(const struct matrix *matrix, size_t n_tokens, struct drllm_threads *threads) {
    const size_t ldx = matrix->cols + 3;
    const size_t ldy = matrix->rows + 5;
    float *x = make_x(n_tokens, matrix->cols, ldx);
    float *y = get_memory(n_tokens * ldy * sizeof *y);
    for (size_t i = 0; i < n_tokens * ldy; i++) {
        y[i] = untouched;
    }
    struct drllm_xnn_op op;
    struct drllm_xnn_input input;
    void *memory;
    make_op(&op, matrix, ldy);
    make_input(&input, &memory, n_tokens + 1, matrix->cols + 7);
    assert_int_equal(drllm_xnn_input_fill(&input, x, ldx, n_tokens, matrix->cols, threads), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, y, ldy, threads), DRLLM_XNN_OK);
    struct reference_row row = {.q = get_memory(matrix->cols)};
    for (size_t t = 0; t < n_tokens; t++) {
        reference_quantize(x + t * ldx, matrix->cols, &row);
        check_row(matrix, &row, y + t * ldy);
        for (size_t r = matrix->rows; r < ldy; r++) {
            assert_true(y[t * ldy + r] == untouched);
        }
    }
    drllm_xnn_op_destroy(&op);
    drllm_xnn_input_destroy(&input);
    free(memory);
    free(row.q);
    free(x);
    free(y);
}

static void check_products(enum drllm_format format, const size_t (*shapes)[2], size_t n_shapes) {
    static const size_t tokens[] = {1, 2, 3, 4, 5, 8, 10, 11, 14, 17, 33};
    struct drllm_threads *pools[] = {NULL, drllm_threads_create(1), drllm_threads_create(2)};
    for (size_t s = 0; s < n_shapes; s++) {
        struct matrix matrix = make_matrix(format, shapes[s][0], shapes[s][1]);
        for (size_t t = 0; t < sizeof tokens / sizeof tokens[0]; t++) {
            check_product(&matrix, tokens[t], pools[t % 3]);
            check_product(&matrix, tokens[t], pools[(t + 1) % 3]);
        }
        free_matrix(&matrix);
    }
    drllm_threads_destroy(pools[1]);
    drllm_threads_destroy(pools[2]);
}

static void test_q8c(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 1},   {2, 5},     {7, 32},   {8, 33},    {9, 64},  {31, 100},
                                       {64, 96}, {129, 127}, {65, 576}, {17, 1536}, {192, 48}};
    check_products(DRLLM_FORMAT_Q8C, shapes, sizeof shapes / sizeof shapes[0]);
}

static void test_qb4w(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 64},   {7, 64},    {8, 128},  {9, 192},
                                       {31, 320}, {129, 192}, {65, 576}, {17, 1536}};
    check_products(DRLLM_FORMAT_QB4W, shapes, sizeof shapes / sizeof shapes[0]);
}

/* A row alone, in every batch, on one and on two threads: the same bits. */
static void check_batches(enum drllm_format format, size_t rows, size_t cols) {
    enum { TOKENS = 33 };
    struct matrix matrix = make_matrix(format, rows, cols);
    struct drllm_threads *pool = drllm_threads_create(2);
    struct drllm_xnn_op op;
    struct drllm_xnn_input input;
    void *memory;
    make_op(&op, &matrix, rows);
    make_input(&input, &memory, TOKENS, cols);
    float *x = make_x(TOKENS, cols, cols);
    float *alone = get_memory(TOKENS * rows * sizeof *alone);
    float *together = get_memory(TOKENS * rows * sizeof *together);
    for (size_t t = 0; t < TOKENS; t++) {
        assert_int_equal(drllm_xnn_input_fill(&input, x + t * cols, cols, 1, cols, NULL), DRLLM_XNN_OK);
        assert_int_equal(drllm_xnn_op_run(&op, &input, alone + t * rows, rows, NULL), DRLLM_XNN_OK);
    }
    for (size_t n = 1; n <= TOKENS; n++) {
        const size_t first = (TOKENS - n) / 2;
        struct drllm_threads *threads = n % 2 == 0 ? pool : NULL;
        memset(together, 0, TOKENS * rows * sizeof *together);
        assert_int_equal(drllm_xnn_input_fill(&input, x + first * cols, cols, n, cols, threads), DRLLM_XNN_OK);
        assert_int_equal(drllm_xnn_op_run(&op, &input, together, rows, threads), DRLLM_XNN_OK);
        assert_memory_equal(together, alone + first * rows, n * rows * sizeof *alone);
    }
    /* One row on two threads as well. */
    assert_int_equal(drllm_xnn_input_fill(&input, x, cols, 1, cols, pool), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, together, rows, pool), DRLLM_XNN_OK);
    assert_memory_equal(together, alone, rows * sizeof *alone);
    drllm_xnn_op_destroy(&op);
    drllm_xnn_input_destroy(&input);
    drllm_threads_destroy(pool);
    free(memory);
    free(x);
    free(alone);
    free(together);
    free_matrix(&matrix);
}

static void test_batch_independent(void **state) {
    (void)state;
    check_batches(DRLLM_FORMAT_Q8C, 577, 576);
    check_batches(DRLLM_FORMAT_Q8C, 33, 101);
    check_batches(DRLLM_FORMAT_QB4W, 577, 576);
    check_batches(DRLLM_FORMAT_QB4W, 33, 1536);
}

/* Operators are made from packed weights alone: nothing is allocated, and what was packed is not read again. */
static void test_packed_once(void **state) {
    (void)state;
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q8C, DRLLM_FORMAT_QB4W};
    for (size_t f = 0; f < 2; f++) {
        struct matrix matrix = make_matrix(formats[f], 70, 128);
        const size_t bytes = drllm_xnn_weights_bytes(matrix.weights);
        unsigned char *copy = get_memory(bytes);
        memcpy(copy, matrix.keeper.kept[1], bytes);
        matrix.keeper.fail_at = matrix.keeper.n_kept;
        struct drllm_xnn_op ops[3];
        for (size_t i = 0; i < 3; i++) {
            make_op(&ops[i], &matrix, 70 + i);
        }
        for (size_t i = 0; i < 3; i++) {
            drllm_xnn_op_destroy(&ops[i]);
        }
        check_product(&matrix, 6, NULL);
        assert_int_equal(matrix.keeper.n_kept, 2);
        assert_memory_equal(copy, matrix.keeper.kept[1], bytes);
        free(copy);
        free_matrix(&matrix);
    }
}

/* Several inputs' worth of matrices in turn, as a session uses them: one input, filled with other shapes again and
 * again. */
static void test_input_reuse(void **state) {
    (void)state;
    struct matrix first = make_matrix(DRLLM_FORMAT_Q8C, 24, 100);
    struct matrix second = make_matrix(DRLLM_FORMAT_QB4W, 40, 64);
    struct drllm_xnn_op ops[2];
    struct drllm_xnn_input input;
    void *memory;
    make_op(&ops[0], &first, 24);
    make_op(&ops[1], &second, 40);
    make_input(&input, &memory, 9, 100);
    for (size_t n = 9; n > 0; n -= 4) {
        const struct matrix *const matrices[] = {&first, &second};
        for (size_t m = 0; m < 2; m++) {
            const struct matrix *matrix = matrices[m];
            float *x = make_x(n, matrix->cols, matrix->cols);
            float *y = get_memory(n * matrix->rows * sizeof *y);
            struct reference_row row = {.q = get_memory(matrix->cols)};
            assert_int_equal(drllm_xnn_input_fill(&input, x, matrix->cols, n, matrix->cols, NULL), DRLLM_XNN_OK);
            for (size_t again = 0; again < 2; again++) {
                memset(y, 0, n * matrix->rows * sizeof *y);
                assert_int_equal(drllm_xnn_op_run(&ops[m], &input, y, matrix->rows, NULL), DRLLM_XNN_OK);
                for (size_t t = 0; t < n; t++) {
                    reference_quantize(x + t * matrix->cols, matrix->cols, &row);
                    check_row(matrix, &row, y + t * matrix->rows);
                }
            }
            free(row.q);
            free(x);
            free(y);
        }
        if (n < 4) {
            break;
        }
    }
    drllm_xnn_op_destroy(&ops[0]);
    drllm_xnn_op_destroy(&ops[1]);
    drllm_xnn_input_destroy(&input);
    free(memory);
    free_matrix(&first);
    free_matrix(&second);
}

/* ---- Sessions that share weights, at the same time ---- */

enum { SESSIONS = 2, ROUNDS = 40, SHARED_TOKENS = 5 };

struct shared_work {
    const struct matrix *matrices; /* [2] */
    const float *x;
    float *expected[2];
    int failures[SESSIONS]; /* cmocka's assertions are for its own thread */
};

static int run_session(const struct shared_work *work) {
    int failures = 0;
    for (size_t round = 0; round < ROUNDS; round++) {
        const struct matrix *matrix = &work->matrices[round % 2];
        const size_t bytes = SHARED_TOKENS * matrix->rows * sizeof(float);
        const size_t input_bytes = drllm_xnn_input_bytes(SHARED_TOKENS, matrix->cols);
        void *memory = aligned_alloc(64, (input_bytes + 63) / 64 * 64);
        void *scratch = malloc(drllm_xnn_op_scratch_bytes(matrix->weights) + 1);
        float *y = malloc(bytes);
        struct drllm_xnn_op op = {0};
        struct drllm_xnn_input input = {0};
        if (memory == NULL || scratch == NULL || y == NULL ||
            drllm_xnn_op_create(&op, matrix->weights, matrix->rows, scratch) != DRLLM_XNN_OK ||
            drllm_xnn_input_create(&input, memory, SHARED_TOKENS, matrix->cols) != DRLLM_XNN_OK ||
            drllm_xnn_input_fill(&input, work->x, matrix->cols, SHARED_TOKENS, matrix->cols, NULL) != DRLLM_XNN_OK ||
            drllm_xnn_op_run(&op, &input, y, matrix->rows, NULL) != DRLLM_XNN_OK ||
            memcmp(y, work->expected[round % 2], bytes) != 0) {
            failures++;
        }
        drllm_xnn_op_destroy(&op);
        drllm_xnn_input_destroy(&input);
        free(memory);
        free(scratch);
        free(y);
    }
    return failures;
}

static void session_task(void *context, size_t worker, size_t index) {
    (void)worker;
    struct shared_work *work = context;
    work->failures[index] = run_session(work);
}

static void test_shared_weights(void **state) {
    (void)state;
    struct matrix matrices[2] = {make_matrix(DRLLM_FORMAT_Q8C, 130, 64), make_matrix(DRLLM_FORMAT_QB4W, 130, 64)};
    struct shared_work work = {.matrices = matrices, .x = make_x(SHARED_TOKENS, 64, 64)};
    struct drllm_xnn_input input;
    void *memory;
    make_input(&input, &memory, SHARED_TOKENS, 64);
    assert_int_equal(drllm_xnn_input_fill(&input, work.x, 64, SHARED_TOKENS, 64, NULL), DRLLM_XNN_OK);
    for (size_t m = 0; m < 2; m++) {
        struct drllm_xnn_op op;
        work.expected[m] = get_memory(SHARED_TOKENS * 130 * sizeof(float));
        make_op(&op, &matrices[m], 130);
        assert_int_equal(drllm_xnn_op_run(&op, &input, work.expected[m], 130, NULL), DRLLM_XNN_OK);
        drllm_xnn_op_destroy(&op);
    }
    struct drllm_threads *threads = drllm_threads_create(SESSIONS);
    drllm_threads_run(threads, session_task, &work, SESSIONS);
    drllm_threads_destroy(threads);
    for (size_t i = 0; i < SESSIONS; i++) {
        assert_int_equal(work.failures[i], 0);
    }
    drllm_xnn_input_destroy(&input);
    free(memory);
    free((void *)(uintptr_t)work.x);
    for (size_t m = 0; m < 2; m++) {
        free(work.expected[m]);
        free_matrix(&matrices[m]);
    }
}

/* ---- Errors ---- */

static void test_errors(void **state) {
    (void)state;
    static const int8_t q[64] = {1};
    static const uint8_t nibbles[64] = {0x88};
    static const float scales[2] = {1.0F, 1.0F};
    static const uint16_t half_scales[4] = {0x3f80, 0x3f80, 0x3f80, 0x3f80};
    static const uint16_t bad_scales[4] = {0x3f80, 0x3f80, 0x3f80, 0};
    struct drllm_xnn_weights *weights;
    struct keeper none = {.fail_at = 0};
    /* Both of the two allocations. */
    for (size_t fail_at = 0; fail_at < 2; fail_at++) {
        struct keeper keeper = {.fail_at = fail_at};
        assert_int_equal(drllm_xnn_pack_q8c(q, scales, 2, 32, keep, &keeper, &weights), DRLLM_XNN_MEMORY);
        assert_null(weights);
        release(&keeper);
        assert_int_equal(drllm_xnn_pack_qb4w(nibbles, half_scales, 2, 64, keep, &keeper, &weights), DRLLM_XNN_MEMORY);
        assert_null(weights);
        release(&keeper);
    }
    assert_int_equal(drllm_xnn_pack_q8c(q, scales, 2, 0, keep, &none, &weights), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_pack_q8c(q, scales, 0, 32, keep, &none, &weights), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_pack_q8c(q, scales, SIZE_MAX / 32, 32, keep, &none, &weights), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_pack_q8c(q, scales, 2, 65537, keep, &none, &weights), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_pack_qb4w(nibbles, half_scales, 2, 32, keep, &none, &weights), DRLLM_XNN_ARGUMENT);
    struct keeper keeper = {.fail_at = MAX_KEPT};
    assert_int_equal(drllm_xnn_pack_qb4w(nibbles, bad_scales, 2, 64, keep, &keeper, &weights), DRLLM_XNN_ARGUMENT);
    release(&keeper);

    struct matrix matrix = make_matrix(DRLLM_FORMAT_Q8C, 4, 32);
    struct drllm_xnn_op op;
    assert_int_equal(drllm_xnn_op_create(&op, matrix.weights, 3, NULL), DRLLM_XNN_ARGUMENT);
    drllm_xnn_op_destroy(&op);
    make_op(&op, &matrix, 4);
    struct drllm_xnn_input input;
    void *memory;
    make_input(&input, &memory, 2, 40);
    float *x = make_x(3, 40, 40);
    float y[16];
    assert_int_equal(drllm_xnn_input_fill(&input, x, 40, 3, 32, NULL), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_input_fill(&input, x, 41, 2, 41, NULL), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_input_fill(&input, x, 31, 2, 32, NULL), DRLLM_XNN_ARGUMENT);
    assert_int_equal(drllm_xnn_input_fill(&input, x, 40, 2, 40, NULL), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, y, 4, NULL), DRLLM_XNN_ARGUMENT); /* other cols */
    assert_int_equal(drllm_xnn_input_fill(&input, x, 40, 2, 32, NULL), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, y, 5, NULL), DRLLM_XNN_ARGUMENT); /* other ldy */
    assert_int_equal(drllm_xnn_input_fill(&input, x, 40, 1, 32, NULL), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, y, 5, NULL), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_input_fill(&input, x, 40, 0, 32, NULL), DRLLM_XNN_OK);
    assert_int_equal(drllm_xnn_op_run(&op, &input, y, 4, NULL), DRLLM_XNN_OK);
    assert_true(drllm_xnn_input_bytes(SIZE_MAX / 2, 64) == 0);
    assert_true(drllm_xnn_input_bytes(1, SIZE_MAX) == 0);
    drllm_xnn_op_destroy(&op);
    drllm_xnn_input_destroy(&input);
    free(memory);
    free(x);
    free_matrix(&matrix);
}

static void test_start(void **state) {
    (void)state;
    assert_int_equal(drllm_xnn_start(UINT64_C(1) << 63), DRLLM_XNN_OTHER_MASK);
}

static void test_fits(void **state) {
    (void)state;
    assert_true(drllm_xnn_q8c_fits(1) && drllm_xnn_q8c_fits(577) && drllm_xnn_q8c_fits(65536));
    assert_false(drllm_xnn_q8c_fits(0) || drllm_xnn_q8c_fits(65537));
    assert_true(drllm_xnn_qb4w_fits(64) && drllm_xnn_qb4w_fits(576));
    assert_false(drllm_xnn_qb4w_fits(0) || drllm_xnn_qb4w_fits(96));
}

/* ---- Making qb4w ---- */

static float qb4w_value(const uint8_t *q, const uint16_t *scales, size_t i) {
    const int nibble = i % 2 == 0 ? q[i / 2] & 15 : q[i / 2] >> 4;
    return drllm_bf16_to_f32(scales[i / DRLLM_GROUP]) * (float)(nibble - 8);
}

static double square_error(const float *x, const uint8_t *q, const uint16_t *scales, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double error = (double)x[i] - (double)qb4w_value(q, scales, i);
        sum += error * error;
    }
    return sum;
}

/* The error without a search: the scale that clips nothing. */
static double plain_square_error(const float *x, size_t n) {
    double sum = 0.0;
    for (size_t first = 0; first < n; first += DRLLM_GROUP) {
        float scale = 0.0F;
        for (size_t i = first; i < first + DRLLM_GROUP; i++) {
            scale = fmaxf(scale, fmaxf(x[i] / 7.0F, x[i] / -8.0F));
        }
        for (size_t i = first; i < first + DRLLM_GROUP && scale > 0.0F; i++) {
            const double error = (double)x[i] - (double)(scale * rintf(x[i] / scale));
            sum += error * error;
        }
    }
    return sum;
}

static void test_qb4w_row(void **state) {
    (void)state;
    enum { N = 2048 };
    static float x[N];
    uint8_t q[N / 2];
    uint16_t scales[N / DRLLM_GROUP];
    static const float sizes[] = {0.04F, 1.0F, 3.0e30F, 1.0e-20F};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (size_t i = 0; i < N; i++) { /* nearly normal */
            x[i] = sizes[s] * (random_float(-1.0F, 1.0F) + random_float(-1.0F, 1.0F) + random_float(-1.0F, 1.0F));
        }
        assert_true(drllm_xnn_qb4w_row(x, q, scales, N));
        const double error = square_error(x, q, scales, N);
        assert_true(error < 0.9 * plain_square_error(x, N));
    }
    /* Values of the format stay what they are. */
    for (size_t i = 0; i < N; i++) {
        x[i] = 0.25F * (float)(i % DRLLM_GROUP == 5 ? -8 : (int)(random_bits() % 16) - 8);
    }
    assert_true(drllm_xnn_qb4w_row(x, q, scales, N));
    assert_true(square_error(x, q, scales, N) == 0.0);
    /* Zeros, also beside other groups, and values too small for a scale. */
    memset(x, 0, 2 * DRLLM_GROUP * sizeof *x);
    x[DRLLM_GROUP] = 1.0e-38F;
    assert_true(drllm_xnn_qb4w_row(x, q, scales, N));
    for (size_t i = 0; i < 2 * DRLLM_GROUP; i++) {
        assert_true(qb4w_value(q, scales, i) == 0.0F);
    }
    assert_true(isnormal(drllm_bf16_to_f32(scales[0])) && isnormal(drllm_bf16_to_f32(scales[1])));
    for (size_t i = 0; i < DRLLM_GROUP; i++) {
        x[i] = i == 0 ? FLT_MAX : -FLT_MAX;
    }
    assert_true(drllm_xnn_qb4w_row(x, q, scales, DRLLM_GROUP));
    assert_true(isnormal(drllm_bf16_to_f32(scales[0])));
    x[7] = INFINITY;
    assert_false(drllm_xnn_qb4w_row(x, q, scales, N));
    x[7] = NAN;
    assert_false(drllm_xnn_qb4w_row(x, q, scales, N));
    assert_false(drllm_xnn_qb4w_row(x + DRLLM_GROUP, q, scales, 48));
}

static void test_qb4w_row_from_q4_0(void **state) {
    (void)state;
    enum { GROUPS = 5, N = GROUPS * DRLLM_GROUP };
    struct drllm_block_q4_0 blocks[GROUPS];
    static const float d[GROUPS] = {0.03125F, -0.03125F, -0.03125F, 0.0F, -0.0F};
    float x[N];
    uint8_t q[N / 2];
    uint16_t scales[GROUPS];
    for (size_t g = 0; g < GROUPS; g++) {
        blocks[g].d = drllm_f32_to_f16(d[g]);
        for (size_t i = 0; i < 16; i++) {
            const unsigned low = g == 1 ? 1 + random_bits() % 15 : random_bits() % 16;
            const unsigned high = g == 1 ? 1 + random_bits() % 15 : random_bits() % 16;
            blocks[g].qs[i] = (uint8_t)(low | high << 4);
        }
        blocks[g].qs[3] = (uint8_t)(g == 2 ? 0xf0 : blocks[g].qs[3]); /* the lone -8 */
        drllm_dequantize_row(DRLLM_FORMAT_Q4_0, &blocks[g], x + g * DRLLM_GROUP, DRLLM_GROUP);
    }
    assert_true(drllm_xnn_qb4w_row_from_q4_0(blocks, q, scales, N));
    for (size_t g = 0; g < GROUPS; g++) {
        const double error = square_error(x + g * DRLLM_GROUP, q + g * DRLLM_GROUP / 2, scales + g, DRLLM_GROUP);
        if (g != 2) { /* this scale is a bf16 number */
            assert_true(error == 0.0);
        }
        assert_true(error <= DRLLM_GROUP * 0.03125 * 0.03125 / 6.0);
        assert_true(isnormal(drllm_bf16_to_f32(scales[g])) && (scales[g] & 0x8000u) == 0);
    }
    blocks[1].d = 0x7c00; /* infinity */
    assert_false(drllm_xnn_qb4w_row_from_q4_0(blocks, q, scales, N));
    assert_true(drllm_xnn_qb4w_row_from_q4_0(blocks, q, scales, DRLLM_GROUP));
    assert_false(drllm_xnn_qb4w_row_from_q4_0(blocks, q, scales, 33));
}

/* ---- A build without XNNPACK ---- */

static void test_unavailable(void **state) {
    (void)state;
    struct keeper keeper = {.fail_at = 0};
    struct drllm_xnn_weights *weights;
    struct drllm_xnn_input input;
    struct drllm_xnn_op op;
    const int8_t q = 1;
    const float one = 1.0F;
    float y = 0.0F;
    assert_int_equal(drllm_xnn_start(0), DRLLM_XNN_UNAVAILABLE);
    assert_int_equal(drllm_xnn_pack_q8c(&q, &one, 1, 1, keep, &keeper, &weights), DRLLM_XNN_UNAVAILABLE);
    assert_null(weights);
    assert_int_equal(drllm_xnn_pack_qb4w(NULL, NULL, 1, 32, keep, &keeper, &weights), DRLLM_XNN_UNAVAILABLE);
    assert_int_equal(drllm_xnn_input_create(&input, NULL, 1, 1), DRLLM_XNN_UNAVAILABLE);
    assert_int_equal(drllm_xnn_input_fill(&input, &one, 1, 1, 1, NULL), DRLLM_XNN_UNAVAILABLE);
    assert_int_equal(drllm_xnn_op_create(&op, NULL, 1, NULL), DRLLM_XNN_UNAVAILABLE);
    assert_int_equal(drllm_xnn_op_run(&op, &input, &y, 1, NULL), DRLLM_XNN_UNAVAILABLE);
    drllm_xnn_op_destroy(&op);
    drllm_xnn_input_destroy(&input);
}

static int seed(void **state) {
    (void)state;
    random_state = 1;
    return 0;
}

/* Another test, or the runner, may have started XNNPACK with a mask of its own: that will do. */
static int start(void **state) {
    (void)seed(state);
    const enum drllm_xnn_status status = drllm_xnn_start(drllm_cpu_detect());
    return status == DRLLM_XNN_OK || status == DRLLM_XNN_OTHER_MASK ? 0 : -1;
}

int drllm_test_xnnpack(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_qb4w_row),
        cmocka_unit_test(test_qb4w_row_from_q4_0),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_q8c),
        cmocka_unit_test(test_qb4w),
        cmocka_unit_test(test_batch_independent),
        cmocka_unit_test(test_packed_once),
        cmocka_unit_test(test_input_reuse),
        cmocka_unit_test(test_shared_weights),
        cmocka_unit_test(test_errors),
    };
    static const struct CMUnitTest tests_without[] = {
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_qb4w_row),
        cmocka_unit_test(test_qb4w_row_from_q4_0),
        cmocka_unit_test(test_unavailable),
    };
    if (!drllm_xnn_available()) {
        return drllm_run_group("xnnpack", tests_without, seed, NULL);
    }
    return drllm_run_group("xnnpack", tests, start, NULL);
}
