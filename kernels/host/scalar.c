/* The `scalar` device: arith.h in the plainest C there is, one function per op, one thread.
 * Weights and caches are kept as the file's blocks. It is the oracle of the op tests, so it shares
 * no kernel and no layout with the host device; only exp and tanh come from arith.h. */
#include "kernels/host/host.h"
#include "kernels/host/recurrent.h"
#include "kernels/host/scalar_fold.h"
#include "kernels/host/top.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

#define BLOCK 32u

typedef struct {
    td_weight base;
    uint8_t *data; /* [n_rows] of row_bytes */
    size_t row_bytes;
    uint64_t n_bytes;
} scalar_weight;

typedef struct {
    td_kv base;
    uint8_t *k, *v; /* [n_pages][n_head_kv][64] of row_bytes */
    size_t row_bytes_k, row_bytes_v;
    uint64_t n_bytes;
} scalar_kv;

typedef struct {
    td_program base;
    float *head;         /* one padded head of the largest cache */
    td_scalar_quants *x; /* [blocks of the widest mat_mul input or query] */
} scalar_program;

static uint64_t weight_bytes(const td_device *dev, const td_weight_params *params)
{
    (void)dev;
    return (uint64_t)td_row_bytes(params->type, params->n_cols) * params->n_rows;
}

static bool weight_init(td_weight *base, td_err *err)
{
    scalar_weight *w = (scalar_weight *)base;
    uint64_t n_bytes = weight_bytes(base->dev, &base->params);
    w->row_bytes = td_row_bytes(base->params.type, base->params.n_cols);
    if (!td_host_reserve(base->dev, n_bytes, err))
        return false;
    w->n_bytes = n_bytes;
    w->data = td_alloc(n_bytes, 1, err);
    return w->data != NULL;
}

static void weight_free(td_weight *base)
{
    scalar_weight *w = (scalar_weight *)base;
    td_host_release(base->dev, w->n_bytes);
    td_free(w->data);
}

static bool weight_write(td_weight *base, uint32_t row0, uint32_t n_rows, const void *rows,
                         td_err *err)
{
    (void)err;
    scalar_weight *w = (scalar_weight *)base;
    memcpy(w->data + row0 * w->row_bytes, rows, n_rows * w->row_bytes);
    return true;
}

static size_t padded_row_bytes(const td_type_info *type, uint32_t head_dim)
{
    return td_row_bytes(type, td_round_up(head_dim, type->block_elements));
}

static uint64_t kv_bytes(const td_device *dev, const td_kv_params *p)
{
    (void)dev;
    return (uint64_t)p->n_pages * p->n_head_kv * TD_PAGE_POSITIONS *
           (padded_row_bytes(p->type_k, p->head_dim_k) +
            (p->is_latent ? 0 : padded_row_bytes(p->type_v, p->head_dim_v)));
}

static bool kv_init(td_kv *base, td_err *err)
{
    scalar_kv *kv = (scalar_kv *)base;
    const td_kv_params *p = &base->params;
    kv->row_bytes_k = padded_row_bytes(p->type_k, p->head_dim_k);
    kv->row_bytes_v = p->is_latent ? kv->row_bytes_k : padded_row_bytes(p->type_v, p->head_dim_v);
    if (!td_host_reserve(base->dev, kv_bytes(base->dev, p), err))
        return false;
    kv->n_bytes = kv_bytes(base->dev, p);
    uint64_t n_rows = (uint64_t)p->n_pages * p->n_head_kv * TD_PAGE_POSITIONS;
    kv->k = td_alloc(n_rows, kv->row_bytes_k, err);
    kv->v = p->is_latent ? kv->k : td_alloc(n_rows, kv->row_bytes_v, err);
    return kv->k && kv->v;
}

static void kv_free(td_kv *base)
{
    scalar_kv *kv = (scalar_kv *)base;
    td_host_release(base->dev, kv->n_bytes);
    td_free(kv->k);
    if (!base->params.is_latent)
        td_free(kv->v);
}

static uint32_t cut_ranges(const td_cut *cut, td_cut_range *out)
{
    const scalar_kv *kv = (const scalar_kv *)cut->kv;
    if (!kv)
        return td_host_cut_ranges(cut, out);
    uint64_t n_rows = (uint64_t)kv->base.params.n_head_kv * TD_PAGE_POSITIONS;
    uint64_t k_bytes = n_rows * kv->row_bytes_k, v_bytes = n_rows * kv->row_bytes_v;
    out[0] = (td_cut_range){kv->k, cut->index * k_bytes, k_bytes, false, 0};
    out[1] = (td_cut_range){kv->v, cut->index * v_bytes, v_bytes, false, 0};
    return kv->base.params.is_latent ? 1 : 2;
}

