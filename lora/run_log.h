/* What a run notes while it goes: log.jsonl (always), TensorBoard events, and from them trainer_state.json. */
#ifndef LORA_RUN_LOG_H
#define LORA_RUN_LOG_H

#include "lora/train.h"

struct run_log;

/* Opens output_dir/log.jsonl; lines of steps after t->step (a run that was killed after its last checkpoint) are cut
 * off. */
enum status run_log_open(struct run_log **log, const struct trainer *t, struct err *e);
void run_log_close(struct run_log *log);

enum status run_log_step(struct run_log *log, const struct step_report *r, struct err *e);
enum status run_log_evaluation(struct run_log *log, const struct trainer *t, const struct evaluation *v, struct err *e);

/* trainer_state.json of transformers' Trainer, with the history that log.jsonl holds up to t->step. */
enum status run_log_trainer_state(const struct trainer *t, const char *path, struct err *e);

#endif
