/* Weights of a file in the form that a kernel reads: converted to a format that runs, then interleaved, or packed by
 * XNNPACK. Threads share the rows of a matrix. */
#include "quant/matmul_xnnpack.h"
#include "runtime/error.h"
#include "runtime/memory.h"
#include "runtime/weights.h"

#include <string.h>

void *drllm_weights_keep(struct drllm_loader *loader, size_t count, size_t size) {
    return drllm_keep(&loader->model->allocator, &loader->model->kept, count, size);
}

int drllm_weights_out_of_memory(const struct drllm_loader *loader, const char *name) {
    return drllm_fail(loader->error, DRLLM_ERR_MEMORY, "not enough memory for tensor %s", name);
}

void drllm_weights_dequantize_row(const struct drllm_source *source, size_t row, float *out) {
    const unsigned char *data = source->data + row * source->row_bytes;
    if (source->stored != DRLLM_FORMAT_Q8C) {
        drllm_dequantize_row(source->stored, data, out, source->cols);
        return;
    }
    for (size_t i = 0; i < source->cols; i++) {
        out[i] = source->scales[row] * (float)(int8_t)data[i];
    }
}

/* ---- Packing for our kernels ---- */

/* Of a mapped file, no more than a task's share for each thread is resident beside what is packed already. */
enum { SMALL_BYTES = 1 << 20, TASK_BYTES = 1 << 20 };

struct pack_job {
    const struct drllm_source *source;
    enum drllm_format run;
    unsigned char *packed;
    size_t panel_bytes;
    size_t panels_per_task;
    size_t n_panels;
    /* Per worker: 8 scales, a row as floats, 8 rows in the run format; NULL without conversion. */
    unsigned char *scratch;
    size_t scratch_bytes;
    size_t run_row_bytes;
    void (*forget)(const void *data, size_t size); /* of the model's backing */
    atomic_bool bad_weights;
};

static void convert_panel(struct pack_job *job, size_t worker, size_t panel) {
    const struct drllm_source *source = job->source;
    unsigned char *scratch = job->scratch + worker * job->scratch_bytes;
    float *scales = (float *)(void *)scratch;
    float *row_values = scales + DRLLM_PANEL_ROWS;
    unsigned char *rows = (unsigned char *)(row_values + source->cols);
    const size_t first = panel * DRLLM_PANEL_ROWS;
    const size_t n = source->rows - first < DRLLM_PANEL_ROWS ? source->rows - first : (size_t)DRLLM_PANEL_ROWS;
    for (size_t i = 0; i < n; i++) {
        unsigned char *row = rows + i * job->run_row_bytes;
        drllm_weights_dequantize_row(source, first + i, row_values);
        const bool good = job->run == DRLLM_FORMAT_Q8C
                              ? drllm_quantize_row_q8c(row_values, (int8_t *)row, &scales[i], source->cols)
                              : drllm_quantize_row(job->run, row_values, row, source->cols);
        if (!good) {
            atomic_store_explicit(&job->bad_weights, true, memory_order_relaxed);
        }
    }
    drllm_pack_panels(job->run, rows, job->run == DRLLM_FORMAT_Q8C ? scales : NULL, n, source->cols,
                      job->packed + panel * job->panel_bytes, 0, 1);
}

/* The same format: a panel is checked while its rows are on their way anyway. */
static void move_panel(struct pack_job *job, size_t panel) {
    const struct drllm_source *source = job->source;
    const size_t first = panel * DRLLM_PANEL_ROWS;
    for (size_t row = first; row < first + DRLLM_PANEL_ROWS && row < source->rows; row++) {
        if (!drllm_row_is_finite(source->stored, source->data + row * source->row_bytes, source->cols)) {
            atomic_store_explicit(&job->bad_weights, true, memory_order_relaxed);
        }
    }
    drllm_pack_panels(job->run, source->data, source->scales, source->rows, source->cols, job->packed, panel, 1);
}

static void pack_task(void *context, size_t worker, size_t index) {
    struct pack_job *job = context;
    const size_t first = index * job->panels_per_task;
    const size_t end = first + job->panels_per_task < job->n_panels ? first + job->panels_per_task : job->n_panels;
    for (size_t panel = first; panel < end && job->scratch == NULL; panel++) {
        move_panel(job, panel);
    }
    for (size_t panel = first; panel < end && job->scratch != NULL; panel++) {
        convert_panel(job, worker, panel);
    }
    const size_t row = first * DRLLM_PANEL_ROWS;
    const size_t end_row = end * DRLLM_PANEL_ROWS < job->source->rows ? end * DRLLM_PANEL_ROWS : job->source->rows;
    if (job->forget != NULL && row < end_row) {
        job->forget(job->source->data + row * job->source->row_bytes, (end_row - row) * job->source->row_bytes);
    }
}

