/* What `tandem check` found, for people and for programs (cli/check_print.c, cli/check_json.c). */
#ifndef TD_CLI_CHECK_H
#define TD_CLI_CHECK_H

#include "base/json_writer.h"
#include "check/check.h"

typedef struct { /* between two of the devices: speeds.h */
    const char *from, *to;
    double us;
} td_check_hop;

void td_check_print(const td_check_report *report);
void td_check_print_hops(const td_check_hop *hops, uint32_t n);
/* One object for all devices. */
void td_check_write(td_json_writer *w, const td_check_report *reports, uint32_t n,
                    const td_check_hop *hops, uint32_t n_hops);

#endif
