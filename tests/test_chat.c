/* Chat templates. The templates here were written for the test; what is expected of them comes from Jinja2 itself, with
 * the settings of the Python package transformers (trim_blocks, lstrip_blocks) and without the first BOS. */
#include "runtime/chat.h"
#include "runtime/gguf.h"
#include "tests/tests.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct drllm_chat_message conversation[] = {
    {"system", " Be brief. "},
    {"user", "Hi\n"},
    {"assistant", " Hello! "},
    {"user", "\343\200\200Bye\302\240"},
};

enum { WITH_SYSTEM, WITHOUT_SYSTEM, ENDED, N_PARTS };
static const struct {
    size_t first, n;
    bool add_assistant;
} parts[N_PARTS] = {{0, 4, true}, {1, 1, true}, {1, 2, false}};

static struct drllm_string string_of(const char *text) {
    return (struct drllm_string){text, strlen(text)};
}

/* The text, to be freed. */
static char *write_chat(struct drllm_string template_text, const struct drllm_chat_message *messages, size_t n_messages,
                        bool add_assistant) {
    const enum drllm_chat_template chat = drllm_chat_recognise(template_text);
    struct drllm_error error = {0};
    size_t size = 12345;
    int status = drllm_chat_write(chat, template_text, messages, n_messages, add_assistant, NULL, 0, &size, &error);
    assert_int_equal(status, size == 0 ? DRLLM_OK : DRLLM_ERR_BUFFER);
    char *text = malloc(size + 1);
    assert_non_null(text);
    status = drllm_chat_write(chat, template_text, messages, n_messages, add_assistant, text, size, &size, &error);
    assert_int_equal(status, DRLLM_OK);
    text[size] = 0;
    return text;
}

static void check_part(struct drllm_string template_text, size_t part, const char *expected) {
    char *text = write_chat(template_text, conversation + parts[part].first, parts[part].n, parts[part].add_assistant);
    assert_string_equal(text, expected);
    free(text);
}

