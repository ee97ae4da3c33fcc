package org.drllm;

import java.util.List;

/**
 * A language model with one conversation's context, on the device's processor.
 *
 * <pre>{@code
 * try (DrLlm llm = DrLlm.open(path, new ModelOptions())) {
 *     llm.openRouters(routersPath);
 *     llm.chat(Collections.singletonList(ChatMessage.user("Hello!")), new GenerateOptions(), piece -> append(piece));
 * }
 * }</pre>
 *
 * <p>All methods may be called from any thread. Those that open, generate, chat or change the depth run one at a time: a
 * second thread waits for the first, so call them from a worker, never from the main thread. cancel() and setPower() never
 * wait. close() makes what runs stop, waits for its end (a few milliseconds) and frees the memory; whatever is called
 * afterwards, or was waiting, throws an IllegalStateException, but for close() itself and cancel(), which then do nothing.
 * A listener may call cancel(), setPower() and close(), which then takes effect as soon as the listener returns; the others
 * throw an IllegalStateException there.
 *
 * <p>Nothing that this class returns is null, and no parameter may be, but for listeners. A DrLlm that is not closed keeps
 * its memory until the process ends.
 */
public final class DrLlm implements AutoCloseable {
    static {
        System.loadLibrary("drllm_jni");
    }

    /** android.os.PowerManager.THERMAL_STATUS_*, and the number for a device that does not say. */
    public static final int THERMAL_UNKNOWN = -1;
    public static final int THERMAL_NONE = 0;
    public static final int THERMAL_LIGHT = 1;
    public static final int THERMAL_MODERATE = 2;
    public static final int THERMAL_SEVERE = 3;
    public static final int THERMAL_CRITICAL = 4;
    public static final int THERMAL_EMERGENCY = 5;
    public static final int THERMAL_SHUTDOWN = 6;

    /** For setPower: the device does not say how full its battery is. */
    public static final int BATTERY_UNKNOWN = -1;

    /* The handle is of a struct of the native code. It is read and written under the lock, and used either under the lock
     * or by the thread `user`, which holds the session while the lock is free. */
    private final Object lock = new Object();
    private long handle;
    private Thread user;
    private boolean closed;

    private final ModelInfo info;

    private float asked = -1.0f;
    private int battery = BATTERY_UNKNOWN;
    private boolean charging;
    private int thermal = THERMAL_UNKNOWN;

    /* Takes the handle, also when this fails. */
    private DrLlm(long handle) {
        boolean made = false;
        try {
            final long[] numbers = new long[6];
            info = new ModelInfo(nativeInfo(handle, numbers), numbers);
            made = true;
        } finally {
            if (!made) {
                nativeClose(handle);
            }
        }
        this.handle = handle;
    }

    /* ---- Opening and closing ---- */

    /**
     * Opens a GGUF file or a packed model. The file is mapped and must stay unchanged until all that was made of it is
     * closed.
     *
     * @throws DrLlmException if it cannot be read, is damaged or needs what is not supported
     */
    public static DrLlm open(String path, ModelOptions options) throws DrLlmException {
        return new DrLlm(nativeOpenPath(check(path, "path"), options.context, options.threads, options.compactCache));
    }

    /**
     * The same for {@code length} bytes (0: all that follow) at {@code offset} of a file descriptor: an asset that the APK
     * holds uncompressed (AssetFileDescriptor: getParcelFileDescriptor().getFd(), getStartOffset(), getLength()), or a
     * document of the storage framework (ContentResolver.openFileDescriptor). The descriptor stays the caller's and may be
     * closed afterwards. offset must be a multiple of 4, which zipalign takes care of.
     */
    public static DrLlm open(int fd, long offset, long length, ModelOptions options) throws DrLlmException {
        checkRange(offset, length);
        return new DrLlm(nativeOpenFd(fd, offset, length, options.context, options.threads, options.compactCache));
    }

    /** Another context over the same weights and routers, with this one's depth. Each must be closed. */
    public DrLlm newSession() throws DrLlmException {
        final long mine = enter();
        try {
            final DrLlm other = new DrLlm(nativeNewSession(mine));
            synchronized (lock) {
                other.asked = asked;
                other.battery = battery;
                other.charging = charging;
                other.thermal = thermal;
            }
            return other;
        } finally {
            leave();
        }
    }

