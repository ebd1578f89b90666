#include "model/pictures.h"

#include "kernels/ops.h"
#include "model/model.h"

/* --- what is trained --------------------------------------------------------------------------------------------- */

static bool is_idefics2(const struct model *m) { return m->config.family == FAMILY_IDEFICS2; }

static bool is_mfuyu(const struct model *m) { return m->config.family == FAMILY_MFUYU; }

static bool tower_is_trained(const struct model *m) { return vit_is_trained(&m->vit, &m->config.vision); }

static bool between_is_trained(const struct model *m) {
    if (is_idefics2(m)) return connector_is_trained(&m->connector);
    if (is_mfuyu(m)) return linear_is_trained(&m->patch_embed);
    return linear_is_trained(&m->project1) || linear_is_trained(&m->project2);
}

bool pictures_are_trained(const struct model *m) {
    return m->config.family != FAMILY_TEXT && (tower_is_trained(m) || between_is_trained(m));
}

/* --- sizes ------------------------------------------------------------------------------------------------------- */

static int64_t rows_limit(const struct model *m, const struct batch_limits *l) {
    return l->patches ? l->patches : l->images * vision_rows(&m->config.vision);
}

static int64_t longest_limit(const struct model *m, const struct batch_limits *l) {
    return l->most_patches ? l->most_patches : vision_rows(&m->config.vision);
}

int64_t pictures_staged32(const struct model *m, const struct batch_limits *l) {
    int64_t features = l->images * picture_tokens(&m->config);
    int64_t rows = features || is_mfuyu(m) ? rows_limit(m, l) : 0;
    return features > rows ? features : rows;
}

int64_t pictures_staged64(const struct batch_limits *l) { return 2 * (l->images + 1); }

/* What goes through the same memory at a time: so many rows and pictures at most, but at least one picture. */
enum { CHUNK_ROWS = 4096, CHUNK_PICTURES = 16 };

