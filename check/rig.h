/* A rig: one op on one device, with its inputs and outputs, ready to run for any rows of its data.
 * A case (cases.h) builds one on the device under test and one on the scalar device; trial.h puts
 * them through their paces.
 *
 * Inputs and outputs are views whose rows belong to rows of the data: a run of n rows places n rows
 * of data anywhere, and what comes out of a row must not depend on where it stood.
 *
 * Owns all its objects. What fails while it is built is kept in err, and is_ok turns false: makers
 * then return NULL, so a case makes everything first, looks at is_ok, and records its ops after.
 * One thread. */
#ifndef TD_CHECK_RIG_H
#define TD_CHECK_RIG_H

#include "base/mem.h"
#include "kernels/ops.h"

#define TD_RIG_VIEWS_MAX   6u
#define TD_RIG_OBJECTS_MAX 24u
#define TD_RIG_PERIOD      67u /* rows of a weight differ so far, then repeat */

typedef struct {
    td_view view;
    const uint32_t *values; /* [n_data][view.n_cols] words: floats or integers */
} td_rig_input;

typedef struct {
    td_view view;
    double tolerance; /* between devices that need not agree by bits: of a row's largest number;
                       * negative: numbers of the device's own */
} td_rig_output;

typedef struct {
    td_device *dev;
    td_mode mode;
    bool is_oracle; /* on the scalar device: may make less of what repeats, outputs above all */
    bool is_out;    /* its rows are outputs */
    uint32_t n_data;
    uint32_t unit;                 /* rows that stand together, a divisor of n_data */
    td_program *p;      /* the op alone */
    td_program *reader; /* run after it with the same rows, or NULL */
    td_rig_input inputs[TD_RIG_VIEWS_MAX];
    td_rig_output outputs[TD_RIG_VIEWS_MAX];
    uint32_t n_inputs, n_outputs;
    bool is_ok;
    td_err *err;
    td_arena *arena;
    td_tensor *tensors[TD_RIG_OBJECTS_MAX];
    td_weight *weights[TD_RIG_OBJECTS_MAX];
    td_kv *kvs[TD_RIG_OBJECTS_MAX];
    td_state *states[TD_RIG_OBJECTS_MAX];
    uint32_t n_tensors, n_weights, n_kvs, n_states;
} td_rig;

/* Begins a rig and its program; what the fields above say is to be known by then. */
void td_rig_begin(td_rig *r, td_device *dev, td_mode mode, uint32_t n_data, td_err *err);
void td_rig_destroy(td_rig *r);

/* Memory of the rig: zeroed; random floats in [-scale, scale); NULL when there is none. */
void *td_rig_alloc(td_rig *r, size_t n, size_t size);
float *td_rig_random(td_rig *r, size_t n, uint64_t seed, float scale);

/* A host-visible tensor: one row more than the data has, for what is written past the end; or
 * n_rows of TD_ROWS_FIXED. */
td_tensor *td_rig_rows(td_rig *r, td_elem elem, td_rows rows, uint32_t n_cols);
/* The same for what only ops see: a device may then never write it. */
td_tensor *td_rig_hidden(td_rig *r, uint32_t n_cols);
td_tensor *td_rig_fixed(td_rig *r, td_elem elem, uint32_t n_rows, uint32_t n_cols);
/* Weights at random, rows alike TD_RIG_PERIOD apart; a vector of given values. */
td_weight *td_rig_weight(td_rig *r, const char *type, uint32_t n_rows, uint32_t n_cols,
                         uint32_t n_groups, uint64_t seed);
td_weight *td_rig_vector(td_rig *r, const float *values, uint32_t n);
td_kv *td_rig_kv(td_rig *r, const td_kv_params *params);
td_state *td_rig_state(td_rig *r, const td_state_params *params);
td_program *td_rig_program(td_rig *r, td_mode mode, uint32_t n_rows);

void td_rig_input_of(td_rig *r, td_view view, const void *values);
void td_rig_output_of(td_rig *r, td_view view, double tolerance);

/* After the ops are recorded: compiles; false with err set. */
bool td_rig_end(td_rig *r);

/* Runs the data rows rows[n], one after another from row 0 on; the outputs' other rows and columns
 * are marked before. */
bool td_rig_run(td_rig *r, const uint32_t *rows, uint32_t n);
/* Row `row` of output i after a run. */
const uint32_t *td_rig_row(const td_rig *r, uint32_t i, uint32_t row);
/* The first word outside the n rows (or their columns) of an output that is marked no more; false
 * where there is none. */
bool td_rig_find_stray(const td_rig *r, uint32_t n, uint32_t *i_output, uint32_t *row,
                       uint32_t *col);

#endif
