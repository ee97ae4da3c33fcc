/* Boards differ in their clocks: the program brings one, or there is none. */
#include "platform/clock.h"

uint64_t drllm_fw_clock_ns(void); /* as runtime/drllm_fw.h declares it */

__attribute__((weak)) uint64_t drllm_fw_clock_ns(void) {
    return 0;
}

uint64_t drllm_clock_ns(void) {
    return drllm_fw_clock_ns();
}
