#include "tools/train_measure.h"

#include "runtime/drllm_os.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_BIASES = 25, BIAS_STEPS = 64 /* in 1 */, DEFAULT_ITEMS = 200 };

/* ---- The grid ---- */

static int compare_floats(const void *a, const void *b) {
    const float x = *(const float *)a;
    const float y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Held so that constant blocks stay what they are. */
static float round_bias(float bias) {
    const float most = NETWORK_CERTAIN - 0.5f;
    const float held = bias > most ? most : bias < -most ? -most : bias;
    return roundf(held * BIAS_STEPS) / BIAS_STEPS;
}

/* Below this bias the block runs, above it is skipped. */
static float flip_bias(const float logits[NETWORK_CLASSES]) {
    return (logits[1] > logits[2] ? logits[1] : logits[2]) - logits[0];
}

/* Of all decisions but those of constant blocks and of the ends, which no budget changes. To be freed. */
static float *find_flips(const struct trained *trained, const size_t *items, size_t n_items, size_t *n_flips) {
    float *flips = allocate(trained->n_layers * n_items, sizeof *flips);
    *n_flips = 0;
    for (size_t layer = 1; layer + 1 < trained->n_layers; layer++) {
        for (size_t i = 0; i < n_items && !trained->blocks[layer].is_constant; i++) {
            const float flip = flip_bias(trained_logits(trained, layer, items[i]));
            if (fabsf(flip) < NETWORK_CERTAIN - 1.0f) {
                flips[(*n_flips)++] = flip;
            }
        }
    }
    qsort(flips, *n_flips, sizeof *flips, compare_floats);
    return flips;
}

size_t calibration_biases(const struct trained *trained, const size_t *items, size_t n_items, float **biases) {
    size_t n_flips, n = 0;
    float *flips = find_flips(trained, items, n_items, &n_flips);
    float candidates[MOST_BIASES] = {0.0f};
    enum { INNER = MOST_BIASES - 3 };
    size_t n_candidates = 1;
    if (n_flips != 0) {
        candidates[n_candidates++] = flips[0] - 1.0f;
        candidates[n_candidates++] = flips[n_flips - 1] + 1.0f;
        for (size_t i = 0; i < INNER; i++) {
            candidates[n_candidates++] = flips[(i + 1) * n_flips / (INNER + 1)];
        }
    }
    for (size_t i = 0; i < n_candidates; i++) {
        candidates[i] = round_bias(candidates[i]);
    }
    qsort(candidates, n_candidates, sizeof *candidates, compare_floats);
    *biases = allocate(MOST_BIASES, sizeof **biases);
    for (size_t i = 0; i < n_candidates; i++) {
        if (n == 0 || candidates[i] > (*biases)[n - 1]) {
            (*biases)[n++] = candidates[i];
        }
    }
    free(flips);
    return n;
}

/* Pool adjacent violators. */
void make_rising(double *values, size_t n) {
    struct pool {
        double mean;
        size_t count;
    } *pools = allocate(n, sizeof *pools);
    size_t n_pools = 0;
    for (size_t i = 0; i < n; i++) {
        struct pool pool = {values[i], 1};
        while (n_pools > 0 && pools[n_pools - 1].mean > pool.mean) {
            const struct pool *before = &pools[--n_pools];
            const double sum = before->mean * (double)before->count + pool.mean * (double)pool.count;
            pool.count += before->count;
            pool.mean = sum / (double)pool.count;
        }
        pools[n_pools++] = pool;
    }
    for (size_t i = 0, at = 0; i < n_pools; i++) {
        for (size_t j = 0; j < pools[i].count; j++) {
            values[at++] = pools[i].mean;
        }
    }
    free(pools);
}

/* ---- Routers with a table that names each bias ---- */

/* The runtime takes no bias but looks one up: row i is found by asking for so many layers. */
static float asked_layers(const struct measured *measured, size_t n_layers, size_t i) {
    return (float)i * (float)n_layers / (float)measured->n_biases;
}

static void set_table(struct router_set *set, const float *biases, size_t n) {
    free(set->bias);
    free(set->saved);
    set->n_calibration = n;
    set->bias = allocate(n, sizeof *set->bias);
    set->saved = allocate(n, sizeof *set->saved);
    for (size_t i = 0; i < n; i++) {
        set->bias[i] = biases[i];
    }
}

static int open_from_file(const struct command *command, const struct drllm_model *model, const char *path,
                          const struct router_set *set, struct drllm_routers **routers) {
    struct drllm_error error = {0};
    int exit_code = router_set_write(command, path, set, true);
    if (exit_code == TOOL_OK) {
        const int status = drllm_routers_open_path(model, path, routers, &error);
        exit_code = status == DRLLM_OK ? TOOL_OK : report_status(command, "cannot open routers", status, error.detail);
    }
    return exit_code;
}

static int open_routers(const struct command *command, const struct drllm_model *model, const char *path,
                        const struct measured *measured, struct router_set *set, struct drllm_routers **routers) {
    const size_t size = strlen(path) + sizeof ".XXXXXX";
    char *temporary = allocate_bytes(size);
    (void)snprintf(temporary, size, "%s.XXXXXX", path);
    set_table(set, measured->biases, measured->n_biases);
    for (size_t i = 0; i < measured->n_biases; i++) {
        set->saved[i] = asked_layers(measured, set->n_layers, i);
    }
    int exit_code = TOOL_FAILED;
    const int descriptor = mkstemp(temporary);
    if (descriptor < 0) {
        report(command, "cannot write %s: %s", temporary, strerror(errno));
    } else {
        close(descriptor);
        exit_code = open_from_file(command, model, temporary, set, routers);
        unlink(temporary);
    }
    free(temporary);
    return exit_code;
}

/* ---- Running ---- */

struct work {
    const struct examples *examples;
    const struct drllm_routers *routers;
    struct measured *measured;
    size_t zero;                       /* the index of bias 0 */
    bool *is_calibrated;               /* [n_items] */
    int16_t *saved;                    /* [n_items][n_biases], of those that are calibrated */
    struct drllm_decision **decisions; /* a worker: [n_layers] */
    struct progress progress;
    atomic_size_t done;
    char detail[256]; /* what a session said */
    atomic_bool has_detail;
};

static int route(const struct work *work, struct drllm_session *session, size_t item, size_t bias,
                 struct drllm_decision *decisions) {
    const struct tokens *tokens = &work->examples->items[work->measured->items[item]].question->prompt_tokens;
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = work->routers;
    depth.reroute = DRLLM_REROUTE_NEVER;
    depth.save_layers = asked_layers(work->measured, work->examples->n_layers, bias);
    int status = drllm_session_rewind(session, 0);
    if (status == DRLLM_OK) {
        status = drllm_session_set_depth(session, &depth);
    }
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(session, tokens->ids, tokens->count);
    }
    return status == DRLLM_OK ? drllm_session_get_decisions(session, decisions) : status;
}

