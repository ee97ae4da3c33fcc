/* drllm eval: how well questions are answered at full depth, routed, and by programs that are the same for all
 * questions; what it saves, and how much time that is. */
#include "platform/clock.h"
#include "runtime/drllm_os.h"
#include "tools/commands.h"
#include "tools/depth.h"
#include "tools/eval_masks.h"
#include "tools/eval_report.h"
#include "tools/eval_within.h"
#include "tools/files.h"
#include "tools/interrupt.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct eval_options {
    struct model_options model;
    struct text_list data;
    struct text_list train;
    const char *routers;
    const char *budgets;
    const char *methods;
    const char *labels;
    const char *json;
    const char *csv;
    const char *plot;
    int64_t limit;
    int64_t train_limit;
    int64_t seeds;
    int64_t n_timed;
};

/* Questions of some tasks, out of those that were read. */
struct selection {
    const struct question **questions;
    size_t *task_of;
    size_t count;
};

struct eval {
    const struct command *command;
    const struct eval_options *options;
    bool does[N_EVAL_METHODS];
    double *budgets; /* of --budgets */
    size_t n_budgets;
    struct drllm_model *model;
    struct depth depth; /* with the routers */
    size_t n_layers;
    struct workers workers;
    struct questions questions, train, labels;
    const char **tasks;
    size_t *task_of_read; /* [questions.count] */
    struct selection asked;
    struct selection pool; /* of --train, tasks in turn */
    struct eval_results results;
    double *influence;
    cJSON *within;
    struct output_file json, csv, plot;
};

/* ---- One question ---- */

struct answer {
    bool right;
    int saved;
    uint64_t n_rows; /* tokens computed */
};

static int score_choices(struct drllm_session *session, const struct question *question, bool *right) {
    struct drllm_choice *choices = question_choices(question);
    double *log_probs = allocate(question->n_choices, sizeof *log_probs);
    double *scores = allocate(question->n_choices, sizeof *scores);
    const int status = drllm_session_score(session, question->prompt_tokens.ids, question->prompt_tokens.count, choices,
                                           question->n_choices);
    for (size_t i = 0; i < question->n_choices && status == DRLLM_OK; i++) {
        log_probs[i] = choices[i].log_prob;
    }
    *right = status == DRLLM_OK && question_scores(question, log_probs, scores) == question->answer;
    free(scores);
    free(log_probs);
    free(choices);
    return status;
}

static uint64_t rows_so_far(const struct drllm_session *session) {
    struct drllm_timings timings;
    drllm_session_get_timings(session, &timings);
    return timings.n_prefill + timings.n_decode;
}

/* At the session's depth. The context is left empty, as searches want it. */
static int ask(struct drllm_session *session, const struct question *question, struct answer *answer) {
    const uint64_t before = rows_so_far(session);
    int status = question->match == MATCH_CHOICE ? score_choices(session, question, &answer->right)
                                                 : question_generate(session, question, &answer->right);
    if (status == DRLLM_OK) {
        status = drllm_session_get_layers_saved(session, &answer->saved);
    }
    answer->n_rows = rows_so_far(session) - before;
    return status == DRLLM_OK ? drllm_session_rewind(session, 0) : status;
}

/* ---- Runs ---- */

/* One part of a run: all questions at one depth. */
struct pass {
    const struct selection *asked;
    bool *right;
    int *saved;
    struct progress progress;
    atomic_size_t done;
};

static int ask_index(void *user, size_t worker, struct drllm_session *session, size_t index) {
    struct pass *pass = user;
    struct answer answer = {false, 0, 0};
    (void)worker;
    const int status = ask(session, pass->asked->questions[index], &answer);
    pass->right[index] = answer.right;
    pass->saved[index] = answer.saved;
    progress_show(&pass->progress, atomic_fetch_add(&pass->done, 1) + 1);
    return status;
}

