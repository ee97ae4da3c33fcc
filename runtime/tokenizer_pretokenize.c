/* How byte pair encoding splits text into words: by hand, what these regular expressions of llama.cpp's
 * llama-vocab.cpp (llm_tokenizer_bpe, with the custom splitters of unicode.cpp) match, one after the other on the
 * parts of the one before:
 *
 *   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+      (GPT-2's encoder.py)
 *   smollm     \p{N}, then gpt-2                       (Digits(individual_digits), ByteLevel of its tokenizer.json)
 *   llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
 *              |\s+(?!\S)|\s+                                     (Llama 3's tokenizer.json)
 *   default    [\p{P}\$\+<=>\^~\|]+, then gpt-2, then \p{N}+, then [0-9][0-9][0-9]   (llama.cpp's, for unknown ones)
 *
 * A byte that is not UTF-8 counts as U+FFFD, a symbol. Unlike the regular expressions, nothing here goes back
 * further than one character, so that the time is linear. */
#include "runtime/tokenizer_internal.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"

#include <string.h>

bool drllm_pretokenizer_find(struct drllm_string name, enum drllm_pretokenizer *kind) {
    /* The names that llama.cpp gives the same expressions and the same treatment of whole words. */
    static const struct {
        const char *name;
        enum drllm_pretokenizer kind;
    } known[] = {
        {"", DRLLM_PRETOKENIZE_DEFAULT},          {"default", DRLLM_PRETOKENIZE_DEFAULT},
        {"smollm", DRLLM_PRETOKENIZE_SMOLLM},     {"starcoder", DRLLM_PRETOKENIZE_SMOLLM},
        {"refact", DRLLM_PRETOKENIZE_SMOLLM},     {"command-r", DRLLM_PRETOKENIZE_SMOLLM},
        {"codeshell", DRLLM_PRETOKENIZE_SMOLLM},  {"exaone", DRLLM_PRETOKENIZE_SMOLLM},
        {"minerva-7b", DRLLM_PRETOKENIZE_SMOLLM}, {"gpt-2", DRLLM_PRETOKENIZE_GPT2},
        {"phi-2", DRLLM_PRETOKENIZE_GPT2},        {"mpt", DRLLM_PRETOKENIZE_GPT2},
        {"olmo", DRLLM_PRETOKENIZE_GPT2},         {"jais", DRLLM_PRETOKENIZE_GPT2},
        {"trillion", DRLLM_PRETOKENIZE_GPT2},     {"granite-docling", DRLLM_PRETOKENIZE_GPT2},
        {"gigachat", DRLLM_PRETOKENIZE_GPT2},     {"exaone4", DRLLM_PRETOKENIZE_GPT2},
        {"a.x-4.0", DRLLM_PRETOKENIZE_GPT2},      {"mellum", DRLLM_PRETOKENIZE_GPT2},
        {"llama-bpe", DRLLM_PRETOKENIZE_LLAMA3},  {"llama3", DRLLM_PRETOKENIZE_LLAMA3},
        {"llama-v3", DRLLM_PRETOKENIZE_LLAMA3},   {"falcon3", DRLLM_PRETOKENIZE_LLAMA3},
        {"falcon-h1", DRLLM_PRETOKENIZE_LLAMA3},  {"pixtral", DRLLM_PRETOKENIZE_LLAMA3},
        {"midm-2.0", DRLLM_PRETOKENIZE_LLAMA3},   {"lfm2", DRLLM_PRETOKENIZE_LLAMA3},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (drllm_string_equals(name, known[i].name)) {
            *kind = known[i].kind;
            return true;
        }
    }
    return false;
}

/* ---- Characters ---- */

enum kind { KIND_END, KIND_LETTER, KIND_NUMBER, KIND_SPACE, KIND_OTHER };

struct character {
    uint32_t value;
    uint32_t size; /* bytes; 0 at the end */
    enum kind kind;
};

static enum kind ascii_kind(uint32_t value) {
    const uint32_t letter = value | 0x20;
    if (letter >= 'a' && letter <= 'z') {
        return KIND_LETTER;
    }
    if (value >= '0' && value <= '9') {
        return KIND_NUMBER;
    }
    return value == ' ' || (value >= '\t' && value <= '\r') ? KIND_SPACE : KIND_OTHER;
}

