/* How fast a device is, in what a run of a model is made of: reading weights, handing work over,
 * verifying n rows together, a prompt's rows, passing a row on to another device. On the clock, so
 * no part of a verdict. Each takes a second or less. One thread. */
#ifndef TD_CHECK_SPEEDS_H
#define TD_CHECK_SPEEDS_H

#include "kernels/device.h"

#define TD_SPEED_WIDTHS   7u
#define TD_SPEED_PRODUCTS 2u
extern const uint32_t td_speed_widths[TD_SPEED_WIDTHS]; /* rows of a verification: 1 .. 64 */

typedef struct { /* of one matrix */
    const char *type;
    uint32_t n_rows, n_cols;
    double ms[TD_SPEED_WIDTHS]; /* of so many rows; c(n) is ms[n] / ms[1] */
    double prefill_macs_per_s;  /* multiply-adds a second, chunks of TD_PREFILL_ROWS_MAX rows */
} td_speed_product;

typedef struct {
    double bandwidth_bytes_per_s; /* 0: could not be measured */
    double submit_us;             /* a program of one small op, waited for; the median */
    double step_us;               /* one more such program in the same submission */
    td_speed_product products[TD_SPEED_PRODUCTS];
} td_speeds;

/* is_small: a smaller matrix. False with err set where the device fails. */
bool td_speeds_measure(const char *spec, bool is_small, td_speeds *out, td_err *err);

/* From a row on one device to its result on the next: run on `from`, copied by the host, run on
 * `to`; microseconds, the median. */
bool td_speeds_hop(const char *from, const char *to, double *us, td_err *err);

#endif
