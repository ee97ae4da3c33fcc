package org.drllm;

/** One message of a conversation. */
public final class ChatMessage {
    /** "system", "user" or "assistant"; never null. */
    public final String role;
    /** Never null. */
    public final String content;

    private ChatMessage(String role, String content) {
        if (role == null || content == null) {
            throw new IllegalArgumentException("a message needs a role and a content");
        }
        this.role = role;
        this.content = content;
    }

    /** How the assistant is to behave; at most one, the first message. */
    public static ChatMessage system(String content) {
        return new ChatMessage("system", content);
    }

    public static ChatMessage user(String content) {
        return new ChatMessage("user", content);
    }

    /** An earlier answer. */
    public static ChatMessage assistant(String content) {
        return new ChatMessage("assistant", content);
    }
}
