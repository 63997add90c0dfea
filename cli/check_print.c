/* The page of `tandem check`: what each device is, what was tried and found, how fast it is. */
#include "cli/check.h"
#include "cli/devices.h"

#include "base/check.h"

#include <stdio.h>

static const char *const states[] = {"ok", "FAILED", "not judged"};

static void print_item(const td_check_item *item)
{
    printf("  %-18s %-10s", item->name, states[item->state]);
    printf(" %3u %s %5.1f s", item->n_cases, item->n_cases == 1 ? "case, " : "cases,",
           item->seconds);
    if (item->n_repeats)
        printf(", %u repeats", item->n_repeats);
    if (item->worst > 0)
        printf(", at most %.0f %% of the tolerance", 100 * item->worst);
    if (item->n_skipped)
        printf(", %u left out for time", item->n_skipped);
    putchar('\n');
    if (item->state != TD_CHECK_PASSED)
        printf("    %s\n", item->reason);
}

static void print_clocks(const td_clocks *c)
{
    if (c->governor[0])
        printf("  governor %s\n", c->governor);
    if (c->level[0])
        printf("  performance level %s", c->level);
    if (c->core[0])
        printf(", core at %s of %s", c->core, c->core_max);
    if (c->memory[0])
        printf(", memory at %s", c->memory);
    if (c->level[0] || c->core[0])
        putchar('\n');
    if (c->link[0])
        printf("  link %s of %s\n", c->link, c->link_max[0] ? c->link_max : "?");
    if (c->hint[0])
        printf("  hint: %s\n", c->hint);
}

static void print_speeds(const td_speeds *s)
{
    printf("  reads %.1f GB/s; a submission and its fence %.1f us, one more small program in it "
           "%.1f us\n",
           s->bandwidth_bytes_per_s * 1e-9, s->submit_us, s->step_us);
    for (uint32_t i = 0; i < TD_SPEED_PRODUCTS; i++) {
        const td_speed_product *p = &s->products[i];
        printf("  %s %ux%u: one row %.3f ms; c(n)", p->type, p->n_rows, p->n_cols, p->ms[0]);
        for (uint32_t k = 1; k < TD_SPEED_WIDTHS && p->ms[0] > 0; k++)
            printf("%s %u: %.2f", k > 1 ? "," : "", td_speed_widths[k], p->ms[k] / p->ms[0]);
        printf("; prompts %.1f G multiply-adds/s\n", p->prefill_macs_per_s * 1e-9);
    }
}

void td_check_print(const td_check_report *r)
{
    printf("%s%s", r->host, r->host[0] ? "/" : "");
    td_devices_print(&r->info, NULL);
    print_clocks(&r->clocks);
    if (r->is_small)
        printf("  shapes are cut to a quarter and those of real models left out%s\n",
               r->info.kind == TD_DEVICE_SOFTWARE ? ": a software driver is slow" : "");
    for (uint32_t i = 0; i < r->n_ops; i++)
        print_item(&r->ops[i]);
    for (uint32_t i = 0; i < r->n_parts; i++)
        print_item(&r->parts[i]);
    if (r->has_speeds)
        print_speeds(&r->speeds);
    const td_check_item *failed = td_check_find_failed(r);
    if (failed)
        printf("  NOT to be trusted: %s\n", failed->name);
    else
        printf("  nothing wrong was found\n");
    fflush(stdout); /* the next device takes its time */
}

void td_check_print_hops(const td_check_hop *hops, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        printf("a row from %s to %s: %.1f us\n", hops[i].from, hops[i].to, hops[i].us);
}
