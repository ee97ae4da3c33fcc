/* A picture of layer programs: one self-contained SVG file, a row for each prompt and a column for each block. */
#ifndef DRLLM_TOOLS_HEATMAP_H
#define DRLLM_TOOLS_HEATMAP_H

#include "runtime/drllm.h"

#include <stdio.h>

struct heatmap_row {
    size_t group;          /* rows of a group stand together, in the order in which they come */
    const uint8_t *counts; /* [n_blocks], as in a program */
    const float *margins;  /* [n_blocks]: how clear each decision was; NULL where all rows have none */
};

/* Texts are UTF-8 and may hold what XML must escape or cannot hold. */
struct heatmap {
    const char *title;
    const char *subtitle;
    size_t n_blocks;
    const char *const *groups; /* their names */
    size_t n_groups;
    const struct heatmap_row *rows;
    size_t n_rows;
};

/* The stream remembers a failure. */
void heatmap_write(FILE *stream, const struct heatmap *map);

#endif
