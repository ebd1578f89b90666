/* What a training leaves behind: an adapter as a PEFT folder or, where parameters themselves are trained
 * (finetuning_type full and projector), the model as a Hugging Face folder. The one place that knows which. */
#ifndef LORA_OUTPUT_H
#define LORA_OUTPUT_H

#include "lora/adapter.h"

/* EXACT: every trained bit, to go on from. AS_STORED: a model in the types of its base; an adapter is F32 either way.
 * */
enum precision { AS_STORED, EXACT };

/* Into a folder that exists; each file is whole or not there. */
enum status trained_write(const struct adapter *a, const char *dir, enum precision p, struct err *e);

/* The values of what trained_write left with EXACT. */
enum status trained_read(struct adapter *a, const char *dir, struct err *e);

#endif