static int run_pass(struct eval *eval, const struct drllm_depth *depth, const char *what, bool *right, int *saved) {
    struct pass pass = {
        .asked = &eval->asked, .right = right, .saved = saved, .progress = {.what = what, .total = eval->asked.count}};
    for (size_t i = 0; i < eval->workers.count; i++) {
        struct drllm_session *session = eval->workers.sessions[i];
        const int status = drllm_session_set_depth(session, depth);
        if (status != DRLLM_OK) {
            return session_error(eval->command, session, "cannot set the depth", status);
        }
    }
    const int status = workers_run(&eval->workers, ask_index, &pass, eval->asked.count);
    return status == DRLLM_OK              ? TOOL_OK
           : status == DRLLM_ERR_CANCELLED ? TOOL_INTERRUPTED
                                           : report_status(eval->command, "cannot compute a question", status, NULL);
}

static struct drllm_depth part_depth(const struct eval *eval, const struct eval_run *run, size_t part) {
    struct drllm_depth depth = drllm_depth_default();
    depth.reroute = DRLLM_REROUTE_NEVER;
    if (run->programs != NULL) {
        depth.kind = DRLLM_DEPTH_STATIC;
        depth.program = run->programs + part * eval->n_layers;
    } else {
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = eval->depth.routers;
        depth.save_layers = isnan(run->budget) ? -1.0F : (float)run->budget;
    }
    return depth;
}

/* What the program answered in an earlier run, if there was one. */
static bool copy_part(const struct eval *eval, const struct eval_run *run, size_t part) {
    const size_t n = eval->asked.count;
    const size_t n_layers = eval->n_layers;
    for (size_t i = 0; i < eval->results.n_runs && run->programs != NULL; i++) {
        const struct eval_run *other = &eval->results.runs[i];
        for (size_t j = 0; j < other->n_parts && other->programs != NULL; j++) {
            if (memcmp(other->programs + j * n_layers, run->programs + part * n_layers, n_layers) == 0) {
                memcpy(run->right + part * n, other->right + j * n, n * sizeof *run->right);
                memcpy(run->saved + part * n, other->saved + j * n, n * sizeof *run->saved);
                return true;
            }
        }
    }
    return false;
}

static void release_run(struct eval_run *run) {
    free(run->programs);
    free(run->right);
    free(run->saved);
    free(run->ms);
    free(run->rows);
}

/* Answer all questions; the run's programs are taken over, and freed if this fails. */
static int perform(struct eval *eval, const char *name, struct eval_run *run) {
    const size_t n = eval->asked.count;
    char what[64];
    int exit_code = TOOL_OK;
    run->right = allocate(run->n_parts * n, sizeof *run->right);
    run->saved = allocate(run->n_parts * n, sizeof *run->saved);
    run->ms = allocate(n, sizeof *run->ms);
    run->rows = allocate(n, sizeof *run->rows);
    for (size_t i = 0; i < n; i++) {
        run->ms[i] = NAN;
        run->rows[i] = 0.0;
    }
    for (size_t part = 0; part < run->n_parts && exit_code == TOOL_OK; part++) {
        const struct drllm_depth depth = part_depth(eval, run, part);
        const int size = snprintf(what, sizeof what, "%s", name);
        if (!isnan(run->budget)) {
            (void)snprintf(what + size, sizeof what - (size_t)size, ", budget %g", run->budget);
        }
        if (!copy_part(eval, run, part)) {
            exit_code = run_pass(eval, &depth, what, run->right + part * n, run->saved + part * n);
        }
    }
    if (exit_code != TOOL_OK) {
        release_run(run);
    }
    return exit_code;
}

static int add_run(struct eval *eval, enum eval_method method, double budget, uint8_t *programs, size_t n_parts) {
    struct eval_results *results = &eval->results;
    struct eval_run run = {.method = method, .budget = budget, .programs = programs, .n_parts = n_parts};
    const int exit_code = perform(eval, eval_method_names[method], &run);
    if (exit_code == TOOL_OK) {
        results->runs = reallocate(results->runs, results->n_runs + 1, sizeof *results->runs);
        results->runs[results->n_runs++] = run;
    }
    return exit_code;
}

static int run_full(struct eval *eval) {
    uint8_t *full = allocate(eval->n_layers, 1);
    memset(full, 1, eval->n_layers);
    return add_run(eval, EVAL_FULL, NAN, full, 1);
}

