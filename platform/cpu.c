#include "platform/cpu.h"

#include <cpuinfo.h>

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__))
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* ---- Features ---- */

static pthread_once_t detect_once = PTHREAD_ONCE_INIT;
static uint64_t detected; /* kept, since cpuinfo's own answer may be restricted later */

/* What the kernel says, for where cpuinfo cannot start: it needs /sys, which containers and sandboxes may hide. */
static uint64_t kernel_features(void) {
#if defined(__linux__) && defined(__aarch64__)
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    enum { I8MM = 1 << 13 }; /* HWCAP2_I8MM, which older headers lack */
    return ((first & HWCAP_ASIMD) != 0 ? DRLLM_CPU_NEON : 0u) |
           ((first & HWCAP_ASIMDDP) != 0 ? DRLLM_CPU_DOTPROD : 0u) |
           ((first & HWCAP_ASIMDHP) != 0 ? DRLLM_CPU_FP16 : 0u) | ((second & I8MM) != 0 ? DRLLM_CPU_I8MM : 0u);
#elif defined(__linux__) && defined(__arm__)
    const unsigned long needed = HWCAP_NEON | HWCAP_VFPv4;
    return (getauxval(AT_HWCAP) & needed) == needed ? DRLLM_CPU_NEON : 0u;
#else
    return 0;
#endif
}

static void detect(void) {
    if (!cpuinfo_initialize()) {
        detected = kernel_features();
        return;
    }
    const bool avx512 = cpuinfo_has_x86_avx512f() && cpuinfo_has_x86_avx512bw() && cpuinfo_has_x86_avx512dq() &&
                        cpuinfo_has_x86_avx512vl() && cpuinfo_has_x86_avx512cd();
    const struct {
        bool has;
        uint64_t feature;
    } answers[] = {
        {cpuinfo_has_x86_avx2(), DRLLM_CPU_AVX2},
        {cpuinfo_has_x86_fma3(), DRLLM_CPU_FMA},
        {cpuinfo_has_x86_f16c(), DRLLM_CPU_F16C},
        {cpuinfo_has_x86_avxvnni(), DRLLM_CPU_AVXVNNI},
        {avx512, DRLLM_CPU_AVX512},
        {avx512 && cpuinfo_has_x86_avx512vnni(), DRLLM_CPU_AVX512VNNI},
        {cpuinfo_has_arm_neon() && cpuinfo_has_arm_neon_fp16(), DRLLM_CPU_NEON},
        {cpuinfo_has_arm_neon_dot(), DRLLM_CPU_DOTPROD},
        {cpuinfo_has_arm_i8mm(), DRLLM_CPU_I8MM},
        {cpuinfo_has_arm_neon_fp16_arith(), DRLLM_CPU_FP16},
    };
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        detected |= answers[i].has ? answers[i].feature : 0;
    }
}

uint64_t drllm_cpu_detect(void) {
    pthread_once(&detect_once, detect);
    return detected;
}

