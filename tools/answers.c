#include "tools/answers.h"

#include <utf8proc.h>

#include <stdlib.h>
#include <string.h>

const char *const match_names[] = {"exact", "letter", "number", "boxed", "contains", NULL};

/* ---- Text ---- */

/* Without the locale, which must not decide what is right. */
static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_latin(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct part part_of(const char *text) {
    return (struct part){text, strlen(text)};
}

struct part part_trim(struct part part) {
    while (part.size != 0 && is_blank(part.text[0])) {
        part.text++;
        part.size--;
    }
    while (part.size != 0 && is_blank(part.text[part.size - 1])) {
        part.size--;
    }
    return part;
}

static bool same_texts(const struct text *a, const struct text *b) {
    return a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0);
}

/* The character that begins at text[at]; a byte that begins none stands for itself. Returns its size. */
static size_t character_at(struct part part, size_t at, utf8proc_int32_t *character) {
    const utf8proc_ssize_t size =
        utf8proc_iterate((const uint8_t *)part.text + at, (utf8proc_ssize_t)(part.size - at), character);
    if (size <= 0) {
        *character = (unsigned char)part.text[at];
        return 1;
    }
    return (size_t)size;
}

/* In small letters. */
static struct text fold(struct part part) {
    struct text folded = {NULL, 0, 0};
    text_append(&folded, "", 0);
    for (size_t at = 0; at < part.size;) {
        utf8proc_int32_t character;
        char bytes[4];
        const size_t size = character_at(part, at, &character);
        if (size == 1) {
            const char byte = part.text[at];
            bytes[0] = (char)(byte >= 'A' && byte <= 'Z' ? byte - 'A' + 'a' : byte);
            text_append(&folded, bytes, 1);
        } else {
            const utf8proc_ssize_t written =
                utf8proc_encode_char(utf8proc_tolower(character), (utf8proc_uint8_t *)bytes);
            text_append(&folded, bytes, (size_t)written);
        }
        at += size;
    }
    return folded;
}

/* ---- Exact, contains ---- */

static struct part first_line(struct part part) {
    size_t n = 0;
    while (n < part.size && part.text[n] != '\n' && part.text[n] != '\r') {
        n++;
    }
    struct part line = part_trim((struct part){part.text, n});
    if (line.size != 0 && line.text[line.size - 1] == '.') {
        line.size--;
    }
    return part_trim(line);
}

static bool exact_matches(struct part answer, struct part text) {
    struct text a = fold(first_line(answer));
    struct text b = fold(first_line(text));
    const bool matches = same_texts(&a, &b);
    text_release(&a);
    text_release(&b);
    return matches;
}

static bool contains_matches(struct part answer, struct part text) {
    struct text a = fold(answer);
    struct text b = fold(text);
    const bool matches = memmem(b.data, b.size, a.data, a.size) != NULL;
    text_release(&a);
    text_release(&b);
    return matches;
}

/* ---- Letter ---- */

/* What cannot stand beside a letter that stands alone. Scripts without blanks between words are let through. */
static bool is_word(utf8proc_int32_t character) {
    switch (utf8proc_category(character)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return true;
    default:
        return character == '_';
    }
}

/* Apostrophes and hyphens inside a word are of the word. */
static bool is_joiner(utf8proc_int32_t character) {
    return character == '\'' || character == '-' || character == 0x2019;
}

/* The first letter that stands alone, as a small one; 0 without one. Two characters on each side decide. */
static char lone_letter(struct part part) {
    utf8proc_int32_t before[2] = {' ', ' '};
    for (size_t at = 0; at < part.size;) {
        utf8proc_int32_t here;
        utf8proc_int32_t after[2] = {' ', ' '};
        const size_t size = character_at(part, at, &here);
        size_t next = at + size;
        for (size_t i = 0; i < 2 && next < part.size; i++) {
            next += character_at(part, next, &after[i]);
        }
        const bool is_joined = is_word(before[1]) || is_word(after[0]) ||
                               (is_joiner(before[1]) && is_word(before[0])) ||
                               (is_joiner(after[0]) && is_word(after[1]));
        if (size == 1 && is_latin(part.text[at]) && !is_joined) {
            return (char)(part.text[at] | 0x20);
        }
        before[0] = before[1];
        before[1] = here;
        at += size;
    }
    return 0;
}

/* ---- Numbers ---- */

/* A reader's place in a text. */
struct scan {
    struct part part;
    size_t at;
};

static char peek(const struct scan *scan, size_t ahead) {
    return scan->at + ahead < scan->part.size ? scan->part.text[scan->at + ahead] : '\0';
}

