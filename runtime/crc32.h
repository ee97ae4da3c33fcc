/* The checksum of zlib, PNG and Ethernet (ISO 3309). Own code, since firmware has no zlib. */
#ifndef DRLLM_RUNTIME_CRC32_H
#define DRLLM_RUNTIME_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* Of the bytes that had the checksum `crc`, followed by these; begin with 0. Uses 4 KiB of stack. */
uint32_t drllm_crc32(uint32_t crc, const void *data, size_t size);

#endif
