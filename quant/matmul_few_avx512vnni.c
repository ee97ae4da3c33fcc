/* Integer products of few tokens with AVX512-VNNI, see matmul_avx512vnni.c. */
#if defined(__x86_64__)
#include "quant/matmul_vnni.h"

#define DPBUSD _mm256_dpbusd_epi32
#include "quant/matmul_vnni_256.inc"

VNNI_KERNEL(Q4_0, q4_0, few_avx512vnni)
VNNI_KERNEL(Q4_1, q4_1, few_avx512vnni)
VNNI_KERNEL(Q8_0, q8_0, few_avx512vnni)
VNNI_KERNEL(Q8C, q8c, few_avx512vnni)

#else
typedef int drllm_matmul_few_avx512vnni_is_empty;
#endif
