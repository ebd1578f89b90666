#include "tests/expected.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

void expected_open(struct expected *x, const char *folder) {
    struct err e = {0};
    char *tensors = path_join(folder, "expected.safetensors"), *noise = path_join(folder, "expected.json");
    *x = (struct expected){0};
    if (st_open_file(&x->set, tensors, &e) != ST_OK) fail_msg("%s", e.text);
    x->noise = json_read(noise, &e);
    if (!x->noise) fail_msg("%s", e.text);
    free(tensors), free(noise);
}

void expected_close(struct expected *x) {
    cJSON_Delete(x->noise);
    st_close(&x->set);
}

const void *expected_data(const struct expected *x, const char *name) {
    const struct st_entry *t = st_find(&x->set, name);
    if (!t) fail_msg("%s is not there", name);
    return t->data;
}

int64_t expected_count(const struct expected *x, const char *name) {
    return (int64_t)(st_find(&x->set, name)->bytes / st_type_size(st_find(&x->set, name)->type));
}

double vector_norm(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

double vector_distance(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum);
}

double expected_tolerance(const struct expected *x, const char *name) {
    return 10 * json_get(x->noise, name)->valuedouble;
}

void expected_like(const struct expected *x, const char *name, const char *what, const float *got, int64_t n) {
    char *key = mem_format("%s:%s", name, what);
    const float *want = expected_data(x, key);
    assert_int_equal(expected_count(x, key), n);
    double far = vector_distance(got, want, n) / vector_norm(want, n);
    if (!(far <= expected_tolerance(x, name)))
        fail_msg("%s: distance %g, wanted %g", key, far, expected_tolerance(x, name));
    free(key);
}

static double largest_norm(const struct expected *x, const char *name) {
    double most = 0;
    for (size_t i = 0; i < x->set.count; i++) {
        const struct st_entry *t = &x->set.entries[i];
        size_t k = strlen(name);
        if (strncmp(t->name, name, k) || t->name[k] != ':' || text_ends(t->name, ":loss")) continue;
        most = fmax(most, vector_norm(t->data, (int64_t)(t->bytes / sizeof(float))));
    }
    return most;
}

void expected_gradients(const struct expected *x, const char *name, const struct adapter *a) {
    double most = largest_norm(x, name), tol = expected_tolerance(x, name);
    size_t wanted = 0;
    for (size_t i = 0; i < x->set.count; i++)
        wanted += text_starts(x->set.entries[i].name, name) && x->set.entries[i].name[strlen(name)] == ':';
    assert_int_equal(a->count, wanted - 1); // but for the loss
    for (int64_t i = 0; i < a->count; i++) {
        char *key = mem_format("%s:%s", name, a->trained[i].key);
        const float *want = expected_data(x, key), *got = a->trained[i].grad.data; // the CPU's memory is the host's
        int64_t n = tensor_count(&a->trained[i].grad);
        assert_int_equal(expected_count(x, key), n);
        double far = vector_distance(got, want, n), allowed = tol * (vector_norm(want, n) + 1e-3 * most);
        if (!(far <= allowed)) fail_msg("%s: distance %g of %g, wanted %g", key, far, vector_norm(want, n), allowed);
        free(key);
    }
}
