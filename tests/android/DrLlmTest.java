import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.lang.ref.WeakReference;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.zip.CRC32;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.drllm.ChatMessage;
import org.drllm.DrLlm;
import org.drllm.DrLlmException;
import org.drllm.GenerateOptions;
import org.drllm.Generation;
import org.drllm.ModelOptions;
import org.drllm.TextListener;

/**
 * Runs every method test* against the real native library.
 *
 * usage: java DrLlmTest FOLDER [only=testNAME] [rounds=N] [model=FILE routers=FILE expected=FILE]
 *
 * FOLDER holds what tests/android/fixtures.c wrote, and tiny.drllm packed from it. rounds: how often the tests of timing and
 * of leaks repeat (default 100). model: SmolLM2, routers: for it, expected: what the program answers.
 */
public final class DrLlmTest {
    private static final String LOOP = "\uD83D\uDE00B\u00E9D\u4E2DCA"; // after "A", again and again

    private static final int PATIENCE = 240; // seconds, for an emulator on a busy machine

    private static Path folder;
    private static int rounds = 100;
    private static String only = "test";
    private static String realModel;
    private static String realRouters;
    private static String realExpected;

    public static void main(String[] arguments) throws Exception {
        folder = Paths.get(arguments[0]);
        for (String argument : arguments) {
            final String value = argument.substring(argument.indexOf('=') + 1);
            if (argument.startsWith("only=")) {
                only = value;
            } else if (argument.startsWith("rounds=")) {
                rounds = Integer.parseInt(value);
            } else if (argument.startsWith("model=")) {
                realModel = value;
            } else if (argument.startsWith("routers=")) {
                realRouters = value;
            } else if (argument.startsWith("expected=")) {
                realExpected = value;
            }
        }
        final Method[] methods = DrLlmTest.class.getDeclaredMethods();
        Arrays.sort(methods, Comparator.comparing(Method::getName));
        int passed = 0;
        int failed = 0;
        int skipped = 0;
        for (Method method : methods) {
            final long start = System.nanoTime();
            if (!method.getName().startsWith(only)) {
                continue;
            }
            try {
                method.invoke(null);
                passed++;
                System.out.printf("ok      %s (%.1f s)%n", method.getName(), (System.nanoTime() - start) * 1e-9);
            } catch (InvocationTargetException e) {
                if (e.getCause() instanceof Skip) {
                    skipped++;
                    System.out.println("skipped " + method.getName() + ": " + e.getCause().getMessage());
                } else {
                    failed++;
                    System.out.println("FAILED  " + method.getName());
                    e.getCause().printStackTrace(System.out);
                }
            }
        }
        System.out.println(passed + " passed, " + failed + " failed, " + skipped + " skipped");
        System.exit(failed == 0 && passed != 0 ? 0 : 1);
    }

    /* ---- Help ---- */

    private static final class Skip extends RuntimeException {
        Skip(String reason) {
            super(reason);
        }
    }

    private interface Code {
        void run() throws Exception;
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private static void same(Object expected, Object actual) {
        check(expected.equals(actual), "expected <" + expected + ">, got <" + actual + ">");
    }

    /* What the code throws, which must be of this class and have a message. */
    private static <T extends Throwable> T thrown(Class<T> type, Code code) {
        try {
            code.run();
        } catch (Throwable e) {
            if (!type.isInstance(e)) {
                throw new AssertionError("expected " + type + ", got " + e, e);
            }
            check(e.getMessage() != null && !e.getMessage().isEmpty(), "no message in " + e.getClass());
            return type.cast(e);
        }
        throw new AssertionError("nothing was thrown, expected " + type);
    }

    private static DrLlmException refused(int status, Code code) {
        final DrLlmException e = thrown(DrLlmException.class, code);
        check(e.getStatus() == status, "expected status " + status + ", got " + e.getStatus() + ": " + e.getMessage());
        return e;
    }

    private static void contains(String text, String part) {
        check(text.contains(part), "<" + part + "> is not in <" + text + ">");
    }

    private static String file(String name) {
        return folder.resolve(name).toString();
    }

    private static DrLlm open() throws DrLlmException {
        return DrLlm.open(file("tiny.gguf"), new ModelOptions().threads(1));
    }

    private static GenerateOptions greedy(int tokens) {
        return new GenerateOptions().temperature(0).maxTokens(tokens);
    }

    private static List<ChatMessage> conversation(ChatMessage... messages) {
        return Arrays.asList(messages);
    }

    /* LOOP as often as n tokens (bytes) give it; a cut character comes as U+FFFD. */
    private static String loop(int bytes) {
        final byte[] once = LOOP.getBytes(StandardCharsets.UTF_8);
        final byte[] all = new byte[bytes];
        for (int i = 0; i < bytes; i++) {
            all[i] = once[i % once.length];
        }
        return new String(all, StandardCharsets.UTF_8);
    }

    /* Android gives a descriptor by ParcelFileDescriptor.getFd(); a desktop's Java hides it. */
    private static int descriptorOf(Path path) throws IOException {
        final Path wanted = path.toRealPath();
        try (DirectoryStream<Path> entries = Files.newDirectoryStream(Paths.get("/proc/self/fd"))) {
            for (Path entry : entries) {
                try {
                    if (Files.readSymbolicLink(entry).equals(wanted)) {
                        return Integer.parseInt(entry.getFileName().toString());
                    }
                } catch (IOException e) {
                    continue; // closed meanwhile
                }
            }
        }
        throw new IOException("no descriptor of " + wanted);
    }

