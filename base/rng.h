/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
 * as 1, 2, 3", SC 2011). No state: the same (stream, position, token) gives the same bits on every
 * device and in every order, which is what lets a draft and a target share their randomness. */
#ifndef TD_BASE_RNG_H
#define TD_BASE_RNG_H

#include <stdint.h>

/* Ten Philox rounds of counter[4] under key[2] into out[4]. */
void td_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* 32 uniform bits of (stream, position, token): word token % 4 of the Philox block with counter
 * {token / 4, position low, position high, 0} and key = stream (low word first). */
uint32_t td_noise_bits(uint64_t stream, uint64_t position, uint32_t token);

/* Exponential noise E = -log1p(-u), u = (bits + 0.5) / 2^32, for the draw argmin E / p. */
double td_noise_exponential(uint64_t stream, uint64_t position, uint32_t token);

/* A 64-bit hash of bytes (FNV-1a, finished by a splitmix64 step), for streams and configuration
 * hashes. Not for hostile input where collisions matter. */
uint64_t td_hash64(uint64_t seed, const void *data, uint64_t n_bytes);

#endif