    /** Frees everything. May be called more than once. */
    @Override
    public void close() {
        boolean interrupted = false;
        synchronized (lock) {
            closed = true;
            lock.notifyAll(); // whoever waits for the session waits in vain
            if (user == null) {
                release();
            } else {
                nativeCancel(handle);
                while (handle != 0 && user != Thread.currentThread()) {
                    try {
                        lock.wait();
                    } catch (InterruptedException e) {
                        interrupted = true;
                    }
                }
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    /** Makes the running generate or chat end soon, with what it has; does nothing if none runs. */
    public void cancel() {
        synchronized (lock) {
            if (user != null && handle != 0) {
                nativeCancel(handle);
            }
        }
    }

    /** Never waits, and may be called after close(). */
    public ModelInfo getInfo() {
        return info;
    }

    /* ---- Answers ---- */

    /**
     * Continues a text. What the context already holds of it is not computed again.
     *
     * @param listener null: none
     */
    public Generation generate(String prompt, GenerateOptions options, TextListener listener) throws DrLlmException {
        return answer(null, new String[] {check(prompt, "prompt")}, options, listener);
    }

    /**
     * Answers the last message of a conversation, which the model's chat template puts into words. What the context already
     * holds of it is not computed again.
     *
     * @param listener null: none
     */
    public Generation chat(List<ChatMessage> conversation, GenerateOptions options, TextListener listener)
            throws DrLlmException {
        final ChatMessage[] messages = conversation.toArray(new ChatMessage[0]);
        if (messages.length == 0) {
            throw new IllegalArgumentException("a conversation needs a message");
        }
        final String[] roles = new String[messages.length];
        final String[] contents = new String[messages.length];
        for (int i = 0; i < messages.length; i++) {
            roles[i] = messages[i].role;
            contents[i] = messages[i].content;
        }
        return answer(roles, contents, options, listener);
    }

    private Generation answer(String[] roles, String[] contents, GenerateOptions options, TextListener listener)
            throws DrLlmException {
        final long[] numbers = new long[7];
        final String[] stop = options.stop; // what is checked is what is used
        for (String text : stop) {
            check(text, "a stop text");
        }
        final long mine = enter();
        try {
            nativeSetDepth(mine, currentAsked(), currentPower());
            final String[] texts = nativeAnswer(mine, roles, contents, stop, options.maxTokens, options.temperature,
                    options.topK, options.topP, options.minP, options.repeatPenalty, options.repeatLast, options.seed,
                    listener, numbers);
            return new Generation(texts[0], texts[1], numbers);
        } finally {
            leave();
        }
    }

    /** Forgets the conversation's computed state. Without it, too, an answer depends on nothing but what is passed. */
    public void reset() {
        final long mine = enter();
        try {
            nativeReset(mine);
        } finally {
            leave();
        }
    }

    /* ---- Depth ---- */

    /** Lets the routers of a router file, or of a packed model, decide from now on which blocks run. */
    public void openRouters(String path) throws DrLlmException {
        check(path, "path");
        final long mine = enter();
        try {
            nativeOpenRoutersPath(mine, path);
        } finally {
            leave();
        }
    }

    /** The same from a descriptor, as open. */
    public void openRouters(int fd, long offset, long length) throws DrLlmException {
        checkRange(offset, length);
        final long mine = enter();
        try {
            nativeOpenRoutersFd(mine, fd, offset, length);
        } finally {
            leave();
        }
    }

    /** The routers that the packed model brought along; an IllegalStateException if it has none. */
    public void openPackedRouters() throws DrLlmException {
        final long mine = enter();
        try {
            nativeOpenRoutersPacked(mine);
        } finally {
            leave();
        }
    }

    /** Full depth again. */
    public void closeRouters() {
        final long mine = enter();
        try {
            nativeCloseRouters(mine);
        } finally {
            leave();
        }
    }

    /**
     * Layers to save on average; below 0, the default: as many as the routers find. Beside setPower the larger of the two
     * holds. From the next answer on, which is where one that the routers cannot save throws an IllegalArgumentException.
     */
    public void setSaveLayers(float layers) {
        if (Float.isNaN(layers)) {
            throw new IllegalArgumentException("NaN layers");
        }
        synchronized (lock) {
            checkOpen();
            asked = layers;
        }
    }

    /**
     * Tells how the device is doing; from the next answer on the routers save more layers the emptier its battery and the
     * hotter it is. The policy is that of drllm_power_save_layers in runtime/drllm_os.h. Without routers, or with routers
     * that have no calibration table, nothing changes.
     *
     * @param batteryPercent 0 to 100, or BATTERY_UNKNOWN
     * @param charging whether it is connected to power
     * @param thermalStatus PowerManager.getCurrentThermalStatus() (Android 10), or THERMAL_UNKNOWN
     */
    public void setPower(int batteryPercent, boolean charging, int thermalStatus) {
        if (batteryPercent < BATTERY_UNKNOWN || batteryPercent > 100) {
            throw new IllegalArgumentException("a battery of " + batteryPercent + " %");
        }
        if (thermalStatus < THERMAL_UNKNOWN || thermalStatus > THERMAL_SHUTDOWN) {
            throw new IllegalArgumentException("unknown thermal status " + thermalStatus);
        }
        synchronized (lock) {
            checkOpen();
            battery = batteryPercent;
            this.charging = charging;
            thermal = thermalStatus;
        }
    }

    /** Layers that the next answer is asked to save on average, by setSaveLayers and setPower; below 0: the routers alone. */
    public float getSaveLayers() {
        final long mine = enter();
        try {
            return nativeSaveLayers(mine, currentAsked(), currentPower());
        } finally {
            leave();
        }
    }

    private float currentAsked() {
        synchronized (lock) {
            return asked;
        }
    }

    private int[] currentPower() {
        synchronized (lock) {
            return new int[] {battery, charging ? 1 : 0, thermal};
        }
    }

    /* ---- One at a time ---- */

    private static String check(String text, String what) {
        if (text == null) {
            throw new IllegalArgumentException(what + " must not be null");
        }
        return text;
    }

    private static void checkRange(long offset, long length) {
        if (offset < 0 || length < 0) {
            throw new IllegalArgumentException(length + " bytes at offset " + offset);
        }
    }

    private void checkOpen() {
        if (closed) {
            throw new IllegalStateException("this DrLlm is closed");
        }
    }

    /* Waits for the session; leave() must follow. */
    private long enter() {
        boolean interrupted = false;
        try {
            synchronized (lock) {
                while (user != null && !closed) {
                    if (user == Thread.currentThread()) {
                        throw new IllegalStateException("a listener may only call cancel, setPower and close");
                    }
                    try {
                        lock.wait();
                    } catch (InterruptedException e) {
                        interrupted = true;
                    }
                }
                checkOpen();
                user = Thread.currentThread();
                return handle;
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    private void leave() {
        synchronized (lock) {
            user = null;
            if (closed) {
                release();
            } else {
                nativeSettle(handle);
            }
            lock.notifyAll();
        }
    }

    private void release() {
        if (handle != 0) {
            nativeClose(handle);
            handle = 0;
        }
    }

    /* ---- jni/ ---- */

    private static native long nativeOpenPath(String path, int context, int threads, boolean compactCache)
            throws DrLlmException;

    private static native long nativeOpenFd(int fd, long offset, long length, int context, int threads,
            boolean compactCache) throws DrLlmException;

    private static native long nativeNewSession(long handle) throws DrLlmException;

    private static native void nativeClose(long handle);

    private static native void nativeCancel(long handle);

    /* Drops a cancel that came too late for the call that just ended. */
    private static native void nativeSettle(long handle);

    private static native void nativeReset(long handle);

    private static native String[] nativeInfo(long handle, long[] numbers);

    private static native void nativeOpenRoutersPath(long handle, String path) throws DrLlmException;

    private static native void nativeOpenRoutersFd(long handle, int fd, long offset, long length) throws DrLlmException;

    private static native void nativeOpenRoutersPacked(long handle) throws DrLlmException;

    private static native void nativeCloseRouters(long handle);

    private static native float nativeSaveLayers(long handle, float asked, int[] power);

    private static native void nativeSetDepth(long handle, float asked, int[] power) throws DrLlmException;

    private static native String[] nativeAnswer(long handle, String[] roles, String[] contents, String[] stop,
            int maxTokens, float temperature, int topK, float topP, float minP, float repeatPenalty, int repeatLast,
            long seed, TextListener listener, long[] numbers) throws DrLlmException;
}
