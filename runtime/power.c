/* What a device's battery and temperature mean for the depth. */
#include "runtime/drllm_os.h"
#include "runtime/router.h"

#include <math.h>

struct drllm_power drllm_power_unknown(void) {
    return (struct drllm_power){
        .battery_percent = -1, .charging = -1, .thermal = DRLLM_THERMAL_UNKNOWN, .temperature_celsius = NAN};
}

enum { STEPS = 4 };

/* Of STEPS. */
static int battery_step(const struct drllm_power *power) {
    static const int at_most[STEPS] = {50, 30, 20, 10}; /* percent for step 1, 2, ... */
    int step = 0;
    if (power->battery_percent < 0 || power->charging > 0) {
        return 0;
    }
    while (step < STEPS && power->battery_percent <= at_most[step]) {
        step++;
    }
    return step;
}

static int thermal_step(const struct drllm_power *power) {
    const int step = power->thermal > 0 ? power->thermal : 0;
    return step < STEPS ? step : STEPS;
}

/* Saved without a bias, read off the calibration table, which rises in both columns. */
static float saved_alone(const struct drllm_routers *routers) {
    const float *bias = routers->bias, *saved = routers->saved;
    const size_t n = routers->n_calibration;
    size_t i = 0;
    while (i < n && bias[i] < 0.0f) {
        i++;
    }
    if (i == 0 || i == n) {
        return saved[i == 0 ? 0 : n - 1];
    }
    const float share = -bias[i - 1] / (bias[i] - bias[i - 1]);
    return saved[i - 1] + share * (saved[i] - saved[i - 1]);
}

float drllm_power_save_layers(const struct drllm_power *power, const struct drllm_routers *routers) {
    const int by_battery = battery_step(power), by_heat = thermal_step(power);
    const int step = by_battery > by_heat ? by_battery : by_heat;
    if (step == 0 || routers->n_calibration == 0) {
        return -1.0f;
    }
    const float alone = saved_alone(routers);
    const float quarter = alone + (float)routers->model->config.n_layers / 4.0f;
    const float end = routers->saved[routers->n_calibration - 1];
    const float most = quarter < end ? quarter : end;
    const float layers = alone + (float)step / (float)STEPS * (most - alone);
    /* Below 0 would mean "off", and below 0 are only routers that repeat more than they skip. */
    return layers > 0.0f ? layers : -1.0f;
}
