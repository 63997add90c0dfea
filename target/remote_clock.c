#include "target/remote_clock.h"

#define DRIFT_PPM  100u           /* a PC's quartz is within 50 ppm, so two of them */
#define UNKNOWN_US 1000000000000u /* nobody answered yet */
#define ROUND_US   2u             /* clocks are read in whole microseconds */

void td_remote_clock_add(td_remote_clock *c, uint64_t sent_us, uint64_t theirs_us, uint64_t now_us)
{
    uint64_t trip_us = now_us - sent_us;
    if (now_us < sent_us)
        return; /* no answer to anything that was asked */
    uint32_t i = (uint32_t)(c->n++ % TD_REMOTE_CLOCK_TRIPS);
    c->trips[i].at_us = now_us;
    c->trips[i].trip_us = trip_us;
    c->trips[i].offset_us = (int64_t)(theirs_us - (sent_us + trip_us / 2));
}

uint64_t td_remote_clock_drift_us(uint64_t us)
{
    return us / (1000000 / DRIFT_PPM) + 1; /* rounded up */
}

td_remote_offset td_remote_clock_find(const td_remote_clock *c, uint64_t at_us)
{
    td_remote_offset best = {.uncertainty_us = UNKNOWN_US};
    for (uint32_t i = 0; i < TD_REMOTE_CLOCK_TRIPS && i < c->n; i++) {
        uint64_t was = c->trips[i].at_us, away_us = at_us > was ? at_us - was : was - at_us;
        uint64_t trip_us = c->trips[i].trip_us;
        uint64_t uncertainty_us =
            trip_us / 2 + ROUND_US + td_remote_clock_drift_us(away_us + trip_us);
        if (uncertainty_us < best.uncertainty_us)
            best = (td_remote_offset){c->trips[i].offset_us, trip_us, uncertainty_us};
    }
    return best;
}