    /* A zip file as an APK is: the model stored, and what zipalign does to its offset. Returns the offset. */
    private static long writeApk(Path apk, Path model, int alignment) throws IOException {
        final byte[] data = Files.readAllBytes(model);
        final CRC32 crc = new CRC32();
        crc.update(data);
        final String name = "assets/model.gguf";
        long offset;
        try (ZipOutputStream zip = new ZipOutputStream(Files.newOutputStream(apk))) {
            zip.setMethod(ZipOutputStream.STORED);
            final byte[] other = new byte[1234567];
            final CRC32 otherCrc = new CRC32();
            otherCrc.update(other);
            putStored(zip, "classes.dex", other, otherCrc.getValue(), 0);
            offset = 30 + "classes.dex".length() + other.length + 30 + name.length();
            final int padding = (int) ((alignment - offset % alignment) % alignment);
            // An extra field has a header of four bytes.
            final int extra = padding > 0 && padding < 4 ? padding + 4096 : padding;
            offset += extra;
            putStored(zip, name, data, crc.getValue(), extra);
            putStored(zip, "resources.arsc", other, otherCrc.getValue(), 0);
        }
        try (RandomAccessFile check = new RandomAccessFile(apk.toFile(), "r")) {
            final byte[] magic = new byte[4];
            check.seek(offset);
            check.readFully(magic);
            same("GGUF", new String(magic, StandardCharsets.US_ASCII));
        }
        return offset;
    }

    private static void putStored(ZipOutputStream zip, String name, byte[] data, long crc, int padding)
            throws IOException {
        final ZipEntry entry = new ZipEntry(name);
        entry.setSize(data.length);
        entry.setCompressedSize(data.length);
        entry.setCrc(crc);
        if (padding != 0) {
            final byte[] extra = new byte[padding]; // the field that zipalign uses for it
            extra[0] = 0x35;
            extra[1] = (byte) 0xd9;
            extra[2] = (byte) (extra.length - 4);
            extra[3] = (byte) ((extra.length - 4) >> 8);
            entry.setExtra(extra);
        }
        zip.putNextEntry(entry);
        zip.write(data);
        zip.closeEntry();
    }

    /* What the descriptors of this process are of. Java opens and closes some of its own at any time (cgroup files, /proc). */
    private static List<String> descriptors() throws IOException {
        final List<String> targets = new ArrayList<>();
        try (DirectoryStream<Path> entries = Files.newDirectoryStream(Paths.get("/proc/self/fd"))) {
            for (Path entry : entries) {
                try {
                    targets.add(Files.readSymbolicLink(entry).toString());
                } catch (IOException e) {
                    continue; // closed meanwhile
                }
            }
        }
        return targets;
    }

    private static int mappingsOf(String name) throws IOException {
        int n = 0;
        for (String line : Files.readAllLines(Paths.get("/proc/self/maps"))) {
            n += line.contains(name) ? 1 : 0;
        }
        return n;
    }

    private static long residentKilobytes() throws IOException {
        for (String line : Files.readAllLines(Paths.get("/proc/self/status"))) {
            if (line.startsWith("VmRSS:")) {
                return Long.parseLong(line.replaceAll("[^0-9]", ""));
            }
        }
        throw new IOException("no VmRSS");
    }

    /* ---- Opening ---- */

    static void testInfo() throws Exception {
        try (DrLlm llm = open()) {
            same(8, llm.getInfo().layers);
            same(259, llm.getInfo().vocabulary);
            same(4096, llm.getInfo().trainedContext);
            same("f32", llm.getInfo().quantization);
            check(llm.getInfo().chat, "the template was not seen");
            check(llm.getInfo().parameters > 100000 && llm.getInfo().weightBytes > 100000, "sizes");
            check(!llm.getInfo().backend.isEmpty(), "backend");
        }
        try (DrLlm llm = DrLlm.open(file("no-template.gguf"), new ModelOptions())) {
            check(!llm.getInfo().chat, "a template from nowhere");
        }
    }

    static void testPathsOfAllCharacters() throws Exception {
        final Path odd = folder.resolve("mod\u00E8le \u4E2D \uD83D\uDE00.gguf");
        if (!odd.toString().equals(new String(odd.toString().getBytes(StandardCharsets.UTF_8), StandardCharsets.UTF_8))) {
            throw new Skip("the locale has no such names");
        }
        Files.copy(folder.resolve("tiny.gguf"), odd, StandardCopyOption.REPLACE_EXISTING);
        try (DrLlm llm = DrLlm.open(odd.toString(), new ModelOptions())) {
            same(loop(8), llm.generate("A", greedy(8), null).text);
        } finally {
            Files.delete(odd);
        }
        final DrLlmException e =
                refused(DrLlmException.IO, () -> DrLlm.open(odd.toString(), new ModelOptions()));
        contains(e.getMessage(), odd.toString());
        contains(e.getMessage(), "No such file");
    }

    static void testWrongPaths() throws Exception {
        refused(DrLlmException.IO, () -> DrLlm.open("", new ModelOptions()));
        refused(DrLlmException.IO, () -> DrLlm.open("/", new ModelOptions()));
        refused(DrLlmException.IO, () -> DrLlm.open("/dev/null", new ModelOptions()));
        contains(thrown(IllegalArgumentException.class, () -> DrLlm.open(file("tiny.gguf") + "\0", new ModelOptions()))
                .getMessage(), "zero");
        contains(thrown(IllegalArgumentException.class, () -> DrLlm.open(null, new ModelOptions())).getMessage(), "path");
    }

