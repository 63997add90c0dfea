/* What the files of the lowering share: an op becomes steps (td_vk_step), each a shader, buffers in
 * the order of its bindings, push constants and workgroups. The order of bindings and the push
 * constants are those of kernels/shaders/inc/push.glsl. Private to lower*.c. One thread.
 *
 * A lowering function fills a step whose op is set; those that return bool fail with TD_E_NOMEM,
 * where they make buffers of their own. */
#ifndef TD_KERNELS_VULKAN_LOWER_H
#define TD_KERNELS_VULKAN_LOWER_H

#include "base/check.h"
#include "kernels/vulkan/fuse.h"
#include "kernels/vulkan/vk.h"

#include <string.h>

#define TD_VK_WORK_PER_ELEMENT 8.0  /* of ops that go element by element, as work_per_row counts */
#define TD_VK_ELEMENT_COLS     256u /* a workgroup's columns of add, glu, gather, ... */

static inline td_vk_buffer *buffer_of(td_tensor *t) { return &((td_vk_tensor *)t)->buffer; }

/* Weights: no program writes them, so nothing waits for anything. */
static inline void bind(td_vk_step *s, const td_vk_buffer *buffer)
{
    TD_ASSERT(s->key.n_bindings < TD_VK_BINDINGS_MAX);
    s->bindings[s->key.n_bindings++] = buffer;
}

static inline void access_columns(td_vk_step *s, const td_vk_buffer *buffer, uint32_t begin,
                                  uint32_t end, bool is_write)
{
    s->accesses[s->n_accesses++] = (td_vk_access){buffer, begin, end, is_write, 0, 0};
    bind(s, buffer);
}

static inline void bind_in(td_vk_step *s, const td_vk_buffer *buffer)
{
    access_columns(s, buffer, 0, UINT32_MAX, false);
}

static inline void bind_out(td_vk_step *s, const td_vk_buffer *buffer)
{
    access_columns(s, buffer, 0, UINT32_MAX, true);
}

/* The same of columns of a tensor's rows. */
static inline void bind_view_in(td_vk_step *s, td_view v)
{
    access_columns(s, buffer_of(v.t), v.col0, v.col0 + v.n_cols, false);
}

static inline void bind_view_out(td_vk_step *s, td_view v)
{
    access_columns(s, buffer_of(v.t), v.col0, v.col0 + v.n_cols, true);
}

/* A vector bound in full, or the dummy. */
static inline void bind_vector(td_vk_device *d, td_vk_step *s, td_weight *w)
{
    bind(s, w ? &((td_vk_weight *)w)->slabs[0] : &d->dummy);
}

/* Of each `stride` columns of a view those from col0 on, n_part of them. */
static inline void bind_parts(td_vk_step *s, td_view v, uint32_t stride, uint32_t col0,
                              uint32_t n_part, bool is_write)
{
    access_columns(s, buffer_of(v.t), v.col0 + col0, v.col0 + v.n_cols, is_write);
    s->accesses[s->n_accesses - 1].stride = stride;
    s->accesses[s->n_accesses - 1].n_part = n_part;
}

static inline void bind_batch(td_vk_step *s, const td_batch_tensors *batch)
{
    bind_in(s, buffer_of(batch->positions));
    bind_in(s, buffer_of(batch->slots));
    bind_in(s, buffer_of(batch->pages));
}

static inline void set_push(td_vk_step *s, const void *push, size_t n_bytes)
{
    TD_ASSERT(n_bytes <= sizeof s->push && n_bytes % 4 == 0);
    memcpy(s->push, push, n_bytes);
    s->n_push = (uint32_t)n_bytes;
}

static inline uint32_t stride(td_view v) { return v.t->params.n_cols; }

/* Where a view lies, as initializers of the push constants name_col0 and name_stride. */
#define VIEW(name, view) .name##_col0 = (view).col0, .name##_stride = stride(view)

/* Whether an op writes a tensor. */
static inline bool writes(const td_op *op, const td_tensor *t)
{
    bool is_written = op->out.t == t;
    for (uint32_t i = 0; i < op->n_writes; i++)
        is_written |= op->writes[i] == t;
    return is_written;
}

/* The first specialization constants of the shaders that read or write a cache. */
static inline void set_cache_types(td_vk_step *s, const td_kv_params *p)
{
    s->key.n_spec = 4;
    s->key.spec[0] = p->type_k->id;
    s->key.spec[1] = p->type_v->id;
    s->key.spec[2] = p->head_dim_k;
    s->key.spec[3] = p->head_dim_v;
}

/* The name of a shader's variant for a weight type, in static storage. */
const char *td_vk_variant(const char *shader, const td_type_info *type);

/* The first of the buffers beside a tensor that is large enough, made where there is none. */
td_vk_buffer *td_vk_side_buffer(td_tensor *t, td_vk_buffer sides[TD_VK_SIDES_MAX], uint64_t n_bytes,
                                td_err *err);

/* lower_mat_mul.c: whether an op is a product that reads int8; then of its input the blocks of 32 a
 * row has for each of its groups, the groups, and the buffer they lie in. */
bool td_vk_has_int8(const td_op *op);
uint32_t td_vk_int8_blocks(const td_op *op);
uint32_t td_vk_int8_groups(const td_op *op);
td_vk_buffer *td_vk_int8_of(const td_op *op, td_err *err);

/* lower_mat_mul.c: whether an op is a product by expert, and where the lists lie of who chose whom;
 * NULL: no memory. */
bool td_vk_is_by_expert(const td_op *op);
td_vk_buffer *td_vk_lists_of(td_tensor *experts, td_err *err);

/* lower_mat_mul.c: after the steps that prepare its inputs, one for each slab. */
uint32_t td_vk_count_mat_mul(const td_program *p, uint32_t i_op);
bool td_vk_lower_mat_mul(const td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s,
                         td_err *err);
td_vk_dispatch td_vk_mat_mul_dispatch(const td_vk_step *s, uint32_t n_rows);
/* The glu that such a product does for few rows, by itself for more (fuse.h). */
bool td_vk_lower_glu(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err);
/* Binds the quants that an op's step makes for a reader, or the dummy. False: no memory. */
bool td_vk_bind_int8(td_vk_device *d, td_vk_step *s, const td_op *reader, td_err *err);

/* lower_attention.c: the list of tiles, where no op before has made it; q's rotation, where no
 * store does it; attention; its join, which adds up strands and rotates values back, where there
 * is something to do for it. */
uint32_t td_vk_count_attention(const td_program *p, uint32_t i_op);
bool td_vk_lower_attention(const td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s,
                           td_err *err);
bool td_vk_has_join(const td_program *p, const td_op *op);
td_vk_dispatch td_vk_attention_dispatch(const td_vk_step *s, uint32_t n_rows);

/* lower_sequence.c: the other ops that know of sequences. */
void td_vk_lower_kv_store(const td_program *p, uint32_t i_op, td_vk_step *s);
/* i_op is the first of them: a norm, where there are any. */
void td_vk_lower_rope_store(const td_program *p, uint32_t i_op, uint32_t n_norms, td_vk_step *s);
void td_vk_lower_delta_net(const td_op *op, td_vk_step *s);
void td_vk_lower_state_keep(const td_op *op, td_vk_step *s);

#endif
