#include "tools/random.h"

uint64_t random_next(uint64_t *random) {
    uint64_t z = *random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double random_uniform(uint64_t *random) {
    return (double)(random_next(random) >> 11) * 0x1p-53;
}

void random_shuffle(uint64_t *random, size_t *items, size_t count) {
    for (size_t i = count; i > 1; i--) {
        const size_t j = (size_t)(random_uniform(random) * (double)i);
        const size_t item = items[i - 1];
        items[i - 1] = items[j];
        items[j] = item;
    }
}
