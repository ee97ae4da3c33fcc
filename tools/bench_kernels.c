#include "tools/bench_kernels.h"

#include "platform/clock.h"
#include "platform/memory.h"
#include "quant/matmul_xnnpack.h"
#include "quant/vec.h"
#include "runtime/drllm_os.h"
#include "tools/bandwidth.h"
#include "tools/bench_roofline.h"
#include "tools/interrupt.h"
#include "tools/kernel_weights.h"
#include "tools/synthetic.h"

#include <stdlib.h>
#include <string.h>

enum {
    SAMPLE_NS = 4000000,      /* a measurement is of at least so long, */
    PRODUCT_NS = 20000000,    /* and a product, which is cut to fewer rows, of about so long at most */
    CACHE_BYTES = 512 * 1024, /* of weights that a thread's own cache holds */
    PEAK_NS = 3000000,
    PEAK_PASSES = 7
};

/* ---- What is to be measured ---- */

static bool lists(const char *list, const char *name) {
    const size_t size = strlen(name);
    for (const char *p = list; p != NULL && *p != '\0'; p += strcspn(p, ","), p += *p == ',') {
        if (strcspn(p, ",") == size && memcmp(p, name, size) == 0) {
            return true;
        }
    }
    return false;
}

static void add_shape(struct kernel_bench *bench, const char *model, enum kernel_class class, size_t cols,
                      size_t rows) {
    for (size_t i = 0; i < bench->n_shapes; i++) {
        struct kernel_shape *shape = &bench->shapes[i];
        if (shape->cols == cols && shape->rows == rows && shape->class == class) {
            const size_t used = strlen(shape->models);
            snprintf(shape->models + used, sizeof shape->models - used, " %s", model);
            return;
        }
    }
    bench->shapes = reallocate(bench->shapes, bench->n_shapes + 1, sizeof *bench->shapes);
    struct kernel_shape *shape = &bench->shapes[bench->n_shapes++];
    *shape = (struct kernel_shape){.cols = cols, .rows = rows, .class = class};
    snprintf(shape->models, sizeof shape->models, "%s", model);
}

static int add_shapes(struct kernel_bench *bench, const char *list) {
    for (const char *p = list; *p != '\0'; p += *p == ',') {
        char name[64];
        struct synthetic_shape shape;
        const size_t size = strcspn(p, ",");
        snprintf(name, sizeof name, "%.*s", (int)(size < sizeof name ? size : sizeof name - 1), p);
        const int exit_code = synthetic_parse_shape(bench->command, name, &shape);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        const size_t d = shape.d_model;
        add_shape(bench, shape.name, KERNEL_ATTENTION, d, d);
        add_shape(bench, shape.name, KERNEL_KV, d, d / shape.n_heads * shape.n_kv_heads);
        add_shape(bench, shape.name, KERNEL_UP, d, shape.d_ff);
        add_shape(bench, shape.name, KERNEL_DOWN, shape.d_ff, d);
        add_shape(bench, shape.name, KERNEL_HEAD, d, shape.n_vocab);
        p += size;
    }
    return TOOL_OK;
}

static void add_candidate(struct kernel_bench *bench, enum drllm_format format, const struct drllm_kernel *kernel) {
    const char *name = drllm_format_name((uint32_t)format);
    if (bench->options->formats != NULL && !lists(bench->options->formats, name)) {
        return;
    }
    const bool is_float = kernel != NULL && kernel->floating != NULL;
    struct kernel_candidate *candidate = &bench->candidates[bench->n_candidates++];
    *candidate = (struct kernel_candidate){.format = format, .kernel = kernel};
    candidate->peak = drllm_peak_choose(is_float, kernel != NULL ? kernel->cpu_features : bench->cpu_features);
    snprintf(candidate->name, sizeof candidate->name, "%s_%s", name, kernel != NULL ? kernel->backend : "xnnpack");
}

