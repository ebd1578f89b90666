/* The order of the work. Kernels know rows and columns only; which of A and B^T gives the rows is chosen here, and with
 * the factors exchanged ("flipped") a tile is the transpose of its part of C.
 *
 *   for each chunk of the shared factor that fits in its memory
 *       for each round of blocks of K; one round, unless K is long
 *           pack the chunk                                                (tasks: some panels, one block of K)
 *           for each strip of the other factor                            (a task)
 *               for each block of K: pack the strip; for each shared panel, for each of the strip: add to a tile
 *               the last block stores the tiles
 *
 * The widths of strips and the rounds change no sum, so they may depend on the number of threads.
 */
#include "kernels/cpu/gemm.h"

#include <string.h>

#include "kernels/cpu/dropout.h"

enum {
    CHUNK = 2048,            // the most rows or columns of the shared factor at a time
    ROUND = 2 << 20,         // bytes of the shared chunk in a round
    TILES = 16 << 20,        // memory for tiles between rounds
    STRIP = 256,             // and of a strip: CHUNK * STRIP sums take half the scratch
    CACHED = 1 << 20,        // beyond so many bytes the shared chunk leaves the second cache, and strips are wide
    TASK_MACS = 1 << 20,     // a task is worth at least so many products,
    TASK_ELEMENTS = 1 << 15, // or packs so many elements,
    TASKS = 16,              // and a strip is narrow enough for so many tasks, where that is possible
    TILE_MOST = 48,          // rows or columns of a tile of any kernel
};

/* One of the factors as the kernel sees it: `count` rows or columns in panels. */
struct side {
    const struct factor *factor;
    int64_t count;
    int64_t width; // of a panel
    size_t bytes;  // of a panel
    void (*pack)(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn);
};

struct plan {
    struct backend *be;
    const struct gemm *g;
    const struct kernel *kernel;
    bool flipped;     // rows of a tile are columns of C
    bool rows_shared; // the shared side gives the kernel's rows
    struct side shared, strips;
    int64_t k, k_end;          // the part of K that this plan sums
    int64_t blocks, block;     // of K
    int64_t round, begin, end; // so many blocks at a time, and those of this round
    float *tiles;              // of all of the chunk, between rounds; NULL where there is one round
    int64_t first, chunk;      // the chunk of the shared side
    int64_t panels;            // in the chunk
    int64_t group;             // panels of it that one task packs
    int64_t strip;             // width of a strip, whole panels
};

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* --- C ----------------------------------------------------------------------------------------------------------- */

typedef float floats __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(WIDTH * sizeof(uint32_t)), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(WIDTH * sizeof(uint16_t)), aligned(2), may_alias));

/* bf16_of_float and bf16_to_float of a vector. */
static inline halves halves_of_floats(floats x) {
    words u = (words)x, nan = (words)((u & 0x7FFFFFFFu) > 0x7F800000u);
    words rounded = u + 0x7FFFu + (u >> 16 & 1u);
    return __builtin_convertvector((nan & (u | 0x400000u)) >> 16 | (~nan & rounded) >> 16, halves);
}

static inline floats floats_of_halves(halves h) { return (floats)(__builtin_convertvector(h, words) << 16); }

/* Inlined with constants for what is absent. */
static inline void store_f32(float *C, const float *sums, const float *bias, int64_t n, float alpha, float beta) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        floats x = alpha * *(const floats *)(sums + i);
        if (beta != 0.0f) x += beta * *(const floats *)(C + i);
        if (bias) x += *(const floats *)(bias + i);
        *(floats *)(C + i) = x;
    }
    for (; i < n; i++) {
        float x = alpha * sums[i];
        if (beta != 0.0f) x += beta * C[i];
        C[i] = bias ? x + bias[i] : x;
    }
}

