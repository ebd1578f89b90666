/* Chains of calls and the graphs that they become (kernels/cuda/graphs.cuh), in the simulator: what comes out is to the
 * bit what the same calls give one by one, whatever changes from chain to chain. */
#include "kernels/cuda/graphs.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include <cmocka.h>
}

enum { MOST = 64, C = 32 };

struct desk {
    struct backend *be;
    char *memory;
    struct tensor table; // (MOST,C)
    struct tensor W;     // (C,C)
    struct tensor ids;   // (MOST) I32
};

static struct desk desk_new(bool at_once) {
    static float numbers[MOST * C], weights[C * C];
    struct err e = {};
    struct desk d = {};
    if (at_once) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    d.be = backend_new("cuda", 1, &e);
    unsetenv("CUDA_LAUNCH_BLOCKING");
    assert_non_null(d.be);
    d.memory = static_cast<char *>(backend_alloc(d.be, 1 << 20));
    for (int i = 0; i < MOST * C; i++) numbers[i] = static_cast<float>(i % 97) / 97.0f - 0.5f;
    for (int i = 0; i < C * C; i++) weights[i] = (static_cast<float>(i % 31) / 31.0f - 0.5f) / C;
    d.table = tensor_over2(d.memory, F32, MOST, C);
    d.W = tensor_over2(d.memory + sizeof numbers, F32, C, C);
    d.ids = tensor_over1(d.memory + sizeof numbers + sizeof weights, I32, MOST);
    backend_upload(d.be, &d.table, numbers);
    backend_upload(d.be, &d.W, weights);
    return d;
}

static void desk_free(struct desk *d) {
    backend_release(d->be, d->memory);
    backend_free(d->be);
}

enum : size_t { ROOM = 64 << 10 }; // of x, y and what is kept of x

/* Rows of the table, sums, and products if so wished: an upload, a chain of 3 + layers (with products twice as many)
 * calls, a download. */
struct step {
    int64_t N, shift; // rows; x and y begin so many rows further on
    int layers;
    bool products;
    int32_t first_id;
};

static const char *run_step(const struct desk *d, const struct step *s, float *got) {
    static struct err e;
    char *room = d->memory + 4 * ROOM;
    struct tensor x = tensor_over2(room + s->shift * C * 4, F32, s->N, C);
    struct tensor y = tensor_over2(room + ROOM + s->shift * C * 4, F32, s->N, C);
    struct tensor all = tensor_over1(room, U8, 2 * ROOM), ids = tensor_rows(&d->ids, 0, s->N);
    struct tensor longest = tensor_over2(room, F32, MOST, C), kept = tensor_over2(room + 2 * ROOM, F32, MOST, C);
    int32_t numbers[MOST];
    for (int i = 0; i < MOST; i++) numbers[i] = s->first_id + i * 7 % 11;
    e = {};
    backend_upload(d->be, &d->ids, numbers);
    op_zero(d->be, &all);
    op_embed_forward(d->be, &x, &d->table, &ids);
    for (int i = 0; i < s->layers; i++) {
        if (s->products) op_linear_forward(d->be, &y, &x, &d->W, nullptr, 1);
        op_add(d->be, &x, &y, &x);
    }
    op_copy(d->be, &kept, &longest);
    backend_download(d->be, got, &kept);
    backend_sync(d->be, &e);
    return e.text;
}

/* Each step by chains and one by one. Returns how many chains of each step went as graphs. */
static void compare(const struct step *steps, int count, int64_t *graphs) {
    struct desk chains = desk_new(false), singles = desk_new(true);
    static float a[MOST * C], b[MOST * C];
    for (int i = 0; i < count; i++) {
        int64_t before = graphs_launched(chains.be);
        assert_string_equal(run_step(&chains, steps + i, a), "");
        assert_string_equal(run_step(&singles, steps + i, b), "");
        assert_memory_equal(a, b, sizeof a);
        graphs[i] = graphs_launched(chains.be) - before;
        assert_int_equal(graphs_launched(singles.be), 0);
    }
    desk_free(&chains), desk_free(&singles);
}

/* The first time a product is tried out by itself, so only the second chain is like the third. */
static void test_what_comes_again_is_a_graph(void **) {
    const struct step s = {5, 0, 4, true, 3}, steps[] = {s, s, s, s, s};
    int64_t graphs[5];
    compare(steps, 5, graphs);
    for (int i = 0; i < 5; i++) assert_int_equal(graphs[i], i < 2 ? 0 : 1);
}

