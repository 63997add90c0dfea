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
#include "kernels/vulkan/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t type_ids[] = {TD_TYPE_F32,  TD_TYPE_F16,  TD_TYPE_Q4_0, TD_TYPE_Q8_0,
                                    TD_TYPE_Q4_K, TD_TYPE_Q6_K, TD_TYPE_BF16};

static float half_at(const uint8_t *p) { return td_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

static int nibble_at(const uint8_t *unit, uint32_t e)
{
    return unit[e / 8 * 4 + e % 4] >> (e / 4 % 2 * 4) & 15;
}

static int pair_at(const uint8_t *pairs, uint32_t e)
{
    return pairs[e / 16 * 4 + e % 4] >> (e / 4 % 4 * 2) & 3;
}

static uint32_t word_at(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

typedef struct { /* a row of a panel */
    const uint8_t *panel;
    uint32_t height, lane;
} packed_row;

static const uint8_t *unit_at(const packed_row *r, uint32_t unit)
{
    return r->panel + ((size_t)unit * r->height + r->lane) * TD_VK_UNIT_BYTES;
}

/* Element i of a packed row of n. Group g of 8 blocks, block b of it, element e of the block. */
static float packed_at(uint32_t type, const packed_row *r, uint32_t n, uint32_t i)
{
    uint32_t g = i / 256, b = i / 32 % 8, e = i % 32, bits;
    float f;
    switch (type) {
    case TD_TYPE_F32:
        memcpy(&f, unit_at(r, i / 4) + i % 4 * 4, 4);
        return f;
    case TD_TYPE_F16:
        return half_at(unit_at(r, i / 8) + i % 8 * 2);
    case TD_TYPE_BF16:
        bits = (word_at(unit_at(r, i / 8) + i % 8 / 2 * 4) >> (i % 2 * 16)) << 16;
        memcpy(&f, &bits, 4);
        return f;
    case TD_TYPE_Q4_0:
        return (float)(nibble_at(unit_at(r, g * 9 + 1 + b), e) - 8) *
               half_at(unit_at(r, g * 9) + 2 * b);
    case TD_TYPE_Q8_0:
        return (float)(int8_t)unit_at(r, g * 17 + 1 + 2 * b + e / 16)[e % 16] *
               half_at(unit_at(r, g * 17) + 2 * b);
    case TD_TYPE_Q4_K: {
        const uint8_t *meta = unit_at(r, g * 9);
        uint32_t shift = 4 * b, high = word_at(meta + 12) >> shift;
        uint32_t scale = (word_at(meta + 4) >> shift & 15) | (high & 3) << 4;
        uint32_t minimum = (word_at(meta + 8) >> shift & 15) | (high >> 2 & 3) << 4;
        return half_at(meta) * (float)scale * (float)nibble_at(unit_at(r, g * 9 + 1 + b), e) -
               half_at(meta + 2) * (float)minimum;
    }
    default: { /* Q6_K: quads of 4 low units and 2 high ones */
        uint32_t quad = g * 13 + 1 + b / 4 * 6, k = b % 4;
        int q = nibble_at(unit_at(r, quad + k), e) |
                pair_at(unit_at(r, quad + 4 + k / 2) + k % 2 * 8, e) << 4;
        const uint8_t *d = unit_at(r, n / 256 * 13 + g / 8) + g % 8 * 2;
        return half_at(d) * (float)(int8_t)unit_at(r, g * 13)[i % 256 / 16] * (float)(q - 32);
    }
    }
}

/* The rows are packed in two windows, as a loader might; then one more row would not fit. */
static void check_rows(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    size_t src_bytes = td_row_bytes(type, n_cols);
    uint32_t n_units = td_vk_row_units(type, n_cols), height = td_vk_panel_rows(n_rows);
    size_t dst_bytes = (size_t)n_units * TD_VK_UNIT_BYTES * height;
    assert_int_equal(height, n_rows == 1 ? 1 : TD_VK_PANEL_ROWS);
    assert_true(n_units * TD_VK_UNIT_BYTES >= src_bytes);
    if (n_cols % 256 == 0) /* what models have costs no more than in the file */
        assert_true(n_units * TD_VK_UNIT_BYTES < src_bytes + 256);
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
    for (size_t t = 0; t < TD_COUNT(type_ids); t++) {
        const td_type_info *type = td_type_find(type_ids[t]);
        for (uint32_t n_blocks = 1; n_blocks <= 9; n_blocks++)
            check_rows(type, n_blocks % 3 ? 5 * n_blocks : 1, n_blocks * type->block_elements);
        check_rows(type, 64, 9 * 256);
    }
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
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_keeps_every_value),
        cmocka_unit_test(test_padding_of_a_row_is_zeros),
        cmocka_unit_test(test_cache_rows_hold_padded_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
