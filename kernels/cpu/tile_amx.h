/* Small matrix products of bf16 with sums in F32, on AMX, with everything in a thread's scratch. Only a backend whose
 * amx is true may call them; builds for other machines have none of them.
 *
 * B (k,n) is packed: panels of 32 columns; in a panel, for each 32 k, two tiles of (16 pairs of k, 16 columns, 2). */
#ifndef KERNELS_CPU_TILE_AMX_H
#define KERNELS_CPU_TILE_AMX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/half.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#define TILE_AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

enum { AMX_SIDE = 32 }; // k, n and rows of memory are whole multiples of it; m of half of it

/* Around the work of a task: the tile registers take their shape, and are given back. */
void tile_amx_begin(void);
void tile_amx_end(void);

/* B (n,m) = X (m,n) transposed; B (m,n) = X (m,n). Rows of X are x_row apart. */
void tile_amx_pack_transposed(bf16 *B, const bf16 *X, int64_t x_row, int64_t m, int64_t n);
void tile_amx_pack(bf16 *B, const bf16 *X, int64_t x_row, int64_t m, int64_t n);

/* C (m,n) = A (m,k) B (k,n), or += where add is true. Panels of B are b_panel elements apart, 32 k or more. */
void tile_amx_product(float *C, int64_t c_row, const bf16 *A, int64_t a_row, const bf16 *B, int64_t b_panel, int64_t m,
                      int64_t n, int64_t k, bool add);
#endif
#endif
