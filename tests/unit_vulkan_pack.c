/* The packed weight rows of kernels/vulkan/pack.c, read back here as kernels/shaders/inc/README
 * describes them, against the decoders of kernels/types.c; and what a loader relies on: sizes,
 * zeroed padding, nothing written outside. Needs no GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/rng.h"
#include "kernels/types_unpack.h"
#include "kernels/vulkan/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The layouts of inc/README: bytes of a block of 32 in the planes, units of scales before a group
 * of 256 elements, bytes behind the groups for every block of the file. */
typedef struct {
    uint32_t id, low, high, head, tail;
} type_layout;

static const type_layout layouts[] = {
    {TD_TYPE_Q4_0, 16, 0, 1, 0},   {TD_TYPE_Q4_1, 16, 0, 2, 0},   {TD_TYPE_Q5_0, 16, 4, 1, 0},
    {TD_TYPE_Q5_1, 16, 4, 2, 0},   {TD_TYPE_Q8_0, 32, 0, 1, 0},   {TD_TYPE_Q2_K, 8, 0, 1, 4},
    {TD_TYPE_Q3_K, 8, 4, 1, 0},    {TD_TYPE_Q4_K, 16, 0, 1, 0},   {TD_TYPE_Q5_K, 16, 4, 1, 0},
    {TD_TYPE_Q6_K, 16, 8, 1, 2},   {TD_TYPE_IQ2_XXS, 8, 0, 0, 2}, {TD_TYPE_IQ2_XS, 8, 0, 1, 0},
    {TD_TYPE_IQ3_XXS, 8, 4, 0, 2}, {TD_TYPE_IQ1_S, 4, 0, 1, 2},   {TD_TYPE_IQ4_NL, 16, 0, 1, 0},
    {TD_TYPE_IQ3_S, 8, 4, 1, 0},   {TD_TYPE_IQ2_S, 8, 0, 1, 2},   {TD_TYPE_IQ4_XS, 16, 0, 1, 0},
    {TD_TYPE_IQ1_M, 4, 0, 1, 8},   {TD_TYPE_TQ1_0, 8, 0, 0, 2},   {TD_TYPE_TQ2_0, 8, 0, 0, 2},
    {TD_TYPE_MXFP4, 16, 0, 1, 0},  {TD_TYPE_NVFP4, 16, 0, 1, 0},  {TD_TYPE_Q1_0, 4, 0, 0, 2},
    {TD_TYPE_Q2_0, 8, 0, 0, 2},
};

static uint32_t half_bits(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }

static float half_at(const uint8_t *p) { return td_f16_to_f32((uint16_t)half_bits(p)); }

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static int nibble_at(const uint8_t *unit, uint32_t e)
{
    return unit[e / 8 * 4 + e % 4] >> (e / 4 % 2 * 4) & 15;
}

static int pair_at(const uint8_t *pairs, uint32_t e)
{
    return pairs[e / 16 * 4 + e % 4] >> (e / 4 % 4 * 2) & 3;
}

static int bit_at(const uint8_t *bits, uint32_t e) { return bits[e % 4] >> e / 4 & 1; }

static uint32_t word_at(const uint8_t *p) { return half_bits(p) | half_bits(p + 2) << 16; }

typedef struct { /* a row of a panel */
    const uint8_t *panel;
    uint32_t height, lane;
} packed_row;

static const uint8_t *unit_at(const packed_row *r, uint32_t unit)
{
    return r->panel + ((size_t)unit * r->height + r->lane) * TD_VK_UNIT_BYTES;
}

typedef struct { /* block `b` of group `g` of a packed row, with what of the row it needs */
    const type_layout *l;
    const packed_row *row;
    uint32_t g, b;
    const uint8_t *low, *high, *head;
    uint8_t second_head[16];
    uint32_t tail_unit;
} packed_block;

