/* Logits of two models over the same prompts. Both run in F32 activations on the host, so that what differs is the
 * weights.
 *
 * What may differ: each linear layer of the written model has weights with a relative rounding error of at most u,
 * which random signs average to u of the layer's output; M layers in a row of residual blocks add up like sqrt(M).
 * Layers amplify what comes in by a small factor, for which GAIN stands. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "kernels/ops.h"
#include "lora/merge_parts.h"

enum { CHUNK = 32, GAIN = 4, FEW = 8 };

/* --- several adapters at once ------------------------------------------------------------------------------------ */

/* Adapters with weights hang in the model as one: A stacked, B beside one another with weight and scale in it. */
struct blend {
    struct model *model;
    struct lora *loras;    // (linears)
    struct tensor *frozen; // (params + 1): what was there; data NULL where nothing was put
};

static void grow(struct tensor *t, int64_t more) {
    t->data = mem_resize(t->data, tensor_bytes(t) + (size_t)(more * (t->rank == 2 ? t->dim[1] : 1)) * sizeof(float));
    t->dim[0] += more;
}

/* Adds what hangs in l to the lora that collects. */
static void blend_linear(struct lora *to, const struct linear *l, double weight) {
    const struct lora *from = l->lora;
    int64_t O = l->W.dim[0], I = l->W.dim[1], R = to->rank, r = from->rank;
    if (!to->A.data) to->A = tensor_over2(NULL, F32, 0, I);
    grow(&to->A, r);
    memcpy((float *)to->A.data + R * I, from->A.data, (size_t)(r * I) * sizeof(float));
    float *B = mem_alloc((size_t)(O * (R + r)) * sizeof *B);
    for (int64_t o = 0; o < O; o++) {
        for (int64_t k = 0; k < R; k++) B[o * (R + r) + k] = ((float *)to->B.data)[o * R + k];
        for (int64_t k = 0; k < r; k++)
            B[o * (R + r) + R + k] = (float)(weight * from->scale * ((float *)from->B.data)[o * r + k]);
    }
    free(to->B.data);
    to->B = tensor_over2(B, F32, O, R + r), to->rank = R + r, to->scale = 1;
    if (!from->b.data) return;
    if (!to->b.data) to->b = tensor_over1(mem_alloc((size_t)O * sizeof(float)), F32, O);
    for (int64_t o = 0; o < O; o++)
        ((float *)to->b.data)[o] += (float)(weight * from->scale * ((float *)from->b.data)[o]);
}

/* sum (shape of the parameter) F32 = base + the weighted differences so far. */
static void blend_param(struct tensor *sum, const struct trained *t, double weight, struct backend *be) {
    int64_t n = tensor_count(&t->value);
    struct tensor base = t->frozen, copy = t->value;
    copy.data = mem_alloc(tensor_bytes(&copy));
    op_copy(be, &copy, &base);
    if (!sum->data) {
        *sum = copy;
        sum->data = mem_alloc(tensor_bytes(sum));
        memcpy(sum->data, copy.data, tensor_bytes(sum));
    }
    const float *before = copy.data, *after = t->value.data;
    for (int64_t i = 0; i < n; i++) ((float *)sum->data)[i] += (float)(weight * ((double)after[i] - before[i]));
    free(copy.data);
}

static struct tensor *slot_at(const struct model *m, int64_t i) {
    return i < m->param_count ? m->params[i].value : (struct tensor *)&m->head.W;
}

static void hang(struct blend *b, struct tensor *sums) {
    for (int64_t i = 0; i < b->model->linear_count; i++)
        if (b->loras[i].rank) b->model->linears[i]->lora = &b->loras[i];
    for (int64_t i = 0; i <= b->model->param_count; i++) {
        if (!sums[i].data) continue;
        b->frozen[i] = *slot_at(b->model, i);
        *slot_at(b->model, i) = sums[i];
    }
}

