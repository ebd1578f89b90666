/* Scalars as a TensorBoard event file. A run appends records to one file that is its own; a run that goes on after a
 * stop opens the next file in the same folder, and TensorBoard shows both as one curve. Each write is whole records,
 * flushed, so a viewer can follow and a kill tears at most the last record, which readers skip. */
#ifndef LORA_TENSORBOARD_H
#define LORA_TENSORBOARD_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct tensorboard;

struct scalar {
    const char *tag; // "train/loss"
    double value;
};

/* Opens a new file in dir, which is made when it is not there; NULL with the error set. wall_time: seconds since 1970,
 * which also name the file. */
struct tensorboard *tensorboard_open(const char *dir, double wall_time, struct err *e);
const char *tensorboard_path(const struct tensorboard *t);

/* One record: all scalars (count) of a step. */
enum status tensorboard_write(struct tensorboard *t, int64_t step, double wall_time, const struct scalar *scalars,
                              size_t count, struct err *e);
void tensorboard_close(struct tensorboard *t);

/* CRC-32C (Castagnoli) of n bytes, and the form in which a record holds it. */
uint32_t crc32c(const void *data, size_t n);
uint32_t crc32c_masked(const void *data, size_t n);

#endif
