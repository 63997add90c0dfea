#include "planning/placement.h"

#include "base/check.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20) /* what is wanted is rounded up to, and what is there down */

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
        return td_err_set(
            err, TD_E_USAGE,
            "device \"%.128s\": layers \"%.64s\" must be FIRST-LAST with FIRST <= LAST "
            "< %u",
            text, range, TD_LAYERS_MAX);
    out->is_pinned = true;
    out->first = (uint32_t)first;
    out->last = (uint32_t)last;
    return true;
}

#define HOST_BYTES "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

/* "strix2" of "strix2/vulkan:0"; 0 where none is named. A device's own name may hold a slash, but
 * only behind a colon. */
static size_t host_bytes(const char *text)
{
    size_t n = strspn(text, HOST_BYTES);
    return text[n] == '/' ? n : 0;
}

bool td_host_parse(const char *text, td_host *out, td_err *err)
{
    size_t n = strspn(text, HOST_BYTES);
    if (n == 0 || n >= sizeof out->name || text[n] != '=' || !text[n + 1])
        return td_err_set(err, TD_E_USAGE,
                          "host \"%.100s\"; allowed: NAME=ENDPOINT, a name of 1..%zu letters, "
                          "digits, '.', '_', '-'",
                          text, sizeof out->name - 1);
    memcpy(out->name, text, n);
    out->name[n] = 0;
    out->endpoint = text + n + 1;
    return true;
}

