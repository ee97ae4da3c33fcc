#include "runtime/choice.h"

#include "platform/cpu.h"
#include "quant/matmul_xnnpack.h"

/* The columns: as exact as the file (ours), and as XNNPACK runs it.
 *
 * K-quants and 5-bit formats have no kernels; they run in the nearest format that does: q4_k keeps its 4-bit values
 * and only rounds scales to F16, the others go to 8 bits. XNNPACK's int4 (qb4w) is symmetric like q4_0, whose values
 * it keeps; formats with minima would lose too much in it (measured: README, "XNNPACK"). */
static const struct {
    enum drllm_format stored;
    enum drllm_format exact;
    enum drllm_format xnnpack;
} formats[] = {
    {DRLLM_FORMAT_F32, DRLLM_FORMAT_F32, DRLLM_FORMAT_Q8C},   {DRLLM_FORMAT_F16, DRLLM_FORMAT_F16, DRLLM_FORMAT_Q8C},
    {DRLLM_FORMAT_BF16, DRLLM_FORMAT_BF16, DRLLM_FORMAT_Q8C}, {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_QB4W},
    {DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8C}, {DRLLM_FORMAT_Q5_0, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C},
    {DRLLM_FORMAT_Q5_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C}, {DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C},
    {DRLLM_FORMAT_Q4_K, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8C}, {DRLLM_FORMAT_Q5_K, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C},
    {DRLLM_FORMAT_Q6_K, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C}, {DRLLM_FORMAT_Q8C, DRLLM_FORMAT_Q8C, DRLLM_FORMAT_Q8C},
};

/* Where --head auto trades a head of 8 bits or more for int8 per channel on XNNPACK: one row per instruction set,
 * the best first. Figures: README, "The output head". */
static const struct {
    uint64_t cpu_features;
    bool q8c_head;
} heads[] = {
    {DRLLM_CPU_AVX512VNNI, false},
    {DRLLM_CPU_AVX2, false},
    {DRLLM_CPU_DOTPROD, false},
    {0, false},
};

static bool head_is_q8c(enum drllm_format stored, uint64_t cpu_features) {
    const bool four_bits = stored == DRLLM_FORMAT_Q4_0 || stored == DRLLM_FORMAT_Q4_1 || stored == DRLLM_FORMAT_Q4_K;
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        if ((heads[i].cpu_features & ~cpu_features) == 0) {
            return heads[i].q8c_head && !four_bits && drllm_xnn_available();
        }
    }
    return false;
}

bool drllm_choose_format(enum drllm_format stored, size_t cols, bool is_head, enum drllm_compute compute,
                         enum drllm_head head, uint64_t cpu_features, struct drllm_choice_of_format *choice) {
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (formats[i].stored != stored) {
            continue;
        }
        choice->format = compute == DRLLM_COMPUTE_F32 ? DRLLM_FORMAT_F32 : formats[i].exact;
        choice->xnnpack = false;
        if (compute == DRLLM_COMPUTE_F32) {
            return true;
        }
        /* XNNPACK only where it is asked for or the table says so: exact results must not depend on the build. */
        bool wanted = compute == DRLLM_COMPUTE_XNNPACK;
        if (is_head && head != DRLLM_HEAD_AUTO) {
            wanted = head == DRLLM_HEAD_Q8C;
        } else if (is_head && !wanted) {
            wanted = head_is_q8c(stored, cpu_features);
        }
        if (wanted) {
            const bool int4 = compute == DRLLM_COMPUTE_XNNPACK && head != DRLLM_HEAD_Q8C &&
                              formats[i].xnnpack == DRLLM_FORMAT_QB4W && drllm_xnn_qb4w_fits(cols);
            choice->format = int4 ? DRLLM_FORMAT_QB4W : DRLLM_FORMAT_Q8C;
            choice->xnnpack = drllm_xnn_available() && (int4 || drllm_xnn_q8c_fits(cols));
        }
        return true;
    }
    return false;
}
