/* The training run: one optimizer step on one page (train.c), the loop around it (run.c), and what makes it safe to
 * kill (checkpoint.h). Loss and gradients are exact functions of (settings, data, seed): the same bits for any number
 * of threads, and for a run that was stopped and went on. */
#ifndef LORA_TRAIN_H
#define LORA_TRAIN_H

#include <signal.h>

#include "data/dataset.h"
#include "lora/adapter.h"
#include "lora/evaluate.h"
#include "lora/plan.h"
#include "lora/schedule.h"
#include "lora/settings.h"

struct trainer {
    const struct settings *settings;
    struct model *model;
    struct adapter *adapter;
    const struct dataset *data, *val; // val NULL: never evaluated
    const struct tokenizer *tokenizer;
    const struct data_family *family;
    const char *output_dir;

    enum dtype act;
    int64_t rows, accum; // of a micro-batch; micro-batches of a step
    bool packing;        // the rows of a micro-batch go through the model together
    bool micro_means;    // loss_normalization: micro_batch
    struct schedule schedule;
    int64_t step, steps; // done, in all
    int64_t pictured;    // of the steps done, those with pictures

    struct memory_plan plan;
    struct workspace *workspace;
    struct evaluator *evaluator;
    struct loader *loader;
    void *memory;               // of the next two
    struct tensor totals, norm; // (accum) sums of losses, (1) sum of squares; F32
    float *host_totals;         // (accum)
    int64_t *scored;            // (accum) of the step

    double best_metric; // metric_for_best_model, of the val split
    int64_t best_step, without_gain;
    int64_t saved;                     // step of the last checkpoint that this run wrote
    const volatile sig_atomic_t *stop; // set from outside: write a checkpoint and stop after this step; may be NULL
};

/* What a step did. */
struct step_report {
    int64_t step, tokens, scored, images;
    double loss, grad_norm, learning_rate, epoch, seconds;
};

/* One optimizer step. The loss is the mean over all scored tokens of the step, however they fall into micro-batches, or
 * the mean of the micro-batches' means. A loss or gradient that is not finite stops the run before the adapter changes,
 * with the step, the rows and the layer. */
enum status train_step(struct trainer *t, struct step_report *out, struct err *e);

struct trainer_inputs {
    const struct settings *settings;
    struct model *model;
    struct adapter *adapter;
    const struct dataset *data, *val;
    const struct tokenizer *tokenizer;
    const struct data_family *family;
    enum dtype act;
    const volatile sig_atomic_t *stop;
};

/* Plans the memory (fails when it does not fit) and takes it; nothing is written. */
enum status trainer_new(struct trainer **t, const struct trainer_inputs *in, struct err *e);
void trainer_free(struct trainer *t);

struct train_events {
    void (*step)(void *arg, const struct trainer *t, const struct step_report *r);
    void (*evaluated)(void *arg, const struct trainer *t, const struct evaluation *v);
    void (*saved)(void *arg, const struct trainer *t, const char *path);
    void *arg;
};

/* From where the trainer stands (trainer_resume) to the end: steps, log, evaluations, checkpoints; then writes the
 * adapter, its card and the report. Refuses an output_dir that another process trains into. *finished false: it was
 * asked to stop, and can go on from its checkpoint. */
enum status trainer_run(struct trainer *t, const struct train_events *ev, bool *finished, struct err *e);

/* resume_from_checkpoint: goes on from the newest checkpoint of output_dir (auto), or from a given one; refuses one
 * that other data or settings made, naming what differs. *from: its folder, owned by the caller, or NULL: a fresh
 * start. */
enum status trainer_resume(struct trainer *t, char **from, struct err *e);

#endif
