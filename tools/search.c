/* drllm search: find layer programs for groups of questions, with the quantised model that will run them.
 *
 * Labels are lines of JSON: the question's task and prompt, and the program of its group. Beside them stands a file of
 * what was found so far, from which an interrupted search goes on. */
#include "tools/search.h"

#include "platform/clock.h"
#include "runtime/drllm_os.h"
#include "runtime/hash.h"
#include "runtime/internal.h"
#include "tools/commands.h"
#include "tools/depth.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/jsonl.h"
#include "tools/search_choose.h"
#include "tools/search_clusters.h"
#include "tools/search_ranks.h"
#include "tools/search_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum per { PER_TASK, PER_CLUSTER, PER_EXAMPLE };
enum { GROUP_NAME_BYTES = 128 };
static const double more_saved = 3.0; /* than the mean: how far a group is searched to choose for all together */
static const char *const per_names[] = {"task", "cluster", "example", NULL};
static const char *const reward_names[] = {"soft", "probability", "exact", NULL};
static const char *const method_names[] = {"greedy", "tree", NULL};

struct options {
    struct model_options model;
    struct text_list data;
    struct text_list merged;
    const char *output;
    const char *shard;
    const char *from;
    int per;
    int reward;
    int method;
    int64_t n_search;
    int64_t n_verify;
    int64_t clusters;
    int64_t max_steps;
    int64_t simulations;
    int64_t seed;
    double layer_value;
    double min_saved;
    double mean_saved;
    bool no_racing;
    bool no_reuse;
    bool no_repeats;
    bool restart;
};

struct search {
    const struct command *command;
    const struct options *options;
    struct search_options parts;
    struct drllm_model *model;
    size_t n_layers;
    uint8_t *from; /* [n_layers]: where the search begins; NULL: at full depth */
    struct workers workers;
    struct questions questions;
    const char **names; /* of groups */
    size_t *group_of;   /* [questions.count] */
    size_t n_groups;
    size_t shard, n_shards;
    struct ranks ranks;
    char *output;       /* of this rank */
    struct path *paths; /* [n_groups] */
    struct search_state state;
    char **labels; /* [questions.count]: lines; NULL: another shard's */
    uint64_t start_ns;
    struct search_cost cost; /* of all groups */
};

/* ---- Groups ---- */

static uint64_t mix(uint64_t hash, const char *text) {
    return drllm_hash_bytes(hash, text, strlen(text));
}

static int make_groups(struct search *search) {
    const struct options *options = search->options;
    if (options->per == PER_TASK) {
        search->n_groups = questions_tasks(&search->questions, &search->names, &search->group_of);
        return TOOL_OK;
    }
    const size_t n = search->questions.count;
    search->group_of = allocate(n, sizeof *search->group_of);
    if (options->per == PER_EXAMPLE) {
        search->n_groups = n;
        for (size_t i = 0; i < n; i++) {
            search->group_of[i] = i;
        }
        return TOOL_OK;
    }
    search->n_groups = (size_t)options->clusters;
    return cluster_questions(search->command, &search->workers, search->model, &search->questions, search->n_groups,
                             (uint64_t)options->seed, search->group_of);
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return *state >> 33;
}

static void name_group(const struct search *search, size_t index, char *name, size_t size) {
    if (search->names != NULL) {
        snprintf(name, size, "%s", search->names[index]);
    } else {
        snprintf(name, size, "%s %zu", per_names[search->options->per], index);
    }
}

/* The questions of a group in a random order that depends on the seed and the group alone. */
static void make_group(const struct search *search, size_t index, const char *name, struct group *group) {
    const struct options *options = search->options;
    *group = (struct group){.name = name, .seed = mix((uint64_t)options->seed ^ DRLLM_HASH_START, name)};
    group->questions = allocate(search->questions.count, sizeof(struct question *));
    for (size_t i = 0; i < search->questions.count; i++) {
        if (search->group_of[i] == index) {
            group->questions[group->n_questions++] = &search->questions.items[i];
        }
    }
    uint64_t random = group->seed;
    for (size_t i = group->n_questions; i > 1; i--) {
        const size_t j = (size_t)(next_random(&random) % i);
        const struct question *swapped = group->questions[i - 1];
        group->questions[i - 1] = group->questions[j];
        group->questions[j] = swapped;
    }
    if (options->per == PER_EXAMPLE) {
        group->n_search = group->n_questions;
        return;
    }
    /* A quarter at least verifies. */
    const size_t most = group->n_questions - group->n_questions / 4;
    group->n_search = (size_t)options->n_search < most ? (size_t)options->n_search : most;
    const size_t rest = group->n_questions - group->n_search;
    group->n_questions = group->n_search + ((size_t)options->n_verify < rest ? (size_t)options->n_verify : rest);
}