    static void testWrongFiles() throws Exception {
        final byte[] good = Files.readAllBytes(folder.resolve("tiny.gguf"));
        final Path bad = folder.resolve("bad.gguf");
        final int[] sizes = {0, 1, 4, 23, 24, 100, 1000, 5000, 20000, good.length / 2, good.length - 1};
        for (int size : sizes) {
            Files.write(bad, Arrays.copyOf(good, size));
            refused(DrLlmException.FORMAT, () -> DrLlm.open(bad.toString(), new ModelOptions()));
        }
        Files.write(bad, "This is a text and no model at all.".getBytes(StandardCharsets.US_ASCII));
        refused(DrLlmException.FORMAT, () -> DrLlm.open(bad.toString(), new ModelOptions()));
        final byte[] other = good.clone();
        other[4] = 99; // the version
        Files.write(bad, other);
        refused(DrLlmException.UNSUPPORTED, () -> DrLlm.open(bad.toString(), new ModelOptions()));
        Files.delete(bad);
        // Routers are no model, and a model is no routers.
        thrown(DrLlmException.class, () -> DrLlm.open(file("routers.gguf"), new ModelOptions()));
    }

    static void testDescriptorInAnApk() throws Exception {
        final Path apk = folder.resolve("app.apk");
        for (int alignment : new int[] {4, 64, 4096}) {
            final long offset = writeApk(apk, folder.resolve("tiny.gguf"), alignment);
            final long length = Files.size(folder.resolve("tiny.gguf"));
            DrLlm llm;
            try (FileInputStream stream = new FileInputStream(apk.toFile())) {
                llm = DrLlm.open(descriptorOf(apk), offset, length, new ModelOptions());
            }
            // The descriptor is closed by now.
            try {
                same(loop(40), llm.generate("A", greedy(40), null).text);
                same(8, llm.getInfo().layers);
            } finally {
                llm.close();
            }
        }
        final long offset = writeApk(apk, folder.resolve("tiny.gguf"), 4);
        final long length = Files.size(folder.resolve("tiny.gguf"));
        final ModelOptions options = new ModelOptions();
        try (FileInputStream stream = new FileInputStream(apk.toFile())) {
            final int fd = descriptorOf(apk);
            refused(DrLlmException.FORMAT, () -> DrLlm.open(fd, 0, 0, options).close());
            refused(DrLlmException.FORMAT, () -> DrLlm.open(fd, offset, length - 1, options).close());
            refused(DrLlmException.IO, () -> DrLlm.open(fd, offset, Files.size(apk), options).close());
            refused(DrLlmException.IO, () -> DrLlm.open(fd, Long.MAX_VALUE, 0, options).close());
            thrown(IllegalArgumentException.class, () -> DrLlm.open(fd, -1, length, options).close());
            thrown(IllegalArgumentException.class, () -> DrLlm.open(fd, offset, -1, options).close());
            DrLlm.open(fd, offset, length, options).close();
            check(stream.read() == 'P', "the descriptor was moved or closed");
        }
        refused(DrLlmException.IO, () -> DrLlm.open(-1, 0, 0, options).close());
        refused(DrLlmException.IO, () -> DrLlm.open(12345, 0, 0, options).close());
        // The data begins at an odd byte: what zipalign would not let happen.
        final long odd = writeApk(apk, folder.resolve("tiny.gguf"), 4) + 1;
        final byte[] all = Files.readAllBytes(apk);
        final byte[] moved = new byte[all.length + 1];
        System.arraycopy(all, 0, moved, 1, all.length);
        Files.write(apk, moved);
        try (FileInputStream stream = new FileInputStream(apk.toFile())) {
            final int fd = descriptorOf(apk);
            contains(thrown(IllegalArgumentException.class, () -> DrLlm.open(fd, odd, length, options).close())
                    .getMessage(), "multiple of 4");
        }
        Files.delete(apk);
    }

    static void testPackedModel() throws Exception {
        try (DrLlm llm = DrLlm.open(file("tiny.drllm"), new ModelOptions())) {
            llm.openPackedRouters();
            final Generation made = llm.generate("A", greedy(20), null);
            same(loop(20), made.text);
            same("0-1,3-4,6-7", made.program);
        }
        try (DrLlm llm = open()) {
            thrown(IllegalStateException.class, llm::openPackedRouters);
        }
    }

    static void testOptionsOfModels() throws Exception {
        thrown(IllegalArgumentException.class, () -> new ModelOptions().context(-1));
        thrown(IllegalArgumentException.class, () -> new ModelOptions().threads(-1));
        thrown(IllegalArgumentException.class,
                () -> DrLlm.open(file("tiny.gguf"), new ModelOptions().threads(100000)));
        refused(DrLlmException.UNSUPPORTED, // heads of 16
                () -> DrLlm.open(file("tiny.gguf"), new ModelOptions().compactCache(true)));
        try (DrLlm llm = DrLlm.open(file("tiny.gguf"), new ModelOptions().context(1010).threads(2))) {
            same(loop(300), llm.generate("A", greedy(300), null).text);

        }
    }

    /* ---- Text ---- */

    static void testCharactersOverTokenBorders() throws Exception {
        try (DrLlm llm = open()) {
            final StringBuilder heard = new StringBuilder();
            final int[] pieces = {0};
            final Generation made = llm.generate("A", greedy(130), piece -> {
                check(!piece.isEmpty(), "an empty piece");
                check(!Character.isLowSurrogate(piece.charAt(0)), "half a pair");
                check(!Character.isHighSurrogate(piece.charAt(piece.length() - 1)), "half a pair");
                heard.append(piece);
                pieces[0]++;
                return true;
            });
            same(loop(130), made.text);
            same(made.text, heard.toString());
            same(Generation.Stop.MAX_TOKENS, made.stop);
            same(130, made.tokens);
            check(pieces[0] == 70, pieces[0] + " pieces"); // 13 tokens make 7 characters
        }
    }

