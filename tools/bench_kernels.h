/* The speed of every matrix kernel on the shapes of real models, beside what the machine could do. */
#ifndef DRLLM_TOOLS_BENCH_KERNELS_H
#define DRLLM_TOOLS_BENCH_KERNELS_H

#include "quant/matmul.h"
#include "quant/peak.h"
#include "tools/common.h"

struct bench;

struct kernel_bench_options {
    const char *shapes;          /* comma-separated */
    const char *formats;         /* the same; NULL: all */
    struct integer_list batches; /* tokens a product */
    const struct integer_list *threads;
    size_t repetitions;
    int output; /* enum output */
    const char *cpu_mask;
    const char *plot;           /* where the roofline goes; NULL: nowhere */
    const struct bench *models; /* that it shows as well */
};

/* What a matrix is in its model: products of a class take the same time in every block. */
enum kernel_class { KERNEL_ATTENTION, KERNEL_KV, KERNEL_UP, KERNEL_DOWN, KERNEL_HEAD, N_KERNEL_CLASSES };

struct kernel_shape {
    size_t cols, rows;
    enum kernel_class class;
    char models[96];
};

struct kernel_candidate {
    char name[32]; /* "q4_0_avx2", "q8c_xnnpack" */
    enum drllm_format format;
    const struct drllm_kernel *kernel; /* NULL: XNNPACK's */
    const struct drllm_peak *peak;
};

/* One kernel on one shape. */
struct kernel_result {
    const struct kernel_candidate *candidate;
    const struct kernel_shape *shape;
    size_t n_tokens;
    bool cached; /* else the weights come from memory */
    unsigned n_threads;
    size_t rows;         /* of the shape's, that were measured */
    double weight_bytes; /* of these */
    double ns;           /* a product: the best of the repetitions, as memory and registers are measured, too */
    double ns_median, ns_most;
    double peak;      /* operations a second of the registers; 0: unknown */
    double bandwidth; /* bytes a second of the memory; 0: unknown */
};

struct kernel_bench {
    const struct command *command;
    const struct kernel_bench_options *options;
    uint64_t cpu_features;
    struct kernel_shape *shapes;
    size_t n_shapes;
    struct kernel_candidate *candidates;
    size_t n_candidates;
    struct kernel_result *results;
    size_t n_results;
};

/* Returns an exit code. */
int bench_kernels(const struct command *command, const struct kernel_bench_options *options);

/* ---- bench_kernels_print.c ---- */

double kernel_ops(const struct kernel_result *result);     /* operations a second: 2 * M * N * K each */
double kernel_bytes(const struct kernel_result *result);   /* bytes of weights a second */
int bench_kernels_print(const struct kernel_bench *bench); /* Returns an exit code. */

#endif
