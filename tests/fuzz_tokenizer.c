/* Fuzz targets tokenizer and program: texts. The first byte of a text for the tokenizer says which vocabulary. */
#include "runtime/utf8.h"
#include "tests/fuzz.h"

#include <stdlib.h>
#include <string.h>

/* ---- Vocabularies, opened once and kept until the program ends ---- */

enum { N_VOCABULARIES = 5 };
#define SPACE "\xE2\x96\x81"

static const struct drllm_model *vocabulary(size_t number) {
    static const char *const pretokenizers[N_VOCABULARIES] = {NULL, "smollm", "llama-bpe", "default", "gpt-2"};
    /* Of SentencePiece; with the space, which every such vocabulary has. */
    static const char *const pieces[] = {"\xE2\x96\x81",
                                         "\xE2\x96\x81\xE2\x96\x81",
                                         "\xE2\x96\x81\x61",
                                         "ab",
                                         "abc",
                                         "b",
                                         "e",
                                         "l",
                                         "ll",
                                         "\xC3\xAF",
                                         "1",
                                         "12",
                                         "<",
                                         "\n",
                                         "\xE6\x97\xA5"};
    static struct drllm_model *models[N_VOCABULARIES];
    if (models[number] == NULL) {
        struct tiny_options options;
        struct tiny_model tiny;
        size_t size = 0;
        drllm_fuzz_check(drllm_fuzz_model_options(0, &options));
        options.bpe = pretokenizers[number] != NULL;
        options.pieces = options.bpe ? NULL : pieces;
        options.n_vocab = TINY_FIRST_PIECE + sizeof pieces / sizeof pieces[0];
        const struct tiny_edit edit = {
            .key = "tokenizer.ggml.pre", .kind = TINY_STRING, .string = pretokenizers[number]};
        tiny_model_make(&tiny, &options);
        uint8_t *file = tiny_model_write(&tiny, &edit, options.bpe ? 1 : 0, &size);
        tiny_model_free(&tiny);
        struct drllm_model_params params = drllm_model_default_params();
        params.vocab_only = true;
        drllm_fuzz_check(drllm_model_open_memory(file, size, &params, &models[number], NULL) == DRLLM_OK);
    }
    return models[number];
}

/* ---- Tokenizer ---- */

struct ids {
    int32_t *data;
    size_t size;
};

static struct ids encode(const struct drllm_model *model, const char *text, size_t size, unsigned flags) {
    struct drllm_model_info info;
    struct drllm_error error = {0};
    struct ids ids = {NULL, 0};
    size_t again = 0;
    drllm_model_get_info(model, &info);
    const int asked = drllm_tokenize(model, text, size, flags, NULL, 0, &ids.size, &error);
    drllm_fuzz_check(asked == (ids.size == 0 ? DRLLM_OK : DRLLM_ERR_BUFFER));
    /* A text has no more ids than bytes, and the BOS token and a space in front. */
    drllm_fuzz_check(ids.size <= 3 * size + 8);
    ids.data = calloc(ids.size + 1, sizeof *ids.data);
    drllm_fuzz_check(ids.data != NULL);
    drllm_fuzz_check(drllm_tokenize(model, text, size, flags, ids.data, ids.size, &again, &error) == DRLLM_OK);
    drllm_fuzz_check(again == ids.size);
    for (size_t i = 0; i < ids.size; i++) {
        drllm_fuzz_check(ids.data[i] >= 0 && (size_t)ids.data[i] < info.n_vocab);
    }
    return ids;
}

static bool is_utf8(const char *text, size_t size) {
    bool whole = true;
    for (size_t at = 0; at < size && whole;) {
        at += drllm_utf8_character(text + at, size - at, &whole);
    }
    return whole;
}

/* SentencePiece's sign for a space becomes one. In place; returns the new size. */
static size_t unmark(char *text, size_t size) {
    size_t n = 0;
    for (size_t at = 0; at < size;) {
        const bool is_space = size - at >= 3 && memcmp(text + at, SPACE, 3) == 0;
        text[n++] = is_space ? ' ' : text[at];
        at += is_space ? 3 : 1;
    }
    return n;
}

/* Text to ids and back: the same bytes, signs for spaces aside. The first byte of a character whose rest is missing takes
 * what follows into byte tokens with it, as in llama.cpp, and a space then comes back as its sign. */
static void check_round_trip(const struct drllm_model *model, bool is_bpe, const char *text, size_t size) {
    const struct ids ids = encode(model, text, size, 0);
    size_t decoded_size = 0, written = 0;
    (void)drllm_detokenize(model, ids.data, ids.size, false, NULL, 0, &decoded_size);
    char *decoded = malloc(decoded_size + 1), *expected = malloc(size + 1);
    drllm_fuzz_check(decoded != NULL && expected != NULL);
    drllm_fuzz_check(drllm_detokenize(model, ids.data, ids.size, false, decoded, decoded_size, &written) == DRLLM_OK);
    drllm_fuzz_check(written == decoded_size);
    memcpy(expected, text, size);
    if (!is_bpe) {
        decoded_size = is_utf8(text, size) ? decoded_size : unmark(decoded, decoded_size);
        size = unmark(expected, size);
    }
    drllm_fuzz_check(size == decoded_size && memcmp(decoded, expected, size) == 0);
    free(decoded);
    free(expected);
    free(ids.data);
}

