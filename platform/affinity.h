/* Which processors this process runs on, and how much others come first. All of it concerns the calling thread and the
 * threads that it makes from then on. */
#ifndef DRLLM_PLATFORM_AFFINITY_H
#define DRLLM_PLATFORM_AFFINITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DRLLM_MOST_PROCESSORS = 1024 };

/* A set of processors by the system's numbers. */
struct drllm_processors {
    uint64_t bits[DRLLM_MOST_PROCESSORS / 64];
};

/* "0-3,6": numbers and rising ranges below DRLLM_MOST_PROCESSORS. False for anything else, and the set is unchanged. */
bool drllm_processors_parse(const char *text, struct drllm_processors *set);
/* The same as text, zero-terminated, cut to fit. */
void drllm_processors_format(const struct drllm_processors *set, char *text, size_t size);
size_t drllm_processors_count(const struct drllm_processors *set);

/* Those that the thread may use, and to let it use only these (those of them that do not exist are left out). 0 or an errno
 * value: EINVAL if none exists or is allowed. */
int drllm_processors_get(struct drllm_processors *set);
int drllm_processors_use(const struct drllm_processors *set);

/* Of `allowed` those that are at least two thirds as fast as the fastest, by Linux's cpu_capacity, into *fast. False where the
 * system does not say, or all of them are. root is put in front of /sys: "" for this machine, a folder for tests. */
bool drllm_processors_fast(const char *root, const struct drllm_processors *allowed, struct drllm_processors *fast);

/* The nice value, -20 (first) to 19 (last). 0 or an errno value (EACCES: going first takes privileges). */
int drllm_priority_set(int nice);

#endif
