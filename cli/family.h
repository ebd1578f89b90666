/* From a model folder to what data/ has to know of it. */
#ifndef CLI_FAMILY_H
#define CLI_FAMILY_H

#include "base/status.h"
#include "cli/flags.h"
#include "data/family.h"
#include "data/tokenizer.h"
#include "model/config.h"

/* Reads config.json and the tokenizer of a folder, whose weights need not be there. f keeps `dir` and points into c,
 * so both have to outlive it. After any outcome the caller frees: model_config_free, tokenizer_free; *t is NULL on
 * failure. */
enum status family_open(const char *dir, struct model_config *c, struct data_family *f, struct tokenizer **t,
                        struct err *e);

/* The type that the model computes in: --dtype, else that of its files (f32) or bf16. */
enum dtype family_dtype(const struct flags *f, const struct model_config *c);

#endif
