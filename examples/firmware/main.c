/* A language model on a board without an operating system: reads a prompt, decides which layers it needs, answers.
 *
 * command line (semihosting):  MODE N_TOKENS PROMPT [| CHOICE]...
 *   MODE      full, routed (where there are routers: those of the packed model), optionally with ,portable
 *   N_TOKENS  most tokens of the answer
 *   CHOICE    instead of an answer of its own, the likeliest of these is taken
 * Without one it says what the model is, and answers a prompt of its own. \n in the prompt is a line's end. */
#include "board.h"

#include "runtime/drllm_fw.h"

#include <string.h>

enum { MOST_COMMAND = 1024, MOST_CONTEXT = 256, MOST_CHOICES = 4, MOST_LAYERS = 128 };

/* ---- Writing ---- */

static void write_text(const char *text) {
    board_write(text, strlen(text));
}

static void write_number(uint64_t number) {
    char digits[20];
    size_t first = sizeof digits;
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    board_write(digits + first, sizeof digits - first);
}

static void write_line(const char *name, uint64_t number) {
    write_text(name);
    write_number(number);
    write_text("\n");
}

static void check(int status, const struct drllm_error *error) {
    if (status != DRLLM_OK) {
        write_text(drllm_strerror(status));
        write_text(": ");
        write_text(error->detail);
        write_text("\n");
        board_exit(1);
    }
}

static void check_session(int status, const struct drllm_fw *fw) {
    struct drllm_error error = {0};
    if (status != DRLLM_OK) {
        strncpy(error.detail, drllm_session_last_error(fw->session), sizeof error.detail - 1);
    }
    check(status, &error);
}

/* ---- The command ---- */

struct command {
    bool full, portable;
    size_t n_tokens;
    char *prompt;
    char *choices[MOST_CHOICES];
    size_t n_choices;
};

/* Cut the text in place. */
static char *cut(char **rest, char separator) {
    char *begin = *rest, *end = strchr(begin, separator);
    *rest = end != NULL ? end + 1 : begin + strlen(begin);
    if (end != NULL) {
        *end = '\0';
    }
    return begin;
}

static void unescape(char *text) {
    char *to = text;
    for (; *text != '\0'; text++) {
        const bool line = text[0] == '\\' && text[1] == 'n';
        *to++ = line ? '\n' : *text;
        text += line;
    }
    *to = '\0';
}

static struct command read_command(char *text) {
    struct command command = {.n_tokens = 0};
    char *rest = text;
    const char *mode = cut(&rest, ' ');
    command.full = strncmp(mode, "full", 4) == 0;
    command.portable = strchr(mode, ',') != NULL;
    for (const char *digit = cut(&rest, ' '); *digit >= '0' && *digit <= '9'; digit++) {
        command.n_tokens = command.n_tokens * 10 + (size_t)(*digit - '0');
    }
    command.prompt = cut(&rest, '|');
    unescape(command.prompt);
    while (*rest != '\0' && command.n_choices < MOST_CHOICES) {
        command.choices[command.n_choices++] = cut(&rest, '|');
    }
    return command;
}

/* ---- Answering ---- */

static void show_ids(const char *name, const int32_t *ids, size_t n) {
    write_text(name);
    for (size_t i = 0; i < n; i++) {
        write_text(i > 0 ? "," : "");
        write_number((uint64_t)ids[i]);
    }
    write_text("\n");
}

/* A letter a block: `.` skipped, `#` executed, `2` repeated. */
static void show_layers(const struct drllm_fw *fw, size_t n_layers) {
    uint8_t counts[MOST_LAYERS];
    char drawing[MOST_LAYERS], text[1024];
    size_t size = 0;
    int saved = 0;
    if (n_layers > MOST_LAYERS || drllm_session_get_program(fw->session, counts) != DRLLM_OK) {
        return;
    }
    for (size_t i = 0; i < n_layers; i++) {
        drawing[i] = ".#2"[counts[i]];
    }
    (void)drllm_session_get_layers_saved(fw->session, &saved);
    write_text("layers: ");
    board_write(drawing, n_layers);
    if (drllm_program_format(counts, n_layers, text, sizeof text, &size) == DRLLM_OK) {
        write_text(" ");
        write_text(text);
    }
    write_text("\n");
    write_line("layers saved: ", saved > 0 ? (uint64_t)saved : 0);
}

static bool on_text(void *user, int32_t token, const char *text, size_t size) {
    int32_t *last = user;
    *last = token;
    board_write(text, size);
    return true;
}

