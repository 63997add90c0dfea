/* Rigs of the ops that know of sequences (builders.h). What lies in a cache or a state cannot be
 * read but by the op that uses it, so kv_store and state_keep have that one for a reader, and
 * attention has a cache that kv_store filled once, before any of its runs. */
#include "check/builders.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define N_SEQUENCES 2u
#define ATTENTION   3e-5 /* scores of f32 through exp */
#define ATTENTION_Q 0x1p-11 /* of quantized keys or values: the scalar device rounds to 15 bits */
#define CACHED      1e-6 /* of a window of one position: the value itself */
#define RECURRENT   5e-5

td_batch_tensors td_build_batch(td_rig *r, const int32_t *positions, const int32_t *slots,
                                uint32_t n_slots, uint32_t n_pages)
{
    td_batch_tensors b = {.positions = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1),
                          .slots = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1),
                          .pages = td_rig_fixed(r, TD_ELEM_I32, n_slots, n_pages),
                          .spans = td_rig_fixed(r, TD_ELEM_I32, n_slots, 2)};
    if (!r->is_ok)
        return b;
    memset(td_tensor_data(b.spans), 0, (size_t)n_slots * 8);
    int32_t *pages = td_tensor_data(b.pages);
    uint32_t n = n_slots * n_pages;
    for (uint32_t i = 0; i < n; i++) /* from the last on */
        pages[i] = (int32_t)(n - 1 - i);
    td_rig_input_of(r, td_all(b.positions), positions);
    td_rig_input_of(r, td_all(b.slots), slots);
    return b;
}

static td_kv *make_kv(td_rig *r, const td_case *c, uint32_t n_pages)
{
    return td_rig_kv(r, &(td_kv_params){td_type_find_name(c->type), td_type_find_name(c->type_v),
                                        c->n[0], c->n[2], c->n[3], N_SEQUENCES * n_pages, false, false, false});
}

void td_build_fill(td_rig *r, td_kv *kv, td_tensor *pages, uint32_t n_slots, uint32_t n_positions)
{
    if (!r->is_ok)
        return;
    const td_kv_params *sizes = td_kv_get_params(kv);
    uint32_t n_k = sizes->n_head_kv * sizes->head_dim_k, n = n_slots * n_positions;
    uint32_t n_v = sizes->n_head_kv * sizes->head_dim_v, n_step = r->n_data;
    td_program *p = td_rig_program(r, TD_MODE_VERIFY, n_step);
    td_tensor *k = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_k);
    td_tensor *v = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_v);
    td_tensor *positions = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1);
    td_tensor *slots = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1);
    const float *ks = td_rig_random(r, (size_t)n * n_k, 101, 1.0f);
    const float *vs = td_rig_random(r, (size_t)n * n_v, 102, 1.0f);
    if (r->is_ok) {
        const td_batch_tensors batch = {positions, slots, pages, NULL};
        td_op_kv_store(p, kv, td_all(k), td_all(v), &batch);
        r->is_ok = td_program_end(p, r->err);
    }
    for (uint32_t at = 0; r->is_ok && at < n; at += n_step) {
        uint32_t n_rows = td_min_u32(n_step, n - at);
        memcpy(td_tensor_data(k), ks + (size_t)at * n_k, (size_t)n_rows * n_k * 4);
        memcpy(td_tensor_data(v), vs + (size_t)at * n_v, (size_t)n_rows * n_v * 4);
        for (uint32_t i = 0; i < n_rows; i++) {
            ((int32_t *)td_tensor_data(positions))[i] = (int32_t)((at + i) / n_slots);
            ((int32_t *)td_tensor_data(slots))[i] = (int32_t)((at + i) % n_slots);
        }
        r->is_ok = td_program_run(p, n_rows, 0, r->err);
    }
    td_program_destroy(&p);
}

static td_attention_params attention_params(td_rig *r, const td_case *c)
{
    uint32_t n_head = c->n[0] * c->n[1];
    td_attention_params params = {.n_head = n_head, .scale = 1 / sqrtf((float)c->n[2])};
    params.window = c->variant == TD_ATTEND_WINDOW ? 70 : 0;
    params.chunk = c->variant == TD_ATTEND_CHUNK ? 96 : 0;
    params.softcap = c->variant == TD_ATTEND_SOFTCAP ? 5.0f : 0;
    const float *sinks = td_rig_random(r, n_head, 103, 2.0f);
    if (c->variant == TD_ATTEND_SINKS)
        params.sinks = td_rig_vector(r, sinks, n_head);
    return params;
}

