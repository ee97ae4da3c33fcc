/* Batteries and temperatures as Linux shows them below /sys/class. `root` goes in front of that path ("" for the machine
 * itself), so that tests can bring a tree of their own. What cannot be read is unknown: -1, or NaN. */
#ifndef DRLLM_PLATFORM_POWER_H
#define DRLLM_PLATFORM_POWER_H

#include <stdbool.h>

struct drllm_power_supply {
    int battery_percent; /* 0 to 100, of all batteries together; -1: unknown, or none */
    int charging;        /* 1: power comes in; 0: a battery is being emptied; -1: unknown */
};

/* power_supply: batteries that feed the system ("scope" is not "Device", "present" is not 0). Several count by their
 * "energy_full" or "charge_full", or alike where one does not say; where "capacity" is missing it is energy_now of
 * energy_full, or charge_now of charge_full. Charging: no if any battery's "status" is "Discharging"; yes if one is
 * "Charging" or "Full", or a supply of another kind is "online"; no if there are such supplies, all off line; otherwise
 * unknown. False if nothing is known. */
bool drllm_power_read_supply(const char *root, struct drllm_power_supply *supply);

struct drllm_heat {
    /* -1: unknown. 0: cool. 1: within 5 K of the lowest passive trip point, 2: past it, 3: past a hot one, 4: within 5 K of
     * a critical one. A zone with no passive trip point: 1, 2 and 3 from 30, 20 and 10 K below the critical one on. */
    int level;
    float celsius; /* of the hottest zone; NaN: unknown */
};

/* thermal: the worst level and the highest temperature of all zones. False if no zone can be read; a zone that cannot be
 * or that is colder than -100 or hotter than 200 degrees, as broken sensors are, does not count, and one without trip
 * points says nothing about the level. */
bool drllm_power_read_heat(const char *root, struct drllm_heat *heat);

#endif
