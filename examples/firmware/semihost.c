/* The debugger's, or the emulator's, services: Arm's "Semihosting for AArch32 and AArch64", version 3. */
#include "board.h"

enum {
    SYS_WRITE0 = 0x04,
    SYS_GET_CMDLINE = 0x15,
    SYS_EXIT_EXTENDED = 0x20,
    APPLICATION_EXIT = 0x20026 /* ADP_Stopped_ApplicationExit */
};

static uintptr_t call(uintptr_t operation, void *parameter) {
#if defined(__aarch64__)
    register uintptr_t number __asm__("x0") = operation;
    register void *block __asm__("x1") = parameter;
    __asm__ volatile("hlt #0xf000" : "+r"(number) : "r"(block) : "memory");
#else
    register uintptr_t number __asm__("r0") = operation;
    register void *block __asm__("r1") = parameter;
    __asm__ volatile("bkpt #0xab" : "+r"(number) : "r"(block) : "memory");
#endif
    return number;
}

void board_write(const char *text, size_t size) {
    char part[64];
    while (size > 0) {
        const size_t n = size < sizeof part ? size : sizeof part - 1;
        size_t kept = 0;
        for (size_t i = 0; i < n; i++) {
            if (text[i] != '\0') { /* which would end the text */
                part[kept++] = text[i];
            }
            if (kept == sizeof part - 1) {
                part[kept] = '\0';
                (void)call(SYS_WRITE0, part);
                kept = 0;
            }
        }
        part[kept] = '\0';
        (void)call(SYS_WRITE0, part);
        text += n;
        size -= n;
    }
}

void board_command(char *text, size_t size) {
    uintptr_t block[2] = {(uintptr_t)text, size};
    if (call(SYS_GET_CMDLINE, block) != 0) {
        text[0] = '\0';
    }
}

_Noreturn void board_exit(int status) {
    uintptr_t block[2] = {APPLICATION_EXIT, (uintptr_t)status};
    for (;;) {
        (void)call(SYS_EXIT_EXTENDED, block);
    }
}

/* From the linker script. */
extern const char model_begin[], model_end[];
extern char arena_begin[], arena_end[];

struct board_memory board_memory(void) {
    return (struct board_memory){model_begin, (size_t)(model_end - model_begin), arena_begin,
                                 (size_t)(arena_end - arena_begin)};
}
