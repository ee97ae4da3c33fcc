/* From reset to main on Cortex-M: vectors, floating point, memory, a clock. */
#include "board.h"

#include "runtime/drllm_fw.h"

#include <string.h>

extern char stack_top[], data_load[], data_begin[], data_end[], bss_begin[], bss_end[];

/* The System Control Space of Armv7-M and Armv8-M. */
#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define SYSTICK_CONTROL REGISTER(0xE000E010)
#define SYSTICK_RELOAD REGISTER(0xE000E014)
#define SYSTICK_NOW REGISTER(0xE000E018)
#define FAULT_STATUS REGISTER(0xE000ED28)
#define COPROCESSOR_ACCESS REGISTER(0xE000ED88)

enum { SYSTICK_ON = 1, SYSTICK_INTERRUPT = 2, SYSTICK_PROCESSOR_CLOCK = 4, SYSTICK_TICKS = 1 << 24 };

static volatile uint32_t n_wraps;

static void on_systick(void) {
    n_wraps++;
}

uint64_t drllm_fw_clock_ns(void) {
    uint32_t wraps, now;
    do {
        wraps = n_wraps;
        now = SYSTICK_NOW;
    } while (wraps != n_wraps); /* it began anew meanwhile */
    const uint64_t ticks = (uint64_t)wraps * SYSTICK_TICKS + (SYSTICK_TICKS - 1 - now);
    return ticks * 1000 / BOARD_MHZ;
}

static _Noreturn void on_fault(void) {
    static const char text[] = "fault, status 0x";
    char digits[9];
    const uint32_t status = FAULT_STATUS;
    for (unsigned i = 0; i < 8; i++) {
        digits[i] = "0123456789abcdef"[status >> (28 - 4 * i) & 15];
    }
    digits[8] = '\n';
    board_write(text, sizeof text - 1);
    board_write(digits, sizeof digits);
    board_exit(1);
}

static _Noreturn void on_reset(void) {
    COPROCESSOR_ACCESS |= 0xFu << 20; /* CP10 and CP11: floating point and MVE */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    memcpy(data_begin, data_load, (size_t)(data_end - data_begin));
    memset(bss_begin, 0, (size_t)(bss_end - bss_begin));
    SYSTICK_RELOAD = SYSTICK_TICKS - 1;
    SYSTICK_NOW = 0;
    SYSTICK_CONTROL = SYSTICK_ON | SYSTICK_INTERRUPT | SYSTICK_PROCESSOR_CLOCK;
    board_exit(main());
}

struct vectors {
    void *stack;
    void (*handlers[15])(void);
};
extern const struct vectors board_vectors;
__attribute__((section(".vectors"), used)) const struct vectors board_vectors = {
    stack_top,
    {on_reset, on_fault, on_fault, on_fault, on_fault, on_fault, on_fault, NULL, NULL, NULL, on_fault, on_fault, NULL,
     on_fault, on_systick},
};
