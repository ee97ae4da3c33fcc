/* The elementary functions against the C library's, and the rotary embedding against its formula. */
#include "tests/tests.h"

#include "runtime/math.h"
#include "runtime/rope.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* In [0, 1), 53 bits. */
static double random_double(uint64_t *random) {
    const uint64_t high = drllm_random(random);
    return (double)((high << 32 | drllm_random(random)) >> 11) * 0x1p-53;
}

static size_t n_samples(void) {
    return drllm_test_is_fast() ? 20000 : 300000;
}

static void check(const char *function, double x, double value, double exact, double bound) {
    if (!(fabs(value - exact) <= bound)) {
        fail_msg("%s(%.17g) is %.17g, expected %.17g to within %g", function, x, value, exact, bound);
    }
}

static void check_sin_cos(double x, double bound) {
    double sine;
    double cosine;
    drllm_sin_cos(x, &sine, &cosine);
    check("sin", x, sine, sin(x), bound);
    check("cos", x, cosine, cos(x), bound);
    assert_true(fabs(sine) <= 1.0 && fabs(cosine) <= 1.0);
}

/* Up to 2^20 quarter turns the reduction loses nothing, which is past every position that a model has. Beyond, the
 * products with the parts of pi/2 are rounded, but floats do not see it. */
static void test_sin_cos(void **state) {
    (void)state;
    uint64_t random = 1;
    const double exact = ldexp(M_PI_2, 20);
    for (size_t i = 0; i < n_samples(); i++) {
        const double sign = i % 2 == 0 ? 1.0 : -1.0;
        check_sin_cos(sign * random_double(&random) * exact, 3.0 * DBL_EPSILON);
        check_sin_cos(sign * random_double(&random) * 10.0, 2.0 * DBL_EPSILON);
        check_sin_cos(sign * ldexp(random_double(&random), -(int)(i % 60)), 2.0 * DBL_EPSILON);
        check_sin_cos(sign * floor(random_double(&random) * 131072.0), 3.0 * DBL_EPSILON);
        check_sin_cos(sign * random_double(&random) * 1e8, 2e-8);
    }
    for (int n = -1000; n <= 1000; n++) { /* the quadrants' borders, where one of the two is nearly zero */
        check_sin_cos(n * M_PI_4, 2.0 * DBL_EPSILON);
        check_sin_cos(nextafter(n * M_PI_4, 1e9), 2.0 * DBL_EPSILON);
    }
    double sine;
    double cosine;
    drllm_sin_cos(0.0, &sine, &cosine);
    assert_true(sine == 0.0 && cosine == 1.0);
}

static void test_exp(void **state) {
    (void)state;
    uint64_t random = 2;
    for (size_t i = 0; i < n_samples(); i++) {
        const double wide = random_double(&random) * 1417.0 - 708.0;
        const double narrow = ldexp(random_double(&random) - 0.5, -(int)(i % 40));
        check("exp", wide, drllm_exp(wide), exp(wide), exp(wide) * 4.0 * DBL_EPSILON);
        check("exp", narrow, drllm_exp(narrow), exp(narrow), exp(narrow) * 2.0 * DBL_EPSILON);
    }
    assert_true(drllm_exp(0.0) == 1.0);
    static const double below[] = {-708.0, -708.5, -1e3, -1e300, -INFINITY};
    for (size_t i = 0; i < LENGTH(below); i++) {
        assert_true(drllm_exp(below[i]) == 0.0);
    }
    const double most = drllm_exp(709.0);
    check("exp", 709.0, most, exp(709.0), exp(709.0) * 4.0 * DBL_EPSILON);
    assert_true(drllm_exp(709.5) == most && drllm_exp(1e300) == most && drllm_exp(INFINITY) == most);
}

static void test_log(void **state) {
    (void)state;
    uint64_t random = 3;
    for (size_t i = 0; i < n_samples(); i++) {
        const double any = ldexp(1.0 + random_double(&random), (int)(drllm_random(&random) % 2044) - 1022);
        const double near_one = 1.0 + ldexp(random_double(&random) - 0.5, -(int)(i % 40));
        check("log", any, drllm_log(any), log(any), fabs(log(any)) * 4.0 * DBL_EPSILON);
        check("log", near_one, drllm_log(near_one), log(near_one), fabs(log(near_one)) * 4.0 * DBL_EPSILON);
    }
    assert_true(drllm_log(1.0) == 0.0);
    check("log", DBL_MIN, drllm_log(DBL_MIN), log(DBL_MIN), 800.0 * DBL_EPSILON);
    check("log", DBL_MAX, drllm_log(DBL_MAX), log(DBL_MAX), 800.0 * DBL_EPSILON);
    check("log", M_SQRT2, drllm_log(M_SQRT2), log(M_SQRT2), DBL_EPSILON);
}

