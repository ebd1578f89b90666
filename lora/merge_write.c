/* The numbers of a merged tensor, block of rows by block of rows, and how they get into the files. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/folder.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/shards.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "lora/merge_config.h"
#include "lora/merge_parts.h"

enum {
    BLOCK_FLOATS = 1 << 19, // of a tensor that are in work as F32; fewer are computed from memory that is near
    PIECE = 256,            // of a row, on the stack
    COPY_BYTES = 4 << 20,   // of a tensor that is only copied, at a time
};

/* --- the numbers of one tensor ----------------------------------------------------------------------------------- */

/* All of an entry times a factor, into rows of `stride` numbers. */
static void add_scaled(float *out, int64_t stride, const struct st_entry *t, int64_t rows, double factor) {
    int64_t cols = (int64_t)(t->bytes / st_type_size(t->type)) / rows;
    for (int64_t r = 0; r < rows; r++) {
        floats_read(out + r * stride, t->data, floats_type(t), r * cols, cols);
        if (factor != 1)
            for (int64_t c = 0; c < cols; c++) out[r * stride + c] = (float)(factor * out[r * stride + c]);
    }
}

static enum status dequantise(struct merge_numbers *n, struct err *e) {
    struct q4_weight w = {0};
    const struct merge_item *item = n->item;
    if (bnb_read(&w, &n->m->model->weights.files, item->from->name, e) == ST_OK) {
        n->type = w.q.source;
        n->base = n->dequantised = mem_alloc((size_t)tensor_count(&w.t) * dtype_size(n->type));
        block_dequantize(n->dequantised, n->type, &w.t, n->m->o.be->threads);
    }
    bnb_release(&w);
    return e->code;
}

/* The low-rank parts of all adapters side by side. */
static void stack(struct merge_numbers *n) {
    const struct merge_item *item = n->item;
    int64_t sources = n->m->o.adapter_count, at = 0;
    for (int64_t k = 0; k < sources; k++)
        if (item->changes[k].A) n->R += item->changes[k].A->dim[0];
    if (n->R == 0) return;
    n->A = mem_alloc((size_t)(n->R * item->I) * sizeof *n->A);
    n->B = mem_alloc((size_t)(n->R * item->O) * sizeof *n->B);
    for (int64_t k = 0; k < sources; k++) {
        const struct change *c = &item->changes[k];
        if (!c->A) continue;
        add_scaled(n->A + at * item->I, item->I, c->A, c->A->dim[0], 1);
        add_scaled(n->B + at, n->R, c->B, item->O, c->scale);
        st_forget(c->A), st_forget(c->B);
        at += c->A->dim[0];
        if (!c->m) continue;
        n->magnitude = mem_alloc((size_t)item->O * sizeof *n->magnitude);
        add_scaled(n->magnitude, item->O, c->m, 1, 1);
    }
}

static void stack_bias(struct merge_numbers *n) {
    const struct merge_item *item = n->item;
    float *one = mem_alloc((size_t)item->I * sizeof *one);
    for (int64_t k = 0; k < n->m->o.adapter_count; k++) {
        if (!item->changes[k].bias) continue;
        if (!n->add) n->add = mem_alloc((size_t)item->I * sizeof *n->add);
        add_scaled(one, item->I, item->changes[k].bias, 1, item->changes[k].scale);
        for (int64_t i = 0; i < item->I; i++) n->add[i] += one[i];
    }
    free(one);
}

enum status numbers_open(struct merge_numbers *n, const struct merge *m, const struct merge_item *item, struct err *e) {
    *n = (struct merge_numbers){.m = m, .item = item, .base = item->from->data};
    if (item->four_bit) {
        if (dequantise(n, e) != ST_OK) return e->code;
    } else {
        n->type = floats_type(item->from);
    }
    stack(n);
    for (int64_t k = 0; k < m->o.adapter_count; k++) n->replaced = n->replaced || item->changes[k].whole;
    if (text_ends(item->out.name, ".bias")) stack_bias(n);
    return ST_OK;
}

