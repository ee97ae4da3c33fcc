/* Every kernel and every vector function of the firmware library against the portable ones, on the board: random numbers
 * and awkward ones, odd sizes, guard bytes around what is written. The bits must be the same (or NaN both).
 *
 * A "test" is one kernel or function of one backend with all its cases. */
#include "examples/firmware/board.h"

#include "platform/cpu.h"
#include "quant/half.h"
#include "quant/matmul.h"
#include "quant/vec.h"

#include <string.h>

enum { R = DRLLM_PANEL_ROWS, GUARD = 0xA5, GUARD_BYTES = 64, MOST_FLOATS = 4096, MOST_BYTES = 32768 };

/* ---- Random numbers ---- */

static uint32_t random_bits(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    const uint32_t x = (uint32_t)((*state >> 22 ^ *state) >> (22 + (*state >> 61)));
    return x;
}

enum kind { ORDINARY, WITH_ZEROS, TINY, SUBNORMAL, HUGE_ONES, ALL_BITS, KINDS };

static float power_of_two(int exponent) {
    return drllm_bits_to_f32((uint32_t)(exponent + 127) << 23);
}

static float random_float(uint64_t *state, enum kind kind) {
    const float unit = (float)(int32_t)random_bits(state) * 0x1p-31f;
    const uint32_t pick = random_bits(state) % 4;
    switch (kind) {
    case WITH_ZEROS:
        return pick == 0 ? 0.0f : pick == 1 ? -0.0f : unit * 8.0f;
    case TINY: /* products of two become subnormal */
        return unit * power_of_two(-20 - (int)(random_bits(state) % 60));
    case SUBNORMAL:
        return pick == 0 ? unit : drllm_bits_to_f32(random_bits(state) & 0x80ffffffu);
    case HUGE_ONES:
        return unit * power_of_two((int)(random_bits(state) % 120));
    case ALL_BITS: {
        const float any = drllm_bits_to_f32(random_bits(state));
        return any - any == 0.0f ? any : unit; /* no infinity, no NaN */
    }
    default:
        return unit * 4.0f;
    }
}

/* ---- Counting and comparing ---- */

static size_t n_passed, n_failed;

static void write_text(const char *text) {
    board_write(text, strlen(text));
}

static void write_number(size_t number) {
    char digits[20];
    size_t first = sizeof digits;
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    board_write(digits + first, sizeof digits - first);
}

static void count(const char *backend, const char *name, size_t n_cases, size_t n_wrong) {
    n_passed += n_wrong == 0;
    n_failed += n_wrong != 0;
    write_text(n_wrong == 0 ? "ok   " : "FAIL ");
    write_text(backend);
    write_text(" ");
    write_text(name);
    write_text(": ");
    write_number(n_cases);
    write_text(" cases");
    if (n_wrong != 0) {
        write_text(", wrong: ");
        write_number(n_wrong);
    }
    write_text("\n");
}

static bool same(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const bool nan = a[i] != a[i] && b[i] != b[i];
        if (!nan && drllm_f32_to_bits(a[i]) != drllm_f32_to_bits(b[i])) {
            return false;
        }
    }
    return true;
}

/* Memory for results, guards on both sides. */
struct guarded {
    unsigned char before[GUARD_BYTES];
    union {
        float floats[MOST_FLOATS];
        unsigned char bytes[MOST_FLOATS * 4];
    } out;
    unsigned char behind[GUARD_BYTES];
};
static struct guarded results[2];

/* `size` bytes will be written; all that lies behind is guard. */
static void guard(size_t n) {
    memset(&results[n], GUARD, sizeof results[n]);
}

static bool is_guarded(size_t n, size_t size) {
    bool good = true;
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        good = good && results[n].before[i] == GUARD && results[n].behind[i] == GUARD;
    }
    for (size_t i = size; i < sizeof results[n].out; i++) {
        good = good && results[n].out.bytes[i] == GUARD;
    }
    return good;
}

static _Alignas(64) unsigned char weights[MOST_BYTES];
static float inputs[3][MOST_FLOATS];

static void fill_floats(float *floats, size_t n, enum kind kind, uint64_t *state) {
    for (size_t i = 0; i < n; i++) {
        floats[i] = random_float(state, kind);
    }
}

/* ---- Products ---- */

enum { MOST_TOKENS = 7, MOST_GROUPS = 5, MOST_PANELS = 3 };

static struct {
    _Alignas(4) int8_t q[MOST_TOKENS][MOST_GROUPS * DRLLM_GROUP];
    float scale[MOST_TOKENS][MOST_GROUPS], ssum[MOST_TOKENS][MOST_GROUPS];
    int32_t sum[MOST_TOKENS][MOST_GROUPS];
    struct drllm_q8_row rows[MOST_TOKENS];
} activations;

