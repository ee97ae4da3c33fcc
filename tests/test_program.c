/* Layer programs as text: both ways, the shortest form, what is refused. */
#include "tests/tests.h"

#include "runtime/drllm.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BLOCKS = 999, MOST_TEXT = 8 * MOST_BLOCKS, UNTOUCHED = 0xA5 };

static void random_program(struct tiny_random *random, uint8_t *counts, size_t n_layers) {
    /* Runs of blocks as well as single ones. */
    const uint64_t keep_of_8 = tiny_random_u64(random) % 8;
    for (size_t i = 0; i < n_layers; i++) {
        const bool keeps = i > 0 && tiny_random_u64(random) % 8 < keep_of_8;
        counts[i] = keeps ? counts[i - 1] : (uint8_t)(tiny_random_u64(random) % 3);
    }
}

static void check_parse(const char *text, const uint8_t *expected, size_t n_layers) {
    uint8_t counts[MOST_BLOCKS];
    struct drllm_error error = {0, "untouched"};
    memset(counts, UNTOUCHED, sizeof counts);
    if (drllm_program_parse(text, n_layers, counts, &error) != DRLLM_OK) {
        fail_msg("'%s': %s", text, error.detail);
    }
    assert_string_equal(error.detail, "untouched");
    assert_memory_equal(counts, expected, n_layers);
    for (size_t i = n_layers; i < sizeof counts; i++) {
        assert_int_equal(counts[i], UNTOUCHED);
    }
}

/* ---- Exact examples ---- */

static void test_examples(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n_layers;
        const char *counts, *canonical;
    } rows[] = {
        {"0-9,11-14,15x2,16-29", 30, "111111111101111211111111111111", "0-9,11-14,15x2,16-29"},
        {"15-17x2", 30, "000000000000000222000000000000", "15-17x2"},
        {"none", 4, "0000", "none"},
        {"", 4, "0000", "none"},
        {"0", 1, "1", "0"},
        {"0x2", 1, "2", "0x2"},
        {"0-29", 30, "111111111111111111111111111111", "0-29"},
        {"0-29x2", 30, "222222222222222222222222222222", "0-29x2"},
        {"0,1,2", 4, "1110", "0-2"},
        {"0-1,2x2,3-3x2", 4, "1122", "0-1,2-3x2"},
        {"0-0", 2, "10", "0"},
        {"0,2,4x2", 6, "101020", "0,2,4x2"},
        {"11", 12, "000000000001", "11"},
        {"9-10x2", 12, "000000000220", "9-10x2"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t counts[32];
        for (size_t j = 0; j < rows[i].n_layers; j++) {
            counts[j] = (uint8_t)(rows[i].counts[j] - '0');
        }
        check_parse(rows[i].text, counts, rows[i].n_layers);
        char text[64];
        size_t size = 0;
        assert_int_equal(drllm_program_format(counts, rows[i].n_layers, text, sizeof text, &size), DRLLM_OK);
        assert_string_equal(text, rows[i].canonical);
        assert_int_equal(size, strlen(rows[i].canonical) + 1);
    }
}

/* ---- Both ways ---- */

static void check_round_trip(const uint8_t *counts, size_t n_layers) {
    static char text[MOST_TEXT], again[MOST_TEXT];
    uint8_t parsed[MOST_BLOCKS];
    size_t size = 0, size_again = 0;
    assert_int_equal(drllm_program_format(counts, n_layers, text, 8 * n_layers, &size), DRLLM_OK);
    assert_int_equal(size, strlen(text) + 1);
    check_parse(text, counts, n_layers);
    assert_int_equal(drllm_program_parse(text, n_layers, parsed, NULL), DRLLM_OK);
    assert_int_equal(drllm_program_format(parsed, n_layers, again, sizeof again, &size_again), DRLLM_OK);
    assert_string_equal(text, again);
    assert_int_equal(size, size_again);
}

static void test_random_round_trips(void **state) {
    (void)state;
    uint8_t counts[MOST_BLOCKS];
    struct tiny_random random = {1};
    for (size_t i = 0; i < 3000; i++) {
        const size_t n_layers = 1 + (size_t)(tiny_random_u64(&random) % 64);
        random_program(&random, counts, n_layers);
        check_round_trip(counts, n_layers);
    }
    for (size_t i = 0; i < 20; i++) {
        random_program(&random, counts, MOST_BLOCKS);
        check_round_trip(counts, MOST_BLOCKS);
    }
    /* The longest texts. */
    for (size_t i = 0; i < MOST_BLOCKS; i++) {
        counts[i] = i % 2 == 0 ? 2 : 0;
    }
    check_round_trip(counts, MOST_BLOCKS);
    for (size_t i = 0; i < MOST_BLOCKS; i++) {
        counts[i] = i % 2 == 0 ? 2 : 1;
    }
    check_round_trip(counts, MOST_BLOCKS);
}