static void take_digits(struct scan *scan, struct text *digits) {
    while (is_digit(peek(scan, 0))) {
        text_append(digits, scan->part.text + scan->at, 1);
        scan->at++;
    }
}

/* Signs and dollars in front of the digits, in either order. */
static bool take_sign(struct scan *scan) {
    bool is_negative = false;
    for (bool has_sign = false, has_dollar = false;;) {
        const bool is_minus =
            peek(scan, 0) == '\xe2' && peek(scan, 1) == '\x88' && peek(scan, 2) == '\x92'; /* U+2212 */
        if (!has_sign && (is_minus || peek(scan, 0) == '-' || peek(scan, 0) == '+')) {
            is_negative = peek(scan, 0) != '+';
            has_sign = true;
            scan->at += is_minus ? 3 : 1;
        } else if (!has_dollar && peek(scan, 0) == '$') {
            has_dollar = true;
            scan->at++;
        } else {
            return is_negative;
        }
    }
}

static void take_whole(struct scan *scan, struct text *digits) {
    take_digits(scan, digits);
    const bool may_have_groups = digits->size <= 3;
    while (may_have_groups && peek(scan, 0) == ',' && is_digit(peek(scan, 1)) && is_digit(peek(scan, 2)) &&
           is_digit(peek(scan, 3)) && !is_digit(peek(scan, 4))) {
        scan->at++;
        take_digits(scan, digits);
    }
}

static long take_exponent(struct scan *scan) {
    enum { MOST = 6 };
    const bool has_sign = peek(scan, 1) == '-' || peek(scan, 1) == '+';
    const size_t first = has_sign ? 2 : 1;
    size_t n = first;
    long exponent = 0;
    if (peek(scan, 0) != 'e' && peek(scan, 0) != 'E') {
        return 0;
    }
    for (; is_digit(peek(scan, n)) && n - first < MOST; n++) {
        exponent = 10 * exponent + (peek(scan, n) - '0');
    }
    if (n == first || is_digit(peek(scan, n)) || is_latin(peek(scan, n))) {
        return 0; /* something else that begins with an e */
    }
    exponent = peek(scan, 1) == '-' ? -exponent : exponent;
    scan->at += n;
    return exponent;
}

/* So that equal numbers are equal texts: digits without zeros at the ends, and an exponent. */
static void write_normal(struct text *normal, bool is_negative, const struct text *digits, long exponent) {
    char tail[32];
    size_t first = 0, end = digits->size;
    while (first < end && digits->data[first] == '0') {
        first++;
    }
    while (end > first && digits->data[end - 1] == '0') {
        end--;
        exponent++;
    }
    normal->size = 0;
    if (first == end) {
        text_append(normal, "0", 1);
        return;
    }
    text_append(normal, "-", is_negative ? 1 : 0);
    text_append(normal, digits->data + first, end - first);
    (void)snprintf(tail, sizeof tail, "e%ld", exponent);
    text_append(normal, tail, strlen(tail));
}

/* Whether the byte in front of a sign or a digit lets a number begin there. */
static bool may_begin(struct part part, size_t at) {
    const char before = at != 0 ? part.text[at - 1] : ' ';
    const char here = part.text[at];
    if (is_latin(before) || is_digit(before) || before == '_' ||
        (!is_digit(here) && strchr("+-.$\xe2", here) == NULL)) {
        return false;
    }
    return is_digit(here) || (here == '.' ? before != '.' : before != ')' && before != ']');
}

/* Size of the number that begins at part[at], 0 without one. */
static size_t number_at(struct part part, size_t at, struct text *normal) {
    struct scan scan = {part, at};
    if (!may_begin(part, at)) {
        return 0;
    }
    struct text digits = {NULL, 0, 0};
    text_append(&digits, "", 0);
    const bool is_negative = take_sign(&scan);
    take_whole(&scan, &digits);
    const size_t n_whole = digits.size;
    if (peek(&scan, 0) == '.' && is_digit(peek(&scan, 1))) {
        scan.at++;
        take_digits(&scan, &digits);
    }
    const bool has_digits = digits.size != 0;
    if (has_digits) {
        const long after_point = (long)(digits.size - n_whole);
        write_normal(normal, is_negative, &digits, take_exponent(&scan) - after_point);
    }
    text_release(&digits);
    return has_digits ? scan.at - at : 0;
}

static bool last_number(struct part part, struct text *normal) {
    bool found = false;
    for (size_t at = 0; at < part.size;) {
        const size_t size = number_at(part, at, normal);
        found = found || size != 0;
        at += size != 0 ? size : 1;
    }
    return found;
}

static bool is_number(struct part part, struct text *normal) {
    return part.size != 0 && number_at(part, 0, normal) == part.size;
}

