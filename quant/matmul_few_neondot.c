/* Integer products of few tokens with the dot product instruction, see matmul_neondot.c. What decoding can save is the
 * instructions that are no products: the weights of two groups are loaded in the order of memory, four registers an
 * instruction, and what a token brings is loaded once for all panels of a tile.
 *
 * For one token a group of q8_0 takes 33.0 instructions so: 16 dots, 4.5 loads, 2 zeros, 2 conversions of scales and 2
 * of sums, 4 multiplications, 2 additions and a half for what the panels of a tile share. README, "Arm", has the
 * others. */
#if defined(__aarch64__)
#include "quant/matmul_neondot.h"

enum {
    FEW_GROUPS = 2, /* a step of the loop */
    FEW_TOKENS = 2,
    FEW_PANELS = 4, /* with one token; what is left of the panels, and with more tokens all, one by one */
    FEW_STARTS = 64 /* groups whose starts are made at a time */
};

#define MOVE(pointer, n)      \
    do {                      \
        (pointer) += (n);     \
        OPAQUE("r", pointer); \
    } while (0)

/* What is left of a token's activations. starts: [groups][8], where the sums of q4_0's rows begin, for tiles that are
 * said to have them. */
struct few_row {
    const int8_t *q;
    const float *scale, *ssum;
    const int32_t *sum, *starts;
};

/* One token's part of up to two groups. */
struct few_values {
    uint8x16_t q[4];
    float32x2_t scale, ssum;
    int32x2_t start;
};