static void fill_activations(enum kind kind, uint64_t *state) {
    for (size_t t = 0; t < MOST_TOKENS; t++) {
        for (size_t g = 0; g < MOST_GROUPS; g++) {
            int32_t total = 0;
            for (size_t i = 0; i < DRLLM_GROUP; i++) {
                const uint32_t pick = random_bits(state);
                const int32_t q = pick % 8 == 0 ? 127 : pick % 8 == 1 ? -127 : (int32_t)(pick >> 8 & 255) % 255 - 127;
                activations.q[t][g * DRLLM_GROUP + i] = (int8_t)q;
                total += q;
            }
            const float scale = random_float(state, kind);
            activations.scale[t][g] = scale < 0.0f ? -scale : scale;
            activations.sum[t][g] = total;
            activations.ssum[t][g] = activations.scale[t][g] * (float)total;
        }
        activations.rows[t] =
            (struct drllm_q8_row){activations.q[t], activations.scale[t], activations.sum[t], activations.ssum[t]};
    }
}

/* Sound scales of panels; any bits for the rest. */
static void fill_weights(enum drllm_format format, size_t panel_bytes, size_t n_panels, size_t n_groups,
                         uint64_t *state) {
    for (size_t i = 0; i < panel_bytes * n_panels; i++) {
        weights[i] = (unsigned char)(random_bits(state) >> 5);
    }
    for (size_t p = 0; p < n_panels; p++) {
        unsigned char *panel = weights + p * panel_bytes;
        for (size_t g = 0; g < n_groups && format != DRLLM_FORMAT_Q8C; g++) {
            const size_t n_fields = (format == DRLLM_FORMAT_Q4_1 ? 2 : 1) * R;
            unsigned char *group = panel + g * (panel_bytes / n_groups);
            for (size_t i = 0; i < n_fields; i++) {
                uint16_t half = (uint16_t)random_bits(state);
                half = (half & 0x7c00u) == 0x7c00u ? (uint16_t)(half & 0x83ffu) : half;
                memcpy(group + 2 * i, &half, sizeof half);
            }
        }
        if (format == DRLLM_FORMAT_Q8C) {
            for (size_t i = 0; i + 4 * R < panel_bytes; i++) {
                panel[i] = panel[i] == 0x80 ? 0x81 : panel[i];
            }
            float scales[R];
            fill_floats(scales, R, ORDINARY, state);
            memcpy(panel + panel_bytes - sizeof scales, scales, sizeof scales);
        }
    }
}

static void check_kernel(const struct drllm_kernel *kernel, const struct drllm_kernel *portable) {
    uint64_t state = 1;
    size_t n_cases = 0, n_wrong = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t n_groups = 1; n_groups <= MOST_GROUPS; n_groups++) {
            for (size_t n_panels = 1; n_panels <= MOST_PANELS; n_panels++) {
                const size_t panel_bytes = drllm_packed_bytes(kernel->format, R, n_groups * DRLLM_GROUP);
                fill_weights(kernel->format, panel_bytes, n_panels, n_groups, &state);
                fill_activations((enum kind)kind, &state);
                for (size_t n_tokens = 1; n_tokens <= MOST_TOKENS; n_tokens++, n_cases++) {
                    const size_t ldy = n_panels * R + 3;
                    guard(0);
                    guard(1);
                    portable->q8(weights, panel_bytes, n_panels, n_groups, activations.rows, n_tokens,
                                 results[0].out.floats, ldy);
                    kernel->q8(weights, panel_bytes, n_panels, n_groups, activations.rows, n_tokens,
                               results[1].out.floats, ldy);
                    n_wrong += !is_guarded(1, (n_tokens * ldy - 3) * sizeof(float)) ||
                               !same(results[0].out.floats, results[1].out.floats, n_tokens * ldy - 3);
                }
            }
        }
    }
    count(kernel->backend, kernel->name, n_cases, n_wrong);
}

static void check_kernels(void) {
    size_t n = 0;
    const struct drllm_kernel *kernels = drllm_kernels(&n);
    for (size_t i = 0; i < n; i++) {
        const struct drllm_kernel *portable = drllm_kernel_choose(kernels[i].format, 0);
        if (kernels[i].q8 != NULL && portable != &kernels[i] && (kernels[i].cpu_features & ~drllm_cpu_detect()) == 0) {
            check_kernel(&kernels[i], portable);
        }
    }
}

/* ---- Vector functions ---- */

static const size_t sizes[] = {1, 3, 4, 7, 8, 16, 31, 64, 100, 576};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

/* One function with n values of one kind: results of the portable table in results[0], of the other in results[1]. */
typedef size_t (*vec_case)(const struct drllm_vec_ops *ops, size_t n, float *out);

