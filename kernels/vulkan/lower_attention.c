/* Lowering of attention. Rows of a sequence that stand together are cut into tiles, once for all
 * layers of a program (list_tiles.comp): where they are is only known when it runs. A slice of a
 * workgroup of attention.comp takes the pairs of a row and a query head that a tile and a key/value
 * head have. How many slices a workgroup has, and how many pairs each at most, is chosen by the
 * number of rows; no pair's arithmetic depends on it (law 1). */
#include "kernels/vulkan/lower.h"

#define PAGES_GUESSED   64u /* that a row reads, at first */
#define STRAND_PAGES    4u  /* of a full cache, at least */
#define STRANDS_MAX     64u
#define STRAND_FLOATS   (1u << 18) /* a row's values of all heads and strands, at most */
#define SOFTWARE_PAGES  16u        /* the same on a software driver: threads, not latency */
#define SOFTWARE_MAX    16u
#define QUADS_MAX       4u
#define SLICES_MAX      4u
#define SLICE_VARIANTS  3u  /* of one slice, of QUADS_MAX, 2 and 1 quads */
#define VALUE_UNIT      8u  /* columns of a lane */
#define VALUES_MAX      32u /* sums a lane keeps in registers */
#define VALUES_FEW      64u /* of up to FEW_QUADS, which need fewer for other things */
#define FEW_QUADS       2u
#define VALUES_SOFTWARE 128u /* there it is a stack */

/* Sums of values that a lane has where a slice takes so many pairs: attention.comp. */
static uint32_t lane_values(uint32_t head_dim_v, uint32_t pairs, bool is_software)
{
    uint32_t units = td_div_up(head_dim_v, VALUE_UNIT);
    uint32_t fit = units < TD_PAGE_POSITIONS ? TD_PAGE_POSITIONS / units : 1;
    uint32_t parts = is_software ? 1 : td_min_u32(fit, pairs);
    return td_div_up(units, TD_PAGE_POSITIONS) * td_div_up(pairs, parts) * VALUE_UNIT;
}

static uint32_t values_max(uint32_t quads, bool is_software)
{
    return is_software ? VALUES_SOFTWARE : quads <= FEW_QUADS ? VALUES_FEW : VALUES_MAX;
}

void td_vk_attention_shape(const td_vk_device *d, uint32_t head_dim_v, uint32_t n_group,
                           td_vk_step *s)
{
    td_vk_tiling *t = &s->tiling;
    s->is_software = d->physical.limits.loads_by_lane;
    t->n_group = n_group;
    t->quads = QUADS_MAX;
    while (t->quads > 1 && lane_values(head_dim_v, 4 * t->quads, s->is_software) >
                               values_max(t->quads, s->is_software))
        t->quads /= 2;
    t->block_heads = td_min_u32(n_group, 4 * t->quads);
    t->n_blocks = td_div_up(n_group, t->block_heads);
    t->tile_rows = td_max_u32(4 * t->quads / n_group, 1);
    t->has_one_variant = s->is_software && d->physical.limits.row_variants == 1;
    s->key.n_spec = 8;
    s->key.spec[6] = 0;
    if (s->is_software)
        s->key.spec[6] = d->head.info.subgroup_size >= 8 ? 8 : 4;
    s->key.has_full_subgroups = d->physical.limits.has_full_subgroups;
}

/* Variants of one slice with 1, 2, 4 quads, then of 2 and 4 slices with the most. */
static uint32_t variant_slices(uint32_t i)
{
    return i < SLICE_VARIANTS ? 1 : 2u << (i - SLICE_VARIANTS);
}

uint32_t td_vk_attention_variant(const td_vk_tiling *t, uint32_t n_rows)
{
    uint32_t n_units = td_div_up(n_rows, t->tile_rows) * t->n_blocks, i = 0;
    if (n_units > 2 || t->has_one_variant)
        return SLICE_VARIANTS + 1;
    if (n_units > 1)
        return SLICE_VARIANTS;
    while ((4u << i) < n_rows * t->block_heads)
        i++;
    return i;
}

void td_vk_attention_key(const td_vk_step *s, uint32_t i, td_vk_pipeline_key *key)
{
    *key = s->key;
    key->spec[4] = i < SLICE_VARIANTS ? td_min_u32(1u << i, s->tiling.quads) : s->tiling.quads;
    key->spec[5] = TD_PAGE_POSITIONS * variant_slices(i);
}

td_vk_dispatch td_vk_attention_dispatch(const td_vk_step *s, uint32_t n_rows)
{
    const td_vk_tiling *t = &s->tiling;
    uint32_t i = td_vk_attention_variant(t, n_rows), n_slices = variant_slices(i);
    uint32_t n_groups =
        TD_VK_ATTENTION_GROUPS(n_rows, t->tile_rows, t->n_slots, t->n_blocks, n_slices);
    return (td_vk_dispatch){s->pipelines[i], n_groups * t->n_head_kv, 1, s->groups_z, n_slices};
}

