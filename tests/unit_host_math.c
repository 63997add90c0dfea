/* The host's exp and tanh against libm, the quantization of activations against its definition,
 * and every SIMD level this CPU has against the plain form. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/rng.h"
#include "kernels/host/host.h"

#include <float.h>
#include <stdlib.h>

#define CHUNK 4096u

static const td_host_kernels *levels[4];
static size_t n_levels;

/* The levels this CPU has; the best one comes first. */
static int find_levels(void **state)
{
    (void)state;
    static const char *const names[] = {"avx512", "avxvnni", "avx2", "generic"};
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        setenv("TD_HOST_ISA", names[i], 1);
        const td_host_kernels *k = td_host_find_kernels(NULL);
        if (!n_levels || levels[n_levels - 1] != k)
            levels[n_levels++] = k;
    }
    unsetenv("TD_HOST_ISA");
    for (size_t i = 0; i < n_levels; i++)
        print_message("level %s\n", levels[i]->name);
    return n_levels == 0;
}

static bool same(float a, float b)
{
    return td_arith_bits(a) == td_arith_bits(b) || (isnan(a) && isnan(b));
}

/* Error in units of the last place of the true result. */
static double error_in_ulp(float got, double want)
{
    if (want > (double)FLT_MAX)
        return isinf(got) ? 0 : 1e9;
    int exponent;
    frexp(want, &exponent);
    double ulp = ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
    return fabs((double)got - want) / ulp;
}

static void check_exp_chunk(const float *x)
{
    static float y[CHUNK];
    float plain[CHUNK];
    for (uint32_t i = 0; i < CHUNK; i++)
        plain[i] = td_arith_exp(x[i]);
    for (size_t l = 0; l < n_levels; l++) {
        levels[l]->exp(x, CHUNK - 3, y); /* a tail that fills no vector */
        for (uint32_t i = 0; i < CHUNK - 3; i++)
            if (!same(y[i], plain[i]))
                fail_msg("%s: exp(%a) is %a, plain C has %a", levels[l]->name, (double)x[i],
                         (double)y[i], (double)plain[i]);
    }
}

static void test_exp_is_within_two_ulp_of_libm(void **state)
{
    (void)state;
    float x[CHUNK];
    double worst = 0;
    for (uint32_t chunk = 0; chunk < 256; chunk++) {
        for (uint32_t i = 0; i < CHUNK; i++)
            x[i] = -106.0f + 196.0f * ((float)td_noise_bits(chunk, i, 0) * 0x1p-32f);
        check_exp_chunk(x);
        for (uint32_t i = 0; i < CHUNK; i++) {
            double error = error_in_ulp(td_arith_exp(x[i]), exp((double)x[i]));
            if (error > 2)
                fail_msg("exp(%a) is off by %g ulp", (double)x[i], error);
            worst = error > worst ? error : worst;
        }
    }
    print_message("worst error of exp: %.3f ulp\n", worst);
}

static void test_exp_has_one_result_for_any_bits(void **state)
{
    (void)state;
    float x[CHUNK];
    for (uint32_t chunk = 0; chunk < 64; chunk++) {
        for (uint32_t i = 0; i < CHUNK; i++)
            x[i] = td_arith_from_bits(td_noise_bits(chunk + 1000, i, 0));
        check_exp_chunk(x);
    }
}

static void test_exp_ends(void **state)
{
    (void)state;
    assert_true(td_arith_exp(-INFINITY) == 0);
    assert_true(td_arith_exp(-200.0f) == 0);
    assert_true(td_arith_exp(-FLT_MAX) == 0);
    assert_true(td_arith_exp(0.0f) == 1.0f);
    assert_true(td_arith_exp(-0.0f) == 1.0f);
    assert_true(isinf(td_arith_exp(INFINITY)));
    assert_true(isinf(td_arith_exp(88.8f)));
    assert_true(isfinite(td_arith_exp(88.7f)));
    assert_true(isnan(td_arith_exp(NAN)));
}