    static void testZeroInvalidAndCutCharacters() throws Exception {
        try (DrLlm llm = open()) {
            final Generation zero = llm.generate("N", greedy(9), null);
            same("\0", zero.text);
            same(Generation.Stop.END, zero.stop);
            same("\uFFFD", llm.generate("I", greedy(9), null).text);
            same("\uFFFD", llm.generate("A", greedy(3), null).text); // three bytes of four
            same(Generation.Stop.MAX_TOKENS, llm.generate("A", greedy(0), null).stop);
        }
    }

    /* Every byte is a token of this vocabulary. */
    static void testPromptsOfAllCharacters() throws Exception {
        try (DrLlm llm = open()) {
            final int one = llm.generate("x", greedy(0), null).promptTokens;
            same(one + 1, llm.generate("x\0", greedy(0), null).promptTokens);
            same(one + 2, llm.generate("x\u00E9", greedy(0), null).promptTokens);
            same(one + 3, llm.generate("x\u4E2D", greedy(0), null).promptTokens);
            same(one + 4, llm.generate("x\uD83D\uDE00", greedy(0), null).promptTokens);
            same(one + 3, llm.generate("x\uD83D", greedy(0), null).promptTokens); // U+FFFD
            same(one + 4, llm.generate("x\uDE00y", greedy(0), null).promptTokens);
            same(one + 6, llm.generate("x\uDE00\uD83D", greedy(0), null).promptTokens);
            // Longer than any buffer of the native code.
            final char[] many = new char[600];
            Arrays.fill(many, 'x');
            same(one + 599, llm.generate(new String(many), greedy(0), null).promptTokens);
        }
    }

    static void testStopTexts() throws Exception {
        try (DrLlm llm = open()) {
            final Generation made = llm.generate("A", greedy(50).stop("nothing", "\u4E2DC"), null);
            same("\uD83D\uDE00B\u00E9D", made.text);
            same(Generation.Stop.STOP_TEXT, made.stop);
            thrown(IllegalArgumentException.class, () -> llm.generate("A", greedy(5).stop("a\0b"), null));
            thrown(IllegalArgumentException.class, () -> llm.generate("A", greedy(5).stop((String) null), null));
        }
    }

    static void testSampling() throws Exception {
        try (DrLlm llm = open()) {
            final GenerateOptions hot = new GenerateOptions().temperature(20).topK(0).topP(1).minP(0).maxTokens(60);
            final String first = llm.generate("A", hot.seed(1), null).text;
            same(first, llm.generate("A", hot.seed(1), null).text);
            check(!first.equals(llm.generate("A", hot.seed(2), null).text), "the seed changes nothing");
            check(!first.equals(loop(60)), "the temperature changes nothing");
            final GenerateOptions[] wrong = {greedy(5).temperature(-1), greedy(5).temperature(Float.NaN), greedy(5).topP(0),
                    greedy(5).minP(1), greedy(5).repeatPenalty(0, 64), greedy(5).topK(-1), greedy(-1),
                    greedy(5).repeatPenalty(1, -1)};
            for (GenerateOptions options : wrong) {
                thrown(IllegalArgumentException.class, () -> llm.generate("A", options, null));
            }
            thrown(IllegalArgumentException.class, () -> llm.generate(null, greedy(5), null));
            thrown(NullPointerException.class, () -> {
                try {
                    llm.generate("A", null, null);
                } catch (NullPointerException e) {
                    throw new NullPointerException("without options");
                }
            });
            same(loop(5), llm.generate("A", greedy(5), null).text);
        }
    }

    static void testContextThatIsFull() throws Exception {
        try (DrLlm llm = DrLlm.open(file("tiny.gguf"), new ModelOptions().context(32))) {
            final Generation made = llm.generate("A", greedy(100), null);
            same(Generation.Stop.CONTEXT_FULL, made.stop);
            same(loop(made.tokens), made.text);
            final char[] many = new char[40];
            Arrays.fill(many, 'x');
            final DrLlmException e =
                    refused(DrLlmException.CONTEXT_FULL, () -> llm.generate(new String(many), greedy(1), null));
            contains(e.getMessage(), "32");
            same(loop(9), llm.generate("A", greedy(9), null).text);
        }
    }

    /* ---- Chat ---- */

    static void testChat() throws Exception {
        try (DrLlm llm = open()) {
            final List<ChatMessage> first = conversation(ChatMessage.system("Be brief."), ChatMessage.user("Hello \uD83D\uDE00"));
            final Generation answer = llm.chat(first, greedy(20), null);
            same("Hi!", answer.text);
            same(Generation.Stop.END, answer.stop);
            same(answer.promptTokens, answer.computedTokens);
            final Generation again = llm.chat(conversation(first.get(0), first.get(1), ChatMessage.assistant(answer.text),
                    ChatMessage.user("And now?")), greedy(20), null);
            same("Hi!", again.text);
            check(again.promptTokens > answer.promptTokens, "the conversation is no longer");
            check(again.computedTokens < again.promptTokens - answer.promptTokens + 5,
                    again.computedTokens + " of " + again.promptTokens + " computed anew");
            llm.reset();
            final Generation anew = llm.chat(first, greedy(20), null);
            same(anew.promptTokens, anew.computedTokens);
            thrown(IllegalArgumentException.class, () -> llm.chat(conversation(), greedy(5), null));
            thrown(IllegalArgumentException.class,
                    () -> llm.chat(conversation(ChatMessage.user("a\0b")), greedy(5), null));
            thrown(IllegalArgumentException.class, () -> ChatMessage.user(null));
            // With routers, which read all of the conversation, most of it is kept as well.
            llm.openRouters(file("routers.gguf"));
            same("0-1,3-4,6-7", llm.chat(first, greedy(20), null).program);
            final Generation routed = llm.chat(conversation(first.get(0), first.get(1), ChatMessage.assistant("Hi!"),
                    ChatMessage.user("And now?")), greedy(20), null);
            same(again.promptTokens, routed.promptTokens);
            check(routed.computedTokens < routed.promptTokens,
                    routed.computedTokens + " of " + routed.promptTokens + " computed anew with routers");
        }
        try (DrLlm llm = DrLlm.open(file("no-template.gguf"), new ModelOptions())) {
            refused(DrLlmException.UNSUPPORTED, () -> llm.chat(conversation(ChatMessage.user("Hi")), greedy(5), null));
            same(loop(5), llm.generate("A", greedy(5), null).text);
        }
    }

