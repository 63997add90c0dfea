/* The `scalar` device: arith.h in the plainest C there is, one function per op, one thread.
 * Weights and caches are kept as the file's blocks. It is the oracle of the op tests, so it shares
 * no kernel and no layout with the host device; only exp and tanh come from arith.h. */
#include "kernels/host/host.h"
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

typedef struct { /* a block of activations */
    int q[BLOCK];
    float d;
} quantized;

typedef struct {
    td_program base;
    float *head;  /* one padded head of the largest cache */
    quantized *x; /* [blocks of the widest mat_mul input] */
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
            padded_row_bytes(p->type_v, p->head_dim_v));
}

static bool kv_init(td_kv *base, td_err *err)
{
    scalar_kv *kv = (scalar_kv *)base;
    const td_kv_params *p = &base->params;
    kv->row_bytes_k = padded_row_bytes(p->type_k, p->head_dim_k);
    kv->row_bytes_v = padded_row_bytes(p->type_v, p->head_dim_v);
    if (!td_host_reserve(base->dev, kv_bytes(base->dev, p), err))
        return false;
    kv->n_bytes = kv_bytes(base->dev, p);
    uint64_t n_rows = (uint64_t)p->n_pages * p->n_head_kv * TD_PAGE_POSITIONS;
    kv->k = td_alloc(n_rows, kv->row_bytes_k, err);
    kv->v = td_alloc(n_rows, kv->row_bytes_v, err);
    return kv->k && kv->v;
}