/* Rows, grids and addresses change in the nodes. */
static void test_what_changes_goes_into_the_nodes(void **) {
    const struct step steps[] = {{5, 0, 8, false, 0},  {64, 0, 8, false, 1}, {1, 7, 8, false, 2},
                                 {17, 3, 8, false, 3}, {5, 0, 8, false, 4},  {5, 0, 8, false, 4}};
    int64_t graphs[6];
    compare(steps, 6, graphs);
    for (int i = 0; i < 6; i++) assert_int_equal(graphs[i], i == 0 ? 0 : 1);
}

/* Products of other shapes are other graphs, which stay while others come between. */
static void test_shapes_in_turn(void **) {
    const struct step a = {5, 0, 4, true, 0}, b = {12, 0, 4, true, 1};
    const struct step steps[] = {a, b, a, b, a, b, b, a};
    int64_t graphs[8];
    compare(steps, 8, graphs);
    for (int i = 0; i < 8; i++) assert_int_equal(graphs[i], i < 4 ? 0 : 1);
}

static void test_many_calls_are_several_chains(void **) {
    const struct step a = {3, 0, 600, false, 0}, shorter = {3, 0, 599, false, 0};
    const struct step steps[] = {a, a, shorter, shorter, a};
    int64_t graphs[5];
    compare(steps, 5, graphs);
    assert_int_equal(graphs[0], 0);
    assert_int_equal(graphs[1], 3);
    assert_int_equal(graphs[2], 2); // its last chain is another
    assert_int_equal(graphs[3], 3);
    assert_int_equal(graphs[4], 3);
}

/* More shapes than there are graphs: those in use stay, and give way when they have not been wanted for long. */
static void test_old_graphs_give_way(void **) {
    enum { SHAPES = 140, GRAPHS = 128, LONG = 4 * GRAPHS };
    static float got[MOST * C];
    struct desk d = desk_new(false);
    struct step s = {1, 0, 8, false, 0};
    int64_t made = 0;
    for (s.layers = 8; s.layers < 8 + SHAPES; s.layers++)
        for (int again = 0; again < 2; again++) assert_string_equal(run_step(&d, &s, got), "");
    made = graphs_launched(d.be);
    assert_int_equal(made, GRAPHS);
    for (int i = 0; i < LONG; i++) { // one of them alone
        s.layers = 9;
        assert_string_equal(run_step(&d, &s, got), "");
    }
    assert_int_equal(graphs_launched(d.be), made + LONG);
    s.layers = 8 + SHAPES;
    for (int again = 0; again < 3; again++) assert_string_equal(run_step(&d, &s, got), "");
    assert_int_equal(graphs_launched(d.be), made + LONG + 2);
    desk_free(&d);
}

/* A graph looks at the indices of its own step. */
static void test_a_wrong_index_is_named(void **) {
    static float got[MOST * C];
    struct desk d = desk_new(false);
    struct step s = {5, 0, 8, false, 0};
    for (int i = 0; i < 4; i++) assert_string_equal(run_step(&d, &s, got), "");
    assert_int_equal(graphs_launched(d.be), 3);
    s.first_id = MOST - 10;
    assert_string_equal(run_step(&d, &s, got), "embed_forward: index 64 at position 3, wanted -1 .. 63");
    desk_free(&d);
}

/* A driver that makes no graphs is none the worse for it. */
static void test_without_graphs(void **) {
    const struct step s = {5, 0, 4, true, 3}, steps[] = {s, s, s, s};
    int64_t graphs[4];
    setenv("GRAFT_SIM_GRAPHS", "0", 1);
    compare(steps, 4, graphs);
    unsetenv("GRAFT_SIM_GRAPHS");
    for (int i = 0; i < 4; i++) assert_int_equal(graphs[i], 0);
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_comes_again_is_a_graph),
        cmocka_unit_test(test_what_changes_goes_into_the_nodes),
        cmocka_unit_test(test_shapes_in_turn),
        cmocka_unit_test(test_many_calls_are_several_chains),
        cmocka_unit_test(test_old_graphs_give_way),
        cmocka_unit_test(test_a_wrong_index_is_named),
        cmocka_unit_test(test_without_graphs),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
