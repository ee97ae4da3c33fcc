/* Chat templates: recognised by the text of tokenizer.chat_template, then written by our own code. */
#ifndef DRLLM_RUNTIME_CHAT_H
#define DRLLM_RUNTIME_CHAT_H

#include "runtime/gguf.h"

enum drllm_chat_template drllm_chat_recognise(struct drllm_string template_text);

/* template_text is searched for the default system message that some ChatML templates carry. */
int drllm_chat_write(enum drllm_chat_template chat, struct drllm_string template_text,
                     const struct drllm_chat_message *messages, size_t n_messages, bool add_assistant, char *text,
                     size_t capacity, size_t *size, struct drllm_error *error);

#endif