static enum status blend_open(struct blend *b, const struct merge *m, struct err *e) {
    struct model *model = m->model;
    struct tensor *sums = mem_alloc((size_t)(model->param_count + 1) * sizeof *sums);
    *b = (struct blend){.model = model};
    b->loras = mem_alloc((size_t)model->linear_count * sizeof *b->loras);
    b->frozen = mem_alloc((size_t)(model->param_count + 1) * sizeof *b->frozen);
    for (int64_t k = 0; k < m->o.adapter_count && e->code == ST_OK; k++) {
        struct adapter *a;
        double weight = m->o.adapters[k].weight;
        if (adapter_open(&a, model, m->o.adapters[k].dir, e) != ST_OK) break;
        for (int64_t i = 0; i < model->linear_count; i++)
            if (model->linears[i]->lora) blend_linear(&b->loras[i], model->linears[i], weight);
        for (int64_t i = 0; i < a->count; i++)
            for (int64_t p = 0; p <= model->param_count && a->trained[i].frozen.data; p++)
                if (a->trained[i].slot == slot_at(model, p)) {
                    blend_param(&sums[p], &a->trained[i], weight, model->be);
                    break;
                }
        adapter_free(a);
    }
    hang(b, sums);
    free(sums);
    return e->code;
}

static void blend_close(struct blend *b) {
    if (!b->model) return;
    for (int64_t i = 0; i <= b->model->param_count; i++) {
        if (!b->frozen[i].data) continue;
        free(slot_at(b->model, i)->data);
        *slot_at(b->model, i) = b->frozen[i];
    }
    for (int64_t i = 0; i < b->model->linear_count; i++) {
        free(b->loras[i].A.data), free(b->loras[i].B.data), free(b->loras[i].b.data);
        b->model->linears[i]->lora = NULL;
    }
    free(b->loras), free(b->frozen);
}

/* --- one model's logits ------------------------------------------------------------------------------------------ */

/* The prompts as one batch; a picture of noise stands in front of a copy of the first prompt where pictures are taken.
 * */
struct fed {
    struct batch batch;
    struct batch_image image;
    struct batch_limits limits;
};

static void add_positions(struct batch *b, const int32_t *ids, int64_t n, int32_t fill) {
    int64_t begin = b->offsets[b->rows];
    for (int64_t i = 0; i < n; i++) {
        b->ids[b->N] = ids ? ids[i] : fill;
        b->positions[b->N] = (int32_t)(b->N - begin);
        b->targets[b->N++] = IGNORED;
    }
}

static void end_row(struct fed *f) {
    struct batch *b = &f->batch;
    int64_t length = b->N - b->offsets[b->rows];
    if (length > f->limits.longest) f->limits.longest = length;
    b->offsets[++b->rows] = b->N;
}

/* Of the one known size, or of a few patches where pictures are of any size. */
static void fill_picture(struct batch_image *image, const struct vision_config *v) {
    int64_t few = FEW * v->patch, side = v->any_size && few < v->image_size ? few : v->image_size;
    if (v->any_size) side -= side % v->patch;
    int64_t n = 3 * side * side;
    *image = (struct batch_image){.height = side, .width = side, .pixels = mem_alloc((size_t)n * sizeof(float))};
    for (int64_t i = 0; i < n; i++) image->pixels[i] = (float)(2 * rng_uniform(2, 2, (uint64_t)i) - 1);
}

static void fed_init(struct fed *f, const struct model *m, const struct prompts *p) {
    bool picture = m->config.family != FAMILY_TEXT;
    int64_t features = 0, first = p->offsets[1];
    struct batch *b = &f->batch;
    *f = (struct fed){0};
    if (picture) {
        fill_picture(&f->image, &m->config.vision);
        features = picture_features(&m->config, &f->image);
        if (m->config.vision.any_size)
            f->limits.patches = f->limits.most_patches = vit_rows(&m->config.vision, &f->image);
    }
    int64_t N = p->offsets[p->count] + (picture ? features + first : 0);
    b->offsets = mem_alloc((size_t)(p->count + 2) * sizeof *b->offsets);
    b->row_index = mem_alloc((size_t)(p->count + 2) * sizeof *b->row_index);
    b->ids = mem_alloc((size_t)N * sizeof *b->ids);
    b->positions = mem_alloc((size_t)N * sizeof *b->positions);
    b->targets = mem_alloc((size_t)N * sizeof *b->targets);
    for (int64_t r = 0; r < p->count; r++) {
        add_positions(b, p->ids + p->offsets[r], p->offsets[r + 1] - p->offsets[r], 0);
        end_row(f);
    }
    if (picture) {
        b->images = 1, b->image = &f->image;
        add_positions(b, NULL, features, -1);
        add_positions(b, p->ids, first, 0);
        end_row(f);
    }
    f->limits.N = b->N, f->limits.rows = b->rows, f->limits.images = b->images;
}

