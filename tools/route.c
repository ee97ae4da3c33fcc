/* drllm route: the programs of many prompts, as a table and as a picture. */
#include "platform/clock.h"
#include "runtime/utf8.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/csv.h"
#include "tools/depth.h"
#include "tools/files.h"
#include "tools/heatmap.h"
#include "tools/interrupt.h"
#include "tools/jsonl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct route_options {
    struct model_options model;
    struct depth_options depth;
    struct text_list files;
    const char *csv;
    const char *plot;
};

/* One prompt, and what became of it. */
struct prompt {
    size_t file, line, task;
    size_t n_tokens;
    int saved;
    uint8_t *counts; /* [n_layers] */
    float *margins;  /* [n_layers], NULL where the program was given */
};

struct router_job {
    const struct command *command;
    const struct route_options *options;
    struct drllm_model *model;
    struct drllm_session *session;
    struct depth depth;
    struct drllm_decision *decisions; /* [n_layers], of the prompt at hand */
    struct tokens tokens;
    struct prompt *prompts;
    size_t n_prompts;
    char **tasks; /* names in the order in which they came */
    size_t n_tasks;
    size_t n_bad;
    size_t n_lines; /* of all files */
    uint64_t start_ns, shown_ns;
    struct output_file csv, plot; /* open from the start, so that what cannot be written is known before the work */
};

/* ---- Progress ---- */

static void show_progress(struct router_job *job) {
    const uint64_t now = drllm_clock_ns();
    if (isatty(STDERR_FILENO) != 1 || now - job->shown_ns < 100000000) {
        return;
    }
    job->shown_ns = now;
    const size_t done = job->n_prompts + job->n_bad;
    const double seconds = (double)(now - job->start_ns) / 1e9;
    fprintf(stderr, "\r\033[K%zu of %zu prompts", done, job->n_lines);
    if (done != 0) {
        fprintf(stderr, ", %.0f s to go", seconds / (double)done * (double)(job->n_lines - done));
    }
}

static void clear_progress(const struct router_job *job) {
    if (job->shown_ns != 0) {
        fprintf(stderr, "\r\033[K");
    }
}

/* ---- Prompts ---- */

static size_t find_task(struct router_job *job, const char *name) {
    char *clean = allocate(3 * strlen(name) + 1, 1);
    clean[drllm_utf8_sanitise(name, strlen(name), clean)] = '\0';
    for (size_t i = 0; i < job->n_tasks; i++) {
        if (strcmp(job->tasks[i], clean) == 0) {
            free(clean);
            return i;
        }
    }
    job->tasks = reallocate((void *)job->tasks, job->n_tasks + 1, sizeof *job->tasks);
    job->tasks[job->n_tasks] = clean;
    return job->n_tasks++;
}

/* The decisions of the session's context, as a new prompt. */
static void add_prompt(struct router_job *job, size_t file, size_t line, const char *task) {
    const size_t n_layers = job->depth.n_layers;
    const bool routed = job->depth.depth.kind == DRLLM_DEPTH_ROUTED;
    struct prompt prompt = {.file = file, .line = line, .task = find_task(job, task), .n_tokens = job->tokens.count};
    prompt.counts = allocate(n_layers, sizeof *prompt.counts);
    prompt.margins = routed ? allocate(n_layers, sizeof *prompt.margins) : NULL;
    drllm_session_get_layers_saved(job->session, &prompt.saved);
    drllm_session_get_decisions(job->session, job->decisions);
    for (size_t i = 0; i < n_layers; i++) {
        prompt.counts[i] = job->decisions[i].count;
        if (routed) {
            prompt.margins[i] = job->decisions[i].margin;
        }
    }
    job->prompts = reallocate(job->prompts, job->n_prompts + 1, sizeof *job->prompts);
    job->prompts[job->n_prompts++] = prompt;
}

static int route_prompt(struct router_job *job, const char *text) {
    const int exit_code = tokenize(job->command, job->model, text, strlen(text),
                                   DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, &job->tokens);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    if (job->tokens.count == 0) {
        report(job->command, "the prompt is empty");
        return TOOL_FAILED;
    }
    int status = drllm_session_rewind(job->session, 0);
    if (status == DRLLM_OK) {
        status = drllm_session_prefill(job->session, job->tokens.ids, job->tokens.count);
    }
    return status == DRLLM_OK ? TOOL_OK
                              : session_error(job->command, job->session, "cannot compute the prompt", status);
}

