/* Chat templates: recognised by what is in their text (after llama.cpp's llm_chat_detect_template), then written by
 * hand so that the result equals what the template itself gives for messages without tools. */
#include "runtime/chat.h"

#include "runtime/error.h"

#include <string.h>

/* Templates are searched several times over; real ones have a few thousand bytes. */
enum { MAX_TEMPLATE_BYTES = 1 << 16 };

/* ---- Searching in the template ---- */

static const char *find(struct drllm_string text, const char *wanted) {
    const size_t size = strlen(wanted);
    while (text.size >= size) {
        const char *first = memchr(text.data, wanted[0], text.size - size + 1);
        if (first == NULL) {
            return NULL;
        }
        if (memcmp(first, wanted, size) == 0) {
            return first;
        }
        text.size -= (size_t)(first + 1 - text.data);
        text.data = first + 1;
    }
    return NULL;
}

static bool contains(struct drllm_string text, const char *wanted) {
    return find(text, wanted) != NULL;
}

/* What follows the first `wanted`; empty, with data NULL, if there is none. */
static struct drllm_string behind(struct drllm_string text, const char *wanted) {
    const char *found = find(text, wanted);
    if (found == NULL) {
        return (struct drllm_string){NULL, 0};
    }
    found += strlen(wanted);
    return (struct drllm_string){found, text.size - (size_t)(found - text.data)};
}

static struct drllm_string until(struct drllm_string text, const char *wanted) {
    const char *found = find(text, wanted);
    return found == NULL ? text : (struct drllm_string){text.data, (size_t)(found - text.data)};
}

static struct drllm_string part_of(const char *text) {
    return (struct drllm_string){text, strlen(text)};
}

/* ---- Recognising ---- */

/* {{ '<|user|>\n' + message['content'] + eos_token }} and the like, from behind the tag. */
static struct drllm_string tag_expression(struct drllm_string text, const char *tag) {
    return until(behind(text, tag), "}}");
}

static bool begins_with_newline(struct drllm_string text) {
    return text.size > 0 && (text.data[0] == '\n' || (text.size > 1 && memcmp(text.data, "\\n", 2) == 0));
}

static const char *zephyr_end(struct drllm_string template_text) {
    const struct drllm_string user = tag_expression(template_text, "<|user|>");
    if (contains(user, "eos_token")) {
        return contains(template_text, "<|endoftext|>") ? "<|endoftext|>" : "</s>";
    }
    return contains(user, "</s>") ? "</s>" : contains(user, "<|endoftext|>") ? "<|endoftext|>" : NULL;
}

enum drllm_chat_template drllm_chat_recognise(struct drllm_string template_text) {
    const struct drllm_string t = template_text;
    if (t.size == 0) {
        return DRLLM_CHAT_NONE;
    }
    if (t.size > MAX_TEMPLATE_BYTES) {
        return DRLLM_CHAT_UNKNOWN;
    }
    if (contains(t, "<|im_start|>")) {
        /* Phi 4 and SmolVLM use the tag in their own ways. */
        return contains(t, "<|im_sep|>") || contains(t, "<end_of_utterance>") ? DRLLM_CHAT_UNKNOWN : DRLLM_CHAT_CHATML;
    }
    if (contains(t, "[INST]")) {
        /* Mistral's later versions have other spaces. */
        return contains(t, "[SYSTEM_PROMPT]") || contains(t, "[AVAILABLE_TOOLS]") ||
                       contains(t, "' [INST] ' + system_message")
                   ? DRLLM_CHAT_UNKNOWN
                   : DRLLM_CHAT_LLAMA2;
    }
    if (contains(t, "<|start_header_id|>") && contains(t, "<|end_header_id|>")) {
        return DRLLM_CHAT_LLAMA3;
    }
    /* Falcon 3, Phi 3 and GLM-Edge have the tags too, but end the user's messages otherwise. */
    if (contains(t, "<|user|>") && contains(t, "<|assistant|>") && !contains(t, "<|end|>") && !contains(t, "[gMASK]") &&
        begins_with_newline(behind(t, "<|user|>")) && zephyr_end(t) != NULL) {
        return DRLLM_CHAT_ZEPHYR;
    }
    return DRLLM_CHAT_UNKNOWN;
}

/* ---- Writing ---- */

/* Counts; writes too when there is a text. */
struct sink {
    char *text;
    size_t size;
};

static void put(struct sink *sink, struct drllm_string part) {
    if (sink->text != NULL && part.size > 0) {
        memcpy(sink->text + sink->size, part.data, part.size);
    }
    sink->size += part.size;
}

