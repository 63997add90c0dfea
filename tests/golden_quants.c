/* The weight types against golden/quants: decoded values bit for bit, encoded blocks byte for
 * byte, half conversion against the compiler's, and the table against the data's index. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/types.h"
#include "kernels/types_encode.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (1u << 20)
#define N_TYPES  28u /* of the format */

static const char *golden; /* the golden folder */

/* The content of golden/quants/<name><suffix>; NULL when there is no such file. */
static unsigned char *load(const char *name, const char *suffix, size_t *n_bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/quants/%s%s", golden, name, suffix);
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    unsigned char *data = malloc(FILE_MAX);
    assert_non_null(data);
    *n_bytes = fread(data, 1, FILE_MAX, f);
    fclose(f);
    return data;
}

static void check_decoding(const td_type_info *type, const char *bin, const char *f32)
{
    size_t n_bytes, n_expected;
    unsigned char *blocks = load(type->name, bin, &n_bytes);
    unsigned char *expected = load(type->name, f32, &n_expected);
    assert_non_null(blocks);
    assert_non_null(expected);
    size_t n = n_expected / sizeof(float);
    assert_int_equal(n_bytes, td_row_bytes(type, n));
    float *out = malloc(n * sizeof(float));
    assert_non_null(out);
    type->dequantize(blocks, out, n);
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&out[i], expected + i * sizeof(float), sizeof(float)) != 0) {
            float want;
            memcpy(&want, expected + i * sizeof(float), sizeof want);
            fail_msg("%s%s: element %zu is %a, expected %a", type->name, bin, i, (double)out[i],
                     (double)want);
        }
    }
    free(out);
    free(expected);
    free(blocks);
}

static json_t *load_index(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/quants/index.json", golden);
    json_t *index = json_load_file(path, 0, NULL);
    assert_non_null(index);
    return index;
}

static void test_decoding_is_bit_equal(void **state)
{
    (void)state;
    json_t *index = load_index(), *row;
    size_t i, n_checked = 0;
    json_array_foreach(json_object_get(index, "types"), i, row)
    {
        const td_type_info *type =
            td_type_find((uint32_t)json_integer_value(json_object_get(row, "type_id")));
        if (!type)
            continue;
        check_decoding(type, ".bin", ".f32");
        if (json_object_get(row, "random"))
            check_decoding(type, ".rand.bin", ".rand.f32");
        n_checked++;
    }
    json_decref(index);
    assert_int_equal(n_checked, N_TYPES);
}

/* Every entry of a codebook (or every pattern of signs): blocks of zeros with d = 1 and the entry's
 * number as their first index decode to values with this hash, taken from the reference. */
static const struct {
    const char *type;
    uint32_t n_entries, n_values;
    uint32_t d_at;  /* of the upper byte of d; IQ1_M has d in pieces */
    uint32_t at[2]; /* where the low 8 bits of the number go, and the others */
    uint64_t hash;
} codebooks[] = {
    {"IQ2_XXS", 256, 8, 1, {2, 3}, 0x46517a669988c524},
    {"IQ2_XXS", 128, 8, 1, {6, 7}, 0x805e9e806b380325}, /* signs */
    {"IQ2_XS", 512, 8, 1, {2, 3}, 0xb0bac8d309e90875},
    {"IQ2_S", 1024, 8, 1, {2, 66}, 0x7581f179a8807754},
    {"IQ3_XXS", 256, 4, 1, {2, 3}, 0xa8c0b9dda58ef3c8},
    {"IQ3_S", 512, 4, 1, {2, 66}, 0x0ae8de7c1f3091e5},
    {"IQ1_S", 2048, 8, 1, {2, 34}, 0x3d4d20df29ea6c02},
    {"IQ1_M", 2048, 8, 0, {0, 32}, 0x3d4d20df29ea6c02},
};

