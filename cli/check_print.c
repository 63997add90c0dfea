/* The page of `tandem check`. */
#include "cli/check.h"

#include "base/check.h"

#include <stdio.h>

static const char *const states[] = {"ok", "FAILED", "not judged"};

static void print_item(const td_check_item *item)
{
    printf("  %-12s %-10s", item->name, states[item->state]);
    if (item->n_cases)
        printf(" %3u cases, %.1f s", item->n_cases, item->seconds);
    if (item->n_repeats)
        printf(", %u repeats", item->n_repeats);
    if (item->worst > 0)
        printf(", at most %.0f %% of the tolerance", 100 * item->worst);
    if (item->n_skipped)
        printf(", %u large ones left out for time", item->n_skipped);
    putchar('\n');
    if (item->state != TD_CHECK_PASSED)
        printf("    %s\n", item->reason);
}

void td_check_print(const td_check_report *r)
{
    printf("%s: %s, driver %s\n", r->info.spec, r->info.name, r->info.driver);
    if (r->is_small)
        printf("  shapes are cut to a quarter and those of real models left out%s\n",
               r->info.kind == TD_DEVICE_SOFTWARE ? ": a software driver is slow" : "");
    for (uint32_t i = 0; i < r->n_ops; i++)
        print_item(&r->ops[i]);
    for (uint32_t i = 0; i < r->n_parts; i++)
        print_item(&r->parts[i]);
    const td_check_item *failed = td_check_find_failed(r);
    if (failed)
        printf("  not to be trusted: %s\n", failed->name);
    else
        printf("  nothing wrong was found\n");
}
