/* Which chip a device is, and which device a SPEC means: pure functions over lists of
 * td_device_info, as td_device_list or a test makes them.
 *
 * One chip may be listed several times, by several drivers. Devices at one PCI address are one
 * chip; where an address is not told, devices with one UUID are. Software drivers are no chips. Of
 * a chip's devices one is preferred, and only it is chosen where nobody named another. Any
 * thread. */
#ifndef TD_KERNELS_CHIPS_H
#define TD_KERNELS_CHIPS_H

#include "kernels/device.h"

/* "AMD" for 0x1002; "unknown". */
const char *td_chips_vendor(uint32_t vendor_id);

/* "0000:c1:00.0" and "8-4-4-4-12" digits; "" for all zeros, which are nobody's. */
void td_chips_write_pci(uint32_t domain, uint32_t bus, uint32_t device, uint32_t function,
                        char out[TD_PCI_BYTES]);
void td_chips_write_uuid(const uint8_t bytes[16], char out[TD_UUID_BYTES]);

/* Two listed devices are one chip; a device is with itself. */
bool td_chips_is_one(const td_device_info *a, const td_device_info *b);

/* Fills in same_as and id of all of a list. */
void td_chips_mark(td_device_info *infos, uint32_t n);

/* The index in infos of the Vulkan device that `which`, the text behind "vulkan:", means: INDEX,
 * VENDOR, pci:ADDRESS, uuid:ID, or a part of the name; all but INDEX and the name may have :DRIVER
 * behind them. TD_E_USAGE: malformed, none, or several chips; it lists what there is. */
bool td_chips_find(const td_device_info *infos, uint32_t n, const char *which, uint32_t *index,
                   td_err *err);

/* Devices to use when none are named: of each usable GPU the preferred one, discrete ones first.
 * Fills indices[n]; returns how many, 0 where there is only the host or software. */
uint32_t td_chips_default(const td_device_info *infos, uint32_t n, uint32_t *indices);

/* The first of these that is none of the chips in use, or n. */
uint32_t td_chips_idle(const td_device_info *infos, uint32_t n, const td_device_info *used,
                       uint32_t n_used);

#endif
