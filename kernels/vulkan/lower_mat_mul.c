/* Lowering of mat_mul in its three kinds (kernels/ops.h): one product, one for each group (heads),
 * or by expert. What a product reads may have to be made first: activations of quantized weights in
 * bytes, and of experts the lists of who chose them. Both lie beside their tensor and serve the ops
 * that follow. */
#include "kernels/vulkan/lower.h"

#include "kernels/vulkan/pack.h"

#define INT8_BLOCKS 64u  /* a workgroup's blocks of quantize */
#define INT8_BYTES  48u  /* of a block of 32 */
#define INT8_QUAD   128u /* elements that rows are padded to */

#define UNROLLED_MAX 8u /* mat_vec.comp's own choice */

/* The kernels for 1, 2, 3.. rows: mat_vec, which keeps the sums of all rows of an output in an
 * invocation, then mat_tile, which shares weights and rows between invocations: rows_a_lane of
 * row_lanes invocations and 64 / outputs times as many beside them. A software driver, which loads
 * lane by lane, gains from few rows on, and from more of them to a lane, for what is loaded of the
 * weight serves all of these; more outputs take its compiler seconds. */
typedef struct {
    uint32_t n_rows;                          /* of a pass */
    uint32_t rows_a_lane, row_lanes, outputs; /* of mat_tile; 0: mat_vec */
} variant;

#define GPU_VARIANTS      11u
#define SOFTWARE_VARIANTS 9u
#define FEW_VARIANTS      2u

static const variant gpu_variants[GPU_VARIANTS] = {
    {.n_rows = 1},  {.n_rows = 2},  {.n_rows = 4},  {.n_rows = 6},  {.n_rows = 8},   {.n_rows = 10},
    {.n_rows = 12}, {.n_rows = 16}, {32, 2, 16, 4}, {64, 4, 16, 4}, {128, 8, 16, 4},
};
static const variant software_variants[SOFTWARE_VARIANTS] = {
    {.n_rows = 1},  {.n_rows = 2},  {.n_rows = 4},  {8, 8, 1, 4},    {16, 8, 2, 4},
    {32, 16, 2, 4}, {48, 16, 3, 4}, {64, 16, 4, 4}, {128, 8, 16, 8},
};
/* With TD_VK_LIMIT=rowVariants=1, for tests that are about other things than these. */
static const variant few_variants[FEW_VARIANTS] = {{.n_rows = 4}, {128, 8, 16, 8}};

bool td_vk_is_by_expert(const td_op *op)
{
    return op->kind == TD_OP_MAT_MUL && op->u.mat_mul.is_by_expert;
}

bool td_vk_has_int8(const td_op *op)
{
    return op->kind == TD_OP_MAT_MUL && op->weight->params.type->has_int8_activations;
}

/* Groups of columns that the products read; 1: all read the same. */
uint32_t td_vk_int8_groups(const td_op *op)
{
    return op->u.mat_mul.x_stride ? op->u.mat_mul.n_groups : 1;
}

static bool reads_same(const td_op *a, const td_op *b)
{
    td_view x = a->in[0], y = b->in[0];
    return x.t == y.t && x.col0 == y.col0 && x.n_cols == y.n_cols &&
           td_vk_int8_groups(a) == td_vk_int8_groups(b) &&
           a->u.mat_mul.x_stride == b->u.mat_mul.x_stride;
}

/* Whether the rows that op i reads are quantized already: by the op that wrote them, or for an
 * earlier one that reads the same, with nothing else of the tensor quantized and nothing written to
 * it since. */
static bool is_quantized(const td_program *p, uint32_t i)
{
    const td_op *reader = &p->ops[i];
    while (i-- > 0) {
        const td_op *op = &p->ops[i];
        if (writes(op, reader->in[0].t))
            return td_vk_quantizes_for(p, i) && reads_same(td_vk_quantizes_for(p, i), reader);
        if (td_vk_has_int8(op) && op->in[0].t == reader->in[0].t)
            return reads_same(op, reader);
    }
    return false;
}

/* Whether the choices that op i goes by are listed already, and not written since. */
static bool is_listed(const td_program *p, uint32_t i)
{
    const td_tensor *experts = p->ops[i].in[1].t;
    while (i-- > 0) {
        const td_op *op = &p->ops[i];
        if (writes(op, experts))
            return td_vk_lists_choices(p, i);
        if (td_vk_is_by_expert(op) && op->in[1].t == experts)
            return true;
    }
    return false;
}

