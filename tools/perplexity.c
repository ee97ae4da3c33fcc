/* drllm perplexity: how well a text is predicted, by llama.cpp's definition.
 *
 * The whole text is tokenised and cut into chunks of n tokens, in order; a rest shorter than a chunk is left out. In
 * each chunk, whose first token becomes BOS if the model wants one, positions n/2 .. n-2 predict the token that
 * follows. Routers decide by the first half alone, so that they do not see what is to be predicted. */
#include "platform/clock.h"
#include "runtime/internal.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/depth.h"
#include "tools/files.h"
#include "tools/interrupt.h"
#include "tools/json.h"

#include <math.h>
#include <stdlib.h>

struct perplexity_options {
    struct model_options model;
    struct depth_options depth;
    const char *file;
    int64_t chunks;
    bool json;
};

struct measurement {
    const struct command *command;
    const struct perplexity_options *options;
    struct drllm_model_info info;
    const struct drllm_model *model;
    struct depth depth;
    struct drllm_session *session;
    struct tokens tokens;
    size_t n_context;
    size_t n_chunks;
    const int32_t *chunk; /* the one that runs */
    size_t first;         /* position in it where the call's tokens begin */
    size_t count;         /* predictions so far */
    double sum;           /* of -ln p */
    double sum_squares;
    struct depth_mean layers;
};

static int add_prediction(void *user, size_t position, const float *logits) {
    struct measurement *m = user;
    const size_t next = m->first + position + 1;
    if (next < m->n_context) {
        const double loss = -drllm_log_prob(m->model, logits, m->chunk[next]);
        m->sum += loss;
        m->sum_squares += loss * loss;
        m->count++;
    }
    return DRLLM_OK;
}

static double perplexity(const struct measurement *m) {
    return exp(m->sum / (double)m->count);
}

/* The standard error of the mean loss, carried over to the perplexity. */
static double uncertainty(const struct measurement *m) {
    const double mean = m->sum / (double)m->count;
    const double variance = m->sum_squares / (double)m->count - mean * mean;
    return variance > 0.0 && m->count > 1 ? perplexity(m) * sqrt(variance / (double)(m->count - 1)) : 0.0;
}

/* Returns a drllm_status. */
static int measure_chunk(struct measurement *m) {
    const size_t half = m->n_context / 2;
    int status = drllm_session_rewind(m->session, 0);
    if (status != DRLLM_OK) {
        return status;
    }
    if (m->depth.depth.kind != DRLLM_DEPTH_ROUTED) {
        return drllm_session_prefill_logits(m->session, m->chunk, m->n_context, half, add_prediction, m);
    }
    status = drllm_session_prefill(m->session, m->chunk, half);
    if (status != DRLLM_OK) {
        return status;
    }
    m->first = half;
    return drllm_session_extend_logits(m->session, m->chunk + half, m->n_context - half, 0, add_prediction, m);
}

static int measure_chunks(struct measurement *m) {
    const uint64_t start = drllm_clock_ns();
    for (size_t i = 0; i < m->n_chunks; i++) {
        int32_t *chunk = m->tokens.ids + i * m->n_context;
        if (m->info.add_bos && m->info.bos_token >= 0) {
            chunk[0] = m->info.bos_token;
        }
        m->chunk = chunk;
        const int status = measure_chunk(m);
        if (status != DRLLM_OK) {
            return session_error(m->command, m->session, "cannot compute the text", status);
        }
        depth_mean_add(&m->layers, m->session);
        const double seconds = (double)(drllm_clock_ns() - start) / 1e9;
        const double rest = seconds / (double)(i + 1) * (double)(m->n_chunks - i - 1);
        fprintf(stderr, "chunk %zu of %zu: PPL = %.4f; %.0f s to go\n", i + 1, m->n_chunks, perplexity(m), rest);
    }
    return TOOL_OK;
}

