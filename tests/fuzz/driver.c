/* The fuzz targets of tests/fuzz.h without libFuzzer: inputs of a seed, or files. */
#include "tests/fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(int status) {
    FILE *stream = status == 0 ? stdout : stderr;
    (void)fputs("usage: drllm-fuzz [OPTION]... TARGET [FILE]...\n"
                "  FILE...        run these files and nothing else\n"
                "  --seed N       of the inputs (default 1)\n"
                "  --runs N       how many (default 100000)\n"
                "  --input N      only this one\n"
                "  -o FILE        write each input there before it runs\n"
                "targets:",
                stream);
    for (size_t i = 0; i < DRLLM_FUZZ_N; i++) {
        (void)fprintf(stream, " %s", drllm_fuzz_targets[i]->name);
    }
    (void)fputc('\n', stream);
    return status;
}

static bool write_file(const char *path, const uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    const bool written = file != NULL && fwrite(data, 1, size, file) == size;
    const bool closed = file != NULL && fclose(file) == 0;
    if (!written || !closed) {
        (void)fprintf(stderr, "drllm-fuzz: %s: %s\n", path, strerror(errno));
    }
    return written && closed;
}

static bool run_file(const struct drllm_fuzz_target *target, const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t size = 0, capacity = 0;
    while (file != NULL && !feof(file) && !ferror(file)) {
        if (size == capacity) {
            capacity = capacity == 0 ? 4096 : 2 * capacity;
            uint8_t *grown = realloc(data, capacity);
            if (grown == NULL) {
                break;
            }
            data = grown;
        }
        size += fread(data + size, 1, capacity - size, file);
    }
    const bool is_read = file != NULL && feof(file) != 0;
    if (file != NULL) {
        (void)fclose(file);
    }
    if (is_read) {
        drllm_fuzz_run(target, data, size);
    } else {
        (void)fprintf(stderr, "drllm-fuzz: %s cannot be read\n", path);
    }
    free(data);
    return is_read;
}

static bool number_of(const char *text, uint64_t *number) {
    char *end = NULL;
    errno = 0;
    *number = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == '\0';
}

int main(int argc, char **argv) {
    uint64_t seed = 1, first = 0, n = 100000;
    const char *out = NULL;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        const char *option = argv[i];
        if (strcmp(option, "--help") == 0) {
            return usage(0);
        }
        if (++i == argc) {
            return usage(2);
        }
        bool valid = true;
        if (strcmp(option, "--seed") == 0) {
            valid = number_of(argv[i], &seed);
        } else if (strcmp(option, "--runs") == 0) {
            valid = number_of(argv[i], &n);
        } else if (strcmp(option, "--input") == 0) {
            valid = number_of(argv[i], &first);
            n = 1;
        } else if (strcmp(option, "-o") == 0) {
            out = argv[i];
        } else {
            valid = false;
        }
        if (!valid) {
            return usage(2);
        }
    }
    const struct drllm_fuzz_target *target = i < argc ? drllm_fuzz_find(argv[i]) : NULL;
    if (target == NULL) {
        return usage(2);
    }
    if (i + 1 < argc) {
        for (i++; i < argc; i++) {
            if (!run_file(target, argv[i])) {
                return 1;
            }
        }
        return 0;
    }
    for (uint64_t k = 0; k < n; k++) {
        size_t size = 0;
        uint8_t *data = drllm_fuzz_input(target, seed, first + k, &size);
        if (out != NULL && !write_file(out, data, size)) {
            free(data);
            return 1;
        }
        drllm_fuzz_run(target, data, size);
        free(data);
    }
    printf("%s: %llu inputs of seed %llu, %zu sound\n", target->name, (unsigned long long)n, (unsigned long long)seed,
           drllm_fuzz_n_accepted);
    return 0;
}
