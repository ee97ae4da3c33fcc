#include "tools/heatmap.h"

#include "runtime/utf8.h"
#include "tools/common.h"
#include "tools/svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Pixels. */
enum { LEFT = 190, RIGHT = 24, TOP = 122, BOTTOM = 34, STRIP = 13, STRIP_GAP = 3, GROUP_GAP = 16, GROUP_LEAST = 28 };
enum { MOST_LABEL = 22 /* characters that fit beside the rows */, LEVELS = 3, CLASSES = 3 };

static const char *const class_names[CLASSES] = {"skip", "execute", "repeat"};
/* Blue and vermilion of Okabe and Ito's palette, around a grey: apart for every kind of colour vision. */
static const int class_colours[CLASSES][3] = {{0, 114, 178}, {208, 208, 208}, {213, 94, 0}};
/* The closer a decision, the paler. */
static const double level_opacity[LEVELS] = {0.4, 0.7, 1.0};
static const float level_margin[LEVELS - 1] = {0.5f, 2.0f};

struct picture {
    FILE *stream;
    const struct heatmap *map;
    size_t *order;        /* [n_rows]: the rows, group by group */
    size_t *group_begins; /* [n_groups + 1] in order */
    double cell_width, row_height;
};

/* ---- Texts ---- */

static void put_element(FILE *stream, const char *element, const char *text) {
    fprintf(stream, "<%s>", element);
    svg_put_text(stream, text, SIZE_MAX);
    fprintf(stream, "</%s>\n", element);
}

/* ---- Layout ---- */

static void sort_rows(struct picture *picture) {
    const struct heatmap *map = picture->map;
    size_t *next = allocate(map->n_groups + 1, sizeof *next);
    picture->order = allocate(map->n_rows, sizeof *picture->order);
    picture->group_begins = allocate(map->n_groups + 1, sizeof *picture->group_begins);
    memset(picture->group_begins, 0, (map->n_groups + 1) * sizeof *picture->group_begins);
    for (size_t i = 0; i < map->n_rows; i++) {
        picture->group_begins[map->rows[i].group + 1]++;
    }
    for (size_t g = 0; g < map->n_groups; g++) {
        picture->group_begins[g + 1] += picture->group_begins[g];
    }
    memcpy(next, picture->group_begins, (map->n_groups + 1) * sizeof *next);
    for (size_t i = 0; i < map->n_rows; i++) {
        picture->order[next[map->rows[i].group]++] = i;
    }
    free(next);
}

/* Whole pixels, which have no seams between them, as long as the picture does not become too long to look at. */
static double choose_row_height(size_t n_rows) {
    enum { USUAL = 1200, MOST = 4000, HIGHEST = 14 };
    if (n_rows > MOST) {
        return (double)MOST / (double)n_rows;
    }
    const size_t height = n_rows == 0 ? HIGHEST : USUAL / n_rows;
    return height < 1 ? 1.0 : height > HIGHEST ? (double)HIGHEST : (double)height;
}

static double rows_height(const struct picture *picture, size_t group) {
    return (double)(picture->group_begins[group + 1] - picture->group_begins[group]) * picture->row_height;
}

static double group_height(const struct picture *picture, size_t group) {
    return fmax(rows_height(picture, group) + STRIP_GAP + STRIP, GROUP_LEAST) + GROUP_GAP;
}

static double plot_height(const struct picture *picture) {
    double height = 0.0;
    for (size_t g = 0; g < picture->map->n_groups; g++) {
        height += group_height(picture, g);
    }
    return height;
}

static double plot_width(const struct picture *picture) {
    return picture->cell_width * (double)picture->map->n_blocks;
}

/* ---- Rows ---- */

static const struct heatmap_row *row_at(const struct picture *picture, size_t position) {
    return &picture->map->rows[picture->order[position]];
}

static int level_of(const struct heatmap_row *row, size_t block) {
    int level = LEVELS - 1;
    while (row->margins != NULL && level > 0 && row->margins[block] < level_margin[level - 1]) {
        level--;
    }
    return level;
}

static bool is_in(const struct heatmap_row *row, size_t block, int count, int level) {
    return row->counts[block] == count && level_of(row, block) == level;
}

