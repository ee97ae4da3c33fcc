/* The subcommands of drllm, each in the file of its name. */
#ifndef DRLLM_TOOLS_COMMANDS_H
#define DRLLM_TOOLS_COMMANDS_H

#include "tools/options.h"

int run_main(const struct command *command, int argc, char **argv);
int chat_main(const struct command *command, int argc, char **argv);
int score_main(const struct command *command, int argc, char **argv);
int perplexity_main(const struct command *command, int argc, char **argv);
int logits_main(const struct command *command, int argc, char **argv);
int bench_main(const struct command *command, int argc, char **argv);
int inspect_main(const struct command *command, int argc, char **argv);
int tokenize_main(const struct command *command, int argc, char **argv);
int pack_main(const struct command *command, int argc, char **argv);
int quantize_main(const struct command *command, int argc, char **argv);
int synthesize_main(const struct command *command, int argc, char **argv);
int convert_main(const struct command *command, int argc, char **argv);
int search_main(const struct command *command, int argc, char **argv);
int eval_main(const struct command *command, int argc, char **argv);
int train_main(const struct command *command, int argc, char **argv);
int routers_main(const struct command *command, int argc, char **argv);
int serve_main(const struct command *command, int argc, char **argv);
int route_main(const struct command *command, int argc, char **argv);

#endif
