/* What fuzz harnesses share. Each tests/fuzz/fuzz_* defines LLVMFuzzerTestOneInput, which must bear
 * any bytes, and td_fuzz_seed, which gives inputs to begin with. scripts/fuzz.sh links it with
 * libFuzzer; the tests link it with runner.c, which runs it over its folder of tests/fuzz/corpus.
 *
 * A checksum stops a fuzzer at the door. So harnesses seal what shall get in: length and checksum
 * are made to fit, as a hostile peer would. */
#ifndef TD_TESTS_FUZZ_H
#define TD_TESTS_FUZZ_H

#include "base/crc32c.h"
#include "transport/wire.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

/* Seed i into out[TD_FUZZ_SEED_MAX]: its length, 0 behind the last. */
#define TD_FUZZ_SEED_MAX 4096u
size_t td_fuzz_seed(uint32_t i, uint8_t *out);

static inline void fuzz_put(uint8_t *at, uint64_t value, size_t n)
{
    for (size_t i = 0; i < n; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t fuzz_get(const uint8_t *at, size_t n)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

/* Magic, version, length and checksum; n >= TD_WIRE_HEADER_BYTES. */
static inline void fuzz_seal(uint8_t *message, size_t n)
{
    fuzz_put(message, TD_WIRE_MAGIC, 4);
    fuzz_put(message + 4, TD_WIRE_VERSION, 2);
    fuzz_put(message + 24, n - TD_WIRE_HEADER_BYTES, 4);
    fuzz_put(message + 28, 0, 4);
    fuzz_put(message + 28, td_crc32c(0, message, n), 4);
}

#endif
