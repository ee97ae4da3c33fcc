#include "platform/power.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PATH = 1024, MAX_VALUE = 64 };

/* ---- Files of sysfs ---- */

/* The first line of folder/name; false if there is none. */
static bool read_line(const char *folder, const char *name, char line[MAX_VALUE]) {
    char path[MAX_PATH];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = length > 0 && (size_t)length < sizeof path ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return false;
    }
    const bool read = fgets(line, MAX_VALUE, file) != NULL;
    fclose(file);
    if (read) {
        line[strcspn(line, "\r\n")] = '\0';
    }
    return read && line[0] != '\0';
}

static bool read_number(const char *folder, const char *name, long *number) {
    char line[MAX_VALUE];
    if (!read_line(folder, name, line)) {
        return false;
    }
    char *end;
    errno = 0;
    *number = strtol(line, &end, 10);
    return end != line && *end == '\0' && errno == 0;
}

static bool line_is(const char *folder, const char *name, const char *value) {
    char line[MAX_VALUE];
    return read_line(folder, name, line) && strcmp(line, value) == 0;
}

/* Call visit for each entry of root/sys/class/NAME whose name begins with `prefix`. */
static void visit_class(const char *root, const char *name, const char *prefix,
                        void (*visit)(const char *folder, void *user), void *user) {
    char folder[MAX_PATH];
    const int length = snprintf(folder, sizeof folder, "%s/sys/class/%s", root, name);
    DIR *entries = length > 0 && (size_t)length < sizeof folder ? opendir(folder) : NULL;
    if (entries == NULL) {
        return;
    }
    for (const struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        const size_t left = sizeof folder - (size_t)length;
        if (entry->d_name[0] != '.' && strncmp(entry->d_name, prefix, strlen(prefix)) == 0 &&
            strlen(entry->d_name) + 2 <= left) {
            (void)snprintf(folder + length, left, "/%s", entry->d_name);
            visit(folder, user);
        }
    }
    closedir(entries);
}

/* ---- Power supplies ---- */

struct supplies {
    double weight, weighted; /* of the batteries that say how large they are: sums of size, and of size x percent */
    double count, sum;       /* of all: how many, and the sum of percents */
    bool discharging, charging, online, offline;
};

static bool read_pair(const char *folder, const char *now_name, const char *full_name, double *now, double *full) {
    long a, b;
    if (!read_number(folder, full_name, &b) || b <= 0) {
        return false;
    }
    *full = (double)b;
    *now = read_number(folder, now_name, &a) && a >= 0 ? (double)a : -1.0;
    return true;
}

static void add_battery(const char *folder, struct supplies *supplies) {
    double now = -1.0, full = 0.0, percent;
    long capacity;
    const bool has_size = read_pair(folder, "energy_now", "energy_full", &now, &full) ||
                          read_pair(folder, "charge_now", "charge_full", &now, &full);
    if (read_number(folder, "capacity", &capacity) && capacity >= 0 && capacity <= 100) {
        percent = (double)capacity;
    } else if (has_size && now >= 0.0) {
        percent = now < full ? 100.0 * now / full : 100.0;
    } else {
        return;
    }
    supplies->count += 1.0;
    supplies->sum += percent;
    if (has_size) {
        supplies->weight += full;
        supplies->weighted += full * percent;
    } else {
        supplies->weight = NAN; /* then they count alike */
    }
}

static void visit_supply(const char *folder, void *user) {
    struct supplies *supplies = user;
    char type[MAX_VALUE];
    long number;
    /* A mouse or a headset has a battery, too. */
    if (!read_line(folder, "type", type) || line_is(folder, "scope", "Device")) {
        return;
    }
    if (strcmp(type, "Battery") == 0) {
        if (read_number(folder, "present", &number) && number == 0) {
            return;
        }
        add_battery(folder, supplies);
        supplies->discharging |= line_is(folder, "status", "Discharging");
        supplies->charging |= line_is(folder, "status", "Charging") || line_is(folder, "status", "Full");
    } else if (read_number(folder, "online", &number)) {
        supplies->online |= number != 0;
        supplies->offline |= number == 0;
    }
}