    /* ---- Listeners ---- */

    static void testListenerThatStops() throws Exception {
        try (DrLlm llm = open()) {
            final List<String> heard = new ArrayList<>();
            final Generation made = llm.generate("A", greedy(100), piece -> {
                heard.add(piece);
                return heard.size() < 3;
            });
            same(Generation.Stop.LISTENER, made.stop);
            same("\uD83D\uDE00B\u00E9", made.text);
            same(3, heard.size());
        }
    }

    static void testListenerThatThrows() throws Exception {
        try (DrLlm llm = open()) {
            final RuntimeException mine = new RuntimeException("mine");
            final Error error = new StackOverflowError("my error");
            final int[] calls = {0};
            check(thrown(RuntimeException.class, () -> llm.generate("A", greedy(100), piece -> {
                calls[0]++;
                throw mine;
            })) == mine, "another exception came out");
            same(1, calls[0]);
            check(thrown(StackOverflowError.class, () -> llm.generate("A", greedy(100), piece -> {
                throw error;
            })) == error, "another error came out");
            same(loop(10), llm.generate("A", greedy(10), null).text);
        }
    }

    static void testListenerThatCallsBack() throws Exception {
        try (DrLlm llm = open()) {
            contains(thrown(IllegalStateException.class, () -> llm.generate("A", greedy(10), piece -> {
                try {
                    llm.generate("A", greedy(1), null);
                } catch (DrLlmException e) {
                    throw new AssertionError(e);
                }
                return true;
            })).getMessage(), "listener");
            thrown(IllegalStateException.class, () -> llm.generate("A", greedy(10), piece -> {
                llm.reset();
                return true;
            }));
            final Generation made = llm.generate("A", greedy(50), piece -> {
                llm.setPower(5, false, DrLlm.THERMAL_NONE);
                llm.cancel();
                return true;
            });
            same(Generation.Stop.CANCELLED, made.stop);
            check(made.tokens < 10, made.tokens + " tokens after a cancel");
        }
        final DrLlm closing = open();
        final Generation made = closing.generate("A", greedy(1000), piece -> {
            closing.close();
            closing.close();
            return true;
        });
        same(Generation.Stop.CANCELLED, made.stop);
        thrown(IllegalStateException.class, () -> closing.generate("A", greedy(1), null));
        same(0, mappingsOf("tiny.gguf"));
    }

    /* Java's check complains when 32 references are held at once; and one that is kept keeps its object alive. */
    static void testReferences() throws Exception {
        try (DrLlm llm = DrLlm.open(file("tiny.gguf"), new ModelOptions().threads(1))) {
            TextListener listener = new TextListener() {
                @Override
                public boolean onText(String piece) {
                    return true;
                }
            };
            final WeakReference<TextListener> weak = new WeakReference<>(listener);
            for (int i = 0; i < 3; i++) {
                llm.generate("A", greedy(Math.min(1000, 50 * rounds)), listener);
            }
            listener = null;
            for (int i = 0; i < 100 && weak.get() != null; i++) {
                System.gc();
                Thread.sleep(5);
            }
            check(weak.get() == null, "a listener is still referred to");
        }
    }

    /* ---- Threads ---- */

    /* Ends only when it is cancelled: the listener waits until then. */
    private static Generation generateUntilCancelled(DrLlm llm, CountDownLatch started, CountDownLatch cancelled)
            throws DrLlmException {
        return llm.generate("A", greedy(2000), piece -> {
            started.countDown();
            try {
                check(cancelled.await(PATIENCE, TimeUnit.SECONDS), "nobody cancelled");
            } catch (InterruptedException e) {
                throw new AssertionError(e);
            }
            return true;
        });
    }

    private static void await(CountDownLatch latch) throws InterruptedException {
        check(latch.await(PATIENCE, TimeUnit.SECONDS), "waited in vain");
    }

    static void testCancel() throws Exception {
        final ExecutorService other = Executors.newSingleThreadExecutor();
        try (DrLlm llm = open()) {
            llm.cancel(); // nothing runs: nothing happens
            same(loop(10), llm.generate("A", greedy(10), null).text);
            final CountDownLatch started = new CountDownLatch(1);
            final CountDownLatch cancelled = new CountDownLatch(1);
            final Future<Generation> future = other.submit(() -> generateUntilCancelled(llm, started, cancelled));
            await(started);
            llm.cancel();
            cancelled.countDown();
            final Generation made = future.get(PATIENCE, TimeUnit.SECONDS);
            same(Generation.Stop.CANCELLED, made.stop);
            same("\uD83D\uDE00", made.text);
            same(loop(30), llm.generate("A", greedy(30), null).text);
        } finally {
            other.shutdownNow();
        }
    }

