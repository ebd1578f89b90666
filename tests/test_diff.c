/* The adapter of a difference: it must give back what an adapter merged in, at its rank; the best there is below it;
 * and say which base it belongs to. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "lora/base_mark.h"
#include "lora/diff.h"
#include "lora/merge.h"
#include "lora/svd.h"
#include "tests/adapter_fixture.h"
#include "tests/run_command.h"

/* --- the decomposition ------------------------------------------------------------------------------------------- */

/* D (O,I) = sum over k of weight[k] x_k y_k^T with random unit-like vectors. */
static float *made_of(int64_t O, int64_t I, const double *weight, int64_t n) {
    float *D = mem_alloc((size_t)(O * I) * sizeof *D);
    for (int64_t k = 0; k < n; k++)
        for (int64_t o = 0; o < O; o++)
            for (int64_t i = 0; i < I; i++)
                D[o * I + i] += (float)(weight[k] * (rng_uniform(1, (uint64_t)k, (uint64_t)o) - 0.5) *
                                        (rng_uniform(2, (uint64_t)k, (uint64_t)i) - 0.5));
    return D;
}

static double energy(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

/* |D - B A|^2 */
static double rest(const float *D, const float *B, const float *A, int64_t O, int64_t I, int64_t r) {
    double sum = 0;
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < I; i++) {
            double x = D[o * I + i];
            for (int64_t k = 0; k < r; k++) x -= (double)B[o * r + k] * A[k * I + i];
            sum += x * x;
        }
    return sum;
}

/* Both ways: all at once (a small matrix), and by projections. */
static void test_svd(void **state) {
    struct fixture *f = *state;
    static const struct {
        int64_t O, I, r;
    } cases[] = {{1, 1, 1}, {31, 33, 4}, {40, 17, 24}, {300, 257, 5}, {230, 640, 5}};
    const double weights[] = {8, 5, 3, 2, 1, 0.5, 0.25, 0.125};
    for (int c = 0; c < 5; c++) {
        int64_t O = cases[c].O, I = cases[c].I, r = cases[c].r;
        float *D = made_of(O, I, weights, 8), *B = mem_alloc((size_t)(O * r) * sizeof *B);
        float *A = mem_alloc((size_t)(r * I) * sizeof *A);
        double held = svd_low_rank(f->be, B, A, D, O, I, r, &f->e), all = energy(D, O * I);
        expect_good(&f->e);
        double left = rest(D, B, A, O, I, r);
        assert_true(fabs(held + left - all) <= 1e-5 * all); // Pythagoras
        int64_t least = O < I ? O : I;
        if (r >= 8 || r >= least)
            assert_true(left <= 1e-9 * all);
        else
            assert_true(left > 1e-4 * all && left < 0.2 * all);
        free(D), free(B), free(A);
    }
}

/* No product of rank r leaves less than the small singular values do, which LAPACK gives for the small matrix. The
 * projections must come as near on a matrix whose singular values fall slowly. */
static void test_svd_is_nearest(void **state) {
    struct fixture *f = *state;
    enum { O = 240, I = 250, R = 8 };
    float *D = mem_alloc(sizeof(float) * O * I), *B = mem_alloc(sizeof(float) * O * O),
          *A = mem_alloc(sizeof(float) * O * I);
    for (int i = 0; i < O * I; i++) D[i] = (float)(rng_uniform(9, 9, (uint64_t)i) - 0.5) / (float)(1 + i / I % 40);
    double near = svd_low_rank(f->be, B, A, D, O, I, R, &f->e);
    double all = svd_low_rank(f->be, B, A, D, O, I, O, &f->e), best = 0; // by LAPACK alone: 2 r is more than O
    expect_good(&f->e);
    assert_true(fabs(all - energy(D, O * I)) <= 1e-6 * all);
    for (int k = 0; k < R; k++) best += energy(A + k * I, I) * energy(A + k * I, I); // |sqrt(s) v|^4 = s^2
    assert_true(near <= best * (1 + 1e-5) && near >= best * (1 - 1e-3));
    free(D), free(B), free(A);
}

/* --- models ------------------------------------------------------------------------------------------------------ */

static char *merged(struct fixture *f, const char *model, const char *adapter, const char *name) {
    const struct merge_adapter one = {adapter, 1};
    const struct merge_options o = {
        .model = model, .adapters = &one, .adapter_count = 1, .type = F32, .max_shard_size = 1 << 30, .be = f->be};
    char *dir = path_join(f->tmp, name);
    struct merge *m = NULL;
    dir_make(dir, &f->e);
    if (merge_open(&m, &o, &f->e) == ST_OK) merge_write(m, dir, &f->e);
    merge_free(m);
    expect_good(&f->e);
    return dir;
}

