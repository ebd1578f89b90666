/* Everything that a verb opens before it computes, in the order in which a user's mistakes are cheapest to find:
 * settings, device, the model's configuration and tokenizer, the data, and only then the weights. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "cli/flags.h"
#include "data/dataset.h"
#include "data/family.h"
#include "data/tokenizer.h"
#include "lora/adapter.h"
#include "lora/head.h"
#include "lora/settings.h"
#include "lora/train.h"
#include "model/model.h"

struct session {
    struct backend *be;
    char *model_dir;
    struct model_config config;
    struct data_family family;
    struct head_info adapter_head; // of the adapter that is used or continued
    struct head_options head;      // that the model is loaded with
    struct tokenizer *tokenizer;
    struct dataset *train, *val;
    struct model *model;
    struct adapter *adapter;
    struct trainer *trainer;
    struct settings settings; // of a training
    const char **label_names; // its key of that name, or NULL; the list is owned
    enum dtype act;
    int64_t bad_rows;
};

/* Rows to be evaluated, into s->val, with notes on what was left out; the head is settled by them. */
enum status session_open_val(struct session *s, const struct flags *f, const struct data_options *o, struct err *e);

/* A training: everything up to the trainer, whose memory is planned and taken; nothing is written. */
enum status session_open_training(struct session *s, const struct flags *f, const volatile sig_atomic_t *stop,
                                  struct err *e);

/* What the model is to give: as the user asks (problem and num_labels NULL and 0: as it is), else as the adapter (or
 * NULL) or config.json says. Sets what the data has to know; to be called between session_open and the data. */
enum status session_choose_head(struct session *s, const char *adapter, const char *problem, int64_t num_labels,
                                struct err *e);
/* The head against the rows that were read, which decide what is not said elsewhere. */
enum status session_settle_head(struct session *s, const struct dataset *d, struct err *e);
/* The outputs' names (model num_labels), in order; the caller frees the list and the names. */
char **session_output_names(const struct session *s, const struct dataset *d);

/* Device, configuration, tokenizer; then, by session_load, weights and the adapter that --adapter names. */
enum status session_open(struct session *s, const struct flags *f, const char *model, struct err *e);
enum status session_load(struct session *s, const struct flags *f, struct err *e);
/* The backend of work on files, which is the host's on every machine, so that its bytes are the same everywhere; with a
 * note for whoever asks for another device. */
struct backend *session_host(const struct flags *f, const char *work, struct err *e);
/* A note where an adapter was trained beside the 4-bit form of weights that are not quantised here, or on other weights
 * than those of the model (NULL: only the first is asked). */
enum status session_note_base(const struct flags *f, const char *adapter, bool quantised, const struct model *m,
                              struct err *e);
void session_close(struct session *s);

/* The data flags that eval, data and generate take like a training config: conv_template, max_seq_len, on_bad_row. */
struct data_options session_data_options(const struct flags *f, const char *file, const char *split);

#endif
