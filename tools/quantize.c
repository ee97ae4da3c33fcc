/* drllm quantize: the same model in another number format.
 *
 * q8c has no number among GGUF's types: a tensor of it is an I8 tensor of the same name, with an F32 tensor of its
 * rows' scales behind it, named NAME_scale; drllm.quantization = "q8c" says so. */
#include "platform/clock.h"
#include "platform/threads.h"
#include "runtime/drllm_os.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/gguf_file.h"
#include "tools/interrupt.h"
#include "tools/mapped.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCALE_SUFFIX "_scale"

struct quantize_options {
    const char *in;
    const char *out;
    enum drllm_format format;
    int64_t threads;
    bool pure;
    bool force;
    bool quiet;
};

/* What a tensor of the new file is made from. */
enum kind { KIND_COPY, KIND_CONVERT, KIND_VALUES, KIND_SCALES }; /* the last two: of q8c */

struct plan_row {
    const struct drllm_gguf_tensor *source;
    const float *source_scales; /* of a q8c source */
    char *name;                 /* of a tensor of scales, NULL otherwise */
    enum kind kind;
    enum drllm_format format;
};

struct plan {
    struct plan_row *rows;
    struct drllm_gguf_file_tensor *tensors; /* beside the rows */
    size_t count;
    size_t n_fallbacks;
};

struct job {
    const struct command *command;
    const struct quantize_options *options;
    struct mapped_gguf input;
    struct plan plan;
    struct drllm_threads *threads;
    uint64_t bytes_done;
    uint64_t bytes_all;
    uint64_t shown_ns;
};

/* ---- Which tensor becomes what ---- */

static bool name_ends(struct drllm_string name, const char *end) {
    const size_t size = strlen(end);
    return name.size >= size && memcmp(name.data + name.size - size, end, size) == 0;
}

static const struct drllm_gguf_tensor *find_relative(const struct drllm_gguf *gguf, struct drllm_string name,
                                                     size_t name_size, const char *suffix) {
    char *text = allocate(name_size + strlen(suffix) + 1, 1);
    memcpy(text, name.data, name_size);
    memcpy(text + name_size, suffix, strlen(suffix) + 1);
    const struct drllm_gguf_tensor *tensor = drllm_gguf_find_tensor(gguf, text);
    free(text);
    return tensor;
}

/* The scales of a q8c tensor of the input. */
static const float *find_scales(const struct drllm_gguf *gguf, const struct drllm_gguf_tensor *tensor) {
    const struct drllm_gguf_tensor *scales = find_relative(gguf, tensor->name, tensor->name.size, SCALE_SUFFIX);
    const bool good = scales != NULL && scales->type == DRLLM_FORMAT_F32 && scales->dims[0] == tensor_rows(tensor) &&
                      tensor_rows(scales) == 1;
    return good ? scales->data : NULL;
}

/* They are written anew, or not at all, with their tensor. */
static bool is_scales(const struct drllm_gguf *gguf, const struct drllm_gguf_tensor *tensor) {
    if (!name_ends(tensor->name, SCALE_SUFFIX)) {
        return false;
    }
    const struct drllm_gguf_tensor *values =
        find_relative(gguf, tensor->name, tensor->name.size - strlen(SCALE_SUFFIX), "");
    return values != NULL && values->type == DRLLM_FORMAT_I8;
}

static bool is_matrix(const struct drllm_gguf_tensor *tensor) {
    return tensor->n_dims >= 2 && tensor_rows(tensor) > 1 && name_ends(tensor->name, ".weight");
}

static bool is_embedding_or_head(const struct drllm_gguf_tensor *tensor) {
    return drllm_string_equals(tensor->name, "token_embd.weight") || drllm_string_equals(tensor->name, "output.weight");
}

static enum drllm_format choose_format(const struct quantize_options *options, const struct drllm_gguf_tensor *tensor) {
    enum drllm_format format = options->format;
    const bool is_small = format == DRLLM_FORMAT_Q4_0 || format == DRLLM_FORMAT_Q4_1 || format == DRLLM_FORMAT_Q8C;
    if (is_small && !options->pure && is_embedding_or_head(tensor)) {
        format = DRLLM_FORMAT_Q8_0;
    }
    if (format != DRLLM_FORMAT_Q8C && drllm_format_row_bytes(format, tensor->dims[0]) == 0) {
        format = DRLLM_FORMAT_F16;
    }
    return format;
}