/* Rows stand at the end of their sequence and every few positions before; they see one another
 * only through the cache, so each may run without the others. */
bool td_build_attention(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n_head = c->n[0] * c->n[1], n_pages = td_div_up(c->n[4], TD_PAGE_POSITIONS);
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    int32_t *positions = td_rig_alloc(r, c->n_data, sizeof *positions);
    int32_t *slots = td_rig_alloc(r, c->n_data, sizeof *slots);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++) {
        positions[i] = (int32_t)(c->n[4] - 1 - i * c->n[4] / c->n_data);
        slots[i] = (int32_t)(i % N_SEQUENCES);
    }
    td_batch_tensors batch = td_build_batch(r, positions, slots, N_SEQUENCES, n_pages);
    td_kv *kv = make_kv(r, c, n_pages);
    td_tensor *q = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_head * c->n[2]);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_head * c->n[3] + 1);
    const float *qs = td_rig_random(r, (size_t)c->n_data * n_head * c->n[2], 104, 4.0f);
    td_attention_params params = attention_params(r, c);
    td_build_fill(r, kv, batch.pages, N_SEQUENCES, c->n[4]);
    if (!r->is_ok)
        return false;
    td_rig_input_of(r, td_all(q), qs);
    bool is_quantized = td_type_find_name(c->type)->block_elements > 1 ||
                        td_type_find_name(c->type_v)->block_elements > 1;
    td_rig_output_of(r, td_columns(y, 1, n_head * c->n[3]),
                     is_quantized ? ATTENTION_Q : ATTENTION);
    td_op_attention(r->p, kv, td_all(q), td_columns(y, 1, n_head * c->n[3]), &params, &batch);
    return td_rig_end(r);
}

/* Each row writes a position of its own, which attention with a window of one reads back. */
bool td_build_kv_store(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n_head = c->n[0] * c->n[1], n_k = c->n[0] * c->n[2], n_v = c->n[0] * c->n[3];
    uint32_t n_pages = td_div_up(c->n_data, TD_PAGE_POSITIONS);
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    int32_t *positions = td_rig_alloc(r, c->n_data, sizeof *positions);
    int32_t *slots = td_rig_alloc(r, c->n_data, sizeof *slots);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++) {
        positions[i] = (int32_t)(i / N_SEQUENCES);
        slots[i] = (int32_t)(i % N_SEQUENCES);
    }
    td_batch_tensors batch = td_build_batch(r, positions, slots, N_SEQUENCES, n_pages);
    td_kv *kv = make_kv(r, c, n_pages);
    td_tensor *k = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_k);
    td_tensor *v = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_v);
    td_tensor *q = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_head * c->n[2]);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n_head * c->n[3]);
    const float *ks = td_rig_random(r, (size_t)c->n_data * n_k, 111, 1.0f);
    const float *vs = td_rig_random(r, (size_t)c->n_data * n_v, 112, 1.0f);
    const float *qs = td_rig_random(r, (size_t)c->n_data * n_head * c->n[2], 113, 1.0f);
    r->reader = td_rig_program(r, c->mode, c->n_data);
    if (!r->is_ok)
        return false;
    td_rig_input_of(r, td_all(k), ks);
    td_rig_input_of(r, td_all(v), vs);
    td_rig_input_of(r, td_all(q), qs);
    td_rig_output_of(r, td_all(y), CACHED);
    td_op_kv_store(r->p, kv, td_all(k), td_all(v), &batch);
    td_op_attention(r->reader, kv, td_all(q), td_all(y),
                    &(td_attention_params){.n_head = n_head, .scale = 1, .window = 1}, &batch);
    return td_rig_end(r);
}

typedef struct {
    td_state *state;
    td_delta_net_params params;
    uint32_t n_cols, n_y;
} net;

