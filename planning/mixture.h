/* Three ways to lay a mixture of experts over devices of this machine, compared for a stream and
 * for a batch, without a draft: layers split, as td_plan_choose would; the experts of every layer
 * dealt over the devices (dealing.h); all layers on one device and their experts on another.
 *
 * What a layer with dealt experts takes is made of the times of whole layers on each device
 * (costs.h): what of it is the experts' goes by bytes, as many experts being read as rows ask of
 * uniform routers. The rest stays on the first device. The device that is done last is waited for
 * (td_dealing_expected_us), a hop there and one back; a GPU pays a pass for every program it is
 * given, the first one also for stopping where the experts begin. Devices that take turns
 * (td_plan_is_one_unit) add up.
 *
 * What cannot be predicted says why. Owns nothing that lasts. One thread. */
#ifndef TD_PLANNING_MIXTURE_H
#define TD_PLANNING_MIXTURE_H

#include "planning/planner.h"

typedef enum {
    TD_MIXTURE_LAYERS,
    TD_MIXTURE_DEALT,
    TD_MIXTURE_APART,
    TD_MIXTURE_WAYS
} td_mixture_way;

typedef struct {
    char flags[2 * TD_PLAN_SPEC_MAX + 32]; /* what to give generate; "": the devices, no --place */
    char dealt[TD_PLACE_BYTES];       /* "experts=20,12", as flags would deal them now; or "" */
    char why_not[TD_ERR_MESSAGE_MAX]; /* "" where it is predicted */
    double tokens_per_s[2];           /* by td_use, prompts read and tokens generated */
} td_mixture_row;

typedef struct {
    uint32_t n_sequences; /* of the batch */
    td_mixture_row rows[TD_MIXTURE_WAYS];
} td_mixture;

extern const char *const td_mixture_names[TD_MIXTURE_WAYS];

/* Of a model with experts, without a place. Layers on each device are measured already; with the
 * experts on another device they are now, if params say so. */
void td_mixture_compare(const td_plan_params *params, td_mixture *out);

/* The way to take: the fastest; layers split where that is as fast within TD_SPEED_ERROR.
 * TD_MIXTURE_WAYS: none is predicted. */
td_mixture_way td_mixture_choose(const td_mixture_row rows[TD_MIXTURE_WAYS], td_use use);

#endif