/* Whether the routers' table has it; a message if not. */
static bool can_save(const struct eval *eval, double budget) {
    const struct eval_run run = {.budget = budget};
    const struct drllm_depth depth = part_depth(eval, &run, 0);
    struct drllm_session *session = eval->workers.sessions[0];
    if (drllm_session_set_depth(session, &depth) == DRLLM_OK) {
        return true;
    }
    report(eval->command, "budget %g is left out: %s", budget, drllm_session_last_error(session));
    return false;
}

static int run_routed(struct eval *eval) {
    if (!eval->does[EVAL_ROUTED] || eval->depth.routers == NULL) {
        return TOOL_OK;
    }
    int exit_code = add_run(eval, EVAL_ROUTED, NAN, NULL, 1);
    for (size_t i = 0; i < eval->n_budgets && exit_code == TOOL_OK; i++) {
        if (can_save(eval, eval->budgets[i])) {
            exit_code = add_run(eval, EVAL_ROUTED, eval->budgets[i], NULL, 1);
        }
    }
    return exit_code;
}

/* ---- Programs for all questions ---- */

/* How many layers the program of a budget must save. */
struct wanted {
    double budget;
    size_t saved;
};

static void add_wanted(const struct eval *eval, double budget, double saved, struct wanted *list, size_t *n) {
    const long whole = lround(saved);
    if (whole < 1 || (size_t)whole > eval->n_layers) {
        char which[32] = "";
        if (!isnan(budget)) {
            (void)snprintf(which, sizeof which, " at budget %g", budget);
        }
        report(eval->command, "no program of equal length for all questions%s: %.2f layers are saved", which, saved);
        return;
    }
    list[(*n)++] = (struct wanted){budget, (size_t)whole};
}

/* What the routed runs save or, without them, the budgets. */
static size_t list_wanted(const struct eval *eval, struct wanted **list) {
    const struct eval_results *results = &eval->results;
    size_t n = 0;
    *list = allocate(results->n_runs + eval->n_budgets, sizeof **list);
    for (size_t i = 0; i < results->n_runs; i++) {
        const struct eval_run *run = &results->runs[i];
        if (run->method == EVAL_ROUTED) {
            add_wanted(eval, run->budget, eval_row(results, run, eval_all).layers_saved, *list, &n);
        }
    }
    for (size_t i = 0; i < eval->n_budgets && (eval->depth.routers == NULL || !eval->does[EVAL_ROUTED]); i++) {
        add_wanted(eval, eval->budgets[i], eval->budgets[i], *list, &n);
    }
    return n;
}

static int run_static(struct eval *eval, const struct wanted *wanted, size_t n_wanted) {
    if (!eval->does[EVAL_STATIC] || n_wanted == 0) {
        return TOOL_OK;
    }
    if (eval->pool.count == 0) {
        report(eval->command, "static is left out: it is searched on questions of --train FILE");
        return TOOL_OK;
    }
    size_t most = 0;
    for (size_t i = 0; i < n_wanted; i++) {
        most = wanted[i].saved > most ? wanted[i].saved : most;
    }
    const size_t n_layers = eval->n_layers;
    uint8_t *programs = allocate((most + 1) * n_layers, 1);
    const struct group group = {.name = "all",
                                .questions = eval->pool.questions,
                                .n_questions = eval->pool.count,
                                .n_search = eval->pool.count};
    int exit_code = static_search(eval->command, &eval->workers, &group, n_layers, most, programs);
    for (size_t i = 0; i < n_wanted && exit_code == TOOL_OK; i++) {
        uint8_t *program = allocate(n_layers, 1);
        memcpy(program, programs + wanted[i].saved * n_layers, n_layers);
        exit_code = add_run(eval, EVAL_STATIC, wanted[i].budget, program, 1);
    }
    free(programs);
    return exit_code;
}

static int run_shortgpt(struct eval *eval, const struct wanted *wanted, size_t n_wanted) {
    if (!eval->does[EVAL_SHORTGPT] || n_wanted == 0) {
        return TOOL_OK;
    }
    const struct selection *prompts = eval->pool.count != 0 ? &eval->pool : &eval->asked;
    eval->influence = allocate(eval->n_layers, sizeof *eval->influence);
    int exit_code = block_influence(eval->command, eval->model, &eval->workers, prompts->questions, prompts->count,
                                    eval->influence);
    if (exit_code == TOOL_OK) {
        eval->results.influence = eval->influence;
    }
    for (size_t i = 0; i < n_wanted && exit_code == TOOL_OK; i++) {
        uint8_t *mask = allocate(eval->n_layers, 1);
        influence_mask(eval->influence, eval->n_layers, wanted[i].saved, mask);
        exit_code = add_run(eval, EVAL_SHORTGPT, wanted[i].budget, mask, 1);
    }
    return exit_code;
}