static void test_codebooks_are_complete(void **state)
{
    (void)state;
    for (size_t c = 0; c < TD_COUNT(codebooks); c++) {
        const td_type_info *type = td_type_find_name(codebooks[c].type);
        uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
        for (uint32_t i = 0; i < codebooks[c].n_entries; i++) {
            unsigned char block[TD_BLOCK_BYTES_MAX] = {0};
            float out[256];
            if (codebooks[c].d_at) {
                block[codebooks[c].d_at] = 0x3c;
            } else {
                block[53] = 0xc0;
                block[55] = 0x30;
            }
            block[codebooks[c].at[0]] = (unsigned char)(i & 255);
            if (i > 255)
                block[codebooks[c].at[1]] = (unsigned char)(i >> 8);
            type->dequantize(block, out, 256);
            unsigned char bytes[8 * sizeof(float)];
            memcpy(bytes, out, sizeof bytes);
            for (size_t j = 0; j < codebooks[c].n_values * sizeof(float); j++)
                hash = (hash ^ bytes[j]) * 0x100000001b3;
        }
        if (hash != codebooks[c].hash)
            fail_msg("%s, %u entries: hash %016llx, expected %016llx", codebooks[c].type,
                     codebooks[c].n_entries, (unsigned long long)hash,
                     (unsigned long long)codebooks[c].hash);
    }
}

static void test_encoding_is_byte_equal(void **state)
{
    (void)state;
    static const char *const names[] = {"F32", "F16", "BF16", "Q8_0"};
    size_t n_source, n_expected;
    unsigned char *source = load("source", ".f32", &n_source);
    assert_non_null(source);
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        const td_type_info *type = td_type_find_name(names[i]);
        unsigned char *expected = load(names[i], ".bin", &n_expected);
        unsigned char *blocks = malloc(n_expected);
        assert_non_null(blocks);
        assert_true(type->is_cache_type);
        type->quantize((const float *)(const void *)source, blocks, n_source / sizeof(float));
        for (size_t j = 0; j < n_expected; j++)
            if (blocks[j] != expected[j])
                fail_msg("%s: byte %zu (byte %zu of block %zu) is %02x, expected %02x", names[i], j,
                         j % type->block_bytes, j / type->block_bytes, blocks[j], expected[j]);
        free(blocks);
        free(expected);
    }
    free(source);
}

static double error_of_block(const td_type_info *type, const float *x, const unsigned char *block)
{
    float out[32];
    double error = 0;
    type->dequantize(block, out, 32);
    for (int j = 0; j < 32; j++)
        error += ((double)x[j] - (double)out[j]) * ((double)x[j] - (double)out[j]);
    return error;
}

/* What a block has beside its mean, or beside zero where the type has no minimum. */
static double size_of_block(const td_type_info *type, const float *x)
{
    double squares = 0, sum = 0;
    for (int j = 0; j < 32; j++) {
        squares += (double)x[j] * (double)x[j];
        sum += (double)x[j];
    }
    return td_grid_find(type)->has_minimum ? squares - sum * sum / 32 : squares;
}

/* The golden blocks are those of an encoder that takes the scale its extremes give: a search finds
 * none that is worse, and many that are better, though scales are stored a little larger than is
 * best for the error. */
static void test_searched_scales_are_better(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double most; /* of the golden blocks' error */
    } types[] = {{"Q4_0", 0.92}, {"Q4_1", 0.92}, {"Q5_0", 0.92}, {"Q5_1", 0.92}, {"IQ4_NL", 1.0}};
    size_t n_source, n_golden;
    unsigned char *source = load("source", ".f32", &n_source);
    const float *x = (const float *)(const void *)source;
    assert_non_null(source);
    for (size_t i = 0; i < TD_COUNT(types); i++) {
        const td_type_info *type = td_type_find_name(types[i].name);
        unsigned char *golden_blocks = load(types[i].name, ".bin", &n_golden);
        unsigned char block[TD_BLOCK_BYTES_MAX];
        double ours = 0, theirs = 0;
        for (size_t b = 0; b < n_golden / type->block_bytes; b++) {
            type->quantize(x + 32 * b, block, 32);
            double one = error_of_block(type, x + 32 * b, block);
            double golden_one =
                error_of_block(type, x + 32 * b, golden_blocks + b * type->block_bytes);
            bool is_searched = type->id == TD_TYPE_IQ4_NL; /* a little, by the golden encoder too */
            double more = 1.2 * golden_one / (size_of_block(type, x + 32 * b) + 1e-30);
            if (!is_searched && one > golden_one * (1.0001 + more) + 1e-30)
                fail_msg("%s, block %zu: error %g, golden %g", type->name, b, one, golden_one);
            ours += one / (golden_one + 1e-30);
            theirs++;
        }
        printf("%s: %.3f of the golden blocks' error\n", type->name, ours / theirs);
        assert_true(ours < types[i].most * theirs);
        free(golden_blocks);
    }
    free(source);
}