/* All cells of one count and level in a group as one path, in units of a cell. */
static void put_cells(const struct picture *picture, size_t group, int count, int level) {
    const size_t n_blocks = picture->map->n_blocks;
    const size_t begin = picture->group_begins[group];
    bool is_first = true;
    for (size_t i = begin; i < picture->group_begins[group + 1]; i++) {
        const struct heatmap_row *row = row_at(picture, i);
        for (size_t block = 0; block < n_blocks;) {
            size_t end = block;
            while (end < n_blocks && is_in(row, end, count, level)) {
                end++;
            }
            if (end > block) {
                if (is_first) {
                    fprintf(picture->stream, "<path class=\"c%d\" fill-opacity=\"%g\" d=\"", count,
                            level_opacity[level]);
                }
                fprintf(picture->stream, "M%zu %zuh%zuv1h-%zuz", block, i - begin, end - block, end - block);
                is_first = false;
            }
            block = end > block ? end : block + 1;
        }
    }
    fputs(is_first ? "" : "\"/>\n", picture->stream);
}

/* How often a block runs in the prompts of a group. */
static size_t count_executions(const struct picture *picture, size_t group, size_t block) {
    size_t sum = 0;
    for (size_t i = picture->group_begins[group]; i < picture->group_begins[group + 1]; i++) {
        sum += row_at(picture, i)->counts[block];
    }
    return sum;
}

/* The classes' colours, and between them what lies between them. */
static void put_mean_colour(FILE *stream, double mean) {
    const int lower = mean < 1.0 ? 0 : 1;
    const double part = mean - lower;
    int colour[3];
    for (int i = 0; i < 3; i++) {
        const double low = class_colours[lower][i];
        const double high = class_colours[lower + 1][i];
        colour[i] = (int)lround(low + part * (high - low));
    }
    fprintf(stream, "#%02x%02x%02x", (unsigned)colour[0], (unsigned)colour[1], (unsigned)colour[2]);
}

/* Returns the executions that the group saves in the mean. */
static double put_strip(const struct picture *picture, size_t group, double y) {
    enum { NUMBER_WIDTH = 20 };
    const size_t n_rows = picture->group_begins[group + 1] - picture->group_begins[group];
    size_t sum = 0;
    for (size_t block = 0; block < picture->map->n_blocks; block++) {
        const size_t executions = count_executions(picture, group, block);
        const double mean = (double)executions / (double)n_rows;
        const double x = LEFT + picture->cell_width * (double)block;
        sum += executions;
        fprintf(picture->stream, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%d\" fill=\"", x, y,
                picture->cell_width, STRIP);
        put_mean_colour(picture->stream, mean);
        fprintf(picture->stream, "\"><title>block %zu: %.3f</title></rect>\n", block, mean);
        if (picture->cell_width >= NUMBER_WIDTH) {
            fprintf(picture->stream, "<text class=\"%s\" x=\"%g\" y=\"%g\">%.2f</text>\n", mean < 0.4 ? "n w" : "n",
                    x + picture->cell_width / 2, y + STRIP - 3.5, mean);
        }
    }
    return ((double)(picture->map->n_blocks * n_rows) - (double)sum) / (double)n_rows;
}

static void put_group(const struct picture *picture, size_t group, double y) {
    FILE *stream = picture->stream;
    const size_t n_rows = picture->group_begins[group + 1] - picture->group_begins[group];
    const char *name = picture->map->groups[group];
    fprintf(stream, "<g transform=\"translate(%d %g) scale(%g %g)\" shape-rendering=\"crispEdges\">\n", LEFT, y,
            picture->cell_width, picture->row_height);
    for (int count = 0; count < CLASSES; count++) {
        for (int level = 0; level < LEVELS; level++) {
            put_cells(picture, group, count, level);
        }
    }
    fputs("</g>\n", stream);
    const double saved = put_strip(picture, group, y + rows_height(picture, group) + STRIP_GAP);
    fprintf(stream, "<g><title>");
    svg_put_text(stream, name, SIZE_MAX);
    fprintf(stream, "</title><text class=\"g\" x=\"%d\" y=\"%g\">", LEFT - 8, y + 11);
    svg_put_text(stream, name[0] == '\0' ? "(no task)" : name, MOST_LABEL);
    fprintf(stream, "</text><text class=\"s\" x=\"%d\" y=\"%g\">%zu prompt%s, %.2f saved</text></g>\n", LEFT - 8,
            y + 25, n_rows, n_rows == 1 ? "" : "s", saved);
}

/* ---- Around them ---- */

