/* Shared by costs.c (what is measured) and costs_file.c (what is kept). Private to planning/. */
#ifndef TD_PLANNING_COSTS_PRIVATE_H
#define TD_PLANNING_COSTS_PRIVATE_H

#include "planning/costs.h"

#define COST_KINDS_MAX 16u
#define COST_KEY_MAX   3072u

typedef struct {
    uint32_t n_kinds;
    uint32_t layers[COST_KINDS_MAX]; /* one of each kind, in the middle where there is one */
    uint64_t hashes[COST_KINDS_MAX]; /* of what makes the kind */
    uint8_t kind_of[TD_LAYERS_MAX];
    uint64_t ends; /* of the tensors that belong to no layer */
} cost_kinds;

/* Before they are spread over the layers. */
typedef struct {
    td_cost pass, first, last, kinds[COST_KINDS_MAX];
} cost_table;

/* TD_E_DATA: more than COST_KINDS_MAX kinds. */
bool td_costs_kinds_find(const td_model *m, cost_kinds *out, td_err *err);

/* All that the figures depend on. */
void td_costs_key_write(const td_costs_params *params, const cost_kinds *kinds,
                        char key[COST_KEY_MAX]);
/* False: nothing there that can be used; told in the log if there is something. */
bool td_costs_file_read(const char *key, uint32_t n_kinds, cost_table *out);
void td_costs_file_write(const char *key, uint32_t n_kinds, const cost_table *table);

#endif
