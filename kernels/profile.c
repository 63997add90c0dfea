/* Profiles: sums per op of a program, filled by the backend, and read by name. */
#include "kernels/backend.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

bool td_program_profile(td_program *p, bool is_on, td_err *err)
{
    TD_ASSERT(p->is_compiled);
    if (is_on && !p->sums && !(p->sums = td_alloc(p->n_ops, sizeof *p->sums, err)))
        return false;
    if (is_on) {
        memset(p->sums, 0, p->n_ops * sizeof *p->sums);
        p->counts = (td_program_counts){0};
    }
    if (is_on == p->is_profiled)
        return true;
    const td_backend *backend = p->dev->backend;
    if (backend->program_profile && !backend->program_profile(p, is_on, err))
        return td_err_prepend(err, "program %s", p->params.name);
    p->is_profiled = is_on;
    return true;
}

static void add_traffic(td_traffic *sum, const td_traffic *t)
{
    sum->issued += t->issued;
    sum->there += t->there;
}

void td_program_count_op(td_program *p, const td_op *op, bool is_call, double seconds,
                         td_traffic traffic)
{
    td_op_sum *sum = &p->sums[op - p->ops];
    sum->n_calls += is_call;
    sum->seconds += seconds;
    add_traffic(&sum->traffic, &traffic);
    p->counts.busy_seconds += seconds;
}

static const char *const kind_names[TD_OP_COUNT] = {
    [TD_OP_EMBED] = "embed",
    [TD_OP_RMS_NORM] = "rms_norm",
    [TD_OP_MAT_MUL] = "mat_mul",
    [TD_OP_ROPE] = "rope",
    [TD_OP_KV_STORE] = "kv_store",
    [TD_OP_ATTENTION] = "attention",
    [TD_OP_GLU] = "glu",
    [TD_OP_ADD] = "add",
    [TD_OP_SCALE] = "scale",
    [TD_OP_SOFTCAP] = "softcap",
    [TD_OP_GATHER] = "gather",
    [TD_OP_ROUTE] = "route",
    [TD_OP_EXPERTS_SUM] = "experts_sum",
    [TD_OP_DELTA_NET] = "delta_net",
    [TD_OP_STATE_KEEP] = "state_keep",
    [TD_OP_TOP] = "top",
    [TD_OP_PICK] = "pick",
    [TD_OP_FEED] = "feed",
    [TD_OP_SPOIL] = "spoil",
};

const char *td_op_kind_name(uint32_t kind)
{
    return kind < TD_OP_SPOIL ? kind_names[kind] : NULL; /* the last, and none of a model's */
}

/* Weights by type and shape, outputs x inputs; caches by type and heads; the rest by columns. */
static void name_op(const td_op *op, char name[96])
{
    const char *kind = kind_names[op->kind];
    bool is_by_expert = op->kind == TD_OP_MAT_MUL && op->u.mat_mul.is_by_expert;
    if (op->kind == TD_OP_TOP)
        snprintf(name, 96, "%s %u", kind, op->in[0].n_cols);
    else if (op->kind == TD_OP_MAT_MUL || op->kind == TD_OP_EMBED)
        snprintf(name, 96, "%s%s %s %ux%u", kind, is_by_expert ? " expert" : "",
                 op->weight->params.type->name, td_group_rows(&op->weight->params),
                 op->weight->params.n_cols);
    else if (op->kv)
        snprintf(name, 96, "%s %s/%s %ux%u", kind, op->kv->params.type_k->name,
                 op->kv->params.type_v->name, op->kv->params.n_head_kv, op->kv->params.head_dim_k);
    else
        snprintf(name, 96, "%s %u", kind, op->out.t ? op->out.n_cols : op->in[0].n_cols);
}

uint32_t td_op_times_add(td_op_time *out, uint32_t n, uint32_t max, const td_op_time *time)
{
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(out[i].name, time->name)) {
            out[i].n_calls += time->n_calls;
            out[i].seconds += time->seconds;
            add_traffic(&out[i].traffic, &time->traffic);
            return n;
        }
    if (n < max)
        out[n++] = *time;
    return n;
}

uint32_t td_program_op_times(const td_program *p, td_op_time *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; p->sums && i < p->n_ops; i++) {
        if (!p->sums[i].n_calls)
            continue;
        td_op_time time = {.n_calls = p->sums[i].n_calls,
                           .seconds = p->sums[i].seconds,
                           .traffic = p->sums[i].traffic};
        name_op(&p->ops[i], time.name);
        n = td_op_times_add(out, n, max, &time);
    }
    return n;
}

void td_program_get_counts(const td_program *p, td_program_counts *out) { *out = p->counts; }

void td_program_counts_add(td_program_counts *sum, const td_program_counts *n)
{
    sum->n_runs += n->n_runs;
    sum->n_dispatches += n->n_dispatches;
    sum->n_submissions += n->n_submissions;
    sum->n_barriers += n->n_barriers;
    sum->run_seconds += n->run_seconds;
    sum->busy_seconds += n->busy_seconds;
    sum->gap_seconds += n->gap_seconds;
}
