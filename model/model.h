/* A frozen network and one pass through it, forward and backward.
 *
 *   model.c      loads it: names, shapes, which parameter is where
 *   workspace.c  the memory of a pass, measured by running the pass dry
 *   pass.c       embed, pictures, a loop over block_forward, and the same backwards
 *   pictures.c   the tower (vit.c) and what lies between it and the text (idefics2: connector.c); mfuyu: patches
 *   head.c       final norm, logits of the scored positions, loss and its gradient
 *   score.c      the same for classification and regression, at one position a row
 *   generate.c   a cache of keys and values, one token after the other
 *
 * Traps, each with a test: SigLIP's first patch is dropped, as if it were CLIP's class token (tests/test_golden.c,
 * mllava); the label of a position lies one further on (data/batch.c shifts, the model never does). */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "base/batch.h"
#include "model/block.h"
#include "model/config.h"
#include "model/pictures.h"
#include "model/weights.h"

/* A parameter of the published model by its name there. value is where the network reads it; grad (F32, same shape) is
 * added to by the backward when its data is set. NULL grad: cannot be trained. */
struct param {
    const char *name; // "model.norm.weight"
    struct tensor *value, *grad;
};

struct model {
    struct model_config config;
    struct backend *be;
    struct weights weights;
    void *memory; // of vectors and of what cannot be used where it is mapped
    size_t memory_bytes;
    void *host_memory; // of the embedding, where a device reads it with the host; or NULL
    size_t host_bytes;

    struct tensor embed, gembed;         // (V,C)
    struct block *blocks;                // (layers)
    struct tensor norm, gnorm;           // (C)
    struct tensor norm_bias, gnorm_bias; // (C), mfuyu: the final norm is a LayerNorm
    struct linear head;                  // (V,C), tied: shares the embedding's weight; or "score" (config.num_labels,C)
    bool new_head, head_bias;            // score is no part of the files: made here
    uint64_t head_seed;

    struct vit vit;                   // mllava, idefics2
    struct linear project1, project2; // mllava: (C,Cv) (C,C)
    struct connector connector;       // idefics2
    struct linear patch_embed;        // mfuyu: (C,3*p*p)
    const char *text_prefix;          // of module paths: "model", "language_model.model", ...
    const char *vision_prefix, *projector_prefix;

    struct linear **linears; // every nn.Linear, in the order of the network
    int64_t linear_count;
    struct param *params;
    int64_t param_count;
};

/* The head that is wanted. */
struct head_options {
    enum problem problem; // generation: what the model has
    int64_t num_labels;   // 0: those of the model
    bool bias;            // of a new head
    uint64_t seed;        // of a new head's weight
};

struct load_options {
    struct quantize_on_load quantize; // type F32: as it is
    struct head_options head;
};

enum status model_load(struct model **m, const char *dir, struct backend *be, const struct load_options *o,
                       struct err *e);
void model_free(struct model *m);

int64_t model_param_total(const struct model *m);  // numbers in the published model
size_t model_weight_bytes(const struct model *m);  // of all frozen weights as they are held
uint64_t model_fingerprint(const struct model *m); // of its configuration and tensors
struct param *model_param(const struct model *m, const char *name);
struct linear *model_linear(const struct model *m, const char *path);

/* Whether a module or parameter takes part in a pass only where there are pictures: of the tower and of what leads from
 * it into the language model. */
bool model_is_of_pictures(const struct model *m, const char *name);

/* Whether a module is the output embedding (lm_head), which "all-linear" leaves out. */
bool model_is_output(const struct model *m, const struct linear *l);

/* --- the memory of passes of bounded size ------------------------------------------------------------------------ */

struct kv_cache {
    struct tensor *keys, *values; // (layers) of (room,K,D)
    int64_t room, length;
};

/* Of the rows that went through the final norm. */
struct norm_stats {
    struct tensor mean, rstd; // (rows); mean: of a LayerNorm
};

struct acts {
    int64_t N, scored, images;
    struct tensor ids, positions, offsets; // (N) (N) I32, (rows+1) I64
    struct tensor kv_offsets;              // (rows+1) I64, with a cache
    struct tensor *x;                      // (layers + 1) of (N,C): input of each layer, then the last output
    void **host_x;                         // (layers), of KEEP_HOST: the input, on the host
    struct block_acts *blocks;             // (layers)
    struct sequence sequence;