/* White space is what has the property White_Space, as in Rust's \s and llama.cpp's unicode_set_whitespace. */
static bool is_wide_space(uint32_t value) {
    return value == 0x85 || value == 0xA0 || value == 0x1680 || (value >= 0x2000 && value <= 0x200A) ||
           value == 0x2028 || value == 0x2029 || value == 0x202F || value == 0x205F || value == 0x3000;
}

static enum kind wide_kind(uint32_t value) {
    if (is_wide_space(value)) {
        return KIND_SPACE;
    }
    switch (drllm_unicode_class(value)) {
    case DRLLM_UNICODE_LETTER:
        return KIND_LETTER;
    case DRLLM_UNICODE_NUMBER:
        return KIND_NUMBER;
    default:
        return KIND_OTHER;
    }
}

static struct character read_character(const struct drllm_splitter *splitter, size_t at, size_t end) {
    if (at >= end) {
        return (struct character){0, 0, KIND_END};
    }
    const uint8_t byte = splitter->text[at];
    if (byte < 0x80) {
        return (struct character){byte, 1, ascii_kind(byte)};
    }
    const char *text = (const char *)splitter->text + at;
    bool whole = false;
    const size_t size = drllm_utf8_character(text, end - at, &whole);
    if (!whole) {
        return (struct character){0xFFFD, 1, KIND_OTHER};
    }
    const uint32_t value = drllm_utf8_value(text, size);
    return (struct character){value, (uint32_t)size, wide_kind(value)};
}

/* [\p{P}\$\+<=>\^~\|] */
static bool is_default_punctuation(struct character c) {
    if (c.kind != KIND_OTHER) {
        return false;
    }
    if (c.value < 0x80) {
        return c.value > ' ' && c.value < 0x7F && c.value != '`';
    }
    return drllm_unicode_class(c.value) == DRLLM_UNICODE_PUNCTUATION;
}

/* ---- Words ---- */

static size_t end_of_run(const struct drllm_splitter *splitter, size_t at, size_t end, enum kind kind) {
    for (;;) {
        const struct character c = read_character(splitter, at, end);
        if (c.kind != kind) {
            return at;
        }
        at += c.size;
    }
}

/* Bytes of 's 't 're 've 'm 'll 'd at `at`, which is an apostrophe; 0 if there is none of them. */
static size_t contraction(const struct drllm_splitter *splitter, size_t at, size_t end, uint8_t case_bit) {
    const uint8_t *text = splitter->text + at;
    if (end - at < 2) {
        return 0;
    }
    const int first = text[1] | case_bit;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return 2;
    }
    if (end - at < 3) {
        return 0;
    }
    const int second = text[2] | case_bit;
    return (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l') ? 3
                                                                                                                 : 0;
}

/* \s+(?!\S)|\s+ : all white space, but for its last character when a word follows. With `lines`, \s*[\r\n]+ comes
 * first. */
static size_t end_of_spaces(const struct drllm_splitter *splitter, size_t begin, size_t end, bool lines) {
    size_t at = begin, last = begin, line_end = begin;
    for (;;) {
        const struct character c = read_character(splitter, at, end);
        if (c.kind != KIND_SPACE) {
            break;
        }
        last = at;
        at += c.size;
        if (c.value == '\r' || c.value == '\n') {
            line_end = at;
        }
    }
    if (lines && line_end > begin) {
        return line_end;
    }
    return last > begin && at < end ? last : at;
}

static size_t end_of_gpt2_word(const struct drllm_splitter *splitter, size_t at, size_t end) {
    const struct character c = read_character(splitter, at, end);
    if (c.value == '\'') {
        const size_t n = contraction(splitter, at, end, 0);
        if (n > 0) {
            return at + n;
        }
    }
    if (c.value == ' ') {
        const struct character next = read_character(splitter, at + 1, end);
        if (next.kind != KIND_SPACE && next.kind != KIND_END) {
            return end_of_run(splitter, at + 1, end, next.kind);
        }
    }
    return c.kind == KIND_SPACE ? end_of_spaces(splitter, at, end, false) : end_of_run(splitter, at, end, c.kind);
}

