/* The cache of the host device: pages of 64 positions, keys transposed inside a page (host.h). */
#include "kernels/host/host.h"

#include "base/check.h"
#include "base/mem.h"

#define OVERREAD_BYTES  64u /* a vector load of the last value reads so far past its end */
#define BLOCK_ELEMENTS  32u
#define BLOCK_BYTES_MAX 64u

/* Bytes of one head of one page; fills kv's offsets too when it is given. */
static void head_sizes(const td_kv_params *p, td_host_kv *kv, uint64_t *bytes_k, uint64_t *bytes_v)
{
    uint32_t padded_k = td_round_up(p->head_dim_k, p->type_k->block_elements);
    uint32_t padded_v = td_round_up(p->head_dim_v, p->type_v->block_elements);
    uint64_t row_k = td_row_bytes(p->type_k, padded_k), row_v = td_row_bytes(p->type_v, padded_v);
    *bytes_k = row_k * TD_PAGE_POSITIONS;
    *bytes_v = p->is_latent ? 0 : row_v * TD_PAGE_POSITIONS;
    if (!kv)
        return;
    kv->padded_k = padded_k;
    kv->padded_v = padded_v;
    kv->head_bytes_k = *bytes_k;
    kv->head_bytes_v = *bytes_v;
    kv->row_bytes_v = row_v;
    size_t n_blocks = padded_k / BLOCK_ELEMENTS;
    kv->scales_offset_k =
        kv->head_bytes_k - n_blocks * td_host_scale_bytes(p->type_k) * TD_PAGE_POSITIONS;
}

uint64_t td_host_kv_bytes(const td_device *dev, const td_kv_params *params)
{
    (void)dev;
    uint64_t k, v;
    head_sizes(params, NULL, &k, &v);
    return (uint64_t)params->n_pages * params->n_head_kv * (k + v) + OVERREAD_BYTES;
}

bool td_host_kv_init(td_kv *base, td_err *err)
{
    td_host_kv *kv = (td_host_kv *)base;
    TD_ASSERT(base->params.head_dim_k <= TD_HOST_HEAD_DIM_MAX);
    TD_ASSERT(!base->params.rotates_v || base->params.head_dim_v <= TD_HOST_HEAD_DIM_MAX);
    uint64_t head_k, head_v, n_bytes = td_host_kv_bytes(base->dev, &base->params);
    head_sizes(&base->params, kv, &head_k, &head_v);
    if (!td_host_reserve(base->dev, n_bytes, err))
        return false;
    kv->n_bytes = n_bytes;
    uint64_t n_heads = (uint64_t)base->params.n_pages * base->params.n_head_kv;
    kv->k = td_alloc(n_heads * head_k, 1, err);
    kv->v = td_alloc(n_heads * head_v + OVERREAD_BYTES, 1, err);
    return kv->k && kv->v;
}

void td_host_kv_free(td_kv *base)
{
    td_host_kv *kv = (td_host_kv *)base;
    td_host_release(base->dev, kv->n_bytes);
    td_free(kv->k);
    td_free(kv->v);
}

static const td_host_kernels *kernels_of(const td_host_kv *kv)
{
    return ((const td_host_device *)kv->base.dev)->kernels;
}

static uint8_t *key_head(const td_host_kv *kv, const td_host_place *at, uint32_t i)
{
    size_t head = (size_t)at->page * kv->base.params.n_head_kv + at->head + i;
    return kv->k + head * kv->head_bytes_k;
}

static uint8_t *value_row(const td_host_kv *kv, const td_host_place *at, uint32_t i)
{
    size_t head = (size_t)at->page * kv->base.params.n_head_kv + at->head + i;
    return kv->v + head * kv->head_bytes_v + at->slot * kv->row_bytes_v;
}

/* Keys or values of some heads of a position. */
typedef struct {
    const td_host_kv *kv;
    const td_host_place *at;
    const td_type_info *type;
    const float *x;              /* [n_heads][head_dim] */
    uint32_t head_dim, n_blocks; /* of a head */
    bool is_key, is_rotated;
    uint32_t n_rotated; /* heads so far; the last one is */
    float rotated[TD_HOST_HEAD_DIM_MAX];
} side;

/* Head i, as it is to be stored; heads are asked for in ascending order. */
static const float *find_head(side *s, uint32_t i)
{
    const float *x = s->x + (size_t)i * s->head_dim;
    if (!s->is_rotated)
        return x;
    if (s->n_rotated != i + 1)
        kernels_of(s->kv)->rotate(x, s->head_dim, s->rotated);
    s->n_rotated = i + 1;
    return s->rotated;
}

/* -- types without blocks ---------------------------------------------------------------------- */

static void convert(const side *s, const float *x, uint32_t n, uint8_t *out)
{
    if (s->type->id == TD_TYPE_F16)
        kernels_of(s->kv)->to_f16(x, n, (uint16_t *)(void *)out);
    else
        s->type->quantize(x, out, n);
}

