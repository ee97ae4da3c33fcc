/* Integer products with AVX-VNNI, the form that processors without AVX512 have. */
#if defined(__x86_64__)
#include "quant/matmul_vnni.h"

#define DPBUSD _mm256_dpbusd_avx_epi32
#include "quant/matmul_vnni_256.inc"

VNNI_KERNEL(Q4_0, q4_0, avxvnni)
VNNI_KERNEL(Q4_1, q4_1, avxvnni)
VNNI_KERNEL(Q8_0, q8_0, avxvnni)
VNNI_KERNEL(Q8C, q8c, avxvnni)

#else
typedef int drllm_matmul_avxvnni_is_empty;
#endif
