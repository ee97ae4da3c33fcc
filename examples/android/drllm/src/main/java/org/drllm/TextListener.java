package org.drllm;

/** Gets the answer while it is made. In Kotlin a lambda does. */
public interface TextListener {
    /**
     * Called on the thread that called generate or chat, with each piece of text as soon as it is certain. A piece holds
     * whole characters, never half of one, and is never empty.
     *
     * @param piece what came since the last call; never null
     * @return false to end the answer here. What is thrown ends it, too, and comes out of generate or chat.
     */
    boolean onText(String piece);
}
