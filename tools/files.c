#include "tools/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_TEXT = 1 << 30 };

static int read_all(const struct command *command, int descriptor, const char *path, struct text *text) {
    enum { STEP = 1 << 16 };
    char *buffer = allocate_bytes(STEP);
    int exit_code = TOOL_OK;
    for (;;) {
        const ssize_t n = read(descriptor, buffer, STEP);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            report(command, "cannot read %s: %s", path, strerror(errno));
            exit_code = TOOL_FAILED;
        } else if (text->size + (size_t)n > MOST_TEXT) {
            report(command, "%s is larger than 1 GiB", path);
            exit_code = TOOL_FAILED;
        } else {
            text_append(text, buffer, (size_t)n);
        }
        if (n == 0 || exit_code != TOOL_OK) {
            break;
        }
    }
    free(buffer);
    return exit_code;
}

int read_text(const struct command *command, const char *path, struct text *text) {
    if (strcmp(path, "-") == 0) {
        return read_all(command, STDIN_FILENO, "standard input", text);
    }
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        report(command, "cannot open %s: %s", path, strerror(errno));
        return TOOL_FAILED;
    }
    const int exit_code = read_all(command, descriptor, path, text);
    close(descriptor);
    return exit_code;
}

void drop_last_newline(struct text *text) {
    if (text->size != 0 && text->data[text->size - 1] == '\n') {
        text->data[--text->size] = '\0';
    }
}

/* ---- Output ---- */

static int cannot_write(const struct command *command, const char *path) {
    report(command, "cannot write %s: %s", path, strerror(errno));
    return TOOL_FAILED;
}

/* The mode of a file that is replaced stays; a new one gets what open would give. */
static mode_t mode_for(const char *path) {
    struct stat info;
    if (stat(path, &info) == 0) {
        return info.st_mode & 0777;
    }
    const mode_t mask = umask(0);
    umask(mask);
    return 0666 & ~mask;
}

static int open_temporary(struct output_file *output) {
    const size_t size = strlen(output->path) + sizeof ".XXXXXX";
    output->temporary = allocate_bytes(size);
    snprintf(output->temporary, size, "%s.XXXXXX", output->path);
    const int descriptor = mkostemp(output->temporary, O_CLOEXEC);
    if (descriptor < 0) {
        free(output->temporary);
        output->temporary = NULL;
        return -1;
    }
    fchmod(descriptor, mode_for(output->path)); /* at worst only the owner may read it */
    return descriptor;
}

int output_open(const struct command *command, const char *path, struct output_file *output) {
    *output = (struct output_file){NULL, NULL, NULL};
    if (strcmp(path, "-") == 0) {
        output->stream = stdout;
        return TOOL_OK;
    }
    output->path = realpath(path, NULL);
    if (output->path == NULL) {
        output->path = strdup(path);
    }
    if (output->path == NULL) {
        return cannot_write(command, path);
    }
    struct stat info;
    const bool is_special = stat(output->path, &info) == 0 && !S_ISREG(info.st_mode);
    const int descriptor = is_special ? open(output->path, O_WRONLY | O_CLOEXEC) : open_temporary(output);
    output->stream = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    if (output->stream == NULL) {
        const int exit_code = cannot_write(command, path);
        if (descriptor >= 0) {
            close(descriptor);
        }
        output_discard(output);
        return exit_code;
    }
    return TOOL_OK;
}

static bool flush_file(const struct output_file *output) {
    if (ferror(output->stream) != 0 || fflush(output->stream) != 0) {
        return false;
    }
    /* A name must not appear before its contents are safe from a power cut. */
    return output->temporary == NULL || fsync(fileno(output->stream)) == 0;
}

int output_commit(const struct command *command, struct output_file *output) {
    int exit_code = TOOL_OK;
    if (output->stream == stdout) {
        exit_code = flush_output(command);
    } else if (!flush_file(output)) {
        exit_code = cannot_write(command, output->path);
    } else {
        FILE *stream = output->stream;
        output->stream = NULL;
        if (fclose(stream) != 0 || (output->temporary != NULL && rename(output->temporary, output->path) != 0)) {
            exit_code = cannot_write(command, output->path);
        } else {
            free(output->temporary);
            output->temporary = NULL;
        }
    }
    output_discard(output);
    return exit_code;
}

void output_discard(struct output_file *output) {
    if (output->stream != NULL && output->stream != stdout) {
        fclose(output->stream);
    }
    if (output->temporary != NULL) {
        unlink(output->temporary);
    }
    free(output->temporary);
    free(output->path);
    *output = (struct output_file){NULL, NULL, NULL};
}

int write_file(const struct command *command, const char *path, const void *data, size_t size) {
    struct output_file output;
    const int exit_code = output_open(command, path, &output);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    fwrite(data, 1, size, output.stream); /* the stream remembers a failure */
    return output_commit(command, &output);
}