static void put_head(const struct picture *picture, double width, double height) {
    FILE *stream = picture->stream;
    fprintf(
        stream,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%g\" height=\"%g\" viewBox=\"0 0 %g %g\">\n",
        width, height, width, height);
    put_element(stream, "title", picture->map->title);
    put_element(stream, "desc", picture->map->subtitle);
    fputs("<style>text{font-family:sans-serif;font-size:11px;fill:#222}.t{font-size:16px;font-weight:bold}"
          ".a{text-anchor:middle}.g{text-anchor:end;font-size:12px;font-weight:bold}"
          ".s{text-anchor:end;font-size:10px}.n{text-anchor:middle;font-size:8px}.w{fill:#fff}",
          stream);
    for (int count = 0; count < CLASSES; count++) {
        fprintf(stream, ".c%d{fill:rgb(%d,%d,%d)}", count, class_colours[count][0], class_colours[count][1],
                class_colours[count][2]);
    }
    fprintf(stream, "</style>\n<rect width=\"%g\" height=\"%g\" fill=\"#fff\"/>\n", width, height);
    fputs("<text class=\"t\" x=\"16\" y=\"26\">", stream);
    svg_put_text(stream, picture->map->title, SIZE_MAX);
    fputs("</text>\n<text x=\"16\" y=\"44\">", stream);
    svg_put_text(stream, picture->map->subtitle, SIZE_MAX);
    fputs("</text>\n", stream);
}

static void put_legend(const struct picture *picture) {
    enum { Y = 58, BOX = 14, STEP = 118 };
    const bool has_margins = picture->map->n_rows != 0 && picture->map->rows[0].margins != NULL;
    FILE *stream = picture->stream;
    for (int count = 0; count < CLASSES; count++) {
        int x = 16 + STEP * count;
        for (int level = has_margins ? 0 : LEVELS - 1; level < LEVELS; level++, x += BOX) {
            fprintf(stream, "<rect class=\"c%d\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill-opacity=\"%g\"/>\n",
                    count, x, Y, BOX, BOX, level_opacity[level]);
        }
        fprintf(stream, "<text x=\"%d\" y=\"%d\">%s</text>\n", x + 6, Y + 11, class_names[count]);
    }
    if (has_margins) {
        fprintf(stream, "<text x=\"%d\" y=\"%d\">paler: a margin below %g, below %g</text>\n", 16 + STEP * CLASSES,
                Y + 11, (double)level_margin[1], (double)level_margin[0]);
    }
    fprintf(stream, "<text x=\"16\" y=\"%d\">Under the prompts of each task: the mean executions of a block.</text>\n",
            Y + 30);
}

/* Block numbers at y, as many as have room. */
static void put_axis(const struct picture *picture, double y) {
    static const size_t steps[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000};
    enum { NUMBER_WIDTH = 20 };
    size_t step = 0;
    while (step + 1 < sizeof steps / sizeof steps[0] && (double)steps[step] * picture->cell_width < NUMBER_WIDTH) {
        step++;
    }
    for (size_t block = 0; block < picture->map->n_blocks; block += steps[step]) {
        fprintf(picture->stream, "<text class=\"a\" x=\"%g\" y=\"%g\">%zu</text>\n",
                LEFT + picture->cell_width * ((double)block + 0.5), y, block);
    }
}

static void put_axes(const struct picture *picture, double bottom) {
    const double middle = (TOP + bottom) / 2;
    put_axis(picture, TOP - 6);
    put_axis(picture, bottom + 6);
    fprintf(picture->stream, "<text class=\"a\" x=\"%g\" y=\"%g\">block</text>\n", LEFT + plot_width(picture) / 2,
            bottom + 22);
    fprintf(picture->stream, "<text class=\"a\" transform=\"translate(14 %g) rotate(-90)\">prompts, by task</text>\n",
            middle);
}

void heatmap_write(FILE *stream, const struct heatmap *map) {
    enum { MOST_CELL = 22, MOST_WIDTH = 880, LEAST_WIDTH = 640 };
    struct picture picture = {.stream = stream, .map = map, .row_height = choose_row_height(map->n_rows)};
    picture.cell_width = fmin(MOST_CELL, (double)MOST_WIDTH / (double)map->n_blocks);
    sort_rows(&picture);
    const double bottom = TOP + plot_height(&picture);
    put_head(&picture, fmax(LEFT + plot_width(&picture) + RIGHT, LEAST_WIDTH), bottom + BOTTOM);
    put_legend(&picture);
    double y = TOP;
    for (size_t group = 0; group < map->n_groups; group++) {
        put_group(&picture, group, y);
        y += group_height(&picture, group);
    }
    put_axes(&picture, bottom);
    fputs("</svg>\n", stream);
    free(picture.order);
    free(picture.group_begins);
}
