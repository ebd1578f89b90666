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

enum { STRIP = 4096, GAIN = 4, FEW = 8 };

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

/* A model and what its last layer makes of the prompts. */
struct side {
    struct model *m;
    void *memory;
    struct arena arena;   // of what follows, and of a strip's logits
    struct tensor normed; // (N,C)
};

static enum status side_room(struct side *s, int64_t N, int64_t strip, struct err *e) {
    const struct lora *lora = s->m->head.lora;
    int64_t columns = s->m->config.text.dim + 2 + (lora ? lora->rank : 0) + 2 * strip;
    size_t bytes = (size_t)(N * columns) * sizeof(float) + 8 * ARENA_ALIGN;
    s->memory = backend_alloc(s->m->be, bytes);
    if (!s->memory) return err_set(e, s->m->be->err.code, "%s", s->m->be->err.text);
    s->arena = arena_over(s->memory, bytes);
    return ST_OK;
}

static void side_close(struct side *s) {
    if (s->memory) backend_release(s->m->be, s->memory);
}

/* With room for `strip` logits of each position. The model must outlive the side, and stay as it is. */
static enum status side_open(struct side *s, struct model *m, const struct fed *f, int64_t strip, struct err *e) {
    const struct workspace_options o = {.limits = f->limits, .act = F32, .forget = true};
    struct workspace *w;
    struct norm_stats stats;
    int64_t N = f->batch.N;
    *s = (struct side){.m = m};
    if (workspace_new(&w, m, &o, e) != ST_OK || side_room(s, N, strip, e) != ST_OK) goto done;
    struct pass p = pass_new(w, 0, 0);
    model_forward(&p, w, &f->batch);
    s->normed = arena_tensor2(&s->arena, F32, N, m->config.text.dim);
    final_norm_layout(&stats, &s->arena, N);
    final_norm_forward(&p, m, &s->normed, &stats, &w->acts.x[m->config.text.layers]);
    backend_sync(m->be, e);
    st_forget_all(&m->weights.files);
done:
    workspace_free(w);
    return e->code;
}

/* Outputs [first, first + count) of a head; *lora is room for those of its adapter. */
static struct linear head_part(const struct linear *head, int64_t first, int64_t count, struct lora *lora) {
    struct linear part = *head;
    if (count == head->W.dim[0]) return part;
    part.W = tensor_rows(&head->W, first, count);
    if (head->b.data) part.b = tensor_rows(&head->b, first, count);
    if (!head->lora) return part;
    *lora = *head->lora;
    lora->B = tensor_rows(&lora->B, first, count);
    if (lora->b.data) lora->b = tensor_rows(&lora->b, first, count);
    if (lora->dora) lora->g = tensor_rows(&lora->g, first, count);
    part.lora = lora;
    return part;
}

/* logits (N,count) from `first` on; they stay until the arena is set back. */
static struct tensor strip_logits(struct side *s, int64_t first, int64_t count) {
    const struct pass p = {.be = s->m->be, .scratch = &s->arena, .act = F32};
    struct lora lora;
    struct linear part = head_part(&s->m->head, first, count, &lora);
    struct tensor logits = arena_tensor2(&s->arena, F32, s->normed.dim[0], count);
    struct linear_acts acts;
    linear_acts_layout_head(&acts, &s->arena, &part, s->normed.dim[0], F32);
    linear_forward(&p, &acts, &logits, &s->normed, &part);
    st_forget_all(&s->m->weights.files);
    return logits;
}

/* --- comparing --------------------------------------------------------------------------------------------------- */

/* The largest logit so far, its place, and the sum of exp(logit - largest). */
struct peak {
    double most, sum;
    int64_t place;
};

/* Of one position. */
struct sums {
    double max, total, square; // of |got - want|
    double want, want_square;
    struct peak wanted, got;
    double cross; // sum of exp(want - wanted.most) (want - got)
};

struct strip_job {
    const float *want, *got; // (N,count)
    int64_t first, count;
    struct sums *sums; // (N)
};

/* Takes the largest of x in; returns what sums over earlier strips are to be multiplied with. */
static double raise_peak(struct peak *p, const float *x, int64_t first, int64_t count) {
    const double before = p->most;
    int64_t best = 0;
    for (int64_t v = 1; v < count; v++)
        if (x[v] > x[best]) best = v;
    if (first > 0 && !(x[best] > before)) return 1;
    p->most = x[best], p->place = first + best;
    double factor = first > 0 ? exp(before - p->most) : 0;
    p->sum *= factor;
    return factor;
}

static void compare_strip(void *arg, int64_t position, int thread) {
    (void)thread;
    const struct strip_job *j = arg;
    const float *want = j->want + position * j->count, *got = j->got + position * j->count;
    struct sums s = j->sums[position];
    s.cross *= raise_peak(&s.wanted, want, j->first, j->count);
    raise_peak(&s.got, got, j->first, j->count);
    for (int64_t v = 0; v < j->count; v++) {
        double w = want[v], g = got[v], d = fabs(g - w), weight = exp(w - s.wanted.most);
        if (!(d <= s.max)) s.max = d;
        s.total += d, s.square += d * d;
        s.want += w, s.want_square += w * w;
        s.wanted.sum += weight, s.cross += weight * (w - g);
        s.got.sum += exp(g - s.got.most);
    }
    j->sums[position] = s;
}

