/* A program that has functions of its own by the names of XNNPACK's, pthreadpool's, cpuinfo's and utf8proc's, linked with
 * answer.c (main renamed) and libdrllm-full.a: each side must reach its own only. */
#include <stdio.h>

int drllm_answer_main(int argc, char **argv); /* answer.c's */
int xnn_initialize(const void *allocator);
void *pthreadpool_create(size_t n_threads);
int cpuinfo_initialize(void);
int utf8proc_category(int character);

static unsigned n_calls;

int xnn_initialize(const void *allocator) {
    (void)allocator;
    n_calls++;
    return 1001;
}

void *pthreadpool_create(size_t n_threads) {
    (void)n_threads;
    n_calls++;
    return &n_calls;
}

int cpuinfo_initialize(void) {
    n_calls++;
    return 1002;
}

int utf8proc_category(int character) {
    n_calls++;
    return character + 1003;
}

int main(int argc, char **argv) {
    const int code = drllm_answer_main(argc, argv);
    if (code != 0 || n_calls != 0) {
        fprintf(stderr, "beside_names: code %d, %u calls came to the wrong functions\n", code, n_calls);
        return 1;
    }
    return xnn_initialize(NULL) == 1001 && pthreadpool_create(1) == &n_calls && cpuinfo_initialize() == 1002 &&
                   utf8proc_category(0) == 1003 && n_calls == 4
               ? 0
               : 1;
}
