/* Text to ids and back: against llama.cpp's cases (../shared/vocab), against ids of the real model (from the Python
 * package `tokenizers`, which llama.cpp agrees with), and on small and damaged vocabularies made here. */
#include "runtime/gguf.h"
#include "runtime/tokenizer.h"
#include "runtime/tokenizer_internal.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"
#include "tests/gguf_writer.h"
#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { BOS = DRLLM_TOKENIZE_BOS, SPECIAL = DRLLM_TOKENIZE_SPECIAL };

/* ---- Opening and closing ----------------------------------------------------------------------------------------- */

static struct tiny_counted counted;

/* What a failed test left behind is not the next one's. */
static int reset(void **state) {
    (void)state;
    counted = (struct tiny_counted){.fail_at = SIZE_MAX};
    return 0;
}

struct opened {
    uint8_t *data;
    struct drllm_gguf gguf;
    struct drllm_tokenizer *tokenizer;
};

static int open_data(struct opened *opened, uint8_t *data, size_t size, struct drllm_error *error) {
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    *opened = (struct opened){.data = data};
    assert_int_equal(drllm_gguf_open(&opened->gguf, data, size, &allocator, error), DRLLM_OK);
    const int status = drllm_tokenizer_open(&opened->gguf, &allocator, &opened->tokenizer, error);
    assert_true((status == DRLLM_OK) == (opened->tokenizer != NULL));
    return status;
}

static void close_opened(struct opened *opened) {
    drllm_tokenizer_close(opened->tokenizer);
    drllm_gguf_close(&opened->gguf);
    free(opened->data);
    assert_int_equal(counted.n_live, 0);
    assert_false(counted.wrong);
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        fail_msg("cannot read %s", path);
        return NULL;
    }
    const long end = ftell(file);
    rewind(file);
    char *data = malloc((size_t)end + 1);
    assert_non_null(data);
    *size = fread(data, 1, (size_t)end, file);
    assert_int_equal(*size, end);
    data[*size] = 0;
    (void)fclose(file);
    return data;
}

/* A file below the directory or of the path that the environment names; skips the test when it names none. */
static char *read_given(const char *variable, const char *name, size_t *size) {
    const char *given = getenv(variable);
    if (drllm_test_is_fast()) {
        drllm_skip("it needs a real vocabulary");
    }
    if (given == NULL || given[0] == 0) {
        drllm_skip(strcmp(variable, "DRLLM_TEST_MODEL") == 0 ? "DRLLM_TEST_MODEL is not set"
                                                             : "DRLLM_TEST_SHARED is not set");
    }
    char path[4096];
    (void)snprintf(path, sizeof path, "%s%s%s", given, name != NULL ? "/" : "", name != NULL ? name : "");
    return read_file(path, size);
}

