/* Elementary functions in double, the same bits on every machine: only +, -, *, / and integer work on the bits.
 * Accurate to a few units in the last place, which is far beyond what float results need. */
#ifndef DRLLM_RUNTIME_MATH_H
#define DRLLM_RUNTIME_MATH_H

/* |x| up to about 1.6e6 as accurate as the others; up to 1e8 within 2e-8. */
void drllm_sin_cos(double x, double *sine, double *cosine);
/* 0 below -708, held at exp(709) above. */
double drllm_exp(double x);
/* x > 0 and normal. */
double drllm_log(double x);

#endif