/* ---- Showing ---- */

static void print_path(const struct path *path, const char *name, size_t n_layers) {
    const struct found *chosen = &path->points[path->chosen];
    printf("%s: %zu questions searched on, %zu verify\n", name, path->n_search, path->n_verify);
    for (size_t i = 0; i < path->count; i++) {
        const struct found *point = &path->points[i];
        char *program = program_text(point->counts, n_layers);
        printf("%c %3d saved  reward %8.4f  verified: reward %8.4f  right %6.2f %%  %s\n", point == chosen ? '*' : ' ',
               point->saved, point->search_reward, point->verify_reward, 100.0 * point->right, program);
        free(program);
    }
    printf("  gain over full depth where it was verified: %+.2f +- %.2f points\n",
           100.0 * (chosen->right - path->points[0].right), 100.0 * chosen->gain_error);
}

/* ---- Labels ---- */

static void add_labels(struct search *search, size_t index, const char *name, const uint8_t *counts) {
    char *program = program_text(counts, search->n_layers);
    for (size_t i = 0; i < search->questions.count; i++) {
        if (search->group_of[i] != index) {
            continue;
        }
        const struct question *question = &search->questions.items[i];
        cJSON *json = cJSON_CreateObject();
        cJSON_AddNumberToObject(json, "index", (double)i);
        cJSON_AddStringToObject(json, "task", question->task);
        cJSON_AddStringToObject(json, "group", name);
        cJSON_AddStringToObject(json, "prompt", question->prompt);
        cJSON_AddStringToObject(json, "program", program);
        search->labels[i] = cJSON_PrintUnformatted(json);
        cJSON_Delete(json);
    }
    free(program);
}

/* In the order of the questions, as merged ones. */
static int write_labels(const struct search *search) {
    struct text text = {NULL, 0, 0};
    for (size_t i = 0; i < search->questions.count; i++) {
        if (search->labels[i] != NULL) {
            text_append(&text, search->labels[i], strlen(search->labels[i]));
            text_append(&text, "\n", 1);
        }
    }
    const int exit_code = write_file(search->command, search->output, text.data, text.size);
    text_release(&text);
    return exit_code;
}

static void release_labels(struct search *search) {
    for (size_t i = 0; search->labels != NULL && i < search->questions.count; i++) {
        cJSON_free(search->labels[i]);
    }
    free((void *)search->labels);
}

/* ---- Searching ---- */

struct point_keeper {
    struct search *search;
    const char *name;
};

static bool keep_point(void *user, const struct found *point) {
    struct point_keeper *keeper = user;
    struct search *search = keeper->search;
    char *program = program_text(point->counts, search->n_layers);
    fprintf(stderr, "%s: %d saved, reward %.4f, verified %.2f %% right, %s (%.0f s)\n", keeper->name, point->saved,
            point->search_reward, 100.0 * point->right, program, (double)(drllm_clock_ns() - search->start_ns) / 1e9);
    free(program);
    return search_state_add(&search->state, keeper->name, point, search->n_layers);
}

static void add_cost(struct search_cost *sum, const struct search_cost *cost) {
    sum->row_blocks += cost->row_blocks;
    sum->resumed += cost->resumed;
    sum->evaluations += cost->evaluations;
    sum->memo_hits += cost->memo_hits;
    sum->raced_out += cost->raced_out;
}