static void test_tanh_is_close_to_libm(void **state)
{
    (void)state;
    for (int i = -4000; i <= 4000; i++) {
        float x = (float)i * 0.005f;
        double error = fabs((double)td_arith_tanh(x) - tanh((double)x));
        if (error > 2e-7)
            fail_msg("tanh(%g) is off by %g", (double)x, error);
    }
    assert_true(td_arith_tanh(INFINITY) == 1.0f);
    assert_true(td_arith_tanh(-INFINITY) == -1.0f);
    assert_true(isnan(td_arith_tanh(NAN)));
}

/* From the definition in arith.h, in double and by searching the nearest even. */
static td_act_block expected_block(const float *x)
{
    td_act_block b = {.d = 0};
    float amax = 0;
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i])) {
            b.d = NAN;
            return b;
        }
        amax = fmaxf(amax, fabsf(x[i]));
    }
    if (amax < 0x1p-120f)
        return b;
    b.d = amax / 127.0f;
    float inverse = 127.0f / amax;
    int sums[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        double v = (double)(x[i] * inverse), down = floor(v);
        int q = (int)down;
        if (v - down > 0.5 || (v - down == 0.5 && q % 2 != 0))
            q++;
        b.q[i] = (int8_t)q;
        sums[i / 16] += q;
    }
    int sum = sums[0] + sums[1];
    b.sum = (float)sum;
    b.by_128 = -128 * sum;
    b.by_8 = -8 * sum;
    b.by_32[0] = -32 * sums[0];
    b.by_32[1] = -32 * sums[1];
    return b;
}

static void check_quantize(const float *x, uint32_t n)
{
    td_act_block got[64];
    assert_true(n <= 64 * 32);
    for (size_t l = 0; l < n_levels; l++) {
        levels[l]->quantize(x, n, got);
        for (uint32_t b = 0; b < n / 32; b++) {
            td_act_block want = expected_block(x + 32 * b);
            assert_memory_equal(got[b].q, want.q, sizeof want.q);
            assert_true(same(got[b].d, want.d));
            assert_int_equal(got[b].sum, want.sum);
            assert_int_equal(got[b].by_128, want.by_128);
            assert_int_equal(got[b].by_8, want.by_8);
            assert_int_equal(got[b].by_32[0], want.by_32[0]);
            assert_int_equal(got[b].by_32[1], want.by_32[1]);
        }
    }
}

static void test_quantize_follows_its_definition(void **state)
{
    (void)state;
    float x[2048];
    for (uint32_t trial = 0; trial < 50; trial++) {
        float size = ldexpf(1.0f, (int)(td_noise_bits(7, trial, 1) % 250) - 125);
        for (uint32_t i = 0; i < 2048; i++)
            x[i] = ((float)td_noise_bits(trial, i, 0) * 0x1p-31f - 1.0f) * size;
        check_quantize(x, 2048);
    }
    for (uint32_t i = 0; i < 2048; i++) /* ties: amax 127 makes the factor 1 */
        x[i] = i % 32 ? (float)((int)(i % 511) - 255) * 0.5f : 127.0f;
    for (uint32_t i = 0; i < 2048; i++)
        x[i] = fminf(fmaxf(x[i], -127.0f), 127.0f);
    check_quantize(x, 2048);
}

static void test_quantize_is_defined_for_every_float(void **state)
{
    (void)state;
    static const float specials[] = {
        NAN,      INFINITY,  -INFINITY,        0.0f,      -0.0f,     FLT_MAX,
        -FLT_MAX, 0x1p-120f, 0x1.fffffep-121f, 0x1p-149f, -0x1p-149f};
    float x[32];
    for (size_t s = 0; s < TD_COUNT(specials); s++)
        for (uint32_t at = 0; at < 32; at++) {
            for (uint32_t i = 0; i < 32; i++)
                x[i] = s % 2 ? 0.0f : (float)i * 0x1p-130f;
            x[at] = specials[s];
            check_quantize(x, 32);
        }
    for (uint32_t trial = 0; trial < 2000; trial++) {
        for (uint32_t i = 0; i < 32; i++)
            x[i] = td_arith_from_bits(td_noise_bits(trial, i, 9));
        check_quantize(x, 32);
    }
}