    /* At any moment; the call after a cancelled one is whole. */
    static void testCancelAtAnyTime() throws Exception {
        final ExecutorService other = Executors.newSingleThreadExecutor();
        int nCancelled = 0;
        try (DrLlm llm = open()) {
            for (int i = 0; i < rounds; i++) {
                final int spin = i * 40;
                final CountDownLatch go = new CountDownLatch(1);
                final Future<?> canceller = other.submit(() -> {
                    await(go);
                    for (int k = 0; k < spin; k++) {
                        Thread.onSpinWait();
                    }
                    llm.cancel();
                    return null;
                });
                go.countDown();
                final Generation made = llm.generate("A", greedy(60), null);
                check(loop(60).startsWith(made.text.replace("\uFFFD", "")), "text <" + made.text + ">");
                if (made.stop == Generation.Stop.CANCELLED) {
                    nCancelled++;
                } else {
                    same(60, made.tokens);
                }
                canceller.get(PATIENCE, TimeUnit.SECONDS);
                final Generation whole = llm.generate("A", greedy(20), null);
                same(Generation.Stop.MAX_TOKENS, whole.stop);
                same(loop(20), whole.text);
            }
        } finally {
            other.shutdownNow();
        }
        System.out.println("        " + nCancelled + " of " + rounds + " were cancelled");
    }

    static void testCloseWhileItRuns() throws Exception {
        final ExecutorService others = Executors.newFixedThreadPool(3);
        final DrLlm llm = open();
        final CountDownLatch started = new CountDownLatch(1);
        final CountDownLatch closing = new CountDownLatch(1);
        try {
            final Future<Generation> running = others.submit(() -> generateUntilCancelled(llm, started, closing));
            await(started);
            final Future<Generation> waiting = others.submit(() -> llm.generate("A", greedy(5), null));
            final Future<?> closer = others.submit(llm::close);
            // The waiting call is told at once, the closing one when the running call has ended.
            contains(thrown(IllegalStateException.class, () -> {
                try {
                    waiting.get(PATIENCE, TimeUnit.SECONDS);
                } catch (java.util.concurrent.ExecutionException e) {
                    throw (Exception) e.getCause();
                }
            }).getMessage(), "closed");
            if (closer.isDone()) {
                throw new AssertionError("closed under a running call: " + closer.get());
            }
            check(mappingsOf("tiny.gguf") != 0, "the model is gone under a running call");
            closing.countDown();
            same(Generation.Stop.CANCELLED, running.get(PATIENCE, TimeUnit.SECONDS).stop);
            closer.get(PATIENCE, TimeUnit.SECONDS);
            same(0, mappingsOf("tiny.gguf"));
        } finally {
            others.shutdownNow();
        }
    }

    static void testUseAfterClose() throws Exception {
        final DrLlm llm = open();
        llm.close();
        llm.close();
        llm.cancel();
        same(8, llm.getInfo().layers);
        final Code[] uses = {() -> llm.generate("A", greedy(1), null),
                () -> llm.chat(conversation(ChatMessage.user("Hi")), greedy(1), null), llm::reset, llm::newSession,
                () -> llm.openRouters(file("routers.gguf")), () -> llm.openRouters(-1, 0, 0), llm::openPackedRouters,
                llm::closeRouters, () -> llm.setSaveLayers(1), () -> llm.setPower(50, true, DrLlm.THERMAL_NONE),
                llm::getSaveLayers};
        for (Code use : uses) {
            contains(thrown(IllegalStateException.class, use).getMessage(), "closed");
        }
    }

    /* Everything at once, and close at any moment: nothing but results and IllegalStateExceptions. */
    static void testCloseAtAnyTime() throws Exception {
        final ExecutorService others = Executors.newFixedThreadPool(4);
        try {
            for (int i = 0; i < rounds; i++) {
                final DrLlm llm = open();
                final int spin = i * 100;
                final List<Future<?>> futures = new ArrayList<>();
                for (int thread = 0; thread < 3; thread++) {
                    final int number = thread;
                    futures.add(others.submit(() -> {
                        try {
                            for (;;) {
                                final Generation made = llm.generate("A", greedy(40), null);
                                if (made.stop == Generation.Stop.MAX_TOKENS) {
                                    same(loop(40), made.text);
                                }
                                if (number == 1) {
                                    llm.openRouters(file("routers.gguf"));
                                    llm.setPower(15, false, DrLlm.THERMAL_SEVERE);
                                } else if (number == 2) {
                                    llm.cancel();
                                    llm.newSession().close();
                                    llm.reset();
                                }
                            }
                        } catch (IllegalStateException e) {
                            contains(e.getMessage(), "closed");
                        }
                        return null;
                    }));
                }
                for (int k = 0; k < spin; k++) {
                    Thread.onSpinWait();
                }
                llm.close();
                for (Future<?> future : futures) { // one may just have a session of its own
                    future.get(PATIENCE, TimeUnit.SECONDS);
                }
                same(0, mappingsOf("tiny.gguf"));
            }
        } finally {
            others.shutdownNow();
        }
    }

    static void testOneAtATime() throws Exception {
        final ExecutorService others = Executors.newFixedThreadPool(4);
        try (DrLlm llm = open()) {
            final List<Future<Generation>> futures = new ArrayList<>();
            for (int i = 0; i < 4 + rounds / 3; i++) {
                futures.add(others.submit(() -> llm.generate("A", greedy(100), piece -> true)));
            }
            for (Future<Generation> future : futures) {
                same(loop(100), future.get(PATIENCE, TimeUnit.SECONDS).text);
            }
        } finally {
            others.shutdownNow();
        }
    }

    static void testInterruptedWaiting() throws Exception {
        final ExecutorService other = Executors.newSingleThreadExecutor();
        final CountDownLatch started = new CountDownLatch(1);
        final CountDownLatch cancelled = new CountDownLatch(1);
        try (DrLlm llm = open()) {
            final Future<Generation> running = other.submit(() -> generateUntilCancelled(llm, started, cancelled));
            await(started);
            final boolean[] stillInterrupted = {false};
            final Thread waiting = new Thread(() -> {
                try {
                    same(loop(5), llm.generate("A", greedy(5), null).text);
                    stillInterrupted[0] = Thread.currentThread().isInterrupted();
                } catch (DrLlmException e) {
                    throw new AssertionError(e);
                }
            });
            waiting.start();
            waiting.interrupt();
            llm.cancel();
            cancelled.countDown();
            waiting.join(1000 * PATIENCE);
            check(stillInterrupted[0], "the interrupt was swallowed");
            same(Generation.Stop.CANCELLED, running.get(PATIENCE, TimeUnit.SECONDS).stop);
        } finally {
            other.shutdownNow();
        }
    }

