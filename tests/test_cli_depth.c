/* The program as a shell sees it where it is told how deep a model runs: programs, routers and the commands made for
 * them. */
#include "runtime/drllm_os.h"
#include "runtime/internal.h"
#include "tests/cli.h"
#include "tests/router_builder.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_LAYERS = 6, MOST_FIELDS = 32, MOST_ROWS = 8 };

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Models: one with random weights, where each program gives other numbers, one of the same shape whose weights are
 * others, and one that speaks the alphabet, whose blocks do nothing. */
static char deep[CLI_PATH_BYTES], other[CLI_PATH_BYTES], spoken[CLI_PATH_BYTES];

/* Routers of `deep` that decide alike for all prompts: `forced` this program, `ones` full depth. `unnamed` decides at
 * random and does not say which model it is for. */
static const uint8_t forced_counts[N_LAYERS] = {1, 0, 2, 1, 0, 1};
static const char forced_program[] = "0,2x2,3,5";
static char forced[CLI_PATH_BYTES], ones[CLI_PATH_BYTES], unnamed[CLI_PATH_BYTES];

/* Routers of `spoken`: where a prompt is mostly q, blocks 1 to 4 are skipped; where it is mostly r, they are repeated;
 * otherwise all run. */
static char letters[CLI_PATH_BYTES];

static const char training[] = "{\"epochs\": 3, \"loss\": \"focal\"}";

/* ---- Router files ---- */

enum { DIGITS = 17 };

static const char *fingerprint_of(const char *path, char digits[DIGITS]) {
    struct drllm_model *model = NULL;
    if (drllm_model_open_path(path, NULL, &model, NULL) != DRLLM_OK) {
        abort();
    }
    (void)snprintf(digits, DIGITS, "%016" PRIx64, drllm_model_fingerprint(model));
    (void)drllm_model_close(model);
    return digits;
}

static void write_routers(const char *path, const struct router_options *options) {
    size_t size = 0;
    uint8_t *file = router_builder_file(options, &size);
    cli_write(path, file, size);
    free(file);
}

static struct router_options deep_routers(void) {
    struct tiny_options model = tiny_default_options();
    model.n_layers = N_LAYERS;
    return router_default_options(&model);
}

static void write_deep_routers(void) {
    static const uint8_t all_ones[N_LAYERS] = {1, 1, 1, 1, 1, 1};
    static const float bias[] = {-1.0f, 0.0f, 20.0f}, saved[] = {0.0f, 2.0f, 4.0f};
    char digits[DIGITS];
    struct router_options options = deep_routers();
    options.fingerprint = fingerprint_of(deep, digits);
    options.model_name = "deep";
    options.model_quantization = "f32";
    options.certainty = 5.1f;
    options.program = forced_counts;
    write_routers(cli_path("forced.gguf", forced), &options);
    options.program = all_ones;
    options.bias = bias;
    options.saved = saved;
    options.n_bias = options.n_saved = COUNT(bias);
    write_routers(cli_path("ones.gguf", ones), &options);
    options.program = NULL;
    options.fingerprint = options.model_name = options.model_quantization = NULL;
    options.name = "for\033tests";
    options.training = training;
    write_routers(cli_path("unnamed.gguf", unnamed), &options);
}

static float *router_values(const struct router_builder *builder, size_t layer, const char *what) {
    char name[48];
    (void)snprintf(name, sizeof name, "blk.%zu.router.%s", layer, what);
    return router_builder_find(builder, name)->data;
}

static void write_letter_routers(void) {
    static const uint8_t all_ones[N_LAYERS] = {1, 1, 1, 1, 1, 1};
    static const char watched[] = {'q', 'r'}; /* for skip and for repeat */
    struct router_options options = {
        .n_layers = N_LAYERS, .d_model = 288, .n_hidden = 6, .n_windows = 8, .program = all_ones, .certainty = 5.0f};
    struct router_builder builder;
    router_builder_make(&builder, &options);
    for (size_t layer = 1; layer + 1 < N_LAYERS; layer++) {
        for (size_t i = 0; i < COUNT(watched); i++) {
            /* 10 x the letter's share of the window comes out of the first product, and thrice that of the second. */
            router_values(&builder, layer, "fc1.weight")[i * options.d_model + TINY_FIRST_BYTE + (size_t)watched[i]] =
                10.0f;
            router_values(&builder, layer, "fc2.weight")[2 * i * options.n_hidden + i] = 3.0f;
        }
    }
    size_t size = 0;
    uint8_t *file = router_builder_write(&builder, NULL, 0, &size);
    cli_write(cli_path("letters.gguf", letters), file, size);
    free(file);
    router_builder_free(&builder);
}

/* ---- What came ---- */

static void expect_same_file(const char *a, const char *b) {
    size_t size_a = 0, size_b = 0;
    char *data_a = cli_read(a, &size_a), *data_b = cli_read(b, &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(data_a, data_b, size_a);
    free(data_a);
    free(data_b);
}

/* That stderr has this many lines that begin so; returns the last one's rest, the stderr's. */
static const char *expect_lines(const char *text, const char *begin, size_t count) {
    const char *found = NULL;
    size_t n = 0;
    for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, begin, strlen(begin)) == 0) {
            found = line + strlen(begin);
            n++;
        }
    }
    if (n != count) {
        fail_msg("%zu instead of %zu lines begin with '%s': %.600s", n, count, begin, text);
    }
    return found;
}

static void expect_number(const cJSON *json, const char *key, double value) {
    const double number = cli_number(json, key);
    if (!(fabs(number - value) < 1e-9)) {
        fail_msg("%s is %.9g instead of %.9g", key, number, value);
    }
}

/* The routing object of a command's JSON says this program, and counts that mean the same. */
static const cJSON *expect_routing(const cJSON *json, const char *program, int saved) {
    const cJSON *routing = cJSON_GetObjectItemCaseSensitive(json, "routing");
    uint8_t counts[N_LAYERS];
    assert_true(cJSON_IsObject(routing));
    assert_string_equal(cli_string(routing, "program"), program);
    expect_number(routing, "layers_saved", saved);
    if (cJSON_HasObjectItem(routing, "counts")) {
        const cJSON *list = cli_list(routing, "counts", N_LAYERS);
        assert_int_equal(drllm_program_parse(program, N_LAYERS, counts, NULL), DRLLM_OK);
        for (int i = 0; i < N_LAYERS; i++) {
            assert_int_equal(cJSON_GetArrayItem(list, i)->valueint, counts[i]);
        }
    }
    return routing;
}

/* A text of nothing but one letter. */
static void fill(char *text, size_t size, char letter) {
    memset(text, letter, size - 1);
    text[size - 1] = '\0';
}

/* ---- Use ---- */

/* Commands that take a depth, with what they need besides. */
static const struct {
    const char *name, *arguments[6];
} takers[] = {
    {"run", {"-p", "y"}},        {"chat", {NULL}},  {"score", {"-p", "y", "--choice", "z"}},
    {"perplexity", {"-f", "y"}}, {"bench", {NULL}}, {"logits", {"-p", "y"}},
    {"route", {"-f", "y"}},
};

/* A taker's command line with these arguments behind. */
static struct cli_outcome run_taker(size_t taker, const char *model, const char *const *more) {
    const char *arguments[CLI_MOST_ARGUMENTS] = {takers[taker].name, "-m", model};
    size_t n = 3;
    for (const char *const *p = takers[taker].arguments; *p != NULL; p++) {
        arguments[n++] = *p;
    }
    for (; *more != NULL; more++) {
        arguments[n++] = *more;
    }
    return cli_run(NULL, arguments);
}

static void test_depth_help(void **state) {
    (void)state;
    cli_require_program();
    static const char *const options[] = {"--routers FILE", "--program LIST", "--depth HOW", "--router-p P",
                                          "--save-layers K"};
    for (size_t i = 0; i < COUNT(takers); i++) {
        struct cli_outcome help = RUN(takers[i].name, "--help");
        for (size_t k = 0; k < COUNT(options); k++) {
            cli_expect_text(help.out, options[k]);
        }
        /* bench has -r for its repetitions. */
        assert_int_equal(strstr(help.out, "-r, --routers") != NULL, strcmp(takers[i].name, "bench") != 0);
        assert_int_equal(strstr(help.out, "--reroute") != NULL, strcmp(takers[i].name, "chat") == 0);
        cli_expect_success(help);
    }
}