static void fed_free(struct fed *f) {
    struct batch *b = &f->batch;
    free(b->offsets), free(b->row_index), free(b->ids), free(b->positions), free(b->targets), free(f->image.pixels);
}

/* logits (n,V) of rows [at, at + n) of the last layer's output. */
static void chunk_logits(const struct pass *p, struct workspace *w, int64_t at, int64_t n, float *logits) {
    const struct model *m = w->m;
    size_t mark = p->scratch->used;
    struct tensor x = tensor_rows(&w->acts.x[m->config.text.layers], at, n);
    struct tensor normed = arena_tensor2(p->scratch, p->act, n, x.dim[1]);
    struct norm_stats stats;
    final_norm_layout(&stats, p->scratch, n);
    struct tensor out = tensor_over2(logits, F32, n, m->head.W.dim[0]);
    struct linear_acts acts;
    linear_acts_layout_head(&acts, p->scratch, &m->head, n, p->act);
    final_norm_forward(p, m, &normed, &stats, &x);
    linear_forward(p, &acts, &out, &normed, &m->head);
    p->scratch->used = mark;
}

/* All logits (N,V) of the batch; the caller frees them. NULL with the error set. */
static float *logits_of(struct model *m, const struct fed *f, struct err *e) {
    const struct workspace_options o = {.limits = f->limits, .act = F32};
    struct workspace *w;
    int64_t V = m->head.W.dim[0], N = f->batch.N;
    if (workspace_new(&w, m, &o, e) != ST_OK) return NULL;
    float *logits = mem_alloc((size_t)(N * V) * sizeof *logits);
    int64_t rank = m->head.lora ? m->head.lora->rank : 0;
    size_t bytes = (size_t)(CHUNK * (m->config.text.dim + rank + (rank ? V : 0) + 1)) * sizeof(float) + 65536;
    void *memory = backend_alloc(m->be, bytes);
    if (!memory) {
        err_set(e, m->be->err.code, "%s", m->be->err.text);
    } else {
        struct arena scratch = arena_over(memory, bytes);
        struct pass p = pass_new(w, 0, 0), head = p;
        head.scratch = &scratch;
        model_forward(&p, w, &f->batch);
        for (int64_t at = 0; at < N; at += CHUNK)
            chunk_logits(&head, w, at, N - at < CHUNK ? N - at : CHUNK, logits + at * V);
        backend_sync(m->be, e);
        backend_release(m->be, memory);
    }
    workspace_free(w);
    for (size_t i = 0; i < m->weights.files.count; i++) st_forget(&m->weights.files.entries[i]);
    if (e->code == ST_OK) return logits;
    free(logits);
    return NULL;
}

/* --- comparing --------------------------------------------------------------------------------------------------- */

/* Of one position. */
struct sums {
    double max, total, square, spread, kl;
    bool agree;
};

struct compare_job {
    const float *want, *got; // (N,V)
    int64_t V;
    struct sums *sums; // (N)
};

/* log of the sum of exponentials; *best is the largest. */
static double log_sum(const float *x, int64_t V, int64_t *best) {
    double sum = 0;
    *best = 0;
    for (int64_t v = 1; v < V; v++)
        if (x[v] > x[*best]) *best = v;
    for (int64_t v = 0; v < V; v++) sum += exp((double)x[v] - x[*best]);
    return x[*best] + log(sum);
}

static void compare_position(void *arg, int64_t position, int thread) {
    (void)thread;
    const struct compare_job *j = arg;
    const float *want = j->want + position * j->V, *got = j->got + position * j->V;
    int64_t one, two;
    struct sums s = {0};
    double zw = log_sum(want, j->V, &one), zg = log_sum(got, j->V, &two), mean = 0;
    for (int64_t v = 0; v < j->V; v++) mean += want[v];
    mean /= (double)j->V;
    for (int64_t v = 0; v < j->V; v++) {
        double d = fabs((double)got[v] - want[v]);
        if (!(d <= s.max)) s.max = d;
        s.total += d, s.square += d * d;
        s.spread += (want[v] - mean) * (want[v] - mean);
        s.kl += exp(want[v] - zw) * ((want[v] - zw) - (got[v] - zg));
    }
    s.agree = one == two;
    j->sums[position] = s;
}

