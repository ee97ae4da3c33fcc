/* How well routers learnt their labels: counted, printed, and as the record that goes into their file. */
#ifndef DRLLM_TOOLS_TRAIN_REPORT_H
#define DRLLM_TOOLS_TRAIN_REPORT_H

#include "tools/train_measure.h"

/* Of some examples, over all blocks. */
struct scores {
    size_t n_examples;
    size_t decisions[NETWORK_CLASSES][NETWORK_CLASSES]; /* [label][decision] */
    size_t n_programs;                                  /* examples of which every decision is the label's */
    size_t n_guard, n_guard_full;                       /* guard prompts; those at full depth */
};

struct class_scores {
    size_t n_labels, n_decisions;
    double precision, recall, f1; /* NAN where there is nothing to divide by */
};
struct class_scores scores_of_class(const struct scores *scores, size_t class);
/* Over the classes that occur among the labels; NAN without examples. */
double scores_macro_f1(const struct scores *scores);
double scores_share_of_decisions(const struct scores *scores);
void scores_add(struct scores *scores, const struct example *example, const uint8_t *decided, size_t n_layers);

struct task_scores {
    size_t n_examples, n_programs;
    double saved, label_saved; /* sums of layers */
};

struct training_report {
    const struct examples *examples;
    const struct trained *trained;
    const struct measured *measured;
    const struct router_set *set;
    struct scores training, validation; /* float networks under teacher forcing */
    struct scores routed;               /* the int8 file at work, on the measured prompts */
    struct task_scores *tasks;          /* [examples->n_tasks], of the routed prompts */
    bool routed_is_validation;
};

void training_report_make(const struct examples *examples, const struct trained *trained,
                          const struct measured *measured, const struct router_set *set,
                          struct training_report *report);
void training_report_release(struct training_report *report);
void training_report_print(const struct training_report *report);
cJSON *training_report_json(const struct training_report *report);

/* The record of a training, a JSON text to be freed. It names files by their base names, and the day (UTC, that of
 * SOURCE_DATE_EPOCH where it is set). */
char *training_record(const struct training_report *report, const struct train_params *params);

#endif
