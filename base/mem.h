/* Memory. Everything tandem allocates on the host goes through td_alloc, so that tests can fail
 * the n-th allocation and count the allocations of the token loop. An arena hands out memory that
 * is freed as one (process, model and sequence lifetimes).
 *
 * Memory is zeroed. Sizes from outside must have been checked against a named limit before they
 * come here. Thread-safe, but for arenas, which belong to one thread at a time. */
#ifndef TD_BASE_MEM_H
#define TD_BASE_MEM_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Zeroed memory of n * size bytes, aligned to 64; NULL with err set when there is none or the
 * product overflows. n * size == 0 gives a valid pointer. */
void *td_alloc(size_t n, size_t size, td_err *err);

/* Grows to n * size bytes; the old block stays valid on failure. New bytes are not zeroed. */
void *td_realloc(void *p, size_t n_old, size_t n, size_t size, td_err *err);

void td_free(void *p);

/* A copy of text[0..n_bytes), with a terminating 0. */
char *td_strndup(const char *text, size_t n_bytes, td_err *err);

/* Allocations made so far by this process. */
uint64_t td_alloc_count(void);

/* Test hook: the n-th allocation from now (1 = the next) and all later ones fail; 0 = never. */
void td_alloc_fail_at(uint64_t n);

typedef struct td_arena td_arena;

td_arena *td_arena_create(td_err *err);
void td_arena_destroy(td_arena **arena);
void *td_arena_alloc(td_arena *arena, size_t n, size_t size, td_err *err); /* zeroed, aligned 64 */
char *td_arena_strndup(td_arena *arena, const char *text, size_t n_bytes, td_err *err);

#endif