static int run_random(struct eval *eval, const struct wanted *wanted, size_t n_wanted) {
    const size_t n_seeds = (size_t)eval->options->seeds;
    int exit_code = TOOL_OK;
    for (size_t i = 0; i < n_wanted && eval->does[EVAL_RANDOM] && exit_code == TOOL_OK; i++) {
        uint8_t *masks = allocate(n_seeds * eval->n_layers, 1);
        bool is_possible = true;
        for (size_t j = 0; j < n_seeds && is_possible; j++) {
            is_possible = random_mask(j + 1, eval->n_layers, wanted[i].saved, masks + j * eval->n_layers);
        }
        if (is_possible) {
            exit_code = add_run(eval, EVAL_RANDOM, wanted[i].budget, masks, n_seeds);
        } else {
            report(eval->command, "random is left out for %zu saved layers: so many would take the first or the last",
                   wanted[i].saved);
            free(masks);
        }
    }
    return exit_code;
}

static int run_labels(struct eval *eval) {
    if (eval->options->labels == NULL) {
        return TOOL_OK;
    }
    struct eval_run run = {.budget = NAN};
    run.n_parts = within_programs(eval->command, &eval->labels, eval->n_layers, &run.programs, &eval->labels.n_bad);
    const int exit_code = perform(eval, "programs of the labels", &run);
    if (exit_code == TOOL_OK) {
        eval->within = within_json(&eval->results, &eval->labels, &run);
        eval->results.within = eval->within;
        release_run(&run);
    }
    return exit_code;
}

static int run_all(struct eval *eval) {
    struct wanted *wanted = NULL;
    size_t n_wanted = 0;
    int exit_code = run_full(eval);
    if (exit_code == TOOL_OK) {
        exit_code = run_routed(eval);
    }
    if (exit_code == TOOL_OK && (eval->does[EVAL_STATIC] || eval->does[EVAL_SHORTGPT] || eval->does[EVAL_RANDOM])) {
        n_wanted = list_wanted(eval, &wanted);
    }
    if (exit_code == TOOL_OK) {
        exit_code = run_static(eval, wanted, n_wanted);
    }
    if (exit_code == TOOL_OK) {
        exit_code = run_shortgpt(eval, wanted, n_wanted);
    }
    if (exit_code == TOOL_OK) {
        exit_code = run_random(eval, wanted, n_wanted);
    }
    if (exit_code == TOOL_OK) {
        exit_code = run_labels(eval);
    }
    free(wanted);
    return exit_code;
}

/* ---- Times ---- */

/* All runs in turn, each in a session of one thread of its own; behind them a run without any block. */
struct timing {
    struct eval *eval;
    struct drllm_session **sessions; /* [n_runs + 1] */
    size_t n;
};

static int open_timing(struct eval *eval, struct timing *timing) {
    const size_t n = eval->results.n_runs + 1;
    uint8_t *none = allocate(eval->n_layers, 1);
    memset(none, 0, eval->n_layers);
    const struct eval_run no_block = {.programs = none, .n_parts = 1};
    int exit_code = TOOL_OK;
    timing->sessions = allocate(n, sizeof(struct drllm_session *));
    while (timing->n < n && exit_code == TOOL_OK) {
        const struct eval_run *run = timing->n + 1 < n ? &eval->results.runs[timing->n] : &no_block;
        const struct depth depth = {.depth = part_depth(eval, run, 0)};
        exit_code = open_session(eval->command, eval->model, (size_t)eval->options->model.context, 1,
                                 eval->options->model.kv, &timing->sessions[timing->n]);
        if (exit_code == TOOL_OK) {
            exit_code = depth_set(eval->command, timing->sessions[timing->n++], &depth);
        }
    }
    free(none);
    return exit_code;
}

