#include "runtime/math.h"

#include <stdint.h>
#include <string.h>

static double from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Adding and subtracting it rounds a double of magnitude below 2^51 to the nearest integer. */
static const double round_shift = 0x1.8p52;

/* Coefficients and the three-part pi/2 of Cody and Waite's reduction: FreeBSD msun, k_sin.c, k_cos.c, e_rem_pio2.c. */
void drllm_sin_cos(double x, double *sine, double *cosine) {
    const double n = x * 6.36619772367581382433e-01 + round_shift - round_shift;
    double r = x - n * 1.57079632673412561417e+00;
    r = r - n * 6.07710050630396597660e-11;
    r = r - n * 2.02226624879595063154e-21;
    const double z = r * r;

    double s = 1.58969099521155010221e-10;
    s = s * z - 2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z - 1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z - 1.66666666666666324348e-01;
    s = r + r * (z * s);

    double c = -1.13596475577881948265e-11;
    c = c * z + 2.08757232129817482790e-09;
    c = c * z - 2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z - 1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = 1.0 - 0.5 * z + z * z * c;

    const int quadrant = (int)((long long)n & 3);
    *sine = (quadrant & 1) != 0 ? c : s;
    *cosine = (quadrant & 1) != 0 ? s : c;
    if (quadrant == 2 || quadrant == 3) {
        *sine = -*sine;
    }
    if (quadrant == 1 || quadrant == 2) {
        *cosine = -*cosine;
    }
}

double drllm_exp(double x) {
    if (!(x > -708.0)) {
        return 0.0;
    }
    const double held = x < 709.0 ? x : 709.0;
    const double k = held * 1.44269504088896338700e+00 + round_shift - round_shift;
    double r = held - k * 6.93147180369123816490e-01;
    r = r - k * 1.90821492927058770002e-10;
    /* Taylor's series to r^13 / 13!; |r| <= 0.3466. */
    double p = 1.0;
    for (int i = 13; i >= 1; i--) {
        p = 1.0 + p * r / i;
    }
    return p * from_bits((uint64_t)((int64_t)k + 1023) << 52);
}

double drllm_log(double x) {
    uint64_t bits = to_bits(x);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    double m = from_bits((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.41421356237309504880) {
        m *= 0.5;
        exponent++;
    }
    /* log m = 2 atanh(z) */
    const double z = (m - 1.0) / (m + 1.0);
    const double zz = z * z;
    double series = 0.0;
    for (int i = 23; i >= 1; i -= 2) {
        series = series * zz + 1.0 / i;
    }
    return (double)exponent * 1.90821492927058770002e-10 + 2.0 * z * series +
           (double)exponent * 6.93147180369123816490e-01;
}
