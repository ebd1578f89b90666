/* From the files of a model folder to tensors that a backend computes with. Strict: a missing, misshapen or surplus
 * tensor is an error that names it.
 *
 * Where the host's memory is the backend's, matrices stay where the file is mapped, else they are copies in the arena;
 * but for tables, whose copies stay with the host.
 * What is quantised while loading is made by the backend and lies in the arena; a dense weight passes through it piece
 * by piece. Vectors (norm gains, biases) become F32 copies there.
 * The same calls are made twice: with an arena that only counts, then with memory (placing). The first failure is kept
 * in `err`, and later calls do nothing. */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/regex.h"
#include "base/safetensors.h"
#include "model/linear.h"
#include "quant/block.h"
#include "quant/bnb.h"

/* Quantising while loading (`quantization:` of a training config). */
struct quantize_on_load {
    enum dtype type; // NF4, FP4; F32: leave the weights as they are
    bool double_quant;
    int blocksize;
    const char *skip;        // regex (modules_match) beyond transformers' own list; NULL: none
    const char *const *keep; // transformers' own list: a module of this name or path, or below it, keeps its type
    size_t keep_count;
};

struct weights {
    const char *dir;
    struct st_set files;
    bool *used; // (files.count)
    struct backend *be;
    struct arena *arena, *host; // of the backend; of the host, for tables that ops of a device read there
    bool placing;               // false: only counts
    struct quantize_on_load quantize;
    struct regex *skip;
    struct owned_weight *owned; // 4-bit weights that were read or made
    struct err *err;
};

enum status weights_open(struct weights *w, const char *dir, struct backend *be, const struct quantize_on_load *q,
                         struct err *e);
void weights_close(struct weights *w); // everything that was read is gone

/* Of the names, shapes and first bytes of all tensors, which tell two trained models apart. */
uint64_t weights_fingerprint(uint64_t so_far, const struct st_set *files);

bool weights_has(const struct weights *w, const char *name);

/* F32 copy of a vector (n). */
void weights_vector(struct weights *w, struct tensor *t, const char *name, int64_t n);

/* A matrix (rows, cols) in its own type; trailing dimensions of the file are taken together. */
void weights_matrix(struct weights *w, struct tensor *t, const char *name, int64_t rows, int64_t cols);

/* The same, of which a pass reads a few rows: a device has them come from the host's memory. */
void weights_table(struct weights *w, struct tensor *t, const char *name, int64_t rows, int64_t cols);

/* PATH.weight (O,I), dense or 4-bit, and PATH.bias (O) when bias is true. l->path becomes a copy that l owns. */
void weights_linear(struct weights *w, struct linear *l, const char *path, int64_t O, int64_t I, bool bias);

/* PREFIX.weight and, unless b is NULL, PREFIX.bias (n). */
void weights_norm(struct weights *w, struct tensor *g, struct tensor *b, const char *prefix, int64_t n);

/* Marks what lies under a prefix, or ends with a suffix, as known and not needed. */
void weights_ignore_prefix(struct weights *w, const char *prefix);
void weights_ignore_suffix(struct weights *w, const char *suffix);

/* The last call; waits for the backend. An error when a weight that was quantised holds NaN or infinity, or when a
 * tensor of the files was not asked for. */
enum status weights_finish(struct weights *w);

#endif