/* Pictures [first, first + n) of a batch; their offsets go to the first half of the staging. */
static struct vit_size size_of(struct workspace *w, const struct batch *b, int64_t first, int64_t n) {
    struct vit_size size = {.images = n};
    w->host_offsets[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t rows = vit_rows(&w->m->config.vision, &b->image[first + i]);
        w->host_offsets[i + 1] = size.rows += rows;
        if (rows > size.longest) size.longest = rows;
    }
    return size;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* All pictures of a batch; in a dry pass the most that can come. */
static struct vit_size all_of(struct workspace *w, const struct batch *b) {
    if (!w->dry) return size_of(w, b, 0, b->images);
    int64_t longest = longest_limit(w->m, &w->limits);
    return (struct vit_size){b->images, most(rows_limit(w->m, &w->limits), longest), longest};
}

/* Those from `first` on that go together. */
static struct vit_size chunk_of(struct workspace *w, const struct batch *b, int64_t first) {
    int64_t n = 0, rows = 0, left = least(b->images - first, CHUNK_PICTURES);
    if (w->dry) {
        struct vit_size all = all_of(w, b);
        return (struct vit_size){left, least(all.rows, most(CHUNK_ROWS, all.longest)), all.longest};
    }
    while (n < left) {
        rows += vit_rows(&w->m->config.vision, &b->image[first + n]);
        if (n > 0 && rows > CHUNK_ROWS) break;
        n++;
    }
    return size_of(w, b, first, n);
}

/* Features of pictures of this size together. */
static int64_t features_of(const struct model *m, const struct vit_size *size) {
    return is_mfuyu(m) ? size->rows : size->images * picture_tokens(&m->config);
}

/* --- mllava's projector ------------------------------------------------------------------------------------------ */

static void projector_layout(struct projector_acts *a, struct arena *m, const struct model *model, int64_t images,
                             enum dtype act) {
    int64_t rows = images * vision_tokens(&model->config.vision), C = model->config.text.dim;
    a->rows = arena_tensor1(m, I32, rows);
    a->picked = arena_tensor2(m, act, rows, model->config.vision.dim);
    a->hidden = arena_tensor2(m, act, rows, C);
    a->active = arena_tensor2(m, act, rows, C);
    linear_acts_layout(&a->l1, m, &model->project1, rows, act);
    linear_acts_layout(&a->l2, m, &model->project2, rows, act);
}

static void projector_upload(struct workspace *w, struct projector_acts *a) {
    const struct vision_config *v = &w->m->config.vision;
    int64_t T = vision_tokens(v), R = vision_rows(v), first = R - T;
    for (int64_t i = 0; i < a->rows.dim[0]; i++) w->host_index[i] = (int32_t)(i / T * R + i % T + first);
    backend_upload(w->m->be, &a->rows, w->host_index);
}

static void projector_forward(const struct pass *p, struct projector_acts *a, const struct tensor *y,
                              const struct tensor *x, const struct model *m) {
    op_gather_rows(p->be, &a->picked, x, &a->rows);                         // 1
    linear_forward(p, &a->l1, &a->hidden, &a->picked, &m->project1);        // 2
    op_act_forward(p->be, &a->active, &a->hidden, m->config.projector_act); // 3
    linear_forward(p, &a->l2, y, &a->active, &m->project2);                 // 4
}

/* dx (N,Cv) is written, or NULL. */
static void projector_backward(const struct pass *p, const struct tensor *dx, const struct tensor *dy,
                               struct projector_acts *a, const struct model *m) {
    size_t mark = p->scratch->used;
    const struct tensor *dhidden = &a->active; // in its place
    struct tensor dpicked = arena_tensor2(p->scratch, p->act, dy->dim[0], m->config.vision.dim);
    linear_backward(p, dhidden, 0, dy, &a->active, &a->l2, &m->project2);                   // 4'
    op_act_backward(p->be, dhidden, dhidden, &a->hidden, m->config.projector_act);          // 3'
    linear_backward(p, dx ? &dpicked : NULL, 0, dhidden, &a->picked, &a->l1, &m->project1); // 2'
    if (dx) op_zero(p->be, dx);                                                             // 1'
    if (dx) op_scatter_rows(p->be, dx, &dpicked, &a->rows);                                 // 1'
    p->scratch->used = mark;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static void tower_layout(struct workspace *w, const struct vit_size *size, bool keep) {
    struct model *m = w->m;
    if (is_mfuyu(m)) return;
    vit_acts_layout(&w->acts.pictures.vit, &w->arena, &m->vit, &m->config.vision, size, w->act, keep);
}

static void between_layout(struct workspace *w, const struct vit_size *size, bool keep) {
    struct picture_acts *a = &w->acts.pictures;
    struct model *m = w->m;
    a->tower = arena_tensor2(&w->arena, w->act, size->rows, m->config.vision.dim);
    if (is_mfuyu(m))
        linear_acts_layout(&a->patches, &w->arena, &m->patch_embed, size->rows, w->act);
    else if (is_idefics2(m))
        connector_acts_layout(&a->connector, &w->arena, &m->connector, &m->config, size->images, size->rows,
                              size->longest, w->act, keep);
    else
        projector_layout(&a->projector, &w->arena, m, size->images, w->act);
}

static bool keeps(const struct workspace *w) { return w->train && pictures_are_trained(w->m); }

void pictures_layout(struct workspace *w, const struct batch *b) {
    struct picture_acts *a = &w->acts.pictures;
    struct vit_size all = all_of(w, b);
    a->places = arena_tensor1(&w->arena, I32, features_of(w->m, &all));
    if (!keeps(w)) return;
    between_layout(w, &all, true);
    if (tower_is_trained(w->m)) tower_layout(w, &all, true);
}

void pictures_upload(struct workspace *w, const struct batch *b) {
    int64_t at = 0;
    for (int64_t i = 0; i < b->N; i++)
        if (b->ids[i] < 0) w->host_index[at++] = (int32_t)i;
    backend_upload(w->m->be, &w->acts.pictures.places, w->host_index);
}

void pictures_free(struct picture_acts *a) {
    vit_acts_free(&a->vit);
    connector_acts_free(&a->connector);
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* mfuyu: the patches of pictures [first, ..) as they are to out (rows,Cv), a picture at a time. */
static void copy_patches(const struct pass *p, struct workspace *w, const struct tensor *out, const struct batch *b,
                         int64_t first) {
    int64_t wide = w->m->config.vision.dim;
    for (int64_t i = first, at = 0, n; at < out->dim[0]; i++, at += n) {
        n = w->dry ? least(longest_limit(w->m, &w->limits), out->dim[0] - at)
                   : vit_rows(&w->m->config.vision, &b->image[i]);
        size_t mark = p->scratch->used;
        struct tensor raw = arena_tensor2(p->scratch, F32, n, wide), rows = tensor_rows(out, at, n);
        if (!w->dry) backend_upload(p->be, &raw, b->image[i].pixels);
        op_copy(p->be, &rows, &raw);
        p->scratch->used = mark;
    }
}

/* Pictures [first, first + n) through the tower, whose acts are laid out. out (rows,Cv). */
static void run_tower(const struct pass *p, struct workspace *w, const struct tensor *out, const struct batch *b,
                      int64_t first) {
    struct model *m = w->m;
    if (is_mfuyu(m)) {
        copy_patches(p, w, out, b, first);
        return;
    }
    const struct batch_image *images = w->dry ? NULL : b->image + first;
    vit_forward(p, &w->acts.pictures.vit, out, &m->vit, &m->config.vision, images, w->dry ? NULL : w->host_offsets);
}

/* The tower's output of pictures whose n features go to the places from `first` on, and which the acts are laid out
 * for, into their rows of x. */
static void run_between(const struct pass *p, struct workspace *w, const struct tensor *x, int64_t first, int64_t n) {
    struct picture_acts *a = &w->acts.pictures;
    struct model *m = w->m;
    int64_t T = picture_tokens(&m->config);
    struct tensor places = tensor_rows(&a->places, first, n);
    size_t mark = p->scratch->used;
    struct tensor features = arena_tensor2(p->scratch, p->act, n, m->config.text.dim);
    if (is_mfuyu(m)) {
        linear_forward(p, &a->patches, &features, &a->tower, &m->patch_embed);
    } else if (is_idefics2(m)) {
        if (!w->dry)
            connector_upload(&a->connector, p->be, T, w->host_offsets, w->host_index,
                             w->host_offsets + w->limits.images + 1);
        connector_forward(p, &a->connector, &features, &a->tower, &m->connector, &m->config);
    } else {
        if (!w->dry) projector_upload(w, &a->projector);
        projector_forward(p, &a->projector, &features, &a->tower, m);
    }
    op_scatter_rows(p->be, x, &features, &places);
    p->scratch->used = mark;
}

/* A frozen tower, chunk after chunk; the rows of all pictures go to a->tower. */
static void run_frozen_tower(const struct pass *p, struct workspace *w, const struct batch *b) {
    struct picture_acts *a = &w->acts.pictures;
    size_t mark = w->arena.used;
    int64_t at = 0;
    for (int64_t i = 0; i < b->images;) {
        struct vit_size chunk = chunk_of(w, b, i);
        struct tensor out = tensor_rows(&a->tower, w->dry ? 0 : at, chunk.rows);
        tower_layout(w, &chunk, false);
        run_tower(p, w, &out, b, i);
        at += chunk.rows, i += chunk.images;
        w->arena.used = mark;
    }
}

static void forward_kept(const struct pass *p, struct workspace *w, const struct tensor *x, const struct batch *b) {
    bool frozen = !tower_is_trained(w->m);
    if (frozen) run_frozen_tower(p, w, b);
    all_of(w, b); // for the offsets
    if (!frozen) run_tower(p, w, &w->acts.pictures.tower, b, 0);
    run_between(p, w, x, 0, w->acts.pictures.places.dim[0]);
}

void pictures_forward(const struct pass *p, struct workspace *w, const struct tensor *x, const struct batch *b) {
    if (keeps(w)) {
        forward_kept(p, w, x, b);
        return;
    }
    size_t mark = w->arena.used;
    for (int64_t i = 0, at = 0; i < b->images;) {
        struct vit_size chunk = chunk_of(w, b, i);
        int64_t n = features_of(w->m, &chunk);
        between_layout(w, &chunk, false);
        tower_layout(w, &chunk, false);
        run_tower(p, w, &w->acts.pictures.tower, b, i);
        run_between(p, w, x, w->dry ? 0 : at, n);
        i += chunk.images, at += n;
        w->arena.used = mark;
    }
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

void pictures_backward(const struct pass *p, struct workspace *w, const struct tensor *dx, const struct batch *b) {
    struct picture_acts *a = &w->acts.pictures;
    struct model *m = w->m;
    bool below = tower_is_trained(m);
    size_t mark = p->scratch->used;
    struct tensor dfeatures = arena_tensor2(p->scratch, p->act, a->places.dim[0], m->config.text.dim), dtower = {0};
    if (below) dtower = arena_tensor2(p->scratch, p->act, a->tower.dim[0], a->tower.dim[1]);
    op_gather_rows(p->be, &dfeatures, dx, &a->places);
    if (is_mfuyu(m))
        linear_backward(p, NULL, 0, &dfeatures, &a->tower, &a->patches, &m->patch_embed);
    else if (is_idefics2(m))
        connector_backward(p, below ? &dtower : NULL, &dfeatures, &a->connector, &a->tower, &m->connector, &m->config);
    else
        projector_backward(p, below ? &dtower : NULL, &dfeatures, &a->projector, m);
    if (below) {
        all_of(w, b); // for the offsets
        vit_backward(p, &dtower, &a->vit, &m->vit, &m->config.vision, w->dry ? NULL : b->image,
                     w->dry ? NULL : w->host_offsets);
    }
    p->scratch->used = mark;
}
