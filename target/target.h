/* The target: an ordered chain of stages, each a run of the model's layers on one device with its
 * cache, each a thread with an ordered queue. Jobs travel from stage to stage in one order, so a
 * truncate never overtakes a micro-batch; the last stage samples. While one stage works on a
 * micro-batch another may work on the next (law 4).
 *
 *     td_target *t = td_target_create(&params, &err);
 *     td_target_open_sequence(t, slot, slot, 0, stream, &sampling);
 *     td_target_forward(t, batch, is_prefill, rows, n_rows);
 *     poll(td_target_fd(t)) ... td_target_poll(t, &result)
 *
 * A sequence may have rows in several batches before the first of them is answered: what is
 * speculated on from a row that is not verified yet. When that fails, the caller cancels the
 * batches nothing of which is wanted any more and truncates the sequences. A stage that has not
 * begun a cancelled batch passes it on empty; other batches may hold more rows of those sequences,
 * and stages leave these out too, since the rows before them are missing there.
 *
 * A stage may be on another machine, where a `tandem stage` serves it: "strix2/vulkan:0@8-15", with
 * strix2 among params->hosts. Its jobs go over a link in the same order; neighbouring workers pass
 * them on among themselves.
 *
 * Owns devices, weights, caches and threads; borrows the model. Called from one thread. Activations
 * pass between stages in the job's room, memory of the process that GPUs import where their driver
 * lets them: then the host copies nothing. Of a GPU that cannot they lie in its own memory that the
 * host sees, from where the next stage copies them.
 *
 * Errors: td_target_create's are those of forward.h and placement.h; a result carries the error of
 * its batch: TD_E_UNAVAILABLE when a stage elsewhere was lost. */
#ifndef TD_TARGET_H
#define TD_TARGET_H

#include "base/err.h"
#include "draft/proposal.h"
#include "model/forward.h"
#include "model/prefix_store.h"
#include "model/sampling.h"
#include "target/chain.h"

#define TD_TARGET_BATCHES_MAX 16u /* submitted and not yet polled */
/* Positions of a sequence above its committed length (as of the jobs before) that rows may be at,
 * but in prefill; where td_target_forgets. */
#define TD_TARGET_FLIGHT_MAX TD_VERIFY_ROWS_MAX

typedef struct td_target td_target;

typedef struct {
    const char *host; /* NULL: this machine */
    char spec[128];   /* "host:1" or "strix2/host:1", without the range */
    char name[256];   /* the device's */
    const td_device_info *device, *experts_device; /* NULL: none of their own; the target's */
    const td_layout_deal *deal; /* where experts are dealt over devices; NULL: they are not */
    const uint64_t *asked;      /* then td_forward_asked, exact once no batch is in flight, */
    const uint64_t *dealt;      /* and td_forward_dealt */
    uint32_t first, last;
    uint64_t n_bytes;               /* weights, cache and activations */
    uint64_t n_usable_bytes;        /* what the device has for them (td_layout_part) */
    char experts_spec[128];         /* where the experts are, if elsewhere; else "" */
    uint64_t n_experts_bytes;       /* there */
    uint64_t n_file_bytes, load_us; /* weights in the file, and loading them */
    uint64_t busy_prefill_us, busy_verify_us;
    uint64_t n_prefill_rows, n_verify_rows, n_prefills, n_verifies;
    uint64_t n_copied_bytes; /* of activations, by the host, on their way here and on */
    uint64_t busy_draft_us, n_draft_asks, n_draft_tokens; /* of the head (params.head) */
} td_stage_info;

/* When a stage began and finished a batch, by the real clock (base/clock.h), and how long that had
 * waited there for those before it. Equal ends: it did nothing of it. Spans of one stage never
 * overlap. */
typedef struct {
    uint64_t start_us, end_us, waited_us;
} td_target_span;

typedef struct {
    uint64_t batch;
    td_err err;             /* code TD_OK when the batch ran; after a failed one all fail */
    const uint32_t *chosen; /* [n_out] token after each output row; valid until the next poll. Of
                             * rows that were left out: 0 */
    uint32_t n_out;
    /* [n_bad] `sequence` of the rows whose logits were not finite (their tokens mean nothing); not
     * the slot, which may be another's by now. Valid until the next poll. */
    const uint32_t *bad;
    uint32_t n_bad;
    uint32_t n_restored;         /* positions of a prompt's chunk that was read, not computed */
    bool is_cancelled;           /* then chosen means nothing; no error */
    const td_target_span *spans; /* [n_stages], valid until the next poll */
    uint64_t sum_us, max_us;     /* of the spans' lengths */
    uint64_t waited_us;          /* in all stages together */
} td_target_result;

/* For so long a worker is waited for that does not answer or is not free, when a run begins as
 * after a loss: a service is started again after 5 s, and one that served somebody who is lost is
 * free then. */
#define TD_TARGET_PATIENCE_US 12000000u

typedef struct {
    td_device_info info;
    char failed[512]; /* what `tandem check` found there, cut off; "": nothing is known */
} td_target_device;

/* For a trace: what the worker of a host did with a batch, by the real clock of this machine as far
 * as its own can be held against it. Spans follow one another in this order. */
typedef struct {
    uint64_t batch;
    bool is_prefill, is_skipped;
    uint32_t n_rows, n_in_bytes, n_out_bytes; /* rows left to do; bytes of activations */
    uint32_t host, first_stage, n_stages;
    td_target_span received;             /* from its first message to its last */
    td_target_span spans[TD_STAGES_MAX]; /* [n_stages]; an empty one did nothing */
    td_target_span sent;                 /* until the link had taken all of it */
    uint64_t uncertainty_us;             /* how far off all of them may be */
} td_target_event;