/* KL(wanted || got) = sum of p (want - got) - log Z_wanted + log Z_got */
static double divergence(const struct sums *s) {
    double log_wanted = s->wanted.most + log(s->wanted.sum), log_got = s->got.most + log(s->got.sum);
    return s->cross / s->wanted.sum - log_wanted + log_got;
}

static void sum_up(struct outputs_check *out, const struct sums *sums, int64_t N, int64_t V) {
    double count = (double)N * (double)V, square = 0, spread = 0;
    int64_t agree = 0;
    *out = (struct outputs_check){.positions = N};
    for (int64_t i = 0; i < N; i++) {
        const struct sums *s = &sums[i];
        double kl = divergence(s);
        if (!(s->max <= out->max)) out->max = s->max;
        if (!(kl <= out->kl_max)) out->kl_max = kl;
        out->mean += s->total / count, out->kl_mean += kl / (double)N;
        agree += s->wanted.place == s->got.place;
        square += s->square, spread += s->want_square - (V > 1 ? s->want * s->want / (double)V : 0);
    }
    out->top1 = (double)agree / (double)N;
    out->rms = sqrt(square / count), out->logit_rms = spread > 0 ? sqrt(spread / count) : 0;
}

/* A strip of the vocabulary at a time, so that neither all logits nor all of a head are in memory. */
static enum status compare(struct outputs_check *out, struct side *want, struct side *got, int64_t strip,
                           struct err *e) {
    struct backend *be = want->m->be;
    int64_t V = want->m->head.W.dim[0], N = want->normed.dim[0];
    struct sums *sums = mem_alloc((size_t)N * sizeof *sums);
    for (int64_t first = 0; first < V && e->code == ST_OK; first += strip) {
        int64_t count = V - first < strip ? V - first : strip;
        size_t want_mark = want->arena.used, got_mark = got->arena.used;
        struct tensor a = strip_logits(want, first, count), b = strip_logits(got, first, count);
        struct strip_job j = {.want = a.data, .got = b.data, .first = first, .count = count, .sums = sums};
        if (backend_sync(be, e) == ST_OK) threads_for(be->threads, N, compare_strip, &j);
        want->arena.used = want_mark, got->arena.used = got_mark;
    }
    sum_up(out, sums, N, V);
    free(sums);
    return e->code;
}

/* Compares a model with that of a folder. */
static enum status compare_with(struct outputs_check *out, struct model *wanted, const char *dir, const struct fed *f,
                                struct err *e) {
    const struct load_options o = {.quantize = {.type = F32}};
    struct model *m = NULL;
    struct side want = {0}, got = {0};
    if (model_load(&m, dir, wanted->be, &o, e) != ST_OK) return e->code;
    const struct tensor *one = &wanted->head.W, *two = &m->head.W;
    bool whole = tensor_is_4bit(one) || tensor_is_4bit(two) || one->dim[0] < STRIP; // 4-bit rows have no own places
    int64_t strip = whole ? one->dim[0] : STRIP;
    if (one->dim[0] != two->dim[0] || wanted->config.text.dim != m->config.text.dim)
        err_set(e, ST_FAIL, "%s: is not of the shape of %s", dir, wanted->weights.dir);
    else if (side_open(&want, wanted, f, strip, e) == ST_OK && side_open(&got, m, f, strip, e) == ST_OK)
        compare(out, &want, &got, strip, e);
    side_close(&want), side_close(&got);
    model_free(m);
    return e->code;
}

enum status outputs_compare(const char *wanted, const char *got, struct backend *be, const struct prompts *p,
                            struct outputs_check *out, struct err *e) {
    const struct load_options o = {.quantize = {.type = F32}};
    struct model *m;
    struct fed f;
    if (model_load(&m, wanted, be, &o, e) != ST_OK) return e->code;
    fed_init(&f, m, p);
    compare_with(out, m, got, &f, e);
    fed_free(&f);
    model_free(m);
    return e->code;
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
    const struct merge_adapter *a = m->o.adapters;
    struct adapter *one = NULL;
    struct blend many = {0};
    struct fed f;
    if (m->o.adapter_count == 1 && a->weight == 1)
        adapter_open(&one, m->model, a->dir, e);
    else
        blend_open(&many, m, e);
    fed_init(&f, m->model, p);
    if (e->code == ST_OK && compare_with(out, m->model, dir, &f, e) == ST_OK)
        out->allowed = GAIN * weight_error(m) * sqrt((double)m->model->linear_count + 1) * out->logit_rms;
    fed_free(&f);
    adapter_free(one);
    blend_close(&many);
    return e->code;
}
