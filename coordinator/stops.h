/* Stop strings, searched for byte by byte as text is generated: every string has a Knuth-Morris-
 * Pratt automaton, so a byte costs amortized constant time a string and no text is read twice.
 *
 *     td_stops *stops = td_stops_create(arena, strings, n, err);
 *     for each byte of a token: if ((n_match = td_stops_push(stops, byte))) cut n_match bytes off
 *
 * Owned by the arena. One thread. Errors: TD_E_DATA (a string empty or too long), TD_E_NOMEM. */
#ifndef TD_COORDINATOR_STOPS_H
#define TD_COORDINATOR_STOPS_H

#include "base/err.h"
#include "base/mem.h"

#include <stdint.h>

typedef struct td_stops td_stops;

/* Copies `n` <= TD_STOPS_MAX strings of 1..TD_STOP_BYTES_MAX bytes. n may be 0. */
td_stops *td_stops_create(td_arena *arena, const char *const *strings, uint32_t n, td_err *err);

/* The length of the longest string that ends with this byte; 0 if none does. */
uint32_t td_stops_push(td_stops *stops, char byte);

#endif