    /* ---- Sessions ---- */

    static void testManySessions() throws Exception {
        final ExecutorService others = Executors.newFixedThreadPool(4);
        final List<DrLlm> sessions = new ArrayList<>();
        try {
            sessions.add(open());
            sessions.get(0).openRouters(file("routers.gguf"));
            for (int i = 1; i < 16; i++) {
                sessions.add(sessions.get(i / 2).newSession());
            }
            same(1, mappingsOf("tiny.gguf"));
            sessions.get(0).close(); // the others keep model and routers
            thrown(IllegalStateException.class, () -> sessions.get(0).newSession());
            final List<Future<Generation>> futures = new ArrayList<>();
            for (DrLlm session : sessions.subList(1, sessions.size())) {
                futures.add(others.submit(() -> session.generate("A", greedy(30), piece -> true)));
            }
            for (Future<Generation> future : futures) {
                final Generation made = future.get(PATIENCE, TimeUnit.SECONDS);
                same(loop(30), made.text);
                same("0-1,3-4,6-7", made.program);
            }
            sessions.get(1).closeRouters(); // its own only
            same("0-7", sessions.get(1).generate("A", greedy(2), null).program);
            same("0-1,3-4,6-7", sessions.get(2).generate("A", greedy(2), null).program);
        } finally {
            for (DrLlm session : sessions) {
                session.close();
            }
            others.shutdownNow();
        }
        same(0, mappingsOf("tiny.gguf"));
    }

    static void testNothingLeaks() throws Exception {
        final String models = folder.toRealPath().toString();
        long before = 0;
        int descriptorsBefore = 0;
        final int times = Math.max(rounds, 20); // fewer than that and Java's own needs hide a leak
        for (int i = 0; i < 2 * times; i++) {
            if (i == times) { // warm by then
                before = residentKilobytes();
                descriptorsBefore = descriptors().size();
            }
            try (DrLlm llm = open()) {
                llm.openRouters(file("routers.gguf"));
                llm.openRouters(file("routers.gguf"));
                llm.generate("A", greedy(20), piece -> true);
                thrown(DrLlmException.class, () -> llm.openRouters(file("other.gguf")));
                thrown(IllegalArgumentException.class,
                        () -> llm.chat(conversation(ChatMessage.user("a"), ChatMessage.user("\0")), greedy(5), null));
                try (DrLlm other = llm.newSession()) {
                    other.chat(conversation(ChatMessage.user("Hello")), greedy(5).stop("x", "y"), piece -> true);
                }
            }
            thrown(DrLlmException.class, () -> DrLlm.open(file("routers.gguf"), new ModelOptions()));
        }
        final List<String> descriptors = descriptors();
        for (String descriptor : descriptors) {
            check(!descriptor.startsWith(models), "left open: " + descriptor);
        }
        // Whatever else a round left open would be there as often as there were rounds; Java's own are one or two.
        check(descriptors.size() - descriptorsBefore < times, "from " + descriptorsBefore + " descriptors to " + descriptors);
        same(0, mappingsOf("tiny.gguf"));
        same(0, mappingsOf("routers.gguf"));
        final long grown = residentKilobytes() - before;
        System.out.println("        resident memory grew by " + grown + " KiB in " + times + " rounds");
        // A model's weights and context are 3 MiB, a round's leak of either. The heap of Java moves by a few.
        check(grown < 1024 * (8 + times), "grown by " + grown + " KiB");
    }

    /* ---- Depth ---- */

    static void testRouters() throws Exception {
        try (DrLlm llm = open()) {
            same("0-7", llm.generate("A", greedy(2), null).program);
            llm.openRouters(file("routers.gguf"));
            final Generation made = llm.generate("A", greedy(30), null);
            same("0-1,3-4,6-7", made.program);
            same(2, made.layersSaved);
            same(loop(30), made.text);
            refused(DrLlmException.IO, () -> llm.openRouters(file("nowhere.gguf")));
            thrown(IllegalArgumentException.class, () -> llm.openRouters(file("other-routers.gguf")));
            thrown(DrLlmException.class, () -> llm.openRouters(file("tiny.gguf")));
            same("0-1,3-4,6-7", llm.generate("A", greedy(2), null).program); // those before stay
            llm.closeRouters();
            llm.closeRouters();
            same("0-7", llm.generate("A", greedy(2), null).program);
            final Path larger = folder.resolve("larger");
            final byte[] routers = Files.readAllBytes(folder.resolve("routers.gguf"));
            final byte[] all = new byte[routers.length + 1000];
            System.arraycopy(routers, 0, all, 500, routers.length);
            Files.write(larger, all);
            try (FileInputStream stream = new FileInputStream(larger.toFile())) {
                llm.openRouters(descriptorOf(larger), 500, routers.length);
                check(stream.read() == 0, "the descriptor was moved or closed");
                thrown(IllegalArgumentException.class, () -> llm.openRouters(descriptorOf(larger), -500, 1));
            }
            Files.delete(larger);
            same("0-1,3-4,6-7", llm.generate("A", greedy(2), null).program);
        }
    }