static int print_result(const struct measurement *m) {
    depth_mean_print(&m->layers, &m->depth);
    if (!m->options->json) {
        printf("PPL = %.4f +- %.4f\n", perplexity(m), uncertainty(m));
        return flush_output(m->command);
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "perplexity", perplexity(m));
    cJSON_AddNumberToObject(json, "uncertainty", uncertainty(m));
    cJSON_AddNumberToObject(json, "mean_loss", m->sum / (double)m->count);
    cJSON_AddNumberToObject(json, "n_chunks", (double)m->n_chunks);
    cJSON_AddNumberToObject(json, "n_context", (double)m->n_context);
    cJSON_AddNumberToObject(json, "n_predictions", (double)m->count);
    cJSON_AddNumberToObject(json, "layers_saved_mean", depth_mean_saved(&m->layers));
    if (m->depth.program != NULL) {
        char *program = program_text(m->depth.program, m->depth.n_layers);
        cJSON_AddStringToObject(json, "program", program);
        free(program);
    }
    return json_print(m->command, json, false);
}

static int cut_text(struct measurement *m, const struct drllm_model *model) {
    struct text text = {NULL, 0, 0};
    int exit_code = read_text(m->command, m->options->file, &text);
    drop_last_newline(&text);
    if (exit_code == TOOL_OK) {
        exit_code = tokenize(m->command, model, text.data, text.size, DRLLM_TOKENIZE_BOS, &m->tokens);
    }
    text_release(&text);
    m->n_chunks = m->tokens.count / m->n_context;
    if (exit_code == TOOL_OK && m->n_chunks == 0) {
        report(m->command, "the text is %zu tokens, fewer than a chunk of %zu; lower -c", m->tokens.count,
               m->n_context);
        return TOOL_FAILED;
    }
    if (m->options->chunks > 0 && (size_t)m->options->chunks < m->n_chunks) {
        m->n_chunks = (size_t)m->options->chunks;
    }
    return exit_code;
}

static int run(struct measurement *m) {
    const struct model_options *options = &m->options->model;
    struct drllm_model *model = NULL;
    int exit_code = open_model(m->command, options, &model);
    if (exit_code == TOOL_OK) {
        exit_code = depth_open(m->command, &m->options->depth, model, &m->depth);
    }
    if (exit_code == TOOL_OK) {
        drllm_model_get_info(model, &m->info);
        m->model = model;
        m->n_context = (size_t)options->context;
        exit_code = cut_text(m, model);
    }
    if (exit_code == TOOL_OK) {
        exit_code = open_session(m->command, model, m->n_context, (unsigned)options->threads, options->kv, &m->session);
    }
    if (exit_code == TOOL_OK) {
        exit_code = depth_set(m->command, m->session, &m->depth);
    }
    if (exit_code == TOOL_OK) {
        interrupt_install();
        interrupt_watch(m->session);
        exit_code = measure_chunks(m);
    }
    if (exit_code == TOOL_OK) {
        exit_code = print_result(m);
    }
    interrupt_watch(NULL);
    drllm_session_close(m->session);
    depth_close(&m->depth);
    drllm_model_close(model);
    tokens_release(&m->tokens);
    return exit_code;
}

int perplexity_main(const struct command *command, int argc, char **argv) {
    struct perplexity_options options = {.model = model_options_default(), .depth = depth_options_default()};
    options.model.context = 512;
    const struct option table[] = {
        MODEL_FILE_OPTION(&options.model),
        OPT_TEXT('f', "file", &options.file, "FILE", "the text; -: standard input"),
        OPT_INTEGER('c', "ctx-size", &options.model.context, "N", 4, 1 << 30, "tokens a chunk"),
        OPT_INTEGER(0, "chunks", &options.chunks, "N", 0, 1 << 30, "most chunks to compute; 0: all"),
        DEPTH_OPTIONS(&options.depth),
        OPT_FLAG(0, "json", &options.json, "print one JSON object"),
        THREADS_OPTION(&options.model),
        COMPUTE_OPTIONS(&options.model),
    };
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, NULL, &exit_code)) {
        struct measurement measurement = {.command = command, .options = &options};
        exit_code = options.model.path == NULL ? usage_error(command, "no model: -m FILE is missing")
                    : options.file == NULL     ? usage_error(command, "no text: -f FILE is missing")
                                               : depth_check(command, &options.depth);
        if (exit_code == TOOL_OK) {
            exit_code = run(&measurement);
        }
    }
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
