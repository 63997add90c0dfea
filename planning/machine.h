/* A machine described in a file (tests/machines, docs/planning.md): its devices as drivers and the
 * kernel would tell them, so that what is decided from such facts can be looked at, and tested,
 * without the machine.
 *
 *     td_machine *m = td_machine_open("strix-halo.json", &err);
 *     ... m->devices[0..m->n_devices): the host first, as td_device_list gives them
 *
 * Any thread. Errors: TD_E_IO, TD_E_DATA (file, key, value, the values allowed), TD_E_NOMEM. */
#ifndef TD_PLANNING_MACHINE_H
#define TD_PLANNING_MACHINE_H

#include "kernels/device.h"
#include "planning/hardware.h"

#define TD_MACHINE_EXPECTS_MAX 16u
#define TD_MACHINE_WHY_MAX     1024u

/* What the file says by hand, for tests to hold against what is computed. */
typedef struct {
    bool has_usable;
    double usable_mib;
    char why[TD_MACHINE_WHY_MAX];
} td_machine_expect_device;

typedef struct {
    char model[TD_HARDWARE_NAME_MAX];
    bool fits;
    double missing_mib;                      /* where it does not */
    uint32_t layers[TD_SPEED_DEVICES_MAX];   /* by device of the file; the host last */
    uint32_t n_layers;                       /* entries of layers; 0: not said */
    char draft_device[TD_HARDWARE_NAME_MAX]; /* "": not said */
    char why[TD_MACHINE_WHY_MAX];
} td_machine_expect;

typedef struct {
    char about[TD_HARDWARE_ABOUT_MAX];
    uint32_t n_devices; /* the host included */
    td_device_info devices[TD_DEVICES_MAX];
    double bytes_per_s[TD_DEVICES_MAX], flops_per_s[TD_DEVICES_MAX];
    td_machine_expect_device expect_devices[TD_DEVICES_MAX];
    uint32_t n_expects;
    td_machine_expect expects[TD_MACHINE_EXPECTS_MAX];
} td_machine;

td_machine *td_machine_open(const char *path, td_err *err);
void td_machine_close(td_machine **machine);

#endif
