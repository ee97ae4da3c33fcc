/* drllm bench: tokens a second, beside what the machine's memory would allow. */
#include "tools/bench.h"
#include "platform/clock.h"
#include "quant/kv_block.h"
#include "runtime/drllm_os.h"
#include "tools/bandwidth.h"
#include "tools/bench_kernels.h"
#include "tools/bench_synthetic.h"
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/processors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char default_format[] = "q4_0";
static const char *const output_names[] = {"md", "json", "csv", NULL};

/* ---- Measuring ---- */

/* Ids like those of a text: spread over the vocabulary, the same in every run. */
static void make_tokens(struct tokens *tokens, size_t n, size_t n_vocab) {
    uint64_t state = 42;
    tokens->count = 0;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        tokens_add(tokens, (int32_t)((state >> 33) % n_vocab));
    }
}

size_t bench_count_passes(const struct bench *bench) {
    return bench_depth_is_asked(&bench->options->depth) ? BENCH_PASSES : 1;
}

/* Returns a drllm_status. The durations of generated tokens go to token_ns, if that is not NULL. */
static int run_once(struct drllm_session *session, const struct row *row, const struct tokens *tokens, size_t n,
                    uint64_t *ns, uint64_t *token_ns) {
    interrupt_watch(session);
    int status = drllm_session_rewind(session, 0);
    const uint64_t start = drllm_clock_ns();
    if (row->n_prompt != 0 && status == DRLLM_OK) {
        status = drllm_session_prefill(session, tokens->ids, n);
    }
    uint64_t before = start;
    for (size_t i = 0; row->n_gen != 0 && i < n && status == DRLLM_OK; i++) {
        status = drllm_session_decode(session, tokens->ids[i]);
        const uint64_t now = drllm_clock_ns();
        if (token_ns != NULL) {
            token_ns[i] = now - before;
        }
        before = now;
    }
    *ns = drllm_clock_ns() - start;
    return status;
}

static void summarise(struct row *row, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += row->samples[i];
    }
    row->average = sum / (double)n;
    double squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double d = row->samples[i] - row->average;
        squares += d * d;
    }
    row->deviation = n > 1 ? sqrt(squares / (double)(n - 1)) : 0.0;
    double *sorted = allocate(n, sizeof *sorted);
    memcpy(sorted, row->samples, n * sizeof *sorted);
    row->median = median(sorted, n);
    row->least = sorted[0];
    row->most = sorted[n - 1];
    free(sorted);
}

/* The weights that the program reads, and the keys and values of all positions so far, on average over the generation. */
static double bytes_per_token(const struct row *row, enum drllm_format kv) {
    const struct drllm_model_info *info = &row->info;
    const double n_executions = (double)info->n_layers - row->depth.saved;
    const double blocks = ((double)info->weight_bytes - (double)info->head_bytes) / (double)info->n_layers;
    const double keys = (double)drllm_kv_key_bytes(kv, info->head_dim) / DRLLM_KV_BLOCK;
    const double values = (double)drllm_kv_value_bytes(kv, info->head_dim) / (double)drllm_kv_value_positions(kv);
    const double kv_position = n_executions * (double)info->n_kv_heads * (keys + values);
    return (double)info->weight_bytes - row->depth.saved * blocks + kv_position * ((double)row->n_gen + 1.0) / 2.0;
}

/* The workers of the session that ran before look out for work a while longer, on the cores that the next one is to
 * have. */
static void let_workers_sleep(const struct row *row) {
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 20000000};
    if (row->n_threads > 1) {
        nanosleep(&pause, NULL);
    }
}