static packed_block block_at(const type_layout *l, const packed_row *r, uint32_t n, uint32_t i)
{
    uint32_t quad_units = (l->low + l->high) / 4, group_units = l->head + 2 * quad_units;
    uint32_t n_quads = (n + 127) / 128;
    packed_block b = {.l = l, .row = r, .g = i / 256, .b = i / 32 % 8};
    uint32_t quad = b.g * group_units + l->head + b.b / 4 * quad_units;
    uint32_t low = b.b % 4 * l->low, high = b.b % 4 * l->high;
    b.head = unit_at(r, b.g * group_units);
    b.low = unit_at(r, quad + low / 16) + low % 16;
    b.high = unit_at(r, quad + l->low / 4 + high / 16) + high % 16;
    b.tail_unit = n_quads * quad_units + (n_quads + 1) / 2 * l->head;
    if (l->head == 2)
        memcpy(b.second_head, unit_at(r, b.g * group_units + 1), 16);
    return b;
}

/* Bytes of the tail for file block i. */
static const uint8_t *tail_at(const packed_block *b, uint32_t i)
{
    uint32_t byte = i * b->l->tail;
    return unit_at(b->row, b->tail_unit + byte / 16) + byte % 16;
}

static int magnitude(const uint16_t *grid, uint32_t index, uint32_t e, const int *levels,
                     int n_bits)
{
    return levels[grid[index] >> (int)e * n_bits & ((1 << n_bits) - 1)];
}

static bool is_odd(uint32_t bits) { return __builtin_parity(bits) != 0; }

/* Types with a codebook: element e of a block, times 8 with IQ1. */
static float codebook_at(const packed_block *p, uint32_t e)
{
    static const int iq1[] = {-8, 0, 8}, iq2[] = {8, 25, 43};
    static const int iq3_xxs[] = {4, 12, 20, 28, 36, 44, 52, 62};
    static const int iq3_s[] = {1, 3, 5, 7, 9, 11, 13, 15};
    uint32_t b = p->b, h = e / 16, l = e / 8, index, signs, rest, nibble;
    const uint8_t *d;
    int value;
    switch (p->l->id) {
    case TD_TYPE_IQ2_XXS:
        rest = word_at(p->low + 4);
        signs = rest >> 7 * l & 127;
        signs |= (uint32_t)is_odd(signs) << 7;
        value = magnitude(td_grid_iq2_xxs, p->low[l], e % 8, iq2, 2);
        value = signs >> e % 8 & 1 ? -value : value;
        return half_at(tail_at(p, p->g)) * (0.5f + (float)(rest >> 28)) * 0.25f * (float)value;
    case TD_TYPE_IQ2_XS:
        index = half_bits(p->low + 2 * l);
        signs = index >> 9 | (uint32_t)is_odd(index >> 9) << 7;
        nibble = p->head[b] >> 4 * h & 15u;
        value = magnitude(td_grid_iq2_xs, index & 511, e % 8, iq2, 2);
        value = signs >> e % 8 & 1 ? -value : value;
        return half_at(p->head + 8) * (0.5f + (float)nibble) * 0.25f * (float)value;
    case TD_TYPE_IQ2_S:
        index = p->low[l] | (p->head[b] >> 2 * l & 3u) << 8;
        nibble = p->head[8 + b] >> 4 * h & 15u;
        value = magnitude(td_grid_iq2_s, index, e % 8, iq2, 2);
        value = p->low[4 + l] >> e % 8 & 1 ? -value : value;
        return half_at(tail_at(p, p->g)) * (0.5f + (float)nibble) * 0.25f * (float)value;
    case TD_TYPE_IQ3_XXS:
        rest = word_at(p->high);
        signs = rest >> 7 * l & 127;
        signs |= (uint32_t)is_odd(signs) << 7;
        value = magnitude(td_grid_iq3_xxs, p->low[e / 4], e % 4, iq3_xxs, 3);
        value = signs >> e % 8 & 1 ? -value : value;
        return half_at(tail_at(p, p->g)) * (0.5f + (float)(rest >> 28)) * 0.5f * (float)value;
    case TD_TYPE_IQ3_S:
        index = p->low[e / 4] | (p->head[b] >> e / 4 & 1u) << 8;
        nibble = (uint32_t)p->head[8 + b / 2] >> 4 * (b % 2) & 15u;
        value = magnitude(td_grid_iq3_s, index, e % 4, iq3_s, 3);
        value = p->high[l] >> e % 8 & 1 ? -value : value;
        return half_at(p->head + 12) * (float)(2 * nibble + 1) * (float)value;
    case TD_TYPE_IQ1_S:
        rest = half_bits(p->head + 2 * b);
        index = p->low[l] | (rest >> 3 * l & 7) << 8;
        value = magnitude(td_grid_iq1, index, e % 8, iq1, 2) + (rest >> 15 ? -1 : 1);
        return half_at(tail_at(p, p->g)) * (float)(2 * (rest >> 12 & 7) + 1) * 0.125f *
               (float)value;
    default: /* IQ1_M */
        rest = half_bits(p->head + 2 * b) >> 4 * l & 15;
        index = p->low[l] | (rest & 7) << 8;
        value = magnitude(td_grid_iq1, index, e % 8, iq1, 2) + (rest >> 3 ? -1 : 1);
        d = tail_at(p, p->g);
        rest = half_bits(d + b / 2 * 2) >> (6 * (b % 2) + 3 * h) & 7;
        index = half_bits(d) >> 12 | (half_bits(d + 2) >> 12) << 4 | (half_bits(d + 4) >> 12) << 8 |
                (half_bits(d + 6) >> 12) << 12;
        return td_f16_to_f32((uint16_t)index) * (float)(2 * rest + 1) * 0.125f * (float)value;
    }
}