void numbers_close(struct merge_numbers *n) {
    free(n->dequantised), free(n->A), free(n->B), free(n->magnitude), free(n->add);
    *n = (struct merge_numbers){0};
}

/* x (count), numbers of the base from `from` on, becomes what replaces them. */
static void replace_piece(const struct merge_numbers *n, int64_t from, int64_t count, float *x) {
    const int64_t sources = n->m->o.adapter_count;
    float before[PIECE], after[PIECE];
    memcpy(before, x, (size_t)count * sizeof *before);
    for (int64_t k = 0; k < sources; k++) {
        const struct st_entry *w = n->item->changes[k].whole;
        double weight = n->m->sources[k].weight;
        if (!w) continue;
        floats_read(after, w->data, floats_type(w), from, count);
        for (int64_t i = 0; i < count; i++)
            x[i] = sources == 1 && weight == 1 ? after[i] : (float)(x[i] + weight * ((double)after[i] - before[i]));
    }
}

/* numbers_row for its numbers from `at` on, at most PIECE. */
static void row_piece(const struct merge_numbers *n, int64_t row, int64_t at, int64_t count, float *x) {
    const int64_t from = row * n->item->I + at;
    floats_read(x, n->base, n->type, from, count);
    if (n->replaced) replace_piece(n, from, count, x);
    for (int64_t i = 0; n->add && i < count; i++) x[i] += n->add[at + i];
}

static int64_t piece_at(int64_t at, int64_t I) { return I - at < PIECE ? I - at : PIECE; }

void numbers_row(const struct merge_numbers *n, int64_t row, float *x) {
    const int64_t I = n->item->I;
    for (int64_t at = 0; at < I; at += PIECE) row_piece(n, row, at, piece_at(at, I), x + at);
}

/* --- merging ----------------------------------------------------------------------------------------------------- */

/* Rows [first, first + count) of a tensor, in work. */
struct rows_job {
    const struct merge_numbers *n;
    int64_t first, count;
    float *x; // (count,I): s B A of these rows where there is any, then the rows
};

/* The row times m over its norm. */
static void rescale(float *x, int64_t I, float magnitude) {
    double sum = 0;
    for (int64_t i = 0; i < I; i++) sum += (double)x[i] * x[i];
    float factor = magnitude / (float)sqrt(sum);
    for (int64_t i = 0; i < I; i++) x[i] *= factor;
}

static void merge_row(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct rows_job *j = arg;
    const struct merge_numbers *n = j->n;
    const int64_t I = n->item->I, row = j->first + task;
    float *x = j->x + task * I, base[PIECE];
    if (n->R == 0) numbers_row(n, row, x);
    for (int64_t at = 0; n->R && at < I; at += PIECE) {
        const int64_t count = piece_at(at, I);
        row_piece(n, row, at, count, base);
        for (int64_t i = 0; i < count; i++) x[at + i] += base[i];
    }
    if (n->magnitude) rescale(x, I, n->magnitude[row]);
}

/* x = s B A of the rows. */
static enum status multiply_rows(const struct rows_job *j, struct err *e) {
    const struct merge_numbers *n = j->n;
    struct backend *be = n->m->o.be;
    const int64_t I = n->item->I;
    if (n->R == 0) return ST_OK;
    struct tensor A = tensor_over2(n->A, F32, n->R, I), D = tensor_over2(j->x, F32, j->count, I);
    struct tensor B = tensor_over2(n->B + j->first * n->R, F32, j->count, n->R);
    op_matmul(be, &D, &B, false, &A, false, 1, 0);
    return backend_sync(be, e);
}

int64_t numbers_block(const struct merge_numbers *n) {
    int64_t O = n->item->O, I = n->item->I, most = I > 0 && BLOCK_FLOATS / I > 0 ? BLOCK_FLOATS / I : 1;
    return most > O ? O : most;
}

void rows_forget(const struct merge_item *item, const struct st_entry *t, int64_t first, int64_t count) {
    size_t row = item->O > 0 ? t->bytes / (size_t)item->O : 0;
    struct st_entry part = st_part(t, (size_t)first * row, (size_t)count * row);
    st_forget(&part);
}

