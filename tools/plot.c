#include "tools/plot.h"

#include "tools/svg.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* Pixels. */
enum { WIDTH = 760, HEIGHT = 500, LEFT = 70, RIGHT = 150, TOP = 66, BOTTOM = 56, TICK = 5, LEGEND_STEP = 24 };

/* Okabe and Ito's palette, which all kinds of colour vision tell apart; lines differ in their marks as well. */
static const char *const colours[] = {"#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};
enum { N_COLOURS = sizeof colours / sizeof colours[0], N_MARKS = 5 };

struct axis {
    double low, high, step; /* of the values that it shows, and between its ticks */
    int decimals;
    bool logarithmic; /* low, high and step are powers of ten, ticks at 1, 2 and 5 times a whole one */
};

struct picture {
    FILE *stream;
    const struct plot *plot;
    struct axis x, y;
};

/* ---- Axes ---- */

/* Ticks at 1, 2 or 5 times a power of ten, about `n_steps` of them, and the range widened to whole steps. */
static struct axis make_axis(double low, double high, int n_steps) {
    static const double factors[] = {1.0, 2.0, 5.0, 10.0};
    if (!(high > low)) {
        const double middle = isfinite(low) ? low : 0.0;
        low = middle - 1.0;
        high = middle + 1.0;
    }
    const double rough = (high - low) / n_steps;
    const double power = pow(10.0, floor(log10(rough)));
    size_t i = 0;
    while (i + 1 < sizeof factors / sizeof factors[0] && factors[i] * power < rough * (1.0 - 1e-9)) {
        i++;
    }
    const double step = factors[i] * power;
    const double exponent = floor(log10(step) + 1e-9);
    return (struct axis){.low = floor(low / step + 1e-9) * step,
                         .high = ceil(high / step - 1e-9) * step,
                         .step = step,
                         .decimals = exponent < 0.0 ? (int)-exponent : 0};
}

static struct axis make_logarithmic_axis(double low, double high) {
    return (struct axis){.low = floor(log10(low) + 1e-9), .high = ceil(log10(high) - 1e-9), .logarithmic = true};
}

static void choose_axes(struct picture *picture) {
    const bool logarithmic = picture->plot->logarithmic;
    double x_low = logarithmic ? INFINITY : 0.0; /* 0: from where nothing is saved */
    double x_high = -INFINITY;
    double y_low = INFINITY;
    double y_high = -INFINITY;
    for (size_t i = 0; i < picture->plot->n_lines; i++) {
        const struct plot_line *line = &picture->plot->lines[i];
        for (size_t j = 0; j < line->n_points; j++) {
            const struct plot_point *point = &line->points[j];
            x_low = fmin(x_low, point->x);
            x_high = fmax(x_high, point->x);
            y_low = fmin(y_low, fmin(point->y, point->low)); /* fmin leaves out a NAN */
            y_high = fmax(y_high, fmax(point->y, point->high));
        }
    }
    if (logarithmic) {
        picture->x = make_logarithmic_axis(x_low, x_high);
        picture->y = make_logarithmic_axis(y_low, y_high);
        return;
    }
    picture->x = make_axis(x_low, x_high + 0.04 * (x_high - x_low), 8); /* no mark on the edge */
    picture->y = make_axis(y_low, y_high, 8);
}

/* 0 at the low end of an axis, 1 at the high one. */
static double place(const struct axis *axis, double value) {
    return ((axis->logarithmic ? log10(value) : value) - axis->low) / (axis->high - axis->low);
}

static double place_x(const struct picture *picture, double x) {
    return LEFT + place(&picture->x, x) * (WIDTH - LEFT - RIGHT);
}

static double place_y(const struct picture *picture, double y) {
    return HEIGHT - BOTTOM - place(&picture->y, y) * (HEIGHT - TOP - BOTTOM);
}

static size_t count_ticks(const struct axis *axis) {
    return axis->logarithmic ? (size_t)lround(axis->high - axis->low) * 3 + 1
                             : (size_t)lround((axis->high - axis->low) / axis->step) + 1;
}

/* Never "-0". */
static double tick_value(const struct axis *axis, size_t i) {
    static const double factors[] = {1.0, 2.0, 5.0};
    if (axis->logarithmic) {
        const size_t power = i / 3;
        return factors[i % 3] * pow(10.0, axis->low + (double)power);
    }
    const double value = axis->low + (double)i * axis->step;
    return fabs(value) < axis->step / 2 ? 0.0 : value;
}

static void put_tick(FILE *stream, const struct axis *axis, double value) {
    if (axis->logarithmic) {
        fprintf(stream, "%g</text>\n", value);
    } else {
        fprintf(stream, "%.*f</text>\n", axis->decimals, value);
    }
}

static void put_axes(const struct picture *picture) {
    FILE *stream = picture->stream;
    const int right = WIDTH - RIGHT;
    const int bottom = HEIGHT - BOTTOM;
    for (size_t i = 0; i < count_ticks(&picture->y); i++) {
        const double value = tick_value(&picture->y, i);
        const double y = place_y(picture, value);
        fprintf(stream, "<line class=\"grid\" x1=\"%d\" y1=\"%.2f\" x2=\"%d\" y2=\"%.2f\"/>\n", LEFT, y, right, y);
        fprintf(stream, "<text class=\"e\" x=\"%d\" y=\"%.2f\">", LEFT - TICK - 4, y + 4);
        put_tick(stream, &picture->y, value);
    }
    for (size_t i = 0; i < count_ticks(&picture->x); i++) {
        const double value = tick_value(&picture->x, i);
        const double x = place_x(picture, value);
        fprintf(stream, "<line class=\"axis\" x1=\"%.2f\" y1=\"%d\" x2=\"%.2f\" y2=\"%d\"/>\n", x, bottom, x,
                bottom + TICK);
        fprintf(stream, "<text class=\"m\" x=\"%.2f\" y=\"%d\">", x, bottom + TICK + 14);
        put_tick(stream, &picture->x, value);
    }
    fprintf(stream, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, bottom, right);
    fprintf(stream, "<text class=\"m\" x=\"%d\" y=\"%d\">", (LEFT + right) / 2, HEIGHT - 14);
    svg_put_text(stream, picture->plot->x_label, SIZE_MAX);
    fprintf(stream, "</text>\n<text class=\"m\" transform=\"translate(20 %d) rotate(-90)\">", (TOP + bottom) / 2);
    svg_put_text(stream, picture->plot->y_label, SIZE_MAX);
    fputs("</text>\n", stream);
}

/* ---- Lines ---- */

static void put_mark(FILE *stream, size_t line, double x, double y) {
    const char *colour = colours[line % N_COLOURS];
    switch (line % N_MARKS) {
    case 0:
        fprintf(stream, "<path fill=\"%s\" d=\"M%.2f %.2fl6 6l-6 6l-6 -6z\">", colour, x, y - 6);
        return;
    case 1:
        fprintf(stream, "<circle fill=\"%s\" cx=\"%.2f\" cy=\"%.2f\" r=\"5\">", colour, x, y);
        return;
    case 2:
        fprintf(stream, "<path fill=\"%s\" d=\"M%.2f %.2fh9v9h-9z\">", colour, x - 4.5, y - 4.5);
        return;
    case 3:
        fprintf(stream, "<path fill=\"%s\" d=\"M%.2f %.2fl5.5 10h-11z\">", colour, x, y - 6);
        return;
    default:
        fprintf(stream, "<path fill=\"%s\" d=\"M%.2f %.2fl5.5 -10h-11z\">", colour, x, y + 6);
        return;
    }
}

static const char *mark_end(size_t line) {
    return line % N_MARKS == 1 ? "</circle>\n" : "</path>\n";
}

static void put_bar(const struct picture *picture, size_t line, const struct plot_point *point) {
    if (isnan(point->low) || isnan(point->high)) {
        return;
    }
    const double x = place_x(picture, point->x);
    const double low = place_y(picture, point->low);
    const double high = place_y(picture, point->high);
    fprintf(picture->stream, "<path class=\"bar\" stroke=\"%s\" d=\"M%.2f %.2fh8m-4 0V%.2fm-4 0h8\"/>\n",
            colours[line % N_COLOURS], x - 4, low, high);
}

static void put_line(const struct picture *picture, size_t index) {
    FILE *stream = picture->stream;
    const struct plot_line *line = &picture->plot->lines[index];
    for (size_t i = 0; i < line->n_points; i++) {
        put_bar(picture, index, &line->points[i]);
    }
    if (line->n_points > 1) {
        fprintf(stream, "<path class=\"line\" stroke=\"%s\" d=\"", colours[index % N_COLOURS]);
        for (size_t i = 0; i < line->n_points; i++) {
            fprintf(stream, "%c%.2f %.2f", i == 0 ? 'M' : 'L', place_x(picture, line->points[i].x),
                    place_y(picture, line->points[i].y));
        }
        fputs("\"/>\n", stream);
    }
    for (size_t i = 0; i < line->n_points; i++) {
        const struct plot_point *point = &line->points[i];
        put_mark(stream, index, place_x(picture, point->x), place_y(picture, point->y));
        fputs("<title>", stream);
        svg_put_text(stream, line->name, SIZE_MAX);
        fprintf(stream, ": %.2f, %.2f", point->x, point->y);
        if (!isnan(point->low)) {
            fprintf(stream, " (%.2f to %.2f)", point->low, point->high);
        }
        fprintf(stream, "</title>%s", mark_end(index));
    }
}

static void put_legend(const struct picture *picture) {
    enum { MOST_NAME = 16 };
    FILE *stream = picture->stream;
    const int x = WIDTH - RIGHT + 18;
    for (size_t i = 0; i < picture->plot->n_lines; i++) {
        const int y = TOP + 10 + LEGEND_STEP * (int)i;
        fprintf(stream, "<path class=\"line\" stroke=\"%s\" d=\"M%d %dh24\"/>\n", colours[i % N_COLOURS], x, y);
        put_mark(stream, i, x + 12, y);
        fprintf(stream, "%s<text x=\"%d\" y=\"%d\">", mark_end(i), x + 32, y + 4);
        svg_put_text(stream, picture->plot->lines[i].name, MOST_NAME);
        fputs("</text>\n", stream);
    }
}

/* ---- */

static void put_head(const struct picture *picture) {
    const struct plot *plot = picture->plot;
    FILE *stream = picture->stream;
    fprintf(
        stream,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    fputs("<title>", stream);
    svg_put_text(stream, plot->title, SIZE_MAX);
    fputs("</title>\n<desc>", stream);
    svg_put_text(stream, plot->subtitle, SIZE_MAX);
    fputs("</desc>\n<style>text{font-family:sans-serif;font-size:12px;fill:#222}.t{font-size:16px;font-weight:bold}"
          ".m{text-anchor:middle}.e{text-anchor:end}.grid{stroke:#ddd}.axis{stroke:#222;fill:none}"
          ".line{fill:none;stroke-width:2}.bar{fill:none;stroke-opacity:.6}</style>\n",
          stream);
    fprintf(stream, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n<text class=\"t\" x=\"16\" y=\"26\">", WIDTH,
            HEIGHT);
    svg_put_text(stream, plot->title, SIZE_MAX);
    fputs("</text>\n<text x=\"16\" y=\"46\">", stream);
    svg_put_text(stream, plot->subtitle, SIZE_MAX);
    fputs("</text>\n", stream);
}

void plot_write(FILE *stream, const struct plot *plot) {
    struct picture picture = {.stream = stream, .plot = plot};
    choose_axes(&picture);
    put_head(&picture);
    put_axes(&picture);
    for (size_t i = 0; i < plot->n_lines; i++) {
        put_line(&picture, i);
    }
    put_legend(&picture);
    fputs("</svg>\n", stream);
}