static void kv_free(td_kv *base)
{
    scalar_kv *kv = (scalar_kv *)base;
    td_host_release(base->dev, kv->n_bytes);
    td_free(kv->k);
    td_free(kv->v);
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

static quantized quantize(const float *x)
{
    quantized r = {.d = 0};
    float amax = 0;
    for (uint32_t i = 0; i < BLOCK; i++) {
        if (!isfinite(x[i])) {
            r.d = NAN;
            return r;
        }
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    if (amax < TD_ACT_AMAX_MIN)
        return r;
    float inverse = 127.0f / amax;
    r.d = amax / 127.0f;
    for (uint32_t i = 0; i < BLOCK; i++)
        r.q[i] = (int)rintf(x[i] * inverse);
    return r;
}

static float half_at(const uint8_t *p) { return td_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

static float fold_q8_0(float acc, const uint8_t *block, const quantized *a)
{
    int sum = 0;
    for (uint32_t i = 0; i < 32; i++)
        sum += (int8_t)block[2 + i] * a->q[i];
    return fmaf(half_at(block) * (float)sum, a->d, acc);
}

static float fold_q4_0(float acc, const uint8_t *block, const quantized *a)
{
    int sum = 0;
    for (uint32_t i = 0; i < 16; i++) {
        sum += ((block[2 + i] & 15) - 8) * a->q[i];
        sum += ((block[2 + i] >> 4) - 8) * a->q[i + 16];
    }
    return fmaf(half_at(block) * (float)sum, a->d, acc);
}

static float fold_q4_k(float acc, const uint8_t *block, const quantized *a)
{
    float d = half_at(block), d_min = half_at(block + 2);
    const uint8_t *s = block + 4;
    for (uint32_t i = 0; i < 8; i++, a++) {
        int scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
        int minimum = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
        int sum = 0, q_sum = 0;
        for (uint32_t j = 0; j < 32; j++) {
            int pair = block[16 + i / 2 * 32 + j];
            sum += (i % 2 ? pair >> 4 : pair & 15) * a->q[j];
            q_sum += a->q[j];
        }
        float offset = d_min * (float)minimum;
        acc = fmaf(fmaf(-offset, (float)q_sum, d * (float)scale * (float)sum), a->d, acc);
    }
    return acc;
}

static float fold_q6_k(float acc, const uint8_t *block, const quantized *a)
{
    float d = half_at(block + 208);
    for (uint32_t i = 0; i < 8; i++, a++) { /* 32 elements: group i % 4 of half i / 4 */
        const uint8_t *low = block + i / 4 * 64 + i % 2 * 32, *high = block + 128 + i / 4 * 32;
        int sum[2] = {0, 0};
        for (uint32_t j = 0; j < 32; j++) {
            int nibble = i % 4 < 2 ? low[j] & 15 : low[j] >> 4;
            int w = (nibble | (high[j] >> i % 4 * 2 & 3) << 4) - 32;
            sum[j / 16] += w * a->q[j];
        }
        float first = d * (float)(int8_t)block[192 + 2 * i];
        float second = d * (float)(int8_t)block[193 + 2 * i];
        acc = fmaf(fmaf(second, (float)sum[1], first * (float)sum[0]), a->d, acc);
    }
    return acc;
}

/* One block of a weight row that begins at element k. */
static float fold(const td_type_info *type, float acc, const uint8_t *block, uint32_t k,
                  const float *x, const quantized *x_blocks)
{
    float w;
    switch (type->id) {
    case TD_TYPE_Q8_0:
        return fold_q8_0(acc, block, x_blocks + k / BLOCK);
    case TD_TYPE_Q4_0:
        return fold_q4_0(acc, block, x_blocks + k / BLOCK);
    case TD_TYPE_Q4_K:
        return fold_q4_k(acc, block, x_blocks + k / BLOCK);
    case TD_TYPE_Q6_K:
        return fold_q6_k(acc, block, x_blocks + k / BLOCK);
    default: /* F32, F16: one element */
        type->dequantize(block, &w, 1);
        return fmaf(w, x[k], acc);
    }
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

static void mat_mul(const td_op *op, uint32_t r, quantized *x_blocks)
{
    const scalar_weight *w = (const scalar_weight *)op->weight;
    const td_type_info *type = w->base.params.type;
    const float *x = td_host_row(op->in[0], r), *bias = vector_of(op->bias);
    if (type->has_int8_activations)
        for (uint32_t k = 0; k < op->in[0].n_cols; k += BLOCK)
            x_blocks[k / BLOCK] = quantize(x + k);
    for (uint32_t o = 0; o < op->out.n_cols; o++) {
        const uint8_t *block = w->data + o * w->row_bytes;
        float acc = 0;
        for (uint32_t k = 0; k < op->in[0].n_cols; k += type->block_elements) {
            acc = fold(type, acc, block, k, x, x_blocks);
            block += type->block_bytes;
        }
        td_host_row(op->out, r)[o] = bias ? acc + bias[o] : acc;
    }
}

static void rope(const td_op *op, uint32_t r)
{
    uint32_t n_pairs = op->u.rope.n_rot / 2;
    const float *cos_sin = td_host_row(op->in[1], r);
    for (uint32_t h = 0; h < op->out.n_cols / op->u.rope.head_dim; h++) {
        float *x = td_host_row(op->out, r) + h * op->u.rope.head_dim;
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

static void store_row(const td_type_info *type, const float *x, uint32_t n, uint8_t *out,
                      float *padded)
{
    uint32_t n_padded = td_round_up(n, type->block_elements);
    memset(padded, 0, n_padded * sizeof *padded);
    memcpy(padded, x, n * sizeof *x);
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
                  kv->k + i * kv->row_bytes_k, scratch);
        store_row(p->type_v, td_host_row(op->in[1], r) + h * p->head_dim_v, p->head_dim_v,
                  kv->v + i * kv->row_bytes_v, scratch);
    }
}

/* s of one position, scaled and capped; `key` is scratch of the padded head. */
static float score(const td_op *op, const float *q, size_t i_row, float *key)
{
    const scalar_kv *kv = (const scalar_kv *)op->kv;
    const td_kv_params *p = &op->kv->params;
    const td_attention_params *a = &op->u.attention;
    p->type_k->dequantize(kv->k + i_row * kv->row_bytes_k, key,
                          td_round_up(p->head_dim_k, p->type_k->block_elements));
    float s = 0;
    for (uint32_t d = 0; d < p->head_dim_k; d++)
        s = fmaf(q[d], key[d], s);
    s *= a->scale;
    return a->softcap != 0 ? a->softcap * td_arith_tanh(s / a->softcap) : s;
}

static void attend_head(const td_op *op, uint32_t r, uint32_t h, float *scratch)
{
    const scalar_kv *kv = (const scalar_kv *)op->kv;
    const td_kv_params *p = &op->kv->params;
    const td_attention_params *a = &op->u.attention;
    uint32_t h_kv = h / (a->n_head / p->n_head_kv), last = row_position(op, r);
    const float *q = td_host_row(op->in[0], r) + h * p->head_dim_k;
    float *y = td_host_row(op->out, r) + h * p->head_dim_v;
    float m = -INFINITY, sum = 0;
    memset(y, 0, p->head_dim_v * sizeof *y);
    for (uint32_t page0 = 0; page0 <= last; page0 += TD_PAGE_POSITIONS) {
        float s[TD_PAGE_POSITIONS], largest = -INFINITY, lane[16] = {0};
        bool is_visible[TD_PAGE_POSITIONS], is_any_visible = false;
        for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
            uint32_t position = page0 + j;
            is_visible[j] = position <= last && (!a->window || last - position < a->window);
            s[j] = -INFINITY;
            if (!is_visible[j])
                continue;
            is_any_visible = true;
            s[j] = score(op, q, cache_row(op, r, position, h_kv), scratch);
            largest = s[j] > largest ? s[j] : largest;
        }
        if (!is_any_visible)
            continue;
        float m_new = largest > m ? largest : m, c = td_arith_exp(m - m_new);
        for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
            s[j] = td_arith_exp(s[j] - m_new);
            lane[j % 16] += s[j];
        }
        for (int half = 8; half; half /= 2)
            for (int j = 0; j < half; j++)
                lane[j] += lane[j + half];
        sum = fmaf(sum, c, lane[0]);
        for (uint32_t d = 0; d < p->head_dim_v; d++)
            y[d] *= c;
        for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
            if (!is_visible[j])
                continue;
            size_t i = cache_row(op, r, page0 + j, h_kv);
            p->type_v->dequantize(kv->v + i * kv->row_bytes_v, scratch,
                                  td_round_up(p->head_dim_v, p->type_v->block_elements));
            for (uint32_t d = 0; d < p->head_dim_v; d++)
                y[d] = fmaf(s[j], scratch[d], y[d]);
        }
        m = m_new;
    }
    float inverse = 1.0f / sum;
    for (uint32_t d = 0; d < p->head_dim_v; d++)
        y[d] *= inverse;
}

static void swiglu(const td_op *op, uint32_t r)
{
    const float *g = td_host_row(op->in[0], r), *up = td_host_row(op->in[1], r);
    float *y = td_host_row(op->out, r);
    for (uint32_t i = 0; i < op->out.n_cols; i++)
        y[i] = g[i] / (1.0f + td_arith_exp(-g[i])) * up[i];
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

static void run_row(const scalar_program *p, const td_op *op, uint32_t r)
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
            attend_head(op, r, h, p->head);
        break;
    case TD_OP_SWIGLU:
        swiglu(op, r);
        break;
    case TD_OP_ADD:
        add(op, r);
        break;
    case TD_OP_GATHER:
        gather(op, r);
        break;
    case TD_OP_TOP:
        for (uint32_t i = 0; i < td_host_n_chunks(op); i++)
            td_host_top(op, r, i);
        break;
    case TD_OP_PICK:
        td_host_pick(op, r);
        break;
    case TD_OP_FEED:
        feed(op);
        break;
    case TD_OP_COUNT:
        break;
    }
}

static bool program_compile(td_program *base, td_err *err)
{
    uint32_t n_head = 0, n_blocks = 0;
    for (uint32_t i = 0; i < base->n_ops; i++) {
        const td_op *op = &base->ops[i];
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
            run_row((scalar_program *)base, &base->ops[i], r);
        if (base->is_profiled)
            td_program_count_op(base, &base->ops[i], true,
                                1e-9 * (double)(td_clock_real_ns() - start_ns));
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
    .program_compile = program_compile,
    .program_run = program_run,
    .program_free = program_free,
    .measure_bandwidth = td_host_measure_bandwidth,
};
