#include "planning/dealing.h"

#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/order.h"
#include "base/text.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char key[] = "experts=";
#define NOBODY UINT8_MAX

static const char *value_of(const char *place)
{
    return place && !strncmp(place, key, strlen(key)) ? place + strlen(key) : "";
}

bool td_place_is_dealt(const char *place)
{
    const char *value = value_of(place);
    return !strcmp(value, "auto") || isdigit((unsigned char)*value);
}

const char *td_place_experts(const char *place)
{
    const char *value = value_of(place);
    return *value && !td_place_is_dealt(place) ? value : NULL;
}

typedef struct {
    const td_model *m;
    const td_hparams *h;
    const char *place;
    const td_dealing_params *params;
    uint32_t n_expert, counts[TD_SEATS_MAX]; /* of each layer's */
    double work[TD_SEATS_MAX];               /* share that each is meant to have, 0..1 */
    uint8_t seats[TD_EXPERTS_MAX];
} dealer;

static bool fail(const dealer *d, td_err *err, const char *why)
{
    return td_err_set(err, TD_E_USAGE,
                      "place %s: %s; allowed: experts=auto, shares as in experts=60,40 or lists as "
                      "in experts=0-3/4-7, one for each of %u devices, of %u experts",
                      td_text_quote(d->place, strlen(d->place)).text, why, d->params->n_seats,
                      d->n_expert);
}

/* One number of digits, at most 9 of them. */
static bool read_number(const char **at, uint32_t *out)
{
    uint32_t n = 0;
    for (*out = 0; isdigit((unsigned char)**at) && n < 9; n++, ++*at)
        *out = *out * 10 + (uint32_t)(**at - '0');
    return n > 0 && !isdigit((unsigned char)**at);
}

/* "0-3,8/4-7" */
static bool read_lists(dealer *d, const char *at, td_err *err)
{
    uint32_t seat = 0, first, last;
    memset(d->seats, NOBODY, sizeof d->seats);
    for (;;) {
        bool is_ok = read_number(&at, &first);
        last = first;
        if (is_ok && *at == '-') {
            at++;
            is_ok = read_number(&at, &last);
        }
        if (!is_ok || (*at && *at != ',' && *at != '/') || first > last)
            return fail(d, err, "it is no list of experts");
        if (last >= d->n_expert)
            return fail(d, err, "there is no such expert");
        if (seat >= d->params->n_seats)
            return fail(d, err, "it has more lists than there are devices");
        for (uint32_t e = first; e <= last; e++) {
            if (d->seats[e] != NOBODY)
                return fail(d, err, "an expert is dealt twice");
            d->seats[e] = (uint8_t)seat;
        }
        seat += *at == '/';
        if (!*at++)
            break;
    }
    if (seat + 1 < d->params->n_seats)
        return fail(d, err, "it has fewer lists than there are devices");
    for (uint32_t e = 0; e < d->n_expert; e++)
        if (d->seats[e] == NOBODY)
            return fail(d, err, "an expert is dealt to nobody");
    return true;
}

/* Counts near those wanted, whose sum is n_expert: one at least each. */
static void round_counts(const double *wanted, uint32_t n, uint32_t n_expert, uint32_t *counts)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += counts[i] = td_max_u32(1, (uint32_t)floor(wanted[i] + 1e-9));
    while (sum != n_expert) { /* to who lacks most, from who has most too many */
        bool is_more = sum < n_expert;
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++) {
            if (!is_more && counts[i] == 1)
                continue;
            double lack = wanted[i] - counts[i];
            double best_lack = best < n ? wanted[best] - counts[best] : 0;
            if (best == UINT32_MAX || (is_more ? lack > best_lack : lack < best_lack))
                best = i;
        }
        is_more ? counts[best]++ : counts[best]--;
        sum += is_more ? 1u : -1u;
    }
}

/* "60,40" */
static bool read_shares(dealer *d, const char *at, td_err *err)
{
    double shares[TD_SEATS_MAX], sum = 0;
    uint32_t n = 0, share;
    for (bool is_last = false; !is_last; n++) {
        if (!read_number(&at, &share) || (*at && *at != ','))
            return fail(d, err, "it is no list of shares");
        if (!share)
            return fail(d, err, "a share is 0");
        if (n == d->params->n_seats)
            return fail(d, err, "it has more shares than there are devices");
        sum += shares[n] = share;
        is_last = !*at++;
    }
    if (n < d->params->n_seats)
        return fail(d, err, "it has fewer shares than there are devices");
    for (uint32_t i = 0; i < n; i++) {
        d->work[i] = shares[i] / sum;
        shares[i] *= d->n_expert / sum;
    }
    round_counts(shares, n, d->n_expert, d->counts);
    return true;
}

