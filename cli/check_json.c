/* The JSON of `tandem check`; docs/cli.md says what is in it. */
#include "cli/check.h"
#include "cli/devices.h"

#include "base/check.h"

#include <stdio.h>

static const char *const states[] = {"passed", "failed", "unjudged"};

static void write_items(td_json_writer *w, const char *key, const td_check_item *items, uint32_t n)
{
    td_json_write_key(w, key);
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "name", items[i].name);
        td_json_put_string(w, "state", states[items[i].state]);
        td_json_put_string(w, "reason", items[i].reason[0] ? items[i].reason : NULL);
        td_json_put_u64(w, "cases", items[i].n_cases);
        td_json_put_u64(w, "left_out", items[i].n_skipped);
        td_json_put_u64(w, "repeats", items[i].n_repeats);
        td_json_put_double(w, "tolerance_used", items[i].worst);
        td_json_put_double(w, "seconds", items[i].seconds);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void put_text(td_json_writer *w, const char *key, const char *text)
{
    td_json_put_string(w, key, text[0] ? text : NULL);
}

static void write_clocks(td_json_writer *w, const td_clocks *c)
{
    td_json_write_key(w, "clocks");
    td_json_begin_object(w);
    put_text(w, "performance_level", c->level);
    put_text(w, "core", c->core);
    put_text(w, "core_max", c->core_max);
    put_text(w, "memory", c->memory);
    put_text(w, "link", c->link);
    put_text(w, "link_max", c->link_max);
    put_text(w, "governor", c->governor);
    put_text(w, "hint", c->hint);
    td_json_end_object(w);
}

static void write_speeds(td_json_writer *w, const td_speeds *s)
{
    td_json_begin_object(w);
    td_json_put_double(w, "bandwidth_bytes_per_s", s->bandwidth_bytes_per_s);
    td_json_put_double(w, "submit_us", s->submit_us);
    td_json_put_double(w, "step_us", s->step_us);
    td_json_write_key(w, "products");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < TD_SPEED_PRODUCTS; i++) {
        const td_speed_product *p = &s->products[i];
        td_json_begin_object(w);
        td_json_put_string(w, "type", p->type);
        td_json_put_u64(w, "rows", p->n_rows);
        td_json_put_u64(w, "cols", p->n_cols);
        td_json_write_key(w, "verify");
        td_json_begin_object(w);
        for (uint32_t k = 0; k < TD_SPEED_WIDTHS; k++) {
            char width[16];
            snprintf(width, sizeof width, "%u", td_speed_widths[k]);
            td_json_write_key(w, width);
            td_json_begin_object(w);
            td_json_put_double(w, "ms", p->ms[k]);
            td_json_put_double(w, "c", p->ms[0] > 0 ? p->ms[k] / p->ms[0] : 0);
            td_json_end_object(w);
        }
        td_json_end_object(w);
        td_json_put_double(w, "prefill_macs_per_s", p->prefill_macs_per_s);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}

static void write_device(td_json_writer *w, const td_check_report *r)
{
    const td_check_item *failed = td_check_find_failed(r);
    td_json_begin_object(w);
    put_text(w, "host", r->host);
    td_devices_write(w, &r->info);
    write_clocks(w, &r->clocks);
    td_json_put_bool(w, "trusted", !failed);
    td_json_put_string(w, "failed", failed ? failed->name : NULL);
    td_json_put_bool(w, "small_shapes", r->is_small);
    write_items(w, "ops", r->ops, r->n_ops);
    write_items(w, "parts", r->parts, r->n_parts);
    td_json_write_key(w, "speeds");
    if (r->has_speeds)
        write_speeds(w, &r->speeds);
    else
        td_json_write_null(w);
    td_json_end_object(w);
}

void td_check_write(td_json_writer *w, const td_check_report *reports, uint32_t n,
                    const td_check_hop *hops, uint32_t n_hops)
{
    td_json_begin_object(w);
    td_json_put_string(w, "program", "tandem " TD_VERSION);
    td_json_write_key(w, "devices");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++)
        write_device(w, &reports[i]);
    td_json_end_array(w);
    td_json_write_key(w, "hops");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n_hops; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "from", hops[i].from);
        td_json_put_string(w, "to", hops[i].to);
        td_json_put_double(w, "us", hops[i].us);
        td_json_end_object(w);
    }
    td_json_end_array(w);
    td_json_end_object(w);
}
