/* CRC-32C (Castagnoli polynomial 0x1edc6f41, reflected; RFC 3720 appendix B.4): by the CPU's own
 * instruction where it has one, eight bytes at a time, for activations are megabytes; else four
 * bits at a time by a table of 16 words that a reader can check by hand. */
#include "base/crc32c.h"

#include <string.h>

/* table[i] = the remainder of the four bits i, reflected. */
static const uint32_t table[16] = {
    0x00000000u, 0x105ec76fu, 0x20bd8edeu, 0x30e349b1u, 0x417b1dbcu, 0x5125dad3u,
    0x61c69362u, 0x7198540du, 0x82f63b78u, 0x92a8fc17u, 0xa24bb5a6u, 0xb21572c9u,
    0xc38d26c4u, 0xd3d3e1abu, 0xe330a81au, 0xf36e6f75u,
};

static uint32_t by_table(uint32_t crc, const uint8_t *p, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        crc ^= p[i];
        crc = (crc >> 4) ^ table[crc & 15];
        crc = (crc >> 4) ^ table[crc & 15];
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *p,
                                                                 size_t n_bytes)
{
    uint64_t wide = crc;
    for (; n_bytes >= 8; n_bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, sizeof word);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    return by_table((uint32_t)wide, p, n_bytes);
}
#endif

uint32_t td_crc32c(uint32_t crc, const void *bytes, size_t n_bytes)
{
#if defined(__x86_64__)
    if (n_bytes >= 16 && __builtin_cpu_supports("sse4.2"))
        return ~by_instruction(~crc, bytes, n_bytes);
#endif
    return ~by_table(~crc, bytes, n_bytes);
}
