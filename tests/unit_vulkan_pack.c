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

static const uint32_t type_ids[] = {TD_TYPE_F32,  TD_TYPE_F16,  TD_TYPE_Q4_0,
                                    TD_TYPE_Q8_0, TD_TYPE_Q4_K, TD_TYPE_Q6_K};

static float half_at(const uint8_t *p) { return td_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

static int nibble_at(const uint8_t *plane, uint32_t i)
{
    uint32_t e = i % 32;
    return plane[i / 32 * 16 + e / 8 * 4 + e % 4] >> (e / 4 % 2 * 4) & 15;
}

static int pair_at(const uint8_t *plane, uint32_t i)
{
    uint32_t e = i % 32;
    return plane[i / 32 * 8 + e / 16 * 4 + e % 4] >> (e / 4 % 4 * 2) & 3;
}

static uint32_t word_at(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Element i of a packed row of n. */
static float packed_at(uint32_t type, const uint8_t *row, uint32_t n, uint32_t i)
{
    float f;
    switch (type) {
    case TD_TYPE_F32:
        memcpy(&f, row + (size_t)i * 4, 4);
        return f;
    case TD_TYPE_F16:
        return half_at(row + (size_t)i * 2);
    case TD_TYPE_Q4_0:
        return (float)(nibble_at(row, i) - 8) * half_at(row + n / 2 + i / 32 * 2);
    case TD_TYPE_Q8_0:
        return (float)(row[i] - 128) * half_at(row + n + i / 32 * 2);
    case TD_TYPE_Q4_K: {
        const uint8_t *meta = row + n / 2 + i / 256 * 16;
        uint32_t shift = 4 * (i / 32 % 8), high = word_at(meta + 12) >> shift;
        uint32_t scale = (word_at(meta + 4) >> shift & 15) | (high & 3) << 4;
        uint32_t minimum = (word_at(meta + 8) >> shift & 15) | (high >> 2 & 3) << 4;
        return half_at(meta) * (float)scale * (float)nibble_at(row, i) -
               half_at(meta + 2) * (float)minimum;
    }
    default: { /* Q6_K */
        const uint8_t *high = row + n / 2, *scales = high + n / 4, *d = scales + n / 16;
        int q = (nibble_at(row, i) | pair_at(high, i) << 4) - 32;
        return half_at(d + i / 256 * 2) * (float)(int8_t)scales[i / 16] * (float)q;
    }
    }
}

static void check_rows(const td_type_info *type, uint32_t n_rows, uint32_t n_cols)
{
    size_t src_bytes = td_row_bytes(type, n_cols);
    size_t dst_bytes = (size_t)td_vk_packed_row_bytes(type, n_cols);
    assert_true(dst_bytes % 16 == 0 && dst_bytes >= src_bytes && dst_bytes < src_bytes + 16);
    assert_true(td_vk_packed_bytes(type, n_rows, n_cols) == n_rows * dst_bytes);
    uint8_t *src = malloc(n_rows * src_bytes + 1), *dst = malloc(n_rows * dst_bytes + 32);
    float *want = malloc(n_cols * sizeof(float));
    assert_true(src && dst && want);
    src++; /* rows of a file have no alignment */
    for (size_t i = 0; i < n_rows * src_bytes; i++)
        src[i] = (uint8_t)td_noise_bits(n_cols, i, type->id);
    memset(dst, 0xa5, n_rows * dst_bytes + 32);
    td_vk_pack_rows(type, src, n_rows, n_cols, dst + 16);
    for (size_t i = 0; i < 16; i++)
        assert_true(dst[i] == 0xa5 && dst[16 + n_rows * dst_bytes + i] == 0xa5);
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *row = dst + 16 + r * dst_bytes;
        type->dequantize(src + r * src_bytes, want, n_cols);
        for (uint32_t i = 0; i < n_cols; i++) {
            float got = packed_at(type->id, row, n_cols, i);
            if (memcmp(&got, &want[i], sizeof got) != 0 && !(isnan(got) && isnan(want[i])))
                fail_msg("%s row %u of length %u: element %u is %a, expected %a", type->name, r,
                         n_cols, i, (double)got, (double)want[i]);
        }
        for (size_t i = src_bytes; i < dst_bytes; i++)
            assert_int_equal(row[i], 0);
    }
    free(want);
    free(dst);
    free(src - 1);
}

static void test_pack_keeps_every_value(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(type_ids); t++) {
        const td_type_info *type = td_type_find(type_ids[t]);
        for (uint32_t n_blocks = 1; n_blocks <= 9; n_blocks++)
            check_rows(type, 3, n_blocks * type->block_elements);
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
        cmocka_unit_test(test_cache_rows_hold_padded_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