static size_t end_of_llama3_word(const struct drllm_splitter *splitter, size_t at, size_t end) {
    const struct character c = read_character(splitter, at, end);
    if (c.value == '\'') {
        const size_t n = contraction(splitter, at, end, 0x20);
        if (n > 0) {
            return at + n;
        }
    }
    if (c.kind == KIND_LETTER) {
        return end_of_run(splitter, at, end, KIND_LETTER);
    }
    if (c.kind == KIND_NUMBER) {
        size_t n = 0;
        for (struct character digit = c; n < 3 && digit.kind == KIND_NUMBER; n++) {
            at += digit.size;
            digit = read_character(splitter, at, end);
        }
        return at;
    }
    const struct character next = read_character(splitter, at + c.size, end);
    if (next.kind == KIND_LETTER && c.value != '\r' && c.value != '\n') {
        return end_of_run(splitter, at + c.size, end, KIND_LETTER);
    }
    if (c.kind == KIND_OTHER || (c.value == ' ' && next.kind == KIND_OTHER)) {
        at = end_of_run(splitter, at + (c.value == ' '), end, KIND_OTHER);
        while (at < end && (splitter->text[at] == '\r' || splitter->text[at] == '\n')) {
            at++;
        }
        return at;
    }
    return end_of_spaces(splitter, at, end, true);
}

/* ---- Stages ---- */

/* The first stage: single digits, or runs of punctuation, and what is between them. */
static size_t end_of_segment(const struct drllm_splitter *splitter) {
    size_t at = splitter->at;
    if (splitter->kind == DRLLM_PRETOKENIZE_GPT2 || splitter->kind == DRLLM_PRETOKENIZE_LLAMA3) {
        return splitter->size;
    }
    const bool digits = splitter->kind == DRLLM_PRETOKENIZE_SMOLLM;
    struct character c = read_character(splitter, at, splitter->size);
    const bool matches = digits ? c.kind == KIND_NUMBER : is_default_punctuation(c);
    if (digits && matches) {
        return at + c.size;
    }
    do {
        at += c.size;
        c = read_character(splitter, at, splitter->size);
    } while (c.kind != KIND_END && (digits ? c.kind == KIND_NUMBER : is_default_punctuation(c)) == matches);
    return at;
}

static bool three_digits(const struct drllm_splitter *splitter, size_t at, size_t end) {
    const uint8_t *text = splitter->text + at;
    return end - at >= 3 && ascii_kind(text[0]) == KIND_NUMBER && ascii_kind(text[1]) == KIND_NUMBER &&
           ascii_kind(text[2]) == KIND_NUMBER;
}

/* The third and fourth stage of `default`, within a word: numbers for themselves, and of those three digits at a
 * time. */
static size_t end_of_default_piece(struct drllm_splitter *splitter) {
    size_t at = splitter->at;
    if (at == splitter->run_end) {
        struct character c = read_character(splitter, at, splitter->word_end);
        const bool number = c.kind == KIND_NUMBER;
        while (c.kind != KIND_END && (c.kind == KIND_NUMBER) == number) {
            splitter->run_end += c.size;
            c = read_character(splitter, splitter->run_end, splitter->word_end);
        }
    }
    if (three_digits(splitter, at, splitter->run_end)) {
        return at + 3;
    }
    do {
        at++;
    } while (at < splitter->run_end && !three_digits(splitter, at, splitter->run_end));
    return at;
}

void drllm_splitter_init(struct drllm_splitter *splitter, enum drllm_pretokenizer kind, const char *text, size_t size) {
    *splitter = (struct drllm_splitter){.kind = kind, .text = (const uint8_t *)text, .size = size};
}

bool drllm_splitter_next(struct drllm_splitter *splitter, struct drllm_string *word) {
    const size_t begin = splitter->at;
    if (begin >= splitter->size) {
        return false;
    }
    if (begin == splitter->segment_end) {
        splitter->segment_end = end_of_segment(splitter);
    }
    if (begin == splitter->word_end) {
        splitter->word_end = splitter->kind == DRLLM_PRETOKENIZE_LLAMA3
                                 ? end_of_llama3_word(splitter, begin, splitter->segment_end)
                                 : end_of_gpt2_word(splitter, begin, splitter->segment_end);
    }
    splitter->at = splitter->kind == DRLLM_PRETOKENIZE_DEFAULT ? end_of_default_piece(splitter) : splitter->word_end;
    *word = (struct drllm_string){(const char *)splitter->text + begin, splitter->at - begin};
    return true;
}
