/* Sabotage (sabotage.h). What is spoiled must be found wherever it strikes and crash nothing: of
 * each op a view is chosen whose numbers are never an index (of a router the weights, of feed the
 * cosines), and the bit is one of the exponent, which no tolerance forgives. */
#include "kernels/sabotage.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

#define RACE_PERIOD 7u /* one run in so many */
#define RACE_RUN    5u

static const char *const hows[] = {
    [TD_SPOIL_NONE] = "", [TD_SPOIL_BIT] = "bit", [TD_SPOIL_RACE] = "race", [TD_SPOIL_ROW] = "row"};

bool td_sabotage_begin(td_device *dev, td_err *err)
{
    const char *wanted = getenv("TD_SABOTAGE");
    if (!wanted || !*wanted)
        return true;
    const char *colon = strchr(wanted, ':');
    size_t n_name = colon ? (size_t)(colon - wanted) : strlen(wanted);
    for (uint32_t kind = 0; td_op_kind_name(kind); kind++)
        if (strlen(td_op_kind_name(kind)) == n_name &&
            !strncmp(td_op_kind_name(kind), wanted, n_name))
            for (uint32_t how = TD_SPOIL_BIT; colon && how < TD_COUNT(hows); how++)
                if (!strcmp(colon + 1, hows[how])) {
                    dev->sabotage.kind = (td_op_kind)kind;
                    dev->sabotage.how = (td_spoil)how;
                }
    if (!dev->sabotage.how)
        return td_err_set(err, TD_E_USAGE,
                          "TD_SABOTAGE: \"%.64s\"; allowed: OP:bit, OP:race or OP:row, OP an op as "
                          "in `tandem check`",
                          wanted);
    dev->sabotage.count = td_tensor_create(dev,
                                           &(td_tensor_params){.name = "sabotage",
                                                               .elem = TD_ELEM_I32,
                                                               .rows = TD_ROWS_FIXED,
                                                               .n_rows = 1,
                                                               .n_cols = 1,
                                                               .host = TD_HOST_READS},
                                           err);
    if (dev->sabotage.count)
        *(int32_t *)td_tensor_data(dev->sabotage.count) = 0;
    return dev->sabotage.count;
}

td_sabotage_place td_sabotage_of(const td_device *dev, const td_op *op, td_op *spoil)
{
    if (!dev->sabotage.how || dev->sabotage.kind != op->kind)
        return TD_SABOTAGE_NONE;
    td_sabotage_place place = TD_SABOTAGE_AFTER;
    td_view v = op->out;
    if (op->kind == TD_OP_KV_STORE || op->kind == TD_OP_STATE_KEEP) {
        place = TD_SABOTAGE_BEFORE;
        v = op->in[op->n_in - 1];
    } else if (op->kind == TD_OP_FEED) {
        v = td_all(op->writes[3]);
    }
    *spoil = (td_op){.kind = TD_OP_SPOIL,
                     .n_in = 1,
                     .in = {v},
                     .out = v,
                     .n_writes = 1,
                     .writes = {dev->sabotage.count},
                     .u.spoil = dev->sabotage.how};
    return place;
}

void td_sabotage_run(const td_op *op, uint32_t n_rows)
{
    uint32_t *words = op->out.t->data, *count = op->writes[0]->data;
    uint32_t stride = op->out.t->params.n_cols, capacity = op->out.t->params.n_rows;
    uint32_t *last = words + (size_t)(n_rows - 1) * stride + op->out.col0;
    uint32_t *other = words + (size_t)(n_rows < capacity ? n_rows : 0) * stride + op->out.col0;
    bool is_due = op->u.spoil == TD_SPOIL_BIT || (*count)++ % RACE_PERIOD == RACE_RUN;
    if (op->u.spoil == TD_SPOIL_ROW) {
        for (uint32_t i = 0; i < op->out.n_cols; i++) {
            uint32_t word = last[i];
            last[i] = other[i];
            other[i] = word;
        }
    } else if (is_due) {
        *last ^= 1u << 30;
    }
}
