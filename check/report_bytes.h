/* A report as bytes, from the machine whose device was checked to the one that asked: `tandem check
 * --device NAME/SPEC`. What is read is checked field by field: texts are printable and end, counts
 * and kinds are within what there can be, times are numbers.
 *
 * Both ends are of one version (stage_wire.h). Any thread. TD_E_DATA: what is wrong, and where. */
#ifndef TD_CHECK_REPORT_BYTES_H
#define TD_CHECK_REPORT_BYTES_H

#include "check/check.h"
#include "target/worker.h"

bool td_check_encode(const td_check_report *report, void *bytes, size_t capacity_bytes,
                     size_t *n_bytes, td_err *err);
/* report->host stays as it is. */
bool td_check_decode(const void *bytes, size_t n_bytes, td_check_report *report, td_err *err);

/* Of a hop (speeds.h), microseconds. */
bool td_check_decode_hop(const void *bytes, size_t n_bytes, double *us, td_err *err);

/* What a stage worker's `check` does (target/worker.h). */
bool td_check_serve(const td_stage_trial *trial, void *bytes, size_t capacity_bytes,
                    size_t *n_bytes, td_err *err);

#endif