/* In the table's order within a format, format after format. */
static int add_candidates(struct kernel_bench *bench) {
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_0, DRLLM_FORMAT_QB4W, DRLLM_FORMAT_Q4_1,
                                                DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q8C,  DRLLM_FORMAT_F16,
                                                DRLLM_FORMAT_BF16, DRLLM_FORMAT_F32};
    size_t n_kernels;
    const struct drllm_kernel *kernels = drllm_kernels(&n_kernels);
    const bool has_xnn = drllm_xnn_available() && drllm_xnn_start(bench->cpu_features) == DRLLM_XNN_OK;
    bench->candidates = allocate(n_kernels + 2, sizeof *bench->candidates);
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (size_t i = 0; i < n_kernels; i++) {
            if (kernels[i].format == formats[f] && (kernels[i].cpu_features & ~bench->cpu_features) == 0) {
                add_candidate(bench, formats[f], &kernels[i]);
            }
        }
        if (has_xnn && (formats[f] == DRLLM_FORMAT_Q8C || formats[f] == DRLLM_FORMAT_QB4W)) {
            add_candidate(bench, formats[f], NULL);
        }
    }
    if (drllm_xnn_available() && !has_xnn) {
        report(bench->command, "XNNPACK has no kernels for this processor; it is left out");
    }
    if (bench->n_candidates == 0) {
        return usage_error(bench->command, "--format %s: there are kernels for q4_0, q4_1, q8_0, q8c, f16, bf16, f32%s",
                           bench->options->formats, has_xnn ? ", qb4w" : "");
    }
    return TOOL_OK;
}

/* ---- What the machine can do ---- */

struct peak_run {
    const struct drllm_peak *peak;
    size_t n_rounds;
    int32_t sums[64];
};

static void run_peak(void *context, size_t worker, size_t index) {
    (void)worker;
    struct peak_run *run = context;
    run->sums[index % 64] = run->peak->run(run->n_rounds);
}

/* Operations a second of all threads together, the best of several passes. */
static double measure_peak(const struct drllm_peak *peak, struct drllm_threads *threads) {
    const size_t n_threads = drllm_threads_count(threads);
    struct peak_run run = {.peak = peak, .n_rounds = 1024};
    double best = 0.0;
    for (int pass = 0; pass < PEAK_PASSES;) {
        const uint64_t start = drllm_clock_ns();
        drllm_threads_run(threads, run_peak, &run, n_threads);
        const uint64_t ns = drllm_clock_ns() - start;
        if (ns < PEAK_NS / 2 && run.n_rounds < (size_t)1 << 30) {
            run.n_rounds *= 2;
            continue;
        }
        const double rate = per_second((double)run.n_rounds * (double)peak->round_ops * (double)n_threads, ns);
        best = rate > best ? rate : best;
        pass++;
    }
    return best;
}

/* ---- Measuring one kernel on one shape ---- */

struct machine {
    struct drllm_threads *threads;
    unsigned n_threads;
    double bandwidth;
    const struct drllm_vec_ops *vec;
};

/* A product to repeat: each time on the next copy of the weights. */
struct subject {
    const struct kernel_panels *panels; /* or */
    const struct kernel_xnn *xnn;
    const struct kernel_candidate *candidate;
    struct kernel_input *input;
    struct drllm_threads *threads;
    float *y;
    size_t rows;
    size_t n_copies, next;
};

static bool multiply(struct subject *subject) {
    const size_t copy = subject->next;
    subject->next = copy + 1 < subject->n_copies ? copy + 1 : 0;
    if (subject->xnn != NULL) {
        return drllm_xnn_op_run(&subject->xnn->copies[copy].op, &subject->input->xnn, subject->y, subject->rows,
                                subject->threads) == DRLLM_XNN_OK;
    }
    const struct drllm_matrix matrix =
        kernel_panels_matrix(subject->panels, subject->candidate->kernel, subject->rows, copy);
    const struct drllm_product product = {.matrix = &matrix, .y = subject->y, .ldy = subject->rows};
    return drllm_matmul(&product, 1, &subject->input->activations, subject->threads, subject->input->tail);
}

