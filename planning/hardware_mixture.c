#include "planning/hardware_mixture.h"

#include <math.h>
#include <string.h>

/* Of the bytes that a row reads of a layer, the experts' share: that of its arithmetic, too. */
static double experts_share(const td_hardware_model *m)
{
    double used = m->experts_bytes * m->n_used / m->n_experts;
    return used / (used + m->other_bytes);
}

double td_hardware_dealt_us(const td_hardware *h, const td_hardware_model *m, uint32_t first,
                            const uint32_t *counts, double n_rows)
{
    double n_asked = m->n_experts * (1 - pow(1 - m->n_used / (double)m->n_experts, n_rows));
    double n_active = m->n_active * experts_share(m), n_bytes = m->experts_bytes / m->n_experts;
    td_hardware_model rest = *m; /* without its experts */
    rest.kind = m->kind == TD_HARDWARE_EXPERTS ? TD_HARDWARE_DENSE : TD_HARDWARE_HYBRID;
    rest.n_experts = rest.n_used = 0;
    rest.experts_bytes = 0;
    rest.n_active -= n_active;
    td_seat_load loads[TD_SEATS_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < h->n_devices; i++) {
        const td_hardware_device *d = &h->devices[i];
        if (!counts[i])
            continue;
        /* Of all layers; then of one. */
        double us = n_bytes / (d->bytes_per_s * d->bandwidth_share) +
                    2 * n_active * (n_rows - 1) / n_asked / (d->flops_per_s * d->compute_share);
        td_seat_load *l = &loads[n++];
        l->n_experts = counts[i];
        l->us_each = 1e6 * us / m->n_layers;
        l->us_fixed = fmax(0, d->layer_us[m->kind] - d->layer_us[rest.kind]);
        if (i != first) {
            l->us_each += 1e6 * 8 * m->n_embd * n_rows * m->n_used / n_asked / h->link_bytes_per_s;
            l->us_fixed += h->round_trip_us;
        }
    }
    return td_hardware_pass_us(&h->devices[first], &rest, m->n_layers, n_rows, true) +
           m->n_layers * td_dealing_expected_us(loads, n, n_asked);
}

bool td_hardware_has_ways(const td_hardware *h, const td_hardware_model *m)
{
    bool has_one_machine = true;
    for (uint32_t i = 0; i < h->n_devices; i++)
        has_one_machine &= h->devices[i].machine == h->devices[0].machine;
    return m->n_experts && m->n_experts <= TD_EXPERTS_MAX && has_one_machine && h->n_devices > 1 &&
           h->n_devices <= TD_SEATS_MAX;
}

/* Experts that a device has room for. */
static double room_of(const td_hardware *h, const td_hardware_model *m, uint32_t i, uint32_t first,
                      double n_sequences)
{
    double left = h->devices[i].memory_bytes - h->scratch_bytes;
    if (i == first)
        left -= m->other_bytes + 2 * m->output_bytes + m->kv_bytes * TD_HARDWARE_CTX * n_sequences;
    return floor(left / (m->experts_bytes / m->n_experts));
}

/* As experts=auto deals, the first device being the first of them. */
static bool deal(const td_hardware *h, const td_hardware_model *m, uint32_t first,
                 double n_sequences, uint32_t *counts)
{
    double rates[TD_SEATS_MAX], most[TD_SEATS_MAX], work[TD_SEATS_MAX], fits = 0, best = 0;
    uint32_t n = h->n_devices, dealt[TD_SEATS_MAX];
    bool is_ok = true;
    for (uint32_t i = 0; i < n; i++)
        best = fmax(best, h->devices[i].bytes_per_s * h->devices[i].bandwidth_share);
    for (uint32_t k = 0; k < n; k++) {
        uint32_t i = (first + k) % n;
        rates[k] = h->devices[i].bytes_per_s * h->devices[i].bandwidth_share / best;
        most[k] = room_of(h, m, i, first, n_sequences);
        fits += most[k];
        is_ok &= most[k] >= 1;
    }
    if (!is_ok || fits < m->n_experts || m->n_experts < n)
        return false;
    td_dealing_share(rates, most, n, m->n_experts, m->n_used, 0, dealt, work);
    for (uint32_t k = 0; k < n; k++)
        counts[(first + k) % n] = dealt[k];
    return true;
}

/* One candidate, taken where it is the fastest so far. */
static void try_one(const td_hardware *h, const td_hardware_model *m, uint32_t first, td_use use,
                    const uint32_t *counts, td_hardware_way *way)
{
    double n = use == TD_FOR_STREAM ? 1 : TD_HARDWARE_SEQUENCES;
    double per_s = 1e6 * n / td_hardware_dealt_us(h, m, first, counts, n);
    if (way->fits[use] && per_s <= way->decode_per_s[use])
        return;
    way->fits[use] = true;
    way->decode_per_s[use] = per_s;
    if (use == TD_FOR_STREAM) {
        way->first = first;
        memcpy(way->counts, counts, sizeof way->counts);
    }
}

void td_hardware_compare(const td_hardware *h, const td_hardware_model *m,
                         const td_hardware_outlook *o, td_hardware_way ways[TD_MIXTURE_WAYS])
{
    memset(ways, 0, TD_MIXTURE_WAYS * sizeof *ways);
    ways[TD_MIXTURE_LAYERS] =
        (td_hardware_way){.fits = {o->fits_stream, o->fits},
                          .decode_per_s = {o->stream.decode_per_s, o->batch.decode_per_s}};
    for (td_use use = TD_FOR_STREAM; use <= TD_FOR_BATCH; use++)
        for (uint32_t first = 0; first < h->n_devices; first++) {
            double n = use == TD_FOR_STREAM ? 1 : TD_HARDWARE_SEQUENCES;
            uint32_t dealt[TD_SPEED_DEVICES_MAX] = {0};
            if (deal(h, m, first, n, dealt))
                try_one(h, m, first, use, dealt, &ways[TD_MIXTURE_DEALT]);
            for (uint32_t i = 0; i < h->n_devices; i++) {
                uint32_t apart[TD_SPEED_DEVICES_MAX] = {[0] = 0};
                apart[i] = m->n_experts;
                if (i != first && room_of(h, m, first, first, n) >= 0 &&
                    room_of(h, m, i, first, n) >= m->n_experts)
                    try_one(h, m, first, use, apart, &ways[TD_MIXTURE_APART]);
            }
        }
}