/* Full depth, and what an earlier run found. */
static int begin_path(struct search *search, struct evaluator *evaluator, const char *name, struct path *path) {
    uint8_t *full = allocate(search->n_layers, 1);
    memset(full, 1, search->n_layers);
    int exit_code = path_add(evaluator, &search->parts, path, full, full);
    const struct state_entry *entry;
    if (exit_code == TOOL_OK && search->from != NULL) {
        exit_code = path_add(evaluator, &search->parts, path, full, search->from);
    }
    for (size_t i = 0; exit_code == TOOL_OK && (entry = search_state_get(&search->state, name, i)) != NULL; i++) {
        exit_code = path_add(evaluator, &search->parts, path, path->points[path->count - 1].counts, entry->counts);
        path->points[path->count - 1].step = entry->step;
        path->points[path->count - 1].repeats = entry->repeats;
        path->points[path->count - 1].layer_value = entry->layer_value;
    }
    free(full);
    return exit_code;
}

/* On a session, or where that is NULL on all workers. */
static int search_group(struct search *search, size_t index, struct drllm_session *session) {
    char name[GROUP_NAME_BYTES];
    struct group group;
    struct evaluator *evaluator = allocate(1, sizeof *evaluator);
    struct path *path = &search->paths[index];
    name_group(search, index, name, sizeof name);
    make_group(search, index, name, &group);
    evaluator_open(evaluator, search->command, &search->workers, &group, search->n_layers);
    evaluator->session = session;
    evaluator->no_reuse = search->options->no_reuse;
    struct point_keeper keeper = {search, name};
    int exit_code = begin_path(search, evaluator, name, path);
    if (exit_code == TOOL_OK && !search_state_is_done(&search->state, name)) {
        exit_code = search->parts.tree ? search_tree(evaluator, &search->parts, path, keep_point, &keeper)
                                       : search_greedy(evaluator, &search->parts, path, keep_point, &keeper);
    }
    if (exit_code == TOOL_OK && !search_state_finish(&search->state, name)) {
        exit_code = TOOL_FAILED;
    }
    add_cost(&search->cost, &evaluator->cost);
    evaluator_close(evaluator);
    free(evaluator);
    free(group.questions);
    return exit_code;
}

static void finish_group(struct search *search, size_t index) {
    char name[GROUP_NAME_BYTES];
    struct path *path = &search->paths[index];
    name_group(search, index, name, sizeof name);
    if (search->options->per != PER_EXAMPLE) {
        print_path(path, name, search->n_layers);
    }
    add_labels(search, index, name, path->points[path->chosen].counts);
    path_release(path);
}

/* All ranks call it; the first says what they did together. */
static void print_cost(const struct search *search) {
    const struct search_cost *cost = &search->cost;
    enum { RUN, RESUMED, EVALUATIONS, MEMO_HITS, RACED_OUT, N_COSTS };
    uint64_t sums[N_COSTS] = {[RUN] = cost->row_blocks,
                              [RESUMED] = cost->resumed,
                              [EVALUATIONS] = cost->evaluations,
                              [MEMO_HITS] = cost->memo_hits,
                              [RACED_OUT] = cost->raced_out};
    ranks_sum(sums, N_COSTS);
    if (search->ranks.rank != 0) {
        return;
    }
    const double seconds = (double)(drllm_clock_ns() - search->start_ns) / 1e9;
    fprintf(stderr,
            "%.0f s; %" PRIu64 " evaluations of a program on a question, %" PRIu64 " more were remembered, %" PRIu64
            " raced out; hidden states reused for %.1f %% of the blocks\n",
            seconds, sums[EVALUATIONS], sums[MEMO_HITS], sums[RACED_OUT],
            100.0 * (double)sums[RESUMED] / ((double)sums[RUN] + (double)sums[RESUMED] + 1.0));
}

static int search_one_by_one(struct search *search) {
    struct progress progress = {.what = "groups", .total = search->n_groups};
    for (size_t i = search->shard; i < search->n_groups; i += search->n_shards) {
        const int exit_code = search_group(search, i, NULL);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        if (search->options->mean_saved <= 0.0) {
            choose_alone(&search->parts, true, &search->paths[i]);
            finish_group(search, i);
        }
        progress_show(&progress, i + 1);
    }
    return TOOL_OK;
}