static void open_given(struct opened *opened, const char *variable, const char *name) {
    size_t size = 0;
    char *data = read_given(variable, name, &size);
    struct drllm_error error = {0};
    if (open_data(opened, (uint8_t *)data, size, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
}

/* ---- Comparing --------------------------------------------------------------------------------------------------- */

struct text {
    const char *data;
    size_t size;
};
#define TEXT(literal) \
    { literal, sizeof(literal) - 1 }

static int32_t *encode(const struct drllm_tokenizer *tokenizer, struct text text, unsigned flags, size_t *n) {
    struct drllm_error error = {0};
    *n = 12345;
    int status = drllm_tokenizer_encode(tokenizer, text.data, text.size, flags, NULL, 0, n, &error);
    assert_int_equal(status, *n == 0 ? DRLLM_OK : DRLLM_ERR_BUFFER);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    assert_non_null(ids);
    status = drllm_tokenizer_encode(tokenizer, text.data, text.size, flags, ids, *n, n, &error);
    assert_int_equal(status, DRLLM_OK);
    return ids;
}

static char *decode(const struct drllm_tokenizer *tokenizer, const int32_t *ids, size_t n, bool special, size_t *size) {
    *size = 12345;
    const int status = drllm_tokenizer_decode(tokenizer, ids, n, special, NULL, 0, size);
    assert_int_equal(status, *size == 0 ? DRLLM_OK : DRLLM_ERR_BUFFER);
    char *text = malloc(*size + 1);
    assert_non_null(text);
    assert_int_equal(drllm_tokenizer_decode(tokenizer, ids, n, special, text, *size, size), DRLLM_OK);
    text[*size] = 0;
    return text;
}

static void assert_ids(const struct drllm_tokenizer *tokenizer, struct text text, unsigned flags,
                       const int32_t *expected, size_t n_expected) {
    size_t n = 0;
    int32_t *ids = encode(tokenizer, text, flags, &n);
    if (n != n_expected || (n > 0 && memcmp(ids, expected, n * sizeof *ids) != 0)) {
        print_error("'%.*s':", text.size < 200 ? (int)text.size : 200, text.data);
        for (size_t i = 0; i < n; i++) {
            print_error(" %d", (int)ids[i]);
        }
        print_error(" (%zu ids, %zu expected)\n", n, n_expected);
        fail();
    }
    free(ids);
}

/* Encoding and decoding gives the text again. */
static void assert_round_trip(const struct drllm_tokenizer *tokenizer, struct text text, unsigned flags) {
    size_t n = 0, size = 0;
    int32_t *ids = encode(tokenizer, text, flags, &n);
    char *decoded = decode(tokenizer, ids, n, false, &size);
    assert_int_equal(size, text.size);
    assert_memory_equal(decoded, text.data, size);
    free(decoded);
    free(ids);
}

static void assert_decodes(const struct drllm_tokenizer *tokenizer, const int32_t *ids, size_t n, bool special,
                           const char *expected) {
    size_t size = 0;
    char *text = decode(tokenizer, ids, n, special, &size);
    assert_string_equal(text, expected);
    free(text);
}

/* ---- llama.cpp's cases ------------------------------------------------------------------------------------------- */

static size_t read_ids(const char *line, int32_t *ids, size_t capacity) {
    size_t n = 0;
    for (char *end = NULL; n < capacity; line = end) {
        const long id = strtol(line, &end, 10);
        if (end == line) {
            break;
        }
        ids[n++] = (int32_t)id;
    }
    return n;
}

static void check_vocabulary(const char *name) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    struct opened opened;
    char path[128];
    size_t size = 0;
    open_given(&opened, "DRLLM_TEST_SHARED", name);
    (void)snprintf(path, sizeof path, "%s.inp", name);
    char *texts = read_given("DRLLM_TEST_SHARED", path, &size);
    (void)snprintf(path, sizeof path, "%s.out", name);
    char *lines = read_given("DRLLM_TEST_SHARED", path, &size);
    size_t n_cases = 0;
    char *line = lines;
    for (char *text = texts, *next = NULL; text != NULL; text = next) {
        next = strstr(text, separator);
        const struct text wanted = {text, next != NULL ? (size_t)(next - text) : strlen(text)};
        next = next != NULL ? next + strlen(separator) : NULL;
        char *end = strchr(line, '\n');
        if (next == NULL && wanted.size == 0 && end == NULL) {
            break;
        }
        assert_non_null(end);
        *end = 0;
        int32_t ids[1024];
        const size_t n = read_ids(line, ids, 1024);
        assert_ids(opened.tokenizer, wanted, 0, ids, n);
        assert_round_trip(opened.tokenizer, wanted, BOS);
        line = end + 1;
        n_cases++;
    }
    assert_true(n_cases > 40);
    free(lines);
    free(texts);
    close_opened(&opened);
}

static void test_llama3_cases(void **state) {
    (void)state;
    check_vocabulary("vocab/ggml-vocab-llama-bpe.gguf");
}

static void test_llama2_cases(void **state) {
    (void)state;
    check_vocabulary("vocab/ggml-vocab-llama-spm.gguf");
}

/* ---- The real model ---------------------------------------------------------------------------------------------- */

static void test_model_texts(void **state) {
    (void)state;
    static const struct {
        struct text text;
        unsigned flags;
        const char *ids;
    } cases[] = {
        {TEXT(""), 0, ""},
        {TEXT("Hello world"), 0, "19556 905"},
        {TEXT(" Hello  world "), 0, "38699 216 905 216"},
        {TEXT("a\r\nb\r\n\r\n  c\t\td"), 0, "81 201 198 82 18682 216 265 197 197 84"},
        {TEXT("2024-11-05: 3.14159"), 0, "34 32 34 36 29 33 33 29 32 37 42 216 35 30 33 36 33 37 41"},
        {TEXT("x1y22z333"), 0, "104 33 105 34 34 106 35 35 35"},
        {TEXT("It's we'LL they've I'm 'tis"), 0, "1589 506 392 23 16421 502 3543 339 5248 637 34818"},
        /* emoji joined by ZWJ */
        {TEXT("\360\237\221\250\342\200\215\360\237\221\251\342\200\215\360\237\221\247\342\200\215\360\237\221\246 "
              "family"),
         0, "10813 235 118 321 231 10813 235 119 321 231 10813 235 117 321 231 10813 235 116 1564"},
        /* a combining mark, and the same letter composed */
        {TEXT("e\314\201 vs \303\251"), 0, "85 151 219 6375 26411"},
        {TEXT("\346\227\245\346\234\254\350\252\236\343\201\250English\346\267\267\343\201\234"), 0,
         "23274 115 40993 179 120 248 7365 118 14901 177 132 132 7365 246"},
        /* Cyrillic; a half, a superscript, a Roman numeral and an Arabic digit are numbers */
        {TEXT("\320\237\321\200\320\270\320\262\320\265\321\202, \320\274\320\270\321\200! \302\275 \302\262 "
              "\342\205\247 "
              "\331\243"),
         0, "155 249 46879 16464 32547 28 41337 7872 9175 17 216 16738 216 19133 216 173 223 117 216 164 113"},
        /* white space beyond ASCII */
        {TEXT("\302\240\343\200\200\342\200\211x\302\205y"), 0, "15442 12109 218 321 227 104 141 223 105"},
        {TEXT("a\000b"), 0, "81 190 82"},
        {TEXT("<|im_start|>user\nHi<|im_end|>"), 0,
         "44 108 306 79 3738 108 46 4093 198 26843 44 108 306 79 486 108 46"},
        {TEXT("<|im_start|>user\nHi<|im_end|>"), SPECIAL, "1 4093 198 26843 2"},
        {TEXT("foo<|im_end|>bar<|endoftext|>"), SPECIAL, "15236 2 6299 0"},
        {TEXT("<|im_start<|im_end|>|>"), SPECIAL | BOS, "44 108 306 79 3738 2 108 46"},
        {TEXT("    indented\n\n\n\tcode()"), 0, "333 641 6574 16506 197 4635 1000"},
        {TEXT("$$$!!!???..."), 0, "9212 20 29646 16693 47 2026"},
        /* an ideograph of Unicode 15.1 and a private character */
        {TEXT("\360\256\257\260\364\217\277\275"), 0, "187 123 124 125 189 233 140 138"},
        {TEXT(
             "\340\244\271\340\244\277\340\244\250\340\245\215\340\244\246\340\245\200 \340\271\204\340\270\227\340\270"
             "\242 \355\225\234\352\265\255\354\226\264"),
         0,
         "4300 134 27011 30658 16525 44757 37189 216 31933 222 10283 241 10283 112 216 33085 246 181 130 251 183 240 "
         "129"},
        /* invalid bytes: those with a token stay, as here 80 and E2 82; FF has none and becomes U+FFFD, EF BF BD */
        {TEXT("\200"), 0, "218"},
        {TEXT("x\342\202"), 0, "104 25699"},
        {TEXT("\377"), BOS, "24211"},
    };
    struct opened opened;
    open_given(&opened, "DRLLM_TEST_MODEL", NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t expected[64];
        const size_t n_expected = read_ids(cases[i].ids, expected, 64);
        assert_ids(opened.tokenizer, cases[i].text, cases[i].flags, expected, n_expected);
        if (cases[i].flags == 0) {
            assert_round_trip(opened.tokenizer, cases[i].text, BOS);
        }
    }
    assert_int_equal(drllm_tokenizer_n_vocab(opened.tokenizer), 49152);
    assert_int_equal(drllm_tokenizer_bos(opened.tokenizer), 1);
    assert_int_equal(drllm_tokenizer_eos(opened.tokenizer), 2);
    assert_false(drllm_tokenizer_add_bos(opened.tokenizer));
    for (int32_t id = -1; id < 49153; id++) {
        /* <|endoftext|>, <|im_end|>, and <reponame>, which begins another file */
        assert_int_equal(drllm_tokenizer_is_end(opened.tokenizer, id), id == 0 || id == 2 || id == 4);
    }
    assert_decodes(opened.tokenizer, (const int32_t[]){1, 19556, 2}, 3, false, "Hello");
    assert_decodes(opened.tokenizer, (const int32_t[]){1, 19556, 2}, 3, true, "<|im_start|>Hello<|im_end|>");
    /* All of the vocabulary decodes piece by piece to what it decodes to at once. */
    size_t total = 0;
    for (int32_t id = 0; id < 49152; id++) {
        char piece[256];
        size_t size = 0, whole = 0;
        assert_int_equal(drllm_tokenizer_token_bytes(opened.tokenizer, id, true, piece, sizeof piece, &size), DRLLM_OK);
        char *text = decode(opened.tokenizer, &id, 1, true, &whole);
        assert_int_equal(whole, size);
        assert_memory_equal(text, piece, size);
        total += size;
        free(text);
    }
    assert_true(total > 49152);
    close_opened(&opened);
}

static void test_model_memory(void **state) {
    (void)state;
    struct opened opened;
    open_given(&opened, "DRLLM_TEST_MODEL", NULL);
    assert_true(counted.live_bytes < 3 << 20);
    close_opened(&opened);
}

/* ---- Ids of the reference runs ----------------------------------------------------------------------------------- */

/* The JSON behind "key": in the line, or NULL. */
static const char *find_key(const char *line, const char *key) {
    char quoted[64];
    (void)snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *found = strstr(line, quoted);
    return found != NULL ? found + strlen(quoted) : NULL;
}

static size_t put_utf8(uint32_t value, char *out) {
    if (value < 0x80) {
        out[0] = (char)value;
        return 1;
    }
    const size_t n = value < 0x800 ? 2 : value < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, value >>= 6) {
        out[i] = (char)(0x80 | (value & 0x3F));
    }
    out[0] = (char)(0xF00 >> n | value);
    return n;
}

static uint32_t read_hex(const char *digits) {
    char copy[5] = {0};
    memcpy(copy, digits, 4);
    return (uint32_t)strtoul(copy, NULL, 16);
}

/* A JSON string; the result is to be freed. *end: behind its closing quote. */
static char *read_string(const char *json, const char **end, size_t *size) {
    assert_int_equal(*json++, '"');
    char *text = malloc(strlen(json) + 1);
    assert_non_null(text);
    for (*size = 0; *json != '"'; json++) {
        if (*json != '\\') {
            text[(*size)++] = *json;
            continue;
        }
        json++;
        static const char letters[] = "nrtbf", characters[] = "\n\r\t\b\f";
        const char *letter = strchr(letters, *json);
        if (*json == 'u') {
            uint32_t value = read_hex(json + 1);
            json += 4;
            if (value >= 0xD800 && value < 0xDC00) {
                value = 0x10000 + ((value & 0x3FF) << 10) + (read_hex(json + 3) & 0x3FF);
                json += 6;
            }
            *size += put_utf8(value, text + *size);
        } else {
            text[(*size)++] = letter != NULL ? characters[letter - letters] : *json;
        }
    }
    *end = json + 1;
    return text;
}