static void run_tokenizer(const uint8_t *data, size_t size) {
    if (size == 0) {
        return;
    }
    drllm_fuzz_n_accepted++;
    const size_t number = data[0] % N_VOCABULARIES;
    const struct drllm_model *model = vocabulary(number);
    const char *text = (const char *)data + 1;
    check_round_trip(model, number != 0, text, size - 1);
    const struct ids special = encode(model, text, size - 1, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL);
    size_t decoded_size = 0, sum = 0;
    (void)drllm_detokenize(model, special.data, special.size, true, NULL, 0, &decoded_size);
    for (size_t i = 0; i < special.size; i++) {
        size_t piece = 0;
        (void)drllm_token_bytes(model, special.data[i], true, NULL, 0, &piece);
        sum += piece;
    }
    /* SentencePiece leaves out the space in front. */
    drllm_fuzz_check(sum == decoded_size || (number == 0 && sum == decoded_size + 1));
    free(special.data);
}

static uint8_t *copy_sample(const char *const *texts, size_t n_texts, size_t number, const char *first, size_t n_first,
                            size_t *size) {
    if (number >= n_texts) {
        return NULL;
    }
    const size_t n = strlen(texts[number]);
    uint8_t *copy = malloc(n + n_first + 1);
    drllm_fuzz_check(copy != NULL);
    memcpy(copy, first, n_first);
    memcpy(copy + n_first, texts[number], n);
    *size = n + n_first;
    return copy;
}

static uint8_t *tokenizer_sample(size_t number, size_t *size) {
    /* NOLINTBEGIN(bugprone-suspicious-missing-comma): one long text */
    static const char *const texts[] = {
        "Hello, it's  a test:\n\n  12345 abcabc ab  \t\r\n\r\n$+<=>^~| 'LL 's x'tve don't",
        "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9 \xE6\x97\xA5\xE6\x9C\xAC "
        "\xD9\xA1\xD9\xA2"
        "\xC2\xBD \xE3\x80\x80\xC2\xA0\xC2\x85 \xE2\x96\x81\xE2\x96\x81",
        "<s>a<unk></s><s> <0x41> \xFF\xFE \xC0\x80 \xED\xA0\x80 \xF4\x90\x80\x80 \xE2\x82 \xF0\x9F",
        "  leading and trailing   ",
        "",
    };
    /* NOLINTEND(bugprone-suspicious-missing-comma) */
    enum { N = sizeof texts / sizeof texts[0] };
    const char first = (char)(number % N_VOCABULARIES);
    return number >= (size_t)N * N_VOCABULARIES ? NULL
                                                : copy_sample(texts, N, number / N_VOCABULARIES, &first, 1, size);
}

const struct drllm_fuzz_target drllm_fuzz_tokenizer = {"tokenizer", 48000, tokenizer_sample, NULL, run_tokenizer};

/* ---- Programs ---- */

enum { N_LAYERS = 30, UNSET = 77 };

static void run_program(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1), formatted[8 * N_LAYERS];
    drllm_fuzz_check(text != NULL);
    if (size != 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    uint8_t counts[N_LAYERS], again[N_LAYERS];
    struct drllm_error error = {0};
    memset(counts, UNSET, sizeof counts);
    if (drllm_program_parse(text, N_LAYERS, counts, &error) == DRLLM_OK) {
        size_t n = 0;
        drllm_fuzz_n_accepted++;
        for (size_t i = 0; i < N_LAYERS; i++) {
            drllm_fuzz_check(counts[i] <= 2);
        }
        drllm_fuzz_check(drllm_program_format(counts, N_LAYERS, formatted, sizeof formatted, &n) == DRLLM_OK);
        drllm_fuzz_check(n == strlen(formatted) + 1);
        drllm_fuzz_check(drllm_program_parse(formatted, N_LAYERS, again, &error) == DRLLM_OK);
        drllm_fuzz_check(memcmp(counts, again, sizeof counts) == 0);
    } else {
        drllm_fuzz_check(error.detail[0] != '\0');
        for (size_t i = 0; i < N_LAYERS; i++) {
            drllm_fuzz_check(counts[i] == UNSET);
        }
    }
    free(text);
}

static uint8_t *program_sample(size_t number, size_t *size) {
    static const char *const texts[] = {"0-9,11-14,15x2,16-29", "none", "", "0-29", "0,2,4,6x2,8-9x2,29", "5-7x2"};
    return copy_sample(texts, sizeof texts / sizeof texts[0], number, "", 0, size);
}

const struct drllm_fuzz_target drllm_fuzz_program = {"program", 200000, program_sample, NULL, run_program};