bool td_device_spec_parse(const char *text, td_device_spec *out, td_err *err)
{
    *out = (td_device_spec){0};
    size_t n_host = host_bytes(text);
    if (n_host >= sizeof out->host)
        return td_err_set(err, TD_E_USAGE, "device \"%.64s\": a host's name has at most %zu bytes",
                          text, sizeof out->host - 1);
    memcpy(out->host, text, n_host);
    text += n_host ? n_host + 1 : 0;
    const char *at = strrchr(text, '@');
    size_t n = at ? (size_t)(at - text) : strlen(text);
    if (n == 0 || n >= sizeof out->device)
        return td_err_set(err, TD_E_USAGE, "device \"%.64s\": a name of 1..%zu bytes is needed",
                          text, sizeof out->device - 1);
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

/* How full a device gets. */
static double share_of(uint64_t budget, uint64_t n_bytes)
{
    if (n_bytes == 0)
        return 0;
    return budget ? (double)n_bytes / (double)budget : HUGE_VAL;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Budgets of devices that draw on the system's memory together, of which `left` is there: each has
 * its own and an even part of what is left; what one may not take goes to the others. */
static void share_system(const td_place_device *devices, uint32_t n, uint64_t left,
                         uint64_t *budgets)
{
    uint64_t level = 0; /* what those that may have more have so far */
    for (uint32_t i = 0; i < n; i++)
        budgets[i] = devices[i].budget_bytes - devices[i].shared_bytes;
    while (true) {
        uint32_t n_open = 0;
        uint64_t step = left;
        for (uint32_t i = 0; i < n; i++)
            if (!devices[i].is_pinned && devices[i].shared_bytes > level) {
                n_open++;
                step = least(step, devices[i].shared_bytes - level);
            }
        if (!n_open || !left)
            return;
        step =
            least(step, left / n_open ? left / n_open : 1); /* the last bytes: to the first ones */
        for (uint32_t i = 0; i < n && left; i++)
            if (!devices[i].is_pinned && devices[i].shared_bytes > level) {
                budgets[i] += step;
                left -= step;
            }
        level += step;
    }
}

static bool report_too_much(const td_place_device *devices, const uint64_t *budgets, uint32_t n,
                            uint32_t first, uint32_t last, uint32_t n_layers, td_err *err)
{
    uint64_t wanted = 0, budget = 0;
    for (uint32_t i = 0; i < n; i++) {
        budget += budgets[i];
        wanted += devices[i].fixed_bytes;
    }
    wanted += bytes_of(&devices[0], first, last, n_layers) - devices[0].fixed_bytes;
    return td_err_set(err, TD_E_NOMEM,
                      "layers %u..%u need %llu MiB with cache and scratch; the devices for them "
                      "have %llu MiB (use a shorter --ctx, a smaller --kv type or more devices)",
                      first, last, (unsigned long long)((wanted + MIB - 1) >> 20),
                      (unsigned long long)(budget >> 20));
}

/* Shares layers first..last among n free devices: dynamic programming from the last device to the
 * first. best[k] is the share of the fullest of the devices i.. when they hold the layers from
 * first + k on; a device takes as many layers as that allows. (Filling each device in turn would
 * miss cuts where layers differ in size, for each device must get one.) With is_sum it is not the
 * share but what they all take of the system's memory, each within its whole budget. Returns
 * best[0]; HUGE_VAL where nothing fits. */
static double find_cut(const td_place_device *devices, const uint64_t *budgets, uint32_t n,
                       uint32_t first, uint32_t n_gap, uint32_t n_layers, bool is_sum, double *best,
                       uint32_t *ends)
{
    for (uint32_t k = 0; k < n_gap; k++)
        best[k] = HUGE_VAL; /* and 0 behind the last layer, where no device is left */
    best[n_gap] = 0;
    for (uint32_t i = n; i-- > 0; best[n_gap] = HUGE_VAL) {
        const td_place_device *d = &devices[i];
        for (uint32_t k = 0; k < n_gap; k++) {
            uint64_t n_bytes = d->fixed_bytes + (first + k == 0 ? d->first_bytes : 0);
            double smallest = HUGE_VAL;
            for (uint32_t e = k; e < n_gap; e++) {
                n_bytes +=
                    d->layer_bytes[first + e] + (first + e + 1 == n_layers ? d->last_bytes : 0);
                double of_system = n_bytes > d->budget_bytes
                                       ? HUGE_VAL
                                       : (double)td_place_system_bytes(d, n_bytes);
                double cost = is_sum ? of_system + best[e + 1]
                                     : fmax(share_of(budgets[i], n_bytes), best[e + 1]);
                if (cost <= smallest) {
                    smallest = cost;
                    ends[i * n_gap + k] = e;
                }
            }
            best[k] = smallest;
        }
    }
    return best[0];
}

static bool share_gap(td_place_device *devices, const uint64_t *budgets, uint32_t n, uint32_t first,
                      uint32_t last, uint32_t n_layers, td_err *err)
{
    const uint32_t n_gap = last - first + 1;
    uint64_t of_system = 0;
    if (n_gap < n)
        return td_err_set(err, TD_E_USAGE,
                          "%u devices for %u layers (%u..%u): one layer each at least", n, n_gap,
                          first, last);
    double *best = td_alloc(n_gap + 1, sizeof *best, err);
    uint32_t *ends = td_alloc((size_t)n * n_gap, sizeof *ends, err); /* last layer, by i and k */
    for (uint32_t i = 0; i < n; i++)
        of_system += budgets[i] - (devices[i].budget_bytes - devices[i].shared_bytes);
    bool is_ok = best && ends;
    if (is_ok && find_cut(devices, budgets, n, first, n_gap, n_layers, false, best, ends) > 1 &&
        (!of_system || find_cut(devices, budgets, n, first, n_gap, n_layers, true, best, ends) >
                           (double)of_system))
        is_ok = report_too_much(devices, budgets, n, first, last, n_layers, err);
    for (uint32_t i = 0, k = 0; is_ok && i < n; i++) {
        devices[i].first = first + k;
        devices[i].last = first + ends[i * n_gap + k];
        k = ends[i * n_gap + k] + 1;
    }
    td_free(best);
    td_free(ends);
    return is_ok;
}

/* What pinned devices leave of the system's memory. */
static bool find_left(const td_place_device *devices, uint32_t n, uint32_t n_layers, uint64_t *left,
                      td_err *err)
{
    uint64_t wanted = 0, there = 0;
    for (uint32_t i = 0; i < n; i++) {
        const td_place_device *d = &devices[i];
        there = d->shared_bytes && d->system_bytes > there ? d->system_bytes : there;
        if (d->is_pinned && d->first <= d->last && d->last < n_layers)
            wanted += td_place_system_bytes(d, bytes_of(d, d->first, d->last, n_layers));
    }
    *left = there > wanted ? there - wanted : 0;
    return wanted <= there ||
           td_err_set(err, TD_E_NOMEM,
                      "the pinned layers need %llu MiB of the system's memory, on which their "
                      "devices draw together; it has %llu MiB",
                      (unsigned long long)((wanted + MIB - 1) >> 20),
                      (unsigned long long)(there >> 20));
}

static bool place_layers(td_place_device *devices, uint32_t n_devices, uint32_t n_layers,
                         bool is_whole, td_err *err)
{
    uint32_t next = 0; /* first layer without a place */
    uint64_t budgets[TD_PLACE_DEVICES_MAX], left = 0;
    td_err why = {0};
    TD_ASSERT(n_devices <= TD_PLACE_DEVICES_MAX);
    bool has_left = find_left(devices, n_devices, n_layers, &left, &why);
    share_system(devices, n_devices, left, budgets);
    for (uint32_t i = 0; i < n_devices;) {
        uint32_t n_free = 0;
        while (i + n_free < n_devices && !devices[i + n_free].is_pinned)
            n_free++;
        const td_place_device *pin = i + n_free < n_devices ? &devices[i + n_free] : NULL;
        uint32_t gap_end = pin ? pin->first : n_layers; /* exclusive */
        if (pin && (pin->last >= n_layers || pin->first < next || pin->first > pin->last))
            return td_err_set(
                err, TD_E_USAGE,
                "device %u is pinned to layers %u..%u; allowed here: layers from %u on, "
                "below %u, in order",
                i + n_free, pin->first, pin->last, next, n_layers);
        if (n_free == 0 && gap_end > next && is_whole)
            return td_err_set(err, TD_E_USAGE, "no device for layers %u..%u", next, gap_end - 1);
        if (n_free && gap_end == next)
            return td_err_set(err, TD_E_USAGE, "device %u is left without a layer", i);
        if (n_free &&
            !share_gap(devices + i, budgets + i, n_free, next, gap_end - 1, n_layers, err))
            return false;
        if (pin) {
            uint64_t wanted = bytes_of(pin, pin->first, pin->last, n_layers);
            if (wanted > pin->budget_bytes)
                return td_err_set(
                    err, TD_E_NOMEM, "layers %u..%u need %llu MiB on device %u, which has %llu MiB",
                    pin->first, pin->last, (unsigned long long)((wanted + MIB - 1) >> 20),
                    i + n_free, (unsigned long long)(pin->budget_bytes >> 20));
            next = pin->last + 1;
        } else {
            next = n_layers;
        }
        i += n_free + (pin != NULL);
    }
    if (next < n_layers && is_whole)
        return td_err_set(err, TD_E_USAGE, "no device for layers %u..%u", next, n_layers - 1);
    return has_left || td_err_set(err, why.code, "%s", why.message);
}

bool td_place_layers(td_place_device *devices, uint32_t n_devices, uint32_t n_layers, td_err *err)
{
    return place_layers(devices, n_devices, n_layers, true, err);
}

bool td_place_some(td_place_device *devices, uint32_t n_devices, uint32_t n_layers, td_err *err)
{
    for (uint32_t i = 0; i < n_devices; i++)
        TD_ASSERT(devices[i].is_pinned);
    return place_layers(devices, n_devices, n_layers, false, err);
}
