/* One stage: a thread that takes jobs from its queue in order, performs them on its part of the
 * model and passes them to the next queue. Private to target/. */
#ifndef TD_TARGET_STAGE_H
#define TD_TARGET_STAGE_H

#include "target/job.h"
#include "target/target.h"

typedef struct stage_head stage_head; /* stage_head.h */

typedef struct stage {
    td_forward *forward; /* borrowed from the chain */
    td_err failure;      /* of the first batch that failed here or before; later ones get it too */
    td_stage_info info;
    td_queue in;
    td_queue *out;            /* the next stage's, or the target's done queue */
    void (*wake)(void *user); /* after a result on the done queue; NULL for others */
    void *user;
    td_home *home;  /* the batches' room, as the device reaches it, or its own; NULL: copy */
    uint32_t index; /* among all stages of the target */
    uint32_t n_embd, n_vocab, n_slots;
    bool is_serving; /* jobs come from another machine, whose word is not taken for anything */
    /* The last stage samples: per slot the stream, the sampler's settings and all tokens. */
    td_sampler *sampler;
    td_prefix *prefix; /* of the last stage here, which is done with chunks; else NULL */
    stage_head *head;  /* of the last stage of all; else NULL */
    struct stage_slot {
        uint64_t stream;
        td_sampling_params sampling;
        uint32_t *tokens; /* [n_ctx + 1] */
        bool has_hole;    /* a cancelled batch's rows are missing: what follows them is dead */
        bool is_open;     /* it has been, once */
    } * slots;            /* [n_slots] */
    pthread_t thread;
    bool is_running;
} stage;

/* Counts a batch that took so long. */
void td_stage_add_busy(td_stage_info *info, const micro_batch *b, uint64_t busy_us);
bool td_stage_start(stage *s, td_err *err);
void td_stage_stop(stage *s); /* joins; the queue holds a JOB_STOP or gets one */

#endif