static void test_templates(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum drllm_chat_template chat;
        const char *text;
        const char *expected[N_PARTS]; /* NULL: the template has no system message */
    } cases[] = {
        {"chatml",
         DRLLM_CHAT_CHATML,
         "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% "
         "endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
         {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n<|im_start|>user\n\343\200\200Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! <|im_end|>\n"}},
        {"chatml_default",
         DRLLM_CHAT_CHATML,
         "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\\nIt\\'s a "
         "\"test\"\\\\.\\n<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
         "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
         {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n<|im_start|>user\n\343\200\200Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nIt's a "
          "\"test\"\\.\n<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nIt's a "
          "\"test\"\\.\n<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! <|im_end|>\n"}},
        {"chatml_tools",
         DRLLM_CHAT_CHATML,
         "{%- if tools %}{{- '<|im_start|>system\\n' + tools + '<|im_end|>\\n' }}{%- elif messages[0].role != 'system' "
         "%}{{- \"<|im_start|>system\\nDon't.<|im_end|>\\n\" }}{%- endif %}{%- for m in messages %}{{- '<|im_start|>' "
         "+ m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- "
         "'<|im_start|>assistant\\n' }}{%- endif %}",
         {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n<|im_start|>user\n\343\200\200Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nDon't.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nDon't.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n"}},
        {"chatml_text",
         DRLLM_CHAT_CHATML,
         "{% if messages[0].role != 'system' %}<|im_start|>system\nPlain.<|im_end|>\n{% endif %}{% for m in messages "
         "%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
         "%}<|im_start|>assistant\n{% endif %}",
         {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n<|im_start|>user\n\343\200\200Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nPlain.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nPlain.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
          "<|im_end|>\n"}},
        {"llama2",
         DRLLM_CHAT_LLAMA2,
         "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] "
         "%}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}{% if loop.first "
         "and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else "
         "%}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + "
         "content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor "
         "%}",
         {"[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]", "[INST] Hi [/INST]",
          "[INST] Hi [/INST] Hello! </s>"}},
        {"inst",
         DRLLM_CHAT_LLAMA2,
         "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' "
         "}}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
         {NULL, "[INST] Hi\n [/INST]", "[INST] Hi\n [/INST] Hello! </s>"}},
        {"llama3",
         DRLLM_CHAT_LLAMA3,
         "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
         "m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{{ bos_token }}{% endif %}{{ content }}{% endfor "
         "%}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
         {"<|start_header_id|>system<|end_header_id|>\n\nBe "
          "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
          "header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>"
          "assistant<|end_header_id|>\n\n",
          "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
          "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
          "\n\nHello!<|eot_id|>"}},
        {"llama31",
         DRLLM_CHAT_LLAMA3,
         "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = \"26 Jul 2024\" %}{%- endif %}{%- "
         "if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = "
         "messages[1:] %}{%- else %}{%- set system = \"\" %}{%- endif %}{{- "
         "\"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge Date: December 2023\\n\" "
         "}}{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{- system }}{{- \"<|eot_id|>\" }}{%- for m in messages "
         "%}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' "
         "}}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' "
         "}}{%- endif %}",
         {"<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
          "2024\n\nBe "
          "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
          "header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>"
          "assistant<|end_header_id|>\n\n",
          "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
          "2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
          "header_id|>\n\n",
          "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
          "2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
          "header_id|>\n\nHello!<|eot_id|>"}},
        {"zephyr",
         DRLLM_CHAT_ZEPHYR,
         "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n{% "
         "elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n{% else %}\n{{ "
         "'<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt "
         "%}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
         {"<|system|>\n Be brief. </s>\n<|user|>\nHi\n</s>\n<|assistant|>\n Hello! "
          "</s>\n<|user|>\n\343\200\200Bye\302\240</s>\n<|assistant|>\n",
          "<|user|>\nHi\n</s>\n<|assistant|>\n", "<|user|>\nHi\n</s>\n<|assistant|>\n Hello! </s>\n"}},
        {"zephyr_endoftext",
         DRLLM_CHAT_ZEPHYR,
         "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\\n' + m['content'] + '<|endoftext|>' "
         "}}\n{% elif m['role'] == 'system' %}\n{{ '<|system|>\\n' + m['content'] + '<|endoftext|>' }}\n{% else %}\n{{ "
         "'<|assistant|>\\n' + m['content'] + '<|endoftext|>' }}\n{% endif %}\n{% endfor %}\n{% if "
         "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}",
         {"<|system|>\n Be brief. <|endoftext|>\n<|user|>\nHi\n<|endoftext|>\n<|assistant|>\n Hello! "
          "<|endoftext|>\n<|user|>\n\343\200\200Bye\302\240<|endoftext|>\n<|assistant|>\n",
          "<|user|>\nHi\n<|endoftext|>\n<|assistant|>\n",
          "<|user|>\nHi\n<|endoftext|>\n<|assistant|>\n Hello! <|endoftext|>\n"}},
        {"zephyr_tight",
         DRLLM_CHAT_ZEPHYR,
         "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + eos_token }}{% else "
         "%}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}{% endif %}{% endfor %}{% if "
         "add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
         {"<|system|>\n Be brief. </s><|user|>\nHi\n</s><|assistant|>\n Hello! "
          "</s><|user|>\n\343\200\200Bye\302\240</s><|assistant|>\n",
          "<|user|>\nHi\n</s><|assistant|>\n", "<|user|>\nHi\n</s><|assistant|>\n Hello! </s>"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct drllm_string text = string_of(cases[i].text);
        if (drllm_chat_recognise(text) != cases[i].chat) {
            fail_msg("%s is not recognised", cases[i].name);
        }
        for (size_t part = 0; part < N_PARTS; part++) {
            if (cases[i].expected[part] != NULL) {
                check_part(text, part, cases[i].expected[part]);
            }
        }
    }
}

static void test_recognise(void **state) {
    (void)state;
    static const struct {
        const char *text;
        enum drllm_chat_template chat;
    } cases[] = {
        {"", DRLLM_CHAT_NONE},
        {"{{ messages }}", DRLLM_CHAT_UNKNOWN},
        {"<|im_start|>{{ role }}<|im_sep|>", DRLLM_CHAT_UNKNOWN},
        {"<|im_start|>{{ role }}<end_of_utterance>", DRLLM_CHAT_UNKNOWN},
        {"<|im_start|", DRLLM_CHAT_UNKNOWN},
        {"<<<|im_start|>", DRLLM_CHAT_CHATML},
        {"[INST] {{ x }} [/INST]", DRLLM_CHAT_LLAMA2},
        {"[SYSTEM_PROMPT][INST]", DRLLM_CHAT_UNKNOWN},
        {"[AVAILABLE_TOOLS][INST]", DRLLM_CHAT_UNKNOWN},
        {"<|start_header_id|>", DRLLM_CHAT_UNKNOWN},
        {"<|start_header_id|>x<|end_header_id|>", DRLLM_CHAT_LLAMA3},
        /* other formats with Zephyr's tags: an end of their own, none for the user, no line after the tag */
        {"{{ '<|user|>\\n' + c + '<|end|>' }}{{ '<|assistant|>' + eos_token }}", DRLLM_CHAT_UNKNOWN},
        {"{{ '<|user|>\\n' + c + '\\n' }}{{ '<|assistant|>\\n' + c + eos_token }}", DRLLM_CHAT_UNKNOWN},
        {"{{ '<|user|>' + c + eos_token }}{{ '<|assistant|>' }}", DRLLM_CHAT_UNKNOWN},
        {"{{ '<|user|>\\n' + c + eos_token }}", DRLLM_CHAT_UNKNOWN},
        {"{{ '<|user|>\\n' + c + '</s>' }}{{ '<|assistant|>' }}", DRLLM_CHAT_ZEPHYR},
        {"<|assistant|><|user|>", DRLLM_CHAT_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (drllm_chat_recognise(string_of(cases[i].text)) != cases[i].chat) {
            fail_msg("case %zu: %s", i, cases[i].text);
        }
    }
    assert_int_equal(drllm_chat_recognise((struct drllm_string){NULL, 0}), DRLLM_CHAT_NONE);
}

/* What only some conversations have. */
static void test_odd_conversations(void **state) {
    (void)state;
    static const struct drllm_chat_message blank[] = {{"system", ""}, {"user", " \n"}, {"assistant", "\t"}};
    static const struct drllm_chat_message two[] = {{"user", "a"}, {"user", "b"}};
    const struct drllm_string llama2 = string_of("[INST] <<SYS>> content.strip() bos_token + '[INST]");
    const struct drllm_string inst = string_of("[INST] eos_token + ' '"),
                              llama3 = string_of("<|start_header_id|><|end_header_id|>");
    char *text = write_chat(llama2, blank, 3, true);
    /* the line ends behind <</SYS>> are stripped too when nothing follows */
    assert_string_equal(text, "[INST] <<SYS>>\n\n<</SYS>> [/INST]  </s>");
    free(text);
    text = write_chat(llama3, blank, 3, false);
    assert_string_equal(text, "<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
                              "<|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>"
                              "<|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|>");
    free(text);
    /* without <<SYS>> the system message goes in front of the user's, as in llama.cpp */
    text = write_chat(inst, conversation, 3, true);
    assert_string_equal(text, "[INST]  Be brief. \nHi\n [/INST] Hello! </s> ");
    free(text);
    text = write_chat(string_of("<|im_start|>"), NULL, 0, true);
    assert_string_equal(text, "<|im_start|>assistant\n");
    free(text);
    text = write_chat(llama2, NULL, 0, true);
    assert_string_equal(text, "");
    free(text);
    struct drllm_error error = {0};
    size_t size = 77;
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_LLAMA2, llama2, two, 2, true, NULL, 0, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "message 1"));
    assert_int_equal(size, 77);
}

/* Templates that only look as if they had a default system message. */
static void test_no_default_system(void **state) {
    (void)state;
    static const char *const templates[] = {
        "'<|im_start|>system\\n' + x + '<|im_end|>'",
        "'<|im_start|>system\\n{{ x }}'",
        "<|im_start|>system\n{{ x }}<|im_end|>",
        "'<|im_start|>system\\n<|im_end|>'",
        "'<|im_start|>system<|im_end|>'",
        "'<|im_start|>system\\nno end\\'<|im_end|",
        "<|im_start|>system",
        "'<|im_start|>system\\",
    };
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++) {
        check_part(string_of(templates[i]), WITHOUT_SYSTEM,
                   "<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n");
    }
}

static void test_arguments(void **state) {
    (void)state;
    static const struct drllm_chat_message no_role[] = {{NULL, "x"}}, no_content[] = {{"user", NULL}},
                                           tool[] = {{"tool", "x"}};
    const struct drllm_string chatml = string_of("<|im_start|>");
    struct drllm_error error = {0};
    char text[8] = "???????";
    size_t size = 77;
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_NONE, chatml, conversation, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_UNSUPPORTED);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_UNKNOWN, chatml, conversation, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_UNSUPPORTED);
    /* not the template that it is said to be */
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_ZEPHYR, chatml, conversation, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_UNSUPPORTED);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, no_role, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, no_content, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, tool, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_non_null(strstr(error.detail, "'tool'"));
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, NULL, 1, true, text, 8, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, tool, 0, true, NULL, 8, &size, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, tool, 0, true, text, 8, NULL, &error),
                     DRLLM_ERR_ARGUMENT);
    assert_int_equal(size, 77);
    assert_int_equal(drllm_chat_write(DRLLM_CHAT_CHATML, chatml, tool, 0, true, text, 8, &size, NULL),
                     DRLLM_ERR_BUFFER);
    assert_int_equal(size, strlen("<|im_start|>assistant\n"));
    assert_string_equal(text, "???????");
}