static void write_plain_head(side *s, uint32_t i)
{
    const float *x = find_head(s, i);
    if (!s->is_key) {
        convert(s, x, s->head_dim, value_row(s->kv, s->at, i));
        return;
    }
    uint32_t n_bytes = s->type->block_bytes;
    _Alignas(64) uint8_t values[BLOCK_ELEMENTS * sizeof(float)];
    uint8_t *to = key_head(s->kv, s->at, i) + s->at->slot * n_bytes;
    for (uint32_t d0 = 0; d0 < s->head_dim; d0 += BLOCK_ELEMENTS) {
        uint32_t n = td_min_u32(s->head_dim - d0, BLOCK_ELEMENTS);
        convert(s, x + d0, n, values);
        for (uint32_t j = 0; j < n; j++, to += TD_PAGE_POSITIONS * n_bytes)
            memcpy(to, values + j * n_bytes, n_bytes);
    }
}

/* -- blocks ------------------------------------------------------------------------------------ */

/* Block i of all heads'. */
static void place_block(const side *s, uint32_t i, const uint8_t *block)
{
    uint32_t i_block = i % s->n_blocks, n_bytes = s->type->block_bytes, slot = s->at->slot;
    if (!s->is_key) {
        memcpy(value_row(s->kv, s->at, i / s->n_blocks) + i_block * n_bytes, block, n_bytes);
        return;
    }
    uint32_t n_scales = td_host_scale_bytes(s->type) / 2, n_quants = n_bytes - 2 * n_scales;
    uint8_t *head = key_head(s->kv, s->at, i / s->n_blocks);
    uint8_t *scales = head + s->kv->scales_offset_k, *quants = head;
    scales += (i_block * n_scales * TD_PAGE_POSITIONS + slot) * 2;
    quants += i_block * n_quants * TD_PAGE_POSITIONS + slot;
    for (uint32_t j = 0; j < n_scales; j++)
        memcpy(scales + j * TD_PAGE_POSITIONS * 2, block + 2 * j, 2);
    for (uint32_t j = 0; j < n_quants; j++)
        quants[j * TD_PAGE_POSITIONS] = block[2 * n_scales + j];
}

/* Filled up with zeros; elements `stride` apart. */
static void read_block(side *s, uint32_t i, float *out, size_t stride)
{
    uint32_t d0 = i % s->n_blocks * BLOCK_ELEMENTS;
    const float *x = find_head(s, i / s->n_blocks);
    for (uint32_t j = 0; j < BLOCK_ELEMENTS; j++)
        out[j * stride] = d0 + j < s->head_dim ? x[d0 + j] : 0.0f;
}

static void write_blocks(side *s)
{
    const td_grid *g = td_grid_find(s->type);
    uint32_t n = s->at->n_heads * s->n_blocks;
    _Alignas(64) float x[BLOCK_ELEMENTS * TD_ENCODE_LANES], d[TD_ENCODE_LANES], m[TD_ENCODE_LANES];
    _Alignas(64) int32_t quants[BLOCK_ELEMENTS * TD_ENCODE_LANES];
    uint8_t block[BLOCK_BYTES_MAX];
    for (uint32_t i = 0; !g && i < n; i++) {
        read_block(s, i, x, 1);
        s->type->quantize(x, block, BLOCK_ELEMENTS);
        place_block(s, i, block);
    }
    for (uint32_t i = 0; g && i < n; i += TD_ENCODE_LANES) {
        for (uint32_t l = 0; l < TD_ENCODE_LANES; l++)
            read_block(s, td_min_u32(i + l, n - 1), x + l, TD_ENCODE_LANES);
        kernels_of(s->kv)->encode(g, x, d, m, quants);
        for (uint32_t l = 0; l < td_min_u32(n - i, TD_ENCODE_LANES); l++) {
            td_grid_pack(g, d[l], m[l], quants + l, TD_ENCODE_LANES, block);
            place_block(s, i + l, block);
        }
    }
}

static void write_side(side *s)
{
    s->n_blocks = td_div_up(s->head_dim, BLOCK_ELEMENTS);
    s->n_rotated = 0;
    if (s->type->block_elements > 1)
        write_blocks(s);
    else
        for (uint32_t i = 0; i < s->at->n_heads; i++)
            write_plain_head(s, i);
}

void td_host_kv_write(td_host_kv *kv, const td_host_place *at, const float *k, const float *v)
{
    const td_kv_params *p = &kv->base.params;
    side s; /* not cleared: it is large */
    s.kv = kv;
    s.at = at;
    s.type = p->type_k;
    s.x = k;
    s.head_dim = p->head_dim_k;
    s.is_key = true;
    s.is_rotated = p->rotates_k;
    write_side(&s);
    if (p->is_latent)
        return;
    s.type = p->type_v;
    s.x = v;
    s.head_dim = p->head_dim_v;
    s.is_key = false;
    s.is_rotated = p->rotates_v;
    write_side(&s);
}

uint32_t td_host_find_page(const td_kv *kv, const td_batch_tensors *batch, uint32_t row)
{
    int32_t position = ((const int32_t *)batch->positions->data)[row];
    int32_t slot = ((const int32_t *)batch->slots->data)[row];
    const td_tensor_params *table = &batch->pages->params;
    TD_ASSERT(position >= 0 && (uint32_t)position / TD_PAGE_POSITIONS < table->n_cols);
    TD_ASSERT(slot >= 0 && (uint32_t)slot < table->n_rows);
    int32_t page =
        ((const int32_t *)batch->pages
             ->data)[(size_t)slot * table->n_cols + (uint32_t)position / TD_PAGE_POSITIONS];
    TD_ASSERT(page >= 0 && (uint32_t)page < kv->params.n_pages);
    return (uint32_t)page;
}