static void put_text(struct sink *sink, const char *text) {
    put(sink, part_of(text));
}

/* Bytes of the white space character at text[0 .. size) as Python's str.strip sees it; 0 if it is another. */
static size_t space_bytes(const char *text, size_t size) {
    const uint8_t *b = (const uint8_t *)text;
    if (size >= 1 && ((b[0] >= 9 && b[0] <= 13) || (b[0] >= 0x1C && b[0] <= 0x20))) {
        return 1;
    }
    if (size >= 2 && b[0] == 0xC2 && (b[1] == 0x85 || b[1] == 0xA0)) {
        return 2;
    }
    if (size < 3) {
        return 0;
    }
    const bool wide = b[0] == 0xE2 && b[1] == 0x80 && (b[2] <= 0x8A || b[2] == 0xA8 || b[2] == 0xA9 || b[2] == 0xAF);
    return (wide && b[2] >= 0x80) || memcmp(b, "\xE1\x9A\x80", 3) == 0 || memcmp(b, "\xE2\x81\x9F", 3) == 0 ||
                   memcmp(b, "\xE3\x80\x80", 3) == 0
               ? 3
               : 0;
}

static struct drllm_string trim_end(struct drllm_string text) {
    for (size_t n = 1; n <= 3 && n <= text.size;) {
        if (space_bytes(text.data + text.size - n, n) == n) {
            text.size -= n;
            n = 1;
        } else {
            n++;
        }
    }
    return text;
}

static struct drllm_string trim(struct drllm_string text) {
    for (size_t n = 1; n > 0; text.data += n, text.size -= n) {
        n = space_bytes(text.data, text.size);
    }
    return trim_end(text);
}

static bool has_role(const struct drllm_chat_message *message, const char *role) {
    return strcmp(message->role, role) == 0;
}

/* ---- ChatML ---- */

/* The text of '<|im_start|>system\nTEXT<|im_end|>...' as the template writes it, where TEXT has no end of the string
 * in it; data NULL if there is none. *quote is the string's, or 0 outside of one. */
static struct drllm_string find_default_system(struct drllm_string template_text, char *quote) {
    static const char opening[] = "<|im_start|>system", ending[] = "<|im_end|>";
    struct drllm_string rest = template_text;
    for (const char *found = find(rest, opening); found != NULL; found = find(rest, opening)) {
        rest = behind(rest, opening);
        const char before = found > template_text.data ? found[-1] : 0;
        *quote = before == '\'' || before == '"' ? before : 0;
        const char stop = *quote != 0 ? *quote : '{';
        size_t begin = 0;
        if (begins_with_newline(rest)) {
            begin = rest.data[0] == '\n' ? 1 : 2;
        }
        for (size_t i = begin; begin > 0 && i + strlen(ending) <= rest.size && rest.data[i] != stop; i++) {
            if (i > begin && memcmp(rest.data + i, ending, strlen(ending)) == 0) {
                return (struct drllm_string){rest.data + begin, i - begin};
            }
            i += *quote != 0 && rest.data[i] == '\\';
        }
    }
    return (struct drllm_string){NULL, 0};
}

/* The characters that a string of Jinja stands for. */
static void put_unescaped(struct sink *sink, struct drllm_string text) {
    static const char letters[] = "ntr\\'\"", characters[] = "\n\t\r\\'\"";
    for (size_t i = 0; i < text.size; i++) {
        const char *letter = text.data[i] == '\\' && i + 1 < text.size && text.data[i + 1] != 0
                                 ? strchr(letters, text.data[i + 1])
                                 : NULL;
        if (letter != NULL) {
            put(sink, (struct drllm_string){characters + (letter - letters), 1});
            i++;
        } else {
            put(sink, (struct drllm_string){text.data + i, 1});
        }
    }
}

static void write_chatml(struct drllm_string template_text, const struct drllm_chat_message *messages,
                         size_t n_messages, bool add_assistant, struct sink *sink) {
    char quote = 0;
    const struct drllm_string system = find_default_system(template_text, &quote);
    if (system.data != NULL && n_messages > 0 && !has_role(&messages[0], "system")) {
        put_text(sink, "<|im_start|>system\n");
        if (quote != 0) {
            put_unescaped(sink, system);
        } else {
            put(sink, system);
        }
        put_text(sink, "<|im_end|>\n");
    }
    for (size_t i = 0; i < n_messages; i++) {
        put_text(sink, "<|im_start|>");
        put_text(sink, messages[i].role);
        put_text(sink, "\n");
        put_text(sink, messages[i].content);
        put_text(sink, "<|im_end|>\n");
    }
    if (add_assistant) {
        put_text(sink, "<|im_start|>assistant\n");
    }
}

