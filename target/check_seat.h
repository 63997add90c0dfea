/* A check of a device that a coordinator asked for: the helper of a worker's seat runs it, while
 * the link's thread tells how far it is. Private to target/. Two threads, as marked. */
#ifndef TD_TARGET_CHECK_SEAT_H
#define TD_TARGET_CHECK_SEAT_H

#include "target/worker.h"
#include "transport/stage_wire.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct {
    td_stage_check what; /* set before the helper begins; its devices are there */
    pthread_mutex_t lock;
    char doing[TD_STAGE_TEXT_MAX]; /* under it */
    atomic_bool *is_stopped;       /* nobody wants it any more */
    /* The helper's until it is done: */
    size_t n_bytes;
    uint8_t bytes[TD_STAGE_REPORT_MAX];
    char failed[TD_STAGE_DEVICES_MAX][TD_WIRE_REASON_MAX + 1]; /* of all devices, afterwards */
} td_check_seat;

void td_check_seat_begin(td_check_seat *c, atomic_bool *is_stopped);
void td_check_seat_end(td_check_seat *c);
/* What a check would need that this worker has not got. TD_E_DATA, TD_E_UNAVAILABLE. */
bool td_check_seat_take(td_check_seat *c, const td_stage_check *what,
                        const td_stage_worker_params *params, td_err *err);
/* The helper. */
bool td_check_seat_run(td_check_seat *c, const td_stage_worker_params *params, td_err *err);
/* The link's thread: what to tell now, */
void td_check_seat_tell(td_check_seat *c, td_stage_msg *out);
/* and when the helper is done. out points into c. */
void td_check_seat_answer(const td_check_seat *c, td_stage_msg *out);

/* What is known against the device, made printable; "" for nothing. */
void td_check_seat_ask(const td_stage_worker_params *params, uint32_t device,
                       char out[TD_WIRE_REASON_MAX + 1]);

#endif
