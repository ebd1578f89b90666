/* Checkpoints: output_dir/checkpoint-STEP holds the adapter as a PEFT folder, optimizer.safetensors (both moments),
 * trainer_state.json as transformers' Trainer writes it, and graft_state.json: step, seed, settings, fingerprints. A
 * checkpoint is written beside and renamed, so one that is there is whole, whatever killed the run. */
#ifndef LORA_CHECKPOINT_H
#define LORA_CHECKPOINT_H

#include "lora/train.h"

/* *path: its folder, owned by the caller. */
enum status checkpoint_write(const struct trainer *t, char **path, struct err *e);

/* Restores adapter, optimizer and counters. Another model, other data or other settings: refused with what differs. */
enum status checkpoint_read(struct trainer *t, const char *dir, struct err *e);

/* The newest checkpoint of a folder; NULL when there is none. The caller frees it. */
char *checkpoint_newest(const char *output_dir);

/* Removes the oldest beyond save_total_limit, never the best one nor the newest. */
enum status checkpoint_prune(const struct trainer *t, struct err *e);

/* Removes the files and checkpoints that a killed run left half-written in its folder. */
enum status checkpoint_sweep(const char *dir, struct err *e);

char *checkpoint_path(const struct trainer *t, int64_t step);

#endif
