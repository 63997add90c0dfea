/* Where the layers go by bytes alone: pure arithmetic. By measured speed: speed.h and planner.h.
 * Any thread. */
#ifndef TD_PLANNING_PLACEMENT_H
#define TD_PLANNING_PLACEMENT_H

#include "base/err.h"
#include "kernels/device.h"
#include "model/model.h"

#define TD_PLACE_DEVICES_MAX 16u

#define TD_HOST_NAME_MAX 32u /* bytes with the terminating 0 */

/* A parsed SPEC: "strix2/vulkan:0@8-11" pins layers 8..11 to a device of the machine strix2. */
typedef struct {
    char host[TD_HOST_NAME_MAX]; /* "": this machine */
    char device[128];            /* without host and range */
    bool is_pinned;
    uint32_t first, last;
} td_device_spec;

/* Another machine, with a `tandem stage` there. */
typedef struct {
    char name[TD_HOST_NAME_MAX];
    const char *endpoint; /* "tcp://10.0.0.2:5555,KEY" */
} td_host;

/* "NAME=ENDPOINT"; the endpoint points into the text. */
bool td_host_parse(const char *text, td_host *out, td_err *err);

bool td_device_spec_parse(const char *text, td_device_spec *out, td_err *err);

typedef struct {
    uint64_t budget_bytes; /* what may be used on the device */
    /* Of the budget: the system's memory, taken once the rest is full. All devices that have some
     * draw on the same and take system_bytes of it together, a number they agree on. */
    uint64_t shared_bytes, system_bytes;
    uint64_t fixed_bytes; /* taken whatever the layers: scratch, a draft on the same device */
    uint64_t first_bytes; /* more if it holds layer 0 (embedding) */
    uint64_t last_bytes;  /* more if it holds the last layer (output) */
    const uint64_t *layer_bytes; /* [n_layers] weights and cache */
    bool is_pinned;
    uint32_t first, last; /* in: of a pinned device; out: of every device */
} td_place_device;

/* Of n_bytes on a device, those that are the system's memory. */
static inline uint64_t td_place_system_bytes(const td_place_device *d, uint64_t n_bytes)
{
    uint64_t own = d->budget_bytes - d->shared_bytes;
    return d->shared_bytes && n_bytes > own ? n_bytes - own : 0;
}

/* Cuts layers 0..n_layers-1 into contiguous runs, in the order of the devices. Pinned devices keep
 * their range; the others share what is left so that the fullest (bytes / budget) is as empty as
 * possible, each with at least one layer. Devices that draw on the system's memory count with an
 * even part of it, unless only another division has room for all. TD_E_USAGE: ranges that overlap,
 * leave a gap, are out of order, or too many devices; TD_E_NOMEM: bytes wanted and there. */
bool td_place_layers(td_place_device *devices, uint32_t n_devices, uint32_t n_layers, td_err *err);
/* The same where the rest of the layers is on other machines: all devices are pinned, and there may
 * be gaps. */
bool td_place_some(td_place_device *devices, uint32_t n_devices, uint32_t n_layers, td_err *err);

#endif
