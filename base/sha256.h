/* SHA-256 (FIPS 180-4), for naming inputs and configurations. Any thread; no allocation. */
#ifndef TD_BASE_SHA256_H
#define TD_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64];
} td_sha256;

void td_sha256_begin(td_sha256 *s);
void td_sha256_add(td_sha256 *s, const void *bytes, size_t n_bytes);
void td_sha256_end(td_sha256 *s, uint8_t digest[32]);

/* The first n_hex (<= 64) lower-case hex digits of a digest, with a terminating 0. */
void td_sha256_hex(const uint8_t digest[32], char *hex, size_t n_hex);

#endif
