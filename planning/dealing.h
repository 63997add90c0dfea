/* How experts are dealt over devices: what --place says of it, or as is fastest by what the devices
 * read of their memory in a second. Errors: TD_E_USAGE, TD_E_NOMEM, those of measuring,
 * TD_E_DATA and TD_E_IO of a file of counts. */
#ifndef TD_PLANNING_DEALING_H
#define TD_PLANNING_DEALING_H

#include "model/model.h"

#define TD_PLACE_BYTES 512u

/* "experts=SPEC": the SPEC. NULL: it is none such, or of dealt experts. */
const char *td_place_experts(const char *place);
/* "experts=auto", "experts=60,40" (shares) or "experts=0-3,8/4-7" (lists), one for each device. */
bool td_place_is_dealt(const char *place);

typedef struct {
    const char *const *specs; /* [n_seats], for messages */
    td_device *const *devs;
    uint32_t n_seats;
    /* File of counts by layer and expert (`asked` of generate's --stats): not the first experts go
     * to the first device, but those by which each has its share of the work, the hottest to the
     * fastest. NULL: none; not with lists. */
    const char *stats;
} td_dealing_params;

/* text: what deals them the same without measuring, "experts=20,12". */
td_dealing *td_dealing_create(const td_model *model, const char *place,
                              const td_dealing_params *params, char text[TD_PLACE_BYTES],
                              td_err *err);
void td_dealing_destroy(td_dealing **dealing);

/* How many of n_expert experts each of n devices gets, one at least and no more than most, so that
 * all are done at the same time, rates[i] being what each reads of them in a while; the first one
 * reads `shared` beside, in experts, and a row asks n_used. work: shares of rows, 0..1, were there
 * room. */
void td_dealing_share(const double *rates, const double *most, uint32_t n, uint32_t n_expert,
                      uint32_t n_used, double shared, uint32_t *counts, double *work);

/* A device's part of a layer: experts, the time of one that is asked, and what it takes anyhow. */
typedef struct {
    uint32_t n_experts;
    double us_each, us_fixed;
} td_seat_load;

/* Expected microseconds of the device that is done last, where n_asked of all experts are asked,
 * any so many as likely as any others; linear between whole numbers. n <= TD_SEATS_MAX; n_asked <=
 * all. */
double td_dealing_expected_us(const td_seat_load *loads, uint32_t n, double n_asked);

#endif
