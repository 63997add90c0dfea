/* The run's side of a draft: starts one in a thread of this process or connects to a worker, keeps
 * the session, and turns the coordinator's draft actions into messages. A draft that is slow,
 * silent or lost only costs speed.
 *
 * One thread. Errors: starting a draft here may fail as drafter.h says; a worker elsewhere that
 * refuses (another vocabulary) is TD_E_UNAVAILABLE; one that is not there yet is waited for without
 * holding up the run. */
#ifndef TD_RUN_DRAFT_CLIENT_H
#define TD_RUN_DRAFT_CLIENT_H

#include "draft/drafter.h"
#include "model/model.h"
#include "model/prefix_store.h"
#include "run/run.h"
#include "transport/link.h"
#include "transport/peer.h"

typedef struct td_draft_client td_draft_client;

typedef enum {
    TD_DRAFTING_NONE,
    TD_DRAFTING_JOINED,
    TD_DRAFTING_LOST,
    TD_DRAFTING_DRAFT
} td_draft_client_event_type;

typedef struct {
    td_draft_client_event_type type;
    const char *reason; /* of LOST */
    uint32_t sequence, epoch, position, n;
    uint32_t busy_us;    /* of the draft's device */
    const uint32_t *ids; /* valid until the next step */
} td_draft_client_event;

/* Before the target is laid out: has a draft on a host planned there with n_ctx positions, the most
 * there may be. target: the model whose vocabulary the draft shares or translates; borrowed. */
td_draft_client *td_draft_client_create(const td_run_params *params, const td_model *target,
                                        uint32_t n_ctx, td_err *err);
/* Loads a draft of this process, with n_ctx positions or as many as it was trained for, and starts
 * its thread; or has it loaded on a host, and waits until it is. After that it does nothing.
 * prompts: where one of this process keeps what it has read of them, or NULL; borrowed. */
bool td_draft_client_load(td_draft_client *d, const td_model *target, uint32_t n_ctx,
                          td_prefix_store *prompts, td_err *err);
/* What a draft on a host takes there; else 0. */
uint64_t td_draft_client_bytes(const td_draft_client *d);
/* Begins the session. n_ctx: the target's. */
bool td_draft_client_connect(td_draft_client *d, const td_model *target, uint32_t n_ctx,
                             const td_clock *clock, td_err *err);
void td_draft_client_destroy(td_draft_client **d);

td_link *td_draft_client_link(td_draft_client *d); /* to poll */
uint64_t td_draft_client_next_us(const td_draft_client *d);
/* A draft of this process has failed: nothing comes from it any more. */
bool td_draft_client_is_over(const td_draft_client *d);
bool td_draft_client_step(td_draft_client *d, td_draft_client_event *event, td_err *err);

/* Sends; false (without error) when the session cannot take it, which counts as a loss: the caller
 * tells the coordinator, and JOINED follows when the session stands again. */
bool td_draft_client_open(td_draft_client *d, uint32_t sequence, uint64_t stream,
                          const td_sampling_params *sampling);
bool td_draft_client_send(td_draft_client *d, const td_action *action);

/* Is a position beyond the context of the session's draft? No proposal is to be sent for it. */
bool td_draft_client_is_beyond(const td_draft_client *d, uint32_t position);

/* Is the draft to run on one of the hosts, by a stage worker there? */
bool td_draft_client_is_on_host(const td_run_params *params);

/* Is it on another machine, reached by tcp? */
bool td_draft_client_is_elsewhere(const td_draft_client *d);

/* Where the draft runs, for stats: "host:1", "strix2/host:1"; "" at a worker of its own. */
const char *td_draft_client_device(const td_draft_client *d);
const td_device_info *td_draft_client_get_device(const td_draft_client *d); /* or NULL */
/* Bytes of the draft's file; 0 when that is not known. */
uint64_t td_draft_client_file_bytes(const td_draft_client *d);
/* CPU time so far of the thread that holds the link's other end; 0 when it is elsewhere. */
uint64_t td_draft_client_cpu_us(const td_draft_client *d);
/* Of a draft in this process, exact once it is idle; NULL when it is elsewhere. */
const td_drafter_stats *td_draft_client_get_stats(const td_draft_client *d);

#endif