/* -- arithmetic -------------------------------------------------------------------------------- */

/* sum16 of x x. */
static float sum_of_squares(const float *x, uint32_t n)
{
    float lane[16] = {0};
    for (uint32_t i = 0; i < td_round_up(n, 16); i++) {
        float a = i < n ? x[i] : 0.0f;
        lane[i % 16] = fmaf(a, a, lane[i % 16]);
    }
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* -- ops --------------------------------------------------------------------------------------- */

static int32_t int_at(const td_tensor *t, uint32_t row, uint32_t column)
{
    return ((const int32_t *)t->data)[(size_t)row * t->params.n_cols + column];
}

static const float *vector_of(const td_weight *w)
{
    return w ? (const float *)(const void *)((const scalar_weight *)w)->data : NULL;
}

static void embed(const td_op *op, uint32_t r)
{
    const scalar_weight *w = (const scalar_weight *)op->weight;
    int32_t id = int_at(op->in[0].t, r, op->in[0].col0);
    TD_ASSERT(id >= 0 && (uint32_t)id < w->base.params.n_rows);
    w->base.params.type->dequantize(w->data + (uint32_t)id * w->row_bytes, td_host_row(op->out, r),
                                    op->out.n_cols);
}

static void rms_norm(const td_op *op, uint32_t r)
{
    uint32_t n = op->out.n_cols / op->u.rms_norm.n_groups;
    const float *w = vector_of(op->weight);
    for (uint32_t g = 0; g < op->u.rms_norm.n_groups; g++) {
        const float *x = td_host_row(op->in[0], r) + g * n;
        float *y = td_host_row(op->out, r) + g * n;
        float s = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + op->u.rms_norm.eps);
        for (uint32_t i = 0; i < n; i++)
            y[i] = w ? x[i] * s * w[i] : x[i] * s;
    }
}

static void mat_mul_group(const td_op *op, uint32_t r, uint32_t i, td_scalar_quants *x_blocks)
{
    const scalar_weight *w = (const scalar_weight *)op->weight;
    const td_type_info *type = w->base.params.type;
    const float *x = td_host_row(op->in[0], r) + i * op->u.mat_mul.x_stride;
    const float *bias = vector_of(op->bias);
    float *y = td_host_row(op->out, r) + i * op->u.mat_mul.y_stride;
    uint32_t n_cols = w->base.params.n_cols, n = td_group_rows(&w->base.params);
    uint32_t group = op->u.mat_mul.is_by_expert ? (uint32_t)int_at(op->in[1].t, r, i) : i;
    TD_ASSERT(group < td_max_u32(w->base.params.n_groups, 1));
    if (type->has_int8_activations)
        for (uint32_t k = 0; k < n_cols; k += BLOCK)
            x_blocks[k / BLOCK] = td_scalar_quantize(x + k);
    for (uint32_t o = 0; o < n; o++) {
        const uint8_t *block = w->data + ((size_t)group * n + o) * w->row_bytes;
        float acc = 0;
        for (uint32_t k = 0; k < n_cols; k += type->block_elements) {
            acc = td_scalar_fold(type, acc, block, x + k, x_blocks + k / BLOCK);
            block += type->block_bytes;
        }
        y[o] = bias ? acc + bias[group * n + o] : acc;
    }
}

static void mat_mul(const td_op *op, uint32_t r, td_scalar_quants *x_blocks)
{
    for (uint32_t i = 0; i < td_max_u32(op->u.mat_mul.n_groups, 1); i++)
        mat_mul_group(op, r, i, x_blocks);
}

static void rope(const td_op *op, uint32_t r)
{
    uint32_t n_pairs = op->u.rope.n_rot / 2;
    const float *cos_sin = td_host_row(op->in[1], r);
    for (uint32_t h = 0; h < op->out.n_cols / op->u.rope.head_dim; h++) {
        float *x = td_host_row(op->out, r) + h * op->u.rope.head_dim + op->u.rope.col0;
        for (uint32_t i = 0; i < n_pairs; i++) {
            bool is_neox = op->u.rope.kind == TD_ROPE_NEOX;
            uint32_t i_a = is_neox ? i : 2 * i, i_b = is_neox ? i + n_pairs : 2 * i + 1;
            float a = x[i_a], b = x[i_b], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
            x[i_a] = fmaf(a, c, -(b * s));
            x[i_b] = fmaf(a, s, b * c);
        }
    }
}