static void compare(struct outputs_check *out, const float *want, const float *got, int64_t N, int64_t V,
                    struct threads *threads) {
    struct compare_job j = {.want = want, .got = got, .V = V, .sums = mem_alloc((size_t)N * sizeof *j.sums)};
    double count = (double)N * (double)V, square = 0, spread = 0;
    int64_t agree = 0;
    *out = (struct outputs_check){.positions = N, .effect = NAN};
    threads_for(threads, N, compare_position, &j);
    for (int64_t i = 0; i < N; i++) {
        const struct sums *s = &j.sums[i];
        if (!(s->max <= out->max)) out->max = s->max;
        if (!(s->kl <= out->kl_max)) out->kl_max = s->kl;
        out->mean += s->total / count, out->kl_mean += s->kl / (double)N;
        agree += s->agree;
        square += s->square, spread += s->spread;
    }
    out->top1 = (double)agree / (double)N;
    out->rms = sqrt(square / count), out->logit_rms = sqrt(spread / count);
    free(j.sums);
}

static float *folder_logits(const char *dir, struct backend *be, const struct prompts *p, int64_t *vocab, int64_t *N,
                            struct err *e) {
    const struct load_options o = {.quantize = {.type = F32}};
    struct model *m;
    struct fed f;
    if (model_load(&m, dir, be, &o, e) != ST_OK) return NULL;
    fed_init(&f, m, p);
    float *logits = logits_of(m, &f, e);
    *vocab = m->head.W.dim[0], *N = f.batch.N;
    fed_free(&f);
    model_free(m);
    return logits;
}

enum status outputs_compare(const char *wanted, const char *got, struct backend *be, const struct prompts *p,
                            struct outputs_check *out, struct err *e) {
    int64_t V = 0, N = 0;
    float *want = folder_logits(wanted, be, p, &V, &N, e), *have = want ? folder_logits(got, be, p, &V, &N, e) : NULL;
    if (want && have) compare(out, want, have, N, V, be->threads);
    free(want), free(have);
    return e->code;
}

/* The logits of base and adapters. */
static float *adapted_logits(struct merge *m, const struct fed *f, struct err *e) {
    const struct merge_adapter *a = m->o.adapters;
    struct adapter *one = NULL;
    struct blend many = {0};
    float *logits = NULL;
    if (m->o.adapter_count == 1 && a->weight == 1)
        adapter_open(&one, m->model, a->dir, e);
    else
        blend_open(&many, m, e);
    if (e->code == ST_OK) logits = logits_of(m->model, f, e);
    adapter_free(one);
    blend_close(&many);
    return logits;
}

/* The rounding error of one layer's weights: at the store, and where 4-bit values were first rounded to their own type.
 * */
static double weight_error(const struct merge *m) {
    double u = 0;
    for (size_t i = 0; i < m->count; i++) {
        const struct merge_item *item = &m->items[i];
        if (item->copied || !entry_is_float(&item->out)) continue;
        double now = rounding_unit(item->out.type);
        if (item->four_bit)
            now += rounding_unit(item->source == F32 ? ST_F32 : item->source == BF16 ? ST_BF16 : ST_F16);
        u = now > u ? now : u;
    }
    return u + 64 * 0x1p-24; // and sums in another order
}

enum status merge_check_outputs(struct merge *m, const char *dir, const struct prompts *p, struct outputs_check *out,
                                struct err *e) {
    struct fed f;
    struct outputs_check effect;
    int64_t V = m->model->head.W.dim[0], N;
    fed_init(&f, m->model, p);
    float *base = logits_of(m->model, &f, e), *want = base ? adapted_logits(m, &f, e) : NULL;
    if (want) compare(&effect, base, want, f.batch.N, V, m->o.be->threads);
    free(base);
    float *got = want ? folder_logits(dir, m->o.be, p, &V, &N, e) : NULL;
    if (got) {
        compare(out, want, got, f.batch.N, V, m->o.be->threads);
        out->effect = effect.rms;
        out->allowed = GAIN * weight_error(m) * sqrt((double)m->model->linear_count + 1) * out->logit_rms;
    }
    free(want), free(got);
    fed_free(&f);
    return e->code;
}
