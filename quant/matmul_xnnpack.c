#include "quant/matmul_xnnpack.h"

#include "quant/half.h"

#include <float.h>
#include <math.h>

/* ---- Making qb4w ---- */

enum { CANDIDATES = 15, ZERO_POINT = 8 };

/* Below this, scales would not be normal bf16 numbers. */
static const float least_scale = 0x1p-100f;
static const uint16_t bf16_one = 0x3f80;
static const uint16_t bf16_max = 0x7f7f;

/* The nearest of -8..7, halves rounded up, for any value within int's range. Integers, since compilers do not
 * vectorise the same with floats, whose comparisons may trap. */
static inline int32_t round_int4(float value) {
    const int32_t rounded = (int32_t)(value + 8.5F);
    const int32_t above = rounded < 0 ? 0 : rounded;
    return (above > 15 ? 15 : above) - ZERO_POINT;
}

/* The sum of a group, in an order that vectors can keep; `values` is scratch. */
static float sum_group(float values[DRLLM_GROUP]) {
    for (int i = 0; i < 16; i++) {
        values[i] += values[i + 16];
    }
    for (int i = 0; i < 8; i++) {
        values[i] += values[i + 8];
    }
    for (int i = 0; i < 4; i++) {
        values[i] += values[i + 4];
    }
    return (values[0] + values[2]) + (values[1] + values[3]);
}

/* For values y in units where no scale has to be above 1: the scale t of the candidate that explains most of the
 * square of y. With q given, the best scale is t = sum(yq) / sum(qq), and what it explains is sum(yq)^2 / sum(qq). */
static float search_scale(const float y[DRLLM_GROUP]) {
    float best = 0.0F;
    float best_scale = 1.0F;
    for (int candidate = 0; candidate < CANDIDATES; candidate++) {
        const float inverse = 1.0F / (1.0F - (float)candidate / 48.0F);
        float yq[DRLLM_GROUP];
        float qq[DRLLM_GROUP];
        for (int i = 0; i < DRLLM_GROUP; i++) {
            const float q = (float)round_int4(y[i] * inverse);
            yq[i] = y[i] * q;
            qq[i] = q * q;
        }
        const float dot = sum_group(yq);
        const float square = sum_group(qq);
        const float explained = dot * dot / square;
        if (explained > best) {
            best = explained;
            best_scale = dot / square;
        }
    }
    return best_scale;
}

/* Column 2i of a group in the low nibble of byte i. */
static void store_nibbles(const uint8_t values[DRLLM_GROUP], uint8_t *q) {
    for (size_t i = 0; i < DRLLM_GROUP / 2; i++) {
        q[i] = (uint8_t)(values[2 * i] | values[2 * i + 1] << 4);
    }
}

static bool quantize_group(const float x[DRLLM_GROUP], uint8_t *q, uint16_t *scale) {
    float most = 0.0F;
    float least = 0.0F;
    bool finite = true;
    for (int i = 0; i < DRLLM_GROUP; i++) {
        finite = finite && isfinite(x[i]);
        most = x[i] > most ? x[i] : most;
        least = x[i] < least ? x[i] : least;
    }
    if (!finite) {
        return false;
    }
    const float unit = most / 7.0F > least / -8.0F ? most / 7.0F : least / -8.0F;
    uint8_t values[DRLLM_GROUP];
    if (unit < least_scale) {
        for (int i = 0; i < DRLLM_GROUP; i++) {
            values[i] = ZERO_POINT;
        }
        *scale = bf16_one;
        store_nibbles(values, q);
        return true;
    }
    const float inverse_unit = 1.0F / unit;
    float y[DRLLM_GROUP];
    for (int i = 0; i < DRLLM_GROUP; i++) {
        y[i] = x[i] * inverse_unit;
    }
    *scale = drllm_f32_to_bf16(unit * search_scale(y));
    *scale = *scale > bf16_max ? bf16_max : *scale;
    const float inverse = 1.0F / drllm_bf16_to_f32(*scale);
    for (int i = 0; i < DRLLM_GROUP; i++) {
        values[i] = (uint8_t)(round_int4(x[i] * inverse) + ZERO_POINT);
    }
    store_nibbles(values, q);
    return true;
}

