#include "model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"

enum { PIECE = 512 };

/* --- memory ------------------------------------------------------------------------------------------------------ */

static int64_t at_most(int64_t a, int64_t limit) { return a < limit ? a : limit; }

static int64_t most_patches(const struct vision_config *v, const struct generator_options *o) {
    return !v->any_size ? 0 : o->most_patches ? o->most_patches : vision_patches(v);
}

/* Positions from a picture's first feature to its last, at most. Where they depend on the picture (mfuyu), a row of
 * patches may be a single one, and an id follows each. */
static int64_t longest_span(const struct model_config *c, const struct generator_options *o) {
    if (o->pictures <= 0 || c->family == FAMILY_TEXT) return 0;
    return picture_tokens(c) ? picture_tokens(c) : 2 * most_patches(&c->vision, o);
}

static struct batch_limits limits_of(const struct generator *g, const struct model_config *c,
                                     const struct generator_options *o) {
    const struct vision_config *v = &c->vision;
    int64_t most = most_patches(v, o), least = picture_tokens(c) ? picture_tokens(c) : 1;
    int64_t images = g->picture ? at_most(o->pictures, g->piece / least) : 0;
    return (struct batch_limits){
        .N = g->piece,
        .rows = 1,
        .images = images,
        .longest = g->room, // positions go on behind the cache
        .patches = images * most,
        .most_patches = most,
    };
}

enum status generator_new(struct generator **out, struct model *m, const struct generator_options *o, struct err *e) {
    *out = NULL;
    if (o->room < 1 || o->room > INT32_MAX)
        return err_set(e, ST_FAIL, "a text of %lld positions cannot be held, at most %d are possible",
                       (long long)o->room, INT32_MAX);
    struct generator *g = mem_alloc(sizeof *g);
    g->picture = longest_span(&m->config, o);
    g->piece = o->piece > 0 ? o->piece : PIECE;
    if (g->piece < g->picture) g->piece = g->picture;
    g->piece = at_most(g->piece, o->room);
    g->room = o->room;
    struct workspace_options w = {.limits = limits_of(g, &m->config, o), .act = o->act, .cache_room = o->room};
    if (workspace_new(&g->workspace, m, &w, e) != ST_OK) {
        generator_free(g);
        return e->code;
    }
    g->ids = mem_alloc((size_t)g->room * sizeof *g->ids);
    g->positions = mem_alloc((size_t)g->piece * sizeof *g->positions);
    g->targets = mem_alloc((size_t)g->piece * sizeof *g->targets);
    for (int64_t i = 0; i < g->piece; i++) g->targets[i] = IGNORED;
    g->logits = mem_alloc((size_t)m->config.text.vocab * sizeof *g->logits);
    *out = g;
    return ST_OK;
}

void generator_free(struct generator *g) {
    if (!g) return;
    workspace_free(g->workspace);
    free(g->ids), free(g->positions), free(g->targets), free(g->logits);
    free(g);
}

/* --- feeding ----------------------------------------------------------------------------------------------------- */

void generator_keep(struct generator *g, int64_t length) {
    g->length = length;
    g->workspace->cache->length = length;
}

int64_t generator_common(const struct generator *g, const int32_t *ids, int64_t n) {
    int64_t same = 0, most = at_most(g->length, n - 1);
    while (same < most && ids[same] == g->ids[same]) same++;
    while (same > 0 && ids[same] < 0 && ids[same - 1] < 0) same--;
    return same;
}

static enum status check_prompt(const struct generator *g, const int32_t *ids, int64_t n,
                                const struct batch_image *images, int64_t image_count, struct err *e) {
    const struct model_config *c = &g->workspace->m->config;
    int64_t vocab = c->text.vocab, features = 0, wanted = 0;
    if (n < 1) return err_set(e, ST_FAIL, "the prompt is empty");
    if (n > g->room - g->length)
        return err_set(e, ST_FAIL, "the text would take %lld positions, but there is room for %lld",
                       (long long)(g->length + n), (long long)g->room);
    for (int64_t i = 0; i < n; i++) {
        features += ids[i] < 0;
        if (ids[i] >= vocab)
            return err_set(e, ST_FAIL, "token %d is outside the model's vocabulary of %lld (vocab_size)", ids[i],
                           (long long)vocab);
    }
    for (int64_t i = 0; i < image_count; i++) wanted += picture_features(c, &images[i]);
    if (features == wanted) return ST_OK;
    return err_set(e, ST_FAIL, "the prompt has %lld positions of pictures, but its %lld pictures take %lld",
                   (long long)features, (long long)image_count, (long long)wanted);
}

/* Pictures of any size have to fit into the memory that was planned. */
static enum status check_pictures(const struct generator *g, const struct batch_image *images, int64_t count,
                                  struct err *e) {
    const struct workspace *w = g->workspace;
    int64_t most = w->limits.most_patches;
    for (int64_t i = 0; i < count && most; i++) {
        int64_t patches = vit_rows(&w->m->config.vision, &images[i]);
        if (patches > most)
            return err_set(e, ST_FAIL, "a picture has %lld patches, but there is room for %lld", (long long)patches,
                           (long long)most);
    }
    return ST_OK;
}

/* Positions from the first feature of a picture, at ids[0], to its last. */
static int64_t span_of(const struct generator *g, const int32_t *ids, int64_t n, const struct batch_image *image) {
    int64_t left = picture_features(&g->workspace->m->config, image), at = 0;
    while (at < n && left > 0) left -= ids[at++] < 0;
    return at;
}

