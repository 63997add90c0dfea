/* Which ops one step does together: a dispatch and the barrier before it cost a GPU as much as a
 * small op's work, and a layer has a dozen of those. Ops stay one verb each; here neighbours are
 * recognised by what they read and write:
 *
 *     [experts_sum, [[glu,] add,]] add [, rms_norm]
 *                                        the stream, with what experts add to it, is normed as it
 *                                        is made
 *     rms_norm, add [, rms_norm]         the same of what is normed before it is added
 *     gather, rms_norm                   rows of the stream are normed as they are copied
 *     rms_norm, glu                      heads of a delta net are gated as they are normed
 *     [2 rms_norm,] 2 rope, kv_store     heads of q and k, and what is stored of them
 *     [rms_norm,] 2 rope, kv_store       the same of a latent, which is k's first columns
 *     kv_store | attention               the store of a rotated cache rotates the queries, too
 *     attention, glu                     its join gates what it joins
 *     mat_mul, glu                       gates and what they gate are outputs of one workgroup, if
 *                                        the rows are few
 *     route | mat_mul by expert          the choice lists who chose whom
 *     anything | mat_mul                 rms_norm, glu, attention's join and products (of few rows)
 *                                        quantize what a product reads of them
 *
 * What is computed is the same, bit for bit, and so is every tensor that is written.
 * TD_VK_LIMIT=fusedOps=1 leaves each op its own step, fusedOps=9 does on a software driver what
 * GPUs do. */
#include "kernels/vulkan/lower.h"

/* Ops that a dispatch does at most. A software driver has dispatches for nothing, but pays for each
 * barrier inside of one. */
static uint64_t fused_ops(const td_program *p)
{
    uint64_t n = ((const td_vk_device *)p->dev)->physical.limits.fused_ops;
    return n == UINT64_MAX && p->dev->info.kind == TD_DEVICE_SOFTWARE ? 1 : n;
}

static bool is_same(td_view a, td_view b)
{
    return a.t == b.t && a.col0 == b.col0 && a.n_cols == b.n_cols;
}

static bool is_kind(const td_program *p, uint32_t i, td_op_kind kind)
{
    return i < p->n_ops && p->ops[i].kind == kind;
}

static bool has_same_eps(const td_op *a, const td_op *b) /* two norms */
{
    return memcmp(&a->u.rms_norm.eps, &b->u.rms_norm.eps, sizeof(float)) == 0;
}

/* Rows are those of the output, whose kind says which. */
static bool has_same_rows(const td_op *a, const td_op *b)
{
    return a->out.t->params.rows == b->out.t->params.rows &&
           a->out.t->params.n_rows == b->out.t->params.n_rows;
}

/* A norm of what `add` or a gather makes, in place of nothing that others still read. */
static bool is_norm_of(const td_op *add, const td_op *norm)
{
    bool is_apart =
        norm->out.t != add->out.t && norm->out.t != add->in[0].t && norm->out.t != add->in[1].t;
    return is_same(add->out, norm->in[0]) && norm->u.rms_norm.n_groups == 1 && is_apart &&
           has_same_rows(add, norm);
}

/* One column for all of the shared expert's. */
static bool is_shared_gate(const td_op *glu)
{
    return glu->u.glu.kind == TD_GLU_SIGMOID && glu->in[0].n_cols == 1 && glu->out.n_cols > 1 &&
           is_same(glu->in[1], glu->out) && glu->in[0].t != glu->out.t;
}

/* A norm in place of what is then added to the stream. */
static bool is_post_norm(const td_op *norm, const td_op *add)
{
    return norm->weight && norm->u.rms_norm.n_groups == 1 && is_same(norm->in[0], norm->out) &&
           is_same(norm->out, add->in[1]) && norm->out.t != add->in[0].t &&
           norm->out.t != add->out.t && has_same_rows(norm, add);
}