/* Element e of a block as the planes have it. */
static int quant_at(const packed_block *p, uint32_t e)
{
    int q, n_bits = (int)p->l->low / 4;
    if (p->l->low == 32)
        return (int8_t)p->low[e / 16 * 16 * p->row->height + e % 16];
    q = p->l->low == 16  ? nibble_at(p->low, e)
        : p->l->low == 8 ? pair_at(p->low, e)
                         : bit_at(p->low, e);
    if (p->l->high == 8)
        q |= pair_at(p->high, e) << n_bits;
    else if (p->l->high == 4)
        q |= bit_at(p->high, e) << n_bits;
    return q;
}

/* Nibbles that name one of 16 values lie in order. */
static int looked_up_at(const packed_block *p, uint32_t e, const int *values)
{
    return values[p->low[e / 2] >> e % 2 * 4 & 15];
}

static float quantized_at(const packed_block *p, uint32_t i)
{
    static const int iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
    static const int e2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    uint32_t b = p->b, e = i % 32, s = 2 * b + e / 16;
    const uint8_t *head = p->head, *pairs = b < 4 ? head : p->second_head;
    int q = quant_at(p, e);
    switch (p->l->id) {
    case TD_TYPE_Q4_0:
        return half_at(head + 2 * b) * (float)(q - 8);
    case TD_TYPE_Q5_0:
        return half_at(head + 2 * b) * (float)(q - 16);
    case TD_TYPE_Q8_0:
        return half_at(head + 2 * b) * (float)q;
    case TD_TYPE_Q4_1:
    case TD_TYPE_Q5_1:
        return half_at(pairs + b % 4 * 4) * (float)q + half_at(pairs + b % 4 * 4 + 2);
    case TD_TYPE_IQ4_NL:
        return half_at(head + 2 * b) * (float)looked_up_at(p, e, iq4);
    case TD_TYPE_MXFP4:
        return float_of(half_bits(head + 2 * b) << 16) * (float)looked_up_at(p, e, e2m1);
    case TD_TYPE_NVFP4: /* as a half a scale is 2^8 too small, doubled values 2 too large */
        return td_f16_to_f32((uint16_t)(head[s] << 7)) * 128.0f * (float)looked_up_at(p, e, e2m1);
    case TD_TYPE_IQ4_XS:
        return half_at(head + 8) * (float)(int8_t)head[b] * (float)looked_up_at(p, e, iq4);
    case TD_TYPE_Q2_K: {
        const uint8_t *d = tail_at(p, p->g);
        return half_at(d) * (float)(head[s] & 15) * (float)q -
               half_at(d + 2) * (float)(head[s] >> 4);
    }
    case TD_TYPE_Q3_K: {
        int scale = (head[s / 2] >> 4 * (s % 2) & 15) | (head[8 + s / 4] >> 2 * (s % 4) & 3) << 4;
        return half_at(head + 12) * (float)(scale - 32) * (float)(q - 4);
    }
    case TD_TYPE_Q4_K:
    case TD_TYPE_Q5_K: {
        uint32_t shift = 4 * b, high = word_at(head + 12) >> shift;
        uint32_t scale = (word_at(head + 4) >> shift & 15) | (high & 3) << 4;
        uint32_t minimum = (word_at(head + 8) >> shift & 15) | (high >> 2 & 3) << 4;
        return half_at(head) * (float)scale * (float)q - half_at(head + 2) * (float)minimum;
    }
    case TD_TYPE_Q6_K:
        return half_at(tail_at(p, p->g)) * (float)(int8_t)head[s] * (float)(q - 32);
    case TD_TYPE_Q1_0:
        return half_at(tail_at(p, i / 128)) * (float)(2 * q - 1);
    case TD_TYPE_Q2_0:
        return half_at(tail_at(p, i / 64)) * (float)(q - 1);
    case TD_TYPE_TQ1_0:
    case TD_TYPE_TQ2_0:
        return half_at(tail_at(p, p->g)) * (float)(q - 1);
    default:
        return codebook_at(p, e);
    }
}

