/* The draft worker: serves one coordinator over a link, in a thread of the same process (inproc) or
 * in a process of its own (`tandem draft`). There two threads: one owns the link and answers pings
 * at once, the other computes, so that a long prompt does not pass for a dead worker.
 *
 * What comes first, what goes together and what is not wanted any more, requests.h decides.
 * Errors: what link.h and drafter.h list; a message that makes no sense is logged and dropped. */
#ifndef TD_DRAFT_WORKER_H
#define TD_DRAFT_WORKER_H

#include "base/err.h"
#include "draft/drafter.h"
#include "model/vocab_map.h"
#include "transport/link.h"

#include <stdatomic.h>

typedef struct {
    td_drafter *drafter; /* borrowed; the worker's alone while it runs */
    /* The vocabulary that it speaks, shown by its hash: the drafter's own, or a target's that `map`
     * translates from and to. Borrowed. */
    const td_tokenizer *tokenizer;
    const td_vocab_map *map; /* or NULL */
    td_transport *transport;
    const char *endpoint; /* bound */
    const char *title;    /* who is there, said once it is bound; NULL: nothing is */
    int stop_fd;          /* readable: stop */
    /* In the coordinator's own process: one thread does everything, link and computing in turns,
     * for nobody needs to be told there that it is alive; and it says nothing of who comes and
     * goes. */
    bool is_here;
    _Atomic uint64_t *computing_us; /* is_here: CPU time that is not the link's; or NULL */
} td_draft_worker_params;

/* Serves until stop_fd is readable. False when the endpoint cannot be had or the device failed. */
bool td_draft_worker_run(const td_draft_worker_params *params, td_err *err);

/* The hash callback of peer.h for a tokenizer. */
uint64_t td_draft_vocab_hash(void *tokenizer, uint32_t a, uint32_t b);

#endif
