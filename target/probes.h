/* What a link brings, by probes: round trips of few bytes one at a time, then as many bytes as it
 * takes to fill it, one way and (unless is_one_way) the other. Each of these ends after so many
 * answers, or after a quarter of a second with a few.
 *
 *     td_probes_begin(&p, false);  td_probes_send(&p, &way, err);
 *     a PROBED came: td_probes_take(&p);  td_probes_send(&p, &way, err);  until td_probes_is_over
 *
 * Private to target/. One thread. Errors: those of link.h but TD_E_AGAIN, after which a later send
 * goes on. */
#ifndef TD_TARGET_PROBES_H
#define TD_TARGET_PROBES_H

#include "planning/far.h"
#include "target/stage_stream.h"

#define TD_PROBES_MAX     40u /* of a kind */
#define TD_PROBES_ALL_MAX (3 * TD_PROBES_MAX)

typedef struct {
    bool is_one_way;
    uint32_t kind;
    uint32_t n_sent, n_answered;
    uint64_t sent_ns[TD_PROBES_MAX], answered_ns[TD_PROBES_MAX];
    td_far_link found; /* its host is the caller's */
} td_probes;

void td_probes_begin(td_probes *p, bool is_one_way);
/* As many as may be under way; a kind that has enough gives way to the next. */
bool td_probes_send(td_probes *p, td_stage_way *way, td_err *err);
/* In order, as messages are. False: nothing was asked. */
bool td_probes_take(td_probes *p);
bool td_probes_is_over(const td_probes *p);
/* Ends it with what there is. False: there was no answer at all. */
bool td_probes_end(td_probes *p);

#endif
