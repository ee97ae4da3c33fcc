/* The machine: features and masks, threads, memory, files, the clock. */

#include "tests/tests.h"

#include "platform/clock.h"
#include "platform/cpu.h"
#include "platform/file.h"
#include "platform/memory.h"
#include "platform/threads.h"

#include <cpuinfo.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Run in a process of its own, for what changes the process. Its exit status, or -1 if it crashed or hung. */
static int run_apart(int (*run)(void)) {
    (void)fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60);
        _exit(run());
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- Processor ---- */

static void test_masks(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t mask;
    } masks[] = {
        {"none", 0},
        {"portable", 0},
        {"all", UINT64_MAX},
        {"avx2", DRLLM_CPU_AVX2},
        {"avx512", DRLLM_CPU_AVX512},
        {"avx2,f16c", DRLLM_CPU_AVX2 | DRLLM_CPU_F16C},
        {"neon,dotprod,i8mm,fp16", DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD | DRLLM_CPU_I8MM | DRLLM_CPU_FP16},
        {"x86-avx2", DRLLM_CPU_AVX2 | DRLLM_CPU_FMA | DRLLM_CPU_F16C},
        {"arm-neon", DRLLM_CPU_NEON},
        {"arm-dotprod", DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD},
        {"arm-i8mm", DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD | DRLLM_CPU_I8MM},
    };
    char unknown[8] = "";
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
        uint64_t mask = 77;
        assert_true(drllm_cpu_parse_mask(masks[i].text, &mask, unknown, sizeof unknown));
        assert_true(mask == masks[i].mask);
    }
    static const char *const wrong[][2] = {
        {"", ""},           {"avx3", "avx3"},        {"avx2,", ""},         {",avx2", ""},
        {"AVX2", "AVX2"},   {"avx2,sse,fma", "sse"}, {"avx2, fma", " fma"}, {"a-long-unknown-word", "a-long-"},
        {"avx51", "avx51"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        uint64_t mask = 77;
        assert_false(drllm_cpu_parse_mask(wrong[i][0], &mask, unknown, sizeof unknown));
        assert_string_equal(unknown, wrong[i][1]);
        assert_int_equal(mask, 77);
    }
    char text[256];
    drllm_cpu_format(0, text, sizeof text);
    assert_string_equal(text, "none");
    drllm_cpu_format(DRLLM_CPU_F16C | DRLLM_CPU_AVX2 | DRLLM_CPU_NEON, text, sizeof text);
    assert_string_equal(text, "avx2,f16c,neon");
    drllm_cpu_format(DRLLM_CPU_F16C | DRLLM_CPU_AVX2, text, 7);
    assert_string_equal(text, "avx2,f");
    /* There and back, for every set of features that has a name. */
    uint64_t all = 0, mask = 0;
#define DRLLM_CPU_ADD(name, bit, word) all |= DRLLM_CPU_##name;
    DRLLM_CPU_FEATURES(DRLLM_CPU_ADD)
#undef DRLLM_CPU_ADD
    drllm_cpu_format(UINT64_MAX, text, sizeof text);
    assert_true(drllm_cpu_parse_mask(text, &mask, unknown, sizeof unknown));
    assert_true(mask == all);
}