static size_t item_length(size_t first, size_t last, unsigned count) {
    char text[64];
    const int n =
        first == last ? snprintf(text, sizeof text, "%zu", first) : snprintf(text, sizeof text, "%zu-%zu", first, last);
    return (size_t)n + (count == 2 ? 2 : 0);
}

/* Of all ways to cut a program into items, the length of the shortest. */
static size_t shortest_length(const uint8_t *counts, size_t n_layers) {
    size_t best[32] = {0}; /* of the first i blocks; with a comma behind each item */
    for (size_t end = 1; end <= n_layers; end++) {
        best[end] = counts[end - 1] == 0 ? best[end - 1] : SIZE_MAX;
        for (size_t first = end; counts[end - 1] != 0 && first-- > 0 && counts[first] == counts[end - 1];) {
            const size_t length = best[first] + item_length(first, end - 1, counts[first]) + 1;
            best[end] = length < best[end] ? length : best[end];
        }
    }
    return best[n_layers] == 0 ? strlen("none") : best[n_layers] - 1;
}

/* Every program of 6 blocks, at the front and across the step to two digits. */
static void test_canonical_is_shortest(void **state) {
    (void)state;
    enum { N = 6, N_PROGRAMS = 729 };
    for (size_t front = 0; front <= 7; front += 7) {
        for (size_t number = 0; number < N_PROGRAMS; number++) {
            uint8_t counts[16] = {0};
            size_t rest = number, size = 0;
            for (size_t i = 0; i < N; i++, rest /= 3) {
                counts[front + i] = (uint8_t)(rest % 3);
            }
            char text[128];
            assert_int_equal(drllm_program_format(counts, front + N, text, sizeof text, &size), DRLLM_OK);
            if (strlen(text) != shortest_length(counts, front + N)) {
                fail_msg("'%s' is not the shortest text", text);
            }
            check_parse(text, counts, front + N);
        }
    }
}

/* ---- What is refused ---- */

static void expect_refusal(const char *text, size_t n_layers) {
    uint8_t counts[64];
    memset(counts, UNTOUCHED, sizeof counts);
    struct drllm_error error = {0};
    const int status = drllm_program_parse(text, n_layers, counts, &error);
    if (status != DRLLM_ERR_ARGUMENT || error.status != DRLLM_ERR_ARGUMENT || strlen(error.detail) == 0) {
        fail_msg("'%s' of %zu blocks: status %d, '%s'", text, n_layers, status, error.detail);
    }
    for (size_t i = 0; i < sizeof counts; i++) {
        if (counts[i] != UNTOUCHED) {
            fail_msg("'%s' is refused, but changes block %zu", text, i);
        }
    }
    assert_int_equal(drllm_program_parse(text, n_layers, counts, NULL), DRLLM_ERR_ARGUMENT);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const texts[] = {
        /* order */
        "5,4", "5-3", "3,3", "3-5,5", "3-5,4-6", "3x2,3", "0,2,1", "7-9,0", "4-4,4",
        /* range */
        "30", "0-30", "29-30", "29,30x2", "0-4294967295", "4294967296", "18446744073709551615", "18446744073709551616",
        "18446744073709551617", "0-18446744073709551616", "99999999999999999999999999999999", "36893488147419103232-3",
        /* blanks and signs */
        " ", " 0", "0 ", "0, 1", "0 ,1", "0 - 3", "0- 3", "\t0", "0\n", "0\r\n", "+0", "-0", "-1", "0--3", "0-+3",
        "- 3",
        /* commas */
        ",", ",0", "0,", "0,,1", "0,1,", ",,", "none,", ",none", "0,none", "none,0",
        /* counts */
        "0x", "0x0", "0x1", "0x3", "0x22", "0x2x2", "0x20", "0x-2", "0X2", "x2", "0-x2", "0x2-3", "0-3x", "0-3x1",
        "0 x2", "0x 2", "0x2.0", "0x02",
        /* other text */
        "None", "NONE", "none ", " none", "non", "nonee", "all", "full", "0-", "-", "0-1-2", "0;1", "0.5", "1e1", "0:3",
        "a", "0a", "0-9,b", "\x80", "0\xFF", "\xEF\xBB\xBF", "0\xE2\x80\x93", "0-3\x01", "\xD9\xA1", "0%s%n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        expect_refusal(texts[i], 30);
    }
    /* Sound in front, wrong behind. */
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char text[128];
        (void)snprintf(text, sizeof text, "0-9x2,%s", texts[i]);
        expect_refusal(text, 30);
    }
    expect_refusal("0", 0);
    expect_refusal("1", 1);
    expect_refusal("0-1", 1);
    uint8_t counts[4];
    assert_int_equal(drllm_program_parse(NULL, 4, counts, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_program_parse("0", 4, NULL, NULL), DRLLM_ERR_ARGUMENT);
}

