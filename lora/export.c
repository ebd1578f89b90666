#include "lora/export.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/floats.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/export_parts.h"

void export_note(struct export_plan *p, const char *sentence) {
    char *note = p->report->note;
    size_t used = strlen(note), room = sizeof p->report->note - used;
    snprintf(note + used, room, "%s%s", used ? "; " : "", sentence);
}

/* --- the numbers of a tensor ------------------------------------------------------------------------------------- */

/* A tensor that is being written or checked, by blocks of rows. Its room serves one tensor after the other. */
struct rows {
    const struct export_plan *p;
    const struct export_item *item;
    struct merge_numbers numbers; // FROM_MERGE
    int64_t most;                 // rows of a block
    int64_t first, count;         // rows in work
    float *x;                     // (most,I) in the order of the source
    int64_t room;                 // numbers that x has room for
};

static enum status rows_open(struct rows *r, const struct export_plan *p, const struct export_item *item,
                             struct err *e) {
    enum { FLOATS = 1 << 19 };
    *r = (struct rows){.p = p, .item = item, .x = r->x, .room = r->room};
    if (item->source == FROM_MERGE) {
        if (numbers_open(&r->numbers, p->m, item->item, e) != ST_OK) return e->code;
        r->most = numbers_block(&r->numbers);
    } else {
        r->most = item->I < FLOATS ? FLOATS / item->I : 1;
        if (r->most > item->O) r->most = item->O;
    }
    if (item->turn && item->O > 1) { // a head stays whole
        r->most -= r->most % item->turn;
        if (r->most == 0) r->most = item->turn;
    }
    if (r->most * item->I > r->room) {
        r->room = r->most * item->I;
        r->x = mem_resize(r->x, (size_t)r->room * sizeof *r->x);
    }
    return ST_OK;
}

/* x stays. */
static void rows_close(struct rows *r) {
    if (r->item->source != FROM_MERGE) return;
    numbers_close(&r->numbers);
    st_forget(r->item->item->from);
}

/* Where number j of a head stands in its halves, when pairs are wanted. */
static int64_t from_halves(int64_t j, int64_t D) { return (j & 1) * (D / 2) + j / 2; }

/* A vector is turned number by number. */
static void turn_vector(float *x, int64_t n, int64_t D) {
    float *old = mem_alloc((size_t)n * sizeof *old);
    memcpy(old, x, (size_t)n * sizeof *old);
    for (int64_t i = 0; i < n; i++) x[i] = old[i - i % D + from_halves(i % D, D)];
    free(old);
}

/* Reads the next block; false at the end or with the error set. */
static bool rows_next(struct rows *r, struct err *e) {
    const struct export_item *item = r->item;
    int64_t I = item->I;
    r->first += r->count;
    r->count = item->O - r->first < r->most ? item->O - r->first : r->most;
    if (r->count <= 0) return false;
    if (item->source == FROM_MERGE) {
        numbers_merged(&r->numbers, r->first, r->count, r->x, e);
        if (!item->item->four_bit) rows_forget(item->item, item->item->from, r->first, r->count);
    } else if (item->source == FROM_TABLE) {
        memcpy(r->x, item->table, (size_t)I * sizeof *r->x);
    } else {
        floats_read(r->x, item->entry->data, floats_type(item->entry), r->first * I, r->count * I);
    }
    for (int64_t i = 0; item->factor != 1 && i < r->count * I; i++) r->x[i] = (float)(item->factor * r->x[i]);
    if (item->turn && item->O == 1) turn_vector(r->x, I, item->turn);
    return e->code == ST_OK;
}

/* Row i of the block as it is written. */
static const float *rows_at(const struct rows *r, int64_t i) {
    int64_t D = r->item->turn;
    if (D && r->item->O > 1) i = i - i % D + from_halves(i % D, D);
    return r->x + i * r->item->I;
}

static size_t row_bytes(const struct export_item *item) { return item->out.bytes / (size_t)item->O; }

/* --- writing ----------------------------------------------------------------------------------------------------- */

/* The blocks on their way to the file: one is written while the next one is packed. */
struct output {
    struct gguf_writer *w;
    struct rows rows;
    char *block, *before; // the one that is packed, and the one that is packed already
    size_t room;          // bytes of each
    size_t before_bytes;  // 0: it was written
    bool *bad;            // (rows of a block): a number that the type cannot hold
    int64_t bad_room;
    struct err *e; // of the first task alone
};

/* By bits, whose order is that of the numbers, so that it becomes vector code. NaN is beyond all. */
static bool all_within(const float *x, int64_t n, float limit) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t size = (int32_t)(bits_of_float(x[i]) & 0x7FFFFFFFu);
        most = size > most ? size : most;
    }
    return most <= (int32_t)bits_of_float(limit);
}