/* Pages a row can see. */
static uint32_t visible_pages(const td_op *op)
{
    const td_attention_params *a = &op->u.attention;
    uint32_t n = op->batch.pages->params.n_cols;
    if (a->window)
        n = td_min_u32(n, td_div_up(a->window, TD_PAGE_POSITIONS) + 1);
    if (a->chunk)
        n = td_min_u32(n, td_div_up(a->chunk, TD_PAGE_POSITIONS) + 1);
    return n;
}

/* Into how many workgroups a head's positions are dealt: by what a row can see at most, so that it
 * is the same for every row and round. Prefill has rows enough. */
static uint32_t strands_of(uint32_t n_head, uint32_t head_dim_v, uint32_t n_pages)
{
    uint32_t n = td_min_u32(STRANDS_MAX, STRAND_FLOATS / (n_head * head_dim_v));
    return td_max_u32(td_min_u32(n_pages / STRAND_PAGES, n), 1);
}

static uint32_t n_strands(const td_program *p, const td_op *op)
{
    uint32_t n_pages = visible_pages(op);
    if (p->params.mode == TD_MODE_PREFILL)
        return 1;
    uint32_t n = strands_of(op->u.attention.n_head, op->kv->params.head_dim_v, n_pages);
    if (!((const td_vk_device *)p->dev)->physical.limits.loads_by_lane)
        return n;
    return td_min_u32(n, td_max_u32(td_min_u32(n_pages / SOFTWARE_PAGES, SOFTWARE_MAX), 1));
}

uint64_t td_vk_attention_bytes(uint32_t n_rows, uint32_t n_head, uint32_t head_dim_v,
                               uint32_t n_ctx)
{
    uint64_t n = strands_of(n_head, head_dim_v, td_div_up(n_ctx, TD_PAGE_POSITIONS));
    return 4 * td_min_u32(n_rows, TD_VERIFY_ROWS_MAX) * n_head * n * (head_dim_v + 2ull);
}

/* The strands' results, for the tensor they will end up in. */
static td_vk_buffer *partials_of(const td_program *p, const td_op *op, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)op->out.t;
    uint64_t n_rows = td_min_u32(op->out.t->params.n_rows, TD_VERIFY_ROWS_MAX);
    uint64_t n_floats =
        n_rows * op->u.attention.n_head * n_strands(p, op) * (op->kv->params.head_dim_v + 2);
    return td_vk_side_buffer(op->out.t, t->partials, 4 * n_floats, err);
}

static td_vk_buffer *tiles_of(td_tensor *slots, td_err *err)
{
    return td_vk_side_buffer(slots, ((td_vk_tensor *)slots)->lists,
                             4 * (TD_VK_TILE_HEAD + TD_VK_TILE_WORDS * TD_VK_TILE_ROWS), err);
}

static td_vk_tiling tiling_of(const td_program *p, const td_op *op)
{
    td_vk_step s = {0};
    td_vk_attention_shape((const td_vk_device *)p->dev, op->kv->params.head_dim_v,
                          op->u.attention.n_head / op->kv->params.n_head_kv, &s);
    return s.tiling;
}

/* Whether the last attention before this one left the tiles as this one wants them. */
static bool is_listed(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    for (uint32_t i = i_op; i-- > 0;) {
        const td_op *before = &p->ops[i];
        if (writes(before, op->batch.slots) || writes(before, op->batch.positions))
            return false;
        if (before->kind == TD_OP_ATTENTION && before->batch.slots == op->batch.slots)
            return before->batch.positions == op->batch.positions &&
                   tiling_of(p, before).tile_rows == tiling_of(p, op).tile_rows;
    }
    return false;
}

static bool lower_list_tiles(const td_program *p, const td_op *op, td_vk_step *s, td_err *err)
{
    td_vk_buffer *tiles = tiles_of(op->batch.slots, err);
    if (!tiles)
        return false;
    TD_ASSERT(p->params.n_rows_max <= TD_VK_TILE_ROWS);
    s->key.shader = "list_tiles";
    bind_in(s, buffer_of(op->batch.positions));
    bind_in(s, buffer_of(op->batch.slots));
    bind_out(s, tiles);
    struct push_list_tiles push = {.tile_rows = tiling_of(p, op).tile_rows};
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->groups_y_max = 1;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT;
    return true;
}