    /* The table saves 1 layer without a bias and 6 at most; a quarter of 8 beyond is 3. */
    static void testSavingByPower() throws Exception {
        final Object[][] cases = {
                // percent, charging, thermal, layers
                {100, false, DrLlm.THERMAL_NONE, -1.0f},
                {51, false, DrLlm.THERMAL_UNKNOWN, -1.0f},
                {50, false, DrLlm.THERMAL_NONE, 1.5f},
                {31, false, DrLlm.THERMAL_NONE, 1.5f},
                {30, false, DrLlm.THERMAL_LIGHT, 2.0f},
                {20, false, DrLlm.THERMAL_NONE, 2.5f},
                {10, false, DrLlm.THERMAL_NONE, 3.0f},
                {0, false, DrLlm.THERMAL_NONE, 3.0f},
                {0, true, DrLlm.THERMAL_NONE, -1.0f},
                {DrLlm.BATTERY_UNKNOWN, false, DrLlm.THERMAL_UNKNOWN, -1.0f},
                {100, true, DrLlm.THERMAL_LIGHT, 1.5f},
                {100, true, DrLlm.THERMAL_MODERATE, 2.0f},
                {50, false, DrLlm.THERMAL_SEVERE, 2.5f},
                {DrLlm.BATTERY_UNKNOWN, false, DrLlm.THERMAL_CRITICAL, 3.0f},
                {100, false, DrLlm.THERMAL_SHUTDOWN, 3.0f},
        };
        try (DrLlm llm = open()) {
            llm.setPower(5, false, DrLlm.THERMAL_NONE);
            same(-1.0f, llm.getSaveLayers()); // no routers
            same("0-7", llm.generate("A", greedy(2), null).program);
            llm.openRouters(file("routers.gguf"));
            for (Object[] one : cases) {
                llm.setPower((Integer) one[0], (Boolean) one[1], (Integer) one[2]);
                same(one[3], llm.getSaveLayers());
                llm.generate("A", greedy(2), null);
            }
            llm.setPower(5, false, DrLlm.THERMAL_NONE);
            llm.setSaveLayers(2);
            same(3.0f, llm.getSaveLayers());
            llm.setSaveLayers(4);
            same(4.0f, llm.getSaveLayers());
            llm.setPower(90, false, DrLlm.THERMAL_NONE);
            same(4.0f, llm.getSaveLayers());
            try (DrLlm other = llm.newSession()) {
                same(4.0f, other.getSaveLayers());
            }
            // The budget arrives where it is used: what is past the table is refused there.
            llm.setSaveLayers(7);
            contains(thrown(IllegalArgumentException.class, () -> llm.generate("A", greedy(2), null)).getMessage(), "6.00");
            llm.setSaveLayers(-1);
            same(loop(2), llm.generate("A", greedy(2), null).text);
            thrown(IllegalArgumentException.class, () -> llm.setSaveLayers(Float.NaN));
            thrown(IllegalArgumentException.class, () -> llm.setPower(101, false, DrLlm.THERMAL_NONE));
            thrown(IllegalArgumentException.class, () -> llm.setPower(-2, false, DrLlm.THERMAL_NONE));
            thrown(IllegalArgumentException.class, () -> llm.setPower(50, false, 7));
            llm.openRouters(file("no-table.gguf"));
            llm.setPower(5, false, DrLlm.THERMAL_CRITICAL);
            same(-1.0f, llm.getSaveLayers());
            same("0-1,3-4,6-7", llm.generate("A", greedy(2), null).program);
            llm.setSaveLayers(1);
            thrown(IllegalStateException.class, () -> llm.generate("A", greedy(2), null));
        }
    }

    /* ---- The real model ---- */

    private static final String QUESTION = "Name three primary colours.";
    private static final String REVIEW = "Review: a warm and clever film that never loses its way\nSentiment:";

    /* Line 1: the program's answer to QUESTION at full depth, line 2: its layers for REVIEW. */
    static void testRealModel() throws Exception {
        if (realModel == null) {
            throw new Skip("no model=FILE: SmolLM2 is not in the cache, or not meant to be used here");
        }
        final List<String> expected = Files.readAllLines(Paths.get(realExpected));
        final Path apk = folder.resolve("real.apk");
        final long offset = writeApk(apk, Paths.get(realModel), 4);
        try (FileInputStream stream = new FileInputStream(apk.toFile());
                DrLlm llm = DrLlm.open(descriptorOf(apk), offset, new File(realModel).length(), new ModelOptions())) {
            final StringBuilder heard = new StringBuilder();
            final Generation made = llm.chat(conversation(ChatMessage.user(QUESTION)), greedy(24), piece -> {
                heard.append(piece);
                return true;
            });
            same(expected.get(0), made.text.replace('\n', ' '));
            same(made.text, heard.toString());
            llm.openRouters(realRouters);
            final Generation routed = llm.generate(REVIEW, greedy(1), null);
            same(expected.get(1), routed.program);
            check(routed.layersSaved >= 3, routed.layersSaved + " layers saved");
            final Generation chat = llm.chat(conversation(ChatMessage.user(QUESTION)), greedy(24), null);
            same(0, chat.layersSaved);
            same(made.text, chat.text);
            float last = -1;
            for (int percent : new int[] {60, 40, 25, 15, 5}) {
                llm.setPower(percent, false, DrLlm.THERMAL_NONE);
                final float layers = llm.getSaveLayers();
                final int saved = llm.generate(REVIEW, greedy(1), null).layersSaved;
                System.out.println("        battery " + percent + " %: budget " + layers + ", " + saved + " layers saved");
                check(layers > last || percent == 60, "no more saved at " + percent + " %");
                check(saved >= routed.layersSaved, saved + " layers saved at " + percent + " %");
                last = layers;
            }
        } finally {
            Files.delete(apk);
        }
    }
}
