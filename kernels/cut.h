/* Cuts of a cache: a page of keys and values, or what a recurrent layer holds of a sequence after a
 * position. Their bytes go from a device to memory and back as they are, in the device's own order:
 * what was read of one is written to one of the same kind, with the same parameters (but for how
 * many pages and slots there are), and then nothing can tell the difference.
 *
 *     td_cut cut = {.kv = kv, .index = page, .bytes = room};     // room[td_cut_bytes(&cut)]
 *     td_cuts_read(&cut, 1, &err);
 *
 * As device.h: one thread at a time uses a device. Errors: TD_E_DEVICE_LOST, TD_E_NOMEM. */
#ifndef TD_KERNELS_CUT_H
#define TD_KERNELS_CUT_H

#include "kernels/device.h"

/* Counts up with any change of what bytes on some device mean, or of what is stored of the same
 * values. */
#define TD_CUT_LAYOUT 2u

typedef struct {
    td_kv *kv;         /* a page of it; NULL: */
    td_state *state;   /* a slot of it */
    uint32_t index;    /* page or slot */
    uint32_t position; /* of a state: committed positions, at least n_taps, none behind them */
    void *bytes;       /* [td_cut_bytes] */
} td_cut;

uint64_t td_cut_bytes(const td_cut *cut);
/* All cuts are of one device. */
bool td_cuts_read(const td_cut *cuts, uint32_t n, td_err *err);
bool td_cuts_write(const td_cut *cuts, uint32_t n, td_err *err);

#endif
