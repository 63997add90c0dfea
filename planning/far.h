/* Devices on other machines, and the links to them, as whoever can reach them has them measured:
 * the planner asks (planner.h), target/remote_measure.h answers. Immutable once filled in. */
#ifndef TD_PLANNING_FAR_H
#define TD_PLANNING_FAR_H

#include "planning/costs.h"
#include "planning/placement.h"

/* One device with one model. */
typedef struct {
    td_device_info info; /* as far as its machine tells */
    uint32_t n_cpus;     /* that its machine lets the worker use */
    bool is_known;       /* costs are */
    td_costs costs;
    td_place_device place; /* of layers nowhere yet */
    uint64_t *layer_bytes; /* what place points to */
} td_far_device;

void td_far_device_free(td_far_device *device);

/* Of one machine, from here. */
typedef struct {
    char host[TD_HOST_NAME_MAX];
    double idle_us;                             /* a round trip of few bytes, */
    double loaded_us;                           /* and of one behind as many as the link takes */
    double there_bytes_per_s, back_bytes_per_s; /* while nothing goes the other way */
} td_far_link;

/* From one of them to another, as a stream goes there. */
typedef struct {
    char from[TD_HOST_NAME_MAX], to[TD_HOST_NAME_MAX];
    double idle_us, loaded_us, bytes_per_s;
} td_far_hop;

typedef struct {
    /* spec: "strix2/vulkan:0". False with *err: it is not there; else what is there, for n_ctx
     * positions of n_slots sequences. */
    bool (*look)(void *user, const char *spec, const td_model *model, uint32_t n_ctx,
                 td_measure measure, td_far_device *out, td_err *err);
    bool (*link)(void *user, const char *host, td_far_link *out, td_err *err);
    /* TD_E_UNAVAILABLE: the one cannot reach the other. */
    bool (*hop)(void *user, const char *from, const char *to, td_far_hop *out, td_err *err);
    void *user;
} td_far;

#endif