    struct tensor scored_rows, targets; // (S) I32
    struct norm_stats norm;             // of the scored rows of the last output
    struct tensor loss;                 // (S) F32
    struct tensor labels, outputs;      // (S,labels) F32: of a head that is no language model's
    struct linear_acts lhead;

    struct picture_acts pictures;
    struct tensor noise; // (N) F32: NEFTune amplitude of each position
};

/* Inputs of KEEP_HOST layers take turns in so many places: a layer reads one while another is copied. */
enum { HOST_TURNS = 2 };

struct workspace {
    struct model *m;
    struct batch_limits limits;
    bool train, forget;
    enum dtype act;
    const enum keep *keep; // (layers), the caller's; unused unless train
    struct arena arena;    // tables, then per pass: acts and scratch
    struct arena host;     // inputs of KEEP_HOST layers
    size_t tables_end;
    void *memory, *host_memory; // of the arenas
    struct tensor rope;         // (2,longest,rotary/2)
    struct tensor parts[3];     // (limits.N*H) I32, Persimmon: the sequence's
    struct acts acts;
    struct kv_cache *cache; // the caller's; NULL: none
    int32_t *host_index;    // staging for uploads
    int64_t *host_offsets;  // of rows, or of pictures, and then a second list of these
    float *host_noise;
    float neftune_alpha;
    bool dry;
};

struct workspace_options {
    struct batch_limits limits;
    bool train;
    enum dtype act;
    const enum keep *keep;
    float neftune_alpha;
    int64_t cache_room; // > 0: a pass may follow others, whose keys and values are kept
    bool forget;        // of mapped weights, no more than a layer's are in memory at once
};

/* Bytes that a workspace takes of the backend's memory, found by running its largest pass without memory; host: those
 * of the host that KEEP_HOST layers take, or NULL. */
size_t workspace_measure(struct model *m, const struct workspace_options *o, size_t *host);
enum status workspace_new(struct workspace **w, struct model *m, const struct workspace_options *o, struct err *e);
void workspace_free(struct workspace *w);

/* --- one pass ---------------------------------------------------------------------------------------------------- */

/* seed and draw decide dropout and noise. Fills w->acts; with a cache the rows follow those that are in it. */
struct pass pass_new(struct workspace *w, uint64_t seed, uint64_t draw);

void model_forward(const struct pass *p, struct workspace *w, const struct batch *b);

/* The final norm: RMSNorm, or LayerNorm where it has a bias. The backward adds to dx and to what is trained. */
void final_norm_layout(struct norm_stats *s, struct arena *m, int64_t rows);
void final_norm_forward(const struct pass *p, const struct model *m, const struct tensor *y, const struct norm_stats *s,
                        const struct tensor *x);
void final_norm_backward_add(const struct pass *p, const struct model *m, const struct tensor *dx,
                             const struct tensor *dy, const struct tensor *x, const struct norm_stats *s);

/* The losses of the scored positions (one a row under a classification head) go to acts.loss; with dx (N,C) also
 * scale times the gradient of their sum with respect to the last layer's output, and the gradients of head and final
 * norm are added to. */
void head_loss(const struct pass *p, struct workspace *w, const struct tensor *dx, float scale);

/* dx (N,C): gradient of the last layer's output. Adds to every gradient that is trained. */
void model_backward(const struct pass *p, struct workspace *w, const struct batch *b, const struct tensor *dx);

/* Forward, loss and, when training, backward of one batch; total (1) F32 += the sum of the losses. */
void model_step(struct workspace *w, const struct batch *b, uint64_t seed, uint64_t draw, float scale,
                const struct tensor *total);

/* The lowest layer (or 0: the embedding or pictures; layers + 1: the head) whose output after model_forward holds a
 * number that is not finite; -1: none. Needs a training workspace that keeps inputs. */
int64_t model_find_nonfinite(struct workspace *w);

/* head_loss under a classification head: its outputs go to acts.outputs too. */
void score_loss(const struct pass *p, struct workspace *w, const struct tensor *dx, float scale);

/* logits (V) F32 on the host of the last position of the pass. */
void head_logits(const struct pass *p, struct workspace *w, float *logits);

#endif