static void report_bad_line(struct router_job *job, size_t file, size_t line, const char *wrong) {
    job->n_bad++;
    clear_progress(job);
    report(job->command, "%s, line %zu: %s", job->options->files.items[file], line, wrong);
}

/* Returns an exit code other than TOOL_OK only if the following lines are not worth trying. */
static int route_line(struct router_job *job, size_t file, size_t line, const cJSON *json) {
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(json, "prompt");
    const cJSON *task = cJSON_GetObjectItemCaseSensitive(json, "task");
    const bool has_task = task != NULL && !cJSON_IsNull(task);
    if (!cJSON_IsString(prompt)) {
        report_bad_line(job, file, line, "it has no text \"prompt\"");
        return TOOL_OK;
    }
    if (has_task && !cJSON_IsString(task)) {
        report_bad_line(job, file, line, "its \"task\" is no text");
        return TOOL_OK;
    }
    const int exit_code = route_prompt(job, prompt->valuestring);
    if (exit_code == TOOL_OK) {
        add_prompt(job, file, line, has_task ? task->valuestring : "");
    } else if (exit_code == TOOL_FAILED) {
        report_bad_line(job, file, line, "it cannot be routed");
        return TOOL_OK;
    }
    return exit_code;
}

static int route_file(struct router_job *job, size_t file, const struct text *text) {
    struct json_lines lines = {.text = text->data, .size = text->size};
    cJSON *json;
    const char *wrong;
    int exit_code = TOOL_OK;
    while (exit_code == TOOL_OK && json_lines_next(&lines, &json, &wrong)) {
        show_progress(job);
        if (json == NULL) {
            report_bad_line(job, file, lines.number, wrong);
        } else {
            exit_code = route_line(job, file, lines.number, json);
        }
        cJSON_Delete(json);
    }
    return exit_code;
}

static size_t count_lines(const struct text *text) {
    size_t n = text->size != 0 && text->data[text->size - 1] != '\n' ? 1 : 0;
    for (size_t i = 0; i < text->size; i++) {
        n += text->data[i] == '\n';
    }
    return n;
}

static int route_files(struct router_job *job) {
    const size_t n_files = job->options->files.count;
    struct text *texts = allocate(n_files, sizeof *texts);
    memset(texts, 0, n_files * sizeof *texts);
    int exit_code = TOOL_OK;
    for (size_t i = 0; i < n_files && exit_code == TOOL_OK; i++) {
        exit_code = read_text(job->command, job->options->files.items[i], &texts[i]);
        job->n_lines += count_lines(&texts[i]);
    }
    job->start_ns = drllm_clock_ns();
    for (size_t i = 0; i < n_files && exit_code == TOOL_OK; i++) {
        exit_code = route_file(job, i, &texts[i]);
    }
    clear_progress(job);
    for (size_t i = 0; i < n_files; i++) {
        text_release(&texts[i]);
    }
    free(texts);
    return exit_code != TOOL_OK ? exit_code : interrupt_seen() ? TOOL_INTERRUPTED : TOOL_OK;
}

/* ---- Table ---- */

static void put_csv_head(FILE *stream, size_t n_layers) {
    static const char *const names[] = {"count", "margin"};
    fputs("file,line,task,n_tokens,layers_saved,program", stream);
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        for (size_t i = 0; i < n_layers; i++) {
            fprintf(stream, ",%s_%zu", names[k], i);
        }
    }
    fputc('\n', stream);
}

static void put_csv_prompt(const struct router_job *job, FILE *stream, const struct prompt *prompt) {
    const size_t n_layers = job->depth.n_layers;
    char *program = program_text(prompt->counts, n_layers);
    csv_put_text(stream, job->options->files.items[prompt->file]);
    fprintf(stream, ",%zu,", prompt->line);
    csv_put_text(stream, job->tasks[prompt->task]);
    fprintf(stream, ",%zu,%d,", prompt->n_tokens, prompt->saved);
    csv_put_text(stream, program);
    for (size_t i = 0; i < n_layers; i++) {
        fprintf(stream, ",%d", prompt->counts[i]);
    }
    for (size_t i = 0; i < n_layers; i++) {
        fputc(',', stream);
        if (prompt->margins != NULL) {
            fprintf(stream, "%.6g", (double)prompt->margins[i]);
        }
    }
    fputc('\n', stream);
    free(program);
}