/* The fields are those that XNNPACK asks for. What has no bit of its own goes with the feature that came no later. */
void drllm_cpu_restrict_cpuinfo(uint64_t mask) {
    (void)drllm_cpu_detect();
    if (!cpuinfo_initialize()) {
        return;
    }
#if CPUINFO_ARCH_X86 || CPUINFO_ARCH_X86_64
    struct cpuinfo_x86_isa *isa = &cpuinfo_isa;
    const bool avx2 = (mask & DRLLM_CPU_AVX2) != 0;
    const bool avx512 = avx2 && (mask & DRLLM_CPU_AVX512) != 0;
    const bool avx512vnni = avx512 && (mask & DRLLM_CPU_AVX512VNNI) != 0;
    const bool avxvnni = avx2 && (mask & DRLLM_CPU_AVXVNNI) != 0;
    isa->avx = isa->avx && (mask & (DRLLM_CPU_AVX2 | DRLLM_CPU_FMA | DRLLM_CPU_F16C)) != 0;
    isa->fma3 = isa->fma3 && (mask & DRLLM_CPU_FMA) != 0;
    isa->f16c = isa->f16c && (mask & DRLLM_CPU_F16C) != 0;
    isa->avx2 = isa->avx2 && avx2;
    isa->avxvnni = isa->avxvnni && avxvnni;
    isa->avx_vnni_int8 = isa->avx_vnni_int8 && avxvnni;
    isa->avx512f = isa->avx512f && avx512;
    isa->avx512bw = isa->avx512bw && avx512;
    isa->avx512dq = isa->avx512dq && avx512;
    isa->avx512vl = isa->avx512vl && avx512;
    isa->avx512cd = isa->avx512cd && avx512;
    isa->avx512vnni = isa->avx512vnni && avx512vnni;
    isa->avx512vbmi = isa->avx512vbmi && avx512vnni;
    isa->avx512fp16 = isa->avx512fp16 && avx512vnni;
    isa->amx_int8 = isa->amx_int8 && avx512vnni;
    isa->gfni = isa->gfni && (avx512vnni || avxvnni);
#elif CPUINFO_ARCH_ARM || CPUINFO_ARCH_ARM64
    struct cpuinfo_arm_isa *isa = &cpuinfo_isa;
    isa->dot = isa->dot && (mask & DRLLM_CPU_DOTPROD) != 0;
    isa->fp16arith = isa->fp16arith && (mask & DRLLM_CPU_FP16) != 0;
    isa->fhm = isa->fhm && isa->fp16arith;
#if CPUINFO_ARCH_ARM64
    const bool i8mm = (mask & DRLLM_CPU_I8MM) != 0;
    isa->i8mm = isa->i8mm && i8mm;
    isa->bf16 = isa->bf16 && i8mm;
    isa->sve = isa->sve && i8mm;
    isa->sve2 = isa->sve2 && i8mm;
    isa->sme = isa->sme && i8mm;
    isa->sme2 = isa->sme2 && i8mm;
#else
    isa->neon = isa->neon && (mask & DRLLM_CPU_NEON) != 0;
#endif
#else
    (void)mask;
#endif
}

/* ---- Masks as text ---- */

static const struct {
    const char *word;
    uint64_t mask;
} words[] = {
#define DRLLM_CPU_WORD(name, bit, text) {text, DRLLM_CPU_##name},
    DRLLM_CPU_FEATURES(DRLLM_CPU_WORD)
#undef DRLLM_CPU_WORD
        {"none", 0},
    {"all", UINT64_MAX},
    {"portable", 0},
    {"x86-avx2", DRLLM_CPU_AVX2 | DRLLM_CPU_FMA | DRLLM_CPU_F16C},
    {"arm-neon", DRLLM_CPU_NEON},
    {"arm-dotprod", DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD},
    {"arm-i8mm", DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD | DRLLM_CPU_I8MM},
};
enum { N_WORDS = sizeof words / sizeof words[0] };

static void copy_text(char *to, size_t size, const char *from, size_t n) {
    if (size == 0) {
        return;
    }
    n = n < size ? n : size - 1;
    memcpy(to, from, n);
    to[n] = '\0';
}

bool drllm_cpu_parse_mask(const char *text, uint64_t *mask, char *unknown, size_t unknown_size) {
    uint64_t parsed = 0;
    for (const char *word = text;; word++) {
        const size_t n = strcspn(word, ",");
        size_t i = 0;
        while (i < N_WORDS && (strncmp(words[i].word, word, n) != 0 || words[i].word[n] != '\0')) {
            i++;
        }
        if (i == N_WORDS) {
            copy_text(unknown, unknown_size, word, n);
            return false;
        }
        parsed |= words[i].mask;
        word += n;
        if (*word == '\0') {
            *mask = parsed;
            return true;
        }
    }
}

void drllm_cpu_format(uint64_t features, char *text, size_t size) {
    static const char *const names[] = {
#define DRLLM_CPU_NAME(name, bit, text) [bit] = (text),
        DRLLM_CPU_FEATURES(DRLLM_CPU_NAME)
#undef DRLLM_CPU_NAME
    };
    char list[256];
    size_t length = 0;
    for (size_t bit = 0; bit < sizeof names / sizeof names[0]; bit++) {
        if (names[bit] != NULL && (features >> bit & 1) != 0) {
            length += (size_t)snprintf(list + length, sizeof list - length, "%s%s", length != 0 ? "," : "", names[bit]);
        }
    }
    copy_text(text, size, length != 0 ? list : "none", length != 0 ? length : 4);
}

/* ---- Cores ---- */

