/* Rigs (rig.h). Every run writes all inputs anew and marks all outputs, so that nothing of a run
 * before can stand in for what an op did not write. */
#include "check/rig.h"

#include "base/check.h"
#include "check/inputs.h"

#include <string.h>

#define MARK 0x7fc5a5a5u /* a NaN that no op makes */

void td_rig_begin(td_rig *r, td_device *dev, td_mode mode, uint32_t n_data, td_err *err)
{
    r->dev = dev;
    r->mode = mode;
    r->n_data = n_data;
    r->unit = r->unit ? r->unit : 1;
    r->err = err;
    r->arena = td_arena_create(err);
    r->is_ok = r->arena;
    r->p = td_rig_program(r, mode, n_data);
}

void td_rig_destroy(td_rig *r)
{
    td_program_destroy(&r->p);
    td_program_destroy(&r->reader);
    for (uint32_t i = 0; i < r->n_tensors; i++)
        td_tensor_destroy(&r->tensors[i]);
    for (uint32_t i = 0; i < r->n_weights; i++)
        td_weight_destroy(&r->weights[i]);
    for (uint32_t i = 0; i < r->n_kvs; i++)
        td_kv_destroy(&r->kvs[i]);
    for (uint32_t i = 0; i < r->n_states; i++)
        td_state_destroy(&r->states[i]);
    td_arena_destroy(&r->arena);
}

void *td_rig_alloc(td_rig *r, size_t n, size_t size)
{
    void *p = r->is_ok ? td_arena_alloc(r->arena, n, size, r->err) : NULL;
    r->is_ok = p;
    return p;
}

float *td_rig_random(td_rig *r, size_t n, uint64_t seed, float scale)
{
    float *values = td_rig_alloc(r, n, sizeof *values);
    for (size_t i = 0; values && i < n; i++)
        values[i] = scale * td_input_random(seed, i);
    return values;
}

static td_tensor *make_tensor(td_rig *r, const td_tensor_params *params)
{
    TD_ASSERT(r->n_tensors < TD_RIG_OBJECTS_MAX);
    td_tensor *t = r->is_ok ? td_tensor_create(r->dev, params, r->err) : NULL;
    r->is_ok = t;
    if (t)
        r->tensors[r->n_tensors++] = t;
    return t;
}

td_tensor *td_rig_rows(td_rig *r, td_elem elem, td_rows rows, uint32_t n_cols)
{
    return make_tensor(
        r, &(td_tensor_params){"check", elem, rows, r->n_data + 1, n_cols, TD_HOST_READS});
}

td_tensor *td_rig_hidden(td_rig *r, uint32_t n_cols)
{
    return make_tensor(r, &(td_tensor_params){"check", TD_ELEM_F32, TD_ROWS_BATCH, r->n_data + 1,
                                              n_cols, TD_HOST_NONE});
}

td_tensor *td_rig_fixed(td_rig *r, td_elem elem, uint32_t n_rows, uint32_t n_cols)
{
    return make_tensor(
        r, &(td_tensor_params){"check", elem, TD_ROWS_FIXED, n_rows, n_cols, TD_HOST_READS});
}

td_weight *td_rig_weight(td_rig *r, const char *type_name, uint32_t n_rows, uint32_t n_cols,
                         uint32_t n_groups, uint64_t seed)
{
    TD_ASSERT(r->n_weights < TD_RIG_OBJECTS_MAX);
    const td_type_info *type = td_type_find_name(type_name);
    uint32_t n = td_min_u32(n_rows, TD_RIG_PERIOD);
    unsigned char *rows = td_rig_alloc(r, n, td_row_bytes(type, n_cols));
    if (!rows)
        return NULL;
    td_input_rows(type, n, n_cols, seed, rows);
    td_weight *w = td_weight_create(
        r->dev, &(td_weight_params){"check", type, n_rows, n_cols, n_groups}, r->err);
    r->is_ok = w;
    if (w)
        r->weights[r->n_weights++] = w;
    for (uint32_t at = 0; r->is_ok && at < n_rows; at += n)
        r->is_ok = td_weight_write(w, at, td_min_u32(n, n_rows - at), rows, r->err);
    return r->is_ok ? w : NULL;
}

