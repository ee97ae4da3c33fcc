/* One target for libFuzzer, the one that DRLLM_FUZZ_TARGET names. */
#include "tests/fuzz.h"

#include <stdlib.h>
#include <string.h>

#define NAME_OF(target) NAME_OF_(target)
#define NAME_OF_(target) drllm_fuzz_##target

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most); /* libFuzzer's own */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    drllm_fuzz_run(&NAME_OF(DRLLM_FUZZ_TARGET), data, size);
    return 0;
}

/* From nothing it begins with a sample. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    const struct drllm_fuzz_target *target = &NAME_OF(DRLLM_FUZZ_TARGET);
    if (size <= 1) {
        size_t sample_size = 0;
        uint8_t *sample = target->sample(seed % 4, &sample_size);
        if (sample != NULL && sample_size <= most) {
            memcpy(data, sample, sample_size);
            size = sample_size;
        }
        free(sample);
    }
    size = LLVMFuzzerMutate(data, size, most);
    if (target->repair != NULL && seed % 8 != 0) {
        target->repair(data, size);
    }
    return size;
}