bool drllm_xnn_qb4w_row(const float *src, uint8_t *q, uint16_t *scales, size_t cols) {
    if (cols % DRLLM_GROUP != 0) {
        return false;
    }
    for (size_t group = 0; group < cols / DRLLM_GROUP; group++) {
        if (!quantize_group(src + group * DRLLM_GROUP, q + group * DRLLM_GROUP / 2, &scales[group])) {
            return false;
        }
    }
    return true;
}

static bool q4_0_block(const struct drllm_block_q4_0 *block, uint8_t *q, uint16_t *scale) {
    const float d = drllm_f16_to_f32(block->d);
    uint8_t values[DRLLM_GROUP];
    bool has_zero = false;
    for (size_t i = 0; i < DRLLM_GROUP / 2; i++) {
        values[i] = block->qs[i] & 15;
        values[i + DRLLM_GROUP / 2] = block->qs[i] >> 4;
        has_zero = has_zero || values[i] == 0 || values[i + DRLLM_GROUP / 2] == 0;
    }
    if (d > 0.0F && isfinite(d)) {
        *scale = drllm_f32_to_bf16(d);
        store_nibbles(values, q);
        return true;
    }
    if (d < 0.0F && isfinite(d) && !has_zero) {
        for (int i = 0; i < DRLLM_GROUP; i++) {
            values[i] = (uint8_t)(2 * ZERO_POINT - values[i]);
        }
        *scale = drllm_f32_to_bf16(-d);
        store_nibbles(values, q);
        return true;
    }
    float x[DRLLM_GROUP];
    for (int i = 0; i < DRLLM_GROUP; i++) {
        x[i] = d * (float)(values[i] - ZERO_POINT);
    }
    return quantize_group(x, q, scale);
}

bool drllm_xnn_qb4w_row_from_q4_0(const struct drllm_block_q4_0 *blocks, uint8_t *q, uint16_t *scales, size_t cols) {
    if (cols % DRLLM_GROUP != 0) {
        return false;
    }
    for (size_t group = 0; group < cols / DRLLM_GROUP; group++) {
        if (!q4_0_block(&blocks[group], q + group * DRLLM_GROUP / 2, &scales[group])) {
            return false;
        }
    }
    return true;
}

/* ---- Shapes ---- */

bool drllm_xnn_q8c_fits(size_t cols) {
    /* Some kernels shift activations to 0..255: 65536 * 255 * 127 is still an int32. */
    return cols > 0 && cols <= 65536;
}

bool drllm_xnn_qb4w_fits(size_t cols) {
    /* With an odd number of groups, the SSE and AVX kernels' panels are not a multiple of 16 bytes, and an aligned
     * load of the second one faults. The same rule everywhere, so that a model runs alike. */
    return drllm_xnn_q8c_fits(cols) && cols % (size_t)(2 * DRLLM_GROUP) == 0;
}

#if DRLLM_WITH_XNNPACK

#include "platform/cpu.h"
#include "platform/threads.h"

#include <cpuinfo.h>
#include <stdatomic.h>
#include <string.h>
#include <xnnpack.h>

static_assert(DRLLM_XNN_EXTRA_BYTES == XNN_EXTRA_BYTES, "what XNNPACK reads behind a tensor");

/* Kernels' tiles have up to 16 rows (XNN_MAX_MR: 32). Where the batch ends inside a tile, the rows missing are
 * computed as copies of the last one, with the parameters behind its own, and the last copy stays: so these must
 * repeat the last row's. XNNPACK's own padding (XNN_EXTRA_QUANTIZATION_PARAMS, 10) is too short for tiles of 14 and
 * 16 and gives rows of zeros. */
enum { ALIGNMENT = 64, SPARE_PARAMS = 32 };
static_assert(SPARE_PARAMS >= XNN_EXTRA_QUANTIZATION_PARAMS, "XNNPACK's own padding");

bool drllm_xnn_available(void) {
    return true;
}

/* ---- Start ---- */

enum start_state { NOT_STARTED, STARTING, STARTED, START_FAILED };

