/* Everything that a verb opens before it computes, in the order in which a user's mistakes are cheapest to find:
 * settings, device, the model's configuration and tokenizer, the data, and only then the weights. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "cli/flags.h"
#include "data/dataset.h"
#include "data/family.h"
#include "data/tokenizer.h"
#include "lora/adapter.h"
#include "lora/settings.h"
#include "lora/train.h"
#include "model/model.h"

struct session {
    struct backend *be;
    char *model_dir;
    struct model_config config;
    struct data_family family;
    struct tokenizer *tokenizer;
    struct dataset *train, *val;
    struct model *model;
    struct adapter *adapter;
    struct trainer *trainer;
    struct settings settings; // of a training
    enum dtype act;
    int64_t bad_rows;
};

/* A training: everything up to the trainer, whose memory is planned and taken; nothing is written. */
enum status session_open_training(struct session *s, const struct flags *f, const volatile sig_atomic_t *stop,
                                  struct err *e);

/* Device, configuration, tokenizer; then, by session_load, weights and an adapter unless it is NULL. */
enum status session_open(struct session *s, const struct flags *f, const char *model, struct err *e);
enum status session_load(struct session *s, const char *adapter, struct err *e);
void session_close(struct session *s);

/* The data flags that eval, data and generate take like a training config: conv_template, max_seq_len, on_bad_row. */
struct data_options session_data_options(const struct flags *f, const char *file, const char *split);

#endif