static void close_timing(struct timing *timing) {
    for (size_t i = 0; i < timing->n; i++) {
        drllm_session_close(timing->sessions[i]);
    }
    free((void *)timing->sessions);
}

static int time_run(const struct timing *timing, size_t run, size_t question, bool counts) {
    struct eval *eval = timing->eval;
    struct eval_results *results = &eval->results;
    struct drllm_session *session = timing->sessions[run];
    struct answer answer = {false, 0, 0};
    interrupt_watch(session);
    const uint64_t start = drllm_clock_ns();
    const int status = ask(session, eval->asked.questions[question], &answer);
    const double ms = milliseconds(drllm_clock_ns() - start);
    interrupt_watch(NULL);
    if (interrupt_seen()) {
        return TOOL_INTERRUPTED;
    }
    if (status != DRLLM_OK) {
        return session_error(eval->command, session, "cannot compute a question", status);
    }
    const bool is_run = run < results->n_runs;
    double *best = is_run ? &results->runs[run].ms[question] : &results->no_block_ms[question];
    if (counts) {
        *best = fmin(ms, *best); /* fmin leaves out a NAN */
    }
    if (is_run) {
        results->runs[run].rows[question] = (double)answer.n_rows;
    }
    return TOOL_OK;
}

/* The least of a few rounds is what the work takes; the rest is the machine's. The first answer of each session, which
 * also sets it up, does not count. */
static int time_question(const struct timing *timing, size_t question, bool is_first) {
    enum { N_ROUNDS = 3 };
    int exit_code = TOOL_OK;
    for (size_t i = is_first ? 0 : 1; i <= N_ROUNDS; i++) {
        for (size_t j = 0; j < timing->n && exit_code == TOOL_OK; j++) {
            exit_code = time_run(timing, (i + j) % timing->n, question, i != 0);
        }
    }
    return exit_code;
}

/* The first questions of each task. */
static size_t list_timed(const struct eval *eval, size_t *questions) {
    size_t *n_of_task = allocate(eval->results.n_tasks, sizeof *n_of_task);
    size_t n = 0;
    memset(n_of_task, 0, eval->results.n_tasks * sizeof *n_of_task);
    for (size_t i = 0; i < eval->asked.count; i++) {
        if (n_of_task[eval->asked.task_of[i]]++ < (size_t)eval->options->n_timed) {
            questions[n++] = i;
        }
    }
    free(n_of_task);
    return n;
}

static int measure_times(struct eval *eval) {
    size_t *questions = allocate(eval->asked.count, sizeof *questions);
    const size_t n = list_timed(eval, questions);
    struct timing timing = {.eval = eval};
    struct progress progress = {.what = "timing", .total = n};
    int exit_code = n != 0 ? open_timing(eval, &timing) : TOOL_OK;
    for (size_t i = 0; i < n && exit_code == TOOL_OK; i++) {
        exit_code = time_question(&timing, questions[i], i == 0);
        progress_show(&progress, i + 1);
    }
    close_timing(&timing);
    free(questions);
    return exit_code;
}

/* ---- Data ---- */