/* From op i on; the kind says whether there are experts at all. */
td_vk_addition td_vk_find_addition(const td_program *p, uint32_t i)
{
    td_vk_addition a = {0}, none = {0};
    uint32_t begin = i;
    if (is_kind(p, i, TD_OP_GATHER) && is_kind(p, i + 1, TD_OP_RMS_NORM) &&
        is_norm_of(&p->ops[i], &p->ops[i + 1]))
        return (td_vk_addition){.gather = &p->ops[i], .norm = &p->ops[i + 1], .n_ops = 2};
    if (is_kind(p, i, TD_OP_EXPERTS_SUM)) {
        a.experts = &p->ops[i++];
        if (is_kind(p, i, TD_OP_GLU) && is_shared_gate(&p->ops[i]))
            a.gate = &p->ops[i++];
        /* The shared expert's, where two adds follow. */
        if (is_kind(p, i, TD_OP_ADD) && is_kind(p, i + 1, TD_OP_ADD))
            a.shared = &p->ops[i++];
    }
    if (!a.experts && is_kind(p, i, TD_OP_RMS_NORM) && is_kind(p, i + 1, TD_OP_ADD) &&
        is_post_norm(&p->ops[i], &p->ops[i + 1]))
        a.post = &p->ops[i++];
    if (!is_kind(p, i, TD_OP_ADD))
        return none;
    a.add = &p->ops[i++];
    if (is_kind(p, i, TD_OP_RMS_NORM) && is_norm_of(a.add, &p->ops[i]) &&
        (!a.post || has_same_eps(a.post, &p->ops[i])))
        a.norm = &p->ops[i++];
    a.n_ops = i - begin;
    if (!a.experts)
        return a.norm || a.post ? a : none;
    td_view sum = a.experts->out;
    bool is_one = is_same(a.add->in[1], sum) && a.add->in[0].t != sum.t && a.add->out.t != sum.t &&
                  has_same_rows(a.experts, a.add) && a.experts->in[0].t != a.add->out.t &&
                  (a.gate == NULL || a.shared != NULL);
    if (a.shared)
        is_one = is_one && is_same(a.shared->in[0], sum) && is_same(a.shared->out, sum) &&
                 a.shared->in[1].t != sum.t && a.shared->in[1].t != a.add->out.t &&
                 a.shared->in[1].t != a.add->in[0].t && has_same_rows(a.shared, a.add);
    if (a.gate)
        is_one = is_one && is_same(a.gate->out, a.shared->in[1]) &&
                 a.gate->in[0].t != a.add->out.t && a.gate->in[0].t != sum.t;
    if (a.norm) { /* others still read all of these */
        const td_tensor *y = a.norm->out.t;
        is_one = is_one && y != a.experts->in[0].t && y != a.experts->in[1].t &&
                 !(a.shared && y == a.shared->in[1].t) && !(a.gate && y == a.gate->in[0].t);
    }
    return is_one ? a : none;
}

/* Heads that are normed, then gated by columns of another tensor. */
static bool is_norm_gate(const td_program *p, uint32_t i)
{
    if (!is_kind(p, i, TD_OP_RMS_NORM) || !is_kind(p, i + 1, TD_OP_GLU))
        return false;
    const td_op *norm = &p->ops[i], *glu = norm + 1, *reader = td_vk_quantizes_for(p, i + 1);
    bool is_whole = !reader || (reader->weight->params.n_cols == norm->out.n_cols &&
                                norm->out.n_cols / norm->u.rms_norm.n_groups % 32 == 0);
    return glu->u.glu.kind == TD_GLU_SILU && !glu->u.glu.n_scales && glu->u.glu.n_groups == 1 &&
           is_same(norm->out, glu->in[1]) && is_same(glu->in[1], glu->out) &&
           is_same(norm->in[0], norm->out) && glu->in[0].t != glu->out.t &&
           has_same_rows(norm, glu) && is_whole;
}

/* Whether the groups of columns that a product reads are of whole quads of blocks: then their
 * quants lie as those of all columns together. */
static bool is_one_row(td_view x, const td_op *reader)
{
    uint32_t n_k = reader->weight->params.n_cols;
    return n_k % 128 == 0 && x.n_cols == n_k * td_vk_int8_groups(reader);
}

/* Attention, of which a join is a step, and a gate for each of its columns. */
static bool is_gated_attention(const td_program *p, uint32_t i)
{
    if (!is_kind(p, i, TD_OP_ATTENTION) || !is_kind(p, i + 1, TD_OP_GLU))
        return false;
    const td_op *op = &p->ops[i], *glu = op + 1, *reader = td_vk_quantizes_for(p, i + 1);
    bool is_whole = !reader || (is_one_row(op->out, reader) && op->kv->params.head_dim_v % 32 == 0);
    return glu->u.glu.kind == TD_GLU_SIGMOID && !glu->u.glu.n_scales && glu->u.glu.n_groups == 1 &&
           is_same(op->out, glu->in[1]) && is_same(glu->in[1], glu->out) &&
           glu->in[0].n_cols == glu->out.n_cols && glu->in[0].t != glu->out.t &&
           has_same_rows(op, glu) && is_whole && td_vk_has_join(p, op);
}

