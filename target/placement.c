#include "target/placement.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

#define SHARE_STEPS 40 /* halvings of the search for the fullest device's share */

/* "a-b" after '@'. */
static bool parse_range(const char *text, const char *range, td_device_spec *out, td_err *err)
{
    char *end;
    unsigned long first = strtoul(range, &end, 10), last = 0;
    bool is_ok = range[0] >= '0' && range[0] <= '9' && *end == '-';
    if (is_ok) {
        const char *second = end + 1;
        last = strtoul(second, &end, 10);
        is_ok = second[0] >= '0' && second[0] <= '9' && !*end;
    }
    if (!is_ok || first > last || last >= TD_LAYERS_MAX)
        return td_err_set(err, TD_E_USAGE,
                          "device \"%.128s\": layers \"%.64s\" must be FIRST-LAST with FIRST <= LAST "
                          "< %u",
                          text, range, TD_LAYERS_MAX);
    out->is_pinned = true;
    out->first = (uint32_t)first;
    out->last = (uint32_t)last;
    return true;
}

bool td_device_spec_parse(const char *text, td_device_spec *out, td_err *err)
{
    *out = (td_device_spec){0};
    const char *at = strrchr(text, '@');
    size_t n = at ? (size_t)(at - text) : strlen(text);
    if (n == 0 || n >= sizeof out->device)
        return td_err_set(err, TD_E_USAGE, "device \"%.64s\": a name of 1..%zu bytes is needed", text,
                          sizeof out->device - 1);
    memcpy(out->device, text, n);
    return !at || parse_range(text, at + 1, out, err);
}

/* Bytes device d would hold with layers first..last. */
static uint64_t bytes_of(const td_place_device *d, uint32_t first, uint32_t last, uint32_t n_layers)
{
    uint64_t n = d->fixed_bytes;
    if (first == 0)
        n += d->first_bytes;
    if (last + 1 == n_layers)
        n += d->last_bytes;
    for (uint32_t i = first; i <= last; i++)
        n += d->layer_bytes[i];
    return n;
}

/* Gives each of the free devices [0, n) of a gap as many of the layers first..last as fit into
 * `share` of its budget, at least one. True when all layers found a place. */
static bool fill(td_place_device *devices, uint32_t n, uint32_t first, uint32_t last,
                 uint32_t n_layers, double share)
{
    uint32_t next = first;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_after = n - 1 - i; /* each needs a layer */
        td_place_device *d = &devices[i];
        uint32_t end = next;
        while (end < last - n_after &&
               (double)bytes_of(d, next, end + 1, n_layers) <= share * (double)d->budget_bytes)
            end++;
        if ((double)bytes_of(d, next, end, n_layers) > share * (double)d->budget_bytes)
            return false;
        d->first = next;
        d->last = end;
        next = end + 1;
    }
    return next == last + 1;
}

/* Shares layers first..last among n free devices. */
static bool share_gap(td_place_device *devices, uint32_t n, uint32_t first, uint32_t last,
                      uint32_t n_layers, td_err *err)
{
    if (last - first + 1 < n)
        return td_err_set(err, TD_E_USAGE, "%u devices for %u layers (%u..%u): one layer each at least",
                          n, last - first + 1, first, last);
    double low = 0, high = 1;
    if (!fill(devices, n, first, last, n_layers, high)) {
        uint64_t wanted = 0, budget = 0;
        for (uint32_t i = 0; i < n; i++) {
            budget += devices[i].budget_bytes;
            wanted += devices[i].fixed_bytes;
        }
        wanted += bytes_of(&devices[0], first, last, n_layers) - devices[0].fixed_bytes;
        return td_err_set(err, TD_E_NOMEM,
                          "layers %u..%u need %llu MiB with cache and scratch; the devices for them "
                          "have %llu MiB (use a shorter --ctx, a smaller --kv type or more devices)",
                          first, last, (unsigned long long)(wanted >> 20),
                          (unsigned long long)(budget >> 20));
    }
    for (int i = 0; i < SHARE_STEPS; i++) {
        double middle = (low + high) / 2;
        if (fill(devices, n, first, last, n_layers, middle))
            high = middle;
        else
            low = middle;
    }
    fill(devices, n, first, last, n_layers, high);
    return true;
}

bool td_place_layers(td_place_device *devices, uint32_t n_devices, uint32_t n_layers, td_err *err)
{
    uint32_t next = 0; /* first layer without a place */
    for (uint32_t i = 0; i < n_devices;) {
        uint32_t n_free = 0;
        while (i + n_free < n_devices && !devices[i + n_free].is_pinned)
            n_free++;
        const td_place_device *pin = i + n_free < n_devices ? &devices[i + n_free] : NULL;
        uint32_t gap_end = pin ? pin->first : n_layers; /* exclusive */
        if (pin && (pin->last >= n_layers || pin->first < next || pin->first > pin->last))
            return td_err_set(err, TD_E_USAGE,
                              "device %u is pinned to layers %u..%u; allowed here: layers from %u on, "
                              "below %u, in order",
                              i + n_free, pin->first, pin->last, next, n_layers);
        if (n_free == 0 && gap_end > next)
            return td_err_set(err, TD_E_USAGE, "no device for layers %u..%u", next, gap_end - 1);
        if (n_free && gap_end == next)
            return td_err_set(err, TD_E_USAGE, "device %u is left without a layer", i);
        if (n_free && !share_gap(devices + i, n_free, next, gap_end - 1, n_layers, err))
            return false;
        if (pin) {
            uint64_t wanted = bytes_of(pin, pin->first, pin->last, n_layers);
            if (wanted > pin->budget_bytes)
                return td_err_set(err, TD_E_NOMEM,
                                  "layers %u..%u need %llu MiB on device %u, which has %llu MiB",
                                  pin->first, pin->last, (unsigned long long)(wanted >> 20),
                                  i + n_free, (unsigned long long)(pin->budget_bytes >> 20));
            next = pin->last + 1;
        } else {
            next = n_layers;
        }
        i += n_free + (pin != NULL);
    }
    if (next < n_layers)
        return td_err_set(err, TD_E_USAGE, "no device for layers %u..%u", next, n_layers - 1);
    return true;
}