enum status numbers_merged(const struct merge_numbers *n, int64_t first, int64_t count, float *x, struct err *e) {
    struct rows_job j = {.n = n, .first = first, .count = count, .x = x};
    if (multiply_rows(&j, e) == ST_OK) threads_for(n->m->o.be->threads, count, merge_row, &j);
    return e->code;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

/* The tensors on their way to the files. A block is written while the next one is computed. */
struct output {
    struct shards shards;
    float *x;             // of a block
    void *block, *before; // rounded: the one that is computed, and the one that is computed already
    size_t before_bytes;  // 0: it was written
    bool *bad;            // (rows of a block): a number that is not finite
};

struct write_job {
    struct rows_job rows;
    struct output *to;
    struct err *e; // of the first task alone
};

static void store(void *out, enum st_type type, int64_t first, const float *x, int64_t n) {
    if (type == ST_F32) {
        memcpy((float *)out + first, x, (size_t)n * sizeof *x);
        return;
    }
    uint16_t *to = (uint16_t *)out + first;
    for (int64_t i = 0; i < n; i++) to[i] = type == ST_BF16 ? bf16_of_float(x[i]) : f16_of_float(x[i]);
}

/* By the largest exponent, signed, because that is what any compiler turns into vectors. */
static bool is_finite(const void *data, enum st_type type, int64_t first, int64_t n) {
    const uint32_t *w = (const uint32_t *)data + first;
    const uint16_t *h = (const uint16_t *)data + first;
    const int16_t all_ones = type == ST_BF16 ? 0x7F80 : 0x7C00;
    int16_t most = 0;
    int32_t most32 = 0;
    if (type == ST_F32) {
        for (int64_t i = 0; i < n; i++) {
            int32_t exponent = (int32_t)(w[i] & 0x7F800000u);
            most32 = exponent > most32 ? exponent : most32;
        }
        return most32 < 0x7F800000;
    }
    for (int64_t i = 0; i < n; i++) {
        int16_t exponent = (int16_t)(h[i] & all_ones);
        most = exponent > most ? exponent : most;
    }
    return most < all_ones;
}

static enum status write_before(struct output *to, struct err *e) {
    size_t n = to->before_bytes;
    to->before_bytes = 0;
    return n ? shards_put(&to->shards, to->before, n, e) : ST_OK;
}

/* The first task writes, the others compute a row each. */
static void write_task(void *arg, int64_t task, int thread) {
    struct write_job *j = arg;
    const struct merge_item *item = j->rows.n->item;
    int64_t row = task - 1;
    if (task == 0) {
        write_before(j->to, j->e);
        return;
    }
    merge_row(&j->rows, row, thread);
    store(j->to->block, item->out.type, row * item->I, j->rows.x + row * item->I, item->I);
    j->to->bad[row] = !is_finite(j->to->block, item->out.type, row * item->I, item->I);
}

/* A row that is not finite in the base stays as it is; one that has become so is an error. */
static enum status check_finite(const struct write_job *j, struct err *e) {
    const struct merge_item *item = j->rows.n->item;
    for (int64_t r = 0; r < j->rows.count; r++) {
        if (!j->to->bad[r] || !(item->changed || item->out.type != item->from->type)) continue;
        return err_set(e, ST_FAIL, "%s: row %lld of the merged tensor is not finite in %s%s", item->out.name,
                       (long long)(j->rows.first + r), st_type_name(item->out.type),
                       item->out.type == ST_F16 ? "; take --dtype bf16, which holds larger numbers" : "");
    }
    return ST_OK;
}

static enum status put_block(struct output *to, const struct merge_numbers *n, int64_t first, int64_t count,
                             struct err *e) {
    struct write_job j = {.rows = {.n = n, .first = first, .count = count, .x = to->x}, .to = to, .e = e};
    if (multiply_rows(&j.rows, e) != ST_OK) return e->code;
    threads_for(n->m->o.be->threads, count + 1, write_task, &j);
    if (!n->dequantised) rows_forget(n->item, n->item->from, first, count);
    if (e->code != ST_OK || check_finite(&j, e) != ST_OK) return e->code;
    void *written = to->before;
    to->before = to->block, to->block = written;
    to->before_bytes = (size_t)(count * n->item->I) * st_type_size(n->item->out.type);
    return ST_OK;
}

static enum status put_merged(struct output *to, const struct merge *m, const struct merge_item *item, struct err *e) {
    struct merge_numbers n;
    if (numbers_open(&n, m, item, e) == ST_OK) {
        const int64_t most = numbers_block(&n);
        for (int64_t first = 0; first < item->O && e->code == ST_OK; first += most)
            put_block(to, &n, first, item->O - first < most ? item->O - first : most, e);
    }
    numbers_close(&n);
    st_forget(item->from);
    return e->code;
}

/* By parts, so that no more of the file than that is in memory. */
static enum status put_copied(struct output *to, const struct merge_item *item, struct err *e) {
    size_t at = 0;
    write_before(to, e);
    do {
        struct st_entry part = st_part(item->from, at, COPY_BYTES);
        if (e->code == ST_OK) shards_put(&to->shards, part.data, part.bytes, e);
        st_forget(&part);
        at += COPY_BYTES;
    } while (at < item->out.bytes && e->code == ST_OK);
    return e->code;
}

/* Room for the largest block. */
static void output_room(struct output *to, const struct merge *m) {
    int64_t floats = 0, rows = 0;
    for (size_t i = 0; i < m->count; i++) {
        const struct merge_numbers n = {.item = &m->items[i]};
        const int64_t block = numbers_block(&n);
        if (n.item->copied) continue;
        if (block > rows) rows = block;
        if (block * n.item->I > floats) floats = block * n.item->I;
    }
    to->x = mem_alloc((size_t)floats * sizeof *to->x);
    to->block = mem_alloc((size_t)floats * sizeof *to->x);
    to->before = mem_alloc((size_t)floats * sizeof *to->x);
    to->bad = mem_alloc((size_t)rows * sizeof *to->bad);
}

static enum status put_items(struct output *to, const struct merge *m, struct err *e) {
    int64_t done = 0;
    for (size_t i = 0; i < m->count && e->code == ST_OK; i++) {
        const struct merge_item *item = &m->items[i];
        if (watch_tell(&m->o.watch, item->out.name, done, m->counts.bytes_out, e) != ST_OK) return e->code;
        if (item->copied || item->out.bytes == 0)
            put_copied(to, item, e);
        else
            put_merged(to, m, item, e);
        done += (int64_t)item->out.bytes;
    }
    return e->code == ST_OK ? write_before(to, e) : e->code;
}

static enum status write_tensors(struct merge *m, const char *dir, struct err *e) {
    struct st_entry *entries = mem_alloc(m->count * sizeof *entries);
    struct output to = {0};
    for (size_t i = 0; i < m->count; i++) entries[i] = m->items[i].out;
    output_room(&to, m);
    if (shards_open(&to.shards, dir, entries, m->count, m->o.max_shard_size, e) == ST_OK &&
        put_items(&to, m, e) == ST_OK)
        shards_commit(&to.shards, e);
    shards_abandon(&to.shards);
    free(to.x), free(to.block), free(to.before), free(to.bad);
    free(entries);
    return e->code;
}

enum status merge_write(struct merge *m, const char *dir, struct err *e) {
    const struct merge_config c = {.head = m->model->new_head ? &m->head : NULL,
                                   .model_type = m->model->config.model_type,
                                   .untied = m->counts.untied,
                                   .set_dtype = !m->o.as_stored,
                                   .dtype = m->o.type,
                                   .plain = m->counts.four_bit};
    if (write_tensors(m, dir, e) != ST_OK || merge_config_write(&c, m->o.model, dir, e) != ST_OK) return e->code;
    return folder_copy_companions(m->o.model, dir, e);
}