static int bad_weights(const struct drllm_loader *loader, const char *name) {
    return drllm_fail(loader->error, DRLLM_ERR_FORMAT, "tensor %s holds NaN or infinite weights; the file is damaged",
                      name);
}

int drllm_weights_pack(struct drllm_loader *loader, const struct drllm_source *source, struct drllm_matrix *matrix) {
    const enum drllm_format run = matrix->format;
    struct drllm_model *model = loader->model;
    const size_t workers = loader->threads == NULL ? 1 : drllm_threads_count(loader->threads);
    const size_t bytes = drllm_packed_bytes(run, source->rows, source->cols);
    matrix->kernel = drllm_kernel_choose(run, model->cpu_features);
    if (drllm_round_up(bytes) > loader->packed_bytes) {
        return drllm_weights_out_of_memory(loader, source->name); /* it was measured otherwise */
    }
    unsigned char *packed = loader->packed;
    loader->packed += drllm_round_up(bytes);
    loader->packed_bytes -= drllm_round_up(bytes);
    struct pack_job job = {.source = source,
                           .run = run,
                           .packed = packed,
                           .panel_bytes = drllm_packed_bytes(run, DRLLM_PANEL_ROWS, source->cols),
                           .n_panels = (source->rows + DRLLM_PANEL_ROWS - 1) / DRLLM_PANEL_ROWS};
    job.forget = model->backing.forget;
    job.panels_per_task = job.n_panels / (workers * 4) + 1;
    const size_t most_panels = TASK_BYTES / (DRLLM_PANEL_ROWS * source->row_bytes) + 1;
    job.panels_per_task = job.panels_per_task < most_panels ? job.panels_per_task : most_panels;
    if (source->stored != run) {
        job.run_row_bytes = run == DRLLM_FORMAT_Q8C ? source->cols : drllm_format_row_bytes(run, source->cols);
        job.scratch_bytes =
            drllm_round_up((DRLLM_PANEL_ROWS + source->cols) * sizeof(float) + DRLLM_PANEL_ROWS * job.run_row_bytes);
        job.scratch = drllm_allocate(&model->allocator, workers, job.scratch_bytes);
        if (job.scratch == NULL) {
            return drllm_weights_out_of_memory(loader, source->name);
        }
    }
    /* A small matrix that is only moved is done before another thread is awake. */
    const bool small = job.scratch == NULL && bytes < SMALL_BYTES;
    drllm_threads_run(small ? NULL : loader->threads, pack_task, &job,
                      (job.n_panels + job.panels_per_task - 1) / job.panels_per_task);
    drllm_release(&model->allocator, job.scratch, workers, job.scratch_bytes);
    if (job.bad_weights) {
        return bad_weights(loader, source->name);
    }
    matrix->data = packed;
    matrix->panel_bytes = job.panel_bytes;
    model->weight_bytes += bytes;
    return DRLLM_OK;
}

/* ---- Packing for XNNPACK ---- */

struct xnn_job {
    const struct drllm_source *source;
    enum drllm_format run;
    unsigned char *q;      /* q8c: int8 [rows][cols]; qb4w: nibbles [rows][cols / 2] */
    float *scales;         /* q8c: [rows] */
    uint16_t *half_scales; /* qb4w: bf16 [rows][cols / 32] */
    float *scratch;        /* per worker: a row */
    size_t rows_per_task;
    atomic_bool bad_weights;
};

static bool convert_row_for_xnn(struct xnn_job *job, size_t row, float *values) {
    const struct drllm_source *source = job->source;
    const size_t cols = source->cols;
    if (job->run == DRLLM_FORMAT_Q8C) {
        drllm_weights_dequantize_row(source, row, values);
        return drllm_quantize_row_q8c(values, (int8_t *)job->q + row * cols, &job->scales[row], cols);
    }
    unsigned char *q = job->q + row * (cols / 2);
    uint16_t *scales = job->half_scales + row * (cols / DRLLM_GROUP);
    if (source->stored == DRLLM_FORMAT_Q4_0) {
        const void *blocks = source->data + row * source->row_bytes;
        return drllm_xnn_qb4w_row_from_q4_0(blocks, q, scales, cols);
    }
    drllm_weights_dequantize_row(source, row, values);
    return drllm_xnn_qb4w_row(values, q, scales, cols);
}

