package org.drllm;

/**
 * A model, a file or the machine is not as it should be; the message says what is wrong. What the caller did wrong comes
 * as an IllegalArgumentException or IllegalStateException instead.
 */
public final class DrLlmException extends Exception {
    private static final long serialVersionUID = 1L;

    /** The statuses of drllm.h that come as this exception. */
    public static final int MEMORY = -2;
    public static final int IO = -3;
    public static final int FORMAT = -4;
    public static final int UNSUPPORTED = -5;
    public static final int CONTEXT_FULL = -6;
    public static final int SYSTEM = -10;

    private final int status;

    /** Made by the native code. */
    DrLlmException(String message, int status) {
        super(message);
        this.status = status;
    }

    /** One of the constants above. */
    public int getStatus() {
        return status;
    }
}
