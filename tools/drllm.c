/* The program drllm: find the subcommand and run it. */
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/json.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

/* Of every command that runs a model. */
#define DEPTH_NOTES                                                                                                   \
    "\nAll blocks run, or those of --program, or with -r those that the routers choose for the prompt. --program P\n" \
    "is short for --depth static:P. With -r, --depth full and --depth static:P leave the routers out."

static const struct command commands[] = {
    {"run", "-m FILE (-p TEXT | -f FILE) [OPTION]...", "Answer one prompt.",
     "The prompt is put into the model's chat template unless --raw is given. The text goes to stdout as it comes, "
     "timings\n"
     "go to stderr. Ctrl-C stops the answer." DEPTH_NOTES,
     run_main},
    {"chat", "-m FILE [OPTION]...", "Talk with a model.",
     "Lines: /reset forgets the conversation, /quit ends it, /help lists these; a line that ends with \\ goes on in "
     "the next.\n"
     "Ctrl-C stops an answer; at the prompt it ends the program, as Ctrl-D does." DEPTH_NOTES,
     chat_main},
    {"serve", "-m FILE [OPTION]...", "Answer HTTP requests as OpenAI's service does.",
     "POST /v1/completions and /v1/chat/completions, also as streams; GET /v1/models and /health; /tokenize and\n"
     "/detokenize. Requests are answered one at a time; those that find the queue full get status 429. Beside "
     "OpenAI's\n"
     "fields a request may hold top_k, min_p, repeat_penalty, ignore_eos, and its depth: depth (\"full\", \"routed\" "
     "or\n"
     "\"static:PROGRAM\"), program, save_layers, router_p. What it leaves out is as the options say. With -r the "
     "routers\n"
     "of a prompt that is scored (echo and logprobs) see all of it. SIGTERM and Ctrl-C stop the server." DEPTH_NOTES,
     serve_main},
    {"score", "-m FILE (-p TEXT | -f FILE) --choice TEXT... | -m FILE -d FILE [OPTION]...",
     "Say how likely each of some given answers is after a prompt.",
     "A choice is tokenised apart from the prompt and appended; write the blank in front of a word into the choice.\n"
     "A choice's score is its log-probability divided by its length. With -d each line of the file is a JSON object\n"
     "{\"prompt\": TEXT, \"choices\": [TEXT, ...], \"answer\": INDEX} (the answer may be missing), and for each one "
     "line of\n"
     "JSON is written; the accuracy goes to stderr. A bad line gives a message, {\"line\": N, \"error\": TEXT} and "
     "exit status 1." DEPTH_NOTES,
     score_main},
    {"perplexity", "-m FILE -f FILE [OPTION]...", "Measure how well a model predicts a text, as llama.cpp does.",
     "The text is cut into chunks of the context's size; in each, the tokens of the second half are predicted. A line "
     "end at\n"
     "the end of the file is left out, special tokens in it are plain text. Routers see the first half of each "
     "chunk." DEPTH_NOTES,
     perplexity_main},
    {"logits", "-m FILE (-p TEXT | -f FILE | --ids LIST) [OPTION]...",
     "Compute what comes after a prompt, as raw numbers.",
     "Files are little-endian float32. -o: the logits of the last position. --layers: the output of every block and of "
     "the\n"
     "final norm at the last position, n_layers + 1 rows of d_model." DEPTH_NOTES,
     logits_main},
    {"bench", "(-m FILE... | --synthetic SHAPE... | --kernels) [OPTION]...", "Measure speed.",
     "One row for each prompt length and each length of generation, with each number of threads; each is run once to "
     "warm up.\n"
     "share_of_bandwidth: the bytes of weights, keys and values that a second's tokens read, divided by the bytes that "
     "as many\n"
     "threads can read from memory in a second, measured in the same run. Tokens that come late are counted, by how "
     "much\n"
     "later than the median they come, and beside them passes that only read as many bytes from memory.\n"
     "With --routers, --program or --depth each test also runs at full depth and without any block, in turn. The\n"
     "ratios are medians over the repetitions; 'of saving' is the time saved as a share of what the saved blocks "
     "take.\n"
     "--synthetic measures random weights in the shape of a model (see synthesize), written to $TMPDIR or /tmp and "
     "read "
     "as\n"
     "any file. --kernels measures each matrix kernel and XNNPACK's, K x N weights times M tokens, on the matrices of "
     "models:\n"
     "with M = 1 out of memory and out of the cache; of an output head only M = 1. Figures are the best of the "
     "repetitions;\n"
     "activations are quantised before. 'of peak' is the share of what the kernel's instructions do without loads, 'of "
     "memory'\n"
     "that of the bandwidth, both measured in the same run. Slow kernels are measured on a part of the N rows. The "
     "last "
     "table\n"
     "names the fastest kernel for each format and kind of matrix; (!): not the one that runs unasked. --plot draws "
     "them, "
     "and\n"
     "the models of -m, below what memory and registers allow.",
     bench_main},
    {"convert", "FORMAT IN... [-o FILE] [OPTION]...", "Turn question sets in their own file formats into JSON lines.",
     "FORMAT is arc, openbookqa, piqa, agieval, gsm8k, math or dart-math (JSON lines), truthfulqa (mc_task.json),\n"
     "squad (JSON of SQuAD 2), mmlu (CSV without a head), gpqa (CSV) or aime (CSV or JSON lines). Lines that are\n"
     "written hold task, prompt, choices and answer, or task, prompt, answer, match and max_tokens. The choices of\n"
     "truthfulqa and gpqa, whose files put the right one first, are shuffled. A bad record gives a message and exit\n"
     "status 1; the others are written.",
     convert_main},
    {"search", "(-m FILE -d FILE... | --merge FILE...) -o FILE [OPTION]...",
     "Find layer programs that answer questions better, or with fewer blocks.",
     "Questions are lines of JSON: {\"task\", \"prompt\", \"choices\", \"answer\"}. Programs are searched on some "
     "questions "
     "of a\n"
     "group and verified on others; the labels name the program of each question's group, full depth where none "
     "holds.\n"
     "An interrupted search goes on when it is started again (OUTPUT.state). Shards (--shard 1/4 .. 4/4, each with an\n"
     "output of its own) search on several machines; --merge puts their labels together, in the order of the "
     "questions.",
     search_main},
    {"eval", "-m FILE -d FILE... [OPTION]...",
     "Measure accuracy and layers saved: full depth, routed, and programs that are the same for all questions.",
     "Questions are lines of JSON as for search. full: all blocks. routed: the routers alone, and with each budget of\n"
     "--budgets. The others save as many layers as routed saves in the mean (without routers: as the budgets say):\n"
     "static: the best program found on the questions of --train; shortgpt: without the blocks that change the hidden\n"
     "states least, on the prompts of --train or the questions'; random: without blocks drawn, the mean of --seeds\n"
     "masks. Intervals are 95 %: Wilson's for a task, normal for the mean over tasks. Accuracies in JSON and CSV are\n"
     "shares of 1. Times are of one thread, all ways in turn, the least of three rounds.",
     eval_main},
    {"inspect", "FILE [OPTION]...", "Show what a GGUF file or a packed model holds.", NULL, inspect_main},
    {"pack", "MODEL -o FILE [OPTION]...", "Make a packed model, which starts at once.",
     "MODEL is a GGUF file. The packed model holds the same as it lies in memory: it is mapped and used in place, and\n"
     "gives the same answers, bit for bit. It goes wherever -m FILE is, and with --routers also where -r FILE is. It\n"
     "serves all processors, but only this version of its format; keep the GGUF file.",
     pack_main},
    {"tokenize", "-m FILE (-p TEXT... | -f FILE) [OPTION]...", "Turn texts into token ids, or ids into text.",
     "One line of ids a text. The model may be a file that holds only a vocabulary. With --decode the texts are ids, "
     "apart by\n"
     "blanks or commas, and the result is text: of a whole file without anything added, otherwise one line each.",
     tokenize_main},
    {"quantize", "IN OUT TYPE [OPTION]...", "Write a model in another number format.",
     "TYPE is f32, f16, bf16, q4_0, q4_1, q8_0 or q8c (int8 with one scale per row, this program's own). Vectors, such "
     "as\n"
     "norms, stay as they are; the embedding and the output head become q8_0 where TYPE is smaller or q8c, unless "
     "--pure.\n"
     "A matrix whose rows are no whole number of blocks becomes f16.",
     quantize_main},
    {"synthesize", "SHAPE -o FILE [OPTION]...", "Write a model of a known shape with random weights, to measure speed.",
     "SHAPE is smollm2-135m, llama-3.2-1b, tinyllama-1.1b or llama-3.2-3b; SHAPE:N has N layers. llama.cpp runs the "
     "file "
     "as\n"
     "well. The embedding and the output head are q8_0 unless --pure. Equal seeds give equal files.",
     synthesize_main},
    {"train", "-m FILE -l FILE... -o FILE [OPTION]...", "Train routers that give prompts their layer programs.",
     "Each line of a file is a JSON object {\"task\": TEXT, \"prompt\": TEXT, \"program\": \"0-14,16x2,18-29\"}; "
     "the task\n"
     "may be missing, other fields are ignored. Guard prompts need no program. The hidden states that the routers see "
     "are\n"
     "kept in a file (18 kB a prompt and block of a model of width 576, with 8 windows) until the routers are there; "
     "after\n"
     "Ctrl-C the same command goes on there. A bad line gives a message and, at the end, exit status 1.",
     train_main},
    {"routers", "-m FILE IN OUT [OPTION]...",
     "Make a router file ready for a model: check it, name the model, quantise.",
     "IN is a router file, of float32 or int8 weights, that names this model or none; OUT may be the same file. The\n"
     "calibration and the record of the training are kept.",
     routers_main},
    {"route", "-m FILE -f FILE... (-r FILE | --program LIST) [OPTION]...",
     "Show which blocks routers skip and repeat for many prompts.",
     "Each line of a file is a JSON object {\"prompt\": TEXT, \"task\": TEXT}; the task may be missing, other fields\n"
     "are ignored. A prompt is taken as it is. The result is one line of CSV a prompt and, with --plot, a heat map,\n"
     "blocks x prompts, with the prompts of a task together; means go to stderr. A bad line gives a message and exit\n"
     "status 1." DEPTH_NOTES,
     route_main},
};

enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

/* For messages before a subcommand is known. */
static void print_overview(FILE *stream) {
    fprintf(stream, "usage: drllm COMMAND [OPTION]...\n\n"
                    "An int8/int4 runtime for Llama models.\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        fprintf(stream, "  %-12s %s\n", commands[i].name, commands[i].summary);
    }
    fprintf(stream, "\n'drllm COMMAND --help' lists the options of a command.\n"
                    "exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted\n");
}

static const struct command *find_command(const char *name) {
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

/* What is buffered is lost silently unless the close is looked at. */
static int close_output(int exit_code) {
    const bool failed = ferror(stdout) != 0;
    if ((fclose(stdout) != 0 || failed) && exit_code == TOOL_OK) {
        fprintf(stderr, "drllm: cannot write to standard output: %s\n", strerror(errno));
        return TOOL_FAILED;
    }
    return exit_code;
}

static int dispatch(int argc, char **argv) {
    if (argc < 2) {
        print_overview(stderr);
        return TOOL_USAGE;
    }
    const bool asks_help = strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0;
    if (asks_help && argc == 2) {
        print_overview(stdout);
        return TOOL_OK;
    }
    const char *name = asks_help ? argv[2] : argv[1];
    const struct command *command = find_command(name);
    if (command == NULL) {
        fprintf(stderr, "drllm: unknown command '%s'\nTry 'drllm --help'.\n", name);
        return TOOL_USAGE;
    }
    if (asks_help) {
        char help[] = "--help";
        char *arguments[] = {help, NULL};
        return command->run(command, 1, arguments);
    }
    return command->run(command, argc - 2, argv + 2);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, with a message and status 1 */
    json_init();
    return close_output(dispatch(argc, argv));
}