static bool is_aligned(const td_op *op)
{
    td_view x = op->in[0];
    return (x.col0 | stride(x) | op->u.mat_mul.x_stride) % 4 == 0 &&
           op->weight->params.n_cols % 32 == 0;
}

/* Blocks of 32 int8 activations that a row has for each group: its columns padded to whole quads of
 * blocks. */
uint32_t td_vk_int8_blocks(const td_op *op)
{
    return td_round_up(op->weight->params.n_cols, INT8_QUAD) / 32;
}

td_vk_buffer *td_vk_int8_of(const td_op *op, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)op->in[0].t;
    uint64_t n_blocks = (uint64_t)td_vk_int8_blocks(op) * td_vk_int8_groups(op);
    return td_vk_side_buffer(op->in[0].t, t->int8, t->head.params.n_rows * n_blocks * INT8_BYTES,
                             err);
}

/* Of 32 columns INT8_BYTES; of groups of columns each is padded, by half of a narrow one. */
uint64_t td_vk_side_bytes(const td_tensor_params *p)
{
    uint64_t n_blocks = (p->n_cols + p->n_cols / 3 + INT8_QUAD) / 32 + 1;
    return p->n_rows * n_blocks * INT8_BYTES;
}

static bool lower_quantize(const td_op *op, td_vk_step *s, td_err *err)
{
    td_view x = op->in[0];
    td_vk_buffer *int8 = td_vk_int8_of(op, err);
    if (!int8)
        return false;
    s->key.shader = "quantize";
    s->key.n_spec = 1;
    s->key.spec[0] = is_aligned(op);
    bind_view_in(s, x);
    bind_out(s, int8);
    struct push_quantize push = {
        .n_k = op->weight->params.n_cols,
        .n_blocks = td_vk_int8_blocks(op),
        .n_groups = td_vk_int8_groups(op),
        VIEW(x, x),
        .x_group = op->u.mat_mul.x_stride,
    };
    set_push(s, &push, sizeof push);
    s->groups_x = td_div_up(push.n_groups * push.n_blocks, INT8_BLOCKS);
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * x.n_cols;
    return true;
}

td_vk_buffer *td_vk_lists_of(td_tensor *experts, td_err *err)
{
    uint64_t n_choices = (uint64_t)experts->params.n_rows * experts->params.n_cols;
    return td_vk_side_buffer(experts, ((td_vk_tensor *)experts)->lists,
                             4 * (TD_VK_LIST_WORDS + n_choices), err);
}

static bool lower_list_experts(const td_op *op, td_vk_step *s, td_err *err)
{
    td_tensor *experts = op->in[1].t;
    td_vk_buffer *lists = td_vk_lists_of(experts, err);
    if (!lists)
        return false;
    s->key.shader = "list_experts";
    bind_in(s, buffer_of(experts));
    bind_out(s, lists);
    struct push_list_experts push = {.n_used = experts->params.n_cols};
    set_push(s, &push, sizeof push);
    s->groups_x = 1;
    s->groups_y_max = 1;
    s->n_rows_min = 2; /* the choices of a single row are its list already */
    s->work_per_row = TD_VK_WORK_PER_ELEMENT * push.n_used;
    return true;
}

static void count_variants(const td_device *dev, const td_type_info *type, td_vk_step *s)
{
    s->is_software = dev->info.kind == TD_DEVICE_SOFTWARE;
    s->has_few_variants =
        s->is_software && ((const td_vk_device *)dev)->physical.limits.row_variants == 1;
    s->n_row_variants = s->has_few_variants ? FEW_VARIANTS
                        : s->is_software    ? SOFTWARE_VARIANTS
                                            : GPU_VARIANTS;
    if (type->id == TD_TYPE_Q2_K && !s->is_software) /* four scales leave eight rows no registers */
        s->n_row_variants--;
}

/* Slices cut k among the subgroups of a workgroup, as many as have something to do and the device's
 * workgroups hold: on a GPU memory is slow and units are many. A software driver runs a workgroup
 * on one thread. Part of law 1's arithmetic: it must not depend on rows. */
