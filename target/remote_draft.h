/* The coordinator's end of a draft under a stage worker's roof (draft_seat.h): a session that has
 * the model loaded there, lends its bytes if need be, and stands as long as the draft is wanted.
 * When it is lost it is begun anew, by a thread of its own, for as long as it takes: who uses the
 * draft sees it come back as a peer does (transport/peer.h), over a link to the same endpoint.
 *
 * Borrows what its params point to. One thread. Errors of create and load, which waits until the
 * draft is loaded: TD_E_USAGE (a host that is not known, a device that is not there),
 * TD_E_UNAVAILABLE (no worker there, a busy one, no room), TD_E_DEVICE_LOST (lost meanwhile),
 * TD_E_AGAIN (a signal). */
#ifndef TD_TARGET_REMOTE_DRAFT_H
#define TD_TARGET_REMOTE_DRAFT_H

#include "planning/layout.h"

typedef struct td_remote_draft td_remote_draft;

typedef struct {
    const td_model *model;
    const char *spec; /* "strix2/vulkan:amd" */
    const td_host *hosts;
    uint32_t n_hosts;
    const char *key;  /* our own pair; NULL: the only one */
    bool is_trusting; /* a device that has failed a check is taken all the same */
    td_cache_types kv;
    uint32_t n_slots, n_ctx;                                     /* n_ctx: 1 and up */
    bool (*progress)(void *user, uint64_t done, uint64_t total); /* of both; or NULL */
    void *user;
} td_remote_draft_params;

/* In two: create has it planned with n_ctx positions, so that the worker knows what it will take
 * when layers are planned there; load loads it, with no more than so many. */
td_remote_draft *td_remote_draft_create(const td_remote_draft_params *params, td_err *err);
bool td_remote_draft_load(td_remote_draft *draft, uint32_t n_ctx, td_err *err);
void td_remote_draft_destroy(td_remote_draft **draft);

const char *td_remote_draft_endpoint(const td_remote_draft *draft);
/* Of td_peer_params, by which the worker knows whose draft is meant. */
uint64_t td_remote_draft_seed(const td_remote_draft *draft);
/* What it takes there with as many positions as it was planned with. */
uint64_t td_remote_draft_bytes(const td_remote_draft *draft);
/* "strix2/vulkan:0", as the worker calls it; and what it said of it. */
const char *td_remote_draft_device(const td_remote_draft *draft);
const td_device_info *td_remote_draft_info(const td_remote_draft *draft);

#endif
