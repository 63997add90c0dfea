#include "target/check_seat.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

void td_check_seat_begin(td_check_seat *c, atomic_bool *is_stopped)
{
    pthread_mutex_init(&c->lock, NULL);
    c->is_stopped = is_stopped;
}

void td_check_seat_end(td_check_seat *c)
{
    if (c->is_stopped)
        pthread_mutex_destroy(&c->lock);
}

bool td_check_seat_take(td_check_seat *c, const td_stage_check *what,
                        const td_stage_worker_params *params, td_err *err)
{
    if (!params->check)
        return td_err_set(err, TD_E_UNAVAILABLE, "this worker checks no devices");
    if (what->device >= params->n_specs || what->other >= params->n_specs)
        return td_err_set(err, TD_E_DATA, "a check of device %u beside %u; allowed: 0..%u",
                          what->device, what->other, params->n_specs - 1);
    c->what = *what;
    c->doing[0] = 0;
    return true;
}

static bool show(void *user, const char *op, const char *shape)
{
    td_check_seat *c = user;
    pthread_mutex_lock(&c->lock);
    snprintf(c->doing, sizeof c->doing, "%s: %s", op, shape);
    td_text_make_printable(c->doing);
    pthread_mutex_unlock(&c->lock);
    return !atomic_load(c->is_stopped);
}

bool td_check_seat_run(td_check_seat *c, const td_stage_worker_params *params, td_err *err)
{
    const td_stage_trial trial = {.spec = params->specs[c->what.device],
                                  .other = params->specs[c->what.other],
                                  .only = c->what.only[0] ? c->what.only : NULL,
                                  .is_quick = c->what.is_quick,
                                  .is_hop = c->what.is_hop,
                                  .progress = show,
                                  .user = c};
    bool is_ok = params->check(&trial, c->bytes, sizeof c->bytes, &c->n_bytes, err);
    for (uint32_t i = 0; i < params->n_specs; i++) /* several may be one device */
        td_check_seat_ask(params, i, c->failed[i]);
    return is_ok;
}

void td_check_seat_tell(td_check_seat *c, td_stage_msg *out)
{
    *out = (td_stage_msg){.type = TD_STAGE_CHECKING};
    pthread_mutex_lock(&c->lock);
    memcpy(out->checking, c->doing, sizeof out->checking);
    pthread_mutex_unlock(&c->lock);
}

void td_check_seat_answer(const td_check_seat *c, td_stage_msg *out)
{
    *out = (td_stage_msg){.type = TD_STAGE_REPORT, .stream = {c->bytes, c->n_bytes}};
}

void td_check_seat_ask(const td_stage_worker_params *params, uint32_t device,
                       char out[TD_WIRE_REASON_MAX + 1])
{
    out[0] = 0;
    if (!params->has_failed ||
        !params->has_failed(params->specs[device], out, TD_WIRE_REASON_MAX + 1))
        out[0] = 0;
    td_text_make_printable(out);
}