static void test_depth_conflicts(void **state) {
    (void)state;
    cli_require_program();
    static const struct {
        const char *arguments[6], *message;
    } cases[] = {
        {{"--program", "0", "--depth", "full"}, "--program and --depth exclude each other"},
        {{"--program", "0", "--routers", "r"}, "--program and --routers exclude each other"},
        {{"--depth", "routed"}, "--depth routed needs routers: --routers FILE is missing"},
        {{"--router-p", "0"}, "--router-p is for routers, and none decide here"},
        {{"--program=0", "--save-layers=1"}, "--save-layers is for routers, and none decide here"},
        {{"--routers=r", "--router-p=0", "--save-layers=1"}, "--router-p and --save-layers exclude each other"},
        {{"--routers=r", "--depth=full", "--router-p=0"}, "--router-p is for routers"},
        {{"--depth", "deep"}, "--depth: 'deep' is none of routed, full, static:PROGRAM"},
        {{"--routers=r", "--router-p=1.01"}, "--router-p"},
        {{"--routers=r", "--router-p=-1.01"}, "--router-p"},
        {{"--routers=r", "--router-p=nan"}, "--router-p"},
        {{"--routers=r", "--save-layers=-1"}, "--save-layers"},
        {{"--routers"}, "--routers needs a value"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct cli_outcome outcome = run_taker(i % COUNT(takers), "x", cases[i].arguments);
        cli_expect_text(outcome.err, takers[i % COUNT(takers)].name);
        cli_expect_failure(outcome, 2, cases[i].message);
    }
    /* Every command looks for conflicts before it opens anything. */
    for (size_t i = 1; i < COUNT(takers); i++) {
        cli_expect_failure(run_taker(i, "/no/model", cases[0].arguments), 2, cases[0].message);
    }
    cli_expect_failure(RUN("chat", "-m", "x", "--reroute", "often"), 2, "'often' is none of turn|never");
    cli_expect_failure(RUN("run", "-m", "x", "-p", "y", "--reroute", "turn"), 2, "unknown option --reroute");
    cli_expect_failure(RUN("bench", "-m", "x", "-r", "routers.gguf"), 2, "--repetitions");
}

static void test_bad_programs(void **state) {
    (void)state;
    cli_require_program();
    static const struct {
        const char *program, *message;
    } cases[] = {
        {"6", "the program runs block 6, but the model has blocks 0 to 5"},
        {"0,0", "rising order"},
        {"3-1", "rising order"},
        {"0x3", "from \"0x3\" on"},
        {"0-5,", "from \"0-5,\" on"},
        {" 0", "from \" 0\" on"},
        {"1,none", "from \"none\" on"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct cli_outcome outcome = run_taker(5, deep, ARGUMENTS("--program", cases[i].program));
        cli_expect_text(outcome.err, "drllm logits: --program: ");
        cli_expect_failure(outcome, 2, cases[i].message);
    }
    for (size_t i = 0; i < COUNT(takers); i++) {
        cli_expect_failure(run_taker(i, deep, ARGUMENTS("--depth", "static:0-6")), 2,
                           "--depth: the program runs block 6");
    }
}

/* ---- Router files that do not fit ---- */

static void write_damaged_routers(const char *path) {
    struct router_options options = deep_routers();
    struct router_builder builder;
    router_builder_make(&builder, &options);
    router_values(&builder, 4, "fc2.weight")[3] = NAN;
    size_t size = 0;
    uint8_t *file = router_builder_write(&builder, NULL, 0, &size);
    cli_write(path, file, size);
    free(file);
    router_builder_free(&builder);
}

static void test_bad_routers(void **state) {
    (void)state;
    cli_require_program();
    char cut[CLI_PATH_BYTES], nan[CLI_PATH_BYTES], small[CLI_PATH_BYTES], foreign[CLI_PATH_BYTES];
    size_t size = 0;
    char *file = cli_read(forced, &size);
    cli_write(cli_path("cut.gguf", cut), file, size / 2);
    free(file);
    write_damaged_routers(cli_path("nan.gguf", nan));
    struct router_options options = deep_routers();
    options.model_name = "a small one";
    options.n_layers--;
    write_routers(cli_path("small.gguf", small), &options);
    options.n_layers++;
    options.model_name = "a foreign one";
    options.fingerprint = "0123456789abcdef";
    write_routers(cli_path("foreign.gguf", foreign), &options);
    const struct {
        const char *path, *message;
    } cases[] = {
        {"/no/routers", "No such file or directory"},
        {deep, "this is no router file: its architecture is \"llama\""},
        {cut, "the file ends "},
        {nan, "tensor blk.4.router.fc2.weight of the router file holds NaN"},
        {small, "the routers are for another model (a small one): 5 blocks of width 64; this model has 6"},
        {foreign, "the routers are for another model (a foreign one): its vocabulary or its norm weights differ"},
        {letters, "the routers are for another model"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct cli_outcome outcome = run_taker(i, deep, ARGUMENTS("--routers", cases[i].path));
        cli_expect_text(outcome.err, takers[i].name);
        cli_expect_failure(outcome, 1, "cannot open routers: ");
        cli_expect_failure(run_taker(5, deep, ARGUMENTS("-r", cases[i].path)), 1, cases[i].message);
    }
    /* Routers are opened also where they are left out. */
    cli_expect_failure(run_taker(5, deep, ARGUMENTS("-r", forced, "--save-layers", "2")), 1,
                       "the router file has no calibration table");
    cli_expect_failure(run_taker(5, deep, ARGUMENTS("-r", ones, "--save-layers", "4.5")), 1,
                       "the routers' calibration table ends at 4");
}

/* ---- Logits ---- */

static const char ids_text[] = "1,100,101,7,250,90,91,92,93,3";
static const int32_t ids[] = {1, 100, 101, 7, 250, 90, 91, 92, 93, 3};

/* By the library, under a program as text; to be freed. */
static float *library_logits(const char *path, const char *program) {
    struct drllm_model *model = NULL;
    struct drllm_session *session = NULL;
    struct drllm_session_params params = drllm_session_default_params();
    struct drllm_depth depth = drllm_depth_default();
    uint8_t counts[N_LAYERS];
    params.n_threads = 1;
    depth.kind = DRLLM_DEPTH_STATIC;
    depth.program = counts;
    assert_int_equal(drllm_program_parse(program, N_LAYERS, counts, NULL), DRLLM_OK);
    assert_int_equal(drllm_model_open_path(path, NULL, &model, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_open(model, &params, &session, NULL), DRLLM_OK);
    assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    assert_int_equal(drllm_session_prefill(session, ids, COUNT(ids)), DRLLM_OK);
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    float *logits = malloc(info.n_vocab * sizeof *logits);
    assert_non_null(logits);
    memcpy(logits, drllm_session_logits(session), info.n_vocab * sizeof *logits);
    drllm_session_close(session);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    return logits;
}

static void expect_logits(struct cli_outcome outcome, const float *logits) {
    const size_t n_vocab = tiny_default_options().n_vocab;
    cli_expect_code(&outcome, 0);
    assert_int_equal(outcome.out_size, n_vocab * sizeof *logits);
    assert_memory_equal(outcome.out, logits, n_vocab * sizeof *logits);
    cli_outcome_free(&outcome);
}

#define LOGITS(...) RUN("logits", "-m", deep, "--ids", ids_text, "-o", "-", __VA_ARGS__)

static void test_logits_programs(void **state) {
    (void)state;
    cli_require_program();
    static const char *const programs[] = {"0-5", "none", forced_program, "0-5x2", "3", "0-4"};
    float *logits[COUNT(programs)];
    char option[64];
    for (size_t i = 0; i < COUNT(programs); i++) {
        logits[i] = library_logits(deep, programs[i]);
        for (size_t k = 0; k < i; k++) {
            assert_true(drllm_first_difference(logits[i], logits[k], tiny_default_options().n_vocab) <
                        tiny_default_options().n_vocab);
        }
        expect_logits(LOGITS("--program", programs[i]), logits[i]);
    }
    (void)snprintf(option, sizeof option, "--depth=static:%s", forced_program);
    expect_logits(LOGITS(option), logits[2]);
    expect_logits(LOGITS("-r", forced, option), logits[2]);
    expect_logits(LOGITS("-r", ones, option), logits[2]);
    expect_logits(LOGITS("--program", ""), logits[1]);
    expect_logits(LOGITS("--depth", "full"), logits[0]);
    expect_logits(LOGITS("-r", forced, "--depth", "full"), logits[0]);
    /* Routers that decide a program give just its logits. */
    expect_logits(LOGITS("-r", forced), logits[2]);
    expect_logits(LOGITS("-r", forced, "--depth", "routed"), logits[2]);
    expect_logits(LOGITS("-r", ones), logits[0]);
    expect_logits(LOGITS("-r", ones, "--router-p", "1"), logits[3]);
    for (size_t i = 0; i < COUNT(programs); i++) {
        free(logits[i]);
    }
}

/* Of a block that is skipped the output is its input. */
static void test_logits_layers(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES];
    cli_path("layers.f32", path);
    cli_expect_success(RUN("logits", "-m", deep, "--ids", ids_text, "--layers", path, "--program", forced_program));
    size_t size = 0;
    char *data = cli_read(path, &size);
    const size_t row = tiny_default_options().d_model * sizeof(float);
    assert_int_equal(size, (N_LAYERS + 1) * row);
    for (size_t layer = 1; layer < N_LAYERS; layer++) {
        const bool same = memcmp(data + layer * row, data + (layer - 1) * row, row) == 0;
        assert_int_equal(same, forced_counts[layer] == 0);
    }
    free(data);
}

/* ---- Seeing it ---- */

static const char *const forced_trace = "layers: 5 of 6 run, 1 saved; program 0,2x2,3,5\n"
                                        "   0  run       6.10  ##################\n"
                                        "   1  skip      5.10  ###############\n"
                                        "   2  repeat    5.10  ###############\n"
                                        "   3  run       6.10  ##################\n"
                                        "   4  skip      5.10  ###############\n"
                                        "   5  run       6.10  ##################\n";

/* stderr of a command that prints nothing but its trace there. */
static void expect_trace(struct cli_outcome outcome, const char *trace) {
    cli_expect_code(&outcome, 0);
    assert_string_equal(outcome.err, trace);
    cli_outcome_free(&outcome);
}

static void check_traces(void) {
    expect_trace(RUN("logits", "-m", deep, "-p", "a", "--trace", "--program", forced_program),
                 "layers: 5 of 6 run, 1 saved; program 0,2x2,3,5\n"
                 "   0  run\n   1  skip\n   2  repeat\n   3  run\n   4  skip\n   5  run\n");
    expect_trace(RUN("logits", "-m", deep, "-p", "a", "--trace"),
                 "layers: 6 of 6 run\n   0  run\n   1  run\n   2  run\n   3  run\n   4  run\n   5  run\n");
    expect_trace(RUN("run", "-m", deep, "-p", "a", "--trace", "-q", "-n", "0", "--program", "0-2x2"),
                 "layers: 6 of 6 run, 0 saved; program 0-2x2\n"
                 "   0  repeat\n   1  repeat\n   2  repeat\n   3  skip\n   4  skip\n   5  skip\n");
    expect_trace(RUN("logits", "-m", deep, "-p", "a", "--trace", "-r", forced), forced_trace);
    expect_trace(RUN("run", "-m", deep, "-p", "a", "--trace", "-q", "-n", "1", "-r", forced), forced_trace);
    /* A bar does not grow past its column, and where nothing else was possible there is no number. */
    expect_trace(RUN("logits", "-m", deep, "-p", "a", "--trace", "-r", ones, "--router-p", "1"),
                 "layers: 12 of 6 run, 6 added; program 0-5x2\n"
                 "   0  repeat  forced  ########################\n"
                 "   1  repeat  forced  ########################\n"
                 "   2  repeat  forced  ########################\n"
                 "   3  repeat  forced  ########################\n"
                 "   4  repeat  forced  ########################\n"
                 "   5  repeat  forced  ########################\n");
    char twice[1024];
    (void)snprintf(twice, sizeof twice, "%s%s", forced_trace, forced_trace);
    expect_trace(RUN_INPUT("a\nb\n", "chat", "-m", deep, "--trace", "-q", "-n", "1", "-r", forced), twice);

    setenv("LC_ALL", "C.UTF-8", 1);
    struct cli_outcome outcome = RUN("logits", "-m", deep, "-p", "a", "--trace", "-r", forced);
    /* 5.1 of 8 are 122 eighths of 24 columns. */
    cli_expect_text(outcome.err, "\n   1  skip      5.10  █████"
                                 "█████"
                                 "█████▎\n   2  repeat    5.10  █");
    cli_expect_success(outcome);
}

static void test_trace(void **state) {
    (void)state;
    cli_require_program();
    const char *locale = getenv("LC_ALL");
    char *before = locale != NULL ? strdup(locale) : NULL;
    setenv("LC_ALL", "C", 1);
    check_traces();
    if (before != NULL) {
        setenv("LC_ALL", before, 1);
    } else {
        unsetenv("LC_ALL");
    }
    free(before);
}

static double kv_bytes(const cJSON *json) {
    return cli_number(cJSON_GetObjectItemCaseSensitive(json, "timings"), "kv_bytes");
}

static void test_run_routing(void **state) {
    (void)state;
    cli_require_program();
    cJSON *full = cli_expect_json(RUN("run", "-m", deep, "-p", "a", "--json", "-n", "3", "--ignore-eos"));
    const cJSON *routing = expect_routing(full, "0-5", 0);
    assert_false(cJSON_HasObjectItem(routing, "margins"));
    assert_true(kv_bytes(full) > 0);
    cJSON *json = cli_expect_json(
        RUN("run", "-m", deep, "-p", "a", "--json", "-n", "3", "--ignore-eos", "--program", forced_program));
    routing = expect_routing(json, forced_program, 1);
    assert_false(cJSON_HasObjectItem(routing, "margins"));
    assert_false(cJSON_HasObjectItem(routing, "router_logits"));
    assert_true(kv_bytes(json) * N_LAYERS == kv_bytes(full) * (N_LAYERS - 1));
    assert_true(cli_number(cJSON_GetObjectItem(json, "timings"), "router_ms") <= 0);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("run", "-m", deep, "-p", "a", "--json", "-n", "3", "--ignore-eos", "--program=none"));
    expect_routing(json, "none", N_LAYERS);
    assert_true(kv_bytes(json) <= 0);
    cJSON_Delete(json);
    cJSON_Delete(full);

    json = cli_expect_json(RUN("run", "-m", deep, "-p", "a", "--json", "-n", "0", "-r", forced));
    routing = expect_routing(json, forced_program, 1);
    const cJSON *margins = cli_list(routing, "margins", N_LAYERS);
    const cJSON *logits = cli_list(routing, "router_logits", N_LAYERS);
    for (int i = 0; i < N_LAYERS; i++) {
        const double expected[] = {-1.0, 0.0, -1.0};
        const int count = forced_counts[i];
        assert_true(fabs(cJSON_GetArrayItem(margins, i)->valuedouble - (count == 1 ? 6.1 : 5.1)) < 1e-5);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetArrayItem(logits, i)), 3);
        for (int k = 0; k < 3; k++) {
            const double logit = cJSON_GetArrayItem(cJSON_GetArrayItem(logits, i), k)->valuedouble;
            assert_true(fabs(logit - (k == count ? 5.1 : expected[k])) < 1e-5);
        }
    }
    assert_true(cli_number(cJSON_GetObjectItem(json, "timings"), "router_ms") > 0);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("run", "-m", deep, "-p", "a", "--json", "-n", "0", "-r", forced, "--router-p", "1"));
    margins = cli_list(expect_routing(json, "0-5x2", -N_LAYERS), "margins", N_LAYERS);
    assert_true(cJSON_IsNull(cJSON_GetArrayItem(margins, 3)));
    cJSON_Delete(json);

    struct cli_outcome outcome = RUN("run", "-m", deep, "-p", "a", "-n", "1", "-r", forced);
    cli_expect_text(outcome.err, "\nlayers: 5 of 6 run, 1 saved; program 0,2x2,3,5\n");
    cli_expect_text(outcome.err, "\nrouters: ");
    cli_expect_success(outcome);
}