void td_vk_mat_mul_shape(const td_vk_device *d, const td_type_info *type, uint32_t n_k,
                         uint32_t n_o, td_vk_step *s)
{
    s->key.shader = td_vk_variant("mat_vec", type);
    s->tile_shader = td_vk_variant("mat_tile", type);
    count_variants(&d->head, type, s);
    const td_vk_limits *l = &d->physical.limits;
    uint64_t n_most = (l->invocations < l->size_x ? l->invocations : l->size_x) / TD_VK_PANEL;
    uint32_t subgroup = d->head.info.subgroup_size;
    if (s->is_software && d->physical.limits.has_full_subgroups && (subgroup == 4 || subgroup == 8))
        s->subgroup = subgroup;
    uint32_t n = n_k / (s->is_software ? 2048 : INT8_QUAD), n_slices = 1;
    while (2 * n_slices <= n && 2 * n_slices <= n_most && n_slices < TD_VK_SLICES_MAX)
        n_slices *= 2;
    s->n_panels = td_div_up(n_o, TD_VK_PANEL);
    /* [4] stays 0, the plain kind, unless the caller sets another. What is unrolled, [5], is the
     * shader's choice on a GPU, and nothing on a software driver, whose compiler takes long. */
    s->key.n_spec = s->is_software ? 6 : 5;
    s->key.spec[1] = TD_VK_PANEL * n_slices;
    s->key.spec[2] = 1;
    s->key.spec[3] = 1;
    s->key.has_full_subgroups = l->has_full_subgroups;
}

/* What of the push constants follows from groups, of the weight and of what it reads and writes. */
static void set_groups(const td_op *op, uint32_t i_slab, struct push_mat_mul *push, td_vk_step *s)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    uint32_t m = td_group_rows(&w->head.params);
    push->n_o = m;
    push->o0 = 0;
    push->group0 = i_slab * (w->rows_per_slab / m);
    push->n_groups = td_vk_slab_rows(w, i_slab) / m;
    push->x_group = op->u.mat_mul.x_stride;
    if (td_vk_has_int8(op) && push->x_group)
        push->x_group = td_vk_int8_blocks(op) * (INT8_BYTES / 16);
    push->y_group = op->u.mat_mul.y_stride;
    s->groups_z = push->n_groups;
    s->key.spec[4] = TD_VK_MUL_GROUPS;
    if (td_vk_is_by_expert(op)) {
        s->key.spec[4] = TD_VK_MUL_EXPERT;
        s->n_experts = w->head.params.n_groups;
        push->n_used = s->n_used = op->in[1].n_cols;
    } else if (push->x_group) { /* begin at the slab's first group */
        push->x_col0 += push->group0 * push->x_group;
    }
}

/* What a slab of a weight without groups writes. */
static td_view slab_columns(const td_op *op, uint32_t i_slab)
{
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    uint32_t o0 = i_slab * w->rows_per_slab;
    return (td_view){op->out.t, op->out.col0 + o0, td_vk_slab_rows(w, i_slab)};
}

static const td_op *glu_of(const td_program *p, uint32_t i_op)
{
    return td_vk_fuse(p, i_op).kind == TD_VK_FUSE_MUL_GLU ? &p->ops[i_op + 1] : NULL;
}

/* What a product does besides: glu, or NULL, and it quantizes what it makes; both are specialized
 * in mat_vec alone. */
static bool add_glu(const td_program *p, const td_op *op, const td_op *glu,
                    struct push_mat_mul *push, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->dev;
    const td_op *reader = td_vk_quantizes_for(p, (uint32_t)((glu ? glu : op) - p->ops));
    s->key.spec[7] = reader != NULL;
    if (glu)
        bind_view_out(s, glu->out);
    else
        bind(s, &d->dummy);
    if (!td_vk_bind_int8(d, s, reader, err))
        return false;
    if (!glu && reader) {
        push->n_blocks = td_vk_int8_blocks(reader) * td_vk_int8_groups(reader);
        s->n_gate_panels = td_div_up(push->n_o, TD_VK_PANEL);
    }
    if (!glu)
        return true;
    push->gated_col0 = glu->out.col0;
    push->gated_stride = stride(glu->out);
    push->n_blocks = reader ? td_vk_int8_blocks(reader) : 0;
    push->is_in_place = glu->out.t == glu->in[0].t;
    s->n_gate_panels = reader ? push->n_blocks : td_div_up(push->n_o / 2, TD_VK_GATES);
    s->key.spec[6] = 1 + glu->u.glu.kind;
    return true;
}

