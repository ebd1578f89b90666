/* Whether what was written is what was to be, by other formulas than those that wrote it: the norm of the change from
 * the Gram matrices of A and B, the product with a vector of signs, DoRA's rows from their magnitudes.
 *
 * One rounding moves a number by at most u of itself, so all roundings together move a matrix by at most u ||W||_F in
 * norm, and its product with random signs by about as much; F32 sums of r products add (r + 4) 2^-24 ||B|| ||A||. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/memory.h"
#include "base/rng.h"
#include "lora/merge_parts.h"

enum { SIGMAS = 4 }; // the product with signs is a random variable whose deviation is at most the bound

/* Sums over one row. */
struct row_sums {
    double change; // |got - before|^2
    double size;   // |got|^2
    double probe;  // (got x - wanted x)^2
    double length; // DoRA: (|got| - m)^2
};

struct check_job {
    const struct merge_numbers *n;
    const struct st_entry *got;
    int64_t first;         // row of the first task
    const float *signs;    // (I), 1 or -1
    const double *Ax;      // (R), A times the signs
    const double *gram;    // (R,R) = A A^T; DoRA only
    float *before, *after; // (threads,I)
    struct row_sums *sums; // (O)
};

/* Sums run in LANES parts side by side, which a compiler can turn into vectors. */
enum { LANES = 8 };

static double lanes_sum(const double *lane) {
    double sum = 0;
    for (int k = 0; k < LANES; k++) sum += lane[k];
    return sum;
}

static double dot(const float *a, const float *b, int64_t n) {
    double lane[LANES] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) lane[k] += (double)a[i + k] * b[i + k];
    for (; i < n; i++) rest += (double)a[i] * b[i];
    return rest + lanes_sum(lane);
}

typedef float floats __attribute__((vector_size(16), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(32)));

static double doubles_sum(const doubles *x) { return (*x)[0] + (*x)[1] + (*x)[2] + (*x)[3]; }

/* |y - x|^2, |y|^2 and signs (y - x) in one walk over the row; vectors by name, because compilers make none of it. */
static void add_up(struct row_sums *sums, double *probe, const float *y, const float *x, const float *signs,
                   int64_t n) {
    doubles change = {0}, size = {0}, sign = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        doubles after = __builtin_convertvector(*(const floats *)(y + i), doubles);
        doubles d = after - __builtin_convertvector(*(const floats *)(x + i), doubles);
        change += d * d, size += after * after;
        sign += d * __builtin_convertvector(*(const floats *)(signs + i), doubles);
    }
    for (; i < n; i++) {
        double after = y[i], d = after - x[i];
        change[0] += d * d, size[0] += after * after, sign[0] += d * signs[i];
    }
    sums->change = doubles_sum(&change), sums->size = doubles_sum(&size), *probe = doubles_sum(&sign);
}

/* What DoRA makes of the row before it was rescaled: m / |x + B A|. */
static double dora_factor(const struct check_job *j, int64_t row, const float *x) {
    const struct merge_numbers *n = j->n;
    const float *b = n->B + row * n->R;
    int64_t I = n->item->I;
    double sum = dot(x, x, I);
    for (int64_t k = 0; k < n->R; k++) {
        sum += 2 * b[k] * dot(x, n->A + k * I, I);
        for (int64_t l = 0; l < n->R; l++) sum += (double)b[k] * b[l] * j->gram[k * n->R + l];
    }
    return n->magnitude[row] / sqrt(sum);
}

static void check_row(void *arg, int64_t task, int thread) {
    const struct check_job *j = arg;
    const struct merge_numbers *n = j->n;
    int64_t I = n->item->I, row = j->first + task;
    float *x = j->before + thread * I, *y = j->after + thread * I;
    numbers_row(n, row, x);
    floats_read(y, j->got->data, floats_type(j->got), row * I, I);
    struct row_sums s = {0};
    double off, added = 0; // signs times got less base, and times what was added
    add_up(&s, &off, y, x, j->signs, I);
    for (int64_t k = 0; k < n->R; k++) added += n->B[row * n->R + k] * j->Ax[k];
    if (n->magnitude) {
        double before = dot(j->signs, x, I);
        added = dora_factor(j, row, x) * (before + added) - before;
        s.length = pow(sqrt(s.size) - fabs((double)n->magnitude[row]), 2);
    }
    s.probe = (off - added) * (off - added);
    j->sums[row] = s;
}