static void plan_add(struct plan *plan, struct plan_row row, struct drllm_gguf_file_tensor tensor) {
    plan->rows = reallocate(plan->rows, plan->count + 1, sizeof *plan->rows);
    plan->tensors = reallocate(plan->tensors, plan->count + 1, sizeof *plan->tensors);
    plan->rows[plan->count] = row;
    plan->tensors[plan->count++] = tensor;
}

static void plan_matrix(struct job *job, struct plan_row row, struct drllm_gguf_file_tensor tensor) {
    row.format = choose_format(job->options, row.source);
    job->plan.n_fallbacks += row.format == DRLLM_FORMAT_F16 && job->options->format != DRLLM_FORMAT_F16;
    if (row.format != DRLLM_FORMAT_Q8C) {
        row.kind = row.format == (enum drllm_format)row.source->type ? KIND_COPY : KIND_CONVERT;
        tensor.type = row.format;
        plan_add(&job->plan, row, tensor);
        return;
    }
    row.kind = KIND_VALUES;
    tensor.type = DRLLM_FORMAT_I8;
    plan_add(&job->plan, row, tensor);
    const size_t size = row.source->name.size + sizeof SCALE_SUFFIX;
    row.kind = KIND_SCALES;
    row.name = allocate(size, 1);
    memcpy(row.name, row.source->name.data, row.source->name.size);
    memcpy(row.name + row.source->name.size, SCALE_SUFFIX, sizeof SCALE_SUFFIX);
    plan_add(&job->plan, row,
             (struct drllm_gguf_file_tensor){.name = {row.name, size - 1},
                                             .n_dims = 1,
                                             .dims = {tensor_rows(row.source), 1, 1, 1},
                                             .type = DRLLM_FORMAT_F32});
}