/* What the knobs make of routers whose own choice is all blocks, or `forced`. */
static void test_budgets(void **state) {
    (void)state;
    cli_require_program();
    const struct {
        const char *routers, *option, *program;
        int saved;
    } cases[] = {
        {forced, "--router-p=-0.5", forced_program, 1},
        {forced, "--router-p=0.5", "0-5", 0},
        {forced, "--router-p=1", "0-5x2", -N_LAYERS},
        {forced, "--router-p=-1", "0,5", 4}, /* the routers of both ends want to run */
        {ones, "--save-layers=0", "0-5", 0},
        {ones, "--save-layers=2", "0-5", 0}, /* a bias of 0 */
        {ones, "--save-layers=2.5", "0-5", 0},
        {ones, "--save-layers=3", "0,5", 4}, /* a bias of 10 */
        {ones, "--save-layers=4", "0,5", 4},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        cJSON *json = cli_expect_json(
            RUN("run", "-m", deep, "-p", "a", "--json", "-n", "0", "-r", cases[i].routers, cases[i].option));
        expect_routing(json, cases[i].program, cases[i].saved);
        cJSON_Delete(json);
    }
}

/* ---- Scores and perplexity ---- */

static double log_prob(const cJSON *json, int choice) {
    return cli_number(cJSON_GetArrayItem(cli_list(json, "choices", 2), choice), "log_prob");
}