static void diff_to(struct fixture *f, const char *base, const char *tuned, const char *out, int64_t rank,
                    struct diff_report *r) {
    const struct diff_options o = {.base = base, .tuned = tuned, .base_name = base, .rank = rank, .be = f->be};
    dir_make(out, &f->e);
    diff_write(&o, out, r, &f->e);
}

/* Largest difference of all tensors of two model folders. */
static double distance(struct fixture *f, const char *a, const char *b) {
    struct st_set x, y;
    double worst = 0;
    assert_int_equal(st_open_dir(&x, a, "model", &f->e), ST_OK);
    assert_int_equal(st_open_dir(&y, b, "model", &f->e), ST_OK);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        const float *p = x.entries[i].data, *q = y.entries[i].data;
        assert_string_equal(x.entries[i].name, y.entries[i].name);
        assert_int_equal(x.entries[i].type, ST_F32);
        for (size_t k = 0; k < x.entries[i].bytes / sizeof *p; k++) worst = fmax(worst, fabs((double)p[k] - q[k]));
    }
    st_close(&x), st_close(&y);
    return worst;
}

/* base + adapter, merged; its difference at the adapter's rank, merged again: the same model within the rounding of
 * F32, whose numbers here are below 4. */
static void test_gives_back(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *model, *adapter;
        int64_t rank, whole;
    } cases[] = {{MODELS "llama/model", MODELS "lora/adapter", 8, 0},
                 {MODELS "mistral/model", MODELS "saved-modules/adapter", 40, 1},
                 {MODELS "llama-bias/model", MODELS "bias-all/adapter", 8, 1}};
    for (int i = 0; i < 3; i++) {
        char *out = mem_format("%s/adapter%d", f->tmp, i), *one = mem_format("one%d", i), *two = mem_format("two%d", i);
        struct diff_report r;
        char *tuned = merged(f, cases[i].model, cases[i].adapter, one);
        diff_to(f, cases[i].model, tuned, out, cases[i].rank, &r);
        expect_good(&f->e);
        assert_true(r.count > 0 && r.share > 0.999999 && (r.whole > 0) == (cases[i].whole > 0));
        char *again = merged(f, cases[i].model, out, two);
        assert_true(distance(f, tuned, again) <= 8e-6);
        diff_report_free(&r);
        free(out), free(one), free(two), free(tuned), free(again);
    }
}

/* An embedding that is the output layer too stays both: the adapter brings it twice, the merged model has it once. */
static void test_gives_back_tied(void **state) {
    struct fixture *f = *state;
    const char *base = MODELS "qwen2/model";
    char *tuned = path_join(f->tmp, "tuned"), *out = path_join(f->tmp, "adapter"), *text;
    char *config = path_join(tuned, "config.json"), *weights = path_join(tuned, "model.safetensors");
    struct diff_report r;
    struct st_set s;
    size_t size;
    dir_make(tuned, &f->e);
    assert_int_equal(file_read(MODELS "qwen2/model/config.json", &text, &size, &f->e), ST_OK);
    file_write(config, text, size, &f->e);
    assert_int_equal(st_open_dir(&s, base, "model", &f->e), ST_OK);
    float **numbers = mem_alloc(s.count * sizeof(float *));
    for (size_t i = 0; i < s.count; i++) {
        struct st_entry *t = &s.entries[i];
        const char *name = t->name;
        memcpy(numbers[i] = mem_alloc(t->bytes), t->data, t->bytes);
        t->data = numbers[i];
        bool changes = strstr(name, "embed_tokens") || strstr(name, "1.self_attn.q_proj.weight");
        for (size_t k = 0; changes && k < t->bytes / sizeof(float); k += 3) numbers[i][k] += 0.25f;
    }
    st_write(weights, s.entries, s.count, &f->e);
    expect_good(&f->e);
    diff_to(f, base, tuned, out, 40, &r);
    expect_good(&f->e);
    char *again = merged(f, base, out, "again");
    assert_true(distance(f, tuned, again) <= 8e-6);
    for (size_t i = 0; i < s.count; i++) free(numbers[i]);
    st_close(&s);
    diff_report_free(&r);
    free(numbers), free(text), free(config), free(weights), free(tuned), free(out), free(again);
}