static void put_csv(const struct router_job *job, FILE *stream) {
    put_csv_head(stream, job->depth.n_layers);
    for (size_t i = 0; i < job->n_prompts; i++) {
        put_csv_prompt(job, stream, &job->prompts[i]);
    }
}

/* ---- Summary ---- */

struct summary {
    size_t n_prompts;
    size_t n_programs; /* different ones */
    double saved;      /* in the mean */
};

static const size_t all_tasks = SIZE_MAX;

static int compare_programs(const void *a, const void *b, void *n_layers) {
    const uint8_t *const *x = a;
    const uint8_t *const *y = b;
    return memcmp(*x, *y, *(const size_t *)n_layers);
}

static struct summary summarise(const struct router_job *job, size_t task) {
    size_t n_layers = job->depth.n_layers;
    const uint8_t **programs = allocate(job->n_prompts, sizeof *programs);
    struct summary summary = {0, 0, 0.0};
    for (size_t i = 0; i < job->n_prompts; i++) {
        if (task == all_tasks || job->prompts[i].task == task) {
            programs[summary.n_prompts++] = job->prompts[i].counts;
            summary.saved += job->prompts[i].saved;
        }
    }
    qsort_r((void *)programs, summary.n_prompts, sizeof *programs, compare_programs, &n_layers);
    for (size_t i = 0; i < summary.n_prompts; i++) {
        summary.n_programs += i == 0 || memcmp(programs[i - 1], programs[i], n_layers) != 0;
    }
    summary.saved /= summary.n_prompts != 0 ? (double)summary.n_prompts : 1.0;
    free((void *)programs);
    return summary;
}

static void print_summary(const struct router_job *job) {
    fprintf(stderr, "%8s %9s %13s  task\n", "prompts", "programs", "layers saved");
    for (size_t i = 0; i <= job->n_tasks; i++) {
        const bool is_sum = i == job->n_tasks;
        const struct summary summary = summarise(job, is_sum ? all_tasks : i);
        fprintf(stderr, "%8zu %9zu %13.2f  ", summary.n_prompts, summary.n_programs, summary.saved);
        const char *name = is_sum ? "all" : job->tasks[i][0] != '\0' ? job->tasks[i] : "(no task)";
        print_plain(stderr, name, strlen(name));
        fputc('\n', stderr);
    }
}

/* ---- Picture ---- */

/* "routers.gguf, p = -0.5", to be freed. */
static char *describe_depth(const struct router_job *job) {
    const struct depth_options *options = &job->options->depth;
    const struct drllm_depth *depth = &job->depth.depth;
    const char *routers = options->routers != NULL ? options->routers : "";
    const char *slash = strrchr(routers, '/');
    char *program = depth->kind == DRLLM_DEPTH_STATIC ? program_text(depth->program, job->depth.n_layers) : NULL;
    const size_t size = strlen(routers) + (program != NULL ? strlen(program) : 0) + 64;
    char *text = allocate(size, 1);
    routers = slash != NULL ? slash + 1 : routers;
    if (depth->kind == DRLLM_DEPTH_FULL) {
        snprintf(text, size, "full depth");
    } else if (program != NULL) {
        snprintf(text, size, "program %s", program);
    } else if (depth->save_layers >= 0.0f) {
        snprintf(text, size, "%s, asked to save %g layers", routers, (double)depth->save_layers);
    } else {
        snprintf(text, size, "%s, p = %g", routers, (double)depth->router_p);
    }
    free(program);
    return text;
}

static void draw(const struct router_job *job, FILE *stream) {
    struct drllm_model_info info;
    drllm_model_get_info(job->model, &info);
    const char *name = info.name[0] != '\0' ? info.name : job->options->model.path;
    const struct summary all = summarise(job, all_tasks);
    char *depth = describe_depth(job);
    const size_t title_size = strlen(name) + 32;
    const size_t subtitle_size = strlen(depth) + 128;
    char *title = allocate(title_size, 1);
    char *subtitle = allocate(subtitle_size, 1);
    snprintf(title, title_size, "Layer programs of %s", name);
    snprintf(subtitle, subtitle_size, "%s: %zu prompts, %zu programs, %.2f of %zu layers saved in the mean", depth,
             all.n_prompts, all.n_programs, all.saved, job->depth.n_layers);
    struct heatmap_row *rows = allocate(job->n_prompts, sizeof *rows);
    for (size_t i = 0; i < job->n_prompts; i++) {
        rows[i] = (struct heatmap_row){job->prompts[i].task, job->prompts[i].counts, job->prompts[i].margins};
    }
    const struct heatmap map = {.title = title,
                                .subtitle = subtitle,
                                .n_blocks = job->depth.n_layers,
                                .groups = (const char *const *)job->tasks,
                                .n_groups = job->n_tasks,
                                .rows = rows,
                                .n_rows = job->n_prompts};
    heatmap_write(stream, &map);
    free(rows);
    free(subtitle);
    free(title);
    free(depth);
}