/* Bytes of all layers' experts on a device, of one of each. */
static double expert_bytes(const dealer *d, uint32_t seat)
{
    double n_bytes = 0;
    for (uint32_t i = 0; i < d->h->n_layer; i++)
        n_bytes += (double)td_weights_layer_bytes(d->m, d->params->devs[seat], i, TD_SHARE_EXPERTS);
    return n_bytes / d->n_expert;
}

/* Time T is looked for at which all of them have found a place. */
void td_dealing_share(const double *rates, const double *most, uint32_t n, uint32_t n_expert,
                      uint32_t n_used, double shared, uint32_t *counts, double *work)
{
    double wanted[TD_SEATS_MAX], low = 0, high = 1, sum = 0, sum_rates = 0;
    double asked = (double)n_used / n_expert; /* share of them, by a row */
    for (uint32_t i = 0; i < n; i++)
        sum_rates += rates[i];
    double time = (n_used + shared) / sum_rates; /* of a row */
    for (uint32_t i = 0; i < n; i++)
        work[i] = fmax(0, time * rates[i] - (i ? 0 : shared)) / n_used;
    for (int step = 0; step < 200; step++) {
        double t = (low + high) / 2;
        sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            wanted[i] = (t * rates[i] - (i ? 0 : shared)) / asked;
            wanted[i] = fmin(fmax(wanted[i], 1), most[i]);
            sum += wanted[i];
        }
        if (sum >= n_expert)
            high = t;
        else if (step < 100 && high - low > high / 4) /* not bracketed yet */
            high *= 2;
        else
            low = t;
    }
    round_counts(wanted, n, n_expert, counts);
}

/* Experts by time: seat 0 also reads the shared expert. None has more than fit in what its device
 * has. */
static void share_time(dealer *d, const double *rates)
{
    uint32_t n = d->params->n_seats;
    double most[TD_SEATS_MAX], fits = 0;
    for (uint32_t i = 0; i < n; i++) {
        double room = (double)td_device_get_info(d->params->devs[i])->capacity.usable_bytes;
        most[i] = fmax(1, room / expert_bytes(d, i));
        fits += most[i];
    }
    for (uint32_t i = 0; i < n && fits < d->n_expert; i++)
        most[i] = d->n_expert; /* what is missing is said when it is counted */
    td_dealing_share(rates, most, n, d->n_expert, d->h->n_expert_used,
                     (double)d->h->n_ff_shared / d->h->n_ff_expert, d->counts, d->work);
}

static bool measure(dealer *d, td_err *err)
{
    double rates[TD_SEATS_MAX], best = 0;
    for (uint32_t i = 0; i < d->params->n_seats; i++) {
        uint32_t k = 0; /* one of its kind that is measured already: noise shall not part them */
        while (k < i && strcmp(d->params->specs[k], d->params->specs[i]) != 0)
            k++;
        if (k < i)
            rates[i] = rates[k];
        else if (!td_device_measure_bandwidth(d->params->devs[i], &rates[i], err))
            return td_err_prepend(err, "%s", d->params->specs[i]);
        rates[i] = fmax(rates[i], 1);
        best = fmax(best, rates[i]);
    }
    for (uint32_t i = 0; i < d->params->n_seats; i++)
        rates[i] /= best;
    share_time(d, rates);
    return true;
}

static void write_counts(const dealer *d, char text[TD_PLACE_BYTES])
{
    size_t n = (size_t)snprintf(text, TD_PLACE_BYTES, "%s", key);
    for (uint32_t i = 0; i < d->params->n_seats; i++)
        n += (size_t)snprintf(text + n, TD_PLACE_BYTES - n, "%s%u", i ? "," : "", d->counts[i]);
}

/* By counts: the first so many to the first, and so on. */
static void deal_in_order(dealer *d)
{
    for (uint32_t i = 0, e = 0; i < d->params->n_seats; i++)
        for (uint32_t k = 0; k < d->counts[i]; k++)
            d->seats[e++] = (uint8_t)i;
}

/* -- by how often they were asked -------------------------------------------------------------- */