static enum status write_before(struct output *to, struct err *e) {
    size_t n = to->before_bytes;
    to->before_bytes = 0;
    return n ? gguf_writer_put(to->w, to->before, n, e) : ST_OK;
}

/* The first task writes, the others pack a row each. */
static void write_task(void *arg, int64_t task, int thread) {
    (void)thread;
    struct output *to = arg;
    const struct export_item *item = to->rows.item;
    const int64_t i = task - 1;
    if (task == 0) {
        write_before(to, to->e);
        return;
    }
    const float *x = rows_at(&to->rows, i);
    to->bad[i] = !all_within(x, item->I, item->out.type == GGML_F16 ? 65504 : 3e38f);
    if (to->bad[i]) return;
    ggml_quantize((enum ggml_type)item->out.type, to->block + (size_t)i * row_bytes(item), x, item->I);
}

static enum status write_block(struct output *to, struct err *e) {
    const struct rows *r = &to->rows;
    const struct export_item *item = r->item;
    threads_for(r->p->o->be->threads, r->count + 1, write_task, to);
    for (int64_t i = 0; i < r->count && e->code == ST_OK; i++)
        if (to->bad[i])
            err_set(e, ST_FAIL, "%s: row %lld holds a number that is not finite, or larger than %s can hold%s",
                    item->out.name, (long long)(r->first + i), ggml_name(item->out.type),
                    item->out.type == GGML_F16 ? "; take --type bf16" : "");
    char *written = to->before;
    to->before = to->block, to->block = written;
    to->before_bytes = (size_t)r->count * row_bytes(item);
    return e->code;
}

/* Room for the blocks of an item. */
static void output_room(struct output *to) {
    const struct rows *r = &to->rows;
    size_t bytes = (size_t)r->most * row_bytes(r->item);
    if (r->most > to->bad_room) to->bad = mem_resize(to->bad, (size_t)(to->bad_room = r->most) * sizeof *to->bad);
    if (bytes <= to->room) return;
    to->room = bytes;
    to->block = mem_resize(to->block, bytes), to->before = mem_resize(to->before, bytes);
}

static enum status write_item(struct output *to, const struct export_plan *p, const struct export_item *item,
                              struct err *e) {
    if (rows_open(&to->rows, p, item, e) == ST_OK) {
        output_room(to);
        while (rows_next(&to->rows, e))
            if (write_block(to, e) != ST_OK) break;
    }
    rows_close(&to->rows);
    return e->code;
}

static enum status write_items(const struct export_plan *p, struct gguf_writer *w, struct err *e) {
    struct output to = {.w = w, .e = e};
    int64_t done = 0;
    for (size_t i = 0; i < p->count && e->code == ST_OK; i++) {
        if (watch_tell(&p->o->watch, p->items[i].out.name, done, p->report->bytes, e) == ST_OK)
            write_item(&to, p, &p->items[i], e);
        done += (int64_t)p->items[i].out.bytes;
    }
    if (e->code == ST_OK) write_before(&to, e);
    free(to.rows.x), free(to.block), free(to.before), free(to.bad);
    return e->code;
}

/* --- checking ---------------------------------------------------------------------------------------------------- */

/* What a type may make of a number x: slope |x| + floor. */
struct bound {
    double slope, floor;
};

/* Of a block whose largest magnitude is `most` and whose range, with 0, is `range`. Q8_0: half a step of most / 127,
 * and the step's own rounding to 11 bits. Q4_0: the number opposite to the largest loses a whole step of most / 8.
 * Q4_K: a fit by least squares, whose weights are at most 2 to 64 apart, may leave one number 8 half steps of
 * range / 15 away, and rounding scale and minimum to 6 bits moves it by 2 range / 63. */
static struct bound allowed(uint32_t type, double most, double range) {
    switch (type) {
    case GGML_F16:
        return (struct bound){0x1p-11, 0x1p-25};
    case GGML_BF16:
        return (struct bound){0x1p-8, 0x1p-133};
    case GGML_Q8_0:
        return (struct bound){0, (0.5 / 127 + 0x1p-10) * most + 127 * 0x1p-24};
    case GGML_Q4_0:
        return (struct bound){0, (1.0 / 8 + 0x1p-9) * most + 8 * 0x1p-24};
    case GGML_Q4_K:
        return (struct bound){0, (8.0 / 30 + 2.0 / 63) * range + 16 * 63 * 0x1p-24};
    }
    return (struct bound){0, 0};
}

struct check_job {
    const struct rows *r;
    const char *data;     // of the block's first row, in the file
    float *back;          // (threads,I)
    double *error, *size; // (count): sums of squares
    bool *bad;            // (count)
};

typedef float two_floats __attribute__((vector_size(8), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(16)));
typedef int64_t masks __attribute__((vector_size(16)));

static inline doubles doubles_at(const float *x) { return __builtin_convertvector(*(const two_floats *)x, doubles); }