#define SCORE(...) RUN("score", "-m", deep, "-p", "a", "--choice", "bc", "--choice", "d", "--json", __VA_ARGS__)

static void test_score_depths(void **state) {
    (void)state;
    cli_require_program();
    cJSON *full = cli_expect_json(SCORE("--depth=full")), *fixed = cli_expect_json(SCORE("--program", forced_program));
    cJSON *routed = cli_expect_json(SCORE("-r", forced)), *executed = cli_expect_json(SCORE("-r", ones));
    for (int i = 0; i < 2; i++) {
        assert_true(fabs(log_prob(full, i) - log_prob(fixed, i)) > 1e-3);
        assert_true(fabs(log_prob(fixed, i) - log_prob(routed, i)) <= 0);
        assert_true(fabs(log_prob(full, i) - log_prob(executed, i)) <= 0);
    }
    expect_routing(full, "0-5", 0);
    assert_false(cJSON_HasObjectItem(expect_routing(fixed, forced_program, 1), "margins"));
    cli_list(expect_routing(routed, forced_program, 1), "margins", N_LAYERS);
    cJSON_Delete(full);
    cJSON_Delete(fixed);
    cJSON_Delete(routed);
    cJSON_Delete(executed);

    /* Routers look at the prompt, not at the choices. */
    char q[41];
    fill(q, sizeof q, 'q');
    cJSON *json = cli_expect_json(RUN("score", "-m", spoken, "-p", "a", "--choice", q, "--json", "-r", letters));
    expect_routing(json, "0-5", 0);
    cJSON_Delete(json);
    json = cli_expect_json(RUN("score", "-m", spoken, "-p", q, "--choice", "a", "--json", "-r", letters));
    expect_routing(json, "0,5", 4);
    cJSON_Delete(json);
}

static void test_score_batch_depths(void **state) {
    (void)state;
    cli_require_program();
    static const char *const lines = "{\"prompt\": \"abcdefgh\", \"choices\": [\"qqqqqqqqqqqq\", \"a\"]}\n"
                                     "{\"prompt\": \"qqqqqqqqqqqq\", \"choices\": [\"a\"], \"answer\": 0}\n"
                                     "nonsense\n"
                                     "{\"prompt\": \"rrrrrrrrrrrrrrrrrrrrr\", \"choices\": [\"a\"]}\n"
                                     "{\"prompt\": \"abcdefgh\", \"choices\": [\"a\"]}\n";
    static const struct {
        const char *program;
        int saved;
    } expected[] = {{"0-5", 0}, {"0,5", 4}, {NULL, 0}, {"0,1-4x2,5", -4}, {"0-5", 0}};
    struct cli_outcome outcome = RUN_INPUT(lines, "score", "-m", spoken, "-d", "-", "-r", letters);
    cli_expect_code(&outcome, 1);
    cli_expect_text(outcome.err, "\nlayers saved: 0.00 of 6 in the mean\n");
    const char *line = outcome.out;
    for (size_t i = 0; i < COUNT(expected); i++) {
        const char *end = NULL;
        cJSON *json = cJSON_ParseWithOpts(line, &end, false);
        assert_non_null(json);
        if (expected[i].program != NULL) {
            expect_routing(json, expected[i].program, expected[i].saved);
        } else {
            assert_false(cJSON_HasObjectItem(json, "routing"));
        }
        cJSON_Delete(json);
        line = end + 1;
    }
    assert_string_equal(line, "");
    cli_outcome_free(&outcome);
    outcome = RUN_INPUT("{\"prompt\": \"a\", \"choices\": [\"a\"]}", "score", "-m", spoken, "-d", "-", "--program=0,5");
    cli_expect_text(outcome.err, "layers saved: 4.00 of 6 in the mean\n");
    cli_expect_success(outcome);
    outcome = RUN_INPUT("{\"prompt\": \"a\", \"choices\": [\"a\"]}", "score", "-m", spoken, "-d", "-");
    assert_string_equal(outcome.err, "");
    cli_expect_success(outcome);
}

#define PERPLEXITY(...) RUN_INPUT(text, "perplexity", "-m", deep, "-f", "-", "-c", "32", __VA_ARGS__)

/* What is printed on stdout is the same; both are freed. */
static void expect_same_output(struct cli_outcome a, struct cli_outcome b) {
    cli_expect_code(&a, 0);
    assert_true(a.out_size > 1);
    cli_expect_output(b, a.out);
    cli_outcome_free(&a);
}

static void expect_other_output(struct cli_outcome a, struct cli_outcome b) {
    cli_expect_code(&a, 0);
    cli_expect_code(&b, 0);
    assert_string_not_equal(a.out, b.out);
    cli_outcome_free(&a);
    cli_outcome_free(&b);
}

static void test_perplexity_depths(void **state) {
    (void)state;
    cli_require_program();
    static const char *const text = "The quick brown fox jumps over the lazy dog, and what it finds there is more of "
                                    "the same: a field, a fence, a dog that does not move.";
    expect_other_output(PERPLEXITY("--depth=full"), PERPLEXITY("--program", forced_program));
    expect_same_output(PERPLEXITY("--program", forced_program), PERPLEXITY("-r", forced));
    expect_same_output(PERPLEXITY("--depth=full"), PERPLEXITY("-r", ones));
    cJSON *json = cli_expect_json(PERPLEXITY("--json", "--program", forced_program));
    assert_string_equal(cli_string(json, "program"), forced_program);
    expect_number(json, "layers_saved_mean", 1);
    cJSON_Delete(json);
    struct cli_outcome outcome = PERPLEXITY("-r", forced);
    cli_expect_text(outcome.err, "layers saved: 1.00 of 6 in the mean\n");
    cli_expect_success(outcome);
    outcome = PERPLEXITY("--depth=full");
    assert_null(strstr(outcome.err, "layers saved"));
    cli_expect_success(outcome);
}

/* Routers see the first half of a chunk, and not what is predicted. */
static void test_perplexity_halves(void **state) {
    (void)state;
    cli_require_program();
    static const char *const orders[] = {"aq", "qa"};
    for (int i = 0; i < 2; i++) {
        char text[193];
        for (size_t k = 0; k < 192; k++) {
            text[k] = orders[i][k / 32 % 2];
        }
        text[192] = '\0';
        cJSON *json = cli_expect_json(
            RUN_INPUT(text, "perplexity", "-m", spoken, "-f", "-", "-c", "64", "--json", "-r", letters));
        expect_number(json, "n_chunks", 3);
        expect_number(json, "layers_saved_mean", i == 0 ? 0 : 4);
        assert_false(cJSON_HasObjectItem(json, "program"));
        cJSON_Delete(json);
    }
}

/* ---- Conversations ---- */

#define CHAT(...) RUN_INPUT("one\ntwo\n", "chat", "-m", deep, "--temp", "0", "-n", "6", "--ignore-eos", __VA_ARGS__)

static void test_chat_depths(void **state) {
    (void)state;
    cli_require_program();
    expect_other_output(CHAT("--depth=full"), CHAT("--program", forced_program));
    expect_same_output(CHAT("--program", forced_program), CHAT("-r", forced));
    expect_same_output(CHAT("--program", forced_program), CHAT("-r", forced, "--reroute", "never"));
    expect_same_output(CHAT("--depth=full"), CHAT("-r", forced, "--depth=full"));
    expect_same_output(CHAT("--program", "none"), CHAT("--depth", "static:none"));

    /* The program of both turns is the same, so that the second computes what is new, and what the edges of its windows
     * cut. */
    char system_message[301];
    fill(system_message, sizeof system_message, 's');
    struct cli_outcome outcome = CHAT("-r", forced, "-v", "--system", system_message);
    expect_lines(outcome.err, "layers: 5 of 6 run, 1 saved; program 0,2x2,3,5", 2);
    const char *second = expect_lines(outcome.err, "prompt: ", 2);
    const char *first = strstr(outcome.err, "prompt: ");
    assert_in_range(strtol(second, NULL, 10), 1, strtol(first + strlen("prompt: "), NULL, 10) - 150);
    cli_expect_success(outcome);
}

