/* The three ways to lay a mixture of experts over the devices of one machine (mixture.h), for
 * machines that are not here (hardware.h).
 *
 * With experts dealt or apart a layer takes what is not its experts' on the first device, then the
 * expected time of the device that is done last (td_dealing_expected_us). Another device is a round
 * trip away; a row's input goes there and its output comes back once for each expert it asks, in
 * f32. A device pays the overhead of a layer with experts over that of one without for its own. As
 * `--place experts=auto` deals, by bandwidth within the memory; the first device is the one with
 * which a stream is fastest.
 *
 * Pure arithmetic; any thread. */
#ifndef TD_PLANNING_HARDWARE_MIXTURE_H
#define TD_PLANNING_HARDWARE_MIXTURE_H

#include "planning/hardware.h"
#include "planning/mixture.h"

typedef struct {
    bool fits[2];           /* by td_use; if not: nothing else is said */
    double decode_per_s[2]; /* of a stream, of TD_HARDWARE_SEQUENCES */
    /* Of a stream, but for layers split: the layers' device, each one's experts of a layer. */
    uint32_t first, counts[TD_SPEED_DEVICES_MAX];
} td_hardware_way;

/* Microseconds of n_rows rows of all layers and the output, with counts[i] of each layer's experts
 * on device i, those of n_devices in all; no more than TD_SEATS_MAX have any. */
double td_hardware_dealt_us(const td_hardware *h, const td_hardware_model *m, uint32_t first,
                            const uint32_t *counts, double n_rows);

/* Whether there are several ways: a model with experts, 2..TD_SEATS_MAX devices in one machine. */
bool td_hardware_has_ways(const td_hardware *h, const td_hardware_model *m);

/* Of such a model, whose outlook is given. */
void td_hardware_compare(const td_hardware *h, const td_hardware_model *m,
                         const td_hardware_outlook *outlook, td_hardware_way ways[TD_MIXTURE_WAYS]);

#endif
