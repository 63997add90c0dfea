/* Blocks of keys and values of a page taken apart into bytes, a vector of bytes at a time: 32
 * elements of 64 positions, less what their type adds to them (types_blocks.c has the formats).
 * Q8_0 is bytes already and is read where it lies. */
#ifndef TD_KERNELS_HOST_BODY_ATTENTION_QUANTS_H
#define TD_KERNELS_HOST_BODY_ATTENTION_QUANTS_H

#include "kernels/host/body_attention_many.h"

#define BLOCK    32u
#define VB_BYTES (4u * VL)

typedef struct { /* of keys [BLOCK][POSITIONS], of values [POSITIONS][BLOCK] */
    _Alignas(64) uint8_t q[BLOCK * POSITIONS];
} block_bytes;

/* Bytes of a block's high bits, which its nibbles follow. */
INLINE uint32_t high_bytes(const td_type type)
{
    return type == TD_TYPE_Q6_0 ? 8 : type == TD_TYPE_Q5_0 || type == TD_TYPE_Q5_1 ? 4 : 0;
}

/* Numbers of quants to quants. */
INLINE vb quants_of(vb n, const td_type type)
{
    switch (type) {
    case TD_TYPE_Q4_0:
        return vb_add(n, (uint8_t)-8);
    case TD_TYPE_Q5_0:
        return vb_add(n, (uint8_t)-16);
    case TD_TYPE_Q6_0:
        return vb_add(n, (uint8_t)-32);
    case TD_TYPE_IQ4_NL:
        return vb_look_up((const uint8_t *)td_levels_iq4, n);
    default:
        return n;
    }
}

/* Bits `from`.. of each byte, moved to bits 4... */
INLINE vb move_to_4(vb high, const uint32_t from, const uint8_t mask)
{
    return vb_and(from >= 4 ? vb_shr(high, from - 4) : vb_shl(high, 4 - from), mask);
}

/* Element e of VB_BYTES positions; `block` is its quants', one position after another. */
INLINE vb key_bytes(const uint8_t *block, const uint32_t e, const td_type type)
{
    vb pair = vb_load(block + (high_bytes(type) + e % 16) * POSITIONS);
    vb low = vb_and(e < 16 ? pair : vb_shr(pair, 4), 15);
    if (type == TD_TYPE_Q6_0)
        low = vb_or(
            low, move_to_4(vb_load(block + e % 8 * POSITIONS), e % 16 / 8 * 4 + e / 16 * 2, 0x30));
    else if (high_bytes(type))
        low = vb_or(low, move_to_4(vb_load(block + e / 8 * POSITIONS), e % 8, 0x10));
    return quants_of(low, type);
}

INLINE void take_keys(const uint8_t *block, block_bytes *to, const td_type type)
{
    for (uint32_t at = 0; at < POSITIONS; at += VB_BYTES)
        UNROLL for (uint32_t half = 0; half < BLOCK; half += 16)
            UNROLL for (uint32_t i = 0; i < 16; i += 8) UNROLL for (uint32_t j = 0; j < 8; j++)
        {
            const uint32_t e = half + i + j;
            vb_store(to->q + e * POSITIONS + at, key_bytes(block + at, e, type));
        }
}

INLINE uint64_t load_8(const uint8_t *p)
{
    uint64_t r;
    memcpy(&r, p, sizeof r);
    return r;
}

/* Eight bits, one in bit 4 of each byte. */
INLINE uint64_t spread_8(uint8_t bits)
{
    uint64_t each = bits * 0x0101010101010101u & 0x8040201008040201u; /* bit i in byte i alone */
    return (each + 0x7f7f7f7f7f7f7f7fu) >> 3 & 0x1010101010101010u;
}

