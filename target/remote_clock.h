/* What the clock of another machine shows, by round trips: it is asked, and answers with its time,
 * which was at some moment of the trip. As NTP has it (RFC 5905, sections 8 and 10) the middle is
 * taken, which is wrong by half the trip at most, and by what the clocks have drifted since; of the
 * last few round trips the one counts of which that is least. Private to target/. One thread. */
#ifndef TD_TARGET_REMOTE_CLOCK_H
#define TD_TARGET_REMOTE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define TD_REMOTE_CLOCK_TRIPS 8u

typedef struct {
    int64_t offset_us; /* its clock less ours */
    uint64_t trip_us, uncertainty_us;
} td_remote_offset;

typedef struct {
    struct {
        uint64_t at_us, trip_us;
        int64_t offset_us;
    } trips[TD_REMOTE_CLOCK_TRIPS];
    uint64_t n; /* that were added; 0: nothing is known */
} td_remote_clock;

/* Asked at sent_us and answered at now_us, by our clock, with theirs_us by its own. */
void td_remote_clock_add(td_remote_clock *c, uint64_t sent_us, uint64_t theirs_us, uint64_t now_us);
/* For a moment of our clock near the trips. */
td_remote_offset td_remote_clock_find(const td_remote_clock *c, uint64_t at_us);
/* How far two clocks drift apart in so long. */
uint64_t td_remote_clock_drift_us(uint64_t us);

#endif