static bool lower_product(const td_program *program, const td_op *op, uint32_t i_slab,
                          td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)program->dev;
    const td_op *glu = glu_of(program, (uint32_t)(op - program->ops));
    const td_vk_weight *w = (const td_vk_weight *)op->weight;
    const td_weight_params *p = &w->head.params;
    td_view x = op->in[0];
    const td_vk_buffer *int8 = NULL, *lists = &d->dummy;
    if (td_vk_has_int8(op) && !(int8 = td_vk_int8_of(op, err)))
        return false;
    if (td_vk_is_by_expert(op) && !(lists = td_vk_lists_of(op->in[1].t, err)))
        return false;
    if (int8)
        bind_in(s, int8);
    else
        bind_view_in(s, x);
    bind(s, &w->slabs[i_slab]);
    bind_vector(d, s, op->bias);
    if (op->u.mat_mul.n_groups && !td_vk_is_by_expert(op))
        bind_parts(s, op->out, op->u.mat_mul.y_stride, 0, td_group_rows(p), true);
    else
        bind_view_out(s, op->u.mat_mul.n_groups ? op->out : slab_columns(op, i_slab));
    bind_in(s, td_vk_is_by_expert(op) ? buffer_of(op->in[1].t) : &d->dummy);
    bind_in(s, lists);
    struct push_mat_mul push = {
        .n_k = p->n_cols,
        .n_o = td_vk_slab_rows(w, i_slab),
        .o0 = i_slab * w->rows_per_slab,
        .w_units = w->n_units,
        .w_pitch = w->panel_rows,
        .has_bias = op->bias != NULL,
        .x_col0 = int8 ? 0 : x.col0,
        .x_stride =
            int8 ? td_vk_int8_groups(op) * td_vk_int8_blocks(op) * (INT8_BYTES / 16) : stride(x),
        VIEW(y, op->out),
    };
    s->groups_z = 1;
    if (op->u.mat_mul.n_groups)
        set_groups(op, i_slab, &push, s);
    if (!add_glu(program, op, glu, &push, s, err))
        return false;
    set_push(s, &push, sizeof push);
    td_vk_mat_mul_shape(d, p->type, p->n_cols, push.n_o, s);
    s->key.spec[3] = int8 || is_aligned(op);
    s->work_per_row = (double)push.n_o * p->n_cols * (s->n_used ? s->n_used : s->groups_z);
    return true;
}

static const variant *find_variant(const td_vk_step *s, uint32_t i)
{
    TD_ASSERT(i < s->n_row_variants);
    return s->has_few_variants ? &few_variants[i]
           : s->is_software    ? &software_variants[i]
                               : &gpu_variants[i];
}

uint32_t td_vk_variant_rows(const td_vk_step *s, uint32_t i) { return find_variant(s, i)->n_rows; }

/* Outputs of an invocation of mat_vec. One, on a GPU: many small workgroups hide its latency. A
 * software driver loads lane by lane, which makes what of x it loads worth sharing between outputs:
 * two, as more of them are little faster and take its compiler seconds. */
static uint32_t vec_outputs(const td_vk_step *s)
{
    return s->is_software && s->n_panels >= 4 ? 2 : 1; /* a second thread finds work */
}

void td_vk_row_variant(const td_vk_step *s, uint32_t i, td_vk_pipeline_key *key)
{
    const variant *v = find_variant(s, i);
    *key = s->key;
    key->spec[0] = v->n_rows;
    key->spec[2] = vec_outputs(s);
    if (s->n_gate_panels) {
        key->spec[5] = s->is_software ? 0 : UNROLLED_MAX;
        key->n_spec = 8;
    }
    if (!v->rows_a_lane)
        return;
    key->shader = s->tile_shader;
    key->has_full_subgroups = s->subgroup != 0;
    key->n_spec = 7;
    key->spec[0] = v->rows_a_lane;
    key->spec[1] = v->row_lanes * (TD_VK_PANEL / v->outputs);
    key->spec[2] = v->outputs;
    key->spec[5] = s->key.spec[1] / TD_VK_PANEL;
    key->spec[6] = s->subgroup;
    key->spec[7] = 0;
}

