#include "kernels/cut.h"

#include "base/check.h"
#include "kernels/backend.h"

#include <string.h>

static const td_backend *backend_of(const td_cut *cut)
{
    return (cut->kv ? cut->kv->dev : cut->state->dev)->backend;
}

static uint32_t ranges_of(const td_cut *cut, td_cut_range ranges[TD_CUT_RANGES_MAX])
{
    if (cut->kv)
        TD_ASSERT(cut->index < cut->kv->params.n_pages);
    else
        TD_ASSERT(cut->index < cut->state->params.n_slots &&
                  cut->position >= cut->state->params.n_taps);
    uint32_t n = backend_of(cut)->cut_ranges(cut, ranges);
    TD_ASSERT(n <= TD_CUT_RANGES_MAX);
    return n;
}

uint64_t td_cut_bytes(const td_cut *cut)
{
    td_cut_range ranges[TD_CUT_RANGES_MAX];
    uint64_t n_bytes = 0;
    for (uint32_t i = 0, n = ranges_of(cut, ranges); i < n; i++)
        n_bytes += ranges[i].is_fill ? 0 : ranges[i].n_bytes;
    return n_bytes;
}

static void move_range(const td_cut_range *r, uint8_t *bytes, bool is_read)
{
    uint8_t *there = (uint8_t *)r->where + r->offset;
    if (r->is_fill)
        for (uint64_t i = 0; i < r->n_bytes && !is_read; i += sizeof r->word)
            memcpy(there + i, &r->word, sizeof r->word);
    else if (is_read)
        memcpy(bytes, there, r->n_bytes);
    else
        memcpy(there, bytes, r->n_bytes);
}

static bool move(const td_cut *cuts, uint32_t n, bool is_read, td_err *err)
{
    td_cut_range ranges[TD_CUT_RANGES_MAX];
    if (n && backend_of(cuts)->cuts_move)
        return backend_of(cuts)->cuts_move(cuts, n, is_read, err);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *bytes = cuts[i].bytes;
        for (uint32_t k = 0, n_ranges = ranges_of(&cuts[i], ranges); k < n_ranges; k++) {
            move_range(&ranges[k], bytes, is_read);
            bytes += ranges[k].is_fill ? 0 : ranges[k].n_bytes;
        }
    }
    return true;
}

bool td_cuts_read(const td_cut *cuts, uint32_t n, td_err *err) { return move(cuts, n, true, err); }

bool td_cuts_write(const td_cut *cuts, uint32_t n, td_err *err)
{
    return move(cuts, n, false, err);
}
