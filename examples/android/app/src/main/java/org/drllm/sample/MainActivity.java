package org.drllm.sample;

import android.app.Activity;
import android.content.Intent;
import android.content.res.AssetFileDescriptor;
import android.net.Uri;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.os.ParcelFileDescriptor;
import android.widget.EditText;
import android.widget.ScrollView;
import android.widget.TextView;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.drllm.ChatMessage;
import org.drllm.DrLlm;
import org.drllm.DrLlmException;
import org.drllm.GenerateOptions;
import org.drllm.Generation;
import org.drllm.ModelOptions;

/** A conversation with a model out of the APK's assets, or out of a file that the user picks. */
public final class MainActivity extends Activity {
    private static final int PICK_MODEL = 1;

    /* The model is opened, used and closed on this one thread; the fields below it belong to the main thread. */
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private final Handler main = new Handler(Looper.getMainLooper());
    private final List<ChatMessage> conversation = new ArrayList<>();
    private DrLlm llm;
    private PowerFeed power;
    private boolean destroyed;
    private TextView status;
    private TextView shown;
    private EditText message;

    /** Opens a model; on the worker. */
    private interface Opener {
        DrLlm open() throws DrLlmException, IOException;
    }

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        status = findViewById(R.id.status);
        shown = findViewById(R.id.conversation);
        message = findViewById(R.id.message);
        power = new PowerFeed(this);
        findViewById(R.id.open).setOnClickListener(view -> pickModel());
        findViewById(R.id.send).setOnClickListener(view -> send());
        findViewById(R.id.stop).setOnClickListener(view -> {
            if (llm != null) {
                llm.cancel();
            }
        });
        open(this::openAsset);
    }

    @Override
    protected void onDestroy() {
        destroyed = true;
        power.stop();
        if (llm != null) {
            llm.close(); // makes an answer that is being made end
        }
        worker.shutdown();
        super.onDestroy();
    }

    /* ---- Opening ---- */

    private void open(Opener opener) {
        status.setText("...");
        worker.execute(() -> {
            try {
                final DrLlm opened = opener.open();
                main.post(() -> opened(opened));
            } catch (FileNotFoundException e) {
                main.post(() -> status.setText(R.string.open_model));
            } catch (DrLlmException | IOException | IllegalArgumentException e) {
                main.post(() -> status.setText(e.getMessage()));
            }
        });
    }

    private void opened(DrLlm opened) {
        if (destroyed) {
            opened.close();
            return;
        }
        power.stop();
        if (llm != null) {
            llm.close();
        }
        llm = opened;
        power.start(llm);
        conversation.clear();
        shown.setText("");
        status.setText(String.format(Locale.ROOT, "%s, %s, %d layers, %s", llm.getInfo().name,
                llm.getInfo().quantization, llm.getInfo().layers, llm.getInfo().backend));
    }

    private DrLlm openAsset() throws DrLlmException, IOException {
        DrLlm opened;
        // Fails for an asset that is compressed: see noCompress in build.gradle.
        try (AssetFileDescriptor asset = getAssets().openFd("model.gguf")) {
            opened = DrLlm.open(asset.getParcelFileDescriptor().getFd(), asset.getStartOffset(), asset.getLength(),
                    new ModelOptions());
        }
        try (AssetFileDescriptor asset = getAssets().openFd("routers.gguf")) {
            opened.openRouters(asset.getParcelFileDescriptor().getFd(), asset.getStartOffset(), asset.getLength());
        } catch (FileNotFoundException e) {
            return opened; // at full depth
        } catch (DrLlmException | IOException | RuntimeException e) {
            opened.close();
            throw e;
        }
        return opened;
    }

    private void pickModel() {
        final Intent intent = new Intent(Intent.ACTION_OPEN_DOCUMENT);
        intent.addCategory(Intent.CATEGORY_OPENABLE);
        intent.setType("*/*");
        startActivityForResult(intent, PICK_MODEL);
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == PICK_MODEL && result == RESULT_OK && data != null && data.getData() != null) {
            final Uri uri = data.getData();
            open(() -> {
                // A file of the device itself can be mapped; a document that a cloud's provider streams cannot, and says so.
                try (ParcelFileDescriptor file = getContentResolver().openFileDescriptor(uri, "r")) {
                    if (file == null) {
                        throw new IOException("cannot open " + uri);
                    }
                    return DrLlm.open(file.getFd(), 0, 0, new ModelOptions());
                }
            });
        }
    }

    /* ---- Talking ---- */

    private void send() {
        final String text = message.getText().toString().trim();
        final DrLlm mine = llm;
        if (mine == null || text.isEmpty()) {
            return;
        }
        message.setText("");
        conversation.add(ChatMessage.user(text));
        shown.append("\n> " + text + "\n");
        final List<ChatMessage> all = new ArrayList<>(conversation);
        worker.execute(() -> {
            try {
                final Generation made = mine.chat(all, new GenerateOptions().seed(System.nanoTime()), piece -> {
                    main.post(() -> show(piece));
                    return true;
                });
                main.post(() -> answered(mine, made));
            } catch (DrLlmException | IllegalArgumentException e) {
                main.post(() -> failed(mine, e));
            } catch (IllegalStateException e) {
                // Closed meanwhile: another model was opened, or the activity is gone.
            }
        });
    }

    private void failed(DrLlm by, Exception e) {
        if (by == llm) {
            conversation.remove(conversation.size() - 1); // the message that got no answer
            status.setText(e.getMessage());
        }
    }

    private void show(String piece) {
        final ScrollView scroll = findViewById(R.id.scroll);
        shown.append(piece);
        scroll.fullScroll(ScrollView.FOCUS_DOWN);
    }

    private void answered(DrLlm by, Generation made) {
        if (by != llm) {
            return;
        }
        conversation.add(ChatMessage.assistant(made.text));
        shown.append("\n");
        status.setText(String.format(Locale.ROOT, "%d tokens in %.1f s after %.1f s; %d layers saved", made.tokens,
                made.answerSeconds, made.promptSeconds, made.layersSaved));
    }
}
