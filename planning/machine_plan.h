/* Where the layers of a model would go on a machine that is described and not here (machine.h).
 * What devices hold is what capacity.h says of them; speeds are those of hardware.h, from figures
 * of their makers.
 *
 *     td_machine_plan *p = td_machine_plan_create(m, "configs/hardware/models.json", &err);
 *     td_machine_plan_model(p, &p->hardware->models[i], &outlook, &err);
 *
 * Owns nothing of the machine. Any thread. Errors as hardware.h. */
#ifndef TD_PLANNING_MACHINE_PLAN_H
#define TD_PLANNING_MACHINE_PLAN_H

#include "planning/machine.h"

#define TD_MACHINE_DRAFT "Qwen3.5-0.8B Q8_0" /* of the models, where no other draft is named */

typedef struct {
    const td_machine *machine;
    td_hardware *hardware; /* its devices: the GPUs that are used when none are named, discrete ones
                            * first, and the host; hardware->n_devices may leave out the host */
    uint32_t indices[TD_SPEED_DEVICES_MAX]; /* of machine->devices */
    uint32_t n_gpus;
} td_machine_plan;

typedef struct {
    td_hardware_outlook outlook;
    bool needs_host;                  /* what the GPUs hold is not enough */
    double wanted_bytes, there_bytes; /* of all devices together, the host among them */
} td_machine_outlook;

td_machine_plan *td_machine_plan_create(const td_machine *m, const char *models_path, td_err *err);
void td_machine_plan_destroy(td_machine_plan **plan);

/* The draft that plan->hardware->draft names is the one looked at. */
bool td_machine_plan_model(td_machine_plan *plan, const td_hardware_model *model,
                           td_machine_outlook *out, td_err *err);

/* A file's model in the same terms. */
void td_machine_plan_describe(const td_model *model, td_hardware_model *out);

#endif
