/* drllm search: find layer programs for groups of questions, with the quantised model that will run them.
 *
 * Labels are lines of JSON: the question's task and prompt, and the program of its group. Beside them stands a file of
 * what was found so far, from which an interrupted search goes on. */
#include "tools/search.h"

#include "platform/clock.h"
#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tools/commands.h"
#include "tools/depth.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/jsonl.h"
#include "tools/search_clusters.h"
#include "tools/search_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum per { PER_TASK, PER_CLUSTER, PER_EXAMPLE };
static const char *const per_names[] = {"task", "cluster", "example", NULL};
static const char *const reward_names[] = {"soft", "exact", NULL};
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
    struct search_state state;
    struct text labels;
    uint64_t start_ns;
    struct search_cost cost; /* of all groups */
};

/* ---- Groups ---- */

static uint64_t mix(uint64_t hash, const char *text) {
    for (; *text != '\0'; text++) {
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u; /* FNV-1a */
    }
    return hash;
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

/* The questions of a group in a random order that depends on the seed and the group alone. */
static void make_group(const struct search *search, size_t index, char *name, size_t name_size, struct group *group) {
    const struct options *options = search->options;
    if (search->names != NULL) {
        snprintf(name, name_size, "%s", search->names[index]);
    } else {
        snprintf(name, name_size, "%s %zu", per_names[options->per], index);
    }
    *group = (struct group){.name = name, .seed = mix((uint64_t)options->seed ^ 0xcbf29ce484222325u, name)};
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

/* ---- Choosing ---- */

static double verified(const struct search *search, const struct found *point) {
    const double reward = search->options->per == PER_EXAMPLE       ? point->search_reward
                          : search->options->reward == REWARD_EXACT ? point->right
                                                                    : point->soft;
    return reward + search->options->layer_value * point->saved;
}

/* The best point on the questions that were not searched on; full depth if none holds there. */
static void choose(const struct search *search, struct path *path) {
    path->chosen = 0;
    double best = -INFINITY;
    for (size_t i = 0; i < path->count; i++) {
        const double now = verified(search, &path->points[i]);
        const bool enough = path->points[i].saved >= search->options->min_saved || i + 1 == path->count;
        if (enough && now > best) {
            best = now;
            path->chosen = i;
        }
    }
}

/* Half the width of the 95 % interval of the gain in accuracy over full depth, on the verifying questions. */
static double gain_interval(struct evaluator *evaluator, const struct path *path) {
    const struct group *group = evaluator->group;
    const size_t n = group->n_questions - group->n_search;
    const struct memo *full = evaluator_memo(evaluator, path->points[0].counts);
    const struct memo *chosen = evaluator_memo(evaluator, path->points[path->chosen].counts);
    double sum = 0.0;
    double squares = 0.0;
    for (size_t i = group->n_search; i < group->n_questions; i++) {
        const double gain = (double)chosen->outcomes[i].right - (double)full->outcomes[i].right;
        sum += gain;
        squares += gain * gain;
    }
    const double mean = n > 0 ? sum / (double)n : 0.0;
    return n > 1 ? 1.96 * sqrt((squares / (double)n - mean * mean) / (double)(n - 1)) : 0.0;
}

static void print_path(struct evaluator *evaluator, const struct path *path) {
    const struct group *group = evaluator->group;
    printf("%s: %zu questions searched on, %zu verify\n", group->name, group->n_search,
           group->n_questions - group->n_search);
    for (size_t i = 0; i < path->count; i++) {
        const struct found *point = &path->points[i];
        char *program = program_text(point->counts, evaluator->n_layers);
        printf("%c %3d saved  reward %8.4f  verified: soft %8.4f  right %6.2f %%  %s\n", i == path->chosen ? '*' : ' ',
               point->saved, point->search_reward, point->soft, 100.0 * point->right, program);
        free(program);
    }
    printf("  gain over full depth where it was verified: %+.2f +- %.2f points\n",
           100.0 * (path->points[path->chosen].right - path->points[0].right), 100.0 * gain_interval(evaluator, path));
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
        char *line = cJSON_PrintUnformatted(json);
        text_append(&search->labels, line, strlen(line));
        text_append(&search->labels, "\n", 1);
        cJSON_free(line);
        cJSON_Delete(json);
    }
    free(program);
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
    }
    free(full);
    return exit_code;
}

static int search_group(struct search *search, size_t index) {
    char name[128];
    struct group group;
    struct evaluator *evaluator = allocate(1, sizeof *evaluator);
    struct path path = {NULL, 0, 0};
    make_group(search, index, name, sizeof name, &group);
    evaluator_open(evaluator, search->command, &search->workers, &group, search->n_layers);
    evaluator->no_reuse = search->options->no_reuse;
    struct point_keeper keeper = {search, name};
    int exit_code = begin_path(search, evaluator, name, &path);
    if (exit_code == TOOL_OK && !search_state_is_done(&search->state, name)) {
        exit_code = search->parts.tree ? search_tree(evaluator, &search->parts, &path, keep_point, &keeper)
                                       : search_greedy(evaluator, &search->parts, &path, keep_point, &keeper);
    }
    if (exit_code == TOOL_OK && !search_state_finish(&search->state, name)) {
        exit_code = TOOL_FAILED;
    }
    if (exit_code == TOOL_OK) {
        choose(search, &path);
        if (search->options->per != PER_EXAMPLE) {
            print_path(evaluator, &path);
        }
        add_labels(search, index, name, path.points[path.chosen].counts);
    }
    add_cost(&search->cost, &evaluator->cost);
    path_release(&path);
    evaluator_close(evaluator);
    free(evaluator);
    free(group.questions);
    return exit_code;
}

