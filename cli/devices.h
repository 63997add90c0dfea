/* What a device is, for people and for programs: shared by `tandem devices` and `tandem check`. */
#ifndef TD_CLI_DEVICES_H
#define TD_CLI_DEVICES_H

#include "base/json_writer.h"
#include "kernels/device.h"

/* preferred: the device that d->same_as means, or NULL. */
void td_devices_print(const td_device_info *d, const td_device_info *preferred);
/* Puts the keys of a device into an object that is open. */
void td_devices_write(td_json_writer *w, const td_device_info *d);

#endif