static void test_below_the_rank(void **state) {
    struct fixture *f = *state;
    char *out = path_join(f->tmp, "small"), *tuned = merged(f, MODELS "llama/model", MODELS "lora/adapter", "tuned");
    struct diff_report r;
    diff_to(f, MODELS "llama/model", tuned, out, 1, &r);
    expect_good(&f->e);
    assert_true(r.share > 0.2 && r.share < 0.999);
    for (int64_t i = 0; i < r.count; i++) assert_true(r.modules[i].share > 0 && r.modules[i].share <= 1 + 1e-9);
    diff_report_free(&r);
    free(out), free(tuned);
}

static void test_refuses(void **state) {
    struct fixture *f = *state;
    char *out = path_join(f->tmp, "out");
    struct diff_report r;
    diff_to(f, MODELS "llama/model", MODELS "mistral/model", out, 4, &r);
    expect_error(f, ST_FAIL, "no difference");
    diff_to(f, MODELS "llama/model", MODELS "llama/model", out, 4, &r);
    expect_error(f, ST_FAIL, "no linear layer differs");
    diff_to(f, MODELS "llama/model", MODELS "llama/model", out, 0, &r);
    expect_error(f, ST_USAGE, "--rank is 0");
    free(out);
}

/* --- the base that it was made on -------------------------------------------------------------------------------- */

/* An adapter goes with its own base under any name, not with another, unless that is asked for. */
static void test_base_mark(void **state) {
    struct fixture *f = *state;
    char *out = path_join(f->tmp, "adapter"), *tuned = merged(f, MODELS "llama/model", MODELS "lora/adapter", "tuned");
    struct diff_report r;
    struct base_mark b;
    struct merge *m = NULL;
    diff_to(f, MODELS "llama/model", tuned, out, 2, &r);
    diff_report_free(&r);
    assert_int_equal(base_mark_read(&b, out, &f->e), ST_OK);
    assert_int_equal(strlen(b.fingerprint), 16);
    assert_string_equal(b.model, MODELS "llama/model");
    base_mark_free(&b);
    const struct merge_adapter one = {out, 1};
    struct merge_options o = {.model = tuned, .adapters = &one, .adapter_count = 1, .as_stored = true, .be = f->be};
    merge_open(&m, &o, &f->e);
    expect_error(f, ST_FAIL, "--any_base");
    o.any_base = true;
    assert_int_equal(merge_open(&m, &o, &f->e), ST_OK);
    merge_free(m);
    o.any_base = false, o.model = MODELS "llama/model";
    assert_int_equal(merge_open(&m, &o, &f->e), ST_OK);
    merge_free(m);
    char *mark = path_join(out, "base_model.json");
    file_write(mark, "{\"fingerprint\": \"xyz\"}", 22, &f->e);
    merge_open(&m, &o, &f->e);
    expect_error(f, ST_FAIL, "16 hexadecimal digits");
    free(out), free(tuned), free(mark);
}

/* graft diff and what graft inspect says of its adapter beside its base, and beside another. */
static void test_command(void **state) {
    struct fixture *f = *state;
    char *tuned = merged(f, MODELS "llama/model", MODELS "lora/adapter", "tuned"), *out = path_join(f->tmp, "out");
    const char *const lines[][9] = {
        {graft_path(), "diff", MODELS "llama/model", tuned, "--rank", "8", "--out", out, NULL},
        {graft_path(), "inspect", out, "--base", MODELS "llama/model", NULL},
        {graft_path(), "inspect", out, "--base", tuned, NULL},
    };
    static const char *const says[] = {"rank 8 holds 100.0000% of the difference's energy in 14 linear layers",
                                       "the same weights", "other weights"};
    for (int i = 0; i < 3; i++) {
        struct command_result r = {0};
        assert_int_equal(command_run(lines[i], NULL, NULL, 120, &r, &f->e), ST_OK);
        if (r.status != 0 || !strstr(text_str(&r.out), says[i]))
            fail_msg("\"%s%s\" does not say \"%s\"", text_str(&r.out), text_str(&r.err), says[i]);
        if (i > 0) assert_non_null(strstr(text_str(&r.out), "% of |W|"));
        command_free(&r);
    }
    free(tuned), free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(test_svd),
        FIXTURE_TEST(test_svd_is_nearest),
        FIXTURE_TEST(test_gives_back),
        FIXTURE_TEST(test_gives_back_tied),
        FIXTURE_TEST(test_below_the_rank),
        FIXTURE_TEST(test_refuses),
        FIXTURE_TEST(test_base_mark),
        FIXTURE_TEST(test_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
