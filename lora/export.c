#include "lora/export.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/export_parts.h"

void export_note(struct export_plan *p, const char *sentence) {
    char *note = p->report->note;
    size_t used = strlen(note), room = sizeof p->report->note - used;
    snprintf(note + used, room, "%s%s", used ? "; " : "", sentence);
}

/* --- the numbers of a tensor ------------------------------------------------------------------------------------- */

/* A tensor that is being written or checked, by blocks of rows. */
struct rows {
    const struct export_plan *p;
    const struct export_item *item;
    struct merge_numbers numbers; // FROM_MERGE
    int64_t most;                 // rows of a block
    float *x;                     // (most,I) in the order of the source
    int64_t first, count;         // rows in work
};

static enum status rows_open(struct rows *r, const struct export_plan *p, const struct export_item *item,
                             struct err *e) {
    enum { FLOATS = 1 << 20 };
    *r = (struct rows){.p = p, .item = item};
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
    r->x = mem_alloc((size_t)(r->most * item->I) * sizeof *r->x);
    return ST_OK;
}

static void rows_close(struct rows *r) {
    if (r->item && r->item->source == FROM_MERGE) {
        numbers_close(&r->numbers);
        st_forget(r->item->item->from);
    }
    free(r->x);
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
    if (item->source == FROM_MERGE)
        numbers_merged(&r->numbers, r->first, r->count, r->x, e);
    else if (item->source == FROM_TABLE)
        memcpy(r->x, item->table, (size_t)I * sizeof *r->x);
    else
        floats_read(r->x, item->entry->data, dtype_of_entry(item->entry), r->first * I, r->count * I);
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

struct pack_job {
    const struct rows *r;
    char *out; // (count) rows
    bool *bad; // (count): a number that the type cannot hold
};

static void pack_row(void *arg, int64_t i, int thread) {
    (void)thread;
    const struct pack_job *j = arg;
    const struct export_item *item = j->r->item;
    const float *x = rows_at(j->r, i);
    const float most = item->out.type == GGML_F16 ? 65504 : 3e38f;
    bool good = true;
    for (int64_t k = 0; k < item->I; k++) good &= fabsf(x[k]) <= most;
    j->bad[i] = !good;
    if (good) ggml_quantize((enum ggml_type)item->out.type, j->out + (size_t)i * row_bytes(item), x, item->I);
}

static enum status write_block(const struct rows *r, struct gguf_writer *w, struct pack_job *j, struct err *e) {
    const struct export_item *item = r->item;
    threads_for(r->p->o->be->threads, r->count, pack_row, j);
    for (int64_t i = 0; i < r->count; i++)
        if (j->bad[i])
            return err_set(e, ST_FAIL, "%s: row %lld holds a number that is not finite, or larger than %s can hold%s",
                           item->out.name, (long long)(r->first + i), ggml_name(item->out.type),
                           item->out.type == GGML_F16 ? "; take --type bf16" : "");
    return gguf_writer_put(w, j->out, (size_t)r->count * row_bytes(item), e);
}

static enum status write_item(const struct export_plan *p, const struct export_item *item, struct gguf_writer *w,
                              struct err *e) {
    struct rows r;
    if (rows_open(&r, p, item, e) == ST_OK) {
        struct pack_job j = {.r = &r, .bad = mem_alloc((size_t)r.most * sizeof *j.bad)};
        j.out = mem_alloc((size_t)r.most * row_bytes(item));
        while (rows_next(&r, e))
            if (write_block(&r, w, &j, e) != ST_OK) break;
        free(j.out), free(j.bad);
    }
    rows_close(&r);
    return e->code;
}

static enum status write_items(const struct export_plan *p, struct gguf_writer *w, struct err *e) {
    int64_t done = 0;
    for (size_t i = 0; i < p->count && e->code == ST_OK; i++) {
        if (p->o->progress) p->o->progress(p->o->progress_arg, p->items[i].out.name, done, p->report->bytes);
        write_item(p, &p->items[i], w, e);
        done += (int64_t)p->items[i].out.bytes;
    }
    return e->code;
}

/* --- checking ---------------------------------------------------------------------------------------------------- */

/* What a type may make of a number x in a block whose largest magnitude is `most` and whose range, with 0, is `range`.
 * Q8_0: half a step of most / 127, and the step's own rounding to 11 bits. Q4_0: the number opposite to the largest
 * loses a whole step of most / 8. Q4_K: a fit by least squares, whose weights are at most 2 to 64 apart, may leave one
 * number 8 half steps of range / 15 away, and rounding scale and minimum to 6 bits moves it by 2 range / 63. */
static double allowed(uint32_t type, double x, double most, double range) {
    switch (type) {
    case GGML_F16:
        return 0x1p-11 * fabs(x) + 0x1p-25;
    case GGML_BF16:
        return 0x1p-8 * fabs(x) + 0x1p-133;
    case GGML_Q8_0:
        return (0.5 / 127 + 0x1p-10) * most + 127 * 0x1p-24;
    case GGML_Q4_0:
        return (1.0 / 8 + 0x1p-9) * most + 8 * 0x1p-24;
    case GGML_Q4_K:
        return (8.0 / 30 + 2.0 / 63) * range + 16 * 63 * 0x1p-24;
    }
    return 0;
}

struct check_job {
    const struct rows *r;
    const char *data;     // of the block's first row, in the file
    float *back;          // (threads,I)
    double *error, *size; // (count): sums of squares
    bool *bad;            // (count)
};

static void check_row(void *arg, int64_t i, int thread) {
    const struct check_job *j = arg;
    const struct export_item *item = j->r->item;
    const float *x = rows_at(j->r, i);
    const int64_t I = item->I, block = ggml_block(item->out.type);
    float *y = j->back + thread * I;
    bool good = true;
    double error = 0, size = 0;
    ggml_dequantize((enum ggml_type)item->out.type, y, j->data + (size_t)i * row_bytes(item), I);
    for (int64_t at = 0; at < I; at += block) {
        double low = 0, high = 0;
        for (int64_t k = at; k < at + block; k++) low = x[k] < low ? x[k] : low, high = x[k] > high ? x[k] : high;
        const double most = -low > high ? -low : high;
        for (int64_t k = at; k < at + block; k++) {
            double d = (double)y[k] - x[k];
            good = good && fabs(d) <= allowed(item->out.type, (double)x[k], most, high - low);
            error += d * d, size += (double)x[k] * x[k];
        }
    }
    j->error[i] = error, j->size[i] = size, j->bad[i] = !good;
}

static enum status check_item(const struct export_plan *p, const struct export_item *item, const struct gguf *g,
                              double *error, double *size, struct err *e) {
    const struct gguf_tensor *got = gguf_find_tensor(g, item->out.name);
    const struct threads *threads = p->o->be->threads;
    struct rows r;
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
        if (p->o->progress) p->o->progress(p->o->progress_arg, p->items[i].out.name, done, p->report->bytes);
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
