#include "platform/affinity.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static bool has(const struct drllm_processors *set, size_t number) {
    return (set->bits[number / 64] >> number % 64 & 1) != 0;
}

static void add(struct drllm_processors *set, size_t number) {
    set->bits[number / 64] |= (uint64_t)1 << number % 64;
}

size_t drllm_processors_count(const struct drllm_processors *set) {
    size_t n = 0;
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS; i++) {
        n += has(set, i);
    }
    return n;
}

/* ---- As text ---- */

/* The number that *text begins with, which moves behind it. */
static bool take_number(const char **text, size_t *number) {
    size_t value = 0, digits = 0;
    for (; **text >= '0' && **text <= '9' && digits < 5; ++*text, digits++) {
        value = value * 10 + (size_t)(**text - '0');
    }
    *number = value;
    return digits != 0 && value < DRLLM_MOST_PROCESSORS;
}

bool drllm_processors_parse(const char *text, struct drllm_processors *set) {
    struct drllm_processors parsed = {{0}};
    for (;; text++) {
        size_t first, last;
        if (!take_number(&text, &first)) {
            return false;
        }
        last = first;
        if (*text == '-') {
            text++;
            if (!take_number(&text, &last) || last < first) {
                return false;
            }
        }
        for (size_t i = first; i <= last; i++) {
            add(&parsed, i);
        }
        if (*text == '\0') {
            *set = parsed;
            return true;
        }
        if (*text != ',') {
            return false;
        }
    }
}

void drllm_processors_format(const struct drllm_processors *set, char *text, size_t size) {
    size_t length = 0;
    if (size != 0) {
        text[0] = '\0';
    }
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS && length < size; i++) {
        size_t last = i;
        if (!has(set, i)) {
            continue;
        }
        while (last + 1 < DRLLM_MOST_PROCESSORS && has(set, last + 1)) {
            last++;
        }
        const char *comma = length != 0 ? "," : "";
        const int n = last == i ? snprintf(text + length, size - length, "%s%zu", comma, i)
                                : snprintf(text + length, size - length, "%s%zu-%zu", comma, i, last);
        length += (size_t)n;
        i = last;
    }
}

/* ---- The thread's ---- */

int drllm_processors_get(struct drllm_processors *set) {
    cpu_set_t allowed; /* of 1024 */
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return errno;
    }
    *set = (struct drllm_processors){{0}};
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS; i++) {
        if (CPU_ISSET(i, &allowed)) {
            add(set, i);
        }
    }
    return 0;
}

int drllm_processors_use(const struct drllm_processors *set) {
    cpu_set_t wanted;
    CPU_ZERO(&wanted);
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS; i++) {
        if (has(set, i)) {
            CPU_SET(i, &wanted);
        }
    }
    return sched_setaffinity(0, sizeof wanted, &wanted) == 0 ? 0 : errno;
}

/* ---- Kinds ---- */

/* 1024 for the fastest kind; -1 where the system does not say. */
static long capacity(const char *root, size_t number) {
    char path[512], text[32];
    const int length = snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%zu/cpu_capacity", root, number);
    if (length < 0 || (size_t)length >= sizeof path) {
        return -1;
    }
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return -1;
    }
    const ssize_t n = read(file, text, sizeof text - 1);
    close(file);
    text[n > 0 ? n : 0] = '\0';
    char *end = text;
    const long value = strtol(text, &end, 10);
    return end != text && value > 0 ? value : -1;
}

bool drllm_processors_fast(const char *root, const struct drllm_processors *allowed, struct drllm_processors *fast) {
    struct drllm_processors found = {{0}};
    long most = 0;
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS; i++) {
        const long own = has(allowed, i) ? capacity(root, i) : 0;
        if (own < 0) {
            return false;
        }
        most = own > most ? own : most;
    }
    for (size_t i = 0; i < DRLLM_MOST_PROCESSORS; i++) {
        if (has(allowed, i) && capacity(root, i) >= most - most / 3) {
            add(&found, i);
        }
    }
    const size_t n = drllm_processors_count(&found);
    if (n == 0 || n == drllm_processors_count(allowed)) {
        return false;
    }
    *fast = found;
    return true;
}

int drllm_priority_set(int nice) {
    return setpriority(PRIO_PROCESS, 0, nice) == 0 ? 0 : errno;
}
