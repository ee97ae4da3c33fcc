#include "tools/bench_roofline.h"

#include "tools/files.h"
#include "tools/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LINES = 16, NAME_BYTES = 48, ROOF_POINTS = 3 };

struct roofline {
    const struct kernel_bench *kernels;
    unsigned n_threads;
    const char *backend;
    double peak, bandwidth; /* operations and bytes a second */
    struct plot_line lines[MOST_LINES];
    char names[MOST_LINES][NAME_BYTES];
    size_t n_lines;
};

static struct plot_point at(double ops_per_byte, double ops_per_second) {
    return (struct plot_point){.x = ops_per_byte, .y = ops_per_second / 1e9, .low = NAN, .high = NAN};
}

/* The points are the line's from now on; without any there is no line. */
static void add_line(struct roofline *roofline, const char *name, struct plot_point *points, size_t n_points) {
    if (n_points == 0 || roofline->n_lines == MOST_LINES) {
        free(points);
        return;
    }
    char *copy = roofline->names[roofline->n_lines];
    snprintf(copy, NAME_BYTES, "%s", name);
    roofline->lines[roofline->n_lines++] = (struct plot_line){copy, points, n_points};
}

/* ---- Kernels ---- */

static bool is_drawn(const struct roofline *roofline, const struct kernel_result *result) {
    const enum drllm_format format = result->candidate->format;
    return result->candidate->kernel != NULL && result->shape->class == KERNEL_UP && !result->cached &&
           result->n_threads == roofline->n_threads &&
           (format == DRLLM_FORMAT_Q4_0 || format == DRLLM_FORMAT_Q4_1 || format == DRLLM_FORMAT_Q8_0 ||
            format == DRLLM_FORMAT_Q8C);
}

/* The first shape of its kind that was measured stands for all. */
static const struct kernel_shape *drawn_shape(const struct roofline *roofline) {
    for (size_t i = 0; i < roofline->kernels->n_results; i++) {
        if (is_drawn(roofline, &roofline->kernels->results[i])) {
            return roofline->kernels->results[i].shape;
        }
    }
    return NULL;
}

static const struct kernel_candidate *fastest(const struct roofline *roofline, enum drllm_format format,
                                              const struct kernel_shape *shape) {
    const struct kernel_candidate *best = NULL;
    double most = 0.0;
    for (size_t i = 0; i < roofline->kernels->n_results; i++) {
        const struct kernel_result *result = &roofline->kernels->results[i];
        if (is_drawn(roofline, result) && result->candidate->format == format && result->shape == shape &&
            kernel_ops(result) > most) {
            most = kernel_ops(result);
            best = result->candidate;
        }
    }
    return best;
}

static void add_kernel(struct roofline *roofline, const struct kernel_candidate *candidate,
                       const struct kernel_shape *shape) {
    struct plot_point *points = allocate(roofline->kernels->n_results, sizeof *points);
    size_t n = 0;
    for (size_t i = 0; i < roofline->kernels->n_results; i++) {
        const struct kernel_result *result = &roofline->kernels->results[i];
        if (is_drawn(roofline, result) && result->candidate == candidate && result->shape == shape) {
            points[n++] = at(kernel_ops(result) / kernel_bytes(result), kernel_ops(result));
            roofline->peak = fmax(roofline->peak, result->peak);
            roofline->bandwidth = fmax(roofline->bandwidth, result->bandwidth);
        }
    }
    add_line(roofline, drllm_format_name((uint32_t)candidate->format), points, n);
    roofline->backend = candidate->kernel->backend;
}

/* ---- Models ---- */

static int by_x(const void *a, const void *b) {
    const double x = ((const struct plot_point *)a)->x;
    const double y = ((const struct plot_point *)b)->x;
    return (x > y) - (x < y);
}