static net make_net(td_rig *r, const td_case *c, uint32_t n_slots)
{
    const td_state_params sizes = {n_slots, c->n[0], c->n[1], c->n[2], c->n[3], 70};
    uint32_t n_channels = (2 * c->n[0] + c->n[1]) * c->n[2];
    const float *conv = td_rig_random(r, (size_t)n_channels * c->n[3], 121, 1.0f);
    const float *dt = td_rig_random(r, c->n[1], 123, 1.0f);
    float *a = td_rig_random(r, c->n[1], 122, 1.0f);
    for (uint32_t h = 0; r->is_ok && h < c->n[1]; h++)
        a[h] = -0.02f - 0.3f * fabsf(a[h]);
    return (net){.state = td_rig_state(r, &sizes),
                 .params = {.conv = td_rig_vector(r, conv, n_channels * c->n[3]),
                            .a = td_rig_vector(r, a, c->n[1]),
                            .dt = td_rig_vector(r, dt, c->n[1]),
                            .order = (td_heads_order)c->variant,
                            .eps = 1e-6f},
                 .n_cols = td_state_cols(&sizes),
                 .n_y = c->n[1] * c->n[2]};
}

/* Sequences of four rows from their first on; nothing is kept, so that it does not matter what ran
 * before. */
bool td_build_delta_net(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    uint32_t n_slots = c->n_data / 4;
    r->unit = 4;
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    int32_t *positions = td_rig_alloc(r, c->n_data, sizeof *positions);
    int32_t *slots = td_rig_alloc(r, c->n_data, sizeof *slots);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++) {
        positions[i] = (int32_t)(i % 4);
        slots[i] = (int32_t)(i / 4);
    }
    td_batch_tensors batch = td_build_batch(r, positions, slots, n_slots, 1);
    net n = make_net(r, c, n_slots);
    td_tensor *x = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n.n_cols);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n.n_y + 1);
    const float *xs = td_rig_random(r, (size_t)c->n_data * n.n_cols, 124, 2.0f);
    if (!r->is_ok)
        return false;
    for (uint32_t i = 0; i < n_slots; i++)
        ((int32_t *)td_tensor_data(batch.spans))[2 * i + 1] = 4;
    td_rig_input_of(r, td_all(x), xs);
    td_rig_output_of(r, td_columns(y, 1, n.n_y), RECURRENT);
    td_op_delta_net(r->p, n.state, td_all(x), &n.params, &batch, td_columns(y, 1, n.n_y));
    return td_rig_end(r);
}

/* The first row of each sequence is kept, and read by its second, of which nothing is kept. */
bool td_build_state_keep(td_rig *r, td_device *dev, const td_case *c, td_err *err)
{
    td_rig_begin(r, dev, c->mode, c->n_data, err);
    int32_t *positions = td_rig_alloc(r, c->n_data, sizeof *positions);
    int32_t *nexts = td_rig_alloc(r, c->n_data, sizeof *nexts);
    int32_t *slots = td_rig_alloc(r, c->n_data, sizeof *slots);
    for (uint32_t i = 0; r->is_ok && i < c->n_data; i++) {
        nexts[i] = 1;
        slots[i] = (int32_t)i;
    }
    td_batch_tensors batch = td_build_batch(r, positions, slots, c->n_data, 1), next = batch;
    net n = make_net(r, c, c->n_data);
    td_tensor *x = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n.n_cols);
    td_tensor *z = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n.n_cols);
    td_tensor *y = td_rig_rows(r, TD_ELEM_F32, TD_ROWS_BATCH, n.n_y);
    const float *xs = td_rig_random(r, (size_t)c->n_data * n.n_cols, 125, 2.0f);
    const float *zs = td_rig_random(r, (size_t)c->n_data * n.n_cols, 126, 2.0f);
    next.positions = td_rig_rows(r, TD_ELEM_I32, TD_ROWS_BATCH, 1);
    r->reader = td_rig_program(r, c->mode, c->n_data);
    if (!r->is_ok)
        return false;
    for (uint32_t i = 0; i < c->n_data; i++)
        ((int32_t *)td_tensor_data(batch.spans))[2 * i + 1] = 2;
    td_rig_input_of(r, td_all(next.positions), nexts);
    td_rig_input_of(r, td_all(x), xs);
    td_rig_input_of(r, td_all(z), zs);
    td_rig_output_of(r, td_all(y), RECURRENT);
    td_op_state_keep(r->p, n.state, td_all(x), &batch);
    td_op_delta_net(r->reader, n.state, td_all(z), &n.params, &next, td_all(y));
    return td_rig_end(r);
}
