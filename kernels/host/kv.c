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

/* The block of `type` that begins at element d0 of a head of n elements, padded with zeros. */
static void encode_block(const td_type_info *type, const float *x, uint32_t d0, uint32_t n,
                         uint8_t *block)
{
    float padded[BLOCK_ELEMENTS] = {0};
    memcpy(padded, x + d0, td_min_u32(n - d0, BLOCK_ELEMENTS) * sizeof *x);
    type->quantize(padded, block, BLOCK_ELEMENTS);
}

static const td_host_kernels *kernels_of(const td_host_kv *kv)
{
    return ((const td_host_device *)kv->base.dev)->kernels;
}

static void write_key(const td_host_kv *kv, uint8_t *head, uint32_t slot, const float *k)
{
    const td_type_info *type = kv->base.params.type_k;
    uint32_t n = kv->base.params.head_dim_k;
    uint8_t block[BLOCK_BYTES_MAX];
    if (type->id == TD_TYPE_F32) {
        for (uint32_t d = 0; d < n; d++)
            memcpy(head + (d * TD_PAGE_POSITIONS + slot) * 4, k + d, 4);
        return;
    }
    if (type->block_bytes == 2) {
        for (uint32_t d0 = 0; d0 < n; d0 += BLOCK_ELEMENTS) {
            uint16_t halves[BLOCK_ELEMENTS];
            uint32_t n_left = td_min_u32(n - d0, BLOCK_ELEMENTS);
            if (type->id == TD_TYPE_F16)
                kernels_of(kv)->to_f16(k + d0, n_left, halves);
            else
                type->quantize(k + d0, halves, n_left);
            for (uint32_t i = 0; i < n_left; i++)
                memcpy(head + ((d0 + i) * TD_PAGE_POSITIONS + slot) * 2, &halves[i], 2);
        }
        return;
    }
    uint32_t n_scales = td_host_scale_bytes(type) / 2, n_quants = type->block_bytes - 2 * n_scales;
    uint8_t *scales = head + kv->scales_offset_k;
    for (uint32_t d0 = 0; d0 < n; d0 += BLOCK_ELEMENTS) {
        encode_block(type, k, d0, n, block);
        for (uint32_t i = 0; i < n_scales; i++, scales += 2 * TD_PAGE_POSITIONS)
            memcpy(scales + 2 * slot, block + 2 * i, 2);
        for (uint32_t i = 0; i < n_quants; i++, head += TD_PAGE_POSITIONS)
            head[slot] = block[2 * n_scales + i];
    }
}

static void write_value(const td_host_kv *kv, uint8_t *row, const float *v)
{
    const td_type_info *type = kv->base.params.type_v;
    uint32_t n = kv->base.params.head_dim_v;
    if (type->id == TD_TYPE_F16) {
        kernels_of(kv)->to_f16(v, n, (uint16_t *)(void *)row);
        return;
    }
    if (type->block_elements == 1) {
        type->quantize(v, row, n);
        return;
    }
    for (uint32_t d0 = 0; d0 < n; d0 += BLOCK_ELEMENTS, row += type->block_bytes)
        encode_block(type, v, d0, n, row);
}

void td_host_kv_write(td_host_kv *kv, uint32_t page, uint32_t head, uint32_t slot, const float *k,
                      const float *v)
{
    const td_kv_params *p = &kv->base.params;
    size_t i = (size_t)page * p->n_head_kv + head;
    float rotated[TD_HOST_HEAD_DIM_MAX];
    if (p->rotates_k) {
        kernels_of(kv)->rotate(k, p->head_dim_k, rotated);
        k = rotated;
    }
    write_key(kv, kv->k + i * kv->head_bytes_k, slot, k);
    if (p->is_latent)
        return;
    if (p->rotates_v) {
        kernels_of(kv)->rotate(v, p->head_dim_v, rotated);
        v = rotated;
    }
    write_value(kv, kv->v + i * kv->head_bytes_v + slot * kv->row_bytes_v, v);
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
