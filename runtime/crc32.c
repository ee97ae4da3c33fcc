#include "runtime/crc32.h"

enum { TABLES = 4 };

/* table[k][b]: the checksum of byte b with k zero bytes behind it. Made for each call: it costs as much as two kilobytes
 * of data, and constant tables would cost firmware the same memory for good. */
static void make_tables(uint32_t table[TABLES][256]) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0);
        }
        table[0][byte] = crc;
    }
    for (size_t k = 1; k < TABLES; k++) {
        for (size_t byte = 0; byte < 256; byte++) {
            table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 0xFF];
        }
    }
}

uint32_t drllm_crc32(uint32_t crc, const void *data, size_t size) {
    uint32_t table[TABLES][256];
    const uint8_t *bytes = data;
    make_tables(table);
    crc = ~crc;
    for (; size >= TABLES; size -= TABLES, bytes += TABLES) {
        crc ^= (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        crc = table[3][crc & 0xFF] ^ table[2][crc >> 8 & 0xFF] ^ table[1][crc >> 16 & 0xFF] ^ table[0][crc >> 24];
    }
    for (; size > 0; size--, bytes++) {
        crc = (crc >> 8) ^ table[0][(crc ^ *bytes) & 0xFF];
    }
    return ~crc;
}
