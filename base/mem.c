#include "base/mem.h"

#include "base/check.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT         64u
#define ARENA_BLOCK_BYTES (64u << 10)

static _Atomic uint64_t n_allocated;
static _Atomic uint64_t n_until_failure; /* 0 = never, 1 = the next one fails and all after it */

static bool hook_allows(void)
{
    atomic_fetch_add_explicit(&n_allocated, 1, memory_order_relaxed);
    uint64_t n = atomic_load_explicit(&n_until_failure, memory_order_relaxed);
    if (n > 1)
        atomic_store_explicit(&n_until_failure, n - 1, memory_order_relaxed);
    return n != 1;
}

void *td_alloc(size_t n, size_t size, td_err *err)
{
    uint64_t n_bytes;
    if (!td_mul_u64(n, size, &n_bytes) || !td_add_u64(n_bytes, 2 * ALIGNMENT, &n_bytes)) {
        td_err_set(err, TD_E_NOMEM, "%zu items of %zu bytes overflow the address space", n, size);
        return NULL;
    }
    /* calloc does not touch fresh pages, so that a large cache costs memory as it fills. The
     * original pointer lies before the aligned block. */
    char *raw = hook_allows() ? calloc(1, n_bytes) : NULL;
    if (!raw) {
        td_err_set(err, TD_E_NOMEM, "out of host memory: %llu bytes wanted",
                   (unsigned long long)n_bytes);
        return NULL;
    }
    char *p = raw + ALIGNMENT - (uintptr_t)raw % ALIGNMENT;
    memcpy(p - sizeof raw, &raw, sizeof raw);
    return p;
}

void *td_realloc(void *p, size_t n_old, size_t n, size_t size, td_err *err)
{
    void *grown = td_alloc(n, size, err);
    if (!grown)
        return NULL;
    if (p)
        memcpy(grown, p, (n_old < n ? n_old : n) * size);
    td_free(p);
    return grown;
}

void td_free(void *p)
{
    if (!p)
        return;
    void *raw;
    memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
    free(raw);
}

char *td_strndup(const char *text, size_t n_bytes, td_err *err)
{
    char *copy = td_alloc(n_bytes + 1, 1, err);
    if (copy)
        memcpy(copy, text, n_bytes);
    return copy;
}

uint64_t td_alloc_count(void) { return atomic_load(&n_allocated); }

void td_alloc_fail_at(uint64_t n) { atomic_store(&n_until_failure, n); }

typedef struct block {
    struct block *next;
    size_t n_bytes, n_used;
} block;

struct td_arena {
    block *blocks;
};

td_arena *td_arena_create(td_err *err) { return td_alloc(1, sizeof(td_arena), err); }

void td_arena_destroy(td_arena **arena)
{
    if (!*arena)
        return;
    for (block *b = (*arena)->blocks, *next; b; b = next) {
        next = b->next;
        td_free(b);
    }
    td_free(*arena);
    *arena = NULL;
}

void *td_arena_alloc(td_arena *arena, size_t n, size_t size, td_err *err)
{
    uint64_t n_bytes;
    if (!td_mul_u64(n, size, &n_bytes) || !td_pad_u64(n_bytes, ALIGNMENT, &n_bytes)) {
        td_err_set(err, TD_E_NOMEM, "%zu items of %zu bytes overflow the address space", n, size);
        return NULL;
    }
    block *b = arena->blocks;
    if (!b || b->n_bytes - b->n_used < n_bytes) {
        size_t payload = n_bytes > ARENA_BLOCK_BYTES ? n_bytes : ARENA_BLOCK_BYTES;
        uint64_t whole_bytes = 0;
        if (!td_add_u64(ALIGNMENT, payload, &whole_bytes)) {
            td_err_set(err, TD_E_NOMEM, "%zu items of %zu bytes overflow the address space", n,
                       size);
            return NULL;
        }
        b = td_alloc(1, whole_bytes, err);
        if (!b)
            return NULL;
        b->next = arena->blocks;
        b->n_bytes = payload;
        arena->blocks = b;
    }
    void *p = (char *)b + ALIGNMENT + b->n_used;
    b->n_used += n_bytes;
    return p;
}

char *td_arena_strndup(td_arena *arena, const char *text, size_t n_bytes, td_err *err)
{
    char *copy = td_arena_alloc(arena, n_bytes + 1, 1, err);
    if (copy)
        memcpy(copy, text, n_bytes);
    return copy;
}
