/* A case states an op once: it makes inputs, runs the op, and compares the outputs with numbers in double that it works
 * out itself. check_case runs the case for every instruction set that the machine has, for F32 and BF16 activations,
 * and each of those twice with one thread and once with three; it demands the same bits of all three runs, intact guard
 * bytes around every tensor, and untouched inputs. Where backend_new has a "cuda", the case runs there too, twice, on
 * memory that the device shares with the host. GRAFT_TEST_DEVICE in the environment narrows this to `cpu` or `cuda`,
 * and makes it a failure when that is not there; GRAFT_TEST_ONLY narrows test_attention and test_gemm to the tests
 * whose names it fits.
 *
 * A comparison holds only where |got - want| <= tolerance is true, so NaN fails. The tolerance is twice the error of
 * rounding the exact result to the output's type (none for F32) plus `units` * 2^-24 * size, where size (by default
 * |want|) is the sum of the magnitudes that the result is added up from. */
#ifndef TESTS_OP_CHECK_H
#define TESTS_OP_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/ops.h"

struct check_block;

struct check {
    struct backend *be;
    enum dtype act;       // of this run
    const char *isa;      // of this run; "cuda" on a device
    const int64_t *shape; // what check_case was given
    uint64_t draws;       // random words drawn so far
    uint64_t digest;      // of all outputs compared
    struct check_block *blocks;
};

typedef void case_fn(struct check *c, const int64_t *shape);

/* Runs a case for each row of shapes (count, 8). */
void check_case(case_fn *fn, const int64_t (*shapes)[8], int count);
#define RUN(fn, ...)                                                                                                   \
    do {                                                                                                               \
        static const int64_t shapes[][8] = {__VA_ARGS__};                                                              \
        check_case(fn, shapes, sizeof shapes / sizeof *shapes);                                                        \
    } while (0)

/* Random input, evenly distributed over low .. high and representable in its type. rank = number of dims given. */
struct tensor check_input1(struct check *c, enum dtype type, int64_t d0, double low, double high);
struct tensor check_input2(struct check *c, enum dtype type, int64_t d0, int64_t d1, double low, double high);
struct tensor check_input3(struct check *c, enum dtype type, int64_t d0, int64_t d1, int64_t d2, double low,
                           double high);
struct tensor check_indices(struct check *c, int64_t n, int64_t low, int64_t limit); // I32, low .. limit - 1
struct tensor check_offsets(struct check *c, int64_t n, const int64_t *values);      // I64
uint32_t check_random(struct check *c);

/* From the first output on, inputs must stay as they are.
 * An output of t's type and shape that holds NaN, and one that holds t's values (for += and in place). */
struct tensor check_output(struct check *c, const struct tensor *t);
struct tensor check_output1(struct check *c, enum dtype type, int64_t d0);
struct tensor check_output2(struct check *c, enum dtype type, int64_t d0, int64_t d1);
struct tensor check_copy(struct check *c, const struct tensor *t);

/* Memory of doubles that lives as long as the case: zeros, or the values of t. */
double *check_zeros(struct check *c, int64_t n);
double *check_values(struct check *c, const struct tensor *t);

/* Waits for the ops so far. The functions here that are given c do so before they read; who reads data itself calls
 * this first. */
void check_sync(struct check *c);

/* size may be NULL: |want|. */
void check_near(struct check *c, const char *name, const struct tensor *got, const double *want, const double *size,
                double units);
void check_equal(struct check *c, const char *name, const struct tensor *got, const double *want); // bit for bit
/* Of any type, the bytes of want; but one NaN of F32 is as good as another. */
void check_bytes(struct check *c, const char *name, const struct tensor *got, const void *want);

/* Whether got is near want, as check_near says. */
bool check_is_near(double got, double want, double size, double units, enum dtype type);

double check_get(const struct tensor *t, int64_t i);
void check_set(const struct tensor *t, int64_t i, double value); // rounds
double check_rounded(double x, enum dtype type);                 // of a half; else x

#endif