/* Groups of one question, each of which keeps a single core busy. */
struct example_run {
    struct search *search;
    struct progress progress;
    atomic_size_t n_done;
    atomic_int exit_code; /* of the first that failed */
};

static int search_example(void *user, size_t worker, struct drllm_session *session, size_t task) {
    struct example_run *run = user;
    struct search *search = run->search;
    const size_t index = search->shard + task * search->n_shards;
    const int exit_code = search_group(search, index, session);
    (void)worker;
    if (exit_code != TOOL_OK) {
        int expected = TOOL_OK;
        atomic_compare_exchange_strong(&run->exit_code, &expected, exit_code);
        return exit_code == TOOL_INTERRUPTED ? DRLLM_ERR_CANCELLED : DRLLM_ERR_STATE;
    }
    choose_alone(&search->parts, false, &search->paths[index]);
    finish_group(search, index);
    progress_show(&run->progress, atomic_fetch_add(&run->n_done, 1) + 1);
    return DRLLM_OK;
}

static int search_examples(struct search *search) {
    const size_t left = search->n_groups > search->shard ? search->n_groups - search->shard : 0;
    const size_t n = (left + search->n_shards - 1) / search->n_shards;
    struct example_run run = {.search = search, .progress = {.what = "examples", .total = n}};
    const int status = workers_run(&search->workers, search_example, &run, n);
    const int exit_code = atomic_load(&run.exit_code);
    return exit_code != TOOL_OK ? exit_code : status == DRLLM_ERR_CANCELLED ? TOOL_INTERRUPTED : TOOL_OK;
}

static int search_groups(struct search *search) {
    search->start_ns = drllm_clock_ns();
    search->paths = allocate(search->n_groups, sizeof *search->paths);
    for (size_t i = 0; i < search->n_groups; i++) {
        search->paths[i] = (struct path){.points = NULL};
    }
    search->labels = allocate(search->questions.count, sizeof *search->labels);
    for (size_t i = 0; i < search->questions.count; i++) {
        search->labels[i] = NULL;
    }
    int exit_code = search->options->per == PER_EXAMPLE ? search_examples(search) : search_one_by_one(search);
    if (exit_code == TOOL_OK && search->options->mean_saved > 0.0) {
        if (!choose_together(search->paths, search->n_groups, search->options->mean_saved)) {
            report(search->command, "the programs found save fewer than %g layers in the mean; the shortest are taken",
                   search->options->mean_saved);
        }
        for (size_t i = 0; i < search->n_groups; i++) {
            finish_group(search, i);
        }
    }
    if (exit_code == TOOL_OK) {
        exit_code = write_labels(search);
    }
    return exit_code == TOOL_OK ? flush_output(search->command) : exit_code;
}

/* ---- */

static uint64_t mix_question(uint64_t hash, const struct question *question) {
    char answer[24];
    snprintf(answer, sizeof answer, "%zu", question->answer);
    hash = mix(mix(mix(hash, question->task), question->prompt), answer);
    for (size_t i = 0; i < question->n_choices; i++) {
        hash = mix(hash, question->choices[i]);
    }
    return question->answer_text != NULL ? mix(hash, question->answer_text) : hash;
}

/* What must be the same for a search to go on. */
static uint64_t fingerprint(const struct search *search) {
    const struct options *options = search->options;
    char text[320];
    snprintf(text, sizeof text,
             "%d %d %d %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %a %a %d %d %" PRIx64,
             options->per, options->reward, options->method, options->n_search, options->n_verify, options->clusters,
             options->max_steps, options->simulations, options->seed, options->layer_value, search->parts.min_saved,
             options->no_repeats, options->no_racing, drllm_model_fingerprint(search->model));
    uint64_t hash = mix(mix(DRLLM_HASH_START, text), options->from != NULL ? options->from : "");
    for (size_t i = 0; i < search->questions.count; i++) {
        hash = mix_question(hash, &search->questions.items[i]);
    }
    return hash;
}

static int read_data(struct search *search) {
    for (size_t i = 0; i < search->options->data.count; i++) {
        const int exit_code =
            questions_read(search->command, search->options->data.items[i], false, &search->questions);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
    }
    const int exit_code =
        questions_tokenize(search->command, search->model, (size_t)search->options->model.context, &search->questions);
    if (exit_code == TOOL_OK && search->questions.count == 0) {
        report(search->command, "there are no questions to search with");
        return TOOL_FAILED;
    }
    return exit_code;
}