td_weight *td_rig_vector(td_rig *r, const float *values, uint32_t n)
{
    TD_ASSERT(r->n_weights < TD_RIG_OBJECTS_MAX);
    const td_weight_params params = {"check", td_type_find(TD_TYPE_F32), 1, n, 0};
    td_weight *w = r->is_ok ? td_weight_create(r->dev, &params, r->err) : NULL;
    r->is_ok = w;
    if (w)
        r->weights[r->n_weights++] = w;
    r->is_ok = r->is_ok && td_weight_write(w, 0, 1, values, r->err);
    return r->is_ok ? w : NULL;
}

td_kv *td_rig_kv(td_rig *r, const td_kv_params *params)
{
    TD_ASSERT(r->n_kvs < TD_RIG_OBJECTS_MAX);
    td_kv *kv = r->is_ok ? td_kv_create(r->dev, params, r->err) : NULL;
    r->is_ok = kv;
    if (kv)
        r->kvs[r->n_kvs++] = kv;
    return kv;
}

td_state *td_rig_state(td_rig *r, const td_state_params *params)
{
    TD_ASSERT(r->n_states < TD_RIG_OBJECTS_MAX);
    td_state *s = r->is_ok ? td_state_create(r->dev, params, r->err) : NULL;
    r->is_ok = s;
    if (s)
        r->states[r->n_states++] = s;
    return s;
}

td_program *td_rig_program(td_rig *r, td_mode mode, uint32_t n_rows)
{
    const td_program_params params = {"check", mode, n_rows, n_rows};
    td_program *p = r->is_ok ? td_program_begin(r->dev, &params, r->err) : NULL;
    r->is_ok = p;
    return p;
}

void td_rig_input_of(td_rig *r, td_view view, const void *values)
{
    TD_ASSERT(r->n_inputs < TD_RIG_VIEWS_MAX);
    r->inputs[r->n_inputs++] = (td_rig_input){view, values};
}

void td_rig_output_of(td_rig *r, td_view view, double tolerance)
{
    TD_ASSERT(r->n_outputs < TD_RIG_VIEWS_MAX);
    r->outputs[r->n_outputs++] = (td_rig_output){view, tolerance};
}

bool td_rig_end(td_rig *r)
{
    td_program *programs[] = {r->p, r->reader};
    for (size_t i = 0; i < TD_COUNT(programs); i++)
        if (r->is_ok && programs[i])
            r->is_ok = td_program_end(programs[i], r->err);
    return r->is_ok;
}

static uint32_t *words_of(td_view v, uint32_t row)
{
    return (uint32_t *)td_tensor_data(v.t) + (size_t)row * td_tensor_get_params(v.t)->n_cols;
}

bool td_rig_run(td_rig *r, const uint32_t *rows, uint32_t n)
{
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        td_view v = r->outputs[i].view;
        uint32_t *words = words_of(v, 0);
        const td_tensor_params *params = td_tensor_get_params(v.t);
        size_t n_words = (size_t)params->n_rows * params->n_cols;
        for (size_t k = 0; k < n_words; k++)
            words[k] = MARK;
    }
    for (uint32_t i = 0; i < r->n_inputs; i++) {
        td_view v = r->inputs[i].view;
        for (uint32_t k = 0; k < n; k++)
            memcpy(words_of(v, k) + v.col0, r->inputs[i].values + (size_t)rows[k] * v.n_cols,
                   (size_t)v.n_cols * 4);
    }
    uint32_t n_rows = r->is_out ? r->n_data : n;
    return td_program_run(r->p, n_rows, n, r->err) &&
           (!r->reader || td_program_run(r->reader, n_rows, n, r->err));
}

const uint32_t *td_rig_row(const td_rig *r, uint32_t i, uint32_t row)
{
    return words_of(r->outputs[i].view, row) + r->outputs[i].view.col0;
}

/* Is the word in a view of any output? */
static bool is_output(const td_rig *r, const td_tensor *t, uint32_t col)
{
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        td_view v = r->outputs[i].view;
        if (v.t == t && col >= v.col0 && col - v.col0 < v.n_cols)
            return true;
    }
    return false;
}

bool td_rig_find_stray(const td_rig *r, uint32_t n, uint32_t *i_output, uint32_t *row,
                       uint32_t *col)
{
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        td_view v = r->outputs[i].view;
        const td_tensor_params *params = td_tensor_get_params(v.t);
        for (uint32_t c = 0; c < params->n_cols; c++)
            for (uint32_t k = is_output(r, v.t, c) ? n : 0; k < params->n_rows; k++)
                if (words_of(v, k)[c] != MARK) {
                    *i_output = i;
                    *row = k;
                    *col = c;
                    return true;
                }
    }
    return false;
}