/* Any text at all as a template. */
static void test_random_templates(void **state) {
    (void)state;
    static const char *const pieces[] = {"<|im_start|>",
                                         "system",
                                         "\n",
                                         "\\n",
                                         "<|im_end|>",
                                         "'",
                                         "\"",
                                         "\\",
                                         "{{",
                                         "}}",
                                         "<|user|>",
                                         "<|assistant|>",
                                         "eos_token",
                                         "</s>",
                                         "[INST]",
                                         "<<SYS>>",
                                         "-}}",
                                         "<|endoftext|>",
                                         "<|start_header_id|>",
                                         "<|end_header_id|>",
                                         "Today Date: ",
                                         "Cutting Knowledge Date: December 2023",
                                         "set date_string = \""};
    struct tiny_random random = {3};
    for (int round = 0; round < 20000; round++) {
        char text[512];
        size_t size = 0;
        for (uint64_t n = tiny_random_u64(&random) % 12; n > 0; n--) {
            const char *piece = pieces[tiny_random_u64(&random) % (sizeof pieces / sizeof pieces[0])];
            while (*piece != 0) {
                text[size++] = *piece++;
            }
        }
        /* in a block of its own size, so that a read past its end shows */
        char *exact = malloc(size + 1);
        assert_non_null(exact);
        memcpy(exact, text, size);
        exact = realloc(exact, size > 0 ? size : 1);
        assert_non_null(exact);
        const struct drllm_string template_text = {exact, size};
        if (drllm_chat_recognise(template_text) > DRLLM_CHAT_UNKNOWN) {
            free(write_chat(template_text, conversation, 4, true));
        }
        free(exact);
    }
}