static size_t case_rms_norm(const struct drllm_vec_ops *ops, size_t n, float *out) {
    ops->rms_norm(out, inputs[0], inputs[1], n, 1e-5f);
    return n;
}

static size_t case_add(const struct drllm_vec_ops *ops, size_t n, float *out) {
    memcpy(out, inputs[1], n * sizeof *out);
    ops->add(out, inputs[0], n);
    return n;
}

static size_t case_silu_mul(const struct drllm_vec_ops *ops, size_t n, float *out) {
    memcpy(out, inputs[0], n * sizeof *out);
    ops->silu_mul(out, inputs[1], n);
    return n;
}

static size_t case_rope(const struct drllm_vec_ops *ops, size_t n, float *out) {
    memcpy(out, inputs[0], 2 * n * sizeof *out);
    ops->rope(out, inputs[1], n);
    return 2 * n;
}

static size_t case_to_f16(const struct drllm_vec_ops *ops, size_t n, float *out) {
    uint16_t halves[576];
    ops->to_f16(halves, inputs[0], n);
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)halves[i];
    }
    return n;
}

static size_t case_quantize(const struct drllm_vec_ops *ops, size_t n, float *out) {
    const size_t group = n % 3 == 0 ? 96 : 32, n_groups = n % 5 + 1;
    int8_t q[96 * 5];
    int32_t sum[5];
    ops->quantize_q8(inputs[0], group * n_groups, group, q, out, sum, out + n_groups);
    for (size_t i = 0; i < n_groups; i++) {
        out[2 * n_groups + i] = (float)sum[i];
    }
    for (size_t i = 0; i < group * n_groups; i++) {
        out[3 * n_groups + i] = (float)q[i];
    }
    return 3 * n_groups + group * n_groups;
}

static size_t case_sum_exp(const struct drllm_vec_ops *ops, size_t n, float *out) {
    const double sum = ops->sum_exp(inputs[0], n, &out[0]);
    memcpy(out + 1, &sum, sizeof sum);
    return 3;
}

enum { ROWS = 5, HEAD_DIM = 32, N_BLOCKS = 4 };
static const enum drllm_format kv_formats[] = {DRLLM_FORMAT_F32, DRLLM_FORMAT_F16};

/* Keys or values in both formats, in turn as n grows. */
static size_t fill_blocks(const struct drllm_vec_ops *ops, size_t n, enum drllm_format *format) {
    *format = kv_formats[n % 2];
    const size_t bytes = drllm_kv_key_bytes(*format, HEAD_DIM);
    (void)ops;
    for (size_t b = 0; b < N_BLOCKS; b++) {
        unsigned char *block = weights + b * bytes;
        for (size_t i = 0; i < HEAD_DIM * DRLLM_KV_BLOCK; i++) {
            const float x = inputs[2][b * HEAD_DIM * DRLLM_KV_BLOCK + i];
            const uint16_t half = drllm_f32_to_f16(x > 1e4f ? 1e4f : x < -1e4f ? -1e4f : x);
            if (*format == DRLLM_FORMAT_F32) {
                memcpy(block + 4 * i, &x, sizeof x);
            } else {
                memcpy(block + 2 * i, &half, sizeof half);
            }
        }
    }
    return bytes;
}

static size_t case_scores(const struct drllm_vec_ops *ops, size_t n, float *out) {
    enum drllm_format format;
    const size_t bytes = fill_blocks(ops, n, &format), n_rows = n % ROWS + 1;
    ops->attention->scores(format, inputs[0], HEAD_DIM + 1, n_rows, weights, bytes, N_BLOCKS, HEAD_DIM, out,
                           N_BLOCKS * DRLLM_KV_BLOCK);
    return n_rows * N_BLOCKS * DRLLM_KV_BLOCK;
}

static size_t case_values(const struct drllm_vec_ops *ops, size_t n, float *out) {
    enum drllm_format format;
    const size_t bytes = fill_blocks(ops, n, &format), n_rows = n % ROWS + 1;
    const size_t n_keys = n < N_BLOCKS * DRLLM_KV_BLOCK ? n : N_BLOCKS * DRLLM_KV_BLOCK;
    memcpy(out, inputs[1], n_rows * HEAD_DIM * sizeof *out);
    ops->attention->values(format, inputs[0], N_BLOCKS * DRLLM_KV_BLOCK, n_rows, weights, bytes, n_keys, HEAD_DIM,
                           inputs[1] + 1000, out, HEAD_DIM);
    return n_rows * HEAD_DIM;
}