/* The first number in a small text file, or -1. "max", as in cpu.max, is -1 too. */
static long read_numbers(const char *path, long *second) {
    char text[64];
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return -1;
    }
    const size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    char *end = text;
    const long first = strtol(text, &end, 10);
    if (end == text) {
        return -1;
    }
    if (second != NULL) {
        *second = strtol(end, NULL, 10);
    }
    return first;
}

/* Processors' worth of time that the control group (version 2) and those above it grant, or UINT32_MAX. */
static uint32_t group_quota(void) {
    char line[1024], path[1200];
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL) {
        return UINT32_MAX;
    }
    char *group = NULL;
    while (group == NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "0::/", 4) == 0) {
            group = line + 3;
            group[strcspn(group, "\n")] = '\0';
        }
    }
    fclose(file);
    uint32_t least = UINT32_MAX;
    for (char *end = group; group != NULL && end != NULL;) {
        long period = 0;
        (void)snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        const long quota = read_numbers(path, &period);
        if (quota > 0 && period > 0) {
            const long whole = quota / period > 0 ? quota / period : 1;
            least = whole < (long)least ? (uint32_t)whole : least;
        }
        end = strrchr(group, '/');
        if (end != NULL) {
            *end = '\0';
        }
    }
    return least;
}

/* The processors that this process may use; NULL if the system does not say. *size is for the CPU_*_S macros. */
static cpu_set_t *allowed_processors(size_t *size) {
    for (size_t n = 1024; n <= 1 << 20; n *= 2) {
        cpu_set_t *set = CPU_ALLOC(n);
        *size = CPU_ALLOC_SIZE(n);
        if (set == NULL) {
            return NULL;
        }
        if (sched_getaffinity(0, *size, set) == 0) {
            return set;
        }
        CPU_FREE(set); /* too small for this kernel, perhaps */
    }
    return NULL;
}

/* The small cores of systems with two kinds. */
static bool is_small(enum cpuinfo_uarch uarch) {
    switch (uarch) {
    case cpuinfo_uarch_cortex_a7:
    case cpuinfo_uarch_cortex_a32:
    case cpuinfo_uarch_cortex_a35:
    case cpuinfo_uarch_cortex_a53:
    case cpuinfo_uarch_cortex_a55r0:
    case cpuinfo_uarch_cortex_a55:
    case cpuinfo_uarch_cortex_a510:
    case cpuinfo_uarch_cortex_a520:
        return true;
    default:
        return false;
    }
}

struct cores {
    uint32_t n_all, n_big;
    long most_capacity;
};

/* Linux's own measure of how fast a core is, 1024 for the fastest; -1 where it has none. */
static long core_capacity(int processor) {
    char path[80];
    (void)snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpu_capacity", processor);
    return read_numbers(path, NULL);
}

static void count_core(struct cores *cores, const struct cpuinfo_core *core, int processor, bool measure) {
    const long capacity = core_capacity(processor);
    if (measure) {
        cores->most_capacity = capacity > cores->most_capacity ? capacity : cores->most_capacity;
        return;
    }
    cores->n_all++;
    if (!is_small(core->uarch) && (capacity <= 0 || capacity * 2 >= cores->most_capacity)) {
        cores->n_big++;
    }
}

static uint32_t usable_cores(void) {
    size_t set_size = 0;
    cpu_set_t *allowed = allowed_processors(&set_size);
    struct cores cores = {0, 0, 0};
    for (int pass = 0; pass < 2 && allowed != NULL && cpuinfo_initialize(); pass++) {
        for (uint32_t i = 0; i < cpuinfo_get_cores_count(); i++) {
            const struct cpuinfo_core *core = cpuinfo_get_core(i);
            for (uint32_t k = 0; k < core->processor_count; k++) {
                const int processor = cpuinfo_get_processor(core->processor_start + k)->linux_id;
                if (CPU_ISSET_S((size_t)processor, set_size, allowed)) {
                    count_core(&cores, core, processor, pass == 0);
                    break;
                }
            }
        }
    }
    uint32_t n = cores.n_big != 0 ? cores.n_big : cores.n_all;
    if (n == 0 && allowed != NULL) {
        n = (uint32_t)CPU_COUNT_S(set_size, allowed);
    }
    if (allowed != NULL) {
        CPU_FREE(allowed);
    }
    return n;
}

unsigned drllm_cpu_default_threads(void) {
    const uint32_t n = usable_cores(), quota = group_quota();
    const uint32_t least = n < quota ? n : quota;
    return least != 0 ? least : 1;
}
