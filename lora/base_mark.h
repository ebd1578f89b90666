/* Which weights an adapter was trained on: base_model.json beside adapter_config.json, which PEFT leaves alone.
 * {"model": "path or name", "fingerprint": "16 hex digits"}, of the weights alone: a copy under another name is the
 * same base. "quantization" names the 4-bit type that the training made of them while it read them. An adapter without
 * the file may go with any base. */
#ifndef LORA_BASE_MARK_H
#define LORA_BASE_MARK_H

#include <stdbool.h>

#include "base/safetensors.h"
#include "base/status.h"

struct base_mark {
    char *model;
    char fingerprint[17]; // empty: the adapter does not say
    char *quantization;   // NULL: they were taken as they are
};

void base_fingerprint(char text[17], const struct st_set *files);

enum status base_mark_write(const char *adapter_dir, const char *model, const struct st_set *files,
                            const char *quantization, struct err *e);
enum status base_mark_read(struct base_mark *b, const char *adapter_dir, struct err *e);
void base_mark_free(struct base_mark *b);

/* Whether these may be the weights that the mark means: no fingerprint says otherwise. What a training quantised while
 * it read is used on a 4-bit folder too (four_bit), whose bytes say nothing of the source's. */
bool base_mark_fits(const struct base_mark *b, const struct st_set *files, bool four_bit);

/* Fails when the adapter names other weights than these; model names them in the sentence. */
enum status base_mark_check(const char *adapter_dir, const char *model, const struct st_set *files, bool four_bit,
                            struct err *e);

#endif