static void test_table_agrees_with_index(void **state)
{
    (void)state;
    json_t *index = load_index(), *row;
    size_t i;
    json_array_foreach(json_object_get(index, "types"), i, row)
    {
        uint32_t id = (uint32_t)json_integer_value(json_object_get(row, "type_id"));
        const char *name = json_string_value(json_object_get(row, "name"));
        uint32_t elements = (uint32_t)json_integer_value(json_object_get(row, "block_size"));
        uint32_t bytes = (uint32_t)json_integer_value(json_object_get(row, "bytes_per_block"));
        const td_type_format *format = td_type_find_format(id);
        assert_non_null(format);
        assert_string_equal(format->name, name);
        assert_int_equal(format->block_elements, elements);
        assert_int_equal(format->block_bytes, bytes);
        const td_type_info *type = td_type_find(id);
        if (type) {
            assert_string_equal(type->name, name);
            assert_int_equal(type->block_elements, elements);
            assert_int_equal(type->block_bytes, bytes);
        }
    }
    json_decref(index);
}

static void test_names(void **state)
{
    (void)state;
    size_t n_types = 0, n_chars = 0;
    for (uint32_t id = 0; id < 256; id++) {
        const td_type_info *type = td_type_find(id);
        if (!type)
            continue;
        n_chars += id == TD_TYPE_Q6_0 ? 0 : strlen(type->name) + (n_types ? 2 : 0);
        n_types++;
        assert_ptr_equal(td_type_find_name(type->name), type);
        assert_string_equal(td_type_format_name(id), id == TD_TYPE_Q6_0 ? "unknown" : type->name);
        assert_int_equal(type->is_cache_type, type->quantize != NULL);
        assert_int_equal(type->has_int8_activations, type->block_elements > 1);
        assert_int_equal(type->unpack != NULL, type->block_elements > 1);
        assert_true(type->block_elements <= TD_PARTS_MAX * TD_PART_ELEMENTS);
        assert_true(type->block_bytes <= TD_BLOCK_BYTES_MAX);
    }
    assert_int_equal(n_types, N_TYPES + 1);
    assert_int_equal(n_chars, strlen(td_type_names()));
    assert_non_null(strstr(td_type_names(), "F32, F16, BF16, Q4_0, Q4_1,"));
    assert_non_null(td_type_find_name("q8_0"));
    assert_null(td_type_find_name("q8"));
    assert_null(td_type_find_name(""));
    static const uint32_t gaps[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 64, UINT32_MAX};
    for (size_t i = 0; i < TD_COUNT(gaps); i++) {
        assert_null(td_type_find(gaps[i]));
        assert_null(td_type_find_format(gaps[i]));
        assert_string_equal(td_type_format_name(gaps[i]), "unknown");
    }
    assert_string_equal(td_type_format_name(30), "BF16");
}

static float f32_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void test_half_roundtrip_is_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = td_f16_to_f32((uint16_t)h);
        bool is_nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        assert_int_equal(is_nan, isnan(f) != 0);
        assert_int_equal(td_f32_to_f16(f), is_nan ? h | 0x200 : h);
        if (!is_nan && (h & 0x7c00) != 0x7c00) { /* the definition of the format */
            int exponent = (int)(h >> 10 & 0x1f);
            double m = (double)(h & 0x3ff) + (exponent ? 1024 : 0);
            double want = ldexp(h & 0x8000 ? -m : m, (exponent ? exponent : 1) - 25);
            assert_true((double)f == want);
        }
    }
}