/* A product whose outputs, or each expert's, are gates and then as many that they gate. */
static bool is_mul_glu(const td_program *p, uint32_t i)
{
    if (!is_kind(p, i, TD_OP_MAT_MUL) || !is_kind(p, i + 1, TD_OP_GLU))
        return false;
    const td_op *mul = &p->ops[i], *glu = mul + 1, *reader = td_vk_quantizes_for(p, i + 1);
    td_view gate = glu->in[0], up = glu->in[1], y = mul->out;
    bool is_by_expert = td_vk_is_by_expert(mul);
    uint32_t n_groups = is_by_expert ? mul->u.mat_mul.n_groups : 1;
    uint32_t n = y.n_cols / (2 * n_groups); /* gates of a group */
    bool is_in_place = is_same(glu->out, gate) && !is_by_expert;
    bool is_apart = glu->out.t != y.t && glu->out.t != mul->in[0].t;
    return (is_by_expert || !mul->u.mat_mul.n_groups) && !glu->u.glu.n_scales &&
           glu->u.glu.n_groups == n_groups && glu->out.n_cols == n * n_groups &&
           (n_groups == 1 || glu->u.glu.stride == 2 * n) && gate.t == y.t && up.t == y.t &&
           gate.col0 == y.col0 && up.col0 == y.col0 + n && gate.n_cols == up.n_cols &&
           gate.n_cols == (n_groups - 1) * 2 * n + n && has_same_rows(mul, glu) &&
           (is_in_place || is_apart) && (!reader || reader->weight->params.n_cols == n) &&
           (is_by_expert || ((const td_vk_weight *)mul->weight)->n_slabs == 1);
}

/* Norms of heads, of q or k, that rope then rotates. */
static bool is_head_norm(const td_op *norm, const td_op *rope)
{
    return is_same(norm->out, rope->in[0]) && is_same(norm->in[0], norm->out) && norm->weight &&
           norm->u.rms_norm.n_groups == norm->out.n_cols / rope->u.rope.head_dim &&
           has_same_rows(norm, rope);
}

/* The latent's, which a latent cache keeps with what is rotated behind it. */
static bool is_latent_norm(const td_op *norm, const td_op *rope, const td_op *store)
{
    return is_same(norm->out, store->in[1]) && is_same(norm->in[0], norm->out) && norm->weight &&
           norm->u.rms_norm.n_groups == 1 && norm->out.col0 == rope->out.col0 &&
           norm->out.n_cols < rope->u.rope.head_dim && has_same_rows(norm, rope);
}

static bool is_overlapping(td_view a, td_view b)
{
    return a.t == b.t && a.col0 < b.col0 + b.n_cols && b.col0 < a.col0 + a.n_cols;
}

/* q's rope comes after n_norms: two, whose eps is the same, of heads, or one of the latent. */
static bool is_rope_store(const td_program *p, uint32_t i, uint32_t n_norms)
{
    uint32_t first = i + n_norms;
    if (!is_kind(p, first, TD_OP_ROPE) || !is_kind(p, first + 1, TD_OP_ROPE) ||
        !is_kind(p, first + 2, TD_OP_KV_STORE))
        return false;
    const td_op *q = &p->ops[first], *k = q + 1, *store = q + 2;
    const td_kv_params *kv = &store->kv->params;
    bool is_v_apart =
        kv->is_latent ? store->in[1].t == k->out.t : !is_overlapping(k->out, store->in[1]);
    bool is_one = q->u.rope.kind == k->u.rope.kind && q->u.rope.col0 == k->u.rope.col0 &&
                  is_same(q->in[1], k->in[1]) && is_v_apart && is_same(store->in[0], k->out) &&
                  q->u.rope.head_dim == kv->head_dim_k && k->u.rope.head_dim == kv->head_dim_k &&
                  !is_overlapping(q->out, k->out) && !is_overlapping(q->out, store->in[1]) &&
                  (!td_vk_rotates_q(p, first + 2) || is_same(q->out, store[1].in[0])) &&
                  has_same_rows(q, k) &&
                  td_max_u32(kv->head_dim_k, kv->head_dim_v) <= TD_VK_ROPE_DIM_MAX;
    for (uint32_t k_op = i; k_op < first; k_op++)
        is_one = is_one && is_kind(p, k_op, TD_OP_RMS_NORM);
    if (!is_one || !n_norms)
        return is_one;
    const td_op *q_norm = &p->ops[i], *k_norm = q_norm + 1;
    if (n_norms == 1)
        return kv->is_latent && is_latent_norm(q_norm, k, store);
    return !kv->is_latent && is_head_norm(q_norm, q) && is_head_norm(k_norm, k) &&
           has_same_eps(q_norm, k_norm);
}

