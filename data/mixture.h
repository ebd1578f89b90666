/* How data sets become one: the order in which Mantis shuffles a set, and how many rows of each set a mixture shows. */
#ifndef DATA_MIXTURE_H
#define DATA_MIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* order (n) becomes what Python's random.seed(42); random.shuffle(list(range(n))) makes of it; n below 2^31. */
void mixture_shuffle(int64_t *order, int64_t n);

/* shown (count): virtual rows of each set of rows[i] rows. Balanced: int(total * min(1.1 sqrt(n_i) / sum sqrt(n_j),
 * 1)), so small sets repeat and of large ones the head is seen; else all rows once. Returns the sum. */
int64_t mixture_lengths(int64_t *shown, const int64_t *rows, size_t count, bool balancing);

#endif
