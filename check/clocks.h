/* How fast a device is set to run, as Linux tells it under /sys (another folder: TD_SYSFS): the
 * performance level and clocks of amdgpu, the link of a PCI device, the governor of a CPU. Only
 * what is there; a hint where the setting costs speed. One thread. */
#ifndef TD_CHECK_CLOCKS_H
#define TD_CHECK_CLOCKS_H

#include "kernels/device.h"

typedef struct {
    /* "" where it is not told */
    char level[32];              /* power_dpm_force_performance_level: "auto", "high", ... */
    char core[32], memory[32];   /* amdgpu's clocks now: "800Mhz" */
    char core_max[32];           /* the highest there is */
    char link[64], link_max[64]; /* "8.0 GT/s PCIe x4" */
    char governor[32];           /* of the first CPU */
    char hint[256];              /* what to change, or "" */
} td_clocks;

void td_clocks_read(const td_device_info *info, td_clocks *out);

#endif