static atomic_int start_state = NOT_STARTED;
static uint64_t start_mask; /* written before STARTED is stored */

enum drllm_xnn_status drllm_xnn_start(uint64_t mask) {
    int state = NOT_STARTED;
    if (atomic_compare_exchange_strong(&start_state, &state, STARTING)) {
        start_mask = mask;
        bool started = cpuinfo_initialize();
        if (started) {
            drllm_cpu_restrict_cpuinfo(mask);
            started = xnn_initialize(NULL) == xnn_status_success;
        }
        state = started ? STARTED : START_FAILED;
        atomic_store(&start_state, state);
    }
    while (state == STARTING) { /* for a millisecond, once in a process */
        state = atomic_load(&start_state);
    }
    if (state == START_FAILED) {
        return DRLLM_XNN_UNSUPPORTED;
    }
    return start_mask == mask ? DRLLM_XNN_OK : DRLLM_XNN_OTHER_MASK;
}

static enum drllm_xnn_status status_of(enum xnn_status status) {
    switch (status) {
    case xnn_status_success:
        return DRLLM_XNN_OK;
    case xnn_status_out_of_memory:
        return DRLLM_XNN_MEMORY;
    case xnn_status_unsupported_hardware:
    case xnn_status_uninitialized:
        return DRLLM_XNN_UNSUPPORTED;
    case xnn_status_invalid_parameter:
    case xnn_status_unsupported_parameter:
        return DRLLM_XNN_ARGUMENT;
    default:
        return DRLLM_XNN_FAILED;
    }
}

/* ---- Weights ---- */

/* One matrix is a whole "weights cache" to XNNPACK, which finds its only entry whenever an operator is created. */
struct drllm_xnn_weights {
    enum drllm_format format;
    size_t rows;
    size_t cols;
    void *packed;
    size_t packed_bytes;
    bool complete;
    uint32_t seed; /* XNNPACK's hash of the kernel that the layout is for */
    struct xnn_weights_cache_provider provider;
    drllm_xnn_allocate_fn allocate; /* NULL once packed */
    void *user;
};

static size_t cache_look_up(void *context, const struct xnn_weights_cache_look_up_key *key) {
    const struct drllm_xnn_weights *weights = context;
    return weights->complete && weights->seed == key->seed ? 0 : SIZE_MAX;
}

static void *cache_reserve_space(void *context, size_t size) {
    struct drllm_xnn_weights *weights = context;
    if (weights->allocate == NULL || size > SIZE_MAX - XNN_EXTRA_BYTES) {
        return NULL;
    }
    weights->packed_bytes = size;
    weights->packed = weights->allocate(weights->user, size + XNN_EXTRA_BYTES, ALIGNMENT);
    if (weights->packed != NULL) {
        memset((unsigned char *)weights->packed + size, 0, XNN_EXTRA_BYTES);
    }
    return weights->packed;
}

static size_t cache_look_up_or_insert(void *context, const struct xnn_weights_cache_look_up_key *key, void *packed,
                                      size_t size) {
    struct drllm_xnn_weights *weights = context;
    (void)packed;
    (void)size;
    weights->seed = key->seed;
    weights->complete = true;
    return 0;
}

static bool cache_is_finalized(void *context) {
    const struct drllm_xnn_weights *weights = context;
    return weights->complete;
}

static void *cache_offset_to_addr(void *context, size_t offset) {
    const struct drllm_xnn_weights *weights = context;
    return (unsigned char *)weights->packed + offset;
}

static enum xnn_status cache_delete(void *context) {
    (void)context;
    return xnn_status_success;
}

/* q and scales are only read when weights are not packed yet, but for the scales of qb4w. */
static enum xnn_status create_operator(struct drllm_xnn_weights *weights, const void *q, const void *scales, size_t ldx,
                                       size_t ldy, xnn_operator_t *native) {
    if (weights->format == DRLLM_FORMAT_Q8C) {
        return xnn_create_fully_connected_nc_qd8_f32_qc8w(weights->cols, weights->rows, ldx, ldy, scales, q, NULL,
                                                          -INFINITY, INFINITY, 0, NULL, &weights->provider, native);
    }
    return xnn_create_fully_connected_nc_qd8_f32_qb4w(weights->cols, weights->rows, ldx, ldy, DRLLM_GROUP, ZERO_POINT,
                                                      scales, q, NULL, -INFINITY, INFINITY, 0, NULL, &weights->provider,
                                                      native);
}

