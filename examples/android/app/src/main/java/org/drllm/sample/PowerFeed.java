package org.drllm.sample;

import android.annotation.TargetApi;
import android.content.BroadcastReceiver;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Build;
import android.os.PowerManager;
import org.drllm.DrLlm;

/** Tells a DrLlm how full the battery and how hot the device is, while it is started. For the main thread. */
final class PowerFeed extends BroadcastReceiver {
    private final Context context;
    private DrLlm llm;
    private int battery = DrLlm.BATTERY_UNKNOWN;
    private boolean charging;
    private int thermal = DrLlm.THERMAL_UNKNOWN;
    private Object thermalListener; // a PowerManager.OnThermalStatusChangedListener, which Android 7 to 9 do not have

    PowerFeed(Context context) {
        this.context = context.getApplicationContext();
    }

    void start(DrLlm llm) {
        this.llm = llm;
        // The intent is sticky: its last state comes at once.
        context.registerReceiver(this, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
        if (Build.VERSION.SDK_INT >= 29) {
            startThermal();
        }
    }

    /** Before the DrLlm is closed. */
    void stop() {
        if (llm == null) {
            return;
        }
        context.unregisterReceiver(this);
        if (Build.VERSION.SDK_INT >= 29) {
            stopThermal();
        }
        llm = null;
    }

    @Override
    public void onReceive(Context ignored, Intent intent) {
        final int level = intent.getIntExtra(BatteryManager.EXTRA_LEVEL, -1);
        final int scale = intent.getIntExtra(BatteryManager.EXTRA_SCALE, -1);
        battery = level >= 0 && scale > 0 ? Math.min(100, 100 * level / scale) : DrLlm.BATTERY_UNKNOWN;
        charging = intent.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0;
        tell();
    }

    @TargetApi(29)
    private void startThermal() {
        final PowerManager power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
        final PowerManager.OnThermalStatusChangedListener listener = status -> {
            thermal = Math.min(status, DrLlm.THERMAL_SHUTDOWN);
            tell();
        };
        thermalListener = listener;
        power.addThermalStatusListener(listener); // on the main thread, and at once
    }

    @TargetApi(29)
    private void stopThermal() {
        final PowerManager power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
        power.removeThermalStatusListener((PowerManager.OnThermalStatusChangedListener) thermalListener);
        thermalListener = null;
    }

    private void tell() {
        if (llm != null) {
            llm.setPower(battery, charging, thermal);
        }
    }
}