static void generate(const struct drllm_fw *fw, size_t n_tokens) {
    struct drllm_sampler sampler;
    struct drllm_sampler_params greedy = drllm_sampler_default_params();
    struct drllm_generate_params params = drllm_generate_default_params();
    struct drllm_error error = {0};
    struct drllm_generation generation;
    int32_t ids[MOST_CONTEXT];
    int32_t last = -1;
    const size_t n_prompt = drllm_session_n_tokens(fw->session);
    greedy.temperature = 0.0f;
    params.max_tokens = n_tokens;
    params.on_text = on_text;
    params.user = &last;
    check(drllm_sampler_init(&sampler, &greedy, &error), &error);
    write_text("answer:");
    check_session(drllm_session_generate(fw->session, &sampler, &params, &generation), fw);
    write_text("\n");
    /* The context lacks the last one, after which nothing had to be computed. */
    const size_t n = drllm_session_n_tokens(fw->session) - n_prompt;
    memcpy(ids, drllm_session_tokens(fw->session) + n_prompt, n * sizeof *ids);
    if (n < generation.n_tokens && n < MOST_CONTEXT) {
        ids[n] = last;
    }
    show_ids("ids: ", ids, generation.n_tokens);
}

static void choose(const struct drllm_fw *fw, const struct command *command, const int32_t *prompt, size_t n_prompt) {
    struct drllm_choice choices[MOST_CHOICES];
    int32_t ids[MOST_CHOICES][16];
    struct drllm_error error = {0};
    size_t best = 0;
    for (size_t i = 0; i < command->n_choices; i++) {
        size_t n = 0;
        check(drllm_tokenize(fw->model, command->choices[i], strlen(command->choices[i]), 0, ids[i], 16, &n, &error),
              &error);
        choices[i] = (struct drllm_choice){.tokens = ids[i], .n_tokens = n};
    }
    check_session(drllm_session_score(fw->session, prompt, n_prompt, choices, command->n_choices), fw);
    for (size_t i = 0; i < command->n_choices; i++) {
        best = choices[i].log_prob > choices[best].log_prob ? i : best;
        write_text("choice:");
        write_text(command->choices[i]);
        write_line(" -ln p * 1000: ", (uint64_t)(choices[i].log_prob * -1000.0 + 0.5));
    }
    write_text("answer:");
    write_text(command->choices[best]);
    write_text("\n");
}

static void answer(const struct drllm_fw *fw, const struct command *command) {
    int32_t prompt[MOST_CONTEXT];
    struct drllm_model_info info;
    struct drllm_timings timings;
    struct drllm_error error = {0};
    size_t n_prompt = 0;
    drllm_model_get_info(fw->model, &info);
    write_text("model: ");
    write_text(info.name);
    write_text(" ");
    write_text(info.quantization);
    write_text(" on ");
    write_text(info.backend);
    write_text("\n");
    check(drllm_tokenize(fw->model, command->prompt, strlen(command->prompt), DRLLM_TOKENIZE_BOS, prompt, MOST_CONTEXT,
                         &n_prompt, &error),
          &error);
    show_ids("prompt: ", prompt, n_prompt);
    if (command->full) {
        const struct drllm_depth depth = drllm_depth_default();
        check_session(drllm_session_set_depth(fw->session, &depth), fw);
    }
    if (command->n_choices > 0) {
        choose(fw, command, prompt, n_prompt);
        show_layers(fw, info.n_layers);
    } else {
        check_session(drllm_session_prefill(fw->session, prompt, n_prompt), fw);
        show_layers(fw, info.n_layers);
        generate(fw, command->n_tokens);
    }
    drllm_session_get_timings(fw->session, &timings);
    write_line("prompt ns: ", timings.prefill_ns);
    write_line("routers ns: ", timings.router_ns);
    write_line("decode ns: ", timings.decode_ns);
    write_line("decoded tokens: ", timings.n_decode);
}

int main(void) {
    static char text[MOST_COMMAND];
    static char own[] = "routed 16 Once upon a time";
    struct drllm_fw fw;
    struct drllm_error error = {0};
    struct drllm_fw_params params = drllm_fw_default_params();
    const struct board_memory memory = board_memory();
    size_t bytes = 0;
    board_command(text, sizeof text);
    const struct command command = read_command(text[0] != '\0' ? text : own);
    params.n_context = MOST_CONTEXT;
    params.cpu_mask = command.portable ? 0 : UINT64_MAX;
    check(drllm_fw_arena_bytes(memory.model, memory.model_size, &params, &bytes, &error), &error);
    write_line("arena bytes: ", bytes);
    if (bytes > memory.arena_size) {
        write_text("the board has not so much\n");
        return 1;
    }
    check(drllm_fw_open(memory.arena, bytes, memory.model, memory.model_size, &params, &fw, &error), &error);
    answer(&fw, &command);
    write_line("arena used: ", drllm_fw_arena_used(&fw));
    return 0;
}
