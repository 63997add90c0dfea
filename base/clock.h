/* Time as a number that is handed in: microseconds of a monotonic clock, or of a simulated one
 * that stands still until a test advances it. Nothing that decides reads the system's clock.
 *
 * A real clock may be read by any thread; a simulated one belongs to one thread. No errors. */
#ifndef TD_BASE_CLOCK_H
#define TD_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    bool is_simulated;
    uint64_t simulated_us;
} td_clock;

td_clock td_clock_real(void);
td_clock td_clock_simulated(uint64_t start_us);

/* Microseconds since an unnamed moment; never goes back. */
uint64_t td_clock_now_us(const td_clock *clock);

/* Nanoseconds of the real clock, to time what takes less than a microsecond. */
uint64_t td_clock_real_ns(void);
/* Seconds since 1970, UTC, as the system's clock says: for people and files, it may jump. */
double td_clock_utc_s(void);

/* Nanoseconds that the calling thread has run so far: what it waits is not among them. */
uint64_t td_clock_thread_ns(void);

/* Moves a simulated clock forward (it saturates at the end of time). */
void td_clock_advance(td_clock *clock, uint64_t us);

/* Between two looks at a word that another thread will change. */
static inline void td_clock_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