static int read_questions(struct eval *eval, const struct text_list *files, struct questions *questions) {
    for (size_t i = 0; i < files->count; i++) {
        const int exit_code = questions_read(eval->command, files->items[i], false, questions);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    return questions_tokenize(eval->command, eval->model, (size_t)eval->options->model.context, questions);
}

static bool has_answer(struct eval *eval, struct questions *questions, size_t i) {
    const struct question *question = &questions->items[i];
    if (question->match == MATCH_CHOICE && question->answer == SIZE_MAX) {
        report(eval->command, "%s, line %zu: it has no \"answer\"", question->file, question->line);
        questions->n_bad++;
        return false;
    }
    return true;
}

static void add_selected(struct selection *selection, const struct question *question, size_t task) {
    selection->questions[selection->count] = question;
    selection->task_of[selection->count++] = task;
}

static void begin_selection(struct selection *selection, size_t most) {
    selection->questions = allocate(most, sizeof(struct question *));
    selection->task_of = allocate(most, sizeof *selection->task_of);
}

static void release_selection(struct selection *selection) {
    free((void *)selection->questions);
    free(selection->task_of);
}

/* The first --limit ones of each task. */
static int select_asked(struct eval *eval) {
    const size_t limit = (size_t)eval->options->limit;
    eval->results.n_tasks = questions_tasks(&eval->questions, &eval->tasks, &eval->task_of_read);
    size_t *n_of_task = allocate(eval->results.n_tasks, sizeof *n_of_task);
    memset(n_of_task, 0, eval->results.n_tasks * sizeof *n_of_task);
    begin_selection(&eval->asked, eval->questions.count);
    for (size_t i = 0; i < eval->questions.count; i++) {
        const size_t task = eval->task_of_read[i];
        if ((limit == 0 || n_of_task[task] < limit) && has_answer(eval, &eval->questions, i)) {
            n_of_task[task]++;
            add_selected(&eval->asked, &eval->questions.items[i], task);
        }
    }
    free(n_of_task);
    if (eval->asked.count == 0) {
        report(eval->command, "there are no questions to ask");
        return TOOL_FAILED;
    }
    return TOOL_OK;
}

/* As many of each task, spread over its file, tasks in turn so that any first part of the pool is as even. */
static void select_pool(struct eval *eval) {
    const char **tasks;
    size_t *task_of;
    const size_t n_tasks = questions_tasks(&eval->train, &tasks, &task_of);
    size_t *members = allocate(n_tasks * eval->train.count, sizeof *members);
    size_t *n_of_task = allocate(n_tasks, sizeof *n_of_task);
    size_t each = (size_t)eval->options->train_limit;
    memset(n_of_task, 0, n_tasks * sizeof *n_of_task);
    for (size_t i = 0; i < eval->train.count; i++) {
        if (has_answer(eval, &eval->train, i)) {
            members[task_of[i] * eval->train.count + n_of_task[task_of[i]]++] = i;
        }
    }
    for (size_t task = 0; task < n_tasks; task++) {
        each = n_of_task[task] < each ? n_of_task[task] : each;
    }
    begin_selection(&eval->pool, n_tasks * each);
    for (size_t i = 0; i < each; i++) {
        for (size_t task = 0; task < n_tasks; task++) {
            const size_t member = members[task * eval->train.count + i * n_of_task[task] / each];
            add_selected(&eval->pool, &eval->train.items[member], task);
        }
    }
    free(n_of_task);
    free(members);
    free(task_of);
    free((void *)tasks);
}

static int read_all(struct eval *eval) {
    int exit_code = read_questions(eval, &eval->options->data, &eval->questions);
    if (exit_code == TOOL_OK) {
        exit_code = read_questions(eval, &eval->options->train, &eval->train);
    }
    if (exit_code == TOOL_OK && eval->options->labels != NULL) {
        exit_code = questions_read(eval->command, eval->options->labels, true, &eval->labels);
    }
    if (exit_code == TOOL_OK) {
        exit_code = select_asked(eval);
    }
    if (exit_code == TOOL_OK && eval->train.count != 0) {
        select_pool(eval);
        if (eval->pool.count == 0) {
            report(eval->command, "there are no questions to train with");
            exit_code = TOOL_FAILED;
        }
    }
    return exit_code;
}

/* ---- Results ---- */

static void begin_results(struct eval *eval) {
    const struct eval_options *options = eval->options;
    struct drllm_model_info info;
    drllm_model_get_info(eval->model, &info);
    struct eval_results *results = &eval->results;
    results->model = info.name[0] != '\0' ? info.name : options->model.path;
    results->routers = options->routers;
    results->n_layers = eval->n_layers;
    results->tasks = eval->tasks;
    results->questions = eval->asked.questions;
    results->task_of = eval->asked.task_of;
    results->n_questions = eval->asked.count;
    results->no_block_ms = allocate(eval->asked.count, sizeof *results->no_block_ms);
    for (size_t i = 0; i < eval->asked.count; i++) {
        results->no_block_ms[i] = NAN;
    }
}

static int open_output(const struct eval *eval, const char *path, struct output_file *output) {
    return path != NULL ? output_open(eval->command, path, output) : TOOL_OK;
}

static int open_outputs(struct eval *eval) {
    const struct eval_options *options = eval->options;
    int exit_code = open_output(eval, options->json, &eval->json);
    if (exit_code == TOOL_OK) {
        exit_code = open_output(eval, options->csv, &eval->csv);
    }
    return exit_code == TOOL_OK ? open_output(eval, options->plot, &eval->plot) : exit_code;
}

static void put_json(FILE *stream, const struct eval_results *results) {
    cJSON *json = eval_json(results);
    char *text = cJSON_Print(json);
    fputs(text, stream);
    fputc('\n', stream);
    cJSON_free(text);
    cJSON_Delete(json);
}

static int write_output(const struct eval *eval, struct output_file *output,
                        void (*put)(FILE *stream, const struct eval_results *results)) {
    if (output->stream == NULL) {
        return TOOL_OK;
    }
    put(output->stream, &eval->results);
    return output_commit(eval->command, output);
}

static bool is_stdout(const char *path) {
    return path != NULL && strcmp(path, "-") == 0;
}

static int write_results(struct eval *eval) {
    const struct eval_options *options = eval->options;
    const bool is_taken = is_stdout(options->json) || is_stdout(options->csv) || is_stdout(options->plot);
    FILE *table = is_taken ? stderr : stdout;
    eval_print(table, &eval->results);
    if (eval->within != NULL) {
        within_print(table, eval->within);
    }
    int exit_code = flush_output(eval->command);
    if (exit_code == TOOL_OK) {
        exit_code = write_output(eval, &eval->json, put_json);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_output(eval, &eval->csv, eval_put_csv);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_output(eval, &eval->plot, eval_draw);
    }
    return exit_code;
}

/* ---- */

static int open_all(struct eval *eval) {
    const struct eval_options *options = eval->options;
    struct depth_options depth = depth_options_default();
    depth.routers = options->routers;
    int exit_code = open_model(eval->command, &options->model, &eval->model);
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(eval->command, &depth, eval->model, &eval->depth);
        eval->n_layers = eval->depth.n_layers;
    }
    if (exit_code == TOOL_OK) {
        exit_code = read_all(eval);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_outputs(eval);
    }
    if (exit_code == TOOL_OK) {
        exit_code = workers_open(eval->command, eval->model, (size_t)options->model.threads,
                                 (size_t)options->model.context, options->model.kv, &eval->workers);
    }
    return exit_code;
}

