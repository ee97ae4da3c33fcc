#include "tools/synthetic_vocabulary.h"

#include "runtime/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

enum { N_BYTES = 256, N_PRINTABLE = 95, FIRST_PRINTABLE = 0x20 };

/* Texts one behind the other. */
struct texts {
    struct text bytes;
    size_t *ends;
    size_t count;
};

static void end_text(struct texts *texts) {
    texts->ends = reallocate(texts->ends, texts->count + 1, sizeof *texts->ends);
    texts->ends[texts->count++] = texts->bytes.size;
}

static void set_texts(struct drllm_gguf_changes *changes, const char *key, const struct texts *texts) {
    struct drllm_string *strings = allocate(texts->count, sizeof *strings);
    size_t begin = 0;
    for (size_t i = 0; i < texts->count; i++) {
        strings[i] = (struct drllm_string){texts->bytes.data + begin, texts->ends[i] - begin};
        begin = texts->ends[i];
    }
    drllm_gguf_set_strings(changes, key, strings, texts->count);
    free(strings);
}

static void release_texts(struct texts *texts) {
    text_release(&texts->bytes);
    free(texts->ends);
}

struct vocabulary {
    struct texts tokens;
    int32_t *types;
    size_t count;
};

/* Behind the token's text. */
static void end_token(struct vocabulary *vocabulary, enum drllm_token_type type) {
    end_text(&vocabulary->tokens);
    vocabulary->types[vocabulary->count++] = (int32_t)type;
}

static void add_token(struct vocabulary *vocabulary, const char *text, enum drllm_token_type type) {
    text_append(&vocabulary->tokens.bytes, text, strlen(text));
    end_token(vocabulary, type);
}

/* ---- Characters; code points below 0x10000 ---- */

static void append_character(struct text *text, uint32_t code) {
    char bytes[3];
    size_t size = 0;
    if (code < 0x80) {
        bytes[size++] = (char)code;
    } else if (code < 0x800) {
        bytes[size++] = (char)(0xC0 | code >> 6);
        bytes[size++] = (char)(0x80 | (code & 0x3F));
    } else {
        bytes[size++] = (char)(0xE0 | code >> 12);
        bytes[size++] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[size++] = (char)(0x80 | (code & 0x3F));
    }
    text_append(text, bytes, size);
}

/* Bytes in an order that begins with what texts are made of, as GPT-2 writes them. */
static void append_byte(struct text *text, size_t i) {
    append_character(text, drllm_byte_character((uint8_t)(FIRST_PRINTABLE + i)));
}

static void append_printable(struct text *text, size_t i) {
    append_character(text, i == 0 ? 0x2581 : (uint32_t)(FIRST_PRINTABLE + i)); /* a blank is U+2581 */
}

/* The text number i of those with one character out of n, then with two, then with three. *length: characters. */
static size_t text_digits(size_t i, size_t n, size_t digits[3]) {
    size_t length = 1;
    for (size_t count = n; i >= count && length < 3; count *= n) {
        i -= count;
        length++;
    }
    for (size_t k = length; k-- > 0; i /= n) {
        digits[k] = i % n;
    }
    return length;
}

/* ---- Byte-level BPE ---- */

/* Of two characters or three: the last one is merged to the others. */
static void add_merge(struct texts *merges, const size_t *digits, size_t length) {
    for (size_t k = 0; k < length; k++) {
        if (k + 1 == length) {
            text_append(&merges->bytes, " ", 1);
        }
        append_byte(&merges->bytes, digits[k]);
    }
    end_text(merges);
}

