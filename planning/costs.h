/* What the layers of a model cost on a device, by kind of layer and number of rows.
 *
 * Layers of a kind (attention full, local or recurrent; dense or experts; shapes and types of its
 * weights) cost the same, so one of each kind is loaded and timed, and so are the first with the
 * embedding, the last with the output, and a few in a row, which shows what a run costs whatever
 * its layers. It takes five to ten seconds a device, and the loading of some layers; the figures
 * are kept on disk (td_io_cache_path) by device, driver, threads, version, shapes and types. A
 * file there that is torn or hostile is passed over with a warning.
 *
 * Rows are timed behind TD_PREFILL_ROWS_MAX positions of context, with weights that are not in the
 * CPU's caches unless the whole model fits there. Experts are asked by random rows, so a few more
 * of them than of a real text.
 *
 * Owns layers[]. One thread at a time; td_costs_find runs the device in a thread of its own.
 * Errors: as td_forward_create and td_forward_run. */
#ifndef TD_PLANNING_COSTS_H
#define TD_PLANNING_COSTS_H

#include "base/err.h"
#include "model/cache_types.h"
#include "model/model.h"

/* Rows of a prompt's chunk where all layers are on the host: a short chunk costs no more there,
 * lets stages overlap and is shared more often. With a GPU in the chain: TD_PREFILL_ROWS_MAX. */
#define TD_HOST_CHUNK_ROWS 64u

#define TD_COST_WIDTHS 8u
extern const uint32_t td_cost_widths[TD_COST_WIDTHS]; /* 1, 2, 4, 8, 9, 16, 32, 64 rows */

typedef struct {
    double verify_us[TD_COST_WIDTHS];
    double chunk_us;   /* of a prompt's chunk of TD_HOST_CHUNK_ROWS rows */
    double prefill_us; /* of one of TD_PREFILL_ROWS_MAX */
} td_cost;

typedef struct {
    td_cost pass;        /* a run, whatever its layers; the hand-over's copies included */
    td_cost first, last; /* more with the embedding; with the output and the choice of tokens */
    uint32_t n_layers;
    td_cost *layers; /* [n_layers] */
} td_costs;

typedef enum { TD_MEASURE_NEVER, TD_MEASURE_MISSING, TD_MEASURE_AGAIN } td_measure;

typedef struct {
    const td_model *model;
    td_device *dev, *experts_dev; /* experts_dev: NULL: dev */
    const char *spec;             /* of dev: threads and CPUs */
    td_cache_types kv;
    td_measure measure; /* what to do when nothing is on disk; AGAIN: whatever is there */
} td_costs_params;

/* *is_known false: nothing on disk and NEVER. The caller frees *out either way. */
bool td_costs_find(const td_costs_params *params, td_costs *out, bool *is_known, td_err *err);
void td_costs_free(td_costs *costs);
/* Marks, of [n_layer], the layers that are loaded to measure all. TD_E_DATA: too many kinds. */
bool td_costs_mark_layers(const td_model *m, bool *wanted, td_err *err);

/* Microseconds of a run of n_rows rows; between the widths it is linear, above the last one there
 * are several runs. */
double td_cost_rows(const td_cost *cost, double n_rows);
/* Of layers first..last as one part of the model. */
td_cost td_costs_part(const td_costs *costs, uint32_t first, uint32_t last);

/* Microseconds from one stage's thread to the next one's, through a queue between them. */
bool td_costs_measure_hop(double *us, td_err *err);

#endif
