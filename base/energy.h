/* The energy the system says its devices took: RAPL (powercap) for the CPU's packages and memory,
 * hwmon for GPUs (amdgpu, i915, xe, nouveau): their energy counter, or, where they show power only,
 * its sum over time, sampled by a thread.
 *
 *     td_energy *e = td_energy_open(NULL, &err);
 *     double before[TD_ENERGY_SOURCES_MAX], after[TD_ENERGY_SOURCES_MAX];
 *     td_energy_read(e, before); work(); td_energy_read(e, after);
 *
 * A system that shows nothing, or not to this user, has no sources; that is no error. Counters step
 * about every millisecond and power about every 100 ms: shorter spans mean little. What other
 * programs take is counted too. One thread at a time. Errors: TD_E_NOMEM. */
#ifndef TD_BASE_ENERGY_H
#define TD_BASE_ENERGY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_ENERGY_SOURCES_MAX 16u

typedef struct td_energy td_energy;

typedef struct {
    char name[96]; /* "package-0", "dram-0", "amdgpu 0000:03:00.0" */
    bool is_gpu;
} td_energy_source;

/* root: where sysfs is; NULL: $TD_SYSFS, else "/sys". */
td_energy *td_energy_open(const char *root, td_err *err);
void td_energy_close(td_energy **e);
/* 0 of NULL, too: nobody asked. */
uint32_t td_energy_count(const td_energy *e);
const td_energy_source *td_energy_source_at(const td_energy *e, uint32_t i);
/* Joules of every source since open; NaN from when it could no longer be
 * read. NULL: does nothing. */
void td_energy_read(td_energy *e, double joules[TD_ENERGY_SOURCES_MAX]);

#endif