/* One repetition: full depth, the asked one, no block. Returns a drllm_status; *failed is the session. */
static int run_passes(struct drllm_session *const *sessions, size_t n_passes, const struct row *row,
                      const struct tokens *tokens, size_t n, uint64_t ns[BENCH_PASSES], uint64_t *token_ns,
                      struct drllm_session **failed) {
    static const enum bench_pass order[BENCH_PASSES] = {BENCH_FULL, BENCH_ASKED, BENCH_NONE};
    int status = DRLLM_OK;
    for (size_t i = 0; i < BENCH_PASSES && status == DRLLM_OK; i++) {
        if (order[i] >= n_passes) {
            continue;
        }
        if (n_passes > 1) {
            let_workers_sleep(row);
        }
        *failed = sessions[order[i]];
        status = run_once(*failed, row, tokens, n, &ns[order[i]], order[i] == BENCH_ASKED ? token_ns : NULL);
    }
    return status;
}

static uint64_t router_ns(const struct drllm_session *session) {
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    return timings.router_ns;
}

static int measure_row(const struct bench *bench, struct drllm_session *const sessions[BENCH_PASSES], struct row *row) {
    const size_t n = row->n_prompt + row->n_gen;
    const size_t repetitions = (size_t)bench->options->repetitions;
    const size_t warm_up = row->n_gen != 0 && n > 16 ? 16 : n;
    const size_t n_passes = bench_count_passes(bench);
    struct tokens tokens = {NULL, 0, 0};
    struct drllm_session *failed = NULL;
    uint64_t ns[BENCH_PASSES] = {0};
    for (size_t pass = 0; pass < n_passes; pass++) {
        row->pass_ns[pass] = allocate(repetitions, sizeof *row->pass_ns[pass]);
    }
    row->samples = allocate(repetitions, sizeof *row->samples);
    make_tokens(&tokens, n, row->info.n_vocab);
    uint64_t *token_ns = allocate(repetitions * row->n_gen + 1, sizeof *token_ns);
    int status = run_passes(sessions, n_passes, row, &tokens, warm_up, ns, NULL, &failed);
    const uint64_t router_before = router_ns(sessions[BENCH_ASKED]);
    const time_t now = time(NULL);
    struct tm date;
    strftime(row->test_time, sizeof row->test_time, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &date));
    for (size_t i = 0; i < repetitions && status == DRLLM_OK; i++) {
        status =
            run_passes(sessions, n_passes, row, &tokens, n, ns, row->n_gen != 0 ? token_ns + i * n : NULL, &failed);
        for (size_t pass = 0; pass < n_passes; pass++) {
            row->pass_ns[pass][i] = ns[pass];
        }
        row->samples[i] = per_second((double)n, ns[BENCH_ASKED]);
    }
    tokens_release(&tokens);
    if (status == DRLLM_OK) {
        bench_tokens_summarise(&row->tokens, token_ns, repetitions * row->n_gen);
    }
    free(token_ns);
    if (status != DRLLM_OK) {
        return session_error(bench->command, failed, "cannot compute", status);
    }
    summarise(row, repetitions);
    if (n_passes > 1) {
        bench_depth_summarise(&row->depth, &bench->depth, sessions, row->pass_ns, repetitions, n,
                              router_ns(sessions[BENCH_ASKED]) - router_before);
    }
    const struct model_options *options = &bench->options->model;
    const enum drllm_format kv = options->compute == DRLLM_COMPUTE_F32 ? DRLLM_FORMAT_F32
                                 : options->kv == DRLLM_KV_Q8_0        ? DRLLM_FORMAT_Q8_0
                                                                       : DRLLM_FORMAT_F16;
    row->bytes_per_token = row->n_gen != 0 ? bytes_per_token(row, kv) : 0.0;
    fprintf(stderr, "%s, %s %zu, %u threads: %.2f tokens/s\n", row->path, row->n_gen != 0 ? "generate" : "prompt", n,
            row->n_threads, row->median);
    return TOOL_OK;
}