static void print_cost(const struct search *search) {
    const struct search_cost *cost = &search->cost;
    const double run = (double)cost->row_blocks;
    const double seconds = (double)(drllm_clock_ns() - search->start_ns) / 1e9;
    fprintf(stderr,
            "%.0f s; %" PRIu64 " evaluations of a program on a question, %" PRIu64 " more were remembered, %" PRIu64
            " raced out; hidden states reused for %.1f %% of the blocks\n",
            seconds, (uint64_t)cost->evaluations, (uint64_t)cost->memo_hits, (uint64_t)cost->raced_out,
            100.0 * (double)cost->resumed / (run + (double)cost->resumed + 1.0));
}

static int search_groups(struct search *search) {
    search->start_ns = drllm_clock_ns();
    struct progress progress = {.what = "groups", .total = search->n_groups};
    for (size_t i = 0; i < search->n_groups; i++) {
        if (i % search->n_shards != search->shard) {
            continue;
        }
        const int exit_code = search_group(search, i);
        if (exit_code != TOOL_OK) {
            return exit_code;
        }
        progress_show(&progress, i + 1);
    }
    print_cost(search);
    const int exit_code =
        write_file(search->command, search->options->output, search->labels.data, search->labels.size);
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
             "%d %d %d %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %a %d %d %" PRIx64,
             options->per, options->reward, options->method, options->n_search, options->n_verify, options->clusters,
             options->max_steps, options->simulations, options->seed, options->layer_value, options->no_repeats,
             options->no_racing, drllm_model_fingerprint(search->model));
    uint64_t hash = mix(mix(0xcbf29ce484222325u, text), options->from != NULL ? options->from : "");
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
                                 (size_t)options->model.context, &search->workers);
    }
    if (exit_code == TOOL_OK) {
        exit_code = make_groups(search);
    }
    if (exit_code == TOOL_OK) {
        exit_code = search_state_open(search->command, options->output, fingerprint(search), options->restart,
                                      search->n_layers, &search->state);
    }
    if (exit_code == TOOL_OK) {
        exit_code = search_groups(search);
    }
    if (exit_code == TOOL_INTERRUPTED && search->state.path != NULL) {
        report(search->command, "interrupted; the same command goes on from what is in %s", search->state.path);
    }
    search_state_close(&search->state, exit_code == TOOL_OK);
    free(search->group_of);
    free(search->names);
    free(search->from);
    text_release(&search->labels);
    workers_release(&search->workers);
    const bool has_bad = search->questions.n_bad != 0;
    questions_release(&search->questions);
    drllm_model_close(search->model);
    return exit_code == TOOL_OK && has_bad ? TOOL_FAILED : exit_code;
}

static int read_shard(struct search *search) {
    const char *text = search->options->shard;
    search->n_shards = 1;
    if (text == NULL) {
        return TOOL_OK;
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
    search->parts = (struct search_options){.reward = (enum reward)options->reward,
                                            .tree = options->method == 1,
                                            .layer_value = options->layer_value,
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
        OPT_WORD(0, "reward", &options.reward, reward_names, "log-probability of the right choice, or right and wrong"),
        OPT_WORD(0, "method", &options.method, method_names, "how programs are searched"),
        OPT_INTEGER(0, "questions", &options.n_search, "N", 1, 1 << 24, "most questions of a group to search on"),
        OPT_INTEGER(0, "verify", &options.n_verify, "N", 0, 1 << 24, "most others that verify what was found"),
        OPT_INTEGER(0, "clusters", &options.clusters, "K", 1, 4096, "groups for --per cluster"),
        OPT_INTEGER(0, "max-steps", &options.max_steps, "N", 0, 1 << 20, "most steps of the greedy search"),
        OPT_INTEGER(0, "simulations", &options.simulations, "N", 1, 1 << 20, "of the tree search"),
        OPT_REAL(0, "layer-value", &options.layer_value, "X", -1, 1, "what one layer saved is worth, in reward"),
        OPT_REAL(0, "min-saved", &options.min_saved, "K", 0, 1e6, "choose no program that saves fewer layers"),
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
        *search = (struct search){.command = command, .options = &options};
        exit_code = check(search);
        if (exit_code == TOOL_OK) {
            exit_code =
                options.merged.count != 0 ? search_merge(command, &options.merged, options.output) : run(search);
        }
        free(search);
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
