/* What main.c needs of a board. Each board is a linker script, which says where the model and the arena lie, with a start-up
 * file and semihost.c; host.c is the same for a PC. */
#ifndef DRLLM_EXAMPLES_FIRMWARE_BOARD_H
#define DRLLM_EXAMPLES_FIRMWARE_BOARD_H

#include <stddef.h>
#include <stdint.h>

/* Memory that is not the program's: the model, read-only, and room for everything that drllm needs. */
struct board_memory {
    const void *model;
    size_t model_size; /* of the place; the model may be smaller */
    void *arena;       /* 64-byte aligned */
    size_t arena_size;
};
struct board_memory board_memory(void);

/* To the console. */
void board_write(const char *text, size_t size);
/* The command line, zero-terminated and cut to fit; "" if there is none. */
void board_command(char *text, size_t size);
/* The end, with an exit status for whoever watches the board. */
_Noreturn void board_exit(int status);

/* The start-up code calls it. */
int main(void);

#endif
