/* Matrix products, in blocks.  C (M,N) = alpha * A (M,K) B (K,N) + beta * C + bias.
 *
 * Both factors are packed into panels: strips of a fixed width in m or n, kc long in k, in the order in which a kernel
 * reads them. The factor with fewer rows or columns is packed once, into memory that all tasks share; the other in
 * pieces, one task each, so a weight is read and dequantised once. A kernel multiplies one panel of each into a tile
 * of sums in F32; a tile collects all of K before it is rounded into C. The tasks share out tiles, never K.
 *
 *   gemm.c  the order of the work        pack.c          lines of a matrix as F32, transposing
 *   gemv.c  few rows, without panels     micro.c, amx.c  the kernels and their panels, F32 and bf16 on AMX */
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "base/half.h"
#include "kernels/cpu/cpu.h"

/* A factor as it lies in memory: lines of consecutive elements, `stride` apart. */
struct factor {
    const void *data;
    const struct q4 *q4;
    int64_t stride; // elements
    enum dtype type;
    enum dtype round[2];           // 4-bit: the types that values are rounded to, one after the other; F32: none
    bool k_along_line;             // a line is a row of A or a column of B; otherwise a line is one k
    const struct dropout *dropout; // NULL: none
};

struct gemm {
    struct factor a, b; // (M,K), (K,N)
    void *C;            // (M,N), F32 or BF16
    const float *bias;  // (N) or NULL
    int64_t M, N, K;
    int64_t stride; // elements from a row of C to the next
    float alpha, beta;
    enum dtype type;               // of C
    bool amx;                      // multiply in bf16
    const struct dropout *dropout; // of the product before it is scaled; NULL: none
};

void gemm(struct backend *be, const struct gemm *g);

/* The same where gemv_takes it: A has a few rows, k along its lines and no stride of its own, and k runs along B's. */
enum { GEMV_ROWS = 4 };
bool gemv_takes(const struct gemm *g);
void gemv(struct backend *be, const struct gemm *g);

/* Part of a row of C from its n sums: C = alpha * sums + beta * C + bias, from column n0 of row m on; one rounding. */
void gemm_store(const struct gemm *g, int64_t m, int64_t n0, const float *sums, int64_t n);

/* --- kernels ----------------------------------------------------------------------------------------------------- */

/* Panels of A are `rows` wide, panels of B `cols`, both up to kc long. A tile is (rows,cols) F32. */
struct kernel {
    int rows, cols, kc;
    size_t a_bytes, b_bytes; // one panel, full length
    bool tight;              // a shorter panel takes less: its length is rounded up to PACK_STEP only
    int macs_per_cycle, moves_per_cycle, turns_per_cycle; // rough: products, elements transposed of factors and of C
    /* Packs [first, first + count) x [k, k + kn) of a factor into ceil(count / rows or cols) panels; what goes beyond
     * count is zero. */
    void (*pack_a)(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn);
    void (*pack_b)(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn);
    /* tile = a b, or += where add. */
    void (*multiply)(float *tile, const void *a, const void *b, int kn, bool add);
    /* C = alpha * tile + beta * C + bias from (m,n) on; the tile's rows are stride apart. NULL: gemm_store does. */
    void (*store)(const struct gemm *g, int64_t m, int64_t n, const float *tile, int64_t stride, int64_t rows,
                  int64_t cols);
    void (*begin)(void), (*end)(void); // around the work of a task; or NULL
};

const struct kernel *kernel_f32(void);
const struct kernel *kernel_amx(void); // NULL where this build has none

/* --- packing ----------------------------------------------------------------------------------------------------- */

enum {
    PACK_COLUMNS = 512, // the most rows or columns that one call packs
    PACK_STEP = 32,     // a whole number of steps of k in every kernel
};

/* n elements of a line from `first` on, as F32, dropped out where the factor is. */
void line_f32(float *dst, const struct factor *f, int64_t line, int64_t first, int64_t n);

/* 32-bit lanes of the widest vector, and the side of the squares that are transposed at once. */
#if defined(__AVX512F__)
enum { WIDTH = 16, TRANSPOSE = 16 };
#elif defined(__AVX2__)
enum { WIDTH = 8, TRANSPOSE = 4 };
#else
enum { WIDTH = 4, TRANSPOSE = 4 };
#endif

/* dst[c][r] = src[r][c] for 32-bit elements; rows and cols are multiples of TRANSPOSE. */
void transpose(float *dst, int64_t dst_stride, const float *src, int64_t src_stride, int rows, int cols);

#endif