static void test_detect(void **state) {
    (void)state;
    const uint64_t features = drllm_cpu_detect();
    assert_true(features == drllm_cpu_detect());
    char text[256];
    drllm_cpu_format(features, text, sizeof text);
    print_message("             this processor: %s; %u threads\n", text, drllm_cpu_default_threads());
#if defined(__x86_64__)
    /* The compiler's own run-time check of the same. */
    __builtin_cpu_init();
    assert_int_equal((features & DRLLM_CPU_AVX2) != 0, __builtin_cpu_supports("avx2") != 0);
    assert_int_equal((features & DRLLM_CPU_FMA) != 0, __builtin_cpu_supports("fma") != 0);
    assert_int_equal((features & DRLLM_CPU_AVX512) != 0,
                     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512cd"));
    assert_int_equal(features >> 16, 0);
#elif defined(__aarch64__)
    assert_true((features & DRLLM_CPU_NEON) != 0);
    assert_int_equal(features & 0xFFFF, 0);
#endif
}

/* What cpuinfo says to others. Each returns 0 when all is well. */
static int restrict_nothing(void) {
    const uint64_t features = drllm_cpu_detect();
    const bool avx2 = cpuinfo_has_x86_avx2(), avx512 = cpuinfo_has_x86_avx512f(), dot = cpuinfo_has_arm_neon_dot(),
               i8mm = cpuinfo_has_arm_i8mm(), avxvnni = cpuinfo_has_x86_avxvnni();
    drllm_cpu_restrict_cpuinfo(UINT64_MAX);
    return drllm_cpu_detect() == features && cpuinfo_has_x86_avx2() == avx2 && cpuinfo_has_x86_avx512f() == avx512 &&
                   cpuinfo_has_arm_neon_dot() == dot && cpuinfo_has_arm_i8mm() == i8mm &&
                   cpuinfo_has_x86_avxvnni() == avxvnni
               ? 0
               : 1;
}

static int restrict_all(void) {
    drllm_cpu_restrict_cpuinfo(0);
    const bool x86 = cpuinfo_has_x86_avx() || cpuinfo_has_x86_avx2() || cpuinfo_has_x86_fma3() ||
                     cpuinfo_has_x86_f16c() || cpuinfo_has_x86_avx512f() || cpuinfo_has_x86_avx512vnni() ||
                     cpuinfo_has_x86_avxvnni() || cpuinfo_has_x86_gfni() || cpuinfo_has_x86_amx_int8();
    const bool arm = cpuinfo_has_arm_neon_dot() || cpuinfo_has_arm_i8mm() || cpuinfo_has_arm_neon_fp16_arith() ||
                     cpuinfo_has_arm_sve() || cpuinfo_has_arm_neon_bf16();
    return x86 || arm ? 1 : 0;
}

/* Our own answer is about the machine, and stays. */
static int restrict_and_detect(void) {
    const uint64_t features = drllm_cpu_detect();
    drllm_cpu_restrict_cpuinfo(0);
    return drllm_cpu_detect() == features ? 0 : 1;
}

static int restrict_to_avx2(void) {
    const uint64_t features = drllm_cpu_detect();
    drllm_cpu_restrict_cpuinfo(DRLLM_CPU_AVX2 | DRLLM_CPU_FMA | DRLLM_CPU_F16C | DRLLM_CPU_NEON | DRLLM_CPU_DOTPROD);
    return cpuinfo_has_x86_avx2() == ((features & DRLLM_CPU_AVX2) != 0) &&
                   cpuinfo_has_x86_fma3() == ((features & DRLLM_CPU_FMA) != 0) && !cpuinfo_has_x86_avx512f() &&
                   !cpuinfo_has_x86_avx512bw() && !cpuinfo_has_x86_avx512vnni() && !cpuinfo_has_x86_avxvnni() &&
                   !cpuinfo_has_x86_gfni() && !cpuinfo_has_arm_i8mm() && !cpuinfo_has_arm_neon_fp16_arith() &&
                   cpuinfo_has_arm_neon_dot() == ((features & DRLLM_CPU_DOTPROD) != 0)
               ? 0
               : 1;
}

static void test_restrict(void **state) {
    (void)state;
    assert_int_equal(run_apart(restrict_nothing), 0);
    assert_int_equal(run_apart(restrict_all), 0);
    assert_int_equal(run_apart(restrict_and_detect), 0);
    assert_int_equal(run_apart(restrict_to_avx2), 0);
}

static int count_on_one_processor(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    const int processor = sched_getcpu();
    if (processor < 0 || processor >= CPU_SETSIZE) {
        return 1;
    }
    CPU_SET((size_t)processor, &set);
    return sched_setaffinity(0, sizeof set, &set) != 0 ? 1 : (int)drllm_cpu_default_threads();
}

static void test_default_threads(void **state) {
    (void)state;
    const unsigned n = drllm_cpu_default_threads();
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    assert_true(n >= 1);
    assert_true(online <= 0 || n <= (unsigned long)online);
    assert_int_equal(run_apart(count_on_one_processor), 1);
}

/* ---- Threads ---- */

enum { MOST_TASKS = 5000, MOST_WORKERS = 16 };

struct work {
    size_t n_workers;
    atomic_int runs[MOST_TASKS];
    atomic_bool busy[MOST_WORKERS];
    atomic_int wrong;
    size_t plain[MOST_TASKS]; /* without atomics: run has to order them */
    const size_t *addend;
};

static void do_task(void *context, size_t worker, size_t index) {
    struct work *work = context;
    if (worker >= work->n_workers || index >= MOST_TASKS || atomic_exchange(&work->busy[worker], true)) {
        atomic_fetch_add(&work->wrong, 1);
        return;
    }
    atomic_fetch_add(&work->runs[index], 1);
    work->plain[index] += index + *work->addend;
    atomic_store(&work->busy[worker], false);
}

static void check_runs(struct drllm_threads *threads, size_t n_workers) {
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, 1000, MOST_TASKS};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct work *work = calloc(1, sizeof *work);
        size_t addend = 5;
        assert_non_null(work);
        work->n_workers = n_workers;
        work->addend = &addend;
        drllm_threads_run(threads, do_task, work, counts[i]);
        addend = 7; /* seen by the second run, not by the first */
        drllm_threads_run(threads, do_task, work, counts[i]);
        assert_int_equal(work->wrong, 0);
        for (size_t k = 0; k < MOST_TASKS; k++) {
            assert_int_equal(work->runs[k], k < counts[i] ? 2 : 0);
            assert_int_equal(work->plain[k], k < counts[i] ? 2 * k + 12 : 0);
        }
        free(work);
    }
}