static inline void store_bf16(bf16 *C, const float *sums, const float *bias, int64_t n, float alpha, float beta) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        floats x = alpha * *(const floats *)(sums + i);
        if (beta != 0.0f) x += beta * floats_of_halves(*(const halves *)(C + i));
        if (bias) x += *(const floats *)(bias + i);
        *(halves *)(C + i) = halves_of_floats(x);
    }
    for (; i < n; i++) {
        float x = alpha * sums[i];
        if (beta != 0.0f) x += beta * bf16_to_float(C[i]);
        C[i] = bf16_of_float(bias ? x + bias[i] : x);
    }
}

/* The same for n <= TILE_MOST sums that are dropped out first. */
static void store_dropped(const struct gemm *g, int64_t m, int64_t n0, const float *sums, int64_t n) {
    float kept[TILE_MOST];
    struct gemm plain = *g;
    plain.dropout = NULL;
    dropout_line(kept, sums, g->dropout, m * g->stride + n0, n);
    gemm_store(&plain, m, n0, kept, n);
}

void gemm_store(const struct gemm *g, int64_t m, int64_t n0, const float *sums, int64_t n) {
    if (g->dropout) {
        store_dropped(g, m, n0, sums, n);
        return;
    }
    const float *bias = g->bias ? g->bias + n0 : NULL;
    int64_t at = m * g->stride + n0;
    bool plain = !bias && g->alpha == 1.0f && g->beta == 0.0f;
    if (g->type == F32 && plain)
        store_f32((float *)g->C + at, sums, NULL, n, 1.0f, 0.0f);
    else if (g->type == F32)
        store_f32((float *)g->C + at, sums, bias, n, g->alpha, g->beta);
    else if (plain)
        store_bf16((bf16 *)g->C + at, sums, NULL, n, 1.0f, 0.0f);
    else
        store_bf16((bf16 *)g->C + at, sums, bias, n, g->alpha, g->beta);
}

/* The tile whose first element is at (row, col) of the kernel's product. Behind the tile are readable bytes for a whole
 * number of TRANSPOSE rows. */
static void store_tile(const struct plan *p, const float *tile, int64_t row, int64_t col) {
    const struct gemm *g = p->g;
    int rows = p->kernel->rows, cols = p->kernel->cols, m_count = rows, stride = cols;
    int64_t m = row, n = col;
    float turned[TILE_MOST * TILE_MOST];
    if (p->flipped) {
        stride = (rows + TRANSPOSE - 1) / TRANSPOSE * TRANSPOSE;
        transpose(turned, stride, tile, cols, stride, cols);
        tile = turned, m = col, n = row, m_count = cols;
    }
    int64_t m_end = least(m + m_count, g->M), n_count = least(p->flipped ? rows : cols, g->N - n);
    if (p->kernel->store && !g->dropout)
        p->kernel->store(g, m, n, tile, stride, m_end - m, n_count);
    else
        for (int64_t i = m; i < m_end; i++) gemm_store(g, i, n, tile + (i - m) * stride, n_count);
}

/* --- tasks ------------------------------------------------------------------------------------------------------- */

static int block_length(const struct plan *p, int64_t block) {
    return (int)least(p->block, p->k_end - p->k - block * p->block);
}

static size_t panel_bytes(const struct plan *p, const struct side *side, int kn) {
    size_t steps = (size_t)((kn + PACK_STEP - 1) / PACK_STEP);
    return p->kernel->tight ? side->bytes / (size_t)(p->kernel->kc / PACK_STEP) * steps : side->bytes;
}

static char *shared_panel(const struct plan *p, int64_t block, int64_t panel) {
    char *start = ((struct cpu_backend *)p->be)->shared;
    start += (size_t)((block - p->begin) * p->panels) * panel_bytes(p, &p->shared, (int)p->block);
    return start + (size_t)panel * panel_bytes(p, &p->shared, block_length(p, block));
}

static void pack_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct plan *p = arg;
    int64_t groups = divide_up(p->panels, p->group), block = p->begin + task / groups, panel = task % groups * p->group;
    int64_t first = panel * p->shared.width, count = least(p->group * p->shared.width, p->chunk - first);
    p->shared.pack(shared_panel(p, block, panel), p->shared.factor, p->first + first, count, p->k + block * p->block,
                   block_length(p, block));
}

