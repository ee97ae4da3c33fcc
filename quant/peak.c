#include "quant/peak.h"

#include "platform/cpu.h"

enum { IS_int8 = 0, IS_float = 1 };

static const struct drllm_peak peaks[] = {
#define DRLLM_PEAK_ROW(type, backend, features, ops) \
    {#type "_" #backend, IS_##type, features, drllm_peak_##type##_##backend, ops},
    DRLLM_PEAKS(DRLLM_PEAK_ROW)
#undef DRLLM_PEAK_ROW
};

enum { N_PEAKS = sizeof peaks / sizeof peaks[0] };

const struct drllm_peak *drllm_peaks(size_t *n_peaks) {
    *n_peaks = N_PEAKS;
    return peaks;
}

const struct drllm_peak *drllm_peak_choose(bool is_float, uint64_t cpu_features) {
    size_t i = 0;
    while (i + 1 < N_PEAKS && (peaks[i].is_float != is_float || (peaks[i].cpu_features & ~cpu_features) != 0)) {
        i++;
    }
    return &peaks[i];
}
