/* Random numbers that are the same everywhere (splitmix64). A state is any number, the seed at first. */
#ifndef DRLLM_TOOLS_RANDOM_H
#define DRLLM_TOOLS_RANDOM_H

#include <stddef.h>
#include <stdint.h>

uint64_t random_next(uint64_t *random);
double random_uniform(uint64_t *random); /* [0, 1) */
void random_shuffle(uint64_t *random, size_t *items, size_t count);

#endif