static void test_threads(void **state) {
    (void)state;
    static const unsigned counts[] = {1, 2, 3, 4};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct drllm_threads *threads = drllm_threads_create(counts[i]);
        assert_non_null(threads);
        const unsigned n = drllm_threads_count(threads);
        assert_true(n == counts[i] || n == 1); /* 1: the serial shim */
        assert_int_equal(drllm_threads_native(threads) != NULL, n > 1);
        check_runs(threads, n);
        drllm_threads_destroy(threads);
    }
}

/* Task 1 is held up when another worker than the caller has it. */
static void be_held_up(void *context, size_t worker, size_t index) {
    const struct timespec while_others_start = {.tv_sec = 0, .tv_nsec = 5 * 1000 * 1000};
    const struct timespec time_slice = {.tv_sec = 0, .tv_nsec = 60 * 1000 * 1000};
    atomic_size_t *worker_of_task_1 = context;
    if (index == 1) {
        atomic_store(worker_of_task_1, worker);
    }
    if (index == 0 || worker != 0) {
        nanosleep(index == 0 ? &while_others_start : &time_slice, NULL);
    }
}

/* Whether the caller gets all of a region to do, or does not, within n regions. */
static bool caller_comes_to_be_alone(struct drllm_threads *threads, bool alone, size_t n) {
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 100 * 1000 * 1000};
    for (size_t i = 0; i < n; i++) {
        atomic_size_t worker_of_task_1 = 0;
        drllm_threads_run(threads, be_held_up, &worker_of_task_1, 2);
        if ((worker_of_task_1 == 0) == alone) {
            return true;
        }
        if (!alone) {
            nanosleep(&pause, NULL);
        }
    }
    return false;
}

/* Skips the test where there is only the serial shim. */
static struct drllm_threads *create_workers(unsigned n) {
    struct drllm_threads *threads = drllm_threads_create(n);
    assert_non_null(threads);
    if (drllm_threads_count(threads) == 1) {
        drllm_threads_destroy(threads);
        skip();
    }
    return threads;
}

static void test_threads_held_up(void **state) {
    (void)state;
    struct drllm_threads *threads = create_workers(4);
    assert_true(caller_comes_to_be_alone(threads, false, 50));
    assert_true(caller_comes_to_be_alone(threads, true, 50));
    assert_true(caller_comes_to_be_alone(threads, false, 50));
    drllm_threads_destroy(threads);
}

