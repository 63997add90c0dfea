/* The ordered stream of jobs over a link: what one end puts comes out at the other in that order. A
 * batch takes as many messages as its activations need; what the link will not take yet is sent by
 * a later flush, so nobody blocks. Private to target/. One thread at a time.
 *
 * Errors: TD_E_DATA for a stream that makes no sense (its session is over then), those of
 * link.h. */
#ifndef TD_TARGET_STAGE_STREAM_H
#define TD_TARGET_STAGE_STREAM_H

#include "target/job.h"
#include "transport/link.h"
#include "transport/stage_wire.h"

/* One way of a session: every message of it, of the stream or not, has the next number. */
typedef struct {
    td_link *link;
    td_route route;
    uint64_t session, n_sent;
} td_stage_way;

/* Sends what is no part of the stream. TD_E_AGAIN: later. */
bool td_stage_way_send(td_stage_way *way, td_stage_msg *msg, td_err *err);

typedef struct {
    td_stage_way *way;
    td_stage_writer writer;
    bool is_due;          /* the writer's message is to be sent before anything is put */
    const micro_batch *b; /* whose activations are being sent: n_done of n_bytes; or NULL */
    uint32_t n_done, n_bytes;
    const micro_batch *packed; /* whose activations are f16 by now, and not put yet; or NULL */
    td_stage_batch batch;      /* scratch */
    td_stage_asks asks;        /* likewise */
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
} td_stage_out;

void td_stage_out_begin(td_stage_out *out, td_stage_way *way);
/* How a batch goes on: to a stage that takes activations of so many columns (0: tokens), of the
 * PLAN's type, or as a result; with the spans of the first n_spans stages. */
typedef struct {
    uint32_t n_embd, n_spans;
    uint8_t wire;
    bool is_result;
} td_stage_form;
/* Puts a job behind those before; a batch must stay as it is until td_stage_out_is_idle, and where
 * its activations go as f16 they mean nothing afterwards. False: not yet, flush and try again.
 * Small jobs wait for a batch, or for what a head is asked, to travel with. */
bool td_stage_out_put(td_stage_out *out, const job *j, const td_stage_form *form);
/* Sends what is due, as far as the link takes it. */
bool td_stage_out_flush(td_stage_out *out, td_err *err);
bool td_stage_out_is_idle(const td_stage_out *out); /* all batches that were put are sent */

typedef struct {
    td_stage_limits limits;
    bool is_of_results; /* else of batches on their way */
    /* Where a batch goes: NULL refuses it, with err set. Its activations, where it has any, go to
     * b->activations. Then a job is done: of a batch, with all of it. */
    micro_batch *(*begin)(void *user, const td_stage_batch *batch, td_err *err);
    bool (*done)(void *user, const job *j, td_err *err);
    void *user;
    micro_batch *b; /* whose activations are not all there; or NULL */
    uint32_t n_there, n_bytes;
    td_stage_batch batch; /* as it was told */
    td_stage_asks asks;   /* likewise, */
    draft_batch drafts;   /* and as a job's */
} td_stage_in;

/* Rows on the wire as f16, each [n] in the place of the f32 and back. What f16 has no room for
 * becomes its largest finite number, NaN stays NaN. */
void td_stage_pack(float *values, size_t n);
void td_stage_unpack(float *values, size_t n);

/* Takes a STREAM or a PIECE. */
bool td_stage_in_take(td_stage_in *in, const td_stage_msg *msg, td_err *err);

#endif
