package org.drllm;

/** An answer, and what it took. */
public final class Generation {
    /** Why an answer ended. */
    public enum Stop {
        /** It has as many tokens as were allowed. */
        MAX_TOKENS,
        /** The model ended it. */
        END,
        /** A stop text came. */
        STOP_TEXT,
        /** The listener returned false. */
        LISTENER,
        /** The context is full. */
        CONTEXT_FULL,
        /** cancel() or close() was called. */
        CANCELLED
    }

    /** All of it; never null. */
    public final String text;
    /** Never null. */
    public final Stop stop;
    /** Tokens of the conversation, and of them those that had to be computed now. */
    public final int promptTokens;
    public final int computedTokens;
    /** Tokens of the answer. */
    public final int tokens;
    public final double promptSeconds;
    public final double answerSeconds;
    /** Which blocks ran, as in "0-9,11-14,15x2,16-29"; empty if it was cancelled before that was known. Never null. */
    public final String program;
    /** Executions of blocks saved for each token; negative if more blocks ran twice than were left out. */
    public final int layersSaved;

    Generation(String text, String program, long[] numbers) {
        this.text = text;
        this.program = program;
        stop = Stop.values()[(int) numbers[0]];
        promptTokens = (int) numbers[1];
        computedTokens = (int) numbers[2];
        tokens = (int) numbers[3];
        promptSeconds = numbers[4] * 1e-9;
        answerSeconds = numbers[5] * 1e-9;
        layersSaved = (int) numbers[6];
    }
}