/* The other thread takes four times as long as the caller, but never so long that it must have been put aside. */
static void be_late(void *context, size_t worker, size_t index) {
    atomic_size_t *worker_of_task_1 = context;
    const uint64_t start = drllm_clock_ns();
    if (index == 1) {
        atomic_store(worker_of_task_1, worker);
    }
    while ((index == 0 || worker != 0) && drllm_clock_ns() - start < (index == 0 ? 20000u : 80000u)) {
    }
}

static void test_threads_always_late(void **state) {
    (void)state;
    struct drllm_threads *threads = create_workers(2);
    size_t n_shared = 0, n_alone = 0; /* the latter in a row, once it is known that the other thread comes at all */
    for (size_t i = 0; i < 20000 && n_alone < 100; i++) {
        atomic_size_t worker_of_task_1 = 0;
        drllm_threads_run(threads, be_late, &worker_of_task_1, 2);
        n_shared += worker_of_task_1 != 0;
        n_alone = worker_of_task_1 == 0 && n_shared >= 100 ? n_alone + 1 : 0;
    }
    if (n_shared < 100) {
        drllm_threads_destroy(threads);
        skip(); /* others have the cores */
    }
    assert_int_equal(n_alone, 100);
    drllm_threads_destroy(threads);
}

static void test_no_threads(void **state) {
    (void)state;
    assert_int_equal(drllm_threads_count(NULL), 1);
    assert_null(drllm_threads_native(NULL));
    check_runs(NULL, 1);
    drllm_threads_destroy(NULL);
}

static void test_many_pools(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct drllm_threads *first = drllm_threads_create(2), *second = drllm_threads_create(3);
        struct work *work = calloc(1, sizeof *work);
        const size_t addend = 0;
        assert_non_null(first);
        assert_non_null(second);
        assert_non_null(work);
        work->n_workers = drllm_threads_count(second);
        work->addend = &addend;
        drllm_threads_run(second, do_task, work, 10);
        assert_int_equal(work->wrong, 0);
        drllm_threads_destroy(second);
        drllm_threads_destroy(first);
        free(work);
    }
}

/* No thread can be made: an error, not a process that waits for ever. 77: this machine does not let us try. */
static int create_without_threads(void) {
    const struct rlimit limit = {1, 1};
    if ((getuid() == 0 && setuid(65534) != 0) || setrlimit(RLIMIT_NPROC, &limit) != 0) {
        return 77;
    }
    struct drllm_threads *threads = drllm_threads_create(4);
    const int failed = threads != NULL && drllm_threads_count(threads) > 1 ? 1 : 0;
    drllm_threads_destroy(threads);
    return failed;
}

static void test_threads_fail(void **state) {
    (void)state;
    const int status = run_apart(create_without_threads);
    if (status == 77) {
        skip();
    }
    assert_int_equal(status, 0);
}

/* ---- Memory, clock ---- */

static void test_memory(void **state) {
    (void)state;
    assert_null(drllm_memory_allocate(0, 64));
    for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
        for (size_t size = 1; size < 100; size += 33) {
            void *memory = drllm_memory_allocate(size, alignment);
            assert_non_null(memory);
            assert_int_equal((uintptr_t)memory % alignment, 0);
            memset(memory, 1, size);
            drllm_memory_release(memory);
        }
    }
    drllm_memory_release(NULL);
    enum { LARGE = (5 << 20) + 1000, HUGE_PAGE = 2 << 20 }; /* comes so that it can lie in huge pages */
    unsigned char *large = drllm_memory_allocate(LARGE, 64);
    assert_non_null(large);
    assert_int_equal((uintptr_t)large % HUGE_PAGE, 0);
    memset(large, 1, LARGE);
    drllm_memory_release(large);
    assert_null(drllm_memory_allocate(SIZE_MAX - 100, 64));
}

static void test_clock(void **state) {
    (void)state;
    const uint64_t begin = drllm_clock_ns();
    uint64_t last = begin;
    for (int i = 0; i < 1000; i++) {
        const uint64_t now = drllm_clock_ns();
        assert_true(now >= last);
        last = now;
    }
    usleep(2000);
    const uint64_t slept = drllm_clock_ns() - begin;
    assert_true(slept >= 2000000);
}

