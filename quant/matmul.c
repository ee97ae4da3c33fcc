/* Choice of kernels, quantised activations, and the parallel region of a product. */
#include "quant/matmul.h"

#include "platform/threads.h"
#include "quant/matmul_kernels.h"
#include "quant/matmul_xnnpack.h"
#include "quant/vec_kernels.h"

#include <string.h>

static const struct drllm_kernel kernels[] = {
#define DRLLM_Q8_KERNEL(FORMAT, format, backend, features) \
    {DRLLM_FORMAT_##FORMAT, #format "_" #backend, #backend, features, drllm_matmul_##format##_##backend, NULL},
#define DRLLM_FLOAT_KERNEL(FORMAT, format, backend, features) \
    {DRLLM_FORMAT_##FORMAT, #format "_" #backend, #backend, features, NULL, drllm_matmul_##format##_##backend},
#include "quant/kernels.inc"
#undef DRLLM_Q8_KERNEL
#undef DRLLM_FLOAT_KERNEL
};

const struct drllm_kernel *drllm_kernels(size_t *n_kernels) {
    *n_kernels = sizeof kernels / sizeof kernels[0];
    return kernels;
}

const struct drllm_kernel *drllm_kernel_choose(enum drllm_format format, uint64_t cpu_features) {
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if (kernels[i].format == format && (kernels[i].cpu_features & ~cpu_features) == 0) {
            return &kernels[i];
        }
    }
    return NULL;
}

enum drllm_quantisation drllm_matrix_quantisation(const struct drllm_matrix *matrix) {
    if (matrix->xnn != NULL || matrix->kernel->floating != NULL) {
        return DRLLM_QUANT_NONE;
    }
    return matrix->format == DRLLM_FORMAT_Q8C ? DRLLM_QUANT_ROW : DRLLM_QUANT_GROUP;
}

/* ---- Activations ---- */

/* One way of quantising n_tokens rows: the row structs, then scale, sum and ssum of all rows, then q. The order
 * keeps every array aligned for its type. */
struct q8_layout {
    size_t padded_cols;
    size_t n_groups;
    size_t bytes;
};

static bool q8_layout_make(size_t n_tokens, size_t cols, enum drllm_quantisation quantisation,
                           struct q8_layout *layout) {
    layout->padded_cols = (cols + DRLLM_GROUP - 1) / DRLLM_GROUP * DRLLM_GROUP;
    layout->n_groups = quantisation == DRLLM_QUANT_ROW ? 1 : layout->padded_cols / DRLLM_GROUP;
    const size_t per_group = sizeof(float) + sizeof(int32_t) + sizeof(float);
    const size_t per_token = sizeof(struct drllm_q8_row) + layout->n_groups * per_group + layout->padded_cols;
    if (cols > SIZE_MAX / 32 || n_tokens > (SIZE_MAX / 4) / per_token) {
        return false;
    }
    layout->bytes = (n_tokens * per_token + 63) / 64 * 64;
    return true;
}

size_t drllm_activations_bytes(size_t n_tokens, size_t cols, unsigned quantisations) {
    size_t total = 0;
    for (unsigned bit = DRLLM_QUANT_GROUP; bit <= DRLLM_QUANT_ROW; bit <<= 1) {
        struct q8_layout layout;
        if ((quantisations & bit) == 0) {
            continue;
        }
        if (!q8_layout_make(n_tokens, cols, (enum drllm_quantisation)bit, &layout)) {
            return SIZE_MAX;
        }
        total += layout.bytes;
    }
    return total;
}

static struct drllm_q8_row *rows_init(unsigned char **memory, size_t n_tokens, size_t cols,
                                      enum drllm_quantisation quantisation) {
    struct q8_layout layout;
    if (!q8_layout_make(n_tokens, cols, quantisation, &layout)) {
        return NULL;
    }
    struct drllm_q8_row *rows = (struct drllm_q8_row *)(void *)*memory;
    float *scale = (float *)(void *)(rows + n_tokens);
    int32_t *sum = (int32_t *)(void *)(scale + n_tokens * layout.n_groups);
    float *ssum = (float *)(void *)(sum + n_tokens * layout.n_groups);
    int8_t *q = (int8_t *)(void *)(ssum + n_tokens * layout.n_groups);
    for (size_t t = 0; t < n_tokens; t++) {
        rows[t] = (struct drllm_q8_row){q + t * layout.padded_cols, scale + t * layout.n_groups,
                                        sum + t * layout.n_groups, ssum + t * layout.n_groups};
    }
    *memory += layout.bytes;
    return rows;
}

void drllm_activations_init(struct drllm_activations *activations, void *memory, size_t n_tokens, size_t cols,
                            unsigned quantisations) {
    unsigned char *next = memory;
    *activations = (struct drllm_activations){.n_tokens = n_tokens, .cols = cols};
    if ((quantisations & DRLLM_QUANT_GROUP) != 0) {
        activations->group = rows_init(&next, n_tokens, cols, DRLLM_QUANT_GROUP);
    }
    if ((quantisations & DRLLM_QUANT_ROW) != 0) {
        activations->row = rows_init(&next, n_tokens, cols, DRLLM_QUANT_ROW);
    }
}

/* The arrays behind a row are this struct's own memory; readers see them as const. */
static void quantize_row(const struct drllm_vec_ops *vec, const float *x, size_t cols, size_t group,
                         const struct drllm_q8_row *row) {
    vec = group % DRLLM_GROUP == 0 ? vec : &drllm_vec_ref; /* the only one that takes any group */
    vec->quantize_q8(x, cols, group, (int8_t *)row->q, (float *)row->scale, (int32_t *)row->sum, (float *)row->ssum);
}

void drllm_activations_quantize(struct drllm_activations *activations, const struct drllm_vec_ops *vec, size_t first,
                                size_t n) {
    const size_t cols = activations->cols;
    for (size_t t = first; t < first + n; t++) {
        const float *x = activations->x + t * activations->ldx;
        if (activations->group != NULL) {
            quantize_row(vec, x, cols, DRLLM_GROUP, &activations->group[t]);
        }
        if (activations->row != NULL) {
            quantize_row(vec, x, cols, cols, &activations->row[t]);
            const size_t padding = (DRLLM_GROUP - cols % DRLLM_GROUP) % DRLLM_GROUP;
            memset((int8_t *)activations->row[t].q + cols, 0, padding);
        }
    }
}

/* ---- The parallel region ---- */

enum {
    L2_BYTES = 256 * 1024,     /* quantised activations that a tile of tokens may take */
    TASKS_PER_THREAD = 4,      /* so that a thread that was held up does not hold up the others for long */
    MIN_TASK_BYTES = 16 * 1024 /* weights; less is not worth a task */
};

/* The tasks of one product: a grid of row tiles by token tiles. */
struct product_tiles {
    size_t n_panels;
    size_t panels_per_tile;
    size_t n_row_tiles;
    size_t n_tasks;
};

struct region {
    const struct drllm_product *products;
    size_t n_products;
    const struct drllm_activations *activations;
    float *tail;
    size_t tokens_per_tile;
    size_t n_token_tiles;
    struct product_tiles tiles[DRLLM_MAX_PRODUCTS];
};

static void run_panels(const struct region *region, const struct drllm_product *product, size_t first_panel,
                       size_t n_panels, size_t first_token, size_t n_tokens, float *y, size_t ldy) {
    const struct drllm_matrix *matrix = product->matrix;
    const struct drllm_activations *activations = region->activations;
    const unsigned char *panels = (const unsigned char *)matrix->data + first_panel * matrix->panel_bytes;
    if (matrix->kernel->floating != NULL) {
        matrix->kernel->floating(panels, matrix->panel_bytes, n_panels, matrix->cols,
                                 activations->x + first_token * activations->ldx, activations->ldx, n_tokens, y, ldy);
        return;
    }
    const struct drllm_q8_row *rows = matrix->format == DRLLM_FORMAT_Q8C ? activations->row : activations->group;
    matrix->kernel->q8(panels, matrix->panel_bytes, n_panels, (matrix->cols + DRLLM_GROUP - 1) / DRLLM_GROUP,
                       rows + first_token, n_tokens, y, ldy);
}

/* Panels that lie wholly inside the matrix are written in place, a padded last one by way of the tail. */
static void run_task(void *context, size_t worker, size_t index) {
    (void)worker;
    const struct region *region = context;
    size_t p = 0;
    while (index >= region->tiles[p].n_tasks) {
        index -= region->tiles[p].n_tasks;
        p++;
    }
    const struct drllm_product *product = &region->products[p];
    const struct product_tiles *tiles = &region->tiles[p];
    const size_t first_panel = index % tiles->n_row_tiles * tiles->panels_per_tile;
    const size_t first_token = index / tiles->n_row_tiles * region->tokens_per_tile;
    size_t end_panel = first_panel + tiles->panels_per_tile;
    size_t n_tokens = region->activations->n_tokens - first_token;
    n_tokens = n_tokens < region->tokens_per_tile ? n_tokens : region->tokens_per_tile;
    end_panel = end_panel < tiles->n_panels ? end_panel : tiles->n_panels;

    const size_t rows = product->matrix->rows;
    const size_t n_whole = rows / DRLLM_PANEL_ROWS;
    float *y = product->y + first_token * product->ldy;
    const size_t end_whole = end_panel < n_whole ? end_panel : n_whole;
    if (end_whole > first_panel) {
        run_panels(region, product, first_panel, end_whole - first_panel, first_token, n_tokens,
                   y + first_panel * DRLLM_PANEL_ROWS, product->ldy);
    }
    if (end_panel > n_whole) {
        float *tail = region->tail + (p * region->activations->n_tokens + first_token) * DRLLM_PANEL_ROWS;
        run_panels(region, product, n_whole, 1, first_token, n_tokens, tail, DRLLM_PANEL_ROWS);
        for (size_t t = 0; t < n_tokens; t++) {
            memcpy(y + t * product->ldy + n_whole * DRLLM_PANEL_ROWS, tail + t * DRLLM_PANEL_ROWS,
                   (rows - n_whole * DRLLM_PANEL_ROWS) * sizeof(float));
        }
    }
}

/* XNNPACK's products quantise the activations their own way, once for all of them. */
static bool run_xnnpack(const struct drllm_product *products, size_t n_products,
                        const struct drllm_activations *activations, struct drllm_threads *threads) {
    bool filled = false;
    for (size_t p = 0; p < n_products; p++) {
        if (products[p].matrix->xnn == NULL) {
            continue;
        }
        if (!filled && drllm_xnn_input_fill(activations->xnn, activations->x, activations->ldx, activations->n_tokens,
                                            activations->cols, threads) != DRLLM_XNN_OK) {
            return false;
        }
        filled = true;
        if (drllm_xnn_op_run(products[p].op, activations->xnn, products[p].y, products[p].ldy, threads) !=
            DRLLM_XNN_OK) {
            return false;
        }
    }
    return true;
}

static size_t ceil_div(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

bool drllm_matmul(const struct drllm_product *products, size_t n_products, const struct drllm_activations *activations,
                  struct drllm_threads *threads, float *tail) {
    struct region region = {products, n_products, activations, tail, 0, 0, {{0}}};
    const size_t n_threads = threads == NULL ? 1 : drllm_threads_count(threads);
    region.tokens_per_tile = L2_BYTES / activations->cols / 8 * 8;
    region.tokens_per_tile = region.tokens_per_tile < 16 ? 16 : region.tokens_per_tile;
    region.n_token_tiles = ceil_div(activations->n_tokens, region.tokens_per_tile);

    size_t total_panels = 0;
    for (size_t p = 0; p < n_products; p++) {
        if (products[p].matrix->xnn == NULL) {
            region.tiles[p].n_panels = ceil_div(products[p].matrix->rows, DRLLM_PANEL_ROWS);
            total_panels += region.tiles[p].n_panels;
        }
    }
    size_t n_tasks = 0;
    for (size_t p = 0; p < n_products && total_panels > 0; p++) {
        struct product_tiles *tiles = &region.tiles[p];
        if (tiles->n_panels == 0) {
            continue;
        }
        const size_t wanted = n_threads == 1 ? 1 : n_threads * TASKS_PER_THREAD;
        const size_t least = ceil_div(MIN_TASK_BYTES, products[p].matrix->panel_bytes);
        tiles->panels_per_tile = ceil_div(total_panels, wanted);
        tiles->panels_per_tile = tiles->panels_per_tile < least ? least : tiles->panels_per_tile;
        tiles->n_row_tiles = ceil_div(tiles->n_panels, tiles->panels_per_tile);
        tiles->n_tasks = tiles->n_row_tiles * region.n_token_tiles;
        n_tasks += tiles->n_tasks;
    }
    drllm_threads_run(n_tasks > 1 ? threads : NULL, run_task, &region, n_tasks);

    return run_xnnpack(products, n_products, activations, threads);
}