/* Nanoseconds a product; negative if it fails. */
static double sample(struct subject *subject) {
    const uint64_t start = drllm_clock_ns();
    uint64_t ns = 0;
    size_t n = 0;
    do {
        if (!multiply(subject)) {
            return -1.0;
        }
        n++;
        ns = drllm_clock_ns() - start;
    } while (ns < SAMPLE_NS);
    return (double)ns / (double)n;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t whole_rows(size_t rows) {
    return rows < KERNEL_ROWS ? KERNEL_ROWS : rows / KERNEL_ROWS * KERNEL_ROWS;
}

/* Of the shape's rows as many as the weights have and a cache is to hold. */
static size_t choose_rows(const struct machine *machine, const struct kernel_shape *shape, size_t most,
                          double row_bytes, bool cached) {
    const size_t rows = least((shape->rows + KERNEL_ROWS - 1) / KERNEL_ROWS * KERNEL_ROWS, most);
    return cached ? least(rows, whole_rows((size_t)((double)CACHE_BYTES * machine->n_threads / row_bytes))) : rows;
}

/* Nanoseconds of one product, the better of two where it is short; 0 if it fails. */
static uint64_t try_product(struct subject *subject) {
    uint64_t best = 0;
    for (int i = 0; i < 2 && (i == 0 || best < PRODUCT_NS); i++) {
        const uint64_t start = drllm_clock_ns();
        if (!multiply(subject)) {
            return 0;
        }
        const uint64_t ns = drllm_clock_ns() - start + 1;
        best = i == 0 || ns < best ? ns : best;
    }
    return best;
}

/* What is slow is measured on fewer rows, at the same speed: on so many that a product takes about PRODUCT_NS. */
static bool cut_slow(struct subject *subject) {
    const size_t rows = subject->rows;
    subject->rows = least(rows, KERNEL_ROWS * drllm_threads_count(subject->threads));
    for (;;) {
        const uint64_t ns = try_product(subject);
        if (ns == 0) {
            return false;
        }
        if (ns >= PRODUCT_NS / 8) {
            const double affordable = (double)PRODUCT_NS / (double)ns * (double)subject->rows;
            subject->rows = affordable < (double)rows ? whole_rows((size_t)affordable) : rows;
            return true;
        }
        if (subject->rows == rows) {
            return true;
        }
        subject->rows = least(rows, 4 * subject->rows);
    }
}

static int measure(struct kernel_bench *bench, const struct machine *machine, struct subject *subject,
                   struct kernel_result *result) {
    const size_t n = bench->options->repetitions;
    double *samples = allocate(n, sizeof *samples);
    bool good = multiply(subject);
    for (size_t i = 0; i < n && good; i++) {
        samples[i] = sample(subject);
        good = samples[i] >= 0.0;
    }
    if (good) {
        result->ns_median = median(samples, n);
        result->ns = samples[0];
        result->ns_most = samples[n - 1];
        result->rows = subject->rows;
        result->n_threads = machine->n_threads;
        result->bandwidth = machine->bandwidth;
        bench->results = reallocate(bench->results, bench->n_results + 1, sizeof *bench->results);
        bench->results[bench->n_results++] = *result;
    }
    free(samples);
    if (!good) {
        report(bench->command, "%s fails on %zu x %zu", result->candidate->name, result->shape->cols, subject->rows);
        return TOOL_FAILED;
    }
    return interrupt_seen() ? TOOL_INTERRUPTED : TOOL_OK;
}

static int out_of_memory(const struct kernel_bench *bench) {
    report(bench->command, "no memory for the weights and activations to measure with; %d MB are needed",
           (int)(3 * (KERNEL_WEIGHTS_BYTES / 1000000)));
    return TOOL_FAILED;
}

/* A head is only ever asked about one token at a time. */
static bool is_measured(const struct kernel_shape *shape, size_t n_tokens, bool cached) {
    return cached ? n_tokens == 1 && shape->class != KERNEL_HEAD : n_tokens == 1 || shape->class != KERNEL_HEAD;
}

static int measure_ours(struct kernel_bench *bench, const struct machine *machine, const struct kernel_panels *panels,
                        struct kernel_input *input, struct kernel_result *result, float *y) {
    const double row_bytes = (double)panels->panel_bytes / DRLLM_PANEL_ROWS;
    struct subject subject = {.panels = panels, .candidate = result->candidate, .input = input, .y = y};
    subject.threads = machine->threads;
    subject.rows = choose_rows(machine, result->shape, kernel_panels_most_rows(panels), row_bytes, result->cached);
    subject.n_copies = 1;
    if (!cut_slow(&subject)) {
        return TOOL_FAILED;
    }
    subject.n_copies = result->cached ? 1 : kernel_panels_copies(panels, subject.rows);
    result->weight_bytes = row_bytes * (double)subject.rows;
    return measure(bench, machine, &subject, result);
}

static int measure_xnn(struct kernel_bench *bench, const struct machine *machine, const struct kernel_xnn *xnn,
                       struct kernel_input *input, struct kernel_result *result, float *y) {
    struct subject subject = {.xnn = xnn, .candidate = result->candidate, .input = input, .y = y};
    subject.threads = machine->threads;
    subject.rows = xnn->rows;
    subject.n_copies = xnn->n_copies;
    result->weight_bytes = (double)xnn->bytes;
    return measure(bench, machine, &subject, result);
}

/* ---- All of them ---- */

/* Activations for each number of tokens, of one row length. */
struct inputs {
    struct kernel_input *items;
    size_t count;
    float *y;
};

static void inputs_release(struct inputs *inputs) {
    for (size_t i = 0; i < inputs->count; i++) {
        kernel_input_release(&inputs->items[i]);
    }
    free(inputs->items);
    drllm_memory_release(inputs->y);
}

static bool inputs_make(const struct kernel_bench *bench, const struct machine *machine, size_t cols,
                        struct inputs *inputs) {
    const struct integer_list *batches = &bench->options->batches;
    size_t y_values = 0;
    *inputs = (struct inputs){.items = allocate(batches->count, sizeof *inputs->items)};
    for (size_t s = 0; s < bench->n_shapes; s++) {
        for (size_t b = 0; b < batches->count; b++) {
            const size_t n_tokens = (size_t)batches->items[b];
            const size_t rows = bench->shapes[s].rows + KERNEL_ROWS;
            if (bench->shapes[s].cols == cols && is_measured(&bench->shapes[s], n_tokens, false)) {
                y_values = rows * n_tokens > y_values ? rows * n_tokens : y_values;
            }
        }
    }
    inputs->y = y_values != 0 ? drllm_memory_allocate(y_values * sizeof(float), 64) : NULL;
    bool good = y_values == 0 || inputs->y != NULL;
    for (; good && inputs->count < batches->count; inputs->count++) {
        good = kernel_input_make(&inputs->items[inputs->count], (size_t)batches->items[inputs->count], cols,
                                 machine->vec, drllm_xnn_available(), machine->threads);
    }
    return good;
}

/* A shape that XNNPACK runs is packed once for all numbers of tokens. */
static int run_xnn_shape(struct kernel_bench *bench, const struct machine *machine, struct inputs *inputs,
                         struct kernel_result *result, bool cached) {
    const struct kernel_candidate *candidate = result->candidate;
    const struct kernel_shape *shape = result->shape;
    const bool is_int4 = candidate->format == DRLLM_FORMAT_QB4W;
    struct kernel_xnn xnn = {0};
    if (!(is_int4 ? drllm_xnn_qb4w_fits(shape->cols) : drllm_xnn_q8c_fits(shape->cols))) {
        return TOOL_OK;
    }
    const size_t rows = choose_rows(machine, shape, kernel_xnn_most_rows(candidate->format, shape->cols),
                                    (double)shape->cols / (is_int4 ? 2 : 1), cached);
    int exit_code = TOOL_OK;
    for (size_t b = 0; b < inputs->count && exit_code == TOOL_OK; b++) {
        result->n_tokens = inputs->items[b].n_tokens;
        result->cached = cached;
        if (!is_measured(shape, result->n_tokens, cached)) {
            continue;
        }
        if (xnn.copies == NULL &&
            kernel_xnn_make(&xnn, candidate->format, rows, shape->cols, cached, machine->threads) != DRLLM_XNN_OK) {
            exit_code = out_of_memory(bench);
        } else {
            exit_code = measure_xnn(bench, machine, &xnn, &inputs->items[b], result, inputs->y);
        }
    }
    kernel_xnn_release(&xnn);
    return exit_code;
}

static int run_our_shape(struct kernel_bench *bench, const struct machine *machine, const struct kernel_panels *panels,
                         struct inputs *inputs, struct kernel_result *result) {
    int exit_code = TOOL_OK;
    for (size_t b = 0; b < inputs->count; b++) {
        for (int cached = 0; cached < 2 && exit_code == TOOL_OK; cached++) {
            result->n_tokens = inputs->items[b].n_tokens;
            result->cached = cached != 0;
            if (is_measured(result->shape, result->n_tokens, result->cached)) {
                exit_code = measure_ours(bench, machine, panels, &inputs->items[b], result, inputs->y);
            }
        }
    }
    return exit_code;
}

/* All kernels of a format on all shapes with rows of this length. */
static int run_format(struct kernel_bench *bench, const struct machine *machine, enum drllm_format format, size_t cols,
                      const double *peaks, struct inputs *inputs) {
    struct kernel_panels panels = {0};
    int exit_code = TOOL_OK;
    for (size_t c = 0; c < bench->n_candidates; c++) {
        const struct kernel_candidate *candidate = &bench->candidates[c];
        if (candidate->format != format) {
            continue;
        }
        if (candidate->kernel != NULL && panels.data == NULL && !kernel_panels_make(&panels, format, cols)) {
            exit_code = out_of_memory(bench);
        }
        for (size_t s = 0; s < bench->n_shapes && exit_code == TOOL_OK; s++) {
            struct kernel_result result = {.candidate = candidate, .shape = &bench->shapes[s], .peak = peaks[c]};
            if (bench->shapes[s].cols != cols) {
                continue;
            }
            if (candidate->kernel != NULL) {
                exit_code = run_our_shape(bench, machine, &panels, inputs, &result);
            } else {
                for (int cached = 0; cached < 2 && exit_code == TOOL_OK; cached++) {
                    exit_code = run_xnn_shape(bench, machine, inputs, &result, cached != 0);
                }
            }
        }
    }
    kernel_panels_release(&panels);
    return exit_code;
}

static bool is_first_of_format(const struct kernel_bench *bench, size_t c) {
    return c == 0 || bench->candidates[c].format != bench->candidates[c - 1].format;
}

static int run_lengths(struct kernel_bench *bench, const struct machine *machine, const double *peaks) {
    int exit_code = TOOL_OK;
    for (size_t s = 0; s < bench->n_shapes && exit_code == TOOL_OK; s++) {
        const size_t cols = bench->shapes[s].cols;
        bool done = false;
        for (size_t before = 0; before < s; before++) {
            done = done || bench->shapes[before].cols == cols;
        }
        struct inputs inputs = {NULL, 0, NULL};
        if (!done && !inputs_make(bench, machine, cols, &inputs)) {
            exit_code = out_of_memory(bench);
        }
        for (size_t c = 0; c < bench->n_candidates && !done && exit_code == TOOL_OK; c++) {
            if (is_first_of_format(bench, c)) {
                fprintf(stderr, "%s, rows of %zu, %u threads\n",
                        drllm_format_name((uint32_t)bench->candidates[c].format), cols, machine->n_threads);
                exit_code = run_format(bench, machine, bench->candidates[c].format, cols, peaks, &inputs);
            }
        }
        inputs_release(&inputs);
    }
    return exit_code;
}

static int run_threads(struct kernel_bench *bench, unsigned n_threads) {
    struct machine machine = {.n_threads = n_threads, .vec = drllm_vec_choose(bench->cpu_features)};
    machine.bandwidth = measure_bandwidth(n_threads);
    machine.threads = drllm_threads_create(n_threads);
    if (machine.threads == NULL) {
        report(bench->command, "cannot make %u threads", n_threads);
        return TOOL_FAILED;
    }
    fprintf(stderr, "memory, %u threads: %.1f GB/s read\n", n_threads, machine.bandwidth / 1e9);
    double *peaks = allocate(bench->n_candidates, sizeof *peaks);
    for (size_t c = 0; c < bench->n_candidates; c++) {
        size_t same = 0;
        while (bench->candidates[same].peak != bench->candidates[c].peak) {
            same++;
        }
        peaks[c] = same < c ? peaks[same] : measure_peak(bench->candidates[c].peak, machine.threads);
        if (same == c) {
            fprintf(stderr, "registers, %s, %u threads: %.1f GOP/s\n", bench->candidates[c].peak->name, n_threads,
                    peaks[c] / 1e9);
        }
    }
    const int exit_code = interrupt_seen() ? TOOL_INTERRUPTED : run_lengths(bench, &machine, peaks);
    free(peaks);
    drllm_threads_destroy(machine.threads);
    return exit_code;
}

int bench_kernels(const struct command *command, const struct kernel_bench_options *options) {
    struct kernel_bench bench = {.command = command, .options = options};
    struct drllm_error error = {0};
    uint64_t mask = 0;
    if (drllm_cpu_mask_parse(options->cpu_mask, &mask, &error) != DRLLM_OK) {
        return usage_error(command, "--cpu-mask: %s", error.detail);
    }
    bench.cpu_features = drllm_cpu_features() & mask;
    int exit_code = add_shapes(&bench, options->shapes);
    if (exit_code == TOOL_OK) {
        exit_code = add_candidates(&bench);
    }
    interrupt_install();
    for (size_t t = 0; t < options->threads->count && exit_code == TOOL_OK; t++) {
        exit_code = run_threads(&bench, (unsigned)options->threads->items[t]);
    }
    if (exit_code == TOOL_OK) {
        exit_code = bench_kernels_print(&bench);
    }
    if (exit_code == TOOL_OK && options->plot != NULL) {
        exit_code = bench_roofline_write(options->plot, &bench, options->models);
    }
    free(bench.shapes);
    free(bench.candidates);
    free(bench.results);
    return exit_code;
}
