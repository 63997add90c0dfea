/* TD_ASSERT for our own bugs (always compiled in) and checked arithmetic for everything that
 * comes from a file, a peer or a user. The checked functions return false on overflow and leave
 * *out alone. */
#ifndef TD_BASE_CHECK_H
#define TD_BASE_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_ASSERT(condition)                                                                       \
    ((condition) ? (void)0 : td_assert_failed(#condition, __FILE__, __LINE__))

/* Prints the failed condition and aborts; the exit status of a bug is the signal's. */
_Noreturn void td_assert_failed(const char *condition, const char *file, int line);

static inline bool td_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool td_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* Rounds `a` up to a multiple of `alignment`, a power of two. */
static inline bool td_pad_u64(uint64_t a, uint64_t alignment, uint64_t *out)
{
    uint64_t r;
    if (!td_add_u64(a, alignment - 1, &r))
        return false;
    *out = r & ~(alignment - 1);
    return true;
}

/* For numbers already bounded by a check: no overflow is possible. */
static inline uint32_t td_div_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
static inline uint32_t td_round_up(uint32_t a, uint32_t b) { return td_div_up(a, b) * b; }
static inline uint32_t td_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint64_t td_min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint32_t td_max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

#define TD_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#endif