typedef struct { /* of a host's worker */
    char host[TD_HOST_NAME_MAX], endpoint[320];
    int64_t offset_us;                /* its clock less ours, at this time, */
    uint64_t uncertainty_us, trip_us; /* by a round trip of so long */
    uint64_t n_trips, n_dropped;      /* measured; batches of which it had no room to tell */
} td_target_clock;

/* The devices that a host's worker was started with, as far as it tells: *n of out[TD_DEVICES_MAX].
 * Only once it is free. */
bool td_target_host_devices(const td_host *host, const char *key, td_target_device *out,
                            uint32_t *n, td_err *err);

typedef struct {
    char spec[160];      /* in: a SPEC, here or elsewhere; its layers do not matter */
    bool is_there;       /* and free */
    td_device_info info; /* if so; by the names of its machine */
    td_err why;          /* if not */
} td_target_look;

/* Looks for devices: waits until the machines of the first n_needed have answered, but no longer
 * than so. Errors: of a SPEC, a host that is not known, or the transport. */
bool td_target_look_for(const td_layout_params *params, td_target_look *looks, uint32_t n,
                        uint32_t n_needed, uint64_t within_us, td_err *err);

/* In one, or in two: open lays it out (and asks the machines that params->specs name), so that
 * n_ctx, n_pages and draft_bytes are known; load loads it. What params point to lives as long. */
td_target *td_target_create(const td_layout_params *params, td_err *err);
td_target *td_target_open(const td_layout_params *params, td_err *err);
bool td_target_load(td_target *t, td_err *err);     /* destroy it when it fails */
uint64_t td_target_draft_bytes(const td_target *t); /* for which room was kept */
void td_target_destroy(td_target **t);

/* Once loaded and before any job: full chunks of prompts, of chunk_rows, are read from a store
 * where they are there, and kept there when they were computed; by stages elsewhere, in stores of
 * their own. identity: what the bits depend on beside tokens and the caches' sizes; what: of it,
 * for people. The store is borrowed. *without: a host that has no store, and so nothing is kept; or
 * NULL. TD_E_NOMEM, and where a host is lost. */
bool td_target_keep_prompts(td_target *t, td_prefix_store *store, const char *identity,
                            const char *what, uint32_t chunk_rows, const char **without,
                            td_err *err);
uint64_t td_target_n_unkept(const td_target *t); /* chunks that found the disk too slow */

uint32_t td_target_n_ctx(const td_target *t);
uint32_t td_target_n_pages(const td_target *t); /* of the cache; 0: enough for all slots */
uint32_t td_target_n_stages(const td_target *t);
/* Figures of a stage so far. Busy times are exact once no batch is in flight. */
void td_target_get_stage_info(const td_target *t, uint32_t stage, td_stage_info *out);
/* Adds the busy times and counts of a stage of a target that this one stands in for. */
void td_target_add_figures(td_target *t, uint32_t stage, const td_stage_info *before);
/* Whether some stage's cache forgets (cache.h): then no sequence begins with
 * another's positions. */
bool td_target_forgets(const td_target *t);

/* Jobs, performed in the order of the calls. They wait only if hundreds are queued already.
 *
 * open_sequence: the slot begins empty (length 0), or with the first `length` positions of
 * from_slot: a multiple of TD_PAGE_POSITIONS, committed there by the jobs before; from_slot == slot
 * keeps them and drops the rest. */
void td_target_open_sequence(td_target *t, uint32_t slot, uint32_t from_slot, uint32_t length,
                             uint64_t stream, const td_sampling_params *sampling);
/* At most TD_TARGET_BATCHES_MAX batches that were not polled; rows[] are copied. */
void td_target_forward(td_target *t, uint64_t batch, bool is_prefill, const td_forward_row *rows,
                       uint32_t n_rows);
/* Nothing of a batch that was not polled is wanted any more. Its result comes in its turn. Its
 * sequences are truncated to where it began, or before, or closed, before they have a live row. */
void td_target_cancel(td_target *t, uint64_t batch);
void td_target_truncate(td_target *t, uint32_t slot, uint32_t length);
void td_target_commit(td_target *t, uint32_t slot, uint32_t length);
void td_target_close_sequence(td_target *t, uint32_t slot);

/* Events of stages elsewhere, asked for from `trace` on; they come some time after their batch's
 * result, and wait here until they are taken. await_events waits for those of all that was done
 * before its first call, at most so long each time; false: there are no more of them. */
bool td_target_trace(td_target *t, td_err *err);
uint32_t td_target_n_hosts(const td_target *t); /* 0: all stages are here */
void td_target_get_clock(const td_target *t, uint32_t host, td_target_clock *out);
bool td_target_next_event(td_target *t, td_target_event *out);
bool td_target_await_events(td_target *t, uint64_t within_us);

/* Where the last stage has a head (td_layout_params.head; elsewhere the model's own): asks for
 * proposals of different sequences at once, whose caches, by the jobs before, end right before the
 * last token known. propose copies proposals[n] (sequence, epoch, position, k) and of each the slot
 * and that token; false: too many are under way, and these get no answer. Each is answered once,
 * with as many ids as could be found, in the order of jobs; wait as for poll. */
bool td_target_propose(td_target *t, const td_proposal *proposals, const uint32_t *slots,
                       const uint32_t *tokens, uint32_t n);
bool td_target_next_proposal(td_target *t, td_proposal *out);

/* Readable when td_target_poll has a result, and until it said that there is none. */
int td_target_fd(const td_target *t);
/* The next finished batch; false when there is none yet. */
bool td_target_poll(td_target *t, td_target_result *out);

#endif