/* A session a pass, so that each keeps the caches it has grown. */
static int open_sessions(const struct bench *bench, const struct drllm_model *model, const struct row *row,
                         struct drllm_session *sessions[BENCH_PASSES]) {
    const size_t n_passes = bench_count_passes(bench);
    int exit_code = TOOL_OK;
    for (size_t pass = 0; pass < n_passes && exit_code == TOOL_OK; pass++) {
        exit_code = open_session(bench->command, model, row->n_prompt + row->n_gen, row->n_threads,
                                 bench->options->model.kv, &sessions[pass]);
    }
    return exit_code == TOOL_OK && n_passes > 1 ? bench_depth_set(bench->command, sessions, &bench->depth) : exit_code;
}

static int run_test(struct bench *bench, const struct drllm_model *model, const struct row *row) {
    struct drllm_session *sessions[BENCH_PASSES] = {NULL};
    int exit_code = open_sessions(bench, model, row, sessions);
    if (exit_code == TOOL_OK) {
        bench->rows = reallocate(bench->rows, bench->n_rows + 1, sizeof *bench->rows);
        struct row *added = &bench->rows[bench->n_rows++];
        *added = *row;
        exit_code = measure_row(bench, sessions, added);
        interrupt_watch(NULL);
    }
    for (size_t pass = 0; pass < BENCH_PASSES; pass++) {
        drllm_session_close(sessions[pass]);
    }
    return exit_code;
}

/* Like llama-bench: all prompts, then all generations, each with every number of threads. */
static int run_tests(struct bench *bench, const struct drllm_model *model, struct row *row) {
    const struct integer_list *lists[] = {&bench->options->prompts, &bench->options->generations};
    for (size_t kind = 0; kind < 2; kind++) {
        for (size_t i = 0; i < lists[kind]->count; i++) {
            row->n_prompt = kind == 0 ? (size_t)lists[kind]->items[i] : 0;
            row->n_gen = kind == 1 ? (size_t)lists[kind]->items[i] : 0;
            for (size_t t = 0; t < bench->options->threads.count && row->n_prompt + row->n_gen != 0; t++) {
                row->n_threads = (unsigned)bench->options->threads.items[t];
                const int exit_code = run_test(bench, model, row);
                if (exit_code != TOOL_OK) {
                    return exit_code;
                }
            }
        }
    }
    return TOOL_OK;
}

static void describe_model(struct row *row) {
    const double params = (double)row->info.n_params;
    snprintf(row->model_type, sizeof row->model_type, "llama %.*f%s %s", params < 1e9 ? 0 : 1,
             params < 1e9 ? params / 1e6 : params / 1e9, params < 1e9 ? "M" : "B", row->info.quantization);
}

/* `name` is what the rows show. */
static int bench_model(struct bench *bench, const char *path, const char *name, bool temporary) {
    struct model_options options = bench->options->model;
    options.path = path;
    struct drllm_model *model = NULL;
    const uint64_t start = drllm_clock_ns();
    int exit_code = open_model(bench->command, &options, &model);
    if (temporary) {
        bench_synthetic_remove(path);
    }
    if (exit_code == TOOL_OK) {
        struct row row = {.path = name, .load_ms = milliseconds(drllm_clock_ns() - start)};
        drllm_model_get_info(model, &row.info);
        describe_model(&row);
        exit_code = depth_open(bench->command, &bench->options->depth, model, &bench->depth);
        if (exit_code == TOOL_OK) {
            exit_code = run_tests(bench, model, &row);
        }
        depth_close(&bench->depth);
    }
    drllm_model_close(model);
    return exit_code;
}

/* The normal way of a file: what is measured is what a model of this shape would do. */
static int bench_shape(struct bench *bench, const char *shape) {
    char *path = NULL;
    int exit_code = bench_synthetic_make(
        bench->command, shape, bench->options->format != NULL ? bench->options->format : default_format, &path);
    if (exit_code == TOOL_OK) {
        exit_code = bench_model(bench, path, shape, true);
    }
    free(path);
    return exit_code;
}