/* The programs of a conversation's turns, as stderr has them. */
static void expect_turns(const char *input, const char *const *reroute, const char *const *turns) {
    const char *arguments[16] = {"chat", "-m", spoken, "--temp", "0", "-v", "-r", letters};
    size_t n = 8;
    for (; *reroute != NULL; reroute++) {
        arguments[n++] = *reroute;
    }
    struct cli_outcome outcome = cli_run(input, arguments);
    cli_expect_code(&outcome, 0);
    const char *at = outcome.err;
    size_t n_turns = 0;
    for (; *turns != NULL; turns++, n_turns++) {
        char line[64];
        (void)snprintf(line, sizeof line, "layers: %s\n", *turns);
        at = strstr(at, "layers: ");
        if (at == NULL || strncmp(at, line, strlen(line)) != 0) {
            fail_msg("turn %zu should say '%s': %.1000s", n_turns, *turns, outcome.err);
        }
        at++;
    }
    assert_null(strstr(at, "layers: "));
    for (size_t i = 0; i < n_turns; i++) {
        assert_memory_equal(outcome.out + 4 * i, "ABC\n", 4);
    }
    assert_int_equal(outcome.out_size, 4 * n_turns);
    cli_outcome_free(&outcome);
}

static void test_chat_reroute(void **state) {
    (void)state;
    cli_require_program();
    char input[512], q[121];
    fill(q, sizeof q, 'q');
    (void)snprintf(input, sizeof input, "one\n%s\nthree\n/reset\nfour\n", q);
    static const char full[] = "6 of 6 run", skipped[] = "2 of 6 run, 4 saved; program 0,5";
    expect_turns(input, ARGUMENTS("--reroute", "turn"), ARGUMENTS(full, skipped, skipped, full));
    expect_turns(input, (const char *const[]){NULL}, ARGUMENTS(full, skipped, skipped, full));
    expect_turns(input, ARGUMENTS("--reroute", "never"), ARGUMENTS(full, full, full, full));
    (void)snprintf(input, sizeof input, "%s\ntwo\n/reset\nthree\n", q);
    expect_turns(input, ARGUMENTS("--reroute=never"), ARGUMENTS(skipped, skipped, full));
}

/* ---- routers ---- */

/* Routers of int8 for `deep`, made from `unnamed`. */
static const char *make_routers(char path[CLI_PATH_BYTES]) {
    cli_path("made.gguf", path);
    struct cli_outcome outcome = RUN("routers", "-m", deep, unnamed, path);
    char line[CLI_PATH_BYTES + 64];
    (void)snprintf(line, sizeof line, "%s: 6 routers in int8, ", path);
    assert_ptr_equal(strstr(outcome.out, line), outcome.out);
    cli_expect_text(outcome.out, "largest rounding error of a row 0.");
    assert_string_equal(outcome.err, "");
    cli_expect_success(outcome);
    return path;
}

static void test_routers(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES], digits[DIGITS], line[128];
    make_routers(path);
    (void)fingerprint_of(deep, digits);
    struct cli_outcome outcome = RUN("inspect", path);
    (void)snprintf(line, sizeof line, "\n  model         deep\n  quantization  f32\n  fingerprint   %s\n", digits);
    cli_expect_text(outcome.out, line);
    cli_expect_text(outcome.out, "\n  name          for?tests\n");
    cli_expect_text(outcome.out, "\n  blocks        6, 64 wide\n  windows       8\n  hidden width  6\n");
    cli_expect_text(outcome.out, "\n  weights       int8, ");
    cli_expect_text(outcome.out, "\n       -1.0000    0.000\n        0.0000    2.000\n       20.0000    4.000\n");
    cli_expect_text(outcome.out, "\n  training\n    {\n      \"epochs\": 3,\n      \"loss\": \"focal\"\n    }\n");
    assert_null(strstr(outcome.out, "blk.0.router"));
    cli_expect_success(outcome);
    outcome = RUN("inspect", path, "--all");
    cli_expect_text(outcome.out, "blk.0.router.fc1.weight_scale");
    cli_expect_success(outcome);
    outcome = RUN("inspect", unnamed);
    cli_expect_text(outcome.out, "\n  fingerprint   (the file does not say)\n");
    cli_expect_text(outcome.out, "\n  weights       float32, ");
    cli_expect_success(outcome);
    outcome = RUN("inspect", forced);
    cli_expect_text(outcome.out, "\n  calibration   none, so that --save-layers cannot be used\n");
    cli_expect_success(outcome);

    cJSON *json = cli_expect_json(RUN("inspect", path, "--json"));
    const cJSON *routers = cJSON_GetObjectItem(json, "routers");
    assert_string_equal(cli_string(routers, "name"), "for\033tests");
    assert_string_equal(cli_string(routers, "model_name"), "deep");
    assert_string_equal(cli_string(routers, "model_quantization"), "f32");
    assert_string_equal(cli_string(routers, "model_fingerprint"), digits);
    assert_string_equal(cli_string(routers, "weight_format"), "int8");
    expect_number(routers, "blocks", N_LAYERS);
    const cJSON *row = cJSON_GetArrayItem(cli_list(routers, "calibration", 3), 2);
    expect_number(row, "bias", 20);
    expect_number(row, "saved", 4);
    expect_number(cJSON_GetObjectItem(routers, "training"), "epochs", 3);
    cJSON_Delete(json);

    /* The library rounds a file of floats to the same weights. */
    outcome = LOGITS("-r", unnamed, "--trace");
    struct cli_outcome same = LOGITS("-r", path, "--trace");
    cli_expect_code(&same, 0);
    cli_expect_text(outcome.err, same.err); /* in front, that it does not say which model it is for */
    assert_ptr_equal(strstr(same.err, "layers: "), same.err);
    assert_null(strstr(same.err, "layers: 6 of 6 run\n"));
    assert_int_equal(same.out_size, outcome.out_size);
    assert_memory_equal(same.out, outcome.out, same.out_size);
    cli_outcome_free(&outcome);
    cli_outcome_free(&same);
}

static void test_routers_options(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES], record[CLI_PATH_BYTES];
    cli_path("named.gguf", path);
    cli_path("record.json", record);
    cli_write(record, "{\"epochs\": 7}\n", 14);
    cli_expect_success(RUN("routers", "-m", deep, unnamed, path, "--float", "--name", "another", "--training", record));
    cJSON *json = cli_expect_json(RUN("inspect", path, "--json"));
    const cJSON *routers = cJSON_GetObjectItem(json, "routers");
    assert_string_equal(cli_string(routers, "name"), "another");
    assert_string_equal(cli_string(routers, "weight_format"), "float32");
    expect_number(cJSON_GetObjectItem(routers, "training"), "epochs", 7);
    cJSON_Delete(json);
    cli_expect_failure(RUN_INPUT("[7]", "routers", "-m", deep, unnamed, path, "--training", "-"), 1,
                       "no record of a training");
    cli_expect_failure(RUN("routers", "-m", deep, unnamed, path, "--training", "/no/record"), 1,
                       "cannot open /no/record");
}

static void test_routers_and_models(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES], refused[CLI_PATH_BYTES], place[CLI_PATH_BYTES], rounded[CLI_PATH_BYTES];
    make_routers(path);
    cli_path("refused.gguf", refused);
    struct cli_outcome outcome = RUN("routers", "-m", other, path, refused);
    char digits[DIGITS];
    cli_expect_text(outcome.err, fingerprint_of(other, digits));
    cli_expect_text(outcome.err, fingerprint_of(deep, digits));
    cli_expect_failure(outcome, 1, " is for deep (fingerprint ");
    cli_expect_failure(RUN("routers", "-m", spoken, path, refused), 1, "6 blocks of width 64");
    cli_expect_failure(RUN("routers", "-m", deep, deep, refused), 1, "this is no router file");
    cli_expect_failure(RUN("routers", "-m", deep, path, "/no/folder/file"), 1, "cannot write the routers");
    assert_int_equal(cli_count_files("refused.gguf"), 0);
    cli_expect_failure(RUN("run", "-m", other, "-p", "a", "-r", path), 1, "the routers are for another model (deep)");

    /* IN = OUT, and what fails leaves the file as it was. */
    size_t size = 0;
    char *file = cli_read(unnamed, &size);
    cli_write(cli_path("place.gguf", place), file, size);
    free(file);
    cli_expect_success(RUN("routers", "-m", deep, place, place));
    expect_same_file(place, path);
    cli_expect_failure(RUN("routers", "-m", other, place, place), 1, " is for deep (fingerprint ");
    expect_same_file(place, path);
    assert_int_equal(cli_count_files("place.gguf"), 1);

    /* Another quantisation of the model is the model; it is said, as is that a file does not name one. */
    cli_expect_success(RUN("quantize", deep, cli_path("rounded.gguf", rounded), "q8_0"));
    outcome = RUN("run", "-m", rounded, "-p", "a", "-n", "1", "-r", path);
    cli_expect_text(outcome.err, "the routers were trained with f32 weights; this model has q8_0");
    cli_expect_success(outcome);
    outcome = RUN("run", "-m", deep, "-p", "a", "-n", "1", "-r", path);
    assert_null(strstr(outcome.err, "the routers were trained"));
    assert_null(strstr(outcome.err, "which model"));
    cli_expect_success(outcome);
    outcome = RUN("run", "-m", deep, "-p", "a", "-n", "1", "-r", unnamed);
    cli_expect_text(outcome.err, "does not say which model it is for");
    cli_expect_success(outcome);
}