/* Adds up |y - x|^2 and |x|^2; false when a number is farther away than the bound, or is NaN. Vectors by name, because
 * compilers make none of it; of each sum there are two, or an addition would wait for the last. */
static bool check_numbers(const float *y, const float *x, int64_t n, struct bound b, double *error, double *size) {
    const masks magnitude = {INT64_MAX, INT64_MAX}; // all bits but the sign
    doubles sum[2] = {{0}}, square[2] = {{0}};
    masks good = {-1, -1};
    int64_t k = 0;
    for (; k + 4 <= n; k += 4)
        for (int h = 0; h < 2; h++) {
            doubles want = doubles_at(x + k + 2 * h), d = doubles_at(y + k + 2 * h) - want;
            good &= (doubles)((masks)d & magnitude) <= b.slope * (doubles)((masks)want & magnitude) + b.floor;
            sum[h] += d * d, square[h] += want * want;
        }
    for (; k < n; k++) {
        double want = x[k], d = y[k] - want;
        good[0] &= -(fabs(d) <= b.slope * fabs(want) + b.floor);
        sum[0][0] += d * d, square[0][0] += want * want;
    }
    sum[0] += sum[1], square[0] += square[1];
    *error += sum[0][0] + sum[0][1], *size += square[0][0] + square[0][1];
    return good[0] && good[1];
}

/* The least and the largest of n numbers and 0, by bits, which have the numbers' order on each side of 0. */
static void range_of(const float *x, int64_t n, float *low, float *high) {
    int32_t above = 0, below = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)bits_of_float(x[i]), turned = bits ^ INT32_MIN;
        above = bits > above ? bits : above, below = turned > below ? turned : below;
    }
    *high = float_of_bits((uint32_t)above), *low = -float_of_bits((uint32_t)below);
}

static void check_row(void *arg, int64_t i, int thread) {
    const struct check_job *j = arg;
    const struct export_item *item = j->r->item;
    const float *x = rows_at(j->r, i);
    const int64_t I = item->I, block = ggml_block(item->out.type), step = block > 1 ? block : I;
    float *y = j->back + thread * I;
    j->error[i] = j->size[i] = 0, j->bad[i] = false;
    ggml_dequantize((enum ggml_type)item->out.type, y, j->data + (size_t)i * row_bytes(item), I);
    for (int64_t at = 0; at < I; at += step) {
        float low = 0, high = 0;
        if (block > 1) range_of(x + at, block, &low, &high);
        struct bound b = allowed(item->out.type, -low > high ? -low : high, (double)high - low);
        j->bad[i] |= !check_numbers(y + at, x + at, step, b, &j->error[i], &j->size[i]);
    }
}

static enum status check_item(const struct export_plan *p, const struct export_item *item, const struct gguf *g,
                              double *error, double *size, struct err *e) {
    const struct gguf_tensor *got = gguf_find_tensor(g, item->out.name);
    const struct threads *threads = p->o->be->threads;
    struct rows r = {0};
    if (!got || got->type != item->out.type || memcmp(got->dim, item->out.dim, sizeof got->dim) != 0)
        return err_set(e, ST_FAIL, "%s: tensor %s is missing, or has another type or shape", g->path, item->out.name);
    if (rows_open(&r, p, item, e) == ST_OK) {
        size_t most = (size_t)r.most;
        struct check_job j = {.r = &r, .bad = mem_alloc(most * sizeof *j.bad)};
        j.back = mem_alloc((size_t)(threads_count(threads) * item->I) * sizeof *j.back);
        j.error = mem_alloc(most * sizeof *j.error), j.size = mem_alloc(most * sizeof *j.size);
        while (rows_next(&r, e)) {
            j.data = (const char *)got->data + (size_t)r.first * row_bytes(item);
            threads_for(p->o->be->threads, r.count, check_row, &j);
            st_forget(&(struct st_entry){.data = j.data, .bytes = (size_t)r.count * row_bytes(item)});
            for (int64_t i = 0; i < r.count; i++) {
                *error += j.error[i], *size += j.size[i];
                if (j.bad[i])
                    err_set(e, ST_FAIL, "%s: row %lld of %s is not what was to be written; nothing was kept", g->path,
                            (long long)(r.first + i), item->out.name);
            }
        }
        free(j.bad), free(j.back), free(j.error), free(j.size);
    }
    rows_close(&r);
    free(r.x);
    return e->code;
}

