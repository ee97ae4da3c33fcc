package org.drllm;

/** What a model is. */
public final class ModelInfo {
    /** The file's name for it, perhaps empty; never null. */
    public final String name;
    /** The format of most weights, "q4_1"; never null. */
    public final String quantization;
    /** The kernels that run its blocks, "neondot"; never null. */
    public final String backend;
    public final int layers;
    public final int vocabulary;
    /** Tokens of context that it was trained for. */
    public final int trainedContext;
    public final long parameters;
    /** Bytes of weights that every token reads. */
    public final long weightBytes;
    /** Whether chat() works: the file has a chat template that is known. */
    public final boolean chat;

    ModelInfo(String[] texts, long[] numbers) {
        name = texts[0];
        quantization = texts[1];
        backend = texts[2];
        layers = (int) numbers[0];
        vocabulary = (int) numbers[1];
        trainedContext = (int) numbers[2];
        parameters = numbers[3];
        weightBytes = numbers[4];
        chat = numbers[5] != 0;
    }
}