/* Numbers of the quants of one position's block. */
INLINE void take_value(const uint8_t *block, uint8_t *to, const td_type type)
{
    UNROLL for (uint32_t i = 0; i < 4; i++) /* eight elements each */
    {
        uint64_t pairs = load_8(block + high_bytes(type) + i % 2 * 8);
        uint64_t n = (i < 2 ? pairs : pairs >> 4) & 0x0f0f0f0f0f0f0f0fu;
        if (type == TD_TYPE_Q6_0)
            n |= (load_8(block) >> (i % 2 * 4 + i / 2 * 2) & 0x0303030303030303u) << 4;
        else if (high_bytes(type))
            n |= spread_8(block[i]);
        memcpy(to + 8 * i, &n, sizeof n);
    }
}

INLINE void take_values(const uint8_t *v, size_t row_bytes, block_bytes *to, const td_type type)
{
    for (uint32_t j = 0; j < POSITIONS; j++)
        take_value(v + j * row_bytes, to->q + j * BLOCK, type);
    if (type == TD_TYPE_Q4_1 || type == TD_TYPE_Q5_1)
        return;
    for (uint32_t i = 0; i < BLOCK * POSITIONS; i += VB_BYTES)
        vb_store(to->q + i, quants_of(vb_load(to->q + i), type));
}

/* take(..., type) with the type constant. */
#define EACH_BLOCK_TYPE(id, take, ...)                                                             \
    switch (id) {                                                                                  \
    case TD_TYPE_Q4_0:                                                                             \
        take(__VA_ARGS__, TD_TYPE_Q4_0);                                                           \
        break;                                                                                     \
    case TD_TYPE_Q4_1:                                                                             \
        take(__VA_ARGS__, TD_TYPE_Q4_1);                                                           \
        break;                                                                                     \
    case TD_TYPE_Q5_0:                                                                             \
        take(__VA_ARGS__, TD_TYPE_Q5_0);                                                           \
        break;                                                                                     \
    case TD_TYPE_Q5_1:                                                                             \
        take(__VA_ARGS__, TD_TYPE_Q5_1);                                                           \
        break;                                                                                     \
    case TD_TYPE_Q6_0:                                                                             \
        take(__VA_ARGS__, TD_TYPE_Q6_0);                                                           \
        break;                                                                                     \
    default:                                                                                       \
        TD_ASSERT((id) == TD_TYPE_IQ4_NL);                                                         \
        take(__VA_ARGS__, TD_TYPE_IQ4_NL);                                                         \
    }

/* Block b of the keys of a page, [BLOCK][POSITIONS]; `to` is where it is taken apart. */
static const int8_t *key_quants(const td_host_kv *kv, const uint8_t *k, uint32_t b, block_bytes *to)
{
    const td_type_info *type = kv->base.params.type_k;
    const uint8_t *block =
        k + (size_t)b * (type->block_bytes - td_host_scale_bytes(type)) * POSITIONS;
    if (type->id == TD_TYPE_Q8_0)
        return (const int8_t *)block;
    EACH_BLOCK_TYPE(type->id, take_keys, block, to)
    return (const int8_t *)to->q;
}

/* A block of the values of a page, *row_bytes from position to position. */
static const int8_t *value_quants(const td_host_kv *kv, const uint8_t *v, block_bytes *to,
                                  size_t *row_bytes)
{
    const td_type_info *type = kv->base.params.type_v;
    const uint8_t *quants = v + td_host_scale_bytes(type);
    *row_bytes = kv->row_bytes_v;
    if (type->id == TD_TYPE_Q8_0)
        return (const int8_t *)quants;
    EACH_BLOCK_TYPE(type->id, take_values, quants, *row_bytes, to)
    *row_bytes = BLOCK;
    return (const int8_t *)to->q;
}

/* Of the keys of block b: f16 scales of the positions, which minimums follow where they exist. */
INLINE const uint16_t *key_scales(const td_host_kv *kv, const uint8_t *k, uint32_t b)
{
    size_t n_bytes = (size_t)b * td_host_scale_bytes(kv->base.params.type_k) * POSITIONS;
    return (const uint16_t *)(const void *)(k + kv->scales_offset_k + n_bytes);
}

#endif
