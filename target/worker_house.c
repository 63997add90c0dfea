/* The stage worker as a whole: what it offers, its link, and who sits at it. */
#include "target/worker.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/text.h"
#include "planning/layout.h"
#include "target/check_seat.h"
#include "target/worker_seat.h"

#include <stdio.h>

#define N_SEATS 2u /* one of layers, one of a draft */

typedef struct {
    const td_stage_worker_params *params;
    td_stage_hello_ok hello;
    td_link *link;
    td_worker_seat *seats[N_SEATS];
    uint8_t bytes[TD_WIRE_MESSAGE_MAX];
} house;

static bool describe_devices(const td_stage_worker_params *p, td_stage_hello_ok *out, td_err *err)
{
    TD_ASSERT(p->n_specs >= 1 && p->n_specs <= TD_STAGE_DEVICES_MAX);
    *out = (td_stage_hello_ok){.protocol = TD_STAGE_PROTOCOL, .n_devices = (uint8_t)p->n_specs};
    snprintf(out->build, sizeof out->build, "tandem " TD_VERSION);
    for (uint32_t i = 0; i < p->n_specs; i++) {
        td_stage_device *d = &out->devices[i];
        td_device_info info;
        if (!td_device_find(p->specs[i], &info, err))
            return false;
        d->kind = (uint8_t)info.kind;
        d->n_threads = info.n_threads;
        d->usable_bytes = info.capacity.usable_bytes;
        d->total_bytes = info.capacity.total_bytes;
        snprintf(d->spec, sizeof d->spec, "%s", p->specs[i]);
        snprintf(d->id, sizeof d->id, "%s", info.id);
        snprintf(d->name, sizeof d->name, "%.127s", info.name);
        snprintf(d->driver, sizeof d->driver, "%.127s", info.driver);
        td_text_make_printable(d->spec);
        td_text_make_printable(d->name);
        td_text_make_printable(d->driver);
        td_check_seat_ask(p, i, d->failed);
        td_log_info("stage worker: %s is %s", d->spec, d->name);
        if (d->failed[0])
            td_log_warn("stage worker: %s has failed `tandem check`: %s; coordinators are told, "
                        "who refuse it unless they --trust",
                        d->spec, d->failed);
    }
    return true;
}

/* Messages that cannot be read, and those of strangers, are dropped. */
static bool receive(house *h, td_err *err)
{
    bool was_cut = td_link_was_cut(h->link);
    for (uint32_t i = 0; was_cut && i < N_SEATS; i++)
        td_worker_seat_cut(h->seats[i]);
    for (uint32_t n = 0; n < 256; n++) {
        size_t n_bytes;
        td_route route;
        td_stage_msg m;
        if (!td_link_recv(h->link, h->bytes, &n_bytes, &route, err))
            return false;
        if (!n_bytes)
            return true;
        bool is_stage = td_stage_decode(h->bytes, n_bytes, &m, NULL);
        for (uint32_t i = 0; i < N_SEATS; i++)
            if (is_stage)
                td_worker_seat_take(h->seats[i], &m, route);
            else
                td_worker_seat_take_draft(h->seats[i], h->bytes, n_bytes, route);
    }
    return true;
}

static bool serve(house *h, td_err *err)
{
    while (true) {
        td_link_poll_item items[2 + TD_SEAT_ITEMS_MAX * N_SEATS] = {{.link = h->link},
                                                                    {.fd = h->params->stop_fd}};
        size_t n = 2, first[N_SEATS];
        bool is_due = false;
        for (uint32_t i = 0; i < N_SEATS; i++) {
            first[i] = n;
            n += td_worker_seat_look(h->seats[i], items + n);
            is_due |= td_worker_seat_is_sending(h->seats[i]);
        }
        if (!td_link_poll(items, n, is_due ? 200 : 100000, err))
            return false;
        if (items[1].is_readable)
            return true;
        if (!receive(h, err))
            return false;
        for (uint32_t i = 0; i < N_SEATS; i++)
            if (!td_worker_seat_step(h->seats[i], items[first[i]].is_readable, err))
                return false;
    }
}

bool td_stage_worker_run(const td_stage_worker_params *params, td_err *err)
{
    house *h = td_alloc(1, sizeof *h, err);
    if (!h)
        return false;
    h->params = params;
    bool is_ok = true;
    for (uint32_t i = 0; is_ok && i < N_SEATS; i++)
        is_ok = (h->seats[i] = td_worker_seat_create(params, &h->hello, i > 0, err));
    if (is_ok && describe_devices(params, &h->hello, err))
        h->link = td_link_open(params->transport, params->endpoint, TD_LINK_BIND, err);
    is_ok = h->link;
    if (is_ok) {
        td_log_info("stage worker: at %s", params->endpoint);
        for (uint32_t i = 0; i < N_SEATS; i++)
            td_worker_seat_open(h->seats[i], h->link, h->seats[1 - i]);
        is_ok = serve(h, err);
    }
    for (uint32_t i = 0; i < N_SEATS; i++) {
        if (is_ok)
            td_worker_seat_leave(h->seats[i]);
        td_worker_seat_destroy(&h->seats[i]);
    }
    td_link_close(&h->link, true);
    td_free(h);
    return is_ok;
}