struct gram_job {
    const float *a; // (R,n)
    int64_t R, n;
    double *gram; // (R,R)
};

static void gram_row(void *arg, int64_t k, int thread) {
    (void)thread;
    const struct gram_job *j = arg;
    for (int64_t l = 0; l <= k; l++)
        j->gram[k * j->R + l] = j->gram[l * j->R + k] = dot(j->a + k * j->n, j->a + l * j->n, j->n);
}

/* a a^T (R,R) of rows (R,n). */
static double *gram_of(const float *a, int64_t R, int64_t n, struct threads *threads) {
    struct gram_job j = {.a = a, .R = R, .n = n, .gram = mem_alloc((size_t)(R * R) * sizeof *j.gram)};
    threads_for(threads, R, gram_row, &j);
    return j.gram;
}

/* B^T B (R,R). */
static double *gram_of_columns(const float *B, int64_t R, int64_t O, struct threads *threads) {
    float *turned = mem_alloc((size_t)(R * O) * sizeof *turned);
    for (int64_t o = 0; o < O; o++)
        for (int64_t k = 0; k < R; k++) turned[k * O + o] = B[o * R + k];
    double *g = gram_of(turned, R, O, threads);
    free(turned);
    return g;
}

static double trace(const double *g, int64_t R) {
    double sum = 0;
    for (int64_t k = 0; k < R; k++) sum += g[k * R + k];
    return sum;
}

/* The error of a tensor in units of what may be. */
static double judge(const struct merge_numbers *n, const struct row_sums *sum, const double *ga, const double *gb) {
    double u = rounding_unit(n->item->out.type), size = sqrt(sum->size), change = 0, f32 = 0;
    double count = (double)(n->item->O * n->item->I);
    for (int64_t k = 0; k < n->R * n->R; k++) change += ga[k] * gb[k];
    change = change > 0 ? sqrt(change) : 0;
    if (n->R) f32 = ((double)n->R + 4) * 0x1p-24 * sqrt(trace(ga, n->R) * trace(gb, n->R));
    double floor = n->item->out.type == ST_F16 ? 0x1p-25 * sqrt(count) : 0x1p-133 * sqrt(count); // denormal numbers
    double allowed = u * size + f32 + floor + (n->R || n->add ? 0x1p-23 * size : 0);
    if (n->magnitude) {
        allowed += (sqrt((double)n->item->I) + 4) * 0x1p-24 * size; // of the norms, were they F32
        return fmax(sqrt(sum->length), sqrt(sum->probe) / SIGMAS) / allowed;
    }
    return fmax(fabs(sqrt(sum->change) - change), sqrt(sum->probe) / SIGMAS) / allowed;
}

static double check_numbers(const struct merge_numbers *n, const struct st_entry *got) {
    struct threads *threads = n->m->o.be->threads;
    int64_t O = n->item->O, I = n->item->I, R = n->R, workers = threads_count(threads);
    struct row_sums sum = {0};
    double *Ax = mem_alloc((size_t)R * sizeof *Ax);
    double *ga = gram_of(n->A, R, I, threads), *gb = gram_of_columns(n->B, R, O, threads);
    float *signs = mem_alloc((size_t)I * sizeof *signs);
    struct check_job j = {.n = n, .got = got, .signs = signs, .Ax = Ax, .gram = ga};
    for (int64_t i = 0; i < I; i++) signs[i] = rng_uniform(1, 1, (uint64_t)i) < 0.5 ? -1 : 1;
    for (int64_t k = 0; k < R; k++) Ax[k] = dot(signs, n->A + k * I, I);
    j.before = mem_alloc((size_t)(workers * I) * sizeof *j.before);
    j.after = mem_alloc((size_t)(workers * I) * sizeof *j.after);
    j.sums = mem_alloc((size_t)O * sizeof *j.sums);
    const int64_t most = numbers_block(n);
    for (; j.first < O; j.first += most) {
        int64_t count = O - j.first < most ? O - j.first : most;
        threads_for(threads, count, check_row, &j);
        rows_forget(n->item, got, j.first, count);
        if (!n->dequantised) rows_forget(n->item, n->item->from, j.first, count);
    }
    for (int64_t r = 0; r < O; r++) {
        sum.change += j.sums[r].change, sum.size += j.sums[r].size;
        sum.probe += j.sums[r].probe, sum.length += j.sums[r].length;
    }
    double error = judge(n, &sum, ga, gb);
    free(signs), free(Ax), free(ga), free(gb), free(j.before), free(j.after), free(j.sums);
    return error;
}

