/* Rows of a verify batch: guesses are added in falling order of the chance that they are reached,
 * and as many stay as give the most expected tokens per time. */
#include "coordinator/dealing.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

uint32_t td_deal_rows(const td_times *times, const td_deal *deals, uint32_t n_sequences,
                      uint32_t n_rows_max, double spent_us, uint32_t *n_kept)
{
    TD_ASSERT(n_sequences >= 1 && n_sequences <= n_rows_max);
    TD_ASSERT(n_rows_max <= TD_TIMES_ROWS_MAX);
    uint32_t order[TD_TIMES_ROWS_MAX]; /* the sequence whose next row is added */
    uint32_t n_added = 0, n_best = 0;
    double n_tokens = n_sequences;
    double most = n_tokens / (spent_us + td_times_verify_us(times, n_sequences));
    bool is_unknown = !(td_times_verify_us(times, n_sequences) > 0); /* no times: all that fits */
    memset(n_kept, 0, n_sequences * sizeof(*n_kept));
    /* In falling order the first rows are the best choice of their number: so all that is left is
     * how many, and looking at every number gets over cliffs and plateaus. */
    while (n_sequences + n_added < n_rows_max) {
        uint32_t next = n_sequences;
        float best = -1;
        for (uint32_t i = 0; i < n_sequences; ++i)
            if (n_kept[i] < deals[i].n_draft && deals[i].survival[n_kept[i]] > best) {
                best = deals[i].survival[n_kept[i]];
                next = i;
            }
        if (next == n_sequences)
            break;
        ++n_kept[next];
        order[n_added++] = next;
        n_tokens += (double)best;
        double goodput = n_tokens / (spent_us + td_times_verify_us(times, n_sequences + n_added));
        if (goodput > most || is_unknown) {
            most = goodput;
            n_best = n_added;
        }
    }
    while (n_added > n_best)
        --n_kept[order[--n_added]];
    return n_sequences + n_best;
}