/* ---- Files ---- */

enum { FILE_BYTES = 100000 };

struct place {
    char folder[200], path[300];
};

static uint8_t file_byte(size_t i) {
    return (uint8_t)(i * 7 + i / 256);
}

static int make_place(void **state) {
    struct place *place = calloc(1, sizeof *place);
    const char *base = getenv("TMPDIR");
    if (place == NULL) {
        return -1;
    }
    (void)snprintf(place->folder, sizeof place->folder, "%s/drllm-file.XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(place->folder) == NULL) {
        return -1;
    }
    (void)snprintf(place->path, sizeof place->path, "%s/file", place->folder);
    FILE *file = fopen(place->path, "wb");
    for (size_t i = 0; file != NULL && i < FILE_BYTES; i++) {
        (void)fputc(file_byte(i), file);
    }
    *state = place;
    return file == NULL || fclose(file) != 0;
}

static int remove_place(void **state) {
    struct place *place = *state;
    (void)unlink(place->path);
    const int failed = rmdir(place->folder);
    free(place);
    return failed;
}

static void assert_bytes(const struct drllm_file *file, size_t offset, size_t size) {
    assert_int_equal(file->size, size);
    for (size_t i = 0; i < size; i++) {
        if (((const uint8_t *)file->data)[i] != file_byte(offset + i)) {
            fail_msg("byte %zu", i);
        }
    }
}

