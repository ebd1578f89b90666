/* Operations of a warp: each lane leaves what it brings, and waits; the last one to come computes for all.
 *
 * Stricter than the device: a lane that ended or that does not exist may not be named in a mask, and all lanes that a
 * mask names must come to the same line. */
#include <math.h>
#include <string.h>

#include "tests/cudasim/runtime.h"

namespace sim {

struct warp *warp_of(const struct lane *l) {
    return now.warps + l->number / WARP_LANES;
}
unsigned lane_bit(const struct lane *l) { return 1u << l->number % WARP_LANES; }

static struct lane *lane_of(const struct lane *mate, unsigned set) {
    return now.lanes + mate->number / WARP_LANES * WARP_LANES + static_cast<unsigned>(__builtin_ctz(set));
}

/* A lane that waits and has l in its mask. */
static const struct lane *who_wants(const struct lane *l) {
    for (unsigned set = warp_of(l)->waiting; set; set &= set - 1) {
        const struct lane *w = lane_of(l, set);
        if (w->call->mask & lane_bit(l)) return w;
    }
    return nullptr;
}

static void fail_wanted(const struct lane *l, const char *does) {
    const struct lane *w = who_wants(l);
    fail("%s %s while thread %u waits for it at %s (%s:%d), mask %08x", lane_describe(l).text, does, w->number,
         w->call->name, w->call->at.file, w->call->at.line, w->call->mask);
}

void warp_check_exit(struct lane *l) {
    struct warp *w = warp_of(l);
    if (w->wanted & lane_bit(l)) fail_wanted(l, "ends");
    w->done |= lane_bit(l);
}

void warp_check_barrier(struct lane *l) {
    if (warp_of(l)->wanted & lane_bit(l)) fail_wanted(l, "comes to a barrier");
}

static bool same_operation(const struct warp_call *a, const struct warp_call *b) {
    return a->name == b->name && a->mask == b->mask && a->at.line == b->at.line &&
           (a->at.file == b->at.file || strcmp(a->at.file, b->at.file) == 0);
}

static void check_mask(const struct warp_call *c, const struct warp *w) {
    const struct lane *l = c->lane;
    unsigned missing = c->mask & (w->done | ~w->present);
    if (!(c->mask & lane_bit(l)))
        fail("%s is not in the mask %08x that it gives to %s (%s:%d)", lane_describe(l).text, c->mask, c->name,
             c->at.file, c->at.line);
    if (missing)
        fail("%s: %s (%s:%d) with mask %08x names lane %d, which %s", lane_describe(l).text, c->name, c->at.file,
             c->at.line, c->mask, __builtin_ctz(missing), missing & w->present ? "has ended" : "the block has not");
    if (c->mask & w->at_barrier)
        fail("%s: %s (%s:%d) with mask %08x names lane %d, which waits at a barrier", lane_describe(l).text, c->name,
             c->at.file, c->at.line, c->mask, __builtin_ctz(c->mask & w->at_barrier));
}

static void check_same(const struct warp_call *c, const struct warp *w) {
    unsigned others = w->waiting & c->mask;
    const struct lane *o = others ? lane_of(c->lane, others) : nullptr;
    if (!(w->wanted & lane_bit(c->lane)) && !others) return;
    if (!o || !same_operation(o->call, c)) {
        if (!o) o = who_wants(c->lane);
        fail("lanes of one warp part: %s is at %s (%s:%d), mask %08x; thread %u at %s (%s:%d), mask %08x",
             lane_describe(c->lane).text, c->name, c->at.file, c->at.line, c->mask, o->number, o->call->name,
             o->call->at.file, o->call->at.line, o->call->mask);
    }
}

void warp_do(struct warp_call *c) {
    struct lane *l = here;
    if (!l) fail("%s outside a kernel (%s:%d)", c->name, c->at.file, c->at.line);
    struct warp *w = warp_of(l);
    c->lane = l;
    l->call = c;
    l->operation = c->name;
    l->at = c->at;
    check_mask(c, w);
    check_same(c, w);
    w->waiting |= lane_bit(l);
    w->wanted |= c->mask;
    if ((w->waiting & c->mask) != c->mask) {
        l->state = AT_WARP;
        lane_wait();
        return;
    }
    struct lane *first = now.lanes + l->number / WARP_LANES * WARP_LANES;
    struct warp_call *calls[WARP_LANES];
    for (unsigned set = c->mask; set; set &= set - 1) {
        unsigned i = static_cast<unsigned>(__builtin_ctz(set));
        calls[i] = first[i].call;
    }
    c->run(calls, c->mask);
    w->waiting &= ~c->mask;
    w->wanted &= ~c->mask;
    if (c->mask == ALL_LANES) {
        lanes_release(first, WARP_LANES, l);
        return;
    }
    for (unsigned i = 0; i < WARP_LANES; i++) {
        unsigned j = order == REVERSE ? i : WARP_LANES - 1 - i;
        if (c->mask >> j & 1 && first + j != l) lane_release(first + j);
    }
}

/* --- the operations ---------------------------------------------------------------------------------------------- */

#define EACH_LANE(i, mask)                                                                                             \
    for (unsigned set_ = (mask), i; set_ && (i = static_cast<unsigned>(__builtin_ctz(set_)), true); set_ &= set_ - 1)

/* The only warp operation that orders memory. A part of a warp that synchronises counts for all of it. */
void warp_run_sync(struct warp_call *const *lanes, unsigned mask) {
    warp_of(lanes[__builtin_ctz(mask)]->lane)->syncs++;
}

void warp_run_shuffle(struct warp_call *const *lanes, unsigned mask) {
    EACH_LANE(i, mask) {
        int from = lanes[i]->from;
        if (!(mask >> from & 1))
            fail("%s: %s (%s:%d) reads lane %d, which is not in its mask %08x", lane_describe(lanes[i]->lane).text,
                 lanes[i]->name, lanes[i]->at.file, lanes[i]->at.line, from, mask);
        lanes[i]->result = lanes[from]->value;
    }
}

void warp_run_ballot(struct warp_call *const *lanes, unsigned mask) {
    unsigned votes = 0;
    EACH_LANE(i, mask) votes |= lanes[i]->value ? 1u << i : 0;
    EACH_LANE(i, mask) lanes[i]->result = votes;
}

void warp_run_add(struct warp_call *const *lanes, unsigned mask) {
    uint64_t sum = 0;
    EACH_LANE(i, mask) sum += lanes[i]->value;
    EACH_LANE(i, mask) lanes[i]->result = sum;
}

/* Values are ordered as signed 64-bit numbers: both int and unsigned fit. */
void warp_run_min(struct warp_call *const *lanes, unsigned mask) {
    int64_t least = INT64_MAX;
    EACH_LANE(i, mask) {
        int64_t v = static_cast<int64_t>(lanes[i]->value);
        if (v < least) least = v;
    }
    EACH_LANE(i, mask) lanes[i]->result = static_cast<uint64_t>(least);
}

void warp_run_max(struct warp_call *const *lanes, unsigned mask) {
    int64_t most = INT64_MIN;
    EACH_LANE(i, mask) {
        int64_t v = static_cast<int64_t>(lanes[i]->value);
        if (v > most) most = v;
    }
    EACH_LANE(i, mask) lanes[i]->result = static_cast<uint64_t>(most);
}

/* --- matrices: the layouts are in the head of kernels/cuda/device/device.cuh -------------------------------------- */

static void need_whole_warp(const struct warp_call *c, unsigned mask) {
    if (mask != ALL_LANES) fail("%s (%s:%d) without the whole warp, mask %08x", c->name, c->at.file, c->at.line, mask);
}

/* The 8x8 matrices (4), from the rows that the lanes name. */
static void load_rows(struct warp_call *const *lanes, uint16_t (*matrix)[8][8]) {
    for (unsigned i = 0; i < WARP_LANES; i++) {
        struct warp_call *c = lanes[i];
        if (reinterpret_cast<uintptr_t>(c->a) % 16)
            fail("%s: %s (%s:%d) of row %p, which is not aligned to 16 bytes", lane_describe(c->lane).text, c->name,
                 c->at.file, c->at.line, c->a);
        shared_offset(c->a, c->at.file, c->at.line);
        touch(c->lane, c->a, 16, false, c->at);
        memcpy(matrix[i / 8][i % 8], c->a, 16);
    }
}

void warp_run_ldmatrix(struct warp_call *const *lanes, unsigned mask) {
    uint16_t matrix[4][8][8];
    need_whole_warp(lanes[0], mask);
    load_rows(lanes, matrix);
    for (unsigned i = 0; i < WARP_LANES; i++)
        for (unsigned m = 0; m < 4; m++) {
            const uint16_t *row = matrix[m][i / 4];
            static_cast<uint32_t *>(lanes[i]->c)[m] = row[2 * (i % 4)] | uint32_t{row[2 * (i % 4) + 1]} << 16;
        }
}

void warp_run_ldmatrix_trans(struct warp_call *const *lanes, unsigned mask) {
    uint16_t matrix[4][8][8];
    need_whole_warp(lanes[0], mask);
    load_rows(lanes, matrix);
    for (unsigned i = 0; i < WARP_LANES; i++)
        for (unsigned m = 0; m < 4; m++)
            static_cast<uint32_t *>(lanes[i]->c)[m] =
                matrix[m][2 * (i % 4)][i / 4] | uint32_t{matrix[m][2 * (i % 4) + 1][i / 4]} << 16;
}

static float bf16_value(uint32_t pair, unsigned which) {
    uint32_t bits = which ? pair & 0xffff0000u : pair << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* c and eight products, as tensor cores are known to add them up: each is cut, toward zero, one bit below the last that
 * a float as large as the largest would have, and the sum is cut to a float. */
static float sum_of_step(float c, const float *x, const float *y) {
    double term[9], most = 0, sum = 0;
    int exponent;
    for (int k = 0; k < 8; k++) term[k] = static_cast<double>(x[k]) * static_cast<double>(y[k]);
    term[8] = static_cast<double>(c);
    for (double t : term) sum += t, most = fmax(most, fabs(t));
    if (most == 0 || !isfinite(sum)) return static_cast<float>(sum);
    frexp(most, &exponent);
    sum = 0;
    for (double t : term) sum += trunc(ldexp(t, 25 - exponent));
    frexp(sum, &exponent);
    int lost = exponent > 24 ? exponent - 24 : 0;
    frexp(most, &exponent);
    return static_cast<float>(ldexp(trunc(ldexp(sum, -lost)), lost + exponent - 25));
}

/* Sixteen products in two steps. */
void warp_run_mma_bf16(struct warp_call *const *lanes, unsigned mask) {
    float a[16][16], b[8][16]; // b (column, k)
    need_whole_warp(lanes[0], mask);
    for (unsigned i = 0; i < WARP_LANES; i++) {
        const uint32_t *ra = static_cast<const uint32_t *>(lanes[i]->a),
                       *rb = static_cast<const uint32_t *>(lanes[i]->b);
        unsigned g = i / 4, q = 2 * (i % 4);
        for (unsigned r = 0; r < 4; r++)
            for (unsigned h = 0; h < 2; h++) a[g + 8 * (r & 1)][q + 8 * (r >> 1) + h] = bf16_value(ra[r], h);
        for (unsigned r = 0; r < 2; r++)
            for (unsigned h = 0; h < 2; h++) b[g][q + 8 * r + h] = bf16_value(rb[r], h);
    }
    for (unsigned i = 0; i < WARP_LANES; i++) {
        float *c = static_cast<float *>(lanes[i]->c);
        for (unsigned r = 0; r < 4; r++) {
            const float *x = a[i / 4 + 8 * (r >> 1)], *y = b[2 * (i % 4) + (r & 1)];
            c[r] = sum_of_step(sum_of_step(c[r], x, y), x + 8, y + 8);
        }
    }
}

} // namespace sim