INLINE uint8x16x4_t load_four(const uint8_t *p) {
#if defined(__clang__)
    return (uint8x16x4_t){{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
#else
    return vld1q_u8_x4(p);
#endif
}

INLINE uint8x16x2_t load_two(const uint8_t *p) {
#if defined(__clang__)
    return (uint8x16x2_t){{vld1q_u8(p), vld1q_u8(p + 16)}};
#else
    return vld1q_u8_x2(p);
#endif
}

/* The next 4, 2 or 1 registers of `left`, which never is 3: groups have 9, 10 or 17. */
INLINE void load_registers(const uint8_t **from, size_t left, uint8x16_t out[4]) {
    if (left >= 4) {
        const uint8x16x4_t four = load_four(*from);
        UNROLL
        for (size_t i = 0; i < 4; i++) {
            out[i] = four.val[i];
        }
        MOVE(*from, 64);
    } else if (left >= 2) {
        const uint8x16x2_t two = load_two(*from);
        out[0] = two.val[0];
        out[1] = two.val[1];
        MOVE(*from, 32);
    } else {
        out[0] = vld1q_u8(*from);
        MOVE(*from, 16);
    }
}

INLINE float32x2_t load_floats(const float **from, size_t n) {
    float32x2_t values = n == 2 ? vld1_f32(*from) : vld1_dup_f32(*from);
    OPAQUE("w", values); /* else each lane would become a load of its own */
    MOVE(*from, n);
    return values;
}

INLINE void load_values(enum drllm_format format, bool has_starts, size_t n_groups, struct few_row *x,
                        struct few_values *values) {
    const uint8_t *q = (const uint8_t *)x->q;
    load_registers(&q, 2 * n_groups, values->q);
    x->q = (const int8_t *)q;
    values->scale = load_floats(&x->scale, n_groups);
    if (format == DRLLM_FORMAT_Q4_1) {
        values->ssum = load_floats(&x->ssum, n_groups);
    } else if (format == DRLLM_FORMAT_Q4_0 && !has_starts) {
        values->start = vmul_n_s32(n_groups == 2 ? vld1_s32(x->sum) : vld1_dup_s32(x->sum), -8);
        MOVE(x->sum, n_groups);
    }
}

INLINE float32x4_t times_half_lane(float32x4_t a, float32x2_t values, size_t lane) {
    return lane == 0 ? vmulq_lane_f32(a, values, 0) : vmulq_lane_f32(a, values, 1);
}

/* 8 rows' field of group g times what the token has for it. */
INLINE void scale_field(uint8x16_t field, float32x2_t values, size_t g, float32x4_t out[2]) {
    const float16x8_t halves = vreinterpretq_f16_u8(field);
    out[0] = times_half_lane(vcvt_f32_f16(vget_low_f16(halves)), values, g);
    out[1] = times_half_lane(vcvt_high_f32_f16(halves), values, g);
}

/* Stored nibbles are 8 more than q4_0's weights: sums start from what that adds to them. */
INLINE void start_dots(enum drllm_format format, bool has_starts, const struct few_row *x,
                       const struct few_values *values, size_t g, int32x4_t dot[2]) {
    if (format != DRLLM_FORMAT_Q4_0) {
        dot[0] = dot[1] = vdupq_n_s32(0);
    } else if (!has_starts) {
        dot[0] = dot[1] = g == 0 ? vdupq_lane_s32(values->start, 0) : vdupq_lane_s32(values->start, 1);
    } else {
        dot[0] = vld1q_s32(x->starts + 8 * g);
        dot[1] = vld1q_s32(x->starts + 8 * g + 4);
        OPAQUE("w", dot[0]); /* the pair becomes one load */
        OPAQUE("w", dot[1]);
    }
}

/* Register `place` of the weights of group g: 4 rows by four columns, or by twice four in int4. */
INLINE void add_register(enum drllm_format format, uint8x16_t weights, size_t place, const struct few_values *values,
                         size_t g, int32x4_t dot[2]) {
    const size_t step = place / 2;
    int32x4_t *sum = &dot[place % 2];
    if (is_int4(format)) {
        const int8x16_t q = vreinterpretq_s8_u8(values->q[2 * g + step / 2]);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(weights, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(weights, 4));
        *sum = dot_lane(*sum, low, q, step % 2 * 2);
        *sum = dot_lane(*sum, high, q, step % 2 * 2 + 1);
    } else {
        const int8x16_t q = vreinterpretq_s8_u8(values->q[2 * g + step / 4]);
        *sum = dot_lane(*sum, vreinterpretq_s8_u8(weights), q, step % 4);
    }
}

/* One panel's n_groups, 1 or 2: acc [n_tokens]. */
INLINE void add_panel(enum drllm_format format, bool has_starts, size_t n_groups, const uint8_t **w, size_t n_tokens,
                      const struct few_row *x, const struct few_values *values, float32x4_t acc[FEW_TOKENS][2]) {
    const size_t n_fields = header_bytes(format) / 16;
    const size_t n_registers = group_bytes(format) / 16; /* of a group */
    int32x4_t dot[FEW_TOKENS][2];
    float32x4_t scale[FEW_TOKENS][2];
    float32x4_t minimum[FEW_TOKENS][2];
    UNROLL
    for (size_t first = 0; first < n_groups * n_registers; first += 4) {
        const size_t left = n_groups * n_registers - first;
        const size_t n = left < 4 ? left : 4;
        uint8x16_t registers[4];
        load_registers(w, left, registers);
        UNROLL
        for (size_t i = 0; i < n; i++) {
            const size_t g = (first + i) / n_registers;
            const size_t place = (first + i) % n_registers; /* in the group */
            UNROLL
            for (size_t t = 0; t < n_tokens; t++) {
                if (place == 0) {
                    scale_field(registers[i], values[t].scale, g, scale[t]);
                } else if (place < n_fields) {
                    scale_field(registers[i], values[t].ssum, g, minimum[t]);
                } else {
                    if (place == n_fields) {
                        start_dots(format, has_starts, &x[t], &values[t], g, dot[t]);
                    }
                    add_register(format, registers[i], place - n_fields, &values[t], g, dot[t]);
                }
                if (place + 1 == n_registers) {
                    UNROLL
                    for (size_t half = 0; half < 2; half++) {
                        float32x4_t *sum = &acc[t][half];
                        *sum = vaddq_f32(*sum, vmulq_f32(vcvtq_f32_s32(dot[t][half]), scale[t][half]));
                        *sum = format == DRLLM_FORMAT_Q4_1 ? vaddq_f32(*sum, minimum[t][half]) : *sum;
                    }
                }
            }
        }
    }
}

INLINE void add_groups(enum drllm_format format, bool has_starts, size_t n_groups, size_t n_panels,
                       const uint8_t *w[FEW_PANELS], size_t n_tokens, struct few_row x[FEW_TOKENS],
                       float32x4_t acc[FEW_PANELS][FEW_TOKENS][2]) {
    struct few_values values[FEW_TOKENS];
    UNROLL
    for (size_t t = 0; t < n_tokens; t++) {
        load_values(format, has_starts, n_groups, &x[t], &values[t]);
    }
    UNROLL
    for (size_t p = 0; p < n_panels; p++) {
        add_panel(format, has_starts, n_groups, &w[p], n_tokens, x, values, acc[p]);
        if (has_starts) {
            MOVE(x[0].starts, p + 1 < n_panels ? 0 : 8 * n_groups);
        }
    }
}

/* n_groups of the panels at w, behind what y holds of those before. starts: of the one token, or NULL. */
INLINE void tile_few(enum drllm_format format, const uint8_t *panels, size_t panel_bytes, size_t n_panels,
                     size_t n_groups, const struct drllm_q8_row *rows, size_t n_tokens, const int32_t *starts,
                     bool is_first, float *y, size_t ldy) {
    const uint8_t *w[FEW_PANELS];
    struct few_row x[FEW_TOKENS];
    float32x4_t acc[FEW_PANELS][FEW_TOKENS][2];
    UNROLL
    for (size_t t = 0; t < n_tokens; t++) {
        x[t] = (struct few_row){rows[t].q, rows[t].scale, rows[t].ssum, rows[t].sum, starts};
    }
    UNROLL
    for (size_t p = 0; p < n_panels; p++) {
        w[p] = panels + p * panel_bytes;
        UNROLL
        for (size_t t = 0; t < n_tokens; t++) {
            acc[p][t][0] = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(y + t * ldy + p * R);
            acc[p][t][1] = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(y + t * ldy + p * R + 4);
        }
    }
    const int8_t *end = x[0].q + n_groups / FEW_GROUPS * FEW_GROUPS * DRLLM_GROUP;
    while (x[0].q != end) {
        add_groups(format, starts != NULL, FEW_GROUPS, n_panels, w, n_tokens, x, acc);
    }
    if (n_groups % FEW_GROUPS != 0) {
        add_groups(format, starts != NULL, 1, n_panels, w, n_tokens, x, acc);
    }
    UNROLL
    for (size_t p = 0; p < n_panels; p++) {
        UNROLL
        for (size_t t = 0; t < n_tokens; t++) {
            vst1q_f32(y + t * ldy + p * R, acc[p][t][0]);
            vst1q_f32(y + t * ldy + p * R + 4, acc[p][t][1]);
        }
    }
}

/* q4_0's starts out of memory take one instruction for two sums, where a register would be copied for each. */
INLINE void make_starts(const int32_t *sum, size_t n, int32_t *starts) {
    for (size_t g = 0; g < n; g++) {
        const int32x4_t start = vdupq_n_s32(-8 * sum[g]);
        vst1q_s32(starts + 8 * g, start);
        vst1q_s32(starts + 8 * g + 4, start);
    }
}

/* One token, n_panels a multiple of FEW_PANELS; there is a group at least. */
INLINE void matmul_one(enum drllm_format format, const uint8_t *w, size_t panel_bytes, size_t n_panels, size_t n_groups,
                       const struct drllm_q8_row *x, float *y) {
    if (format != DRLLM_FORMAT_Q4_0) {
        for (size_t p = 0; p < n_panels; p += FEW_PANELS) {
            tile_few(format, w + p * panel_bytes, panel_bytes, FEW_PANELS, n_groups, x, 1, NULL, true, y + p * R, 0);
        }
        return;
    }
    int32_t starts[FEW_STARTS * 8];
    for (size_t g = 0; g < n_groups && n_panels > 0; g += FEW_STARTS) {
        const size_t n = n_groups - g < FEW_STARTS ? n_groups - g : FEW_STARTS;
        const struct drllm_q8_row part = {x->q + g * DRLLM_GROUP, x->scale + g, x->sum + g, x->ssum + g};
        make_starts(part.sum, n, starts);
        for (size_t p = 0; p < n_panels; p += FEW_PANELS) {
            tile_few(format, w + p * panel_bytes + g * group_bytes(format), panel_bytes, FEW_PANELS, n, &part, 1,
                     starts, g == 0, y + p * R, 0);
        }
    }
}

INLINE void matmul_few(enum drllm_format format, const uint8_t *w, size_t panel_bytes, size_t n_panels, size_t n_groups,
                       const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {
    const size_t n_done = n_tokens == 1 ? n_panels / FEW_PANELS * FEW_PANELS : 0;
    matmul_one(format, w, panel_bytes, n_done, n_groups, x, y);
    for (size_t p = n_done; p < n_panels; p++) {
        const uint8_t *panel = w + p * panel_bytes;
        size_t t = 0;
        for (; t + FEW_TOKENS <= n_tokens; t += FEW_TOKENS) {
            tile_few(format, panel, panel_bytes, 1, n_groups, x + t, FEW_TOKENS, NULL, true, y + t * ldy + p * R, ldy);
        }
        if (t < n_tokens) {
            tile_few(format, panel, panel_bytes, 1, n_groups, x + t, 1, NULL, true, y + t * ldy + p * R, ldy);
        }
    }
}

#define FEW_KERNEL(FORMAT, format)                                                                                     \
    void drllm_matmul_##format##_few_neondot(const void *panels, size_t panel_bytes, size_t n_panels, size_t n_groups, \
                                             const struct drllm_q8_row *x, size_t n_tokens, float *y, size_t ldy) {    \
        matmul_few(DRLLM_FORMAT_##FORMAT, panels, panel_bytes, n_panels, n_groups, x, n_tokens, y, ldy);               \
    }

FEW_KERNEL(Q4_0, q4_0)
FEW_KERNEL(Q4_1, q4_1)
FEW_KERNEL(Q8_0, q8_0)

#else
typedef int drllm_matmul_few_neondot_is_empty;
#endif
