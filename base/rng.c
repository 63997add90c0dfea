/* Philox4x32-10: ten rounds of two 32 x 32 -> 64 bit products mixed with a key that steps by the
 * Weyl constants. The known answers in tests/unit_base_rng.c are those of the authors' library. */
#include "base/rng.h"

#include <math.h>

#define PHILOX_M0     0xd2511f53u
#define PHILOX_M1     0xcd9e8d57u
#define PHILOX_W0     0x9e3779b9u
#define PHILOX_W1     0xbb67ae85u
#define PHILOX_ROUNDS 10

void td_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c0;
        uint64_t p1 = (uint64_t)PHILOX_M1 * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint32_t td_noise_bits(uint64_t stream, uint64_t position, uint32_t token)
{
    const uint32_t counter[4] = {token / 4, (uint32_t)position, (uint32_t)(position >> 32), 0};
    const uint32_t key[2] = {(uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t out[4];
    td_philox(counter, key, out);
    return out[token % 4];
}

double td_noise_exponential(uint64_t stream, uint64_t position, uint32_t token)
{
    double u = ((double)td_noise_bits(stream, position, token) + 0.5) * 0x1p-32;
    return -log1p(-u);
}

uint64_t td_hash64(uint64_t seed, const void *data, uint64_t n_bytes)
{
    const uint8_t *bytes = data;
    uint64_t h = 0xcbf29ce484222325u ^ seed;
    for (uint64_t i = 0; i < n_bytes; i++) {
        h ^= bytes[i];
        h *= 0x100000001b3u;
    }
    /* FNV alone leaves the low bits of short inputs related; splitmix64's finisher spreads them. */
    h += 0x9e3779b97f4a7c15u;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}