static void close_all(struct eval *eval) {
    output_discard(&eval->json);
    output_discard(&eval->csv);
    output_discard(&eval->plot);
    for (size_t i = 0; i < eval->results.n_runs; i++) {
        release_run(&eval->results.runs[i]);
    }
    free(eval->results.runs);
    free(eval->results.no_block_ms);
    free(eval->influence);
    cJSON_Delete(eval->within);
    free((void *)eval->tasks);
    free(eval->task_of_read);
    release_selection(&eval->asked);
    release_selection(&eval->pool);
    questions_release(&eval->questions);
    questions_release(&eval->train);
    questions_release(&eval->labels);
    workers_release(&eval->workers);
    depth_close(&eval->depth);
    drllm_model_close(eval->model);
    free(eval->budgets);
}

static int run(struct eval *eval) {
    interrupt_install();
    int exit_code = open_all(eval);
    if (exit_code == TOOL_OK) {
        begin_results(eval);
        exit_code = run_all(eval);
    }
    if (exit_code == TOOL_OK) {
        exit_code = measure_times(eval);
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_results(eval);
    } else if (exit_code == TOOL_INTERRUPTED) {
        report(eval->command, "interrupted; nothing was written");
    }
    const size_t n_bad = eval->questions.n_bad + eval->train.n_bad + eval->labels.n_bad;
    if (exit_code == TOOL_OK && n_bad != 0) {
        report(eval->command, "%zu bad lines", n_bad);
        exit_code = TOOL_FAILED;
    }
    return exit_code;
}

/* Each word of a list apart by commas, to be freed; NULL at its end. */
static char *next_word(const char **list) {
    if (**list == '\0') {
        return NULL;
    }
    const size_t size = strcspn(*list, ",");
    char *word = allocate(size + 1, 1);
    memcpy(word, *list, size);
    word[size] = '\0';
    *list += size;
    *list += **list == ',';
    return word;
}