/* Element i of a packed row of n. */
static float packed_at(uint32_t type, const packed_row *r, uint32_t n, uint32_t i)
{
    if (type == TD_TYPE_F32)
        return float_of(word_at(unit_at(r, i / 4) + i % 4 * 4));
    if (type == TD_TYPE_F16)
        return half_at(unit_at(r, i / 8) + i % 8 * 2);
    if (type == TD_TYPE_BF16)
        return float_of(half_bits(unit_at(r, i / 8) + i % 8 * 2) << 16);
    const type_layout *l = layouts;
    while (l->id != type)
        l++;
    packed_block b = block_at(l, r, n, i);
    return quantized_at(&b, i);
}

/* The rows are packed in two windows, as a loader might; then one more row would not fit. */
static void check_rows(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    size_t src_bytes = td_row_bytes(type, n_cols);
    uint32_t n_units = td_vk_row_units(type, n_cols), height = td_vk_panel_rows(n_rows);
    size_t dst_bytes = (size_t)n_units * TD_VK_UNIT_BYTES * height;
    assert_int_equal(height, n_rows == 1 ? 1 : TD_VK_PANEL_ROWS);
    assert_true(n_units * TD_VK_UNIT_BYTES >= src_bytes);
    /* What models have costs hardly more than in the file. */
    size_t limit = src_bytes + src_bytes / (type->id == TD_TYPE_TQ1_0 ? 4 : 12) + 32;
    if (n_cols % 256 == 0)
        assert_true(n_units * TD_VK_UNIT_BYTES < limit);
    assert_true(td_vk_packed_bytes(type, n_rows, n_cols) == dst_bytes);
    uint8_t *src = malloc(n_rows * src_bytes + 1), *dst = malloc(dst_bytes + 32);
    float *want = malloc(n_cols * sizeof(float));
    assert_true(src && dst && want);
    src++; /* rows of a file have no alignment */
    for (size_t i = 0; i < n_rows * src_bytes; i++)
        src[i] = (uint8_t)td_noise_bits(n_cols, i, type->id);
    memset(dst, 0xa5, dst_bytes + 32);
    uint32_t n_first = n_rows / 3;
    td_vk_pack_rows(type, src, n_first, n_cols, height, 0, dst + 16);
    td_vk_pack_rows(type, src + n_first * src_bytes, n_rows - n_first, n_cols, height, n_first,
                    dst + 16);
    for (size_t i = 0; i < 16; i++)
        assert_true(dst[i] == 0xa5 && dst[16 + dst_bytes + i] == 0xa5);
    for (uint32_t r = 0; r < height; r++) {
        packed_row row = {dst + 16, height, r};
        for (uint32_t u = 0; r >= n_rows && u < n_units; u++)
            assert_int_equal(unit_at(&row, u)[u % 16], 0xa5);
        if (r >= n_rows)
            continue;
        type->dequantize(src + r * src_bytes, want, n_cols);
        for (uint32_t i = 0; i < n_cols; i++) {
            float got = packed_at(type->id, &row, n_cols, i);
            if (memcmp(&got, &want[i], sizeof got) != 0 && !(isnan(got) && isnan(want[i])))
                fail_msg("%s row %u of length %u: element %u is %a, expected %a", type->name, r,
                         n_cols, i, (double)got, (double)want[i]);
        }
    }
    free(want);
    free(dst);
    free(src - 1);
}