/* How many of the ids (n) one pass takes: as many as fit, pictures whole, whose number goes to *pictures. */
static int64_t piece_length(const struct generator *g, const int32_t *ids, int64_t n, const struct batch_image *images,
                            int64_t *pictures) {
    int64_t length = 0;
    *pictures = 0;
    while (length < n) {
        bool picture = ids[length] < 0;
        int64_t step = picture ? span_of(g, ids + length, n - length, &images[*pictures]) : 1;
        if (length + step > g->piece) break;
        length += step;
        *pictures += picture;
    }
    return length;
}

/* One pass; with `last` its logits. */
static void feed_piece(struct generator *g, int32_t *ids, int64_t n, struct batch_image *images, int64_t image_count,
                       bool last) {
    int64_t offsets[] = {0, n}, row = 0;
    for (int64_t i = 0; i < n; i++) g->positions[i] = (int32_t)(g->length + i);
    const struct batch b = {.rows = 1,
                            .N = n,
                            .offsets = offsets,
                            .ids = ids,
                            .positions = g->positions,
                            .targets = g->targets,
                            .row_index = &row,
                            .images = image_count,
                            .image = images};
    struct pass p = pass_new(g->workspace, 0, 0);
    model_forward(&p, g->workspace, &b);
    if (last) head_logits(&p, g->workspace, g->logits);
    g->length += n;
}

enum status generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct batch_image *images,
                           int64_t image_count, struct err *e) {
    if (check_prompt(g, ids, n, images, image_count, e) != ST_OK || check_pictures(g, images, image_count, e) != ST_OK)
        return e->code;
    int64_t before = g->length;
    memcpy(g->ids + before, ids, (size_t)n * sizeof *ids);
    for (int64_t at = 0; at < n;) {
        int64_t pictures, length = piece_length(g, ids + at, n - at, images, &pictures);
        feed_piece(g, g->ids + before + at, length, images, pictures, at + length == n);
        images += pictures;
        at += length;
    }
    if (backend_sync(g->workspace->m->be, e) != ST_OK) generator_keep(g, before);
    return e->code;
}

/* --- choosing ---------------------------------------------------------------------------------------------------- */

struct sampler sampler_new(int64_t vocab, double temperature, double top_p, uint64_t seed) {
    struct sampler s = {.temperature = temperature, .top_p = top_p, .seed = seed, .vocab = vocab};
    s.stream = rng_stream("generate");
    s.candidates = mem_alloc((size_t)vocab * sizeof *s.candidates);
    return s;
}

void sampler_free(struct sampler *s) { free(s->candidates); }

/* The lowest id of the largest logit; -1 when one is no number or none is finite. */
static int32_t largest(const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i])) return -1;
        if (logits[i] > logits[best]) best = i;
    }
    return isfinite(logits[best]) ? (int32_t)best : -1;
}

/* The most probable first, of equal ones the lowest id. */
static int by_mass(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->mass != y->mass) return x->mass < y->mass ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Every token with exp((logit - top) / temperature); returns their sum. */
static double gather(const struct sampler *s, const float *logits, float top) {
    double total = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        s->candidates[i] = (struct candidate){(int32_t)i, exp(((double)logits[i] - (double)top) / s->temperature)};
        total += s->candidates[i].mass;
    }
    return total;
}

/* Sorts and cuts; *total becomes the mass of what is left. Tokens below (1 - top_p) / vocab of the mass together hold
 * less than 1 - top_p of it, so none of them is needed and they need not be sorted. */
static int64_t nucleus(const struct sampler *s, double *total) {
    double floor = *total * (1 - s->top_p) / (double)s->vocab, wanted = *total * s->top_p, mass = 0;
    int64_t kept = 0, n = 0;
    for (int64_t i = 0; i < s->vocab; i++)
        if (s->candidates[i].mass >= floor) s->candidates[kept++] = s->candidates[i];
    qsort(s->candidates, (size_t)kept, sizeof *s->candidates, by_mass);
    while (n < kept && (n == 0 || mass < wanted)) mass += s->candidates[n++].mass;
    *total = mass;
    return n;
}

static int32_t draw(const struct sampler *s, const float *logits, float top, uint64_t index) {
    double total = gather(s, logits, top), mass = 0;
    int64_t n = s->top_p < 1 ? nucleus(s, &total) : s->vocab;
    double at = total * rng_uniform(s->seed, s->stream, index);
    int32_t id = -1;
    for (int64_t i = 0; i < n; i++) {
        if (s->candidates[i].mass == 0) continue;
        id = s->candidates[i].id; // the last one stays when rounding leaves a rest
        mass += s->candidates[i].mass;
        if (mass > at) break;
    }
    return id;
}

static double logprob_of(const float *logits, int64_t n, int32_t id, float top) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp((double)logits[i] - (double)top);
    return (double)logits[id] - (double)top - log(sum);
}

enum status sampler_choose(struct choice *out, const struct sampler *s, const float *logits, uint64_t index,
                           struct err *e) {
    int32_t best = largest(logits, s->vocab);
    if (best < 0)
        return err_set(e, ST_FAIL, "the model's logits are not finite; its weights or its adapter are damaged");
    float top = logits[best];
    out->id = s->temperature > 0 ? draw(s, logits, top, index) : best;
    out->logprob = logprob_of(logits, s->vocab, out->id, top);
    return ST_OK;
}