static size_t read_id_array(const char *json, const char **end, int32_t *ids, size_t capacity) {
    size_t n = 0;
    if (json == NULL || *json++ != '[') {
        fail_msg("no array of ids");
        return 0;
    }
    while (*json != ']') {
        char *after = NULL;
        assert_true(n < capacity);
        ids[n++] = (int32_t)strtol(json, &after, 10);
        json = after + strspn(after, ", \n");
    }
    *end = json + 1;
    return n;
}

static void check_text(const struct drllm_tokenizer *tokenizer, const char **text_json, const char **ids_json,
                       size_t *n_checked) {
    static int32_t ids[8192];
    size_t size = 0;
    char *text = read_string(*text_json, text_json, &size);
    const size_t n = read_id_array(*ids_json, ids_json, ids, 8192);
    assert_ids(tokenizer, (struct text){text, size}, SPECIAL, ids, n);
    free(text);
    ++*n_checked;
}

/* Every "prompt" with its "prompt_ids", every one of "choices" with its "choice_ids". */
static size_t check_reference(const struct drllm_tokenizer *tokenizer, const char *name) {
    size_t size = 0, n_checked = 0;
    char *file = read_given("DRLLM_TEST_SHARED", name, &size);
    const char *at = file;
    for (const char *prompt = find_key(at, "prompt"); prompt != NULL; prompt = find_key(at, "prompt")) {
        const char *ids = find_key(prompt, "prompt_ids"), *next = find_key(prompt, "prompt");
        assert_non_null(ids);
        at = ids;
        if (*prompt != '"') {
            continue; /* a prompt of ids alone */
        }
        check_text(tokenizer, &prompt, &ids, &n_checked);
        const char *choices = find_key(at, "choices"), *choice_ids = find_key(at, "choice_ids");
        if (choices == NULL || (next != NULL && choices > next)) {
            continue;
        }
        assert_non_null(choice_ids);
        choice_ids++;
        for (choices++; *choices == '"'; choices += strspn(choices, ", \n"), choice_ids += strspn(choice_ids, ", \n")) {
            check_text(tokenizer, &choices, &choice_ids, &n_checked);
        }
    }
    free(file);
    return n_checked;
}

static void test_reference_ids(void **state) {
    (void)state;
    struct opened opened;
    open_given(&opened, "DRLLM_TEST_MODEL", NULL);
    const char *shared = getenv("DRLLM_TEST_SHARED");
    if (shared == NULL || shared[0] == 0) {
        close_opened(&opened);
        drllm_skip("DRLLM_TEST_SHARED is not set");
    }
    assert_true(check_reference(opened.tokenizer, "ref/reference.json") >= 9);
    assert_true(check_reference(opened.tokenizer, "ref/routed.jsonl") >= 40 * 3);
    assert_true(check_reference(opened.tokenizer, "ref/routed-mixed.jsonl") >= 10);
    close_opened(&opened);
}

/* ---- Words ------------------------------------------------------------------------------------------------------- */

static void test_words(void **state) {
    (void)state;
    /* From llama.cpp's unicode_regex_split; words are set apart by '|'. */
    static const struct {
        const char *text;
        const char *words[4]; /* default, gpt-2, smollm, llama-bpe */
    } cases[] = {
        {"Hello, world!  It's 12345 a1",
         {"Hello|,| world|!| | It|'|s| |123|45| a|1", "Hello|,| world|!| | It|'s| 12345| a|1",
          "Hello|,| world|!| | It|'s| |1|2|3|4|5| a|1", "Hello|,| world|!| | It|'s| |123|45| a|1"}},
        {"  \n\n x\t(y)\r\n",
         {"  \n\n| x|\t|(|y|)|\r\n", "  \n\n| x|\t|(|y|)|\r\n", "  \n\n| x|\t|(|y|)|\r\n", "  \n\n| x|\t|(y|)\r\n"}},
        {"WE'LL don't `a` =b",
         {"WE|'|LL| don|'|t| `|a|`| |=|b", "WE|'|LL| don|'t| `|a|`| =|b", "WE|'|LL| don|'t| `|a|`| =|b",
          "WE|'LL| don|'t| `|a|`| =|b"}},
        {"\302\27512\331\243 \342\205\247.",
         {"\302\27512\331\243| |\342\205\247|.", "\302\27512\331\243| \342\205\247|.",
          "\302\275|1|2|\331\243| |\342\205\247|.", "\302\27512|\331\243| |\342\205\247|."}},
        {"\377a\200 \n", {"\377|a|\200| \n", "\377|a|\200| \n", "\377|a|\200| \n", "\377a|\200| \n"}},
        {"", {"", "", "", ""}},
    };
    static const enum drllm_pretokenizer kinds[] = {DRLLM_PRETOKENIZE_DEFAULT, DRLLM_PRETOKENIZE_GPT2,
                                                    DRLLM_PRETOKENIZE_SMOLLM, DRLLM_PRETOKENIZE_LLAMA3};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t kind = 0; kind < 4; kind++) {
            char joined[256] = "";
            size_t size = 0;
            struct drllm_splitter splitter;
            struct drllm_string word;
            drllm_splitter_init(&splitter, kinds[kind], cases[i].text, strlen(cases[i].text));
            while (drllm_splitter_next(&splitter, &word)) {
                assert_true(word.size > 0 && size + word.size + 2 < sizeof joined);
                if (size > 0) {
                    joined[size++] = '|';
                }
                memcpy(joined + size, word.data, word.size);
                size += word.size;
                joined[size] = 0;
            }
            assert_string_equal(joined, cases[i].words[kind]);
        }
    }
}

/* ---- Vocabularies made here -------------------------------------------------------------------------------------- */

enum { N_BYTES = 256 };

/* Token i is GPT-2's character for byte i; then these. */
static const char *const bpe_more[] = {"ab",  "abc",   "bc",   "abcd", "\304\240a",
                                       "<e>", "<|x|>", "user", "zz",   "<|im_end|>"};
static const char *const bpe_merges[] = {"b c", "a b",      "ab c", "abc d", "\304\240 a",
                                         "a b", "no merge", "x y",  "q",     " "};
enum { AB = N_BYTES, ABC, BC, ABCD, SPACE_A, END, SPECIAL_X, USER, ZZ, IM_END, N_BPE };

struct bpe_options {
    const char *model, *pre;
    size_t n_types; /* 0: no types */
    int32_t types[N_BPE];
    int32_t bos, eos; /* -2: no key */
    int add_bos;      /* -1: no key */
    bool no_merges, lacks_bytes;
};

static struct bpe_options bpe_defaults(void) {
    struct bpe_options options = {
        .model = "gpt2", .pre = "gpt-2", .n_types = N_BPE, .bos = END, .eos = END, .add_bos = -1};
    for (size_t i = 0; i < N_BPE; i++) {
        options.types[i] = DRLLM_TOKEN_NORMAL;
    }
    options.types[END] = options.types[SPECIAL_X] = DRLLM_TOKEN_CONTROL;
    options.types[USER] = DRLLM_TOKEN_USER_DEFINED;
    options.types[ZZ] = DRLLM_TOKEN_UNUSED;
    return options;
}