static void test_map(void **state) {
    const struct place *place = *state;
    struct drllm_file file;
    assert_int_equal(drllm_file_map_path(place->path, &file), 0);
    assert_bytes(&file, 0, FILE_BYTES);
    drllm_file_unmap(&file);
    assert_null(file.data);
    assert_int_equal(file.size, 0);
    drllm_file_unmap(&file); /* does nothing */

    static const uint64_t ranges[][2] = {
        {0, 1},      {1, 1},     {4095, 2},           {4096, 4096}, {5000, 60000},
        {65536, 10}, {70001, 0}, {FILE_BYTES - 1, 1}, {0, 0},       {0, FILE_BYTES},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const int descriptor = open(place->path, O_RDONLY | O_CLOEXEC);
        assert_true(descriptor >= 0);
        assert_int_equal(drllm_file_map_fd(descriptor, ranges[i][0], ranges[i][1], &file), 0);
        close(descriptor); /* the mapping does not need it */
        assert_bytes(&file, (size_t)ranges[i][0],
                     (size_t)(ranges[i][1] != 0 ? ranges[i][1] : FILE_BYTES - ranges[i][0]));
        drllm_file_unmap(&file);
    }
    const int descriptor = open(place->path, O_RDONLY | O_CLOEXEC);
    static const uint64_t outside[][2] = {
        {0, FILE_BYTES + 1},      {FILE_BYTES, 1}, {FILE_BYTES + 1, 0},          {1, FILE_BYTES},
        {UINT64_MAX, UINT64_MAX}, {UINT64_MAX, 0}, {FILE_BYTES / 2, UINT64_MAX}, {1, UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        const struct drllm_file before = file;
        assert_int_equal(drllm_file_map_fd(descriptor, outside[i][0], outside[i][1], &file), ERANGE);
        assert_memory_equal(&file, &before, sizeof file);
    }
    /* Nothing is left of the file behind this offset. */
    assert_int_equal(drllm_file_map_fd(descriptor, FILE_BYTES, 0, &file), 0);
    assert_true(file.data == NULL && file.size == 0);
    drllm_file_unmap(&file);
    close(descriptor);
    assert_int_equal(drllm_file_map_fd(-1, 0, 0, &file), EBADF);
}

static void test_map_refused(void **state) {
    const struct place *place = *state;
    struct drllm_file file;
    char path[400];
    int ends[2];
    assert_int_equal(drllm_file_map_path(place->folder, &file), EINVAL);
    assert_int_equal(drllm_file_map_path("/dev/null", &file), EINVAL);
    (void)snprintf(path, sizeof path, "%s/missing", place->folder);
    assert_int_equal(drllm_file_map_path(path, &file), ENOENT);
    assert_int_equal(drllm_file_map_path("", &file), ENOENT);
    (void)snprintf(path, sizeof path, "%s/below", place->path);
    assert_int_equal(drllm_file_map_path(path, &file), ENOTDIR);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(drllm_file_map_fd(ends[0], 0, 0, &file), EINVAL);
    close(ends[0]);
    close(ends[1]);
    (void)snprintf(path, sizeof path, "%s/fifo", place->folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    const int failed = drllm_file_map_path(path, &file); /* must not wait for a writer */
    (void)unlink(path);
    assert_int_equal(failed, EINVAL);
    /* A descriptor that cannot be read from. */
    const int descriptor = open(place->path, O_WRONLY | O_CLOEXEC);
    assert_true(descriptor >= 0);
    assert_int_equal(drllm_file_map_fd(descriptor, 0, 0, &file), EACCES);
    close(descriptor);
}

static void test_map_empty(void **state) {
    const struct place *place = *state;
    struct drllm_file file;
    assert_int_equal(truncate(place->path, 0), 0);
    assert_int_equal(drllm_file_map_path(place->path, &file), 0);
    assert_true(file.data == NULL && file.size == 0 && file.map == NULL && file.map_size == 0);
    drllm_file_unmap(&file);
}

/* Offsets past 4 GiB, in a file with a hole. */
static void test_map_far(void **state) {
    const struct place *place = *state;
    const uint64_t offset = ((uint64_t)5 << 30) + 12345;
    const int descriptor = open(place->path, O_RDWR | O_CLOEXEC);
    assert_true(descriptor >= 0);
    if (pwrite(descriptor, "far away", 8, (off_t)offset) != 8) {
        close(descriptor);
        skip(); /* no room, or a file system without holes */
    }
    struct drllm_file file;
    assert_int_equal(drllm_file_map_fd(descriptor, offset, 0, &file), 0);
    assert_int_equal(file.size, 8);
    assert_memory_equal(file.data, "far away", 8);
    drllm_file_unmap(&file);
    close(descriptor);
}

static void test_forget(void **state) {
    const struct place *place = *state;
    struct drllm_file file;
    assert_int_equal(drllm_file_map_path(place->path, &file), 0);
    for (size_t begin = 0; begin < 10000; begin += 1111) {
        for (size_t size = 0; begin + size <= FILE_BYTES; size += 13331) {
            drllm_file_forget((const uint8_t *)file.data + begin, size);
        }
    }
    drllm_file_forget(file.data, FILE_BYTES);
    drllm_file_forget(NULL, 0);
    assert_bytes(&file, 0, FILE_BYTES); /* they come back */
    drllm_file_unmap(&file);
}

static void test_error_text(void **state) {
    (void)state;
    char text[128] = "x";
    drllm_file_error_text(ENOENT, text, sizeof text);
    assert_string_equal(text, strerror(ENOENT));
    drllm_file_error_text(123456, text, sizeof text);
    assert_true(strstr(text, "123456") != NULL);
    char small[5] = "abcd";
    drllm_file_error_text(ENOENT, small, sizeof small);
    assert_int_equal(strlen(small), 4);
    drllm_file_error_text(ENOENT, small, 0);
    drllm_file_error_text(ENOENT, NULL, 0);
}

int drllm_test_platform(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_detect),
        cmocka_unit_test(test_restrict),
        cmocka_unit_test(test_default_threads),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_threads_held_up),
        cmocka_unit_test(test_threads_always_late),
        cmocka_unit_test(test_no_threads),
        cmocka_unit_test(test_many_pools),
        cmocka_unit_test(test_threads_fail),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_clock),
        cmocka_unit_test_setup_teardown(test_map, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_map_refused, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_map_empty, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_map_far, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_forget, make_place, remove_place),
        cmocka_unit_test(test_error_text),
    };
    return drllm_run_group("platform", tests, NULL, NULL);
}
