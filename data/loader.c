/* Batches made ahead of time. Workers take batch numbers in turn, at most `window` ahead of the reader; each batch goes
 * to the slot of its number, so it does not matter who made it or when. What a batch holds depends on its number
 * only. */
#include <pthread.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/rng.h"
#include "data/dataset_parts.h"

enum { ORDERS = 4, AHEAD = 2 };

/* Orders of the epochs in use, the one of epoch k at k % ORDERS; made again when another one has taken its place. */
struct orders {
    pthread_mutex_t lock;
    int64_t epoch[ORDERS];
    int64_t *order[ORDERS]; // (rows), NULL: none yet
};

struct slot {
    bool ready;
    struct batch batch;
    struct err err;
};

struct loader {
    const struct dataset *d;
    struct loader_options o;
    struct orders *orders;
    pthread_mutex_t lock;
    pthread_cond_t room, ready;
    bool quit;
    int64_t next, read; // batches, from 0: the next one to make, the next one to hand out
    int64_t window;
    struct slot *slot; // (window)
    struct batch lent; // until the next call
    pthread_t *worker; // (workers)
    int workers;
};

int64_t loader_row(const struct loader *l, int64_t position) {
    int64_t rows = l->d->rows, epoch = position / rows, place = position % rows;
    if (!l->o.shuffle) return place;
    struct orders *c = l->orders;
    pthread_mutex_lock(&c->lock);
    int at = (int)(epoch % ORDERS);
    if (!c->order[at] || c->epoch[at] != epoch) {
        if (!c->order[at]) c->order[at] = mem_alloc((size_t)rows * sizeof **c->order);
        rng_shuffle(l->o.seed, rng_stream("data order") + (uint64_t)epoch, c->order[at], rows);
        c->epoch[at] = epoch;
    }
    int64_t row = c->order[at][place];
    pthread_mutex_unlock(&c->lock);
    return row;
}

/* The model's memory was planned for the pictures that the check saw. */
static enum status check_pictures(const struct dataset *d, int64_t row, const struct row *r, struct err *e) {
    struct row_size planned = dataset_row_size(d, row);
    struct patch_count now = image_set_count(r->image, r->images, &d->family);
    if (now.patches <= planned.patches && now.most <= planned.most_patches) return ST_OK;
    return err_set(e, ST_FAIL,
                   "%s: row %lld: its pictures have %lld patches, %lld when they were checked; a file has changed "
                   "since, start again",
                   r->file, (long long)r->index, (long long)now.patches, (long long)planned.patches);
}

static enum status read_row(const struct dataset *d, int64_t row, struct row *out, struct err *e) {
    if (dataset_row(d, row, true, out, e) != ST_OK) return e->code;
    if (check_pictures(d, row, out, e) != ST_OK) row_free(out);
    return e->code;
}

static enum status make_batch(const struct loader *l, int64_t number, struct batch *b, struct err *e) {
    int64_t count = l->o.rows_per_batch, first = (l->o.first_batch + number) * count, read = 0;
    struct row *rows = mem_alloc((size_t)count * sizeof *rows);
    for (; read < count; read++)
        if (read_row(l->d, loader_row(l, first + read), &rows[read], e) != ST_OK) break;
    if (e->code == ST_OK) {
        batch_build(b, rows, count, &l->d->family);
        for (int64_t i = 0; i < count; i++) b->row_index[i] = loader_row(l, first + i);
    }
    for (int64_t i = 0; i < read; i++) row_free(&rows[i]);
    free(rows);
    return e->code;
}

/* The next batch to make, or -1 when there is none any more. Waits for room. Called with the lock held. */
static int64_t take_number(struct loader *l) {
    while (!l->quit && l->next < l->o.batches && l->next >= l->read + l->window) pthread_cond_wait(&l->room, &l->lock);
    return l->quit || l->next >= l->o.batches ? -1 : l->next++;
}

static void *worker_main(void *arg) {
    struct loader *l = arg;
    pthread_mutex_lock(&l->lock);
    for (int64_t number; (number = take_number(l)) >= 0;) {
        pthread_mutex_unlock(&l->lock);
        struct slot made = {.ready = true};
        make_batch(l, number, &made.batch, &made.err);
        pthread_mutex_lock(&l->lock);
        l->slot[number % l->window] = made;
        pthread_cond_broadcast(&l->ready);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

struct loader *loader_new(const struct dataset *d, const struct loader_options *o) {
    struct loader *l = mem_alloc(sizeof *l);
    l->d = d, l->o = *o;
    int wanted = o->workers < 1 ? 1 : o->workers;
    l->window = (int64_t)wanted * AHEAD;
    l->slot = mem_alloc((size_t)l->window * sizeof *l->slot);
    l->worker = mem_alloc((size_t)wanted * sizeof *l->worker);
    l->orders = mem_alloc(sizeof *l->orders);
    pthread_mutex_init(&l->orders->lock, NULL);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->room, NULL);
    pthread_cond_init(&l->ready, NULL);
    while (l->workers < wanted && pthread_create(&l->worker[l->workers], NULL, worker_main, l) == 0) l->workers++;
    return l;
}

void loader_free(struct loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->workers; i++) pthread_join(l->worker[i], NULL);
    for (int64_t i = 0; i < l->window; i++) batch_free(&l->slot[i].batch);
    batch_free(&l->lent);
    for (int i = 0; i < ORDERS; i++) free(l->orders->order[i]);
    pthread_mutex_destroy(&l->orders->lock);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->room);
    pthread_cond_destroy(&l->ready);
    free(l->orders), free(l->slot), free(l->worker), free(l);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

void loader_limits(const struct loader *l, struct batch_limits *out) {
    *out = (struct batch_limits){.rows = l->o.batches > 0 ? l->o.rows_per_batch : 0};
    int64_t position = l->o.first_batch * l->o.rows_per_batch;
    for (int64_t b = 0; b < l->o.batches; b++) {
        struct batch_limits sum = {0};
        for (int64_t i = 0; i < l->o.rows_per_batch; i++) {
            const struct entry *entry = dataset_entry(l->d, loader_row(l, position++));
            sum.N += entry->positions, sum.images += entry->images, sum.scored += entry->scored;
            sum.patches += entry->patches;
            out->longest = larger(out->longest, entry->positions);
            out->most_patches = larger(out->most_patches, entry->most_patches);
        }
        out->N = larger(out->N, sum.N), out->images = larger(out->images, sum.images);
        out->scored = larger(out->scored, sum.scored), out->patches = larger(out->patches, sum.patches);
    }
}

/* With no worker (the machine refused every thread) the reader makes the batch itself. */
static struct slot take_slot(struct loader *l) {
    struct slot got = {0};
    if (l->workers == 0) {
        make_batch(l, l->read++, &got.batch, &got.err);
        return got;
    }
    pthread_mutex_lock(&l->lock);
    struct slot *s = &l->slot[l->read % l->window];
    while (!s->ready) pthread_cond_wait(&l->ready, &l->lock);
    got = *s;
    *s = (struct slot){0};
    l->read++;
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    return got;
}

enum status loader_next(struct loader *l, const struct batch **b, struct err *e) {
    *b = NULL;
    batch_free(&l->lent);
    if (l->read >= l->o.batches)
        return err_set(e, ST_FAIL, "the data loader was asked for more than the %lld batches it was made for",
                       (long long)l->o.batches);
    struct slot got = take_slot(l);
    if (got.err.code != ST_OK) return err_set(e, got.err.code, "%s", got.err.text);
    l->lent = got.batch;
    *b = &l->lent;
    return ST_OK;
}
