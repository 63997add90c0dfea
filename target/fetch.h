/* Weights over a link. The worker's end asks for the pieces that kept.h misses, some messages ahead
 * so that the line is full, and takes what comes in the order it was asked; the coordinator's end
 * answers from its own file, as fast as the link takes it. Either checks what the other says.
 *
 * Private to target/. One thread each. Errors: TD_E_DATA for what makes no sense, those of kept.h
 * and gguf.h. */
#ifndef TD_TARGET_FETCH_H
#define TD_TARGET_FETCH_H

#include "target/kept.h"
#include "target/stage_stream.h"

/* The worker's end. */
typedef struct {
    td_kept *kept;
    td_stage_way *way;
    struct {
        uint32_t i; /* a missing piece, */
        uint64_t n; /* bytes of it */
    } asked, come;
    uint32_t n_out; /* asked for and not come */
    uint64_t done, total;
} td_fetch;

void td_fetch_begin(td_fetch *f, td_kept *kept, td_stage_way *way);
/* Asks for more, as far as the link takes it. */
bool td_fetch_ask(td_fetch *f, td_err *err);
bool td_fetch_take(td_fetch *f, const td_stage_data *data, td_err *err);
bool td_fetch_is_done(const td_fetch *f);

/* The coordinator's end. */
typedef struct {
    uint32_t first, n; /* of the ring */
    td_stage_data wants[TD_STAGE_WANTS_MAX];
} td_lend;

bool td_lend_take(td_lend *l, const td_gguf *g, const td_stage_data *want, td_err *err);
/* Answers as far as the link takes it. */
bool td_lend_send(td_lend *l, const td_gguf *g, td_stage_way *way, td_err *err);

/* Tells a plan what files there are; none where they are too many or too large to be sent. */
void td_lend_describe(const td_gguf *g, td_stage_plan *plan);

#endif
