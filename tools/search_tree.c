/* Tree search over programs, as in Dr.LLM (arXiv 2510.12773), appendix on data: from full depth, an action drops one or
 * two neighbouring executions or repeats a block; children are chosen by an upper confidence bound with a penalty on
 * length. A node gets more children as it is visited more often, so that the tree is one: the published code gives each
 * node a single child, and takes the number of the simulation for the parent's visits. */
#include "tools/random.h"
#include "tools/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double exploration = 1.8;
static const double length_penalty = 3.0;
static const double random_child = 0.1;
static const double widening = 1.5; /* most children: widening * sqrt(visits) */

struct node {
    uint8_t *counts; /* [n_layers] */
    size_t length;   /* executions */
    size_t visits;
    double sum; /* of rewards */
    size_t parent;
    size_t *children;
    size_t n_children;
};

struct tree {
    struct evaluator *evaluator;
    const struct search_options *options;
    struct node *nodes;
    size_t n_nodes;
    uint64_t random;
};

static size_t add_node(struct tree *tree, const uint8_t *counts, size_t parent) {
    const size_t n_layers = tree->evaluator->n_layers;
    tree->nodes = reallocate(tree->nodes, tree->n_nodes + 1, sizeof *tree->nodes);
    struct node *node = &tree->nodes[tree->n_nodes];
    *node = (struct node){.counts = allocate(n_layers, 1), .parent = parent};
    memcpy(node->counts, counts, n_layers);
    for (size_t i = 0; i < n_layers; i++) {
        node->length += counts[i];
    }
    return tree->n_nodes++;
}

static void release_tree(struct tree *tree) {
    for (size_t i = 0; i < tree->n_nodes; i++) {
        free(tree->nodes[i].counts);
        free(tree->nodes[i].children);
    }
    free(tree->nodes);
}

/* The block of the execution number `position`. */
static size_t block_at(const struct node *node, size_t position) {
    size_t block = 0;
    while (position >= node->counts[block]) {
        position -= node->counts[block++];
    }
    return block;
}

/* A random action on a copy of the node's counts; false if it changes nothing. */
static bool act(struct tree *tree, const struct node *node, uint8_t *counts) {
    if (node->length < 3) {
        return false;
    }
    const size_t position = (size_t)(random_next(&tree->random) % node->length);
    const size_t kind = (size_t)(random_next(&tree->random) % 3);
    memcpy(counts, node->counts, tree->evaluator->n_layers);
    const size_t block = block_at(node, position);
    if (kind == 2) {
        if (counts[block] != 1 || tree->options->no_repeats) {
            return false;
        }
        counts[block] = 2;
        return true;
    }
    if (kind == 1 && position + 1 >= node->length) {
        return false;
    }
    counts[block]--;
    if (kind == 1) {
        counts[block_at(node, position + 1)]--;
    }
    return true;
}

static bool is_child(const struct tree *tree, const struct node *node, const uint8_t *counts) {
    for (size_t i = 0; i < node->n_children; i++) {
        if (memcmp(tree->nodes[node->children[i]].counts, counts, tree->evaluator->n_layers) == 0) {
            return true;
        }
    }
    return false;
}

/* A new child, or SIZE_MAX when none was found. */
static size_t expand(struct tree *tree, size_t index) {
    enum { TRIES = 32 };
    uint8_t *counts = allocate(tree->evaluator->n_layers, 1);
    size_t child = SIZE_MAX;
    for (size_t i = 0; i < TRIES && child == SIZE_MAX; i++) {
        if (act(tree, &tree->nodes[index], counts) && !is_child(tree, &tree->nodes[index], counts)) {
            child = add_node(tree, counts, index);
            struct node *node = &tree->nodes[index];
            node->children = reallocate(node->children, node->n_children + 1, sizeof *node->children);
            node->children[node->n_children++] = child;
        }
    }
    free(counts);
    return child;
}

static size_t choose_child(struct tree *tree, const struct node *node) {
    if (random_uniform(&tree->random) < random_child) {
        return node->children[random_next(&tree->random) % node->n_children];
    }
    size_t best = node->children[0];
    double best_bound = -INFINITY;
    for (size_t i = 0; i < node->n_children; i++) {
        const struct node *child = &tree->nodes[node->children[i]];
        const double visits = (double)child->visits;
        const double bound = child->sum / visits + exploration * sqrt(log((double)node->visits) / visits) -
                             length_penalty * (double)child->length / (double)tree->evaluator->n_layers;
        if (bound > best_bound) {
            best_bound = bound;
            best = node->children[i];
        }
    }
    return best;
}

/* The node to evaluate next. */
static size_t descend(struct tree *tree) {
    size_t index = 0;
    for (;;) {
        const struct node *node = &tree->nodes[index];
        if ((double)node->n_children < ceil(widening * sqrt((double)node->visits))) {
            const size_t child = expand(tree, index);
            if (child != SIZE_MAX) {
                return child;
            }
        }
        if (tree->nodes[index].n_children == 0) {
            return index;
        }
        index = choose_child(tree, &tree->nodes[index]);
    }
}

static int simulate(struct tree *tree, size_t index) {
    struct evaluator *evaluator = tree->evaluator;
    const size_t n = evaluator->group->n_search;
    struct memo *memo = evaluator_memo(evaluator, tree->nodes[index].counts);
    const int exit_code = evaluate(evaluator, tree->nodes[0].counts, &memo, 1, 0, n);
    if (exit_code != TOOL_OK) {
        return exit_code;
    }
    const double mean = mean_reward(tree->options->reward, memo, 0, n);
    const double reward =
        tree->options->reward == REWARD_SOFT ? exp(mean) : mean; /* in 0 .. 1, as the bounds want it */
    for (;; index = tree->nodes[index].parent) {
        tree->nodes[index].visits++;
        tree->nodes[index].sum += reward;
        if (index == 0) {
            return TOOL_OK;
        }
    }
}

/* The shortest program among the best. */
static const struct node *best_node(const struct tree *tree) {
    struct evaluator *evaluator = tree->evaluator;
    const size_t n = evaluator->group->n_search;
    const struct node *best = &tree->nodes[0];
    for (size_t i = 1; i < tree->n_nodes; i++) {
        const struct node *node = &tree->nodes[i];
        const double now = objective(tree->options, evaluator_memo(evaluator, best->counts), evaluator->n_layers, 0, n);
        const double new = objective(tree->options, evaluator_memo(evaluator, node->counts), evaluator->n_layers, 0, n);
        if (node->visits > 0 && (new > now || (new >= now && node->length < best->length))) {
            best = node;
        }
    }
    return best;
}

int search_tree(struct evaluator *evaluator, const struct search_options *options, struct path *path,
                path_hook on_point, void *user) {
    struct tree tree = {.evaluator = evaluator, .options = options, .random = evaluator->group->seed};
    add_node(&tree, path->points[0].counts, 0);
    int exit_code = simulate(&tree, 0);
    for (size_t i = 0; i < options->n_simulations && exit_code == TOOL_OK; i++) {
        exit_code = simulate(&tree, descend(&tree));
    }
    if (exit_code == TOOL_OK) {
        const struct node *best = best_node(&tree);
        if (best != &tree.nodes[0]) {
            exit_code = path_add(evaluator, options, path, tree.nodes[0].counts, best->counts);
        }
    }
    if (exit_code == TOOL_OK && path->count > 1) {
        (void)on_point(user, &path->points[path->count - 1]);
    }
    release_tree(&tree);
    return exit_code;
}
