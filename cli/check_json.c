/* The JSON of `tandem check`; docs/cli.md says what is in it. */
#include "cli/check.h"

#include "base/check.h"

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

static void write_device(td_json_writer *w, const td_check_report *r)
{
    const td_check_item *failed = td_check_find_failed(r);
    td_json_begin_object(w);
    td_json_put_string(w, "device", r->info.spec);
    td_json_put_string(w, "name", r->info.name);
    td_json_put_string(w, "driver", r->info.driver);
    td_json_put_bool(w, "trusted", !failed);
    td_json_put_string(w, "failed", failed ? failed->name : NULL);
    td_json_put_bool(w, "small_shapes", r->is_small);
    write_items(w, "ops", r->ops, r->n_ops);
    write_items(w, "parts", r->parts, r->n_parts);
    td_json_end_object(w);
}

void td_check_write(td_json_writer *w, const td_check_report *reports, uint32_t n)
{
    td_json_begin_object(w);
    td_json_put_string(w, "program", "tandem " TD_VERSION);
    td_json_write_key(w, "devices");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++)
        write_device(w, &reports[i]);
    td_json_end_array(w);
    td_json_end_object(w);
}