/* ---- Llama 2 ---- */

/* BOS in front of the first message is the tokenizer's; in front of later ones it is text. */
static int write_llama2(struct drllm_string template_text, const struct drllm_chat_message *messages, size_t n_messages,
                        struct sink *sink, struct drllm_error *error) {
    const bool has_system = contains(template_text, "<<SYS>>");
    const bool has_bos = contains(template_text, "bos_token + '[INST]") || contains(template_text, "'<s>[INST]") ||
                         contains(template_text, "'<s>' + '[INST]");
    const bool strips = contains(template_text, "content.strip()") || contains(template_text, "content | trim");
    const bool ends_with_space = contains(template_text, "eos_token + ' '");
    const struct drllm_chat_message *system = n_messages > 0 && has_role(&messages[0], "system") ? messages : NULL;
    const size_t first = system != NULL;
    if (system != NULL && n_messages == 1) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "this chat format has no system message without a user's");
    }
    for (size_t i = first; i < n_messages; i++) {
        const bool user = (i - first) % 2 == 0;
        if (!has_role(&messages[i], user ? "user" : "assistant")) {
            return drllm_fail(
                error, DRLLM_ERR_ARGUMENT,
                "message %zu: this chat format has one system message at most, then user and assistant in turns", i);
        }
        struct drllm_string content = part_of(messages[i].content);
        if (!user) {
            put_text(sink, has_system ? " " : "");
            put(sink, strips ? trim(content) : content);
            put_text(sink, has_system ? " </s>" : "</s>");
            put_text(sink, ends_with_space ? " " : "");
            continue;
        }
        put_text(sink, i > first && has_bos ? "<s>[INST] " : "[INST] ");
        if (i == first && system != NULL) {
            /* What is stripped is the two together. */
            content = strips ? trim_end(content) : content;
            put_text(sink, has_system ? "<<SYS>>\n" : "");
            put_text(sink, system->content);
            put_text(sink, has_system ? "\n<</SYS>>" : "\n");
            put_text(sink, has_system && (content.size > 0 || !strips) ? "\n\n" : "");
        } else {
            content = strips ? trim(content) : content;
        }
        put(sink, content);
        put_text(sink, " [/INST]");
    }
    return DRLLM_OK;
}

/* ---- Llama 3 ---- */

static void put_header(struct sink *sink, const char *role) {
    put_text(sink, "<|start_header_id|>");
    put_text(sink, role);
    put_text(sink, "<|end_header_id|>\n\n");
}

static void write_llama3(struct drllm_string template_text, const struct drllm_chat_message *messages,
                         size_t n_messages, bool add_assistant, struct sink *sink) {
    size_t i = 0;
    /* From 3.1 on there always is a system message, with dates; there is no clock here, so it is the template's own
     * date. */
    if (contains(template_text, "Cutting Knowledge Date: December 2023") && contains(template_text, "Today Date: ")) {
        const struct drllm_string date = until(behind(template_text, "set date_string = \""), "\"");
        put_header(sink, "system");
        put_text(sink, "Cutting Knowledge Date: December 2023\nToday Date: ");
        put(sink, date.data != NULL ? date : part_of("26 Jul 2024"));
        put_text(sink, "\n\n");
        if (n_messages > 0 && has_role(&messages[0], "system")) {
            put(sink, trim(part_of(messages[0].content)));
            i = 1;
        }
        put_text(sink, "<|eot_id|>");
    }
    for (; i < n_messages; i++) {
        put_header(sink, messages[i].role);
        put(sink, trim(part_of(messages[i].content)));
        put_text(sink, "<|eot_id|>");
    }
    if (add_assistant) {
        put_header(sink, "assistant");
    }
}

/* ---- Zephyr ---- */

/* Does a line end behind the expression: within its last string, or in the template behind it (where -}} takes it
 * away)? */
static bool ends_line(struct drllm_string expression, size_t n_behind) {
    if (expression.data == NULL) {
        return false;
    }
    const char *last = expression.data + expression.size; /* }} follows, within the template, if n_behind is not 0 */
    if (n_behind > 2 && last[2] == '\n' && (expression.size == 0 || last[-1] != '-')) {
        return true;
    }
    struct drllm_string end = expression;
    for (struct drllm_string next = behind(end, "eos_token"); next.data != NULL; next = behind(end, "eos_token")) {
        end = next;
    }
    return contains(end, "\\n") || contains(end, "\n");
}