/* ---- */

static int open_outputs(struct router_job *job) {
    int exit_code = output_open(job->command, job->options->csv, &job->csv);
    if (exit_code == TOOL_OK && job->options->plot != NULL) {
        exit_code = output_open(job->command, job->options->plot, &job->plot);
    }
    return exit_code;
}

static int write_results(struct router_job *job) {
    put_csv(job, job->csv.stream);
    int exit_code = output_commit(job->command, &job->csv);
    if (exit_code == TOOL_OK && job->options->plot != NULL) {
        draw(job, job->plot.stream);
        exit_code = output_commit(job->command, &job->plot);
    }
    if (exit_code == TOOL_OK) {
        print_summary(job);
        if (job->n_bad != 0) {
            report(job->command, "%zu bad lines", job->n_bad);
            exit_code = TOOL_FAILED;
        }
    }
    return exit_code;
}

static int open_all(struct router_job *job) {
    const struct model_options *options = &job->options->model;
    int exit_code = open_model(job->command, options, &job->model);
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(job->command, &job->options->depth, job->model, &job->depth);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_session(job->command, job->model, (size_t)options->context, (unsigned)options->threads,
                                 options->kv, &job->session);
    }
    if (exit_code == TOOL_OK) {
        exit_code = depth_set(job->command, job->session, &job->depth);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_outputs(job);
    }
    return exit_code;
}

static void close_all(struct router_job *job) {
    for (size_t i = 0; i < job->n_prompts; i++) {
        free(job->prompts[i].counts);
        free(job->prompts[i].margins);
    }
    for (size_t i = 0; i < job->n_tasks; i++) {
        free(job->tasks[i]);
    }
    free(job->prompts);
    free((void *)job->tasks);
    free(job->decisions);
    output_discard(&job->csv);
    output_discard(&job->plot);
    tokens_release(&job->tokens);
    drllm_session_close(job->session);
    depth_close(&job->depth);
    drllm_model_close(job->model);
}

static int run(struct router_job *job) {
    int exit_code = open_all(job);
    if (exit_code == TOOL_OK) {
        job->decisions = allocate(job->depth.n_layers, sizeof *job->decisions);
        interrupt_install();
        interrupt_watch(job->session);
        exit_code = route_files(job);
        interrupt_watch(NULL);
        if (exit_code == TOOL_OK) {
            exit_code = write_results(job);
        } else if (exit_code == TOOL_INTERRUPTED) {
            report(job->command, "interrupted; nothing was written");
        }
    }
    close_all(job);
    return exit_code;
}

static int check(const struct command *command, const struct route_options *options) {
    if (options->model.path == NULL) {
        return usage_error(command, "no model: -m FILE is missing");
    }
    if (options->files.count == 0) {
        return usage_error(command, "no prompts: -f FILE is missing");
    }
    if (options->plot != NULL && strcmp(options->plot, options->csv) == 0) {
        return usage_error(command, "the table and the plot cannot both go to %s", options->csv);
    }
    return depth_check(command, &options->depth);
}

int route_main(const struct command *command, int argc, char **argv) {
    struct route_options options = {.model = model_options_default(), .depth = depth_options_default(), .csv = "-"};
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXTS('f', "file", &options.files, "FILE",
                  "prompts, one JSON object a line; may be repeated; -: standard input"),
        OPT_TEXT('o', "csv", &options.csv, "FILE", "where the table goes; -: standard output"),
        OPT_TEXT(0, "plot", &options.plot, "FILE", "draw a heat map, an SVG file"),
        DEPTH_OPTIONS(&options.depth),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct router_job job = {.command = command, .options = &options};
        exit_code = check(command, &options);
        if (exit_code == TOOL_OK) {
            exit_code = run(&job);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
