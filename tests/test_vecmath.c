/* The vector functions against libm in double, over the whole range of F32, and their values at the edges. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cpu/vecmath.h"

/* A prime step through the bits of F32 meets every exponent with some ten thousand fractions, both signs. */
enum { STRIDE = 977 };

/* The distance in units of the last place of the exact result; subnormal results have the smallest unit. */
static double units(float got, double want) {
    if ((double)got == want || (float)want == got) return 0;
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1, exponent > -125 ? exponent - 24 : -149);
}

static void check(float (*fn)(float), double (*exact)(double), double most) {
    double worst = 0;
    float worst_at = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += STRIDE) {
        float x = float_of_bits((uint32_t)bits), y = fn(x);
        if (isnan(x)) {
            if (!isnan(y)) fail_msg("NaN became %g", (double)y);
            continue;
        }
        double u = units(y, exact((double)x));
        if (!(u <= worst)) worst = u, worst_at = x;
    }
    print_message("worst: %.2f units at %.9g\n", worst, (double)worst_at);
    if (!(worst <= most)) fail_msg("%.2f units at %.9g, wanted at most %.2f", worst, (double)worst_at, most);
}

static float exp_of(float x) { return vm_exp(x); }
static float erf_of(float x) { return vm_erf(x); }

static void test_exp(void **state) {
    (void)state;
    check(exp_of, exp, 1.5);
    assert_true(vm_exp(0) == 1 && vm_exp(-INFINITY) == 0 && isinf(vm_exp(INFINITY)));
    assert_true(vm_exp(-104) == 0 && vm_exp(-103) > 0 && isinf(vm_exp(88.8f)) && isfinite(vm_exp(88.7f)));
}

static void test_erf(void **state) {
    (void)state;
    check(erf_of, erf, 2);
    assert_true(vm_erf(INFINITY) == 1 && vm_erf(-INFINITY) == -1 && vm_erf(0) == 0);
}

static void test_sigmoid(void **state) {
    (void)state;
    assert_true(vm_sigmoid(0) == 0.5f && vm_sigmoid(100) == 1 && vm_sigmoid(-200) == 0 && isnan(vm_sigmoid(NAN)));
    for (float x = -80; x < 80; x += 0.0137f)
        assert_true(fabs((double)vm_sigmoid(x) * (1 + exp(-(double)x)) - 1) < 4 * 0x1p-24);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_erf),
        cmocka_unit_test(test_sigmoid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