static void write_zephyr(struct drllm_string template_text, const struct drllm_chat_message *messages,
                         size_t n_messages, bool add_assistant, struct sink *sink) {
    static const char tag[] = "<|assistant|>";
    const char *end = zephyr_end(template_text), *template_end = template_text.data + template_text.size;
    const struct drllm_string user = tag_expression(template_text, "<|user|>");
    const bool message_lines = ends_line(user, (size_t)(template_end - (user.data + user.size)));
    for (size_t i = 0; i < n_messages; i++) {
        put_text(sink, "<|");
        put_text(sink, messages[i].role);
        put_text(sink, "|>\n");
        put_text(sink, messages[i].content);
        put_text(sink, end);
        put_text(sink, message_lines ? "\n" : "");
    }
    if (add_assistant) {
        struct drllm_string rest = template_text;
        for (struct drllm_string next = behind(rest, tag); next.data != NULL; next = behind(rest, tag)) {
            rest = next;
        }
        const struct drllm_string prompt = until(rest, "}}");
        put_text(sink, tag);
        put_text(sink, ends_line(prompt, rest.size - prompt.size) ? "\n" : "");
    }
}

/* ---- All of them ---- */

static int write_all(enum drllm_chat_template chat, struct drllm_string template_text,
                     const struct drllm_chat_message *messages, size_t n_messages, bool add_assistant,
                     struct sink *sink, struct drllm_error *error) {
    switch (chat) {
    case DRLLM_CHAT_CHATML:
        write_chatml(template_text, messages, n_messages, add_assistant, sink);
        return DRLLM_OK;
    case DRLLM_CHAT_LLAMA2:
        return write_llama2(template_text, messages, n_messages, sink, error);
    case DRLLM_CHAT_LLAMA3:
        write_llama3(template_text, messages, n_messages, add_assistant, sink);
        return DRLLM_OK;
    case DRLLM_CHAT_ZEPHYR:
        if (drllm_chat_recognise(template_text) != DRLLM_CHAT_ZEPHYR) {
            break; /* the parts that are looked up in the template are not there */
        }
        write_zephyr(template_text, messages, n_messages, add_assistant, sink);
        return DRLLM_OK;
    case DRLLM_CHAT_NONE:
        return drllm_fail(error, DRLLM_ERR_UNSUPPORTED, "the model has no chat template; it may be no chat model");
    case DRLLM_CHAT_UNKNOWN:
        break;
    }
    return drllm_fail(error, DRLLM_ERR_UNSUPPORTED,
                      "the model's chat template is not one of ChatML, Llama 2, Llama 3 and Zephyr");
}

int drllm_chat_write(enum drllm_chat_template chat, struct drllm_string template_text,
                     const struct drllm_chat_message *messages, size_t n_messages, bool add_assistant, char *text,
                     size_t capacity, size_t *size, struct drllm_error *error) {
    if ((messages == NULL && n_messages > 0) || (text == NULL && capacity > 0) || size == NULL) {
        return drllm_fail(error, DRLLM_ERR_ARGUMENT, "messages, text and size must not be NULL");
    }
    for (size_t i = 0; i < n_messages; i++) {
        const struct drllm_chat_message *message = &messages[i];
        if (message->role == NULL || message->content == NULL) {
            return drllm_fail(error, DRLLM_ERR_ARGUMENT, "message %zu has no role or no content", i);
        }
        const size_t n_shown = strlen(message->role) < 40 ? strlen(message->role) : 40;
        if (!has_role(message, "system") && !has_role(message, "user") && !has_role(message, "assistant")) {
            return drllm_fail(error, DRLLM_ERR_ARGUMENT,
                              "message %zu has the role '%.*s'; there are system, user and assistant", i, (int)n_shown,
                              message->role);
        }
    }
    struct sink sink = {NULL, 0};
    const int status = write_all(chat, template_text, messages, n_messages, add_assistant, &sink, error);
    if (status != DRLLM_OK) {
        return status;
    }
    *size = sink.size;
    if (sink.size > capacity) {
        return drllm_fail(error, DRLLM_ERR_BUFFER, "room for %zu bytes, %zu needed", capacity, sink.size);
    }
    sink = (struct sink){text, 0};
    return write_all(chat, template_text, messages, n_messages, add_assistant, &sink, error);
}