td_vk_fusion td_vk_fuse(const td_program *p, uint32_t i_op)
{
    uint64_t n_most = fused_ops(p);
    uint32_t n_added = td_vk_find_addition(p, i_op).n_ops;
    if (n_added && n_most >= n_added)
        return (td_vk_fusion){TD_VK_FUSE_ADD_NORM, n_added};
    if (n_most >= 2 && is_norm_gate(p, i_op))
        return (td_vk_fusion){TD_VK_FUSE_NORM_GATE, 2};
    if (n_most >= 2 && is_mul_glu(p, i_op))
        return (td_vk_fusion){TD_VK_FUSE_MUL_GLU, 2};
    if (n_most >= 2 && is_gated_attention(p, i_op))
        return (td_vk_fusion){TD_VK_FUSE_ATTEND_GATE, 2};
    for (uint32_t n_norms = 0; n_norms <= 2; n_norms++)
        if (n_most >= 3 + n_norms && is_rope_store(p, i_op, n_norms))
            return (td_vk_fusion){TD_VK_FUSE_ROPE_STORE, 3 + n_norms};
    return (td_vk_fusion){TD_VK_FUSE_NONE, 1};
}

bool td_vk_rotates_q(const td_program *p, uint32_t i_op)
{
    if (fused_ops(p) < 2 || !is_kind(p, i_op, TD_OP_KV_STORE) ||
        !is_kind(p, i_op + 1, TD_OP_ATTENTION))
        return false;
    const td_op *store = &p->ops[i_op], *reader = store + 1;
    td_view q = reader->in[0];
    return store->kv == reader->kv && store->kv->params.rotates_k &&
           store->batch.positions == reader->batch.positions && !is_overlapping(q, store->in[0]) &&
           !is_overlapping(q, store->in[1]);
}

/* A product that writes whole blocks, side by side. */
static bool is_of_blocks(const td_program *p, const td_op *mul)
{
    uint32_t n_groups = mul->u.mat_mul.n_groups;
    bool is_dense = !n_groups || (mul->u.mat_mul.y_stride == td_group_rows(&mul->weight->params) &&
                                  mul->u.mat_mul.y_stride % 32 == 0);
    return is_dense && !td_vk_is_by_expert(mul) && !is_mul_glu(p, (uint32_t)(mul - p->ops)) &&
           ((const td_vk_weight *)mul->weight)->n_slabs == 1;
}

/* Whether what a writes can be quantized as it is written, for a reader of it. */
static bool can_quantize(const td_program *p, const td_op *a, const td_op *reader)
{
    td_view x = reader->in[0];
    uint32_t n_k = reader->weight->params.n_cols;
    if (!is_same(a->out, x) || n_k % 32 || (n_k != x.n_cols && reader->u.mat_mul.x_stride != n_k))
        return false;
    switch (a->kind) {
    case TD_OP_GLU:
        return true;
    case TD_OP_RMS_NORM:
        return n_k == x.n_cols && x.n_cols / a->u.rms_norm.n_groups % 32 == 0;
    case TD_OP_MAT_MUL:
        return is_one_row(x, reader) && is_of_blocks(p, a);
    case TD_OP_ATTENTION:
        return is_one_row(x, reader) && a->kv->params.head_dim_v % 32 == 0 && td_vk_has_join(p, a);
    default:
        return false;
    }
}

const td_op *td_vk_quantizes_for(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    if (fused_ops(p) < 2 || !op->out.t)
        return NULL;
    for (uint32_t i = i_op + 1; i < p->n_ops; i++) {
        const td_op *reader = &p->ops[i];
        if (td_vk_has_int8(reader) && reader->in[0].t == op->out.t)
            return can_quantize(p, op, reader) ? reader : NULL;
        if (writes(reader, op->out.t))
            return NULL;
    }
    return NULL;
}

bool td_vk_lists_choices(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    if (op->kind != TD_OP_ROUTE || fused_ops(p) < 2 || p->params.n_rows_max < 2)
        return false;
    for (uint32_t i = i_op + 1; i < p->n_ops && !writes(&p->ops[i], op->writes[0]); i++)
        if (td_vk_is_by_expert(&p->ops[i]) && p->ops[i].in[1].t == op->writes[0])
            return true;
    return false;
}
