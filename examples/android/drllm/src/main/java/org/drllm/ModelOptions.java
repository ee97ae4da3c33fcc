package org.drllm;

/** How a model is opened. Every setter returns this object. */
public final class ModelOptions {
    int context = 2048;
    int threads;
    boolean compactCache;

    /** The most tokens, of conversation and answer together; 0: what the model was trained for. Default 2048. */
    public ModelOptions context(int tokens) {
        if (tokens < 0) {
            throw new IllegalArgumentException("a context of " + tokens + " tokens");
        }
        context = tokens;
        return this;
    }

    /** Default 0: one for each fast core. */
    public ModelOptions threads(int count) {
        if (count < 0) {
            throw new IllegalArgumentException(count + " threads");
        }
        threads = count;
        return this;
    }

    /** Keys and values in int8: half of their memory, very nearly the same answers. Default false. */
    public ModelOptions compactCache(boolean compact) {
        compactCache = compact;
        return this;
    }
}