/* Random texts from the letters of programs: refused with nothing changed, or what they say. */
static void test_random_texts(void **state) {
    (void)state;
    enum { N_LAYERS = 12, MOST = 10 };
    static const char letters[] = "0123459,,,--xx22 none\x80";
    struct tiny_random random = {7};
    size_t n_accepted = 0;
    for (size_t i = 0; i < 20000; i++) {
        const size_t length = (size_t)(tiny_random_u64(&random) % MOST);
        char *text = calloc(length + 1, 1); /* just its size, so that reading behind it shows */
        assert_non_null(text);
        for (size_t j = 0; j < length; j++) {
            text[j] = letters[tiny_random_u64(&random) % (sizeof letters - 1)];
        }
        uint8_t counts[N_LAYERS];
        memset(counts, UNTOUCHED, sizeof counts);
        if (drllm_program_parse(text, N_LAYERS, counts, NULL) == DRLLM_OK) {
            n_accepted++;
            check_round_trip(counts, N_LAYERS);
        } else {
            expect_refusal(text, N_LAYERS);
        }
        free(text);
    }
    assert_true(n_accepted > 500 && n_accepted < 15000);
}

/* ---- Sizes ---- */

static void test_buffer_sizes(void **state) {
    (void)state;
    static const char *const texts[] = {"none", "0", "0-9,11-14,15x2,16-29", "0x2,2x2,4x2,6x2", "28-29x2"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        uint8_t counts[30];
        assert_int_equal(drllm_program_parse(texts[i], 30, counts, NULL), DRLLM_OK);
        const size_t needed = strlen(texts[i]) + 1;
        size_t size = 0;
        assert_int_equal(drllm_program_format(counts, 30, NULL, 0, &size), DRLLM_ERR_BUFFER);
        assert_int_equal(size, needed);
        struct drllm_fence fence = DRLLM_FENCE_INIT;
        for (size_t capacity = 0; capacity <= needed; capacity++) {
            char *text = drllm_fence_place(&fence, capacity, DRLLM_FENCE_BEHIND);
            size = 0;
            const int status = drllm_program_format(counts, 30, text, capacity, &size);
            assert_int_equal(status, capacity < needed ? DRLLM_ERR_BUFFER : DRLLM_OK);
            assert_int_equal(size, needed);
            drllm_fence_check(&fence);
        }
        assert_memory_equal(fence.data, texts[i], needed);
        drllm_fence_free(&fence);
    }
}

static void test_format_refusals(void **state) {
    (void)state;
    static const uint8_t bad[][3] = {{3, 1, 1}, {1, 1, 3}, {1, 255, 1}, {0, 0, 128}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[32] = "untouched";
        size_t size = 77;
        assert_int_equal(drllm_program_format(bad[i], 3, text, sizeof text, &size), DRLLM_ERR_ARGUMENT);
        assert_string_equal(text, "untouched");
        assert_int_equal(size, 77);
        assert_int_equal(drllm_program_format(bad[i], 3, NULL, 0, &size), DRLLM_ERR_ARGUMENT);
    }
    static const uint8_t good[3] = {1, 1, 1};
    char text[32];
    size_t size = 0;
    assert_int_equal(drllm_program_format(NULL, 3, text, sizeof text, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_program_format(good, 3, text, sizeof text, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_program_format(good, 3, NULL, 8, &size), DRLLM_ERR_ARGUMENT);
}

int drllm_test_program(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_random_round_trips),
        cmocka_unit_test(test_canonical_is_shortest),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_random_texts),
        cmocka_unit_test(test_buffer_sizes),
        cmocka_unit_test(test_format_refusals),
    };
    return drllm_run_group("program", tests, NULL, NULL);
}
