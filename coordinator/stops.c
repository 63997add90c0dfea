/* Knuth, Morris, Pratt: "Fast pattern matching in strings", SIAM J. Comput. 6 (1977). */
#include "coordinator/stops.h"

#include "base/check.h"
#include "coordinator/coordinator.h"

#include <string.h>

typedef struct {
    char *bytes;        /* [n_bytes] */
    uint16_t *fallback; /* [n_bytes + 1] longest proper border of the first i bytes */
    uint32_t n_bytes;
    uint32_t n_matched; /* < n_bytes */
} stop;

struct td_stops {
    stop *stops; /* [n] */
    uint32_t n;
};

static uint32_t advance(const stop *s, uint32_t n_matched, char byte)
{
    while (n_matched > 0 && (n_matched == s->n_bytes || s->bytes[n_matched] != byte))
        n_matched = s->fallback[n_matched];
    return n_matched + (s->bytes[n_matched] == byte);
}

td_stops *td_stops_create(td_arena *arena, const char *const *strings, uint32_t n, td_err *err)
{
    if (n > TD_STOPS_MAX) {
        td_err_set(err, TD_E_DATA, "%u stop strings; allowed: 0..%u", n, TD_STOPS_MAX);
        return NULL;
    }
    td_stops *stops = td_arena_alloc(arena, 1, sizeof(*stops), err);
    if (!stops || !(stops->stops = td_arena_alloc(arena, n, sizeof(*stops->stops), err)))
        return NULL;
    stops->n = n;
    for (uint32_t i = 0; i < n; ++i) {
        stop *s = &stops->stops[i];
        size_t n_bytes = strnlen(strings[i], TD_STOP_BYTES_MAX + 1);
        if (n_bytes < 1 || n_bytes > TD_STOP_BYTES_MAX) {
            td_err_set(err, TD_E_DATA, "stop string %u is %s; allowed: 1..%u bytes", i,
                       n_bytes ? "too long" : "empty", TD_STOP_BYTES_MAX);
            return NULL;
        }
        s->n_bytes = (uint32_t)n_bytes;
        s->bytes = td_arena_strndup(arena, strings[i], n_bytes, err);
        s->fallback = td_arena_alloc(arena, n_bytes + 1, sizeof(*s->fallback), err);
        if (!s->bytes || !s->fallback)
            return NULL;
        for (uint32_t j = 1; j < n_bytes; ++j)
            s->fallback[j + 1] = (uint16_t)advance(s, s->fallback[j], s->bytes[j]);
    }
    return stops;
}

uint32_t td_stops_push(td_stops *stops, char byte)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < stops->n; ++i) {
        stop *s = &stops->stops[i];
        s->n_matched = advance(s, s->n_matched, byte);
        if (s->n_matched == s->n_bytes) {
            longest = td_max_u32(longest, s->n_bytes);
            s->n_matched = s->fallback[s->n_bytes];
        }
    }
    return longest;
}