static int read_from(struct search *search) {
    struct drllm_error error = {0};
    if (search->options->from == NULL) {
        return TOOL_OK;
    }
    search->from = allocate(search->n_layers, 1);
    return drllm_program_parse(search->options->from, search->n_layers, search->from, &error) == DRLLM_OK
               ? TOOL_OK
               : usage_error(search->command, "--from: %s", error.detail);
}

static int run(struct search *search) {
    const struct options *options = search->options;
    struct drllm_model_info info;
    interrupt_install();
    search->output = search_rank_output(&search->ranks, search->ranks.rank, options->output);
    int exit_code = open_model(search->command, &options->model, &search->model);
    if (exit_code == TOOL_OK) {
        drllm_model_get_info(search->model, &info);
        search->n_layers = info.n_layers;
        exit_code = read_from(search);
    }
    if (exit_code == TOOL_OK) {
        exit_code = read_data(search);
    }
    if (exit_code == TOOL_OK) {
        exit_code = workers_open(search->command, search->model, (size_t)options->model.threads,
                                 (size_t)options->model.context, options->model.kv, &search->workers);
    }
    if (exit_code == TOOL_OK) {
        exit_code = make_groups(search);
    }
    if (exit_code == TOOL_OK) {
        exit_code = search_state_open(search->command, search->output, fingerprint(search), options->restart,
                                      search->n_layers, &search->state);
    }
    if (exit_code == TOOL_OK) {
        exit_code = search_groups(search);
    }
    if (exit_code == TOOL_INTERRUPTED && search->state.path != NULL) {
        report(search->command, "interrupted; the same command goes on from what is in %s", search->state.path);
    }
    exit_code = search_join_ranks(search->command, &search->ranks, options->output, exit_code);
    if (exit_code == TOOL_OK) {
        print_cost(search);
    }
    search_state_close(&search->state, exit_code == TOOL_OK);
    for (size_t i = 0; search->paths != NULL && i < search->n_groups; i++) {
        path_release(&search->paths[i]);
    }
    free(search->paths);
    free(search->group_of);
    free(search->names);
    free(search->from);
    release_labels(search);
    free(search->output);
    workers_release(&search->workers);
    const bool has_bad = search->questions.n_bad != 0;
    questions_release(&search->questions);
    drllm_model_close(search->model);
    return exit_code == TOOL_OK && has_bad ? TOOL_FAILED : exit_code;
}

static int read_shard(struct search *search) {
    const char *text = search->options->shard;
    search->shard = search->ranks.rank;
    search->n_shards = search->ranks.count;
    if (text == NULL) {
        return TOOL_OK;
    }
    if (search->ranks.count > 1) {
        return usage_error(search->command, "--shard goes without mpirun, whose ranks are shards already");
    }
    char *slash = NULL;
    const unsigned long shard = strtoul(text, &slash, 10);
    int64_t count = 0;
    if (slash == text || *slash != '/' || !parse_integer(slash + 1, &count) || count < 1 || count > 1000000 ||
        shard < 1 || shard > (unsigned long)count) {
        return usage_error(search->command, "--shard: '%s' is not of the form 2/8", text);
    }
    search->shard = shard - 1;
    search->n_shards = (size_t)count;
    return TOOL_OK;
}

/* How many layers a group's path shall save. */
static double least_saved(const struct options *options) {
    if (options->min_saved > 0.0) {
        return options->min_saved;
    }
    return options->mean_saved > 0.0 ? options->mean_saved + more_saved : -INFINITY;
}

