/* What a stage worker finds of a device and a model, as the bytes of a REPORT: how long layers take
 * there (costs.h), what they take of its memory, and what is there. Private to target/. Any thread;
 * run: one, which it keeps busy for some seconds. */
#ifndef TD_TARGET_MEASURED_H
#define TD_TARGET_MEASURED_H

#include "planning/far.h"
#include "transport/stage_wire.h"

/* The worker: opens the device and measures by the plan. Errors of layout.h, costs.h. */
bool td_measured_run(const td_stage_plan *plan, const td_model *model, const char *spec,
                     void *bytes, size_t capacity_bytes, size_t *n_bytes, td_err *err);
/* The coordinator: all but info; to be freed in either case. TD_E_DATA. */
bool td_measured_decode(const void *bytes, size_t n_bytes, uint32_t n_layers, td_far_device *out,
                        td_err *err);

#endif