/* The least bias above which one of these decisions changes. Up to there the prompt takes the same way. */
static float next_change(const struct drllm_decision *decisions, size_t n_layers) {
    float least = INFINITY;
    for (size_t i = 0; i < n_layers; i++) {
        const float flip = flip_bias(decisions[i].logits);
        const bool is_end = i == 0 || i + 1 == n_layers; /* never more likely to be skipped than without a budget */
        if (decisions[i].count != 0 && !(is_end && flip >= 0.0f) && flip < least) {
            least = flip;
        }
    }
    return least;
}

static int layers_saved(const struct drllm_decision *decisions, size_t n_layers) {
    int saved = (int)n_layers;
    for (size_t i = 0; i < n_layers; i++) {
        saved -= decisions[i].count;
    }
    return saved;
}

static void keep_counts(const struct work *work, size_t item, const struct drllm_decision *decisions) {
    const size_t n_layers = work->examples->n_layers;
    for (size_t i = 0; i < n_layers; i++) {
        work->measured->counts[item * n_layers + i] = decisions[i].count;
    }
}

/* One run answers for all biases up to the next change. */
static int walk_biases(struct work *work, struct drllm_session *session, size_t item,
                       struct drllm_decision *decisions) {
    const struct measured *measured = work->measured;
    const size_t n_layers = work->examples->n_layers;
    float change = -INFINITY;
    for (size_t i = 0; i < measured->n_biases; i++) {
        /* The runtime compares in double, and a hair below the change that may matter. */
        if (measured->biases[i] >= change - 1e-4f) {
            const int status = route(work, session, item, i, decisions);
            if (status != DRLLM_OK) {
                return status;
            }
            change = next_change(decisions, n_layers);
        }
        work->saved[item * measured->n_biases + i] = (int16_t)layers_saved(decisions, n_layers);
        if (i == work->zero) {
            keep_counts(work, item, decisions);
        }
    }
    return DRLLM_OK;
}

static int measure_item(void *user, size_t worker, struct drllm_session *session, size_t item) {
    struct work *work = user;
    struct drllm_decision *decisions = work->decisions[worker];
    int status;
    if (work->is_calibrated[item]) {
        status = walk_biases(work, session, item, decisions);
    } else {
        status = route(work, session, item, work->zero, decisions);
        if (status == DRLLM_OK) {
            keep_counts(work, item, decisions);
        }
    }
    if (status != DRLLM_OK && !atomic_exchange(&work->has_detail, true)) {
        (void)snprintf(work->detail, sizeof work->detail, "%s", drllm_session_last_error(session));
    }
    progress_show(&work->progress, atomic_fetch_add(&work->done, 1) + 1);
    return status;
}