/* The bytes of kv head h at a position of a row's sequence. */
static size_t cache_row(const td_op *op, uint32_t r, uint32_t position, uint32_t h)
{
    int32_t slot = int_at(op->batch.slots, r, 0);
    TD_ASSERT(slot >= 0 && (uint32_t)slot < op->batch.pages->params.n_rows);
    TD_ASSERT(position / TD_PAGE_POSITIONS < op->batch.pages->params.n_cols);
    int32_t page = int_at(op->batch.pages, (uint32_t)slot, position / TD_PAGE_POSITIONS);
    TD_ASSERT(page >= 0 && (uint32_t)page < op->kv->params.n_pages);
    return ((size_t)page * op->kv->params.n_head_kv + h) * TD_PAGE_POSITIONS +
           position % TD_PAGE_POSITIONS;
}

static void store_row(const td_type_info *type, const float *x, uint32_t n, bool is_rotated,
                      uint8_t *out, float *padded)
{
    uint32_t n_padded = td_round_up(n, type->block_elements);
    memset(padded, 0, n_padded * sizeof *padded);
    memcpy(padded, x, n * sizeof *x);
    if (is_rotated)
        td_arith_rotate(padded, n);
    type->quantize(padded, out, n_padded);
}

static uint32_t row_position(const td_op *op, uint32_t r)
{
    int32_t position = int_at(op->batch.positions, r, 0);
    TD_ASSERT(position >= 0);
    return (uint32_t)position;
}

static void kv_store(const td_op *op, uint32_t r, float *scratch)
{
    scalar_kv *kv = (scalar_kv *)op->kv;
    const td_kv_params *p = &op->kv->params;
    for (uint32_t h = 0; h < p->n_head_kv; h++) {
        size_t i = cache_row(op, r, row_position(op, r), h);
        store_row(p->type_k, td_host_row(op->in[0], r) + h * p->head_dim_k, p->head_dim_k,
                  p->rotates_k, kv->k + i * kv->row_bytes_k, scratch);
        if (p->is_latent)
            continue;
        store_row(p->type_v, td_host_row(op->in[1], r) + h * p->head_dim_v, p->head_dim_v,
                  p->rotates_v, kv->v + i * kv->row_bytes_v, scratch);
    }
}

/* s of one position, scaled and capped. `quants` are q's, for a quantized cache. */
static float score(const td_op *op, const float *q, const td_scalar_quants *quants, size_t i_row)
{
    const scalar_kv *kv = (const scalar_kv *)op->kv;
    const td_type_info *type = op->kv->params.type_k;
    const td_attention_params *a = &op->u.attention;
    const uint8_t *block = kv->k + i_row * kv->row_bytes_k;
    float s = 0;
    for (uint32_t d = 0; d < op->kv->params.head_dim_k; d += type->block_elements) {
        s = td_scalar_fold(type, s, block, q + d, quants + d / BLOCK);
        block += type->block_bytes;
    }
    s *= a->scale;
    return a->softcap != 0 ? a->softcap * td_arith_tanh(s / a->softcap) : s;
}

static void fold_values(const td_op *op, const td_scalar_page *page, float c, float *y)
{
    const td_type_info *type = op->kv->params.type_v;
    uint32_t n = op->kv->params.head_dim_v;
    for (uint32_t d = 0; d < n; d++)
        y[d] *= c;
    if (type->block_elements > 1) {
        td_scalar_fold_values(type, page, n, y);
        return;
    }
    for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++)
        for (uint32_t d = 0; page->rows[j] && d < n; d++) {
            float v;
            type->dequantize(page->rows[j] + d * type->block_bytes, &v, 1);
            y[d] = fmaf(page->p[j], v, y[d]);
        }
}

/* What a query has seen so far. */
typedef struct {
    float m, sum;
} softmax_state;

