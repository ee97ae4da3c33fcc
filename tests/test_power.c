/* Batteries and temperatures: trees as Linux's sysfs has them, and what they mean for the depth. */
#include "tests/tests.h"

#include "platform/power.h"
#include "runtime/drllm_os.h"
#include "tests/router_builder.h"
#include "tests/tiny_model.h"

#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Trees ---- */

static int make_tree(void **state) {
    static char root[64];
    (void)snprintf(root, sizeof root, "/tmp/drllm-power-XXXXXX");
    *state = mkdtemp(root);
    return *state == NULL;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk) {
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static int remove_tree(void **state) {
    return nftw(*state, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* entry: "power_supply/BAT0/capacity" */
static void put(const char *root, const char *entry, const char *text) {
    char path[512];
    (void)snprintf(path, sizeof path, "%s/sys/class/%s", root, entry);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        assert_true(mkdir(path, 0755) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fprintf(file, "%s\n", text) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void expect_supply(const char *root, int percent, int charging) {
    struct drllm_power_supply supply;
    const bool known = drllm_power_read_supply(root, &supply);
    assert_int_equal(supply.battery_percent, percent);
    assert_int_equal(supply.charging, charging);
    assert_int_equal(known, percent >= 0 || charging >= 0);
}

static void expect_heat(const char *root, int level, float celsius) {
    struct drllm_heat heat;
    const bool known = drllm_power_read_heat(root, &heat);
    assert_int_equal(heat.level, level);
    if (isnan(celsius)) {
        assert_true(isnan(heat.celsius));
        assert_false(known);
    } else {
        assert_float_equal(heat.celsius, celsius, 0.001f);
        assert_true(known);
    }
}

/* ---- Batteries ---- */

static void test_nothing_is_unknown(void **state) {
    struct drllm_power power;
    struct drllm_error error = {0};
    expect_supply(*state, -1, -1);
    expect_heat(*state, -1, NAN);
    assert_int_equal(drllm_power_read(*state, &power, &error), DRLLM_ERR_IO);
    assert_true(error.detail[0] != '\0');
    assert_int_equal(power.battery_percent, -1);
    assert_int_equal(power.charging, -1);
    assert_int_equal(power.thermal, DRLLM_THERMAL_UNKNOWN);
    assert_true(isnan(power.temperature_celsius));
    assert_int_equal(drllm_power_read(*state, NULL, &error), DRLLM_ERR_ARGUMENT);
    assert_int_equal(drllm_power_read("/nowhere", &power, NULL), DRLLM_ERR_IO);
    char long_root[3000];
    memset(long_root, 'x', sizeof long_root - 1);
    long_root[sizeof long_root - 1] = '\0';
    assert_int_equal(drllm_power_read(long_root, &power, NULL), DRLLM_ERR_IO);
}

/* Empty and odd files say nothing; they do not say 0. */
static void test_files_that_say_nothing(void **state) {
    const char *root = *state;
    put(root, "power_supply/BAT0/type", "Battery");
    put(root, "power_supply/BAT0/capacity", "");
    put(root, "power_supply/BAT0/status", "Unknown");
    put(root, "power_supply/AC/type", "Mains");
    put(root, "power_supply/AC/online", "maybe");
    put(root, "thermal/thermal_zone0/temp", "");
    expect_supply(root, -1, -1);
    expect_heat(root, -1, NAN);
    put(root, "power_supply/BAT0/capacity", "101");
    expect_supply(root, -1, -1);
    put(root, "power_supply/BAT0/capacity", "50 %");
    expect_supply(root, -1, -1);
    put(root, "power_supply/BAT0/capacity", "0");
    expect_supply(root, 0, -1);
    put(root, "power_supply/BAT0/present", "0");
    expect_supply(root, -1, -1);
}

static void test_laptop(void **state) {
    const char *root = *state;
    put(root, "power_supply/BAT0/type", "Battery");
    put(root, "power_supply/BAT0/present", "1");
    put(root, "power_supply/BAT0/capacity", "63");
    put(root, "power_supply/BAT0/status", "Discharging");
    put(root, "power_supply/AC/type", "Mains");
    put(root, "power_supply/AC/online", "0");
    expect_supply(root, 63, 0);
    put(root, "power_supply/AC/online", "1");
    expect_supply(root, 63, 0); /* it takes more than the supply gives */
    put(root, "power_supply/BAT0/status", "Charging");
    expect_supply(root, 63, 1);
    put(root, "power_supply/BAT0/status", "Not charging"); /* held at a limit */
    expect_supply(root, 63, 1);
    put(root, "power_supply/AC/online", "0");
    expect_supply(root, 63, 0);
    /* A mouse is no source of power. */
    put(root, "power_supply/hidpp_battery_0/type", "Battery");
    put(root, "power_supply/hidpp_battery_0/scope", "Device");
    put(root, "power_supply/hidpp_battery_0/capacity", "5");
    put(root, "power_supply/hidpp_battery_0/status", "Charging");
    expect_supply(root, 63, 0);
}

/* A phone's battery counts charge, and may have no capacity. */
static void test_percent_from_charge(void **state) {
    const char *root = *state;
    put(root, "power_supply/battery/type", "Battery");
    put(root, "power_supply/battery/charge_full", "4000000");
    expect_supply(root, -1, -1);
    put(root, "power_supply/battery/charge_now", "1000000");
    expect_supply(root, 25, -1);
    put(root, "power_supply/battery/charge_now", "4100000");
    expect_supply(root, 100, -1);
    put(root, "power_supply/battery/status", "Full");
    expect_supply(root, 100, 1);
}

static void test_two_batteries(void **state) {
    const char *root = *state;
    put(root, "power_supply/BAT0/type", "Battery");
    put(root, "power_supply/BAT0/capacity", "100");
    put(root, "power_supply/BAT0/energy_full", "10000000");
    put(root, "power_supply/BAT0/status", "Full");
    put(root, "power_supply/BAT1/type", "Battery");
    put(root, "power_supply/BAT1/capacity", "20");
    put(root, "power_supply/BAT1/energy_full", "30000000");
    put(root, "power_supply/BAT1/status", "Discharging");
    expect_supply(root, 40, 0);
    put(root, "power_supply/BAT2/type", "Battery"); /* of unknown size: now all count alike */
    put(root, "power_supply/BAT2/capacity", "0");
    expect_supply(root, 40, 0);
    put(root, "power_supply/BAT2/capacity", "90");
    expect_supply(root, 70, 0);
}

/* A Raspberry Pi with a supply and no battery. */
static void test_no_battery(void **state) {
    const char *root = *state;
    put(root, "power_supply/usb/type", "USB");
    put(root, "power_supply/usb/online", "1");
    expect_supply(root, -1, 1);
    put(root, "power_supply/usb/online", "0");
    expect_supply(root, -1, 0);
}

/* ---- Heat ---- */

static void test_zone_without_trip_points(void **state) {
    const char *root = *state;
    put(root, "thermal/thermal_zone0/temp", "0");
    expect_heat(root, -1, 0.0f);
    put(root, "thermal/thermal_zone0/temp", "-3000");
    expect_heat(root, -1, -3.0f);
    put(root, "thermal/thermal_zone0/temp", "-273150"); /* a broken sensor */
    expect_heat(root, -1, NAN);
    put(root, "thermal/cooling_device0/temp", "90000"); /* no zone */
    expect_heat(root, -1, NAN);
}

static void set_celsius(const char *root, const char *zone, int celsius) {
    char entry[64], text[32];
    (void)snprintf(entry, sizeof entry, "thermal/%s/temp", zone);
    (void)snprintf(text, sizeof text, "%d", celsius * 1000);
    put(root, entry, text);
}

static void test_trip_points(void **state) {
    static const struct {
        int celsius, level;
    } cases[] = {{20, 0}, {74, 0}, {75, 1}, {79, 1}, {80, 2}, {94, 2}, {95, 3}, {104, 3}, {105, 4}, {120, 4}};
    const char *root = *state;
    put(root, "thermal/thermal_zone0/trip_point_0_type", "active");
    put(root, "thermal/thermal_zone0/trip_point_0_temp", "40000");
    put(root, "thermal/thermal_zone0/trip_point_1_type", "passive");
    put(root, "thermal/thermal_zone0/trip_point_1_temp", "90000");
    put(root, "thermal/thermal_zone0/trip_point_3_type", "passive");
    put(root, "thermal/thermal_zone0/trip_point_3_temp", "80000");
    put(root, "thermal/thermal_zone0/trip_point_4_type", "hot");
    put(root, "thermal/thermal_zone0/trip_point_4_temp", "95000");
    put(root, "thermal/thermal_zone0/trip_point_5_type", "critical");
    put(root, "thermal/thermal_zone0/trip_point_5_temp", "110000");
    put(root, "thermal/thermal_zone0/trip_point_6_type", "passive");
    put(root, "thermal/thermal_zone0/trip_point_6_temp", "0"); /* off */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        set_celsius(root, "thermal_zone0", cases[i].celsius);
        expect_heat(root, cases[i].level, (float)cases[i].celsius);
    }
    /* Another zone is hotter without having a say; a third is cool, and worse off. */
    set_celsius(root, "thermal_zone0", 70);
    set_celsius(root, "thermal_zone1", 99);
    expect_heat(root, 0, 99.0f);
    put(root, "thermal/thermal_zone2/trip_point_0_type", "passive");
    put(root, "thermal/thermal_zone2/trip_point_0_temp", "45000");
    set_celsius(root, "thermal_zone2", 50);
    expect_heat(root, 2, 99.0f);
}

/* As on a Raspberry Pi 4. */
static void test_critical_point_alone(void **state) {
    static const struct { int celsius, level; } cases[] = {{45, 0}, {79, 0}, {80, 1}, {90, 2}, {100, 3}, {105, 4}};
    const char *root = *state;
    put(root, "thermal/thermal_zone0/trip_point_0_type", "critical");
    put(root, "thermal/thermal_zone0/trip_point_0_temp", "110000");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        set_celsius(root, "thermal_zone0", cases[i].celsius);
        expect_heat(root, cases[i].level, (float)cases[i].celsius);
    }
}

static void test_all_at_once(void **state) {
    const char *root = *state;
    struct drllm_power power;
    put(root, "thermal/thermal_zone0/trip_point_0_type", "passive");
    put(root, "thermal/thermal_zone0/trip_point_0_temp", "60000");
    set_celsius(root, "thermal_zone0", 61);
    assert_int_equal(drllm_power_read(root, &power, NULL), DRLLM_OK);
    assert_int_equal(power.battery_percent, -1);
    assert_int_equal(power.charging, -1);
    assert_int_equal(power.thermal, DRLLM_THERMAL_MODERATE);
    assert_float_equal(power.temperature_celsius, 61.0f, 0.001f);
    put(root, "power_supply/BAT0/type", "Battery");
    put(root, "power_supply/BAT0/capacity", "33");
    put(root, "power_supply/BAT0/status", "Charging");
    assert_int_equal(drllm_power_read(root, &power, NULL), DRLLM_OK);
    assert_int_equal(power.battery_percent, 33);
    assert_int_equal(power.charging, 1);
}

/* ---- The policy ---- */

struct opened {
    uint8_t *file;
    struct drllm_model *model;
    struct drllm_routers *routers;
};

/* n_layers layers, routers with this table. */
static struct opened open_routers(size_t n_layers, const float *bias, const float *saved, size_t n) {
    struct opened opened;
    struct drllm_error error = {0};
    struct tiny_options options = tiny_default_options();
    size_t size;
    options.n_layers = n_layers;
    opened.file = tiny_model_file(&options, &size);
    if (drllm_model_open_memory(opened.file, size, NULL, &opened.model, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    struct router_options routers = router_default_options(&options);
    routers.bias = bias;
    routers.saved = saved;
    routers.n_bias = routers.n_saved = n;
    uint8_t *file = router_builder_file(&routers, &size);
    if (drllm_routers_open_memory(opened.model, file, size, &opened.routers, &error) != DRLLM_OK) {
        fail_msg("%s", error.detail);
    }
    free(file);
    return opened;
}

static void close_routers(struct opened *opened) {
    assert_int_equal(drllm_routers_close(opened->routers), DRLLM_OK);
    assert_int_equal(drllm_model_close(opened->model), DRLLM_OK);
    free(opened->file);
}

static float layers(const struct opened *opened, int percent, int charging, int thermal) {
    struct drllm_power power = drllm_power_unknown();
    power.battery_percent = percent;
    power.charging = charging;
    power.thermal = thermal;
    return drllm_power_save_layers(&power, opened->routers);
}

/* 1 saved alone, between the rows of bias -1 and 1; a quarter of 8 layers more. */
static void test_policy(void **state) {
    static const float bias[] = {-3.0f, -1.0f, 1.0f, 3.0f}, saved[] = {0.0f, 0.5f, 1.5f, 6.0f};
    static const struct {
        int percent, charging, thermal;
        float expected;
    } cases[] = {
        {-1, -1, -1, -1.0f}, {100, 0, 0, -1.0f}, {51, 0, -1, -1.0f}, {50, 0, 0, 1.5f},  {31, 0, 0, 1.5f},
        {30, 0, 0, 2.0f},    {21, 0, 0, 2.0f},   {20, 0, 0, 2.5f},   {11, 0, 0, 2.5f},  {10, 0, 0, 3.0f},
        {0, 0, 0, 3.0f},     {0, 1, 0, -1.0f},   {0, -1, -1, 3.0f},  {100, 1, 1, 1.5f}, {100, 1, 2, 2.0f},
        {100, 1, 3, 2.5f},   {100, 1, 4, 3.0f},  {100, 1, 6, 3.0f},  {30, 0, 1, 2.0f},  {50, 0, 3, 2.5f},
    };
    (void)state;
    struct opened opened = open_routers(8, bias, saved, 4);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_float_equal(layers(&opened, cases[i].percent, cases[i].charging, cases[i].thermal), cases[i].expected,
                           1e-5f);
    }
    /* Whatever comes out can be asked for. */
    struct drllm_session *session;
    assert_int_equal(drllm_session_open(opened.model, NULL, &session, NULL), DRLLM_OK);
    struct drllm_depth depth = drllm_depth_default();
    depth.kind = DRLLM_DEPTH_ROUTED;
    depth.routers = opened.routers;
    for (int percent = -1; percent <= 100; percent++) {
        depth.save_layers = layers(&opened, percent, 0, 0);
        assert_int_equal(drllm_session_set_depth(session, &depth), DRLLM_OK);
    }
    drllm_session_close(session);
    close_routers(&opened);
}

/* The table ends before the quarter, or says nothing of bias 0. */
static void test_policy_at_the_ends_of_tables(void **state) {
    static const float bias[] = {-3.0f, 0.0f, 1.0f}, saved[] = {0.0f, 1.0f, 2.0f};
    static const float positive[] = {1.0f, 3.0f}, more[] = {2.0f, 8.0f};
    static const float negative[] = {-3.0f, -1.0f};
    (void)state;
    struct opened opened = open_routers(8, bias, saved, 3);
    assert_float_equal(layers(&opened, 0, 0, 0), 2.0f, 1e-5f);
    assert_float_equal(layers(&opened, 30, 0, 0), 1.5f, 1e-5f);
    close_routers(&opened);
    opened = open_routers(8, positive, more, 2);
    assert_float_equal(layers(&opened, 0, 0, 0), 4.0f, 1e-5f);
    close_routers(&opened);
    opened = open_routers(8, negative, more, 2);
    assert_float_equal(layers(&opened, 0, 0, 0), 8.0f, 1e-5f);
    close_routers(&opened);
    opened = open_routers(8, NULL, NULL, 0);
    assert_float_equal(layers(&opened, 0, 0, 6), -1.0f, 0.0f);
    close_routers(&opened);
}

int drllm_test_power(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nothing_is_unknown, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_files_that_say_nothing, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_laptop, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_percent_from_charge, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_two_batteries, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_no_battery, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_zone_without_trip_points, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_trip_points, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_critical_point_alone, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(test_all_at_once, make_tree, remove_tree),
        cmocka_unit_test(test_policy),
        cmocka_unit_test(test_policy_at_the_ends_of_tables),
    };
    return drllm_run_group("power", tests, NULL, NULL);
}