static int make_plan(struct job *job) {
    const struct drllm_gguf *gguf = &job->input.gguf;
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const struct drllm_gguf_tensor *source = &gguf->tensors[i];
        if (source->data == NULL) {
            report(job->command, "tensor %.*s has type %s, which cannot be read", (int)source->name.size,
                   source->name.data, drllm_format_name(source->type));
            return TOOL_FAILED;
        }
        if (is_scales(gguf, source)) {
            continue;
        }
        struct plan_row row = {.source = source, .kind = KIND_COPY, .format = (enum drllm_format)source->type};
        struct drllm_gguf_file_tensor tensor = {.name = source->name, .n_dims = source->n_dims, .type = source->type};
        memcpy(tensor.dims, source->dims, sizeof tensor.dims);
        if (source->type == DRLLM_FORMAT_I8) {
            row.source_scales = find_scales(gguf, source);
            if (row.source_scales == NULL) {
                report(job->command, "tensor %.*s is int8 without scales, which cannot be read", (int)source->name.size,
                       source->name.data);
                return TOOL_FAILED;
            }
        }
        if (is_matrix(source) || row.source_scales != NULL) {
            plan_matrix(job, row, tensor);
        } else {
            plan_add(&job->plan, row, tensor);
        }
    }
    if (job->plan.count == 0) {
        report(job->command, "%s holds no tensors", job->options->in);
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

/* ---- Converting rows ---- */

struct conversion {
    const struct plan_row *row;
    size_t first_row;
    size_t n_rows;
    size_t rows_per_task;
    size_t row_bytes; /* of the result */
    unsigned char *out;
    float *scratch;  /* [workers][dims[0]] */
    int8_t *discard; /* [workers][dims[0]], values of which only the scale is kept */
    atomic_bool bad_weights;
};

static void read_row(const struct plan_row *row, size_t index, float *values) {
    const struct drllm_gguf_tensor *source = row->source;
    const size_t n = source->dims[0];
    const unsigned char *data = (const unsigned char *)source->data + index * (source->size / tensor_rows(source));
    if (row->source_scales == NULL) {
        drllm_dequantize_row((enum drllm_format)source->type, data, values, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        values[i] = row->source_scales[index] * (float)(int8_t)data[i];
    }
}

static bool convert_row(const struct conversion *conversion, size_t worker, size_t index, unsigned char *out) {
    const struct plan_row *row = conversion->row;
    const size_t n = row->source->dims[0];
    float *values = conversion->scratch + worker * n;
    float scale;
    bool good;
    read_row(row, conversion->first_row + index, values);
    switch (row->kind) {
    case KIND_VALUES:
        return drllm_quantize_row_q8c(values, (int8_t *)out, &scale, n);
    case KIND_SCALES:
        good = drllm_quantize_row_q8c(values, conversion->discard + worker * n, &scale, n);
        memcpy(out, &scale, sizeof scale);
        return good;
    default:
        return drllm_quantize_row(row->format, values, out, n);
    }
}

static void convert_task(void *context, size_t worker, size_t index) {
    struct conversion *conversion = context;
    const size_t first = index * conversion->rows_per_task;
    for (size_t i = first; i < first + conversion->rows_per_task && i < conversion->n_rows; i++) {
        if (!convert_row(conversion, worker, i, conversion->out + i * conversion->row_bytes)) {
            atomic_store_explicit(&conversion->bad_weights, true, memory_order_relaxed);
        }
    }
}

static int convert_rows(const struct job *job, const struct plan_row *row, size_t first_row, size_t n_rows, void *bytes,
                        struct drllm_error *error) {
    const size_t workers = drllm_threads_count(job->threads);
    const size_t n = row->source->dims[0];
    struct conversion conversion = {.row = row, .first_row = first_row, .n_rows = n_rows, .out = bytes};
    conversion.row_bytes = row->kind == KIND_VALUES   ? n
                           : row->kind == KIND_SCALES ? sizeof(float)
                                                      : drllm_format_row_bytes(row->format, n);
    conversion.rows_per_task = n_rows / (4 * workers) + 1;
    conversion.scratch = allocate(workers * n, sizeof(float));
    conversion.discard = allocate(workers * n, 1);
    drllm_threads_run(job->threads, convert_task, &conversion,
                      (n_rows + conversion.rows_per_task - 1) / conversion.rows_per_task);
    free(conversion.scratch);
    free(conversion.discard);
    if (atomic_load(&conversion.bad_weights)) {
        error->status = DRLLM_ERR_FORMAT;
        snprintf(error->detail, sizeof error->detail,
                 "tensor %.*s holds weights that are NaN, infinite or too large for %s", (int)row->source->name.size,
                 row->source->name.data, drllm_format_name(row->format));
        return DRLLM_ERR_FORMAT;
    }
    return DRLLM_OK;
}

static void show_progress(struct job *job, const struct plan_row *row, bool is_terminal) {
    const uint64_t now = drllm_clock_ns();
    if (!job->options->quiet && is_terminal && now - job->shown_ns > 100000000) {
        job->shown_ns = now;
        fprintf(stderr, "\r\033[K%3.0f %%  ", 100.0 * (double)job->bytes_done / (double)job->bytes_all);
        print_plain(stderr, row->source->name.data, row->source->name.size < 40 ? row->source->name.size : 40);
    }
}

static int produce(void *user, size_t tensor, size_t first_row, size_t n_rows, void *bytes, struct drllm_error *error) {
    struct job *job = user;
    const struct plan_row *row = &job->plan.rows[tensor];
    if (interrupt_seen()) {
        return DRLLM_ERR_CANCELLED;
    }
    show_progress(job, row, isatty(STDERR_FILENO) == 1);
    if (row->kind == KIND_SCALES) {
        return convert_rows(job, row, first_row, tensor_rows(row->source), bytes, error);
    }
    const size_t row_bytes = row->source->size / tensor_rows(row->source);
    job->bytes_done += n_rows * row_bytes;
    if (row->kind == KIND_COPY) {
        memcpy(bytes, (const unsigned char *)row->source->data + first_row * row_bytes, n_rows * row_bytes);
        return DRLLM_OK;
    }
    return convert_rows(job, row, first_row, n_rows, bytes, error);
}

/* ---- The file ---- */

/* general.file_type, in the numbers of llama.cpp; -1 for what it has none for. */
static int file_type(enum drllm_format format) {
    switch (format) {
    case DRLLM_FORMAT_F32:
        return 0;
    case DRLLM_FORMAT_F16:
        return 1;
    case DRLLM_FORMAT_Q4_0:
        return 2;
    case DRLLM_FORMAT_Q4_1:
        return 3;
    case DRLLM_FORMAT_Q8_0:
        return 7;
    case DRLLM_FORMAT_BF16:
        return 32;
    default:
        return -1;
    }
}

static void change_metadata(struct drllm_gguf_changes *changes, enum drllm_format format) {
    const int type = file_type(format);
    drllm_gguf_set_u32(changes, "general.quantization_version", 2);
    if (type >= 0) {
        drllm_gguf_set_u32(changes, "general.file_type", (uint32_t)type);
        drllm_gguf_leave_out(changes, "drllm.quantization");
    } else {
        drllm_gguf_leave_out(changes, "general.file_type");
        drllm_gguf_set_string(changes, "drllm.quantization", "q8c", 3);
    }
}

static int write_model(struct job *job) {
    struct drllm_gguf_changes changes = {0};
    change_metadata(&changes, job->options->format);
    const struct drllm_gguf_file file = {.source = &job->input.gguf,
                                         .changes = &changes,
                                         .tensors = job->plan.tensors,
                                         .n_tensors = job->plan.count,
                                         .produce = produce,
                                         .user = job};
    struct drllm_error error = {0};
    uint64_t size = 0;
    for (size_t i = 0; i < job->plan.count; i++) {
        job->bytes_all += job->plan.rows[i].kind == KIND_SCALES ? 0 : job->plan.rows[i].source->size;
    }
    const int status = drllm_gguf_file_write(job->options->out, &file, &size, &error);
    drllm_gguf_changes_release(&changes);
    if (job->shown_ns != 0) {
        fprintf(stderr, "\r\033[K");
    }
    if (status == DRLLM_ERR_CANCELLED) {
        report(job->command, "interrupted; nothing was written");
        return TOOL_INTERRUPTED;
    }
    if (status != DRLLM_OK) {
        return report_status(job->command, "cannot write the model", status, error.detail);
    }
    if (job->plan.n_fallbacks != 0) {
        report(job->command, "%zu matrices became f16: their rows are no whole number of blocks",
               job->plan.n_fallbacks);
    }
    if (!job->options->quiet) {
        char before[16], after[16];
        fprintf(stderr, "%s: %s, from %s\n", job->options->out, format_bytes((double)size, after),
                format_bytes((double)job->input.file.size, before));
    }
    return TOOL_OK;
}

static int quantize(struct job *job) {
    int exit_code = mapped_open(job->command, job->options->in, &job->input);
    if (exit_code == TOOL_OK) {
        exit_code = make_plan(job);
    }
    if (exit_code == TOOL_OK) {
        const unsigned threads = (unsigned)job->options->threads;
        job->threads = drllm_threads_create(threads == 0 ? drllm_default_threads() : threads);
        if (job->threads == NULL) {
            report(job->command, "cannot make threads");
            exit_code = TOOL_FAILED;
        }
    }
    if (exit_code == TOOL_OK) {
        interrupt_install();
        exit_code = write_model(job);
    }
    for (size_t i = 0; i < job->plan.count; i++) {
        free(job->plan.rows[i].name);
    }
    free(job->plan.rows);
    free(job->plan.tensors);
    if (job->threads != NULL) {
        drllm_threads_destroy(job->threads);
    }
    mapped_close(&job->input);
    return exit_code;
}

/* ---- */

static bool is_same_file(const char *a, const char *b) {
    struct stat info_a, info_b;
    return stat(a, &info_a) == 0 && stat(b, &info_b) == 0 && info_a.st_dev == info_b.st_dev &&
           info_a.st_ino == info_b.st_ino;
}

static int check(const struct command *command, const struct quantize_options *options) {
    if (is_same_file(options->in, options->out)) {
        report(command, "%s is the input; it is not overwritten", options->out);
        return TOOL_FAILED;
    }
    if (!options->force && access(options->out, F_OK) == 0) {
        report(command, "%s exists; --force replaces it", options->out);
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

static bool find_format(const char *name, enum drllm_format *format) {
    const struct drllm_format_traits *traits = drllm_format_find_name(name);
    if (strcmp(name, "q8c") == 0) {
        *format = DRLLM_FORMAT_Q8C;
        return true;
    }
    if (traits == NULL || file_type(traits->format) < 0) {
        return false;
    }
    *format = traits->format;
    return true;
}

int quantize_main(const struct command *command, int argc, char **argv) {
    struct quantize_options options = {.in = NULL};
    const struct option table[] = {
        OPT_FLAG(0, "pure", &options.pure, "the embedding and the output head in TYPE, too"),
        OPT_FLAG(0, "force", &options.force, "replace OUT if it exists"),
        OPT_INTEGER('t', "threads", &options.threads, "N", 0, 1024, "threads; 0: one per free fast core"),
        OPT_FLAG('q', "quiet", &options.quiet, "print only errors"),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        if (operands.count != 3) {
            exit_code = usage_error(command, "IN, OUT and TYPE must be given");
        } else if (!find_format(operands.items[2], &options.format)) {
            exit_code =
                usage_error(command, "'%s' is none of f32, f16, bf16, q4_0, q4_1, q8_0, q8c", operands.items[2]);
        } else {
            options.in = operands.items[0];
            options.out = operands.items[1];
            exit_code = check(command, &options);
            if (exit_code == TOOL_OK) {
                struct job job = {.command = command, .options = &options};
                exit_code = quantize(&job);
            }
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
