/* A program with an XNNPACK of its own, as one with TensorFlow Lite has, linked with answer.c (main renamed) and
 * libdrllm-full.a: both libraries are there twice, and both copies work. */
#include <pthreadpool.h>
#include <xnnpack.h>

#include <math.h>
#include <stdio.h>

int drllm_answer_main(int argc, char **argv); /* answer.c's */

/* A product of 1 x 4 with 4 x 4 (the identity, times 2, and a bias), by the program's own XNNPACK. */
static int multiply(void) {
    enum { N = 4 };
    const float input[N] = {1, -2, 3, -4}, bias[N] = {10, 20, 30, 40};
    float kernel[N * N] = {0}, output[N] = {0};
    pthreadpool_t pool = pthreadpool_create(2);
    xnn_operator_t product = NULL;
    for (size_t i = 0; i < N; i++) {
        kernel[i * N + i] = 2;
    }
    int done = pool != NULL && pthreadpool_get_threads_count(pool) == 2 && xnn_initialize(NULL) == xnn_status_success &&
               xnn_create_fully_connected_nc_f32(N, N, N, N, kernel, bias, -INFINITY, INFINITY, 0, NULL, NULL,
                                                 &product) == xnn_status_success &&
               xnn_reshape_fully_connected_nc_f32(product, 1, pool) == xnn_status_success &&
               xnn_setup_fully_connected_nc_f32(product, input, output) == xnn_status_success &&
               xnn_run_operator(product, pool) == xnn_status_success;
    for (size_t i = 0; i < N; i++) {
        done = done && output[i] == 2 * input[i] + bias[i];
    }
    xnn_delete_operator(product);
    pthreadpool_destroy(pool);
    return done;
}

int main(int argc, char **argv) {
    if (!multiply() || drllm_answer_main(argc, argv) != 0 || !multiply()) {
        fputs("beside_xnnpack: failed\n", stderr);
        return 1;
    }
    return xnn_deinitialize() == xnn_status_success ? 0 : 1;
}