/* Multiplies one shared panel with all of the strip, which starts at `at`. */
static void multiply_panel(const struct plan *p, const char *packed, float *tiles, int64_t at, int64_t panels,
                           int64_t s, int64_t block) {
    const struct kernel *kernel = p->kernel;
    int kn = block_length(p, block);
    size_t bytes = panel_bytes(p, &p->strips, kn);
    const char *other = shared_panel(p, block, s);
    int64_t shared_at = p->first + s * p->shared.width;
    for (int64_t i = 0; i < panels; i++, packed += bytes, at += p->strips.width) {
        float *tile = p->blocks > 1 ? tiles + (s * panels + i) * kernel->rows * kernel->cols : tiles;
        kernel->multiply(tile, p->rows_shared ? other : packed, p->rows_shared ? packed : other, kn, block > 0);
        if (block < p->blocks - 1) continue;
        store_tile(p, tile, p->rows_shared ? shared_at : at, p->rows_shared ? at : shared_at);
    }
}

static void strip_task(void *arg, int64_t task, int thread) {
    const struct plan *p = arg;
    const struct side *strips = &p->strips;
    int64_t first = task * p->strip, count = least(p->strip, strips->count - first);
    int64_t panels = divide_up(count, strips->width);
    char *packed = cpu_scratch(p->be, thread);
    float *tiles = (float *)(packed + (size_t)panels * panel_bytes(p, strips, (int)p->block));
    if (p->tiles) tiles = p->tiles + first / strips->width * p->panels * p->kernel->rows * p->kernel->cols;
    if (p->kernel->begin) p->kernel->begin();
    for (int64_t block = p->begin; block < p->end; block++) {
        strips->pack(packed, strips->factor, first, count, p->k + block * p->block, block_length(p, block));
        for (int64_t s = 0; s < p->panels; s++) multiply_panel(p, packed, tiles, first, panels, s, block);
    }
    if (p->kernel->end) p->kernel->end();
}

/* --- plan -------------------------------------------------------------------------------------------------------- */

/* Cycles, roughly: products with what pads them, and elements that change between along and across lines. */
static double cost(const struct gemm *g, const struct kernel *k, bool flipped) {
    const struct factor *a = flipped ? &g->b : &g->a, *b = flipped ? &g->a : &g->b;
    double rows = (double)(flipped ? g->N : g->M), cols = (double)(flipped ? g->M : g->N), K = (double)g->K;
    double padded =
        (double)divide_up((int64_t)rows, k->rows) * k->rows * (double)divide_up((int64_t)cols, k->cols) * k->cols * K;
    double moves = 0, turns = flipped ? rows * cols : 0;
    if (!a->k_along_line) moves += rows * K;
    if (b->k_along_line) moves += cols * K;
    return padded / k->macs_per_cycle + moves / k->moves_per_cycle + turns / k->turns_per_cycle;
}

static void plan_sides(struct plan *p) {
    const struct gemm *g = p->g;
    const struct kernel *k = p->kernel;
    p->flipped = cost(g, k, true) < cost(g, k, false);
    struct side rows = {p->flipped ? &g->b : &g->a, p->flipped ? g->N : g->M, k->rows, k->a_bytes, k->pack_a};
    struct side cols = {p->flipped ? &g->a : &g->b, p->flipped ? g->M : g->N, k->cols, k->b_bytes, k->pack_b};
    p->rows_shared = rows.count <= cols.count;
    p->shared = p->rows_shared ? rows : cols;
    p->strips = p->rows_shared ? cols : rows;
}

/* Blocks of equal length, whole steps of every kernel. */
static void plan_blocks(struct plan *p) {
    int64_t K = p->k_end - p->k;
    p->blocks = larger(divide_up(K, p->kernel->kc), 1);
    p->block = divide_up(divide_up(K, p->blocks), PACK_STEP) * PACK_STEP;
    p->blocks = p->block ? divide_up(K, p->block) : 1;
}