/* What tokens would take if a machine did nothing but read: what of their lateness is not the program's. */
static void measure_reading(struct reader *reader, struct row *row) {
    const double most_ms = 5000.0;
    size_t n = row->tokens.n;
    n = row->tokens.total > most_ms ? (size_t)((double)n * most_ms / row->tokens.total) + 1 : n;
    uint64_t *ns = allocate(n, sizeof *ns);
    size_t done = 0;
    for (; done < n && !interrupt_seen(); done++) {
        (void)reader_read(reader, row->bytes_per_token, &ns[done]);
    }
    bench_tokens_summarise(&row->reading, ns, done);
    free(ns);
}

/* After the models are closed: the buffer must not count as their memory. */
static void measure_memory(const struct bench *bench) {
    for (size_t t = 0; t < bench->options->threads.count && !interrupt_seen(); t++) {
        const unsigned n_threads = (unsigned)bench->options->threads.items[t];
        struct reader *reader = reader_open(n_threads);
        const double bandwidth = reader != NULL ? reader_bandwidth(reader) : 0.0;
        fprintf(stderr, "memory, %u threads: %.1f GB/s read\n", n_threads, bandwidth / 1e9);
        for (size_t i = 0; i < bench->n_rows && !interrupt_seen(); i++) {
            struct row *row = &bench->rows[i];
            if (row->n_threads != n_threads) {
                continue;
            }
            row->bandwidth = bandwidth;
            if (reader != NULL && row->tokens.n != 0) {
                measure_reading(reader, row);
            }
        }
        reader_close(reader);
    }
}

/* ---- */

static int run(struct bench *bench) {
    int exit_code = TOOL_OK;
    interrupt_install();
    for (size_t i = 0; i < bench->options->models.count && exit_code == TOOL_OK; i++) {
        const char *path = bench->options->models.items[i];
        exit_code = bench_model(bench, path, path, false);
    }
    for (size_t i = 0; i < bench->options->synthetic.count && exit_code == TOOL_OK; i++) {
        exit_code = bench_shape(bench, bench->options->synthetic.items[i]);
    }
    bench->peak_memory = peak_memory_bytes();
    if (exit_code == TOOL_OK && bench->n_rows == 0) {
        exit_code = usage_error(bench->command, "-p 0 and -n 0 leave nothing to measure");
    }
    if (exit_code == TOOL_OK) {
        measure_memory(bench);
        exit_code = interrupt_seen() ? TOOL_INTERRUPTED : bench_print(bench);
    }
    return exit_code;
}

static void release(struct bench *bench) {
    for (size_t i = 0; i < bench->n_rows; i++) {
        for (size_t pass = 0; pass < BENCH_PASSES; pass++) {
            free(bench->rows[i].pass_ns[pass]);
        }
        bench_depth_release(&bench->rows[i].depth);
        free(bench->rows[i].samples);
    }
    free(bench->rows);
}

static void set_defaults(struct bench_options *options) {
    static const int64_t prompt = 512, generation = 128, batches[] = {1, 16, 64, 256};
    const int64_t threads = drllm_default_threads();
    const struct {
        struct integer_list *list;
        const int64_t *numbers;
        size_t count;
    } defaults[] = {{&options->prompts, &prompt, 1},
                    {&options->generations, &generation, 1},
                    {&options->threads, &threads, 1},
                    {&options->batches, batches, sizeof batches / sizeof batches[0]}};
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++) {
        if (defaults[i].list->count != 0) {
            continue;
        }
        for (size_t k = 0; k < defaults[i].count; k++) {
            integer_list_add(defaults[i].list, defaults[i].numbers[k]);
        }
    }
}

/* -r is the repetitions here, as in llama-bench; the routers keep their long name. */
static void leave_r_to_repetitions(struct option *table, size_t n_options, const struct depth_options *depth) {
    for (size_t i = 0; i < n_options; i++) {
        if (table[i].type == OPTION_TEXT && table[i].target.text == &depth->routers) {
            table[i].short_name = '\0';
        }
    }
}