/* A page of scores s, -INFINITY where nothing is visible, of which `largest` is not NaN. */
static void fold_page(const td_op *op, softmax_state *state, float largest, td_scalar_page *page,
                      float *y)
{
    float lane[16] = {0};
    float m = largest > state->m ? largest : state->m, c = td_arith_exp(state->m - m);
    for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
        page->p[j] = td_arith_exp(page->p[j] - m);
        lane[j % 16] += page->p[j];
    }
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    page->p_max = td_arith_exp(largest - m);
    *state = (softmax_state){m, fmaf(state->sum, c, lane[0])};
    fold_values(op, page, c, y);
}

static void quantize_query(const float *q, uint32_t n, td_scalar_quants *quants)
{
    for (uint32_t d = 0; d < n; d += BLOCK) {
        float block[BLOCK] = {0};
        memcpy(block, q + d, td_min_u32(n - d, BLOCK) * sizeof *q);
        quants[d / BLOCK] = td_scalar_quantize_wide(block);
    }
}

static void attend_head(const td_op *op, uint32_t r, uint32_t h, td_scalar_quants *quants)
{
    const scalar_kv *kv = (const scalar_kv *)op->kv;
    const td_kv_params *p = &op->kv->params;
    const td_attention_params *a = &op->u.attention;
    uint32_t h_kv = h / (a->n_head / p->n_head_kv), last = row_position(op, r);
    const float *q = td_host_row(op->in[0], r) + h * p->head_dim_k;
    float *y = td_host_row(op->out, r) + h * p->head_dim_v;
    float rotated[TD_HOST_HEAD_DIM_MAX];
    softmax_state state = {-INFINITY, 0};
    if (p->rotates_k) {
        memcpy(rotated, q, p->head_dim_k * sizeof *q);
        td_arith_rotate(rotated, p->head_dim_k);
        q = rotated;
    }
    if (p->type_k->block_elements > 1)
        quantize_query(q, p->head_dim_k, quants);
    memset(y, 0, p->head_dim_v * sizeof *y);
    for (uint32_t page0 = 0; page0 <= last; page0 += TD_PAGE_POSITIONS) {
        td_scalar_page page;
        float largest = -INFINITY;
        bool is_any_visible = false;
        for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
            uint32_t position = page0 + j;
            bool is_visible = position <= last && (!a->window || last - position < a->window) &&
                              (!a->chunk || last / a->chunk == position / a->chunk);
            page.p[j] = -INFINITY;
            page.rows[j] = NULL;
            if (!is_visible)
                continue;
            is_any_visible = true;
            size_t i = cache_row(op, r, position, h_kv);
            page.rows[j] = kv->v + i * kv->row_bytes_v;
            page.p[j] = score(op, q, quants, i);
            largest = page.p[j] > largest ? page.p[j] : largest;
        }
        if (is_any_visible)
            fold_page(op, &state, largest, &page, y);
    }
    float m = state.m, sum = state.sum;
    if (a->sinks) {
        float sink = vector_of(a->sinks)[h], m_new = sink > m ? sink : m;
        float c = td_arith_exp(m - m_new);
        sum = fmaf(sum, c, td_arith_exp(sink - m_new));
        for (uint32_t d = 0; d < p->head_dim_v; d++)
            y[d] *= c;
    }
    float inverse = 1.0f / sum;
    for (uint32_t d = 0; d < p->head_dim_v; d++)
        y[d] *= inverse;
    if (p->rotates_v)
        td_arith_rotate(y, p->head_dim_v);
}

static float glu_of(td_glu_kind kind, float g, float u)
{
    switch (kind) {
    case TD_GLU_SILU:
        break;
    case TD_GLU_GELU:
        return 0.5f * g * (1.0f + td_arith_tanh(TD_GELU_C * g * fmaf(0.044715f * g, g, 1.0f))) * u;
    case TD_GLU_CLAMPED:
        g = g > 7.0f ? 7.0f : g;
        u = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
        return g / (1.0f + td_arith_exp(-1.702f * g)) * (u + 1.0f);
    case TD_GLU_SIGMOID:
        return 1.0f / (1.0f + td_arith_exp(-g)) * u;
    }
    return g / (1.0f + td_arith_exp(-g)) * u;
}

static void glu(const td_op *op, uint32_t r)
{
    const float *gate = td_host_row(op->in[0], r), *up = td_host_row(op->in[1], r);
    const float *scales = op->u.glu.n_scales ? td_host_row(op->in[2], r) : NULL;
    float *y = td_host_row(op->out, r);
    uint32_t n_group = op->out.n_cols / op->u.glu.n_groups;
    for (uint32_t i = 0; i < op->out.n_cols; i++) {
        uint32_t at = i / n_group * op->u.glu.stride + i % n_group;
        float g = gate[op->in[0].n_cols == 1 ? 0 : at], u = up[at];
        if (scales) {
            float scale = scales[i / (op->out.n_cols / op->u.glu.n_scales)];
            g *= scale;
            u *= scale;
        }
        y[i] = glu_of(op->u.glu.kind, g, u);
    }
}