static size_t case_softmax(const struct drllm_vec_ops *ops, size_t n, float *out) {
    const size_t n_rows = n % ROWS + 1, width = N_BLOCKS * DRLLM_KV_BLOCK, used = (n % N_BLOCKS + 1) * DRLLM_KV_BLOCK;
    float *max = out + n_rows * width, *sum = max + n_rows, *factor = sum + n_rows;
    memcpy(out, inputs[0], n_rows * width * sizeof *out);
    for (size_t r = 0; r < n_rows; r++) {
        max[r] = r == 0 ? -__builtin_inff() : inputs[1][r];
        sum[r] = r == 0 ? 0.0f : 1.0f;
        out[r * width + 1] = -__builtin_inff();
        out[r * width + 2] = out[r * width] - 126.25f; /* a subnormal power, for the ordinary ones */
        out[r * width + 3] = out[r * width] - 200.0f;
    }
    ops->attention->softmax(out, width, n_rows, used, max, sum, factor);
    for (size_t r = 0; r < n_rows; r++) {
        max[r] += 0.0f; /* of the two zeros either may be the larger */
    }
    return n_rows * (width + 3);
}

static size_t case_quantize_weights(const struct drllm_vec_ops *ops, size_t n, float *out) {
    const size_t n_rows = n % ROWS + 1, used = (n % 8 + 1) * DRLLM_KV_BLOCK;
    static float s[ROWS * DRLLM_KV_TILE], scales[DRLLM_KV_TILE];
    int8_t q[ROWS * DRLLM_KV_TILE];
    int32_t sum[ROWS];
    for (size_t i = 0; i < n_rows * DRLLM_KV_TILE; i++) {
        s[i] = __builtin_fabsf(inputs[0][i]);
    }
    for (size_t i = 0; i < DRLLM_KV_TILE; i++) {
        scales[i] = __builtin_fabsf(inputs[1][i]);
    }
    ops->attention->quantize(s, DRLLM_KV_TILE, n_rows, used, scales, q, out, sum);
    for (size_t r = 0; r < n_rows; r++) {
        out[n_rows + r] = (float)sum[r];
    }
    for (size_t i = 0; i < n_rows * DRLLM_KV_TILE; i++) {
        out[2 * n_rows + i] = (float)q[i];
    }
    return n_rows * (2 + DRLLM_KV_TILE);
}

static size_t case_accumulate(const struct drllm_vec_ops *ops, size_t n, float *out) {
    const size_t n_rows = n % ROWS + 1;
    memcpy(out, inputs[0], n_rows * HEAD_DIM * sizeof *out);
    ops->attention->accumulate(inputs[1], n_rows, HEAD_DIM, inputs[2], out, HEAD_DIM);
    return n_rows * HEAD_DIM;
}

static size_t case_expand(const struct drllm_vec_ops *ops, size_t n, float *out) {
    enum drllm_format format;
    const size_t bytes = fill_blocks(ops, n | 1, &format); /* F16: of F32 there is no expansion */
    ops->attention->expand(weights, bytes, 2, HEAD_DIM, out);
    return (size_t)2 * HEAD_DIM * DRLLM_KV_BLOCK;
}

static void check_vec(const struct drllm_vec_ops *ops, const struct drllm_vec_ops *portable, const char *name,
                      vec_case run) {
    uint64_t state = 3;
    size_t n_cases = 0, n_wrong = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t other = 0; other < KINDS; other++) {
            for (size_t i = 0; i < N_SIZES; i++, n_cases++) {
                fill_floats(inputs[0], 1200, (enum kind)kind, &state);
                fill_floats(inputs[1], 1200, (enum kind)other, &state);
                fill_floats(inputs[2], 1200, (enum kind)other, &state);
                guard(0);
                guard(1);
                const size_t n = run(portable, sizes[i], results[0].out.floats);
                n_wrong += run(ops, sizes[i], results[1].out.floats) != n || !is_guarded(1, n * sizeof(float)) ||
                           !same(results[0].out.floats, results[1].out.floats, n);
            }
        }
    }
    count(ops->backend, name, n_cases, n_wrong);
}

static void check_vecs(void) {
    static const struct {
        const char *name;
        vec_case run;
    } cases[] = {
        {"rms_norm", case_rms_norm},     {"add", case_add},
        {"silu_mul", case_silu_mul},     {"rope", case_rope},
        {"to_f16", case_to_f16},         {"quantize", case_quantize},
        {"sum_exp", case_sum_exp},       {"scores", case_scores},
        {"softmax", case_softmax},       {"values", case_values},
        {"expand", case_expand},         {"quantize_weights", case_quantize_weights},
        {"accumulate", case_accumulate},
    };
    size_t n = 0;
    const struct drllm_vec_ops *const *all = drllm_vec_backends(&n);
    for (size_t i = 0; i + 1 < n; i++) {
        for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
            check_vec(all[i], all[n - 1], cases[k].name, cases[k].run);
        }
    }
}

int main(void) {
    check_kernels();
    check_vecs();
    write_number(n_passed);
    write_text(" passed, ");
    write_number(n_failed);
    write_text(" failed\n");
    return n_failed != 0;
}