/* Prompts read the weights once for all tokens, generations once for each. */
static void add_models(struct roofline *roofline, const struct bench *models) {
    for (size_t first = 0; first < models->n_rows; first++) {
        const char *path = models->rows[first].path;
        if (first != 0 && models->rows[first - 1].path == path) {
            continue;
        }
        if (roofline->n_lines + 1 == MOST_LINES) {
            return; /* the last is the roof's */
        }
        struct plot_point *points = allocate(models->n_rows, sizeof *points);
        size_t n = 0;
        for (size_t i = first; i < models->n_rows && models->rows[i].path == path; i++) {
            const struct row *row = &models->rows[i];
            const double ops = 2.0 * (double)row->info.n_params; /* a token */
            const double bytes =
                row->n_gen != 0 ? row->bytes_per_token : (double)row->info.weight_bytes / (double)row->n_prompt;
            if (row->n_threads == roofline->n_threads) {
                points[n++] = at(ops / bytes, ops * row->median);
            }
        }
        qsort(points, n, sizeof *points, by_x);
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s model", models->rows[first].info.quantization);
        add_line(roofline, name, points, n);
    }
}

/* ---- */

/* From the least operations per byte that are drawn to the most. */
static void add_roof(struct roofline *roofline) {
    double low = INFINITY;
    double high = 0.0;
    for (size_t i = 0; i < roofline->n_lines; i++) {
        for (size_t j = 0; j < roofline->lines[i].n_points; j++) {
            low = fmin(low, roofline->lines[i].points[j].x);
            high = fmax(high, roofline->lines[i].points[j].x);
        }
    }
    const double ridge = roofline->peak / roofline->bandwidth;
    struct plot_point *points = allocate(ROOF_POINTS, sizeof *points);
    points[0] = at(fmin(low, ridge / 2.0), roofline->bandwidth * fmin(low, ridge / 2.0));
    points[1] = at(ridge, roofline->peak);
    points[2] = at(fmax(high, 2.0 * ridge), roofline->peak);
    add_line(roofline, "roof", points, ROOF_POINTS);
}

static int write_plot(const struct roofline *roofline, const struct kernel_shape *shape, const char *path) {
    char subtitle[160];
    snprintf(subtitle, sizeof subtitle,
             "roof: %.1f GB/s of memory, %.0f GOP/s of registers, threads: %u; kernels: %s on %zu x %zu weights",
             roofline->bandwidth / 1e9, roofline->peak / 1e9, roofline->n_threads, roofline->backend, shape->cols,
             shape->rows);
    const struct plot plot = {.title = "Roofline",
                              .subtitle = subtitle,
                              .x_label = "operations per byte of weights",
                              .y_label = "GOP/s",
                              .lines = roofline->lines,
                              .n_lines = roofline->n_lines,
                              .logarithmic = true};
    struct output_file output = {NULL, NULL, NULL};
    int exit_code = output_open(roofline->kernels->command, path, &output);
    if (exit_code == TOOL_OK) {
        plot_write(output.stream, &plot);
        exit_code = output_commit(roofline->kernels->command, &output);
    }
    output_discard(&output);
    return exit_code;
}

int bench_roofline_write(const char *path, const struct kernel_bench *kernels, const struct bench *models) {
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0,
                                                DRLLM_FORMAT_Q8C};
    struct roofline roofline = {.kernels = kernels, .n_threads = (unsigned)kernels->options->threads->items[0]};
    const struct kernel_shape *shape = drawn_shape(&roofline);
    for (size_t i = 0; shape != NULL && i < sizeof formats / sizeof formats[0]; i++) {
        const struct kernel_candidate *candidate = fastest(&roofline, formats[i], shape);
        if (candidate != NULL) {
            add_kernel(&roofline, candidate, shape);
        }
    }
    int exit_code = TOOL_FAILED;
    if (shape != NULL && roofline.peak > 0.0 && roofline.bandwidth > 0.0) {
        add_models(&roofline, models);
        add_roof(&roofline);
        exit_code = write_plot(&roofline, shape, path);
    } else {
        report(kernels->command, "--plot: no int4 or int8 kernel was measured on the gate or up matrix of a model");
    }
    for (size_t i = 0; i < roofline.n_lines; i++) {
        free((void *)(uintptr_t)roofline.lines[i].points);
    }
    return exit_code;
}
