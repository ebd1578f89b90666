/* A model whose own parameters are trained, as a Hugging Face folder: the base's configuration, tokenizer and processor
 * files, and one model.safetensors in which trained tensors are new and all others the bytes of the base. */
#ifndef LORA_FULL_H
#define LORA_FULL_H

#include "lora/output.h"

enum status full_write(const struct adapter *a, const char *dir, enum precision p, struct err *e);

/* Trained tensors from a folder that holds them in F32; no other tensor is looked at. */
enum status full_read(struct adapter *a, const char *dir, struct err *e);

#endif
