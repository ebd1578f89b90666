/* What tests of adapters share: a backend, a model of tests/golden/models, a folder to write to. */
#ifndef TESTS_ADAPTER_FIXTURE_H
#define TESTS_ADAPTER_FIXTURE_H

#include "base/json.h"
#include "lora/adapter.h"

#define MODELS "tests/golden/models/"

struct fixture {
    struct backend *be;
    struct model *model;
    char *tmp;
    struct err e;
};

int fixture_start(void **state);
int fixture_end(void **state);
#define FIXTURE_TEST(f) cmocka_unit_test_setup_teardown(f, fixture_start, fixture_end)

void expect_good(const struct err *e);
void expect_error(struct fixture *f, enum status st, const char *part); // a failure whose text has the part; clears it

/* Loads a model in the place of the one before; without options in F32. */
void fixture_load(struct fixture *f, const char *dir, const struct load_options *o);
void fixture_model(struct fixture *f, const char *name); // loads tests/golden/models/NAME/model

/* The config of a fixture's adapter, which the caller deletes; its model is loaded. */
cJSON *fixture_adapter_config(struct fixture *f, const char *name);
struct adapter_options options_of(const cJSON *config);
struct adapter *fixture_adapter(struct fixture *f, const struct adapter_options *o); // adapter_new

/* How many layers whose path has the part are adapted when these modules are the targets. */
int64_t adapted_layers(struct fixture *f, const cJSON *targets, const char *part);

cJSON *json_of(const char *text);
const struct trained *find_trained(const struct adapter *a, const char *key);

/* Differs when anything that hangs in the model does. */
uint64_t model_state(const struct model *m);

/* Trainings in tests/golden/models with a folder adapter/ that PEFT wrote. */
enum { FOLDER_COUNT = 15 };
extern const char *const FOLDERS[FOLDER_COUNT];

#endif