/* The same bits with every compiler and on every machine: checksums that were recorded once. */
static void test_golden(void **state) {
    (void)state;
    static const uint64_t golden[4] = {0xa54895fd8324ee9c, 0x45b8b4ac471e2a80, 0x1f2b7b4dd5801136, 0x50c8fa2393428864};
    uint64_t sums[LENGTH(golden)] = {DRLLM_CHECKSUM_START, DRLLM_CHECKSUM_START, DRLLM_CHECKSUM_START,
                                     DRLLM_CHECKSUM_START};
    uint64_t random = 4;
    for (size_t i = 0; i < 5000; i++) {
        double values[4];
        drllm_sin_cos(random_double(&random) * 1e6 - 5e5, &values[0], &values[1]);
        values[2] = drllm_exp(random_double(&random) * 1420.0 - 710.0);
        values[3] = drllm_log(random_double(&random) + 0x1p-60);
        for (size_t k = 0; k < LENGTH(golden); k++) {
            sums[k] = drllm_checksum(sums[k], &values[k], 2);
        }
    }
    for (size_t k = 0; k < LENGTH(golden); k++) {
        if (sums[k] != golden[k]) {
            fail_msg("checksum %zu is 0x%016llx", k, (unsigned long long)sums[k]);
        }
    }
}

struct rope_case {
    size_t n_rot;
    double theta, linear_factor;
    bool has_factors;
};

static const struct rope_case rope_cases[] = {
    {64, 10000.0, 1.0, false}, {64, 100000.0, 1.0, false}, {128, 500000.0, 1.0, true}, {64, 500000.0, 1.0, true},
    {80, 10000.0, 4.0, false}, {32, 10000.0, 2.5, true},   {2, 10000.0, 1.0, false},   {16, 1e9, 8.0, true},
};

static long double exact_frequency(const struct rope_case *rope, size_t i, const float *factors) {
    const long double power = powl((long double)rope->theta, -2.0L * (long double)i / (long double)rope->n_rot);
    return power / ((long double)rope->linear_factor * (rope->has_factors ? (long double)factors[i] : 1.0L));
}

static void test_rope_frequencies(void **state) {
    (void)state;
    enum { MAX_PAIRS = 64 };
    uint64_t random = 5;
    float factors[MAX_PAIRS];
    for (size_t i = 0; i < MAX_PAIRS; i++) {
        factors[i] = 1.0f + (float)(drllm_random(&random) % 64) / 8.0f;
    }
    for (size_t k = 0; k < LENGTH(rope_cases); k++) {
        const struct rope_case *rope = &rope_cases[k];
        const size_t n_pairs = rope->n_rot / 2;
        double frequency[MAX_PAIRS + 1];
        frequency[n_pairs] = 123.0;
        drllm_rope_frequencies(frequency, rope->n_rot, rope->theta, rope->linear_factor,
                               rope->has_factors ? factors : NULL);
        assert_true(frequency[n_pairs] == 123.0);
        for (size_t i = 0; i < n_pairs; i++) {
            const double exact = (double)exact_frequency(rope, i, factors);
            /* The exponent, up to ln(theta), is rounded before exp. */
            check("frequency", (double)i, frequency[i], exact, exact * (8.0 + 2.0 * log(rope->theta)) * DBL_EPSILON);
        }
    }
}

static void test_rope_angles(void **state) {
    (void)state;
    enum { MAX_PAIRS = 64 };
    static const size_t positions[] = {0, 1, 2, 3, 63, 64, 511, 2047, 8191, 32767, 131071};
    struct drllm_fence fence = DRLLM_FENCE_INIT;
    float factors[MAX_PAIRS];
    for (size_t i = 0; i < MAX_PAIRS; i++) {
        factors[i] = 1.0f + (float)i / 4.0f;
    }
    for (size_t k = 0; k < LENGTH(rope_cases) * LENGTH(positions); k++) {
        const struct rope_case *rope = &rope_cases[k / LENGTH(positions)];
        const size_t position = positions[k % LENGTH(positions)];
        const size_t n_pairs = rope->n_rot / 2;
        double frequency[MAX_PAIRS];
        drllm_rope_frequencies(frequency, rope->n_rot, rope->theta, rope->linear_factor,
                               rope->has_factors ? factors : NULL);
        float *cos_sin = drllm_fence_place(&fence, rope->n_rot * sizeof *cos_sin, DRLLM_FENCE_BEHIND);
        drllm_rope_angles(cos_sin, frequency, n_pairs, position);
        drllm_fence_check(&fence);
        for (size_t i = 0; i < n_pairs; i++) {
            const long double angle = (long double)position * exact_frequency(rope, i, factors);
            /* Half a unit of float, and the angle's own error. */
            const double bound = 0x1p-25 + (double)angle * 64.0 * DBL_EPSILON;
            check("cosine", (double)position, cos_sin[2 * i], (double)cosl(angle), bound);
            check("sine", (double)position, cos_sin[2 * i + 1], (double)sinl(angle), bound);
        }
    }
    drllm_fence_free(&fence);
}

int drllm_test_math(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sin_cos),          cmocka_unit_test(test_exp),         cmocka_unit_test(test_log),
        cmocka_unit_test(test_rope_frequencies), cmocka_unit_test(test_rope_angles), cmocka_unit_test(test_golden),
    };
    return drllm_run_group("math", tests, NULL, NULL);
}