/* What is read past the end of a row is zeros: quants and scales of a quad's missing blocks. */
static void test_padding_of_a_row_is_zeros(void **state)
{
    (void)state;
    const td_type_info *q8_0 = td_type_find(TD_TYPE_Q8_0), *f16 = td_type_find(TD_TYPE_F16);
    uint8_t src[34], units[9 * TD_VK_UNIT_BYTES];
    memset(src, 0xff, sizeof src);
    assert_int_equal(td_vk_row_units(q8_0, 32), 9);
    td_vk_pack_rows(q8_0, src, 1, 32, 1, 0, units);
    for (size_t i = 0; i < sizeof units; i++)
        assert_int_equal(units[i], i < 2 || (i >= 16 && i < 48) ? 0xff : 0);
    assert_int_equal(td_vk_row_units(f16, 9), 4);
    td_vk_pack_rows(f16, src, 1, 9, 1, 0, units);
    for (size_t i = 0; i < 64; i++)
        assert_int_equal(units[i], i < 18 ? 0xff : 0);
}

static void test_pack_keeps_every_value(void **state)
{
    (void)state;
    for (uint32_t id = 0; id < 64; id++) {
        const td_type_info *type = td_type_find(id);
        if (!type)
            continue;
        for (uint32_t n_blocks = 1; n_blocks <= 9; n_blocks++)
            check_rows(type, n_blocks % 3 ? 5 * n_blocks : 1, n_blocks * type->block_elements);
        check_rows(type, 64, 9 * 256);
    }
}

static void test_codebooks_are_those_of_the_decoders(void **state)
{
    (void)state;
    const void *codebook;
    assert_int_equal(td_vk_codebook(td_type_find(TD_TYPE_F32), &codebook), 0);
    assert_null(codebook);
    assert_int_equal(td_vk_codebook(td_type_find(TD_TYPE_IQ4_NL), &codebook), 0);
    assert_null(codebook);
    assert_int_equal(td_vk_codebook(td_type_find(TD_TYPE_IQ1_M), &codebook), 2 * 2048);
    assert_ptr_equal(codebook, td_grid_iq1);
    for (uint32_t id = 0; id < 64; id++) /* rows stay aligned behind them */
        if (td_type_find(id))
            assert_int_equal(td_vk_codebook(td_type_find(id), &codebook) % 256, 0);
}

static void test_cache_rows_hold_padded_heads(void **state)
{
    (void)state;
    const td_type_info *f32 = td_type_find(TD_TYPE_F32), *f16 = td_type_find(TD_TYPE_F16);
    const td_type_info *q8_0 = td_type_find(TD_TYPE_Q8_0), *q4_0 = td_type_find(TD_TYPE_Q4_0);
    assert_int_equal(td_vk_kv_row_words(f32, 5), 8);
    assert_int_equal(td_vk_kv_row_words(f16, 24), 12);
    assert_int_equal(td_vk_kv_row_words(f16, 20), 12);
    assert_int_equal(td_vk_kv_row_words(q8_0, 24), 8 + 1);
    assert_int_equal(td_vk_kv_row_words(q8_0, 64), 16 + 1);
    assert_int_equal(td_vk_kv_row_words(q8_0, 96), 24 + 2);
    assert_int_equal(td_vk_kv_row_words(q4_0, 128), 16 + 2);
    static const struct {
        uint32_t type, n_words; /* of 96 elements: 3 blocks */
    } rows[] = {{TD_TYPE_BF16, 48},         {TD_TYPE_IQ4_NL, 12 + 2},   {TD_TYPE_Q4_1, 12 + 3},
                {TD_TYPE_Q5_0, 12 + 3 + 2}, {TD_TYPE_Q5_1, 12 + 3 + 3}, {TD_TYPE_Q6_0, 12 + 6 + 2}};
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        assert_int_equal(td_vk_kv_row_words(td_type_find(rows[i].type), 96), rows[i].n_words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_keeps_every_value),
        cmocka_unit_test(test_padding_of_a_row_is_zeros),
        cmocka_unit_test(test_codebooks_are_those_of_the_decoders),
        cmocka_unit_test(test_cache_rows_hold_padded_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
