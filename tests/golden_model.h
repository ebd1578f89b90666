/* A family's small model beside what another program gave for it. FOLDER holds model/, a folder for each adapter, and
 * in expected.safetensors (expected.h) two rows with pictures and what NAME gives for them, NAME being an adapter or
 * "full", where the model itself is trained. The family's test adds the pictures and has the model loaded. Every
 * function fails the running test when something is not as it should be. */
#ifndef TESTS_GOLDEN_MODEL_H
#define TESTS_GOLDEN_MODEL_H

#include "tests/adapter_fixture.h"
#include "tests/expected.h"

enum { GOLDEN_PICTURES = 3 };

struct golden {
    const char *folder;
    struct expected expected;
    struct batch batch;
    struct batch_image image[GOLDEN_PICTURES];
    struct batch_limits limits; // of exactly this batch
    int64_t row_index[2], pooled[2];
    int32_t positions[64], targets[64];
    enum keep keep[8]; // of each layer
    struct adapter *adapter;
    struct workspace *work;
    float loss; // of the last step
};

/* The rows as data/ would hand them over, but for their pictures. */
void golden_open(struct golden *g, const char *folder);
void golden_add_picture(struct golden *g, struct batch_image image, int64_t patches);
void golden_close(struct golden *g); // and its adapter and workspace

/* What NAME trains, with its values of FOLDER/NAME; the caller frees it. */
struct adapter *golden_adapter(struct fixture *f, const char *folder, const char *name);

/* Memory for g->batch, in g->work, and a pass without a backward. */
void golden_work(struct golden *g, struct fixture *f, bool train, enum dtype act, enum keep how);
void golden_forward(struct golden *g, struct fixture *f);

/* One step of NAME. In F32 its losses (of a head: outputs) and gradients must be the expected ones; golden_evaluate
 * wants the losses from memory that nothing is kept in, and an adapter that is opened by itself. */
void golden_step(struct golden *g, struct fixture *f, const char *name, enum dtype act, enum keep how);
void golden_check_step(struct golden *g, struct fixture *f, const char *name, enum keep how);
void golden_evaluate(struct golden *g, struct fixture *f, const char *name);

/* The last logits of the first row, whose two pictures come at once, in pieces when piece > 0; or in two turns, the
 * second from a position between the pictures. The caller frees them. */
float *golden_logits(struct golden *g, struct fixture *f, int64_t most_patches, int64_t piece, int64_t second);

/* Loads the model in NF4, which only the head may not become. */
void golden_quantise(struct fixture *f, const char *folder, const char *head);

/* FOLDER's config.json read with one key of a part (NULL: the top) set, or taken out (value NULL). */
enum status golden_config(struct fixture *f, struct model_config *c, const char *folder, const char *part,
                          const char *key, const char *value);

struct config_change {
    const char *part, *key, *value, *says;
};
void golden_refuse_configs(struct fixture *f, const char *folder, const struct config_change *changes, size_t count);

#endif
