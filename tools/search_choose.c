#include "tools/search_choose.h"

#include <math.h>

void choose_alone(const struct search_options *options, bool verified, struct path *path) {
    double best = -INFINITY;
    path->chosen = 0;
    for (size_t i = 0; i < path->count; i++) {
        const struct found *point = &path->points[i];
        const double now =
            (verified ? point->verify_reward : point->search_reward) + options->layer_value * point->saved;
        const bool enough = point->saved >= options->min_saved || i + 1 == path->count;
        if (enough && now > best) {
            best = now;
            path->chosen = i;
        }
    }
}

static const struct found *chosen_of(const struct path *path) {
    return &path->points[path->chosen];
}

/* Every path's best point when a layer saved is worth so many right answers. Returns how many are saved in all. */
static long choose_at(struct path *paths, size_t n_paths, double layer_value) {
    long saved = 0;
    for (size_t i = 0; i < n_paths; i++) {
        double best = -INFINITY;
        for (size_t j = 0; j < paths[i].count; j++) {
            const double now = paths[i].points[j].right + layer_value * paths[i].points[j].saved;
            if (now > best) {
                best = now;
                paths[i].chosen = j;
            }
        }
        saved += chosen_of(&paths[i])->saved;
    }
    return saved;
}

/* One price for all layers leaves some saved that need not be: give the best use of them back, as long as there is one. */
static void spend_surplus(struct path *paths, size_t n_paths, long surplus) {
    for (;;) {
        struct path *best = NULL;
        size_t best_point = 0;
        double most = 0.0;
        for (size_t i = 0; i < n_paths; i++) {
            for (size_t j = 0; j < paths[i].count; j++) {
                const double gain = paths[i].points[j].right - chosen_of(&paths[i])->right;
                if (gain > most && chosen_of(&paths[i])->saved - paths[i].points[j].saved <= surplus) {
                    most = gain;
                    best = &paths[i];
                    best_point = j;
                }
            }
        }
        if (best == NULL) {
            return;
        }
        surplus -= chosen_of(best)->saved - best->points[best_point].saved;
        best->chosen = best_point;
    }
}

bool choose_together(struct path *paths, size_t n_paths, double mean_saved) {
    const long wanted = lround(ceil(mean_saved * (double)n_paths - 1e-6));
    double too_low = 0.0;
    double enough = 2.0; /* a layer outweighs all right answers */
    if (choose_at(paths, n_paths, enough) < wanted) {
        return false;
    }
    for (int i = 0; i < 50; i++) {
        const double middle = (too_low + enough) / 2.0;
        if (choose_at(paths, n_paths, middle) < wanted) {
            too_low = middle;
        } else {
            enough = middle;
        }
    }
    spend_surplus(paths, n_paths, choose_at(paths, n_paths, enough) - wanted);
    return true;
}