static bool lower_join(const td_program *p, uint32_t i_op, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *op = &p->ops[i_op];
    bool is_gated = td_vk_fuse(p, i_op).kind == TD_VK_FUSE_ATTEND_GATE;
    td_view none = {0}, gate = is_gated ? op[1].in[0] : none;
    const td_op *reader = td_vk_quantizes_for(p, i_op + is_gated);
    bool has_strands = n_strands(p, op) > 1;
    td_vk_buffer *partials = has_strands ? partials_of(p, op, err) : NULL;
    if (has_strands && !partials)
        return false;
    s->key.shader = "attention_join";
    s->key.n_spec = 3;
    s->key.spec[0] = reader != NULL;
    s->key.spec[1] = is_gated;
    s->key.spec[2] = op->kv->params.rotates_v ? op->kv->params.head_dim_v : 0;
    if (partials)
        bind_in(s, partials);
    else
        bind(s, &d->dummy);
    bind_view_out(s, op->out); /* it may be read too, but being written orders it with both */
    bind_vector(d, s, op->u.attention.sinks);
    if (!td_vk_bind_int8(d, s, reader, err))
        return false;
    if (is_gated)
        bind_view_in(s, gate);
    else
        bind(s, &d->dummy);
    struct push_attention_join push = {
        .n_head = op->u.attention.n_head,
        .head_dim_v = op->kv->params.head_dim_v,
        .n_strands = has_strands ? n_strands(p, op) : 0,
        .has_sinks = op->u.attention.sinks != NULL,
        VIEW(y, op->out),
        .gate_col0 = gate.col0,
        .gate_stride = is_gated ? stride(gate) : 0,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = push.n_head;
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * op->out.n_cols;
    return true;
}

static void lower_rotate(const td_op *op, td_vk_step *s)
{
    uint32_t head_dim = op->kv->params.head_dim_k;
    s->key.shader = "rotate";
    s->key.n_spec = 1;
    s->key.spec[0] = head_dim;
    bind_view_out(s, op->in[0]); /* it is read too, but being written orders it with both */
    struct push_rotate push = {VIEW(y, op->in[0])};
    set_push(s, &push, sizeof push);
    s->groups_x = op->u.attention.n_head;
    s->work_per_row = 4 * TD_VK_WORK_PER_ELEMENT * head_dim * op->u.attention.n_head;
}

/* The push constants but n_rows, which comes with the recording. */
static void set_attention_push(const td_op *op, uint32_t strands, td_vk_step *s)
{
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_attention_params *a = &op->u.attention;
    struct push_attention push = {
        .n_head = a->n_head,
        .n_head_kv = s->tiling.n_head_kv,
        .k_words = kv->k_words,
        .v_words = kv->v_words,
        .scale = a->scale,
        .window = a->window,
        .chunk = a->chunk,
        .softcap = a->softcap,
        .has_sinks = a->sinks != NULL,
        VIEW(q, op->in[0]),
        VIEW(y, op->out),
        .n_pages_max = op->batch.pages->params.n_cols,
        .n_slots = s->tiling.n_slots,
        .n_pages = kv->head.params.n_pages,
        .n_strands = strands,
        .tile_rows = s->tiling.tile_rows,
        .n_blocks = s->tiling.n_blocks,
        .block_heads = s->tiling.block_heads,
    };
    set_push(s, &push, sizeof push);
}

static bool lower_attention(const td_program *program, const td_op *op, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)program->dev;
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    const td_kv_params *p = &kv->head.params;
    uint32_t strands = n_strands(program, op);
    td_vk_buffer *partials = strands > 1 ? partials_of(program, op, err) : NULL;
    td_vk_buffer *tiles = tiles_of(op->batch.slots, err);
    if (!tiles || (strands > 1 && !partials))
        return false;
    s->key.shader = "attention";
    set_cache_types(s, p);
    td_vk_attention_shape(d, p->head_dim_v, op->u.attention.n_head / p->n_head_kv, s);
    s->key.spec[7] = p->is_latent;
    s->tiling.n_head_kv = p->n_head_kv;
    s->tiling.n_slots = op->batch.pages->params.n_rows;
    bind_view_in(s, op->in[0]);
    bind_in(s, &kv->k);
    bind_in(s, p->is_latent ? &kv->k : &kv->v);
    bind_in(s, buffer_of(op->batch.positions));
    bind_in(s, tiles);
    bind_in(s, buffer_of(op->batch.pages));
    if (partials)
        bind_out(s, partials);
    else
        bind_view_out(s, op->out);
    bind_vector(d, s, op->u.attention.sinks);
    set_attention_push(op, strands, s);
    s->groups_z = strands;
    uint32_t n_pages = td_min_u32(visible_pages(op), PAGES_GUESSED);
    s->work_per_row = (double)op->u.attention.n_head * (p->head_dim_k + p->head_dim_v) *
                      TD_PAGE_POSITIONS * n_pages;
    return true;
}

bool td_vk_has_join(const td_program *p, const td_op *op)
{
    return n_strands(p, op) > 1 || op->kv->params.rotates_v;
}

/* Whether no store has rotated the queries for rotated keys. */
static bool has_rotation(const td_program *p, uint32_t i_op)
{
    return p->ops[i_op].kv->params.rotates_k && !(i_op > 0 && td_vk_rotates_q(p, i_op - 1));
}

uint32_t td_vk_count_attention(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    return 1u + !is_listed(p, i_op) + has_rotation(p, i_op) + td_vk_has_join(p, op);
}

bool td_vk_lower_attention(const td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s,
                           td_err *err)
{
    const td_op *op = &p->ops[i_op];
    if (!is_listed(p, i_op)) {
        if (i == 0)
            return lower_list_tiles(p, op, s, err);
        i--;
    }
    if (has_rotation(p, i_op) && i-- == 0) {
        lower_rotate(op, s);
        return true;
    }
    return i == 0 ? lower_attention(p, op, s, err) : lower_join(p, i_op, s, err);
}