static void xnn_task(void *context, size_t worker, size_t index) {
    struct xnn_job *job = context;
    const size_t end = (index + 1) * job->rows_per_task;
    for (size_t row = index * job->rows_per_task; row < end && row < job->source->rows; row++) {
        if (!convert_row_for_xnn(job, row, job->scratch + worker * job->source->cols)) {
            atomic_store_explicit(&job->bad_weights, true, memory_order_relaxed);
        }
    }
}

static void *keep_for_xnn(void *user, size_t size, size_t alignment) {
    (void)alignment; /* 64, which all memory here has */
    return drllm_weights_keep(user, size, 1);
}

static int start_xnnpack(const struct drllm_loader *loader) {
    switch (drllm_xnn_start(loader->model->cpu_features)) {
    case DRLLM_XNN_OK:
        return DRLLM_OK;
    case DRLLM_XNN_OTHER_MASK:
        return drllm_fail(loader->error, DRLLM_ERR_STATE,
                          "XNNPACK runs in this process already with another CPU mask, which it cannot change");
    default:
        return drllm_fail(loader->error, DRLLM_ERR_SYSTEM, "XNNPACK cannot run on this processor with this CPU mask");
    }
}

static int pack_for_xnn(struct drllm_loader *loader, const struct xnn_job *job, struct drllm_matrix *matrix) {
    const struct drllm_source *source = job->source;
    struct drllm_xnn_weights *weights = NULL;
    const enum drllm_xnn_status status =
        job->run == DRLLM_FORMAT_Q8C
            ? drllm_xnn_pack_q8c((const int8_t *)job->q, job->scales, source->rows, source->cols, keep_for_xnn, loader,
                                 &weights)
            : drllm_xnn_pack_qb4w(job->q, job->half_scales, source->rows, source->cols, keep_for_xnn, loader, &weights);
    if (status == DRLLM_XNN_MEMORY) {
        return drllm_weights_out_of_memory(loader, source->name);
    }
    if (status != DRLLM_XNN_OK) {
        return drllm_fail(loader->error, DRLLM_ERR_SYSTEM, "XNNPACK refused tensor %s (status %d)", source->name,
                          (int)status);
    }
    matrix->xnn = weights;
    loader->model->weight_bytes += drllm_xnn_weights_bytes(weights);
    return DRLLM_OK;
}

int drllm_weights_pack_for_xnn(struct drllm_loader *loader, const struct drllm_source *source,
                               struct drllm_matrix *matrix) {
    const enum drllm_format run = matrix->format;
    const struct drllm_allocator *allocator = &loader->model->allocator;
    const size_t workers = loader->threads == NULL ? 1 : drllm_threads_count(loader->threads);
    const bool q8c = run == DRLLM_FORMAT_Q8C;
    const size_t row_bytes = q8c ? source->cols : source->cols / 2;
    const size_t scale_bytes = q8c ? sizeof(float) : source->cols / DRLLM_GROUP * sizeof(uint16_t);
    void *scales = drllm_allocate(allocator, source->rows, scale_bytes);
    struct xnn_job job = {.source = source,
                          .run = run,
                          .q = drllm_allocate(allocator, source->rows, row_bytes),
                          .scales = scales,
                          .half_scales = scales,
                          .scratch = drllm_allocate(allocator, workers, source->cols * sizeof(float)),
                          .rows_per_task = source->rows / (workers * 4) + 1};
    int status = start_xnnpack(loader);
    if (status != DRLLM_OK) {
        /* Its error is set. */
    } else if (scales == NULL || job.q == NULL || job.scratch == NULL) {
        status = drllm_weights_out_of_memory(loader, source->name);
    } else {
        drllm_threads_run(loader->threads, xnn_task, &job, (source->rows + job.rows_per_task - 1) / job.rows_per_task);
        status = job.bad_weights ? bad_weights(loader, source->name) : pack_for_xnn(loader, &job, matrix);
    }
    drllm_release(allocator, scales, source->rows, scale_bytes);
    drllm_release(allocator, job.q, source->rows, row_bytes);
    drllm_release(allocator, job.scratch, workers, source->cols * sizeof(float));
    return status;
}