/* --- a tensor that was only copied ------------------------------------------------------------------------------- */

enum { PART = 4 << 20 };

struct bytes_job {
    const struct st_entry *a, *b;
    bool *differ; // (parts)
};

static void compare_part(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct bytes_job *j = arg;
    struct st_entry a = st_part(j->a, (size_t)task * PART, PART), b = st_part(j->b, (size_t)task * PART, PART);
    j->differ[task] = memcmp(a.data, b.data, a.bytes) != 0;
    st_forget(&a), st_forget(&b);
}

static bool same_bytes(const struct st_entry *a, const struct st_entry *b, struct threads *threads) {
    int64_t parts = (int64_t)((a->bytes + PART - 1) / PART);
    struct bytes_job j = {.a = a, .b = b, .differ = mem_alloc((size_t)parts * sizeof *j.differ)};
    bool differ = false;
    threads_for(threads, parts, compare_part, &j);
    for (int64_t i = 0; i < parts; i++) differ |= j.differ[i];
    free(j.differ);
    return !differ;
}

/* --- all tensors ------------------------------------------------------------------------------------------------- */

static bool same_shape(const struct st_entry *a, const struct st_entry *b) {
    return a->type == b->type && a->rank == b->rank && memcmp(a->dim, b->dim, (size_t)a->rank * sizeof *a->dim) == 0;
}

static enum status check_item(const struct merge *m, const struct merge_item *item, const struct st_set *written,
                              const char *dir, struct weights_check *out, struct err *e) {
    const struct st_entry *got = st_find(written, item->out.name);
    struct merge_numbers n;
    if (!got || !same_shape(got, &item->out))
        return err_set(e, ST_FAIL, "%s: tensor %s is missing, or has another type or shape", dir, item->out.name);
    if (item->copied) {
        out->equal++;
        if (!same_bytes(got, item->from, m->o.be->threads))
            err_set(e, ST_FAIL, "%s: tensor %s differs from the base although no adapter changes it", dir, got->name);
        return e->code;
    }
    if (numbers_open(&n, m, item, e) == ST_OK) {
        double error = check_numbers(&n, got);
        *(item->changed ? &out->changed : &out->equal) += 1;
        if (item->O * item->I > 0 && !(error <= out->worst)) out->worst = error, out->worst_name = item->out.name;
        if (item->O * item->I > 0 && !(error <= 1))
            err_set(e, ST_FAIL, "%s: tensor %s is %.3g times farther from what it should be than rounding can explain",
                    dir, item->out.name, error);
    }
    numbers_close(&n);
    st_forget(got), st_forget(item->from);
    return e->code;
}

enum status merge_check_weights(struct merge *m, const char *dir, struct weights_check *out, struct err *e) {
    struct st_set written = {0};
    *out = (struct weights_check){0};
    if (st_open_dir(&written, dir, "model", e) != ST_OK) return e->code;
    if (written.count != m->count)
        err_set(e, ST_FAIL, "%s: holds %zu tensors, wanted %zu", dir, written.count, m->count);
    for (size_t i = 0; i < m->count && e->code == ST_OK; i++) {
        if (watch_tell(&m->o.watch, m->items[i].out.name, (int64_t)i, (int64_t)m->count, e) == ST_OK)
            check_item(m, &m->items[i], &written, dir, out, e);
    }
    st_close(&written);
    return e->code;
}