static void test_halves_are_those_of_the_types_table(void **state)
{
    (void)state;
    float x[CHUNK];
    uint16_t y[CHUNK];
    for (uint32_t chunk = 0; chunk < 64; chunk++) {
        for (uint32_t i = 0; i < CHUNK; i++) {
            uint32_t bits = td_noise_bits(chunk + 5000, i, 0);
            if (i % 2) /* half of them in the range of halves, subnormal ones included */
                bits = (bits & 0x807fffffu) | (101 + bits / 7 % 45) << 23;
            x[i] = td_arith_from_bits(bits);
        }
        for (size_t l = 0; l < n_levels; l++) {
            levels[l]->to_f16(x, CHUNK - 5, y);
            for (uint32_t i = 0; i < CHUNK - 5; i++)
                assert_int_equal(y[i], td_f32_to_f16(x[i]));
        }
    }
}

/* Blocks of a size, of values as a cache has them: some far out, some alike, some zero. */
static void fill_blocks(float *x, uint32_t seed)
{
    for (uint32_t l = 0; l < TD_ENCODE_LANES; l++) {
        int exponent = (int)(td_noise_bits(seed, l, 1) % 50) - 35;
        float offset = l % 4 == 1 ? 3.0f : 0;
        for (uint32_t j = 0; j < 32; j++) {
            float a = (float)td_noise_bits(seed, l * 32 + j, 2) * 0x1p-31f - 1.0f;
            a = l % 3 ? a : a * a * a;
            x[j * TD_ENCODE_LANES + l] = l == 5 ? 0 : ldexpf(a + offset, exponent);
        }
        static const float odd[] = {NAN, INFINITY, -INFINITY, 3.4e38f, 1e-45f};
        if (seed % 4 == 0 && l % 2)
            x[(l * 7 + seed) % 32 * TD_ENCODE_LANES + l] = odd[l % TD_COUNT(odd)];
    }
}

/* Decoded alike, which is all there is to know of a block that holds NaN. */
static void assert_same_blocks(const td_type_info *type, const uint8_t *a, const uint8_t *b,
                               const char *level)
{
    float x[32], y[32];
    type->dequantize(a, x, 32);
    type->dequantize(b, y, 32);
    for (uint32_t j = 0; j < 32; j++)
        if (!same(x[j], y[j]))
            fail_msg("%s, %s: element %u is %a, expected %a", type->name, level, j, (double)x[j],
                     (double)y[j]);
}

static void test_blocks_are_encoded_as_the_types_table_does(void **state)
{
    (void)state;
    static const char *const names[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_0", "IQ4_NL"};
    for (uint32_t seed = 0; seed < 100; seed++) {
        _Alignas(64) float x[32 * TD_ENCODE_LANES], d[TD_ENCODE_LANES], m[TD_ENCODE_LANES];
        _Alignas(64) int32_t n[32 * TD_ENCODE_LANES];
        const td_type_info *type = td_type_find_name(names[seed % TD_COUNT(names)]);
        const td_grid *grid = td_grid_find(type);
        fill_blocks(x, seed / TD_COUNT(names));
        for (size_t i = 0; i < n_levels; i++) {
            levels[i]->encode(grid, x, d, m, n);
            for (uint32_t l = 0; l < TD_ENCODE_LANES; l++) {
                float row[32];
                uint8_t got[TD_BLOCK_BYTES_MAX], want[TD_BLOCK_BYTES_MAX];
                for (uint32_t j = 0; j < 32; j++)
                    row[j] = x[j * TD_ENCODE_LANES + l];
                type->quantize(row, want, 32);
                td_grid_pack(grid, d[l], m[l], n + l, TD_ENCODE_LANES, got);
                assert_same_blocks(type, got, want, levels[i]->name);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_within_two_ulp_of_libm),
        cmocka_unit_test(test_exp_has_one_result_for_any_bits),
        cmocka_unit_test(test_exp_ends),
        cmocka_unit_test(test_tanh_is_close_to_libm),
        cmocka_unit_test(test_halves_are_those_of_the_types_table),
        cmocka_unit_test(test_quantize_follows_its_definition),
        cmocka_unit_test(test_blocks_are_encoded_as_the_types_table_does),
        cmocka_unit_test(test_quantize_is_defined_for_every_float),
    };
    return cmocka_run_group_tests(tests, find_levels, NULL);
}