static bool needs_quantize(const td_program *p, uint32_t i_op)
{
    return td_vk_has_int8(&p->ops[i_op]) && !is_quantized(p, i_op);
}

static bool needs_lists(const td_program *p, uint32_t i_op)
{
    return td_vk_is_by_expert(&p->ops[i_op]) && p->params.n_rows_max > 1 && !is_listed(p, i_op);
}

/* Rows of a workgroup, by expert: about twice as many as an expert has in the mean. An expert of
 * more takes several passes, and finds its weights in a cache then. */
static uint32_t rows_by_expert(const td_vk_step *s, uint32_t n_rows)
{
    uint32_t n = 2 * td_div_up(n_rows * s->n_used, s->n_experts);
    return td_min_u32(n, n_rows);
}

/* The variant for a number of rows; *n_passes: how often it goes over the weight. Rows are spread
 * evenly over as few passes as can be, each the least variant that takes its share. */
static uint32_t choose_variant(const td_vk_step *s, uint32_t n_rows, uint32_t *n_passes)
{
    uint32_t share = s->n_used ? rows_by_expert(s, n_rows) : n_rows, i = 0;
    *n_passes = td_div_up(share, td_vk_variant_rows(s, s->n_row_variants - 1));
    while (td_vk_variant_rows(s, i) < td_div_up(share, *n_passes))
        i++;
    return i;
}

/* From how many rows on a product leaves glu, or its quants, to a step that follows; more than
 * there may be: there is no such step. */
static uint32_t rows_apart(const td_program *p, uint32_t i_op)
{
    const td_op *op = &p->ops[i_op];
    uint32_t n = 1, n_passes;
    td_vk_step s = {0};
    count_variants(p->dev, op->weight->params.type, &s);
    if (td_vk_is_by_expert(op)) {
        s.n_used = op->in[1].n_cols;
        s.n_experts = op->weight->params.n_groups;
    }
    while (n <= p->params.n_rows_max &&
           !find_variant(&s, choose_variant(&s, n, &n_passes))->rows_a_lane)
        n++;
    return n;
}

uint32_t td_vk_count_mat_mul(const td_program *p, uint32_t i_op)
{
    bool does_more = glu_of(p, i_op) || td_vk_quantizes_for(p, i_op);
    return ((const td_vk_weight *)p->ops[i_op].weight)->n_slabs + needs_quantize(p, i_op) +
           needs_lists(p, i_op) + (does_more && rows_apart(p, i_op) <= p->params.n_rows_max);
}

bool td_vk_lower_mat_mul(const td_program *p, uint32_t i_op, uint32_t i, td_vk_step *s, td_err *err)
{
    const td_op *op = &p->ops[i_op];
    bool has_quantize = needs_quantize(p, i_op), has_lists = needs_lists(p, i_op);
    if (has_quantize && i == 0)
        return lower_quantize(op, s, err);
    if (has_lists && i == has_quantize)
        return lower_list_experts(op, s, err);
    i -= has_quantize + has_lists;
    if (i < ((const td_vk_weight *)op->weight)->n_slabs)
        return lower_product(p, op, i, s, err);
    s->n_rows_min = rows_apart(p, i_op);
    if (!glu_of(p, i_op))
        return lower_quantize(td_vk_quantizes_for(p, i_op), s, err);
    s->op = &p->ops[i_op + 1];
    return td_vk_lower_glu(p, i_op + 1, s, err);
}

td_vk_dispatch td_vk_mat_mul_dispatch(const td_vk_step *s, uint32_t n_rows)
{
    uint32_t n_passes, i = choose_variant(s, n_rows, &n_passes);
    bool is_tile = find_variant(s, i)->rows_a_lane != 0;
    uint32_t n_panels = s->n_gate_panels && !is_tile ? s->n_gate_panels : s->n_panels;
    uint32_t x = td_div_up(n_panels, is_tile ? 1 : vec_outputs(s));
    if (s->n_used)
        return (td_vk_dispatch){s->pipelines[i], x, 1, td_min_u32(n_rows * s->n_used, s->n_experts),
                                1};
    return (td_vk_dispatch){s->pipelines[i], x * n_passes, 1, s->groups_z, n_passes};
}
