/* tandem plan --hardware: what machines that are not here would do with the models of a file. */
#include "cli/plan.h"

#include "base/json_writer.h"
#include "planning/hardware_mixture.h"

#include <stdio.h>

#define PLACES_MAX 1024u /* bytes of a placement's text */

static void write_places(const td_hardware *h, const td_speed_row *r, char *out, size_t n_bytes)
{
    size_t n = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < r->n_stages && n < n_bytes; i++)
        n += (size_t)snprintf(out + n, n_bytes - n, "%s%s %u", i ? " + " : "",
                              h->devices[r->stages[i].device].name,
                              r->stages[i].last - r->stages[i].first + 1);
}

static void print_model(const td_hardware *h, const td_hardware_model *m,
                        const td_hardware_outlook *o)
{
    char places[PLACES_MAX];
    if (!o->fits) {
        printf("%-26s does not fit\n", m->name);
        return;
    }
    write_places(h, &o->stream, places, sizeof places);
    printf("%-26s %7.1f %8.1f (%u) %10.1f %9.1f  %s\n", m->name, o->stream.decode_per_s,
           o->drafted.decode_per_s, o->drafted.k, o->batch.decode_per_s, o->batch.prefill_per_s,
           places);
}

static void write_row(td_json_writer *w, const td_hardware *h, const char *key,
                      const td_speed_row *r)
{
    td_json_write_key(w, key);
    td_json_begin_object(w);
    td_json_put_double(w, "decode_per_second", r->decode_per_s);
    td_json_put_double(w, "prefill_per_second", r->prefill_per_s);
    td_json_put_u64(w, "draft_tokens", r->k);
    td_json_write_key(w, "placement");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < r->n_stages; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "device", h->devices[r->stages[i].device].name);
        td_json_put_u64(w, "first_layer", r->stages[i].first);
        td_json_put_u64(w, "last_layer", r->stages[i].last);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

/* "RTX 3090 40 + Radeon 8060S 216" */
static void write_dealt(const td_hardware *h, const td_hardware_way *way, char *out, size_t n_bytes)
{
    size_t n = (size_t)snprintf(out, n_bytes, "layers on %s, experts", h->devices[way->first].name);
    for (uint32_t i = 0, k = 0; i < h->n_devices && n < n_bytes; i++)
        if (way->counts[i])
            n += (size_t)snprintf(out + n, n_bytes - n, "%s %s %u", k++ ? " +" : "",
                                  h->devices[i].name, way->counts[i]);
}

static bool print_ways(const td_hardware *h, td_err *err)
{
    bool is_first = true;
    for (uint32_t i = 0; i < h->n_models; i++) {
        const td_hardware_model *m = &h->models[i];
        td_hardware_outlook o;
        td_hardware_way ways[TD_MIXTURE_WAYS];
        char places[PLACES_MAX];
        if (!td_hardware_has_ways(h, m))
            continue;
        if (!td_hardware_look(h, m, &o, err))
            return false;
        td_hardware_compare(h, m, &o, ways);
        if (!ways[TD_MIXTURE_DEALT].fits[TD_FOR_STREAM])
            continue;
        if (is_first)
            printf("Mixtures, tokens/s of a stream and of %u: layers split, experts dealt, experts "
                   "apart; and how they are dealt:\n",
                   TD_HARDWARE_SEQUENCES);
        is_first = false;
        printf("%-26s", m->name);
        for (uint32_t k = 0; k < TD_MIXTURE_WAYS; k++)
            for (td_use use = TD_FOR_STREAM; use <= TD_FOR_BATCH; use++)
                if (ways[k].fits[use])
                    printf(" %6.1f", ways[k].decode_per_s[use]);
                else
                    printf(" %6s", "-");
        write_dealt(h, &ways[TD_MIXTURE_DEALT], places, sizeof places);
        printf("  %s\n", places);
    }
    return true;
}

static void write_ways(td_json_writer *w, const td_hardware *h, const td_hardware_model *m,
                       const td_hardware_outlook *o)
{
    td_hardware_way ways[TD_MIXTURE_WAYS];
    td_hardware_compare(h, m, o, ways);
    td_json_write_key(w, "experts");
    td_json_begin_array(w);
    for (uint32_t k = 0; k < TD_MIXTURE_WAYS; k++) {
        const td_hardware_way *way = &ways[k];
        td_json_begin_object(w);
        td_json_put_string(w, "name", td_mixture_names[k]);
        td_json_put_bool(w, "fits", way->fits[TD_FOR_STREAM]);
        td_json_put_double(w, "stream_tokens_per_second", way->decode_per_s[TD_FOR_STREAM]);
        td_json_put_double(w, "batch_tokens_per_second", way->decode_per_s[TD_FOR_BATCH]);
        td_json_write_key(w, "experts");
        td_json_begin_array(w);
        for (uint32_t i = 0; i < h->n_devices && k != TD_MIXTURE_LAYERS; i++)
            td_json_write_u64(w, way->counts[i]);
        td_json_end_array(w);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_model(td_json_writer *w, const td_hardware *h, const td_hardware_model *m,
                        const td_hardware_outlook *o)
{
    td_json_begin_object(w);
    td_json_put_string(w, "model", m->name);
    td_json_put_bool(w, "fits", o->fits);
    if (o->fits) {
        write_row(w, h, "stream", &o->stream);
        write_row(w, h, "drafted", &o->drafted);
        write_row(w, h, "batch", &o->batch);
    }
    if (td_hardware_has_ways(h, m))
        write_ways(w, h, m, o);
    td_json_end_object(w);
}

bool td_plan_hardware(const char *path, bool is_json, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_hardware *h = td_hardware_open(path, err);
    td_json_writer *w = h && is_json ? td_json_writer_create(true, err) : NULL;
    bool is_ok = h && (w || !is_json);
    if (is_ok && !w)
        printf(
            "%s\nPredicted tokens/s: of a stream; with drafts of (k) tokens by %s, acceptance %.1f;"
            " of\n%u streams; of prompts; and the layers of each device (one stream):\n%-26s %7s "
            "%12s %10s %9s\n",
            h->about, h->draft->name, TD_SPEED_ACCEPTANCE, TD_HARDWARE_SEQUENCES, "model", "stream",
            "with draft", "batch of 8", "prefill");
    if (w)
        td_json_begin_array(w);
    for (uint32_t i = 0; is_ok && i < h->n_models; i++) {
        td_hardware_outlook o;
        is_ok = td_hardware_look(h, &h->models[i], &o, err);
        if (is_ok && w)
            write_model(w, h, &h->models[i], &o);
        else if (is_ok)
            print_model(h, &h->models[i], &o);
    }
    if (is_ok && !w)
        is_ok = print_ways(h, err) && td_plan_links(h, path, err);
    if (w)
        td_json_end_array(w);
    if (w && is_ok && (is_ok = td_json_writer_end(w, &text, &n_bytes, err)))
        printf("%s\n", text);
    td_json_writer_destroy(&w);
    td_hardware_close(&h);
    return is_ok;
}