static enum drllm_xnn_status pack(enum drllm_format format, const void *q, const void *scales, size_t rows, size_t cols,
                                  drllm_xnn_allocate_fn allocate, void *user, struct drllm_xnn_weights **out) {
    *out = NULL;
    /* XNNPACK computes sizes without looking for overflow; a row takes less than 2 * cols + 64 bytes, rows are
     * padded. */
    if (rows == 0 || rows > (SIZE_MAX / 4 - 4096) / (2 * cols + 64)) {
        return DRLLM_XNN_ARGUMENT;
    }
    struct drllm_xnn_weights *weights = allocate(user, sizeof *weights, ALIGNMENT);
    if (weights == NULL) {
        return DRLLM_XNN_MEMORY;
    }
    *weights = (struct drllm_xnn_weights){.format = format,
                                          .rows = rows,
                                          .cols = cols,
                                          .provider = {.context = weights,
                                                       .look_up = cache_look_up,
                                                       .reserve_space = cache_reserve_space,
                                                       .look_up_or_insert = cache_look_up_or_insert,
                                                       .is_finalized = cache_is_finalized,
                                                       .offset_to_addr = cache_offset_to_addr,
                                                       .delete_cache = cache_delete},
                                          .allocate = allocate,
                                          .user = user};
    xnn_operator_t native = NULL;
    const enum xnn_status status = create_operator(weights, q, scales, cols, rows, &native);
    weights->allocate = NULL;
    weights->user = NULL;
    if (status != xnn_status_success) {
        return status_of(status);
    }
    (void)xnn_delete_operator(native);
    if (!weights->complete) {
        return DRLLM_XNN_FAILED;
    }
    *out = weights;
    return DRLLM_XNN_OK;
}

enum drllm_xnn_status drllm_xnn_pack_q8c(const int8_t *q, const float *scales, size_t rows, size_t cols,
                                         drllm_xnn_allocate_fn allocate, void *user,
                                         struct drllm_xnn_weights **weights) {
    *weights = NULL;
    if (!drllm_xnn_q8c_fits(cols)) {
        return DRLLM_XNN_ARGUMENT;
    }
    return pack(DRLLM_FORMAT_Q8C, q, scales, rows, cols, allocate, user, weights);
}

enum drllm_xnn_status drllm_xnn_pack_qb4w(const uint8_t *q, const uint16_t *scales, size_t rows, size_t cols,
                                          drllm_xnn_allocate_fn allocate, void *user,
                                          struct drllm_xnn_weights **weights) {
    *weights = NULL;
    if (!drllm_xnn_qb4w_fits(cols)) {
        return DRLLM_XNN_ARGUMENT;
    }
    return pack(DRLLM_FORMAT_QB4W, q, scales, rows, cols, allocate, user, weights);
}

size_t drllm_xnn_weights_bytes(const struct drllm_xnn_weights *weights) {
    return weights->packed_bytes;
}

/* ---- Input ---- */

static pthreadpool_t pool_of(struct drllm_threads *threads) {
    return threads == NULL ? NULL : drllm_threads_native(threads);
}

/* Kernels read whole steps of 16 columns. */
static size_t row_stride(size_t cols) {
    return (cols + 15) / 16 * 16;
}