static bool number_matches(struct part answer, struct part text) {
    struct text a = {NULL, 0, 0};
    struct text b = {NULL, 0, 0};
    const bool matches = last_number(answer, &a) && last_number(text, &b) && same_texts(&a, &b);
    text_release(&a);
    text_release(&b);
    return matches;
}

/* ---- Boxed ---- */

/* Up to the brace that closes the one at part[at]; false where the text ends before. */
static bool braced_at(struct part part, size_t at, struct part *content) {
    size_t depth = 0;
    for (size_t i = at; i < part.size; i++) {
        if (part.text[i] == '\\') {
            i++; /* \{ is a brace that is shown */
        } else if (part.text[i] == '{') {
            depth++;
        } else if (part.text[i] == '}' && --depth == 0) {
            *content = (struct part){part.text + at + 1, i - at - 1};
            return true;
        }
    }
    return false;
}

/* \boxed 5$ */
static bool unbraced_at(struct part part, size_t at, struct part *content) {
    size_t end = at;
    while (end < part.size && part.text[end] != '$' && part.text[end] != '\n') {
        end++;
    }
    *content = part_trim((struct part){part.text + at, end - at});
    return content->size != 0;
}

static bool boxed_at(struct part part, size_t at, struct part *content) {
    static const char *const words[] = {"\\boxed", "\\fbox"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        const size_t size = strlen(words[i]);
        if (part.size - at > size && memcmp(part.text + at, words[i], size) == 0 && !is_latin(part.text[at + size])) {
            at += size;
            while (at < part.size && is_blank(part.text[at])) {
                at++;
            }
            return at < part.size &&
                   (part.text[at] == '{' ? braced_at(part, at, content) : unbraced_at(part, at, content));
        }
    }
    return false;
}

bool find_boxed(struct part text, struct part *content) {
    bool found = false;
    for (size_t at = 0; at < text.size; at++) {
        found = (text.text[at] == '\\' && boxed_at(text, at, content)) || found;
    }
    return found;
}

/* Also without LaTeX's own blanks. */
static struct text without_blanks(struct part part) {
    struct text left = {NULL, 0, 0};
    text_append(&left, "", 0);
    for (size_t i = 0; i < part.size; i++) {
        const char c = part.text[i];
        if (c == '\\' && i + 1 < part.size) {
            const char escaped = part.text[++i];
            if (!is_blank(escaped) && strchr("!,;:", escaped) == NULL) {
                text_append(&left, part.text + i - 1, 2);
            }
        } else if (!is_blank(c) && c != '~') {
            text_append(&left, &c, 1);
        }
    }
    return left;
}

static bool boxed_matches(struct part answer, struct part text) {
    struct part wanted_part = answer, given_part;
    (void)find_boxed(answer, &wanted_part);
    const bool has_box = find_boxed(text, &given_part);
    struct text wanted = without_blanks(wanted_part);
    struct text given = has_box ? without_blanks(given_part) : (struct text){NULL, 0, 0};
    struct text a = {NULL, 0, 0};
    struct text b = {NULL, 0, 0};
    bool matches = has_box && same_texts(&wanted, &given);
    if (!matches && is_number((struct part){wanted.data, wanted.size}, &a)) {
        const bool has_number = has_box ? is_number((struct part){given.data, given.size}, &b) : last_number(text, &b);
        matches = has_number && same_texts(&a, &b);
    }
    text_release(&wanted);
    text_release(&given);
    text_release(&a);
    text_release(&b);
    return matches;
}

/* ---- */

bool answer_matches(enum match match, const char *answer, const char *text, size_t size) {
    const struct part wanted = part_trim(part_of(answer));
    const struct part given = {text, size};
    switch (match) {
    case MATCH_EXACT:
        return exact_matches(wanted, given);
    case MATCH_LETTER: {
        const char letter = lone_letter(wanted);
        return letter != 0 && lone_letter(given) == letter;
    }
    case MATCH_NUMBER:
        return number_matches(wanted, given);
    case MATCH_BOXED:
        return boxed_matches(wanted, given);
    case MATCH_CONTAINS:
        return contains_matches(wanted, given);
    default:
        return false;
    }
}

const char *answer_wrong(enum match match, const char *answer) {
    const struct part part = part_trim(part_of(answer));
    if (part.size == 0 || (match == MATCH_EXACT && first_line(part).size == 0)) {
        return "its \"answer\" is empty";
    }
    if (match == MATCH_LETTER && lone_letter(part) == 0) {
        return "its \"answer\" holds no letter that stands alone";
    }
    if (match == MATCH_NUMBER && !number_matches(part, part)) {
        return "its \"answer\" holds no number";
    }
    return NULL;
}
