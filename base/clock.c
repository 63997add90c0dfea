#include "base/clock.h"

#include "base/check.h"

#include <time.h>

td_clock td_clock_real(void) { return (td_clock){.is_simulated = false}; }

td_clock td_clock_simulated(uint64_t start_us)
{
    return (td_clock){.is_simulated = true, .simulated_us = start_us};
}

uint64_t td_clock_now_us(const td_clock *clock)
{
    if (clock->is_simulated)
        return clock->simulated_us;
    struct timespec t;
    TD_ASSERT(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

double td_clock_utc_s(void)
{
    struct timespec t;
    TD_ASSERT(clock_gettime(CLOCK_REALTIME, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

uint64_t td_clock_real_ns(void)
{
    struct timespec t;
    TD_ASSERT(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t td_clock_thread_ns(void)
{
    struct timespec t;
    TD_ASSERT(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void td_clock_advance(td_clock *clock, uint64_t us)
{
    TD_ASSERT(clock->is_simulated);
    if (!td_add_u64(clock->simulated_us, us, &clock->simulated_us))
        clock->simulated_us = UINT64_MAX;
}
