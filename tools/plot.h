/* A line plot: one self-contained SVG file. */
#ifndef DRLLM_TOOLS_PLOT_H
#define DRLLM_TOOLS_PLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct plot_point {
    double x, y;
    double low, high; /* of the bar through it; NAN: none */
};

struct plot_line {
    const char *name;
    const struct plot_point *points; /* joined in this order */
    size_t n_points;
};

/* Texts are UTF-8 and may hold what XML must escape or cannot hold. Numbers are finite, but for missing bars. */
struct plot {
    const char *title;
    const char *subtitle;
    const char *x_label;
    const char *y_label;
    const struct plot_line *lines;
    size_t n_lines;
    bool logarithmic; /* both axes; numbers are positive, bars are not drawn */
};

/* The stream remembers a failure. */
void plot_write(FILE *stream, const struct plot *plot);

#endif