static int check(struct search *search) {
    const struct options *options = search->options;
    if (options->merged.count != 0) {
        return options->data.count != 0 || options->output == NULL
                   ? usage_error(search->command, "--merge goes with -o FILE and without -d")
                   : TOOL_OK;
    }
    if (options->model.path == NULL || options->data.count == 0 || options->output == NULL) {
        return usage_error(search->command, "-m FILE, -d FILE and -o FILE must be given");
    }
    if (strcmp(options->output, "-") == 0) {
        return usage_error(search->command, "labels cannot go to standard output, where the programs are shown");
    }
    if (options->mean_saved > 0.0 &&
        (options->per == PER_EXAMPLE || options->shard != NULL || search->ranks.count > 1)) {
        return usage_error(search->command, "--mean-saved is for whole searches --per task or cluster");
    }
    search->parts = (struct search_options){.reward = (enum reward)options->reward,
                                            .tree = options->method == 1,
                                            .layer_value = options->layer_value,
                                            .min_saved = least_saved(options),
                                            .max_steps = (size_t)options->max_steps,
                                            .n_simulations = (size_t)options->simulations,
                                            .no_racing = options->no_racing,
                                            .no_repeats = options->no_repeats};
    return read_shard(search);
}

int search_main(const struct command *command, int argc, char **argv) {
    struct options options = {.model = model_options_default(),
                              .n_search = 450,
                              .n_verify = 450,
                              .clusters = 8,
                              .max_steps = 24,
                              .simulations = 50,
                              .layer_value = 0.005};
    options.model.context = 1024;
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXTS('d', "data", &options.data, "FILE", "questions, JSON lines; may be repeated"),
        OPT_TEXT('o', "output", &options.output, "FILE", "the labels, JSON lines"),
        OPT_WORD(0, "per", &options.per, per_names, "what shares a program"),
        OPT_WORD(0, "reward", &options.reward, reward_names,
                 "log-probability of the right choice, its probability, or right and wrong"),
        OPT_WORD(0, "method", &options.method, method_names, "how programs are searched"),
        OPT_INTEGER(0, "questions", &options.n_search, "N", 1, 1 << 24, "most questions of a group to search on"),
        OPT_INTEGER(0, "verify", &options.n_verify, "N", 0, 1 << 24, "most others that verify what was found"),
        OPT_INTEGER(0, "clusters", &options.clusters, "K", 1, 4096, "groups for --per cluster"),
        OPT_INTEGER(0, "max-steps", &options.max_steps, "N", 0, 1 << 20, "most steps of the greedy search"),
        OPT_INTEGER(0, "simulations", &options.simulations, "N", 1, 1 << 20, "of the tree search"),
        OPT_REAL(0, "layer-value", &options.layer_value, "X", -1, 1, "what one layer saved is worth, in reward"),
        OPT_REAL(0, "min-saved", &options.min_saved, "K", 0, 1e6,
                 "search on and choose until so many layers are saved"),
        OPT_REAL(0, "mean-saved", &options.mean_saved, "K", 0, 1e6,
                 "choose for all groups together: the most right answers where K layers are saved in the mean"),
        OPT_TEXT(0, "from", &options.from, "PROGRAM", "begin the search here instead of at full depth"),
        OPT_TEXT(0, "shard", &options.shard, "I/N", "only every Nth group, from the Ith on"),
        OPT_TEXTS(0, "merge", &options.merged, "FILE", "search nothing: put the labels of shards together; repeated"),
        OPT_INTEGER('s', "seed", &options.seed, "N", 0, 9007199254740992.0, "of orders and choices"),
        OPT_FLAG(0, "no-repeats", &options.no_repeats, "never repeat a block"),
        OPT_FLAG(0, "no-racing", &options.no_racing, "run every candidate on every question"),
        OPT_FLAG(0, "no-reuse", &options.no_reuse, "run every program from its first block"),
        OPT_FLAG(0, "restart", &options.restart, "forget what an interrupted search found"),
        CONTEXT_OPTION(&options.model),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct search *search = allocate(1, sizeof *search);
        *search = (struct search){.command = command, .options = &options, .ranks = ranks_open()};
        if (options.model.threads == 0) {
            options.model.threads = search_rank_threads(&search->ranks);
        }
        exit_code = check(search);
        if (exit_code == TOOL_OK && options.merged.count == 0) {
            exit_code = run(search);
        } else if (exit_code == TOOL_OK && search->ranks.rank == 0) {
            exit_code = search_merge(command, &options.merged, options.output);
        }
        ranks_close();
        free(search);
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
