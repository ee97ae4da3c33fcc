/* A pool of worker threads: pthreadpool where there are threads (threads.c), a serial shim with the same calls where
 * there are none (threads_serial.c). A pool serves one caller at a time. */
#ifndef DRLLM_PLATFORM_THREADS_H
#define DRLLM_PLATFORM_THREADS_H

#include <stddef.h>

struct drllm_threads;

/* Runs task `index` (0 .. n_tasks-1) on worker `worker` (0 .. drllm_threads_count-1). */
typedef void (*drllm_task_fn)(void *context, size_t worker, size_t index);

/* NULL when the threads cannot be made. n_threads 1 makes a pool without threads, which never fails for want of
 * them. */
struct drllm_threads *drllm_threads_create(unsigned n_threads);
void drllm_threads_destroy(struct drllm_threads *threads);
unsigned drllm_threads_count(const struct drllm_threads *threads);

/* Run all tasks and wait. The order is free; one worker runs one task at a time. NULL runs inline as worker 0.
 * Workers look out for the next call for some microseconds, then sleep. Where other programs keep them from their
 * cores, fewer of them are used for a while, down to the caller alone; results must not depend on how many. */
void drllm_threads_run(struct drllm_threads *threads, drllm_task_fn task, void *context, size_t n_tasks);

/* The pthreadpool behind the pool, for XNNPACK; NULL when serial. */
void *drllm_threads_native(struct drllm_threads *threads);

#endif