static size_t params_bytes(size_t max_tokens) {
    const size_t bytes = (max_tokens + SPARE_PARAMS) * sizeof(struct xnn_quantization_params);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t drllm_xnn_input_bytes(size_t max_tokens, size_t max_cols) {
    if (max_cols > SIZE_MAX / 4 || max_tokens > SIZE_MAX / 4 / (row_stride(max_cols) + 16)) {
        return 0;
    }
    return params_bytes(max_tokens) + max_tokens * row_stride(max_cols) + ALIGNMENT;
}

enum drllm_xnn_status drllm_xnn_input_create(struct drllm_xnn_input *input, void *memory, size_t max_tokens,
                                             size_t max_cols) {
    *input = (struct drllm_xnn_input){.max_tokens = max_tokens, .max_cols = max_cols};
    const size_t bytes = drllm_xnn_input_bytes(max_tokens, max_cols);
    if (bytes == 0) {
        return DRLLM_XNN_ARGUMENT;
    }
    /* What pads rows is multiplied by zero weights; cleared all the same, so that checkers see no uninitialised
     * reads. */
    memset(memory, 0, bytes);
    input->params = memory;
    input->q = (int8_t *)memory + params_bytes(max_tokens);
    return status_of(xnn_create_convert_nc_f32_qd8(0, &input->convert));
}

void drllm_xnn_input_destroy(struct drllm_xnn_input *input) {
    if (input->convert != NULL) {
        (void)xnn_delete_operator(input->convert);
    }
    *input = (struct drllm_xnn_input){0};
}

enum drllm_xnn_status drllm_xnn_input_fill(struct drllm_xnn_input *input, const float *x, size_t ldx, size_t n_tokens,
                                           size_t cols, struct drllm_threads *threads) {
    input->n_tokens = 0;
    if (n_tokens > input->max_tokens || cols > input->max_cols || cols == 0 || ldx < cols) {
        return DRLLM_XNN_ARGUMENT;
    }
    pthreadpool_t pool = pool_of(threads);
    enum xnn_status status =
        xnn_reshape_convert_nc_f32_qd8(input->convert, n_tokens, cols, ldx, row_stride(cols), pool);
    if (status == xnn_status_success) {
        status = xnn_setup_convert_nc_f32_qd8(input->convert, x, input->q, input->params);
    }
    if (status == xnn_status_success) {
        status = xnn_run_operator(input->convert, pool);
    }
    if (status != xnn_status_success) {
        return status_of(status);
    }
    struct xnn_quantization_params *params = input->params;
    for (size_t i = 0; i < SPARE_PARAMS && n_tokens > 0; i++) {
        params[n_tokens + i] = params[n_tokens - 1];
    }
    input->n_tokens = n_tokens;
    input->cols = cols;
    return DRLLM_XNN_OK;
}

/* ---- Operators ---- */

size_t drllm_xnn_op_scratch_bytes(const struct drllm_xnn_weights *weights) {
    return weights->format == DRLLM_FORMAT_QB4W ? weights->rows * (weights->cols / DRLLM_GROUP) * sizeof(uint16_t) : 0;
}

enum drllm_xnn_status drllm_xnn_op_create(struct drllm_xnn_op *op, const struct drllm_xnn_weights *weights, size_t ldy,
                                          void *scratch) {
    *op = (struct drllm_xnn_op){.weights = weights, .ldy = ldy};
    if (ldy < weights->rows) {
        return DRLLM_XNN_ARGUMENT;
    }
    uint16_t *scales = scratch;
    for (size_t i = 0; i < drllm_xnn_op_scratch_bytes(weights) / sizeof *scales; i++) {
        scales[i] = bf16_one;
    }
    /* XNNPACK asks for a provider that it may change; ours only answers once the weights are packed. */
    struct drllm_xnn_weights *provider_owner = (struct drllm_xnn_weights *)weights;
    return status_of(create_operator(provider_owner, weights, scratch, row_stride(weights->cols), ldy, &op->native));
}

void drllm_xnn_op_destroy(struct drllm_xnn_op *op) {
    if (op->native != NULL) {
        (void)xnn_delete_operator(op->native);
    }
    *op = (struct drllm_xnn_op){0};
}

enum drllm_xnn_status drllm_xnn_op_run(struct drllm_xnn_op *op, const struct drllm_xnn_input *input, float *y,
                                       size_t ldy, struct drllm_threads *threads) {
    const size_t n = input->n_tokens;
    if (n == 0) {
        return DRLLM_XNN_OK;
    }
    if (input->cols != op->weights->cols || (n > 1 && ldy != op->ldy)) {
        return DRLLM_XNN_ARGUMENT;
    }
    pthreadpool_t pool = pool_of(threads);
    enum xnn_status status;
    if (op->weights->format == DRLLM_FORMAT_Q8C) {
        status = xnn_reshape_fully_connected_nc_qd8_f32_qc8w(op->native, n, pool);
        if (status == xnn_status_success) {
            status = xnn_setup_fully_connected_nc_qd8_f32_qc8w(op->native, input->q, y, input->params);
        }
    } else {
        status = xnn_reshape_fully_connected_nc_qd8_f32_qb4w(op->native, n, pool);
        if (status == xnn_status_success) {
            status = xnn_setup_fully_connected_nc_qd8_f32_qb4w(op->native, input->q, y, input->params);
        }
    }
    if (status == xnn_status_success) {
        status = xnn_run_operator(op->native, pool);
    }
    return status_of(status);
}

#else

bool drllm_xnn_available(void) {
    return false;
}

enum drllm_xnn_status drllm_xnn_start(uint64_t mask) {
    (void)mask;
    return DRLLM_XNN_UNAVAILABLE;
}

enum drllm_xnn_status drllm_xnn_pack_q8c(const int8_t *q, const float *scales, size_t rows, size_t cols,
                                         drllm_xnn_allocate_fn allocate, void *user,
                                         struct drllm_xnn_weights **weights) {
    (void)q, (void)scales, (void)rows, (void)cols, (void)allocate, (void)user;
    *weights = NULL;
    return DRLLM_XNN_UNAVAILABLE;
}

enum drllm_xnn_status drllm_xnn_pack_qb4w(const uint8_t *q, const uint16_t *scales, size_t rows, size_t cols,
                                          drllm_xnn_allocate_fn allocate, void *user,
                                          struct drllm_xnn_weights **weights) {
    (void)q, (void)scales, (void)rows, (void)cols, (void)allocate, (void)user;
    *weights = NULL;
    return DRLLM_XNN_UNAVAILABLE;
}

size_t drllm_xnn_weights_bytes(const struct drllm_xnn_weights *weights) {
    (void)weights;
    return 0;
}

size_t drllm_xnn_input_bytes(size_t max_tokens, size_t max_cols) {
    (void)max_tokens, (void)max_cols;
    return 0;
}

enum drllm_xnn_status drllm_xnn_input_create(struct drllm_xnn_input *input, void *memory, size_t max_tokens,
                                             size_t max_cols) {
    (void)memory, (void)max_tokens, (void)max_cols;
    *input = (struct drllm_xnn_input){0};
    return DRLLM_XNN_UNAVAILABLE;
}

void drllm_xnn_input_destroy(struct drllm_xnn_input *input) {
    *input = (struct drllm_xnn_input){0};
}

enum drllm_xnn_status drllm_xnn_input_fill(struct drllm_xnn_input *input, const float *x, size_t ldx, size_t n_tokens,
                                           size_t cols, struct drllm_threads *threads) {
    (void)input, (void)x, (void)ldx, (void)n_tokens, (void)cols, (void)threads;
    return DRLLM_XNN_UNAVAILABLE;
}

size_t drllm_xnn_op_scratch_bytes(const struct drllm_xnn_weights *weights) {
    (void)weights;
    return 0;
}

enum drllm_xnn_status drllm_xnn_op_create(struct drllm_xnn_op *op, const struct drllm_xnn_weights *weights, size_t ldy,
                                          void *scratch) {
    (void)weights, (void)ldy, (void)scratch;
    *op = (struct drllm_xnn_op){0};
    return DRLLM_XNN_UNAVAILABLE;
}

void drllm_xnn_op_destroy(struct drllm_xnn_op *op) {
    *op = (struct drllm_xnn_op){0};
}

enum drllm_xnn_status drllm_xnn_op_run(struct drllm_xnn_op *op, const struct drllm_xnn_input *input, float *y,
                                       size_t ldy, struct drllm_threads *threads) {
    (void)op, (void)input, (void)y, (void)ldy, (void)threads;
    return DRLLM_XNN_UNAVAILABLE;
}

#endif