/* The hottest first, ties in their order. */
static void sort_by_heat(const double *heat, uint32_t n, uint16_t *order)
{
    for (uint32_t e = 0; e < n; e++) {
        uint32_t i = e;
        for (; i && heat[order[i - 1]] < heat[e]; i--)
            order[i] = order[i - 1];
        order[i] = (uint16_t)e;
    }
}

/* Whose an expert of so much heat is: of the devices with room that lack as much, the one that
 * lacks most for each expert it has room for; where none does, the one that lacks most. */
static uint32_t find_taker(const double *lacks, const uint32_t *room, uint32_t n, double heat)
{
    uint32_t to = n;
    for (uint32_t i = 0; i < n; i++) {
        if (!room[i])
            continue;
        bool is_short = lacks[i] >= heat, is_best = to < n && lacks[to] >= heat;
        if (to == n || is_short > is_best ||
            (is_short == is_best &&
             (is_short ? lacks[i] / room[i] > lacks[to] / room[to] : lacks[i] > lacks[to])))
            to = i;
    }
    return to;
}

/* Each device has as many experts as it has room for, whose heat is near its share of the work.
 * The hottest go first, since those that follow can still even out what they were too much. */
static void deal_layer(const dealer *d, const td_json_object *o, uint32_t layer, uint8_t *seats)
{
    uint16_t order[TD_EXPERTS_MAX];
    uint32_t room[TD_SEATS_MAX], n = d->params->n_seats;
    double all = 0, heat[TD_EXPERTS_MAX], lacks[TD_SEATS_MAX];
    for (uint32_t e = 0; e < d->n_expert; e++)
        all += heat[e] = (double)td_json_get_int_at(o, "asked", (size_t)layer * d->n_expert + e);
    for (uint32_t i = 0; i < n; i++) {
        room[i] = d->counts[i];
        lacks[i] = d->work[i] * all;
    }
    sort_by_heat(heat, d->n_expert, order);
    for (uint32_t k = 0; k < d->n_expert; k++) {
        uint32_t e = order[k], to = find_taker(lacks, room, n, heat[e]);
        seats[e] = (uint8_t)to;
        lacks[to] -= heat[e];
        room[to]--;
    }
}

/* The stage of a file of --stats that has dealt. */
static bool find_counts(const dealer *d, const td_json *doc, td_json_object *out, td_err *err)
{
    static const td_json_field root_fields[] = {
        {.key = "stages", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = 64}};
    static const td_json_field fields[] = {{.key = "asked",
                                            .type = TD_JSON_INT_LIST,
                                            .max = 1ll << 50,
                                            .n_max = TD_LAYERS_MAX * TD_EXPERTS_MAX}};
    static const td_json_schema root_schema = {root_fields, TD_COUNT(root_fields), true};
    static const td_json_schema schema = {fields, TD_COUNT(fields), true};
    td_json_object root;
    size_t n = (size_t)d->h->n_layer * d->n_expert;
    if (!td_json_read_root(doc, &root_schema, &root, err))
        return false;
    for (size_t i = 0; i < td_json_count(&root, "stages"); i++) {
        if (!td_json_read_element(&root, "stages", i, &schema, out, err))
            return false;
        size_t n_there = td_json_count(out, "asked");
        if (n_there && n_there != n)
            return td_json_fail(out, "asked", err, "%zu counts; allowed: %zu, of %u layers",
                                n_there, n, d->h->n_layer);
        if (n_there)
            return true;
    }
    return td_json_fail(&root, "stages", err,
                        "no counts; allowed: of a run that has dealt its experts");
}

static bool deal_by_heat(const dealer *d, td_dealing *out, td_err *err)
{
    td_json_object o;
    td_json *doc = td_json_read_file(d->params->stats, err);
    bool is_ok = doc && find_counts(d, doc, &o, err);
    for (uint32_t i = 0; is_ok && i < out->n_layer; i++)
        deal_layer(d, &o, i, out->seats + (size_t)i * out->n_expert);
    td_json_destroy(&doc);
    return is_ok || td_err_prepend(err, "expert_stats");
}

/* -- what to expect ---------------------------------------------------------------------------- */

/* The ways to ask n_asked experts so that nobody takes longer than us, of all ways: coefficients of
 * the product of a polynomial for each device, whose i-th is the ways to ask i of its own. */