static void average(const struct work *work) {
    const struct measured *measured = work->measured;
    for (size_t i = 0; i < measured->n_biases; i++) {
        double sum = 0.0;
        for (size_t item = 0; item < measured->n_items; item++) {
            sum += work->is_calibrated[item] ? (double)work->saved[item * measured->n_biases + i] : 0.0;
        }
        measured->saved[i] = sum / (double)measured->n_calibrated;
    }
}

/* Evenly over the items, which stand task by task. */
static void choose_calibrated(const struct work *work, size_t n) {
    const size_t n_items = work->measured->n_items;
    for (size_t i = 0; i < n_items; i++) {
        work->is_calibrated[i] = (i + 1) * n / n_items > i * n / n_items;
    }
}

static int run(const struct command *command, struct workers *workers, struct work *work) {
    struct measured *measured = work->measured;
    const size_t n_layers = work->examples->n_layers;
    work->decisions = allocate(workers->count, sizeof(struct drllm_decision *));
    for (size_t i = 0; i < workers->count; i++) {
        work->decisions[i] = allocate(n_layers, sizeof **work->decisions);
    }
    work->progress = (struct progress){.what = "measuring", .total = measured->n_items};
    progress_show(&work->progress, 0);
    const int status = workers_run(workers, measure_item, work, measured->n_items);
    const struct drllm_depth full = drllm_depth_default();
    for (size_t i = 0; i < workers->count; i++) {
        (void)drllm_session_rewind(workers->sessions[i], 0);
        (void)drllm_session_set_depth(workers->sessions[i], &full); /* the routers will be closed */
        free(work->decisions[i]);
    }
    free((void *)work->decisions);
    if (status == DRLLM_OK && measured->n_calibrated != 0) {
        average(work);
    }
    return status == DRLLM_OK              ? TOOL_OK
           : status == DRLLM_ERR_CANCELLED ? TOOL_INTERRUPTED
                                           : report_status(command, "cannot route", status, work->detail);
}

/* ---- ---- */

static void choose_items(const struct examples *examples, struct measured *measured) {
    const bool has_valid = examples->count > examples->n_train;
    const size_t first = has_valid ? examples->n_train : 0;
    const size_t n = has_valid ? examples->count - examples->n_train : examples->n_train;
    const size_t most = has_valid || n < DEFAULT_ITEMS ? n : DEFAULT_ITEMS;
    measured->items = allocate(most, sizeof *measured->items);
    for (size_t i = 0; i < most; i++) {
        measured->items[measured->n_items++] = first + i * n / most;
    }
    measured->counts = allocate(most, examples->n_layers);
}

static void choose_biases(const struct trained *trained, size_t n_calibrate, struct measured *measured) {
    measured->n_calibrated = n_calibrate < measured->n_items ? n_calibrate : measured->n_items;
    if (measured->n_calibrated != 0) {
        measured->n_biases = calibration_biases(trained, measured->items, measured->n_items, &measured->biases);
    } else {
        measured->n_biases = 1;
        measured->biases = allocate(1, sizeof *measured->biases);
        measured->biases[0] = 0.0f;
    }
    measured->saved = allocate(measured->n_biases, sizeof *measured->saved);
}

static void store_table(const struct measured *measured, struct router_set *set) {
    const size_t n = measured->n_calibrated != 0 ? measured->n_biases : 0;
    double *rising = allocate(n, sizeof *rising);
    set_table(set, measured->biases, n);
    memcpy(rising, measured->saved, n * sizeof *rising);
    make_rising(rising, n);
    for (size_t i = 0; i < n; i++) {
        set->saved[i] = (float)rising[i];
    }
    free(rising);
}

int measure_routed(const struct command *command, const struct drllm_model *model, struct workers *workers,
                   const struct examples *examples, const struct trained *trained, const char *path, size_t n_calibrate,
                   struct router_set *set, struct measured *measured) {
    struct drllm_routers *routers = NULL;
    *measured = (struct measured){.n_items = 0};
    choose_items(examples, measured);
    choose_biases(trained, n_calibrate, measured);
    int exit_code = open_routers(command, model, path, measured, set, &routers);
    if (exit_code == TOOL_OK) {
        struct work work = {.examples = examples,
                            .routers = routers,
                            .measured = measured,
                            .is_calibrated = allocate(measured->n_items, sizeof *work.is_calibrated),
                            .saved = allocate(measured->n_items * measured->n_biases, sizeof *work.saved)};
        while (measured->biases[work.zero] < 0.0f) {
            work.zero++;
        }
        choose_calibrated(&work, measured->n_calibrated);
        exit_code = run(command, workers, &work);
        free(work.is_calibrated);
        free(work.saved);
    }
    drllm_routers_close(routers);
    if (exit_code == TOOL_OK) {
        store_table(measured, set);
    }
    return exit_code;
}

void measured_release(struct measured *measured) {
    free(measured->items);
    free(measured->counts);
    free(measured->biases);
    free(measured->saved);
    *measured = (struct measured){.n_items = 0};
}