/* With all of a long K the shared chunk would come from memory for each strip. */
static void plan_rounds(struct plan *p) {
    int64_t width = p->strips.width,
            panels = least(divide_up(p->shared.count, p->shared.width), CHUNK / p->shared.width);
    size_t tiles = (size_t)(panels * p->shared.width * divide_up(p->strips.count, width) * width) * sizeof(float);
    size_t block = (size_t)panels * p->shared.bytes;
    p->round = p->blocks, p->tiles = NULL;
    if (block * (size_t)p->blocks <= 3 * ROUND || tiles > TILES) return;
    p->round = larger(ROUND / (int64_t)block, 1);
    p->tiles = (float *)(((struct cpu_backend *)p->be)->shared + CPU_SHARED - TILES);
}

/* The most panels of the shared side that its memory holds; 0: not one. */
static int64_t plan_chunk(const struct plan *p) {
    size_t memory = p->tiles ? CPU_SHARED - TILES : CPU_SHARED;
    int64_t room = (int64_t)(memory / (p->shared.bytes * (size_t)p->round));
    int64_t most = least(room, CHUNK / p->shared.width), panels = divide_up(p->shared.count, p->shared.width);
    return most ? divide_up(panels, divide_up(panels, most)) : 0;
}

static void plan_tasks(struct plan *p) {
    int64_t width = p->strips.width, panels = divide_up(p->strips.count, width);
    int64_t worth = TASK_MACS / larger(width * p->chunk * (p->k_end - p->k), 1) + 1;
    int64_t most = STRIP / width, threads = threads_count(p->be->threads);
    size_t shared = (size_t)((p->blocks - 1) * p->panels) * panel_bytes(p, &p->shared, (int)p->block);
    shared += (size_t)p->panels * panel_bytes(p, &p->shared, block_length(p, p->blocks - 1));
    if (shared > CACHED) worth = divide_up(panels, divide_up(divide_up(panels, most), threads) * threads);
    p->strip = least(larger(divide_up(panels, TASKS), worth), most) * width;
    int64_t elements = p->shared.width * larger(p->block, 1);
    p->group = least(divide_up(TASK_ELEMENTS, elements), STRIP / p->shared.width);
}

static void run(struct plan *p) {
    plan_blocks(p);
    plan_rounds(p);
    int64_t panels = plan_chunk(p);
    for (p->first = 0; p->first < p->shared.count; p->first += p->chunk) {
        p->chunk = least(panels * p->shared.width, p->shared.count - p->first);
        p->panels = divide_up(p->chunk, p->shared.width);
        plan_tasks(p);
        for (p->begin = 0; p->begin < p->blocks; p->begin += p->round) {
            p->end = least(p->begin + p->round, p->blocks);
            threads_for(p->be->threads, (p->end - p->begin) * divide_up(p->panels, p->group), pack_task, p);
            threads_for(p->be->threads, divide_up(p->strips.count, p->strip), strip_task, p);
        }
    }
}

/* Where not even one panel of all K fits in the shared memory, K goes in parts, each of them added to C. That is
 * K beyond 300 thousand; only there is a C in BF16 rounded more than once. */
void gemm(struct backend *be, const struct gemm *g) {
    if (g->M == 0 || g->N == 0) return;
    struct gemm part = *g;
    const struct kernel *amx = g->amx ? kernel_amx() : NULL;
    struct plan p = {.be = be, .g = &part, .kernel = amx ? amx : kernel_f32()};
    plan_sides(&p);
    int64_t most = (int64_t)(CPU_SHARED / p.shared.bytes) * p.kernel->kc;
    do {
        p.k_end = least(p.k + most, g->K);
        run(&p);
        part.beta = 1.0f, part.bias = NULL;
        p.k = p.k_end;
    } while (p.k < g->K);
}