static void scale(const td_op *op, uint32_t r)
{
    const float *x = td_host_row(op->in[0], r);
    for (uint32_t i = 0; i < op->out.n_cols; i++) {
        float y = x[i] * op->u.scale.factor;
        td_host_row(op->out, r)[i] = op->n_in > 1 ? y * td_host_row(op->in[1], r)[0] : y;
    }
}

static void softcap(const td_op *op, uint32_t r)
{
    const float *x = td_host_row(op->in[0], r);
    float cap = op->u.scale.factor;
    for (uint32_t i = 0; i < op->out.n_cols; i++)
        td_host_row(op->out, r)[i] = cap * td_arith_tanh(x[i] / cap);
}

static void experts_sum(const td_op *op, uint32_t r)
{
    const float *x = td_host_row(op->in[0], r), *w = td_host_row(op->in[1], r);
    for (uint32_t i = 0; i < op->out.n_cols; i++) {
        float acc = w[0] * x[i];
        for (uint32_t e = 1; e < op->in[1].n_cols; e++)
            acc = fmaf(w[e], x[e * op->out.n_cols + i], acc);
        td_host_row(op->out, r)[i] = acc;
    }
}

static void delta_conv(const float *const *taps, uint32_t n_taps, const float *w, size_t stride,
                       uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i++) {
        float acc = 0;
        for (uint32_t t = 0; t < n_taps; t++)
            acc = fmaf(w[t * stride + i], taps[t][i], acc);
        y[i] = acc / (1.0f + td_arith_exp(-acc));
    }
}

static void delta_unit(float *x, uint32_t n, float eps, float by)
{
    float s = 1.0f / sqrtf(sum_of_squares(x, n) + eps);
    for (uint32_t i = 0; i < n; i++)
        x[i] = x[i] * s * by;
}

static void delta_step(float *s, uint32_t n, const float *q, const float *k, const float *v,
                       float g, float beta, float *u, float *y)
{
    for (uint32_t j = 0; j < n; j++) {
        u[j] = 0;
        for (uint32_t i = 0; i < n; i++) {
            s[i * n + j] *= g;
            u[j] = fmaf(k[i], s[i * n + j], u[j]);
        }
        u[j] = beta * (v[j] - u[j]);
        float said = 0;
        for (uint32_t i = 0; i < n; i++) {
            s[i * n + j] = fmaf(k[i], u[j], s[i * n + j]);
            said = y ? fmaf(q[i], s[i * n + j], said) : 0;
        }
        if (y)
            y[j] = said;
    }
}

static void delta_net(const td_op *op, uint32_t r, uint32_t n_rows)
{
    static const td_host_delta_kernels kernels = {delta_conv, delta_unit, delta_step};
    for (uint32_t h = 0; td_host_is_leader(op, r) && h < op->state->params.n_head_v; h++)
        td_host_delta_net(op, r, n_rows, h, 0, &kernels);
}

static void add(const td_op *op, uint32_t r)
{
    const float *a = td_host_row(op->in[0], r), *b = td_host_row(op->in[1], r);
    for (uint32_t i = 0; i < op->out.n_cols; i++)
        td_host_row(op->out, r)[i] = a[i] + b[i];
}

static void gather(const td_op *op, uint32_t r)
{
    int32_t from = int_at(op->in[1].t, r, 0);
    TD_ASSERT(from >= 0 && (uint32_t)from < op->in[0].t->params.n_rows);
    memcpy(td_host_row(op->out, r), td_host_row(op->in[0], (uint32_t)from),
           op->out.n_cols * sizeof(float));
}

static void feed(const td_op *op)
{
    const scalar_weight *w = (const scalar_weight *)op->weight;
    uint32_t row = td_host_feed(op);
    if (row != UINT32_MAX)
        memcpy(op->writes[3]->data, w->data + row * w->row_bytes, w->row_bytes);
}