static void write_bpe(struct gguf_writer *writer, const struct bpe_options *options) {
    static char byte_texts[N_BYTES][8];
    const char *texts[N_BPE];
    for (unsigned byte = 0; byte < N_BYTES; byte++) {
        const size_t size = put_utf8(drllm_byte_character((uint8_t)byte), byte_texts[byte]);
        byte_texts[byte][size] = 0;
        if (options->lacks_bytes && byte >= 0xF5) {
            (void)snprintf(byte_texts[byte], sizeof byte_texts[byte], "no %u", byte);
        }
        texts[byte] = byte_texts[byte];
    }
    for (size_t i = N_BYTES; i < N_BPE; i++) {
        texts[i] = bpe_more[i - N_BYTES];
    }
    gguf_writer_init(writer);
    if (options->model != NULL) {
        gguf_writer_add_string(writer, "tokenizer.ggml.model", options->model);
    }
    if (options->pre != NULL) {
        gguf_writer_add_string(writer, "tokenizer.ggml.pre", options->pre);
    }
    gguf_writer_add_strings(writer, "tokenizer.ggml.tokens", texts, NULL, N_BPE);
    if (options->n_types > 0) {
        gguf_writer_add_i32s(writer, "tokenizer.ggml.token_type", options->types, options->n_types);
    }
    if (!options->no_merges) {
        gguf_writer_add_strings(writer, "tokenizer.ggml.merges", bpe_merges, NULL,
                                sizeof bpe_merges / sizeof bpe_merges[0]);
    }
    if (options->bos != -2) {
        gguf_writer_add_i32(writer, "tokenizer.ggml.bos_token_id", options->bos);
    }
    if (options->eos != -2) {
        gguf_writer_add_i32(writer, "tokenizer.ggml.eos_token_id", options->eos);
    }
    if (options->add_bos >= 0) {
        gguf_writer_add_bool(writer, "tokenizer.ggml.add_bos_token", options->add_bos != 0);
    }
}

static int open_written(struct opened *opened, struct gguf_writer *writer, struct drllm_error *error) {
    size_t size = 0;
    uint8_t *data = gguf_writer_finish(writer, &size);
    return open_data(opened, data, size, error);
}