/* ---- route ---- */

static const char odd_task[] = "a,\"b\" <c> & 'd'";
static const char prompts[] = "{\"prompt\": \"abcdefgh\", \"task\": \"plain\"}\n"
                              "{\"prompt\": \"qqqqqqqqqqqqqqqqqqqqqqqqq\", \"task\": \"a,\\\"b\\\" <c> & 'd'\"}\n"
                              "nonsense\n"
                              "{\"prompt\": \"rrrrrrrrrrrrrrrrrrrrrrrrr\", \"task\": null}\n"
                              "{\"prompt\": 3}\n"
                              "{\"prompt\": \"x\", \"task\": 5}\n"
                              "{\"prompt\": \"\", \"more\": []}\n"
                              "{\"prompt\": \"abcdefgh\", \"task\": \"plain\"}";
static const struct {
    const char *line, *task, *n_tokens, *saved, *program;
} routed_rows[] = {
    {"1", "plain", "10", "0", "0-5"}, {"2", odd_task, "27", "4", "0,5"}, {"4", "", "27", "-4", "0,1-4x2,5"},
    {"7", "", "1", "0", "0-5"},       {"8", "plain", "10", "0", "0-5"},
};
enum { N_ROUTED = COUNT(routed_rows) };

/* Splits one line of CSV in place; `text` goes on behind it. Returns how many fields there are; those behind are "". */
static size_t read_csv_line(char **text, char *fields[MOST_FIELDS]) {
    static char empty[1];
    size_t n = 0;
    char *p = *text;
    char last = ',';
    for (size_t i = 0; i < MOST_FIELDS; i++) {
        fields[i] = empty;
    }
    while (last == ',') {
        assert_true(n < MOST_FIELDS);
        char *to = p;
        fields[n++] = p;
        if (*p == '"') {
            for (p++; *p != '"' || p[1] == '"'; p++) {
                assert_true(*p != '\0');
                p += *p == '"';
                *to++ = *p;
            }
            p++;
        } else {
            for (; *p != ',' && *p != '\n'; p++) {
                assert_true(*p != '\0' && *p != '"');
                *to++ = *p;
            }
        }
        last = *p++;
        *to = '\0';
    }
    assert_int_equal(last, '\n');
    *text = p;
    return n;
}

static void check_csv_head(char **text) {
    static const char *const names[] = {"file", "line", "task", "n_tokens", "layers_saved", "program"};
    char *fields[MOST_FIELDS], name[24];
    assert_int_equal(read_csv_line(text, fields), COUNT(names) + 2 * N_LAYERS);
    for (size_t i = 0; i < COUNT(names); i++) {
        assert_string_equal(fields[i], names[i]);
    }
    for (size_t i = 0; i < N_LAYERS; i++) {
        (void)snprintf(name, sizeof name, "count_%zu", i);
        assert_string_equal(fields[COUNT(names) + i], name);
        (void)snprintf(name, sizeof name, "margin_%zu", i);
        assert_string_equal(fields[COUNT(names) + N_LAYERS + i], name);
    }
}

/* The rows of `prompts`, whose margins are there only where routers decided; program NULL: what the routers say. */
static void check_csv(const char *csv, const char *file, const char *program) {
    char *copy = strdup(csv), *at = copy, *fields[MOST_FIELDS];
    assert_non_null(copy);
    check_csv_head(&at);
    for (size_t i = 0; i < N_ROUTED; i++) {
        const char *expected = program != NULL ? program : routed_rows[i].program;
        uint8_t counts[N_LAYERS];
        int saved = N_LAYERS;
        assert_int_equal(read_csv_line(&at, fields), 6 + 2 * N_LAYERS);
        assert_string_equal(fields[0], file);
        assert_string_equal(fields[1], routed_rows[i].line);
        assert_string_equal(fields[2], routed_rows[i].task);
        assert_string_equal(fields[3], routed_rows[i].n_tokens);
        assert_string_equal(fields[5], expected);
        assert_int_equal(drllm_program_parse(expected, N_LAYERS, counts, NULL), DRLLM_OK);
        for (size_t k = 0; k < N_LAYERS; k++) {
            const char *margin = fields[6 + N_LAYERS + k];
            assert_int_equal(strtol(fields[6 + k], NULL, 10), counts[k]);
            assert_int_equal(margin[0] == '\0', program != NULL);
            assert_true(program != NULL || strtod(margin, NULL) > 1.0);
            saved -= counts[k];
        }
        assert_int_equal(strtol(fields[4], NULL, 10), saved);
    }
    assert_string_equal(at, "");
    free(copy);
}

static void test_route_table(void **state) {
    (void)state;
    cli_require_program();
    struct cli_outcome outcome = RUN_INPUT(prompts, "route", "-m", spoken, "-r", letters, "-f", "-");
    cli_expect_code(&outcome, 1);
    check_csv(outcome.out, "-", NULL);
    cli_expect_text(outcome.out, "\n-,2,\"a,\"\"b\"\" <c> & 'd'\",27,4,\"0,5\",1,0,0,0,0,1,");
    cli_expect_text(outcome.err, "drllm route: -, line 3: it is no JSON\n");
    cli_expect_text(outcome.err, "-, line 5: it has no text \"prompt\"\n");
    cli_expect_text(outcome.err, "-, line 6: its \"task\" is no text\n");
    cli_expect_text(outcome.err, "\n       2         1          0.00  plain\n"
                                 "       1         1          4.00  a,\"b\" <c> & 'd'\n"
                                 "       2         2         -2.00  (no task)\n"
                                 "       5         3          0.00  all\n");
    cli_expect_text(outcome.err, "3 bad lines");

    /* The same in a file, whose name is a field. */
    char path[CLI_PATH_BYTES], in[CLI_PATH_BYTES];
    size_t size = 0;
    cli_write(cli_path("in,.jsonl", in), prompts, strlen(prompts));
    cli_path("table.csv", path);
    struct cli_outcome quiet = RUN("route", "-m", spoken, "-r", letters, "-f", in, "-o", path);
    cli_expect_failure(quiet, 1, "line 6");
    char *table = cli_read(path, &size);
    check_csv(table, in, NULL);
    free(table);
    cli_outcome_free(&outcome);

    outcome = RUN_INPUT(prompts, "route", "-m", spoken, "--program", "1x2,3", "-f", "-");
    cli_expect_code(&outcome, 1);
    check_csv(outcome.out, "-", "1x2,3");
    cli_outcome_free(&outcome);

    /* Several files, and a prompt that the context has no room for. */
    static const char more[] = "{\"prompt\": \"qqqqqqqqqqqqqqqqqqqqqqqqq\"}\n{\"prompt\": \"b\"}\n";
    char second[CLI_PATH_BYTES];
    cli_write(cli_path("second.jsonl", second), more, strlen(more));
    outcome = RUN("route", "-m", spoken, "-r", letters, "-f", second, "-f", second, "-c", "8");
    cli_expect_code(&outcome, 1);
    expect_lines(outcome.out, cli_path("second.jsonl,2,,3,0,0-5,1,1,1,1,1,1,", path), 2);
    expect_lines(outcome.out, second, 2);
    cli_expect_text(outcome.err, "2 bad lines");
    cli_outcome_free(&outcome);
    outcome = RUN("route", "-m", spoken, "-r", letters, "-f", second);
    expect_lines(outcome.out, second, 2);
    cli_expect_success(outcome);
}

/* ---- The picture ---- */

