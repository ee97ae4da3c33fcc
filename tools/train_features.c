#include "tools/train_features.h"

#include "runtime/hash.h"
#include "runtime/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = {'d', 'r', 'l', 'l', 'm', 'f', 't', '1'};

struct feature_header {
    char magic[8];
    uint64_t checksum; /* of all that the features follow from */
    uint64_t n_examples;
    uint32_t n_layers, d_model, n_windows, reserved;
};

static int failed(const struct features *features, const char *what) {
    report(features->command, "%s %s: %s", what, features->path, strerror(errno));
    return TOOL_FAILED;
}

/* ---- Reading and writing ---- */

static bool write_all(int descriptor, const void *data, size_t size, uint64_t offset) {
    const char *p = data;
    while (size != 0) {
        const ssize_t n = pwrite(descriptor, p, size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        p += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return true;
}

/* False as well when the file ends before. */
static bool read_all(int descriptor, void *data, size_t size, uint64_t offset) {
    char *p = data;
    while (size != 0) {
        const ssize_t n = pread(descriptor, p, size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        p += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return true;
}

/* ---- Opening ---- */

static size_t row_bytes(const struct features *features) {
    return features->d_model * sizeof(float);
}

static uint64_t example_offset(const struct features *features, size_t layer, size_t example) {
    return features->data_offset +
           (uint64_t)(layer * features->n_examples + example) * features->n_windows * row_bytes(features);
}

static struct feature_header make_header(const struct drllm_model *model, const struct examples *examples,
                                         const struct features *features) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    const uint64_t fingerprint = drllm_model_fingerprint(model);
    uint64_t sum = drllm_hash_bytes(DRLLM_HASH_START, &fingerprint, sizeof fingerprint);
    sum = drllm_hash_bytes(sum, info.quantization, strlen(info.quantization));
    sum = drllm_hash_bytes(sum, info.backend, strlen(info.backend));
    struct feature_header header = {.checksum = examples_checksum(examples, sum, 0, examples->count),
                                    .n_examples = features->n_examples,
                                    .n_layers = (uint32_t)features->n_layers,
                                    .d_model = (uint32_t)features->d_model,
                                    .n_windows = (uint32_t)features->n_windows};
    memcpy(header.magic, magic, sizeof magic);
    return header;
}

static int begin_anew(struct features *features, const struct feature_header *header) {
    memset(features->windows, 0, features->n_examples);
    if (ftruncate(features->descriptor, 0) != 0 ||
        ftruncate(features->descriptor, (off_t)example_offset(features, features->n_layers, 0)) != 0 ||
        !write_all(features->descriptor, header, sizeof *header, 0)) {
        return failed(features, "cannot write");
    }
    return TOOL_OK;
}

/* Take over what the file holds, if it belongs to these examples. */
static int read_state(struct features *features, const struct feature_header *header) {
    struct stat info;
    struct feature_header found;
    if (fstat(features->descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
        report(features->command, "%s is not a plain file", features->path);
        return TOOL_FAILED;
    }
    if (info.st_size == 0) {
        return begin_anew(features, header);
    }
    if (!read_all(features->descriptor, &found, sizeof found, 0) || memcmp(found.magic, magic, sizeof magic) != 0) {
        report(features->command, "%s holds something else than features", features->path);
        return TOOL_FAILED;
    }
    if (memcmp(&found, header, sizeof found) != 0 ||
        (uint64_t)info.st_size != example_offset(features, features->n_layers, 0) ||
        !read_all(features->descriptor, features->windows, features->n_examples, sizeof found)) {
        report(features->command, "%s holds features of other examples or of another model, and is begun anew",
               features->path);
        return begin_anew(features, header);
    }
    return TOOL_OK;
}

int features_open(const struct command *command, const struct drllm_model *model, const struct examples *examples,
                  size_t n_windows, const char *path, struct features *features) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    *features = (struct features){.command = command,
                                  .path = allocate_bytes(strlen(path) + 1),
                                  .n_examples = examples->count,
                                  .n_layers = info.n_layers,
                                  .d_model = info.d_model,
                                  .n_windows = n_windows,
                                  .windows = allocate(examples->count, 1)};
    memcpy(features->path, path, strlen(path) + 1);
    features->data_offset = (sizeof(struct feature_header) + features->n_examples + 4095) / 4096 * 4096;
    features->descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (features->descriptor < 0) {
        return failed(features, "cannot open");
    }
    if (flock(features->descriptor, LOCK_EX | LOCK_NB) != 0) {
        return failed(features, "another process uses");
    }
    const struct feature_header header = make_header(model, examples, features);
    return read_state(features, &header);
}

void features_close(struct features *features, bool remove) {
    drllm_file_unmap(&features->map);
    if (features->path != NULL && features->descriptor >= 0) {
        if (remove) {
            unlink(features->path);
        }
        close(features->descriptor);
    }
    free(features->path);
    free(features->windows);
    *features = (struct features){.descriptor = -1};
}

/* ---- Computing ---- */

struct work {
    struct features *features;
    const struct drllm_model *model;
    const struct examples *examples;
    size_t *missing; /* examples, of which those from `first` on are computed now */
    size_t first;
    uint8_t *windows; /* [n_examples]: of those that are written, but perhaps not yet on the disk */
    float **rows;     /* a worker: [n_windows + 1][d_model] */
    atomic_size_t done;
    struct progress progress;
    atomic_int write_error; /* errno */
    char detail[256];       /* what a session said */
    atomic_bool has_detail;
};

static int write_block(struct work *work, const struct drllm_probe *probe, size_t layer, size_t example, float *rows) {
    const struct features *features = work->features;
    const size_t n_tokens = work->examples->items[example].question->prompt_tokens.count;
    const size_t n =
        drllm_router_window_sums(work->model, drllm_probe_hidden(probe, layer), n_tokens, features->n_windows, rows,
                                 rows + features->n_windows * features->d_model);
    const size_t width = n_tokens / n; /* in tokens; the last ones may be left out */
    for (size_t i = 0; i < n * features->d_model; i++) {
        rows[i] /= (float)width;
    }
    work->windows[example] = (uint8_t)n;
    if (!write_all(features->descriptor, rows, n * row_bytes(features), example_offset(features, layer, example))) {
        atomic_store(&work->write_error, errno);
        return DRLLM_ERR_IO;
    }
    return DRLLM_OK;
}

static void keep_detail(struct work *work, const struct drllm_session *session) {
    if (!atomic_exchange(&work->has_detail, true)) {
        (void)snprintf(work->detail, sizeof work->detail, "%s", drllm_session_last_error(session));
    }
}

static int compute_example(void *user, size_t worker, struct drllm_session *session, size_t index) {
    struct work *work = user;
    const size_t example = work->missing[work->first + index];
    const struct tokens *tokens = &work->examples->items[example].question->prompt_tokens;
    struct drllm_probe *probe = NULL;
    int status = drllm_probe_open(session, tokens->ids, tokens->count, NULL, 0, &probe);
    if (status == DRLLM_OK) {
        status = drllm_probe_run(probe, work->examples->items[example].counts, 0, true, NULL);
    }
    if (status != DRLLM_OK) {
        keep_detail(work, session);
    }
    for (size_t layer = 0; layer < work->features->n_layers && status == DRLLM_OK; layer++) {
        status = write_block(work, probe, layer, example, work->rows[worker]);
    }
    drllm_probe_close(probe);
    if (status != DRLLM_OK) {
        work->windows[example] = 0;
    }
    progress_show(&work->progress, atomic_fetch_add(&work->done, 1) + 1);
    return status;
}

/* What is said to be there has reached the disk before. */
static int save_state(struct work *work) {
    struct features *features = work->features;
    if (fdatasync(features->descriptor) != 0 ||
        !write_all(features->descriptor, work->windows, features->n_examples, sizeof(struct feature_header))) {
        return failed(features, "cannot write");
    }
    memcpy(features->windows, work->windows, features->n_examples);
    return TOOL_OK;
}

static int report_failure(const struct work *work, int status) {
    const int write_error = atomic_load(&work->write_error);
    if (status == DRLLM_OK) {
        return TOOL_OK;
    }
    if (write_error != 0) {
        errno = write_error;
        return failed(work->features, "cannot write");
    }
    if (status == DRLLM_ERR_CANCELLED) {
        return TOOL_INTERRUPTED;
    }
    return report_status(work->features->command, "cannot compute features", status, work->detail);
}

static int compute(struct work *work, struct workers *workers, size_t n_missing) {
    enum { SLICE = 256 }; /* examples between two looks at what has reached the disk */
    int exit_code = TOOL_OK;
    for (work->first = 0; work->first < n_missing && exit_code == TOOL_OK; work->first += SLICE) {
        const size_t n = n_missing - work->first < SLICE ? n_missing - work->first : SLICE;
        const int status = workers_run(workers, compute_example, work, n);
        const int saved = save_state(work);
        exit_code = report_failure(work, status);
        exit_code = exit_code == TOOL_OK ? saved : exit_code;
    }
    return exit_code;
}

static int compute_missing(struct features *features, const struct drllm_model *model, struct workers *workers,
                           const struct examples *examples) {
    struct work work = {.features = features,
                        .model = model,
                        .examples = examples,
                        .missing = allocate(features->n_examples, sizeof *work.missing),
                        .windows = allocate(features->n_examples, 1),
                        .rows = allocate(workers->count, sizeof(float *))};
    size_t n_missing = 0;
    char size[16];
    for (size_t i = 0; i < features->n_examples; i++) {
        if (features->windows[i] == 0) {
            work.missing[n_missing++] = i;
        }
    }
    for (size_t i = 0; i < workers->count; i++) {
        work.rows[i] = allocate((features->n_windows + 1) * features->d_model, sizeof(float));
    }
    memcpy(work.windows, features->windows, features->n_examples);
    work.progress = (struct progress){.what = "features", .total = n_missing};
    fprintf(stderr, "features: %zu of %zu examples to be computed, %s in %s\n", n_missing, features->n_examples,
            format_bytes((double)example_offset(features, features->n_layers, 0), size), features->path);
    progress_show(&work.progress, 0);
    const int exit_code = compute(&work, workers, n_missing);
    for (size_t i = 0; i < workers->count; i++) {
        free(work.rows[i]);
    }
    free((void *)work.rows);
    free(work.windows);
    free(work.missing);
    return exit_code;
}

int features_compute(struct features *features, const struct drllm_model *model, struct workers *workers,
                     const struct examples *examples) {
    const int exit_code = compute_missing(features, model, workers, examples);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const int problem = drllm_file_map_fd(features->descriptor, 0, 0, &features->map);
    if (problem != 0) {
        errno = problem;
        return failed(features, "cannot map");
    }
    return TOOL_OK;
}

const float *features_rows(const struct features *features, size_t layer, size_t example) {
    return (const float *)(const void *)((const char *)features->map.data + example_offset(features, layer, example));
}

void features_forget(const struct features *features, size_t layer) {
    const uint64_t begin = example_offset(features, layer, 0);
    drllm_file_forget((const char *)features->map.data + begin,
                      (size_t)(example_offset(features, layer + 1, 0) - begin));
}