static void open_bpe(struct opened *opened, const struct bpe_options *options) {
    struct gguf_writer writer;
    struct drllm_error error = {0};
    write_bpe(&writer, options);
    if (open_written(opened, &writer, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
}

#define IDS(...) (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)
#define T(literal) ((struct text)TEXT(literal))

static void test_small_bpe(void **state) {
    (void)state;
    struct opened opened;
    struct bpe_options options = bpe_defaults();
    open_bpe(&opened, &options);
    const struct drllm_tokenizer *t = opened.tokenizer;
    /* "b c" comes before "a b". */
    assert_ids(t, T("abc"), 0, IDS('a', BC));
    assert_ids(t, T("abab a"), 0, IDS(AB, AB, SPACE_A));
    assert_ids(t, T("a<e>b"), 0, IDS('a', '<', 'e', '>', 'b'));
    assert_ids(t, T("a<e>b"), SPECIAL, IDS('a', END, 'b'));
    assert_ids(t, T("<<e>>"), SPECIAL, IDS('<', END, '>'));
    /* user-defined tokens are found whatever the flags say; an unused one is text like others */
    assert_ids(t, T("abuserab"), 0, IDS(AB, USER, AB));
    assert_ids(t, T("zz"), 0, IDS('z', 'z'));
    assert_ids(t, T("\200\377"), 0, IDS(0x80, 0xFF));
    assert_ids(t, T("a\0b"), 0, IDS('a', 0, 'b'));
    assert_ids(t, T(""), SPECIAL | BOS, NULL, 0);
    assert_false(drllm_tokenizer_add_bos(t));
    assert_true(drllm_tokenizer_is_end(t, END));
    assert_false(drllm_tokenizer_is_end(t, SPECIAL_X));
    assert_false(drllm_tokenizer_is_end(t, -1));
    /* a known text that the file calls normal */
    assert_true(drllm_tokenizer_is_end(t, IM_END));
    assert_int_equal(drllm_tokenizer_token_type(t, IM_END), DRLLM_TOKEN_CONTROL);
    assert_true(drllm_string_equals(drllm_tokenizer_token_text(t, SPACE_A), "\304\240a"));
    assert_decodes(t, IDS(END, SPACE_A, USER, ZZ, ABCD, IM_END), false, " auserabcd");
    assert_decodes(t, IDS(END, SPACE_A, USER), true, "<e> auser");
    for (int byte = 0; byte < 256; byte++) {
        char out = 0;
        size_t size = 0;
        assert_int_equal(drllm_tokenizer_token_bytes(t, byte, false, &out, 1, &size), DRLLM_OK);
        assert_int_equal(size, 1);
        assert_int_equal((uint8_t)out, byte);
    }
    close_opened(&opened);

    /* Llama 3's rules: BOS by default, and a word that is a token is not merged. */
    options.pre = "llama-bpe";
    open_bpe(&opened, &options);
    assert_ids(opened.tokenizer, T("abc"), BOS, IDS(END, ABC));
    assert_ids(opened.tokenizer, T("abcz"), 0, IDS('a', BC, 'z'));
    assert_ids(opened.tokenizer, T("zz zz"), 0, IDS(ZZ, ' ', 'z', 'z'));
    close_opened(&opened);

    /* Without a name for the pre-tokeniser it is the default one, which sets digits and punctuation apart. */
    options.pre = NULL;
    options.add_bos = 1;
    open_bpe(&opened, &options);
    assert_ids(opened.tokenizer, T("abc"), BOS, IDS(END, 'a', BC));
    assert_ids(opened.tokenizer, T("abc"), 0, IDS('a', BC));
    close_opened(&opened);
}

static void test_lacking_bytes(void **state) {
    (void)state;
    struct opened opened;
    struct bpe_options options = bpe_defaults();
    options.lacks_bytes = true;
    open_bpe(&opened, &options);
    assert_ids(opened.tokenizer, T("a\377b\200"), 0, IDS('a', 0xEF, 0xBF, 0xBD, 'b', 0x80));
    close_opened(&opened);
}

/* Of overlapping special tokens the longest is taken, and of equally long ones the one with the lower id. */
static void test_overlapping_specials(void **state) {
    (void)state;
    static const char *const texts[] = {"a", "b", "c", "d", "abc", "bcda", "cd", "ab", "bc", "abcdabcd", "", ""};
    static const int32_t types[] = {1, 1, 1, 1, 4, 4, 4, 4, 4, 3, 4, 3};
    static const char *const merges[] = {""};
    struct gguf_writer writer;
    struct opened opened;
    struct drllm_error error;
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "gpt2");
    gguf_writer_add_strings(&writer, "tokenizer.ggml.tokens", texts, NULL, 12);
    gguf_writer_add_i32s(&writer, "tokenizer.ggml.token_type", types, 12);
    gguf_writer_add_strings(&writer, "tokenizer.ggml.merges", merges, NULL, 1);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    assert_ids(opened.tokenizer, T("abcda"), 0, IDS(0, 5));
    assert_ids(opened.tokenizer, T("abcdb"), 0, IDS(4, 3, 1));
    assert_ids(opened.tokenizer, T("abcdabcd"), 0, IDS(0, 5, 1, 6));
    assert_ids(opened.tokenizer, T("abcdabcd"), SPECIAL, IDS(9));
    assert_ids(opened.tokenizer, T("abdbc"), 0, IDS(7, 3, 8));
    assert_ids(opened.tokenizer, T("dbcd"), 0, IDS(3, 1, 6));
    close_opened(&opened);
}

/* ---- SentencePiece ----------------------------------------------------------------------------------------------- */

#define SPACE "\342\226\201"
#define SPACE_HELLO_TEXT "\342\226\201hello"
enum { UNK, S, SLASH_S, SPACE_HELLO, SPACE_MARK, H, E, L, O, HE, LL, LLO, HELLO, EURO, USER_NL, N_SPM };
static const char *const spm_texts[N_SPM] = {"<unk>", "<s>", "</s>",  SPACE_HELLO_TEXT, SPACE, "h", "e", "l", "o", "he",
                                             "ll",    "llo", "hello", "\342\202\254",   "\n\n"};
static const float spm_scores[N_SPM] = {0, 0, 0, -5, -1, -10, -11, -12, -13, -2, -3, -4, -6, -7, 0};
static const int32_t spm_types[N_SPM] = {2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};

static void write_spm(struct gguf_writer *writer, bool with_bytes, bool with_unknown) {
    static char bytes[N_BYTES][8];
    const char *texts[N_SPM + N_BYTES];
    float scores[N_SPM + N_BYTES] = {0};
    int32_t types[N_SPM + N_BYTES];
    memcpy(texts, spm_texts, sizeof spm_texts);
    memcpy(scores, spm_scores, sizeof spm_scores);
    memcpy(types, spm_types, sizeof spm_types);
    for (unsigned i = 0; i < N_BYTES; i++) {
        (void)snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
        texts[N_SPM + i] = bytes[i];
        types[N_SPM + i] = DRLLM_TOKEN_BYTE;
    }
    if (!with_unknown) {
        gguf_writer_init(writer);
        gguf_writer_add_u32(writer, "tokenizer.ggml.unknown_token_id", 4000000000u);
    } else {
        gguf_writer_init(writer);
    }
    const size_t n = with_bytes ? N_SPM + N_BYTES : N_SPM;
    gguf_writer_add_string(writer, "tokenizer.ggml.model", "llama");
    gguf_writer_add_strings(writer, "tokenizer.ggml.tokens", texts, NULL, n);
    gguf_writer_add_f32s(writer, "tokenizer.ggml.scores", scores, n);
    gguf_writer_add_i32s(writer, "tokenizer.ggml.token_type", types, n);
}

static void test_small_spm(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct opened opened;
    struct drllm_error error;
    write_spm(&writer, true, true);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    const struct drllm_tokenizer *t = opened.tokenizer;
    assert_int_equal(drllm_tokenizer_bos(t), S);
    assert_int_equal(drllm_tokenizer_eos(t), SLASH_S);
    assert_true(drllm_tokenizer_add_bos(t));
    assert_true(drllm_tokenizer_is_end(t, SLASH_S));
    assert_ids(t, T("hello"), 0, IDS(SPACE_HELLO));
    assert_ids(t, T(" hello"), BOS, IDS(S, SPACE_MARK, SPACE_HELLO));
    assert_ids(t, T("<s>hello</s>hello"), SPECIAL, IDS(S, SPACE_HELLO, SLASH_S, SPACE_HELLO));
    assert_ids(t, T("hello\n\nhello"), 0, IDS(SPACE_HELLO, USER_NL, SPACE_HELLO));
    assert_ids(t, T("\342\202\254"), 0, IDS(SPACE_MARK, EURO));
    assert_ids(t, T("\342\202"), 0, IDS(SPACE_MARK, N_SPM + 0xE2, N_SPM + 0x82));
    assert_ids(t, T("a\0\377"), 0, IDS(SPACE_MARK, N_SPM + 'a', N_SPM, N_SPM + 0xFF));
    assert_ids(t, T(""), BOS, IDS(S));
    assert_ids(t, T(""), 0, NULL, 0);
    static const struct text round_trips[] = {
        TEXT("hello"), TEXT(" hello"), TEXT("  "), TEXT("h\377llo"), TEXT("he\0llo \342\202\254"), TEXT("x hello  ")};
    for (size_t i = 0; i < sizeof round_trips / sizeof round_trips[0]; i++) {
        assert_round_trip(t, round_trips[i], BOS);
        assert_round_trip(t, round_trips[i], 0);
    }
    /* The space in front goes once, also behind a control token; one that a token has for itself stays. */
    assert_decodes(t, IDS(S, SPACE_HELLO, SPACE_HELLO), false, "hello hello");
    assert_decodes(t, IDS(S, SPACE_HELLO, SLASH_S), true, "<s>hello</s>");
    assert_decodes(t, IDS(HELLO, SPACE_HELLO), false, "hello hello");
    assert_decodes(t, IDS(UNK, SPACE_HELLO), false, " hello");
    char piece[8];
    size_t size = 0;
    assert_int_equal(drllm_tokenizer_token_bytes(t, SPACE_HELLO, false, piece, 8, &size), DRLLM_OK);
    assert_int_equal(size, 6);
    assert_memory_equal(piece, " hello", 6);
    close_opened(&opened);

    write_spm(&writer, true, true);
    gguf_writer_add_bool(&writer, "tokenizer.ggml.add_space_prefix", false);
    gguf_writer_add_bool(&writer, "tokenizer.ggml.add_bos_token", false);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    assert_ids(opened.tokenizer, T("hello hello"), BOS, IDS(HELLO, SPACE_HELLO));
    assert_decodes(opened.tokenizer, IDS(SPACE_HELLO), false, " hello");
    close_opened(&opened);

    /* Without byte tokens a character that is unknown is one unknown token, and nothing if there is none. */
    write_spm(&writer, false, true);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    assert_ids(opened.tokenizer, T("h\342\202\272o"), 0, IDS(SPACE_MARK, H, UNK, O));
    close_opened(&opened);
}

/* ---- Arguments, buffers, memory, threads ------------------------------------------------------------------------- */

static void test_arguments(void **state) {
    (void)state;
    struct opened opened;
    const struct bpe_options options = bpe_defaults();
    open_bpe(&opened, &options);
    const struct drllm_tokenizer *t = opened.tokenizer;
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t n = 99;
    struct drllm_error error = {0};
    assert_int_equal(drllm_tokenizer_encode(t, NULL, 1, 0, ids, 4, &n, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_encode(t, "a", 1, 8, ids, 4, &n, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_encode(t, "a", 1, 0, NULL, 4, &n, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_encode(t, "a", 1, 0, ids, 4, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_encode(t, "a", SIZE_MAX, 0, ids, 4, &n, NULL), DRLLM_ERR_ARGUMENT);
    assert_int_equal(n, 99);
    /* too small a buffer is left alone */
    assert_int_equal(drllm_tokenizer_encode(t, "vwxyz", 5, 0, ids, 4, &n, &error), DRLLM_ERR_BUFFER);
    assert_int_equal(n, 5);
    assert_int_equal(ids[0], -7);
    assert_int_equal(drllm_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n, NULL), DRLLM_OK);
    assert_int_equal(n, 0);

    char text[4] = "???";
    size_t size = 99;
    assert_int_equal(drllm_tokenizer_decode(t, IDS('a', -1), false, text, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_decode(t, IDS('a', N_BPE), false, text, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_decode(t, NULL, 1, false, text, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_decode(t, IDS('a'), false, NULL, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_token_bytes(t, -1, false, text, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_tokenizer_token_bytes(t, N_BPE, false, text, 4, &size), DRLLM_ERR_ARGUMENT);
    assert_int_equal(size, 99);
    assert_int_equal(drllm_tokenizer_token_bytes(t, ABCD, false, text, 3, &size), DRLLM_ERR_BUFFER);
    assert_int_equal(size, 4);
    assert_int_equal(drllm_tokenizer_decode(t, IDS(AB, ABC), false, text, 4, &size), DRLLM_ERR_BUFFER);
    assert_int_equal(size, 5);
    assert_string_equal(text, "???");
    assert_int_equal(drllm_tokenizer_decode(t, NULL, 0, false, NULL, 0, &size), DRLLM_OK);
    assert_int_equal(size, 0);
    close_opened(&opened);
    drllm_tokenizer_close(NULL);
}

static void write_either(struct gguf_writer *writer, bool bpe) {
    if (bpe) {
        struct bpe_options options = bpe_defaults();
        options.lacks_bytes = true;
        write_bpe(writer, &options);
    } else {
        write_spm(writer, true, true);
    }
}

/* Let the allocations fail one after the other. */
static void test_no_memory(void **state) {
    (void)state;
    static const char middle[] = "<e>user</s>\377\n\n";
    static char text[300];
    memset(text, 'a', sizeof text);
    memcpy(text + 100, middle, sizeof middle);
    for (int bpe = 0; bpe < 2; bpe++) {
        size_t n_failed = 0;
        for (size_t fail_at = 0;; fail_at++) {
            struct gguf_writer writer;
            struct opened opened;
            struct drllm_error error = {0};
            write_either(&writer, bpe != 0);
            size_t size = 0;
            opened = (struct opened){.data = gguf_writer_finish(&writer, &size)};
            const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
            assert_int_equal(drllm_gguf_open(&opened.gguf, opened.data, size, &allocator, &error), DRLLM_OK);
            counted.n_calls = 0;
            counted.fail_at = fail_at;
            const int opening = drllm_tokenizer_open(&opened.gguf, &allocator, &opened.tokenizer, &error);
            size_t n = 99;
            int32_t ids[1000] = {-7};
            int encoding = DRLLM_OK;
            if (opening == DRLLM_OK) {
                encoding =
                    drllm_tokenizer_encode(opened.tokenizer, text, sizeof text, BOS | SPECIAL, ids, 1000, &n, &error);
            }
            const bool reached = counted.n_calls > fail_at;
            counted.fail_at = SIZE_MAX;
            assert_int_equal(opening != DRLLM_OK ? opening : encoding, reached ? DRLLM_ERR_MEMORY : DRLLM_OK);
            if (reached) {
                assert_true(n == 99 && ids[0] == -7 && error.detail[0] != 0);
            }
            close_opened(&opened);
            n_failed += reached;
            if (!reached) {
                break;
            }
        }
        assert_true(n_failed > 8);
    }
}

struct job {
    const struct drllm_tokenizer *tokenizer;
    bool equal;
};

static void *encode_often(void *argument) {
    struct job *job = argument;
    static const char text[] = "abab a user <e>abcdabcd zz, and a longer wooooooooooooooooooooooooooooooooooooooooord";
    int32_t first[128], ids[128];
    size_t n_first = 0, n = 0;
    job->equal = drllm_tokenizer_encode(job->tokenizer, text, sizeof text, SPECIAL, first, 128, &n_first, NULL) == 0;
    for (int i = 0; i < 2000 && job->equal; i++) {
        job->equal = drllm_tokenizer_encode(job->tokenizer, text, sizeof text, SPECIAL, ids, 128, &n, NULL) == 0 &&
                     n == n_first && memcmp(ids, first, n * sizeof *ids) == 0;
    }
    return NULL;
}

static void *thread_allocate(void *user, size_t size, size_t alignment) {
    (void)user;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void thread_release(void *user, void *memory, size_t size) {
    (void)user;
    (void)size;
    free(memory);
}

static void test_threads(void **state) {
    (void)state;
    const struct drllm_allocator allocator = {thread_allocate, thread_release, NULL};
    struct bpe_options options = bpe_defaults();
    struct gguf_writer writer;
    struct drllm_gguf gguf;
    struct drllm_tokenizer *tokenizer = NULL;
    struct drllm_error error;
    size_t size = 0;
    write_bpe(&writer, &options);
    uint8_t *data = gguf_writer_finish(&writer, &size);
    assert_int_equal(drllm_gguf_open(&gguf, data, size, &allocator, &error), DRLLM_OK);
    assert_int_equal(drllm_tokenizer_open(&gguf, &allocator, &tokenizer, &error), DRLLM_OK);
    pthread_t threads[4];
    struct job jobs[4];
    for (size_t i = 0; i < 4; i++) {
        jobs[i] = (struct job){tokenizer, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(jobs[i].equal);
    }
    drllm_tokenizer_close(tokenizer);
    drllm_gguf_close(&gguf);
    free(data);
}

/* ---- Long texts -------------------------------------------------------------------------------------------------- */

/* A word of a million bytes: minutes if the time were quadratic. The heap must give what the plain search gives. */
static void test_long_words(void **state) {
    (void)state;
    enum { LENGTH = 1000000 };
    char *text = malloc(LENGTH);
    assert_non_null(text);
    for (int kind = 0; kind < 2; kind++) {
        struct gguf_writer writer;
        struct opened opened;
        struct drllm_error error;
        write_either(&writer, kind == 0);
        assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
        static const char *const units[] = {"a", "abcd", "hello", "<", "user", " ", "\377", "a "};
        for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
            const size_t unit = strlen(units[i]);
            for (size_t at = 0; at < LENGTH; at++) {
                text[at] = units[i][at % unit];
            }
            size_t n = 0;
            int32_t *ids = encode(opened.tokenizer, (struct text){text, LENGTH}, SPECIAL, &n);
            assert_true(n >= LENGTH / 5 && n <= 3 * LENGTH + 3);
            if (unit == 4 && kind == 0) {
                /* abcd: "b c" is merged first, then nothing; user: one token each */
                for (size_t k = 0; k < n; k++) {
                    const int32_t abcd[] = {'a', BC, 'd'};
                    assert_int_equal(ids[k], units[i][0] == 'u' ? (int32_t)USER : abcd[k % 3]);
                }
            }
            free(ids);
        }
        close_opened(&opened);
    }
    free(text);
}

static void test_long_word_of_model(void **state) {
    (void)state;
    struct opened opened;
    open_given(&opened, "DRLLM_TEST_MODEL", NULL);
    enum { LENGTH = 100000 };
    char *text = malloc(LENGTH);
    assert_non_null(text);
    struct tiny_random random = {1};
    for (size_t i = 0; i < LENGTH; i++) {
        text[i] = (char)('a' + tiny_random_u64(&random) % 26);
    }
    assert_round_trip(opened.tokenizer, (struct text){text, LENGTH}, 0);
    free(text);
    close_opened(&opened);
}

/* ---- Damaged vocabularies ---------------------------------------------------------------------------------------- */

static void assert_refused(struct gguf_writer *writer, int status, const char *named) {
    struct opened opened;
    struct drllm_error error = {0};
    assert_int_equal(open_written(&opened, writer, &error), status);
    assert_int_equal(error.status, status);
    if (strstr(error.detail, named) == NULL) {
        fail_msg("'%s' does not name '%s'", error.detail, named);
    }
    close_opened(&opened);
}

static void test_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct bpe_options options = bpe_defaults();
    options.model = NULL;
    write_bpe(&writer, &options);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.model");
    options.model = "bert";
    write_bpe(&writer, &options);
    assert_refused(&writer, DRLLM_ERR_UNSUPPORTED, "bert");
    options = bpe_defaults();
    options.pre = "tekken";
    write_bpe(&writer, &options);
    assert_refused(&writer, DRLLM_ERR_UNSUPPORTED, "tekken");
    options.pre = NULL;
    write_bpe(&writer, &options);
    gguf_writer_add_u32(&writer, "tokenizer.ggml.pre", 1);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.pre");
    options = bpe_defaults();
    options.no_merges = true;
    write_bpe(&writer, &options);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.merges");
    write_bpe(&writer, &options);
    gguf_writer_add_i32s(&writer, "tokenizer.ggml.merges", options.types, 4);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.merges");
    options = bpe_defaults();
    options.n_types = N_BPE - 1;
    write_bpe(&writer, &options);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.token_type");
    options.n_types = 0;
    write_bpe(&writer, &options);
    gguf_writer_add_u32(&writer, "tokenizer.ggml.token_type", 1);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.token_type");
    options = bpe_defaults();
    write_bpe(&writer, &options);
    gguf_writer_add_string(&writer, "tokenizer.ggml.add_bos_token", "yes");
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.add_bos_token");

    const float scores[4] = {0};
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "llama");
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.tokens");
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "llama");
    gguf_writer_add_f32s(&writer, "tokenizer.ggml.tokens", scores, 4);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.tokens");
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "llama");
    gguf_writer_add_strings(&writer, "tokenizer.ggml.tokens", spm_texts, NULL, 0);
    assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.tokens");
    for (int kind = 0; kind < 3; kind++) {
        gguf_writer_init(&writer);
        gguf_writer_add_string(&writer, "tokenizer.ggml.model", "llama");
        gguf_writer_add_strings(&writer, "tokenizer.ggml.tokens", spm_texts, NULL, N_SPM);
        if (kind == 1) {
            gguf_writer_add_f32s(&writer, "tokenizer.ggml.scores", spm_scores, N_SPM - 1);
        } else if (kind == 2) {
            gguf_writer_add_i32s(&writer, "tokenizer.ggml.scores", spm_types, N_SPM);
        }
        assert_refused(&writer, DRLLM_ERR_FORMAT, "tokenizer.ggml.scores");
    }
}

/* What is odd, but can be lived with. */
static void test_odd_vocabularies(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct opened opened;
    struct drllm_error error;
    /* Ids out of range are as good as none, negative ones too; unknown types hide a token. */
    struct bpe_options options = bpe_defaults();
    options.bos = N_BPE;
    options.eos = -1;
    options.add_bos = 1;
    options.types[ABC] = 77;
    options.types[BC] = -1;
    open_bpe(&opened, &options);
    assert_int_equal(drllm_tokenizer_bos(opened.tokenizer), -1);
    assert_int_equal(drllm_tokenizer_eos(opened.tokenizer), -1);
    assert_false(drllm_tokenizer_add_bos(opened.tokenizer));
    assert_ids(opened.tokenizer, T("ab"), BOS, IDS(AB));
    assert_decodes(opened.tokenizer, IDS(ABC, BC, AB), true, "ab");
    close_opened(&opened);

    /* No types: all are normal. */
    options = bpe_defaults();
    options.n_types = 0;
    open_bpe(&opened, &options);
    assert_ids(opened.tokenizer, T("<e>"), SPECIAL, IDS('<', 'e', '>'));
    close_opened(&opened);

    /* Equal and empty texts, scores that are no numbers, an unknown token out of range. */
    static const char *const texts[] = {"", SPACE, "a", "a", "aa", "", "<0x", "<0xZZ>"};
    static const int32_t types[] = {2, 1, 1, 1, 1, 6, 6, 6};
    const float scores[] = {0, NAN, -INFINITY, INFINITY, NAN, -0.0f, 0, 0};
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "llama");
    gguf_writer_add_strings(&writer, "tokenizer.ggml.tokens", texts, NULL, 8);
    gguf_writer_add_f32s(&writer, "tokenizer.ggml.scores", scores, 8);
    gguf_writer_add_i32s(&writer, "tokenizer.ggml.token_type", types, 8);
    gguf_writer_add_u64(&writer, "tokenizer.ggml.unknown_token_id", UINT64_MAX);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    assert_ids(opened.tokenizer, T("aaab"), 0, IDS(1, 4, 3, 0));
    assert_decodes(opened.tokenizer, IDS(1, 2, 3, 4, 5, 6, 7, 0), true, "aaaa<0x<0xZZ>");
    close_opened(&opened);

    /* A token of a megabyte is not looked for in texts; of a thousand bytes, and just its beginning, they are. */
    enum { LONG = 1 << 20 };
    char *long_text = malloc(LONG);
    assert_non_null(long_text);
    memset(long_text, 'a', LONG);
    const char *const long_texts[] = {"a", long_text, long_text, long_text, "aa"};
    const size_t long_sizes[] = {1, LONG, 1000, 999, 2};
    static const int32_t long_types[] = {1, 3, 3, 4, 1};
    static const char *const merges[] = {"a a"};
    gguf_writer_init(&writer);
    gguf_writer_add_string(&writer, "tokenizer.ggml.model", "gpt2");
    gguf_writer_add_strings(&writer, "tokenizer.ggml.tokens", long_texts, long_sizes, 5);
    gguf_writer_add_i32s(&writer, "tokenizer.ggml.token_type", long_types, 5);
    gguf_writer_add_strings(&writer, "tokenizer.ggml.merges", merges, NULL, 1);
    assert_int_equal(open_written(&opened, &writer, &error), DRLLM_OK);
    assert_ids(opened.tokenizer, (struct text){long_text, 1999}, SPECIAL, IDS(2, 3));
    assert_ids(opened.tokenizer, (struct text){long_text, 2001}, 0, IDS(3, 3, 4, 0));
    assert_ids(opened.tokenizer, T("aaa"), SPECIAL, IDS(4, 0));
    size_t n = 0;
    int32_t *ids = encode(opened.tokenizer, (struct text){long_text, LONG}, SPECIAL, &n);
    assert_int_equal(n, LONG / 1000 + LONG % 1000 / 2);
    free(ids);
    close_opened(&opened);
    free(long_text);
}

/* Bytes of a sound vocabulary changed at random: whatever opens must work. */
static void test_damaged(void **state) {
    (void)state;
    struct tiny_random random = {7};
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    for (int round = 0; round < 3000; round++) {
        struct gguf_writer writer;
        struct drllm_gguf gguf;
        struct drllm_tokenizer *tokenizer = NULL;
        struct drllm_error error;
        size_t size = 0;
        write_either(&writer, round % 2 == 0);
        uint8_t *data = gguf_writer_finish(&writer, &size);
        for (uint64_t n = 1 + tiny_random_u64(&random) % 8; n > 0; n--) {
            data[tiny_random_u64(&random) % size] = (uint8_t)tiny_random_u64(&random);
        }
        if (drllm_gguf_open(&gguf, data, size, &allocator, &error) == DRLLM_OK) {
            if (drllm_tokenizer_open(&gguf, &allocator, &tokenizer, &error) == DRLLM_OK) {
                static const char text[] = "abcd hello<e></s> user\n\n 123 \342\202\254 \377";
                int32_t ids[256];
                char decoded[4096];
                size_t n = 0;
                assert_int_equal(
                    drllm_tokenizer_encode(tokenizer, text, sizeof text, BOS | SPECIAL, ids, 256, &n, &error),
                    DRLLM_OK);
                (void)drllm_tokenizer_decode(tokenizer, ids, n, true, decoded, sizeof decoded, &size);
                drllm_tokenizer_close(tokenizer);
            }
            drllm_gguf_close(&gguf);
        }
        free(data);
        assert_int_equal(counted.n_live, 0);
    }
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */

static void test_utf8_complete(void **state) {
    (void)state;
    static const struct {
        struct text text;
        size_t complete;
    } cases[] = {
        {TEXT(""), 0},
        {TEXT("a"), 1},
        {TEXT("a\303"), 1},
        {TEXT("a\303\251"), 3},
        {TEXT("\342\202"), 0},
        {TEXT("\342\202\254"), 3},
        {TEXT("\360\237\221"), 0},
        {TEXT("\360\237"), 0},
        {TEXT("x\360"), 1},
        {TEXT("\360\237\221\250"), 4},
        /* no beginning of a character: a lone second byte, C1, F5, an overlong form, a surrogate, beyond U+10FFFF */
        {TEXT("\200\200"), 2},
        {TEXT("\301"), 1},
        {TEXT("\365"), 1},
        {TEXT("\340\200"), 2},
        {TEXT("\355\240"), 2},
        {TEXT("\364\220\200"), 3},
        {TEXT("\360\237A"), 3},
        {TEXT("\303\251\251"), 3},
        {TEXT("\342\202\254\200\342"), 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(drllm_utf8_complete(cases[i].text.data, cases[i].text.size), cases[i].complete);
    }
}

/* Feed bytes one at a time, as tokens bring them, and show what is complete: no character is cut. */
static void test_utf8_stream(void **state) {
    (void)state;
    static const char text[] =
        "na\303\257ve \342\202\254 \360\237\221\250\342\200\215\360\237\221\251 \346\227\245\346\234\254";
    char shown[sizeof text], waiting[8];
    size_t n_shown = 0, n_waiting = 0;
    for (size_t i = 0; i + 1 < sizeof text; i++) {
        waiting[n_waiting++] = text[i];
        const size_t n = drllm_utf8_complete(waiting, n_waiting);
        char sane[32];
        assert_int_equal(drllm_utf8_sanitise(waiting, n, sane), n);
        assert_memory_equal(sane, waiting, n);
        memcpy(shown + n_shown, waiting, n);
        n_shown += n;
        n_waiting -= n;
        memmove(waiting, waiting + n, n_waiting);
        assert_true(n_waiting < 4);
    }
    assert_int_equal(n_waiting, 0);
    assert_int_equal(n_shown, sizeof text - 1);
    assert_memory_equal(shown, text, n_shown);
}

static void test_utf8_sanitise(void **state) {
    (void)state;
#define FFFD "\357\277\275"
    /* As Python's bytes.decode("utf-8", "replace"). */
    static const struct text cases[][2] = {
        {TEXT(""), TEXT("")},
        {TEXT("a\303\251\342\202\254\360\237\221\250"), TEXT("a\303\251\342\202\254\360\237\221\250")},
        {TEXT("\200a\377"), TEXT(FFFD "a" FFFD)},
        {TEXT("\342\202"), TEXT(FFFD)},
        {TEXT("\342\202z\360\237\221"), TEXT(FFFD "z" FFFD)},
        {TEXT("\340\200\200"), TEXT(FFFD FFFD FFFD)},
        {TEXT("\355\240\200"), TEXT(FFFD FFFD FFFD)},
        {TEXT("\364\220\200\200"), TEXT(FFFD FFFD FFFD FFFD)},
        {TEXT("\300\200\000"), TEXT(FFFD FFFD "\000")},
        {TEXT("\303\303\251"), TEXT(FFFD "\303\251")},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64];
        const size_t n = drllm_utf8_sanitise(cases[i][0].data, cases[i][0].size, out);
        assert_int_equal(n, cases[i][1].size);
        assert_memory_equal(out, cases[i][1].data, n);
    }
}

/* Every character, and its class, as utf8proc has them. */
static void test_utf8_values(void **state) {
    (void)state;
    size_t n_characters = 0;
    for (uint32_t character = 0; character <= 0x10FFFF; character++) {
        if (character >= 0xD800 && character <= 0xDFFF) {
            continue;
        }
        uint8_t bytes[4];
        const size_t size = (size_t)utf8proc_encode_char((utf8proc_int32_t)character, bytes);
        bool whole = false;
        assert_int_equal(drllm_utf8_character((const char *)bytes, size, &whole), size);
        assert_true(whole);
        assert_int_equal(drllm_utf8_value((const char *)bytes, size), character);
        n_characters++;
    }
    assert_int_equal(n_characters, 0x110000 - 0x800);
}

/* Which bytes are a character: random ones that are often near a valid sequence. */
static void test_utf8_validity(void **state) {
    (void)state;
    static const uint8_t firsts[] = {0x41, 0x80, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1,
                                     0xED, 0xEF, 0xF0, 0xF3, 0xF4, 0xF5, 0xFF};
    static const uint8_t seconds[] = {0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0};
    uint64_t random = 5;
    size_t n_valid = 0;
    for (size_t i = 0; i < 200000; i++) {
        uint8_t bytes[4];
        bytes[0] = firsts[drllm_random(&random) % sizeof firsts];
        for (size_t k = 1; k < 4; k++) {
            bytes[k] = seconds[drllm_random(&random) % sizeof seconds];
        }
        const size_t size = 1 + drllm_random(&random) % 4;
        utf8proc_int32_t value = -1;
        const utf8proc_ssize_t n = utf8proc_iterate(bytes, (utf8proc_ssize_t)size, &value);
        bool whole = false;
        const size_t ours = drllm_utf8_character((const char *)bytes, size, &whole);
        assert_int_equal(whole, n > 0);
        if (whole) {
            assert_int_equal(ours, n);
            assert_int_equal(drllm_utf8_value((const char *)bytes, ours), value);
            n_valid++;
        }
    }
    assert_in_range(n_valid, 20000, 180000);
}

static enum drllm_unicode_class reference_class(uint32_t character) {
    const utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)character);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) {
        return DRLLM_UNICODE_LETTER;
    }
    if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) {
        return DRLLM_UNICODE_NUMBER;
    }
    if (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO) {
        return DRLLM_UNICODE_PUNCTUATION;
    }
    /* Unicode 15.1's, behind utf8proc 2.8's. */
    return character >= 0x2EBF0 && character <= 0x2EE5D ? DRLLM_UNICODE_LETTER : DRLLM_UNICODE_OTHER;
}

static void test_unicode_classes(void **state) {
    (void)state;
    size_t counts[4] = {0};
    for (uint32_t character = 0; character <= 0x110000; character++) {
        const enum drllm_unicode_class class = drllm_unicode_class(character);
        if (class != reference_class(character)) {
            fail_msg("U+%04X: class %d, not %d", character, (int)class, (int)reference_class(character));
        }
        counts[class]++;
    }
    for (size_t i = 0; i < 4; i++) {
        assert_in_range(counts[i], 800, 0x110001);
    }
    assert_int_equal(drllm_unicode_class(UINT32_MAX), DRLLM_UNICODE_OTHER);
}

int drllm_test_tokenizer(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_llama3_cases, reset),
        cmocka_unit_test_setup(test_llama2_cases, reset),
        cmocka_unit_test_setup(test_model_texts, reset),
        cmocka_unit_test_setup(test_model_memory, reset),
        cmocka_unit_test_setup(test_reference_ids, reset),
        cmocka_unit_test_setup(test_words, reset),
        cmocka_unit_test_setup(test_small_bpe, reset),
        cmocka_unit_test_setup(test_lacking_bytes, reset),
        cmocka_unit_test_setup(test_overlapping_specials, reset),
        cmocka_unit_test_setup(test_small_spm, reset),
        cmocka_unit_test_setup(test_arguments, reset),
        cmocka_unit_test_setup(test_no_memory, reset),
        cmocka_unit_test_setup(test_threads, reset),
        cmocka_unit_test_setup(test_long_words, reset),
        cmocka_unit_test_setup(test_long_word_of_model, reset),
        cmocka_unit_test_setup(test_refused, reset),
        cmocka_unit_test_setup(test_odd_vocabularies, reset),
        cmocka_unit_test_setup(test_damaged, reset),
        cmocka_unit_test_setup(test_utf8_complete, reset),
        cmocka_unit_test_setup(test_utf8_values, reset),
        cmocka_unit_test_setup(test_utf8_validity, reset),
        cmocka_unit_test_setup(test_unicode_classes, reset),
        cmocka_unit_test_setup(test_utf8_stream, reset),
        cmocka_unit_test_setup(test_utf8_sanitise, reset),
    };
    return drllm_run_group("tokenizer", tests, NULL, NULL);
}