/* Elements end in the order in which they began, attributes are quoted, entities known. */
static void check_xml(const char *text) {
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&quot;"};
    const char *open[16];
    size_t depth = 0, n_roots = 0;
    for (size_t i = 0; i < COUNT(open); i++) {
        open[i] = text;
    }
    for (const char *p = text; *p != '\0'; p++) {
        if (*p == '&') {
            bool known = false;
            for (size_t i = 0; i < COUNT(entities); i++) {
                known = known || strncmp(p, entities[i], strlen(entities[i])) == 0;
            }
            assert_true(known);
        }
        assert_true((unsigned char)*p >= 0x20 || *p == '\n');
        assert_int_not_equal(*p, '>'); /* those of elements are passed over below */
        assert_true(*p == '<' || *p == '\n' || depth > 0);
        if (*p != '<' || p[1] == '?') {
            p = *p == '<' ? strchr(p, '>') : p;
            assert_non_null(p);
            continue;
        }
        const char *name = p + 1 + (p[1] == '/');
        const size_t size = strspn(name, "abcdefghijklmnopqrstuvwxyz");
        bool quoted = false;
        assert_true(size > 0);
        const bool ends = p[1] == '/';
        for (; *p != '>' || quoted; p++) {
            assert_true(*p != '\0');
            quoted = quoted != (*p == '"');
            assert_true(!quoted || *p != '<');
        }
        if (ends) {
            assert_true(depth > 0);
            depth--;
            assert_memory_equal(open[depth], name, size);
            assert_int_equal(strspn(open[depth], "abcdefghijklmnopqrstuvwxyz"), size);
        } else if (p[-1] != '/') {
            n_roots += depth == 0;
            assert_true(depth < COUNT(open));
            open[depth++] = name;
        }
    }
    assert_int_equal(depth, 0);
    assert_int_equal(n_roots, 1);
}

/* What the cells of one group of rows say, -1 where there is none; every cell is painted once. `end`: of the group. */
static void read_cells(const char *group, const char *end, int cells[MOST_ROWS][N_LAYERS]) {
    for (size_t i = 0; i < MOST_ROWS; i++) {
        for (size_t k = 0; k < N_LAYERS; k++) {
            cells[i][k] = -1;
        }
    }
    for (const char *path = strstr(group, "<path class=\"c"); path != NULL && path < end;
         path = strstr(path + 1, "<path class=\"c")) {
        const int count = path[14] - '0';
        const char *d = strstr(path, " d=\"");
        assert_non_null(d);
        for (d += 4; *d != '"';) {
            unsigned x = 0, y = 0, width = 0, back = 0;
            int used = 0;
            /* NOLINTNEXTLINE(cert-err34-c): what does not fit below is seen */
            assert_int_equal(sscanf(d, "M%u %uh%uv1h-%uz%n", &x, &y, &width, &back, &used), 4);
            assert_true(used > 0 && width == back && width > 0 && y < MOST_ROWS && x + width <= N_LAYERS);
            for (unsigned i = x; i < x + width; i++) {
                assert_int_equal(cells[y][i], -1);
                cells[y][i] = count;
            }
            d += used;
        }
    }
}

/* The rows of `prompts`, group by group, as `routed_rows` has them. */
static void check_cells(const char *svg) {
    static const size_t groups[][2] = {{0, 4}, {1, SIZE_MAX}, {2, 3}};
    const char *group = svg;
    int cells[MOST_ROWS][N_LAYERS];
    for (size_t g = 0; g < COUNT(groups); g++) {
        group = strstr(group, "shape-rendering=");
        assert_non_null(group);
        const char *end = strstr(group, "</g>");
        assert_non_null(end);
        read_cells(group, end, cells);
        for (size_t i = 0; i < MOST_ROWS; i++) {
            uint8_t counts[N_LAYERS];
            const bool is_row = i < 2 && groups[g][i] != SIZE_MAX;
            if (is_row) {
                (void)drllm_program_parse(routed_rows[groups[g][i]].program, N_LAYERS, counts, NULL);
            }
            for (size_t k = 0; k < N_LAYERS; k++) {
                assert_int_equal(cells[i][k], is_row ? counts[k] : -1);
            }
        }
        group = end;
    }
    assert_null(strstr(group, "shape-rendering="));
}