static enum status check_file(const struct export_plan *p, const char *path, const struct gguf_head *h, struct err *e) {
    enum { BEFORE_HEAD = 4 + 4 + 8 + 8 };
    struct gguf g;
    double error = 0, size = 0;
    if (gguf_open(&g, path, e) != ST_OK) return e->code;
    if (g.tensor_count != p->count || g.value_count != h->count ||
        memcmp(g.map.data + BEFORE_HEAD, text_str(&h->bytes), h->bytes.len) != 0)
        err_set(e, ST_FAIL, "%s: its head is not what was written", path);
    int64_t done = 0;
    for (size_t i = 0; i < p->count && e->code == ST_OK; i++) {
        if (watch_tell(&p->o->watch, p->items[i].out.name, done, p->report->bytes, e) == ST_OK)
            check_item(p, &p->items[i], &g, &error, &size, e);
        done += (int64_t)p->items[i].out.bytes;
    }
    p->report->error = size > 0 ? sqrt(error / size) : 0;
    gguf_close(&g);
    return e->code;
}

/* --- the whole --------------------------------------------------------------------------------------------------- */

static enum status write_file(struct export_plan *p, const char *path, struct err *e) {
    struct gguf_tensor *tensors = mem_alloc(p->count * sizeof *tensors);
    struct gguf_head head = {0};
    struct gguf_writer w = {0};
    for (size_t i = 0; i < p->count; i++) tensors[i] = p->items[i].out;
    if (export_head(p, &head, e) != ST_OK || gguf_writer_open(&w, path, &head, tensors, p->count, e) != ST_OK)
        goto done;
    if (write_items(p, &w, e) != ST_OK || gguf_writer_flush(&w, e) != ST_OK) goto done;
    if (p->o->check && check_file(p, w.out.beside, &head, e) != ST_OK) goto done;
    gguf_writer_commit(&w, e);
done:
    gguf_writer_abandon(&w);
    gguf_head_free(&head);
    free(tensors);
    return e->code;
}

static enum status check_options(const struct export_options *o, const char *path, struct err *e) {
    if (dir_exists(path)) return err_set(e, ST_FAIL, "%s: is a folder, wanted the name of a new file", path);
    if (file_exists(path))
        return err_set(e, ST_FAIL, "%s: is there already; name a new file, or remove it first", path);
    if (o->part == EXPORT_ADAPTER && ggml_block(o->type) > 1 && o->type != GGML_Q8_0)
        return err_set(e, ST_USAGE, "--type %s is too coarse for an adapter; wanted f32, f16, bf16 or q8_0",
                       ggml_name(o->type));
    return ST_OK;
}

static enum status plan(struct export_plan *p, struct err *e) {
    const struct model *m = p->m->model;
    if (m->config.problem != PROBLEM_GENERATION && p->o->part != EXPORT_VISION)
        return err_set(e, ST_FAIL,
                       "%s: has a classification head, which llama.cpp does not run; keep the Hugging Face "
                       "folder and use graft score",
                       m->weights.dir);
    p->arch = p->o->part == EXPORT_VISION ? "clip" : export_architecture(m, e);
    if (e->code != ST_OK) return e->code;
    p->report->architecture = p->arch;
    if (p->o->part == EXPORT_MODEL)
        export_plan_model(p, e);
    else if (p->o->part == EXPORT_VISION)
        export_plan_vision(p, e);
    else
        export_plan_adapter(p, e);
    for (size_t i = 0; i < p->count; i++) {
        p->report->tensors++, p->report->bytes += (int64_t)p->items[i].out.bytes;
        p->report->other_type += p->items[i].is_other;
    }
    return e->code;
}

/* Plans, and does with the plan what is to be done. */
static enum status with_plan(const struct export_options *o, const char *path, struct export_report *r,
                             enum status (*act)(struct export_plan *p, const char *path, struct err *e),
                             struct err *e) {
    const struct merge_options merging = {.model = o->model,
                                          .adapters = o->adapters,
                                          .adapter_count = o->adapter_count,
                                          .as_stored = true,
                                          .base_alone = true,
                                          .any_base = o->any_base,
                                          .be = o->be};
    struct export_plan p = {.o = o, .report = r};
    *r = (struct export_report){.error = NAN};
    if (merge_open(&p.m, &merging, e) == ST_OK && plan(&p, e) == ST_OK) act(&p, path, e);
    for (size_t i = 0; i < p.count; i++) free((char *)p.items[i].out.name), free(p.items[i].table);
    free(p.items);
    merge_free(p.m);
    return e->code;
}

enum status export_gguf(const struct export_options *o, const char *path, struct export_report *r, struct err *e) {
    return check_options(o, path, e) == ST_OK ? with_plan(o, path, r, write_file, e) : e->code;
}

static enum status compare_file(struct export_plan *p, const char *path, struct err *e) {
    struct gguf_head head = {0};
    if (export_head(p, &head, e) == ST_OK) check_file(p, path, &head, e);
    gguf_head_free(&head);
    return e->code;
}

enum status export_check(const struct export_options *o, const char *path, struct export_report *r, struct err *e) {
    return with_plan(o, path, r, compare_file, e);
}
