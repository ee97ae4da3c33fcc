/* Where inputs of fuzz targets come from, and how they are run. */
#include "tests/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct drllm_fuzz_target *const drllm_fuzz_targets[DRLLM_FUZZ_N] = {
#define DRLLM_FUZZ_ROW(name) &drllm_fuzz_##name,
    DRLLM_FUZZ_TARGETS(DRLLM_FUZZ_ROW)
#undef DRLLM_FUZZ_ROW
};

size_t drllm_fuzz_n_accepted;

const struct drllm_fuzz_target *drllm_fuzz_find(const char *name) {
    for (size_t i = 0; i < DRLLM_FUZZ_N; i++) {
        if (strcmp(drllm_fuzz_targets[i]->name, name) == 0) {
            return drllm_fuzz_targets[i];
        }
    }
    return NULL;
}

void drllm_fuzz_fail(const char *what, const char *file, int line) {
    (void)fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

/* ---- Changes ---- */

struct input {
    uint8_t *data;
    size_t size;
};

static size_t below(struct tiny_random *random, size_t n) {
    return n == 0 ? 0 : (size_t)(tiny_random_u64(random) % n);
}

/* Small parts are more telling than large ones. */
static size_t part(struct tiny_random *random, size_t n) {
    const size_t most = (size_t)1 << below(random, 10);
    const size_t size = 1 + below(random, most);
    return size < n ? size : n;
}

/* Numbers at the edges of what is believed: sizes, counts, offsets, ids. */
static uint64_t edge(struct tiny_random *random) {
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     0x7F,
                                     0x80,
                                     0xFF,
                                     0x7FFF,
                                     0xFFFF,
                                     0x7FFFFFFF,
                                     0x80000000u,
                                     0xFFFFFFFF,
                                     0x7FC00000,
                                     0x7F800000,
                                     1000000,
                                     UINT64_C(1) << 32,
                                     INT64_MAX,
                                     UINT64_C(1) << 63,
                                     UINT64_MAX,
                                     UINT64_MAX - 31};
    const uint64_t chosen = edges[below(random, sizeof edges / sizeof edges[0])];
    return below(random, 4) == 0 ? chosen + tiny_random_u64(random) % 65 - 32 : chosen;
}

static void put_number(struct tiny_random *random, struct input *input) {
    const size_t width = (size_t)1 << below(random, 4);
    if (input->size >= width) {
        /* Fields are mostly aligned to their width in packed files, and anywhere in GGUF files. */
        const size_t step = below(random, 2) == 0 ? width : 1;
        uint8_t *place = input->data + below(random, (input->size - width) / step + 1) * step;
        const uint64_t number = edge(random);
        for (size_t i = 0; i < width; i++) {
            place[i] = (uint8_t)(number >> 8 * i);
        }
    }
}

/* A little more or less than what stands there. */
static void add_number(struct tiny_random *random, struct input *input) {
    uint8_t *place = input->data + below(random, input->size);
    *place = (uint8_t)(*place + below(random, 33) - 16);
}

static void cut(struct tiny_random *random, struct input *input) {
    const size_t n = part(random, input->size), at = below(random, input->size - n + 1);
    memmove(input->data + at, input->data + at + n, input->size - at - n);
    input->size -= n;
}

/* A part of the input once more, somewhere. */
static void repeat(struct tiny_random *random, struct input *input) {
    const size_t n = part(random, input->size), from = below(random, input->size - n + 1);
    const size_t at = below(random, input->size + 1);
    uint8_t *copy = malloc(n), *grown = realloc(input->data, input->size + n + 1);
    if (copy == NULL || grown == NULL) {
        abort();
    }
    memcpy(copy, grown + from, n);
    memmove(grown + at + n, grown + at, input->size - at);
    memcpy(grown + at, copy, n);
    free(copy);
    input->data = grown;
    input->size += n;
}

static void overwrite(struct tiny_random *random, struct input *input) {
    const size_t n = part(random, input->size), from = below(random, input->size - n + 1);
    memmove(input->data + below(random, input->size - n + 1), input->data + from, n);
}

static void change(struct tiny_random *random, struct input *input) {
    if (input->size == 0) {
        return;
    }
    /* The head of a file decides about the rest: half of all changes fall there. */
    struct input head = *input;
    if (below(random, 2) == 0 && head.size > 2048) {
        head.size = 2048;
    }
    switch (below(random, 12)) {
    case 0:
    case 1:
        head.data[below(random, head.size)] ^= (uint8_t)(1u << below(random, 8));
        break;
    case 2:
        head.data[below(random, head.size)] = (uint8_t)tiny_random_u64(random);
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        put_number(random, &head);
        break;
    case 7:
        add_number(random, &head);
        break;
    case 8:
        overwrite(random, &head);
        break;
    case 9:
        cut(random, input);
        break;
    case 10:
        repeat(random, input);
        break;
    default:
        input->size = below(random, 8) == 0 ? below(random, input->size) : input->size - below(random, 2);
        break;
    }
}

/* A target's samples, made once and kept. */
enum { MOST_SAMPLES = 32 };
struct samples {
    const struct drllm_fuzz_target *target;
    struct input inputs[MOST_SAMPLES];
    size_t count;
};

static const struct samples *samples_of(const struct drllm_fuzz_target *target) {
    static struct samples samples;
    if (samples.target != target) {
        for (size_t i = 0; i < samples.count; i++) {
            free(samples.inputs[i].data);
        }
        samples.target = target;
        samples.count = 0;
        struct input input;
        while ((input.data = target->sample(samples.count, &input.size)) != NULL) {
            drllm_fuzz_check(samples.count < MOST_SAMPLES);
            samples.inputs[samples.count++] = input;
        }
        drllm_fuzz_check(samples.count > 0);
    }
    return &samples;
}

uint8_t *drllm_fuzz_input(const struct drllm_fuzz_target *target, uint64_t seed, uint64_t number, size_t *size) {
    struct tiny_random random = {seed};
    random.state = tiny_random_u64(&random) ^ number * UINT64_C(0x9e3779b97f4a7c15);
    const struct samples *samples = samples_of(target);
    /* The first inputs are the sound ones. */
    const bool sound = number < samples->count;
    const struct input *sample = &samples->inputs[sound ? (size_t)number : below(&random, samples->count)];
    struct input input = {malloc(sample->size + 1), sample->size};
    if (input.data == NULL) {
        abort();
    }
    memcpy(input.data, sample->data, sample->size);
    if (!sound) {
        for (size_t n = 1 + below(&random, (size_t)1 << below(&random, 5)); n > 0; n--) {
            change(&random, &input);
        }
        if (target->repair != NULL && below(&random, 8) != 0) {
            target->repair(input.data, input.size);
        }
    }
    *size = input.size;
    return input.data;
}

void drllm_fuzz_run(const struct drllm_fuzz_target *target, const uint8_t *data, size_t size) {
    void *copy = NULL;
    if (posix_memalign(&copy, 64, size == 0 ? 1 : size) != 0) {
        abort();
    }
    if (size != 0) {
        memcpy(copy, data, size);
    }
    target->run(copy, size);
    free(copy);
}