static void run_row(const scalar_program *p, const td_op *op, uint32_t r, uint32_t n_rows)
{
    switch (op->kind) {
    case TD_OP_EMBED:
        embed(op, r);
        break;
    case TD_OP_RMS_NORM:
        rms_norm(op, r);
        break;
    case TD_OP_MAT_MUL:
        mat_mul(op, r, p->x);
        break;
    case TD_OP_ROPE:
        rope(op, r);
        break;
    case TD_OP_KV_STORE:
        kv_store(op, r, p->head);
        break;
    case TD_OP_ATTENTION:
        for (uint32_t h = 0; h < op->u.attention.n_head; h++)
            attend_head(op, r, h, p->x);
        break;
    case TD_OP_GLU:
        glu(op, r);
        break;
    case TD_OP_SCALE:
        scale(op, r);
        break;
    case TD_OP_SOFTCAP:
        softcap(op, r);
        break;
    case TD_OP_ROUTE:
        td_host_route(op, r);
        break;
    case TD_OP_EXPERTS_SUM:
        experts_sum(op, r);
        break;
    case TD_OP_DELTA_NET:
        delta_net(op, r, n_rows);
        break;
    case TD_OP_STATE_KEEP:
        td_host_state_keep(op, r);
        break;
    case TD_OP_ADD:
        add(op, r);
        break;
    case TD_OP_GATHER:
        gather(op, r);
        break;
    case TD_OP_TOP:
        for (uint32_t i = 0; i < td_host_n_chunks(op); i++)
            td_host_top(op, r, i, td_host_kernels_generic.exp);
        break;
    case TD_OP_PICK:
        td_host_pick(op, r);
        break;
    case TD_OP_FEED:
        feed(op);
        break;
    case TD_OP_SPOIL:
    case TD_OP_COUNT:
        break;
    }
}

static bool program_compile(td_program *base, td_err *err)
{
    uint32_t n_head = 0, n_blocks = 0;
    for (uint32_t i = 0; i < base->n_ops; i++) {
        const td_op *op = &base->ops[i];
        if (op->kind == TD_OP_ATTENTION)
            n_blocks = td_max_u32(n_blocks, td_div_up(op->kv->params.head_dim_k, BLOCK));
        if (op->kv)
            n_head = td_max_u32(n_head,
                                td_max_u32(op->kv->params.head_dim_k, op->kv->params.head_dim_v));
        if (op->kind == TD_OP_MAT_MUL)
            n_blocks = td_max_u32(n_blocks, td_div_up(op->in[0].n_cols, BLOCK));
    }
    scalar_program *p = (scalar_program *)base;
    p->head = td_alloc(td_round_up(n_head, BLOCK), sizeof *p->head, err);
    p->x = td_alloc(n_blocks, sizeof *p->x, err);
    return p->head && p->x;
}

static bool program_run(td_program *base, uint32_t n_rows, uint32_t n_out, td_err *err)
{
    (void)err;
    for (uint32_t i = 0; i < base->n_ops; i++) {
        uint64_t start_ns = base->is_profiled ? td_clock_real_ns() : 0;
        for (uint32_t r = 0; r < td_op_rows(&base->ops[i], n_rows, n_out); r++)
            run_row((scalar_program *)base, &base->ops[i], r, n_rows);
        if (base->is_profiled)
            td_program_count_op(base, &base->ops[i], true,
                                1e-9 * (double)(td_clock_real_ns() - start_ns), (td_traffic){0});
    }
    return true;
}

static void program_free(td_program *base)
{
    scalar_program *p = (scalar_program *)base;
    td_free(p->head);
    td_free(p->x);
}

const td_backend td_scalar_backend = {
    .tensor_size = sizeof(td_tensor),
    .weight_size = sizeof(scalar_weight),
    .kv_size = sizeof(scalar_kv),
    .program_size = sizeof(scalar_program),
    .device_destroy = td_host_device_destroy,
    .tensor_init = td_host_tensor_init,
    .tensor_free = td_host_tensor_free,
    .weight_init = weight_init,
    .weight_free = weight_free,
    .weight_write = weight_write,
    .weight_bytes = weight_bytes,
    .kv_init = kv_init,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .state_size = sizeof(td_host_state),
    .state_init = td_host_state_init,
    .state_free = td_host_state_free,
    .state_bytes = td_host_state_bytes,
    .cut_ranges = cut_ranges,
    .program_compile = program_compile,
    .program_run = program_run,
    .program_free = program_free,
    .measure_bandwidth = td_host_measure_bandwidth,
};
