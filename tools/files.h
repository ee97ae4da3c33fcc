/* Whole files in, and files out that appear complete or not at all. */
#ifndef DRLLM_TOOLS_FILES_H
#define DRLLM_TOOLS_FILES_H

#include "tools/common.h"

/* Read a file, or standard input for "-", that holds text of at most 1 GiB. Returns an exit code. */
int read_text(const struct command *command, const char *path, struct text *text);
/* Drop one line end from the end of a prompt's file, as editors put one there and llama.cpp drops it. */
void drop_last_newline(struct text *text);

/* Where what is written goes: beside `path`, until all is there. Devices and pipes are written directly. */
struct output_file {
    char *path;      /* of the file that is to be there, links followed */
    char *temporary; /* NULL: path itself is written */
    FILE *stream;
};

/* "-" is standard output. Each returns an exit code. */
int output_open(const struct command *command, const char *path, struct output_file *output);
/* Close and give it its name. On failure the temporary file is gone and an older file is as it was. */
int output_commit(const struct command *command, struct output_file *output);
/* Close and remove what there is. Also after a failed open, and twice. */
void output_discard(struct output_file *output);

/* output_open, all bytes, output_commit. */
int write_file(const struct command *command, const char *path, const void *data, size_t size);

#endif