static void test_route_plot(void **state) {
    (void)state;
    cli_require_program();
    char path[CLI_PATH_BYTES];
    size_t size = 0;
    cli_path("plot.svg", path);
    struct cli_outcome outcome = RUN_INPUT(prompts, "route", "-m", spoken, "-r", letters, "-f", "-", "--plot", path);
    cli_expect_code(&outcome, 1); /* the bad lines; the good ones are drawn */
    check_csv(outcome.out, "-", NULL);
    cli_outcome_free(&outcome);
    char *svg = cli_read(path, &size);
    assert_int_equal(strlen(svg), size);
    assert_ptr_equal(strstr(svg, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns="), svg);
    assert_string_equal(svg + size - 7, "</svg>\n");
    check_xml(svg);
    check_cells(svg);
    cli_expect_text(svg, "<title>Layer programs of tiny</title>\n");
    cli_expect_text(svg,
                    "<desc>letters.gguf, p = -0.5: 5 prompts, 3 programs, 0.00 of 6 layers saved in the mean</desc>");
    cli_expect_text(svg, "<title>a,&quot;b&quot; &lt;c&gt; &amp; 'd'</title>");
    cli_expect_text(svg, ">(no task)</text>");
    cli_expect_text(svg, "<title>block 1: 0.000</title>");
    cli_expect_text(svg, "<title>block 1: 1.500</title>"); /* two prompts, one of them twice */
    cli_expect_text(svg, ">2 prompts, -2.00 saved</text>");
    free(svg);

    /* No prompt at all, and no routers. */
    cli_expect_success(RUN("route", "-m", spoken, "--program=0,5", "-f", "/dev/null", "--plot", path));
    svg = cli_read(path, &size);
    check_xml(svg);
    cli_expect_text(svg, "<desc>program 0,5: 0 prompts, ");
    free(svg);
    assert_int_equal(cli_count_files("plot.svg"), 1);
}

static void test_route_outputs(void **state) {
    (void)state;
    cli_require_program();
    char table[CLI_PATH_BYTES], plot[CLI_PATH_BYTES], in[CLI_PATH_BYTES];
    size_t size = 0;
    cli_path("kept.csv", table);
    cli_path("kept.svg", plot);
    cli_write(cli_path("one.jsonl", in), "{\"prompt\": \"a\"}\n", 16);
#define ROUTE(...) RUN("route", "-m", spoken, "-r", letters, "-f", in, __VA_ARGS__)
    cli_expect_failure(ROUTE("-o", "/no/folder/x"), 1, "cannot write /no/folder/x: No such file");
    cli_expect_failure(ROUTE("-o", table, "--plot", "/no/folder/x"), 1, "cannot write /no/folder/x: No such file");
    cli_expect_failure(ROUTE("--plot", "/no/folder/x"), 1, "cannot write /no/folder/x: No such file");
    cli_expect_failure(ROUTE("-o", "/no/folder/x", "--plot", plot), 1, "cannot write /no/folder/x: No such file");
    assert_int_equal(cli_count_files("kept."), 0);
    if (access("/dev/full", W_OK) == 0) {
        cli_expect_failure(ROUTE("-o", "/dev/full", "--plot", plot), 1, "cannot write /dev/full: No space left");
        assert_int_equal(cli_count_files("kept."), 0);
    }

    /* What fails before the end leaves older files alone. */
    cli_write(table, "old", 3);
    cli_expect_failure(RUN("route", "-m", spoken, "-r", letters, "-f", in, "-f", "/no/file", "-o", table), 1,
                       "cannot open /no/file");
    char *old = cli_read(table, &size);
    assert_string_equal(old, "old");
    free(old);
    cli_expect_success(ROUTE("-o", table, "--plot", plot));
    old = cli_read(table, &size);
    assert_ptr_equal(strstr(old, "file,line,task,"), old);
    free(old);
    assert_int_equal(cli_count_files("kept."), 2);
#undef ROUTE
}

/* ---- bench ---- */

#define BENCH(...) RUN("bench", "-m", deep, "-p", "16", "-n", "4", "-t", "1", "-r", "2", "-o", __VA_ARGS__)

static bool has_number(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    assert_true(cJSON_IsNumber(item) || cJSON_IsNull(item));
    return cJSON_IsNumber(item);
}

static void check_bench_row(const cJSON *row, const char *program, int saved) {
    assert_string_equal(cli_string(row, "program"), program);
    expect_number(row, "layers_saved", saved);
    expect_number(row, "kv_ratio", (double)(N_LAYERS - saved) / N_LAYERS);
    assert_true(cli_number(row, "full_median_ts") > 0 && cli_number(row, "no_block_median_ts") > 0);
    const double ratio = cli_number(row, "time_ratio");
    assert_true(cli_number(row, "time_ratio_min") > 0 && cli_number(row, "time_ratio_min") <= ratio);
    assert_true(cli_number(row, "time_ratio_max") >= ratio);
    if (saved == 0) {
        assert_false(has_number(row, "saving_reached"));
    } else {
        (void)has_number(row, "saving_reached"); /* of so small a model it may be anything */
    }
}

/* The weights of `deep` that one of 4 generated tokens reads, and its keys and values in the mean. */
static void expect_bytes_per_token(const cJSON *json, int saved) {
    const struct tiny_options options = tiny_default_options();
    struct drllm_model *model = NULL;
    struct drllm_model_info info;
    assert_int_equal(drllm_model_open_path(deep, NULL, &model, NULL), DRLLM_OK);
    drllm_model_get_info(model, &info);
    assert_int_equal(drllm_model_close(model), DRLLM_OK);
    const double part = (double)(N_LAYERS - saved) / N_LAYERS;
    const double kv = 4.0 * N_LAYERS * (double)(options.n_kv_heads * options.head_dim) * (1 + 4) / 2;
    const double expected = (double)info.head_bytes + part * ((double)(info.weight_bytes - info.head_bytes) + kv);
    assert_true(fabs(cli_number(cJSON_GetArrayItem(json, 1), "bytes_per_token") - expected) < 1e-6 * expected);
}

static void test_bench_depths(void **state) {
    (void)state;
    cli_require_program();
    cJSON *full = cli_expect_json(BENCH("json"));
    assert_int_equal(cJSON_GetArraySize(full), 2);
    assert_false(cJSON_HasObjectItem(cJSON_GetArrayItem(full, 0), "program"));
    assert_false(cJSON_HasObjectItem(cJSON_GetArrayItem(full, 0), "time_ratio"));
    cJSON *json = cli_expect_json(BENCH("json", "--program", "0,2-5"));
    assert_int_equal(cJSON_GetArraySize(json), 2);
    for (int i = 0; i < 2; i++) {
        check_bench_row(cJSON_GetArrayItem(json, i), "0,2-5", 1);
        assert_false(has_number(cJSON_GetArrayItem(json, i), "router_share"));
    }
    expect_bytes_per_token(full, 0);
    expect_bytes_per_token(json, 1);
    cJSON_Delete(json);
    cJSON_Delete(full);
    json = cli_expect_json(BENCH("json", "--routers", forced));
    check_bench_row(cJSON_GetArrayItem(json, 0), forced_program, 1);
    const double share = cli_number(cJSON_GetArrayItem(json, 0), "router_share");
    assert_true(share > 0 && share < 1);
    cJSON_Delete(json);
    json = cli_expect_json(BENCH("json", "--depth", "full"));
    check_bench_row(cJSON_GetArrayItem(json, 0), "0-5", 0);
    cJSON_Delete(json);

    struct cli_outcome outcome = BENCH("md", "--program", "none");
    cli_expect_text(outcome.out, "| time / full | range | layers saved | of saving | KV / full | routers | program |");
    cli_expect_text(outcome.out, "| median ms | 99 % | slowest | late by < 0.1 ms |");
    expect_lines(outcome.out, "| llama ", 5); /* two of speeds, two of depths, one of generated tokens */
    cli_expect_text(outcome.out, " | 6 of 6 | ");
    cli_expect_text(outcome.out, "% | 0.0000 | | none |\n");
    cli_expect_success(outcome);
    outcome = BENCH("csv", "--program=0-2");
    cli_expect_text(outcome.out, ",program,layers_saved,full_median_ts,no_block_median_ts,time_ratio,");
    cli_expect_text(outcome.out, ",\"0-2\",3,");
    cli_expect_text(outcome.out, ",0.5,,"); /* KV, and no routers */
    cli_expect_success(outcome);
}

/* ---- The real model ---- */

/* Some of the questions that the reference computed in float32, with its routers made int8: the same programs. */
static void test_real_route(void **state) {
    (void)state;
    const char *model = cli_require_model(), *shared = getenv("DRLLM_TEST_SHARED");
    enum { STEP = 5, MOST_LINES = 40, LAYERS = 30, FIELDS = 6 + 2 * LAYERS };
    char in[CLI_PATH_BYTES], routers[CLI_PATH_BYTES], some[CLI_PATH_BYTES];
    if (shared == NULL) {
        drllm_skip("needs DRLLM_TEST_SHARED");
    }
    (void)snprintf(in, sizeof in, "%s/ref/routers-f32.gguf", shared);
    cli_path("real-routers.gguf", routers);
    cli_expect_success(RUN("routers", "-m", model, in, routers));
    (void)snprintf(in, sizeof in, "%s/ref/routed.jsonl", shared);
    size_t size = 0;
    char *text = cli_read(in, &size), *next = text, *used = text;
    cJSON *lines = cJSON_CreateArray();
    for (size_t i = 0; *next != '\0'; i++) {
        char *line = next;
        next += strcspn(next, "\n");
        next += *next == '\n';
        if (i % STEP == 0) {
            cJSON_AddItemToArray(lines, cJSON_ParseWithLength(line, (size_t)(next - line)));
            memmove(used, line, (size_t)(next - line));
            used += next - line;
        }
    }
    assert_int_equal(cJSON_GetArraySize(lines), MOST_LINES / STEP);
    cli_write(cli_path("some.jsonl", some), text, (size_t)(used - text));
    free(text);

    struct cli_outcome outcome = RUN("route", "-m", model, "-r", routers, "-f", some);
    cli_expect_code(&outcome, 0);
    char *row = strchr(outcome.out, '\n') + 1;
    const cJSON *line;
    cJSON_ArrayForEach(line, lines) {
        uint8_t counts[LAYERS];
        char program[8 * LAYERS], part[CLI_PATH_BYTES];
        const cJSON *count, *list = cli_list(line, "program", LAYERS);
        size_t n = 0;
        cJSON_ArrayForEach(count, list) {
            counts[n++] = (uint8_t)count->valueint;
        }
        assert_int_equal(drllm_program_format(counts, LAYERS, program, sizeof program, &n), DRLLM_OK);
        (void)snprintf(part, sizeof part, ",\"%s\",", program);
        char *end = strchr(row, '\n');
        assert_non_null(end);
        *end = '\0';
        cli_expect_text(row, part);
        row = end + 1;
    }
    assert_string_equal(row, "");
    cJSON_Delete(lines);
    cli_outcome_free(&outcome);
}

static void test_real_programs(void **state) {
    (void)state;
    const char *model = cli_require_model();
    enum { LAYERS = 30 };
    static const char program[] = "0-9,11-19,21-29";
    char path[CLI_PATH_BYTES];
    uint8_t counts[LAYERS];
    assert_int_equal(drllm_program_parse(program, LAYERS, counts, NULL), DRLLM_OK);
    const struct router_options options = {
        .n_layers = LAYERS, .d_model = 576, .n_hidden = 8, .n_windows = 8, .program = counts, .certainty = 5.0f};
    write_routers(cli_path("real-forced.gguf", path), &options);
#define REAL(...) RUN_INPUT("Say hello.\nAnd now?\n", "chat", "-m", model, "--temp", "0", "-n", "8", "-v", __VA_ARGS__)
    struct cli_outcome outcome = REAL("-r", path);
    expect_lines(outcome.err, "layers: 28 of 30 run, 2 saved; program 0-9,11-19,21-29", 2);
    expect_same_output(REAL("--program", program), outcome);
    expect_other_output(REAL("--program", program), REAL("--depth", "full"));
#undef REAL
}

/* ---- */

static int set_up(void **state) {
    (void)state;
    if (cli_make_folder() != 0) {
        return -1;
    }
    struct tiny_options options = tiny_default_options();
    options.n_layers = N_LAYERS;
    cli_write_model(cli_path("deep.gguf", deep), &options, "deep", true);
    options.seed = 2;
    cli_write_model(cli_path("other.gguf", other), &options, "other", true);
    cli_write_spoken_model(cli_path("spoken.gguf", spoken), N_LAYERS, true);
    write_deep_routers();
    write_letter_routers();
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    return cli_remove_folder();
}

int drllm_test_cli_depth(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_depth_help),
        cmocka_unit_test(test_depth_conflicts),
        cmocka_unit_test(test_bad_programs),
        cmocka_unit_test(test_bad_routers),
        cmocka_unit_test(test_logits_programs),
        cmocka_unit_test(test_logits_layers),
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_run_routing),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_score_depths),
        cmocka_unit_test(test_score_batch_depths),
        cmocka_unit_test(test_perplexity_depths),
        cmocka_unit_test(test_perplexity_halves),
        cmocka_unit_test(test_chat_depths),
        cmocka_unit_test(test_chat_reroute),
        cmocka_unit_test(test_routers),
        cmocka_unit_test(test_routers_options),
        cmocka_unit_test(test_routers_and_models),
        cmocka_unit_test(test_route_table),
        cmocka_unit_test(test_route_plot),
        cmocka_unit_test(test_route_outputs),
        cmocka_unit_test(test_bench_depths),
        cmocka_unit_test(test_real_route),
        cmocka_unit_test(test_real_programs),
    };
    return drllm_run_group("cli_depth", tests, set_up, tear_down);
}