bool drllm_power_read_supply(const char *root, struct drllm_power_supply *supply) {
    struct supplies supplies = {0};
    visit_class(root, "power_supply", "", visit_supply, &supplies);
    *supply = (struct drllm_power_supply){-1, -1};
    if (supplies.count > 0.0) {
        const bool by_size = supplies.weight > 0.0;
        const double percent = by_size ? supplies.weighted / supplies.weight : supplies.sum / supplies.count;
        supply->battery_percent = (int)lround(percent);
    }
    const bool powered = supplies.charging || supplies.online;
    if (supplies.discharging || powered || supplies.offline) {
        supply->charging = powered && !supplies.discharging;
    }
    return supply->battery_percent >= 0 || supply->charging >= 0;
}

/* ---- Thermal zones ---- */

enum { KELVIN = 1000 }; /* sysfs has thousandths of a degree */

enum { PASSIVE, HOT, CRITICAL, TRIP_TYPES };

/* The lowest trip point of each type, LONG_MAX where there is none. */
static void read_trips(const char *folder, long trips[TRIP_TYPES]) {
    enum { MAX_TRIPS = 32 };
    static const char *const types[TRIP_TYPES] = {[PASSIVE] = "passive", [HOT] = "hot", [CRITICAL] = "critical"};
    for (int k = 0; k < TRIP_TYPES; k++) {
        trips[k] = LONG_MAX;
    }
    for (int i = 0; i < MAX_TRIPS; i++) {
        char name[MAX_VALUE], type[MAX_VALUE];
        long temperature;
        (void)snprintf(name, sizeof name, "trip_point_%d_type", i);
        if (!read_line(folder, name, type)) {
            continue; /* numbers may be missing in between */
        }
        (void)snprintf(name, sizeof name, "trip_point_%d_temp", i);
        /* 0 and less is how drivers say that a trip point is off. */
        if (!read_number(folder, name, &temperature) || temperature <= 0) {
            continue;
        }
        for (int k = 0; k < TRIP_TYPES; k++) {
            if (strcmp(type, types[k]) == 0 && temperature < trips[k]) {
                trips[k] = temperature;
            }
        }
    }
}

static int level_of(long temperature, const long trips[TRIP_TYPES]) {
    const bool has_passive = trips[PASSIVE] != LONG_MAX;
    const bool has_critical = trips[CRITICAL] != LONG_MAX;
    if (has_critical && temperature >= trips[CRITICAL] - 5 * KELVIN) {
        return 4;
    }
    if (temperature >= trips[HOT]) {
        return 3;
    }
    if (has_passive) {
        return temperature >= trips[PASSIVE] ? 2 : temperature >= trips[PASSIVE] - 5 * KELVIN ? 1 : 0;
    }
    if (has_critical) {
        const long left = trips[CRITICAL] - temperature;
        return left <= 10 * KELVIN ? 3 : left <= 20 * KELVIN ? 2 : left <= 30 * KELVIN ? 1 : 0;
    }
    return trips[HOT] != LONG_MAX ? 0 : -1;
}

static void visit_zone(const char *folder, void *user) {
    struct drllm_heat *heat = user;
    long trips[TRIP_TYPES], temperature;
    if (!read_number(folder, "temp", &temperature) || temperature < -100 * KELVIN || temperature > 200 * KELVIN) {
        return;
    }
    const float celsius = (float)temperature / (float)KELVIN;
    heat->celsius = heat->celsius >= celsius ? heat->celsius : celsius; /* NaN is not */
    read_trips(folder, trips);
    const int level = level_of(temperature, trips);
    heat->level = level > heat->level ? level : heat->level;
}

bool drllm_power_read_heat(const char *root, struct drllm_heat *heat) {
    *heat = (struct drllm_heat){-1, NAN};
    visit_class(root, "thermal", "thermal_zone", visit_zone, heat);
    return !isnan(heat->celsius);
}