static double share_within(const td_seat_load *loads, uint32_t n, uint32_t n_asked, double us)
{
    double ways[TD_EXPERTS_MAX + 1] = {1}, all = 1;
    uint32_t n_all = 0;
    for (uint32_t k = 0; k < n; k++) {
        double next[TD_EXPERTS_MAX + 1] = {0}, of_own = 1;
        double most = floor((us - loads[k].us_fixed) / loads[k].us_each + 1e-9);
        for (uint32_t i = 0; i <= loads[k].n_experts && i <= n_asked && i <= most; i++) {
            for (uint32_t j = 0; i + j <= n_asked && j <= n_all; j++)
                next[i + j] += of_own * ways[j];
            of_own *= (double)(loads[k].n_experts - i) / (i + 1);
        }
        n_all += loads[k].n_experts;
        memcpy(ways, next, sizeof ways);
    }
    for (uint32_t i = 0; i < n_asked; i++)
        all *= (double)(n_all - i) / (i + 1);
    return ways[n_asked] / all;
}

static double expected_us(const td_seat_load *loads, uint32_t n, uint32_t n_asked)
{
    double times[TD_EXPERTS_MAX + TD_SEATS_MAX], sum;
    uint32_t n_times = 0;
    for (uint32_t k = 0; k < n; k++)
        for (uint32_t i = 0; i <= loads[k].n_experts && i <= n_asked; i++) {
            TD_ASSERT(n_times < TD_COUNT(times) && loads[k].us_each > 0);
            times[n_times++] = loads[k].us_fixed + i * loads[k].us_each;
        }
    td_sort_doubles(times, n_times);
    sum = times[0];
    for (uint32_t i = 0; i + 1 < n_times; i++)
        if (times[i + 1] > times[i])
            sum += (times[i + 1] - times[i]) * (1 - share_within(loads, n, n_asked, times[i]));
    return sum;
}

double td_dealing_expected_us(const td_seat_load *loads, uint32_t n, double n_asked)
{
    uint32_t low = (uint32_t)n_asked;
    double share = n_asked - low, us = expected_us(loads, n, low);
    return share < 1e-6 ? us : us + share * (expected_us(loads, n, low + 1) - us);
}

/* -- dealing ----------------------------------------------------------------------------------- */

static bool choose(dealer *d, char text[TD_PLACE_BYTES], td_err *err)
{
    const char *value = value_of(d->place);
    bool is_auto = !strcmp(value, "auto"), is_list = strpbrk(value, "/-");
    if (strlen(d->place) >= TD_PLACE_BYTES)
        return fail(d, err, "it is too long");
    if (is_list && d->params->stats)
        return fail(d, err, "lists leave nothing to deal by counts");
    if (d->n_expert < d->params->n_seats)
        return fail(d, err, "there are fewer experts than devices");
    bool is_ok = is_auto   ? measure(d, err)
                 : is_list ? read_lists(d, value, err)
                           : read_shares(d, value, err);
    if (!is_ok)
        return false;
    if (is_list) {
        snprintf(text, TD_PLACE_BYTES, "%s", d->place);
    } else {
        write_counts(d, text);
        deal_in_order(d);
    }
    return true;
}

td_dealing *td_dealing_create(const td_model *m, const char *place, const td_dealing_params *params,
                              char text[TD_PLACE_BYTES], td_err *err)
{
    const td_hparams *h = td_model_hparams(m);
    dealer d = {.m = m, .h = h, .place = place, .params = params, .n_expert = h->n_expert};
    TD_ASSERT(params->n_seats <= TD_SEATS_MAX);
    if (!choose(&d, text, err))
        return NULL;
    td_dealing *out = td_alloc(1, sizeof *out, err);
    if (out)
        out->seats = td_alloc((size_t)h->n_layer * h->n_expert, 1, err);
    if (!out || !out->seats) {
        td_dealing_destroy(&out);
        return NULL;
    }
    out->n_seats = params->n_seats;
    out->n_layer = h->n_layer;
    out->n_expert = h->n_expert;
    for (uint32_t i = 0; i < h->n_layer; i++)
        memcpy(out->seats + (size_t)i * h->n_expert, d.seats, h->n_expert);
    if (params->stats && !deal_by_heat(&d, out, err))
        td_dealing_destroy(&out);
    return out;
}

void td_dealing_destroy(td_dealing **dealing)
{
    if (*dealing)
        td_free((*dealing)->seats);
    td_free(*dealing);
    *dealing = NULL;
}
