package org.drllm;

/** How an answer is made. Every setter returns this object. Values out of range are refused by generate and chat. */
public final class GenerateOptions {
    int maxTokens = 256;
    float temperature = 0.8f;
    int topK = 40;
    float topP = 0.95f;
    float minP = 0.05f;
    float repeatPenalty = 1.0f;
    int repeatLast = 64;
    long seed;
    String[] stop = {};

    /** The most tokens of the answer, at least 0. Default 256. */
    public GenerateOptions maxTokens(int tokens) {
        maxTokens = tokens;
        return this;
    }

    /** 0: always the likeliest token; up to 100. Default 0.8. */
    public GenerateOptions temperature(float value) {
        temperature = value;
        return this;
    }

    /** Only the so many likeliest tokens; 0: all. Default 40. */
    public GenerateOptions topK(int count) {
        topK = count;
        return this;
    }

    /** Only the likeliest tokens that have this probability together, in (0, 1]; 1: all. Default 0.95. */
    public GenerateOptions topP(float value) {
        topP = value;
        return this;
    }

    /** Only tokens with this share of the likeliest one's probability, in [0, 1). Default 0.05. */
    public GenerateOptions minP(float value) {
        minP = value;
        return this;
    }

    /** Makes the last {@code last} tokens less likely; 1: off. Default 1, over 64 tokens. */
    public GenerateOptions repeatPenalty(float penalty, int last) {
        repeatPenalty = penalty;
        repeatLast = last;
        return this;
    }

    /** The same seed, model and conversation give the same answer on every device. Default 0. */
    public GenerateOptions seed(long value) {
        seed = value;
        return this;
    }

    /** Texts that end the answer and are no part of it. Default: none. */
    public GenerateOptions stop(String... texts) {
        stop = texts.clone();
        return this;
    }
}