static int check(const struct command *command, const struct bench_options *options) {
    const size_t n_models = options->models.count + options->synthetic.count;
    if (options->plot != NULL && !options->kernels) {
        return usage_error(command, "--plot draws what --kernels measures, and models beside it");
    }
    if (options->kernels && n_models != 0 && (options->plot == NULL || options->output != OUTPUT_MD)) {
        return usage_error(command, "--kernels takes a model only to draw it with --plot, and with -o md");
    }
    if (options->kernels && n_models == 0) {
        return TOOL_OK;
    }
    if (n_models == 0) {
        return usage_error(command, "no model: -m FILE is missing, or --synthetic SHAPE");
    }
    for (size_t i = 0; i < options->synthetic.count; i++) {
        const int exit_code = bench_synthetic_check(command, options->synthetic.items[i],
                                                    options->format != NULL ? options->format : default_format);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    return depth_check(command, &options->depth);
}

static int run_kernels(const struct bench *bench) {
    const struct bench_options *options = bench->options;
    const struct kernel_bench_options kernels = {.shapes = options->shapes,
                                                 .formats = options->format,
                                                 .batches = options->batches,
                                                 .threads = &options->threads,
                                                 .repetitions = (size_t)options->repetitions,
                                                 .output = options->output,
                                                 .cpu_mask = options->model.cpu_mask,
                                                 .plot = options->plot,
                                                 .models = bench};
    const int exit_code = use_processors(bench->command, &options->model);
    return exit_code == TOOL_OK ? bench_kernels(bench->command, &kernels) : exit_code;
}

int bench_main(const struct command *command, int argc, char **argv) {
    struct bench_options options = {.model = model_options_default(),
                                    .depth = depth_options_default(),
                                    .shapes = "smollm2-135m,llama-3.2-1b,tinyllama-1.1b",
                                    .repetitions = 5,
                                    .output = OUTPUT_MD};
    struct option table[] = {
        OPT_TEXTS('m', "model", &options.models, "FILE", "a model, a GGUF file; may be repeated"),
        OPT_TEXTS(0, "synthetic", &options.synthetic, "SHAPE", "random weights instead; may be repeated"),
        OPT_TEXT(0, "format", &options.format, "TYPE",
                 "of --synthetic (default q4_0); of --kernels a LIST (default all)"),
        OPT_INTEGERS('p', "n-prompt", &options.prompts, "LIST", 0, 1 << 20, "prompt lengths; 0: none (default 512)"),
        OPT_INTEGERS('n', "n-gen", &options.generations, "LIST", 0, 1 << 20,
                     "tokens to generate; 0: none (default 128)"),
        OPT_INTEGERS('t', "threads", &options.threads, "LIST", 1, 1024, "threads (default one per free fast core)"),
        OPT_INTEGER('r', "repetitions", &options.repetitions, "N", 1, 100000, "times that each test is measured"),
        OPT_WORD('o', "output", &options.output, output_names, "form of the result"),
        OPT_FLAG(0, "kernels", &options.kernels, "measure matrix kernels, without a model"),
        OPT_TEXT(0, "shapes", &options.shapes, "LIST", "models whose matrices --kernels takes"),
        OPT_TEXT(0, "plot", &options.plot, "FILE", "draw their roofline, with -m of models as well: an SVG file"),
        OPT_INTEGERS('M', "batches", &options.batches, "LIST", 1, 4096, "tokens of --kernels (default 1,16,64,256)"),
        DEPTH_OPTIONS(&options.depth),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    leave_r_to_repetitions(table, OPTION_COUNT(table), &options.depth);
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        set_defaults(&options);
        struct bench bench = {.command = command, .options = &options};
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK && options.models.count + options.synthetic.count != 0) {
            exit_code = run(&bench);
        }
        if (exit_code == TOOL_OK && options.kernels) {
            exit_code = run_kernels(&bench);
        }
        release(&bench);
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