/* One float near every half and every midpoint between halves. */
static void check_to_half(uint32_t bits)
{
#ifdef __FLT16_MANT_DIG__ /* the compiler's own conversion is the outside truth */
    float f = f32_of(bits);
    _Float16 want = (_Float16)f;
    uint16_t h;
    memcpy(&h, &want, sizeof h);
    if (td_f32_to_f16(f) != h)
        fail_msg("f32 %08x became f16 %04x, expected %04x", bits, td_f32_to_f16(f), h);
#else
    (void)bits;
#endif
}

static void test_half_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float a = td_f16_to_f32((uint16_t)h);
        float b = h == 0x7bff ? 65536.0f : td_f16_to_f32((uint16_t)(h + 1));
        uint32_t middle = bits_of((a + b) / 2);
        for (uint32_t d = 0; d < 3; d++) {
            check_to_half(middle + d - 1);
            check_to_half((middle + d - 1) | 0x80000000u);
            check_to_half(bits_of(a) + d);
        }
        assert_int_equal(td_f32_to_f16(f32_of(middle)), h & 1 ? h + 1 : h);
        assert_int_equal(td_f32_to_f16(f32_of(middle + 1)), h + 1);
        assert_int_equal(td_f32_to_f16(f32_of(middle - 1)), h);
    }
    for (uint32_t bits = 0; bits < 0xffffff00u; bits += 65521) /* a prime: all exponents */
        if ((bits & 0x7fffffff) <= 0x7f800000)
            check_to_half(bits);
    assert_int_equal(td_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(td_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(td_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(td_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(td_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(td_f32_to_f16(f32_of(1)), 0);
    assert_true(isnan(td_f16_to_f32(td_f32_to_f16(f32_of(0x7f800001)))));
}

static void test_encoding_of_hostile_values(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    static const char *const names[] = {"Q8_0", "Q6_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        const td_type_info *type = td_type_find_name(names[i]);
        float in[64], out[64];
        unsigned char blocks[2 * 34];
        for (size_t v = 0; v < TD_COUNT(values); v++) {
            for (int j = 0; j < 64; j++)
                in[j] = 1.0f;
            in[7] = values[v];
            type->quantize(in, blocks, 64);
            type->dequantize(blocks, out, 64);
            for (int j = 0; j < 64; j++) /* the neighbour block is not touched */
                assert_int_equal(isnan(out[j]) != 0, j < 32);
        }
        static const float tiny[] = {0.0f, 1e-45f, 1e-40f, 1e-38f};
        for (size_t v = 0; v < TD_COUNT(tiny); v++) {
            for (int j = 0; j < 64; j++)
                in[j] = j % 2 ? tiny[v] : -tiny[v];
            type->quantize(in, blocks, 64);
            type->dequantize(blocks, out, 64);
            for (int j = 0; j < 64; j++)
                assert_true(out[j] == 0.0f);
        }
        for (int j = 0; j < 64; j++)
            in[j] = j % 2 ? 3.4e38f : -3.4e38f;
        type->quantize(in, blocks, 64);
        type->dequantize(blocks, out, 64);
        for (int j = 0; j < 64; j++)
            assert_false(isfinite(out[j]) != 0);
    }
}

int main(void)
{
    golden = getenv("TD_GOLDEN");
    if (!golden)
        golden = "../shared/golden";
    size_t n_bytes;
    unsigned char *probe = load("source", ".f32", &n_bytes);
    if (!probe) {
        printf("skipped: no golden data in %s/quants (set TD_GOLDEN)\n", golden);
        return 77;
    }
    free(probe);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decoding_is_bit_equal),
        cmocka_unit_test(test_codebooks_are_complete),
        cmocka_unit_test(test_encoding_is_byte_equal),
        cmocka_unit_test(test_searched_scales_are_better),
        cmocka_unit_test(test_table_agrees_with_index),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_half_roundtrip_is_exact),
        cmocka_unit_test(test_half_rounds_to_nearest_even),
        cmocka_unit_test(test_encoding_of_hostile_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
