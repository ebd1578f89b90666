/* Trainings of the built graft in a folder of its own: rows, data.yaml and a config that the test can add to. Every
 * function fails the running test when the folder or the program cannot be used. */
#ifndef TESTS_TRAINING_H
#define TESTS_TRAINING_H

#include <sys/types.h>

#include "base/json.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "tests/run_command.h"

struct training {
    char folder[64]; // absolute
    char *graft;     // absolute
    char *here;      // where the tests run: the root of the repository
};

enum { TRAIN_ROWS = 11, VAL_ROWS = 5 };
#define LLAMA "tests/golden/models/llama/model"

/* Makes the folder with rows.jsonl, val.jsonl, data.yaml and c.yaml for a model folder of the repository. */
void training_open(struct training *t, const char *model);
void training_close(struct training *t);

/* For tests of LLAMA alone: *state is the training. */
int training_set_up(void **state);
int training_tear_down(void **state);
#define TRAINING_TEST(f) cmocka_unit_test_setup_teardown(f, training_set_up, training_tear_down)

char *training_path(const struct training *t, const char *name); // in the folder; the caller frees it
void training_put(const struct training *t, const char *name, const char *text);
void training_put_data(const struct training *t, const char *name,
                       const char *base); // rows of tests/golden/models/BASE

/* graft WORDS, split at blanks, standing in the folder. What it wrote is in *r; command_free. */
void training_graft(const struct training *t, const char *words, double seconds, struct command_result *r);
void training_done(const struct training *t, const char *words);   // the same, which must succeed
cJSON *training_json(const struct training *t, const char *words); // and print this, which the caller deletes

/* graft train c.yaml --quiet --output_dir OUT FLAGS, on the CPU in f32 unless the flags say otherwise; fails unless it
 * ends with the wanted status and, unless says is NULL, says that on stderr. */
void training_run(const struct training *t, const char *out, const char *flags, int status, const char *says);

/* The same started and left running, silent; the caller waits for it. */
pid_t training_start(const struct training *t, const char *out, const char *flags);

/* Five steps whose rows go through together (packed) and one after the other (unpacked). Fails unless the logs are
 * alike: sums over rows in another order are a few roundings of F32, grown by the steps that follow. */
void training_packed_or_not(const struct training *t, const char *flags);

/* Opens t with a model from nothing: graft init PRESET (folder tiny), DoRA on rows with pictures of several sizes, two
 * of them in a micro-batch, packed or not, on the targets that Mantis takes (out), graft merge (merged). Fails unless
 * the loss halves and the merged model has it too. */
void training_of_preset(struct training *t, const char *preset, const char *conv_template);

bool training_has(const struct training *t, const char *name);                         // a file or a folder
void training_same(const struct training *t, const char *a, const char *b);            // two files, byte for byte
void training_tensors(const struct training *t, const char *name, struct st_set *set); // st_close
void training_no_partial(const struct training *t,
                         const char *out);                      // nothing half-written is left, at any depth of one
cJSON *training_log(const struct training *t, const char *out); // the lines of log.jsonl
double training_loss(const struct training *t, const char *out, int64_t step);

#endif