static void add_bpe(struct drllm_gguf_changes *changes, struct vocabulary *vocabulary, size_t n_vocab,
                    enum synthetic_vocabulary kind) {
    const bool is_llama3 = kind == SYNTHETIC_LLAMA3;
    const size_t n_specials = is_llama3 ? 256 : 1;
    const size_t first_special = n_vocab - n_specials;
    struct texts merges = {{NULL, 0, 0}, NULL, 0};
    for (size_t i = 0; i < first_special; i++) {
        size_t digits[3];
        const size_t length = text_digits(i, N_BYTES, digits);
        for (size_t k = 0; k < length; k++) {
            append_byte(&vocabulary->tokens.bytes, digits[k]);
        }
        end_token(vocabulary, DRLLM_TOKEN_NORMAL);
        if (length > 1) {
            add_merge(&merges, digits, length);
        }
    }
    for (size_t i = 0; i < n_specials; i++) {
        char text[48];
        snprintf(text, sizeof text, "<|reserved_special_token_%zu|>", i);
        add_token(vocabulary,
                  !is_llama3 ? "<|endoftext|>"
                  : i == 0   ? "<|begin_of_text|>"
                  : i == 1   ? "<|end_of_text|>"
                             : text,
                  DRLLM_TOKEN_CONTROL);
    }
    const char *splitter = is_llama3 ? "llama-bpe" : "smollm";
    drllm_gguf_set_string(changes, "tokenizer.ggml.model", "gpt2", 4);
    drllm_gguf_set_string(changes, "tokenizer.ggml.pre", splitter, strlen(splitter));
    set_texts(changes, "tokenizer.ggml.merges", &merges);
    drllm_gguf_set_u32(changes, "tokenizer.ggml.bos_token_id", (uint32_t)first_special);
    drllm_gguf_set_u32(changes, "tokenizer.ggml.eos_token_id", (uint32_t)(first_special + (is_llama3 ? 1 : 0)));
    release_texts(&merges);
}

/* ---- SentencePiece ---- */

static void add_spm(struct drllm_gguf_changes *changes, struct vocabulary *vocabulary, size_t n_vocab) {
    float *scores = allocate(n_vocab, sizeof *scores);
    memset(scores, 0, n_vocab * sizeof *scores);
    add_token(vocabulary, "<unk>", DRLLM_TOKEN_UNKNOWN);
    add_token(vocabulary, "<s>", DRLLM_TOKEN_CONTROL);
    add_token(vocabulary, "</s>", DRLLM_TOKEN_CONTROL);
    for (unsigned byte = 0; byte < N_BYTES; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        add_token(vocabulary, text, DRLLM_TOKEN_BYTE);
    }
    for (size_t i = 0; vocabulary->count < n_vocab; i++) {
        size_t digits[3];
        const size_t length = text_digits(i, N_PRINTABLE, digits);
        for (size_t k = 0; k < length; k++) {
            append_printable(&vocabulary->tokens.bytes, digits[k]);
        }
        scores[vocabulary->count] = -(float)i;
        end_token(vocabulary, DRLLM_TOKEN_NORMAL);
    }
    drllm_gguf_set_string(changes, "tokenizer.ggml.model", "llama", 5);
    drllm_gguf_set_string(changes, "tokenizer.ggml.pre", "default", 7);
    drllm_gguf_set_f32s(changes, "tokenizer.ggml.scores", scores, n_vocab);
    drllm_gguf_set_u32(changes, "tokenizer.ggml.unknown_token_id", 0);
    drllm_gguf_set_u32(changes, "tokenizer.ggml.bos_token_id", 1);
    drllm_gguf_set_u32(changes, "tokenizer.ggml.eos_token_id", 2);
    free(scores);
}

void synthetic_add_vocabulary(struct drllm_gguf_changes *changes, const struct synthetic_shape *shape) {
    struct vocabulary vocabulary = {.types = allocate(shape->n_vocab, sizeof(int32_t))};
    if (shape->vocabulary == SYNTHETIC_SPM) {
        add_spm(changes, &vocabulary, shape->n_vocab);
    } else {
        add_bpe(changes, &vocabulary, shape->n_vocab, shape->vocabulary);
    }
    set_texts(changes, "tokenizer.ggml.tokens", &vocabulary.tokens);
    drllm_gguf_set_i32s(changes, "tokenizer.ggml.token_type", vocabulary.types, vocabulary.count);
    release_texts(&vocabulary.tokens);
    free(vocabulary.types);
}