static int read_budgets(struct eval *eval) {
    const char *list = eval->options->budgets != NULL ? eval->options->budgets : "";
    int exit_code = TOOL_OK;
    eval->budgets = allocate(strlen(list) + 1, sizeof *eval->budgets);
    for (char *word = next_word(&list); word != NULL; word = exit_code == TOOL_OK ? next_word(&list) : NULL) {
        double budget = 0.0;
        if (!parse_real(word, &budget) || !(budget >= 0.0 && budget <= 1e6)) {
            exit_code = usage_error(eval->command, "--budgets: '%s' is no number of layers", word);
        }
        eval->budgets[eval->n_budgets++] = budget;
        free(word);
    }
    return exit_code;
}

static int read_methods(struct eval *eval) {
    const char *list = eval->options->methods;
    int exit_code = TOOL_OK;
    for (char *word = next_word(&list); word != NULL; word = exit_code == TOOL_OK ? next_word(&list) : NULL) {
        size_t i = 0;
        while (i < N_EVAL_METHODS && strcmp(word, eval_method_names[i]) != 0) {
            i++;
        }
        if (i == N_EVAL_METHODS) {
            exit_code =
                usage_error(eval->command, "--methods: '%s' is none of full, routed, static, shortgpt, random", word);
        } else {
            eval->does[i] = true;
        }
        free(word);
    }
    return exit_code;
}

static int check(struct eval *eval) {
    const struct eval_options *options = eval->options;
    const char *const outputs[] = {options->json, options->csv, options->plot};
    if (options->model.path == NULL) {
        return usage_error(eval->command, "no model: -m FILE is missing");
    }
    if (options->data.count == 0) {
        return usage_error(eval->command, "no questions: -d FILE is missing");
    }
    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < i; j++) {
            if (outputs[i] != NULL && outputs[j] != NULL && strcmp(outputs[i], outputs[j]) == 0) {
                return usage_error(eval->command, "two results cannot both go to %s", outputs[i]);
            }
        }
    }
    const int exit_code = read_budgets(eval);
    return exit_code == TOOL_OK ? read_methods(eval) : exit_code;
}

int eval_main(const struct command *command, int argc, char **argv) {
    struct eval_options options = {.model = model_options_default(),
                                   .methods = "full,routed,static,shortgpt,random",
                                   .train_limit = 100,
                                   .seeds = 5,
                                   .n_timed = 50};
    options.model.context = 1024;
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT('r', "routers", &options.routers, "FILE", "a router file"),
        OPT_TEXTS('d', "data", &options.data, "FILE", "questions, JSON lines; may be repeated; -: standard input"),
        OPT_TEXTS(0, "train", &options.train, "FILE", "questions for static and shortgpt; may be repeated"),
        OPT_TEXT(0, "budgets", &options.budgets, "LIST", "also routed with --save-layers of each: 0,3,5.5"),
        OPT_TEXT(0, "methods", &options.methods, "LIST", "what to compare; full is always there"),
        OPT_INTEGER(0, "limit", &options.limit, "N", 0, 1 << 30, "most questions of a task, its first; 0: all"),
        OPT_INTEGER(0, "train-limit", &options.train_limit, "N", 1, 1 << 30, "most questions of a task of --train"),
        OPT_INTEGER(0, "seeds", &options.seeds, "N", 1, 1 << 16, "random masks of each length"),
        OPT_INTEGER(0, "timed", &options.n_timed, "N", 0, 1 << 30, "questions of a task that are timed"),
        OPT_TEXT(0, "within", &options.labels, "FILE", "labels: how far their programs and an oracle among them get"),
        OPT_TEXT(0, "json", &options.json, "FILE", "write all of it as JSON; -: standard output"),
        OPT_TEXT(0, "csv", &options.csv, "FILE", "write the table as CSV"),
        OPT_TEXT(0, "plot", &options.plot, "FILE", "draw accuracy over layers saved, an SVG file"),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct eval eval = {.command = command, .options = &options};
        exit_code = check(&eval);
        if (exit_code == TOOL_OK) {
            exit_code = run(&eval);
        }
        close_all(&eval);
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