static void test_model_template(void **state) {
    (void)state;
    static const char *const expected[N_PARTS] = {
        "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! "
        "<|im_end|>\n<|im_start|>user\n\343\200\200Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n Hello! <|im_end|>\n"};
    const char *path = getenv("DRLLM_TEST_MODEL");
    if (path == NULL || path[0] == 0 || drllm_test_is_fast()) {
        drllm_skip("DRLLM_TEST_MODEL is not set, or --fast");
    }
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const size_t size = (size_t)ftell(file);
    uint8_t *data = malloc(size);
    assert_non_null(data);
    rewind(file);
    assert_int_equal(fread(data, 1, size, file), size);
    (void)fclose(file);
    struct tiny_counted counted = {.fail_at = SIZE_MAX};
    const struct drllm_allocator allocator = tiny_counted_allocator(&counted);
    struct drllm_gguf gguf;
    struct drllm_string text;
    assert_int_equal(drllm_gguf_open(&gguf, data, size, &allocator, NULL), DRLLM_OK);
    assert_true(drllm_gguf_get_string(&gguf, "tokenizer.chat_template", &text));
    assert_int_equal(drllm_chat_recognise(text), DRLLM_CHAT_CHATML);
    for (size_t part = 0; part < N_PARTS; part++) {
        check_part(text, part, expected[part]);
    }
    drllm_gguf_close(&gguf);
    free(data);
}

int drllm_test_chat(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates),         cmocka_unit_test(test_recognise),
        cmocka_unit_test(test_odd_conversations), cmocka_unit_test(test_no_default_system),
        cmocka_unit_test(test_arguments),         cmocka_unit_test(test_random_templates),
        cmocka_unit_test(test_model_template),
    };
    return drllm_run_group("chat", tests, NULL, NULL);
}
